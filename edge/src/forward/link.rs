//! The asking side: one [`Links`] per node, one link per peer and lane, dialled when first needed.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use futures_util::StreamExt as _;
use ledgermq_proto::forward::forward_client::ForwardClient;
use ledgermq_proto::forward::forward_frame::Content;
use ledgermq_proto::forward::{
    Arrived, Cancel, ForwardFrame, ForwardReply, ForwardRequest, LeadersRequest, LeadersResponse,
    forward_reply,
};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tonic::transport::Channel;
use tracing::debug;

use super::connect::{Connect, open_channel};
use super::{
    CONNECT_TIMEOUT, FRAME_BYTES_MAX, FRAMES_QUEUED_MAX, IN_FLIGHT_PER_LINK_MAX, Lane, RECONNECT_PAUSE,
    batches,
};
use crate::arrival::Arrival;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    #[error("cannot connect to {address}: {reason}")]
    Connect { address: String, reason: String },
    #[error("connection to {address} was lost before the answer")]
    Lost { address: String },
    #[error("{IN_FLIGHT_PER_LINK_MAX} requests are already waiting for {address}")]
    Full { address: String },
}

pub struct Links {
    connect: Arc<dyn Connect>,
    links: Mutex<BTreeMap<(String, Lane), Arc<Link>>>,
}

impl Links {
    pub fn new(connect: Arc<dyn Connect>) -> Self {
        Self { connect, links: Mutex::new(BTreeMap::new()) }
    }

    /// Sends a request and waits for its reply, however long that takes. Dropping the future tells
    /// the peer that nobody wants the answer any more; so does dropping the arrival of a reply that
    /// asks for word of it.
    pub async fn call(
        &self,
        address: &str,
        lane: Lane,
        request: impl FnOnce() -> ForwardRequest,
    ) -> Result<(ForwardReply, Arrival), LinkError> {
        let session = self.link(address, lane).session(&self.connect).await?;
        session.call(request).await
    }

    /// Asks a peer who leads its groups.
    pub async fn leaders(&self, address: &str) -> Result<LeadersResponse, LinkError> {
        let session = self.link(address, Lane::Consume).session(&self.connect).await?;
        session
            .client
            .clone()
            .leaders(LeadersRequest {})
            .await
            .map(tonic::Response::into_inner)
            .map_err(|_| LinkError::Lost { address: address.to_owned() })
    }

    fn link(&self, address: &str, lane: Lane) -> Arc<Link> {
        self.links
            .lock()
            .entry((address.to_owned(), lane))
            .or_insert_with(|| {
                Arc::new(Link {
                    address: address.to_owned(),
                    state: tokio::sync::Mutex::new(LinkState::default()),
                })
            })
            .clone()
    }
}

struct Link {
    address: String,
    /// Held while dialling, so that a burst of callers makes one connection.
    state: tokio::sync::Mutex<LinkState>,
}

#[derive(Default)]
struct LinkState {
    session: Option<Arc<Session>>,
    failed: Option<(Instant, LinkError)>,
}

