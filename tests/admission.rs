//! What the API server refuses by itself: the schemas' rules and the admission policies, without an operator.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::{
    collections::BTreeSet,
    process::{Command, Output},
    sync::LazyLock,
    time::Duration,
};

use accesskey_operator::api::{access_key_crd, manifests, subuser_crd};
use controlplane::{Component, Settings};
use serde_json::{Value, json};
use support::{Cluster, access_key, eventually, subuser, text};

static CLUSTER: LazyLock<Cluster> = LazyLock::new(|| Cluster::start(Settings::default()));

/// A schema rule - where it stands, and its keyword or, for one in CEL, its message - with a value that it admits and
/// one that it refuses, each merged into a minimal spec, and what the refusal says.
/// `<x*3>` is `xxx`, `<[]*3>` a list of that length, `<{}*3>` a map.
const RULES: &[(&str, &str, &str, &str)] = &[
    ("Subuser required spec", "{}", "~", "spec: Required value"),
    ("Subuser spec.displayName maxLength", "displayName: <x*128>", "displayName: <x*129>", "may not be more than 128"),
    ("Subuser spec.roles maxItems", "roles: <[]*32>", "roles: <[]*33>", "must have at most 32 items"),
    ("Subuser spec.roles x-kubernetes-list-type", "roles: [a, b]", "roles: [a, a]", "spec.roles[1]: Duplicate value"),
    ("Subuser spec.roles[] minLength", "roles: [a]", "roles: ['']", "at least 1 chars long"),
    ("Subuser spec.roles[] maxLength", "roles: [<x*63>]", "roles: [<x*64>]", "may not be more than 63"),
    ("Subuser spec.roles[] pattern", "roles: [a-b.c1]", "roles: [Admin]", "should match '^[a-z0-9]"),
    (
        "Subuser spec.maxKeyLifetime pattern",
        "maxKeyLifetime: 1h30m",
        "maxKeyLifetime: 90d",
        "should match '^([0-9]{1,7}h)?",
    ),
    ("Subuser spec.maxKeyLifetime minLength", "maxKeyLifetime: 9h", "maxKeyLifetime: ''", "at least 2 chars long"),
    (
        "Subuser spec.maxKeyLifetime maxLength",
        "maxKeyLifetime: 1234567h1234567m1234567s",
        "maxKeyLifetime: <9*24>h",
        "may not be more than 24",
    ),
    (
        "Subuser spec.maxKeyLifetime: must be longer than zero, such as 720h",
        "maxKeyLifetime: 1s",
        "maxKeyLifetime: 0h",
        "must be longer than zero, such as 720h",
    ),
    ("Subuser spec.clusterQuota minimum", "clusterQuota: 0", "clusterQuota: -1", "greater than or equal to 0"),
    (
        "Subuser spec.clusterQuota maximum",
        "clusterQuota: 1000000",
        "clusterQuota: 1000001",
        "less than or equal to 1000000",
    ),
    ("AccessKey required spec", "{}", "~", "spec: Required value"),
    ("AccessKey spec required subuserRef", "{}", "subuserRef: ~", "spec.subuserRef: Required value"),
    ("AccessKey spec.subuserRef required name", "{}", "subuserRef: {name: ~}", "spec.subuserRef.name: Required value"),
    (
        "AccessKey spec.subuserRef.name minLength",
        "subuserRef: {name: a}",
        "subuserRef: {name: ''}",
        "at least 1 chars long",
    ),
    (
        "AccessKey spec.subuserRef.name maxLength",
        "subuserRef: {name: <x*253>}",
        "subuserRef: {name: <x*254>}",
        "may not be more than 253",
    ),
    ("AccessKey spec.subuserRef.name pattern", "subuserRef: {name: a.b-c}", "subuserRef: {name: a/b}", "should match"),
    (
        "AccessKey spec.description maxLength",
        "description: <x*1024>",
        "description: <x*1025>",
        "may not be more than 1024",
    ),
    ("AccessKey spec.role minLength", "role: a", "role: ''", "at least 1 chars long"),
    ("AccessKey spec.role maxLength", "role: <x*63>", "role: <x*64>", "may not be more than 63"),
    ("AccessKey spec.role pattern", "role: a-b.c1", "role: a:b", "should match '^[a-z0-9]"),
    (
        "AccessKey spec.expiresAt format",
        "expiresAt: 2099-01-01T00:00:00Z",
        "expiresAt: tomorrow",
        "must be of type date-time",
    ),
    ("AccessKey spec.ttl pattern", "ttl: 720h", "ttl: 1.5h", "should match '^([0-9]{1,7}h)?"),
    ("AccessKey spec.ttl minLength", "ttl: 9s", "ttl: ''", "at least 2 chars long"),
    ("AccessKey spec.ttl maxLength", "ttl: 1234567h1234567m1234567s", "ttl: <9*24>h", "may not be more than 24"),
    (
        "AccessKey spec.ttl: must be longer than zero, such as 720h",
        "ttl: 0h1s",
        "ttl: 0h0m0s",
        "must be longer than zero, such as 720h",
    ),
    (
        "AccessKey spec: set expiresAt or ttl, not both",
        "ttl: 1h",
        "{ttl: 1h, expiresAt: 2099-01-01T00:00:00Z}",
        "set expiresAt or ttl, not both",
    ),
    ("AccessKey spec.clusterQuota minimum", "clusterQuota: 0", "clusterQuota: -1", "greater than or equal to 0"),
    ("AccessKey spec.clusterQuota maximum", "clusterQuota: 100", "clusterQuota: 101", "less than or equal to 100"),
    (
        "AccessKey spec.deletionPolicy enum",
        "deletionPolicy: DisableFirst",
        "deletionPolicy: Orphan",
        "supported values: \"RequireDisabled\", \"DisableFirst\"",
    ),
    ("AccessKey spec.secret.name minLength", "secret: {name: a}", "secret: {name: ''}", "at least 1 chars long"),
    (
        "AccessKey spec.secret.name maxLength",
        "secret: {name: <x*253>}",
        "secret: {name: <x*254>}",
        "may not be more than 253",
    ),
    ("AccessKey spec.secret.name pattern", "secret: {name: a.b-c}", "secret: {name: a_b}", "should match"),
    (
        "AccessKey spec.secret.labels maxProperties",
        "secret: {labels: <{}*32>}",
        "secret: {labels: <{}*33>}",
        "at most 32",
    ),
    (
        "AccessKey spec.secret.labels{} maxLength",
        "secret: {labels: {app: <x*63>}}",
        "secret: {labels: {app: <x*64>}}",
        "may not be more than 63",
    ),
    (
        "AccessKey spec.secret.labels{} pattern",
        "secret: {labels: {app: a_B.c-1, empty: ''}}",
        "secret: {labels: {app: two words}}",
        "should match '^([A-Za-z0-9]",
    ),
    (
        "AccessKey spec.secret.labels: accesskey.dev/* and app.kubernetes.io/managed-by are the operator's own",
        "secret: {labels: {app.kubernetes.io/name: ci}}",
        "secret: {labels: {app.kubernetes.io/managed-by: me}}",
        "are the operator's own",
    ),
    (
        "AccessKey spec.secret.annotations maxProperties",
        "secret: {annotations: <{}*32>}",
        "secret: {annotations: <{}*33>}",
        "at most 32",
    ),
    (
        "AccessKey spec.secret.annotations{} maxLength",
        "secret: {annotations: {a: <x*4096>}}",
        "secret: {annotations: {a: <x*4097>}}",
        "may not be more than 4096",
    ),
    (
        "AccessKey spec.secret.annotations: annotations in accesskey.dev/ are the operator's own",
        "secret: {annotations: {example.com/accesskey.dev: x}}",
        "secret: {annotations: {accesskey.dev/revision: '7'}}",
        "annotations in accesskey.dev/ are the operator's own",
    ),
    (
        "AccessKey spec.secret.keys: id and secret need different data keys",
        "secret: {keys: {id: a, secret: b}}",
        "secret: {keys: {id: a, secret: a}}",
        "id and secret need different data keys",
    ),
    (
        "AccessKey spec.secret.keys: this data key is used by a format: ask for the format instead",
        "secret: {keys: {id: tokens}}",
        "secret: {keys: {id: token}}",
        "this data key is used by a format: ask for the format instead",
    ),
    (
        "AccessKey spec.secret.keys.id minLength",
        "secret: {keys: {id: a}}",
        "secret: {keys: {id: ''}}",
        "at least 1 chars",
    ),
    (
        "AccessKey spec.secret.keys.id maxLength",
        "secret: {keys: {id: <x*253>}}",
        "secret: {keys: {id: <x*254>}}",
        "may not be more than 253",
    ),
    (
        "AccessKey spec.secret.keys.id pattern",
        "secret: {keys: {id: a_B.c-1}}",
        "secret: {keys: {id: a/b}}",
        "should match",
    ),
    (
        "AccessKey spec.secret.keys.secret minLength",
        "secret: {keys: {secret: a}}",
        "secret: {keys: {secret: ''}}",
        "at least 1 chars",
    ),
    (
        "AccessKey spec.secret.keys.secret maxLength",
        "secret: {keys: {secret: <x*253>}}",
        "secret: {keys: {secret: <x*254>}}",
        "may not be more than 253",
    ),
    (
        "AccessKey spec.secret.keys.secret pattern",
        "secret: {keys: {secret: a_B.c-1}}",
        "secret: {keys: {secret: a b}}",
        "should match",
    ),
    (
        "AccessKey spec.secret.formats maxItems",
        "secret: {formats: [AWS, Tencent, Env, CSV, JSON, Token]}",
        "secret: {formats: [AWS, Tencent, Env, CSV, JSON, Token, AWS]}",
        "must have at most 6 items",
    ),
    (
        "AccessKey spec.secret.formats x-kubernetes-list-type",
        "secret: {formats: [AWS, CSV]}",
        "secret: {formats: [AWS, AWS]}",
        "Duplicate value: \"AWS\"",
    ),
    (
        "AccessKey spec.secret.formats[] enum",
        "secret: {formats: [Token]}",
        "secret: {formats: [Bogus]}",
        "supported values: \"AWS\", \"Tencent\", \"Env\", \"CSV\", \"JSON\", \"Token\"",
    ),
];

