//! A real Kubernetes control plane for tests: etcd, kube-apiserver and kube-controller-manager on free ports of the
//! loopback interface, with nothing installed beforehand but Go.
//!
//! For any project that talks to Kubernetes and wants to know what the real thing answers: admission, CEL, RBAC, garbage
//! collection, namespace deletion, watches that break. It knows nothing of the operator it is tested with, and there are
//! no nodes: Pods are stored, not run.
//!
//! ```no_run
//! # fn main() -> Result<(), controlplane::Error> {
//! let control_plane = controlplane::ControlPlane::start(controlplane::Settings::default())?;
//! let output = control_plane.kubectl().args(["get", "namespaces"]).output();
//! # Ok(()) }
//! ```
//!
//! The programs come from the folder that the environment variable `KUBEBUILDER_ASSETS` names, as far as they are there;
//! the others are built once from the Go modules `kube` and `etcd` beside this crate. Everything that a control plane
//! started ends with it, even if its owner is killed. Its folder goes as well; with `KEEP_CONTROLPLANE_LOGS=1` in the
//! environment, and after a failed start, it stays for a week.
//!
//! Unix only. Other users of the machine have no way in: etcd listens on a socket in the run's folder.

mod binaries;
mod components;
mod credentials;
mod error;
mod process;
mod run_folder;

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use binaries::Program;
pub use components::Component;
use components::{AUDIT_LOG, AUDIT_POLICY, ETCD_SOCKET, Programs, Setup};
use credentials::{ADMIN, kubeconfig_name};
pub use error::Error;
use process::Process;
use run_folder::RunFolder;

/// The users that every control plane knows, beside the admin. They are in no group and have no rights: bind roles to
/// them by these names.
pub const USERS: &[&str] = &["operator", "operator-2", "authenticator", "viewer", "editor", "bench"];

/// A machine busy with a build is slow, and a start that would have succeeded must not fail for that.
const READY_WITHIN: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(50);
/// Of a start, each on other ports.
const ATTEMPTS: usize = 5;

/// What to start.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Record every request in [`ControlPlane::audit_log`] at level Metadata: user, verb, resource, response code, never
    /// a body. One event a request, at stage `ResponseComplete`; a watch has an earlier one, `ResponseStarted`.
    pub audit: bool,
    /// Let etcd wait for the disk, as in production. Without it writes are faster than any cluster's.
    pub fsync: bool,
    /// Controllers of kube-controller-manager to run beside those without which objects do not behave:
    /// garbage-collector, namespace, serviceaccount, serviceaccount-token and clusterrole-aggregation. Names as in
    /// `resourcequota-controller`, without which no `ResourceQuota` takes effect.
    pub extra_controllers: Vec<String>,
}

/// A running control plane. It ends when this is dropped, and when the process that holds it ends in any way.
pub struct ControlPlane {
    // The order in which they are dropped: first those that would notice the end of the next.
    controller_manager: Process,
    api_server: Process,
    etcd: Process,
    setup: Setup,
}

/// A control plane that outlives the process that started it.
#[derive(Clone, Debug)]
pub struct LeftRunning {
    /// The admin's.
    pub kubeconfig: PathBuf,
    /// A shell command that ends the control plane. Its folder goes when the next one starts.
    pub stop: String,
}

/// A kubectl for the user's own cluster: the one on `PATH`, else that of `KUBEBUILDER_ASSETS`, else a built one.
///
/// # Errors
/// It has to be built, and that fails.
pub fn kubectl_path() -> Result<PathBuf, Error> {
    binaries::kubectl()
}

impl ControlPlane {
    /// Returns once the API server is ready and the controllers work: namespace `default` has its `ServiceAccount`.
    /// Takes a few seconds; where programs must be built first, minutes, with progress on stderr.
    ///
    /// # Errors
    /// What kept a program from being built or a component from becoming ready, with the end of its output.
    pub fn start(settings: Settings) -> Result<Self, Error> {
        Self::start_on(settings, free_port)
    }

