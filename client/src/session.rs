//! What makes a producer or consumer known to the cluster: its client id, the headers of every
//! request, a telemetry stream with its settings, and heartbeats.
//!
//! A session's work in the background never holds up a request: a lost stream is reopened after
//! [`REOPEN_PAUSE`], a failed heartbeat is made up by the next one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ledgermq_proto::rocketmq as wire;
use ledgermq_proto::rocketmq::messaging_service_client::MessagingServiceClient;
use ledgermq_proto::rocketmq::telemetry_command::Command;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{AsciiMetadataValue, MetadataMap};

use crate::connection::{Connections, LiveConnection};
use crate::consumer::Filter;
use crate::options::ClientOptions;
use crate::retry::{Budget, CallFailure, Line, call, judge};
use crate::transaction::{TransactionChecker, answer_check};

const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(10);
const SETTINGS_INTERVAL: Duration = Duration::from_secs(300);
const REOPEN_PAUSE: Duration = Duration::from_secs(1);
const OUTGOING_COMMANDS_MAX: usize = 16;
const CHECKS_AT_ONCE_MAX: usize = 64;
/// The largest answer accepted: a batch of the largest messages in one item never occurs, because
/// messages come one per item.
const ANSWER_BYTES_MAX: usize = 32 * 1024 * 1024;

pub(crate) struct Session {
    pub connections: Arc<Connections>,
    pub options: ClientOptions,
    pub client_id: String,
    metadata: MetadataMap,
    role: Role,
    checks: Arc<Semaphore>,
    background: parking_lot::Mutex<Option<JoinHandle<()>>>,
}

/// What the session is for, as its settings and heartbeats say it.
#[derive(Clone)]
pub(crate) struct Role {
    pub client_type: wire::ClientType,
    pub group: Option<String>,
    pub subscriptions: Vec<(String, Filter)>,
    pub long_polling: Duration,
    /// What a producer publishes to: it is asked about transactions of these topics.
    pub topics: Vec<String>,
    pub checker: Option<Arc<dyn TransactionChecker>>,
}

impl Session {
    pub fn start(connections: Arc<Connections>, options: ClientOptions, role: Role) -> Arc<Self> {
        let client_id = options.client_id.clone().unwrap_or_else(new_client_id);
        let session = Arc::new(Self {
            metadata: headers(&client_id, &options.namespace),
            connections,
            options,
            client_id,
            role,
            checks: Arc::new(Semaphore::new(CHECKS_AT_ONCE_MAX)),
            background: parking_lot::Mutex::new(None),
        });
        // The task must not keep the session alive, or it would never end.
        let weak = Arc::downgrade(&session);
        let task = tokio::spawn(async move {
            let mut next_heartbeat = Instant::now();
            loop {
                let Some(session) = weak.upgrade() else { return };
                let stream = session.open_telemetry().await;
                drop(session);
                let Ok((commands, mut answers)) = stream else {
                    tokio::time::sleep(REOPEN_PAUSE).await;
                    continue;
                };
                let mut next_settings = Instant::now() + SETTINGS_INTERVAL;
                loop {
                    tokio::select! {
                        answer = answers.message() => match answer {
                            Ok(Some(wire::TelemetryCommand {
                                command: Some(Command::RecoverOrphanedTransactionCommand(asked)),
                                ..
                            })) => {
                                let Some(session) = weak.upgrade() else { return };
                                session.check(asked);
                            }
                            Ok(Some(command)) => answer_command(&commands, command),
                            Ok(None) | Err(_) => break,
                        },
                        () = tokio::time::sleep_until(next_heartbeat) => {
                            let Some(session) = weak.upgrade() else { return };
                            session.heartbeat().await;
                            next_heartbeat = Instant::now() + HEARTBEAT_INTERVAL;
                        }
                        () = tokio::time::sleep_until(next_settings) => {
                            let Some(session) = weak.upgrade() else { return };
                            let _ = commands.try_send(session.settings_command());
                            next_settings = Instant::now() + SETTINGS_INTERVAL;
                        }
                    }
                }
                tokio::time::sleep(REOPEN_PAUSE).await;
            }
        });
        *session.background.lock() = Some(task);
        session
    }

