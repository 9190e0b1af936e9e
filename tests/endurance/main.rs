//! The two tests that take minutes, in one program so that they take them together.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test may")]

#[path = "../support/mod.rs"]
mod support;

mod cost;
mod two_operators;
