//! What a document may ask for, judged before it is executed. Each fragment is visited once and
//! its totals are remembered, and all sums saturate: a small document whose fragments double
//! again and again is refused as fast as any other. GraphQL validation itself expands fragments
//! without memory, so nothing may reach it unjudged.

use std::collections::HashMap;

use async_graphql::parser::types::{
    DocumentOperations, ExecutableDocument, Field, OperationDefinition, OperationType, Selection, SelectionSet,
};
use async_graphql::{Name, Positioned, Value, Variables};

use super::error::{Code, shown};

/// The most a request may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the document.
    pub document_bytes: usize,
    /// Brackets open at one time, in the text.
    pub nesting: usize,
    /// Operations and fragments in the document.
    pub definitions: usize,
    /// Fields, spreads and inline fragments, with fragments expanded.
    pub selections: u64,
    /// Fields within fields.
    pub depth: u64,
    /// Fields that are answered under another name.
    pub aliases: u64,
    /// Directives in all of the document.
    pub directives: u64,
    /// Fields of a query or mutation itself; a subscription has one.
    pub root_fields: u64,
    /// Fields of the answer when every page is full.
    pub cost: u64,
    /// Items of a page; a field that asks for more fails when it runs.
    pub page: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            document_bytes: 64 * 1024,
            nesting: 60,
            definitions: 200,
            selections: 5_000,
            depth: 15,
            aliases: 100,
            directives: 50,
            root_fields: 20,
            cost: 200_000,
            page: 100,
        }
    }
}

/// The items of a page when neither `first` nor `last` is given.
const PAGE_DEFAULT: u64 = 25;

/// The document is not executed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refused {
    pub code: Code,
    pub message: String,
}

fn refused<T>(code: Code, message: impl Into<String>) -> Result<T, Refused> {
    Err(Refused { code, message: message.into() })
}

/// Reads a document and judges it; gives it back with the type of the operation that will run.
pub(super) fn read(
    text: &str,
    operation: Option<&str>,
    variables: &Variables,
    limits: &Limits,
) -> Result<(ExecutableDocument, OperationType), Refused> {
    scan(text, limits)?;
    let document = async_graphql::parser::parse_query(text)
        .map_err(|error| Refused { code: Code::ParseFailed, message: error.to_string().chars().take(500).collect() })?;
    let ty = check(&document, operation, variables, limits)?;
    Ok((document, ty))
}

/// What can be said of the text alone, before the costly parse.
fn scan(text: &str, limits: &Limits) -> Result<(), Refused> {
    if text.trim().is_empty() {
        return refused(Code::BadRequest, "the request has no `query`");
    }
    if text.len() > limits.document_bytes {
        return refused(
            Code::CostLimitExceeded,
            format!(
                "the document has {} bytes; {} are allowed; pass data as variables",
                text.len(),
                limits.document_bytes
            ),
        );
    }
    let (mut open, mut in_string, mut in_comment, mut escaped) = (0_usize, false, false, false);
    for byte in text.bytes() {
        match byte {
            b'\n' | b'\r' => (in_comment, in_string, escaped) = (false, false, false),
            _ if in_comment => {}
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            // A block string's three quotes open, close and open again; its inner text may be
            // miscounted across lines, which only makes the bound a little rough.
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'#' => in_comment = true,
            b'{' | b'[' | b'(' => {
                open += 1;
                if open > limits.nesting {
                    return refused(
                        Code::DepthLimitExceeded,
                        format!("the document opens more than {} brackets within each other", limits.nesting),
                    );
                }
            }
            b'}' | b']' | b')' => open = open.saturating_sub(1),
            _ => {}
        }
    }
    Ok(())
}

/// Totals of a selection set with its fragments expanded.
#[derive(Debug, Clone, Copy, Default)]
struct Totals {
    selections: u64,
    depth: u64,
    aliases: u64,
    directives: u64,
    cost: u64,
    /// Fields at the set's own level.
    fields: u64,
    /// `nodes` or `edges` stand at this level: the field around it is a page.
    is_page: bool,
}