    /// The admin's kubeconfig: group `system:masters`.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.kubeconfig_for(ADMIN)
    }

    /// The kubeconfig of one of [`USERS`]. For any other name there is no such file.
    #[must_use]
    pub fn kubeconfig_for(&self, user: &str) -> PathBuf {
        self.setup.run.join(&kubeconfig_name(user))
    }

    /// kubectl as admin, with cache and home in the run's folder.
    #[must_use]
    pub fn kubectl(&self) -> Command {
        self.kubectl_as(ADMIN)
    }

    /// kubectl as one of [`USERS`].
    #[must_use]
    pub fn kubectl_as(&self, user: &str) -> Command {
        self.setup.kubectl(user)
    }

    /// The API server's address, `https://127.0.0.1:…`; it stays the same over restarts.
    #[must_use]
    pub fn server(&self) -> String {
        self.setup.server()
    }

    /// One JSON object a line, which may come a moment after the answer to its request; see [`Settings::audit`].
    #[must_use]
    pub fn audit_log(&self) -> Option<PathBuf> {
        self.setup.settings.audit.then(|| self.setup.run.join(AUDIT_LOG))
    }

    /// The log of a component; it begins anew when the component is restarted.
    #[must_use]
    pub fn log(&self, component: Component) -> PathBuf {
        self.setup.log(component)
    }

    /// This run's folder; see the crate's documentation for when it goes.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.setup.run.path()
    }

    /// The process id of a component; of its last process, if it was stopped.
    #[must_use]
    pub fn pid(&self, component: Component) -> u32 {
        self.process(component).id()
    }

    /// Ends the API server by SIGKILL, as in an outage; returns when it is gone. Does nothing if it is stopped already.
    pub fn stop_api_server(&mut self) {
        self.api_server.stop();
    }

    /// Starts the API server on the same port and data, after ending it if need be; returns when it is ready.
    ///
    /// # Errors
    /// What kept it from becoming ready.
    pub fn restart_api_server(&mut self) -> Result<(), Error> {
        let deadline = Instant::now() + READY_WITHIN;
        self.api_server.stop();
        loop {
            match start_api_server(&self.setup) {
                // Clients that try to connect while nothing listens may hold the port for a moment.
                Err(Error::Ended { port_taken: true, .. }) if Instant::now() < deadline => sleep(POLL),
                Err(error) => return Err(error),
                Ok(process) => {
                    self.api_server = process;
                    return Ok(());
                }
            }
        }
    }

    /// Stops a component in its tracks: connections stay open, and nothing answers.
    ///
    /// # Errors
    /// It has ended.
    pub fn pause(&self, component: Component) -> Result<(), Error> {
        self.process(component).signal("STOP").map_err(Error::io(format!("pause {component}")))
    }

    /// Ends a [`ControlPlane::pause`].
    ///
    /// # Errors
    /// It has ended.
    pub fn resume(&self, component: Component) -> Result<(), Error> {
        self.process(component).signal("CONT").map_err(Error::io(format!("resume {component}")))
    }

    /// Lets the control plane run on when this process has ended.
    #[must_use]
    pub fn leave_running(mut self) -> LeftRunning {
        let mut stop = "kill -KILL".to_owned();
        for process in [&mut self.controller_manager, &mut self.api_server, &mut self.etcd] {
            stop.extend([" ", &process.id().to_string()]);
            process.leave();
        }
        self.setup.run.leave();
        LeftRunning { kubeconfig: self.kubeconfig(), stop }
    }

    fn start_on(settings: Settings, port: impl Fn() -> io::Result<u16>) -> Result<Self, Error> {
        let [etcd, api_server, controller_manager, kubectl] =
            binaries::find([Program::Etcd, Program::ApiServer, Program::ControllerManager, Program::Kubectl])?;
        let programs = Programs { etcd, api_server, controller_manager, kubectl };
        let port = || port().map_err(Error::io("find a free port"));
        let run = || RunFolder::create(&binaries::folder().join("runs"));
        let mut setup = Setup { programs, settings, port: port()?, run: run()? };
        let mut attempt = 1;
        loop {
            match start_all(&setup) {
                Ok([etcd, api_server, controller_manager]) => {
                    setup.run.started();
                    return Ok(Self { controller_manager, api_server, etcd, setup });
                }
                Err(Error::Ended { port_taken: true, .. }) if attempt < ATTEMPTS => attempt += 1,
                Err(error) => return Err(error),
            }
            setup.run.discard();
            setup.port = port()?;
            setup.run = run()?;
        }
    }

    fn process(&self, component: Component) -> &Process {
        match component {
            Component::Etcd => &self.etcd,
            Component::ApiServer => &self.api_server,
            Component::ControllerManager => &self.controller_manager,
        }
    }
}

fn start_all(setup: &Setup) -> Result<[Process; 3], Error> {
    credentials::write(&setup.run, &setup.server(), USERS)?;
    setup.run.write(AUDIT_POLICY, include_str!("audit-policy.yaml"))?;
    let etcd = start_until(setup, Component::Etcd, || setup.run.join(ETCD_SOCKET).exists())?;
    let api_server = start_api_server(setup)?;
    let account = "/api/v1/namespaces/default/serviceaccounts/default";
    let controller_manager = start_until(setup, Component::ControllerManager, || setup.answers(account))?;
    Ok([etcd, api_server, controller_manager])
}

fn start_api_server(setup: &Setup) -> Result<Process, Error> {
    // kubectl takes a tenth of a second to fail.
    start_until(setup, Component::ApiServer, || listens(setup.port) && setup.answers("/readyz"))
}

fn start_until(setup: &Setup, component: Component, ready: impl Fn() -> bool) -> Result<Process, Error> {
    let mut process = setup.start(component)?;
    let started = Instant::now();
    while !ready() {
        let log = setup.log(component);
        if process.ended().map_err(Error::io(format!("wait for {component}")))?.is_some() {
            return Err(Error::ended(component, log));
        }
        if started.elapsed() > READY_WITHIN {
            return Err(Error::not_ready(component, READY_WITHIN, log));
        }
        sleep(POLL);
    }
    Ok(process)
}

fn listens(port: u16) -> bool {
    TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)), Duration::from_secs(1)).is_ok()
}

/// A port below those from which the system serves outgoing connections: one of them, taken by a client while the API
/// server is down, would keep it from coming back.
fn free_port() -> io::Result<u16> {
    const FIRST: u16 = 20_000;
    const COUNT: u16 = 10_000;
    let mut failure = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..100 {
        let [low, high, ..] = RandomState::new().hash_one(()).to_le_bytes();
        let port = FIRST + u16::from_le_bytes([low, high]) % COUNT;
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            Ok(_) => return Ok(port),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn takes_another_port_if_one_was_taken() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let first = AtomicBool::new(true);
        let port = || {
            let mine = first.swap(false, Ordering::Relaxed);
            if mine { taken.local_addr().map(|address| address.port()) } else { free_port() }
        };
        let control_plane = ControlPlane::start_on(Settings::default(), port).unwrap();
        assert!(!control_plane.server().ends_with(&taken.local_addr().unwrap().port().to_string()));
    }

    #[test]
    fn ports_lie_below_those_of_outgoing_connections() {
        for _ in 0..1_000 {
            assert!((20_000..30_000).contains(&free_port().unwrap()));
        }
    }
}
