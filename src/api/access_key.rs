//! `AccessKey`: one pair of id and secret, and what may be done with it.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema, Resource, ResourceExt};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Lifetime;

/// An AccessKey asks for a pair of id and secret in the name of a Subuser. The operator generates the pair into
/// a Secret of the same namespace.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[kube(
    group = "accesskey.dev",
    version = "v1alpha1",
    kind = "AccessKey",
    namespaced,
    status = "AccessKeyStatus",
    derive = "PartialEq",
    shortname = "akey",
    category = "accesskey-dev",
    doc = "A pair of access key id and secret that a Subuser may use, generated into a Secret.",
    selectable = ".spec.subuserRef.name",
    printcolumn(name = "Subuser", type_ = "string", json_path = ".spec.subuserRef.name"),
    printcolumn(name = "Key ID", type_ = "string", json_path = ".status.accessKeyID"),
    printcolumn(name = "Role", type_ = "string", json_path = ".spec.role"),
    printcolumn(name = "Active", type_ = "string", json_path = ".status.conditions[?(@.type==\"Active\")].status"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Status", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Expires", type_ = "string", json_path = ".status.expiresAt"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!(has(self.expiresAt) && has(self.ttl))").message("set expiresAt or ttl, not both"),
    validation = Rule::new(
        "(has(self.secret) && has(self.secret.name) ? self.secret.name : '') == \
         (has(oldSelf.secret) && has(oldSelf.secret.name) ? oldSelf.secret.name : '')"
    ).message("secret.name is immutable: create another AccessKey instead"),
)]
pub struct AccessKeySpec {
    /// The Subuser in the same namespace that the key belongs to. Immutable.
    #[x_kube(validation = Rule::new("self == oldSelf").message("subuserRef is immutable: create another AccessKey instead"))]
    pub subuser_ref: SubuserRef,

    /// What the key is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub description: Option<String>,

    /// false blocks every request made with the key; true restores the same key. A key is deleted only once disabled.
    #[serde(default = "yes")]
    pub enabled: bool,

    /// The role that a request made with the key carries; the Subuser must list it, and whoever sets it needs the
    /// verb `grant` on `roles.accesskey.dev/<role>`. Absent means no role.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub role: Option<String>,

    /// When the key stops being accepted. Without expiresAt and ttl, the Subuser's maxKeyLifetime counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Time>,

    /// How long the key is accepted after it was issued, such as 720h.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Lifetime>,

    /// The most clusters that may be onboarded with the key; absent or 0 means none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub cluster_quota: Option<i32>,

    /// The Secret that the pair is written to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<SecretTemplate>,

    /// RequireDisabled: an enabled key cannot be deleted. DisableFirst: deleting it disables it first.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
}

/// Names a Subuser in the same namespace.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct SubuserRef {
    /// Name of the Subuser.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
}

/// How the Secret is laid out.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct SecretTemplate {
    /// Name of the Secret; the AccessKey's own by default. Immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: Option<String>,

    /// Labels for the Secret; the AccessKey's own never reach it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32, "additionalProperties" = label_value()))]
    #[x_kube(validation = Rule::new("self.all(k, !k.startsWith('accesskey.dev/') && k != 'app.kubernetes.io/managed-by')")
        .message("accesskey.dev/* and app.kubernetes.io/managed-by are the operator's own"))]
    pub labels: BTreeMap<String, String>,

    /// Annotations for the Secret; the AccessKey's own never reach it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32, "additionalProperties" = { "type": "string", "maxLength": 4096 }))]
    #[x_kube(validation = Rule::new("self.all(k, !k.startsWith('accesskey.dev/'))")
        .message("annotations in accesskey.dev/ are the operator's own"))]
    pub annotations: BTreeMap<String, String>,

    /// Other names for the two data keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<DataKeys>,

    /// Further renditions of the pair, each under data keys of its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 6))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub formats: Vec<Format>,
}

/// Names of the data keys that hold the two halves of the pair.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[x_kube(
    validation = Rule::new("self.id != self.secret").message("id and secret need different data keys"),
    validation = Rule::new(
        "![self.id, self.secret].exists(k, k in ['type', 'provider', 'AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY', \
         'credentials', 'TENCENTCLOUD_SECRET_ID', 'TENCENTCLOUD_SECRET_KEY', 'ACCESS_KEY_ID', 'SECRET_ACCESS_KEY', \
         'accesskey.csv', 'accesskey.json', 'token'])"
    ).message("this data key is used by a format: ask for the format instead"),
)]
pub struct DataKeys {
    /// Data key of the id.
    #[serde(default = "DataKeys::default_id")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub id: String,
    /// Data key of the secret.
    #[serde(default = "DataKeys::default_secret")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub secret: String,
}

/// A rendition of the pair.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Format {
    /// `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, and `credentials`, a shared credentials file.
    #[serde(rename = "AWS")]
    Aws,
    /// `TENCENTCLOUD_SECRET_ID` and `TENCENTCLOUD_SECRET_KEY`.
    Tencent,
    /// `ACCESS_KEY_ID` and `SECRET_ACCESS_KEY`.
    Env,
    /// `accesskey.csv`, the file that cloud consoles offer for download.
    #[serde(rename = "CSV")]
    Csv,
    /// `accesskey.json`.
    #[serde(rename = "JSON")]
    Json,
    /// `token`: `<id>.<secret>`, a bearer token.
    Token,
}

/// What deleting an enabled key does.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeletionPolicy {
    /// It is refused.
    #[default]
    RequireDisabled,
    /// The key is disabled, then deleted.
    DisableFirst,
}

/// What the operator has made. Only the AccessKey controller writes it; what a request is checked against is decided here.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct AccessKeyStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// Ready and Active; Stalled, Reconciling, ExpiringSoon and DeletionBlocked while true.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,

    /// Revision of the current pair.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<i64>,

    /// The highest revision ever asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_revision: Option<i64>,

    /// The revision that is asked for and not yet recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending_revision: Option<i64>,

    /// Public half of the current pair.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "accessKeyID")]
    pub access_key_id: Option<String>,

    /// `sha256:<hex>` of the secret half; safe to publish, because the secret has 256 random bits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,

    /// When the key was first issued; a replacement after a loss does not restart its lifetime.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issued_at: Option<Time>,

    /// When it stops being accepted; absent means never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Time>,

    /// When it was revoked; never unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<Time>,

    /// The Secret, for tools that follow the Service Binding specification (servicebinding.io, provisioned service).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binding: Option<Binding>,
}

/// Names the Secret that holds the pair.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// Name of the Secret.
    pub name: String,
}

impl AccessKey {
    /// Name of the Secret that the pair is written to.
    #[must_use]
    pub fn secret_name(&self) -> String {
        self.spec.secret.as_ref().and_then(|secret| secret.name.clone()).unwrap_or_else(|| self.name_any())
    }

    /// Whether it was asked to be deleted.
    #[must_use]
    pub fn is_deleting(&self) -> bool {
        self.meta().deletion_timestamp.is_some()
    }
}

impl DataKeys {
    fn default_id() -> String {
        "access-key-id".into()
    }

    fn default_secret() -> String {
        "secret-access-key".into()
    }
}

impl Default for DataKeys {
    fn default() -> Self {
        Self { id: Self::default_id(), secret: Self::default_secret() }
    }
}

/// What Kubernetes admits as a label's value; schemars' `inner` does not reach into maps.
fn label_value() -> serde_json::Value {
    serde_json::json!({ "type": "string", "maxLength": 63, "pattern": "^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$" })
}

fn yes() -> bool {
    true
}
