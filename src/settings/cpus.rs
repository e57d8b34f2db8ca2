//! Computes the number of CPUs that this process may use, and the number of workers that `workers.count` means.
//!
//! Owns: reading the CPU affinity and the cgroup quotas (v1, v2, every ancestor), and the formulas. Refuses: everything
//! else about workers.

use std::fs;

use super::problem::Reading;
use crate::sys::host;

/// The largest number of workers of a service. There is a limit because there are twice as many slots as workers, and
/// each slot costs sockets and a row of the scoreboard.
pub(crate) const WORKERS_MAX: u32 = 256;

/// Returns the number of CPUs that `auto` stands for: the CPUs of the affinity mask or those of the lowest CPU quota,
/// whichever is less. A quota is rounded up. The result is at least 1.
///
/// `std::thread::available_parallelism` reads the same sources, but rounds a quota down: 1.5 CPUs would give one
/// worker. A worker has one thread, so it could use only 1 of the 1.5 CPUs. Two workers can use all 1.5.
pub(super) fn available() -> u32 {
    let affinity = host::affinity().unwrap_or(WORKERS_MAX);
    let quota = quota(|path| fs::read_to_string(path).ok()).unwrap_or(u32::MAX);
    affinity.min(quota).max(1)
}

/// Returns the lowest quota of this process's cgroup and of all cgroups above it, in CPUs, rounded up; `None` if there
/// is no quota. An ancestor outside of our cgroup namespace cannot be read and is left out.
fn quota(read: impl Fn(&str) -> Option<String>) -> Option<u32> {
    let membership = read("/proc/self/cgroup")?;
    let mut tightest: Option<u32> = None;
    for line in membership.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(mut path)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let v1 = controllers.split(',').any(|controller| controller == "cpu");
        if !v1 && !controllers.is_empty() {
            continue;
        }
        loop {
            let folder = path.trim_end_matches('/');
            let here = if v1 {
                ["cpu", "cpu,cpuacct"].iter().find_map(|mount| {
                    let base = format!("/sys/fs/cgroup/{mount}{folder}");
                    let quota = read(&format!("{base}/cpu.cfs_quota_us"))?;
                    let period = read(&format!("{base}/cpu.cfs_period_us"))?;
                    whole_cpus(&quota, &period)
                })
            } else {
                read(&format!("/sys/fs/cgroup{folder}/cpu.max"))
                    .and_then(|max| max.trim().split_once(' ').and_then(|(quota, period)| whole_cpus(quota, period)))
            };
            tightest = [tightest, here].into_iter().flatten().min();
            match folder.rfind('/') {
                Some(cut) => path = &folder[..cut],
                None => break,
            }
        }
    }
    tightest
}

/// Returns quota / period in CPUs, rounded up. Returns `None` if the quota is `max` (cgroup v2) or `-1` (cgroup v1),
/// because both mean that there is no limit.
fn whole_cpus(quota: &str, period: &str) -> Option<u32> {
    let (quota, period): (u64, u64) = (quota.trim().parse().ok()?, period.trim().parse().ok()?);
    let cpus = quota.checked_add(period.checked_sub(1)?)? / period;
    u32::try_from(cpus.max(1)).ok()
}

/// Reads `workers.count`: a number, `auto`, or a formula `[a][*]n[+b|-b]`. In a formula n stands for `cpus`. The result
/// of `auto` is limited to [`WORKERS_MAX`]; a number or a formula above this limit is an error. A formula gives at
/// least 1.
pub(super) fn count(text: &str, cpus: u32) -> Reading<u32> {
    if text == "auto" {
        return Ok(cpus.clamp(1, WORKERS_MAX));
    }
    let (count, formula) = match text.parse::<u64>() {
        Ok(number) => (number, false),
        Err(_) => (evaluate(text, cpus).ok_or_else(|| misread(text))?, true),
    };
    match u32::try_from(count) {
        Ok(0) => Err("0 workers serve nothing; the least is 1".to_owned()),
        Ok(count) if count <= WORKERS_MAX => Ok(count),
        _ if formula => Err(format!("\"{text}\" gives {count} on {cpus} CPUs; the limit is {WORKERS_MAX}")),
        _ => Err(format!("{count} workers are too many; the limit is {WORKERS_MAX}")),
    }
}

pub(super) fn misread(written: &str) -> String {
    format!("\"{written}\" is not a number, \"auto\" or a formula such as \"2n+1\"")
}