/// Rules about a change: the rule, the spec before, changes that it admits, changes that it refuses.
const CHANGES: &[(&str, &str, &[&str], &[&str])] = &[
    (
        "AccessKey spec.subuserRef: subuserRef is immutable: create another AccessKey instead",
        "{}",
        &["description: other", "subuserRef: {name: bot}"],
        &["subuserRef: {name: other}"],
    ),
    (
        "AccessKey spec: secret.name is immutable: create another AccessKey instead",
        "secret: {name: given}",
        &["secret: {labels: {app: ci}}", "secret: {name: given}"],
        &["secret: {name: other}", "secret: {name: ~}", "secret: ~"],
    ),
    (
        "AccessKey spec: secret.name is immutable: create another AccessKey instead",
        "{}",
        &["secret: {}", "secret: {formats: [CSV]}"],
        &["secret: {name: given}"],
    ),
];

/// Rules about what only the operator writes: the rule, a status that it admits, one that it refuses.
const STATUS: &[(&str, &str, &str, &str)] = &[
    (
        "Subuser status.keys maxItems",
        "keys: [{accessKey: a, uid: a, revision: 1}, {accessKey: a, uid: a, revision: 2}]",
        "keys: [{accessKey: a, uid: a, revision: 1}, {accessKey: b, uid: b, revision: 1}, {accessKey: c, uid: c, revision: 1}]",
        "must have at most 2 items",
    ),
    (
        "Subuser status.keys x-kubernetes-list-type",
        "keys: [{accessKey: a, uid: a, revision: 1}, {accessKey: b, uid: b, revision: 1}]",
        "keys: [{accessKey: a, uid: a, revision: 1}, {accessKey: b, uid: a, revision: 1}]",
        "Duplicate value",
    ),
];

