//! The program as a whole, on a real control plane: its start, its end, what it is permitted, and outages.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout)]

mod support;

use std::{
    collections::BTreeSet,
    fs,
    net::TcpListener,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use accesskey_operator::api::manifests;
use controlplane::{Component, Settings};
use serde::Deserialize;
use serde_json::Value;
use support::{Cluster, access_key, eventually, repository, subuser, text};

const LEADER: &str = "accesskey_operator_leader";

/// One run from the very beginning through everything that the operator does.
#[test]
fn it_waits_for_its_crds_and_then_uses_each_of_its_permissions() {
    let cluster = Cluster::bare(Settings { audit: true, ..Settings::default() });
    let operator = cluster.operator_logging("info,kube=warn", "operator", &[]);
    eventually("it waits for its CRDs", Duration::from_secs(20), || operator.logged().contains("waiting for the CRD"));
    std::thread::sleep(Duration::from_secs(8));
    assert_eq!(operator.get("/livez"), (200, "ok\n".into()));
    assert_eq!(operator.get("/readyz"), (503, "waiting for accesskeys, subusers\n".into()));
    let log = operator.logged();
    assert_eq!(log.matches("install it with `accesskey-operator crds | kubectl apply -f -`").count(), 2, "{log}");
    assert!(log.lines().count() < 10, "{log}");
    let tries = audited(&cluster, "operator").iter().filter(|request| request.code == 404).count();
    println!("{tries} tries to list what does not exist");
    assert!(tries < 30, "{tries} tries");
    cluster.install();
    eventually("it is ready", Duration::from_secs(20), || operator.get("/readyz") == (200, "ok\n".into()));

    let ns = "all";
    cluster.namespace(ns);
    let keys = ["lost", "changed"].map(|key| access_key(key, "bot", "")).concat();
    cluster.apply_in(
        ns,
        &(subuser("bot", "")
            + &keys
            + &subuser("brief", "")
            + &access_key("forced", "brief", "deletionPolicy: DisableFirst")),
    );
    for key in ["lost", "changed", "forced"] {
        cluster.becomes(ns, &format!("accesskey/{key}"), "Ready", "True/Issued");
    }
    loses_and_changes(&cluster, ns, "lost", "changed");
    cluster.kubectl(&format!("-n {ns} delete accesskey forced"));
    cluster.kubectl(&format!("-n {ns} delete subuser brief"));
    assert!(cluster.refused(&format!("-n {ns} delete accesskey lost")).contains("only a disabled key"));
    cluster.kubectl(&format!("delete namespace {ns}"));
    parses(&operator.get("/metrics").1);
    assert!(operator.terminate(), "status 0");

    let requests = audited(&cluster, "operator");
    let refused: Vec<&Request> = requests.iter().filter(|request| request.code == 403).collect();
    assert!(refused.iter().all(|request| request.is_into_terminating_namespace()), "{refused:#?}");
    let used: BTreeSet<Permission> = requests.iter().map(|request| request.permission.clone()).collect();
    let granted = granted("examples/operator/rbac.yaml");
    let unused: Vec<_> = granted.difference(&used).collect();
    assert!(unused.is_empty(), "granted by examples/operator/rbac.yaml and never used: {unused:#?}");
}

#[test]
fn one_replica_works_at_a_time_and_hands_over_when_told_to_end() {
    let cluster = Cluster::start(Settings::default());
    let replica = |user, name: &str| cluster.operator(user, &[&format!("--identity={name}")]);
    let holder = || cluster.field("default", "lease/accesskey-operator", ".spec.holderIdentity");
    let one = replica("operator", "one");
    eventually("one leads", Duration::from_secs(20), || one.metric(LEADER) > 0.5);
    let standby = replica("operator-2", "standby");
    assert_eq!(standby.get("/readyz").0, 200, "a standby is of use");
    eventually("it asks for the lease", Duration::from_secs(20), || standby.logged().contains("attempting to acquire"));
    let told = Instant::now();
    assert!(standby.terminate(), "a standby ends with status 0");
    assert!(told.elapsed() < Duration::from_secs(2), "at once, not after {:?}", told.elapsed());
    assert_eq!(holder(), "one", "and leaves the lease alone");

    let two = replica("operator-2", "two");
    let ns = "handover";
    cluster.namespace(ns);
    let bots = (0..50).map(|bot| {
        let bot = format!("bot-{bot}");
        subuser(&bot, "") + &access_key(&format!("{bot}-blue"), &bot, "") + &access_key(&format!("{bot}-red"), &bot, "")
    });
    let manifest: String = bots.collect();
    let issued = || cluster.kubectl(&format!("-n {ns} get secrets -o name")).lines().count();
    let (took, at_the_end) = std::thread::scope(|scope| {
        let applied = scope.spawn(|| cluster.apply_in(ns, &manifest));
        eventually("some are issued", Duration::from_secs(30), || issued() >= 10);
        assert!(two.metric(LEADER) < 0.5, "the other one does nothing");
        let told = Instant::now();
        assert!(one.terminate(), "the leader ends with status 0");
        let (took, at_the_end) = (told.elapsed(), issued());
        applied.join().unwrap();
        (took, at_the_end)
    });
    let given_back = Instant::now();
    assert!(took < Duration::from_secs(5), "it took {took:?} to end");
    assert!(["", "two"].contains(&holder().as_str()), "the lease is given back");
    eventually("two leads", Duration::from_secs(30), || two.metric(LEADER) > 0.5);
    println!(
        "the leader ended after {took:?}; the standby took over {:?} later, at {at_the_end} Secrets",
        given_back.elapsed()
    );
    let ready = || {
        let path = r#"jsonpath={range.items[*]}{.status.conditions[?(@.type=="Ready")].reason}{"\n"}{end}"#;
        cluster
            .kubectl(&format!("-n {ns} get accesskeys -o {path}"))
            .lines()
            .filter(|reason| *reason == "Issued")
            .count()
    };
    eventually("all 100 keys are Ready", Duration::from_secs(30), || ready() == 100);
    assert_eq!(issued(), 100, "one Secret a key, none left over");
    for ledger in cluster
        .kubectl(&format!(
            "-n {ns} get subusers -o jsonpath={{range.items[*]}}{{.status.keys[*].accessKey}}{{\"\\n\"}}{{end}}"
        ))
        .lines()
    {
        assert_eq!(ledger.split(' ').count(), 2, "{ledger}");
    }
}

#[test]
fn with_roles_only_it_serves_its_namespaces_and_looks_nowhere_else() {
    let cluster = Cluster::start(Settings { audit: true, ..Settings::default() });
    let role = fs::read_to_string(repository("examples/operator/rbac-namespaced.yaml")).unwrap();
    let teams = ["team-a", "team-b"];
    for ns in ["team-a", "team-b", "team-c"] {
        cluster.namespace(ns);
        let key = access_key("key", "bot", "") + &access_key("brief", "bot", "deletionPolicy: DisableFirst");
        cluster.apply_in(ns, &(subuser("bot", "") + &key));
    }
    for ns in teams {
        cluster.apply(&role.replace("team-a", ns));
        cluster
            .kubectl(&format!("-n {ns} create rolebinding accesskey-operator --role=accesskey-operator --user=bench"));
    }
    let arguments = ["--leader-election=false", "--namespace=team-a", "--namespace=team-b"];
    let operator = cluster.operator("bench", &arguments);
    for ns in teams {
        cluster.becomes(ns, "accesskey/key", "Ready", "True/Issued");
        cluster.becomes(ns, "accesskey/brief", "Ready", "True/Issued");
        cluster.kubectl(&format!("-n {ns} delete accesskey brief"));
        assert!(cluster.refused(&format!("-n {ns} delete accesskey key")).contains("only a disabled key"));
    }
    assert_eq!(cluster.field("team-c", "accesskey/key", ".status.conditions"), "");
    loses_and_changes(&cluster, "team-a", "key", "key");
    // The deletion of a namespace takes the operator's rights away too, unless somebody holds them back.
    let rights = ["role/accesskey-operator", "rolebinding/accesskey-operator"];
    let hold = |finalizers: &str| {
        for right in rights {
            cluster.kubectl(&format!(
                r#"-n team-b patch {right} --type=merge -p {{"metadata":{{"finalizers":{finalizers}}}}}"#
            ));
        }
    };
    hold(r#"["example.com/hold"]"#);
    let deleted = Instant::now();
    cluster.kubectl("delete namespace team-b --wait=false");
    cluster.goes("team-b", "accesskey/key");
    cluster.goes("team-b", "subuser/bot");
    println!("the keys of the namespace were gone after {:?}", deleted.elapsed());
    let requests = audited(&cluster, "bench");
    hold("null");
    cluster.kubectl("wait --for=delete namespace/team-b --timeout=40s");
    cluster.apply_in("team-a", &(subuser("late", "") + &access_key("late", "late", "")));
    cluster.becomes("team-a", "accesskey/late", "Ready", "True/Issued");
    assert!(operator.terminate(), "status 0");
    let refused: Vec<&Request> = requests.iter().filter(|request| request.code == 403).collect();
    assert!(refused.iter().all(|request| request.is_into_terminating_namespace()), "{refused:#?}");
    let used: BTreeSet<Permission> = requests.into_iter().map(|request| request.permission).collect();
    let granted = granted("examples/operator/rbac-namespaced.yaml");
    let unused: Vec<_> = granted.difference(&used).collect();
    assert!(unused.is_empty(), "granted by examples/operator/rbac-namespaced.yaml and never used: {unused:#?}");
    let all = audited(&cluster, "bench");
    let elsewhere: Vec<&Request> = all.iter().filter(|request| !teams.contains(&request.namespace.as_str())).collect();
    assert!(elsewhere.is_empty(), "{elsewhere:#?}");
}

#[test]
fn it_survives_an_api_server_that_goes_or_freezes() {
    let mut cluster = Cluster::start(Settings { audit: true, ..Settings::default() });
    let operator = cluster.operator("operator", &[]);
    let ns = "outage";
    cluster.namespace(ns);
    cluster.apply_in(ns, &(subuser("bot", "") + &access_key("before", "bot", "") + &subuser("other", "")));
    cluster.becomes(ns, "accesskey/before", "Ready", "True/Issued");

    cluster.control_plane.stop_api_server();
    std::thread::sleep(Duration::from_secs(8));
    assert_eq!((operator.get("/livez").0, operator.get("/readyz").0), (200, 200), "no restart would help");
    let tries =
        operator.logged().matches("watch interrupted").count() + operator.logged().matches("watch failed").count();
    println!("{tries} failures of watches in 8 s");
    assert!(tries < 60, "{tries} tries");
    let asked = audited(&cluster, "operator").len();
    cluster.control_plane.restart_api_server().unwrap();
    let back = Instant::now();
    cluster.apply_in(ns, &access_key("during", "bot", ""));
    cluster.becomes(ns, "accesskey/during", "Ready", "True/Issued");
    println!("a key was issued {:?} after the API server was back", back.elapsed());
    let asked = audited(&cluster, "operator").len() - asked;
    assert!(asked < 60, "{asked} requests after the outage");

    // Longer than the deadline of a request.
    let asked = audited(&cluster, "operator").len();
    cluster.control_plane.pause(Component::ApiServer).unwrap();
    let manifest = access_key("frozen", "other", "");
    std::thread::scope(|scope| {
        let applied = scope.spawn(|| cluster.apply_in(ns, &manifest));
        std::thread::sleep(Duration::from_secs(12));
        cluster.control_plane.resume(Component::ApiServer).unwrap();
        applied.join().unwrap();
    });
    cluster.becomes(ns, "accesskey/frozen", "Ready", "True/Issued");
    let asked = audited(&cluster, "operator").len() - asked;
    println!("{asked} requests around the freeze");
    assert!(asked < 60, "{asked} requests around the freeze");

    cluster.control_plane.pause(Component::ApiServer).unwrap();
    let told = Instant::now();
    let ended = operator.terminate();
    println!("it ended after {:?} while nothing answered", told.elapsed());
    cluster.control_plane.resume(Component::ApiServer).unwrap();
    assert!(ended, "SIGTERM ends it with status 0 although nothing answers");
}

#[test]
fn the_command_line_says_what_it_is_for_and_ends_in_one_line() {
    let run = |arguments: &[&str]| -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_accesskey-operator"));
        command.args(arguments).stdin(Stdio::null()).env_remove("KUBECONFIG").env("HOME", "/nonexistent");
        command.env_remove("KUBERNETES_SERVICE_HOST").output().unwrap()
    };
    let help = run(&["--help"]);
    assert!(help.status.success());
    assert!(["run", "crds"].iter().all(|command| text(&help).contains(command)), "{}", text(&help));
    let help = text(&run(&["run", "--help"]));
    for option in ["--namespace", "--leader-election", "--admin-address", "--kubeconfig", "--context", "--identity"] {
        assert!(help.contains(option), "{option} is not in {help}");
    }
    assert!(text(&run(&["--version"])).contains(env!("CARGO_PKG_VERSION")));
    for usage in [&[][..], &["walk"], &["run", "--admin-address=nowhere"], &["run", "--leader-election=perhaps"]] {
        assert_eq!(run(usage).status.code(), Some(2), "{usage:?}");
    }

    let failed = |arguments: &[&str], way_out: &str| {
        let output = run(arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.lines().count() == 1 && said.contains(way_out), "{said}");
        assert!(output.stdout.is_empty());
    };
    failed(&["run", "--admin-address=127.0.0.1:0"], "set KUBECONFIG");
    failed(&["run", "--kubeconfig=/nonexistent/config"], "/nonexistent/config");
    let kubeconfig = std::env::temp_dir().join(format!("accesskey-operator-{}.kubeconfig", std::process::id()));
    let cluster = "clusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}]\nusers: [{name: u, user: {}}]";
    let context = "contexts: [{name: c, context: {cluster: c, user: u}}]\ncurrent-context: c";
    fs::write(&kubeconfig, format!("apiVersion: v1\nkind: Config\n{cluster}\n{context}\n")).unwrap();
    let kubeconfig_argument = format!("--kubeconfig={}", kubeconfig.display());
    let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = format!("--admin-address={}", taken.local_addr().unwrap());
    failed(&["run", &kubeconfig_argument, &address], "--admin-address");
    failed(&["run", &kubeconfig_argument, "--context=other"], "other");
    fs::remove_file(&kubeconfig).unwrap();

    let crds = run(&["crds"]);
    assert!(crds.status.success() && crds.stderr.is_empty());
    let files = manifests().unwrap().into_iter().map(|(name, _)| repository("crds").join(name));
    let mut joined = String::new();
    for file in files {
        joined += &[
            "---
",
            fs::read_to_string(file).unwrap().trim_end(),
            "
",
        ]
        .concat();
    }
    assert_eq!(String::from_utf8(crds.stdout).unwrap(), joined, "the files in crds/, joined");
    let kinds: Vec<String> = documents(&joined).iter().map(|each| each["kind"].as_str().unwrap().to_owned()).collect();
    assert_eq!(kinds.iter().filter(|kind| *kind == "CustomResourceDefinition").count(), 2, "{kinds:?}");
}

/// Makes the operator look for a Secret itself, and write one anew.
fn loses_and_changes(cluster: &Cluster, ns: &str, lost: &str, changed: &str) {
    let id = || cluster.field(ns, &format!("accesskey/{lost}"), ".status.accessKeyID");
    let first = id();
    cluster.kubectl(&format!("-n {ns} delete secret {lost}"));
    eventually("a new pair for the lost one", Duration::from_secs(20), || id() != first);
    cluster.becomes(ns, &format!("accesskey/{lost}"), "Ready", "True/Issued");
    let env = r#"{"spec":{"secret":{"formats":["Env"]}}}"#;
    cluster.kubectl(&format!("-n {ns} patch accesskey {changed} --type=merge -p {env}"));
    eventually("the Secret is laid out anew", Duration::from_secs(20), || {
        !cluster.field(ns, &format!("secret/{changed}"), ".data.ACCESS_KEY_ID").is_empty()
    });
}

/// Group, resource with subresource, and verb.
type Permission = (String, String, String);

/// A request that the API server has answered.
#[derive(Debug)]
struct Request {
    permission: Permission,
    namespace: String,
    code: i64,
    reason: String,
}

impl Request {
    /// Whether it was refused because nothing is created any more in a namespace that goes.
    fn is_into_terminating_namespace(&self) -> bool {
        self.permission.2 == "create" && self.reason.contains("being terminated")
    }
}

/// All requests of a user, a moment later; a watch that has ended counts twice.
fn audited(cluster: &Cluster, user: &str) -> Vec<Request> {
    std::thread::sleep(Duration::from_millis(300));
    let log = fs::read_to_string(cluster.control_plane.audit_log().unwrap()).unwrap();
    let events = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let ours = events.filter(|event| event["user"]["username"] == user);
    ours.map(|event| {
        let field = |path: &str| event.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
        let subresource = Some(field("/objectRef/subresource")).filter(|subresource| !subresource.is_empty());
        let resource = subresource.into_iter().fold(field("/objectRef/resource"), |all, sub| format!("{all}/{sub}"));
        Request {
            permission: (field("/objectRef/apiGroup"), resource, field("/verb")),
            namespace: field("/objectRef/namespace"),
            code: event["responseStatus"]["code"].as_i64().unwrap_or(0),
            reason: field("/responseStatus/message"),
        }
    })
    .collect()
}

fn granted(file: &str) -> BTreeSet<Permission> {
    let words = |list: &Value| -> Vec<String> {
        list.as_array().unwrap().iter().map(|word| word.as_str().unwrap().to_owned()).collect()
    };
    let mut granted = BTreeSet::new();
    for rule in documents(&fs::read_to_string(repository(file)).unwrap())
        .iter()
        .flat_map(|role| role["rules"].as_array().unwrap())
    {
        for group in words(&rule["apiGroups"]) {
            for resource in words(&rule["resources"]) {
                granted.extend(words(&rule["verbs"]).into_iter().map(|verb| (group.clone(), resource.clone(), verb)));
            }
        }
    }
    granted
}

fn documents(yaml: &str) -> Vec<Value> {
    let all = serde_yaml::Deserializer::from_str(yaml).map(|document| Value::deserialize(document).unwrap());
    all.filter(|document| !document.is_null()).collect()
}

/// OpenMetrics: HELP and TYPE before the samples of a name, every name ours, `# EOF` last.
#[track_caller]
fn parses(metrics: &str) {
    assert!(metrics.ends_with("# EOF\n"), "{metrics}");
    let mut described = BTreeSet::new();
    for line in metrics.lines().filter(|line| *line != "# EOF") {
        if let Some(comment) = line.strip_prefix("# ") {
            let mut words = comment.splitn(3, ' ');
            let (keyword, name, rest) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
            assert!(["HELP", "TYPE", "UNIT"].contains(&keyword) && !rest.is_empty(), "{line}");
            described.insert((keyword.to_owned(), name.to_owned()));
        } else {
            let (sample, value) = line.rsplit_once(' ').unwrap();
            let name = sample.split('{').next().unwrap();
            let family =
                ["_total", "_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
            assert!(
                ["HELP", "TYPE"].iter().all(|word| described.contains(&((*word).to_owned(), family.to_owned()))),
                "{line}"
            );
            assert!(value.parse::<f64>().is_ok(), "{line}");
        }
    }
    assert!(described.iter().all(|(_, name)| name.starts_with("accesskey_operator_")), "{described:?}");
    for name in ["reconciles", "reconcile_duration_seconds", "api_requests", "events_dropped", "leader"] {
        let name = format!("accesskey_operator_{name}");
        assert!(described.contains(&("TYPE".to_owned(), name.clone())), "{name} is not in {metrics}");
    }
}