    pub fn resource(&self, name: &str) -> wire::Resource {
        wire::Resource { resource_namespace: self.options.namespace.clone(), name: name.to_owned() }
    }

    pub fn group(&self) -> Option<wire::Resource> {
        self.role.group.as_deref().map(|name| self.resource(name))
    }

    /// A request with this session's headers and the time the server has for it.
    pub fn request<T>(&self, message: T, time: Duration) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        *request.metadata_mut() = self.metadata.clone();
        request.set_timeout(time);
        request
    }

    /// For a request that [`Line::Others`] has.
    pub fn budget(&self, operation: &'static str) -> Budget {
        Budget {
            operation,
            deadline: Instant::now() + self.options.total_deadline,
            attempt: self.options.request_timeout,
            hedged: true,
            line: Line::Others,
        }
    }

    /// For a request that [`Line::Sends`] has.
    pub fn send_budget(&self, operation: &'static str) -> Budget {
        Budget { line: Line::Sends, ..self.budget(operation) }
    }

    /// Tells the cluster that this client leaves. Best effort: the cluster also notices silence.
    pub async fn leave(&self) {
        if let Some(task) = self.background.lock().take() {
            task.abort();
        }
        let request = wire::NotifyClientTerminationRequest { group: self.group() };
        let budget = Budget {
            operation: "client termination",
            deadline: Instant::now() + self.options.request_timeout,
            attempt: self.options.request_timeout,
            hedged: false,
            line: Line::None,
        };
        let outcome = call(&self.connections, budget, |connection, time| {
            let request = self.request(request.clone(), time);
            async move {
                let answer = messaging(connection).notify_client_termination(request).await?.into_inner();
                Ok(judge(answer.status, ()))
            }
        })
        .await;
        log_failure("client termination", outcome);
    }

    /// Answers in the background. Questions beyond [`CHECKS_AT_ONCE_MAX`] are left: they come again.
    fn check(self: &Arc<Self>, asked: wire::RecoverOrphanedTransactionCommand) {
        let Some(checker) = self.role.checker.clone() else { return };
        let Ok(permit) = Arc::clone(&self.checks).try_acquire_owned() else { return };
        let session = Arc::clone(self);
        tokio::spawn(async move {
            answer_check(&session, &checker, asked).await;
            drop(permit);
        });
    }

    async fn heartbeat(&self) {
        let request =
            wire::HeartbeatRequest { group: self.group(), client_type: self.role.client_type as i32 };
        let budget = Budget {
            operation: "heartbeat",
            deadline: Instant::now() + self.options.request_timeout,
            attempt: self.options.request_timeout,
            hedged: false,
            line: Line::None,
        };
        let outcome = call(&self.connections, budget, |connection, time| {
            let request = self.request(request.clone(), time);
            async move {
                let answer = messaging(connection).heartbeat(request).await?.into_inner();
                Ok(judge(answer.status, ()))
            }
        })
        .await;
        log_failure("heartbeat", outcome);
    }

    async fn open_telemetry(
        &self,
    ) -> Result<(mpsc::Sender<wire::TelemetryCommand>, tonic::Streaming<wire::TelemetryCommand>), tonic::Status>
    {
        let connection = self
            .connections
            .get(self.connections.preferred())
            .await
            .map_err(|error| tonic::Status::unavailable(error.to_string()))?;
        let (sender, receiver) = mpsc::channel(OUTGOING_COMMANDS_MAX);
        let _ = sender.try_send(self.settings_command());
        let mut request = tonic::Request::new(ReceiverStream::new(receiver));
        *request.metadata_mut() = self.metadata.clone();
        // The stream itself has no end; only its opening is given a time.
        let answers =
            tokio::time::timeout(self.options.request_timeout, messaging(connection).telemetry(request))
                .await
                .map_err(|_| tonic::Status::deadline_exceeded("telemetry was not answered"))??
                .into_inner();
        Ok((sender, answers))
    }

    fn settings_command(&self) -> wire::TelemetryCommand {
        use wire::settings::PubSub;
        let pub_sub = match self.role.client_type {
            wire::ClientType::Producer => PubSub::Publishing(wire::Publishing {
                topics: self.role.topics.iter().map(|topic| self.resource(topic)).collect(),
                ..Default::default()
            }),
            _ => PubSub::Subscription(wire::Subscription {
                group: self.group(),
                subscriptions: self
                    .role
                    .subscriptions
                    .iter()
                    .map(|(topic, filter)| wire::SubscriptionEntry {
                        topic: Some(self.resource(topic)),
                        expression: Some(filter.to_wire()),
                    })
                    .collect(),
                long_polling_timeout: Some(crate::message::duration(self.role.long_polling)),
                ..Default::default()
            }),
        };
        let settings = wire::Settings {
            client_type: Some(self.role.client_type as i32),
            request_timeout: Some(crate::message::duration(self.options.request_timeout)),
            user_agent: Some(wire::Ua {
                language: wire::Language::Rust as i32,
                version: env!("CARGO_PKG_VERSION").to_owned(),
                platform: std::env::consts::OS.to_owned(),
                hostname: hostname(),
            }),
            pub_sub: Some(pub_sub),
            ..Default::default()
        };
        wire::TelemetryCommand {
            status: Some(wire::Status { code: wire::Code::Ok as i32, message: String::new() }),
            command: Some(Command::Settings(settings)),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(task) = self.background.lock().take() {
            task.abort();
        }
    }
}

