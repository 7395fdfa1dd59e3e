//! The certificate of the client port: from configured files, or made at first start.
//!
//! | File in the directory | Content |
//! |---|---|
//! | `cert.pem` | the port's certificate, then that of its issuer |
//! | `key.pem` | the port's private key, PKCS#8, readable by the owner only |
//!
//! A client that verifies takes `cert.pem` as its roots. The issuer exists because BoringSSL (under
//! gRPC's C core) accepts a root only if it may issue certificates, and rustls accepts a server only
//! if its certificate may not. The issuer's key is forgotten at once, so it never issues another.
//!
//! A made certificate is kept: clients that pinned it survive a restart. The two files are written
//! one after the other, each by rename; a crash in between leaves a pair that does not match, which
//! is met like any unreadable pair: it is made anew, with a warning.
//!
//! Files are looked at for a change on a slow interval and swapped in for new handshakes. A pair
//! that cannot be loaded leaves the old one in force, so a half-finished renewal harms nobody.

use std::fs;
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tracing::{info, warn};

use crate::limits::PEM_BYTES_MAX;

/// What the port does with TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TlsMode {
    /// Plaintext only; a TLS client is closed.
    Disabled,
    /// Both, told apart by the first byte.
    Permissive(CertificateSource),
    /// TLS only; a plaintext client is closed.
    Enforcing(CertificateSource),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CertificateSource {
    /// PEM files: the chain (leaf first) and its private key.
    Files { certificate: PathBuf, private_key: PathBuf },
    /// A certificate made at first start and kept in `directory`, for `localhost`, this machine's
    /// name and `hosts` (names or IP addresses).
    SelfSigned { directory: PathBuf, hosts: Vec<String> },
}

#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error("{operation} {}: {source}", path.display())]
    File { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("{} is larger than {PEM_BYTES_MAX} bytes", path.display())]
    TooLarge { path: PathBuf },
    #[error("{} holds no usable PEM block: {source}", path.display())]
    Pem { path: PathBuf, source: rustls_pki_types::pem::Error },
    #[error("{} and {} are not a usable pair: {source}", certificate.display(), private_key.display())]
    Pair { certificate: PathBuf, private_key: PathBuf, source: rustls::Error },
    #[error("cannot make a certificate for {hosts:?}: {source}")]
    Generation { hosts: Vec<String>, source: rcgen::Error },
    #[error("cannot set up TLS: {0}")]
    Setup(rustls::Error),
}

/// The certificate in force, shared by all handshakes.
#[derive(Debug)]
pub(crate) struct LiveCertificate {
    source: CertificateSource,
    current: ArcSwap<CertifiedKey>,
}

impl LiveCertificate {
    pub(crate) fn load(source: CertificateSource) -> Result<Self, CertificateError> {
        let key = match &source {
            CertificateSource::Files { certificate, private_key } => read_pair(certificate, private_key)?,
            CertificateSource::SelfSigned { directory, hosts } => self_signed(directory, hosts)?,
        };
        Ok(Self { source, current: ArcSwap::from_pointee(key) })
    }

    pub(crate) fn server_config(self: &Arc<Self>) -> Result<Arc<ServerConfig>, CertificateError> {
        // The provider is named: a process with two providers linked in must not have to guess.
        let mut config =
            ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .map_err(CertificateError::Setup)?
                .with_no_client_auth()
                .with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }

    /// What the files look like now; compared with an earlier value to see a change.
    pub(crate) fn stamp(&self) -> CertificateStamp {
        let (certificate, private_key) = self.source.paths();
        CertificateStamp([file_stamp(&certificate), file_stamp(&private_key)])
    }

    /// Loads the files again; the old pair stays in force when they cannot be used.
    pub(crate) fn reload(&self) {
        let (certificate, private_key) = self.source.paths();
        match read_pair(&certificate, &private_key) {
            Ok(key) => {
                self.current.store(Arc::new(key));
                info!(certificate = %certificate.display(), "the TLS certificate was replaced");
            }
            Err(error) => warn!(%error, "the changed TLS certificate cannot be used; the old one stays"),
        }
    }
}

impl ResolvesServerCert for LiveCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // The server name is ignored on purpose: SDKs connect by address, and send lists.
        Some(self.current.load_full())
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CertificateStamp([Option<(SystemTime, u64)>; 2]);

