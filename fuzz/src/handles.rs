//! Handles and ids that clients hold and send back: text with a check value.
//!
//! Any bytes are tried as the text itself, and as the content of a handle whose check is right: a
//! client that knows how a check is made must not get further than one that does not.

use ledgermq_common::recall_handle::RecallHandle;
use ledgermq_common::receipt_handle::ReceiptHandle;
use ledgermq_common::transaction_id::TransactionId;
use ledgermq_common::{GroupId, PhysicalOffset, QueueId, QueueOffset, clock::UnixMillis};

fn as_text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

/// Numbers out of any bytes; missing ones are 0.
struct Numbers<'a>(&'a [u8]);

impl Numbers<'_> {
    fn u64(&mut self) -> u64 {
        let taken = self.0.get(..8.min(self.0.len())).unwrap_or_default();
        let mut bytes = [0; 8];
        for (to, from) in bytes.iter_mut().zip(taken) {
            *to = *from;
        }
        self.0 = self.0.get(taken.len()..).unwrap_or_default();
        u64::from_le_bytes(bytes)
    }

    fn u32(&mut self) -> u32 {
        self.u64() as u32
    }
}

pub(crate) fn receipt(bytes: &[u8]) {
    if let Some(handle) = as_text(bytes).and_then(|text| ReceiptHandle::parse(text).ok()) {
        assert_eq!(Some(handle.encode().as_str()), as_text(bytes), "a receipt handle has two texts");
    }
    let mut numbers = Numbers(bytes);
    let handle = ReceiptHandle {
        group: GroupId(numbers.u32()),
        topic_id: numbers.u32(),
        queue: QueueId(numbers.u32()),
        offset: QueueOffset(numbers.u64()),
        consumer_group_id: numbers.u64(),
        delivery_epoch: numbers.u64(),
        renewal: numbers.u32(),
    };
    assert_eq!(ReceiptHandle::parse(&handle.encode()), Ok(handle));
}

pub(crate) fn recall(bytes: &[u8]) {
    if let Some(handle) = as_text(bytes).and_then(|text| RecallHandle::parse(text).ok()) {
        assert_eq!(Some(handle.encode().as_str()), as_text(bytes), "a recall handle has two texts");
    }
    let mut numbers = Numbers(bytes);
    let handle = RecallHandle {
        group: GroupId(numbers.u32()),
        topic_id: numbers.u32(),
        deliver_at: UnixMillis(numbers.u64()),
        physical: PhysicalOffset(numbers.u64()),
    };
    assert_eq!(RecallHandle::parse(&handle.encode()), Ok(handle));
}

pub(crate) fn transaction(bytes: &[u8]) {
    if let Some(id) = as_text(bytes).and_then(|text| TransactionId::parse(text).ok()) {
        assert_eq!(Some(id.encode().as_str()), as_text(bytes), "a transaction id has two texts");
    }
    let mut numbers = Numbers(bytes);
    let id = TransactionId {
        group: GroupId(numbers.u32()),
        topic_id: numbers.u32(),
        half: PhysicalOffset(numbers.u64()),
        message_id_hash: numbers.u64(),
    };
    assert_eq!(TransactionId::parse(&id.encode()), Ok(id));
}
