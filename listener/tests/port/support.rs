//! A gRPC server on the client port, and clients of it, well and badly behaved.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use ledgermq_listener::{ClientConnectInfo, ClientListener, ListenerCounters, ListenerLimits, TlsMode};
use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tonic::body::Body;

pub const PREFACE_AND_SETTINGS: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Long enough for a busy machine; nothing waits this long when it works.
pub const DEADLINE: Duration = Duration::from_secs(120);

pub async fn in_time<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, what).await.expect("in time")
}

pub struct Port {
    pub addr: SocketAddr,
    pub counters: Arc<ListenerCounters>,
}

/// A tonic server behind a [`ClientListener`].
pub fn serve(tls: TlsMode, limits: ListenerLimits) -> Port {
    let listener = ClientListener::bind("127.0.0.1:0".parse().unwrap(), tls, limits).unwrap();
    let (addr, counters) = (listener.local_addr(), listener.counters());
    let incoming = listener.into_incoming(std::future::pending());
    tokio::spawn(async move {
        tonic::transport::Server::builder().add_service(Seen).serve_with_incoming(incoming).await.unwrap();
    });
    Port { addr, counters }
}

/// Answers each call with what the server saw of it.
#[derive(Clone)]
struct Seen;

impl tonic::server::NamedService for Seen {
    const NAME: &'static str = "test.Seen";
}

impl tower::Service<http::Request<Body>> for Seen {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let info = request.extensions().get::<ClientConnectInfo>().unwrap();
        let response = http::Response::builder()
            .header("content-type", "application/grpc")
            .header("grpc-status", "0")
            .header("authority", request.uri().authority().map_or("", |a| a.as_str()))
            .header("tls", info.is_tls.to_string())
            .header("peer", info.peer_addr.to_string())
            .body(Body::empty())
            .unwrap();
        std::future::ready(Ok(response))
    }
}

/// One call on a new connection; what the server saw.
pub async fn call(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> Result<http::HeaderMap, h2::Error> {
    let (client, connection) = h2::client::handshake(io).await?;
    let connection = tokio::spawn(connection);
    let mut client = client.ready().await?;
    let request = http::Request::post("http://mq.example:8081/test.Seen/Look")
        .header("content-type", "application/grpc")
        .body(())
        .unwrap();
    let (response, _) = client.send_request(request, true)?;
    let seen = response.await?.headers().clone();
    connection.abort();
    Ok(seen)
}

pub async fn connect(addr: SocketAddr) -> TcpStream {
    in_time(TcpStream::connect(addr)).await.unwrap()
}

/// Asserts that a well-behaved client gets its answer.
pub async fn assert_serves(addr: SocketAddr) {
    let seen = in_time(call(connect(addr).await)).await.unwrap();
    assert_eq!(seen["authority"], "mq.example:8081");
}

/// A TLS connection that trusts the certificates in `trusted` and nothing else.
pub async fn connect_tls(addr: SocketAddr, trusted: &Path) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(trusted).unwrap() {
        roots.add(certificate.unwrap()).unwrap();
    }
    let mut config =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    in_time(connector.connect(ServerName::try_from("localhost").unwrap(), connect(addr).await)).await
}

/// The bytes a client sends for one call with the given authority: all literal, no table.
pub fn raw_request(authority: &str, stream_id: u32) -> Bytes {
    let mut block = vec![0x83, 0x86];
    for (name, value) in
        [(":path", "/test.Seen/Look"), (":authority", authority), ("content-type", "application/grpc")]
    {
        block.push(0);
        block.extend([&[name.len() as u8], name.as_bytes(), &[value.len() as u8], value.as_bytes()].concat());
    }
    let mut frame = (block.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([1, 0x5]);
    frame.extend(stream_id.to_be_bytes());
    frame.extend(block);
    frame.into()
}