impl Totals {
    fn add(&mut self, other: Self) {
        self.selections = self.selections.saturating_add(other.selections);
        self.depth = self.depth.max(other.depth);
        self.aliases = self.aliases.saturating_add(other.aliases);
        self.directives = self.directives.saturating_add(other.directives);
        self.cost = self.cost.saturating_add(other.cost);
        self.fields = self.fields.saturating_add(other.fields);
        self.is_page |= other.is_page;
    }
}

struct Judge<'a> {
    document: &'a ExecutableDocument,
    variables: &'a Variables,
    /// Items of a page, at most.
    page_max: u64,
    /// None while the fragment is being visited.
    fragments: HashMap<&'a str, Option<Totals>>,
    /// Selection sets being visited, one within the other: bounds the stack.
    level: u32,
}

/// More than this and a document is deeper than any limit on fields allows for.
const LEVELS_MAX: u32 = 64;

fn check(
    document: &ExecutableDocument,
    operation: Option<&str>,
    variables: &Variables,
    limits: &Limits,
) -> Result<OperationType, Refused> {
    let definitions = document.operations.iter().len() + document.fragments.len();
    if definitions > limits.definitions {
        return refused(
            Code::CostLimitExceeded,
            format!("the document has {definitions} operations and fragments; {} are allowed", limits.definitions),
        );
    }
    let chosen = choose(&document.operations, operation)?;
    let mut judge = Judge { document, variables, page_max: limits.page.max(1), fragments: HashMap::new(), level: 0 };
    // Every operation and fragment is judged, the unused too: validation visits them all.
    let mut sum = Totals::default();
    for (_, operation) in document.operations.iter() {
        let mut totals = judge.set(&operation.node.selection_set.node)?;
        let directives = operation.node.directives.len()
            + operation.node.variable_definitions.iter().map(|variable| variable.node.directives.len()).sum::<usize>();
        totals.directives = totals.directives.saturating_add(directives as u64);
        let root_max = if operation.node.ty == OperationType::Subscription { 1 } else { limits.root_fields };
        if totals.fields > root_max {
            return refused(
                if root_max == 1 { Code::ValidationFailed } else { Code::CostLimitExceeded },
                format!("the operation has {} root fields; {root_max} allowed", totals.fields),
            );
        }
        sum.add(totals);
    }
    for (name, fragment) in &document.fragments {
        let mut totals = judge.fragment(name.as_str())?.unwrap_or_default();
        totals.directives = totals.directives.saturating_add(fragment.node.directives.len() as u64);
        // Counted where it is spread; here only so that no unused fragment escapes the limits.
        within(&totals, limits)?;
    }
    within(&sum, limits)?;
    Ok(chosen.ty)
}

fn within(totals: &Totals, limits: &Limits) -> Result<(), Refused> {
    for (what, is, max, code) in [
        ("levels of fields", totals.depth, limits.depth, Code::DepthLimitExceeded),
        ("fields with fragments expanded", totals.selections, limits.selections, Code::CostLimitExceeded),
        ("aliases", totals.aliases, limits.aliases, Code::CostLimitExceeded),
        ("directives", totals.directives, limits.directives, Code::CostLimitExceeded),
        ("fields in a full answer", totals.cost, limits.cost, Code::CostLimitExceeded),
    ] {
        if is > max {
            return refused(code, format!("the request has {is} {what}; {max} are allowed; ask for less at a time"));
        }
    }
    Ok(())
}

