//! A running nameserver: its two ports and what serves them.
//!
//! | Port | Who | What |
//! |---|---|---|
//! | client | SDKs; brokers | `MessagingService`, `Batch`; `Registry.Register`; `Admin` |
//! | http | probes, Prometheus | `/livez`, `/readyz`, `/metrics` |
//!
//! Brokers register on the client port: they know a nameserver by one address only.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ledgermq_common::clock::SystemClock;
use ledgermq_edge::forward::connect::TcpConnect;
use ledgermq_edge::group_call::NoLocalGroups;
use ledgermq_edge::registry_client::REGISTER_BYTES_MAX;
use ledgermq_edge::route::AdvertisedAddress;
use ledgermq_edge::{Edge, EdgeConfig};
use ledgermq_listener::{
    BindError, CertificateSource, ClientListener, ListenerLimits, TlsMode, raise_open_file_limit,
};
use ledgermq_proto::registry::registry_server::RegistryServer;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{error, info, warn};

use crate::config::{InvalidValue, NameserverConfig, TlsModeSetting};
use crate::http;
use crate::registry::{Registry, RegistryService};

/// A client that vanished without a word is noticed within interval and timeout.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
const CONNECTION_STREAMS_MAX: u32 = 16_384;
/// Calls given up by their clients before this process saw them: all of a connection, after it stood
/// still for a while.
const PENDING_RESETS_MAX: usize = 4_096;
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 8 * 1024 * 1024;
const HEADER_LIST_BYTES_MAX: u32 = 64 * 1024;
/// Requests in progress get this long at shutdown.
const DRAIN_TIME: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Config(#[from] InvalidValue),
    #[error("listen.client: cannot listen on {address}: {source}")]
    ClientPort { address: SocketAddr, source: BindError },
    #[error("listen.http: cannot listen on {address}: {source}")]
    HttpPort { address: SocketAddr, source: std::io::Error },
    #[error("tls.directory: cannot make a temporary directory for the certificate: {0}")]
    CertificateDirectory(std::io::Error),
}

/// Dropped without [`Nameserver::shutdown`], it stops at once.
pub struct Nameserver {
    client_addr: SocketAddr,
    http_addr: SocketAddr,
    registry: Arc<Registry>,
    edge: Edge,
    leaving: CancellationToken,
    clients: JoinHandle<()>,
    _tasks: [AbortOnDropHandle<()>; 2],
    _certificate_dir: Option<TempDir>,
}

impl Nameserver {
    pub async fn start(config: NameserverConfig) -> Result<Self, StartError> {
        let checked = config.validate()?;
        let certificate_dir = match config.tls.mode {
            TlsModeSetting::Disabled => None,
            _ if !config.tls.cert.is_empty() || !config.tls.directory.as_os_str().is_empty() => None,
            _ => {
                Some(TempDir::with_prefix("ledgermq-nameserver-").map_err(StartError::CertificateDirectory)?)
            }
        };
        let open_files = raise_open_file_limit().unwrap_or_else(|error| {
            warn!(%error, "the limit on open files could not be raised");
            1024
        });
        let limits = ListenerLimits::default().within_open_files(open_files);
        let listener =
            ClientListener::bind(checked.client, tls_mode(&config, certificate_dir.as_ref()), limits)
                .map_err(|source| StartError::ClientPort { address: checked.client, source })?;
        let client_addr = listener.local_addr();
        let http_port = |source| StartError::HttpPort { address: checked.http, source };
        let http_listener = TcpListener::bind(checked.http).await.map_err(http_port)?;
        let http_addr = http_listener.local_addr().map_err(http_port)?;

        let registry = Arc::new(Registry::new(Duration::from_millis(config.registry.expiry_ms)));
        let advertised = checked
            .advertised
            .unwrap_or_else(|| AdvertisedAddress::new(client_addr.ip().to_string(), client_addr.port()));
        let edge = Edge::new(
            EdgeConfig { route_endpoints: checked.route_endpoints, advertised },
            Arc::new(NoLocalGroups),
            registry.clone(),
            Arc::new(TcpConnect),
            Arc::new(SystemClock),
        );
        let register = RegistryServer::new(RegistryService::new(registry.clone(), edge.leaders().clone()))
            .max_decoding_message_size(REGISTER_BYTES_MAX);
        let leaving = CancellationToken::new();
        let incoming = listener.into_incoming(leaving.clone().cancelled_owned());
        let served = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
            .http2_max_header_list_size(HEADER_LIST_BYTES_MAX)
            .max_concurrent_streams(CONNECTION_STREAMS_MAX)
            .http2_max_pending_accept_reset_streams(Some(PENDING_RESETS_MAX))
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .add_service(edge.messaging_service())
            .add_service(edge.batch_service())
            .add_service(edge.offsets_service())
            .add_service(register)
            .add_service(crate::admin::service(registry.clone()))
            .serve_with_incoming_shutdown(incoming, leaving.clone().cancelled_owned());
        let clients = tokio::spawn(async move {
            if let Err(error) = served.await {
                error!(%error, "the client port stopped");
            }
        });
        let http = http::serve(http_listener, registry.clone(), leaving.clone().cancelled_owned());
        let sweeper = registry.clone();
        let sweep = async move { sweeper.sweep().await };
        info!(client = %client_addr, http = %http_addr, "nameserver serves");
        Ok(Self {
            client_addr,
            http_addr,
            registry,
            edge,
            leaving,
            clients,
            _tasks: [AbortOnDropHandle::new(tokio::spawn(http)), AbortOnDropHandle::new(tokio::spawn(sweep))],
            _certificate_dir: certificate_dir,
        })
    }

    /// Where clients and registering brokers connect.
    pub fn client_addr(&self) -> SocketAddr {
        self.client_addr
    }

    pub fn http_addr(&self) -> SocketAddr {
        self.http_addr
    }

    pub fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// Ends long polls and telemetry streams, says GOAWAY, and waits for the requests in progress.
    pub async fn shutdown(mut self) {
        self.leaving.cancel();
        self.edge.stop();
        if tokio::time::timeout(DRAIN_TIME, &mut self.clients).await.is_err() {
            warn!("some requests were still in progress when the client port was closed");
        }
    }
}

impl Drop for Nameserver {
    fn drop(&mut self) {
        self.leaving.cancel();
        self.clients.abort();
    }
}

fn tls_mode(config: &NameserverConfig, temporary: Option<&TempDir>) -> TlsMode {
    let tls = &config.tls;
    let source = if tls.cert.is_empty() {
        let hosts = [&config.advertise.client, &config.listen.client]
            .iter()
            .filter_map(|address| address.rsplit_once(':'))
            .map(|(host, _)| host.trim_matches(['[', ']']).to_owned())
            .collect();
        let directory = temporary.map_or_else(|| tls.directory.clone(), |dir| dir.path().to_owned());
        CertificateSource::SelfSigned { directory, hosts }
    } else {
        CertificateSource::Files { certificate: (&tls.cert).into(), private_key: (&tls.key).into() }
    };
    match tls.mode {
        TlsModeSetting::Disabled => TlsMode::Disabled,
        TlsModeSetting::Permissive => TlsMode::Permissive(source),
        TlsModeSetting::Enforcing => TlsMode::Enforcing(source),
    }
}
