//! Measures what the layout of the log rests on, on the disk of a directory given as argument:
//! durable 4 KiB writes into files made in four ways, interleaved round by round, and appends to the
//! log store itself. Run with `--release`; the figures in `segment::prepare` come from here.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ledgermq_common::{GroupId, LogIndex, NodeId, Term};
use ledgermq_raft_store::EntryId;
use ledgermq_raft_store::io::RealDisk;
use ledgermq_raft_store::store::{EntryKind, Identity, LogStore, NewEntry, StoreConfig, WriterSpawn};
use rustix::fs::{FallocateFlags, OFlags};

const ROUNDS: usize = 12;
const WRITES_PER_ROUND: u64 = 200;
const WRITE_BYTES: u64 = 4096;
const FILE_BYTES: u64 = ROUNDS as u64 * WRITES_PER_ROUND * WRITE_BYTES;

#[derive(Clone, Copy)]
enum Way {
    Growing,
    Fallocated,
    ZeroFilled,
    ZeroFilledDsync,
}

const WAYS: [(&str, Way); 4] = [
    ("growing file, fdatasync", Way::Growing),
    ("fallocate, fdatasync", Way::Fallocated),
    ("zero-filled, fdatasync", Way::ZeroFilled),
    ("zero-filled, O_DSYNC", Way::ZeroFilledDsync),
];

#[tokio::main]
async fn main() {
    let directory = std::env::args_os().nth(1).map_or_else(|| PathBuf::from("."), PathBuf::from);
    let directory =
        tempfile::Builder::new().prefix("log-figures").tempdir_in(directory).expect("a directory");
    measure_files(directory.path());
    for in_flight in [1, 64] {
        measure_store(&directory.path().join(format!("store-{in_flight}")), in_flight).await;
    }
}

fn measure_files(directory: &Path) {
    let files: Vec<File> = WAYS.iter().map(|(name, way)| make(&directory.join(name), *way)).collect();
    let block = [7u8; WRITE_BYTES as usize];
    let mut took: Vec<Vec<Duration>> = WAYS.iter().map(|_| Vec::new()).collect();
    for round in 0..ROUNDS as u64 {
        for ((file, (_, way)), took) in files.iter().zip(WAYS).zip(&mut took) {
            for write in 0..WRITES_PER_ROUND {
                let at = (round * WRITES_PER_ROUND + write) * WRITE_BYTES;
                let started = Instant::now();
                file.write_all_at(&block, at).expect("write");
                if !matches!(way, Way::ZeroFilledDsync) {
                    rustix::fs::fdatasync(file).expect("fdatasync");
                }
                took.push(started.elapsed());
            }
        }
    }
    for ((name, _), took) in WAYS.iter().zip(&mut took) {
        println!("{name:<28} {}", percentiles(took));
    }
}

fn make(path: &Path, way: Way) -> File {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    if matches!(way, Way::ZeroFilledDsync) {
        options.custom_flags(OFlags::DSYNC.bits() as i32);
    }
    let file = options.open(path).expect("create");
    match way {
        Way::Growing => {}
        Way::Fallocated => {
            rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, FILE_BYTES).expect("fallocate")
        }
        Way::ZeroFilled | Way::ZeroFilledDsync => {
            let zeros = vec![0; 1 << 20];
            for at in (0..FILE_BYTES).step_by(zeros.len()) {
                file.write_all_at(&zeros, at).expect("write");
            }
        }
    }
    file.sync_all().expect("sync");
    file
}

/// Keeps `in_flight` entries of 1 KiB under way and reports how long each took to be durable.
async fn measure_store(directory: &Path, in_flight: usize) {
    const ENTRIES_MAX: u64 = 20_000;
    const DURATION: Duration = Duration::from_secs(5);
    let identity = Identity { cluster: "figures".to_owned(), group: GroupId(1), node: NodeId(1) };
    let config = StoreConfig { segment_bytes: 64 << 20, ..StoreConfig::in_directory(directory) };
    let store = LogStore::open(config, identity, Arc::new(RealDisk), WriterSpawn::Thread).expect("open");
    let payload = Bytes::from(vec![7; 1024]);
    let (durable, mut completed) = tokio::sync::mpsc::unbounded_channel();
    let started = Instant::now();
    let mut took = Vec::new();
    let mut under_way = 0;
    for index in 0..ENTRIES_MAX {
        if started.elapsed() > DURATION {
            break;
        }
        let id = EntryId { term: Term(1), index: LogIndex(index) };
        let entry = NewEntry { id, kind: EntryKind::Normal, payload: payload.clone() };
        let (durable, asked) = (durable.clone(), Instant::now());
        let on_durable = Box::new(move |outcome: Result<(), _>| {
            outcome.expect("durable");
            durable.send(asked.elapsed()).expect("received");
        });
        store.append(vec![entry], on_durable).await.expect("append");
        store.applied(LogIndex(index));
        under_way += 1;
        if under_way == in_flight {
            took.push(completed.recv().await.expect("completed"));
            under_way -= 1;
        }
    }
    for _ in 0..under_way {
        took.push(completed.recv().await.expect("completed"));
    }
    let entries = took.len() as f64;
    let rate = entries / started.elapsed().as_secs_f64();
    let stats = store.write_stats();
    println!(
        "log store, {in_flight:>3} in flight      {}, {rate:.0} entries/s, {:.1} per sync",
        percentiles(&mut took),
        entries / stats.batches as f64
    );
    store.close().await.expect("close");
}

fn percentiles(took: &mut [Duration]) -> String {
    took.sort();
    let at = |part: f64| took.get((took.len() as f64 * part) as usize).map_or(0, Duration::as_micros);
    format!("p50 {:>5} us, p99 {:>6} us", at(0.5), at(0.99))
}