pub(crate) fn messaging(connection: LiveConnection) -> MessagingServiceClient<LiveConnection> {
    let origin = connection.origin();
    MessagingServiceClient::with_origin(connection, origin).max_decoding_message_size(ANSWER_BYTES_MAX)
}

pub(crate) fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// `host@pid@index@random`, unique for every session of every process.
fn new_client_id() -> String {
    static INDEX: AtomicU64 = AtomicU64::new(0);
    let index = INDEX.fetch_add(1, Ordering::Relaxed);
    format!("{}@{}@{index}@{:08x}", hostname(), std::process::id(), rand::random::<u32>())
}

fn headers(client_id: &str, namespace: &str) -> MetadataMap {
    let mut headers = MetadataMap::new();
    headers.insert("x-mq-language", AsciiMetadataValue::from_static("RUST"));
    headers.insert("x-mq-protocol", AsciiMetadataValue::from_static("v2"));
    headers.insert("x-mq-client-version", AsciiMetadataValue::from_static(env!("CARGO_PKG_VERSION")));
    // A host name or namespace outside ASCII cannot be a header; the server then says what it misses.
    if let Ok(client_id) = client_id.parse() {
        headers.insert("x-mq-client-id", client_id);
    }
    if !namespace.is_empty()
        && let Ok(namespace) = namespace.parse()
    {
        headers.insert("x-mq-namespace", namespace);
    }
    headers
}

/// Settings are the server's side of what we sent; diagnostics are declined.
fn answer_command(commands: &mpsc::Sender<wire::TelemetryCommand>, command: wire::TelemetryCommand) {
    let Some(Command::PrintThreadStackTraceCommand(asked)) = command.command else { return };
    let declined = wire::TelemetryCommand {
        status: Some(wire::Status {
            code: wire::Code::NotImplemented as i32,
            message: "this client has no stack traces to give".to_owned(),
        }),
        command: Some(Command::ThreadStackTrace(wire::ThreadStackTrace {
            nonce: asked.nonce,
            thread_stack_trace: None,
        })),
    };
    let _ = commands.try_send(declined);
}

fn log_failure(operation: &str, outcome: Result<((), u32), CallFailure>) {
    if let Err(failure) = outcome {
        tracing::debug!(operation, ?failure, "not answered");
    }
}
