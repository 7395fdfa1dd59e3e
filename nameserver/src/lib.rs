//! The nameserver: where clients that know no broker begin.
//!
//! It keeps nothing on disk and knows no other nameserver. Leaders of broker groups register what
//! they lead; clients get routes, and every other RPC too, because SDKs send some of them to their
//! access point: the edge forwards those to the brokers.
//!
//! | Module | What lives there |
//! |---|---|
//! | [`config`] | the settings of the process |
//! | [`registry`] | what leaders told, and when it is believed |
//! | [`process`] | ports and tasks |
//! | `admin` | the admin interface, passed on to a broker |
//! | `http` | `/livez`, `/readyz`, `/metrics` |
//!
//! | Failure | What clients see |
//! |---|---|
//! | just started, no leader has registered yet | requests are held, then "not now"; never an empty route |
//! | a group's leader registers no more (30 s) | the same: a route without that group would be partial |
//! | this nameserver dies | nothing while they run: routes name brokers or a list of nodes |

mod admin;
pub mod config;
mod http;
pub mod process;
pub mod registry;

pub use config::NameserverConfig;
pub use process::{Nameserver, StartError};