#[test]
fn every_schema_rule_admits_what_it_should_and_refuses_the_rest_with_a_reason() {
    let cluster = &*CLUSTER;
    let ns = "rules";
    cluster.namespace(ns);
    let object = |name: &str, rule: &str, value: &str| {
        let (kind, _) = rule.split_once(' ').unwrap();
        let minimal = if kind == "AccessKey" { json!({ "subuserRef": { "name": "bot" } }) } else { json!({}) };
        let spec = merged(minimal, &read(value));
        json!({ "apiVersion": "accesskey.dev/v1alpha1", "kind": kind, "metadata": { "name": name }, "spec": spec })
    };
    let create = |objects: Vec<Value>| {
        let list: Vec<String> = objects.iter().map(Value::to_string).collect();
        cluster.try_apply(&["-n", ns, "create", "--dry-run=server", "-f", "-"], &list.join("\n---\n"))
    };
    let admitted = RULES.iter().enumerate().map(|(row, (rule, good, ..))| object(&format!("row-{row}"), rule, good));
    let answer = create(admitted.collect());
    assert!(answer.status.success(), "{}", text(&answer));

    let refused = RULES.iter().enumerate().map(|(row, (rule, _, bad, _))| object(&format!("row-{row}"), rule, bad));
    let answer = text(&create(refused.collect()));
    for (row, (rule, _, bad, says)) in RULES.iter().enumerate() {
        let line = answer.lines().find(|line| line.contains(&format!("\"row-{row}\"")));
        let line = line.unwrap_or_else(|| panic!("{rule}: {bad} was not refused: {answer}"));
        assert!(line.contains(says), "{rule}: {bad} should be refused with {says:?}: {line}");
    }
}

