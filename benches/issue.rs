//! How fast keys are issued, and at what price, beside a bare client that makes the same writes.
//!
//! `cargo bench --bench issue`; `ROUNDS=5` for more rounds than 3. Each round measures both, each on a fresh control plane
//! whose etcd waits for the disk. Absolute numbers are this machine's; the ratio is the operator's.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "a benchmark that cannot go on has nothing better to do, and its counts are small"
)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::{
    collections::BTreeSet,
    fmt::Debug,
    time::{Duration, Instant},
};

use accesskey_operator::api::{AccessKey, SECRET_TYPE, Subuser};
use controlplane::Settings;
use futures::{StreamExt, stream};
use k8s_openapi::api::{core::v1::Secret, events::v1::Event};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams},
    core::NamespaceResourceScope,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use support::{Cluster, Operator};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

const NAMESPACE: &str = "bench";
const SUBUSERS: usize = 500;
const KEYS: usize = 1000;
const IN_FLIGHT: usize = 16;
/// Events are sent beside the work, as the operator sends them.
const EVENTS_IN_FLIGHT: usize = 4;
const TRIALS: usize = 100;
const THIRD_KEYS: usize = 20;
/// Until the last Event is sent and the processor time of everything is on the account.
const REST: Duration = Duration::from_secs(3);

fn main() {
    let rounds = std::env::var("ROUNDS").ok().map_or(3, |rounds| rounds.parse().unwrap());
    println!("{}", machine());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut table = Table::default();
    // How many Subuser writes the bare client makes is what the operator needed just before.
    let mut grants = 0;
    for round in 1..=rounds {
        let (operator, bare);
        if round % 2 == 1 {
            operator = runtime.block_on(measure_operator());
            grants = operator.grants;
            bare = runtime.block_on(measure_bare(grants));
        } else {
            bare = runtime.block_on(measure_bare(grants));
            operator = runtime.block_on(measure_operator());
            grants = operator.grants;
        }
        println!(
            "round {round}: operator {:.0} keys/s, bare client {:.0}, load {}",
            operator.keys_a_second,
            bare.keys_a_second,
            load()
        );
        table.add("operator, keys/s", operator.keys_a_second);
        table.add("bare client, keys/s", bare.keys_a_second);
        table.add("ratio (goal: 0.7 or more)", operator.keys_a_second / bare.keys_a_second);
        table.add("Subuser writes a key", operator.grants as f64 / KEYS as f64);
        table.add("operator, CPU-s per 1,000 keys (goal: 0.6 or less)", operator.cpu);
        // The user's part is the same in both: creating the keys and watching them.
        table.add("the same of the bare client", bare.cpu - operator.cpu_of_user);
        table.add("VmRSS at 1,000 keys, MiB (goal: 25 or less)", operator.rss);
        table.add("VmHWM at 1,000 keys, MiB", operator.peak);
        table.add("one key, create to Ready, p50, ms (goal: 50 or less)", operator.p50);
        table.add("one key, create to Ready, p99, ms", operator.p99);
        table.add("third key, from the deletion of another, p50, ms", operator.third);
        table.add("kill -9 to the next key Ready, with 1,000 keys, ms", operator.restart);
    }
    println!("{}", table.text());
}

/// What one run of the operator showed.
struct Measured {
    keys_a_second: f64,
    grants: usize,
    cpu: f64,
    cpu_of_user: f64,
    rss: f64,
    peak: f64,
    p50: f64,
    p99: f64,
    third: f64,
    restart: f64,
}

/// What one run of the bare client showed; the processor time is that of this whole process.
struct Bare {
    keys_a_second: f64,
    cpu: f64,
}

