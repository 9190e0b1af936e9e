//! Access keys as Kubernetes objects.
//!
//! # The map
//! | module | is | talks to |
//! |---|---|---|
//! | [`api`] | the contract: kinds, conditions, names, CRDs and admission policies | nobody |
//! | [`mod@core`] | every decision, as pure functions: what was read goes in, what to write comes out | nobody |
//! | [`mod@kube`] | watches, observes, executes plans, tells Events | the API server |
//! | [`mod@run`] | wiring, start and stop | the operating system |
//!
//! Dependencies point upwards only, which `tests/architecture.rs` holds: `api ← core ← kube ← run ← main`.
//!
//! # How a key comes to be
//! 1. [`core::access_key::plan`] puts a finalizer on it.
//! 2. [`core::subuser::plan`] grants it one of two places in `Subuser.status.keys`, in a write that holds only for the
//!    version of the Subuser that it was decided from.
//! 3. [`core::access_key::plan`] makes the pair: first the Secret, then the record of its fingerprint in
//!    `AccessKey.status`, which holds only for the version of the AccessKey that it was decided from.
//!
//! # What always holds
//! * A Subuser has at most two credentials; not by one replica or a fresh cache, but by those two versions.
//! * An id is derived from uid, revision and the version it is recorded in, which never comes back; so no id is ever
//!   used twice.
//! * A place is given back only after a live read: a cache cannot tell what it has not heard of from what has gone.
//! * Every prefix of a plan is safe, as a crash may fall between any two writes.
//! * A Secret that the AccessKey does not control, by uid, is never touched.
//! * After convergence nothing is written.

pub mod api;
pub mod cli;
pub mod core;
pub mod kube;
pub mod run;

pub use cli::RunSettings;
pub use run::{run, run_until};
