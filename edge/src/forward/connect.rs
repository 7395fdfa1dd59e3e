//! How a node reaches another one's peer port. TCP in a process, anything in a simulation.

use std::io;

use async_trait::async_trait;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint, Uri};

use super::{CONNECT_TIMEOUT, CONNECTION_WINDOW_BYTES, PING_INTERVAL, PING_TIMEOUT, STREAM_WINDOW_BYTES};

pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> ByteStream for T {}

#[async_trait]
pub trait Connect: Send + Sync + 'static {
    /// `address` is `host:port`.
    async fn connect(&self, address: &str) -> io::Result<Box<dyn ByteStream>>;
}

#[derive(Debug, Clone, Copy, Default)]
pub struct TcpConnect;

#[async_trait]
impl Connect for TcpConnect {
    async fn connect(&self, address: &str) -> io::Result<Box<dyn ByteStream>> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }
}

/// A gRPC channel to a peer, connected now; its loss is final, a new channel is made by the caller.
pub async fn open_channel(
    connect: std::sync::Arc<dyn Connect>,
    address: &str,
) -> Result<Channel, tonic::transport::Error> {
    let address = address.to_owned();
    // The URI is only a formality: the connector ignores it and dials `address`.
    Endpoint::from_static("http://peer.ledgermq")
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true)
        .connect_with_connector(tower::service_fn(move |_: Uri| {
            let connect = connect.clone();
            let address = address.clone();
            async move { connect.connect(&address).await.map(TokioIo::new) }
        }))
        .await
}
