//! What the operator costs the API server, counted in its audit log: for each key, after a crash, and when idle.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::PathBuf,
    time::Duration,
};

use accesskey_operator::api::{AccessKey, Subuser};
use controlplane::Settings;
use futures::{StreamExt, stream};
use kube::{
    Api, Client,
    api::{ListParams, PostParams},
};
use serde_json::{Value, json};

use crate::support::{Cluster, Operator};

const NAMESPACE: &str = "cost";
const SUBUSERS: usize = 500;
const KEYS: usize = 1000;
const IN_FLIGHT: usize = 16;
const IDLE: Duration = Duration::from_secs(120);

/// What the operator runs as.
const USER: &str = "operator";

#[test]
fn four_writes_a_key_none_after_a_crash_and_hardly_a_request_when_idle() {
    let settings = Settings { audit: true, fsync: true, ..Settings::default() };
    let cluster = Cluster::start(settings);
    cluster.namespace(NAMESPACE);
    let audit = Audit(cluster.control_plane.audit_log().unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let client = cluster.client("admin").await;
        let operator = cluster.operator(USER, &["--leader-election=false"]);
        create_subusers(&client).await;
        ready::<Subuser>(&client, SUBUSERS).await;

        let before = audit.quiet().await;
        create_keys(&client).await;
        ready::<AccessKey>(&client, KEYS).await;
        let issuing = audit.quiet().await.since(&before);
        println!("{KEYS} keys of {SUBUSERS} Subusers issued:\n{issuing}");
        let per_key = |count: usize| f64::from(u32::try_from(count).unwrap()) / f64::from(u32::try_from(KEYS).unwrap());
        let (writes, events) = (issuing.count(is_write), issuing.count(is_event));
        let (own, reads) = (issuing.most_writes_of_one_key(), issuing.count(is_read));
        println!(
            "a key: {} writes (at most {own} of the key and its Secret), {} Events, {} GETs and LISTs",
            per_key(writes),
            per_key(events),
            per_key(reads)
        );
        assert!(writes <= 4 * KEYS, "{writes} writes");
        assert!(events <= KEYS, "{events} Events");
        assert_eq!(reads, 0, "GETs and LISTs");
        assert!(own <= 4, "{own} writes of one key and its Secret");

        let before = audit.quiet().await;
        operator.kill();
        let operator = cluster.operator(USER, &["--leader-election=true"]);
        works(&operator).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        let up = audit.now();
        println!("after kill -9 and restart with {KEYS} keys:\n{}", up.since(&before));
        tokio::time::sleep(IDLE).await;
        let end = audit.now();
        let idle = end.since(&up);
        println!("in {IDLE:?} of idleness {} requests:\n{idle}", idle.count(|_| true));
        assert_eq!(end.since(&before).count(is_write), 0, "writes after a restart: {}", end.since(&before));
        assert!(idle.count(|_| true) <= 24, "requests when idle: {idle}");
    });
}

/// One request, as the API server recorded it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Request {
    id: String,
    verb: String,
    resource: String,
    subresource: String,
    name: String,
    code: i64,
}

/// Requests of the operator.
struct Requests(BTreeSet<Request>);

fn is_read(request: &Request) -> bool {
    ["get", "list"].contains(&&*request.verb)
}

fn is_event(request: &Request) -> bool {
    request.resource == "events"
}

/// Refused and superseded ones count too. The Lease is renewed whatever there is to do.
fn is_write(request: &Request) -> bool {
    !is_read(request) && request.verb != "watch" && !is_event(request) && request.resource != "leases"
}

impl Requests {
    fn since(&self, before: &Self) -> Self {
        // A watch shows when it begins and when it ends.
        let known: BTreeSet<&str> = before.0.iter().map(|request| request.id.as_str()).collect();
        Self(self.0.iter().filter(|request| !known.contains(&*request.id)).cloned().collect())
    }

    fn count(&self, counts: impl Fn(&Request) -> bool) -> usize {
        let ids: BTreeSet<&str> =
            self.0.iter().filter(|request| counts(request)).map(|request| request.id.as_str()).collect();
        ids.len()
    }

