//! Says in one sentence why a worker ended, and claims only what is known.
//!
//! Owns: the words for an exit status, for the sender of a SIGKILL, and for the requests in flight. Refuses: to guess.
//! The sentence names the kernel as the sender of a SIGKILL only if the cgroup counted an OOM kill, and names the
//! master only if the core ordered the SIGKILL.

use std::fmt::Write;

use super::{
    child::Child,
    core::{Generation, KillCause, Phase, SlotId},
    oom::OomDelta,
};
use crate::{
    scoreboard::{InFlightRequest, RowState},
    sys::{clock, signals::Number, wait::Exit},
    worker::EXIT_BOOT_FAILED,
};

const BOOT_FAILED: i32 = EXIT_BOOT_FAILED as i32;
/// The exit code of a Rust program whose `main` panics.
const PANICKED: i32 = 101;

/// Everything that is known about the end of a worker.
#[derive(Debug)]
pub(super) struct ExitFacts<'a> {
    pub(super) exit: Exit,
    /// The phase of the worker when it ended, as the core knew it.
    pub(super) phase: Phase,
    /// Why the boot failed, if the worker sent the reason before it ended.
    pub(super) boot_failure: Option<&'a str>,
    /// The change of the cgroup's count of OOM kills. The count is read only after a SIGKILL that the master did not
    /// send. `None` in all other cases, and if the cgroup has no counter.
    pub(super) oom: Option<OomDelta>,
    /// How late the next heartbeat was when the worker ended, in milliseconds; 0 if it was not late.
    pub(super) overdue_ms: u64,
    pub(super) in_flight: &'a str,
}

/// Returns true if this end is a SIGKILL that the master did not send.
pub(super) fn is_foreign_kill(exit: Exit, phase: Phase) -> bool {
    is_signal(exit, Number::SIGKILL) && !matches!(phase, Phase::Killed { .. })
}

/// Returns why the master ended or was about to end a worker in this phase; `None` if it did not give the worker up.
pub(super) fn given_up_for(phase: Phase) -> Option<KillCause> {
    match phase {
        Phase::Dumping { cause, .. } | Phase::Killed { cause } => Some(cause),
        Phase::Aborting { .. } => Some(KillCause::Hung),
        Phase::Forking | Phase::Starting { .. } | Phase::Serving { .. } | Phase::Draining { .. } => None,
    }
}

/// Returns true if a request may have caused this end. This is so if the worker served or hung, or if it drained and
/// did not exit with code 0.
pub(super) fn may_be_caused_by_a_request(phase: Phase, exit: Exit) -> bool {
    match phase {
        Phase::Serving { .. } => true,
        Phase::Draining { .. } => exit != Exit::Code(0),
        Phase::Forking | Phase::Starting { .. } => false,
        Phase::Dumping { .. } | Phase::Aborting { .. } | Phase::Killed { .. } => {
            given_up_for(phase) == Some(KillCause::Hung)
        }
    }
}

/// Returns true if this worker drained and ended as it was told.
pub(super) fn left_in_order(phase: Phase, exit: Exit) -> bool {
    matches!(phase, Phase::Draining { .. }) && exit == Exit::Code(0)
}

/// Logs the end of a worker, and returns the reason in one sentence.
pub(super) fn log(
    child: &Child,
    slot: SlotId,
    generation: Generation,
    phase: Phase,
    exit: Exit,
    oom: Option<OomDelta>,
    notes: &[InFlightRequest],
) -> String {
    let Child { pid, row, .. } = *child;
    let now = clock::now();
    let in_flight_count = row.in_flight();
    // A worker that does not serve yet has not promised a heartbeat, so its heartbeat cannot be late.
    let overdue_ms = match row.state() {
        RowState::Serving | RowState::Draining => now.saturating_sub(row.due()),
        RowState::Starting | RowState::Free => 0,
    };
    let reason = explain(&ExitFacts {
        exit,
        phase,
        boot_failure: child.boot_failure.as_deref(),
        oom,
        overdue_ms,
        in_flight: &in_flight(notes, in_flight_count, now),
    });
    let left_in_order = left_in_order(phase, exit);
    let served = !matches!(phase, Phase::Forking | Phase::Starting { .. });
    let unfinished = served && !left_in_order;
    macro_rules! log_exit {
        ($level:ident, $message:literal) => {
            tracing::$level!(
                event = "worker_exited",
                slot = slot.0,
                pid = pid.0,
                generation = generation.0,
                requests = served.then(|| row.requests()),
                in_flight = unfinished.then_some(in_flight_count),
                overdue_ms = unfinished.then_some(overdue_ms),
                reason,
                $message
            )
        };
    }
    match phase {
        Phase::Draining { .. } if left_in_order => log_exit!(info, "the worker drained and ended"),
        Phase::Forking | Phase::Starting { .. } => {
            log_exit!(error, "the worker ended before it served; its slot gets another one")
        }
        Phase::Serving { .. } => log_exit!(error, "the worker died; its slot gets another one"),
        Phase::Draining { .. } => log_exit!(error, "the worker died while it drained"),
        Phase::Dumping { .. } | Phase::Aborting { .. } | Phase::Killed { .. } => {
            log_exit!(warn, "the worker is gone: the master had ended it because it hung or was too late")
        }
    }
    reason
}