/// The operation that will run.
pub(super) fn choose<'a>(
    operations: &'a DocumentOperations,
    name: Option<&str>,
) -> Result<&'a OperationDefinition, Refused> {
    let found = match (operations, name) {
        (DocumentOperations::Single(only), None) => Some(only),
        (DocumentOperations::Multiple(all), None) if all.len() == 1 => all.values().next(),
        (DocumentOperations::Multiple(all), None) => {
            let message = format!("the document has {} operations; give `operationName`", all.len());
            return refused(Code::OperationResolutionFailure, message);
        }
        (DocumentOperations::Multiple(all), Some(name)) => all.get(name),
        (DocumentOperations::Single(_), Some(_)) => None,
    };
    found.map(|operation: &Positioned<OperationDefinition>| &operation.node).ok_or_else(|| Refused {
        code: Code::OperationResolutionFailure,
        message: format!("the document has no operation named `{}`", shown(name.unwrap_or_default())),
    })
}

impl<'a> Judge<'a> {
    fn set(&mut self, set: &'a SelectionSet) -> Result<Totals, Refused> {
        if self.level >= LEVELS_MAX {
            return refused(Code::DepthLimitExceeded, "the document nests too many selections and fragments");
        }
        self.level += 1;
        let mut sum = Totals::default();
        for item in &set.items {
            let mut totals = match &item.node {
                Selection::Field(field) => self.field(&field.node)?,
                // Unknown fragments are for validation to name.
                Selection::FragmentSpread(spread) => {
                    self.fragment(spread.node.fragment_name.node.as_str())?.unwrap_or_default()
                }
                Selection::InlineFragment(inline) => self.set(&inline.node.selection_set.node)?,
            };
            totals.selections = totals.selections.saturating_add(1);
            totals.directives = totals.directives.saturating_add(item.node.directives().len() as u64);
            sum.add(totals);
        }
        self.level -= 1;
        Ok(sum)
    }

    fn field(&mut self, field: &'a Field) -> Result<Totals, Refused> {
        let inner = self.set(&field.selection_set.node)?;
        let items = if inner.is_page { self.page_size(field) } else { 1 };
        let name = field.name.node.as_str();
        Ok(Totals {
            selections: inner.selections,
            depth: inner.depth.saturating_add(1),
            aliases: inner.aliases.saturating_add(u64::from(field.alias.is_some())),
            directives: inner.directives,
            cost: inner.cost.saturating_mul(items).saturating_add(1),
            fields: 1,
            is_page: matches!(name, "nodes" | "edges"),
        })
    }

    fn page_size(&self, field: &Field) -> u64 {
        let asked = ["first", "last"].iter().filter_map(|name| {
            let given = field.get_argument(name)?.node.clone();
            match given.into_const_with(|variable| self.variables.get(&variable).cloned().ok_or(())) {
                Ok(Value::Number(number)) => number.as_u64(),
                Ok(_) => None,
                // A variable that is not given: its default is not looked for; take the most.
                Err(()) => Some(self.page_max),
            }
        });
        asked.max().unwrap_or(PAGE_DEFAULT).clamp(1, self.page_max)
    }