    /// A key and its Secret have the same name.
    fn most_writes_of_one_key(&self) -> usize {
        let mut writes: BTreeMap<&str, usize> = BTreeMap::new();
        for request in self.0.iter().filter(|request| is_write(request) && request.resource != "subusers") {
            // A POST has no name in its URL; what it makes is named in the body, which is not recorded.
            if !request.name.is_empty() {
                *writes.entry(&request.name).or_default() += 1;
            }
        }
        writes.into_values().max().unwrap_or(0)
    }
}

/// One line for each kind of request, most frequent first.
impl fmt::Display for Requests {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
        for Request { id, verb, resource, subresource, code, .. } in &self.0 {
            let slash = if subresource.is_empty() { "" } else { "/" };
            lines.entry(format!("{verb} {resource}{slash}{subresource} {code}")).or_default().insert(id);
        }
        let mut lines: Vec<(usize, String)> = lines.into_iter().map(|(line, ids)| (ids.len(), line)).collect();
        lines.sort_by(|one, other| other.cmp(one));
        lines.iter().try_for_each(|(count, line)| writeln!(out, "  {count:5} {line}"))
    }
}

/// The audit log.
struct Audit(PathBuf);

impl Audit {
    /// Every request of the operator so far.
    fn now(&self) -> Requests {
        let log = std::fs::read_to_string(&self.0).unwrap();
        // The last line may still be on its way.
        let events = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        Requests(events.filter(|event| event["user"]["username"] == USER).map(|event| request(&event)).collect())
    }

    /// The same, once none has been added for three seconds.
    async fn quiet(&self) -> Requests {
        let mut before = self.now();
        for _ in 0..40 {
            tokio::time::sleep(Duration::from_secs(3)).await;
            let now = self.now();
            if now.0.len() == before.0.len() {
                return now;
            }
            before = now;
        }
        panic!("the operator does not come to rest");
    }
}

fn request(event: &Value) -> Request {
    let text = |path: &str| event.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
    Request {
        id: text("/auditID"),
        verb: text("/verb"),
        resource: text("/objectRef/resource"),
        subresource: text("/objectRef/subresource"),
        name: text("/objectRef/name"),
        code: event["responseStatus"]["code"].as_i64().unwrap_or(0),
    }
}

async fn create_subusers(client: &Client) {
    let subusers = Api::<Subuser>::namespaced(client.clone(), NAMESPACE);
    let create = |number| {
        let subuser = json!({
            "apiVersion": "accesskey.dev/v1alpha1", "kind": "Subuser", "metadata": { "name": subuser_name(number) },
            "spec": {},
        });
        let subusers = &subusers;
        async move {
            subusers.create(&PostParams::default(), &serde_json::from_value(subuser).unwrap()).await.unwrap();
        }
    };
    stream::iter(0..SUBUSERS).for_each_concurrent(IN_FLIGHT, create).await;
}

async fn create_keys(client: &Client) {
    let keys = Api::<AccessKey>::namespaced(client.clone(), NAMESPACE);
    let create = |number| {
        let key = json!({
            "apiVersion": "accesskey.dev/v1alpha1", "kind": "AccessKey", "metadata": { "name": format!("key-{number}") },
            "spec": { "subuserRef": { "name": subuser_name(number % SUBUSERS) } },
        });
        let keys = &keys;
        async move {
            keys.create(&PostParams::default(), &serde_json::from_value(key).unwrap()).await.unwrap();
        }
    };
    stream::iter(0..KEYS).for_each_concurrent(IN_FLIGHT, create).await;
}

fn subuser_name(number: usize) -> String {
    format!("subuser-{number}")
}

/// Waits until so many objects of a kind are Ready.
async fn ready<K>(client: &Client, wanted: usize)
where
    K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + serde::Serialize
        + serde::de::DeserializeOwned,
{
    let api = Api::<K>::namespaced(client.clone(), NAMESPACE);
    let mut ready = 0;
    for _ in 0..240 {
        let objects = api.list(&ListParams::default().match_any()).await.unwrap().items;
        ready = objects.iter().filter(|object| is_ready(&serde_json::to_value(object).unwrap())).count();
        if ready == wanted {
            return;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    panic!("{ready} of {wanted} {} are Ready after two minutes", K::plural(&()));
}

fn is_ready(object: &Value) -> bool {
    let conditions = object["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// Waits until the caches of an operator are complete.
async fn works(operator: &Operator) {
    for _ in 0..600 {
        if std::fs::read_to_string(&operator.log).unwrap().contains("caches complete") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("the operator does not begin to work");
}
