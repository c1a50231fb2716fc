//! The GraphQL schema: one file per noun, each an object that wraps the domain's type. Objects
//! are found through [`Session`], the one place that knows who asks and what they may see.

mod access;
mod account;
mod answer;
mod application;
mod cluster;
mod command;
mod connection;
mod definition;
mod delivery;
mod events;
mod execution;
mod folds;
mod health;
pub(super) mod ids;
mod instance;
mod intent;
mod kinds;
mod load_balancer;
mod node;
mod notification;

mod operations;
mod pipeline;
mod place;
mod scalars;
mod security_group;
mod selectors;
mod server_group;
mod session;
mod stage;
mod trigger;

pub use folds::Folds;
pub use scalars::canonical_span;

use async_graphql::dataloader::DataLoader;
use async_graphql::{MergedObject, MergedSubscription, SDLExportOptions, SchemaBuilder};
use chrono::{DateTime, Utc};

pub(super) use events::LastCursor;

use super::error::shown;
use crate::api;

/// What the API executes.
pub type Schema = async_graphql::Schema<Query, Mutation, Subscription>;

/// Everything that can be read.
#[derive(MergedObject, Default)]
pub struct Query(
    node::NodeQuery,
    application::ApplicationQuery,
    pipeline::PipelineQuery,
    execution::ExecutionQuery,
    account::AccountQuery,
    cluster::ClusterQuery,
    server_group::ServerGroupQuery,
    instance::InstanceQuery,
    load_balancer::LoadBalancerQuery,
    security_group::SecurityGroupQuery,
    kinds::KindQuery,
    notification::NotificationQuery,
    delivery::DeliveryQuery,
    access::AccessQuery,
);

/// Everything that can be changed. Each mutation takes one `input` and answers with a payload in
/// which `userErrors` says what was wrong with it.
#[derive(MergedObject, Default)]
pub struct Mutation(
    application::ApplicationMutation,
    pipeline::PipelineMutation,
    execution::ExecutionMutation,
    operations::OperationMutation,
    delivery::DeliveryMutation,
    access::AccessMutation,
);

/// Everything that can be followed as it happens, over WebSocket (`/graphql/ws`, protocol
/// `graphql-transport-ws`) or as server-sent events.
#[derive(MergedSubscription, Default)]
pub struct Subscription(events::EventSubscription, notification::NotificationSubscription);

/// The schema with what its resolvers work with.
pub fn schema(context: api::Context, authenticator: crate::auth::Authenticator) -> Schema {
    let stages = DataLoader::new(stage::Loader(context.store.clone()), tokio::spawn);
    let deliveries = DataLoader::new(delivery::Loader(context.store.clone()), tokio::spawn);
    builder().data(stages).data(deliveries).data(authenticator).data(context).finish()
}

/// The schema in GraphQL's own language, as `schema.graphql` has it.
pub fn sdl() -> String {
    let options = SDLExportOptions::new().include_specified_by().use_space_ident().prefer_single_line_descriptions();
    let mut text = builder().finish().sdl_with_options(options);
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

/// The schema alone: documents can be checked against it, not executed.
#[cfg(test)]
pub(super) fn bare() -> Schema {
    builder().finish()
}

fn builder() -> SchemaBuilder<Query, Mutation, Subscription> {
    // Depth, cost and number of fields are judged before (see `precheck`); this bound is the
    // library's own last defence.
    Schema::build(Query::default(), Mutation::default(), Subscription::default())
        .limit_recursive_depth(64)
        .extension(answer::Specified)
        .override_output_type_description::<DateTime<Utc>>(scalars::DATE_TIME)
        .register_output_type::<command::UserError>()
        .register_output_type::<node::Node>()
}

#[cfg(test)]
mod tests {
    use async_graphql::Positioned;
    use async_graphql::parser::types::{InputValueDefinition, TypeDefinition, TypeKind, TypeSystemDefinition};

    use super::*;

    #[test]
    fn the_printed_schema_is_the_one_in_the_repository() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/schema.graphql");
        let stored = std::fs::read_to_string(path).expect("schema.graphql");
        assert!(stored == sdl(), "schema.graphql differs from the code: run `gennaker schema > schema.graphql`");
    }

    #[test]
    fn everything_in_the_schema_is_described() {
        let document = async_graphql::parser::parse_schema(sdl()).expect("the printed schema reads back");
        let mut bare = Vec::new();
        for definition in document.definitions {
            if let TypeSystemDefinition::Type(ty) = definition {
                undescribed(&ty.node, &mut bare);
            }
        }
        assert!(bare.is_empty(), "without a description: {bare:#?}");
    }

    fn undescribed(ty: &TypeDefinition, bare: &mut Vec<String>) {
        let name = ty.name.node.as_str();
        let mut see = |what: String, description: &Option<Positioned<String>>| {
            // The library's own words are about its code.
            let is_ours = |text: &str| !text.trim().is_empty() && !text.contains("Implement the");
            if !description.as_ref().is_some_and(|text| is_ours(&text.node)) {
                bare.push(what);
            }
        };
        let args = |args: &[Positioned<InputValueDefinition>]| -> Vec<_> {
            args.iter().map(|arg| (arg.node.name.node.to_string(), arg.node.description.clone())).collect()
        };
        see(name.to_owned(), &ty.description);
        let fields = match &ty.kind {
            TypeKind::Object(object) => &object.fields,
            TypeKind::Interface(interface) => &interface.fields,
            TypeKind::Enum(values) => {
                for value in &values.values {
                    see(format!("{name}.{}", value.node.value.node), &value.node.description);
                }
                return;
            }
            TypeKind::InputObject(input) => {
                for (field, description) in args(&input.fields) {
                    see(format!("{name}.{field}"), &description);
                }
                return;
            }
            TypeKind::Scalar | TypeKind::Union(_) => return,
        };
        for field in fields {
            let path = format!("{name}.{}", field.node.name.node);
            see(path.clone(), &field.node.description);
            for (arg, description) in args(&field.node.arguments) {
                see(format!("{path}({arg}:)"), &description);
            }
        }
    }
}
