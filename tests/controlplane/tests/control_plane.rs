//! What a control plane does, on one that the tests share, and on others that do not survive their test.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;
use std::thread::{sleep, spawn};
use std::time::{Duration, Instant};

use controlplane::{Component, ControlPlane, Settings, USERS};

/// Never dropped: that its processes end all the same is shown in `lifetime.rs`.
static SHARED: LazyLock<ControlPlane> =
    LazyLock::new(|| ControlPlane::start(Settings { audit: true, ..Settings::default() }).unwrap());

/// What the command wrote to stdout, or else to stderr.
fn output(command: &mut Command) -> Result<String, String> {
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

fn address(control_plane: &ControlPlane) -> String {
    control_plane.server().strip_prefix("https://").unwrap().to_owned()
}

#[test]
fn the_version_is_the_one_of_go_mod() {
    let go_mod = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/kube/go.mod")).unwrap();
    let pinned = go_mod.lines().find_map(|line| line.trim().strip_prefix("k8s.io/kubernetes ")).unwrap();
    let pinned = pinned.split(' ').next().unwrap();
    let versions = output(SHARED.kubectl().args(["version", "--output=yaml"])).unwrap();
    if std::env::var_os("KUBEBUILDER_ASSETS").is_none() {
        assert_eq!(versions.matches(&format!("gitVersion: {pinned}")).count(), 2, "{versions}");
    }
}

#[test]
fn a_namespace_is_created_filled_and_deleted() {
    output(SHARED.kubectl().args(["create", "namespace", "short"])).unwrap();
    output(SHARED.kubectl().args(["create", "secret", "generic", "something", "--namespace=short"])).unwrap();
    output(SHARED.kubectl().args(["delete", "namespace", "short", "--wait", "--timeout=30s"])).unwrap();
    let refused = output(SHARED.kubectl().args(["get", "namespace", "short"])).unwrap_err();
    assert!(refused.contains("NotFound"), "{refused}");
}

#[test]
fn garbage_is_collected_when_its_owner_goes() {
    let kubectl = |args: &[&str]| output(SHARED.kubectl().args(args));
    kubectl(&["create", "configmap", "owner"]).unwrap();
    let uid = kubectl(&["get", "configmap", "owner", "--output=jsonpath={.metadata.uid}"]).unwrap();
    kubectl(&["create", "configmap", "owned"]).unwrap();
    let owner = format!(r#"[{{"apiVersion":"v1","kind":"ConfigMap","name":"owner","uid":"{uid}"}}]"#);
    kubectl(&["patch", "configmap", "owned", "--patch", &format!(r#"{{"metadata":{{"ownerReferences":{owner}}}}}"#)])
        .unwrap();
    kubectl(&["delete", "configmap", "owner"]).unwrap();
    kubectl(&["wait", "--for=delete", "configmap/owned", "--timeout=30s"]).unwrap();
}

#[test]
fn every_user_is_known_by_name_and_may_do_nothing_until_a_role_says_so() {
    for user in USERS {
        let me =
            output(SHARED.kubectl_as(user).args(["auth", "whoami", "--output=jsonpath={.status.userInfo}"])).unwrap();
        assert!(me.contains(&format!(r#""username":"{user}""#)), "{me}");
        assert!(me.contains(r#""groups":["system:authenticated"]"#), "{me}");
    }
    let get = || output(SHARED.kubectl_as("viewer").args(["get", "pods", "--namespace=kube-system"]));
    assert!(get().unwrap_err().contains(r#"User "viewer" cannot list resource "pods""#));
    let bind = ["create", "rolebinding", "viewer", "--clusterrole=view", "--user=viewer", "--namespace=kube-system"];
    output(SHARED.kubectl().args(bind)).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while let Err(refused) = get() {
        assert!(Instant::now() < deadline, "{refused}");
    }
}

#[test]
fn a_service_account_gets_a_token_that_the_api_server_takes() {
    let token = output(SHARED.kubectl().args(["create", "token", "default"])).unwrap();
    let mut whoami = SHARED.kubectl();
    // The admin's kubeconfig has a token of its own, which would win.
    let config = std::fs::read_to_string(SHARED.kubeconfig()).unwrap();
    let (before, _) = config.split_once("token: ").unwrap();
    let kubeconfig = SHARED.folder().join("default.kubeconfig");
    std::fs::write(&kubeconfig, format!("{before}token: '{token}'}}\n")).unwrap();
    whoami.env("KUBECONFIG", kubeconfig);
    let me = output(whoami.args(["auth", "whoami"])).unwrap();
    assert!(me.contains("system:serviceaccount:default:default"), "{me}");
}

#[test]
fn the_audit_log_has_one_line_a_request() {
    let refused =
        output(SHARED.kubectl_as("editor").args(["get", "--raw", "/api/v1/namespaces/default/secrets/nothing"]));
    assert!(refused.unwrap_err().contains("Forbidden"));
    // A second line, were there one, would come right behind the first.
    sleep(Duration::from_secs(1));
    let log = std::fs::read_to_string(SHARED.audit_log().unwrap()).unwrap();
    let lines: Vec<_> = log.lines().filter(|line| line.contains("secrets/nothing")).collect();
    assert_eq!(lines.len(), 1);
    for part in [r#""stage":"ResponseComplete""#, r#""verb":"get""#, r#""username":"editor""#, r#""code":403"#] {
        assert!(lines[0].contains(part), "{part} not in {}", lines[0]);
    }
}

#[test]
fn an_outage_keeps_data_and_port() {
    let mut control_plane = ControlPlane::start(Settings::default()).unwrap();
    assert_eq!(control_plane.audit_log(), None);
    output(control_plane.kubectl().args(["create", "configmap", "kept"])).unwrap();
    let (address, before) = (address(&control_plane), control_plane.pid(Component::ApiServer));

    control_plane.stop_api_server();
    // A client on the port, as may happen by chance: the restart outlasts it.
    let on_port = TcpListener::bind(&address).unwrap();
    let client = spawn(move || {
        sleep(Duration::from_secs(2));
        drop(on_port);
    });
    control_plane.restart_api_server().unwrap();
    client.join().unwrap();
    assert_ne!(control_plane.pid(Component::ApiServer), before);
    output(control_plane.kubectl().args(["get", "configmap", "kept"])).unwrap();

    control_plane.pause(Component::ApiServer).unwrap();
    TcpStream::connect(&address).unwrap();
    output(control_plane.kubectl().args(["get", "configmap", "kept", "--request-timeout=1s"])).unwrap_err();
    control_plane.resume(Component::ApiServer).unwrap();
    output(control_plane.kubectl().args(["get", "configmap", "kept"])).unwrap();

    // The controllers are back as well.
    output(control_plane.kubectl().args(["create", "namespace", "short"])).unwrap();
    output(control_plane.kubectl().args(["delete", "namespace", "short", "--wait", "--timeout=60s"])).unwrap();

    control_plane.pause(Component::ApiServer).unwrap();
    let folder = control_plane.folder().to_owned();
    drop(control_plane);
    TcpStream::connect(&address).unwrap_err();
    assert_eq!(folder.exists(), std::env::var_os("KEEP_CONTROLPLANE_LOGS").is_some());
}

#[test]
fn a_failed_start_shows_the_end_of_the_log() {
    let extra_controllers = vec!["no-such-controller".to_owned()];
    let error = ControlPlane::start(Settings { extra_controllers, ..Settings::default() }).err().unwrap().to_string();
    assert!(error.starts_with("kube-controller-manager ended; the end of /"), "{error}");
    assert!(error.contains(r#"no-such-controller\" is not in the list of known controllers"#), "{error}");
    let (_, log) = error.lines().next().unwrap().split_once("the end of ").unwrap();
    let log = Path::new(log.trim_end_matches(':'));
    assert!(std::fs::read_to_string(log).unwrap().contains("no-such-controller"));
    std::fs::remove_dir_all(log.parent().unwrap()).unwrap();
}
