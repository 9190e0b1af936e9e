//! A control plane ends with the process that holds it, however that one ends, unless it is left running on purpose.
//! The holder is this test program, run once more.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::io::{BufRead, BufReader, Read};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::{Duration, Instant};

use controlplane::{Component, ControlPlane, Settings};

const COMPONENTS: [Component; 3] = [Component::Etcd, Component::ApiServer, Component::ControllerManager];

/// In the place of a `main`; without the variable it is none.
#[test]
fn role_hold() {
    let Ok(role) = std::env::var("ROLE") else { return };
    let control_plane = ControlPlane::start(Settings::default()).unwrap();
    println!("\nfolder {}", control_plane.folder().display());
    println!("address {}", control_plane.server().strip_prefix("https://").unwrap());
    println!("pids {}", COMPONENTS.map(|component| control_plane.pid(component).to_string()).join(" "));
    match role.as_str() {
        "hold" => {
            println!("ready");
            sleep(Duration::from_secs(600));
        }
        "leave" => {
            let left = control_plane.leave_running();
            println!("kubeconfig {}\nstop {}\nready", left.kubeconfig.display(), left.stop);
        }
        _ => {
            static NEVER_DROPPED: OnceLock<ControlPlane> = OnceLock::new();
            assert!(NEVER_DROPPED.set(control_plane).is_ok());
            println!("ready");
        }
    }
}

/// What the holder said.
struct Held {
    holder: Child,
    lines: Vec<String>,
}

impl Held {
    fn start(role: &str) -> Self {
        let mut holder = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "role_hold", "--nocapture"])
            .env("ROLE", role)
            .env_remove("KEEP_CONTROLPLANE_LOGS")
            .process_group(0)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(holder.stdout.take().unwrap());
        let mut lines = Vec::new();
        while lines.last().is_none_or(|line| line != "ready") {
            let mut line = String::new();
            assert_ne!(stdout.read_line(&mut line).unwrap(), 0, "the holder failed: {lines:?}");
            lines.push(line.trim_end().to_owned());
        }
        // Else its last words would meet a closed pipe.
        std::thread::spawn(move || stdout.read_to_end(&mut Vec::new()));
        Self { holder, lines }
    }

    fn said(&self, what: &str) -> &str {
        self.lines.iter().find_map(|line| line.strip_prefix(what)).unwrap().trim_start()
    }

    fn folder(&self) -> PathBuf {
        PathBuf::from(self.said("folder "))
    }

    fn running(&self) -> Vec<&str> {
        self.said("pids ").split(' ').filter(|pid| runs(pid)).collect()
    }

    /// `kill` as a terminal does it: the whole group.
    fn signal(&mut self, name: &str) {
        let group = format!("-{}", self.holder.id());
        assert!(
            Command::new("sh").args(["-c", r#"kill -s "$1" -- "$2""#, "sh", name, &group]).status().unwrap().success()
        );
        assert!(!self.holder.wait().unwrap().success());
    }

    fn assert_gone(&self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !self.running().is_empty() || self.folder().exists() {
            assert!(Instant::now() < deadline, "still there: {:?}, {}", self.running(), self.folder().display());
            sleep(Duration::from_millis(50));
        }
        TcpStream::connect(self.said("address ")).unwrap_err();
    }
}

/// For a test that fails.
impl Drop for Held {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = self.holder.kill();
            let _ = Command::new("kill").args(["-s", "KILL"]).args(self.running()).status();
        }
        let _ = self.holder.wait();
    }
}

/// A process that has ended has no memory, even while nobody has taken note of its end; `ps` shows it all the same.
fn runs(pid: &str) -> bool {
    if Path::new("/proc/self").exists() {
        std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|command| !command.is_empty())
    } else {
        Command::new("kill").args(["-0", pid]).stderr(Stdio::null()).status().unwrap().success()
    }
}

#[test]
fn everything_ends_when_the_holder_is_killed() {
    for signal in ["KILL", "INT"] {
        let mut held = Held::start("hold");
        assert_eq!(held.running().len(), 3);
        held.signal(signal);
        held.assert_gone();
    }
}

#[test]
fn everything_ends_when_a_holder_ends_that_never_drops_it() {
    let mut held = Held::start("static");
    assert!(held.holder.wait().unwrap().success());
    held.assert_gone();
}

#[test]
fn what_is_left_running_runs_until_it_is_stopped() {
    let mut held = Held::start("leave");
    assert!(held.holder.wait().unwrap().success());
    // Its start removes folders that are not in use.
    let other = ControlPlane::start(Settings::default()).unwrap();
    assert_eq!(held.running().len(), 3);
    let get =
        || other.kubectl().env("KUBECONFIG", held.said("kubeconfig ")).args(["get", "namespaces"]).output().unwrap();
    assert!(get().status.success());

    assert!(Command::new("sh").args(["-c", held.said("stop ")]).status().unwrap().success());
    let deadline = Instant::now() + Duration::from_secs(10);
    while !held.running().is_empty() {
        assert!(Instant::now() < deadline, "still there: {:?}", held.running());
        sleep(Duration::from_millis(50));
    }
    drop(other);
    drop(ControlPlane::start(Settings::default()).unwrap());
    assert!(!held.folder().exists());
}
