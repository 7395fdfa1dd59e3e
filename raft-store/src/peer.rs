//! How a replica reaches another one: a byte stream to a peer port, made by whoever owns the
//! network. TCP in production, turmoil's streams in the simulation.

use std::future::Future;
use std::io;
use std::pin::Pin;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// A connected byte stream.
pub trait PeerStream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> PeerStream for T {}

pub type Connecting = Pin<Box<dyn Future<Output = io::Result<Box<dyn PeerStream>>> + Send>>;

/// Dials peer ports. `peer_addr` is `host:port` as the member list has it.
pub trait PeerConnector: Send + Sync + 'static {
    fn connect(&self, peer_addr: &str) -> Connecting;
}

/// Plain TCP without delay.
#[derive(Debug, Clone, Copy, Default)]
pub struct TcpConnector;

impl PeerConnector for TcpConnector {
    fn connect(&self, peer_addr: &str) -> Connecting {
        let peer_addr = peer_addr.to_owned();
        Box::pin(async move {
            let stream = TcpStream::connect(peer_addr).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as Box<dyn PeerStream>)
        })
    }
}
