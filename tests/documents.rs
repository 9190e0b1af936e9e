//! The README against the program: its commands run, and its table names every reason.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may")]

mod support;

use std::{fs, path::Path};

use accesskey_operator::api::Reason;
use controlplane::{ControlPlane, Settings};
use support::{leashed, repository};

fn readme() -> String {
    fs::read_to_string(repository("README.md")).unwrap()
}

/// The shell blocks of the README.
fn scripts() -> Vec<String> {
    let readme = readme();
    let blocks = readme.split("```sh\n").skip(1);
    blocks.map(|block| block.split("```").next().unwrap().to_owned()).collect()
}

#[test]
fn the_table_names_every_reason_once() {
    let readme = readme();
    let rows: Vec<&str> =
        readme.lines().filter_map(|line| line.strip_prefix("| `")).filter_map(|row| row.split('`').next()).collect();
    let reasons: Vec<&str> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
    for reason in &reasons {
        assert_eq!(rows.iter().filter(|row| row == &reason).count(), 1, "{reason} in the README's table");
    }
    assert_eq!(rows.len(), reasons.len(), "the table has a row that is no reason");
}

#[test]
fn what_cargo_does_is_run_by_ci() {
    let ci = fs::read_to_string(repository(".ci/run")).unwrap();
    for command in scripts().iter().flat_map(|script| script.lines()).filter(|line| line.starts_with("cargo ")) {
        let plain = command.split('#').next().unwrap().trim();
        assert!(ci.contains(plain), ".ci/run does not run {plain:?}");
    }
}

#[test]
fn every_kubectl_command_works_as_written() {
    let control_plane = ControlPlane::start(Settings::default()).unwrap();
    let kubectl = control_plane.kubectl().get_program().to_owned();
    let operator = Path::new(env!("CARGO_BIN_EXE_accesskey-operator"));
    let folders = [Path::new(&kubectl).parent().unwrap(), operator.parent().unwrap()];
    let path = std::env::join_paths(
        folders
            .into_iter()
            .map(Path::to_owned)
            .chain(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())),
    );
    for script in scripts().iter().filter(|script| script.contains("kubectl")) {
        // Not into a pipe: the operator in the background would hold it open.
        let printed = control_plane.folder().join("printed");
        let file = fs::File::create(&printed).unwrap();
        let mut run = leashed(Path::new("bash"))
            .args(["-euo", "pipefail", "-c", &format!("trap 'kill $(jobs -p)' EXIT\n{script}")])
            .current_dir(repository("."))
            .env("PATH", path.as_ref().unwrap())
            .env("KUBECONFIG", control_plane.kubeconfig())
            .env("HOME", control_plane.folder())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        // Waiting closes its stdin, which is its leash.
        let leash = run.stdin.take();
        let status = run.wait().unwrap();
        drop(leash);
        let printed = fs::read_to_string(printed).unwrap();
        assert!(status.success(), "{script}\n{printed}");
        let token = printed.lines().find_map(|line| line.split_once(".aks_")).map(|(id, _)| id.len());
        assert_eq!(token, Some(20), "the token is printed: {printed}");
    }
}
