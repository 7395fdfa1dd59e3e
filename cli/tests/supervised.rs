//! What systemd hears of a real process: READY once it serves and not before, WATCHDOG while it runs,
//! STOPPING when it was told to end, nothing where it cannot serve.

#![allow(clippy::unwrap_used, reason = "a test ends where its set-up fails")]

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ledgermq::cluster::free_ports;

const PATIENCE: Duration = Duration::from_secs(60);
const WATCHDOG: Duration = Duration::from_millis(200);

/// A process whose supervisor is this test; it ends with it.
struct Supervised {
    systemd: UnixDatagram,
    child: Child,
    ports: Vec<u16>,
    files: tempfile::TempDir,
}

impl Drop for Supervised {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Supervised {
    fn start(kind: &str, ports: Vec<u16>) -> Self {
        let files = tempfile::tempdir().unwrap();
        let config = files.path().join("ledgermq.toml");
        let data = files.path().join("data");
        let (data, [client, http, peer]) = (data.display(), [ports[0], ports[1], ports[2]]);
        let listen = format!("[listen]\nclient = '127.0.0.1:{client}'\nhttp = '127.0.0.1:{http}'\n");
        let text = match kind {
            "nameserver" => format!("{listen}[tls]\ndirectory = '{data}'\n"),
            _ => format!(
                "worker_threads = 1\n{listen}peer = '127.0.0.1:{peer}'\n[node]\nid = 1\n\
                 [storage]\ndata_dir = '{data}'\nsegment_size_bytes = 33554432\n\
                 [[nodes]]\nid = 1\npeer = '127.0.0.1:{peer}'\nclient = '127.0.0.1:{client}'\n\
                 [[groups]]\nid = 1\nname = 'group-1'\nmembers = [1]\n"
            ),
        };
        std::fs::write(&config, text).unwrap();
        let socket: PathBuf = files.path().join("notify");
        let systemd = UnixDatagram::bind(&socket).unwrap();
        systemd.set_read_timeout(Some(PATIENCE)).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_ledgermq"))
            .arg(kind)
            .arg("--config")
            .arg(&config)
            .env("NOTIFY_SOCKET", &socket)
            .env("WATCHDOG_USEC", WATCHDOG.as_micros().to_string())
            .env_remove("WATCHDOG_PID")
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(files.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        Self { systemd, child, ports, files }
    }

    fn hear(&self) -> String {
        let mut word = [0; 512];
        let length = self.systemd.recv(&mut word).unwrap_or_else(|error| panic!("{error}; {}", self.log()));
        String::from_utf8_lossy(&word[..length]).into_owned()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.files.path().join("log")).unwrap()
    }

    fn terminate(&self) {
        let pid = libc::pid_t::try_from(self.child.id()).unwrap();
        // SAFETY: kill takes no memory, and the child is not waited for, so the id is its own.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGTERM) }, 0);
    }
}

fn lives(port: u16) -> bool {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"GET /livez HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.lines().next().is_some_and(|line| line.contains(" 200 "))
}

#[test]
fn a_process_says_ready_once_it_serves_and_stopping_when_it_was_told_to_end() {
    for (kind, serving) in [("nameserver", 2), ("broker", 3)] {
        let mut process = Supervised::start(kind, free_ports(3).unwrap());
        let first = process.hear();
        // At once and without another try: whoever was told READY may connect.
        for port in &process.ports[..serving] {
            let connected = TcpStream::connect(("127.0.0.1", *port));
            assert!(connected.is_ok(), "{kind} is ready and refuses port {port}: {}", process.log());
        }
        assert!(lives(process.ports[1]), "{kind}");
        assert!(first.starts_with("READY=1\nSTATUS="), "{kind}: {first}");
        for _ in 0..3 {
            assert_eq!(process.hear(), "WATCHDOG=1", "{kind}");
        }
        assert_eq!(process.child.try_wait().unwrap(), None, "{kind} runs on");

        process.terminate();
        let last = std::iter::repeat_with(|| process.hear()).find(|word| word != "WATCHDOG=1").unwrap();
        assert!(last.starts_with("STOPPING=1\n"), "{kind}: {last}");
        assert!(process.child.wait().unwrap().success(), "{kind}: {}", process.log());
    }
}

#[test]
fn a_broker_that_cannot_serve_never_says_ready() {
    let ports = free_ports(3).unwrap();
    let _taken = TcpListener::bind(("127.0.0.1", ports[1])).unwrap();
    let mut process = Supervised::start("broker", ports);
    let status = process.child.wait().unwrap();
    assert!(!status.success() && process.log().contains("listen.http"), "{status}: {}", process.log());
    process.systemd.set_nonblocking(true).unwrap();
    let word = process.systemd.recv(&mut [0; 512]).map_err(|error| error.kind());
    assert_eq!(word, Err(ErrorKind::WouldBlock), "it said something");
}