async fn measure_operator() -> Measured {
    let cluster = start();
    let client = cluster.client("admin").await;
    let start = || cluster.operator_logging("info,kube=warn", "operator", &["--leader-election=false"]);
    let mut operator = start();
    let mut subusers = follow::<Subuser>(&client).await;
    let mut keys = follow::<AccessKey>(&client).await;
    let (crowd, single) = (names("subuser", SUBUSERS), names("single", TRIALS));
    create_subusers(&client, &crowd).await;
    create_subusers(&client, &single).await;
    subusers.all_ready(SUBUSERS + TRIALS).await;
    tokio::time::sleep(REST).await;
    subusers.drain();

    let (pid, this) = (operator.pid(), std::process::id());
    let before = (cpu_seconds(pid), cpu_seconds(this));
    let begin = Instant::now();
    create_keys(&client, |_| {}).await;
    let took = keys.all_ready(KEYS).await - begin;
    tokio::time::sleep(REST).await;
    let per_1000 = |seconds: f64| seconds * 1000.0 / KEYS as f64;
    let (cpu, cpu_of_user) = (per_1000(cpu_seconds(pid) - before.0), per_1000(cpu_seconds(this) - before.1));
    let (rss, peak) = (memory(&operator, "VmRSS:"), memory(&operator, "VmHWM:"));
    let grants = subusers.drain();

    let mut trials = Vec::new();
    for name in &single {
        let begin = Instant::now();
        create_key(&client, name, name).await;
        trials.push(milliseconds(keys.ready(name).await - begin));
    }
    let mut thirds = Vec::new();
    for number in 0..THIRD_KEYS {
        let (old, third) = (format!("key-{number}"), format!("third-{number}"));
        create_key(&client, &third, &format!("subuser-{number}")).await;
        let api = Api::<AccessKey>::namespaced(client.clone(), NAMESPACE);
        let off = Patch::Merge(json!({ "spec": { "enabled": false } }));
        api.patch(&old, &PatchParams::default(), &off).await.unwrap();
        api.delete(&old, &DeleteParams::default()).await.unwrap();
        let begin = Instant::now();
        thirds.push(milliseconds(keys.ready(&third).await.saturating_duration_since(begin)));
    }
    create_subusers(&client, &names("restart", 1)).await;
    subusers.ready("restart-0").await;
    operator.replace(start);
    let begin = Instant::now();
    create_key(&client, "restart", "restart-0").await;
    let restart = milliseconds(keys.ready("restart").await - begin);
    Measured {
        keys_a_second: KEYS as f64 / took.as_secs_f64(),
        grants,
        cpu,
        cpu_of_user,
        rss,
        peak,
        p50: percentile(&mut trials, 50),
        p99: percentile(&mut trials, 99),
        third: percentile(&mut thirds, 50),
        restart,
    }
}

/// A client that does nothing but to send what the operator sends.
async fn measure_bare(grants: usize) -> Bare {
    let cluster = start();
    let client = cluster.client("operator").await;
    let admin = cluster.client("admin").await;
    let mut keys = follow::<AccessKey>(&admin).await;
    let crowd = names("subuser", SUBUSERS);
    create_subusers(&admin, &crowd).await;
    stream::iter(&crowd).for_each_concurrent(IN_FLIGHT, |name| prepare(&client, name)).await;

    let (created, work) = unbounded_channel::<(usize, AccessKey)>();
    let (told, events) = unbounded_channel::<AccessKey>();
    let work = flow(work).for_each_concurrent(IN_FLIGHT, |(number, key)| {
        let (client, told) = (client.clone(), told.clone());
        async move {
            // As many grants as the operator needed, evenly spread.
            let grant = (number + 1) * grants / KEYS > number * grants / KEYS;
            issue(&client, &key, grant).await;
            told.send(key).unwrap();
        }
    });
    let events = flow(events).for_each_concurrent(EVENTS_IN_FLIGHT, |key| tell(&client, key));
    let before = cpu_seconds(std::process::id());
    let begin = Instant::now();
    let measured = async {
        create_keys(&admin, |created_key| created.send(created_key).unwrap()).await;
        let took = keys.all_ready(KEYS).await - begin;
        tokio::time::sleep(REST).await;
        Bare {
            keys_a_second: KEYS as f64 / took.as_secs_f64(),
            cpu: (cpu_seconds(std::process::id()) - before) * 1000.0 / KEYS as f64,
        }
    };
    tokio::select! {
        () = work => unreachable!(),
        () = events => unreachable!(),
        measured = measured => measured,
    }
}

fn start() -> Cluster {
    let cluster = Cluster::start(Settings { fsync: true, ..Settings::default() });
    cluster.namespace(NAMESPACE);
    cluster
}

fn names(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{prefix}-{number}")).collect()
}

async fn create_subusers(client: &Client, names: &[String]) {
    let subusers = Api::<Subuser>::namespaced(client.clone(), NAMESPACE);
    let create = |name: &String| {
        let subuser = object::<Subuser>(json!({ "kind": "Subuser", "metadata": { "name": name }, "spec": {} }));
        let subusers = &subusers;
        async move { drop(subusers.create(&PostParams::default(), &subuser).await.unwrap()) }
    };
    stream::iter(names).for_each_concurrent(IN_FLIGHT, create).await;
}

