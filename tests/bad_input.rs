//! What goes wrong in a cluster, each with its condition, nothing lost, and the way back: on a real API server, with the
//! operator running beside. What the API server refuses by itself is in `admission.rs`.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout)]

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    sync::{LazyLock, Mutex},
    time::{Duration, Instant},
};

use accesskey_operator::api::{access_key_crd, subuser_crd};
use controlplane::Settings;
use k8s_openapi::api::core::v1::Secret;
use serde_json::{Value, json};
use support::{Cluster, Operator, access_key, eventually, leashed, subuser};

/// One cluster for all tests, with every version that its keys and Subusers ever had.
struct Stage {
    cluster: Cluster,
    _operator: Operator,
    histories: [History; 2],
}

static STAGE: LazyLock<Stage> = LazyLock::new(Stage::start);

/// One for what concerns a whole cluster, by one test at a time.
static APART: LazyLock<Mutex<Stage>> = LazyLock::new(|| Mutex::new(Stage::start()));

impl Stage {
    fn start() -> Self {
        let extra_controllers = vec!["resourcequota-controller".into()];
        let cluster = Cluster::start(Settings { audit: true, extra_controllers, ..Settings::default() });
        let histories = ["accesskeys", "subusers"].map(|kind| History::follow(&cluster, kind));
        let operator = cluster.operator("operator", &["--leader-election=false"]);
        Self { cluster, _operator: operator, histories }
    }