    fn fragment(&mut self, name: &str) -> Result<Option<Totals>, Refused> {
        let Some((name, fragment)) = self.document.fragments.get_key_value(&Name::new(name)) else { return Ok(None) };
        match self.fragments.get(name.as_str()) {
            Some(Some(totals)) => return Ok(Some(*totals)),
            Some(None) => {
                let message = format!("the fragment `{}` contains itself", shown(name));
                return refused(Code::ValidationFailed, message);
            }
            None => {}
        }
        self.fragments.insert(name.as_str(), None);
        let totals = self.set(&fragment.node.selection_set.node)?;
        self.fragments.insert(name.as_str(), Some(totals));
        Ok(Some(totals))
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;
    use std::time::{Duration, Instant};

    use super::*;

    fn judge(text: &str) -> Result<OperationType, Code> {
        read(text, None, &Variables::default(), &Limits::default()).map(|(_, ty)| ty).map_err(|refused| refused.code)
    }

    fn doubling(levels: usize) -> String {
        let mut text = String::from("{...G0}");
        for level in 0..levels {
            write!(text, "fragment G{level} on Query{{...G{0} ...G{0}}}", level + 1).expect("written");
        }
        write!(text, "fragment G{levels} on Query{{__typename}}").expect("written");
        text
    }

    #[test]
    fn fragments_that_double_are_refused_at_once() {
        let started = Instant::now();
        for levels in [22, 60] {
            assert_eq!(judge(&doubling(levels)), Err(Code::CostLimitExceeded), "{levels}");
        }
        assert_eq!(judge(&doubling(150)), Err(Code::DepthLimitExceeded));
        assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
        assert_eq!(judge(&doubling(4)), Ok(OperationType::Query));
    }

    #[test]
    fn each_limit_refuses_what_is_past_it() {
        assert_eq!(judge(&format!("{{a{}}}", "{a".repeat(15) + &"}".repeat(15))), Err(Code::DepthLimitExceeded));
        assert_eq!(judge(&format!("{{a{}}}", "{a".repeat(14) + &"}".repeat(14))), Ok(OperationType::Query));
        let aliases = |count: usize| format!("{{r{{{}}}}}", (0..count).map(|i| format!("x{i}:a ")).collect::<String>());
        assert_eq!(judge(&aliases(101)), Err(Code::CostLimitExceeded));
        assert_eq!(judge(&aliases(100)), Ok(OperationType::Query));
        assert_eq!(judge(&format!("{{{}}}", "a ".repeat(21))), Err(Code::CostLimitExceeded));
        assert_eq!(judge(&format!("{{r{{{}}}}}", "a ".repeat(5_000))), Err(Code::CostLimitExceeded));
        assert_eq!(judge(&format!("{{a {}}}", "@x ".repeat(51))), Err(Code::CostLimitExceeded));
        assert_eq!(judge(&format!("{{a}} #{}", "x".repeat(64 * 1024))), Err(Code::CostLimitExceeded));
        assert_eq!(judge(&format!("{{a(x:{}{})}}", "[".repeat(100), "]".repeat(100))), Err(Code::DepthLimitExceeded));
        assert_eq!(judge("subscription {a b}"), Err(Code::ValidationFailed));
        assert_eq!(judge("subscription {a}"), Ok(OperationType::Subscription));
    }

    #[test]
    fn pages_within_pages_cost_what_they_could_hold() {
        let nested = |first: &str| {
            format!("{{a(first:{first}){{nodes{{b(first:{first}){{nodes{{c(first:{first}){{nodes{{d}}}}}}}}}}}}}}")
        };
        assert_eq!(judge(&nested("100")), Err(Code::CostLimitExceeded));
        assert_eq!(judge(&nested("1073741824")), Err(Code::CostLimitExceeded));
        assert_eq!(judge(&nested("10")), Ok(OperationType::Query));
        assert_eq!(judge(&format!("query($n:Int){}", nested("$n"))), Err(Code::CostLimitExceeded));
    }

    #[test]
    fn a_fragment_that_contains_itself_is_refused() {
        assert_eq!(judge("{...A} fragment A on Q{...B} fragment B on Q{...A ...A}"), Err(Code::ValidationFailed));
        assert_eq!(judge("{a} fragment A on Q{...A}"), Err(Code::ValidationFailed));
    }

    #[test]
    fn the_operation_is_found_by_name() {
        let both = "query A{a} mutation B{b}";
        let read = |name| read(both, name, &Variables::default(), &Limits::default()).map(|(_, ty)| ty);
        assert_eq!(read(Some("B")), Ok(OperationType::Mutation));
        assert_eq!(read(None).map_err(|r| r.code), Err(Code::OperationResolutionFailure));
        assert_eq!(read(Some("C")).map_err(|r| r.code), Err(Code::OperationResolutionFailure));
    }

    #[test]
    fn brackets_in_strings_and_comments_do_not_nest() {
        let brackets = "[".repeat(200);
        assert_eq!(judge(&format!("{{a(x:\"{brackets}\") #{brackets}\n}}")), Ok(OperationType::Query));
    }
}
