//! A real cluster with the operator in it, for the tests that need one.
#![allow(dead_code, reason = "each test program uses its own part of this")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

pub mod leak;

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use accesskey_operator::api::manifests;
use controlplane::{ControlPlane, Settings};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

/// A control plane with CRDs, policies and the operator's rights in it.
pub struct Cluster {
    pub control_plane: ControlPlane,
}

/// An `accesskey-operator run` process; killed when dropped, and when the test program ends with it in a static. If it
/// ever logs a secret, the test program ends.
pub struct Operator {
    child: Child,
    pub log: PathBuf,
    reader: Option<JoinHandle<()>>,
}

impl Cluster {
    pub fn start(settings: Settings) -> Self {
        let cluster = Self::bare(settings);
        cluster.install();
        cluster
    }

    /// A cluster in which nothing but the operator's rights was prepared.
    pub fn bare(settings: Settings) -> Self {
        let cluster = Self { control_plane: ControlPlane::start(settings).unwrap() };
        cluster.apply(&std::fs::read_to_string(repository("examples/operator/rbac.yaml")).unwrap());
        for user in ["operator", "operator-2"] {
            cluster
                .kubectl(&format!("create clusterrolebinding {user} --clusterrole=accesskey-operator --user={user}"));
            cluster.kubectl(&format!("create rolebinding {user} --role=accesskey-operator --user={user}"));
        }
        cluster
    }

    /// Installs CRDs and policies, and waits until they work.
    pub fn install(&self) {
        let all: Vec<String> = manifests().unwrap().into_iter().map(|(_, text)| text).collect();
        self.apply(&all.join("\n---\n"));
        self.kubectl("wait --for=condition=Established crd/subusers.accesskey.dev crd/accesskeys.accesskey.dev");
        self.policies_work();
    }

    /// The API server takes up new policies after a moment.
    fn policies_work(&self) {
        self.namespace("policies");
        self.apply_in("policies", &access_key("probe", "nobody", "deletionPolicy: RequireDisabled"));
        let refused = || !self.run("-n policies delete accesskey probe --dry-run=server").status.success();
        eventually("admission policies work", Duration::from_secs(20), refused);
    }

    /// Starts the operator as a user of the control plane, logging at `RUST_LOG` or else at debug.
    pub fn operator(&self, user: &str, arguments: &[&str]) -> Operator {
        let level = std::env::var("RUST_LOG").unwrap_or_else(|_| "debug".into());
        self.operator_logging(&level, user, arguments)
    }

    /// The same, logging at `level`.
    pub fn operator_logging(&self, level: &str, user: &str, arguments: &[&str]) -> Operator {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let log = self.control_plane.folder().join(format!("operator-{number}.log"));
        let mut child = leashed(Path::new(env!("CARGO_BIN_EXE_accesskey-operator")))
            .args(["run", "--admin-address=127.0.0.1:0"])
            .args(arguments)
            .env("KUBECONFIG", self.control_plane.kubeconfig_for(user))
            .env("RUST_LOG", level)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let reader = leak::copy_watchfully(child.stderr.take().unwrap(), &log);
        Operator { child, log, reader: Some(reader) }
    }

    /// A client as a user of the control plane, for what kubectl is too slow for.
    pub async fn client(&self, user: &str) -> Client {
        let kubeconfig = Kubeconfig::read_from(self.control_plane.kubeconfig_for(user)).unwrap();
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
        Client::try_from(config).unwrap()
    }

    /// A namespace for one test.
    pub fn namespace(&self, name: &str) {
        self.kubectl(&format!("create namespace {name}"));
    }

    /// Runs kubectl as admin; arguments are split at spaces.
    pub fn run(&self, arguments: &str) -> Output {
        self.control_plane.kubectl().args(arguments.split(' ')).output().unwrap()
    }

    /// Runs kubectl as one of the control plane's users.
    pub fn run_as(&self, user: &str, arguments: &str) -> Output {
        self.control_plane.kubectl_as(user).args(arguments.split(' ')).output().unwrap()
    }

    /// Applies a manifest in a namespace as one of the control plane's users.
    pub fn apply_as(&self, user: &str, namespace: &str, manifest: &str) -> Output {
        piped(self.control_plane.kubectl_as(user).args(["-n", namespace, "apply", "-f", "-"]), manifest)
    }