    /// A namespace for one test.
    fn room(&self, name: &'static str) -> Room<'_> {
        self.cluster.namespace(name);
        Room { stage: self, name }
    }
}

#[test]
fn a_key_may_come_before_its_subuser() {
    let room = STAGE.room("before-subuser");
    room.apply(&access_key("key", "late", ""));
    room.becomes("accesskey/key", "Reconciling", "True/SubuserNotFound");
    assert_eq!(room.condition("accesskey/key", "Stalled"), "");
    room.becomes("accesskey/key", "Stalled", "True/SubuserNotFound");
    assert_eq!(room.condition("accesskey/key", "Reconciling"), "");
    room.is_not_issued("key", "SubuserNotFound");
    room.rests(5);
    room.apply(&subuser("late", ""));
    room.is_issued("key");
    assert_eq!(room.condition("accesskey/key", "Stalled"), "");
}

/// What the Subuser or the key itself does not allow: no pair is made and no place taken, until it is put right.
#[test]
fn what_is_not_allowed_is_not_issued_and_is_once_it_is_allowed() {
    let cases = [
        (
            "role",
            "roles: [viewer]",
            "role: admin",
            "RoleNotPermitted",
            "subuser",
            json!({ "roles": ["viewer", "admin"] }),
        ),
        ("ttl", "maxKeyLifetime: 1h", "ttl: 1h1s", "LifetimeTooLong", "accesskey", json!({ "ttl": "1h" })),
        (
            "lifetime",
            "maxKeyLifetime: 1h",
            "expiresAt: 2090-01-01T00:00:00Z",
            "LifetimeTooLong",
            "subuser",
            json!({ "maxKeyLifetime": null }),
        ),
        (
            "past",
            "",
            "expiresAt: 2020-01-01T00:00:00Z",
            "Expired",
            "accesskey",
            json!({ "expiresAt": "2090-01-01T00:00:00Z" }),
        ),
        (
            "quota",
            "clusterQuota: 5",
            "clusterQuota: 6",
            "ClusterQuotaExceeded",
            "subuser",
            json!({ "clusterQuota": 6 }),
        ),
    ];
    let room = STAGE.room("not-allowed");
    let manifests = cases.iter().map(|(name, allows, asks, ..)| subuser(name, allows) + &access_key(name, name, asks));
    room.apply(&manifests.collect::<String>());
    for (name, _, _, reason, ..) in &cases {
        room.becomes(&format!("accesskey/{name}"), "Stalled", &format!("True/{reason}"));
        room.is_not_issued(name, reason);
        assert_eq!(room.field(&format!("subuser/{name}"), ".status.keys"), "[]", "{name} holds no place");
    }
    room.rests(8 * cases.len());
    for (name, _, _, _, kind, cure) in &cases {
        room.patch(&format!("{kind}/{name}"), &json!({ "spec": cure }));
        room.is_issued(name);
    }
    room.rests(16 * cases.len());
}

#[test]
fn an_issued_key_whose_permission_goes_is_off_and_comes_back_with_its_pair() {
    let room = STAGE.room("permission-goes");
    room.apply(&(subuser("bot", "roles: [viewer]\nclusterQuota: 5") + &access_key("key", "bot", "role: viewer")));
    let pair = room.is_issued("key");
    room.patch("subuser/bot", &json!({ "spec": { "roles": [] } }));
    room.becomes("accesskey/key", "Active", "False/RoleNotPermitted");
    room.becomes("accesskey/key", "Stalled", "True/RoleNotPermitted");
    room.patch("subuser/bot", &json!({ "spec": { "roles": ["viewer"] } }));
    room.becomes("accesskey/key", "Active", "True/Enabled");

    room.patch("accesskey/key", &json!({ "spec": { "clusterQuota": 6 } }));
    room.becomes("accesskey/key", "Ready", "False/ClusterQuotaExceeded");
    assert_eq!(room.condition("accesskey/key", "Active"), "True/Enabled", "its pair is none the worse");
    assert_eq!(room.field("subuser/bot", ".status.keys[*].clusterQuota"), "0");
    room.patch("accesskey/key", &json!({ "spec": { "clusterQuota": 4 } }));
    room.becomes("accesskey/key", "Ready", "True/Issued");

    room.apply(&access_key("second", "bot", "clusterQuota: 2"));
    room.becomes("accesskey/second", "Stalled", "True/ClusterQuotaExceeded");
    room.patch("accesskey/key", &json!({ "spec": { "clusterQuota": 3 } }));
    room.is_issued("second");
    assert_eq!(room.is_issued("key"), pair);
}

#[test]
fn a_subuser_disables_and_outlives_its_keys() {
    let room = STAGE.room("subuser-life");
    room.apply(&(subuser("bot", "") + &access_key("blue", "bot", "") + &access_key("green", "bot", "")));
    let pairs = [room.is_issued("blue"), room.is_issued("green")];
    let row = room.kubectl("get accesskey blue --no-headers");
    let cells: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(cells[..6], ["blue", "bot", &pairs[0].0, "True", "True", "Issued"], "{row}");
    room.patch("subuser/bot", &json!({ "spec": { "enabled": false } }));
    for key in ["accesskey/blue", "accesskey/green"] {
        room.becomes(key, "Active", "False/SubuserDisabled");
        assert_eq!(room.condition(key, "Ready"), "True/Issued");
    }
    room.becomes("subuser/bot", "Ready", "True/Disabled");
    room.patch("subuser/bot", &json!({ "spec": { "enabled": true } }));
    for key in ["accesskey/blue", "accesskey/green"] {
        room.becomes(key, "Active", "True/Enabled");
    }
    assert_eq!([room.is_issued("blue"), room.is_issued("green")], pairs);
    room.rests(30);
    let told = |object: &str| room.events(object);
    assert_eq!(told("blue"), ["Issued", "SubuserDisabled", "Enabled"], "one Event a transition");
    assert_eq!(told("green"), ["Issued", "SubuserDisabled", "Enabled"]);
    assert_eq!(told("bot"), ["Enabled", "Disabled", "Enabled"]);

    room.kubectl("delete subuser bot --wait=false");
    room.becomes("subuser/bot", "DeletionBlocked", "True/HasAccessKeys");
    room.becomes("accesskey/blue", "Active", "False/SubuserNotFound");
    room.apply(&access_key("red", "bot", ""));
    room.becomes("accesskey/red", "Ready", "False/SubuserNotFound");
    room.rests(50);
    for key in ["blue", "green", "red"] {
        assert!(!room.field("subuser/bot", ".metadata.uid").is_empty(), "the Subuser waits for its last key");
        room.disable_and_delete(key);
    }
    room.goes("subuser/bot");
    assert_eq!(room.kubectl("get secrets -o name"), "");
}

/// Promise 7: who does not control a Secret by uid does not touch it, whatever its type says.
#[test]
fn a_secret_of_somebody_else_is_never_touched() {
    let room = STAGE.room("foreign");
    room.kubectl("create secret generic opaque --from-literal=mine=1");
    room.kubectl("create secret generic typed --type=accesskey.dev/access-key --from-literal=mine=1");
    let all = ["opaque", "typed"];
    let state = || all.map(|name| room.field(&format!("secret/{name}"), ""));
    let before = state();
    for name in all {
        room.apply(&(subuser(name, "") + &access_key(name, name, "")));
        room.becomes(&format!("accesskey/{name}"), "Stalled", "True/SecretConflict");
        assert_eq!(room.condition(&format!("accesskey/{name}"), "Active"), "False/NotIssued");
    }
    room.rests(60);
    assert_eq!(state(), before);
    room.disable_and_delete("opaque");
    assert_eq!(state(), before, "nor does its deletion touch it");
    room.apply(&access_key("opaque", "opaque", ""));
    room.becomes("accesskey/opaque", "Stalled", "True/SecretConflict");
    room.kubectl("delete secrets opaque typed");
    for name in all {
        room.is_issued(name);
    }
}

#[test]
fn two_keys_that_want_one_secret_get_it_one_after_the_other() {
    let room = STAGE.room("shared-secret");
    room.apply(&(subuser("bot", "") + &access_key("first", "bot", "secret: {name: shared}")));
    room.becomes("accesskey/first", "Ready", "True/Issued");
    let taken = room.field("secret/shared", "");
    room.apply(&access_key("second", "bot", "secret: {name: shared}"));
    room.becomes("accesskey/second", "Stalled", "True/SecretConflict");
    room.rests(30);
    assert_eq!(room.field("secret/shared", ""), taken);
    let id = |key: &str| room.field(&format!("accesskey/{key}"), ".status.accessKeyID");
    assert_eq!(room.data("shared")["access-key-id"], id("first"));
    room.disable_and_delete("first");
    room.becomes("accesskey/second", "Ready", "True/Issued");
    assert_eq!(room.data("shared")["access-key-id"], id("second"));
}

#[test]
fn a_resource_quota_is_told_and_waited_for() {
    let room = STAGE.room("resource-quota");
    room.kubectl("create quota none --hard=count/secrets=0");
    room.until_field("resourcequota/none", ".status.hard", |hard| !hard.is_empty());
    room.apply(&(subuser("bot", "") + &access_key("key", "bot", "")));
    room.becomes("accesskey/key", "Stalled", "True/SecretForbidden");
    let message = room.field("accesskey/key", ".status.conditions[?(@.type==\"Ready\")].message");
    assert!(message.contains("exceeded quota: none"), "{message}");
    room.rests(40);
    room.kubectl("delete quota none");
    room.is_issued("key");
}

#[test]
fn a_key_made_anew_under_the_same_name_is_another_key() {
    let room = STAGE.room("made-anew");
    room.apply(&subuser("bot", ""));
    let mut ids = BTreeSet::new();
    for _ in 0..4 {
        room.apply(&access_key("key", "bot", "deletionPolicy: DisableFirst"));
        ids.insert(room.is_issued("key").0);
        room.kubectl("delete accesskey key");
    }
    // Not waiting for the operator in between, either.
    for _ in 0..4 {
        room.apply(&access_key("key", "bot", "deletionPolicy: DisableFirst"));
        room.kubectl("delete accesskey key");
    }
    room.apply(&access_key("key", "bot", ""));
    ids.insert(room.is_issued("key").0);
    assert_eq!(ids.len(), 5, "{ids:?}");
    let uid = room.field("accesskey/key", ".metadata.uid");
    room.until_field("subuser/bot", ".status.keys[*].uid", |holders| holders == uid);
    room.history_is_sound();
}

#[test]
fn disable_first_disables_first() {
    let room = STAGE.room("disable-first");
    room.apply(&(subuser("bot", "") + &access_key("key", "bot", "deletionPolicy: DisableFirst")));
    room.is_issued("key");
    room.kubectl("delete accesskey key");
    room.goes("secret/key");
    let last = room.versions("accesskeys").pop().unwrap();
    assert_eq!((&last["spec"]["enabled"], &last["metadata"]["name"]), (&json!(false), &json!("key")));
}

#[test]
fn finalizers_stripped_by_hand_come_back() {
    let room = STAGE.room("finalizers");
    room.apply(&(subuser("bot", "") + &access_key("key", "bot", "")));
    let pair = room.is_issued("key");
    for object in ["accesskey/key", "subuser/bot"] {
        let before = room.field(object, ".metadata.generation");
        room.patch(object, &json!({ "metadata": { "finalizers": null } }));
        room.until_field(object, ".metadata.finalizers[*]", |finalizers| finalizers == "accesskey.dev/finalizer");
        assert_eq!(room.field(object, ".metadata.generation"), before);
    }
    room.rests(12);
    assert_eq!(room.is_issued("key"), pair);

    // Too late to come back: the key goes without the operator, and still leaves nothing behind.
    room.patch("accesskey/key", &json!({ "spec": { "enabled": false }, "metadata": { "finalizers": null } }));
    room.kubectl("delete accesskey key");
    room.goes("secret/key");
    room.until_field("subuser/bot", ".status.keys", |keys| keys == "[]");
}

#[test]
fn a_secret_changed_by_hand_costs_its_pair_only_if_the_pair_was_changed() {
    let room = STAGE.room("secret-by-hand");
    room.apply(&(subuser("bot", "") + &access_key("key", "bot", "")));
    let mut pairs = vec![room.is_issued("key")];
    let replaced = |pairs: &mut Vec<(String, String)>| {
        let before = pairs.last().unwrap().0.clone();
        room.until_field("accesskey/key", ".status.accessKeyID", |id| !id.is_empty() && id != before);
        pairs.push(room.is_issued("key"));
        let revision = room.field("accesskey/key", ".status.revision");
        assert_eq!(room.field("subuser/bot", ".status.keys[*].revision"), revision, "one place, for the new pair");
    };

    room.kubectl("delete secret key");
    replaced(&mut pairs);
    room.patch("secret/key", &json!({ "stringData": { "secret-access-key": "mine" } }));
    replaced(&mut pairs);
    room.patch("secret/key", &json!({ "stringData": { "access-key-id": pairs[0].0 } }));
    replaced(&mut pairs);

    room.patch("secret/key", &json!({ "stringData": { "provider": "me" }, "metadata": { "labels": { "mine": "1" } } }));
    room.until_field("secret/key", ".data.provider", |data| data == "YWNjZXNza2V5LmRldg==");
    assert_eq!(room.is_issued("key"), pairs[3], "what is not the pair is put back around the same pair");
    assert_eq!(room.field("secret/key", ".metadata.labels.mine"), "1");

    room.patch("secret/key", &json!({ "metadata": { "ownerReferences": null } }));
    room.becomes("accesskey/key", "Stalled", "True/SecretConflict");
    assert_eq!(room.condition("accesskey/key", "Active"), "True/Enabled", "the recorded pair is what counts");
    let orphan = room.field("secret/key", "");
    room.rests(80);
    assert_eq!(room.field("secret/key", ""), orphan, "a Secret that is no longer ours is not touched");
    room.kubectl("delete secret key");
    replaced(&mut pairs);

    let ids: BTreeSet<_> = pairs.iter().map(|(id, _)| id).collect();
    assert_eq!(ids.len(), pairs.len());
    room.history_is_sound();
}

/// A status that is gone - restored from a backup, or cleared by hand - was not a licence to issue anything twice.
#[test]
fn a_status_cleared_by_hand_brings_no_id_back_and_no_third_place() {
    let room = STAGE.room("status-cleared");
    room.apply(&(subuser("bot", "") + &access_key("blue", "bot", "") + &access_key("green", "bot", "")));
    let keys = ["blue", "green"];
    let first = keys.map(|key| room.is_issued(key));
    let clear = |object: &str| {
        room.kubectl(&format!("patch {object} --subresource=status --type=merge -p {}", r#"{"status":null}"#))
    };

    clear("subuser/bot");
    room.until_field("subuser/bot", ".status.keys[*].accessKey", |held| held == "blue green" || held == "green blue");
    assert_eq!(keys.map(|key| room.is_issued(key)), first);
    room.apply(&access_key("red", "bot", ""));
    room.becomes("accesskey/red", "Stalled", "True/KeyLimitExceeded");

    clear("accesskey/blue");
    let second = room.is_issued("blue");
    assert_ne!(second.0, first[0].0, "its first id is not made again");
    clear("subuser/bot");
    clear("accesskey/blue");
    clear("accesskey/green");
    for key in keys {
        room.is_issued(key);
    }
    room.becomes("accesskey/red", "Stalled", "True/KeyLimitExceeded");
    room.rests(120);
    assert_eq!(room.field("subuser/bot", ".status.keys[*].accessKey").split(' ').count(), 2);
    room.history_is_sound();
}

#[test]
fn a_namespace_with_twenty_enabled_keys_goes() {
    let room = STAGE.room("twenty");
    let two = |bot| {
        format!(
            "{}{}{}",
            subuser(bot, ""),
            access_key(&format!("{bot}-1"), bot, ""),
            access_key(&format!("{bot}-2"), bot, "")
        )
    };
    let bots: Vec<String> = (0..10).map(|number| format!("bot{number}")).collect();
    room.apply(&bots.iter().map(|bot| two(bot)).collect::<String>());
    let ready = ".items[*].status.conditions[?(@.reason==\"Issued\")].status";
    room.until_field("accesskeys", ready, |ready| ready.split(' ').filter(|ready| *ready == "True").count() == 20);

    let begin = Instant::now();
    room.stage.cluster.kubectl("delete namespace twenty --wait=false");
    eventually("all keys are gone", Duration::from_secs(30), || room.kubectl("get accesskeys -o name").is_empty());
    let keys_gone = begin.elapsed();
    let namespace = || room.stage.cluster.run("get namespace twenty").status.success();
    eventually("the namespace is gone", Duration::from_secs(60), || !namespace());
    println!("20 enabled keys were gone {keys_gone:?}, their namespace {:?} after its deletion", begin.elapsed());
    assert!(keys_gone <= Duration::from_secs(5), "{keys_gone:?}");
}

#[test]
fn every_format_holds_the_same_pair_and_the_layout_follows_the_spec() {
    let room = STAGE.room("formats");
    let spec = "secret:
  name: laid-out
  labels: {app: ci, tier: build}
  annotations: {team: platform}
  formats: [AWS, Tencent, Env, CSV, JSON, Token]";
    room.apply(
        &(subuser("bot", "")
            + &access_key("key", "bot", spec).replace("{name: key}", "{name: key, labels: {own: label}}")),
    );
    room.becomes("accesskey/key", "Ready", "True/Issued");
    let data = room.data("laid-out");
    let (id, secret) = (data["access-key-id"].as_str(), data["secret-access-key"].as_str());
    assert_eq!(id, room.field("accesskey/key", ".status.accessKeyID"));
    let expected: BTreeMap<String, String> = [
        ("access-key-id", id.to_owned()),
        ("secret-access-key", secret.to_owned()),
        ("type", "access-key".into()),
        ("provider", "accesskey.dev".into()),
        ("AWS_ACCESS_KEY_ID", id.to_owned()),
        ("AWS_SECRET_ACCESS_KEY", secret.to_owned()),
        ("credentials", format!("[default]\naws_access_key_id = {id}\naws_secret_access_key = {secret}\n")),
        ("TENCENTCLOUD_SECRET_ID", id.to_owned()),
        ("TENCENTCLOUD_SECRET_KEY", secret.to_owned()),
        ("ACCESS_KEY_ID", id.to_owned()),
        ("SECRET_ACCESS_KEY", secret.to_owned()),
        ("accesskey.csv", format!("Access key ID,Secret access key\n{id},{secret}\n")),
        ("accesskey.json", format!(r#"{{"accessKeyId":"{id}","secretAccessKey":"{secret}"}}"#)),
        ("token", format!("{id}.{secret}")),
    ]
    .map(|(name, text)| (name.to_owned(), text))
    .into();
    assert!(data == expected, "the data keys are {:?}, or one holds another pair", data.keys());
    assert_eq!(room.field("secret/laid-out", ".type"), "accesskey.dev/access-key");
    assert_eq!(room.field("accesskey/key", ".status.binding.name"), "laid-out");
    assert_eq!(room.field("secret/laid-out", ".metadata.labels.own"), "", "the AccessKey's own labels stay with it");

    room.kubectl("annotate secret laid-out foreign=stays");
    let changed = json!({ "labels": { "app": "cd", "tier": null, "new": "1" }, "annotations": null,
        "keys": { "id": "user", "secret": "password" }, "formats": null });
    room.patch("accesskey/key", &json!({ "spec": { "secret": changed } }));
    room.until_field("secret/laid-out", ".metadata.labels.new", |label| label == "1");
    let expected: BTreeMap<String, String> =
        [("user", id), ("password", secret), ("type", "access-key"), ("provider", "accesskey.dev")]
            .map(|(name, text)| (name.to_owned(), text.to_owned()))
            .into();
    let renamed = room.data("laid-out");
    assert!(renamed == expected, "{:?}", renamed.keys());
    let label = |name: &str| room.field("secret/laid-out", &format!(".metadata.labels.{name}"));
    assert_eq!([label("app"), label("tier")], ["cd", ""]);
    let annotation = |name: &str| room.field("secret/laid-out", &format!(".metadata.annotations.{name}"));
    assert_eq!([annotation("foreign"), annotation("team")], ["stays", ""]);

    room.patch("accesskey/key", &json!({ "spec": { "secret": { "keys": null } } }));
    room.until_field("secret/laid-out", ".data", |data| data.contains("secret-access-key"));
    assert_eq!(room.data("laid-out")["access-key-id"], id, "renaming the data keys costs no pair");
    assert_eq!(room.field("accesskey/key", ".status.accessKeyID"), id);
}

#[test]
fn a_key_expires_by_itself_and_comes_back_with_a_later_expiry() {
    let room = STAGE.room("expiry");
    room.apply(&(subuser("bot", "") + &access_key("key", "bot", "ttl: 10s")));
    let pair = room.is_issued("key");
    room.becomes("accesskey/key", "Active", "False/Expired");
    assert_eq!(room.condition("accesskey/key", "Ready"), "False/Expired");
    let soon = |version: &Value| version["status"].to_string().contains("ExpiringSoon");
    assert!(room.versions("accesskeys").iter().any(soon), "it was said beforehand");
    assert_eq!(room.condition("accesskey/key", "ExpiringSoon"), "", "and is no longer true");
    let moved = room.field("accesskey/key", ".status.conditions[?(@.type==\"Active\")].lastTransitionTime");
    assert!(moved >= room.field("accesskey/key", ".status.expiresAt"), "never before its time");
    room.rests(16);
    assert_eq!(room.events("key"), ["Issued", "ExpiryNear", "Expired"]);
    room.patch("accesskey/key", &json!({ "spec": { "ttl": "1h" } }));
    room.becomes("accesskey/key", "Active", "True/Enabled");
    assert_eq!(room.is_issued("key"), pair);
}

#[test]
fn a_revocation_stays_when_its_annotation_goes() {
    let room = STAGE.room("revoked");
    let bots = subuser("good", "") + &subuser("leaked", "");
    room.apply(
        &(bots
            + &access_key("leaked", "good", "")
            + &access_key("sibling", "good", "")
            + &access_key("all", "leaked", "")),
    );
    for key in ["leaked", "sibling", "all"] {
        room.is_issued(key);
    }
    let revoked = [("accesskey", "leaked"), ("subuser", "leaked")];
    for (kind, name) in revoked {
        room.kubectl(&format!("annotate {kind} {name} accesskey.dev/revoked=seen-in-a-log"));
        room.becomes(&format!("{kind}/{name}"), "Ready", "False/Revoked");
    }
    room.becomes("accesskey/all", "Active", "False/Revoked");
    for (kind, name) in revoked {
        room.kubectl(&format!("annotate {kind} {name} accesskey.dev/revoked-"));
    }
    room.apply(&access_key("new", "leaked", ""));
    room.becomes("accesskey/new", "Stalled", "True/Revoked");
    room.is_not_issued("new", "Revoked");
    room.rests(40);
    for key in ["leaked", "all"] {
        assert_eq!(room.condition(&format!("accesskey/{key}"), "Active"), "False/Revoked");
        assert!(!room.field(&format!("accesskey/{key}"), ".status.revokedAt").is_empty());
    }
    assert_eq!(room.condition("subuser/leaked", "Ready"), "False/Revoked");
    assert_eq!(room.condition("accesskey/sibling", "Active"), "True/Enabled");
}

#[test]
fn an_operator_without_permission_for_secrets_says_so_and_goes_on_with_it() {
    let stage = APART.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let room = stage.room("no-permission");
    room.apply(&(subuser("bot", "") + &access_key("before", "bot", "")));
    let pair = room.is_issued("before");
    let role = stage.cluster.field("default", "clusterrole/accesskey-operator", ".rules");
    let mut rules: Value = serde_json::from_str(&role).unwrap();
    rules.as_array_mut().unwrap().retain(|rule| rule["resources"] != json!(["secrets"]));
    let give = |rules: &Value| {
        let patch = json!({ "rules": rules }).to_string();
        stage.cluster.kubectl(&format!("patch clusterrole accesskey-operator --type=merge -p {patch}"));
    };
    give(&rules);
    let may = |verb: &str| stage.cluster.run(&format!("auth can-i {verb} secrets --as=operator")).status.success();
    eventually("the permission is gone", Duration::from_secs(20), || !may("create"));
    room.apply(&access_key("during", "bot", ""));
    room.becomes("accesskey/during", "Stalled", "True/SecretForbidden");
    room.rests(40);
    assert_eq!(room.is_issued("before"), pair);
    give(&serde_json::from_str(&role).unwrap());
    room.is_issued("during");
}

/// The schema of a CRD tightens; what was stored before is still there.
#[test]
fn an_object_that_no_longer_reads_stalls_alone_and_can_be_deleted() {
    let stage = APART.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let room = stage.room("malformed");
    let crds = [access_key_crd(), subuser_crd()].map(|crd| serde_json::to_value(crd).unwrap());
    let loosely = |manifest: String| {
        let stored = || room.run(&["apply", "-f", "-"], &manifest).status.success();
        eventually("the loose schema admits it", Duration::from_secs(30), stored);
    };

    let odd = subuser("odd", "") + &access_key("of-odd", "odd", "");
    room.apply(&(subuser("bot", "") + &access_key("issued", "bot", "") + &odd));
    let pairs = ["issued", "of-odd"].map(|key| room.is_issued(key));
    for crd in &crds {
        stage.cluster.apply(&loosened(crd.clone()).to_string());
    }
    loosely(access_key("format", "bot", "enabled: true\nsecret: {formats: [Bogus]}"));
    loosely(access_key("text", "bot", "enabled: true\ndescription: {a: b}"));
    loosely(access_key("loose", "bot", "enabled: true\ndeletionPolicy: DisableFirst\nttl: forever"));
    loosely(access_key("issued", "bot", "enabled: true\nsecret: {formats: [Bogus]}"));
    loosely(subuser("odd", "roles: admin"));
    let malformed = ["format", "text", "loose", "issued"];
    for key in malformed {
        room.becomes(&format!("accesskey/{key}"), "Stalled", "True/InvalidSpec");
    }
    room.becomes("subuser/odd", "Stalled", "True/InvalidSpec");
    room.becomes("accesskey/of-odd", "Active", "False/SubuserNotFound");
    for crd in &crds {
        stage.cluster.apply(&crd.to_string());
    }
    let tight = || {
        !room
            .run(&["apply", "--dry-run=server", "-f", "-"], &access_key("probe", "bot", "description: {a: b}"))
            .status
            .success()
    };
    eventually("the schema is tight again", Duration::from_secs(30), tight);

    room.apply(&access_key("healthy", "bot", ""));
    room.is_issued("healthy");
    room.rests(120);
    for key in malformed {
        let object = format!("accesskey/{key}");
        assert_eq!(room.condition(&object, "Ready"), "False/InvalidSpec");
        let [generation, observed] =
            [".metadata.generation", ".status.observedGeneration"].map(|path| room.field(&object, path));
        assert_eq!(observed, generation, "else kstatus takes it for one that is still being worked on");
    }
    assert_eq!(["issued", "of-odd"].map(|key| room.pair(key)), pairs, "what was issued is still there");
    room.patch("subuser/odd", &json!({ "spec": { "roles": [] } }));
    room.becomes("accesskey/of-odd", "Active", "True/Enabled");
    assert!(room.refused("delete accesskey issued --wait=false").contains("only a disabled key can be deleted"));
    room.kubectl("delete accesskey loose");
    for key in ["format", "text", "issued"] {
        room.disable_and_delete(key);
    }
    room.goes("secret/issued");
    room.until_field("subuser/bot", ".status.keys[*].accessKey", |held| held == "healthy");
}

/// The namespace of one test.
struct Room<'a> {
    stage: &'a Stage,
    name: &'static str,
}

impl Room<'_> {
    fn run(&self, arguments: &[&str], manifest: &str) -> Output {
        self.stage.cluster.try_apply(&[&["-n", self.name], arguments].concat(), manifest)
    }

    #[track_caller]
    fn apply(&self, manifest: &str) {
        self.stage.cluster.apply_in(self.name, manifest);
    }

    #[track_caller]
    fn kubectl(&self, arguments: &str) -> String {
        self.stage.cluster.kubectl(&format!("-n {} {arguments}", self.name))
    }

    #[track_caller]
    fn refused(&self, arguments: &str) -> String {
        self.stage.cluster.refused(&format!("-n {} {arguments}", self.name))
    }

    /// `change` has no space in it, as arguments are split there.
    #[track_caller]
    fn patch(&self, object: &str, change: &Value) {
        self.kubectl(&format!("patch {object} --type=merge -p {change}"));
    }

    #[track_caller]
    fn disable_and_delete(&self, key: &str) {
        self.patch(&format!("accesskey/{key}"), &json!({ "spec": { "enabled": false } }));
        self.kubectl(&format!("delete accesskey {key}"));
    }

    fn field(&self, object: &str, path: &str) -> String {
        self.stage.cluster.field(self.name, object, if path.is_empty() { "@" } else { path })
    }

    #[track_caller]
    fn until_field(&self, object: &str, path: &str, holds: impl Fn(&str) -> bool) {
        eventually(&format!("{object} {path}"), Duration::from_secs(30), || holds(&self.field(object, path)));
    }

    fn condition(&self, object: &str, kind: &str) -> String {
        self.stage.cluster.condition(self.name, object, kind)
    }

    #[track_caller]
    fn becomes(&self, object: &str, kind: &str, expected: &str) {
        self.stage.cluster.becomes(self.name, object, kind, expected);
    }

    #[track_caller]
    fn goes(&self, object: &str) {
        self.stage.cluster.goes(self.name, object);
    }

    /// What a Secret holds, decoded.
    #[track_caller]
    fn data(&self, secret: &str) -> BTreeMap<String, String> {
        let secret: Secret = serde_json::from_str(&self.kubectl(&format!("get secret {secret} -o json"))).unwrap();
        let decoded = secret.data.into_iter().flatten();
        decoded.map(|(name, bytes)| (name, String::from_utf8(bytes.0).unwrap())).collect()
    }

    /// The recorded id and fingerprint.
    fn pair(&self, key: &str) -> (String, String) {
        let field = |path| self.field(&format!("accesskey/{key}"), path);
        (field(".status.accessKeyID"), field(".status.fingerprint"))
    }

    /// Waits until a key is issued, into the Secret of its own name, and returns the recorded id and fingerprint.
    #[track_caller]
    fn is_issued(&self, key: &str) -> (String, String) {
        self.becomes(&format!("accesskey/{key}"), "Ready", "True/Issued");
        let pair = self.pair(key);
        assert_eq!(self.data(key)["access-key-id"], pair.0);
        pair
    }

    #[track_caller]
    fn is_not_issued(&self, key: &str, reason: &str) {
        let object = format!("accesskey/{key}");
        assert_eq!(self.condition(&object, "Ready"), format!("False/{reason}"));
        assert_eq!(self.condition(&object, "Active"), "False/NotIssued");
        assert_eq!(self.field(&object, ".status.accessKeyID"), "");
        assert!(self.refused(&format!("get secret {key}")).contains("not found"));
    }

    /// Reasons of the Events about an object, oldest first.
    fn events(&self, object: &str) -> Vec<String> {
        let all: Value = serde_json::from_str(&self.kubectl("get events.events.k8s.io -o json")).unwrap();
        let about = all["items"].as_array().unwrap().iter().filter(|event| event["regarding"]["name"] == object);
        let mut told: Vec<(&str, &str)> =
            about.map(|event| (event["eventTime"].as_str().unwrap(), event["reason"].as_str().unwrap())).collect();
        told.sort_unstable();
        told.into_iter().map(|(_, reason)| reason.to_owned()).collect()
    }

    /// Waits for two seconds in which the operator asks nothing about this namespace, which a hot loop never has; and up
    /// to here it has sent few requests, Events apart.
    #[track_caller]
    fn rests(&self, at_most: usize) {
        let mut seen = (self.requests(), Instant::now());
        eventually("the operator comes to rest", Duration::from_secs(30), || {
            let now = self.requests();
            if now != seen.0 {
                seen = (now, Instant::now());
            }
            seen.1.elapsed() > Duration::from_secs(2)
        });
        println!("{}: {} requests by the operator", self.name, seen.0);
        assert!(seen.0 <= at_most, "{} requests about {}", seen.0, self.name);
    }

    fn requests(&self) -> usize {
        let log = fs::read_to_string(self.stage.cluster.control_plane.audit_log().unwrap()).unwrap();
        let (by, of) = (r#""user":{"username":"operator""#, format!(r#""namespace":"{}""#, self.name));
        log.lines().filter(|line| line.contains(by) && line.contains(&of) && !line.contains("events.k8s.io")).count()
    }

    /// Every version of every object of a kind, in order.
    fn versions(&self, kind: &str) -> Vec<Value> {
        let history = self.stage.histories.iter().find(|history| history.kind == kind).unwrap();
        let mut versions = history.versions();
        versions.retain(|version| version["metadata"]["namespace"] == self.name);
        versions
    }

    /// Promises 1 and 2, at every moment: at most two places, and one secret for an id.
    #[track_caller]
    fn history_is_sound(&self) {
        for version in self.versions("subusers") {
            let held = version["status"]["keys"].as_array().map_or(0, Vec::len);
            assert!(held <= 2, "{version}");
        }
        let mut secrets = BTreeMap::new();
        for version in self.versions("accesskeys") {
            let status = &version["status"];
            if let (Some(id), Some(print)) = (status["accessKeyID"].as_str(), status["fingerprint"].as_str()) {
                let known = secrets.entry(id.to_owned()).or_insert_with(|| print.to_owned());
                assert_eq!(known, print, "{id} has had two secrets");
            }
        }
        assert!(!secrets.is_empty());
    }
}

/// A CRD that admits almost anything as a spec.
fn loosened(mut crd: Value) -> Value {
    let spec = "/spec/versions/0/schema/openAPIV3Schema/properties/spec";
    let named = json!({ "type": "object", "properties": { "name": { "type": "string" } } });
    *crd.pointer_mut(spec).unwrap() = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true,
        "properties": { "subuserRef": named } });
    crd
}

/// What a watch of one kind has told, on disk.
struct History {
    kind: &'static str,
    file: PathBuf,
    _watch: Child,
}

impl History {
    fn follow(cluster: &Cluster, kind: &'static str) -> Self {
        let file = cluster.control_plane.folder().join(format!("{kind}.history"));
        let kubectl = cluster.control_plane.kubectl();
        let mut watch: Command = leashed(kubectl.get_program().as_ref());
        watch
            .envs(kubectl.get_envs().filter_map(|(name, value)| Some((name, value?))))
            .args(["get", kind, "--all-namespaces", "--watch", "-o", "jsonpath={@}{\"\\n\"}"])
            .stdout(fs::File::create(&file).unwrap())
            .stderr(Stdio::null());
        Self { kind, file, _watch: watch.spawn().unwrap() }
    }

    /// A line that is still being written is left for the next look.
    fn versions(&self) -> Vec<Value> {
        let text = fs::read_to_string(&self.file).unwrap();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }
}
