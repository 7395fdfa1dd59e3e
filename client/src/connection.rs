//! HTTP/2 connections to the access points: dialled when first needed, shared by all callers, and
//! replaced when they close.
//!
//! Requests go straight to hyper's connection task. tonic's own channel would add a queue and a
//! task between, and would retry a dead address while another is alive.
//!
//! | Failure | What happens |
//! |---|---|
//! | connection refused, reset, GOAWAY | the next caller dials; [`Connections::turn_away`] moves all to the next access point |
//! | host gone silently | HTTP/2 pings end the connection after [`KEEP_ALIVE_INTERVAL`] + [`KEEP_ALIVE_TIMEOUT`] |
//! | process stopped | requests time out one by one; the first to do so turns all others away |

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

use crate::access_point::{AccessPoint, AccessPoints};
use crate::error::{TlsSetupError, UnreachableAccessPoint};
use crate::hedging::Hedging;
use crate::options::ClientOptions;
use crate::retry::{Line, REQUESTS_IN_FLIGHT_MAX};
use crate::tls;

const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(3);
/// Bytes a server may send ahead: several answers of the largest batch.
const STREAM_WINDOW_BYTES: u32 = 8 * 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 32 * 1024 * 1024;

/// One open connection. Clones share it.
#[derive(Clone)]
pub(crate) struct LiveConnection {
    sender: http2::SendRequest<tonic::body::Body>,
    origin: http::Uri,
}

impl LiveConnection {
    pub fn origin(&self) -> http::Uri {
        self.origin.clone()
    }
}

impl tower::Service<http::Request<tonic::body::Body>> for LiveConnection {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.sender.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        Box::pin(self.sender.send_request(request))
    }
}

pub(crate) struct Connections {
    points: Vec<Point>,
    began: Instant,
    preferred: AtomicUsize,
    next_lane: AtomicUsize,
    sends_room: Semaphore,
    others_room: Semaphore,
    hedging: Hedging,
    tls: Option<Arc<rustls::ClientConfig>>,
    connect_timeout: Duration,
}

/// The place of a request that is under way.
pub(crate) struct Room<'c> {
    _permit: Option<SemaphorePermit<'c>>,
}

struct Point {
    address: AccessPoint,
    lanes: Vec<Lane>,
    /// When it answered last, in microseconds from `began` on.
    answered_at_us: AtomicU64,
}

/// A place for one connection.
#[derive(Default)]
struct Lane {
    live: Mutex<Option<LiveConnection>>,
    /// Held while dialling, so that a crowd of callers makes one connection.
    dialling: tokio::sync::Mutex<()>,
}

impl Connections {
    pub fn new(points: &AccessPoints, options: &ClientOptions) -> Result<Self, TlsSetupError> {
        let lanes = options.connections_per_access_point.max(1);
        let points = points
            .iter()
            .map(|address| Point {
                address: address.clone(),
                lanes: std::iter::repeat_with(Lane::default).take(lanes).collect(),
                answered_at_us: AtomicU64::new(0),
            })
            .collect();
        Ok(Self {
            points,
            began: Instant::now(),
            preferred: AtomicUsize::new(0),
            next_lane: AtomicUsize::new(0),
            sends_room: Semaphore::new(REQUESTS_IN_FLIGHT_MAX),
            others_room: Semaphore::new(REQUESTS_IN_FLIGHT_MAX),
            hedging: Hedging::default(),
            tls: tls::client_config(&options.tls)?,
            connect_timeout: options.connect_timeout,
        })
    }

    pub fn access_points(&self) -> usize {
        self.points.len()
    }

    /// The number of the access point that requests go to now.
    pub fn preferred(&self) -> usize {
        self.preferred.load(Ordering::Relaxed)
    }

