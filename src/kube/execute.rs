//! Carries plans out, write by write, each only on the very version of the object that it was decided from.

use std::{fmt::Debug, sync::Arc};

use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
    core::NamespaceResourceScope,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

use super::{
    cache::{Cache, Change},
    call::{CallError, Failure, Verb, call},
    metrics::Metrics,
    watch::View,
};
use crate::{
    api::{AccessKey, AccessKeyStatus, FINALIZER, OPERATOR, Stored, Subuser, SubuserStatus},
    core::{Write, secret::PairSecret},
};

/// Writes.
pub struct Executor {
    pub client: Client,
    pub view: Arc<View>,
    pub metrics: Arc<Metrics>,
}

/// How far a plan got.
pub enum Execution {
    /// To its end.
    Done,
    /// Until a write of the Secret.
    SecretRefused(Refusal),
}

/// Why the API server would not have a Secret.
pub enum Refusal {
    /// Another one has the name, or it has changed meanwhile.
    Conflict,
    /// In these words.
    Words(String),
}

/// A kind whose plans are carried out here.
pub trait Managed:
    Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned + Serialize + 'static
{
    /// Its controller's name in logs and metrics.
    const CONTROLLER: &'static str;

    /// Its status.
    type Status: Serialize;

    /// The status that it has.
    fn status(&self) -> Self::Status;
    /// Where it is cached.
    fn cache(view: &View) -> &Cache<Self>;
    /// Tells those whom our own change of it concerns.
    fn learned(view: &View, change: &Change<Self>);
}

impl Managed for Stored<AccessKey> {
    const CONTROLLER: &'static str = "accesskey";
    type Status = AccessKeyStatus;

    fn status(&self) -> AccessKeyStatus {
        self.status()
    }

    fn cache(view: &View) -> &Cache<Self> {
        &view.keys
    }

    fn learned(view: &View, change: &Change<Self>) {
        view.key_learned(change);
    }
}

impl Managed for Stored<Subuser> {
    const CONTROLLER: &'static str = "subuser";
    type Status = SubuserStatus;

    fn status(&self) -> SubuserStatus {
        self.status()
    }

    fn cache(view: &View) -> &Cache<Self> {
        &view.subusers
    }

    fn learned(view: &View, change: &Change<Self>) {
        view.subuser_learned(change);
    }
}

impl Executor {
    /// Carries out the writes that were decided on from `object`.
    pub async fn execute<K: Managed>(&self, object: &K, writes: Vec<Write<K::Status>>) -> Result<Execution, CallError> {
        for write in writes {
            match write {
                Write::AddFinalizer => self.patch(object, &finalizers(object, true), Part::Whole).await?,
                Write::RemoveFinalizer => self.release(object).await?,
                Write::Disable => self.patch(object, &json!({ "spec": { "enabled": false } }), Part::Whole).await?,
                Write::Delete => self.delete(object).await?,
                Write::Status(status) => {
                    let change = json!({ "status": difference(&object.status(), &status) });
                    self.patch(object, &change, Part::Status).await?;
                }
                Write::CreateSecret(secret) => {
                    if let Some(refusal) = refused(self.create_secret(&secret).await)? {
                        return Ok(Execution::SecretRefused(refusal));
                    }
                }
                Write::ReplaceSecret(secret) => {
                    if let Some(refusal) = refused(self.replace_secret(&secret).await)? {
                        return Ok(Execution::SecretRefused(refusal));
                    }
                }
                Write::DeleteSecret(secret) => self.delete_secret(&secret).await?,
            }
        }
        Ok(Execution::Done)
    }

    /// Merges a change into the very version of the object that the decision was made from.
    async fn patch<K: Managed>(&self, object: &K, change: &Value, part: Part) -> Result<(), CallError> {
        let (api, name) = self.api(object);
        let mut change = change.clone();
        let version = object.meta().resource_version.as_deref();
        pin(&mut change, "uid", object.meta().uid.as_deref());
        pin(&mut change, "resourceVersion", version);
        let params = PatchParams { field_manager: Some(OPERATOR.into()), ..PatchParams::default() };
        let change = Patch::Merge(change);
        let cache = K::cache(&self.view);
        let sent = cache.moment();
        let answer = match part {
            Part::Whole => {
                call(&self.metrics, Verb::Patch, || named(object), api.patch(&name, &params, &change)).await?
            }
            Part::Status => {
                call(&self.metrics, Verb::Patch, || named(object), api.patch_status(&name, &params, &change)).await?
            }
        };
        // Without a finalizer it may be gone already, and must not come back into the cache.
        let stays = answer.meta().deletion_timestamp.is_none() || !answer.finalizers().is_empty();
        if let Some(change) = stays.then(|| cache.learn(answer, version, sent)).flatten() {
            K::learned(&self.view, &change);
        }
        Ok(())
    }

