//! Binding the port, and the loop that accepts.
//!
//! The loop itself does not wait for a client: each new connection gets a task with a deadline that
//! tells TLS from plaintext by the first byte, does the TLS handshake and waits for the complete
//! HTTP/2 preface. Only then is the connection handed on. What stalls in this phase is closed at
//! the deadline. When too many are in it, the one that has been there longest goes earlier, since a
//! real client is through in milliseconds, but not before a short patience: the limit is also
//! reached by a burst of good clients, and then the loop pauses until one is through.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_stream::Stream;
use tracing::{debug, warn};

use crate::authority::AuthorityRepairStream;
use crate::certificate::{CertificateError, LiveCertificate, TlsMode};
use crate::limits::{
    ACCEPT_BACKLOG, ACCEPT_PAUSE_MAX, ACCEPT_PAUSE_MIN, HANDSHAKE_PATIENCE, ListenerLimits,
    TCP_KEEPALIVE_IDLE, TCP_KEEPALIVE_INTERVAL, TCP_KEEPALIVE_PROBES,
};
use crate::stream::{ClientConnectInfo, ClientStream, Transport};

/// The first byte of a TLS record that carries a handshake (RFC 8446 section 5.1). The HTTP/2
/// preface starts with `P`.
const TLS_HANDSHAKE_RECORD: u8 = 0x16;

/// A bound client port.
#[derive(Debug)]
pub struct ClientListener {
    socket: TcpListener,
    local_addr: SocketAddr,
    security: Security,
    certificate: Option<Arc<LiveCertificate>>,
    limits: ListenerLimits,
    counters: Arc<ListenerCounters>,
}

/// What has happened on the port since it was bound.
#[derive(Debug, Default)]
pub struct ListenerCounters {
    /// Handed to the gRPC server.
    pub admitted: AtomicU64,
    /// Reset because the port was full.
    pub refused_full: AtomicU64,
    /// Closed because the handshake failed, stalled, or was not allowed by the TLS mode.
    pub handshake_failed: AtomicU64,
    /// Closed before their deadline because too many were in their handshake.
    pub handshake_evicted: AtomicU64,
}

#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error(transparent)]
    Certificate(#[from] CertificateError),
}

#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {addr}: {source}")]
pub struct SocketError {
    pub addr: SocketAddr,
    pub source: io::Error,
}

impl ClientListener {
    /// Binds and loads (or makes) the certificate; nothing is accepted before
    /// [`Self::into_incoming`]. Must be called inside a tokio runtime.
    pub fn bind(addr: SocketAddr, tls: TlsMode, limits: ListenerLimits) -> Result<Self, BindError> {
        assert!(limits.connections_max > 0 && limits.connections_max <= Semaphore::MAX_PERMITS);
        assert!(limits.handshakes_max > 0, "a port that can hold no handshake accepts nobody");
        let (source, plaintext_allowed) = match tls {
            TlsMode::Disabled => (None, true),
            TlsMode::Permissive(source) => (Some(source), true),
            TlsMode::Enforcing(source) => (Some(source), false),
        };
        // The port first: a second process on the same machine then fails before it touches files.
        let socket = listen(addr).map_err(|source| SocketError { addr, source })?;
        let local_addr = socket.local_addr().map_err(|source| SocketError { addr, source })?;
        let certificate = source.map(LiveCertificate::load).transpose()?.map(Arc::new);
        let acceptor = match &certificate {
            Some(certificate) => Some(TlsAcceptor::from(certificate.server_config()?)),
            None => None,
        };
        Ok(Self {
            socket,
            local_addr,
            security: Security { acceptor, plaintext_allowed },
            certificate,
            limits,
            counters: Arc::default(),
        })
    }

    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    pub fn counters(&self) -> Arc<ListenerCounters> {
        Arc::clone(&self.counters)
    }

