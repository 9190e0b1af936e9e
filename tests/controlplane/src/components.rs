//! How each component is run: the flags, and nothing about when.

use std::fmt;
use std::fs::File;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::Settings;
use crate::credentials::{
    ADMIN, AUTHORITY, CONTROLLER_MANAGER, SERVICE_ACCOUNT_KEY, SERVICE_ACCOUNT_PUBLIC_KEY, SERVING, SERVING_KEY,
    TOKENS, kubeconfig_name,
};
use crate::error::Error;
use crate::process::{Process, watched};
use crate::run_folder::RunFolder;

/// A process of the control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Component {
    /// etcd
    Etcd,
    /// kube-apiserver
    ApiServer,
    /// kube-controller-manager
    ControllerManager,
}

// In the run's folder, which is the components' working directory.
/// Unlike a port, nobody else can take it, and its path is short: a socket's must be.
pub(crate) const ETCD_SOCKET: &str = "etcd.sock";
pub(crate) const ETCD_DATA: &str = "etcd";
pub(crate) const AUDIT_LOG: &str = "audit.log";
pub(crate) const AUDIT_POLICY: &str = "audit-policy.yaml";

/// Without these there is no garbage collection, no end to a namespace's deletion, no token and no aggregated role.
const CONTROLLERS: [&str; 5] = [
    "garbage-collector-controller",
    "namespace-controller",
    "serviceaccount-controller",
    "serviceaccount-token-controller",
    "clusterrole-aggregation-controller",
];

pub(crate) struct Programs {
    pub(crate) etcd: PathBuf,
    pub(crate) api_server: PathBuf,
    pub(crate) controller_manager: PathBuf,
    pub(crate) kubectl: PathBuf,
}

/// All that the command lines are made of.
pub(crate) struct Setup {
    pub(crate) programs: Programs,
    pub(crate) settings: Settings,
    /// The API server's.
    pub(crate) port: u16,
    pub(crate) run: RunFolder,
}

impl Setup {
    pub(crate) fn server(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    pub(crate) fn log(&self, component: Component) -> PathBuf {
        self.run.join(&format!("{component}.log"))
    }

    pub(crate) fn start(&self, component: Component) -> Result<Process, Error> {
        let mut command = match component {
            Component::Etcd => self.etcd(),
            Component::ApiServer => self.api_server(),
            Component::ControllerManager => self.controller_manager(),
        };
        // etcd takes settings from ETCD_*, and refuses to start where they collide with flags.
        command.env_clear().envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
        command.current_dir(self.run.path()).env("HOME", self.run.path()).env("TMPDIR", self.run.path());
        let output = self.run.stdout().and_then(|stdout| Ok((stdout, File::create(self.log(component))?)));
        let (stdout, stderr) = output.map_err(Error::io(format!("open the log of {component}")))?;
        command.stdout(stdout).stderr(stderr);
        Process::start(command).map_err(Error::io(format!("start {component}")))
    }

    /// Runs as `user`, untouched by the kubectl settings of whoever runs the tests.
    pub(crate) fn kubectl(&self, user: &str) -> Command {
        let mut command = Command::new(&self.programs.kubectl);
        command
            .stdin(Stdio::null())
            .env("KUBECONFIG", self.run.join(&kubeconfig_name(user)))
            .env("HOME", self.run.path())
            .env("KUBECACHEDIR", self.run.join("kubectl-cache"))
            .env("KUBERC", "off");
        command
    }

    /// Whether a GET of `path` by the admin succeeds.
    pub(crate) fn answers(&self, path: &str) -> bool {
        let mut get = self.kubectl(ADMIN);
        get.args(["get", "--request-timeout=5s", "--raw", path]).stdout(Stdio::null()).stderr(Stdio::null());
        get.status().is_ok_and(|status| status.success())
    }

    fn etcd(&self) -> Command {
        let mut command = watched(&self.programs.etcd);
        command
            .arg(format!("--data-dir={ETCD_DATA}"))
            .arg(format!("--listen-client-urls=unix://{ETCD_SOCKET}"))
            // For members of a cluster, which there are none of; a socket is refused here.
            .arg("--advertise-client-urls=http://127.0.0.1:0")
            .arg("--listen-peer-urls=unix://etcd-peer.sock");
        if !self.settings.fsync {
            command.arg("--unsafe-no-fsync");
        }
        command
    }

    fn api_server(&self) -> Command {
        let mut command = watched(&self.programs.api_server);
        command
            .arg(format!("--etcd-servers=unix://{ETCD_SOCKET}"))
            .args(["--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--endpoint-reconciler-type=none"])
            .arg(format!("--secure-port={}", self.port))
            .arg("--cert-dir=certificates")
            .arg(format!("--tls-cert-file={SERVING}"))
            .arg(format!("--tls-private-key-file={SERVING_KEY}"))
            .args(["--authorization-mode=RBAC", "--service-cluster-ip-range=10.0.0.0/24"])
            .arg("--service-account-issuer=https://kubernetes.default.svc")
            .arg(format!("--service-account-key-file={SERVICE_ACCOUNT_PUBLIC_KEY}"))
            .arg(format!("--service-account-signing-key-file={SERVICE_ACCOUNT_KEY}"))
            .arg(format!("--token-auth-file={TOKENS}"));
        if self.settings.audit {
            command
                .arg(format!("--audit-policy-file={AUDIT_POLICY}"))
                .arg(format!("--audit-log-path={AUDIT_LOG}"))
                // In MB, far beyond any test: a rotated log would be short of requests.
                .arg("--audit-log-maxsize=10000");
        }
        command
    }

    fn controller_manager(&self) -> Command {
        let extra = self.settings.extra_controllers.iter().map(String::as_str);
        let controllers: Vec<&str> = CONTROLLERS.into_iter().chain(extra).collect();
        let mut command = watched(&self.programs.controller_manager);
        command
            .arg(format!("--kubeconfig={}", kubeconfig_name(CONTROLLER_MANAGER)))
            .args(["--use-service-account-credentials", "--leader-elect=false", "--secure-port=0"])
            .arg(format!("--service-account-private-key-file={SERVICE_ACCOUNT_KEY}"))
            .arg(format!("--root-ca-file={AUTHORITY}"))
            .arg(format!("--controllers={}", controllers.join(",")));
        command
    }
}

/// The program's name.
impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Etcd => "etcd",
            Self::ApiServer => "kube-apiserver",
            Self::ControllerManager => "kube-controller-manager",
        })
    }
}
