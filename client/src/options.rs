//! What a client may be told. Every duration has a default that suits an election of a second.

use std::time::Duration;

/// How connections are secured.
#[derive(Debug, Clone, Default)]
pub enum TlsMode {
    #[default]
    Plaintext,
    /// Encrypted, but whoever answers is believed: for the self-signed certificate that a node
    /// makes at its first start.
    Unverified,
    /// Only certificates under these authorities (PEM) are accepted.
    Verified { authorities_pem: Vec<u8> },
}

#[derive(Debug, Clone)]
pub struct ClientOptions {
    pub tls: TlsMode,
    pub namespace: String,
    /// One try to open a connection.
    pub connect_timeout: Duration,
    /// One attempt of a request; what the server is told as its deadline.
    pub request_timeout: Duration,
    /// All attempts of a request together. A caller gets an error that repeating might change only after
    /// this; or up to a second earlier, where so many requests are under way that its turn came too late.
    pub total_deadline: Duration,
    pub connections_per_access_point: usize,
    /// What the servers know each producer and consumer by; one of its own for each unless given.
    pub client_id: Option<String>,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            tls: TlsMode::Plaintext,
            namespace: String::new(),
            connect_timeout: Duration::from_secs(2),
            request_timeout: Duration::from_secs(3),
            total_deadline: Duration::from_secs(30),
            connections_per_access_point: 1,
            client_id: None,
        }
    }
}
