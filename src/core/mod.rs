//! Decisions. No client, no async, no clock and no randomness of its own: what was read, the time and fresh
//! random bytes come in as arguments, and what to write goes out as a [`Plan`].

pub mod access_key;
pub mod conditions;
pub mod credential;
pub mod ledger;
pub mod plan;
pub mod secret;
mod standing;
pub mod subuser;

pub use plan::{Next, Note, Plan, Write};