fn evaluate(formula: &str, cpus: u32) -> Option<u64> {
    let formula: String = formula.chars().filter(|c| !c.is_whitespace()).collect();
    let (factor, rest) = formula.split_once('n')?;
    let factor = factor.strip_suffix('*').unwrap_or(factor);
    let product = i64::from(cpus).checked_mul(if factor.is_empty() { 1 } else { digits(factor)? })?;
    let sum = if let Some(term) = rest.strip_prefix('+') {
        product.checked_add(digits(term)?)?
    } else if let Some(term) = rest.strip_prefix('-') {
        product.checked_sub(digits(term)?)?
    } else if rest.is_empty() {
        product
    } else {
        return None;
    };
    u64::try_from(sum.max(1)).ok()
}

/// Reads a number without a sign. `str::parse` alone would accept a sign, as in "2n+-1".
fn digits(text: &str) -> Option<i64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn a_count_is_a_number_auto_or_a_formula() {
        for (text, cpus, wanted) in [
            ("auto", 4, Ok(4)),
            ("auto", 384, Ok(256)),
            ("3", 4, Ok(3)),
            ("n", 4, Ok(4)),
            ("2n+1", 4, Ok(9)),
            ("2*n+1", 4, Ok(9)),
            ("2 * n + 1", 4, Ok(9)),
            ("4n", 2, Ok(8)),
            ("n-1", 4, Ok(3)),
            ("n-1", 1, Ok(1)),
            ("n-9", 4, Ok(1)),
            ("0", 4, Err("0 workers serve nothing; the least is 1")),
            ("257", 4, Err("257 workers are too many; the limit is 256")),
            ("2n+1", 192, Err("\"2n+1\" gives 385 on 192 CPUs; the limit is 256")),
            ("abc", 4, Err("\"abc\" is not a number, \"auto\" or a formula such as \"2n+1\"")),
            ("-1", 4, Err("\"-1\" is not a number, \"auto\" or a formula such as \"2n+1\"")),
            ("2n+-1", 4, Err("\"2n+-1\" is not a number, \"auto\" or a formula such as \"2n+1\"")),
            ("2n+", 4, Err("\"2n+\" is not a number, \"auto\" or a formula such as \"2n+1\"")),
            ("nn", 4, Err("\"nn\" is not a number, \"auto\" or a formula such as \"2n+1\"")),
            ("n\u{e9}", 4, Err("\"n\u{e9}\" is not a number, \"auto\" or a formula such as \"2n+1\"")),
        ] {
            assert_eq!(count(text, cpus), wanted.map_err(str::to_owned), "{text} on {cpus}");
        }
    }

    #[test]
    fn the_smallest_quota_of_all_parent_groups_counts() {
        type Files = &'static [(&'static str, &'static str)];
        let cases: &[(Files, Option<u32>)] = &[
            (&[], None),
            (&[("/proc/self/cgroup", "0::/\n"), ("/sys/fs/cgroup/cpu.max", "max 100000\n")], None),
            (&[("/proc/self/cgroup", "0::/\n"), ("/sys/fs/cgroup/cpu.max", "150000 100000\n")], Some(2)),
            (&[("/proc/self/cgroup", "0::/a/b\n"), ("/sys/fs/cgroup/a/b/cpu.max", "50000 100000\n")], Some(1)),
            (
                &[
                    ("/proc/self/cgroup", "0::/a/b\n"),
                    ("/sys/fs/cgroup/a/b/cpu.max", "max 100000\n"),
                    ("/sys/fs/cgroup/a/cpu.max", "300000 100000\n"),
                    ("/sys/fs/cgroup/cpu.max", "800000 100000\n"),
                ],
                Some(3),
            ),
            (
                &[
                    ("/proc/self/cgroup", "5:memory:/m\n4:cpu,cpuacct:/d/x\n0::/\n"),
                    ("/sys/fs/cgroup/cpu/d/x/cpu.cfs_quota_us", "-1\n"),
                    ("/sys/fs/cgroup/cpu/d/x/cpu.cfs_period_us", "100000\n"),
                    ("/sys/fs/cgroup/cpu,cpuacct/d/cpu.cfs_quota_us", "250000\n"),
                    ("/sys/fs/cgroup/cpu,cpuacct/d/cpu.cfs_period_us", "100000\n"),
                ],
                Some(3),
            ),
            (&[("/proc/self/cgroup", "0::/\n"), ("/sys/fs/cgroup/cpu.max", "150000 0\n")], None),
            (&[("/proc/self/cgroup", "nonsense\n")], None),
        ];
        for (files, wanted) in cases {
            let files: HashMap<&str, &str> = files.iter().copied().collect();
            assert_eq!(quota(|path| files.get(path).map(|text| (*text).to_owned())), *wanted, "{files:?}");
        }
    }
}
