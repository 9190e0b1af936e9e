//! The only code that talks to the API server: it watches, gathers what a decision needs, carries plans out, and tells
//! Events. It decides nothing about keys.

mod cache;
mod call;
mod controllers;
mod events;
mod execute;
mod metrics;
mod observe;
mod task;
mod watch;

pub use controllers::{Controllers, Scope};
pub use metrics::Metrics;
