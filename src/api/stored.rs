//! An object as it is stored, which may be older than the schema that this program knows.
//!
//! kube's `DeserializeGuard` serves the same end; it keeps only the metadata of an unreadable object, while
//! deleting one needs to know whether it was disabled.

use std::{borrow::Cow, fmt};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Resource, ResourceExt, core::NamespaceResourceScope};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{DeserializeOwned, DeserializeSeed, Error as _, IgnoredAny, MapAccess, Visitor},
    ser::Error as _,
};
use serde_json::{Map, Value};

use super::{AccessKey, AccessKeyStatus, DeletionPolicy, FINALIZER, FORCE_DELETE, Subuser, SubuserStatus};

/// One unreadable object must not stop a watch, so reading one never fails.
#[derive(Clone, Debug, PartialEq)]
pub enum Stored<K> {
    /// It reads as `K`.
    Valid(K),
    /// It does not.
    Invalid(Invalid),
}

/// An object that does not read as its kind.
#[derive(Clone, Debug, PartialEq)]
pub struct Invalid {
    /// Its metadata.
    pub metadata: ObjectMeta,
    /// Why it does not read.
    pub error: String,
    /// The whole object.
    pub object: Value,
}

impl<K> Stored<K> {
    /// The object, if it reads.
    pub const fn valid(&self) -> Option<&K> {
        match self {
            Self::Valid(object) => Some(object),
            Self::Invalid(_) => None,
        }
    }
}

impl<K: Resource<Scope = NamespaceResourceScope>> Stored<K> {
    /// Whether our finalizer is on it.
    #[must_use]
    pub fn has_finalizer(&self) -> bool {
        self.finalizers().iter().any(|finalizer| finalizer == FINALIZER)
    }
}

impl Stored<AccessKey> {
    /// Whether it is enabled; what does not say so clearly counts as enabled.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        match self {
            Self::Valid(key) => key.spec.enabled,
            Self::Invalid(invalid) => invalid.object.pointer("/spec/enabled") != Some(&Value::Bool(false)),
        }
    }

    /// Whether deleting it disables it first.
    #[must_use]
    pub fn disables_first(&self) -> bool {
        let forced = self.annotations().get(FORCE_DELETE).is_some_and(|value| value == "true");
        forced
            || match self {
                Self::Valid(key) => key.spec.deletion_policy == DeletionPolicy::DisableFirst,
                Self::Invalid(invalid) => text(&invalid.object, "/spec/deletionPolicy") == Some("DisableFirst"),
            }
    }

    /// Name of the Subuser that it belongs to, where it says so.
    #[must_use]
    pub fn subuser_name(&self) -> Option<&str> {
        match self {
            Self::Valid(key) => Some(&key.spec.subuser_ref.name),
            Self::Invalid(invalid) => text(&invalid.object, "/spec/subuserRef/name"),
        }
    }

    /// Name of the Secret that its pair is written to.
    #[must_use]
    pub fn secret_name(&self) -> String {
        match self {
            Self::Valid(key) => key.secret_name(),
            Self::Invalid(invalid) => {
                text(&invalid.object, "/spec/secret/name").map_or_else(|| self.name_any(), str::to_owned)
            }
        }
    }

    /// Its status, as far as it reads.
    #[must_use]
    pub fn status(&self) -> AccessKeyStatus {
        match self {
            Self::Valid(key) => key.status.clone().unwrap_or_default(),
            Self::Invalid(invalid) => status(&invalid.object),
        }
    }
}

impl Stored<Subuser> {
    /// Its status, as far as it reads.
    #[must_use]
    pub fn status(&self) -> SubuserStatus {
        match self {
            Self::Valid(subuser) => subuser.status.clone().unwrap_or_default(),
            Self::Invalid(invalid) => status(&invalid.object),
        }
    }
}

fn text<'a>(object: &'a Value, pointer: &str) -> Option<&'a str> {
    object.pointer(pointer).and_then(Value::as_str)
}

fn status<S: DeserializeOwned + Default>(object: &Value) -> S {
    object.get("status").and_then(|status| S::deserialize(status).ok()).unwrap_or_default()
}

