//! Two operators at once, killed again and again while keys come and go: no revision of any object may show a broken
//! promise, and at the end everything is as it should be.
//!
//! The history is complete, or the test fails: watches from a known version, never a second list. Versions are global in
//! etcd, so ordering all revisions by them gives what was true at each moment, over all kinds.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use accesskey_operator::api::{AccessKey, SECRET_TYPE, Subuser};
use controlplane::Settings;
use futures::{StreamExt, future::join_all};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams},
    core::NamespaceResourceScope,
};
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use serde::de::DeserializeOwned;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::support::{Cluster, Operator};

const NAMESPACE: &str = "churn";
const SUBUSERS: usize = 10;
const KEYS_OF_EACH: usize = 20;
const CHURN: Duration = Duration::from_secs(60);
const KILL_EVERY: Duration = Duration::from_secs(1);

#[test]
fn two_operators_killed_every_second_break_no_promise() {
    let seed: u64 = std::env::var("SEED").ok().map_or_else(rand::random, |seed| seed.parse().unwrap());
    println!("SEED={seed}");
    let cluster = Cluster::start(Settings::default());
    cluster.namespace(NAMESPACE);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let client = cluster.client("admin").await;
        let recorder = Arc::new(Recorder::default());
        let watches = recorder.start(&client).await;
        create_subusers(&client).await;

        let churns = join_all((0..SUBUSERS).map(|number| churn(client.clone(), number, seed)));
        let (tallies, (operators, kills)) = tokio::join!(churns, kill_at_random(&cluster, seed));
        let tally = tallies.iter().fold(Tally::default(), Tally::plus);
        converge(&client).await;
        let revisions = recorder.up_to_date(&client).await;
        assert!(!watches.iter().any(tokio::task::JoinHandle::is_finished), "a watch ended");
        println!(
            "{} revisions seen ({} of Subusers, {} of AccessKeys, {} of Secrets), {} watches resumed, {kills} kills, {} keys \
             created, {} deleted, {} Secrets deleted, {} Subusers switched off",
            revisions.len(),
            revisions.iter().filter(|revision| matches!(revision.object, Object::Subuser { .. })).count(),
            revisions.iter().filter(|revision| matches!(revision.object, Object::Key { .. })).count(),
            revisions.iter().filter(|revision| matches!(revision.object, Object::Secret { .. })).count(),
            recorder.resumed.load(Ordering::Relaxed),
            tally.created,
            tally.deleted,
            tally.secrets_deleted,
            tally.switched_off,
        );
        let violations = violations(&revisions);
        for (_, version, what) in &violations {
            let near = revisions.iter().filter(|revision| revision.version.abs_diff(*version) < 60);
            near.filter(|revision| what.contains(&revision.uid) || what.contains(&revision.name))
                .for_each(|revision| println!("{revision:?}"));
        }
        assert!(violations.is_empty(), "SEED={seed}: {violations:#?}");
        assert!(kills >= 40 && tally.created >= 200 && tally.deleted >= 100, "too little has happened to show anything");
        drop(operators);
    });
}

/// What one version of one object says, as far as the promises speak of it.
#[derive(Clone, Debug, PartialEq)]
enum Object {
    Subuser { ledger: Vec<Holder> },
    Key { subuser: String, enabled: bool, pair: Option<Recorded> },
    Secret { credential: Option<Credential> },
}

/// `metadata.uid` of an AccessKey and the revision of its pair.
type Holder = (String, i64);

/// Id and fingerprint.
type Credential = (String, String);

#[derive(Clone, Debug, PartialEq)]
struct Recorded {
    revision: i64,
    credential: Credential,
}

