//! The GraphQL schema: one file per noun, each an object that wraps the domain's type. Objects
//! are found through [`Session`], the one place that knows who asks and what they may see.

mod access;
mod application;
mod command;
mod connection;
mod definition;
mod events;
mod execution;
mod ids;
mod infrastructure;
mod intent;
mod kinds;
mod node;
mod notification;
mod operations;
mod pipeline;
mod scalars;
mod selectors;
mod session;
mod stage;

use async_graphql::dataloader::DataLoader;
use async_graphql::{MergedObject, MergedSubscription, SDLExportOptions, SchemaBuilder};

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
    infrastructure::InfrastructureQuery,
    kinds::KindQuery,
    notification::NotificationQuery,
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
    access::AccessMutation,
);

/// Everything that can be followed as it happens, over WebSocket (`/graphql/ws`, protocol
/// `graphql-transport-ws`) or as server-sent events.
#[derive(MergedSubscription, Default)]
pub struct Subscription(events::EventSubscription, notification::NotificationSubscription);

/// The schema with what its resolvers work with.
pub fn schema(context: api::Context, authenticator: crate::auth::Authenticator) -> Schema {
    let stages = DataLoader::new(stage::Loader(context.store.clone()), tokio::spawn);
    builder().data(stages).data(authenticator).data(context).finish()
}

/// The schema in GraphQL's own language, as `schema.graphql` has it.
pub fn sdl() -> String {
    let options = SDLExportOptions::new().include_specified_by().use_space_ident().prefer_single_line_descriptions();
    let mut text = builder().finish().sdl_with_options(options);
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

fn builder() -> SchemaBuilder<Query, Mutation, Subscription> {
    // Depth, cost and number of fields are judged before (see `precheck`); this bound is the
    // library's own last defence.
    Schema::build(Query::default(), Mutation::default(), Subscription::default())
        .limit_recursive_depth(64)
        .register_output_type::<command::UserError>()
        .register_output_type::<node::Node>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_printed_schema_is_the_one_in_the_repository() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/schema.graphql");
        let stored = std::fs::read_to_string(path).expect("schema.graphql");
        assert!(stored == sdl(), "schema.graphql differs from the code: run `gennaker schema > schema.graphql`");
    }

    #[test]
    fn everything_in_the_schema_is_described() {
        let schema = builder().finish();
        let mut bare = Vec::new();
        for (name, ty) in &schema.registry().types {
            if name.starts_with("__") {
                continue;
            }
            bare.extend(undescribed(name, ty));
        }
        assert!(bare.is_empty(), "without a description: {bare:?}");
    }

    fn undescribed(name: &str, ty: &async_graphql::registry::MetaType) -> Vec<String> {
        use async_graphql::registry::MetaType;
        let mut bare = Vec::new();
        let mut see = |what: String, description: &Option<String>| {
            if description.as_ref().is_none_or(|text| text.trim().is_empty()) {
                bare.push(what);
            }
        };
        match ty {
            MetaType::Scalar { description, .. } => see(name.into(), description),
            MetaType::Object { description, fields, .. } | MetaType::Interface { description, fields, .. } => {
                see(name.into(), description);
                for (field, meta) in fields.iter().filter(|(field, _)| !field.starts_with("__")) {
                    see(format!("{name}.{field}"), &meta.description);
                    for (arg, meta) in &meta.args {
                        see(format!("{name}.{field}({arg}:)"), &meta.description);
                    }
                }
            }
            MetaType::Union { description, .. } => see(name.into(), description),
            MetaType::Enum { description, enum_values, .. } => {
                see(name.into(), description);
                for (value, meta) in enum_values {
                    see(format!("{name}.{value}"), &meta.description);
                }
            }
            MetaType::InputObject { description, input_fields, .. } => {
                see(name.into(), description);
                for (field, meta) in input_fields {
                    see(format!("{name}.{field}"), &meta.description);
                }
            }
        }
        bare
    }
}
