//! What a decision comes out as.
//!
//! Writes are carried out in order, and a crash may fall between any two: every prefix of a plan must be safe.
//! Each write to an object holds only for the version of it that the decision was made from.

use jiff::Timestamp;

use super::secret::PairSecret;
use crate::api::Reason;

/// What to do about one object, and when to look at it again. `S` is the type of its status.
#[derive(Debug, PartialEq)]
pub struct Plan<S> {
    /// In this order.
    pub writes: Vec<Write<S>>,
    /// Told once the writes are done.
    pub notes: Vec<Note>,
    /// When to look again.
    pub next: Next,
}

/// One request to the API server.
#[derive(Clone, Debug, PartialEq)]
pub enum Write<S> {
    /// Puts our finalizer on the object.
    AddFinalizer,
    /// Takes our finalizer off the object, which lets it go.
    RemoveFinalizer,
    /// Sets `spec.enabled: false`: in a terminating namespace, or where the key's own policy says so.
    Disable,
    /// Deletes the object: in a terminating namespace.
    Delete,
    /// Replaces the fields of the status that are ours.
    Status(Box<S>),
    /// Creates a Secret that does not exist.
    CreateSecret(PairSecret),
    /// Replaces exactly the version of the Secret whose uid and resourceVersion it carries.
    ReplaceSecret(PairSecret),
    /// Deletes exactly the version of the Secret whose uid and resourceVersion it carries: whose it is may change.
    DeleteSecret(PairSecret),
}

/// When to look at the object again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// At once: the plan goes on from what its writes have changed.
    Again,
    /// When a watch tells of a change.
    Wait,
    /// At this time, or when a watch tells of a change.
    At(Timestamp),
    /// After a growing pause: nothing will tell when it can go on.
    Retry,
}

/// A transition that is worth an Event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Why.
    pub reason: Reason,
    /// For people.
    pub message: String,
    /// Whether it is a Warning.
    pub warning: bool,
}

impl<S> Plan<S> {
    /// Nothing to do.
    #[must_use]
    pub const fn nothing(next: Next) -> Self {
        Self { writes: vec![], notes: vec![], next }
    }

    /// These writes, then a look at what they have changed.
    #[must_use]
    pub fn step(writes: impl Into<Vec<Write<S>>>) -> Self {
        Self { writes: writes.into(), notes: vec![], next: Next::Again }
    }
}
