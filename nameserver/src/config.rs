//! The settings of a nameserver process. Every key has a default, and an unknown one is refused.

use std::net::SocketAddr;
use std::path::PathBuf;

use ledgermq_edge::route::{AdvertisedAddress, RouteEndpoints};
use serde::{Deserialize, Serialize};

/// The text of this module, from whose comments the manual is made.
pub const SOURCE: &str = include_str!("config.rs");

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NameserverConfig {
    pub listen: ListenSection,
    pub advertise: AdvertiseSection,
    pub route: RouteSection,
    pub registry: RegistrySection,
    pub tls: TlsSection,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ListenSection {
    /// RocketMQ clients, and brokers that register.
    pub client: String,
    /// /livez, /readyz, /metrics.
    pub http: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdvertiseSection {
    /// `host:port` that routes name to a client whose request has no access point; empty takes
    /// `listen.client`.
    pub client: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RouteSection {
    /// What routes name as the address of every queue: `echo` is the access point the client came
    /// by; else `dns:host:port`, `ipv4:ip:port,ip:port` or `ipv6:[ip]:port,[ip]:port`.
    pub endpoints: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegistrySection {
    /// A registration that is not renewed for this long is forgotten. Leaders renew every 3 s.
    pub expiry_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TlsModeSetting {
    /// Plaintext only.
    Disabled,
    /// TLS and plaintext on the same port.
    Permissive,
    /// TLS only.
    Enforcing,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsSection {
    /// What the client port speaks.
    pub mode: TlsModeSetting,
    /// PEM file of the certificate; empty together with `key`: a self-signed one.
    pub cert: String,
    /// PEM file of the private key.
    pub key: String,
    /// Where the self-signed certificate is kept; empty makes a new one at each start.
    pub directory: PathBuf,
}

impl Default for ListenSection {
    fn default() -> Self {
        Self { client: "0.0.0.0:9876".to_owned(), http: "127.0.0.1:9877".to_owned() }
    }
}

impl Default for RouteSection {
    fn default() -> Self {
        Self { endpoints: "echo".to_owned() }
    }
}

impl Default for RegistrySection {
    fn default() -> Self {
        Self { expiry_ms: 30_000 }
    }
}

impl Default for TlsSection {
    fn default() -> Self {
        Self {
            mode: TlsModeSetting::Permissive,
            cert: String::new(),
            key: String::new(),
            directory: PathBuf::new(),
        }
    }
}

/// A value that was read and cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key} = \"{value}\": {reason}")]
pub struct InvalidValue {
    pub key: &'static str,
    pub value: String,
    pub reason: String,
}

/// Shorter, and one late heartbeat would hide a group from every client.
pub const EXPIRY_MS_MIN: u64 = 10_000;
pub const EXPIRY_MS_MAX: u64 = 3_600_000;

/// What the texts of a configuration mean.
#[derive(Debug, Clone)]
pub struct CheckedConfig {
    pub client: SocketAddr,
    pub http: SocketAddr,
    /// `None`: the address the client port is bound to.
    pub advertised: Option<AdvertisedAddress>,
    pub route_endpoints: RouteEndpoints,
}

impl NameserverConfig {
    pub fn validate(&self) -> Result<CheckedConfig, InvalidValue> {
        let expiry_ms = self.registry.expiry_ms;
        if !(EXPIRY_MS_MIN..=EXPIRY_MS_MAX).contains(&expiry_ms) {
            return Err(InvalidValue {
                key: "registry.expiry_ms",
                value: expiry_ms.to_string(),
                reason: format!("must be within {EXPIRY_MS_MIN}..={EXPIRY_MS_MAX}"),
            });
        }
        if self.tls.cert.is_empty() != self.tls.key.is_empty() {
            return Err(InvalidValue {
                key: "tls.cert",
                value: self.tls.cert.clone(),
                reason: "tls.cert and tls.key are given together or not at all".to_owned(),
            });
        }
        let advertised = match self.advertise.client.as_str() {
            "" => None,
            address => Some(parse("advertise.client", address)?),
        };
        Ok(CheckedConfig {
            client: socket("listen.client", &self.listen.client)?,
            http: socket("listen.http", &self.listen.http)?,
            advertised,
            route_endpoints: parse("route.endpoints", &self.route.endpoints)?,
        })
    }
}

fn socket(key: &'static str, value: &str) -> Result<SocketAddr, InvalidValue> {
    value.parse().map_err(|_| InvalidValue {
        key,
        value: value.to_owned(),
        reason: "must be an IP address and a port, as in 0.0.0.0:9876".to_owned(),
    })
}

fn parse<T>(key: &'static str, value: &str) -> Result<T, InvalidValue>
where
    T: std::str::FromStr<Err = ledgermq_edge::route::RouteEndpointsError>,
{
    value.parse().map_err(|error: T::Err| InvalidValue {
        key,
        value: value.to_owned(),
        reason: error.reason.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_survive_a_file() {
        let defaults = NameserverConfig::default();
        defaults.validate().expect("defaults are valid");
        let text = toml::to_string(&defaults).expect("as TOML");
        assert_eq!(toml::from_str::<NameserverConfig>(&text).expect("read back"), defaults);
    }

    #[test]
    fn wrong_values_are_named_with_their_key() {
        assert!(toml::from_str::<NameserverConfig>("[listen]\nclinet = \"0.0.0.0:1\"").is_err());
        for (key, text) in [
            ("listen.client", "[listen]\nclient = \"localhost\""),
            ("registry.expiry_ms", "[registry]\nexpiry_ms = 5"),
            ("route.endpoints", "[route]\nendpoints = \"everywhere\""),
            ("tls.cert", "[tls]\ncert = \"a.pem\""),
        ] {
            let config: NameserverConfig = toml::from_str(text).expect("parses");
            assert_eq!(config.validate().expect_err(key).key, key);
        }
    }
}
