//! Answers as the specification wants them (GraphQL, October 2021), which the library's are not.
//!
//! Where a field fails, the answer has `null` in its place, and the error beside it; a field that
//! may not be null passes this on to the object around it, up to one that may (6.4.4, *Handling
//! Field Errors*). The library leaves the failed field out of its object, whatever its type, which
//! clients with types of their own cannot read.
//!
//! Fields stand in the order in which the document asks for them (6.2.1, *Executing Selection
//! Sets*). The library's stand in the order in which they were ready.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use async_graphql::extensions::{
    Extension, ExtensionContext, ExtensionFactory, NextExecute, NextParseQuery, NextResolve, ResolveInfo,
};
use async_graphql::indexmap::IndexMap;
use async_graphql::parser::types::{ExecutableDocument, Selection, SelectionSet};
use async_graphql::{Name, QueryPathNode, QueryPathSegment, Response, ServerError, ServerResult, Value, Variables};

use crate::api::precheck::choose;

/// Makes what each request's fields are watched with.
pub(super) struct Specified;

impl ExtensionFactory for Specified {
    fn create(&self) -> Arc<dyn Extension> {
        Arc::new(OfRequest::default())
    }
}

/// What failed since the last answer; a subscription has many answers, one after the other.
#[derive(Default)]
struct OfRequest {
    failed: Mutex<Failed>,
    /// So that an answer without a fault, as most are, compares no paths.
    any: AtomicBool,
    document: OnceLock<ExecutableDocument>,
    /// Of the operation that runs.
    shape: OnceLock<Shape>,
}

/// The fields of an object in the order of the document, each with those below it. Empty for what
/// has no fields.
#[derive(Default)]
struct Shape(Vec<(Name, Self)>);

impl Shape {
    fn of(document: &ExecutableDocument, operation: Option<&str>) -> Self {
        let mut shape = Self::default();
        if let Ok(operation) = choose(&document.operations, operation) {
            shape.add(&operation.selection_set.node, document);
        }
        shape
    }

    /// A field counts where it is met first; what is asked of it elsewhere comes behind.
    fn add(&mut self, set: &SelectionSet, document: &ExecutableDocument) {
        for selection in &set.items {
            match &selection.node {
                Selection::Field(field) => {
                    let name = &field.node.response_key().node;
                    let place = self.0.iter().position(|(known, _)| known == name).unwrap_or_else(|| {
                        self.0.push((name.clone(), Self::default()));
                        self.0.len() - 1
                    });
                    self.0[place].1.add(&field.node.selection_set.node, document);
                }
                Selection::InlineFragment(fragment) => self.add(&fragment.node.selection_set.node, document),
                Selection::FragmentSpread(spread) => {
                    if let Some(fragment) = document.fragments.get(&spread.node.fragment_name.node) {
                        self.add(&fragment.node.selection_set.node, document);
                    }
                }
            }
        }
    }

    fn order(&self, value: &mut Value) {
        match value {
            // A scalar may be an object too: its fields are its own.
            _ if self.0.is_empty() => {}
            Value::List(items) => items.iter_mut().for_each(|item| self.order(item)),
            Value::Object(fields) => {
                let mut ordered = IndexMap::with_capacity(fields.len());
                for (name, below) in &self.0 {
                    if let Some((name, mut value)) = fields.swap_remove_entry(name) {
                        below.order(&mut value);
                        ordered.insert(name, value);
                    }
                }
                ordered.append(fields);
                *fields = ordered;
            }
            _ => {}
        }
    }
}

#[derive(Default)]
struct Failed {
    errors: Vec<ServerError>,
    /// Where null has to stand because of a fault below.
    nulls: Vec<Vec<Segment>>,
    /// Lists whose items may be null. Of an item the library says that it may not, whatever its type is.
    sparse: Vec<Vec<Segment>>,
}

#[derive(PartialEq)]
enum Segment {
    Field(String),
    Index(usize),
}

/// A field, not an item of a list.
const fn is_field(node: &QueryPathNode<'_>) -> bool {
    matches!(node.segment, QueryPathSegment::Name(_))
}

