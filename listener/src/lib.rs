//! The one client port of a node.
//!
//! RocketMQ 5 SDKs reach a node on a single port: some speak TLS unless told otherwise, some speak
//! plaintext, and some put their whole access-point list into `:authority`, which HTTP/2 libraries
//! refuse. [`ClientListener`] takes them all and hands plain byte streams to the gRPC server.
//!
//! ```text
//! accept ─► handshake task (deadline) ─► ClientStream ─► tonic
//!            first byte 0x16: TLS          authority repair
//!            otherwise: plaintext          or pass-through
//!            HTTP/2 preface awaited
//! ```
//!
//! | Folder | What it is |
//! |---|---|
//! | `accept` | bind, the accept loop, one short task per new connection |
//! | `stream` | what the gRPC server gets for a connection |
//! | `certificate` | where the certificate comes from; made at first start, reloaded when replaced |
//! | `authority` | rewrites header blocks of connections whose authority is a list |
//! | `limits` | every bound of this crate |
//! | `open_files` | the process's limit on file descriptors |
//!
//! | Failure | What happens |
//! |---|---|
//! | a client stalls in the TLS handshake or before the HTTP/2 preface | closed at the handshake deadline |
//! | more clients are in that phase than the limit | the one that stalls longest is closed, after a short patience |
//! | more connections than the limit | the new one is reset, so that its client tries another node |
//! | the process is out of file descriptors | accepting pauses and goes on; connections live on |
//! | bytes that are neither TLS nor HTTP/2 | passed on: the HTTP/2 server refuses them |
//! | the certificate is replaced by an unreadable one | the old one stays, with a warning |

mod accept;
mod authority;
mod certificate;
mod limits;
mod open_files;
mod stream;

pub use accept::{BindError, ClientListener, Incoming, ListenerCounters, SocketError};
pub use authority::AuthorityRepairStream;
pub use certificate::{CertificateError, CertificateSource, TlsMode};
pub use limits::ListenerLimits;
pub use open_files::raise_open_file_limit;
pub use stream::{ClientConnectInfo, ClientStream};
