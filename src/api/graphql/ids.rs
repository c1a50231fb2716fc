//! Global ids: opaque to clients, base64url of `Type:key`. What has an id in the database goes by
//! that; what lives at a cloud goes by account, location and name.

use async_graphql::ID;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::api::error::{Code, coded, shown};
use crate::model::{
    ApplicationId, AuditId, DeliveryId, ExecutionId, IntentId, NotificationId, PipelineId, Place, PrincipalId, StageId,
    TokenId,
};

/// What an id names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Key {
    Application(ApplicationId),
    Pipeline(PipelineId),
    Revision(PipelineId, i64),
    Execution(ExecutionId),
    Stage(StageId),
    Notification(NotificationId),
    Delivery(DeliveryId),
    Principal(PrincipalId),
    Token(TokenId),
    Audit(AuditId),
    Intent(ExecutionId, IntentId),
    Account(String),
    Cluster(Place, String),
    ServerGroup(Place, String),
    Instance(Place, String),
    LoadBalancer(Place, String),
    SecurityGroup(Place, String),
}

impl Key {
    /// The opaque id.
    pub fn id(&self) -> ID {
        ID(URL_SAFE_NO_PAD.encode(self.text()))
    }

    fn text(&self) -> String {
        let placed =
            |kind: &str, place: &Place, name: &str| format!("{kind}:{}/{}/{name}", place.account, place.location);
        match self {
            Self::Application(id) => format!("Application:{id}"),
            Self::Pipeline(id) => format!("Pipeline:{id}"),
            Self::Revision(id, number) => format!("PipelineRevision:{id}/{number}"),
            Self::Execution(id) => format!("Execution:{id}"),
            Self::Stage(id) => format!("Stage:{id}"),
            Self::Notification(id) => format!("Notification:{id}"),
            Self::Delivery(id) => format!("Delivery:{id}"),
            Self::Principal(id) => format!("Principal:{id}"),
            Self::Token(id) => format!("Token:{id}"),
            Self::Audit(id) => format!("AuditEntry:{id}"),
            Self::Intent(execution, id) => format!("Intent:{execution}/{id}"),
            Self::Account(name) => format!("Account:{name}"),
            Self::Cluster(place, name) => placed("Cluster", place, name),
            Self::ServerGroup(place, name) => placed("ServerGroup", place, name),
            Self::Instance(place, name) => placed("Instance", place, name),
            Self::LoadBalancer(place, name) => placed("LoadBalancer", place, name),
            Self::SecurityGroup(place, name) => placed("SecurityGroup", place, name),
        }
    }

    /// What the id names; None when it is no id of this API. Ids as logs show them (`ex_0197…`)
    /// are understood too.
    pub fn parse(id: &str) -> Option<Self> {
        if let Some(key) = Self::from_log(id) {
            return Some(key);
        }
        let text = String::from_utf8(URL_SAFE_NO_PAD.decode(id).ok()?).ok()?;
        let (kind, key) = text.split_once(':')?;
        Some(match kind {
            "Application" => Self::Application(key.parse().ok()?),
            "Pipeline" => Self::Pipeline(key.parse().ok()?),
            "PipelineRevision" => {
                let (pipeline, number) = key.split_once('/')?;
                Self::Revision(pipeline.parse().ok()?, number.parse().ok()?)
            }
            "Execution" => Self::Execution(key.parse().ok()?),
            "Stage" => Self::Stage(key.parse().ok()?),
            "Notification" => Self::Notification(key.parse().ok()?),
            "Delivery" => Self::Delivery(key.parse().ok()?),
            "Principal" => Self::Principal(key.parse().ok()?),
            "Token" => Self::Token(key.parse().ok()?),
            "AuditEntry" => Self::Audit(key.parse().ok()?),
            "Intent" => {
                let (execution, intent) = key.split_once('/')?;
                Self::Intent(execution.parse().ok()?, intent.parse().ok()?)
            }
            "Account" => Self::Account(key.to_owned()),
            _ => {
                let mut parts = key.splitn(3, '/');
                let place = Place { account: parts.next()?.to_owned(), location: parts.next()?.to_owned() };
                let name = parts.next()?.to_owned();
                match kind {
                    "Cluster" => Self::Cluster(place, name),
                    "ServerGroup" => Self::ServerGroup(place, name),
                    "Instance" => Self::Instance(place, name),
                    "LoadBalancer" => Self::LoadBalancer(place, name),
                    "SecurityGroup" => Self::SecurityGroup(place, name),
                    _ => return None,
                }
            }
        })
    }

    fn from_log(id: &str) -> Option<Self> {
        Some(match id.split_once('_')?.0 {
            ApplicationId::PREFIX => Self::Application(id.parse().ok()?),
            PipelineId::PREFIX => Self::Pipeline(id.parse().ok()?),
            ExecutionId::PREFIX => Self::Execution(id.parse().ok()?),
            StageId::PREFIX => Self::Stage(id.parse().ok()?),
            NotificationId::PREFIX => Self::Notification(id.parse().ok()?),
            DeliveryId::PREFIX => Self::Delivery(id.parse().ok()?),
            PrincipalId::PREFIX => Self::Principal(id.parse().ok()?),
            TokenId::PREFIX => Self::Token(id.parse().ok()?),
            AuditId::PREFIX => Self::Audit(id.parse().ok()?),
            _ => return None,
        })
    }
}

/// What the id names, or an error for the client.
pub fn parse(id: &ID) -> async_graphql::Result<Key> {
    Key::parse(id).ok_or_else(|| coded(Code::BadRequest, not_an_id(id)))
}

/// What to tell about text that is no id.
pub fn not_an_id(id: &ID) -> String {
    format!("`{}` is not an id of this API; use one that a field `id` gave, or the name", shown(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        Place { account: "local".into(), location: "here".into() }
    }

    #[test]
    fn ids_read_back() {
        let execution = ExecutionId::new();
        for key in [
            Key::Application(ApplicationId::new()),
            Key::Revision(PipelineId::new(), 7),
            Key::Execution(execution),
            Key::Intent(execution, IntentId::new()),
            Key::Account("local".into()),
            Key::ServerGroup(place(), "hello-prod-v003".into()),
            Key::Instance(place(), "hello-v003-abcd".into()),
        ] {
            assert_eq!(Key::parse(&key.id()), Some(key));
        }
        assert_eq!(Key::parse(&execution.to_string()), Some(Key::Execution(execution)));
    }

    #[test]
    fn other_text_is_no_id() {
        for text in ["", "hello", "ex_1", "RXhlY3V0aW9u", "é", "QmxhOmEvYi9j"] {
            assert_eq!(Key::parse(text), None, "{text}");
        }
    }
}