/// From the operation's own field down.
fn path(node: &QueryPathNode<'_>) -> Vec<Segment> {
    let mut path: Vec<Segment> = std::iter::successors(Some(node), |node| node.parent)
        .map(|node| match node.segment {
            QueryPathSegment::Name(name) => Segment::Field(name.to_owned()),
            QueryPathSegment::Index(index) => Segment::Index(index),
        })
        .collect();
    path.reverse();
    path
}

#[async_trait::async_trait]
impl Extension for OfRequest {
    async fn parse_query(
        &self,
        ctx: &ExtensionContext<'_>,
        query: &str,
        variables: &Variables,
        next: NextParseQuery<'_>,
    ) -> ServerResult<ExecutableDocument> {
        let document = next.run(ctx, query, variables).await?;
        // Once: a request has one document.
        let _ = self.document.set(document.clone());
        Ok(document)
    }

    async fn execute(
        &self,
        ctx: &ExtensionContext<'_>,
        operation_name: Option<&str>,
        next: NextExecute<'_>,
    ) -> Response {
        let mut response = next.run(ctx, operation_name).await;
        if let Some(document) = self.document.get() {
            self.shape.get_or_init(|| Shape::of(document, operation_name)).order(&mut response.data);
        }
        if self.any.swap(false, Ordering::AcqRel) {
            let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
            if std::mem::take(&mut failed.nulls).iter().any(Vec::is_empty) {
                response.data = Value::Null;
            }
            response.errors.append(&mut failed.errors);
        }
        response
    }

    async fn resolve(
        &self,
        ctx: &ExtensionContext<'_>,
        info: ResolveInfo<'_>,
        next: NextResolve<'_>,
    ) -> ServerResult<Option<Value>> {
        let (node, declared) = (info.path_node, info.return_type);
        let items = declared.trim_end_matches('!').strip_suffix(']');
        if items.is_some_and(|items| !items.ends_with('!')) && is_field(node) {
            let here = path(node);
            let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
            if !failed.sparse.contains(&here) {
                failed.sparse.push(here);
            }
        }
        let may_be_null = !declared.ends_with('!');
        let error = match next.run(ctx, info).await {
            Ok(value) if !self.any.load(Ordering::Acquire) => return Ok(value),
            Ok(value) => {
                let here = path(node);
                if !self.failed.lock().unwrap_or_else(PoisonError::into_inner).nulls.contains(&here) {
                    return Ok(value);
                }
                None
            }
            Err(error) => Some(error),
        };
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.errors.extend(error);
        let mut around = path(node);
        around.pop();
        if !may_be_null && (is_field(node) || !failed.sparse.contains(&around)) {
            failed.nulls.push(around);
        }
        self.any.store(true, Ordering::Release);
        Ok(Some(Value::Null))
    }
}

#[cfg(test)]
mod tests {
    use async_graphql::{EmptyMutation, Object, Schema, SimpleObject, Subscription};
    use futures_util::StreamExt as _;
    use serde_json::json;

    use super::*;

    struct Query;

    #[derive(SimpleObject)]
    #[graphql(complex)]
    struct Item {
        number: i32,
    }

    #[async_graphql::ComplexObject]
    impl Item {
        async fn must(&self) -> Result<i32, String> {
            self.unless_one()
        }

        async fn may(&self) -> Result<Option<i32>, String> {
            self.unless_one().map(Some)
        }
    }

    impl Item {
        fn unless_one(&self) -> Result<i32, String> {
            if self.number == 1 { Err("one".to_owned()) } else { Ok(self.number) }
        }
    }

    fn items() -> [Item; 3] {
        [0, 1, 2].map(|number| Item { number })
    }

    #[Object]
    impl Query {
        async fn item(&self, number: i32) -> Option<Item> {
            Some(Item { number })
        }

        async fn list(&self) -> Vec<Option<Item>> {
            items().into_iter().map(Some).collect()
        }

        async fn full(&self) -> Option<Vec<Item>> {
            Some(items().into_iter().collect())
        }

