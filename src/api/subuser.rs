//! `Subuser`: a principal whose keys are counted.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::Lifetime;

/// A Subuser is a principal - a person, a CI job, an agent - that holds at most two access keys.
/// Making one makes no key; its id names it and is never a credential.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[kube(
    group = "accesskey.dev",
    version = "v1alpha1",
    kind = "Subuser",
    namespaced,
    status = "SubuserStatus",
    derive = "PartialEq",
    shortname = "subu",
    category = "accesskey-dev",
    doc = "A principal - a person, a CI job, an agent - that holds at most two access keys.",
    printcolumn(name = "ID", type_ = "string", json_path = ".status.id"),
    printcolumn(name = "Enabled", type_ = "boolean", json_path = ".spec.enabled"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Status", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct SubuserSpec {
    /// Name for people to read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub display_name: Option<String>,

    /// false blocks all of its keys at once; true restores them unchanged.
    #[serde(default = "yes")]
    pub enabled: bool,

    /// The roles that its keys may carry.
    #[serde(default)]
    #[schemars(
        length(max = 32),
        inner(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))
    )]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub roles: Vec<String>,

    /// The longest that a key may live, such as 2160h. A key without an expiry gets this one; a longer one is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_key_lifetime: Option<Lifetime>,

    /// What the cluster quotas of its keys may add up to; absent means no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub cluster_quota: Option<i32>,
}

/// What the operator has found and granted. Only the Subuser controller writes it.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct SubuserStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// Ready; Stalled, Reconciling and DeletionBlocked while true.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,

    /// Stable id of the principal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,

    /// When it was revoked; never unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>,

    /// The ledger of its keys: who is not in it has no credential. Absent means unknown, not empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["uid".into(), "revision".into()]))]
    pub keys: Option<Vec<KeyEntry>>,
}

/// One of the two places that a Subuser has for keys.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct KeyEntry {
    /// Name of the AccessKey.
    pub access_key: String,
    /// `metadata.uid` of the AccessKey.
    pub uid: String,
    /// The revision of its pair that the place is granted to.
    pub revision: i64,
    /// Its share of the Subuser's cluster quota.
    #[serde(default)]
    pub cluster_quota: i32,
}

fn yes() -> bool {
    true
}
