//! Real namespaces and real TCP: what links do to connections. Needs root and `/dev/net/tun`.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use ledgermq_faultnet::{Firewalls, Link, Network, THIS_HOST, Walled, enter};

const PORT: u16 = 7000;
const PATIENCE: Duration = Duration::from_secs(10);

/// `None`: this machine cannot; in CI it must.
fn network(hosts: usize) -> Option<Network> {
    match Network::start(hosts, 5) {
        Ok(network) => Some(network),
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "{error}");
            eprintln!("left out: {error}");
            None
        }
    }
}

fn within<T: Send + 'static>(
    namespace: RawFd,
    work: impl FnOnce() -> T + Send + 'static,
) -> std::thread::JoinHandle<T> {
    std::thread::spawn(move || {
        enter(namespace).expect("into the namespace");
        work()
    })
}

/// Sends back what it gets, connection by connection, on a host.
fn echo(network: &Network, host: usize) -> SocketAddr {
    let at = SocketAddr::from((network.address(host), PORT));
    let listener = within(network.namespace(host), move || TcpListener::bind(at).expect("listens"));
    let listener = listener.join().expect("listens");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            std::thread::spawn(move || {
                let mut bytes = [0; 4096];
                while let Ok(read @ 1..) = stream.read(&mut bytes) {
                    if stream.write_all(&bytes[..read]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    at
}

fn connect(network: &Network, host: usize, to: SocketAddr, patience: Duration) -> std::io::Result<TcpStream> {
    let dial = move || TcpStream::connect_timeout(&to, patience);
    let stream = if host == THIS_HOST {
        dial()
    } else {
        within(network.namespace(host), dial).join().expect("dials")
    }?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn round_trip(stream: &mut TcpStream, byte: u8) -> std::io::Result<Duration> {
    let begins = Instant::now();
    stream.write_all(&[byte; 64])?;
    let mut back = [0; 64];
    stream.read_exact(&mut back)?;
    assert_eq!(back, [byte; 64]);
    Ok(begins.elapsed())
}

#[test]
fn hosts_reach_each_other_until_their_link_is_cut_and_again_when_it_heals() {
    let Some(network) = network(3) else { return };
    let to = echo(&network, 2);
    let mut from_host = connect(&network, 1, to, PATIENCE).expect("host 1 reaches host 2");
    let mut from_here = connect(&network, THIS_HOST, to, PATIENCE).expect("this host reaches host 2");
    round_trip(&mut from_host, 1).expect("answered");
    round_trip(&mut from_here, 2).expect("answered");
    assert_eq!(network.counters(1, 2).harmed(), 0);

    network.set_link(2, 1, Link { cut: true, ..Link::default() });
    let refused = connect(&network, 1, to, Duration::from_millis(300));
    assert!(refused.is_err(), "answers do not come back");
    assert!(network.counters(1, 2).cut == 0 && network.counters(2, 1).cut > 0, "one direction is cut");
    round_trip(&mut from_here, 3).expect("other links are as before");

    network.heal();
    round_trip(&mut from_host, 4).expect("the connection that waited goes on");
}

#[test]
fn delay_is_added_to_what_a_round_trip_takes() {
    let Some(network) = network(2) else { return };
    let to = echo(&network, 2);
    let mut stream = connect(&network, 1, to, PATIENCE).expect("connected");
    let delay = Duration::from_millis(40);
    network.set_link(1, 2, Link { delay, ..Link::default() });
    network.set_link(2, 1, Link { delay, ..Link::default() });
    let took = round_trip(&mut stream, 1).expect("answered");
    assert!(took >= 2 * delay, "{took:?}");
    assert!(network.counters(1, 2).delayed > 0);
}

#[test]
fn bytes_arrive_whole_and_in_order_over_a_link_that_loses_repeats_reorders_and_corrupts() {
    let Some(network) = network(2) else { return };
    let to = echo(&network, 2);
    let mut stream = connect(&network, 1, to, PATIENCE).expect("connected");
    let bad = Link {
        loss: 50_000,
        duplicates: 100_000,
        corruption: 60_000,
        reordering: 200_000,
        reordered_by: Duration::from_millis(3),
        ..Link::default()
    };
    network.set_link(1, 2, bad);
    network.set_link(2, 1, bad);
    for byte in 0..100 {
        round_trip(&mut stream, byte).expect("answered");
    }
    let (there, back) = (network.counters(1, 2), network.counters(2, 1));
    let seen = [
        there.lost + back.lost,
        there.duplicated + back.duplicated,
        there.corrupted + back.corrupted,
        there.reordered + back.reordered,
    ];
    assert!(seen.iter().all(|count| *count > 0), "{there:?} {back:?}");
}

#[test]
fn a_link_of_limited_rate_takes_its_time() {
    let Some(network) = network(2) else { return };
    let to = echo(&network, 2);
    let mut stream = connect(&network, 1, to, PATIENCE).expect("connected");
    network.set_link(1, 2, Link { bytes_per_second: 200_000, ..Link::default() });
    let begins = Instant::now();
    let mut reader = stream.try_clone().expect("cloned");
    let writer = std::thread::spawn(move || stream.write_all(&[7; 100_000]).expect("written"));
    let mut back = vec![0; 100_000];
    reader.read_exact(&mut back).expect("all of it comes back");
    writer.join().expect("written");
    assert!(begins.elapsed() >= Duration::from_millis(400), "{:?}", begins.elapsed());
    assert!(network.counters(1, 2).delayed > 0, "packets waited for their turn");
}

#[test]
fn nothing_of_a_network_is_left_when_it_ends() {
    let Some(network) = network(1) else { return };
    let name = format!("lmq{}", network.address(THIS_HOST).octets()[2]);
    let device = std::path::Path::new("/sys/class/net").join(name);
    assert!(device.exists());
    drop(network);
    assert!(!device.exists(), "the device of this host stays behind");
}

/// Hosts of a network of ours stand for those of somebody else: filters only need a namespace.
fn walls(network: &Network) -> Option<Firewalls> {
    if let Err(missing) = Firewalls::possible() {
        eprintln!("left out: {missing}");
        return None;
    }
    let host = |host: usize| {
        let path = format!("/proc/self/fd/{}", network.namespace(host));
        let namespace = std::fs::File::open(path).expect("the namespace is open");
        Walled { host, namespace, addresses: vec![network.address(host)] }
    };
    let hosts = (1..=network.hosts()).map(host).collect();
    Some(Firewalls::new(hosts, vec![network.address(THIS_HOST)]).expect("filters can be made"))
}

#[test]
fn filters_cut_one_direction_count_what_they_stop_and_leave_nothing_behind() {
    let Some(network) = network(3) else { return };
    let Some(mut walls) = walls(&network) else { return };
    let to = echo(&network, 2);
    let mut from_host = connect(&network, 1, to, PATIENCE).expect("host 1 reaches host 2");
    let mut from_here = connect(&network, THIS_HOST, to, PATIENCE).expect("this host reaches host 2");
    let cut = Link { cut: true, ..Link::default() };

    walls.set(&[(2, 1, cut)]).expect("set");
    let refused = connect(&network, 1, to, Duration::from_millis(300));
    assert!(refused.is_err(), "answers do not come back");
    round_trip(&mut from_here, 1).expect("other links are as before");
    let seen = walls.counters().expect("counters");
    let of = |link| seen.get(&link).copied().unwrap_or_default();
    assert!(of((2, 1)).cut > 0 && of((1, 2)).cut == 0 && of((1, 2)).passed > 0, "{seen:?}");
    assert!(of((THIS_HOST, 2)).passed > 0 && of((2, THIS_HOST)).passed > 0, "{seen:?}");

    walls.set(&[(2, 1, Link::default()), (2, THIS_HOST, cut)]).expect("set");
    round_trip(&mut from_host, 2).expect("the connection that waited goes on");
    let before = of((2, 1)).cut;
    assert!(connect(&network, THIS_HOST, to, Duration::from_millis(300)).is_err(), "cut where it leaves");
    assert!(walls.set(&[(1, 2, Link { loss: 1, ..Link::default() })]).is_err(), "it cannot lose a part");

    walls.heal().expect("healed");
    round_trip(&mut from_here, 3).expect("the connection that waited goes on");
    let healed = walls.counters().expect("counters");
    assert!(healed[&(2, 1)].cut >= before && healed[&(2, THIS_HOST)].cut > 0, "counts stay: {healed:?}");
    assert_eq!(tables(&network, 1), "", "nothing is left");

    walls.set(&[(2, 1, cut)]).expect("set");
    assert!(tables(&network, 1).contains("ledgermq_faults"));
    std::mem::forget(walls);
    let again = self::walls(&network).expect("possible");
    assert_eq!(tables(&network, 1), "", "what a killed one left is taken away");
    drop(again);
}

fn tables(network: &Network, host: usize) -> String {
    let listed = within(network.namespace(host), || {
        std::process::Command::new("nft").args(["list", "tables"]).output().expect("nft")
    });
    String::from_utf8_lossy(&listed.join().expect("nft").stdout).trim().to_owned()
}
