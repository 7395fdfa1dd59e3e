//! The network between the hosts: turmoil's, with the three things its streams lack.
//!
//! | turmoil | a real network | here |
//! |---|---|---|
//! | dialling into a partition is refused at once | it hangs until a timeout | [`SimConnector`] hangs |
//! | dialling a dead process hangs until it is back | it is refused at once | refused |
//! | a stream that lost a segment is stuck for ever | it is repeated, or the stream is reset | reset when the partition ends |
//!
//! Links are directed and blocked by counting, because several faults may block one at a time.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use ledgermq_raft_store::peer::{Connecting, PeerConnector, PeerStream};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;
use turmoil::net::TcpStream;

/// How long dialling into nowhere takes to fail.
const DIAL_TIMEOUT: Duration = Duration::from_secs(3);

/// What a host is to those who dial it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostState {
    Up,
    /// The machine runs, the process does not: dialling is refused.
    ProcessDown,
    /// Nobody answers.
    PowerOff,
}

/// Shared by the world, which changes it, and the connectors, which ask it.
#[derive(Clone, Default)]
pub struct Network(Arc<Mutex<Links>>);

#[derive(Default)]
struct Links {
    hosts: BTreeMap<String, HostState>,
    /// Directed pairs of hosts to how many faults block them.
    blocked: BTreeMap<(String, String), u32>,
    /// Open streams: the host that holds the end, and the other one.
    streams: Vec<(String, String, Arc<Breaker>)>,
}

impl Network {
    pub fn set_host(&self, host: &str, state: HostState) {
        self.0.lock().hosts.insert(host.to_owned(), state);
    }

    /// Counts a block on `from → to` and says whether the link was open before.
    pub fn block(&self, from: &str, to: &str) -> bool {
        let mut links = self.0.lock();
        let count = links.blocked.entry((from.to_owned(), to.to_owned())).or_default();
        *count += 1;
        *count == 1
    }

    /// Takes one block away and says whether the link is open now.
    pub fn unblock(&self, from: &str, to: &str) -> bool {
        let mut links = self.0.lock();
        let count = links.blocked.get_mut(&(from.to_owned(), to.to_owned())).expect("a block to end");
        *count -= 1;
        *count == 0
    }

    /// Resets every stream between two hosts.
    pub fn reset(&self, a: &str, b: &str) {
        let mut broken = Vec::new();
        self.0.lock().streams.retain(|(from, to, breaker)| {
            let hit = (from == a && to == b) || (from == b && to == a);
            if hit {
                broken.push(Arc::clone(breaker));
            }
            !hit && Arc::strong_count(breaker) > 1
        });
        for breaker in broken {
            breaker.trip();
        }
    }

    fn state_of(&self, from: &str, to: &str) -> HostState {
        let links = self.0.lock();
        let is_blocked =
            |a: &str, b: &str| links.blocked.get(&(a.to_owned(), b.to_owned())).is_some_and(|n| *n > 0);
        if is_blocked(from, to) || is_blocked(to, from) {
            return HostState::PowerOff;
        }
        links.hosts.get(to).copied().unwrap_or(HostState::Up)
    }

    /// Dials `address` (`host:port`) from host `from`.
    pub async fn dial(&self, from: &str, address: &str) -> io::Result<SimStream> {
        let host = address.split(':').next().unwrap_or_default();
        match self.state_of(from, host) {
            HostState::Up => {}
            HostState::ProcessDown => return Err(io::ErrorKind::ConnectionRefused.into()),
            HostState::PowerOff => {
                tokio::time::sleep(DIAL_TIMEOUT).await;
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
        let stream = match tokio::time::timeout(DIAL_TIMEOUT, TcpStream::connect(address.to_owned())).await {
            Ok(stream) => stream?,
            Err(_) => return Err(io::ErrorKind::TimedOut.into()),
        };
        Ok(self.hold(from, host, stream))
    }

    /// The accepted end, on `host`, of a stream.
    pub fn accepted(&self, host: &str, stream: TcpStream, peer: SocketAddr) -> SimStream {
        let peer = turmoil::reverse_lookup(peer.ip()).unwrap_or_default();
        self.hold(host, &peer, stream)
    }

    fn hold(&self, host: &str, peer: &str, inner: TcpStream) -> SimStream {
        let breaker = Arc::new(Breaker::default());
        let mut links = self.0.lock();
        links.streams.retain(|(_, _, breaker)| Arc::strong_count(breaker) > 1);
        links.streams.push((host.to_owned(), peer.to_owned(), Arc::clone(&breaker)));
        SimStream { inner, breaker }
    }
}

/// Dials on behalf of one host.
pub struct SimConnector {
    pub network: Network,
    pub host: String,
}

impl PeerConnector for SimConnector {
    fn connect(&self, peer_addr: &str) -> Connecting {
        let network = self.network.clone();
        let host = self.host.clone();
        let peer_addr = peer_addr.to_owned();
        Box::pin(async move {
            let stream = network.dial(&host, &peer_addr).await?;
            Ok(Box::new(stream) as Box<dyn PeerStream>)
        })
    }
}

/// Breaks a stream from outside.
#[derive(Default)]
struct Breaker {
    is_broken: AtomicBool,
    wakers: Mutex<Vec<Waker>>,
}

impl Breaker {
    fn trip(&self) {
        self.is_broken.store(true, Ordering::SeqCst);
        for waker in self.wakers.lock().drain(..) {
            waker.wake();
        }
    }

    fn check(&self, context: &Context<'_>) -> io::Result<()> {
        if self.is_broken.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let mut wakers = self.wakers.lock();
        if !wakers.iter().any(|waker| waker.will_wake(context.waker())) {
            wakers.push(context.waker().clone());
        }
        Ok(())
    }
}

/// One end of a turmoil stream that can be reset.
pub struct SimStream {
    inner: TcpStream,
    breaker: Arc<Breaker>,
}

impl AsyncRead for SimStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.breaker.check(context)?;
        Pin::new(&mut self.inner).poll_read(context, into)
    }
}

impl AsyncWrite for SimStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.breaker.check(context)?;
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.breaker.check(context)?;
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

impl Connected for SimStream {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}
