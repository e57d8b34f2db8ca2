//! The clocks that master and workers share: milliseconds or nanoseconds since the machine booted.
//!
//! Owns: reading these clocks. Refuses: to read the wall clock, because it jumps when an operator or NTP sets it.

use nix::{
    sys::time::TimeSpec,
    time::{ClockId, clock_gettime},
};

/// Returns the milliseconds of CLOCK_MONOTONIC, which stands still while the machine is suspended.
pub(crate) fn now() -> u64 {
    milliseconds(ClockId::CLOCK_MONOTONIC)
}

/// Returns the nanoseconds of CLOCK_MONOTONIC, to measure short durations.
pub(crate) fn nanoseconds() -> u64 {
    let time = read(ClockId::CLOCK_MONOTONIC);
    time.tv_sec().unsigned_abs() * 1_000_000_000 + time.tv_nsec().unsigned_abs()
}

/// Returns the same time as [`now`], but up to 4 ms old. The call is several times cheaper than [`now`], so it suits
/// loops that read the clock in every turn.
pub(crate) fn coarse() -> u64 {
    milliseconds(ClockId::CLOCK_MONOTONIC_COARSE)
}

/// Returns the milliseconds of CLOCK_BOOTTIME, which also counts the time in which the machine was suspended. If it
/// advances more than [`now`], the machine was suspended.
pub(crate) fn boottime() -> u64 {
    milliseconds(ClockId::CLOCK_BOOTTIME)
}

fn milliseconds(clock: ClockId) -> u64 {
    let time = read(clock);
    // Seconds and nanoseconds are never negative here, because these clocks count from boot.
    time.tv_sec().unsigned_abs() * 1_000 + time.tv_nsec().unsigned_abs() / 1_000_000
}

fn read(clock: ClockId) -> TimeSpec {
    clock_gettime(clock).expect("Linux has had these clocks since 2.6.39")
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_clocks_agree() {
        let (coarse, now, ns, boottime) = (super::coarse(), super::now(), super::nanoseconds(), super::boottime());
        assert!(ns / 1_000_000 >= now && ns / 1_000_000 - now < 1_000, "now {now}, nanoseconds {ns}");
        assert!(coarse <= now && now - coarse < 1_000, "coarse {coarse}, now {now}");
        assert!(boottime >= now, "boottime {boottime}, now {now}");
    }
}
