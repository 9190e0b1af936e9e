//! The public contract: the kinds of group `accesskey.dev/v1alpha1`, their conditions, and every name that
//! users or other programs may rely on. It decides nothing and talks to nobody.

mod access_key;
mod condition;
mod lifetime;
mod manifests;
mod stored;
mod subuser;

pub use access_key::{
    AccessKey, AccessKeySpec, AccessKeyStatus, Binding, DataKeys, DeletionPolicy, Format, SecretTemplate, SubuserRef,
};
pub use condition::{ConditionType, Reason};
pub use lifetime::Lifetime;
pub use manifests::{access_key_crd, manifests, subuser_crd};
pub use stored::{Invalid, Stored, lean_metadata};
pub use subuser::{KeyEntry, Subuser, SubuserSpec, SubuserStatus};

/// API group of every kind here.
pub const GROUP: &str = "accesskey.dev";

/// Holds a Subuser while it has keys, and an AccessKey until it was disabled and its Secret is gone.
pub const FINALIZER: &str = "accesskey.dev/finalizer";

/// Type of the Secrets that hold a pair; the operator watches Secrets of no other type.
pub const SECRET_TYPE: &str = "accesskey.dev/access-key";

/// Annotation on an AccessKey or a Subuser: blocks at once and for good; its value says why.
pub const REVOKED: &str = "accesskey.dev/revoked";

/// Annotation on an AccessKey: its deletion disables it first. Setting it needs the verb `force-delete`.
pub const FORCE_DELETE: &str = "accesskey.dev/force-delete";

/// Annotation on a Secret: the revision of the pair it holds.
pub const REVISION: &str = "accesskey.dev/revision";

/// Annotation on a Secret: the labels and annotations on it that came from `spec.secret`, so that one taken
/// out of the spec can be told from one that somebody else put there.
pub const TEMPLATED: &str = "accesskey.dev/templated";

/// Name under which the operator's fields show in `managedFields`, and its Events in `reportingController`.
pub const OPERATOR: &str = "accesskey-operator";
