//! Where a field fails, the answer has `null` in its place, and the error beside it. A field that
//! may not be null passes this on to the object around it, up to one that may: so says the
//! specification (GraphQL, October 2021, 6.4.4, *Handling Field Errors*). The library leaves the
//! failed field out of its object instead, whatever its type, which clients with types of their
//! own cannot read.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_graphql::extensions::{Extension, ExtensionContext, ExtensionFactory, NextExecute, NextResolve, ResolveInfo};
use async_graphql::{QueryPathNode, QueryPathSegment, Response, ServerError, ServerResult, Value};

/// Makes what each request's fields are watched with.
pub(super) struct Nulls;

impl ExtensionFactory for Nulls {
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
    async fn execute(
        &self,
        ctx: &ExtensionContext<'_>,
        operation_name: Option<&str>,
        next: NextExecute<'_>,
    ) -> Response {
        let mut response = next.run(ctx, operation_name).await;
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
        Schema::build(Query, EmptyMutation, Feed).extension(Nulls).finish()
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
    async fn each_answer_of_a_subscription_stands_for_itself() {
        let answers: Vec<_> = schema().execute_stream("subscription { items { must } }").collect().await;
        let shown: Vec<_> = answers.iter().map(|answer| (json!(answer.data), answer.errors.len())).collect();
        let item = |number: i32| (json!({ "items": { "must": number } }), 0);
        assert_eq!(shown, [item(0), (json!({ "items": null }), 1), item(2)]);
    }
}
