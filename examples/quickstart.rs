//! The main job on a real API server, step by step, with the kubectl commands that a user would type.
//!
//! `cargo run --example quickstart` starts a control plane of its own; the first time it builds one, which takes some
//! minutes. `--use-kubeconfig` takes the cluster of KUBECONFIG instead, in a namespace of its own. `--keep` leaves
//! everything running until Ctrl-C, and prints the kubeconfig. It ends with status 0 only if every step came out as told.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "showing is what it is for")]

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Output, Stdio},
    time::{Duration, Instant},
};

use accesskey_operator::{RunSettings, api::manifests, run_until};
use clap::Parser;
use controlplane::{ControlPlane, Settings, kubectl_path};

const NAMESPACE: &str = "accesskey-quickstart";

/// Shows the main job on a real API server.
#[derive(Parser)]
struct Arguments {
    /// Use the cluster of KUBECONFIG instead of starting a control plane.
    #[arg(long)]
    use_kubeconfig: bool,
    /// Keep everything running at the end, until Ctrl-C.
    #[arg(long)]
    keep: bool,
}

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let started = Instant::now();
    match show(&Arguments::parse()) {
        Ok(()) => {
            println!("\nEvery step came out as told, in {:.0} s.", started.elapsed().as_secs_f32());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("\nquickstart: {error}");
            ExitCode::FAILURE
        }
    }
}

fn show(arguments: &Arguments) -> Result<()> {
    let stage = Stage::set(arguments.use_kubeconfig)?;
    let operator = stage.start_operator()?;
    let told = tell(&stage);
    if arguments.keep && told.is_ok() {
        println!("\nKept running until Ctrl-C. In another terminal:\n  export KUBECONFIG={}", stage.kubeconfig());
        println!("  kubectl -n {NAMESPACE} get subusers,accesskeys,secrets");
        operator.runtime.block_on(tokio::signal::ctrl_c())?;
    }
    drop(operator);
    stage.clear();
    told
}

