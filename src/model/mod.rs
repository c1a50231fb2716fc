//! The domain: nouns, ids, names, states and the rules about them. No I/O, no async, and nothing
//! of ours imported.

mod access;
mod application;
pub mod duration;
mod event;
mod execution;
mod ids;
mod infrastructure;
pub mod names;
mod notification;
mod pipeline;
mod status;
mod trigger;

pub use access::{Action, Actor, AuditRow, Principal, PrincipalKind, Resource, Role, Token};
pub use application::Application;
pub use event::{Cursor, Event, EventBody, InvalidCursor, StreamId};
pub use execution::{
    Cancel, CancelMode, ChildSpec, Execution, ExecutionKind, Failure, Judgment, Phase, Progress, Stage, StageSpec,
    Task, Unwinding, Wake,
};
pub use ids::{
    ApplicationId, AuditId, DeliveryId, ExecutionId, IntentId, InvalidId, NotificationId, OwnerId, PipelineId,
    PrincipalId, StageId, TokenId, TriggerId,
};
pub use infrastructure::{
    Account, Capacity, CapacityError, HealthCheck, HealthSource, HealthState, HttpProbe, InboundRule, Instance,
    InstanceHealth, Listener, LoadBalancer, LoadBalancerHealthCheck, LoadBalancerProblem, LoadBalancerProblemKind,
    LoadBalancerSpec, NOT_STARTED, Place, Probe, Protocol, SecurityGroup, SecurityGroupSpec, Served, ServerGroup,
    ServerGroupSpec, Share, TrafficSecond, addresses_meet,
};
pub use notification::{
    About, AboutExecution, AboutLoadBalancer, Delivery, DeliveryState, EMAIL, EmailTarget, ExecutionRule, Notification,
    NotificationRule, Occasion, check_address,
};
pub use pipeline::{Parameter, Pipeline, PipelineDefinition, Revision};
pub use status::{OnFailure, Status};
pub use trigger::{PendingSlot, Trigger, TriggerSource, TriggerSpec, Triggered};
