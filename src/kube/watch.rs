//! The watches, and whom a change concerns.

use std::{fmt::Debug, sync::Arc, time::Duration};

use futures::StreamExt;
use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, Client, Resource, ResourceExt,
    core::{NamespaceResourceScope, PartialObjectMeta},
    runtime::{
        reflector::{Lookup, ObjectRef},
        watcher::{self, Event, watcher},
    },
};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::{
    cache::{Cache, Change, Name, Referrers, name_of},
    call::pause,
    task::apart,
};
use crate::{
    api::{AccessKey, SECRET_TYPE, Stored, Subuser},
    core::secret::PairSecret,
};

/// The longest pause between the tries of a broken watch: short, because a late cache costs more than a request.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// An AccessKey to look at.
pub type KeyRef = ObjectRef<Stored<AccessKey>>;
/// A Subuser to look at.
pub type SubuserRef = ObjectRef<Stored<Subuser>>;

/// Which namespaces one set of controllers looks at; nothing ever crosses from one set to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All of them.
    Cluster,
    /// This one.
    Namespace(String),
}

/// All that is known, and who is to be looked at next.
pub struct View {
    pub keys: Cache<Stored<AccessKey>>,
    pub subusers: Cache<Stored<Subuser>>,
    pub secrets: Cache<PairSecret>,
    /// Only for [`Scope::Cluster`]: a Role cannot grant a watch of its own namespace.
    pub namespaces: Cache<PartialObjectMeta<Namespace>>,
    pub scope: Scope,
    by_subuser: Referrers,
    by_secret: Referrers,
    keys_due: UnboundedSender<KeyRef>,
    subusers_due: UnboundedSender<SubuserRef>,
}

/// The other ends of what is due.
pub struct Due {
    pub keys: UnboundedReceiver<KeyRef>,
    pub subusers: UnboundedReceiver<SubuserRef>,
}

impl Scope {
    /// The API of a namespaced kind, as far as this scope reaches.
    fn api<K: Resource<DynamicType = (), Scope = NamespaceResourceScope>>(&self, client: Client) -> Api<K> {
        match self {
            Self::Cluster => Api::all(client),
            Self::Namespace(namespace) => Api::namespaced(client, namespace),
        }
    }
}

impl View {
    pub fn new(scope: Scope) -> (Self, Due) {
        let (keys_due, keys) = unbounded_channel();
        let (subusers_due, subusers) = unbounded_channel();
        let view = Self {
            keys: Cache::new(),
            subusers: Cache::new(),
            secrets: Cache::new(),
            namespaces: Cache::new(),
            scope,
            by_subuser: Referrers::default(),
            by_secret: Referrers::default(),
            keys_due,
            subusers_due,
        };
        (view, Due { keys, subusers })
    }

    /// Keeps the caches up to date; ends only when it is dropped.
    pub async fn watch(self: Arc<Self>, client: Client) {
        let any = watcher::Config::default;
        let of_our_type = any().fields(&format!("type={SECRET_TYPE}"));
        let keys = watcher(self.scope.api(client.clone()), any());
        let subusers = watcher(self.scope.api(client.clone()), any());
        let secrets = watcher(self.scope.api(client.clone()), of_our_type);
        let namespaces = watcher(Api::all(client), any());
        let [one, two, three, four] = [(); 4].map(|()| Arc::clone(&self));
        tokio::join!(
            apart(async move { one.follow(keys, &one.keys, Self::key_changed).await }),
            apart(async move { two.follow(subusers, &two.subusers, Self::subuser_changed).await }),
            apart(async move { three.follow(secrets, &three.secrets, Self::secret_changed).await }),
            apart(async move {
                if four.scope == Scope::Cluster {
                    four.follow(namespaces, &four.namespaces, Self::namespace_changed).await;
                }
            }),
        );
    }

    /// Waits until every cache has read its first list: deciding earlier would take late for absent.
    pub async fn completed(&self) {
        tokio::join!(self.keys.completed(), self.subusers.completed(), self.secrets.completed());
        if self.scope == Scope::Cluster {
            self.namespaces.completed().await;
        }
    }

