//! The bounds of the client port.

use std::time::Duration;

/// The length of the queue of connections that the kernel has set up and nobody has accepted. The
/// kernel cuts it to `net.core.somaxconn`.
pub(crate) const ACCEPT_BACKLOG: i32 = 4096;

/// A client that vanished without a word is noticed by the kernel after
/// idle + interval × probes = 90 s, if nothing above notices it first.
pub(crate) const TCP_KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
pub(crate) const TCP_KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
pub(crate) const TCP_KEEPALIVE_PROBES: u32 = 3;

/// How long a connection may stay in its handshake at least, when there are more than the limit: a
/// burst of good clients fills the limit too. Under a flood of stalling clients, newcomers wait for
/// no more than (those before them ÷ limit) × this.
pub(crate) const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(1);

/// How long accepting pauses when the process is out of file descriptors or memory, doubled at each
/// failure in a row up to the maximum.
pub(crate) const ACCEPT_PAUSE_MIN: Duration = Duration::from_millis(5);
pub(crate) const ACCEPT_PAUSE_MAX: Duration = Duration::from_millis(500);

/// Certificate and key files larger than this are not read.
pub(crate) const PEM_BYTES_MAX: u64 = 1024 * 1024;

/// Descriptors kept free for segments, sled and peers when connections are derived from the
/// process's limit.
const DESCRIPTORS_RESERVED: u64 = 2048;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerLimits {
    /// Connections on the port, including those still in their handshake.
    pub connections_max: usize,
    /// Connections before the end of their handshake (TLS and HTTP/2 preface).
    pub handshakes_max: usize,
    /// From accept to the complete HTTP/2 preface.
    pub handshake_deadline: Duration,
    /// How often the certificate files are looked at for a change.
    pub certificate_check_interval: Duration,
}

impl Default for ListenerLimits {
    fn default() -> Self {
        Self {
            connections_max: 20_000,
            handshakes_max: 1024,
            handshake_deadline: Duration::from_secs(5),
            certificate_check_interval: Duration::from_secs(10),
        }
    }
}

impl ListenerLimits {
    /// These limits, with `connections_max` cut so that a full port leaves descriptors for the
    /// files and peers of a process that may open `open_files`: a broker must never fail a segment
    /// because of its clients.
    #[must_use]
    pub fn within_open_files(mut self, open_files: u64) -> Self {
        let for_clients = if open_files > 2 * DESCRIPTORS_RESERVED {
            open_files - DESCRIPTORS_RESERVED
        } else {
            open_files / 2
        };
        let for_clients = usize::try_from(for_clients).unwrap_or(usize::MAX);
        self.connections_max = self.connections_max.min(for_clients).max(1);
        self.handshakes_max = self.handshakes_max.min(self.connections_max);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_never_take_the_descriptors_of_the_log() {
        let limits = ListenerLimits::default();
        assert_eq!(limits.clone().within_open_files(1 << 20).connections_max, 20_000);
        assert_eq!(limits.clone().within_open_files(20_000).connections_max, 17_952);
        let small = limits.within_open_files(1024);
        assert_eq!((small.connections_max, small.handshakes_max), (512, 512));
    }
}