    /// Makes the next access point the preferred one, unless another caller did so already.
    pub fn turn_away(&self, from: usize) {
        let next = (from + 1) % self.points.len();
        let _ = self.preferred.compare_exchange(from, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The access point of this number answered a request.
    pub fn answered(&self, point: usize) {
        let at = self.us_since_began(Instant::now());
        self.point(point).answered_at_us.fetch_max(at, Ordering::Relaxed);
    }

    pub fn answered_since(&self, point: usize, since: Instant) -> bool {
        self.point(point).answered_at_us.load(Ordering::Relaxed) > self.us_since_began(since)
    }

    /// Numbers beyond the last begin with the first again.
    fn point(&self, number: usize) -> &Point {
        &self.points[number % self.points.len()]
    }

    fn us_since_began(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.began).as_micros()).unwrap_or(u64::MAX)
    }

    pub fn hedging(&self) -> &Hedging {
        &self.hedging
    }

    /// Room for one more request of the line, in turn, as long as what is returned lives; `None` if its
    /// turn does not come by then. Where there is room, it is never too late.
    pub async fn room(&self, line: Line, by: Instant) -> Option<Room<'_>> {
        let room = match line {
            Line::None => return Some(Room { _permit: None }),
            Line::Sends => &self.sends_room,
            Line::Others => &self.others_room,
        };
        let permit = tokio::time::timeout_at(by, room.acquire()).await.ok()?;
        Some(Room { _permit: Some(permit.expect("the room is never closed")) })
    }

    /// Forgets the connections to an access point that does not answer; requests in flight on them
    /// still end by themselves.
    pub fn forget(&self, point: usize) {
        for lane in self.points.get(point).map_or(&[][..], |point| &point.lanes) {
            lane.live.lock().take();
        }
    }

    pub async fn get(&self, point: usize) -> Result<LiveConnection, UnreachableAccessPoint> {
        let point = self.point(point);
        let lane = &point.lanes[self.next_lane.fetch_add(1, Ordering::Relaxed) % point.lanes.len()];
        if let Some(live) = lane.open() {
            return Ok(live);
        }
        let _dialling = lane.dialling.lock().await;
        if let Some(live) = lane.open() {
            return Ok(live);
        }
        let unreachable =
            |reason: String| UnreachableAccessPoint { access_point: point.address.to_string(), reason };
        let live = tokio::time::timeout(self.connect_timeout, self.dial(&point.address))
            .await
            .map_err(|_| {
                unreachable(format!("no connection within {} ms", self.connect_timeout.as_millis()))
            })?
            .map_err(unreachable)?;
        *lane.live.lock() = Some(live.clone());
        Ok(live)
    }

    async fn dial(&self, address: &AccessPoint) -> Result<LiveConnection, String> {
        let tcp = TcpStream::connect((address.host.as_str(), address.port))
            .await
            .map_err(|error| error.to_string())?;
        // A request is one small write; waiting to fill a packet would cost a round trip.
        tcp.set_nodelay(true).map_err(|error| error.to_string())?;
        let Some(config) = &self.tls else {
            return handshake(tcp, "http", address).await;
        };
        let name = ServerName::try_from(address.host.clone()).map_err(|error| error.to_string())?;
        let stream = tokio_rustls::TlsConnector::from(config.clone())
            .connect(name, tcp)
            .await
            .map_err(|error| format!("TLS handshake: {error}"))?;
        handshake(stream, "https", address).await
    }
}

impl Lane {
    fn open(&self) -> Option<LiveConnection> {
        self.live.lock().as_ref().filter(|live| !live.sender.is_closed()).cloned()
    }
}

async fn handshake<S>(stream: S, scheme: &str, address: &AccessPoint) -> Result<LiveConnection, String>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let origin = http::Uri::builder()
        .scheme(scheme)
        .authority(address.to_string())
        .path_and_query("/")
        .build()
        .map_err(|error| error.to_string())?;
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    let shown = address.to_string();
    tokio::spawn(async move {
        match connection.await {
            Ok(()) => tracing::debug!(access_point = shown, "connection closed"),
            Err(error) => tracing::debug!(access_point = shown, %error, "connection lost"),
        }
    });
    Ok(LiveConnection { sender, origin })
}
