//! The thread that moves packets from interface to interface.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::rules::{Counters, Link, Links};
use crate::tun::{MTU_BYTES, Tun};
use crate::{NetworkError, failed};

/// Packets that wait for their time, of all links together.
pub const WAITING_PACKETS_MAX: usize = 65_536;
/// What may wait for its turn on a link of limited rate; what comes then is dropped, as in a router.
const QUEUE_TIME_MAX: Duration = Duration::from_millis(500);
/// Packets taken from one interface before the others have their turn.
const BURST_PACKETS: usize = 64;
const IPV4_VERSION: u8 = 4;
const IPV4_DESTINATION_AT: usize = 16;
const NETWORK: [u8; 2] = [10, 207];
const THIS_HOST_LAST_OCTET: u8 = 254;

/// What the thread and the handle share.
#[derive(Debug)]
pub(crate) struct Shared {
    links: Links,
    devices: usize,
}

impl Shared {
    pub(crate) fn new(devices: usize, seed: u64) -> Self {
        Self { links: Links::new(seed), devices }
    }

    pub(crate) fn set(&mut self, from: usize, to: usize, link: Link) {
        assert!(from < self.devices && to < self.devices && from != to, "no link from {from} to {to}");
        self.links.set(from, to, link);
    }

    pub(crate) fn heal(&mut self) {
        self.links.heal();
    }

    pub(crate) fn counters(&self, from: usize, to: usize) -> Counters {
        self.links.counters(from, to)
    }
}

/// Dropping it ends the thread and with it the interfaces.
#[derive(Debug)]
pub(crate) struct Switch {
    wake: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Switch {
    pub(crate) fn start(
        devices: Vec<Tun>,
        third_octet: u8,
        shared: Arc<Mutex<Shared>>,
    ) -> Result<Self, NetworkError> {
        // SAFETY: eventfd reads no memory, and what it returns is ours.
        let wake = match unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) } {
            descriptor if descriptor >= 0 => {
                // SAFETY: a descriptor that was just made and belongs to nobody else.
                Arc::new(unsafe { OwnedFd::from_raw_fd(descriptor) })
            }
            _ => return Err(failed("starting the switch")(std::io::Error::last_os_error())),
        };
        let mut moving = Moving {
            devices,
            third_octet,
            shared,
            wake: Arc::clone(&wake),
            waiting: BinaryHeap::new(),
            sequence: 0,
            free_at: HashMap::new(),
        };
        let thread = std::thread::Builder::new()
            .name("faultnet".to_owned())
            .spawn(move || moving.run())
            .map_err(failed("starting the switch"))?;
        Ok(Self { wake, thread: Some(thread) })
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: the buffer is as long as said.
        let _ = unsafe { libc::write(self.wake.as_raw_fd(), one.as_ptr().cast(), one.len()) };
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Due first, and of those due together the one that came first.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Waiting {
    due: Instant,
    sequence: u64,
    to: usize,
    packet: Vec<u8>,
}

struct Moving {
    devices: Vec<Tun>,
    third_octet: u8,
    shared: Arc<Mutex<Shared>>,
    wake: Arc<OwnedFd>,
    waiting: BinaryHeap<Reverse<Waiting>>,
    sequence: u64,
    /// Until when a link of limited rate is busy.
    free_at: HashMap<(usize, usize), Instant>,
}

impl Moving {
    fn run(&mut self) {
        let mut buffer = vec![0; usize::from(MTU_BYTES) + 64];
        let mut polled: Vec<libc::pollfd> = self
            .devices
            .iter()
            .map(Tun::descriptor)
            .chain([self.wake.as_raw_fd()])
            .map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 })
            .collect();
        loop {
            self.deliver_due();
            let timeout =
                self.waiting.peek().map(|Reverse(next)| next.due.saturating_duration_since(Instant::now()));
            if !poll(&mut polled, timeout) {
                return;
            }
            if polled.last().is_some_and(|wake| wake.revents != 0) {
                return;
            }
            for from in 0..self.devices.len() {
                if polled.get(from).is_some_and(|polled| polled.revents != 0)
                    && !self.take_from(from, &mut buffer)
                {
                    return;
                }
            }
        }
    }

    /// False when the interface is gone.
    fn take_from(&mut self, from: usize, buffer: &mut [u8]) -> bool {
        for _ in 0..BURST_PACKETS {
            let Some(device) = self.devices.get(from) else { return false };
            match device.read(buffer) {
                Ok(Some(read)) => {
                    if let Some(packet) = buffer.get_mut(..read) {
                        self.pass(from, packet);
                    }
                }
                Ok(None) => return true,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }

    fn pass(&mut self, from: usize, packet: &mut [u8]) {
        let Some(to) = self.destination(packet).filter(|to| *to != from) else { return };
        let bytes = packet.len() as u64;
        let (copies, bytes_per_second) = {
            let mut shared = self.shared.lock();
            (shared.links.meet(from, to, packet), shared.links.bytes_per_second(from, to))
        };
        let now = Instant::now();
        for wait in copies.into_iter().flatten() {
            let mut due = now + wait;
            if bytes_per_second > 0 {
                let free_at = self.free_at.entry((from, to)).or_insert(now);
                let starts = (*free_at).max(now);
                if starts.saturating_duration_since(now) > QUEUE_TIME_MAX {
                    self.shared.lock().links.overflowed(from, to);
                    continue;
                }
                *free_at =
                    starts + Duration::from_nanos(bytes.saturating_mul(1_000_000_000) / bytes_per_second);
                due = due.max(*free_at);
                if starts > now && wait.is_zero() {
                    self.shared.lock().links.queued(from, to);
                }
            }
            if due <= now {
                if let Some(device) = self.devices.get(to) {
                    device.write(packet);
                }
            } else if self.waiting.len() < WAITING_PACKETS_MAX {
                self.sequence += 1;
                let packet = packet.to_vec();
                self.waiting.push(Reverse(Waiting { due, sequence: self.sequence, to, packet }));
            } else {
                self.shared.lock().links.overflowed(from, to);
            }
        }
    }

    fn deliver_due(&mut self) {
        let now = Instant::now();
        while self.waiting.peek().is_some_and(|Reverse(next)| next.due <= now) {
            let Some(Reverse(next)) = self.waiting.pop() else { return };
            if let Some(device) = self.devices.get(next.to) {
                device.write(&next.packet);
            }
        }
    }

    /// The host a packet of IPv4 is for; everything else has no place here.
    fn destination(&self, packet: &[u8]) -> Option<usize> {
        let version = packet.first()? >> 4;
        let [a, b, c, last] = *packet.get(IPV4_DESTINATION_AT..)?.first_chunk::<4>()?;
        if version != IPV4_VERSION || [a, b] != NETWORK || c != self.third_octet {
            return None;
        }
        let host = if last == THIS_HOST_LAST_OCTET { crate::THIS_HOST } else { usize::from(last) };
        (host < self.devices.len()).then_some(host)
    }
}

/// False when waiting is impossible.
fn poll(polled: &mut [libc::pollfd], timeout: Option<Duration>) -> bool {
    let timeout = timeout.map(|timeout| libc::timespec {
        tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: libc::c_long::from(timeout.subsec_nanos() as i32),
    });
    let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    let count = libc::nfds_t::try_from(polled.len()).unwrap_or_default();
    // SAFETY: the array is as long as said; the time is ours or none.
    let answer = unsafe { libc::ppoll(polled.as_mut_ptr(), count, timeout, std::ptr::null()) };
    answer >= 0 || std::io::Error::last_os_error().kind() == std::io::ErrorKind::Interrupted
}
