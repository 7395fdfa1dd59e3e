//! Network namespaces without a name, and the device in each.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, OwnedFd};

use crate::{NetworkError, enter, failed};

/// Large, because every packet costs two system calls here; small enough that losing one is not
/// losing a whole window.
pub const MTU_BYTES: u16 = 9000;
const DEVICE: &str = "/dev/net/tun";
const NAMESPACE: &str = "/proc/thread-self/ns/net";
const NETMASK: Ipv4Addr = Ipv4Addr::new(255, 255, 255, 0);

/// The other end of an interface: packets of IP, one a read or write.
#[derive(Debug)]
pub struct Tun(OwnedFd);

/// Lives as long as this or a process in it.
#[derive(Debug)]
pub struct Namespace(File);

impl Namespace {
    /// A namespace with loopback and one interface of this address.
    pub(crate) fn with_device(address: Ipv4Addr) -> Result<(Self, Tun), NetworkError> {
        // A thread of its own goes there and ends: this one stays where it is.
        let made = std::thread::spawn(move || {
            // SAFETY: unshare reads no memory; it moves this thread alone.
            if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
                return Err(
                    failed("making a network namespace (root is needed)")(io::Error::last_os_error()),
                );
            }
            let namespace = File::open(NAMESPACE).map_err(failed("opening the network namespace"))?;
            let control = Control::open()?;
            control.bring_up(b"lo")?;
            let device = Tun::with_address(&control, b"lmq0", address)?;
            Ok((Self(namespace), device))
        });
        made.join().unwrap_or_else(|_| Err(failed("making a network namespace")(io::Error::other("a panic"))))
    }

    pub(crate) fn file(&self) -> &File {
        &self.0
    }

    /// Runs `work` on a thread in this namespace.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        let namespace = self.0.try_clone()?;
        let thread = std::thread::spawn(move || {
            enter(namespace.as_raw_fd())?;
            Ok(work())
        });
        thread.join().unwrap_or_else(|_| Err(io::Error::other("a panic in the namespace")))
    }
}

impl Tun {
    /// In the namespace of this process, for its own part in the network.
    pub(crate) fn here(address: Ipv4Addr) -> Result<Self, NetworkError> {
        let name = format!("lmq{}", address.octets()[2]);
        Self::with_address(&Control::open()?, name.as_bytes(), address)
    }

    fn with_address(control: &Control, name: &[u8], address: Ipv4Addr) -> Result<Self, NetworkError> {
        let file =
            File::options().read(true).write(true).open(DEVICE).map_err(failed("opening /dev/net/tun"))?;
        let mut request = request_of(name);
        request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
        // SAFETY: TUNSETIFF reads and writes one ifreq.
        let made = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &mut request) };
        check(made).map_err(failed("making a TUN device"))?;
        set_non_blocking(&file).map_err(failed("making a TUN device"))?;

        request = request_of(name);
        request.ifr_ifru.ifru_mtu = i32::from(MTU_BYTES);
        control.ask(libc::SIOCSIFMTU as _, &mut request, "setting the MTU")?;
        for (what, value) in [(libc::SIOCSIFADDR, address), (libc::SIOCSIFNETMASK, NETMASK)] {
            request = request_of(name);
            request.ifr_ifru.ifru_addr = socket_address(value);
            control.ask(what as _, &mut request, "setting the address")?;
        }
        control.bring_up(name)?;
        Ok(Self(file.into()))
    }

    pub(crate) fn descriptor(&self) -> libc::c_int {
        self.0.as_raw_fd()
    }

    /// The next packet; `None` when there is none.
    pub(crate) fn read(&self, into: &mut [u8]) -> io::Result<Option<usize>> {
        // SAFETY: the buffer is as long as said.
        let read = unsafe { libc::read(self.descriptor(), into.as_mut_ptr().cast(), into.len()) };
        match usize::try_from(read) {
            Ok(read) => Ok(Some(read)),
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
                error => Err(error),
            },
        }
    }

    /// A packet that the other side does not take is lost, as on any network.
    pub(crate) fn write(&self, packet: &[u8]) {
        // SAFETY: the buffer is as long as said.
        let _ = unsafe { libc::write(self.descriptor(), packet.as_ptr().cast(), packet.len()) };
    }
}

/// A socket through which interfaces of the thread's namespace are set up.
struct Control(std::net::UdpSocket);

impl Control {
    fn open() -> Result<Self, NetworkError> {
        std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).map(Self).map_err(failed("opening a socket"))
    }

    fn ask(
        &self,
        what: libc::Ioctl,
        request: &mut libc::ifreq,
        step: &'static str,
    ) -> Result<(), NetworkError> {
        // SAFETY: these requests read and write one ifreq.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), what, request) }).map_err(failed(step))
    }

    fn bring_up(&self, name: &[u8]) -> Result<(), NetworkError> {
        let mut request = request_of(name);
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        self.ask(libc::SIOCSIFFLAGS as _, &mut request, "bringing an interface up")
    }
}

fn request_of(name: &[u8]) -> libc::ifreq {
    // SAFETY: an ifreq of zeros is a valid one.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays 0.
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name.iter_mut().take(room).zip(name) {
        *to = *from as libc::c_char;
    }
    request
}

fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    // SAFETY: a sockaddr of zeros is a valid one.
    let mut out: libc::sockaddr = unsafe { std::mem::zeroed() };
    out.sa_family = libc::AF_INET as libc::sa_family_t;
    // Behind two bytes of port.
    for (to, from) in out.sa_data.iter_mut().skip(2).zip(address.octets()) {
        *to = from as libc::c_char;
    }
    out
}

fn set_non_blocking(file: &File) -> io::Result<()> {
    // SAFETY: fcntl with these arguments reads no memory.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) })
}

fn check(answer: libc::c_int) -> io::Result<()> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