    /// The kinds that no first list has come of yet.
    pub fn missing(&self) -> Vec<&'static str> {
        [
            ("accesskeys", self.keys.is_complete()),
            ("subusers", self.subusers.is_complete()),
            ("secrets", self.secrets.is_complete()),
            ("namespaces", self.scope != Scope::Cluster || self.namespaces.is_complete()),
        ]
        .into_iter()
        .filter_map(|(kind, complete)| (!complete).then_some(kind))
        .collect()
    }

    /// The AccessKeys that name this Subuser.
    pub fn keys_of(&self, subuser: &Name) -> Vec<Arc<Stored<AccessKey>>> {
        self.by_subuser.of(subuser).iter().filter_map(|name| self.keys.get(&reference(&subuser.0, name))).collect()
    }

    /// Brings a changed AccessKey to itself, if that is not who changed it, and to its Subuser.
    pub fn key_changed(&self, change: &Change<Stored<AccessKey>>) {
        self.key_learned(change);
        if let Some(key) = &change.after {
            due(&self.keys_due, key.to_object_ref(()));
        }
    }

    /// Brings a changed AccessKey to its Subuser, if it concerns that one.
    pub fn key_learned(&self, change: &Change<Stored<AccessKey>>) {
        let Some(key) = change.latest() else { return };
        let (namespace, name) = name_of(&**key);
        let secret = (namespace.clone(), key.secret_name());
        let subuser = key.subuser_name().map(|subuser| (namespace.clone(), subuser.to_owned()));
        if change.after.is_some() {
            self.by_secret.add(secret, name.clone());
            if let Some(subuser) = subuser.clone() {
                self.by_subuser.add(subuser, name.clone());
            }
        } else {
            self.by_secret.remove(&secret, &name);
            if let Some(subuser) = &subuser {
                self.by_subuser.remove(subuser, &name);
            }
        }
        if let Some((namespace, subuser)) = subuser.filter(|_| concerns_subuser(change)) {
            due(&self.subusers_due, reference(&namespace, &subuser));
        }
    }

    /// Brings a changed Subuser to itself and to its AccessKeys.
    pub fn subuser_changed(&self, change: &Change<Stored<Subuser>>) {
        if let Some(subuser) = &change.after {
            due(&self.subusers_due, subuser.to_object_ref(()));
        }
        self.subuser_learned(change);
    }

    /// Brings a changed Subuser to its AccessKeys.
    pub fn subuser_learned(&self, change: &Change<Stored<Subuser>>) {
        let Some(subuser) = change.latest() else { return };
        let subuser = name_of(&**subuser);
        for name in self.by_subuser.of(&subuser) {
            due(&self.keys_due, reference(&subuser.0, &name));
        }
    }

    fn secret_changed(&self, change: &Change<PairSecret>) {
        let Some(secret) = change.latest() else { return };
        let secret = name_of(&**secret);
        for name in self.by_secret.of(&secret) {
            due(&self.keys_due, reference(&secret.0, &name));
        }
    }

    /// Brings the end of a namespace to everything in it.
    fn namespace_changed(&self, change: &Change<PartialObjectMeta<Namespace>>) {
        let ending = |object: &Option<Arc<PartialObjectMeta<Namespace>>>| {
            object.as_ref().is_some_and(|namespace| namespace.metadata.deletion_timestamp.is_some())
        };
        if !ending(&change.after) || ending(&change.before) {
            return;
        }
        let name = change.after.as_ref().map(|namespace| namespace.name_any());
        let inside = |namespace: Option<String>| namespace == name;
        for key in self.keys.all().iter().filter(|key| inside(ResourceExt::namespace(&***key))) {
            due(&self.keys_due, key.to_object_ref(()));
        }
        for subuser in self.subusers.all().iter().filter(|subuser| inside(ResourceExt::namespace(&***subuser))) {
            due(&self.subusers_due, subuser.to_object_ref(()));
        }
    }

    async fn follow<K>(
        &self,
        events: impl futures::Stream<Item = watcher::Result<Event<K>>>,
        cache: &Cache<K>,
        changed: impl Fn(&Self, &Change<K>),
    ) where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    {
        let mut events = std::pin::pin!(events);
        let mut failures = 0;
        let mut told = None;
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => {
                    // A try begins with `Init`, before anything is asked: kube's own backoff takes that for a success.
                    if !matches!(event, Event::Init) {
                        (failures, told) = (0, None);
                    }
                    cache.apply(&event).iter().for_each(|change| changed(self, change));
                }
                Err(error) => {
                    let code = code(&error);
                    complain::<K>(code, cache.is_complete(), told == Some(code));
                    told = Some(code);
                    failures += 1;
                    tokio::time::sleep(pause(failures, LONGEST_PAUSE)).await;
                }
            }
        }
    }
}

fn code(error: &watcher::Error) -> u16 {
    if let watcher::Error::InitialListFailed(kube::Error::Api(status))
    | watcher::Error::WatchStartFailed(kube::Error::Api(status))
    | watcher::Error::WatchFailed(kube::Error::Api(status))
    | watcher::Error::WatchError(status) = error
    {
        status.code
    } else {
        0
    }
}

/// A broken watch heals by itself; what does not heal is worth one line that says what to do.
fn complain<K: Resource<DynamicType = ()>>(code: u16, once_complete: bool, again: bool) {
    let kind = K::plural(&());
    match code {
        _ if again => tracing::debug!(%kind, code, "watch failed again"),
        404 => {
            tracing::warn!(%kind, "waiting for the CRD: install it with `accesskey-operator crds | kubectl apply -f -`");
        }
        403 => tracing::warn!(%kind, "not permitted to list and watch: check the operator's RBAC"),
        _ if once_complete => tracing::debug!(%kind, code, "watch interrupted, trying again"),
        _ => tracing::warn!(%kind, code, "watch failed, trying again"),
    }
}

/// Who is due when the receiver is gone is of no interest: the controllers have stopped.
fn due<T>(queue: &UnboundedSender<T>, object: T) {
    let _ = queue.send(object);
}

/// Whether a change of an AccessKey may move the ledger of its Subuser.
fn concerns_subuser(change: &Change<Stored<AccessKey>>) -> bool {
    let (Some(before), Some(after)) = (&change.before, &change.after) else { return true };
    let (Some(before), Some(after)) = (before.valid(), after.valid()) else { return true };
    let claim = |key: &AccessKey| {
        let status = key.status.clone().unwrap_or_default();
        let asked = (status.revision, status.pending_revision, status.last_revision, status.revoked_at);
        (key.metadata.uid.clone(), key.is_deleting(), key.metadata.annotations.clone(), asked)
    };
    before.spec != after.spec || claim(before) != claim(after)
}

/// A reference to an object by namespace and name.
pub fn reference<K: Resource<DynamicType = ()>>(namespace: &str, name: &str) -> ObjectRef<K> {
    ObjectRef::new(name).within(namespace)
}