#[test]
fn what_is_immutable_stays_as_it_was_created() {
    let cluster = &*CLUSTER;
    let ns = "immutable";
    cluster.namespace(ns);
    let patch = |name: &str, change: &str| {
        let patch = json!({ "spec": read(change) }).to_string();
        cluster.run(&format!("-n {ns} patch accesskey {name} --type=merge --dry-run=server -p {patch}"))
    };
    for (row, (rule, before, admitted, refused)) in CHANGES.iter().enumerate() {
        let name = format!("row-{row}");
        cluster.apply_in(ns, &access_key(&name, "bot", if *before == "{}" { "" } else { before }));
        for change in *admitted {
            let answer = patch(&name, change);
            assert!(answer.status.success(), "{rule}: {change}: {}", text(&answer));
        }
        let (_, message) = rule.split_once(": ").unwrap();
        for change in *refused {
            let answer = patch(&name, change);
            assert!(!answer.status.success() && text(&answer).contains(message), "{rule}: {change}: {}", text(&answer));
        }
    }
}

#[test]
fn a_ledger_has_no_third_place_and_no_place_twice() {
    let cluster = &*CLUSTER;
    let ns = "ledger-schema";
    cluster.namespace(ns);
    cluster.apply_in(ns, &subuser("bot", ""));
    for (rule, good, bad, says) in STATUS {
        let patch = |status: &str| {
            let patch = json!({ "status": read(status) }).to_string();
            cluster.run(&format!(
                "-n {ns} patch subuser bot --subresource=status --type=merge --dry-run=server -p {patch}"
            ))
        };
        let (admitted, refused) = (patch(good), patch(bad));
        assert!(admitted.status.success(), "{rule}: {}", text(&admitted));
        assert!(!refused.status.success() && text(&refused).contains(says), "{rule}: {}", text(&refused));
    }
}

