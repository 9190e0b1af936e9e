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
    writer: std::sync::Mutex<Writer<K>>,
    reader: Store<K>,
    /// How many removals there were: an answer that is older than a removal must not bring the object back.
    removals: AtomicU64,
    complete: AtomicBool,
    completed: Notify,
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
            writer: std::sync::Mutex::new(writer),
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
        let mut writer = self.lock();
        match event {
            Event::Apply(object) => {
                let before = self.reader.get(&object.to_object_ref(()));
                if before.as_ref().is_some_and(|before| same_version(&**before, object)) {
                    return vec![];
                }
                writer.apply_watcher_event(event);
                vec![Change { before, after: self.reader.get(&object.to_object_ref(())) }]
            }
            Event::Delete(object) => {
                let before = self.reader.get(&object.to_object_ref(()));
                self.removals.fetch_add(1, Ordering::AcqRel);
                writer.apply_watcher_event(event);
                vec![Change { before: before.or_else(|| Some(Arc::new(object.clone()))), after: None }]
            }
            Event::Init | Event::InitApply(_) => {
                writer.apply_watcher_event(event);
                vec![]
            }
            Event::InitDone => {
                let before = self.by_reference();
                self.removals.fetch_add(1, Ordering::AcqRel);
                writer.apply_watcher_event(event);
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
        let mut writer = self.lock();
        let before = self.reader.get(&answer.to_object_ref(()));
        let unmoved = before.as_ref().and_then(|before| before.meta().resource_version.as_deref()) == base;
        if !unmoved || (base.is_none() && self.moment() != sent) {
            return None;
        }
        let object = answer.to_object_ref(());
        writer.apply_watcher_event(&Event::Apply(answer));
        Some(Change { before, after: self.reader.get(&object) })
    }

    /// Takes in that exactly this object was deleted.
    pub fn forget(&self, object: &K) {
        let mut writer = self.lock();
        if self.reader.get(&object.to_object_ref(())).is_some_and(|known| known.meta().uid == object.meta().uid) {
            writer.apply_watcher_event(&Event::Delete(object.clone()));
        }
    }

    fn by_reference(&self) -> HashMap<ObjectRef<K>, Arc<K>> {
        self.reader.state().into_iter().map(|object| (object.to_object_ref(()), object)).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Writer<K>> {
        self.writer.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
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
