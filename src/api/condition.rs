//! The vocabulary of `status.conditions`: each type and each reason exists once, here.

use std::fmt;

/// Type of a condition. `Stalled` and `Reconciling` are kstatus's; they and the ones after them exist only while true.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConditionType {
    /// The spec is fully realised.
    Ready,
    /// A request made with the key would be accepted now.
    Active,
    /// A person must act.
    Stalled,
    /// The operator is still working on it.
    Reconciling,
    /// The key expires within the last tenth of its lifetime, at most seven days ahead.
    ExpiringSoon,
    /// Deletion was asked for and waits.
    DeletionBlocked,
}

impl ConditionType {
    /// As it is written in `conditions[].type`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "Ready",
            Self::Active => "Active",
            Self::Stalled => "Stalled",
            Self::Reconciling => "Reconciling",
            Self::ExpiringSoon => "ExpiringSoon",
            Self::DeletionBlocked => "DeletionBlocked",
        }
    }
}

/// Declares [`Reason`] with its text and its list in one place, so that none can be forgotten.
macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// Why a condition is as it is: one value, one row in the README, one Event.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Reason { $($(#[doc = $doc])+ $name,)+ }

        impl Reason {
            /// Every reason there is.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// As it is written in `conditions[].reason` and in Events.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)+ }
            }
        }
    };
}

reasons! {
    /// The Secret holds exactly the recorded pair.
    Issued,
    /// `spec.enabled` is false; a key or Subuser that is meant to be off is Ready.
    Disabled,
    /// Requests are accepted.
    Enabled,
    /// A pair was given up and the next one is on its way.
    Issuing,
    /// No pair was issued yet.
    NotIssued,
    /// Its Subuser does not exist, is being deleted, or cannot be read.
    SubuserNotFound,
    /// Its Subuser is disabled.
    SubuserDisabled,
    /// The Subuser's list of roles does not hold the key's.
    RoleNotPermitted,
    /// The key would live longer than the Subuser's `maxKeyLifetime`.
    LifetimeTooLong,
    /// The Subuser has two keys already.
    KeyLimitExceeded,
    /// The quotas of the Subuser's keys would exceed its own.
    ClusterQuotaExceeded,
    /// The Secret's name is taken by one that this AccessKey does not control.
    SecretConflict,
    /// The API server refused the Secret: a ResourceQuota, a policy, or missing permission.
    SecretForbidden,
    /// The expiry has passed.
    Expired,
    /// The key expires within the last tenth of its lifetime, at most seven days ahead.
    ExpiryNear,
    /// Revoked by annotation; this is final.
    Revoked,
    /// The stored object cannot be read by this version of the operator.
    InvalidSpec,
    /// An enabled key is not deleted.
    KeyEnabled,
    /// A Subuser with keys is not deleted.
    HasAccessKeys,
}

impl Reason {
    /// Whether nothing moves until a person acts, given that it keeps Ready from being true.
    #[must_use]
    pub const fn stalls(self) -> bool {
        !matches!(self, Self::Issuing | Self::NotIssued)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.as_str())
    }
}
