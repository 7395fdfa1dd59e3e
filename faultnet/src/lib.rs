//! A network of hosts on one machine, whose every link can be bad in a way of its own.
//!
//! Each host is a network namespace with one interface, a TUN device, and the process that made the
//! network holds the other ends: a switch in user space that looks at every packet. So one
//! mechanism partitions, loses, delays, reorders, duplicates, corrupts and throttles, by direction
//! and pair of hosts, drawn from a seed; and it counts what it did, which is the proof that a fault
//! happened. Nothing of it needs `ip`, `tc`, `nft`, or a kernel with netem.
//!
//! Hosts that somebody else made (containers) have no switch of ours. Their links can only be cut,
//! by packet filters in their namespaces: [`firewall`].
//!
//! ```text
//! namespace 1          this process                                     namespace 2
//! broker ── tun ══ fd ── read ─► rule 1→2 (drop? copy? when?) ─► heap ─► write ── fd ══ tun ── broker
//!                                                                 ▲
//!                                      this host: tun in the namespace of the process (clients)
//! ```
//!
//! | Module | What lives there |
//! |---|---|
//! | [`rules`] | what a link does to a packet, and what it did |
//! | [`tun`] | namespaces and their interfaces |
//! | [`switch`] | the thread that moves packets |
//! | [`firewall`] | cut links between hosts that are not ours, by `nft` |
//! | [`dice`] | chance from a seed |
//!
//! | What must hold | By |
//! |---|---|
//! | nothing is left behind, however the process ends | namespaces have no names and devices are not persistent: both live as long as a file descriptor of this process or of a child in them |
//! | only our own packets are seen | a namespace has no other interface; the host's device has an address of its own network only |
//! | a healed link is a good one | packets that wait when a link changes are delivered by the rule they came under |
//!
//! | Failure | Answer |
//! |---|---|
//! | not root, no `/dev/net/tun` | [`NetworkError`] names the step |
//! | more packets wait than [`switch::WAITING_PACKETS_MAX`] | the newest is dropped and counted |
//! | a packet for no host of this network | dropped and counted |

pub mod dice;
pub mod firewall;
pub mod rules;
pub mod switch;
pub mod tun;

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, RawFd};
use std::sync::Arc;

use parking_lot::Mutex;

pub use dice::{Dice, Ppm};
pub use firewall::{Firewalls, Walled};
pub use rules::{Counters, Link};
use switch::{Shared, Switch};
use tun::{Namespace, Tun};

/// Hosts besides this one.
pub const HOSTS_MAX: usize = 32;
/// The number of the host that the process itself is.
pub const THIS_HOST: usize = 0;
const EBUSY: i32 = libc::EBUSY;
/// The third number of the addresses of a network.
const NETWORKS: std::ops::RangeInclusive<u8> = 1..=250;

#[derive(Debug, thiserror::Error)]
#[error("the network of this cluster cannot be made: {step}: {source}")]
pub struct NetworkError {
    pub step: &'static str,
    #[source]
    pub source: std::io::Error,
}

/// Wraps the error of one step.
pub(crate) fn failed(step: &'static str) -> impl FnOnce(std::io::Error) -> NetworkError {
    move |source| NetworkError { step, source }
}

/// The hosts, numbered from 1, and their links. Ends with the last handle.
#[derive(Debug)]
pub struct Network {
    third_octet: u8,
    namespaces: Vec<Namespace>,
    shared: Arc<Mutex<Shared>>,
    _switch: Switch,
}

impl Network {
    /// Makes `hosts` namespaces and begins to move packets. Every link is good.
    pub fn start(hosts: usize, seed: u64) -> Result<Self, NetworkError> {
        assert!((1..=HOSTS_MAX).contains(&hosts), "{hosts} hosts; at most {HOSTS_MAX}");
        let (third_octet, here) = free_network()?;
        let mut devices = vec![here];
        let mut namespaces = Vec::new();
        for host in 1..=hosts {
            let (namespace, device) = Namespace::with_device(address(third_octet, host))?;
            namespaces.push(namespace);
            devices.push(device);
        }
        let shared = Arc::new(Mutex::new(Shared::new(devices.len(), seed)));
        let switch = Switch::start(devices, third_octet, Arc::clone(&shared))?;
        Ok(Self { third_octet, namespaces, shared, _switch: switch })
    }

    pub fn hosts(&self) -> usize {
        self.namespaces.len()
    }

    pub fn address(&self, host: usize) -> Ipv4Addr {
        address(self.third_octet, host)
    }

    /// For a child, between fork and exec: [`enter`] with it moves the child there.
    ///
    /// # Panics
    /// For a host this network does not have.
    pub fn namespace(&self, host: usize) -> RawFd {
        let namespace = host.checked_sub(1).and_then(|index| self.namespaces.get(index));
        namespace.expect("a host of this network").file().as_raw_fd()
    }

    /// What packets from one host to the other meet from now on.
    pub fn set_link(&self, from: usize, to: usize, link: Link) {
        self.shared.lock().set(from, to, link);
    }

    /// All links are good again.
    pub fn heal(&self) {
        self.shared.lock().heal();
    }

    /// What the link from one host to the other did since the network began.
    pub fn counters(&self, from: usize, to: usize) -> Counters {
        self.shared.lock().counters(from, to)
    }
}

/// Moves the calling thread into a namespace. Safe between fork and exec: one system call.
pub fn enter(namespace: RawFd) -> std::io::Result<()> {
    // SAFETY: setns reads no memory of ours.
    match unsafe { libc::setns(namespace, libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// This host is the last of the network, the others count from 1.
fn address(third_octet: u8, host: usize) -> Ipv4Addr {
    let last = if host == THIS_HOST { 254 } else { u8::try_from(host).unwrap_or(u8::MAX) };
    Ipv4Addr::new(10, 207, third_octet, last)
}

/// A network below 10.207 to which this machine has no route, and the device of this host in it. The
/// device's name makes it ours: where another was faster, the next network is tried.
fn free_network() -> Result<(u8, Tun), NetworkError> {
    let routes = std::fs::read_to_string("/proc/net/route").map_err(failed("reading the routes"))?;
    // The second column is the destination in hexadecimal, its bytes in the order of the network.
    let taken: Vec<u32> = routes
        .lines()
        .skip(1)
        .filter_map(|line| u32::from_str_radix(line.split_whitespace().nth(1)?, 16).ok())
        .collect();
    let count = usize::from(NETWORKS.end() - NETWORKS.start()) + 1;
    // Processes that choose at the same time begin at different ones.
    let start = std::process::id() as usize;
    let candidates = (0..count)
        .filter_map(|step| u8::try_from((start + step) % count).ok()?.checked_add(*NETWORKS.start()))
        .filter(|third| !taken.contains(&u32::from_le_bytes([10, 207, *third, 0])));
    for third_octet in candidates {
        match Tun::here(address(third_octet, THIS_HOST)) {
            Ok(device) => return Ok((third_octet, device)),
            Err(error) if error.source.raw_os_error() == Some(EBUSY) => {}
            Err(error) => return Err(error),
        }
    }
    Err(failed("choosing an address")(std::io::Error::other("all of 10.207 is taken")))
}
