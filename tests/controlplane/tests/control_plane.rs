//! The promises of the crate, on a real control plane.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use controlplane::{ControlPlane, Settings};

#[test]
fn starts_and_answers_kubectl() {
    let begin = std::time::Instant::now();
    let control_plane = ControlPlane::start(Settings::default()).unwrap();
    eprintln!("started in {:?}", begin.elapsed());
    let output = control_plane.kubectl().args(["get", "namespaces", "-o", "name"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8(output.stdout).unwrap().contains("namespace/default"));
}