impl CertificateSource {
    fn paths(&self) -> (PathBuf, PathBuf) {
        match self {
            Self::Files { certificate, private_key } => (certificate.clone(), private_key.clone()),
            Self::SelfSigned { directory, .. } => (directory.join("cert.pem"), directory.join("key.pem")),
        }
    }
}

fn file_stamp(path: &Path) -> Option<(SystemTime, u64)> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

fn self_signed(directory: &Path, hosts: &[String]) -> Result<CertifiedKey, CertificateError> {
    let (certificate, private_key) = (directory.join("cert.pem"), directory.join("key.pem"));
    if certificate.exists() || private_key.exists() {
        match read_pair(&certificate, &private_key) {
            Ok(pair) => return Ok(pair),
            Err(error) => warn!(%error, "the stored self-signed certificate is unusable; making a new one"),
        }
    }
    let names = subject_names(hosts);
    let generation = |source| CertificateError::Generation { hosts: names.clone(), source };
    let mut params = rcgen::CertificateParams::new(names.clone()).map_err(generation)?;
    set_validity(&mut params, "ledgermq");
    params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    // All nodes' issuers have one name. A client that trusts several of them tells by this which one
    // to check against; OpenSSL and BoringSSL try no second one.
    params.use_authority_key_identifier_extension = true;
    let key = rcgen::KeyPair::generate().map_err(generation)?;
    let (issuer_pem, issuer) = make_issuer().map_err(generation)?;
    let signed = params.signed_by(&key, &issuer).map_err(generation)?;
    let chain_pem = format!("{}{issuer_pem}", signed.pem());

    fs::create_dir_all(directory).map_err(|source| CertificateError::File {
        operation: "creating",
        path: directory.to_path_buf(),
        source,
    })?;
    write_private(&private_key, key.serialize_pem().as_bytes(), 0o600)?;
    write_private(&certificate, chain_pem.as_bytes(), 0o644)?;
    info!(certificate = %certificate.display(), names = ?names, "made a self-signed TLS certificate");
    read_pair(&certificate, &private_key)
}

/// A certificate that issues the port's, and what signs with it.
fn make_issuer() -> Result<(String, rcgen::Issuer<'static, rcgen::KeyPair>), rcgen::Error> {
    let mut params = rcgen::CertificateParams::default();
    set_validity(&mut params, "ledgermq self-signed issuer");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    let key = rcgen::KeyPair::generate()?;
    let pem = params.self_signed(&key)?.pem();
    Ok((pem, rcgen::Issuer::new(params, key)))
}

fn set_validity(params: &mut rcgen::CertificateParams, name: &str) {
    // Fixed dates: the node may start with a wrong clock, and a self-signed certificate has nobody
    // to renew it.
    params.not_before = rcgen::date_time_ymd(2024, 1, 1);
    params.not_after = rcgen::date_time_ymd(2049, 12, 31);
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
}

/// `localhost`, the loopback addresses, the machine's name and `hosts`, each once and in this order.
fn subject_names(hosts: &[String]) -> Vec<String> {
    let uname = rustix::system::uname();
    let machine = uname.nodename().to_string_lossy().into_owned();
    let mut names: Vec<String> = Vec::new();
    let fixed = ["localhost", "127.0.0.1", "::1", machine.as_str()];
    for name in fixed.into_iter().chain(hosts.iter().map(String::as_str)) {
        let name = name.trim_start_matches('[').trim_end_matches(']');
        let usable = name.parse::<IpAddr>().is_ok() || is_dns_name(name);
        if usable && !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        } else if !usable {
            warn!(name, "left out of the TLS certificate: neither a DNS name nor an IP address");
        }
    }
    names
}

fn is_dns_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 253
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'*'))
}

fn read_pair(certificate: &Path, private_key: &Path) -> Result<CertifiedKey, CertificateError> {
    let chain_pem = read_bounded(certificate)?;
    let key_pem = read_bounded(private_key)?;
    let chain =
        CertificateDer::pem_slice_iter(&chain_pem)
            .collect::<Result<Vec<_>, _>>()
            .and_then(|chain| {
                if chain.is_empty() { Err(rustls_pki_types::pem::Error::NoItemsFound) } else { Ok(chain) }
            })
            .map_err(|source| CertificateError::Pem { path: certificate.to_path_buf(), source })?;
    let key = PrivateKeyDer::from_pem_slice(&key_pem)
        .map_err(|source| CertificateError::Pem { path: private_key.to_path_buf(), source })?;
    CertifiedKey::from_der(chain, key, &rustls::crypto::ring::default_provider()).map_err(|source| {
        CertificateError::Pair {
            certificate: certificate.to_path_buf(),
            private_key: private_key.to_path_buf(),
            source,
        }
    })
}

