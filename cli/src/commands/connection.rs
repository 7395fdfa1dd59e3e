//! How the tools reach a cluster.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use ledgermq_client::{Client, ClientOptions, TlsMode};

#[derive(Debug, Clone, Args)]
pub struct ConnectionArgs {
    /// `host:port` of a nameserver or broker, or several separated by `;`.
    #[arg(long, env = "LEDGERMQ_ENDPOINT", default_value = "127.0.0.1:8081", value_name = "ACCESS POINTS")]
    pub endpoint: String,
    /// Encrypt; believe any certificate unless --tls-ca is given.
    #[arg(long)]
    tls: bool,
    /// Encrypt, and accept only certificates under the authorities in this PEM file.
    #[arg(long, value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    #[arg(long, default_value = "")]
    namespace: String,
    /// Give up after this long.
    #[arg(long, default_value_t = 10_000, value_name = "MS")]
    timeout_ms: u64,
}

impl ConnectionArgs {
    pub fn options(&self) -> anyhow::Result<ClientOptions> {
        let tls = match (&self.tls_ca, self.tls) {
            (Some(path), _) => TlsMode::Verified {
                authorities_pem: std::fs::read(path)
                    .with_context(|| format!("cannot read --tls-ca {}", path.display()))?,
            },
            (None, true) => TlsMode::Unverified,
            (None, false) => TlsMode::Plaintext,
        };
        Ok(ClientOptions {
            tls,
            namespace: self.namespace.clone(),
            total_deadline: Duration::from_millis(self.timeout_ms),
            ..ClientOptions::default()
        })
    }

    pub async fn connect(&self) -> anyhow::Result<Client> {
        Ok(Client::connect(&self.endpoint, self.options()?).await?)
    }
}