/// A rule that is added to a schema without a case in the tables above fails here.
#[test]
fn no_schema_rule_is_without_a_case() {
    let mut found = BTreeSet::new();
    for crd in [subuser_crd(), access_key_crd()] {
        let crd = serde_json::to_value(crd).unwrap();
        let kind = crd["spec"]["names"]["kind"].as_str().unwrap();
        let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        collect_rules(kind, "", schema, &mut found);
    }
    let shown: BTreeSet<String> = (RULES.iter().map(|(rule, ..)| rule))
        .chain(CHANGES.iter().map(|(rule, ..)| rule))
        .chain(STATUS.iter().map(|(rule, ..)| rule))
        .map(|rule| (*rule).to_owned())
        .collect();
    let untested: Vec<_> = found.difference(&shown).collect();
    let unknown: Vec<_> = shown.difference(&found).collect();
    assert!(untested.is_empty() && unknown.is_empty(), "without a case: {untested:#?}, without a rule: {unknown:#?}");
}

#[test]
fn an_enabled_key_is_deleted_only_once_it_was_disabled_as_the_message_says() {
    let cluster = &*CLUSTER;
    let ns = "delete";
    editor_in(ns);
    cluster.apply_in(ns, &access_key("active", "bot", ""));
    cluster.apply_in(ns, &access_key("disabled", "bot", "enabled: false"));
    cluster.apply_in(ns, &access_key("loose", "bot", "deletionPolicy: DisableFirst"));

    let delete =
        |user: &str, name: &str| cluster.run_as(user, &format!("-n {ns} delete accesskey {name} --wait=false"));
    for user in ["editor", "admin"] {
        refused(&delete(user, "active"), "AccessKey delete/active is enabled, and only a disabled key can be deleted");
    }
    admitted(&delete("editor", "disabled"));
    admitted(&delete("editor", "loose"));

    cluster.apply_in(ns, &access_key("disabled", "bot", "enabled: false"));
    let all = cluster.run_as("editor", &format!("-n {ns} delete accesskeys --all --wait=false"));
    refused(&all, "AccessKey delete/active is enabled");
    assert_eq!(names(ns, "accesskeys"), "accesskey.accesskey.dev/active", "the disabled ones are gone");
    let collection = format!("delete --raw /apis/accesskey.dev/v1alpha1/namespaces/{ns}/accesskeys");
    refused(&cluster.run_as("editor", &collection), "AccessKey delete/active is enabled");

    let message = text(&delete("editor", "active"));
    let (_, command) = message.split_once("first kubectl ").unwrap();
    let kubectl = cluster.control_plane.kubectl_as("editor");
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("{} {command}", kubectl.get_program().to_str().unwrap())]);
    shell.envs(kubectl.get_envs().filter_map(|(name, value)| Some((name, value?))));
    admitted(&shell.output().unwrap());
    admitted(&delete("editor", "active"));
    cluster.goes(ns, "accesskey/active");
}

/// Controllers that clean up must get through, or a namespace or an owner would be stuck for good.
#[test]
fn cleaning_up_deletes_enabled_keys() {
    let cluster = &*CLUSTER;
    let (owned, ending) = ("owned", "ending");
    editor_in(owned);
    cluster.kubectl(&format!("-n {owned} create configmap owner"));
    let uid = cluster.field(owned, "configmap/owner", ".metadata.uid");
    cluster.apply_in(owned, &access_key("key", "bot", ""));
    let references = json!([{ "apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": uid }]);
    let patch = json!({ "metadata": { "ownerReferences": references } });
    cluster.kubectl(&format!("-n {owned} patch accesskey key --type=merge -p {patch}"));
    cluster.kubectl(&format!("-n {owned} delete configmap owner"));
    cluster.goes(owned, "accesskey/key");

    editor_in(ending);
    cluster.apply_in(ending, &access_key("by-hand", "bot", ""));
    cluster.apply_in(ending, &access_key("by-controller", "bot", ""));
    cluster.control_plane.pause(Component::ControllerManager).unwrap();
    cluster.kubectl(&format!("delete namespace {ending} --wait=false"));
    let by_hand = || cluster.run_as("editor", &format!("-n {ending} delete accesskey by-hand")).status.success();
    eventually("an enabled key in a terminating namespace may be deleted", Duration::from_secs(20), by_hand);
    assert_eq!(names(ending, "accesskeys"), "accesskey.accesskey.dev/by-controller");
    cluster.control_plane.resume(Component::ControllerManager).unwrap();
    let gone = || !cluster.run(&format!("get namespace {ending}")).status.success();
    eventually("the namespace goes", Duration::from_secs(30), gone);
}

