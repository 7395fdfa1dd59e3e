//! What the fuzz targets call: requests as a client or another node sends them, up to the point
//! where they are understood or refused. Not part of the public interface.

use ledgermq_proto::{messaging, rocketmq};
use prost::Message as _;

use crate::forward;
use crate::validate;

/// The clock of a request, in Unix milliseconds: some day.
const NOW_MS: u64 = 1_700_000_000_000;

/// A request of a client.
pub fn client_request(bytes: &[u8]) {
    let Some((kind, rest)) = bytes.split_first() else { return };
    match kind % 7 {
        0 => {
            if let Ok(request) = rocketmq::SendMessageRequest::decode(rest) {
                let checked = validate::messages(&request.messages, NOW_MS);
                for (index, message) in request.messages.iter().enumerate() {
                    let derived = validate::derived_type(message);
                    let at = validate::deliver_at_ms(index, message, NOW_MS, 1 << 40);
                    if checked.is_ok() && derived == rocketmq::MessageType::Transaction {
                        assert!(matches!(at, Ok(0)), "a transaction with a delivery time was let through");
                    }
                }
            }
        }
        1 => {
            if let Ok(request) = rocketmq::ReceiveMessageRequest::decode(rest) {
                let _ = validate::consumer_group(request.group.as_ref());
                let _ =
                    validate::topic(request.message_queue.as_ref().and_then(|queue| queue.topic.as_ref()));
                let _ = validate::filter(request.filter_expression.as_ref());
                let _ = validate::attempt_id(request.attempt_id.as_deref());
                if let Ok(size) = validate::batch_size(request.batch_size) {
                    assert!(size >= 1, "a receive of nothing was let through");
                }
                let auto_renew = request.auto_renew;
                let _ = validate::receive_invisible_ms(request.invisible_duration.as_ref(), auto_renew);
            }
        }
        2 => {
            if let Ok(request) = rocketmq::AckMessageRequest::decode(rest) {
                let _ = validate::ack_entries(request.entries.len());
                for entry in &request.entries {
                    check_handle(&entry.receipt_handle);
                }
            }
        }
        3 => {
            if let Ok(request) = rocketmq::ChangeInvisibleDurationRequest::decode(rest) {
                check_handle(&request.receipt_handle);
                let _ = validate::change_invisible_ms(request.invisible_duration.as_ref());
            }
        }
        4 => {
            if let Ok(request) = rocketmq::PullMessageRequest::decode(rest) {
                let _ = validate::offset(request.offset);
                let _ = validate::filter(request.filter_expression.as_ref());
                if let Some(duration) = &request.long_polling_timeout {
                    let _ = validate::polling_ms(duration);
                }
            }
        }
        5 => {
            if let Ok(request) = rocketmq::EndTransactionRequest::decode(rest) {
                let _ = validate::topic(request.topic.as_ref());
                let _ = validate::message_id(&request.message_id);
            }
        }
        _ => {
            if let Ok(request) = messaging::StoreBatchRequest::decode(rest)
                && let Ok(topics) = validate::batch(&request.messages, NOW_MS)
            {
                assert!(!topics.is_empty() && topics.len() <= request.messages.len(), "topics of a batch");
            }
        }
    }
}

/// A handle that is let through is the one text of what it says.
fn check_handle(text: &str) {
    if let Ok(handle) = validate::receipt_handle(text) {
        assert_eq!(handle.encode(), text, "a receipt handle has two texts");
    }
}

/// A request that another node forwards.
pub fn forwarded_request(bytes: &[u8]) {
    forward::fuzz_request(bytes);
}
