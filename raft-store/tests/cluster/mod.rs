//! Three replicas in one process: real files, real loopback TCP, and a runtime each, so that a kill
//! is what it is for a process: every task is gone and every socket closes at once.

mod stalling_disk;

use std::io::Read;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use ledgermq_common::{GroupId, LogIndex, NodeId, PhysicalOffset, Term};
use ledgermq_raft_store::group::{OpenGroupError, ProposeError};
use ledgermq_raft_store::io::RealDisk;
use ledgermq_raft_store::store::{OpenError, ReplicaId, StoreConfig, WriterSpawn};
use ledgermq_raft_store::{
    AppliedEntry, ApplyError, EntryId, Environment, Group, GroupConfig, Member, PeerServer, Retention,
    SnapshotReader, StateMachine, TcpConnector, Timings,
};
use parking_lot::Mutex;
use tokio::runtime::Runtime;

use self::stalling_disk::{Stall, StallingDisk};

pub const PATIENCE: Duration = Duration::from_secs(30);

/// Keeps every command it was given. Persists nothing by itself.
#[derive(Default)]
pub struct Recorder {
    state: Mutex<Recorded>,
    pub retained_from: AtomicU64,
}

#[derive(Default, Clone)]
pub struct Recorded {
    pub applied: Option<EntryId>,
    pub commands: Vec<(LogIndex, PhysicalOffset, Bytes)>,
}

impl Recorder {
    pub fn recorded(&self) -> Recorded {
        self.state.lock().clone()
    }

    pub fn count(&self) -> usize {
        self.state.lock().commands.len()
    }
}

impl StateMachine for Recorder {
    fn applied(&self) -> Option<EntryId> {
        self.state.lock().applied
    }

    fn apply(&self, entries: &[AppliedEntry], answers: &mut Vec<Bytes>) -> Result<(), ApplyError> {
        let mut state = self.state.lock();
        for entry in entries {
            assert!(state.applied < Some(entry.id), "entries come once and in order");
            state.applied = Some(entry.id);
            state.commands.push((entry.id.index, entry.payload_at, entry.payload.clone()));
            answers.push(entry.payload.clone());
        }
        Ok(())
    }

    fn log_flushed(&self, _: LogIndex) {}

    fn snapshot(&self) -> std::io::Result<(Option<EntryId>, SnapshotReader)> {
        let state = self.recorded();
        let mut out = BytesMut::new();
        for (index, at, command) in &state.commands {
            out.put_u64(index.get());
            out.put_u64(at.get());
            out.put_u32(command.len() as u32);
            out.put_slice(command);
        }
        Ok((state.applied, Box::new(std::io::Cursor::new(out.freeze()))))
    }

    fn restore(&self, applied: EntryId, mut snapshot: SnapshotReader) -> std::io::Result<()> {
        let mut encoded = Vec::new();
        snapshot.read_to_end(&mut encoded)?;
        let mut encoded = Bytes::from(encoded);
        let mut commands = Vec::new();
        while encoded.has_remaining() {
            let (index, at) = (LogIndex(encoded.get_u64()), PhysicalOffset(encoded.get_u64()));
            let len = encoded.get_u32() as usize;
            commands.push((index, at, encoded.split_to(len)));
        }
        *self.state.lock() = Recorded { applied: Some(applied), commands };
        Ok(())
    }

    fn retained_from(&self) -> PhysicalOffset {
        PhysicalOffset(self.retained_from.load(Ordering::SeqCst))
    }
}

pub struct Replica {
    pub node: NodeId,
    addr: String,
    /// Holds the port for its whole life.
    _reserved: tokio::net::TcpSocket,
    directory: PathBuf,
    pub disk: Arc<Stall>,
    /// Why its directory was refused and replaced, if it was.
    refused: Option<String>,
    last_id: Option<ReplicaId>,
    running: Option<Running>,
}

struct Running {
    runtime: Runtime,
    group: Group,
    machine: Arc<Recorder>,
}

pub struct Cluster {
    pub replicas: Vec<Replica>,
    retention: Retention,
    retained_from: u64,
    /// Drives the callers; the replicas have runtimes of their own.
    pub driver: Runtime,
    _directory: tempfile::TempDir,
}

/// Sockets of one address beside each other: the one that is kept and never listens holds the port for a
/// replica that is down, or the kernel gives it to another test.
fn bound(addr: std::net::SocketAddr) -> std::io::Result<tokio::net::TcpSocket> {
    let socket = tokio::net::TcpSocket::new_v4()?;
    socket.set_reuseport(true)?;
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    Ok(socket)
}