#[test]
fn a_deletion_is_forced_only_by_who_may() {
    let cluster = &*CLUSTER;
    let ns = "force";
    editor_in(ns);
    let annotate = |user: &str, name: &str, value: &str| {
        cluster
            .run_as(user, &format!("-n {ns} annotate --overwrite accesskey {name} accesskey.dev/force-delete={value}"))
    };
    let delete =
        |user: &str, name: &str| cluster.run_as(user, &format!("-n {ns} delete accesskey {name} --wait=false"));
    let forced = access_key("forced", "bot", "")
        .replace("{name: forced}", "{name: forced, annotations: {accesskey.dev/force-delete: 'true'}}");
    let needs_verb = "needs the verb force-delete on accesskeys.accesskey.dev";

    cluster.apply_in(ns, &access_key("plain", "bot", ""));
    refused(&annotate("editor", "plain", "true"), needs_verb);
    refused(&cluster.apply_as("editor", ns, &forced), needs_verb);
    admitted(&annotate("admin", "plain", "false"));
    refused(&delete("admin", "plain"), "only a disabled key can be deleted");
    refused(&annotate("editor", "plain", "true"), needs_verb);

    admitted(&annotate("admin", "plain", "true"));
    admitted(&cluster.run_as(
        "editor",
        &format!(r#"-n {ns} patch accesskey plain --type=merge -p {{"spec":{{"description":"d"}}}}"#),
    ));
    refused(&delete("editor", "plain"), "only a disabled key can be deleted");
    admitted(&cluster.run_as("editor", &format!("-n {ns} annotate accesskey plain accesskey.dev/force-delete-")));
    refused(&annotate("editor", "plain", "true"), needs_verb);

    permit(ns, "forcing", "editor", "accesskeys", "force-delete", "");
    let by_editor = || annotate("editor", "plain", "true").status.success();
    eventually("the verb is granted", Duration::from_secs(20), by_editor);
    admitted(&delete("editor", "plain"));
    admitted(&cluster.apply_as("editor", ns, &forced));
    admitted(&delete("editor", "forced"));
}

#[test]
fn a_role_is_given_to_a_key_only_by_who_may_grant_it_there() {
    let cluster = &*CLUSTER;
    let (ns, elsewhere) = ("grant", "grant-elsewhere");
    editor_in(ns);
    editor_in(elsewhere);
    permit(ns, "granting", "editor", "roles", "grant", "uploader");
    permit(ns, "editing", "viewer", "accesskeys", "*", "");
    let key = |name: &str, role: &str| access_key(name, "bot", &format!("role: {role}"));
    let patch = |user: &str, change: Value| {
        cluster.run_as(user, &format!("-n {ns} patch accesskey key --type=merge -p {}", json!({ "spec": change })))
    };

    let may = || cluster.apply_as("editor", ns, &key("key", "uploader")).status.success();
    eventually("the role may be granted", Duration::from_secs(20), may);
    let message = |role: &str, ns: &str| {
        format!("granting role {role} needs the verb grant on roles.accesskey.dev/{role} in namespace {ns}")
    };
    refused(&cluster.apply_as("editor", ns, &key("other", "viewer")), &message("viewer", ns));
    refused(&cluster.apply_as("editor", elsewhere, &key("key", "uploader")), &message("uploader", elsewhere));
    refused(&patch("editor", json!({ "role": "viewer" })), &message("viewer", ns));

    let edits = || patch("viewer", json!({ "description": "edited", "enabled": false })).status.success();
    eventually("without the grant, everything but the role may be changed", Duration::from_secs(20), edits);
    admitted(&patch("viewer", json!({ "role": null })));
    refused(&patch("viewer", json!({ "role": "uploader" })), &message("uploader", ns));
    admitted(&patch("editor", json!({ "role": "uploader" })));
    admitted(&cluster.apply_as("editor", elsewhere, &access_key("roleless", "bot", "")));
}

#[test]
fn a_fresh_object_is_not_current_and_shows_its_columns() {
    let cluster = &*CLUSTER;
    let ns = "fresh";
    cluster.namespace(ns);
    for manifest in [subuser("bot", "roles: [uploader]"), access_key("key", "bot", "role: uploader")] {
        let created = cluster.try_apply(
            &["-n", ns, "create", "-f", "-", "-o", "jsonpath={.status.observedGeneration} {.metadata.generation}"],
            &manifest,
        );
        assert_eq!(text(&created), "-1 1");
    }
    let table = |kind: &str| {
        let output = cluster.kubectl(&format!("-n {ns} get {kind}"));
        let rows: Vec<Vec<String>> = output
            .lines()
            .map(|line| line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).map(str::to_owned).collect())
            .collect();
        rows
    };
    assert_eq!(table("subu")[0], ["NAME", "ID", "ENABLED", "READY", "STATUS", "AGE"]);
    let keys = table("akey");
    assert_eq!(keys[0], ["NAME", "SUBUSER", "KEY ID", "ROLE", "ACTIVE", "READY", "STATUS", "EXPIRES", "AGE"]);
    assert_eq!(keys[1][..2], ["key", "bot"]);
    assert!(keys[1].contains(&"uploader".to_owned()), "{keys:?}");
    let category = cluster.kubectl(&format!("-n {ns} get accesskey-dev -o name"));
    assert_eq!(category.lines().count(), 2, "{category}");
    assert_eq!(names(ns, "accesskeys --field-selector=spec.subuserRef.name=bot"), "accesskey.accesskey.dev/key");
    assert_eq!(names(ns, "accesskeys --field-selector=spec.subuserRef.name=other"), "");
}

