//! Clients as processes of their own, so that they can be killed and stopped: each is this binary
//! again (`chaos client`), or a program with an unmodified SDK ([`super::foreign_clients`]), does what the
//! clients of the load do, and prints its part of the history line by line.
//!
//! | Fault | Proof | What must hold beside the checkers |
//! |---|---|---|
//! | kill | the process ended by SIGKILL | what it held is delivered to others when the lease ends |
//! | pause past the lease | its state is T, for longer than the lease | its late acknowledgements take nothing away |
//!
//! Two consumers of ours go by the same client id the whole time.
//!
//! Times are of the machine's monotonic clock, less the moment the harness's history began, so the
//! parts fit together. The last line of a killed client may be torn; what it then had open is
//! unknown, as it should be.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::{Args, ValueEnum};
use ledgermq_checkers::history::Event;
use ledgermq_client::{Client, ClientOptions, ConsumerOptions};

use super::load::{Workload, rotated};
use super::recorder::Recorder;
use super::workload::{LEASE, Receiver, Sender};
use crate::cluster::process_state;

/// Numbers of messages and of processes that one client may use.
const NUMBERS_EACH: u64 = 1 << 32;
const PROCESSES_EACH: u32 = 1 << 16;
/// Two of each.
pub const ROLES: [Role; 4] = [Role::Producer, Role::Producer, Role::Consumer, Role::Consumer];
const SHARED_CLIENT_ID: &str = "chaos-twin";
const SEND_DEADLINE: Duration = Duration::from_secs(30);
/// From being told to end: what is under way is finished first.
const FINISH_WITHIN: Duration = Duration::from_secs(90);
const PAST_THE_LEASE: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Role {
    Producer,
    Consumer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientFault {
    Kill,
    /// For longer than a lease.
    Pause,
}

impl ClientFault {
    pub fn name(self) -> &'static str {
        match self {
            Self::Kill => "client-kill",
            Self::Pause => "client-pause",
        }
    }
}

#[derive(Debug, Args)]
pub struct ClientArgs {
    #[arg(long)]
    role: Role,
    /// Access points of the cluster.
    #[arg(long)]
    points: String,
    #[arg(long)]
    topic: String,
    #[arg(long)]
    group: String,
    #[arg(long)]
    client_id: Option<String>,
    /// When the history began, on the monotonic clock.
    #[arg(long)]
    began_ns: u64,
    #[arg(long)]
    first_process: u32,
    #[arg(long)]
    first_number: u64,
    #[arg(long)]
    pause_us: u64,
    #[arg(long)]
    body_bytes: usize,
}

/// One client, until its standard input ends.
pub async fn run(arguments: ClientArgs) -> anyhow::Result<ExitCode> {
    let recorder =
        Arc::new(Recorder::printing(arguments.began_ns, arguments.first_process, arguments.first_number));
    let options = ClientOptions {
        total_deadline: SEND_DEADLINE,
        client_id: arguments.client_id.clone(),
        ..ClientOptions::default()
    };
    let client = Client::connect(&arguments.points, options).await?;
    let stop = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&stop);
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        told.store(true, Ordering::Relaxed);
    });
    match arguments.role {
        Role::Producer => {
            let sender = Sender {
                producer: client.producer(),
                recorder,
                topic: arguments.topic,
                body_bytes: arguments.body_bytes,
                message_groups: Vec::new(),
                batch: 1,
                pause: Duration::from_micros(arguments.pause_us),
                stop,
            };
            sender.run().await;
        }
        Role::Consumer => {
            let options = ConsumerOptions::new(arguments.group.clone())
                .subscribe(&arguments.topic, "*")
                .await_duration(Duration::from_secs(2))
                .invisible_duration(LEASE);
            let consumer = client.simple_consumer(options);
            let (topic, group) = (arguments.topic, arguments.group);
            Receiver { consumer, recorder, topic, group, stop }.run().await;
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Debug, Clone)]
pub enum ClientProgram {
    /// This binary.
    Own(PathBuf),
    /// An unmodified SDK that is told what the clients of ours are told, and the workload and the lease
    /// beside it, after `first`.
    Foreign { program: PathBuf, first: Vec<String> },
}

/// What all of them need to know.
#[derive(Debug, Clone)]
pub struct ClientPlan {
    pub program: ClientProgram,
    pub roles: Vec<Role>,
    pub workload: Workload,
    pub points: String,
    pub topic: String,
    pub group: String,
    pub pause: Duration,
    pub body_bytes: usize,
}

/// The clients of a run; dropping it kills them.
pub struct ClientProcesses {
    plan: ClientPlan,
    recorder: Arc<Recorder>,
    clients: Vec<Running>,
}

struct Running {
    role: Role,
    child: Child,
    reader: Option<JoinHandle<()>>,
}

impl ClientProcesses {
    pub fn start(plan: ClientPlan, recorder: Arc<Recorder>) -> anyhow::Result<Self> {
        let mut all = Self { plan, recorder, clients: Vec::new() };
        for (at, role) in all.plan.roles.clone().into_iter().enumerate() {
            let client = all.start_one(role, at)?;
            all.clients.push(client);
        }
        Ok(all)
    }