    /// Starts to accept. When `shutdown` resolves, or the stream is dropped, the port is closed,
    /// connections in their handshake are dropped and the stream ends; connections handed over
    /// before are not touched. tonic, for its part, sends them GOAWAY when the stream ends.
    pub fn into_incoming(self, shutdown: impl Future<Output = ()> + Send + 'static) -> Incoming {
        // As many as there can be connections, so that one past its handshake never waits among those
        // that are ended for stalling.
        let (sender, receiver) = mpsc::channel(self.limits.connections_max);
        tokio::spawn(async move {
            let certificate = self.certificate.clone();
            let check_interval = self.limits.certificate_check_interval;
            tokio::select! {
                () = shutdown => {}
                () = sender.closed() => {}
                () = accept_connections(self, sender.clone()) => {}
                () = watch_certificate(certificate, check_interval) => {}
            }
        });
        Incoming { receiver }
    }
}

/// The connections that are past their handshake; for `serve_with_incoming_shutdown`.
#[derive(Debug)]
pub struct Incoming {
    receiver: mpsc::Receiver<ClientStream>,
}

impl Stream for Incoming {
    type Item = io::Result<ClientStream>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.receiver.poll_recv(cx).map(|stream| stream.map(Ok))
    }
}

#[derive(Clone)]
struct Security {
    acceptor: Option<TlsAcceptor>,
    plaintext_allowed: bool,
}

impl std::fmt::Debug for Security {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Security")
            .field("tls", &self.acceptor.is_some())
            .field("plaintext_allowed", &self.plaintext_allowed)
            .finish()
    }
}

/// Why a connection did not get through its handshake.
#[derive(Debug, thiserror::Error)]
enum HandshakeError {
    #[error("the deadline passed")]
    Deadline,
    #[error("it stalled while others waited for room")]
    Evicted,
    #[error("it speaks TLS, which is disabled on this port")]
    TlsDisabled,
    #[error("it speaks plaintext, and this port enforces TLS")]
    PlaintextRefused,
    #[error(transparent)]
    Io(#[from] io::Error),
}

async fn accept_connections(listener: ClientListener, sender: mpsc::Sender<ClientStream>) {
    let ClientListener { socket, security, limits, counters, .. } = listener;
    let slots = Arc::new(Semaphore::new(limits.connections_max));
    let mut handshakes = Handshakes::default();
    let mut pause = ACCEPT_PAUSE_MIN;
    loop {
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            Some(_) = handshakes.running.join_next() => continue,
        };
        let (tcp, peer_addr) = match accepted {
            Ok(accepted) => accepted,
            Err(error) if is_of_one_connection(&error) => continue,
            Err(error) => {
                // Out of descriptors or memory. The connection stays in the backlog; spinning on it
                // would take the CPU from the connections that could end and free one.
                warn!(%error, pause_ms = pause.as_millis() as u64, "cannot accept connections");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(ACCEPT_PAUSE_MAX);
                continue;
            }
        };
        pause = ACCEPT_PAUSE_MIN;
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
            counters.refused_full.fetch_add(1, Ordering::Relaxed);
            debug!(%peer_addr, connections_max = limits.connections_max, "the port is full");
            reset(tcp);
            continue;
        };
        handshakes.make_room(limits.handshakes_max).await;
        let (security, sender, counters) = (security.clone(), sender.clone(), Arc::clone(&counters));
        let (pressure, started) = (Arc::clone(&handshakes.pressure), Instant::now());
        handshakes.start(async move {
            let outcome = tokio::select! {
                biased;
                outcome = handshake(tcp, peer_addr, security, slot) => outcome,
                () = tokio::time::sleep_until(started + limits.handshake_deadline) => Err(HandshakeError::Deadline),
                () = pressure.must_go(started) => Err(HandshakeError::Evicted),
            };
            match outcome {
                Ok(stream) => {
                    counters.admitted.fetch_add(1, Ordering::Relaxed);
                    // Every connection holds a slot, so there is room; this fails only when the server
                    // is gone, and then the connection goes as well.
                    let _ = sender.try_send(stream);
                }
                Err(reason) => {
                    let counter = match reason {
                        HandshakeError::Evicted => &counters.handshake_evicted,
                        _ => &counters.handshake_failed,
                    };
                    counter.fetch_add(1, Ordering::Relaxed);
                    debug!(%peer_addr, %reason, "a connection ended in its handshake");
                }
            }
        });
    }
}

