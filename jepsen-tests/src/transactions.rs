//! Transactions by number: the outcome of each follows from its name, so that whoever is asked for it, the
//! process that sent the half or another one, gives the same one.

use ledgermq_client::{Outcome, ReceivedHalf};

pub const TOPIC: &str = "pay";
/// One of so many is left open, to be asked about.
pub const LEFT_OPEN_EVERY: u64 = 10;

pub fn name_of(number: u64) -> String {
    format!("t-{number}")
}

pub fn is_to_commit(name: &str) -> bool {
    name.bytes().fold(7u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(byte))) % 3 != 0
}

pub fn decide(half: &ReceivedHalf) -> Outcome {
    match std::str::from_utf8(&half.body) {
        Ok(name) if is_to_commit(name) => Outcome::Commit,
        Ok(_) => Outcome::Rollback,
        Err(_) => Outcome::Unknown,
    }
}