fn tell(stage: &Stage) -> Result<()> {
    say("Declare a Subuser and three AccessKeys.");
    stage.kubectl("apply -f examples/subuser.yaml -f examples/accesskeys.yaml")?;

    say("Two of them are issued: a Subuser has at most two keys.");
    stage.kubectl("wait --for=condition=Ready accesskey/ci-blue accesskey/ci-green --timeout=20s")?;
    stage.kubectl("describe secret ci-blue")?.must_contain("secret-access-key")?;

    say("The third is told to wait.");
    stage.kubectl("wait --for=condition=Stalled accesskey/ci-red --timeout=20s")?;
    stage.kubectl("get accesskeys")?.must_contain("KeyLimitExceeded")?;

    say("An enabled key cannot be deleted by accident.");
    stage.refused("delete accesskey ci-blue")?.must_contain("only a disabled key can be deleted")?;

    say("Disabled, every request with it is refused; the key itself stays and can be enabled again.");
    stage.kubectl(r#"patch accesskey ci-blue --type=merge -p {"spec":{"enabled":false}}"#)?;
    stage.kubectl("wait --for=condition=Active=False accesskey/ci-blue --timeout=20s")?;

    say("A disabled key is deleted for good, with its Secret, and the waiting one takes its place.");
    stage.kubectl("delete accesskey ci-blue")?;
    stage.kubectl("wait --for=condition=Ready accesskey/ci-red --timeout=20s")?;
    stage.refused("get secret ci-blue")?.must_contain("not found")?;

    say("A key expires at its time, by the second.");
    let soon = jiff::Timestamp::now() + Duration::from_secs(2);
    let expiry = format!(r#"{{"spec":{{"expiresAt":"{}","ttl":null}}}}"#, soon.strftime("%Y-%m-%dT%H:%M:%SZ"));
    stage.kubectl(&format!("patch accesskey ci-green --type=merge -p {expiry}"))?;
    stage.kubectl(r#"wait --for=jsonpath={.status.conditions[?(@.type=="Active")].reason}=Expired accesskey/ci-green --timeout=20s"#)?;

    say("A Subuser waits until its last key is gone.");
    stage.kubectl("delete subuser ci-bot --wait=false")?;
    stage.kubectl("wait --for=condition=DeletionBlocked subuser/ci-bot --timeout=20s")?;
    for key in ["ci-green", "ci-red"] {
        stage.kubectl(&format!(r#"patch accesskey {key} --type=merge -p {{"spec":{{"enabled":false}}}}"#))?;
    }
    stage.kubectl("delete accesskeys ci-green ci-red --timeout=20s")?;
    stage.kubectl("wait --for=delete subuser/ci-bot --timeout=20s")?;
    stage.kubectl("get subusers,accesskeys,secrets")?;
    Ok(())
}

/// Where it is shown.
struct Stage {
    control_plane: Option<ControlPlane>,
    kubectl: PathBuf,
}

/// The operator, in this process; it ends when this is dropped.
struct Operator {
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    running: Option<tokio::task::JoinHandle<()>>,
    runtime: tokio::runtime::Runtime,
}

impl Stage {
    /// Brings up or finds a cluster, and installs CRDs, policies and the operator's rights.
    fn set(use_kubeconfig: bool) -> Result<Self> {
        let control_plane = if use_kubeconfig { None } else { Some(ControlPlane::start(Settings::default())?) };
        let stage = Self { control_plane, kubectl: kubectl_path()? };
        say("Install the CRDs and admission policies: accesskey-operator crds | kubectl apply -f -");
        let manifests: Vec<String> = manifests()?.into_iter().map(|(_, text)| text).collect();
        stage.apply(&manifests.join("\n---\n"))?;
        checked(stage.command().args([
            "wait",
            "--for=condition=Established",
            "crd/subusers.accesskey.dev",
            "crd/accesskeys.accesskey.dev",
        ]))?;
        stage.apply(&format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {NAMESPACE}}}"))?;
        if stage.control_plane.is_some() {
            stage.apply(&std::fs::read_to_string(repository("examples/operator/rbac.yaml"))?)?;
            checked(stage.command().args([
                "create",
                "clusterrolebinding",
                "operator",
                "--clusterrole=accesskey-operator",
                "--user=operator",
            ]))?;
        }
        Ok(stage)
    }

    fn start_operator(&self) -> Result<Operator> {
        let settings = RunSettings {
            leader_election: false,
            admin_address: ([127, 0, 0, 1], 0).into(),
            kubeconfig: self.control_plane.as_ref().map(|own| own.kubeconfig_for("operator")),
            ..RunSettings::default()
        };
        let runtime = tokio::runtime::Runtime::new()?;
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let running = runtime.spawn(async {
            let stopped = async {
                let _ = stopped.await;
            };
            if let Err(error) = run_until(settings, stopped).await {
                eprintln!("operator: {error}");
            }
        });
        Ok(Operator { stop: Some(stop), running: Some(running), runtime })
    }

    fn kubeconfig(&self) -> String {
        let own = self.control_plane.as_ref().map(|own| own.kubeconfig().display().to_string());
        own.unwrap_or_else(|| std::env::var("KUBECONFIG").unwrap_or_else(|_| "~/.kube/config".into()))
    }

    /// An embedded control plane goes by itself; in a cluster that stays, only what was made for the show is removed.
    fn clear(&self) {
        if self.control_plane.is_none() {
            let _ = self.command().args(["delete", "namespace", NAMESPACE, "--wait=false"]).status();
        }
    }

    /// Runs a kubectl command that must succeed.
    fn kubectl(&self, arguments: &str) -> Result<Shown> {
        let (output, shown) = self.run(arguments)?;
        if output.status.success() {
            Ok(shown)
        } else {
            Err(format!("this should have succeeded: kubectl {arguments}").into())
        }
    }

    /// Runs a kubectl command that must fail.
    fn refused(&self, arguments: &str) -> Result<Shown> {
        let (output, shown) = self.run(arguments)?;
        if output.status.success() {
            Err(format!("this should have been refused: kubectl {arguments}").into())
        } else {
            Ok(shown)
        }
    }

    fn run(&self, arguments: &str) -> Result<(Output, Shown)> {
        println!("$ kubectl -n {NAMESPACE} {arguments}");
        let output = self.command().args(["-n", NAMESPACE]).args(arguments.split(' ')).output()?;
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        print!("{text}");
        Ok((output, Shown(text)))
    }

    fn apply(&self, manifest: &str) -> Result<()> {
        let mut child = self.command().args(["apply", "--server-side", "-f", "-"]).stdin(Stdio::piped()).spawn()?;
        child.stdin.take().ok_or("no stdin")?.write_all(manifest.as_bytes())?;
        if child.wait()?.success() { Ok(()) } else { Err("kubectl apply failed".into()) }
    }

    fn command(&self) -> Command {
        let mut command =
            self.control_plane.as_ref().map_or_else(|| Command::new(&self.kubectl), ControlPlane::kubectl);
        command.current_dir(repository("."));
        command
    }
}

fn checked(command: &mut Command) -> Result<()> {
    if command.status()?.success() { Ok(()) } else { Err(format!("this failed: {command:?}").into()) }
}

fn say(text: &str) {
    println!("\n# {text}");
}

/// What a command printed.
struct Shown(String);

impl Shown {
    fn must_contain(&self, text: &str) -> Result<()> {
        if self.0.contains(text) { Ok(()) } else { Err(format!("the output should contain {text:?}").into()) }
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(running) = self.running.take() {
            let _ = self.runtime.block_on(running);
        }
    }
}

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}
