//! What the watches have shown, and what our own writes were answered.
//!
//! A write's answer is put in at once, so that the next look at an object does not see it as it was before; and the
//! watch's echo of that write is then no news. Every cache may be late: nothing in here proves an absence.

use std::{
    collections::{BTreeSet, HashMap},
    hash::Hash,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use kube::{
    Resource, ResourceExt,
    runtime::{
        reflector::{Lookup, ObjectRef, Store, store, store::Writer},
        watcher::Event,
    },
};
use tokio::sync::Notify;

/// Objects of one kind.
pub struct Cache<K: Resource<DynamicType = ()> + Clone + 'static> {
    held: std::sync::Mutex<Held<K>>,
    reader: Store<K>,
    /// How many removals there were: an answer that is older than a removal must not bring the object back.
    removals: AtomicU64,
    complete: AtomicBool,
    completed: Notify,
}

/// What changes together.
struct Held<K: Resource<DynamicType = ()> + Clone + 'static> {
    writer: Writer<K>,
    /// The versions that were learned from answers and that the watch has yet to bring, oldest first. Each was written
    /// upon the one before it, so nothing of anybody else's lies between them.
    echoes: HashMap<ObjectRef<K>, Vec<String>>,
}

/// An object as it was and as it is.
pub struct Change<K> {
    /// Before; `None` if it is new.
    pub before: Option<Arc<K>>,
    /// Now; `None` if it is gone.
    pub after: Option<Arc<K>>,
}

impl<K> Change<K> {
    /// As it is, or was last.
    pub fn latest(&self) -> Option<&Arc<K>> {
        self.after.as_ref().or(self.before.as_ref())
    }
}

/// How far a cache had heard when a request was sent.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Moment(u64);

