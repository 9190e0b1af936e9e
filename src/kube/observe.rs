//! Gathers what a decision needs: from the caches, and live only where a cache's lateness would do harm.

use std::{collections::BTreeSet, sync::Arc};

use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::{Api, Client, Resource, ResourceExt, api::ListParams};

use super::{
    cache::name_of,
    call::{CallError, Failure, Verb, call},
    metrics::Metrics,
    watch::{Scope, View, reference},
};
use crate::{
    api::{AccessKey, Stored, Subuser},
    core::{
        access_key,
        secret::{PairSecret, SecretSeen, controller},
        subuser::{self, Holder},
    },
};

/// Reads.
pub struct Observer {
    pub client: Client,
    pub view: Arc<View>,
    pub metrics: Arc<Metrics>,
}

/// What a decision about a Subuser needs beside the Subuser.
pub struct Surroundings {
    pub keys: Vec<Arc<Stored<AccessKey>>>,
    pub departed: BTreeSet<Holder>,
    pub listed: Option<Vec<Stored<AccessKey>>>,
    pub namespace_terminating: bool,
}

impl Observer {
    /// The Subuser that a key names.
    pub fn subuser_of(&self, key: &Stored<AccessKey>) -> Option<Arc<Stored<Subuser>>> {
        let namespace = key.namespace().unwrap_or_default();
        self.view.subusers.get(&reference(&namespace, key.subuser_name()?))
    }

    /// What has the name of a key's Secret. A recorded pair counts as lost only once a live read says so.
    pub async fn secret_of(&self, key: &Stored<AccessKey>) -> Result<SecretSeen, CallError> {
        let uid = key.uid().unwrap_or_default();
        let namespace = key.namespace().unwrap_or_default();
        let cached = match self.view.secrets.get(&reference(&namespace, &key.secret_name())) {
            None => SecretSeen::Absent,
            Some(secret) if secret.is_controlled_by(&uid) => SecretSeen::Ours((*secret).clone()),
            Some(_) => SecretSeen::Foreign,
        };
        match key.valid() {
            Some(valid) if key.meta().deletion_timestamp.is_none() && access_key::needs_live_secret(valid, &cached) => {
                self.live_secret(&namespace, &key.secret_name(), &uid).await
            }
            _ => Ok(cached),
        }
    }

    /// What has this name now. Only of a Secret of our own is more than the metadata read.
    pub async fn live_secret(&self, namespace: &str, name: &str, uid: &str) -> Result<SecretSeen, CallError> {
        let what = || format!("Secret {namespace}/{name}");
        let any = Api::<Secret>::namespaced(self.client.clone(), namespace);
        let Some(found) = call(&self.metrics, Verb::Get, what, any.get_metadata_opt(name)).await? else {
            return Ok(SecretSeen::Absent);
        };
        if controller(&found.metadata).is_none_or(|owner| owner.uid != uid) {
            return Ok(SecretSeen::Foreign);
        }
        let ours = Api::<PairSecret>::namespaced(self.client.clone(), namespace);
        Ok(match call(&self.metrics, Verb::Get, what, ours.get_opt(name)).await? {
            Some(secret) if secret.is_controlled_by(uid) => SecretSeen::Ours(secret),
            Some(_) => SecretSeen::Foreign,
            None => SecretSeen::Absent,
        })
    }

    /// Whether the namespace of a key is being deleted. Without a watch of namespaces it is asked for only where it
    /// decides something: an enabled key that is to go.
    pub async fn is_terminating(&self, key: &Stored<AccessKey>) -> Result<bool, CallError> {
        let namespace = key.namespace().unwrap_or_default();
        match self.view.scope {
            Scope::Cluster => Ok(self.watched_as_terminating(&namespace)),
            Scope::Namespace(_) if key.meta().deletion_timestamp.is_some() && key.is_enabled() => {
                let api = Api::<Namespace>::all(self.client.clone());
                let what = || format!("Namespace {namespace}");
                let found = call(&self.metrics, Verb::Get, what, api.get_metadata(&namespace)).await?;
                Ok(found.metadata.deletion_timestamp.is_some())
            }
            Scope::Namespace(_) => Ok(false),
        }
    }

    /// Everything about a Subuser; live reads prove departures, and fill in for a missing ledger.
    pub async fn surroundings_of(&self, subuser: &Stored<Subuser>) -> Result<Surroundings, CallError> {
        let (namespace, name) = name_of(subuser);
        let keys = self.view.keys_of(&(namespace.clone(), name.clone()));
        let api = Api::<Stored<AccessKey>>::namespaced(self.client.clone(), &namespace);
        let mut departed = BTreeSet::new();
        for entry in subuser::suspects(subuser, &keys) {
            let what = || format!("AccessKey {namespace}/{}", entry.access_key);
            let live = match call(&self.metrics, Verb::Get, what, api.get(&entry.access_key)).await {
                Ok(key) => Some(key),
                Err(CallError { failure: Failure::NotFound, .. }) => None,
                Err(error) => return Err(error),
            };
            if !live.is_some_and(|key| subuser::is_wanted_by(&key, &entry)) {
                departed.insert((entry.uid, entry.revision));
            }
        }
        let listed = if subuser::needs_list(subuser) {
            let what = || format!("AccessKeys of Subuser {namespace}/{name}");
            let of_subuser = ListParams::default().fields(&format!("spec.subuserRef.name={name}"));
            Some(call(&self.metrics, Verb::List, what, api.list(&of_subuser)).await?.items)
        } else {
            None
        };
        Ok(Surroundings { keys, departed, listed, namespace_terminating: self.watched_as_terminating(&namespace) })
    }

    fn watched_as_terminating(&self, namespace: &str) -> bool {
        let found = self.view.namespaces.get(&kube::runtime::reflector::ObjectRef::new(namespace));
        found.is_some_and(|namespace| namespace.metadata.deletion_timestamp.is_some())
    }
}
