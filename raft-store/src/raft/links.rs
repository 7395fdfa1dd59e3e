//! The connections to one peer.
//!
//! | Connection | Carries | Why apart |
//! |---|---|---|
//! | control | votes, heartbeats, transfer, watch | must never wait behind an append; its end is noticed |
//! | bulk | appends | one HTTP/2 connection is one lock and one window |
//! | snapshot | snapshots | megabytes at once |
//!
//! Each is dialled when it is first used and again after it broke, by the call that needs it.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use ledgermq_proto::raft::raft_peer_client::RaftPeerClient;
use parking_lot::Mutex;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::peer::{PeerConnector, PeerStream};

/// One append holds at most 1 MiB of payload, or one command of 16 MiB.
pub(crate) const MESSAGE_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Unread append bytes in flight to one follower, and what bounds them: the leader sends ahead
/// until the window is full.
pub(crate) const BULK_WINDOW_BYTES: u32 = 8 * 1024 * 1024;
pub(crate) const FRAME_BYTES_MAX: u32 = 1024 * 1024;
const CONTROL_WINDOW_BYTES: u32 = 1024 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// A peer that vanished without closing its sockets is noticed by the election timeout; this frees
/// the connection, so that the next call dials again.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(3);

pub(crate) type Client = RaftPeerClient<Channel>;

#[derive(Debug, Clone)]
pub(crate) struct PeerLinks {
    pub(crate) control: Client,
    pub(crate) bulk: Client,
    pub(crate) snapshot: Client,
}

/// The connections of one replica to its peers.
pub(crate) struct Links {
    connector: Arc<dyn PeerConnector>,
    /// What the configuration says goes before what the log says: an address may change.
    configured: BTreeMap<u64, String>,
    dialled: Mutex<BTreeMap<u64, PeerLinks>>,
}

impl Links {
    pub(crate) fn new(connector: Arc<dyn PeerConnector>, configured: BTreeMap<u64, String>) -> Self {
        Self { connector, configured, dialled: Mutex::new(BTreeMap::new()) }
    }

    /// `logged_addr` is where the membership says the peer is.
    pub(crate) fn to(&self, node: u64, logged_addr: &str) -> PeerLinks {
        self.dialled
            .lock()
            .entry(node)
            .or_insert_with(|| {
                let addr = self.configured.get(&node).map_or(logged_addr, String::as_str);
                PeerLinks {
                    control: self.client(addr, CONTROL_WINDOW_BYTES),
                    bulk: self.client(addr, BULK_WINDOW_BYTES),
                    snapshot: self.client(addr, BULK_WINDOW_BYTES),
                }
            })
            .clone()
    }

    /// The links to a peer the configuration names.
    pub(crate) fn to_configured(&self, node: u64) -> Option<PeerLinks> {
        self.configured.get(&node).map(|addr| self.to(node, addr))
    }

    fn client(&self, addr: &str, window_bytes: u32) -> Client {
        let connector = Arc::clone(&self.connector);
        let addr: Arc<str> = addr.into();
        let dial = tower::service_fn(move |_: Uri| {
            let (connector, addr) = (Arc::clone(&connector), Arc::clone(&addr));
            async move {
                let stream: Box<dyn PeerStream> =
                    tokio::time::timeout(CONNECT_TIMEOUT, connector.connect(&addr))
                        .await
                        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "connecting to a peer"))??;
                Ok::<_, io::Error>(TokioIo::new(stream))
            }
        });
        // The name goes into `:authority` only; the connector knows the address.
        let channel = Endpoint::from_static("http://ledgermq-peer")
            .initial_stream_window_size(window_bytes)
            .initial_connection_window_size(window_bytes)
            .max_frame_size(FRAME_BYTES_MAX)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .connect_with_connector_lazy(dial);
        RaftPeerClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }
}
