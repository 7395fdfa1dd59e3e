//! Tells the supervisor that started this process how it is doing: systemd's notification protocol,
//! one datagram of `KEY=VALUE` lines to the socket named by `NOTIFY_SOCKET`.
//!
//! | Line | When |
//! |---|---|
//! | `READY=1` | the ports accept connections; whether groups have leaders is what `/readyz` tells |
//! | `STATUS=…` | with `READY` and `STOPPING`, for `systemctl status` |
//! | `STOPPING=1` | the orderly stop begins |
//! | `WATCHDOG=1` | twice per `WATCHDOG_USEC`, from the event loop: a process that hangs goes silent |
//!
//! Without `NOTIFY_SOCKET` nothing is sent. A datagram that cannot be sent is logged and forgotten:
//! a supervisor that is gone must not stop a broker.

use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;

#[derive(Debug, Default)]
pub struct Supervisor {
    socket: Option<UnixDatagram>,
    watchdog: Option<Duration>,
}

impl Supervisor {
    /// The supervisor of this process; one that takes no word where there is none.
    pub fn of_this_process() -> Self {
        let watched_pid = std::env::var("WATCHDOG_PID").ok();
        let is_watched = watched_pid.is_none_or(|pid| pid == std::process::id().to_string());
        let watchdog_us = std::env::var("WATCHDOG_USEC").ok().filter(|_| is_watched);
        match std::env::var_os("NOTIFY_SOCKET") {
            Some(socket) if !socket.is_empty() => {
                Self::at(&socket, watchdog_us.as_deref()).unwrap_or_else(|error| {
                    tracing::warn!("the supervisor is not told anything: {error:#}");
                    Self::default()
                })
            }
            _ => Self::default(),
        }
    }

    fn at(socket: &OsStr, watchdog_us: Option<&str>) -> anyhow::Result<Self> {
        let named = || format!("NOTIFY_SOCKET = {}", socket.display());
        // A leading @ is an address in the abstract namespace.
        let address = match socket.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name),
            None => SocketAddr::from_pathname(socket),
        };
        let datagrams = UnixDatagram::unbound()?;
        datagrams.connect_addr(&address.with_context(named)?).with_context(named)?;
        datagrams.set_nonblocking(true)?;
        let watchdog = watchdog_us.and_then(|us| us.parse().ok()).filter(|us| *us > 0);
        Ok(Self { socket: Some(datagrams), watchdog: watchdog.map(Duration::from_micros) })
    }

    /// Serving from now on. Call it in the runtime that serves: the watchdog is fed from there.
    pub fn ready(self: &Arc<Self>, status: &str) {
        self.send(&format!("READY=1\nSTATUS={status}"));
        if let Some(within) = self.watchdog {
            let supervisor = Arc::clone(self);
            tokio::spawn(async move {
                loop {
                    supervisor.send("WATCHDOG=1");
                    tokio::time::sleep(within / 2).await;
                }
            });
        }
    }

    pub fn stopping(&self) {
        self.send("STOPPING=1\nSTATUS=handing over and finishing what is in progress");
    }

    fn send(&self, lines: &str) {
        if let Some(socket) = &self.socket
            && let Err(error) = socket.send(lines.as_bytes())
        {
            tracing::warn!(%error, "the supervisor does not take notice");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 256];
        let bytes = socket.recv(&mut buffer).expect("a datagram");
        String::from_utf8_lossy(&buffer[..bytes]).into_owned()
    }

    #[tokio::test]
    async fn each_word_is_one_datagram_in_the_form_systemd_reads() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("notify");
        let systemd = UnixDatagram::bind(&path).expect("a socket");
        let supervisor = Arc::new(Supervisor::at(path.as_os_str(), Some("20000")).expect("reachable"));
        supervisor.ready("serves");
        let read = tokio::task::spawn_blocking(move || {
            let first = received(&systemd);
            (first, received(&systemd), received(&systemd), systemd)
        });
        let (first, second, third, systemd) = read.await.expect("three datagrams");
        assert_eq!(first, "READY=1\nSTATUS=serves");
        assert_eq!((second.as_str(), third.as_str()), ("WATCHDOG=1", "WATCHDOG=1"), "again and again");
        supervisor.stopping();
        let last = tokio::task::spawn_blocking(move || {
            loop {
                let word = received(&systemd);
                if word != "WATCHDOG=1" {
                    return word;
                }
            }
        });
        assert!(last.await.expect("a datagram").starts_with("STOPPING=1\n"));
    }

    #[tokio::test]
    async fn an_abstract_address_is_found_and_a_dead_one_is_named() {
        let name = format!("ledgermq-supervisor-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(name.as_bytes()).expect("an address");
        let systemd = UnixDatagram::bind_addr(&address).expect("a socket");
        let supervisor = Arc::new(Supervisor::at(OsStr::new(&format!("@{name}")), None).expect("reachable"));
        supervisor.ready("serves");
        assert!(received(&systemd).starts_with("READY=1"));
        let refused = Supervisor::at(OsStr::new("/nonexistent/notify"), None).expect_err("nobody there");
        assert!(format!("{refused:#}").starts_with("NOTIFY_SOCKET = /nonexistent/notify: "));
        Arc::new(Supervisor::default()).ready("nobody listens");
    }
}