fn read_bounded(path: &Path) -> Result<Vec<u8>, CertificateError> {
    let failed = |source| CertificateError::File { operation: "reading", path: path.to_path_buf(), source };
    let mut content = Vec::new();
    fs::File::open(path)
        .map_err(failed)?
        .take(PEM_BYTES_MAX + 1)
        .read_to_end(&mut content)
        .map_err(failed)?;
    if content.len() as u64 > PEM_BYTES_MAX {
        return Err(CertificateError::TooLarge { path: path.to_path_buf() });
    }
    Ok(content)
}

fn write_private(path: &Path, content: &[u8], mode: u32) -> Result<(), CertificateError> {
    let partial = path.with_extension("pem.partial");
    let write = || -> io::Result<()> {
        // The mode counts only when the file is created, so one left by a crash must go first.
        match fs::remove_file(&partial) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&partial)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&partial, path)
    };
    write().map_err(|source| CertificateError::File {
        operation: "writing",
        path: path.to_path_buf(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn made_in(directory: &Path) -> CertificateSource {
        CertificateSource::SelfSigned {
            directory: directory.to_path_buf(),
            hosts: vec!["10.1.2.3".into(), "mq.example".into()],
        }
    }

    fn leaf(live: &LiveCertificate) -> Vec<u8> {
        live.current.load().cert[0].to_vec()
    }

    #[test]
    fn a_made_certificate_is_kept_over_restarts_and_its_key_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let first = LiveCertificate::load(made_in(dir.path())).unwrap();
        let second = LiveCertificate::load(made_in(dir.path())).unwrap();
        assert_eq!(leaf(&first), leaf(&second));
        let mode = fs::metadata(dir.path().join("key.pem")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn an_unusable_made_certificate_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let first = leaf(&LiveCertificate::load(made_in(dir.path())).unwrap());
        fs::write(dir.path().join("cert.pem"), "not a certificate").unwrap();
        let second = leaf(&LiveCertificate::load(made_in(dir.path())).unwrap());
        assert_ne!(first, second);

        // A key of another certificate, as a crash between the two writes leaves it.
        let other = tempfile::tempdir().unwrap();
        LiveCertificate::load(made_in(other.path())).unwrap();
        fs::copy(other.path().join("key.pem"), dir.path().join("key.pem")).unwrap();
        let third = leaf(&LiveCertificate::load(made_in(dir.path())).unwrap());
        assert_ne!(second, third);
    }

    #[test]
    fn configured_files_that_cannot_be_used_are_named_and_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let (certificate, private_key) = (dir.path().join("c.pem"), dir.path().join("k.pem"));
        fs::write(&certificate, "garbage").unwrap();
        fs::write(&private_key, "garbage").unwrap();
        let source = CertificateSource::Files { certificate: certificate.clone(), private_key };
        let error = LiveCertificate::load(source).unwrap_err().to_string();
        assert!(error.contains("c.pem"), "{error}");
        assert_eq!(fs::read(certificate).unwrap(), b"garbage");
    }

    #[test]
    fn a_replaced_pair_is_taken_and_a_broken_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let live = LiveCertificate::load(made_in(dir.path())).unwrap();
        let (first, stamp) = (leaf(&live), live.stamp());

        fs::write(dir.path().join("cert.pem"), "half written").unwrap();
        assert_ne!(live.stamp(), stamp);
        live.reload();
        assert_eq!(leaf(&live), first);

        let other = tempfile::tempdir().unwrap();
        let renewed = leaf(&LiveCertificate::load(made_in(other.path())).unwrap());
        for file in ["cert.pem", "key.pem"] {
            fs::copy(other.path().join(file), dir.path().join(file)).unwrap();
        }
        live.reload();
        assert_eq!(leaf(&live), renewed);
    }
}
