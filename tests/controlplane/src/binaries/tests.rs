//! A copy of this test program finds the programs, from a target folder and with a `go` of the test's making. It is a
//! process of its own because it needs an environment of its own, and to be killed.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Output};

use super::*;
use crate::run_folder::random_hex;

/// Notes its arguments, and writes what `-o` says, in two steps.
const GO: &str = r#"#!/bin/sh
[ "$1" = build ] || exit 0
echo "$@" >>"$NOTES"
while [ "$1" != -o ]; do shift; done
out=$2; shift 2
write() {
    if [ -d "$out" ]; then for package; do echo "$text" >"$out/${package##*/}"; done; else echo "$text" >"$out"; fi
}
text=half; write "$@"
sleep "${GO_TAKES:-0}"
[ -z "$GO_FAILS" ] || { echo "the reason" >&2; exit 1; }
text=built; write "$@"
"#;

struct World(PathBuf);

impl World {
    fn new() -> Self {
        let folder = env::temp_dir().join(format!("controlplane-{}", random_hex::<8>().unwrap()));
        fs::create_dir_all(folder.join("bin")).unwrap();
        fs::create_dir_all(folder.join("target")).unwrap();
        fs::write(folder.join("target/CACHEDIR.TAG"), "").unwrap();
        fs::copy(env::current_exe().unwrap(), folder.join("target/find")).unwrap();
        Self(folder)
    }

    fn with_go() -> Self {
        let world = Self::new();
        let go = world.0.join("bin/go");
        fs::write(&go, GO).unwrap();
        fs::set_permissions(&go, fs::Permissions::from_mode(0o755)).unwrap();
        world
    }