impl<K: Resource<DynamicType = ()> + Clone + 'static> Cache<K> {
    pub fn new() -> Self {
        let (reader, writer) = store();
        Self {
            held: std::sync::Mutex::new(Held { writer, echoes: HashMap::new() }),
            reader,
            removals: AtomicU64::new(0),
            complete: AtomicBool::new(false),
            completed: Notify::new(),
        }
    }

    pub fn store(&self) -> Store<K> {
        self.reader.clone()
    }

    pub fn get(&self, object: &ObjectRef<K>) -> Option<Arc<K>> {
        self.reader.get(object)
    }

    pub fn all(&self) -> Vec<Arc<K>> {
        self.reader.state()
    }

    /// Whether a first list has been read to its end.
    pub fn is_complete(&self) -> bool {
        self.complete.load(Ordering::Acquire)
    }

    pub async fn completed(&self) {
        while !self.is_complete() {
            let told = self.completed.notified();
            if !self.is_complete() {
                told.await;
            }
        }
    }

    /// Takes in what a watch tells, and returns what is news.
    pub fn apply(&self, event: &Event<K>) -> Vec<Change<K>> {
        let mut held = self.lock();
        match event {
            Event::Apply(object) => {
                let reference = object.to_object_ref(());
                let before = self.reader.get(&reference);
                if held.is_echo(&reference, object)
                    || before.as_ref().is_some_and(|before| same_version(&**before, object))
                {
                    return vec![];
                }
                held.writer.apply_watcher_event(event);
                vec![Change { before, after: self.reader.get(&reference) }]
            }
            Event::Delete(object) => {
                let reference = object.to_object_ref(());
                let before = self.reader.get(&reference);
                self.removals.fetch_add(1, Ordering::AcqRel);
                held.echoes.remove(&reference);
                held.writer.apply_watcher_event(event);
                vec![Change { before: before.or_else(|| Some(Arc::new(object.clone()))), after: None }]
            }
            Event::Init | Event::InitApply(_) => {
                held.writer.apply_watcher_event(event);
                vec![]
            }
            Event::InitDone => {
                let before = self.by_reference();
                self.removals.fetch_add(1, Ordering::AcqRel);
                held.echoes.clear();
                held.writer.apply_watcher_event(event);
                self.complete.store(true, Ordering::Release);
                self.completed.notify_waiters();
                differences(before, &self.by_reference())
            }
        }
    }

    /// To be taken before a request is sent whose answer may be learned.
    pub fn moment(&self) -> Moment {
        Moment(self.removals.load(Ordering::Acquire))
    }

    /// Takes in the answer to a write that was made from version `base` (`None`: the object did not exist), unless a
    /// watch has brought something newer meanwhile.
    pub fn learn(&self, answer: K, base: Option<&str>, sent: Moment) -> Option<Change<K>> {
        let mut held = self.lock();
        let object = answer.to_object_ref(());
        let before = self.reader.get(&object);
        let unmoved = before.as_ref().and_then(|before| before.meta().resource_version.as_deref()) == base;
        if !unmoved || (base.is_none() && self.moment() != sent) {
            return None;
        }
        let version = answer.meta().resource_version.clone().unwrap_or_default();
        held.echoes.entry(object.clone()).or_default().push(version);
        held.writer.apply_watcher_event(&Event::Apply(answer));
        Some(Change { before, after: self.reader.get(&object) })
    }

    /// Takes in that exactly this object was deleted.
    pub fn forget(&self, object: &K) {
        let mut held = self.lock();
        let reference = object.to_object_ref(());
        if self.reader.get(&reference).is_some_and(|known| known.meta().uid == object.meta().uid) {
            held.echoes.remove(&reference);
            held.writer.apply_watcher_event(&Event::Delete(object.clone()));
        }
    }

    fn by_reference(&self) -> HashMap<ObjectRef<K>, Arc<K>> {
        self.reader.state().into_iter().map(|object| (object.to_object_ref(()), object)).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Held<K>> {
        self.held.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl<K: Resource<DynamicType = ()> + Clone + 'static> Held<K> {
    /// Whether the watch brings what was learned before. An older version must not take the place of a newer answer; any
    /// version that was not learned is newer than all that were.
    fn is_echo(&mut self, reference: &ObjectRef<K>, object: &K) -> bool {
        let Some(versions) = self.echoes.get_mut(reference) else { return false };
        let place = versions.iter().position(|version| Some(version) == object.meta().resource_version.as_ref());
        versions.drain(..place.map_or(versions.len(), |place| place + 1));
        if versions.is_empty() {
            self.echoes.remove(reference);
        }
        place.is_some()
    }
}

/// A deletion that happened while a watch was broken shows only here, as an absence from the new list.
fn differences<K: Resource>(
    mut before: HashMap<ObjectRef<K>, Arc<K>>,
    after: &HashMap<ObjectRef<K>, Arc<K>>,
) -> Vec<Change<K>>
where
    K::DynamicType: Eq + Hash,
{
    let mut changes = Vec::new();
    for (reference, now) in after {
        let was = before.remove(reference);
        if !was.as_ref().is_some_and(|was| same_version(&**was, &**now)) {
            changes.push(Change { before: was, after: Some(Arc::clone(now)) });
        }
    }
    changes.extend(before.into_values().map(|gone| Change { before: Some(gone), after: None }));
    changes
}

fn same_version<K: Resource>(one: &K, other: &K) -> bool {
    one.meta().resource_version == other.meta().resource_version && one.meta().uid == other.meta().uid
}

/// Namespace and name.
pub type Name = (String, String);

/// Which AccessKeys point at an object, so that a change of it is brought to them without a search.
#[derive(Default)]
pub struct Referrers(std::sync::Mutex<HashMap<Name, BTreeSet<String>>>);

impl Referrers {
    /// Names of the AccessKeys in the target's namespace that point at it.
    pub fn of(&self, target: &Name) -> Vec<String> {
        self.lock().get(target).map(|names| names.iter().cloned().collect()).unwrap_or_default()
    }

    pub fn add(&self, target: Name, referrer: String) {
        self.lock().entry(target).or_default().insert(referrer);
    }

    pub fn remove(&self, target: &Name, referrer: &str) {
        let mut all = self.lock();
        if let Some(names) = all.get_mut(target) {
            names.remove(referrer);
            if names.is_empty() {
                all.remove(target);
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Name, BTreeSet<String>>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Namespace and name of an object.
pub fn name_of(object: &impl Resource) -> Name {
    (ResourceExt::namespace(object).unwrap_or_default(), object.name_any())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{api::core::v1::ConfigMap, apimachinery::pkg::apis::meta::v1::ObjectMeta};

    use super::*;

    fn at(version: &str) -> ConfigMap {
        let text = |text: &str| Some(text.to_owned());
        let metadata =
            ObjectMeta { name: text("a"), uid: text("u"), resource_version: text(version), ..ObjectMeta::default() };
        ConfigMap { metadata, ..ConfigMap::default() }
    }

    /// `w7` the watch brings version 7, `5>7` a write upon 5 is answered with 7; what is cached in the end.
    fn check(steps: &str, expected: &str) {
        let cache = Cache::new();
        for step in steps.split_whitespace() {
            match step.split_once('>') {
                Some((base, version)) => {
                    let base = Some(base).filter(|base| !base.is_empty());
                    cache.learn(at(version), base, cache.moment());
                }
                None => {
                    cache.apply(&Event::Apply(at(&step[1..])));
                }
            }
        }
        let found = cache.all().first().and_then(|object| object.metadata.resource_version.clone());
        assert_eq!(found.as_deref(), Some(expected), "{steps}");
    }

    #[test]
    fn an_echo_never_takes_the_place_of_a_newer_answer() {
        check("w5 5>7 7>9 w7", "9");
        check("w5 5>7 7>9 w7 w9", "9");
        check(">5 5>7 w5", "7");
    }

    #[test]
    fn what_others_wrote_is_news() {
        check("w5 5>7 w7 w8", "8");
        check("w5 5>7 w8", "8");
        check("w5 w6 5>7", "6");
    }

    #[test]
    fn an_answer_that_is_older_than_a_removal_brings_nothing_back() {
        let cache = Cache::new();
        let sent = cache.moment();
        cache.apply(&Event::Apply(at("5")));
        cache.apply(&Event::Delete(at("5")));
        assert!(cache.learn(at("5"), None, sent).is_none());
        assert!(cache.all().is_empty());
    }
}
