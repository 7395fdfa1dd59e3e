//! One request, repeated over the access points until an answer or the deadline.
//!
//! | Outcome of an attempt | Next |
//! |---|---|
//! | answer | done |
//! | refusal that repeating cannot change | error to the caller |
//! | cannot connect, connection lost | next access point at once; a pause after each round of failures |
//! | no answer within the attempt's time | next access point at once |
//! | the server could not do it now (no leader, timeout, throttled) | a pause, then the next access point |

use std::future::Future;
use std::time::Duration;

use ledgermq_proto::rocketmq::{Code, Status as BodyStatus};
use tokio::time::Instant;
use tonic::Status;

use crate::connection::{Connections, LiveConnection};
use crate::error::{MalformedAnswer, NoAnswerInTime, Refused};

const PAUSE_MIN: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(250);

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
}

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
    mut attempt: F,
) -> Result<(R, u32), CallFailure>
where
    F: FnMut(LiveConnection, Duration) -> Fut,
    Fut: Future<Output = Result<Verdict<R>, Status>>,
{
    let started = Instant::now();
    let Budget { operation, deadline, attempt: attempt_max } = budget;
    let mut attempts = 0u32;
    let mut failures_in_round = 0usize;
    let mut pause = PAUSE_MIN;
    let mut last = "nothing was tried".to_owned();
    loop {
        let now = Instant::now();
        let Some(left) = deadline.checked_duration_since(now).filter(|left| !left.is_zero()) else {
            let elapsed = now.duration_since(started);
            return Err(CallFailure::NoAnswer(NoAnswerInTime { operation, attempts, elapsed, last }));
        };
        attempts = attempts.saturating_add(1);
        let point = connections.preferred();
        let time = attempt_max.min(left);
        let outcome = match connections.get(point).await {
            Err(unreachable) => Err(unreachable.to_string()),
            Ok(connection) => match tokio::time::timeout(time, attempt(connection, time)).await {
                Err(_) => {
                    connections.forget(point);
                    Err(format!("no answer within {} ms", time.as_millis()))
                }
                Ok(Err(status)) if is_about_the_request(&status) => {
                    return Err(CallFailure::Rejected(status));
                }
                Ok(Err(status)) => Err(status_in_words(&status)),
                Ok(Ok(verdict)) => Ok(verdict),
            },
        };
        turn_if_failed(connections, point, &outcome);
        let pausing = match outcome {
            Ok(Verdict::Done(answer)) => return Ok((answer, attempts)),
            Ok(Verdict::Refused { code, message }) => {
                return Err(CallFailure::Refused(Refused { operation, code, message }));
            }
            Ok(Verdict::Malformed { what }) => {
                return Err(CallFailure::Malformed(MalformedAnswer { operation, what }));
            }
            Ok(Verdict::TryAgain { code, message }) => {
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
                crate::error::AdminError::Failed { operation, message }
            }
        }
    }
}
