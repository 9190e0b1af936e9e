//! No secret byte leaves the process but to its Secret: not in a log, an Event, a status, a metric or `Debug` text.
//!
//! The pattern search in [`support::leak`] is at work in every test with an operator; here it is shown to find what it
//! looks for, and the secrets that were really made are searched for.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::{
    collections::BTreeSet,
    fmt::{Debug, Display},
    fs,
    time::Duration,
};

use accesskey_operator::{
    api::{AccessKey, Stored, Subuser, access_key_crd},
    core::{
        Write, access_key,
        credential::{Entropy, KeyId, Pair, SecretText, principal_id},
        secret::{PairSecret, SecretSeen},
    },
};
use controlplane::Settings;
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::api::ObjectList;
use serde_json::{Value, json};
use support::{Cluster, access_key, eventually, leak::secret_in, subuser};

/// Whether a type implements a trait: the inherent constant hides the trait's, but exists only if the bound holds.
macro_rules! implements {
    ($type:ty: $trait:path) => {{
        #[allow(dead_code)]
        trait Otherwise {
            const HOLDS: bool = false;
        }
        impl<T: ?Sized> Otherwise for T {}
        struct Of<T: ?Sized>(std::marker::PhantomData<T>);
        #[allow(dead_code)]
        impl<T: ?Sized + $trait> Of<T> {
            const HOLDS: bool = true;
        }
        <Of<$type>>::HOLDS
    }};
}

#[test]
fn what_holds_a_secret_cannot_be_shown_or_copied() {
    assert!(
        [implements!(KeyId: Debug), implements!(KeyId: Display), implements!(KeyId: Clone)].into_iter().all(|yes| yes)
    );
    let secret = [implements!(SecretText: Debug), implements!(SecretText: Display), implements!(SecretText: Clone)];
    let pair = [implements!(Pair: Debug), implements!(Pair: Display), implements!(Pair: Clone)];
    assert_eq!([secret, pair], [[false; 3]; 2], "[Debug, Display, Clone] of SecretText and Pair");
    assert!(!implements!(SecretText: serde::Serialize) && !implements!(PairSecret: Display));
}

#[test]
fn debug_text_of_a_decision_shows_no_secret() {
    let named = |manifest: String| manifest.trim_end().trim_end_matches("---").to_owned();
    let formats = "secret: {formats: [AWS, Tencent, Env, CSV, JSON, Token], keys: {id: user, secret: password}}";
    let mut key: AccessKey = serde_yaml::from_str(&named(access_key("key", "bot", formats))).unwrap();
    key.metadata.uid = Some("uid".into());
    key.metadata.finalizers = Some(vec![accesskey_operator::api::FINALIZER.into()]);
    let mut bot: Subuser = serde_yaml::from_str(&named(subuser("bot", ""))).unwrap();
    let entry = json!({ "accessKey": "key", "uid": "uid", "revision": 1, "clusterQuota": 0 });
    bot.status = serde_json::from_value(json!({ "observedGeneration": 1, "keys": [entry] })).unwrap();
    let entropy = Entropy::new([7; 32]);
    let stored = Stored::Valid(key);
    let seen = access_key::Observed {
        key: &stored,
        subuser: Some(&bot),
        secret: SecretSeen::Absent,
        namespace_terminating: false,
    };

    let plan = access_key::plan(&seen, jiff::Timestamp::UNIX_EPOCH, &entropy);
    let secret = plan
        .writes
        .iter()
        .find_map(|write| if let Write::CreateSecret(secret) = write { Some(secret.clone()) } else { None });
    let secret = secret.expect("the plan makes a pair");
    let sent = serde_json::to_string(&secret).unwrap();
    assert!(secret_in(sent.as_bytes()).is_some(), "on the wire it is there");
    let texts = [
        format!("{plan:?} {plan:#?}"),
        format!("{secret:?} {secret:#?}"),
        format!("{:?}", SecretSeen::Ours(secret.clone())),
        format!("{:?}", SecretText::new(&entropy).expose()[1..].parse::<SecretText>().err()),
    ];
    for text in &texts {
        assert!(text.len() > 5 && secret_in(text.as_bytes()).is_none(), "{text}");
        assert!(!Forms::of(SecretText::new(&entropy).expose()).are_in(text), "{text}");
    }
}