        async fn surely(&self) -> Item {
            Item { number: 1 }
        }

        /// Ready after as many turns as it says.
        async fn late(&self, after: i32) -> i32 {
            for _ in 0..after {
                tokio::task::yield_now().await;
            }
            after
        }

        async fn free(&self) -> async_graphql::Json<serde_json::Value> {
            async_graphql::Json(json!({ "z": 1, "a": { "y": 2, "b": 3 } }))
        }

        async fn fails(&self) -> Result<Option<Item>, String> {
            Err("it fails".to_owned())
        }
    }

    struct Feed;

    #[Subscription]
    impl Feed {
        async fn items(&self) -> impl futures_util::Stream<Item = Option<Item>> {
            futures_util::stream::iter(items().map(Some))
        }
    }

    fn schema() -> Schema<Query, EmptyMutation, Feed> {
        Schema::build(Query, EmptyMutation, Feed).extension(Specified).finish()
    }

    async fn answer(text: &str) -> (serde_json::Value, Vec<serde_json::Value>) {
        let response = schema().execute(text).await;
        let paths = response.errors.iter().map(|error| json!(error.path)).collect();
        (response.data.into_json().expect("JSON"), paths)
    }

    #[tokio::test]
    async fn a_field_that_fails_is_null_and_the_others_stay() {
        let (data, paths) =
            answer("{ fails { number } item(number: 1) { number may } a: item(number: 2) { may } }").await;
        assert_eq!(data, json!({ "fails": null, "item": { "number": 1, "may": null }, "a": { "may": 2 } }));
        assert_eq!(paths, [json!(["fails"]), json!(["item", "may"])]);
    }

    #[tokio::test]
    async fn what_may_not_be_null_makes_null_of_the_nearest_around_it_that_may() {
        let (data, paths) = answer("{ item(number: 1) { number must } a: item(number: 2) { must } }").await;
        assert_eq!(data, json!({ "item": null, "a": { "must": 2 } }));
        assert_eq!(paths, [json!(["item", "must"])]);
        let (data, paths) = answer("{ list { must } }").await;
        assert_eq!(data, json!({ "list": [{ "must": 0 }, null, { "must": 2 }] }));
        assert_eq!(paths, [json!(["list", 1, "must"])]);
        assert_eq!(
            answer("{ full { must } item(number: 0) { must } }").await.0,
            json!({ "full": null, "item": { "must": 0 } })
        );
        assert_eq!(answer("{ surely { must } item(number: 0) { must } }").await.0, json!(null));
        assert_eq!(answer("{ surely { number } }").await.1, Vec::<serde_json::Value>::new());
    }

    #[tokio::test]
    async fn fields_stand_in_the_order_of_the_document() {
        let text = "query Q { a: item(number: 2) { ...F t: __typename } item(number: 0) { number } __typename
            late(after: 5) b: late(after: 0) full { must number } a: item(number: 2) { must } }
            fragment F on Item { may ... on Item { number } }";
        let response = schema().execute(text).await;
        let shown = serde_json::to_string(&response.data).expect("JSON");
        assert_eq!(
            shown,
            r#"{"a":{"may":2,"number":2,"t":"Item","must":2},"item":{"number":0},"__typename":"Query","late":5,"b":0,"full":null}"#
        );
        let free = schema().execute("{ free late(after: 1) }").await;
        assert_eq!(serde_json::to_string(&free.data).expect("JSON"), r#"{"free":{"z":1,"a":{"y":2,"b":3}},"late":1}"#);
    }

    #[tokio::test]
    async fn each_answer_of_a_subscription_stands_for_itself() {
        let answers: Vec<_> = schema().execute_stream("subscription { items { must } }").collect().await;
        let shown: Vec<_> = answers.iter().map(|answer| (json!(answer.data), answer.errors.len())).collect();
        let item = |number: i32| (json!({ "items": { "must": number } }), 0);
        assert_eq!(shown, [item(0), (json!({ "items": null }), 1), item(2)]);
    }
}
