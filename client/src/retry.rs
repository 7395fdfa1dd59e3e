//! One request, repeated over the access points until an answer or the deadline.
//!
//! | Outcome of an attempt | Next |
//! |---|---|
//! | answer | done |
//! | refusal that repeating cannot change | error to the caller |
//! | cannot connect, connection lost | next access point at once; a pause after each round of failures |
//! | no answer for much longer than answers took lately ([`hedging`](crate::hedging)), and the request may be hedged | it is also sent by the next access point; the first answer counts |
//! | no answer within the attempt's time | next access point at once |
//! | the server could not do it now (no leader, timeout) | a pause, then the next access point |
//! | the server has more to do than it can (TOO_MANY_REQUESTS) | a longer pause, then the next access point: repeats at once would be more to do |
//!
//! A node that is stopped, or cut off from the others, keeps its connections and answers nothing: only
//! time tells. Hedging finds that out in some tens of milliseconds instead of an attempt's three
//! seconds. It is safe because a repeated send is stored once, and acknowledgements and outcomes are
//! idempotent; and it is bounded, so that a cluster that is slow gets no second load.
//!
//! No more than [`REQUESTS_IN_FLIGHT_MAX`] requests of a [`Line`] are under way; the others wait here, in
//! turn, before the time of their attempt begins. Without that limit a client that sends more than the
//! cluster takes has everything under way at once, and everything times out. One whose turn does not come
//! early enough to be answered ends then, and its room goes to one that has the time: where more is sent
//! than stored for long, all that get a turn have waited as long as they could, and if they were sent
//! with their last milliseconds, all that the cluster stores would be for callers that have given up.
//!
//! An acknowledgement does not wait for sends, or its lease would run out; a heartbeat waits for nothing,
//! or the cluster would take the client for gone and no longer renew its leases.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use ledgermq_proto::rocketmq::{Code, Status as BodyStatus};
use parking_lot::Mutex;
use tokio::time::Instant;
use tonic::Status;

use crate::connection::{Connections, LiveConnection};
use crate::error::{MalformedAnswer, NoAnswerInTime, Refused};

/// Requests of one line of a client that are under way.
pub(crate) const REQUESTS_IN_FLIGHT_MAX: usize = 2_048;
/// What a request must have left when its turn in a line comes, or a quarter of all its time if that is
/// less. Brokers under too much load refuse what they cannot answer within this time
/// (`edge::send_gate`).
pub(crate) const TIME_FOR_AN_ANSWER: Duration = Duration::from_millis(1_000);
const PAUSE_MIN: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(250);
const THROTTLED_PAUSE_MIN: Duration = Duration::from_millis(100);
const THROTTLED_PAUSE_MAX: Duration = Duration::from_millis(2_000);

/// What an attempt that reached a server came to.
pub(crate) enum Verdict<R> {
    Done(R),
    TryAgain { code: i32, message: String },
    Refused { code: i32, message: String },
    Malformed { what: String },
}

#[derive(Debug)]
pub(crate) enum CallFailure {
    NoAnswer(NoAnswerInTime),
    Refused(Refused),
    Malformed(MalformedAnswer),
    /// A gRPC status that says the request itself is wrong.
    Rejected(Status),
}

pub(crate) struct Budget {
    pub operation: &'static str,
    /// When to give up.
    pub deadline: Instant,
    /// What one attempt may take.
    pub attempt: Duration,
    /// The request may be under way twice at a time.
    pub hedged: bool,
    pub line: Line,
}

/// What a request waits for before it is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Line {
    /// Nothing: long polls, which wait at the server, and what says that the client lives or leaves.
    None,
    /// Messages, recalls and outcomes of transactions.
    Sends,
    /// Acknowledgements, offsets, routes, administration.
    Others,
}

impl Budget {
    /// For a request whose second answer would differ from its first.
    pub fn once_at_a_time(self) -> Self {
        Self { hedged: false, ..self }
    }
}

/// How an attempt ended that brought no verdict.
enum Failed {
    Unreachable(String),
    Silent(Duration),
    Rejected(Status),
    Broken(String),
}

type Outcome<R> = Result<Verdict<R>, Failed>;

/// The verdict on the status every answer carries in its body.
pub(crate) fn judge<R>(status: Option<BodyStatus>, answer: R) -> Verdict<R> {
    let Some(status) = status else {
        return Verdict::Malformed { what: "an answer without a status".to_owned() };
    };
    match status.code {
        code if code == Code::Ok as i32 => Verdict::Done(answer),
        code if may_pass(code) => Verdict::TryAgain { code, message: status.message },
        code => Verdict::Refused { code, message: status.message },
    }
}

/// Codes that speak of the server's moment rather than of the request.
pub(crate) fn may_pass(code: i32) -> bool {
    matches!(
        Code::try_from(code),
        Ok(Code::RequestTimeout
            | Code::TooManyRequests
            | Code::InternalError
            | Code::InternalServerError
            | Code::HaNotAvailable
            | Code::ProxyTimeout
            | Code::MasterPersistenceTimeout
            | Code::SlavePersistenceTimeout)
    )
}