    /// Runs a kubectl command that must succeed, and returns what it printed.
    #[track_caller]
    pub fn kubectl(&self, arguments: &str) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "kubectl {arguments}: {}", text(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a kubectl command that must be refused, and returns the message.
    #[track_caller]
    pub fn refused(&self, arguments: &str) -> String {
        let output = self.run(arguments);
        assert!(!output.status.success(), "kubectl {arguments} should be refused: {}", text(&output));
        text(&output)
    }

    #[track_caller]
    pub fn apply(&self, manifest: &str) {
        let output = self.try_apply(&["apply", "--server-side", "--force-conflicts", "-f", "-"], manifest);
        assert!(output.status.success(), "{}\n{manifest}", text(&output));
    }

    #[track_caller]
    pub fn apply_in(&self, namespace: &str, manifest: &str) {
        let output = self.try_apply(&["-n", namespace, "apply", "-f", "-"], manifest);
        assert!(output.status.success(), "{}\n{manifest}", text(&output));
    }

    /// Runs kubectl with a manifest on stdin.
    pub fn try_apply(&self, arguments: &[&str], manifest: &str) -> Output {
        piped(self.control_plane.kubectl().args(arguments), manifest)
    }

    /// Status and reason of a condition, as `True/Issued`; empty if there is none.
    pub fn condition(&self, namespace: &str, object: &str, kind: &str) -> String {
        let path = format!(
            "jsonpath={{.status.conditions[?(@.type==\"{kind}\")].status}}/{{.status.conditions[?(@.type==\"{kind}\")].reason}}"
        );
        let output = self.control_plane.kubectl().args(["-n", namespace, "get", object, "-o", &path]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim_matches('/').to_owned()
    }

    /// A field of an object, by jsonpath; empty if there is none.
    pub fn field(&self, namespace: &str, object: &str, path: &str) -> String {
        let path = format!("jsonpath={{{path}}}");
        let output = self.control_plane.kubectl().args(["-n", namespace, "get", object, "-o", &path]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Waits until a condition is as told.
    #[track_caller]
    pub fn becomes(&self, namespace: &str, object: &str, kind: &str, expected: &str) {
        let mut last = String::new();
        let deadline = Instant::now() + Duration::from_secs(30);
        while Instant::now() < deadline {
            last = self.condition(namespace, object, kind);
            if last == expected {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let object = self.run(&format!("-n {namespace} get {object} -o yaml"));
        panic!("{kind} should become {expected:?} and is {last:?}: {}", text(&object));
    }

    /// Waits until the object is gone.
    #[track_caller]
    pub fn goes(&self, namespace: &str, object: &str) {
        let gone = || text(&self.run(&format!("-n {namespace} get {object}"))).contains("not found");
        eventually(&format!("{object} goes"), Duration::from_secs(30), gone);
    }
}

impl Operator {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.end();
    }

    /// SIGKILL, and a new one in its place.
    pub fn replace(&mut self, start: impl FnOnce() -> Self) {
        self.end();
        *self = start();
    }

    /// SIGTERM; returns whether it ended with status 0, within 20 s.
    pub fn terminate(mut self) -> bool {
        Command::new("kill").arg(self.pid().to_string()).status().unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.success();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }

    /// What it has logged so far.
    pub fn logged(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap()).into_owned()
    }

    /// Status and body of its answer at a path of the admin address.
    #[track_caller]
    pub fn get(&self, path: &str) -> (u16, String) {
        let mut connection = TcpStream::connect(self.admin_address()).unwrap();
        connection.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        write!(connection, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    /// The value of a metric without labels.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").1;
        text.lines().find_map(|line| line.strip_prefix(&format!("{name} "))).unwrap().parse().unwrap()
    }

    /// The system chose the port; the program says which.
    #[track_caller]
    fn admin_address(&self) -> SocketAddr {
        let mut address = None;
        eventually("the operator listens", Duration::from_secs(20), || {
            let log = self.logged();
            let started = log.lines().find(|line| line.contains(r#""message":"started""#));
            address = started
                .and_then(|line| line.split_once("127.0.0.1:"))
                .map(|(_, rest)| rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap());
            address.is_some()
        });
        SocketAddr::from(([127, 0, 0, 1], address.unwrap()))
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        self.end();
    }
}

/// A Subuser; `spec` is YAML for its fields, one a line.
pub fn subuser(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: accesskey.dev/v1alpha1\nkind: Subuser\nmetadata: {{name: {name}}}\nspec:\n  enabled: true\n{}---\n",
        indented(spec)
    )
}

/// An AccessKey; `spec` is YAML for its fields beside `subuserRef`, one a line.
pub fn access_key(name: &str, subuser: &str, spec: &str) -> String {
    format!(
        "apiVersion: accesskey.dev/v1alpha1\nkind: AccessKey\nmetadata: {{name: {name}}}\n\
         spec:\n  subuserRef: {{name: {subuser}}}\n{}---\n",
        indented(spec)
    )
}

fn indented(spec: &str) -> String {
    spec.lines().fold(String::new(), |yaml, line| yaml + "  " + line + "\n")
}

/// Waits until `holds`.
#[track_caller]
pub fn eventually(what: &str, within: Duration, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + within;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {within:?}: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Both streams of a command's output.
pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A path in the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A command whose process ends when the test program does, however that ends: the shell that becomes the program
/// leaves another behind, which kills their group once nobody holds the other end of its stdin.
pub fn leashed(program: &Path) -> Command {
    const LEASH: &str =
        r#"exec 3<&0 </dev/null; { read -r _; kill -KILL 0; } <&3 3<&- >&- 2>&- & exec 3<&-; exec "$@""#;
    let mut command = Command::new("sh");
    command.args(["-c", LEASH, "leashed"]).arg(program).process_group(0).stdin(Stdio::piped());
    command
}

fn piped(command: &mut Command, input: &str) -> Output {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}
