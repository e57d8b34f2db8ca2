//! The clocks that master and workers share: milliseconds or nanoseconds since the machine booted.
//!
//! Owns: reading them. Refuses: the wall clock, which jumps.

use nix::{
    sys::time::TimeSpec,
    time::{ClockId, clock_gettime},
};

/// Milliseconds of CLOCK_MONOTONIC, which stands still while the machine is suspended.
pub(crate) fn now() -> u64 {
    milliseconds(ClockId::CLOCK_MONOTONIC)
}

/// Nanoseconds of the same clock, for short durations.
pub(crate) fn nanoseconds() -> u64 {
    let time = read(ClockId::CLOCK_MONOTONIC);
    time.tv_sec().unsigned_abs() * 1_000_000_000 + time.tv_nsec().unsigned_abs()
}

/// As [`now`], up to 4 ms old and several times cheaper, for loops that read it in every turn.
pub(crate) fn coarse() -> u64 {
    milliseconds(ClockId::CLOCK_MONOTONIC_COARSE)
}

/// Milliseconds of CLOCK_BOOTTIME, which counts the time of suspends: if it gains on [`now`], the machine was
/// suspended.
pub(crate) fn boottime() -> u64 {
    milliseconds(ClockId::CLOCK_BOOTTIME)
}

fn milliseconds(clock: ClockId) -> u64 {
    let time = read(clock);
    // Neither is negative: both count from boot.
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
