//! A GraphQL request as any transport brings it: read, judged, and made ready to be executed.

use async_graphql::Variables;
use async_graphql::parser::types::OperationType;
use serde_json::{Map, Value};

use super::App;
use super::reply::Fault;
use crate::api::graphql::LastCursor;
use crate::api::{inputs, precheck};
use crate::model::Actor;

/// `query`, `operationName`, `variables`: not judged yet.
#[derive(Debug)]
pub struct Parameters {
    query: String,
    operation: Option<String>,
    variables: Map<String, Value>,
}

/// Ready to be executed.
pub struct Ready {
    pub request: async_graphql::Request,
    pub ty: OperationType,
    /// The newest cursor a subscription has given out.
    pub last: LastCursor,
}

impl Parameters {
    /// From a JSON object.
    pub fn from_json(value: Value) -> Result<Self, Fault> {
        let mut object = match value {
            Value::Object(object) => object,
            Value::Array(_) => {
                return Err(Fault::bad_request("batches are not served; send one request at a time"));
            }
            _ => return Err(Fault::bad_request("the request is not a JSON object")),
        };
        let query = match object.remove("query") {
            Some(Value::String(query)) => query,
            None | Some(Value::Null) => return Err(Fault::bad_request("the request has no `query`")),
            Some(_) => return Err(Fault::bad_request("`query` is not a text")),
        };
        let operation = match object.remove("operationName") {
            None | Some(Value::Null) => None,
            Some(Value::String(name)) => Some(name).filter(|name| !name.is_empty()),
            Some(_) => return Err(Fault::bad_request("`operationName` is not a text")),
        };
        let variables = match object.remove("variables") {
            None | Some(Value::Null) => Map::new(),
            Some(Value::Object(variables)) => variables,
            Some(_) => return Err(Fault::bad_request("`variables` is not an object")),
        };
        match object.remove("extensions") {
            None | Some(Value::Null | Value::Object(_)) => Ok(Self { query, operation, variables }),
            Some(_) => Err(Fault::bad_request("`extensions` is not an object")),
        }
    }

    /// From a URL's query.
    pub fn from_query(query: &str) -> Result<Self, Fault> {
        let mut object = Map::new();
        for (name, value) in form(query) {
            let value = match name.as_str() {
                "query" | "operationName" => Value::String(value),
                "variables" | "extensions" if value.is_empty() => Value::Null,
                "variables" | "extensions" => serde_json::from_str(&value)
                    .map_err(|error| Fault::bad_request(format!("`{name}` is not JSON: {error}")))?,
                _ => continue,
            };
            object.insert(name, value);
        }
        Self::from_json(Value::Object(object))
    }

    /// Judges the document and puts everything together.
    pub fn ready(self, app: &App, actor: Actor, after: Option<String>) -> Result<Ready, Fault> {
        let variables = Variables::from_json(Value::Object(self.variables));
        let limits = precheck::Limits { page: app.options.live.borrow().page_max, ..app.options.limits };
        let (document, ty) = precheck::read(&self.query, self.operation.as_deref(), &variables, &limits)?;
        inputs::no_nul_within(&self.query)?;
        inputs::check(precheck::choose(&document.operations, self.operation.as_deref())?, &variables)?;
        let last = LastCursor::default();
        if let Some(after) = after {
            last.set(&after);
        }
        let mut request = async_graphql::Request::new(self.query).variables(variables).data(actor).data(last.clone());
        request.operation_name = self.operation;
        request.set_parsed_query(document);
        Ok(Ready { request, ty, last })
    }
}

/// Names and values of `a=b&c=d`, with `%xx` and `+` read.
fn form(query: &str) -> impl Iterator<Item = (String, String)> {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decoded(name), decoded(value))
    })
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        match (*first, tail) {
            (b'+', _) => bytes.push(b' '),
            (b'%', [high, low, after @ ..]) => {
                let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
                if let (Some(high), Some(low)) = (digit(*high), digit(*low)) {
                    bytes.push(high * 16 + low);
                    rest = after;
                } else {
                    bytes.push(b'%');
                }
            }
            (byte, _) => bytes.push(byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_urls_query_is_read_like_a_body() {
        let read = Parameters::from_query("query=%7Ba%7D+%23x&operationName=&variables=%7B%22n%22%3A1%7D&other=1")
            .expect("read");
        assert_eq!(read.query, "{a} #x");
        assert_eq!(read.operation, None);
        assert_eq!(read.variables, *json!({"n": 1}).as_object().expect("an object"));
        assert_eq!(decoded("100%"), "100%");
        assert_eq!(decoded("%zz%41"), "%zzA");
    }

    #[test]
    fn requests_of_another_shape_are_refused() {
        for wrong in [
            json!([]),
            json!("x"),
            json!({}),
            json!({"query": 1}),
            json!({"query": "{a}", "variables": []}),
            json!({"query": "{a}", "operationName": 1}),
            json!({"query": "{a}", "extensions": "x"}),
        ] {
            assert!(Parameters::from_json(wrong.clone()).is_err(), "{wrong}");
        }
        assert!(Parameters::from_query("variables=nonsense&query={a}").is_err());
    }
}
