//! The order keys of messages, remembered while a node leads: the index does not know them, and a
//! message that waits its turn is looked at many times.
//!
//! The message at a queue offset never changes, so what is remembered is never wrong.

use hashbrown::HashMap;
use ledgermq_common::{QueueId, QueueOffset};
use parking_lot::Mutex;

use crate::state::{OrderKey, TopicId};

const BLOCK_KEYS: u64 = 256;
/// 16 MiB of keys; beyond that all is forgotten and read again.
const BLOCKS_MAX: usize = 8_192;

type Blocks = HashMap<(TopicId, QueueId, u64), Box<[OrderKey; BLOCK_KEYS as usize]>>;

#[derive(Debug, Default)]
pub struct OrderKeys(Mutex<Blocks>);

impl OrderKeys {
    /// The key, from memory or by `read`, which may fail.
    pub fn get(
        &self,
        topic: TopicId,
        queue: QueueId,
        offset: QueueOffset,
        read: impl FnOnce() -> Option<OrderKey>,
    ) -> Option<OrderKey> {
        let block = (topic, queue, offset.get() / BLOCK_KEYS);
        let place = (offset.get() % BLOCK_KEYS) as usize;
        let known = self.0.lock().get(&block).and_then(|keys| keys.get(place).copied());
        if let Some(known) = known.filter(|known| *known != OrderKey(0)) {
            return Some(known);
        }
        let key = read()?;
        let mut blocks = self.0.lock();
        if blocks.len() >= BLOCKS_MAX && !blocks.contains_key(&block) {
            blocks.clear();
        }
        let keys = blocks.entry(block).or_insert_with(|| Box::new([OrderKey(0); BLOCK_KEYS as usize]));
        if let Some(slot) = keys.get_mut(place) {
            *slot = key;
        }
        Some(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_once_and_a_failed_read_is_tried_again() {
        let keys = OrderKeys::default();
        let get = |offset, read: Option<u64>| {
            keys.get(TopicId(1), QueueId(2), QueueOffset(offset), || read.map(OrderKey))
        };
        assert_eq!(get(5, None), None);
        assert_eq!(get(5, Some(7)), Some(OrderKey(7)));
        assert_eq!(get(5, None), Some(OrderKey(7)));
        assert_eq!(get(5 + BLOCK_KEYS, Some(8)), Some(OrderKey(8)));
        assert_eq!(get(6, None), None);
    }
}