fn config_of(node: NodeId, directory: &Path, members: Vec<Member>, retention: Retention) -> GroupConfig {
    GroupConfig {
        cluster: "test".to_owned(),
        group: GroupId(7),
        name: "seven".to_owned(),
        node,
        members,
        timings: Timings::default(),
        retention,
        store: StoreConfig {
            segment_bytes: 4 << 20,
            fill_ahead_bytes: 1 << 20,
            ..StoreConfig::in_directory(directory)
        },
    }
}

impl Cluster {
    pub fn start() -> Self {
        Self::start_with(Retention::default(), 0)
    }

    pub fn start_with(retention: Retention, retained_from: u64) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let driver = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("runtime");
        let replicas = (1..=3)
            .map(|id| {
                let any = "127.0.0.1:0".parse().expect("an address");
                let reserved = driver.block_on(async { bound(any) }).expect("a free port");
                let addr = reserved.local_addr().expect("bound").to_string();
                Replica {
                    node: NodeId(id),
                    addr,
                    _reserved: reserved,
                    directory: directory.path().join(format!("node-{id}")),
                    disk: Arc::default(),
                    refused: None,
                    last_id: None,
                    running: None,
                }
            })
            .collect();
        let mut cluster = Self { replicas, retention, retained_from, driver, _directory: directory };
        for at in 0..3 {
            cluster.start_replica(at);
        }
        cluster
    }

    /// From the next start of a replica on.
    pub fn scrub_every_s(&mut self, scrub_interval_s: u64) {
        self.retention.scrub_interval_s = scrub_interval_s;
    }

    pub fn start_replica(&mut self, at: usize) {
        let members = self.members();
        let replica = &mut self.replicas[at];
        assert!(replica.running.is_none(), "node {} runs already", replica.node);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("runtime");
        let machine =
            Arc::new(Recorder { retained_from: AtomicU64::new(self.retained_from), ..Recorder::default() });
        let config = config_of(replica.node, &replica.directory, members, self.retention.clone());
        let group = runtime.block_on(async {
            let deadline = Instant::now() + PATIENCE;
            // The log of a killed replica is unlocked when its writer has ended.
            let group = loop {
                let environment = Environment {
                    disk: Arc::new(StallingDisk(Arc::clone(&replica.disk))),
                    writer: WriterSpawn::Thread,
                    connector: Arc::new(TcpConnector),
                    proposers: None,
                    seed: replica.node.get(),
                };
                let machine = Arc::clone(&machine) as Arc<dyn StateMachine>;
                match Group::open(config.clone(), machine, environment.clone()).await {
                    Ok(group) => break group,
                    // As a broker does it.
                    Err(OpenGroupError::Store(error @ OpenError::Corrupt { .. })) => {
                        replica.refused = Some(error.to_string());
                        Group::replace(&config, &environment).await.expect("a member");
                        let aside = replica.directory.with_extension("damaged");
                        let _ = std::fs::remove_dir_all(&aside);
                        std::fs::rename(&replica.directory, aside).expect("set aside");
                    }
                    Err(OpenGroupError::Store(OpenError::Locked { .. })) if Instant::now() < deadline => {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                    Err(error) => panic!("node {} does not open: {error}", replica.node),
                }
            };
            let server = PeerServer::new();
            server.add(&group);
            let listener = loop {
                let addr = replica.addr.parse().expect("an address");
                match bound(addr).and_then(|socket| socket.listen(1_024)) {
                    Ok(listener) => break listener,
                    Err(_) if Instant::now() < deadline => tokio::time::sleep(Duration::from_millis(5)).await,
                    Err(error) => panic!("port of node {}: {error}", replica.node),
                }
            };
            let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
            tokio::spawn(PeerServer::transport().add_service(server.service()).serve_with_incoming(incoming));
            group
        });
        replica.last_id = Some(group.status().replica);
        replica.running = Some(Running { runtime, group, machine });
    }

    /// Ends the replica as SIGKILL would.
    pub fn kill(&mut self, at: usize) {
        let running = self.replicas[at].running.take().expect("it runs");
        running.runtime.shutdown_background();
        drop(running.group);
    }

    fn members(&self) -> Vec<Member> {
        self.replicas.iter().map(|r| Member { node: r.node, peer_addr: r.addr.clone() }).collect()
    }

    /// Another process with the id of this replica, on a directory of its own and without a port.
    pub fn impostor_of(&self, at: usize) -> Group {
        let replica = &self.replicas[at];
        let directory = replica.directory.with_extension("impostor");
        let config = config_of(replica.node, &directory, self.members(), self.retention.clone());
        let environment = Environment {
            disk: Arc::new(RealDisk),
            writer: WriterSpawn::Thread,
            connector: Arc::new(TcpConnector),
            proposers: None,
            seed: 99,
        };
        let opening = Group::open(config, Arc::new(Recorder::default()), environment);
        self.driver.block_on(opening).expect("opens")
    }

    /// Takes the directory of a replica that is down; the next start makes a new one.
    pub fn lose_directory(&mut self, at: usize) -> ReplicaId {
        let replica = &mut self.replicas[at];
        assert!(replica.running.is_none(), "node {} runs", replica.node);
        let id = replica.last_id.take().expect("it ran before");
        // The writer of a killed replica may make one more file meanwhile.
        while replica.directory.exists() {
            let _ = std::fs::remove_dir_all(&replica.directory);
        }
        id
    }

    pub fn flip_a_bit_of_the_first_segment(&self, at: usize) {
        let mut files: Vec<_> = std::fs::read_dir(&self.replicas[at].directory)
            .expect("the directory")
            .map(|file| file.expect("a file").path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
            .collect();
        files.sort();
        assert!(files.len() > 1, "one segment only");
        let file = std::fs::OpenOptions::new().read(true).write(true).open(&files[0]).expect("a segment");
        let mut byte = [0];
        let place = 1 << 20;
        file.read_exact_at(&mut byte, place).expect("a byte");
        byte[0] ^= 1;
        file.write_all_at(&byte, place).expect("written");
    }

    pub fn refused(&self, at: usize) -> Option<String> {
        self.replicas[at].refused.clone()
    }

    /// Stops every task of the replica for a while, as SIGSTOP would.
    pub fn stall(&self, at: usize, pause: Duration) {
        let running = self.replicas[at].running.as_ref().expect("it runs");
        running.runtime.spawn(async move { std::thread::sleep(pause) });
    }

    pub fn shut_down(&mut self, at: usize) {
        let running = self.replicas[at].running.take().expect("it runs");
        running.runtime.block_on(running.group.shutdown());
        drop(running.group);
        running.runtime.shutdown_background();
    }

    pub fn node(&self, at: usize) -> NodeId {
        self.replicas[at].node
    }

    pub fn group(&self, at: usize) -> &Group {
        &self.replicas[at].running.as_ref().expect("it runs").group
    }

    pub fn machine(&self, at: usize) -> &Arc<Recorder> {
        &self.replicas[at].running.as_ref().expect("it runs").machine
    }

    pub fn running(&self) -> Vec<usize> {
        (0..self.replicas.len()).filter(|at| self.replicas[*at].running.is_some()).collect()
    }

    /// The replica that leads and is ready to.
    pub fn leader(&self) -> usize {
        self.wait_for("a ready leader", || {
            let ready = |at: &usize| self.group(*at).leadership().borrow().is_leader_ready;
            let leaders: Vec<_> = self.running().into_iter().filter(ready).collect();
            match leaders[..] {
                [leader] => Some(leader),
                _ => None,
            }
        })
    }

    pub fn follower(&self) -> usize {
        let leader = self.leader();
        self.running().into_iter().find(|at| *at != leader).expect("a follower")
    }

    /// Acknowledged when it returns, whoever leads by then.
    pub fn propose(&self, command: impl Into<Bytes>) -> Bytes {
        let command = command.into();
        self.driver.block_on(self.propose_async(command))
    }

    async fn propose_async(&self, command: Bytes) -> Bytes {
        let deadline = Instant::now() + PATIENCE;
        loop {
            for at in self.running() {
                match self.group(at).propose(command.clone()).await {
                    Ok(answer) => return answer,
                    Err(ProposeError::NotLeader { .. } | ProposeError::OutcomeUnknown) => {}
                    Err(error) => panic!("node {}: {error}", self.replicas[at].node),
                }
            }
            assert!(Instant::now() < deadline, "nobody took the command");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    pub fn wait_for<T>(&self, what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = condition() {
                return found;
            }
            if Instant::now() > deadline {
                for at in self.running() {
                    eprintln!("node {}: {:#?}", self.replicas[at].node, self.group(at).status());
                }
                panic!("waited too long for {what}");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits until all running replicas applied the same, and checks that it is the same.
    pub fn converge(&self) -> Recorded {
        let leader = self.leader();
        self.driver.block_on(self.group(leader).read_barrier()).expect("it leads");
        let expected = self.machine(leader).recorded();
        for at in self.running() {
            self.wait_for("a replica that catches up", || {
                (self.machine(at).count() >= expected.commands.len()).then_some(())
            });
            let found = self.machine(at).recorded();
            assert_eq!(found.applied, expected.applied, "node {}", self.replicas[at].node);
            assert!(
                found.commands == expected.commands,
                "node {} applied something else",
                self.replicas[at].node
            );
        }
        expected
    }

    pub fn term(&self) -> Term {
        self.group(self.leader()).leadership().borrow().term
    }
}