#[test]
fn the_manifests_are_small_explained_and_without_a_warning() {
    let cluster = &*CLUSTER;
    for (file, manifest) in manifests().unwrap() {
        assert!(manifest.len() < 256 * 1024, "{file} has {} bytes", manifest.len());
        let arguments = ["apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f", "-"];
        let answer = cluster.try_apply(&arguments, &manifest);
        assert!(answer.status.success() && answer.stderr.is_empty(), "{file}: {}", text(&answer));
    }
    let told = cluster.kubectl("explain accesskey.spec.secret");
    for words in ["The Secret that the pair is written to", "formats", "Other names for the two data keys"] {
        assert!(told.contains(words), "{words}: {told}");
    }
    assert!(cluster.kubectl("explain subuser.status.keys").contains("ledger"));
}

/// Every rule of a schema as `<kind> <path> <keyword>`; a CEL rule as `<kind> <path>: <message>`. What the operator
/// alone writes is not held to lengths and patterns.
fn collect_rules(kind: &str, path: &str, schema: &Value, found: &mut BTreeSet<String>) {
    let place = if path.is_empty() { kind.to_owned() } else { format!("{kind} {path}") };
    let ours = path.starts_with("status");
    for validation in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
        let message = validation["message"].as_str().unwrap_or_else(|| panic!("{place}: a rule without a message"));
        found.insert(format!("{place}: {message}"));
    }
    for keyword in ["minLength", "maxLength", "pattern", "minimum", "maximum", "enum", "maxProperties"] {
        if !schema[keyword].is_null() && !ours {
            found.insert(format!("{place} {keyword}"));
        }
    }
    if schema["format"] == "date-time" && !ours {
        found.insert(format!("{place} format"));
    }
    for keyword in ["maxItems", "x-kubernetes-list-type"] {
        if !schema[keyword].is_null() && !path.starts_with("status.conditions") {
            found.insert(format!("{place} {keyword}"));
        }
    }
    for field in schema["required"].as_array().into_iter().flatten().filter(|_| !ours) {
        found.insert(format!("{place} required {}", field.as_str().unwrap()));
    }
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        collect_rules(kind, &path, property, found);
    }
    for (keyword, suffix) in [("items", "[]"), ("additionalProperties", "{}")] {
        if schema[keyword].is_object() {
            collect_rules(kind, &format!("{path}{suffix}"), &schema[keyword], found);
        }
    }
}

