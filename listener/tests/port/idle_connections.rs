//! Ten thousand clients that do nothing, and one that works.
//!
//! The idle clients live in a process of their own, since both ends of each connection take a
//! descriptor: this test binary starts itself once more, told by an environment variable.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ledgermq_listener::{ListenerLimits, TlsMode, raise_open_file_limit};

use crate::support::*;

const IDLE_CLIENTS: usize = 10_000;
const THIS_TEST: &str = "idle_connections::ten_thousand_idle_connections_leave_a_working_one_alone";
const TARGET: &str = "LEDGERMQ_TEST_IDLE_CLIENTS_OF";

#[test]
fn ten_thousand_idle_connections_leave_a_working_one_alone() {
    let open_files = raise_open_file_limit().unwrap();
    if let Ok(target) = std::env::var(TARGET) {
        return be_idle(&target);
    }
    assert!(
        open_files as usize > IDLE_CLIENTS + 500,
        "this test needs a limit above {open_files} open files"
    );
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let port = serve(TlsMode::Disabled, ListenerLimits::default());
        let mut idle = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", THIS_TEST, "--nocapture"])
            .env(TARGET, port.addr.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(idle.stdout.take().unwrap()).lines().map_while(Result::ok);
        let (connected, lines) = in_time(tokio::task::spawn_blocking(move || {
            (lines.any(|line| line.ends_with("all connected")), lines)
        }))
        .await
        .unwrap();
        assert!(connected, "the idle clients did not get through: {:?}", port.counters);
        assert!(port.counters.admitted.load(Ordering::Relaxed) >= IDLE_CLIENTS as u64);

        let mut slowest = Duration::ZERO;
        for _ in 0..200 {
            let start = Instant::now();
            assert_serves(port.addr).await;
            slowest = slowest.max(start.elapsed());
        }
        println!("slowest of 200 calls beside {IDLE_CLIENTS} idle connections: {slowest:?}");
        assert!(
            slowest < Duration::from_secs(3),
            "a client gives up after 3 s; the slowest took {slowest:?}"
        );

        // It ends at the end of its input, and reports to the end of its output.
        drop(idle.stdin.take());
        let ended = tokio::task::spawn_blocking(move || {
            lines.for_each(drop);
            idle.wait()
        });
        assert!(in_time(ended).await.unwrap().unwrap().success());
        assert_serves(port.addr).await;
    });
}

fn be_idle(target: &str) {
    let clients: Vec<TcpStream> = (0..IDLE_CLIENTS)
        .map(|_| {
            let mut client = TcpStream::connect(target).unwrap();
            client.set_read_timeout(Some(DEADLINE)).unwrap();
            client.write_all(PREFACE_AND_SETTINGS).unwrap();
            client
        })
        .collect();
    for mut client in &clients {
        // The server's SETTINGS: the connection is set up at its end.
        client.read_exact(&mut [0; 9]).unwrap();
    }
    println!("all connected");
    let mut input = Vec::new();
    std::io::stdin().read_to_end(&mut input).unwrap();
    drop(clients);
}