#[test]
fn the_search_finds_every_form_of_a_secret_and_nothing_else() {
    let entropies = (0..=255).map(|byte| Entropy::new([byte; 32]));
    for secret in entropies.map(|entropy| SecretText::new(&entropy).expose().to_owned()) {
        let json = |bytes: &[u8]| serde_json::to_string(&ByteString(bytes.to_vec())).unwrap();
        for before in ["", "x", "xy", "id,", "AKO.", "[default]\n"] {
            let text = format!("{before}{secret}\n");
            let hex = hex(&text);
            let forms = [json(text.as_bytes()), hex.to_uppercase(), hex, format!("{:?}", text.as_bytes()), text];
            for form in forms {
                let line = format!("some log line with {form} in it");
                assert!(secret_in(line.as_bytes()).is_some_and(|at| (19..80).contains(&at)), "{line}");
            }
        }
        let harmless = [
            accesskey_operator::core::credential::fingerprint(secret.as_bytes()),
            KeyId::derive(&secret, 1, "7").to_string(),
            principal_id(&secret),
            "a secret begins with aks_ and 43 characters".to_owned(),
            json(b"aks_ is the prefix, aks_short too"),
        ];
        assert!(harmless.iter().all(|text| secret_in(text.as_bytes()).is_none()));
    }
}

