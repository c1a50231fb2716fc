//! Identities: one newtype per noun over a time-ordered UUID (version 7), printed with a prefix
//! (`ex_0197…`), so that an id seen in a log says what it is.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

/// The text is not an id of the expected kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an id of the form `{prefix}_<32 hex digits>`")]
pub struct InvalidId {
    /// What was given, cut to 80 characters.
    pub text: String,
    /// The prefix that ids of this kind have.
    pub prefix: &'static str,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Uuid);

        impl $name {
            /// The prefix of the text form, without the underscore.
            pub const PREFIX: &'static str = $prefix;

            /// A new id, greater than those this process made before.
            #[expect(clippy::new_without_default, reason = "each call gives another value")]
            #[must_use]
            pub fn new() -> Self {
                Self(Uuid::now_v7())
            }

            /// The id in the database's form.
            #[must_use]
            pub const fn uuid(self) -> Uuid {
                self.0
            }
        }

        impl From<Uuid> for $name {
            fn from(id: Uuid) -> Self {
                Self(id)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}_{}", $prefix, self.0.simple())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                parse(text, $prefix).map(Self)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

fn parse(text: &str, prefix: &'static str) -> Result<Uuid, InvalidId> {
    text.strip_prefix(prefix)
        .and_then(|rest| rest.strip_prefix('_'))
        .filter(|hex| hex.len() == 32)
        .and_then(|hex| Uuid::try_parse(hex).ok())
        .ok_or_else(|| InvalidId { text: text.chars().take(80).collect(), prefix })
}

id!(
    /// An application.
    ApplicationId, "ap"
);
id!(
    /// A pipeline, whatever its revision.
    PipelineId, "pl"
);
id!(
    /// One run of a pipeline or of an ad-hoc operation.
    ExecutionId, "ex"
);
id!(
    /// One stage of one execution; the same over its attempts.
    StageId, "st"
);
id!(
    /// A recorded intent to touch something outside.
    IntentId, "in"
);
id!(
    /// A message to people, a row of the outbox.
    NotificationId, "nt"
);
id!(
    /// A message on its way to one target.
    DeliveryId, "dl"
);
id!(
    /// A person or a program that may act.
    PrincipalId, "pr"
);
id!(
    /// A token of a principal.
    TokenId, "tk"
);
id!(
    /// A row of the audit log.
    AuditId, "au"
);
id!(
    /// A trigger of a pipeline; the same over its revisions while its key stays.
    TriggerId, "tg"
);
id!(
    /// One start of one server: random, never a host name.
    OwnerId, "ow"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_back_from_its_text() {
        let id = ExecutionId::new();
        assert_eq!(id.to_string().parse::<ExecutionId>(), Ok(id));
    }

    #[test]
    fn an_id_of_another_kind_is_refused() {
        let text = ExecutionId::new().to_string();
        assert!(text.parse::<StageId>().is_err());
        assert!("ex_".parse::<ExecutionId>().is_err());
        assert!("".parse::<ExecutionId>().is_err());
    }
}
