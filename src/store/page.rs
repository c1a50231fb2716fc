//! Slices of lists by key: forwards and backwards, with what lies beyond.

use sea_orm::{ConnectionTrait, QueryResult, Value};
use uuid::Uuid;

use super::sql::{all, one};
use super::{Error, Page, PageRequest, rows};

/// The most items in a slice.
const LIMIT_MAX: u64 = 1000;

/// A list: what is in it and how it is ordered.
pub(super) struct List<'a> {
    pub table: &'a str,
    pub columns: &'a str,
    /// Conditions without the keyword, `1 = 1` for all.
    pub filter: String,
    pub values: Vec<Value>,
    pub key: Key,
    pub descending: bool,
}

/// The column or columns that order a list, and their form as text.
#[derive(Clone, Copy)]
pub(super) enum Key {
    Id,
    Name,
    /// Where names are not unique.
    NameAndId,
    Number,
}

impl Key {
    const fn columns(self) -> &'static [&'static str] {
        match self {
            Self::Id => &["id"],
            Self::Name => &["name"],
            Self::NameAndId => &["name", "id"],
            Self::Number => &["number"],
        }
    }

    /// The values of a key's text; none if it is not one of this list's.
    fn parse(self, text: &str) -> Option<Vec<Value>> {
        let id = |text: &str| Uuid::try_parse(text).ok().map(rows::id);
        Some(match self {
            Self::Id => vec![id(text)?],
            Self::Name => vec![rows::text(text)],
            Self::NameAndId => {
                let (name, last) = text.rsplit_once('/')?;
                vec![rows::text(name), id(last)?]
            }
            Self::Number => vec![rows::int(text.parse().ok()?)],
        })
    }
}

impl List<'_> {
    /// The slice; `read` gives an item with its key's text.
    pub(super) async fn page<C, T>(
        &self,
        db: &C,
        request: &PageRequest,
        read: impl Fn(&QueryResult) -> Result<(String, T), Error>,
    ) -> Result<Page<T>, Error>
    where
        C: ConnectionTrait,
    {
        let limit = request.limit.clamp(1, LIMIT_MAX);
        let after = request.after.as_deref().map(|text| self.parse(text)).transpose()?;
        let before = request.before.as_deref().map(|text| self.parse(text)).transpose()?;

        let mut filter = self.filter.clone();
        let mut values = self.values.clone();
        for (bound, beyond) in [(&after, true), (&before, false)] {
            if let Some(bound) = bound {
                filter.push_str(" AND ");
                filter.push_str(&self.beyond(beyond));
                values.extend(bound.iter().cloned());
            }
        }
        values.push(rows::int(i64::try_from(limit + 1).unwrap_or(i64::MAX)));
        let sql = format!(
            "SELECT {} FROM {} WHERE {filter} ORDER BY {} LIMIT ?",
            self.columns,
            self.table,
            self.order(request.backward)
        );
        let mut items = all(db, &sql, values).await?.iter().map(&read).collect::<Result<Vec<_>, Error>>()?;
        let more = items.len() as u64 > limit;
        items.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        if request.backward {
            items.reverse();
        }
        // What the slice's ends do not tell by themselves is asked: is there anything beyond?
        let (first, last) = match (items.first(), items.last()) {
            (Some((first, _)), Some((last, _))) => (Some(self.parse(first)?), Some(self.parse(last)?)),
            _ => (None, None),
        };
        let has_previous = (request.backward && more)
            || match (first, &after) {
                (Some(first), _) => self.any(db, false, first, false).await?,
                (None, Some(after)) => self.any(db, false, after.clone(), true).await?,
                (None, None) => false,
            };
        let has_next = (!request.backward && more)
            || match (last, &before) {
                (Some(last), _) => self.any(db, true, last, false).await?,
                (None, Some(before)) => self.any(db, true, before.clone(), true).await?,
                (None, None) => false,
            };
        let sql = format!("SELECT COUNT(*) FROM {} WHERE {}", self.table, self.filter);
        let total: i64 = match one(db, &sql, self.values.clone()).await? {
            Some(row) => row.try_get_by_index(0)?,
            None => 0,
        };
        Ok(Page { items, has_next, has_previous, total: u64::try_from(total).unwrap_or(0) })
    }

    fn parse(&self, text: &str) -> Result<Vec<Value>, Error> {
        self.key.parse(text).ok_or_else(|| Error::Corrupt {
            what: "page key".to_owned(),
            message: format!("it is not a key of the list of {}s", self.table),
        })
    }

    /// The condition of lying after (or before) a key, in list order.
    fn beyond(&self, after: bool) -> String {
        let columns = self.key.columns();
        let sign = if after == self.descending { "<" } else { ">" };
        match columns {
            [column] => format!("{column} {sign} ?"),
            _ => format!("({}) {sign} ({})", columns.join(", "), super::sql::marks(columns.len())),
        }
    }

    fn order(&self, backward: bool) -> String {
        let direction = if self.descending == backward { "ASC" } else { "DESC" };
        self.key.columns().iter().map(|column| format!("{column} {direction}")).collect::<Vec<_>>().join(", ")
    }

    /// Whether anything lies beyond a key, itself included if wanted.
    async fn any<C: ConnectionTrait>(
        &self,
        db: &C,
        after: bool,
        key: Vec<Value>,
        inclusive: bool,
    ) -> Result<bool, Error> {
        let mut condition = self.beyond(after);
        if inclusive {
            condition = condition.replace('<', "<=").replace('>', ">=");
        }
        let sql = format!("SELECT 1 FROM {} WHERE {} AND {condition} LIMIT 1", self.table, self.filter);
        let values = self.values.iter().cloned().chain(key).collect();
        Ok(one(db, &sql, values).await?.is_some())
    }
}