fn explain(facts: &ExitFacts<'_>) -> String {
    let mut sentence = cause(facts);
    if facts.overdue_ms > 0 {
        let _ = write!(sentence, "; its heartbeat was {} overdue", span(facts.overdue_ms));
    }
    if !facts.in_flight.is_empty() {
        let _ = write!(sentence, "; in flight: {}", facts.in_flight);
    }
    sentence
}

fn cause(facts: &ExitFacts<'_>) -> String {
    let ExitFacts { exit, phase, .. } = *facts;
    let by_master = match phase {
        Phase::Killed { cause } if is_signal(exit, Number::SIGKILL) => Some(cause.to_string()),
        Phase::Aborting { .. } | Phase::Killed { cause: KillCause::Hung } if is_signal(exit, Number::SIGABRT) => {
            Some("hung, no heartbeat within workers.timeout".to_owned())
        }
        Phase::Forking
        | Phase::Starting { .. }
        | Phase::Serving { .. }
        | Phase::Dumping { .. }
        | Phase::Aborting { .. }
        | Phase::Draining { .. }
        | Phase::Killed { .. } => None,
    };
    if let Some(why) = by_master {
        return format!("{exit}, sent by the master: {why}");
    }
    let how = match (exit, facts.boot_failure) {
        (Exit::Code(0), _) if matches!(phase, Phase::Draining { .. }) => return "drained and ended".to_owned(),
        (Exit::Code(BOOT_FAILED), Some(reason)) => return format!("could not boot: {reason}"),
        (Exit::Code(PANICKED), _) => format!("{exit}: a panic left main"),
        _ if is_signal(exit, Number::SIGALRM) => format!("{exit}: the alarm a worker sets for a drain that hangs"),
        _ if is_foreign_kill(exit, phase) => match facts.oom {
            Some(OomDelta { file, before, now }) if now > before => {
                format!("killed by the kernel's OOM killer ({file}: oom_kill {before} → {now})")
            }
            Some(_) => format!("{exit} from outside: the master did not send it, and the cgroup counted no OOM kill"),
            None => format!("{exit}, not sent by the master"),
        },
        _ => exit.to_string(),
    };
    let when = match phase {
        Phase::Forking | Phase::Starting { .. } => ", before it served",
        Phase::Draining { .. } => ", while it drained",
        Phase::Dumping { .. } => ", after the master had asked it to write what it did",
        Phase::Aborting { .. } | Phase::Killed { .. } => ", after the master had given it up",
        Phase::Serving { .. } if exit == Exit::Code(0) => ", although it was not told to",
        Phase::Serving { .. } => "",
    };
    how + when
}

fn is_signal(exit: Exit, signal: Number) -> bool {
    matches!(exit, Exit::Signal { number, .. } if number == signal as i32)
}

/// Lists the requests in flight. `count` is the number of all of them, and `notes` holds those that are noted. The list
/// is empty, or looks like `GET /facts for 2.1 s [id abc], 3 more`.
pub(super) fn in_flight(notes: &[InFlightRequest], count: u64, now: u64) -> String {
    let mut parts: Vec<String> = notes
        .iter()
        .map(|note| {
            let id = note.id.as_ref().map(|id| format!(" [id {id}]")).unwrap_or_default();
            format!("{} for {}{id}", note.request, span(now.saturating_sub(note.started)))
        })
        .collect();
    let noted = parts.len() as u64;
    if count > noted {
        parts.push(format!("{} more", count - noted));
    }
    parts.join(", ")
}