/// Reads metadata but for `managedFields`, which is often the larger part of an object and of no use here.
///
/// # Errors
/// It is not metadata.
pub fn lean_metadata<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    let metadata = Without(&["managedFields"]).deserialize(deserializer)?;
    ObjectMeta::deserialize(metadata).map_err(D::Error::custom)
}

/// A JSON object of which what is at this path is skipped unread.
struct Without<'a>(&'a [&'a str]);

impl<'de> DeserializeSeed<'de> for Without<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Without<'_> {
    type Value = Value;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut read = Map::new();
        while let Some(name) = fields.next_key::<String>()? {
            let value = match self.0 {
                [skipped] if name == *skipped => {
                    fields.next_value::<IgnoredAny>()?;
                    continue;
                }
                [parent, rest @ ..] if name == *parent => fields.next_value_seed(Without(rest))?,
                _ => fields.next_value()?,
            };
            read.insert(name, value);
        }
        Ok(Value::Object(read))
    }
}

impl<'de, K: Resource + DeserializeOwned> Deserialize<'de> for Stored<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let object = Without(&["metadata", "managedFields"]).deserialize(deserializer)?;
        match K::deserialize(&object) {
            Ok(object) => Ok(Self::Valid(object)),
            Err(error) => {
                let metadata = object.get("metadata").cloned().unwrap_or_default();
                let metadata = ObjectMeta::deserialize(metadata).map_err(D::Error::custom)?;
                Ok(Self::Invalid(Invalid { metadata, error: error.to_string(), object }))
            }
        }
    }
}

/// As it was read, but for `metadata`, which is as it is now.
impl<K: Serialize> Serialize for Stored<K> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Valid(object) => object.serialize(serializer),
            Self::Invalid(Invalid { metadata, object, .. }) => {
                let metadata = serde_json::to_value(metadata).map_err(S::Error::custom)?;
                let mut object = object.clone();
                if let Some(fields) = object.as_object_mut() {
                    fields.insert("metadata".to_owned(), metadata);
                }
                object.serialize(serializer)
            }
        }
    }
}

impl<K: Resource<Scope = NamespaceResourceScope>> Resource for Stored<K> {
    type DynamicType = K::DynamicType;
    type Scope = NamespaceResourceScope;

    fn kind(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::kind(dt)
    }

    fn group(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::group(dt)
    }

    fn version(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::version(dt)
    }

    fn plural(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::plural(dt)
    }

    fn meta(&self) -> &ObjectMeta {
        match self {
            Self::Valid(object) => object.meta(),
            Self::Invalid(invalid) => &invalid.metadata,
        }
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        match self {
            Self::Valid(object) => object.meta_mut(),
            Self::Invalid(invalid) => &mut invalid.metadata,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn stored(extra: &Value) -> Value {
        let mut object = json!({
            "apiVersion": "accesskey.dev/v1alpha1", "kind": "AccessKey",
            "metadata": { "name": "a", "uid": "u", "managedFields": [{ "manager": "m", "fieldsV1": { "f:spec": {} } }] },
            "spec": { "subuserRef": { "name": "bot" }, "enabled": false },
        });
        object["spec"].as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        object
    }

    #[test]
    fn reads_all_but_managed_fields() {
        let key: Stored<AccessKey> = serde_json::from_str(&stored(&json!({ "role": "viewer" })).to_string()).unwrap();
        assert_eq!(key.valid().unwrap().spec.role.as_deref(), Some("viewer"));
        assert_eq!((key.meta().uid.as_deref(), key.meta().managed_fields.is_none()), (Some("u"), true));
    }

    #[test]
    fn what_does_not_read_is_kept_whole_and_written_back_as_it_was() {
        let key: Stored<AccessKey> = serde_json::from_value(stored(&json!({ "role": 7 }))).unwrap();
        assert_eq!((key.valid(), key.is_enabled(), key.subuser_name()), (None, false, Some("bot")));
        let mut expected = stored(&json!({ "role": 7 }));
        expected["metadata"] = json!({ "name": "a", "uid": "u" });
        assert_eq!(serde_json::to_value(&key).unwrap(), expected);
    }
}
