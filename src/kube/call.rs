//! One request to the API server: its deadline, its count, and what its failure means.

use std::{fmt, future::Future, time::Duration};

use rand::RngExt;

use super::metrics::Metrics;

/// The longest that one request may take; kube itself would wait for ever.
const DEADLINE: Duration = Duration::from_secs(10);

/// A request that did not succeed.
#[derive(Debug, thiserror::Error)]
#[error("{verb} {object}")]
pub struct CallError {
    verb: Verb,
    object: String,
    /// Why.
    #[source]
    pub failure: Failure,
}

/// What a failed request means.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The object has moved on, or has this name already.
    #[error("the object has changed meanwhile")]
    Conflict,
    /// There is no such object.
    #[error("not found")]
    NotFound,
    /// The API server will not have it, in these words.
    #[error("refused: {0}")]
    Refused(String),
    /// Worth another try, not before this long.
    #[error("not now: {0}")]
    Unavailable(String, Option<Duration>),
}

/// What a request does, as audit logs and metrics name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    Get,
    List,
    Create,
    Update,
    Patch,
    Delete,
}

impl Verb {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.as_str())
    }
}

/// Sends one request and waits for its answer no longer than [`DEADLINE`].
pub async fn call<T>(
    metrics: &Metrics,
    verb: Verb,
    object: impl FnOnce() -> String,
    request: impl Future<Output = kube::Result<T>>,
) -> Result<T, CallError> {
    let answer = tokio::time::timeout(DEADLINE, request).await;
    let failure = match answer {
        Ok(Ok(answer)) => {
            metrics.request(verb, 200);
            return Ok(answer);
        }
        Ok(Err(error)) => {
            metrics.request(verb, code(&error));
            meaning(&error)
        }
        Err(_) => {
            metrics.request(verb, 0);
            Failure::Unavailable(format!("no answer within {} s", DEADLINE.as_secs()), None)
        }
    };
    Err(CallError { verb, object: object(), failure })
}

fn code(error: &kube::Error) -> u16 {
    if let kube::Error::Api(status) = error { status.code } else { 0 }
}

/// Sorts an error by what can be done about it. Its text stays behind where it may quote what was sent or answered.
fn meaning(error: &kube::Error) -> Failure {
    let kube::Error::Api(status) = error else {
        let quotes = matches!(error, kube::Error::SerdeError(_));
        return Failure::Unavailable(if quotes { "the answer does not read".into() } else { error.to_string() }, None);
    };
    match status.code {
        404 => Failure::NotFound,
        409 => Failure::Conflict,
        400 | 401 | 403 | 413 | 422 => Failure::Refused(status.message.clone()),
        _ => {
            let pause = status.details.as_ref().map(|details| details.retry_after_seconds).filter(|pause| *pause > 0);
            Failure::Unavailable(status.message.clone(), pause.map(|pause| Duration::from_secs(u64::from(pause))))
        }
    }
}

/// How long to wait before another try: from 0.1 s doubling up to `longest`, shortened by up to a half so that what
/// failed together does not come back together.
pub fn pause(attempt: u32, longest: Duration) -> Duration {
    let full = Duration::from_millis(200).saturating_mul(1 << attempt.saturating_sub(1).min(12)).min(longest);
    full.mul_f64(rand::rng().random_range(0.5..1.0))
}