    /// Takes our finalizer off. Whether that removes the object or not, no other one may come to harm.
    ///
    /// When the last finalizer goes, the API server deletes whatever has the name by then. It holds to the uid if the
    /// request is a PUT; after a PATCH it holds to nothing, and asks no admission (`Store.Update` and
    /// `deleteWithoutFinalizers` in k8s.io/apiserver). Of two replicas that take it off at once, the slower one would
    /// delete what a user has made anew under the same name.
    async fn release<K: Managed>(&self, object: &K) -> Result<(), CallError> {
        if object.finalizers().iter().any(|finalizer| finalizer != FINALIZER) {
            return self.patch(object, &finalizers(object, false), Part::Whole).await;
        }
        let (api, name) = self.api(object);
        let params = PostParams { field_manager: Some(OPERATOR.into()), ..PostParams::default() };
        let mut released = object.clone();
        released.finalizers_mut().clear();
        gone_is_fine(call(&self.metrics, Verb::Update, || named(object), api.replace(&name, &params, &released)).await)
    }

    async fn delete<K: Managed>(&self, object: &K) -> Result<(), CallError> {
        let (api, name) = self.api(object);
        gone_is_fine(
            call(&self.metrics, Verb::Delete, || named(object), api.delete(&name, &this_version(object))).await,
        )
    }

    async fn create_secret(&self, secret: &PairSecret) -> Result<(), CallError> {
        let (api, _) = self.api(secret);
        let sent = self.view.secrets.moment();
        let params = PostParams { field_manager: Some(OPERATOR.into()), ..PostParams::default() };
        let answer = call(&self.metrics, Verb::Create, || named(secret), api.create(&params, secret)).await?;
        self.view.secrets.learn(answer, None, sent);
        Ok(())
    }

    async fn replace_secret(&self, secret: &PairSecret) -> Result<(), CallError> {
        let (api, name) = self.api(secret);
        let sent = self.view.secrets.moment();
        let params = PostParams { field_manager: Some(OPERATOR.into()), ..PostParams::default() };
        let answer = call(&self.metrics, Verb::Update, || named(secret), api.replace(&name, &params, secret)).await?;
        self.view.secrets.learn(answer, secret.metadata.resource_version.as_deref(), sent);
        Ok(())
    }

    async fn delete_secret(&self, secret: &PairSecret) -> Result<(), CallError> {
        let (api, name) = self.api(secret);
        gone_is_fine(
            call(&self.metrics, Verb::Delete, || named(secret), api.delete(&name, &this_version(secret))).await,
        )?;
        self.view.secrets.forget(secret);
        Ok(())
    }

    fn api<K: Resource<DynamicType = (), Scope = NamespaceResourceScope>>(&self, object: &K) -> (Api<K>, String) {
        let namespace = object.namespace().unwrap_or_default();
        (Api::namespaced(self.client.clone(), &namespace), object.name_any())
    }
}

/// Deletes this very version or nothing.
fn this_version(object: &impl Resource) -> DeleteParams {
    let preconditions =
        Preconditions { uid: object.meta().uid.clone(), resource_version: object.meta().resource_version.clone() };
    DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() }
}

enum Part {
    Whole,
    Status,
}

fn named<K: Resource<DynamicType = ()>>(object: &K) -> String {
    format!("{} {}/{}", K::kind(&()), object.namespace().unwrap_or_default(), object.name_any())
}

fn finalizers(object: &impl Resource, ours: bool) -> Value {
    let others = object.finalizers().iter().filter(|finalizer| *finalizer != FINALIZER).map(String::as_str);
    let all: Vec<&str> = others.chain(ours.then_some(FINALIZER)).collect();
    json!({ "metadata": { "finalizers": all } })
}

fn pin(change: &mut Value, field: &str, value: Option<&str>) {
    if let Some(change) = change.as_object_mut() {
        let metadata = change.entry("metadata").or_insert_with(|| json!({}));
        if let Some(metadata) = metadata.as_object_mut() {
            metadata.insert(field.to_owned(), json!(value));
        }
    }
}

/// The fields of a status that differ, as a JSON merge patch (RFC 7396); fields that others own stay out of it.
fn difference(before: &impl Serialize, after: &impl Serialize) -> Value {
    let fields = |status: Result<Value, _>| match status {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    };
    let before = fields(serde_json::to_value(before));
    let mut change = fields(serde_json::to_value(after));
    let removed: Vec<String> = before.keys().filter(|name| !change.contains_key(*name)).cloned().collect();
    change.retain(|name, value| before.get(name) != Some(value));
    change.extend(removed.into_iter().map(|name| (name, Value::Null)));
    Value::Object(change)
}

/// `Some` if the API server would not have the Secret for a reason that trying again at once does not change.
fn refused(written: Result<(), CallError>) -> Result<Option<Refusal>, CallError> {
    match written {
        Ok(()) => Ok(None),
        Err(CallError { failure: Failure::Conflict, .. }) => Ok(Some(Refusal::Conflict)),
        Err(CallError { failure: Failure::Refused(words), .. }) => Ok(Some(Refusal::Words(words))),
        Err(error) => Err(error),
    }
}

fn gone_is_fine<T>(deleted: Result<T, CallError>) -> Result<(), CallError> {
    match deleted {
        Ok(_) | Err(CallError { failure: Failure::NotFound, .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_names_what_changed_and_what_went() {
        let change = difference(&json!({ "a": 1, "b": 2, "c": [1] }), &json!({ "a": 1, "c": [2], "d": 3 }));
        assert_eq!(change, json!({ "b": null, "c": [2], "d": 3 }));
        assert_eq!(difference(&json!({ "a": 1 }), &json!({ "a": 1 })), json!({}));
    }
}