impl Link {
    async fn session(&self, connect: &Arc<dyn Connect>) -> Result<Arc<Session>, LinkError> {
        let mut state = self.state.lock().await;
        if let Some(session) = &state.session
            && !session.ended.load(Ordering::Acquire)
        {
            return Ok(session.clone());
        }
        if let Some((at, error)) = &state.failed
            && at.elapsed() < RECONNECT_PAUSE
        {
            return Err(error.clone());
        }
        match Session::open(&self.address, connect).await {
            Ok(session) => {
                state.failed = None;
                state.session = Some(session.clone());
                Ok(session)
            }
            Err(error) => {
                debug!(address = self.address, %error, "forward link not opened");
                state.session = None;
                state.failed = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }
}

/// One open Exchange.
struct Session {
    address: String,
    client: ForwardClient<Channel>,
    frames: mpsc::Sender<ForwardFrame>,
    waiting: Mutex<HashMap<u64, oneshot::Sender<(ForwardReply, Arrival)>>>,
    next_correlation: AtomicU64,
    ended: AtomicBool,
}

impl Session {
    async fn open(address: &str, connect: &Arc<dyn Connect>) -> Result<Arc<Self>, LinkError> {
        let failed = |reason: String| LinkError::Connect { address: address.to_owned(), reason };
        let (frames, queued) = mpsc::channel(FRAMES_QUEUED_MAX);
        let open = async {
            let channel =
                open_channel(connect.clone(), address).await.map_err(|e| failed(error_chain(&e)))?;
            let client = ForwardClient::new(channel)
                .max_decoding_message_size(FRAME_BYTES_MAX)
                .max_encoding_message_size(FRAME_BYTES_MAX);
            let replies = client
                .clone()
                .exchange(batches(queued))
                .await
                .map_err(|status| failed(status.to_string()))?
                .into_inner();
            Ok((client, replies))
        };
        let (client, mut replies) =
            tokio::time::timeout(CONNECT_TIMEOUT, open).await.unwrap_or_else(|_| {
                Err(failed(format!("no answer within {} ms", CONNECT_TIMEOUT.as_millis())))
            })?;

        let session = Arc::new(Self {
            address: address.to_owned(),
            client,
            frames,
            waiting: Mutex::new(HashMap::new()),
            next_correlation: AtomicU64::new(1),
            ended: AtomicBool::new(false),
        });
        let reader = session.clone();
        tokio::spawn(async move {
            while let Some(Ok(batch)) = replies.next().await {
                for frame in batch.frames {
                    let Some(Content::Reply(reply)) = frame.content else { continue };
                    // Made before anything else: whatever becomes of the reply, the peer hears of it.
                    let arrival = reader.arrival(frame.correlation, &reply);
                    if let Some(waiting) = reader.waiting.lock().remove(&frame.correlation) {
                        // The caller may have gone in this moment; then nobody wants the reply.
                        let _ = waiting.send((reply, arrival));
                    }
                }
            }
            reader.end();
        });
        Ok(session)
    }

    async fn call(
        self: &Arc<Self>,
        request: impl FnOnce() -> ForwardRequest,
    ) -> Result<(ForwardReply, Arrival), LinkError> {
        let lost = || LinkError::Lost { address: self.address.clone() };
        let correlation = self.next_correlation.fetch_add(1, Ordering::Relaxed);
        let (reply, answered) = oneshot::channel();
        {
            let mut waiting = self.waiting.lock();
            // Checked under the lock that `end` takes, or an entry could be left behind for ever.
            if self.ended.load(Ordering::Acquire) {
                return Err(LinkError::Connect {
                    address: self.address.clone(),
                    reason: "just closed".to_owned(),
                });
            }
            if waiting.len() >= IN_FLIGHT_PER_LINK_MAX {
                return Err(LinkError::Full { address: self.address.clone() });
            }
            waiting.insert(correlation, reply);
        }
        let mut guard = Waiting { session: self, correlation, sent: false };
        let frame = ForwardFrame { correlation, content: Some(Content::Request(request())) };
        self.frames.send(frame).await.map_err(|_| lost())?;
        guard.sent = true;
        answered.await.map_err(|_| lost())
    }

    /// Tells the peer whether the reply was passed on, if it wants to know. With a full queue either
    /// word is lost; the peer takes the reply for lost then, and forgets it with the link at the latest.
    fn arrival(self: &Arc<Self>, correlation: u64, reply: &ForwardReply) -> Arrival {
        match &reply.reply {
            Some(forward_reply::Reply::Receive(received)) if received.tell_arrival => {}
            _ => return Arrival::default(),
        }
        let session = self.clone();
        Arrival::new(move |has_arrived| {
            let content = if has_arrived { Content::Arrived(Arrived {}) } else { Content::Cancel(Cancel {}) };
            let _ = session.frames.try_send(ForwardFrame { correlation, content: Some(content) });
        })
    }

    fn end(&self) {
        let mut waiting = self.waiting.lock();
        self.ended.store(true, Ordering::Release);
        // Dropping the senders wakes every caller.
        waiting.clear();
    }
}

/// Withdraws a call whose future is dropped before its reply.
struct Waiting<'a> {
    session: &'a Session,
    correlation: u64,
    sent: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let unanswered = self.session.waiting.lock().remove(&self.correlation).is_some();
        if unanswered && self.sent {
            // With a full queue the cancel is lost; the peer's own deadline ends the work then.
            let _ = self.session.frames.try_send(ForwardFrame {
                correlation: self.correlation,
                content: Some(Content::Cancel(Cancel {})),
            });
        }
    }
}

fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