#[test]
fn no_secret_that_was_made_is_told_anywhere() {
    let extra_controllers = vec!["resourcequota-controller".into()];
    let mut cluster = Cluster::start(Settings { extra_controllers, ..Settings::default() });
    let start = |cluster: &Cluster| cluster.operator_logging("trace", "operator", &["--leader-election=false"]);
    let ns = "secrecy";
    let operator = start(&cluster);
    let mut made = BTreeSet::new();
    cluster.namespace(ns);
    let all = "secret: {formats: [AWS, Tencent, Env, CSV, JSON, Token]}";
    let renamed = "secret: {keys: {id: user, secret: password}}\ndeletionPolicy: DisableFirst";
    cluster
        .apply_in(ns, &(subuser("bot", "") + &access_key("all", "bot", all) + &access_key("renamed", "bot", renamed)));
    for key in ["all", "renamed"] {
        cluster.becomes(ns, &format!("accesskey/{key}"), "Ready", "True/Issued");
    }
    made.extend(secrets(&cluster));
    assert_eq!(made.len(), 2);

    // Somebody else's Secret of our type, with a pair of its own; and no Secret allowed at all.
    let foreign = SecretText::new(&Entropy::new([9; 32])).expose().to_owned();
    let options = "--type=accesskey.dev/access-key --from-literal=access-key-id=AKOAAAAAAAAAAAAAAAAA";
    cluster
        .kubectl(&format!("-n {ns} create secret generic taken {options} --from-literal=secret-access-key={foreign}"));
    cluster.apply_in(ns, &(subuser("other", "") + &access_key("taken", "other", all)));
    cluster.becomes(ns, "accesskey/taken", "Stalled", "True/SecretConflict");
    cluster.kubectl(&format!("-n {ns} create quota none --hard=count/secrets=0"));
    eventually("the quota counts", Duration::from_secs(20), || {
        !cluster.field(ns, "quota/none", ".status.hard").is_empty()
    });
    cluster.apply_in(ns, &access_key("refused", "other", all));
    cluster.becomes(ns, "accesskey/refused", "Stalled", "True/SecretForbidden");
    cluster.kubectl(&format!("-n {ns} delete quota none"));

    // Tampered with, in each way that the operator has to look into; lost; deleted.
    let id = |key: &str| cluster.field(ns, &format!("accesskey/{key}"), ".status.accessKeyID");
    let first = id("all");
    let mut tampered = foreign.clone();
    tampered.pop();
    cluster.kubectl(&format!(
        "-n {ns} patch secret all --type=merge -p {}",
        json!({ "stringData": { "secret-access-key": tampered, "extra": foreign } })
    ));
    eventually("another pair", Duration::from_secs(30), || id("all") != first);
    cluster.becomes(ns, "accesskey/all", "Ready", "True/Issued");
    made.extend(secrets(&cluster));
    let second = id("all");
    cluster.kubectl(&format!("-n {ns} delete secret all"));
    eventually("yet another", Duration::from_secs(30), || ![&first, &second].contains(&&id("all")));
    cluster.becomes(ns, "accesskey/all", "Ready", "True/Issued");
    made.extend(secrets(&cluster));
    cluster.kubectl(&format!("-n {ns} delete accesskey renamed"));
    cluster.becomes(ns, "accesskey/refused", "Ready", "True/Issued");
    made.extend(secrets(&cluster));

    // A broken connection, a key that does not read, a new process.
    cluster.control_plane.stop_api_server();
    cluster.control_plane.restart_api_server().unwrap();
    cluster.apply(&admitting_anything().to_string());
    let bogus = access_key("bogus", "bot", "enabled: true\nsecret: {formats: [Bogus]}");
    eventually("the loose schema admits it", Duration::from_secs(30), || {
        cluster.try_apply(&["-n", ns, "apply", "-f", "-"], &bogus).status.success()
    });
    cluster.becomes(ns, "accesskey/bogus", "Stalled", "True/InvalidSpec");
    let mut told = vec![operator.get("/metrics").1];
    let logs = [operator.log.clone()];
    operator.kill();
    let operator = start(&cluster);
    cluster.apply_in(ns, &(subuser("late", "") + &access_key("late", "late", all)));
    cluster.becomes(ns, "accesskey/late", "Ready", "True/Issued");
    made.extend(secrets(&cluster));
    told.push(operator.get("/metrics").1);
    let logs = logs.into_iter().chain([operator.log.clone()]).collect::<Vec<_>>();
    operator.kill();

    made.insert(foreign);
    assert!(made.len() >= 7, "{} secrets were made", made.len());
    for log in &logs {
        let log = String::from_utf8_lossy(&fs::read(log).unwrap()).into_owned();
        assert!(log.contains(r#""level":"TRACE""#), "it is worth a search");
        told.push(log);
    }
    told.extend(
        ["events.events.k8s.io", "accesskeys,subusers"].map(|kind| cluster.kubectl(&format!("get {kind} -A -o yaml"))),
    );
    assert!(told.iter().any(|text| text.contains("kind: Event")));
    let pairs = cluster.kubectl(&format!("-n {ns} get secrets -o json"));
    assert!(made.iter().any(|secret| Forms::of(secret).are_in(&pairs)), "the search finds them where they are");
    for secret in &made {
        let forms = Forms::of(secret);
        for text in &told {
            assert!(!forms.are_in(text), "a secret is in the text that begins with {}", &text[..text.len().min(200)]);
        }
    }
    assert!(told.iter().all(|text| secret_in(text.as_bytes()).is_none()));
}

/// The secret halves in all Secrets.
fn secrets(cluster: &Cluster) -> BTreeSet<String> {
    let all: ObjectList<Secret> = serde_json::from_str(&cluster.kubectl("get secrets -A -o json")).unwrap();
    let data = all.items.into_iter().filter_map(|secret| secret.data).flatten();
    let texts = data.map(|(_, bytes)| String::from_utf8_lossy(&bytes.0).into_owned());
    texts.filter(|text| text.parse::<SecretText>().is_ok()).collect()
}

fn hex(text: &str) -> String {
    text.bytes().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"))
}

/// The ways to write one secret, whatever stands before it.
struct Forms(Vec<String>);

impl Forms {
    fn of(secret: &str) -> Self {
        // In base64 the characters at both ends depend on what stands there.
        let base64 = ["", "x", "xy"].map(|before| {
            let text = serde_json::to_value(ByteString(format!("{before}{secret}").into_bytes())).unwrap();
            let text = text.as_str().unwrap().trim_end_matches('=').to_owned();
            text[before.len() + 1..text.len() - 1].to_owned()
        });
        let hex = hex(secret);
        let bytes = format!("{:?}", secret.as_bytes());
        let bytes = bytes.trim_matches(['[', ']']).to_owned();
        Self([vec![secret.to_owned(), hex.to_uppercase(), hex, bytes], base64.to_vec()].concat())
    }

    fn are_in(&self, text: &str) -> bool {
        self.0.iter().any(|form| text.contains(form))
    }
}

/// The CRD of AccessKeys without its rules.
fn admitting_anything() -> Value {
    let mut crd = serde_json::to_value(access_key_crd()).unwrap();
    let name = json!({ "type": "object", "properties": { "name": { "type": "string" } } });
    *crd.pointer_mut("/spec/versions/0/schema/openAPIV3Schema/properties/spec").unwrap() = json!({ "type": "object",
        "x-kubernetes-preserve-unknown-fields": true, "properties": { "subuserRef": name } });
    crd
}
