//! The random choices of the tests. The same seed gives the same choices on every machine.
//!
//! Owns: one small generator. Refuses: to give numbers for secrets, because its numbers can be predicted.

use std::time::Duration;

/// The generator Xorshift64 by Marsaglia, with the shifts 13, 7 and 17.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Makes a generator from a seed. Generators with neighbouring seeds begin in states that are far apart.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Returns a number from 0 to `end`, without `end`. `end` must not be 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.number() % end
    }

    /// Returns a number from 0 to `most`, both included.
    pub fn up_to(&mut self, most: u64) -> u64 {
        self.below(most + 1)
    }

    /// Returns true in `percent` cases of a hundred.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// Returns a time from 0 to `most` milliseconds, both included.
    pub fn millis(&mut self, most: u64) -> Duration {
        Duration::from_millis(self.up_to(most))
    }

    /// Starts another generator, whose seed is the next number of this one.
    #[must_use]
    pub fn fork(&mut self) -> Self {
        Self::new(self.number())
    }
}
