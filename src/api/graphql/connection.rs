//! Pages: `first`/`after` and `last`/`before` in, edges, nodes, page information and the total out.

use std::borrow::Cow;
use std::future::Future;

use async_graphql::{Context, Object, OutputType, SimpleObject, TypeName};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::api;
use crate::api::error::{Code, coded, stored};
use crate::store::{self, Page, PageRequest};

/// Items of a page when neither `first` nor `last` is given.
const DEFAULT: u64 = 25;

/// The four arguments of every connection, and the setting that bounds them.
pub struct PageArgs {
    first: Option<i32>,
    after: Option<String>,
    last: Option<i32>,
    before: Option<String>,
    /// Items of a page, at most.
    max: u64,
}

impl PageArgs {
    /// The arguments of a field of this request.
    pub fn of(
        ctx: &Context<'_>,
        first: Option<i32>,
        after: Option<String>,
        last: Option<i32>,
        before: Option<String>,
    ) -> Self {
        let max = ctx.data_opt::<api::Context>().map(|context| context.config.live.borrow().page_max);
        Self { first, after, last, before, max: max.unwrap_or_else(|| api::Live::default().page_max) }
    }

    /// Checks the arguments: one of `first` and `last`, from 1 to the most; cursors of this API.
    fn request(self) -> async_graphql::Result<PageRequest> {
        let max = self.max;
        let (size, backward) = match (self.first, self.last) {
            (Some(_), Some(_)) => {
                return Err(coded(Code::BadRequest, "give `first` or `last`, not both"));
            }
            (first, None) => (first, false),
            (None, last) => (last, true),
        };
        let limit = match size {
            None => DEFAULT.min(max),
            Some(size) => u64::try_from(size)
                .ok()
                .filter(|size| *size > 0)
                .ok_or_else(|| coded(Code::BadRequest, format!("a page has 1 to {max} items, not {size}")))?,
        };
        if limit > max {
            let message = format!("a page has at most {max} items, not {limit}; follow `pageInfo.endCursor` for more");
            return Err(coded(Code::PageLimitExceeded, message));
        }
        Ok(PageRequest { after: decode(self.after)?, before: decode(self.before)?, limit, backward })
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
            edges: page.items.into_iter().map(|(key, item)| Edge { cursor: encode(&key), node: item.into() }).collect(),
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
            edges: items
                .into_iter()
                .take(to)
                .skip(from)
                .map(|(key, node)| Edge { cursor: encode(&key), node })
                .collect(),
            has_next: to < total,
            has_previous: from > 0,
            total: total as u64,
        })
    }
}

fn encode(key: &str) -> String {
    URL_SAFE_NO_PAD.encode(key)
}

fn decode(cursor: Option<String>) -> async_graphql::Result<Option<String>> {
    cursor
        .map(|cursor| {
            let bytes = URL_SAFE_NO_PAD.decode(&cursor).ok().filter(|bytes| bytes.len() <= 1_024);
            bytes.and_then(|bytes| String::from_utf8(bytes).ok()).ok_or_else(|| {
                coded(Code::BadRequest, format!("`{}` is not a cursor of this list", super::shown(&cursor)))
            })
        })
        .transpose()
}

/// One page of a list.
pub struct Connection<N> {
    edges: Vec<Edge<N>>,
    has_next: bool,
    has_previous: bool,
    total: u64,
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

    fn args(first: Option<i32>, after: Option<&str>, last: Option<i32>, before: Option<&str>) -> PageArgs {
        PageArgs { first, after: after.map(encode), last, before: before.map(encode), max: 100 }
    }

    fn page(args: PageArgs) -> (String, bool, bool) {
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

    #[test]
    fn a_page_outside_its_limits_is_an_error_with_a_code() {
        let code = |args: PageArgs| {
            let error = args.request().expect_err("refused");
            error.extensions.and_then(|values| values.get("code").cloned()).map(|code| code.to_string())
        };
        assert_eq!(code(args(Some(101), None, None, None)).as_deref(), Some("\"PAGE_LIMIT_EXCEEDED\""));
        for wrong in
            [args(Some(0), None, None, None), args(Some(-5), None, None, None), args(Some(1), None, Some(1), None)]
        {
            assert_eq!(code(wrong).as_deref(), Some("\"BAD_REQUEST\""));
        }
        let garbled = PageArgs { after: Some("é".into()), ..args(None, None, None, None) };
        assert_eq!(code(garbled).as_deref(), Some("\"BAD_REQUEST\""));
        assert_eq!(args(Some(100), None, None, None).request().map(|r| r.limit).ok(), Some(100));
        let narrow = |first| PageArgs { max: 10, ..args(first, None, None, None) };
        assert_eq!(code(narrow(Some(11))).as_deref(), Some("\"PAGE_LIMIT_EXCEEDED\""));
        assert_eq!(narrow(None).request().map(|r| r.limit).ok(), Some(10));
    }
}
