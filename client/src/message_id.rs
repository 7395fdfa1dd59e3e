//! Message ids in the form every RocketMQ 5 client makes (version 1), 17 bytes as 34 upper-case
//! hex digits, numbers big endian:
//!
//! | Bytes | Content |
//! |---|---|
//! | 1 | version, `01` |
//! | 6 | hardware address of the machine, or random where it has none |
//! | 2 | low half of the process id |
//! | 4 | seconds since 2021-01-01T00:00:00Z |
//! | 4 | counter of this process |
//!
//! The server stores an id once, so two messages must never share one. The counter starts at a
//! random number: two processes that agree in address, low process id and second still differ.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use ledgermq_common::clock::{Clock, SystemClock};

const EPOCH_2021_SECONDS: u64 = 1_609_459_200;

#[derive(Debug, Clone)]
pub struct MessageIdSource {
    clock: Arc<dyn Clock>,
}

impl Default for MessageIdSource {
    fn default() -> Self {
        Self::with_clock(Arc::new(SystemClock))
    }
}

impl MessageIdSource {
    pub fn with_clock(clock: Arc<dyn Clock>) -> Self {
        Self { clock }
    }

    pub fn next_id(&self) -> String {
        static NEXT: OnceLock<AtomicU32> = OnceLock::new();
        let counter = NEXT.get_or_init(|| AtomicU32::new(rand::random())).fetch_add(1, Ordering::Relaxed);
        let seconds = (self.clock.now().get() / 1000).saturating_sub(EPOCH_2021_SECONDS);
        let pid = std::process::id() & 0xffff;
        let mut id = String::with_capacity(34);
        id.push_str(machine_in_hex());
        // Formatting into a String cannot fail.
        let _ = write!(id, "{pid:04X}{:08X}{counter:08X}", seconds & 0xffff_ffff);
        id
    }
}

/// `01` and the hardware address.
fn machine_in_hex() -> &'static str {
    static MACHINE: OnceLock<String> = OnceLock::new();
    MACHINE.get_or_init(|| {
        let address = hardware_address().unwrap_or_else(rand::random);
        let mut text = "01".to_owned();
        for byte in address {
            let _ = write!(text, "{byte:02X}");
        }
        text
    })
}

/// The first interface by name whose address is not all zero, as the loopback's is.
fn hardware_address() -> Option<[u8; 6]> {
    let mut names: Vec<_> =
        std::fs::read_dir("/sys/class/net").ok()?.filter_map(|entry| Some(entry.ok()?.path())).collect();
    names.sort();
    names.iter().find_map(|path| {
        let text = std::fs::read_to_string(path.join("address")).ok()?;
        let bytes = text
            .trim()
            .split(':')
            .map(|part| u8::from_str_radix(part, 16).ok())
            .collect::<Option<Vec<u8>>>()?;
        <[u8; 6]>::try_from(bytes).ok().filter(|address| address.iter().any(|byte| *byte != 0))
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use ledgermq_common::clock::{SteppedClock, UnixMillis};

    use super::*;

    #[test]
    fn an_id_has_the_layout_of_version_1() {
        let clock = SteppedClock::at(UnixMillis((EPOCH_2021_SECONDS + 0x0102_0304) * 1000 + 999));
        let id = MessageIdSource::with_clock(Arc::new(clock)).next_id();
        assert_eq!(id.len(), 34);
        assert!(id.chars().all(|c| c.is_ascii_digit() || ('A'..='F').contains(&c)), "{id}");
        assert_eq!(&id[..2], "01");
        assert_eq!(&id[14..18], format!("{:04X}", std::process::id() & 0xffff));
        assert_eq!(&id[18..26], "01020304");
    }

    #[test]
    fn ids_made_at_the_same_moment_on_many_threads_differ() {
        let clock = Arc::new(SteppedClock::at(UnixMillis(1_700_000_000_000)));
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let source = MessageIdSource::with_clock(clock.clone());
                std::thread::spawn(move || (0..10_000).map(|_| source.next_id()).collect::<Vec<_>>())
            })
            .collect();
        let ids: BTreeSet<String> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        assert_eq!(ids.len(), 40_000);
    }
}