async fn create_keys(client: &Client, created: impl Fn((usize, AccessKey))) {
    let created = &created;
    let create = |number| async move {
        let subuser = format!("subuser-{}", number % SUBUSERS);
        created((number, create_key(client, &format!("key-{number}"), &subuser).await));
    };
    stream::iter(0..KEYS).for_each_concurrent(IN_FLIGHT, create).await;
}

async fn create_key(client: &Client, name: &str, subuser: &str) -> AccessKey {
    let spec = json!({ "subuserRef": { "name": subuser } });
    let key = object(json!({ "kind": "AccessKey", "metadata": { "name": name }, "spec": spec }));
    Api::namespaced(client.clone(), NAMESPACE).create(&PostParams::default(), &key).await.unwrap()
}

fn object<K: DeserializeOwned>(mut fields: Value) -> K {
    fields["apiVersion"] = "accesskey.dev/v1alpha1".into();
    serde_json::from_value(fields).unwrap()
}

/// What the operator does to a new Subuser.
async fn prepare(client: &Client, name: &str) {
    let subusers = Api::<Subuser>::namespaced(client.clone(), NAMESPACE);
    let finalizer = Patch::Merge(json!({ "metadata": { "finalizers": ["accesskey.dev/finalizer"] } }));
    subusers.patch(name, &params(), &finalizer).await.unwrap();
    let status = Patch::Merge(json!({ "status": {
        "observedGeneration": 1, "id": "su-aaaabbbbccccdddd", "keys": [],
        "conditions": [condition("Ready", "Enabled", "its keys are accepted as far as they are enabled themselves")],
    } }));
    subusers.patch_status(name, &params(), &status).await.unwrap();
}

/// What the operator writes for a key, one after the other.
async fn issue(client: &Client, key: &AccessKey, grant: bool) {
    let (name, uid) = (key.name_any(), key.uid().unwrap());
    let keys = Api::<AccessKey>::namespaced(client.clone(), NAMESPACE);
    let subusers = Api::<Subuser>::namespaced(client.clone(), NAMESPACE);
    let secrets = Api::<Secret>::namespaced(client.clone(), NAMESPACE);
    let finalizer = json!({ "metadata": {
        "finalizers": ["accesskey.dev/finalizer"], "uid": uid, "resourceVersion": key.resource_version(),
    } });
    let held = keys.patch(&name, &params(), &Patch::Merge(finalizer)).await.unwrap();
    if grant {
        let entry = json!({ "accessKey": name, "uid": uid, "revision": 1, "clusterQuota": 0 });
        let ledger = Patch::Merge(json!({ "status": { "keys": [entry] } }));
        subusers.patch_status(&key.spec.subuser_ref.name, &params(), &ledger).await.unwrap();
    }
    let secret: Secret = serde_json::from_value(json!({
        "type": SECRET_TYPE,
        "metadata": {
            "name": name,
            "labels": { "app.kubernetes.io/managed-by": "accesskey-operator" },
            "annotations": { "accesskey.dev/revision": "1" },
            "ownerReferences": [{
                "apiVersion": "accesskey.dev/v1alpha1", "kind": "AccessKey", "name": name, "uid": uid, "controller": true,
            }],
        },
        "stringData": {
            "access-key-id": "AKO".to_owned() + &"A".repeat(17), "secret-access-key": "aks_".to_owned() + &"0".repeat(49),
            "type": "access-key", "provider": "accesskey.dev",
        },
    }))
    .unwrap();
    secrets
        .create(&PostParams { field_manager: params().field_manager, ..PostParams::default() }, &secret)
        .await
        .unwrap();
    let status = json!({
        "metadata": { "uid": uid, "resourceVersion": held.resource_version() },
        "status": {
            "observedGeneration": 1, "revision": 1, "lastRevision": 1, "accessKeyID": "AKO".to_owned() + &"A".repeat(17),
            "fingerprint": "sha256:".to_owned() + &"0".repeat(64), "issuedAt": jiff::Timestamp::now(),
            "binding": { "name": name },
            "conditions": [
                condition("Ready", "Issued", &format!("Secret {name} holds the pair")),
                condition("Active", "Enabled", "requests are accepted"),
            ],
        },
    });
    keys.patch_status(&name, &params(), &Patch::Merge(status)).await.unwrap();
}

async fn tell(client: &Client, key: AccessKey) {
    let now = jiff::Timestamp::now();
    let event = serde_json::from_value::<Event>(json!({
        "metadata": { "name": format!("{}.{:x}", key.name_any(), now.as_nanosecond()) },
        "action": "Reconcile", "reason": "Issued", "note": format!("Secret {} holds the pair", key.name_any()),
        "type": "Normal", "eventTime": format!("{now:.6}"), "reportingController": "accesskey-operator",
        "reportingInstance": "accesskey-operator-abcdefgh", "regarding": key.object_ref(&()),
    }))
    .unwrap();
    Api::<Event>::namespaced(client.clone(), NAMESPACE).create(&PostParams::default(), &event).await.unwrap();
}