/// One version of one object, or its removal at that version.
#[derive(Clone, Debug, PartialEq)]
struct Revision {
    version: u64,
    name: String,
    uid: String,
    removed: bool,
    object: Object,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rule {
    LedgerOverTwo,
    TwoCredentialsOfOneRevision,
    TwoCredentialsOfOneId,
    IdOfTwoRevisions,
    RecordWithoutPlace,
    RecordWithoutSecret,
    MoreThanTwoRecorded,
    RemovedWhileEnabled,
}

/// Every broken promise in a history, with the version that broke it.
fn violations(history: &[Revision]) -> BTreeSet<(Rule, u64, String)> {
    let mut history: Vec<&Revision> = history.iter().collect();
    history.sort_by_key(|revision| revision.version);
    let mut found = BTreeSet::new();
    let mut by_revision: BTreeMap<Holder, Credential> = BTreeMap::new();
    let mut by_id: BTreeMap<String, (Holder, String)> = BTreeMap::new();
    let mut handed_out: BTreeSet<Credential> = BTreeSet::new();
    // By name, Subusers; by uid, AccessKeys: one made anew under an old name is another.
    let mut ledgers: BTreeMap<String, Vec<Holder>> = BTreeMap::new();
    let mut keys: BTreeMap<String, (String, bool, Option<Recorded>)> = BTreeMap::new();
    for Revision { version, name, uid, removed, object } in history {
        let mut report = |rule, what: String| found.insert((rule, *version, what));
        let concerned = match object {
            Object::Subuser { ledger } => {
                if ledger.len() > 2 {
                    report(Rule::LedgerOverTwo, format!("{name}: {ledger:?}"));
                }
                if *removed {
                    ledgers.remove(name);
                } else {
                    ledgers.insert(name.clone(), ledger.clone());
                }
                name
            }
            Object::Key { subuser, enabled, pair } => {
                if let Some(Recorded { revision, credential }) = pair {
                    let holder = (uid.clone(), *revision);
                    let first = by_revision.entry(holder.clone()).or_insert_with(|| credential.clone());
                    if first != credential {
                        report(
                            Rule::TwoCredentialsOfOneRevision,
                            format!("{name} {holder:?}: {first:?}, {credential:?}"),
                        );
                    }
                    let (id, print) = credential;
                    let (owner, first) = by_id.entry(id.clone()).or_insert_with(|| (holder.clone(), print.clone()));
                    if first != print {
                        report(Rule::TwoCredentialsOfOneId, format!("{name} {id}"));
                    }
                    if *owner != holder {
                        report(Rule::IdOfTwoRevisions, format!("{name} {id}: {owner:?}, {holder:?}"));
                    }
                    if !handed_out.contains(credential) {
                        report(Rule::RecordWithoutSecret, format!("{name} {id}"));
                    }
                }
                if *removed {
                    if keys.remove(uid).is_none_or(|(_, enabled, _)| enabled) {
                        report(Rule::RemovedWhileEnabled, format!("{name} {uid}"));
                    }
                } else {
                    keys.insert(uid.clone(), (subuser.clone(), *enabled, pair.clone()));
                }
                subuser
            }
            Object::Secret { credential } => {
                handed_out.extend(credential.clone());
                continue;
            }
        };
        let recorded = keys.iter().filter(|(_, (subuser, ..))| subuser == concerned);
        let recorded: Vec<Holder> =
            recorded.filter_map(|(uid, (.., pair))| Some((uid.clone(), pair.as_ref()?.revision))).collect();
        if recorded.len() > 2 {
            report(Rule::MoreThanTwoRecorded, format!("{concerned}: {recorded:?}"));
        }
        let places = ledgers.get(concerned).map_or(&[][..], Vec::as_slice);
        for holder in recorded.iter().filter(|holder| !places.contains(holder)) {
            report(Rule::RecordWithoutPlace, format!("{concerned}: {holder:?} not in {places:?}"));
        }
    }
    found
}

/// Every revision of the three kinds, from before the first object on.
#[derive(Default)]
struct Recorder {
    revisions: Mutex<Vec<Revision>>,
    resumed: AtomicUsize,
}

/// A kind that is recorded.
trait Watched:
    Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned + Send + 'static
{
    fn seen(&self) -> Object;
}

impl Watched for Subuser {
    fn seen(&self) -> Object {
        let ledger = self.status.iter().flat_map(|status| status.keys.iter().flatten());
        Object::Subuser { ledger: ledger.map(|entry| (entry.uid.clone(), entry.revision)).collect() }
    }
}

impl Watched for AccessKey {
    fn seen(&self) -> Object {
        let pair = self.status.as_ref().and_then(|status| {
            let text = |text: &Option<String>| text.clone().unwrap_or_default();
            let credential = (text(&status.access_key_id), text(&status.fingerprint));
            status.revision.map(|revision| Recorded { revision, credential })
        });
        Object::Key { subuser: self.spec.subuser_ref.name.clone(), enabled: self.spec.enabled, pair }
    }
}

impl Watched for Secret {
    fn seen(&self) -> Object {
        Object::Secret { credential: credential(self) }
    }
}

impl Recorder {
    async fn start(self: &Arc<Self>, client: &Client) -> Vec<tokio::task::JoinHandle<()>> {
        vec![
            self.follow::<Subuser>(Api::namespaced(client.clone(), NAMESPACE), "").await,
            self.follow::<AccessKey>(Api::namespaced(client.clone(), NAMESPACE), "").await,
            self.follow::<Secret>(Api::namespaced(client.clone(), NAMESPACE), &of_our_type()).await,
        ]
    }