    /// Runs [`role_find`] in this world.
    fn find(&self, env: &[(&str, &str)]) -> Child {
        // Without a `go` of the world's own there is none: `sh` is found, programs of the machine are not.
        let path = if self.0.join("bin/go").exists() {
            format!("{}:/usr/bin:/bin", self.0.join("bin").display())
        } else {
            self.0.join("bin").display().to_string()
        };
        Command::new(self.0.join("target/find"))
            .args(["--exact", "binaries::tests::role_find", "--nocapture"])
            .env_remove("KUBEBUILDER_ASSETS")
            .env("PATH", path)
            .env("NOTES", self.0.join("notes"))
            .env("ROLE", "find")
            .envs(env.iter().copied())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    fn assert_found(&self, output: &Output) {
        let stdout = text(&output.stdout);
        let found = stdout.lines().find_map(|line| line.strip_prefix("found "));
        let paths: Vec<_> = found.expect(&stdout).split(' ').map(Path::new).collect();
        let names: Vec<_> = paths.iter().map(|path| path.file_name().unwrap()).collect();
        assert_eq!(names, ["kubectl", "etcd", "kube-apiserver"]);
        for path in paths {
            assert!(path.starts_with(&self.0));
            assert_eq!(fs::read_to_string(path).unwrap(), "built\n");
        }
    }

    fn notes(&self) -> Vec<String> {
        let notes = fs::read_to_string(self.0.join("notes")).unwrap_or_default();
        notes.lines().map(str::to_owned).collect()
    }

    fn wait_for_notes(&self) {
        while self.notes().is_empty() {
            sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

/// In the place of a `main`; without the variable it is none.
#[test]
fn role_find() {
    if env::var_os("ROLE").is_some_and(|role| role == "find") {
        match find([Program::Kubectl, Program::Etcd, Program::ApiServer]) {
            Ok(paths) => println!("\nfound {}", paths.map(|path| path.display().to_string()).join(" ")),
            Err(error) => println!("\nfailed {error}"),
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_owned()).unwrap()
}

#[test]
fn builds_each_module_once_and_finds_it_the_next_time() {
    let world = World::with_go();
    let output = world.find(&[]).wait_with_output().unwrap();
    world.assert_found(&output);
    let stderr = text(&output.stderr);
    assert!(stderr.contains("building kubectl and kube-apiserver v1."), "{stderr}");
    let notes = world.notes();
    assert_eq!(notes.len(), 2);
    assert!(
        notes.iter().any(|note| note.ends_with("k8s.io/kubernetes/cmd/kubectl k8s.io/kubernetes/cmd/kube-apiserver"))
    );
    assert!(notes.iter().any(|note| note.contains("-X k8s.io/component-base/version.gitMinor=")));

    let output = world.find(&[]).wait_with_output().unwrap();
    world.assert_found(&output);
    assert_eq!(text(&output.stderr), "");
    assert_eq!(world.notes(), notes);
}

#[test]
fn two_processes_at_once_build_once() {
    let world = World::with_go();
    let slow = [("GO_TAKES", "1")];
    for child in [world.find(&slow), world.find(&slow)] {
        world.assert_found(&child.wait_with_output().unwrap());
    }
    assert_eq!(world.notes().len(), 2);
}

#[test]
fn a_build_that_was_killed_is_not_taken_for_a_finished_one() {
    let world = World::with_go();
    let mut killed = world.find(&[("GO_TAKES", "1000")]);
    world.wait_for_notes();
    killed.kill().unwrap();
    killed.wait().unwrap();
    // Its `go` holds the lock, and would for long, were it not for the watchdog.
    world.assert_found(&world.find(&[]).wait_with_output().unwrap());
    assert_eq!(world.notes().len(), 3);
}

#[test]
fn says_that_it_is_still_building_every_ten_seconds() {
    let world = World::with_go();
    let mut building = world.find(&[("GO_TAKES", "1000")]);
    let mut lines = BufReader::new(building.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert_eq!(lines.next().unwrap(), "controlplane: building etcd v3.6.14 with Go (about 1 min, once)");
    assert_eq!(lines.next().unwrap(), "controlplane: building etcd, 10 s so far (about 1 min in all, once)");
    building.kill().unwrap();
    building.wait().unwrap();
}

#[test]
fn a_failed_build_shows_what_go_said() {
    let world = World::with_go();
    let output = world.find(&[("GO_FAILS", "1")]).wait_with_output().unwrap();
    assert!(text(&output.stdout).contains("failed go build of etcd failed:\nthe reason"), "{output:?}");
    world.assert_found(&world.find(&[]).wait_with_output().unwrap());
}

#[test]
fn without_go_one_sentence_says_what_to_do() {
    let world = World::new();
    let output = world.find(&[]).wait_with_output().unwrap();
    let stdout = text(&output.stdout);
    let said = stdout.lines().find_map(|line| line.strip_prefix("failed ")).unwrap();
    assert!(said.starts_with("etcd must be built once, and there is no `go` on PATH: install Go 1."), "{said}");
    assert!(said.contains("KUBEBUILDER_ASSETS"), "{said}");
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn takes_what_kubebuilder_assets_holds_and_builds_the_rest() {
    let world = World::with_go();
    let assets = world.0.join("assets");
    fs::create_dir(&assets).unwrap();
    for name in ["etcd", "kubectl"] {
        fs::write(assets.join(name), "").unwrap();
    }
    let env = [("KUBEBUILDER_ASSETS", assets.to_str().unwrap())];
    let stdout = text(&world.find(&env).wait_with_output().unwrap().stdout);
    let expected =
        format!("found {0}/kubectl {0}/etcd {1}/target/controlplane/kube-", assets.display(), world.0.display());
    assert!(stdout.contains(&expected), "{stdout}");
    let notes = world.notes();
    assert_eq!(notes.len(), 1);
    assert!(notes.iter().all(|note| note.ends_with("k8s.io/kubernetes/cmd/kube-apiserver")));
}

#[test]
fn the_cache_changes_with_go_mod_and_go_sum() {
    let folder = |texts: [&str; 2]| fnv(&texts);
    assert_eq!(folder(["a", "b"]), folder(["a", "b"]));
    assert_ne!(folder(["a", "b"]), folder(["a", "c"]));
    assert_ne!(folder(["a", "b"]), folder(["ab", ""]));
}