/// The tasks of connections in their handshake.
#[derive(Default)]
struct Handshakes {
    running: JoinSet<()>,
    pressure: Arc<Pressure>,
}

/// How the accept loop asks for room, and how one that stalls learns that it must go.
#[derive(Default)]
struct Pressure {
    room_wanted: AtomicBool,
    /// Wakes the one that has waited longest.
    stalled: Notify,
}

impl Handshakes {
    /// Waits until there are fewer than `max`: one gets through, or the one that stalls longest goes.
    async fn make_room(&mut self, max: usize) {
        while self.running.try_join_next().is_some() {}
        if self.running.len() >= max {
            self.pressure.room_wanted.store(true, Ordering::SeqCst);
            self.pressure.stalled.notify_one();
            self.running.join_next().await;
            self.pressure.room_wanted.store(false, Ordering::SeqCst);
        }
    }

    fn start(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.running.spawn(task);
    }
}

impl Pressure {
    /// Resolves when a connection that has stalled since `since` must make room.
    ///
    /// The time is taken by the connection's own task, which looks at its socket first whenever it
    /// runs. A connection whose bytes lie unread because the machine is busy is therefore never
    /// taken for one that stalls, however late it is.
    async fn must_go(&self, since: Instant) {
        tokio::time::sleep_until(since + HANDSHAKE_PATIENCE).await;
        loop {
            self.stalled.notified().await;
            // Otherwise the call was for room that has been found since.
            if self.room_wanted.swap(false, Ordering::SeqCst) {
                return;
            }
        }
    }
}

async fn handshake(
    tcp: TcpStream,
    peer_addr: SocketAddr,
    security: Security,
    slot: OwnedSemaphorePermit,
) -> Result<ClientStream, HandshakeError> {
    let local_addr = tcp.local_addr()?;
    tcp.set_nodelay(true)?;
    SockRef::from(&tcp).set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(TCP_KEEPALIVE_IDLE)
            .with_interval(TCP_KEEPALIVE_INTERVAL)
            .with_retries(TCP_KEEPALIVE_PROBES),
    )?;

    let mut first = [0u8; 1];
    if tcp.peek(&mut first).await? == 0 {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    let is_tls = first == [TLS_HANDSHAKE_RECORD];
    let transport = match (is_tls, security.acceptor) {
        (true, Some(acceptor)) => Transport::Tls(Box::new(acceptor.accept(tcp).await?)),
        (true, None) => return Err(HandshakeError::TlsDisabled),
        (false, _) if !security.plaintext_allowed => return Err(HandshakeError::PlaintextRefused),
        (false, _) => Transport::Plain(tcp),
    };
    let mut io = AuthorityRepairStream::new(transport);
    io.receive_preface().await?;
    Ok(ClientStream::new(io, ClientConnectInfo { peer_addr, local_addr, is_tls }, slot))
}

async fn watch_certificate(certificate: Option<Arc<LiveCertificate>>, interval: Duration) {
    let Some(certificate) = certificate else {
        return std::future::pending().await;
    };
    let mut seen = certificate.stamp();
    loop {
        tokio::time::sleep(interval).await;
        let (certificate, before) = (Arc::clone(&certificate), seen.clone());
        // File reads may hang on a network mount, so they stay off the runtime's threads.
        let looked = tokio::task::spawn_blocking(move || {
            let now = certificate.stamp();
            if now != before {
                certificate.reload();
            }
            now
        });
        if let Ok(now) = looked.await {
            seen = now;
        }
    }
}

fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    // A restarted broker must not wait for the old connections' TIME_WAIT.
    socket.set_reuse_address(true)?;
    if addr.ip().is_unspecified() && addr.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(ACCEPT_BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Closes with a reset rather than a FIN: clients see a refusal, not an orderly end, and turn to
/// their next address at once.
fn reset(tcp: TcpStream) {
    // If this fails the connection is closed the ordinary way, which also refuses it.
    let _ = SockRef::from(&tcp).set_linger(Some(Duration::ZERO));
}

/// Errors of `accept` that concern the connection that was to be accepted (accept(2)).
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
            | io::ErrorKind::TimedOut
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::NetworkDown
    )
}
