//! A client as a child process that reads lines and writes one event per line: the load and other
//! programs of the Python SDK, and our own producer.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use parking_lot::{Condvar, Mutex};

use crate::history::Event;
use crate::python::programs;

const EXIT_WITHIN: Duration = Duration::from_secs(40);

pub struct RecordedProcess {
    child: Child,
    input: Option<ChildStdin>,
    recorded: Arc<Recorded>,
    reader: Option<std::thread::JoinHandle<()>>,
}

#[derive(Default)]
struct Recorded {
    events: Mutex<Vec<Event>>,
    grown: Condvar,
}

#[derive(Debug, Clone)]
pub struct LoadPlan {
    pub endpoints: String,
    pub topic: String,
    pub consumer_group: String,
    pub producers: u32,
    pub pause_ms: u32,
    /// `push`, `simple` or `none`.
    pub consumer: &'static str,
    pub stderr: PathBuf,
}

impl RecordedProcess {
    /// The steady load of `python/load.py`.
    pub fn python_load(interpreter: &std::path::Path, plan: &LoadPlan) -> Result<Self> {
        let (producers, pause_ms) = (plan.producers.to_string(), plan.pause_ms.to_string());
        let arguments = [
            ["--endpoints", &plan.endpoints],
            ["--topic", &plan.topic],
            ["--group", &plan.consumer_group],
            ["--producers", &producers],
            ["--pause-ms", &pause_ms],
            ["--consumer", plan.consumer],
        ];
        Self::python(interpreter, "load.py", arguments.as_flattened(), &plan.stderr)
    }

    /// A program below `python/`.
    pub fn python(
        interpreter: &std::path::Path,
        program: &str,
        arguments: &[&str],
        stderr: &std::path::Path,
    ) -> Result<Self> {
        Self::spawn(Command::new(interpreter).arg(programs().join(program)).args(arguments), stderr)
    }

    pub fn spawn(command: &mut Command, stderr: &std::path::Path) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(stderr)?)
            .spawn()
            .with_context(|| format!("starting {command:?}"))?;
        let input = child.stdin.take();
        let output = child.stdout.take().context("the output is piped")?;
        let recorded = Arc::new(Recorded::default());
        let reader = std::thread::spawn({
            let recorded = Arc::clone(&recorded);
            move || {
                for line in BufReader::new(output).lines().map_while(std::result::Result::ok) {
                    if let Ok(event) = serde_json::from_str::<Event>(&line) {
                        recorded.events.lock().push(event);
                        recorded.grown.notify_all();
                    }
                }
            }
        });
        Ok(Self { child, input, recorded, reader: Some(reader) })
    }

    pub fn events(&self) -> Vec<Event> {
        self.recorded.events.lock().clone()
    }

    pub fn count(&self, wanted: impl Fn(&Event) -> bool) -> usize {
        self.recorded.events.lock().iter().filter(|event| wanted(event)).count()
    }

    /// Waits until what was recorded satisfies `enough`.
    pub fn wait(&self, what: &str, within: Duration, enough: impl Fn(&[Event]) -> bool) -> Result<()> {
        let deadline = Instant::now() + within;
        let mut events = self.recorded.events.lock();
        while !enough(&events) {
            if self.recorded.grown.wait_until(&mut events, deadline).timed_out() {
                let tail: Vec<_> = events.iter().rev().take(5).collect();
                bail!("{what} did not come within {} s; the last events: {tail:?}", within.as_secs());
            }
        }
        Ok(())
    }

    /// Waits for `count` more acknowledged sends than there are now.
    pub fn wait_acks(&self, count: usize, within: Duration) -> Result<()> {
        let acks = |events: &[Event]| events.iter().filter(|event| event.e == "ack").count();
        let goal = acks(&self.recorded.events.lock()) + count;
        self.wait(&format!("{count} acknowledged sends"), within, |events| acks(events) >= goal)
    }

    /// Ends the producers, then waits until everything acknowledged was received or `within` is over.
    pub fn drain(&mut self, within: Duration) -> Result<()> {
        self.say("stop-sending")?;
        self.wait("the end of sending", Duration::from_secs(60), |events| {
            events.iter().rev().any(|event| event.e == "sending-stopped")
        })?;
        // An incomplete drain is the verdict's to report, as lost messages.
        let _incomplete = self.wait("all messages", within, |events| {
            let mut open: BTreeSet<&str> = events
                .iter()
                .filter(|event| event.e == "ack")
                .filter_map(|event| event.n.as_deref())
                .collect();
            for event in events.iter().filter(|event| event.e == "got") {
                if let Some(number) = event.n.as_deref() {
                    open.remove(number);
                }
            }
            open.is_empty()
        });
        Ok(())
    }

    /// SIGKILL: nothing is said to anybody. What it recorded so far.
    pub fn kill(mut self) -> Result<Vec<Event>> {
        self.child.kill()?;
        self.child.wait()?;
        if let Some(reader) = self.reader.take() {
            let _ended = reader.join();
        }
        Ok(self.events())
    }

    pub fn say(&mut self, line: &str) -> Result<()> {
        let input = self.input.as_mut().context("the load has ended")?;
        writeln!(input, "{line}")?;
        input.flush()?;
        Ok(())
    }

    /// Ends the program and returns all it recorded.
    pub fn finish(mut self) -> Result<Vec<Event>> {
        drop(self.input.take());
        let deadline = Instant::now() + EXIT_WITHIN;
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            ensure!(Instant::now() < deadline, "the load does not end");
            std::thread::park_timeout(Duration::from_millis(20));
        };
        ensure!(status.success(), "the load ended with {status}");
        if let Some(reader) = self.reader.take() {
            let _ended = reader.join();
        }
        Ok(self.events())
    }
}

impl Drop for RecordedProcess {
    fn drop(&mut self) {
        // Already gone is fine.
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}