fn span(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        _ => format!("{}.{} s", ms / 1_000, ms % 1_000 / 100),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::core::Millis, *};

    const UNTIL: Millis = Millis(0);
    const SERVING: Phase = Phase::Serving { silent_until: UNTIL };

    fn signal(number: Number, core: bool) -> Exit {
        Exit::Signal { number: number as i32, core }
    }

    fn said(exit: Exit, phase: Phase, oom: Option<(u64, u64)>) -> String {
        let oom = oom.map(|(before, now)| OomDelta { file: "memory.events", before, now });
        explain(&ExitFacts { exit, phase, boot_failure: None, oom, overdue_ms: 0, in_flight: "" })
    }

    #[test]
    fn each_end_has_its_sentence() {
        let kill = signal(Number::SIGKILL, false);
        let (draining, aborting) = (Phase::Draining { until: UNTIL }, Phase::Aborting { until: UNTIL });
        let killed = |cause| Phase::Killed { cause };
        let cases = [
            (Exit::Code(7), SERVING, None, "exited with code 7"),
            (Exit::Code(0), draining, None, "drained and ended"),
            (Exit::Code(0), SERVING, None, "exited with code 0, although it was not told to"),
            (Exit::Code(101), SERVING, None, "exited with code 101: a panic left main"),
            (Exit::Code(3), Phase::Starting { until: UNTIL }, None, "exited with code 3, before it served"),
            (signal(Number::SIGSEGV, true), SERVING, None, "killed by SIGSEGV (core dumped)"),
            (signal(Number::SIGSEGV, false), draining, None, "killed by SIGSEGV, while it drained"),
            (
                signal(Number::SIGABRT, false),
                aborting,
                None,
                "killed by SIGABRT, sent by the master: hung, no heartbeat within workers.timeout",
            ),
            (signal(Number::SIGABRT, false), SERVING, None, "killed by SIGABRT"),
            (
                kill,
                killed(KillCause::Hung),
                Some((3, 4)),
                "killed by SIGKILL, sent by the master: hung, and SIGABRT did not end it",
            ),
            (
                kill,
                killed(KillCause::BootTimeout),
                None,
                "killed by SIGKILL, sent by the master: not ready within workers.boot_timeout",
            ),
            (kill, killed(KillCause::DrainTimeout), None, "killed by SIGKILL, sent by the master: not drained in time"),
            (kill, SERVING, Some((3, 4)), "killed by the kernel's OOM killer (memory.events: oom_kill 3 → 4)"),
            (
                kill,
                SERVING,
                Some((3, 3)),
                "killed by SIGKILL from outside: the master did not send it, and the cgroup counted no OOM kill",
            ),
            (kill, SERVING, None, "killed by SIGKILL, not sent by the master"),
            (kill, aborting, None, "killed by SIGKILL, not sent by the master, after the master had given it up"),
        ];
        for (exit, phase, oom, expected) in cases {
            assert_eq!(said(exit, phase, oom), expected);
        }
    }

    #[test]
    fn a_boot_failure_is_quoted_and_a_late_heartbeat_and_requests_are_told() {
        let mut facts = ExitFacts {
            exit: Exit::Code(3),
            phase: Phase::Starting { until: UNTIL },
            boot_failure: Some("the factory failed: no store"),
            oom: None,
            overdue_ms: 0,
            in_flight: "",
        };
        assert_eq!(explain(&facts), "could not boot: the factory failed: no store");
        facts =
            ExitFacts { exit: Exit::Code(7), phase: SERVING, overdue_ms: 1_250, in_flight: "GET / for 3 ms", ..facts };
        assert_eq!(explain(&facts), "exited with code 7; its heartbeat was 1.2 s overdue; in flight: GET / for 3 ms");
    }

    #[test]
    fn requests_in_flight_are_listed_and_those_not_noted_are_counted() {
        let note = |started, request: &str, id: Option<&str>| InFlightRequest {
            started,
            request: request.to_owned(),
            key: None,
            id: id.map(str::to_owned),
        };
        let notes = [note(900, "GET /slow", Some("abc")), note(2_950, "POST /facts", None)];
        let all = "GET /slow for 2.1 s [id abc], POST /facts for 50 ms";
        assert_eq!(in_flight(&notes, 2, 3_000), all);
        assert_eq!(in_flight(&notes, 5, 3_000), format!("{all}, 3 more"));
        assert_eq!(in_flight(&[], 0, 3_000), "");
    }
}
