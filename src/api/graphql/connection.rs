//! Pages: `first`/`after` and `last`/`before` in, edges, nodes, page information and the total out.

use std::borrow::Cow;
use std::future::Future;

use async_graphql::{Context, Object, OutputType, SimpleObject, TypeName};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};

use crate::api;
use crate::api::error::{Code, coded, stored};
use crate::store::{self, Page, PageRequest};

/// Items of a page when neither `first` nor `last` is given.
const DEFAULT: u64 = 25;

/// The lists of an object: fields that take the four arguments of every connection. GraphQL wants
/// the arguments at each field; here they stand once. The object takes the lists in with
/// `#[graphql(flatten)]`, or, with an owner alone, has nothing else. `by` tells one owner of such
/// lists from another.
macro_rules! lists {
    (@fields $type:ty;
        $(
            $(#[doc = $doc:literal])+
            fn $name:ident($this:ident, $session:ident, $page:ident $(, $(#[$about:meta])* $arg:ident: $kind:ty)?)
            -> $node:ty $body:block
        )+
    ) => {
        #[async_graphql::Object]
        impl $type {
            $(
                $(#[doc = $doc])+
                async fn $name(
                    &self,
                    ctx: &async_graphql::Context<'_>,
                    $($(#[$about])* $arg: $kind,)?
                    #[graphql(desc = "How many items from the start of the range; 25 when absent, at most 100 unless the server is set otherwise.")]
                    first: Option<i32>,
                    #[graphql(desc = "Only items after this cursor.")] after: Option<String>,
                    #[graphql(desc = "How many items from the end of the range instead, within the same bound.")]
                    last: Option<i32>,
                    #[graphql(desc = "Only items before this cursor.")] before: Option<String>,
                ) -> async_graphql::Result<$crate::api::graphql::connection::Connection<$node>> {
                    let mut list = self.list(stringify!($name));
                    list.extend(Vec::<String>::from([$(async_graphql::InputType::to_value(&$arg).to_string())?]));
                    let $page = $crate::api::graphql::connection::PageArgs { first, after, last, before }.of(ctx, &list);
                    let ($this, $session) = (self.owner(), $crate::api::graphql::session::session(ctx)?);
                    let _ = $this;
                    $body
                }
            )+
        }
    };
    ($owner:ident; $($fields:tt)+) => {
        impl $owner {
            fn owner(&self) -> &Self {
                self
            }
            /// What tells this list from all others.
            fn list(&self, field: &str) -> Vec<String> {
                vec![stringify!($owner).to_owned(), field.to_owned()]
            }
        }

        lists!(@fields $owner; $($fields)+);
    };
    ($lists:ident of $owner:ident $(by |$it:ident| $key:expr)?; $($fields:tt)+) => {
        /// The lists of an object.
        pub struct $lists<'a>(pub &'a $owner);

        impl $lists<'_> {
            fn owner(&self) -> &$owner {
                self.0
            }
            /// What tells this list from all others.
            fn list(&self, field: &str) -> Vec<String> {
                let owner: Vec<String> = vec![$({ let $it = self.0; $key })?];
                [stringify!($lists).to_owned(), field.to_owned()].into_iter().chain(owner).collect()
            }
        }

        lists!(@fields $lists<'_>; $($fields)+);
    };
}
pub(super) use lists;

/// The four arguments of every connection.
pub struct PageArgs {
    pub first: Option<i32>,
    pub after: Option<String>,
    pub last: Option<i32>,
    pub before: Option<String>,
}

/// What marks the cursors of one list: of one field, of one owner, under one filter.
type Mark = [u8; 6];

/// A page that is asked for, of one list.
pub struct Paging {
    args: PageArgs,
    mark: Mark,
    /// Items of a page, at most.
    max: u64,
}

impl PageArgs {
    /// A page of the list that these texts name together. A cursor holds for its own list only.
    pub fn of(self, ctx: &Context<'_>, list: &[String]) -> Paging {
        let max = ctx.data_opt::<api::Context>().map(|context| context.config.live.borrow().page_max);
        self.at_most(max.unwrap_or_else(|| api::Live::default().page_max), list)
    }

    fn at_most(self, max: u64, list: &[String]) -> Paging {
        let digest = Sha256::digest(list.join("\0"));
        let mut mark = Mark::default();
        mark.copy_from_slice(&digest[..size_of::<Mark>()]);
        Paging { args: self, mark, max }
    }
}

impl Paging {
    /// How many items are asked for from the start of the range.
    pub fn first(&self) -> async_graphql::Result<usize> {
        Ok(usize::try_from(self.request()?.limit).unwrap_or(usize::MAX))
    }

    /// Checks the arguments: one of `first` and `last`, from 1 to the most; cursors of this list.
    fn request(&self) -> async_graphql::Result<PageRequest> {
        let (args, max) = (&self.args, self.max);
        let (name, size, backward) = match (args.first, args.last) {
            (Some(_), Some(_)) => {
                return Err(coded(Code::BadRequest, "give `first` or `last`, not both"));
            }
            (first, None) => ("first", first, false),
            (None, last) => ("last", last, true),
        };
        let limit = match size {
            None => DEFAULT.min(max),
            Some(size) => u64::try_from(size).ok().filter(|size| *size > 0).ok_or_else(|| {
                coded(Code::BadRequest, format!("`{name}` is {size}, and a page has 1 to {max} items"))
            })?,
        };
        if limit > max {
            let message = format!(
                "`{name}` is {limit}, and a page has at most {max} items; follow `pageInfo.endCursor` for more"
            );
            return Err(coded(Code::PageLimitExceeded, message));
        }
        let after = self.decode("after", args.after.as_deref())?;
        let before = self.decode("before", args.before.as_deref())?;
        Ok(PageRequest { after, before, limit, backward })
    }

    /// A page that the store reads.
    pub async fn read<M, N, F, Fut>(self, read: F) -> async_graphql::Result<Connection<N>>
    where
        N: OutputType + From<M>,
        F: FnOnce(PageRequest) -> Fut,
        Fut: Future<Output = Result<Page<M>, store::Error>>,
    {
        let page = read(self.request()?).await.map_err(stored)?;
        Ok(Connection {
            edges: page.items.into_iter().map(|(key, item)| self.edge(&key, item.into())).collect(),
            has_next: page.has_next,
            has_previous: page.has_previous,
            total: page.total,
        })
    }

    /// A page of what is in memory, in the order of the keys.
    pub fn slice<N: OutputType>(self, mut items: Vec<(String, N)>) -> async_graphql::Result<Connection<N>> {
        let request = self.request()?;
        items.sort_by(|a, b| a.0.cmp(&b.0));
        let total = items.len();
        let start = request.after.map_or(0, |after| items.partition_point(|(key, _)| *key <= after));
        let end = request.before.map_or(total, |before| items.partition_point(|(key, _)| *key < before)).max(start);
        let limit = usize::try_from(request.limit).unwrap_or(usize::MAX);
        let (from, to) = if request.backward {
            (end.saturating_sub(limit).max(start), end)
        } else {
            (start, start.saturating_add(limit).min(end))
        };
        Ok(Connection {
            edges: items.into_iter().take(to).skip(from).map(|(key, node)| self.edge(&key, node)).collect(),
            has_next: to < total,
            has_previous: from > 0,
            total: total as u64,
        })
    }

    fn edge<N>(&self, key: &str, node: N) -> Edge<N> {
        Edge { cursor: URL_SAFE_NO_PAD.encode([&self.mark, key.as_bytes()].concat()), node }
    }

    /// The key that a cursor of this list stands for.
    fn decode(&self, argument: &str, cursor: Option<&str>) -> async_graphql::Result<Option<String>> {
        let Some(cursor) = cursor else { return Ok(None) };
        let wrong = |what: &str| {
            let (cursor, fields) = (super::shown(cursor), "`pageInfo` or an edge of this list, with the same filter");
            coded(Code::BadRequest, format!("`{argument}`: `{cursor}` is {what}; take one from {fields}"))
        };
        let bytes = URL_SAFE_NO_PAD.decode(cursor).ok().filter(|bytes| bytes.len() <= 1_024);
        let bytes = bytes.ok_or_else(|| wrong("not a cursor"))?;
        let (mark, key) = bytes.split_at_checked(size_of::<Mark>()).ok_or_else(|| wrong("not a cursor"))?;
        if mark != self.mark {
            return Err(wrong("not a cursor of this list"));
        }
        String::from_utf8(key.to_vec()).map(Some).map_err(|_| wrong("not a cursor"))
    }
}

/// One page of a list.
pub struct Connection<N> {
    edges: Vec<Edge<N>>,
    has_next: bool,
    has_previous: bool,
    total: u64,
}

impl<N> Connection<N> {
    /// A page of a list that has cursors of its own.
    pub fn with_cursors(items: Vec<(String, N)>, has_previous: bool, has_next: bool, total: u64) -> Self {
        let edges = items.into_iter().map(|(cursor, node)| Edge { cursor, node }).collect();
        Self { edges, has_next, has_previous, total }
    }
}

/// One item of a page and where it stands in the list.
pub struct Edge<N> {
    cursor: String,
    node: N,
}

/// Whether there is more, and where to go on.
#[derive(SimpleObject)]
pub struct PageInfo {
    /// More items come after this page.
    has_next_page: bool,
    /// Items come before this page.
    has_previous_page: bool,
    /// Give it as `before` for the page before this one.
    start_cursor: Option<String>,
    /// Give it as `after` for the next page.
    end_cursor: Option<String>,
}

impl<N: OutputType> TypeName for Connection<N> {
    fn type_name() -> Cow<'static, str> {
        format!("{}Connection", N::type_name()).into()
    }
}

impl<N: OutputType> TypeName for Edge<N> {
    fn type_name() -> Cow<'static, str> {
        format!("{}Edge", N::type_name()).into()
    }
}

/// One page of a list.
#[Object(name_type)]
impl<N: OutputType> Connection<N> {
    /// The items with their cursors.
    async fn edges(&self) -> &[Edge<N>] {
        &self.edges
    }
    /// The items.
    async fn nodes(&self) -> Vec<&N> {
        self.edges.iter().map(|edge| &edge.node).collect()
    }
    /// Whether there is more, and where to go on.
    async fn page_info(&self) -> PageInfo {
        PageInfo {
            has_next_page: self.has_next,
            has_previous_page: self.has_previous,
            start_cursor: self.edges.first().map(|edge| edge.cursor.clone()),
            end_cursor: self.edges.last().map(|edge| edge.cursor.clone()),
        }
    }
    /// How many items the whole list has.
    async fn total_count(&self) -> u64 {
        self.total
    }
}

/// One item of a page.
#[Object(name_type)]
impl<N: OutputType> Edge<N> {
    /// Where the item stands in the list.
    async fn cursor(&self) -> &str {
        &self.cursor
    }
    /// The item.
    async fn node(&self) -> &N {
        &self.node
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(name: &str, first: Option<i32>, after: Option<&str>, last: Option<i32>, before: Option<&str>) -> Paging {
        let blank = PageArgs { first: None, after: None, last: None, before: None }.at_most(100, &[name.to_owned()]);
        let cursor = |key: &str| blank.edge(key, ()).cursor;
        PageArgs { first, after: after.map(cursor), last, before: before.map(cursor) }.at_most(100, &[name.to_owned()])
    }

    fn args(first: Option<i32>, after: Option<&str>, last: Option<i32>, before: Option<&str>) -> Paging {
        list("letters", first, after, last, before)
    }

    fn page(args: Paging) -> (String, bool, bool) {
        let items = "dbeac".chars().map(|c| (c.to_string(), c.to_string())).collect();
        let page = args.slice::<String>(items).expect("a page");
        assert_eq!(page.total, 5);
        (page.edges.into_iter().map(|edge| edge.node).collect(), page.has_previous, page.has_next)
    }

    #[test]
    fn pages_follow_cursors_in_both_directions() {
        assert_eq!(page(args(None, None, None, None)), ("abcde".into(), false, false));
        assert_eq!(page(args(Some(2), None, None, None)), ("ab".into(), false, true));
        assert_eq!(page(args(Some(2), Some("b"), None, None)), ("cd".into(), true, true));
        assert_eq!(page(args(Some(2), Some("d"), None, None)), ("e".into(), true, false));
        assert_eq!(page(args(None, None, Some(2), None)), ("de".into(), true, false));
        assert_eq!(page(args(None, None, Some(2), Some("d"))), ("bc".into(), true, true));
        assert_eq!(page(args(Some(2), Some("d"), None, Some("b"))), (String::new(), true, true));
        // The item of a cursor may be gone: the place remains.
        assert_eq!(page(args(Some(2), Some("bb"), None, None)), ("cd".into(), true, true));
    }

    fn refusal(paging: &Paging) -> (String, String) {
        let error = paging.request().expect_err("refused");
        let code = error.extensions.and_then(|values| values.get("code").cloned());
        (code.map(|code| code.to_string()).unwrap_or_default(), error.message)
    }

    #[test]
    fn a_page_outside_its_limits_is_an_error_with_a_code() {
        let (code, message) = refusal(&args(Some(101), None, None, None));
        assert_eq!(code, "\"PAGE_LIMIT_EXCEEDED\"");
        assert!(message.contains("`first` is 101"), "{message}");
        for wrong in
            [args(Some(0), None, None, None), args(Some(-5), None, None, None), args(Some(1), None, Some(1), None)]
        {
            assert_eq!(refusal(&wrong).0, "\"BAD_REQUEST\"");
        }
        assert_eq!(args(Some(100), None, None, None).request().map(|r| r.limit).ok(), Some(100));
    }

    #[test]
    fn a_cursor_holds_for_its_own_list_only() {
        let ours = args(None, Some("b"), None, None);
        assert_eq!(ours.request().expect("a request").after.as_deref(), Some("b"));
        let others = list("numbers", None, Some("b"), None, None).args;
        let (code, message) = refusal(&others.at_most(100, &["letters".to_owned()]));
        assert_eq!(code, "\"BAD_REQUEST\"");
        assert!(message.starts_with("`after`: ") && message.contains("not a cursor of this list"), "{message}");
        for garbled in ["é", "", "YQ", &"A".repeat(4_000)] {
            let args = PageArgs { first: None, after: None, last: None, before: Some(garbled.to_owned()) };
            let (code, message) = refusal(&args.at_most(100, &["letters".to_owned()]));
            assert_eq!(code, "\"BAD_REQUEST\"");
            assert!(message.starts_with("`before`: ") && message.contains("is not a cursor"), "{message}");
        }
    }
}
