//! Chance that can be repeated.

/// A share in millionths.
pub type Ppm = u32;

const MILLION: u64 = 1_000_000;

/// Random numbers from a seed, the same on every machine.
#[derive(Debug)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// From 0 to `bound` less one; 0 where `bound` is 0. SplitMix64.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound.max(1)
    }

    /// True for this share of all throws.
    pub fn falls(&mut self, share: Ppm) -> bool {
        share > 0 && self.below(MILLION) < u64::from(share)
    }
}