fn params() -> PatchParams {
    PatchParams { field_manager: Some("accesskey-operator".into()), ..PatchParams::default() }
}

fn condition(kind: &str, reason: &str, message: &str) -> Value {
    json!({
        "type": kind, "status": "True", "reason": reason, "message": message, "observedGeneration": 1,
        "lastTransitionTime": jiff::Timestamp::now(),
    })
}

/// What a watch tells: name, whether it is Ready, and when it was heard.
struct Followed(UnboundedReceiver<(String, bool, Instant)>);

async fn follow<K>(client: &Client) -> Followed
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + serde::Serialize
        + DeserializeOwned
        + Send
        + 'static,
{
    let api = Api::<K>::namespaced(client.clone(), NAMESPACE);
    let mut version = api.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
    let (heard, followed) = unbounded_channel();
    tokio::spawn(async move {
        while !heard.is_closed() {
            let Ok(events) = api.watch(&WatchParams::default().timeout(290), &version).await else { break };
            let mut events = events.boxed();
            while let Some(Ok(event)) = events.next().await {
                if let WatchEvent::Added(object) | WatchEvent::Modified(object) = event {
                    version = object.resource_version().unwrap();
                    let now = Instant::now();
                    let ready = is_ready(&serde_json::to_value(&object).unwrap());
                    let _ = heard.send((object.name_any(), ready, now));
                }
            }
        }
    });
    Followed(followed)
}

fn is_ready(object: &Value) -> bool {
    let conditions = object["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

impl Followed {
    /// When the last of so many objects was seen Ready.
    async fn all_ready(&mut self, count: usize) -> Instant {
        let mut ready = BTreeSet::new();
        loop {
            let (name, is_ready, when) = self.next().await;
            if is_ready && ready.insert(name) && ready.len() == count {
                return when;
            }
        }
    }

    /// When this object was seen Ready.
    async fn ready(&mut self, wanted: &str) -> Instant {
        loop {
            let (name, is_ready, when) = self.next().await;
            if is_ready && name == wanted {
                return when;
            }
        }
    }

    /// How many changes there were that nobody has waited for.
    fn drain(&mut self) -> usize {
        std::iter::from_fn(|| self.0.try_recv().ok()).count()
    }

    async fn next(&mut self) -> (String, bool, Instant) {
        tokio::time::timeout(Duration::from_secs(120), self.0.recv())
            .await
            .expect("nothing has changed for two minutes")
            .unwrap()
    }
}

fn flow<T>(queue: UnboundedReceiver<T>) -> impl futures::Stream<Item = T> {
    stream::unfold(queue, async |mut queue| Some((queue.recv().await?, queue)))
}

/// User and system time; the kernel's clock ticks a hundred times a second.
fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    [fields[11], fields[12]].map(|ticks| ticks.parse::<f64>().unwrap()).iter().sum::<f64>() / 100.0
}

/// In MiB.
fn memory(operator: &Operator, field: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", operator.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

fn percentile(values: &mut [f64], percent: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    values[(values.len() * percent).div_ceil(100) - 1]
}

fn machine() -> String {
    let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown processor");
    let cores = std::thread::available_parallelism().unwrap();
    format!("{cores} cores of {}, load {}", model.trim_start_matches([' ', '\t', ':']), load())
}

fn load() -> String {
    std::fs::read_to_string("/proc/loadavg").unwrap().split(' ').next().unwrap().to_owned()
}

/// Measured values by what they are, in the order in which they came.
#[derive(Default)]
struct Table(Vec<(&'static str, Vec<f64>)>);

impl Table {
    fn add(&mut self, what: &'static str, value: f64) {
        match self.0.iter_mut().find(|(known, _)| *known == what) {
            Some((_, values)) => values.push(value),
            None => self.0.push((what, vec![value])),
        }
    }

    fn text(mut self) -> String {
        let mut lines = vec![format!("{:<55} {:>9}   {}", "", "median", "min..max")];
        for (what, values) in &mut self.0 {
            let median = percentile(values, 50);
            let (least, most) = (values[0], values[values.len() - 1]);
            lines.push(format!("{what:<55} {median:>9.2}   {least:.2}..{most:.2}"));
        }
        lines.join("\n")
    }
}
