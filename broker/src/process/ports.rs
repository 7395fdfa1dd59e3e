//! The three ports of a broker.
//!
//! | Port | Who | What |
//! |---|---|---|
//! | client | SDKs, the command line | `MessagingService`, `Batch`, `Admin`; TLS and plaintext |
//! | peer | the nodes of the cluster | Raft, forwarded requests, `Admin.NodeStatus` |
//! | http | probes, Prometheus | see [`crate::http`] |

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use ledgermq_listener::{CertificateSource, ClientListener, ListenerLimits, TlsMode, raise_open_file_limit};
use tokio::net::TcpListener;
use tonic::service::Routes;

use super::StartError;
use super::data_dir::DataDir;
use super::groups::with_causes;
use crate::config::{BrokerConfig, TlsModeSetting};

/// A client that vanished without a word is noticed within interval and timeout.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Requests one client connection may have open; SDKs hold a few, load generators thousands.
const CONNECTION_STREAMS_MAX: u32 = 16_384;
/// Calls given up by their clients before this process saw them.
const PENDING_RESETS_MAX: usize = 4_096;
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 8 * 1024 * 1024;
const HEADER_LIST_BYTES_MAX: u32 = 64 * 1024;

/// Sockets that are bound and not served yet.
pub struct Ports {
    pub client: ClientListener,
    pub peer: TcpListener,
    pub http: TcpListener,
}

pub async fn bind(config: &BrokerConfig, data_dir: &DataDir) -> Result<Ports, StartError> {
    let client = bind_client(config, data_dir)?;
    let peer = bind_plain("listen.peer", &config.listen.peer).await?;
    let http = bind_plain("listen.http", &config.listen.http).await?;
    Ok(Ports { client, peer, http })
}

/// Serves clients until `leaving`; then closes the port, says GOAWAY, and returns when the
/// requests in progress are answered.
pub async fn serve_clients(
    listener: ClientListener,
    routes: Routes,
    leaving: impl Future<Output = ()> + Send + Clone + 'static,
) {
    let served = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .http2_max_header_list_size(HEADER_LIST_BYTES_MAX)
        .max_concurrent_streams(CONNECTION_STREAMS_MAX)
        // A process that stood still finds all the calls its clients gave up meanwhile; with the
        // default of 20 it would take that for an attack and drop the connection.
        .http2_max_pending_accept_reset_streams(Some(PENDING_RESETS_MAX))
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .add_routes(routes)
        .serve_with_incoming_shutdown(listener.into_incoming(leaving.clone()), leaving)
        .await;
    if let Err(error) = served {
        tracing::error!(error = %with_causes(&error), "the client port stopped");
    }
}

fn bind_client(config: &BrokerConfig, data_dir: &DataDir) -> Result<ClientListener, StartError> {
    let address = socket_address("listen.client", &config.listen.client)?;
    let source = if config.tls.cert.is_empty() {
        let hosts = [config.advertised_client(), config.listen.client.clone()]
            .iter()
            .filter_map(|address| address.rsplit_once(':').map(|(host, _)| host))
            .map(|host| host.trim_matches(['[', ']']).to_owned())
            .collect();
        CertificateSource::SelfSigned { directory: data_dir.tls(), hosts }
    } else {
        CertificateSource::Files {
            certificate: config.tls.cert.clone().into(),
            private_key: config.tls.key.clone().into(),
        }
    };
    let mode = match config.tls.mode {
        TlsModeSetting::Disabled => TlsMode::Disabled,
        TlsModeSetting::Permissive => TlsMode::Permissive(source),
        TlsModeSetting::Enforcing => TlsMode::Enforcing(source),
    };
    let open_files = raise_open_file_limit().unwrap_or_else(|error| {
        tracing::warn!(%error, "the limit on open files could not be raised");
        1024
    });
    let limits = ListenerLimits::default().within_open_files(open_files);
    ClientListener::bind(address, mode, limits).map_err(|error| match error {
        ledgermq_listener::BindError::Certificate(error) => StartError::Tls(with_causes(&error)),
        ledgermq_listener::BindError::Socket(error) => StartError::Port {
            key: "listen.client",
            address: config.listen.client.clone(),
            reason: error.source.to_string(),
        },
    })
}

async fn bind_plain(key: &'static str, address: &str) -> Result<TcpListener, StartError> {
    let socket = socket_address(key, address)?;
    TcpListener::bind(socket).await.map_err(|error| StartError::Port {
        key,
        address: address.to_owned(),
        reason: error.to_string(),
    })
}

fn socket_address(key: &'static str, address: &str) -> Result<SocketAddr, StartError> {
    address.parse().map_err(|_| StartError::Port {
        key,
        address: address.to_owned(),
        reason: "not an IP address and a port".to_owned(),
    })
}
