//! Forwarding: requests on their way from the node that took them to the leader of the group.
//!
//! Wire: `ledgermq.forward.v1.Forward` on the peer port. One `Exchange` stream per peer and lane;
//! frames of both directions are packed into batches, as many as are waiting.
//!
//! | Lane | Carries | Why apart |
//! |---|---|---|
//! | produce | SendMessage, StoreBatch | bodies flow towards the leader |
//! | consume | everything else | bodies flow from the leader; long polls wait here |
//!
//! A reply with deliveries may ask for word of its arrival ([`crate::arrival`]).
//!
//! | Failure | What the caller sees |
//! |---|---|
//! | no connection | `LinkError::Connect`: certainly not executed |
//! | stream ends with requests unanswered | `LinkError::Lost`: may have been executed |
//! | peer stopped (no answer, connection open) | nothing; the caller gives up once leadership moved |
//! | too many requests in flight | `LinkError::Full` at once |

pub mod connect;
pub mod link;
pub mod server;
pub(crate) mod wire;
mod wire_transactions;

use std::time::Duration;

/// For [`crate::fuzzing`].
pub(crate) fn fuzz_request(bytes: &[u8]) {
    use prost::Message as _;
    if let Ok(request) = ledgermq_proto::forward::ForwardRequest::decode(bytes) {
        let _ = wire::read_request(request);
    }
}

/// Requests of one Exchange that wait for their reply.
pub const IN_FLIGHT_PER_LINK_MAX: usize = 65_536;
/// Answers of one Exchange of which the leader waits to hear that they were passed on.
pub const UNCONFIRMED_PER_LINK_MAX: usize = 65_536;
/// Frames between a caller and the stream writer.
pub const FRAMES_QUEUED_MAX: usize = 4_096;
/// One batch ends at whichever comes first. A single larger frame travels alone.
pub const BATCH_FRAMES_MAX: usize = 512;
pub const BATCH_BYTES_MAX: usize = 1024 * 1024;
/// A receive answer holds at most 32 of the largest messages.
pub const FRAME_BYTES_MAX: usize = 160 * 1024 * 1024;
pub const CONNECT_TIMEOUT: Duration = Duration::from_millis(1_000);
/// After a failed connect, callers within this time fail at once instead of dialling too.
pub const RECONNECT_PAUSE: Duration = Duration::from_millis(50);
pub const PING_INTERVAL: Duration = Duration::from_secs(2);
pub const PING_TIMEOUT: Duration = Duration::from_secs(3);
/// Flow control windows: a lane carries whole batches of messages on a fast network.
pub const STREAM_WINDOW_BYTES: u32 = 8 * 1024 * 1024;
pub const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    Produce,
    Consume,
}

/// Packs waiting frames into batches for one direction of a stream.
fn batches(
    frames: tokio::sync::mpsc::Receiver<ledgermq_proto::forward::ForwardFrame>,
) -> impl futures_util::Stream<Item = ledgermq_proto::forward::ForwardBatch> {
    use std::collections::VecDeque;

    use ledgermq_proto::forward::{ForwardBatch, ForwardFrame};
    use prost::Message as _;

    let state = (frames, VecDeque::<ForwardFrame>::new(), Vec::<ForwardFrame>::new());
    futures_util::stream::unfold(state, |(mut frames, mut waiting, mut received)| async move {
        if waiting.is_empty() {
            if frames.recv_many(&mut received, BATCH_FRAMES_MAX).await == 0 {
                return None;
            }
            waiting.extend(received.drain(..));
        }
        let mut batch = ForwardBatch::default();
        let mut bytes = 0;
        while let Some(frame) = waiting.front() {
            let frame_bytes = frame.encoded_len();
            if bytes > 0 && bytes + frame_bytes > BATCH_BYTES_MAX {
                break;
            }
            bytes += frame_bytes;
            batch.frames.extend(waiting.pop_front());
        }
        Some((batch, (frames, waiting, received)))
    })
}