    /// A watch that ends is taken up where it stopped; if the API server cannot do that, its history has a hole and the
    /// test fails.
    async fn follow<K: Watched>(self: &Arc<Self>, api: Api<K>, fields: &str) -> tokio::task::JoinHandle<()> {
        let before = api.list(&ListParams::default().fields(fields)).await.unwrap();
        assert!(before.items.is_empty(), "the history starts before the first object");
        let mut version = before.metadata.resource_version.unwrap();
        let params = WatchParams::default().fields(fields).timeout(290);
        let recorder = Arc::clone(self);
        tokio::spawn(async move {
            loop {
                let mut events = match api.watch(&params, &version).await {
                    Ok(events) => events.boxed(),
                    Err(kube::Error::Api(status)) if status.code == 410 => hole::<K>(&status.message),
                    Err(_) => futures::stream::empty().boxed(),
                };
                while let Some(Ok(event)) = events.next().await {
                    let (object, removed) = match event {
                        WatchEvent::Added(object) | WatchEvent::Modified(object) => (object, false),
                        WatchEvent::Deleted(object) => (object, true),
                        WatchEvent::Bookmark(mark) => {
                            version = mark.metadata.resource_version;
                            continue;
                        }
                        WatchEvent::Error(status) if status.code == 410 => hole::<K>(&status.message),
                        WatchEvent::Error(_) => break,
                    };
                    version = object.resource_version().unwrap();
                    let revision = revision(&object, removed);
                    recorder.revisions.lock().unwrap().push(revision);
                }
                recorder.resumed.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
    }

    /// The whole history, once its end is what a live list shows.
    async fn up_to_date(&self, client: &Client) -> Vec<Revision> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let live = versions(&list::<Subuser>(client, "").await)
                .into_iter()
                .chain(versions(&list::<AccessKey>(client, "").await))
                .chain(versions(&list::<Secret>(client, &of_our_type()).await))
                .collect::<BTreeSet<_>>();
            let history = self.revisions.lock().unwrap().clone();
            let last: BTreeMap<&str, &Revision> =
                history.iter().map(|revision| (revision.uid.as_str(), revision)).collect();
            let seen: BTreeSet<_> = last.values().filter(|last| !last.removed).map(|last| last.version).collect();
            if seen == live {
                return history;
            }
            assert!(Instant::now() < deadline, "the watches have missed something: {seen:?}, {live:?}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

fn hole<K: Resource<DynamicType = ()>>(message: &str) -> ! {
    panic!("the history of {} has a hole: {message}", K::kind(&()))
}

fn revision<K: Watched>(object: &K, removed: bool) -> Revision {
    Revision {
        version: object.resource_version().unwrap().parse().unwrap(),
        name: object.name_any(),
        uid: object.uid().unwrap(),
        removed,
        object: object.seen(),
    }
}

fn versions<K: Resource>(objects: &[K]) -> BTreeSet<u64> {
    objects.iter().map(|object| object.resource_version().unwrap().parse().unwrap()).collect()
}

fn of_our_type() -> String {
    format!("type={SECRET_TYPE}")
}

async fn list<K: Watched>(client: &Client, fields: &str) -> Vec<K> {
    let api = Api::<K>::namespaced(client.clone(), NAMESPACE);
    api.list(&ListParams::default().fields(fields)).await.unwrap().items
}

/// Id and fingerprint of the pair in a Secret.
fn credential(secret: &Secret) -> Option<Credential> {
    let data = secret.data.as_ref()?;
    let id = String::from_utf8(data.get("access-key-id")?.0.clone()).ok()?;
    let digest = Sha256::digest(&data.get("secret-access-key")?.0);
    Some((id, digest.iter().fold("sha256:".to_owned(), |text, byte| format!("{text}{byte:02x}"))))
}

/// What the users have done.
#[derive(Default)]
struct Tally {
    created: usize,
    deleted: usize,
    secrets_deleted: usize,
    switched_off: usize,
}

impl Tally {
    fn plus(self, other: &Self) -> Self {
        Self {
            created: self.created + other.created,
            deleted: self.deleted + other.deleted,
            secrets_deleted: self.secrets_deleted + other.secrets_deleted,
            switched_off: self.switched_off + other.switched_off,
        }
    }
}

async fn create_subusers(client: &Client) {
    let subusers = Api::<Subuser>::namespaced(client.clone(), NAMESPACE);
    for number in 0..SUBUSERS {
        let subuser = object(json!({ "kind": "Subuser", "metadata": { "name": subuser_name(number) }, "spec": {} }));
        subusers.create(&PostParams::default(), &subuser).await.unwrap();
    }
}

fn subuser_name(number: usize) -> String {
    format!("subuser-{number}")
}

fn object<K: DeserializeOwned>(mut fields: serde_json::Value) -> K {
    fields["apiVersion"] = "accesskey.dev/v1alpha1".into();
    serde_json::from_value(fields).unwrap()
}

/// Users of one Subuser, who create, lose and delete its keys.
async fn churn(client: Client, number: usize, seed: u64) -> Tally {
    let mut rng = StdRng::seed_from_u64(seed.wrapping_add(number as u64));
    let mut tally = Tally::default();
    let keys = Api::<AccessKey>::namespaced(client.clone(), NAMESPACE);
    let secrets = Api::<Secret>::namespaced(client.clone(), NAMESPACE);
    let subusers = Api::<Subuser>::namespaced(client.clone(), NAMESPACE);
    let subuser = subuser_name(number);
    let names: Vec<String> = (0..KEYS_OF_EACH).map(|key| format!("key-{number}-{key}")).collect();
    let of_subuser = ListParams::default().fields(&format!("spec.subuserRef.name={subuser}")).match_any();
    for name in &names {
        tally.created += usize::from(create(&keys, name, &subuser).await);
    }
    let end = Instant::now() + CHURN;
    while Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(rng.random_range(10..150))).await;
        let mut there = keys.list(&of_subuser).await.unwrap().items;
        // Between the last look and the removal the API server does not hear of a key that is enabled once more.
        there.retain(|key| !key.is_deleting());
        let issued = |key: &&AccessKey| key.status.as_ref().is_some_and(|status| status.revision.is_some());
        // Mostly one that holds a place: with those that wait nothing happens.
        let holders: Vec<&AccessKey> = there.iter().filter(issued).collect();
        let of_interest = if rng.random_bool(0.8) { holders } else { there.iter().collect() };
        let chosen = of_interest.choose(&mut rng).map(|key| key.name_any());
        match (rng.random_range(0..100), chosen) {
            (0..50, Some(name)) => {
                tally.deleted += usize::from(delete(&keys, &name).await);
                // Sometimes at once, while the old one is still going.
                if rng.random_bool(0.7) {
                    tally.created += usize::from(recreate(&keys, &name, &subuser, &mut rng).await);
                }
            }
            (50..65, Some(name)) => {
                tally.secrets_deleted += usize::from(secrets.delete(&name, &DeleteParams::default()).await.is_ok());
            }
            (65..70, Some(name)) => {
                enable(&keys, &name, rng.random()).await;
            }
            (70..75, _) => {
                enable(&subusers, &subuser, false).await;
                tally.switched_off += 1;
            }
            (75..80, _) => enable(&subusers, &subuser, true).await,
            _ => {
                let name = names.choose(&mut rng).unwrap();
                tally.created += usize::from(create(&keys, name, &subuser).await);
            }
        }
    }
    tally
}

/// Whether it was made; it may be there already.
async fn create(keys: &Api<AccessKey>, name: &str, subuser: &str) -> bool {
    let spec = json!({ "subuserRef": { "name": subuser } });
    let key = object(json!({ "kind": "AccessKey", "metadata": { "name": name }, "spec": spec }));
    match keys.create(&PostParams::default(), &key).await {
        Ok(_) => true,
        Err(kube::Error::Api(status)) if status.code == 409 => false,
        Err(error) => panic!("create {name}: {error}"),
    }
}

async fn recreate(keys: &Api<AccessKey>, name: &str, subuser: &str, rng: &mut impl Rng) -> bool {
    for _ in 0..rng.random_range(1..40) {
        if create(keys, name, subuser).await {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    false
}

/// Disables, then deletes; somebody else may have enabled it between the two, or deleted it before.
async fn delete(keys: &Api<AccessKey>, name: &str) -> bool {
    enable(keys, name, false).await;
    match keys.delete(name, &DeleteParams::default()).await {
        Ok(_) => true,
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 403 | 422) => false,
        Err(error) => panic!("delete {name}: {error}"),
    }
}

/// Sets `spec.enabled` of what may be gone.
async fn enable<K: Clone + Debug + DeserializeOwned>(api: &Api<K>, name: &str, enabled: bool) {
    let change = Patch::Merge(json!({ "spec": { "enabled": enabled } }));
    match api.patch(name, &PatchParams::default(), &change).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        Err(error) => panic!("patch {name}: {error}"),
    }
}

/// Keeps two operators running but for what it kills; returns them alive, and the number of kills.
async fn kill_at_random(cluster: &Cluster, seed: u64) -> ([Operator; 2], usize) {
    let start = |user| cluster.operator(user, &["--leader-election=false"]);
    let users = ["operator", "operator-2"];
    let mut operators = users.map(start);
    let mut rng = StdRng::seed_from_u64(seed);
    let mut kills = 0;
    let end = Instant::now() + CHURN;
    while Instant::now() < end {
        tokio::time::sleep(KILL_EVERY).await;
        let victim = rng.random_range(0..users.len());
        operators[victim].replace(|| start(users[victim]));
        kills += 1;
    }
    (operators, kills)
}

/// Waits until every Subuser has two keys Ready, or all it has, the others wait for a place, and each recorded pair is in
/// its Secret.
async fn converge(client: &Client) {
    let subusers = Api::<Subuser>::namespaced(client.clone(), NAMESPACE);
    for number in 0..SUBUSERS {
        enable(&subusers, &subuser_name(number), true).await;
    }
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let amiss = amiss(&list(client, "").await, &list(client, &of_our_type()).await);
        if amiss.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "not converged: {amiss:#?}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// What is not as it should be in the end.
fn amiss(keys: &[AccessKey], secrets: &[Secret]) -> Vec<String> {
    let mut amiss = Vec::new();
    let pairs: BTreeMap<(String, String), Credential> = secrets
        .iter()
        .filter_map(|secret| {
            let owner = secret.owner_references().iter().find(|owner| owner.controller == Some(true))?;
            Some(((owner.uid.clone(), secret.name_any()), credential(secret)?))
        })
        .collect();
    if pairs.len() != secrets.len() {
        amiss.push("a Secret without owner or pair".to_owned());
    }
    let uids: BTreeSet<String> = keys.iter().map(|key| key.uid().unwrap()).collect();
    amiss.extend(
        pairs.keys().filter(|(owner, _)| !uids.contains(owner)).map(|(_, name)| format!("orphan Secret {name}")),
    );
    for number in 0..SUBUSERS {
        let subuser = subuser_name(number);
        let ours: Vec<&AccessKey> = keys.iter().filter(|key| key.spec.subuser_ref.name == subuser).collect();
        let ready = ours.iter().filter(|key| condition(key, "Ready").0 == "True").count();
        let waiting =
            |key: &&&AccessKey| condition(key, "Stalled") == ("True".to_owned(), "KeyLimitExceeded".to_owned());
        let waiting = ours.iter().filter(waiting).count();
        if ready != ours.len().min(2) || ready + waiting != ours.len() {
            amiss.push(format!("{subuser}: {ready} Ready, {waiting} waiting of {}", ours.len()));
        }
    }
    for key in keys {
        let Object::Key { pair, .. } = key.seen() else { continue };
        let held = pairs.get(&(key.uid().unwrap(), key.name_any()));
        if held != pair.as_ref().map(|recorded| &recorded.credential) {
            amiss.push(format!("Secret of {} does not hold what is recorded", key.name_any()));
        }
    }
    amiss
}

/// Status and reason.
fn condition(key: &AccessKey, kind: &str) -> (String, String) {
    let conditions = key.status.iter().flat_map(|status| &status.conditions);
    let found = conditions.into_iter().find(|condition| condition.type_ == kind);
    found.map(|condition| (condition.status.clone(), condition.reason.clone())).unwrap_or_default()
}

/// Histories in small: `check` numbers the revisions and expects exactly these rules to be broken.
mod checker {
    use super::{Credential, Object, Recorded, Revision, Rule, violations};

    fn check(history: &[Revision], expected: &[Rule]) {
        let numbered: Vec<Revision> =
            (1..).zip(history).map(|(version, revision)| Revision { version, ..revision.clone() }).collect();
        let mut found: Vec<Rule> = violations(&numbered).into_iter().map(|(rule, ..)| rule).collect();
        found.dedup();
        assert_eq!(found, expected, "{numbered:#?}");
        // Whatever order the watches brought them in.
        let reversed: Vec<Revision> = numbered.iter().rev().cloned().collect();
        assert_eq!(violations(&reversed), violations(&numbered));
    }

    fn revision(name: &str, object: Object) -> Revision {
        Revision { version: 0, name: name.into(), uid: name.into(), removed: false, object }
    }

    fn ledger(holders: &[(&str, i64)]) -> Revision {
        let ledger = holders.iter().map(|(uid, revision)| ((*uid).to_owned(), *revision)).collect();
        revision("bot", Object::Subuser { ledger })
    }

    fn credential(id: &str) -> Credential {
        (id.trim_end_matches('\'').to_owned(), format!("sha256:{id}"))
    }

    fn secret(id: &str) -> Revision {
        revision(id, Object::Secret { credential: Some(credential(id)) })
    }

    /// A key with a pair; `id'` is the id with another secret.
    fn key(name: &str, pair: Option<(i64, &str)>) -> Revision {
        let pair = pair.map(|(revision, id)| Recorded { revision, credential: credential(id) });
        revision(name, Object::Key { subuser: "bot".into(), enabled: true, pair })
    }

    fn disabled(mut revision: Revision) -> Revision {
        if let Object::Key { enabled, .. } = &mut revision.object {
            *enabled = false;
        }
        revision
    }

    fn removed(revision: Revision) -> Revision {
        Revision { removed: true, ..revision }
    }

    #[test]
    fn a_good_history_passes() {
        let issued = || key("a", Some((1, "A1")));
        check(
            &[
                ledger(&[]),
                key("a", None),
                ledger(&[("a", 1)]),
                secret("A1"),
                issued(),
                disabled(issued()),
                removed(disabled(issued())),
                ledger(&[]),
                key("b", None),
                ledger(&[("b", 1)]),
                secret("B1"),
                key("b", Some((1, "B1"))),
                key("b", None),
                ledger(&[("b", 2)]),
                secret("B2"),
                key("b", Some((2, "B2"))),
            ],
            &[],
        );
    }

    #[test]
    fn three_entries_in_a_ledger_are_seen() {
        check(&[ledger(&[("a", 1), ("b", 1), ("c", 1)])], &[Rule::LedgerOverTwo]);
    }

    #[test]
    fn a_second_secret_of_one_revision_is_seen() {
        let start = [ledger(&[("a", 1)]), secret("A1"), key("a", Some((1, "A1"))), secret("A1'")];
        let history = [&start[..], &[key("a", Some((1, "A1'")))]].concat();
        check(&history, &[Rule::TwoCredentialsOfOneRevision, Rule::TwoCredentialsOfOneId]);
    }

    #[test]
    fn a_second_id_of_one_revision_is_seen() {
        let start = [ledger(&[("a", 1)]), secret("A1"), key("a", Some((1, "A1"))), secret("A2")];
        check(&[&start[..], &[key("a", Some((1, "A2")))]].concat(), &[Rule::TwoCredentialsOfOneRevision]);
    }

    #[test]
    fn a_used_id_is_seen() {
        let start = [ledger(&[("a", 1), ("b", 1)]), secret("A1"), key("a", Some((1, "A1")))];
        check(&[&start[..], &[key("b", Some((1, "A1")))]].concat(), &[Rule::IdOfTwoRevisions]);
    }

    #[test]
    fn an_id_with_two_secrets_is_seen() {
        let start = [ledger(&[("a", 1), ("b", 1)]), secret("A1"), key("a", Some((1, "A1"))), secret("A1'")];
        let history = [&start[..], &[key("b", Some((1, "A1'")))]].concat();
        check(&history, &[Rule::TwoCredentialsOfOneId, Rule::IdOfTwoRevisions]);
    }

    #[test]
    fn a_pair_without_a_place_is_seen() {
        check(&[ledger(&[]), secret("A1"), key("a", Some((1, "A1")))], &[Rule::RecordWithoutPlace]);
        let granted = [ledger(&[("a", 1)]), secret("A1"), key("a", Some((1, "A1")))];
        check(&[&granted[..], &[ledger(&[])]].concat(), &[Rule::RecordWithoutPlace]);
        check(&[&granted[..], &[ledger(&[("a", 2)])]].concat(), &[Rule::RecordWithoutPlace]);
        check(&[&granted[..], &[removed(ledger(&[]))]].concat(), &[Rule::RecordWithoutPlace]);
    }

    #[test]
    fn a_record_before_its_secret_is_seen() {
        check(&[ledger(&[("a", 1)]), key("a", Some((1, "A1"))), secret("A1")], &[Rule::RecordWithoutSecret]);
    }

    #[test]
    fn a_third_pair_is_seen() {
        let start = [ledger(&[("a", 1), ("b", 1)]), secret("A1"), secret("B1"), secret("C1")];
        let issued = [key("a", Some((1, "A1"))), key("b", Some((1, "B1"))), key("c", Some((1, "C1")))];
        let rules = [Rule::RecordWithoutPlace, Rule::MoreThanTwoRecorded];
        check(&[&start[..], &issued[..]].concat(), &rules);
    }

    #[test]
    fn the_removal_of_an_enabled_key_is_seen() {
        check(&[key("a", None), removed(key("a", None))], &[Rule::RemovedWhileEnabled]);
        // The very revision that removes it comes too late to disable it.
        check(&[key("a", None), removed(disabled(key("a", None)))], &[Rule::RemovedWhileEnabled]);
        check(&[disabled(key("a", None)), key("a", None), removed(key("a", None))], &[Rule::RemovedWhileEnabled]);
    }
}