/// YAML with the abbreviations of [`RULES`].
fn read(yaml: &str) -> Value {
    let mut text = yaml.to_owned();
    while let Some((before, (abbreviation, after))) =
        text.split_once('<').and_then(|(before, rest)| Some((before, rest.split_once('>')?)))
    {
        let (what, count) = abbreviation.split_once('*').unwrap();
        let count = count.parse().unwrap();
        let each = |one: &dyn Fn(usize) -> String| (0..count).map(one).collect::<Vec<_>>().join(", ");
        let long = match what {
            "[]" => format!("[{}]", each(&|number| format!("r{number}"))),
            "{}" => format!("{{{}}}", each(&|number| format!("k{number}: v"))),
            letter => letter.repeat(count),
        };
        text = format!("{before}{long}{after}");
    }
    serde_yaml::from_str(&text).unwrap()
}

/// JSON merge patch (RFC 7396).
fn merged(base: Value, change: &Value) -> Value {
    match (base, change) {
        (Value::Object(mut base), Value::Object(change)) => {
            for (name, value) in change {
                let before = base.remove(name).unwrap_or_default();
                let after = merged(before, value);
                if !after.is_null() {
                    base.insert(name.clone(), after);
                }
            }
            Value::Object(base)
        }
        (_, Value::Object(change)) => merged(json!({}), &Value::Object(change.clone())),
        (_, change) => change.clone(),
    }
}

/// A namespace in which user "editor" may do everything with AccessKeys, but nothing special.
fn editor_in(ns: &str) {
    let cluster = &*CLUSTER;
    cluster.namespace(ns);
    let verbs = "get, list, watch, create, update, patch, delete, deletecollection";
    permit(ns, "editing-keys", "editor", "accesskeys", verbs, "");
    let may = format!("-n {ns} auth can-i create accesskeys --as=editor");
    eventually("the editor may edit", Duration::from_secs(20), || cluster.run(&may).status.success());
}

fn permit(ns: &str, name: &str, user: &str, resource: &str, verbs: &str, only: &str) {
    let only = if only.is_empty() { String::new() } else { format!(", resourceNames: [{only}]") };
    CLUSTER.apply_in(
        ns,
        &format!(
            "apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {{name: {name}}}
rules: [{{apiGroups: [accesskey.dev], resources: [{resource}], verbs: ['{}']{only}}}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {{name: {name}-{user}}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: Role, name: {name}}}
subjects: [{{apiGroup: rbac.authorization.k8s.io, kind: User, name: {user}}}]
",
            verbs.replace(", ", "', '")
        ),
    );
}

fn names(ns: &str, what: &str) -> String {
    CLUSTER.kubectl(&format!("-n {ns} get {what} -o name")).trim().to_owned()
}

#[track_caller]
fn admitted(answer: &Output) {
    assert!(answer.status.success(), "{}", text(answer));
}

#[track_caller]
fn refused(answer: &Output, says: &str) {
    assert!(
        !answer.status.success() && text(answer).contains(says),
        "should be refused with {says:?}: {}",
        text(answer)
    );
}
