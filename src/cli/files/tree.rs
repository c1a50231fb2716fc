//! A document as it was written, each value with its line, so that a fault can say where it is.
//! YAML is read; JSON is YAML too.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::Spanned;

/// Values of a file, at the most; also what aliases may make of it.
const EVENTS_MAX: usize = 200_000;
/// Levels of a document.
const DEPTH_MAX: usize = 64;
/// Documents of a file.
const DOCUMENTS_MAX: usize = 1_000;

/// A value and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    pub content: Content,
    /// From 1; 0 where it is not known.
    pub line: u64,
}

/// What a value is.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    List(Vec<Node>),
    /// In the order of the file: key, its line, value.
    Map(Vec<(String, u64, Node)>),
}

/// A fault of the file's own, and its line.
#[derive(Debug)]
pub struct Unreadable {
    pub line: u64,
    pub message: String,
}

/// All documents of a file. Empty ones are left out.
///
/// # Errors
/// Where it is no YAML, or larger or deeper than is allowed.
pub fn read(text: &str) -> Result<Vec<Node>, Unreadable> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: EVENTS_MAX,
            max_depth: DEPTH_MAX,
            max_documents: DOCUMENTS_MAX,
        },
        // `on`, `yes` and `no` are texts, as in YAML 1.2.
        strict_booleans: true,
    };
    serde_saphyr::from_multiple_with_options::<Node>(text, options).map_err(|error| Unreadable {
        line: error.location().map_or(0, |location| location.line()),
        message: error.without_snippet().to_string(),
    })
}

impl Node {
    /// The value of a map's key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Self> {
        match &self.content {
            Content::Map(entries) => entries.iter().find(|(name, _, _)| name == key).map(|(_, _, node)| node),
            _ => None,
        }
    }

    /// The text, where it is one.
    #[must_use]
    pub fn text(&self) -> Option<&str> {
        match &self.content {
            Content::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The same without lines.
    #[must_use]
    pub fn to_json(&self) -> Value {
        match &self.content {
            Content::Null => Value::Null,
            Content::Bool(value) => Value::Bool(*value),
            Content::Number(number) => Value::Number(number.clone()),
            Content::Text(text) => Value::String(text.clone()),
            Content::List(items) => items.iter().map(Self::to_json).collect(),
            Content::Map(entries) => {
                Value::Object(entries.iter().map(|(key, _, node)| (key.clone(), node.to_json())).collect::<Map<_, _>>())
            }
        }
    }

    /// The line of the value at a path of keys and places, or of the last part of it that is there.
    #[must_use]
    pub fn line_at<'a>(&self, path: impl IntoIterator<Item = &'a str>) -> u64 {
        let mut node = self;
        let mut line = self.line;
        for part in path {
            let next = match &node.content {
                Content::Map(entries) => {
                    entries.iter().find(|(key, _, _)| key == part).map(|(_, at, node)| (*at, node))
                }
                Content::List(items) => {
                    part.parse::<usize>().ok().and_then(|index| items.get(index)).map(|node| (node.line, node))
                }
                _ => None,
            };
            let Some((at, found)) = next else { break };
            (line, node) = (at, found);
        }
        line
    }

    /// What it is, for people.
    #[must_use]
    pub const fn sort(&self) -> &'static str {
        match self.content {
            Content::Null => "nothing",
            Content::Bool(_) => "a boolean",
            Content::Number(_) => "a number",
            Content::Text(_) => "a text",
            Content::List(_) => "a list",
            Content::Map(_) => "an object",
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Content>::deserialize(deserializer)?;
        Ok(Self { content: spanned.value, line: spanned.referenced.line() })
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Any)
    }
}

struct Any;

impl<'de> Visitor<'de> for Any {
    type Value = Content;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a value")
    }
    fn visit_unit<E>(self) -> Result<Content, E> {
        Ok(Content::Null)
    }
    fn visit_none<E>(self) -> Result<Content, E> {
        Ok(Content::Null)
    }
    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Content, D::Error> {
        Content::deserialize(deserializer)
    }
    fn visit_bool<E>(self, value: bool) -> Result<Content, E> {
        Ok(Content::Bool(value))
    }
    fn visit_i64<E>(self, value: i64) -> Result<Content, E> {
        Ok(Content::Number(value.into()))
    }
    fn visit_u64<E>(self, value: u64) -> Result<Content, E> {
        Ok(Content::Number(value.into()))
    }
    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Content, E> {
        Number::from_f64(value).map(Content::Number).ok_or_else(|| E::custom("a number without an end is not JSON"))
    }
    fn visit_str<E>(self, value: &str) -> Result<Content, E> {
        Ok(Content::Text(value.to_owned()))
    }
    fn visit_string<E>(self, value: String) -> Result<Content, E> {
        Ok(Content::Text(value))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Content, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Content::List(list))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Content, A::Error> {
        let mut map = Vec::new();
        while let Some(key) = entries.next_key::<Spanned<String>>()? {
            map.push((key.value, key.referenced.line(), entries.next_value()?));
        }
        Ok(Content::Map(map))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_keep_their_lines() {
        let text =
            "kind: Application\nname: shop\n---\n# nothing\n---\nlist:\n  - on: [STARTED]\n    no: yes\n  - 1.5\n";
        let documents = read(text).expect("YAML");
        assert_eq!(documents.len(), 2, "{documents:#?}");
        assert_eq!(documents[0].to_json(), json!({"kind": "Application", "name": "shop"}));
        assert_eq!(documents[1].to_json(), json!({"list": [{"on": ["STARTED"], "no": "yes"}, 1.5]}));
        assert_eq!(documents[0].line_at(["name"]), 2);
        assert_eq!(documents[1].line_at(["list", "0", "no"]), 8);
        assert_eq!(documents[1].line_at(["list", "0", "missing", "x"]), 7);
    }

    #[test]
    fn json_is_read_too_and_faults_have_a_line() {
        let documents = read("{\"a\": {\"b\": null, \"c\": \"x\\ny\"}}\n").expect("JSON");
        assert_eq!(documents[0].to_json(), json!({"a": {"b": null, "c": "x\ny"}}));
        let fault = read("a: 1\nb: [1, 2\nc: 3\n").expect_err("no YAML");
        assert!(fault.line >= 2, "{fault:?}");
        let fault = read("a: 1\nb: 2\na: 3\n").expect_err("a key that comes twice");
        assert!(fault.line == 3 && fault.message.contains('a'), "{fault:?}");
        let bomb = "a: &a [1,1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\ng: [*f,*f,*f,*f,*f,*f,*f,*f,*f]\n";
        read(bomb).expect_err("too many values by aliases");
    }
}