    /// Kills or stops one by `chosen` and leaves all running; answers what was seen.
    pub async fn inject(
        &mut self,
        fault: ClientFault,
        chosen: u64,
        time: Duration,
    ) -> anyhow::Result<String> {
        let at = (chosen % self.clients.len().max(1) as u64) as usize;
        let client = self.clients.get_mut(at).context("there is such a client")?;
        let (role, pid) = (client.role, client.child.id());
        match fault {
            ClientFault::Kill => {
                client.child.kill()?;
                let status = client.child.wait()?;
                ensure!(status.signal() == Some(libc::SIGKILL), "{role:?} {pid} was not killed: {status}");
                tokio::time::sleep(time).await;
                let next = self.start_one(role, at)?;
                if let Some(place) = self.clients.get_mut(at) {
                    *place = next;
                }
                Ok(format!("{role:?} {pid} ended by SIGKILL"))
            }
            ClientFault::Pause => {
                let time = time.max(LEASE + PAST_THE_LEASE);
                client.signal(libc::SIGSTOP)?;
                tokio::time::sleep(time / 2).await;
                let state = process_state(pid)?;
                ensure!(state == Some('T'), "{role:?} {pid} is in state {state:?}, not stopped");
                tokio::time::sleep(time / 2).await;
                client.signal(libc::SIGCONT)?;
                Ok(format!("{role:?} {pid} stood still for {} ms", time.as_millis()))
            }
        }
    }

    /// An error if one of this role ended by itself.
    pub fn check(&mut self, role: Role) -> anyhow::Result<()> {
        for client in self.clients.iter_mut().filter(|client| client.role == role) {
            if let Some(status) = client.child.try_wait()? {
                bail!("a {:?} ended by itself: {status}", client.role);
            }
        }
        Ok(())
    }

    /// Lets those of this role finish what they do; an error if one did not wait to be told.
    pub async fn finish(&mut self, role: Role) -> anyhow::Result<()> {
        self.check(role)?;
        for client in self.clients.iter_mut().filter(|client| client.role == role) {
            drop(client.child.stdin.take());
            let until = tokio::time::Instant::now() + FINISH_WITHIN;
            while client.child.try_wait()?.is_none() {
                ensure!(tokio::time::Instant::now() < until, "a {:?} does not end", client.role);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            if let Some(reader) = client.reader.take() {
                reader.join().map_err(|_| anyhow::anyhow!("the reader of a {role:?} failed"))?;
            }
        }
        Ok(())
    }

    /// The one at this place of the plan. Each begins at another node.
    fn start_one(&self, role: Role, at: usize) -> anyhow::Result<Running> {
        let plan = &self.plan;
        let points = rotated(&plan.points, at);
        let (first_process, first_number) = self.recorder.reserve(PROCESSES_EACH, NUMBERS_EACH);
        let mut command = match &plan.program {
            ClientProgram::Own(binary) => {
                let mut command = Command::new(binary);
                command.args(["chaos", "client"]);
                if role == Role::Consumer {
                    command.args(["--client-id", SHARED_CLIENT_ID]);
                }
                command
            }
            ClientProgram::Foreign { program, first } => {
                let workload = plan.workload.to_possible_value().context("a workload without a name")?;
                let mut command = Command::new(program);
                command.args(first).args(["--workload", workload.get_name()]);
                command.args(["--lease-s", &LEASE.as_secs().to_string()]);
                // What the SDK logs and cannot do is its own affair; the history says what came of it.
                command.stderr(Stdio::null());
                command
            }
        };
        command
            .args(["--points", &points, "--topic", &plan.topic, "--group", &plan.group])
            .args(["--role", if role == Role::Producer { "producer" } else { "consumer" }])
            .args(["--began-ns", &self.recorder.began_ns().to_string()])
            .args(["--first-process", &first_process.to_string()])
            .args(["--first-number", &first_number.to_string()])
            .args(["--pause-us", &plan.pause.as_micros().to_string()])
            .args(["--body-bytes", &plan.body_bytes.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start a {role:?}"))?;
        let output = child.stdout.take().context("the client has an output")?;
        let (recorder, topic) = (Arc::clone(&self.recorder), plan.topic.clone());
        let reader = std::thread::Builder::new().name("client-reader".to_owned()).spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                // Only the last line of a killed client is not whole.
                if let Ok(event) = serde_json::from_str::<Event>(&line) {
                    recorder.merge(&topic, event);
                }
            }
        })?;
        Ok(Running { role, child, reader: Some(reader) })
    }
}

impl Running {
    fn signal(&mut self, signal: libc::c_int) -> anyhow::Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("a {:?} ended by itself: {status}", self.role);
        }
        let pid = libc::pid_t::try_from(self.child.id()).context("process id out of range")?;
        // SAFETY: kill takes no memory, and the child is not waited for, so the id is its own.
        match unsafe { libc::kill(pid, signal) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()).context("cannot signal a client"),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// An event as one line, written at once: what was printed is not lost with the process.
pub(super) fn print(event: &Event) {
    if let Ok(mut line) = serde_json::to_vec(event) {
        line.push(b'\n');
        let mut output = std::io::stdout().lock();
        let _ = output.write_all(&line).and_then(|()| output.flush());
    }
}