/// Runs `attempt` until it is done. It is given a connection and the time this attempt has, and
/// must tell that time to the server.
pub(crate) async fn call<R, F, Fut>(
    connections: &Connections,
    budget: Budget,
    attempt: F,
) -> Result<(R, u32), CallFailure>
where
    F: FnMut(LiveConnection, Duration) -> Fut,
    Fut: Future<Output = Result<Verdict<R>, Status>>,
{
    let started = Instant::now();
    let Budget { operation, deadline, attempt: attempt_max, hedged, line } = budget;
    let attempt = Mutex::new(attempt);
    let hedged = hedged && connections.access_points() > 1;
    let (mut attempts, mut throttled) = (0u32, 0u32);
    let mut failures_in_round = 0usize;
    let (mut pause, mut throttled_pause) = (PAUSE_MIN, THROTTLED_PAUSE_MIN);
    let in_time = deadline - TIME_FOR_AN_ANSWER.min(deadline.saturating_duration_since(started) / 4);
    let mut last = "nothing was tried".to_owned();
    let no_answer = |attempts, throttled, last| {
        let elapsed = started.elapsed();
        CallFailure::NoAnswer(NoAnswerInTime { operation, attempts, throttled, elapsed, last })
    };
    loop {
        if Instant::now() >= deadline {
            return Err(no_answer(attempts, throttled, last));
        }
        let Some(room) = connections.room(line, in_time).await else {
            let full =
                format!("{REQUESTS_IN_FLIGHT_MAX} other requests were under way until it was too late");
            return Err(no_answer(attempts, throttled, full));
        };
        attempts = attempts.saturating_add(1);
        let point = connections.preferred();
        let time = attempt_max.min(deadline.saturating_duration_since(Instant::now()));
        let began = Instant::now();
        let outcome = if hedged {
            hedge(connections, point, time, &attempt, &mut attempts).await
        } else {
            one(connections, point, time, &attempt).await
        };
        drop(room);
        let outcome = match outcome {
            Ok(verdict) => Ok(verdict),
            Err(Failed::Rejected(status)) => return Err(CallFailure::Rejected(status)),
            Err(Failed::Silent(time)) => {
                connections.forget(point);
                Err(format!("no answer within {} ms", time.as_millis()))
            }
            Err(Failed::Unreachable(reason) | Failed::Broken(reason)) => Err(reason),
        };
        turn_if_failed(connections, point, &outcome);
        let pausing = match outcome {
            Ok(Verdict::Done(answer)) => {
                if hedged {
                    connections.hedging().answered(began.elapsed());
                }
                return Ok((answer, attempts));
            }
            Ok(Verdict::Refused { code, message }) => {
                return Err(CallFailure::Refused(Refused { operation, code, message }));
            }
            Ok(Verdict::Malformed { what }) => {
                return Err(CallFailure::Malformed(MalformedAnswer { operation, what }));
            }
            Ok(Verdict::TryAgain { code, message }) => {
                if code == Code::TooManyRequests as i32 {
                    throttled += 1;
                    pause = pause.max(throttled_pause);
                    throttled_pause = (throttled_pause * 2).min(THROTTLED_PAUSE_MAX);
                }
                last =
                    format!("{} ({code}): {message}", Code::try_from(code).map_or("?", |c| c.as_str_name()));
                true
            }
            Err(reason) => {
                last = reason;
                failures_in_round += 1;
                failures_in_round >= connections.access_points()
            }
        };
        if pausing {
            failures_in_round = 0;
            // Spread, so that the requests a dead leader left behind do not return in step.
            let spread = pause.mul_f64(rand::random_range(0.5..1.0));
            tokio::time::sleep_until((Instant::now() + spread).min(deadline)).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}

/// One attempt by one access point, dialling included.
async fn one<R, F, Fut>(
    connections: &Connections,
    point: usize,
    time: Duration,
    attempt: &Mutex<F>,
) -> Outcome<R>
where
    F: FnMut(LiveConnection, Duration) -> Fut,
    Fut: Future<Output = Result<Verdict<R>, Status>>,
{
    let connection =
        connections.get(point).await.map_err(|unreachable| Failed::Unreachable(unreachable.to_string()))?;
    // The closure is locked for making the attempt only, not for its time.
    let attempt = (attempt.lock())(connection, time);
    match tokio::time::timeout(time, attempt).await {
        Err(_) => Err(Failed::Silent(time)),
        Ok(Err(status)) if is_about_the_request(&status) => Err(Failed::Rejected(status)),
        Ok(Err(status)) => Err(Failed::Broken(status_in_words(&status))),
        Ok(Ok(verdict)) => Ok(verdict),
    }
}

/// One attempt, and a second by the next access point when the answer is overdue. The answer that
/// comes first counts; of two failures, that of the first attempt.
async fn hedge<R, F, Fut>(
    connections: &Connections,
    point: usize,
    time: Duration,
    attempt: &Mutex<F>,
    attempts: &mut u32,
) -> Outcome<R>
where
    F: FnMut(LiveConnection, Duration) -> Fut,
    Fut: Future<Output = Result<Verdict<R>, Status>>,
{
    let (began, overdue) = (Instant::now(), connections.hedging().overdue_after());
    let mut first = pin!(one(connections, point, time, attempt));
    tokio::select! {
        biased;
        outcome = &mut first => return heard(connections, point, outcome),
        () = tokio::time::sleep(overdue.min(time)) => {}
    }
    // Without room it is worth it all the same once another request found the access point silent.
    let _hedging = loop {
        match connections.hedging().begin(began.elapsed()) {
            None if connections.preferred() == point => {}
            hedging => break hedging,
        }
        tokio::select! {
            biased;
            outcome = &mut first => return heard(connections, point, outcome),
            () = tokio::time::sleep(overdue) => {}
        }
    };
    *attempts = attempts.saturating_add(1);
    let mut second = pin!(one(connections, point + 1, time, attempt));
    tokio::select! {
        biased;
        outcome = &mut first => match outcome {
            Ok(Verdict::TryAgain { .. }) | Err(Failed::Unreachable(_) | Failed::Silent(_) | Failed::Broken(_)) => {
                match second.await {
                    Err(_) => outcome,
                    verdict => verdict,
                }
            }
            outcome => heard(connections, point, outcome),
        },
        outcome = &mut second => match outcome {
            Ok(Verdict::TryAgain { .. }) | Err(_) => first.await,
            verdict => {
                // Whoever asks next need not find it out again. An access point that answers others
                // meanwhile is slow and not silent, and so is the next one: if all that wait for it were
                // sent once more, both would have twice as much to do.
                if !connections.answered_since(point, began) {
                    connections.turn_away(point);
                }
                heard(connections, point + 1, verdict)
            }
        },
    }
}

/// Notes that the access point answers.
fn heard<R>(connections: &Connections, point: usize, outcome: Outcome<R>) -> Outcome<R> {
    if outcome.is_ok() {
        connections.answered(point);
    }
    outcome
}

fn turn_if_failed<R>(connections: &Connections, point: usize, outcome: &Result<Verdict<R>, String>) {
    if matches!(outcome, Err(_) | Ok(Verdict::TryAgain { .. })) {
        connections.turn_away(point);
    }
}

fn is_about_the_request(status: &Status) -> bool {
    // A status that tonic made of a broken connection has a source; then the code is a guess.
    std::error::Error::source(status).is_none()
        && matches!(
            status.code(),
            tonic::Code::InvalidArgument
                | tonic::Code::NotFound
                | tonic::Code::AlreadyExists
                | tonic::Code::PermissionDenied
                | tonic::Code::Unauthenticated
                | tonic::Code::FailedPrecondition
                | tonic::Code::OutOfRange
                | tonic::Code::Unimplemented
                | tonic::Code::ResourceExhausted
        )
}

fn status_in_words(status: &Status) -> String {
    match std::error::Error::source(status) {
        Some(source) => format!("{}: {source}", status.code().description()),
        None => format!("{}: {}", status.code().description(), status.message()),
    }
}

macro_rules! into_operation_error {
    ($error:ty) => {
        impl From<CallFailure> for $error {
            fn from(failure: CallFailure) -> Self {
                match failure {
                    CallFailure::NoAnswer(error) => error.into(),
                    CallFailure::Refused(error) => error.into(),
                    CallFailure::Malformed(error) => error.into(),
                    CallFailure::Rejected(status) => MalformedAnswer {
                        operation: "request",
                        what: format!("gRPC status {}", status_in_words(&status)),
                    }
                    .into(),
                }
            }
        }
    };
}

into_operation_error!(crate::error::SendError);
into_operation_error!(crate::error::ReceiveError);
into_operation_error!(crate::error::PullError);
into_operation_error!(crate::error::AckError);
into_operation_error!(crate::error::EndTransactionError);

impl CallFailure {
    /// For operations whose failures are gRPC statuses.
    pub(crate) fn into_admin(self, operation: &'static str) -> crate::error::AdminError {
        match self {
            Self::NoAnswer(error) => error.into(),
            Self::Malformed(error) => error.into(),
            Self::Refused(error) => {
                crate::error::AdminError::Failed { operation, message: error.to_string() }
            }
            Self::Rejected(status) => {
                let message = match (status.code(), status.message()) {
                    (tonic::Code::Unimplemented, _) => {
                        "this access point has no administration; name a broker's client port".to_owned()
                    }
                    (code, "") => code.description().to_owned(),
                    (_, text) => text.to_owned(),
                };
                match status.code() {
                    tonic::Code::NotFound => crate::error::AdminError::NotFound { operation, message },
                    _ => crate::error::AdminError::Failed { operation, message },
                }
            }
        }
    }
}
