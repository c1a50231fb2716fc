//! Pages of other sites: which may use the API, and what their browsers are told (CORS). Pages of
//! this server always may; what is no page sends no origin.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{self, HeaderMap, HeaderValue};
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::App;
use super::media::Media;
use super::reply::Fault;
use crate::api::error::{Code, shown};

/// How long a browser may remember what a preflight said, in seconds.
const REMEMBERED: HeaderValue = HeaderValue::from_static("600");
/// What a page may send beyond what every page may.
const HEADERS_ALLOWED: HeaderValue =
    HeaderValue::from_static("authorization, content-type, accept, last-event-id, x-request-id");
/// What a page may read beyond what every page may.
const HEADERS_EXPOSED: HeaderValue = HeaderValue::from_static("x-request-id, retry-after");

/// Scheme, host and port of pages, as browsers send them: `https://console.example`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin(String);

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Origin {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |what: &str| Err(format!("`{}` {what}; write one such as https://console.example", shown(text)));
        if text.contains('*') {
            return wrong("is a pattern, and each origin has to be named");
        }
        let Some((scheme, rest)) = text.split_once("://") else { return wrong("is no origin") };
        let scheme = scheme.to_ascii_lowercase();
        let usual = match scheme.as_str() {
            "http" => ":80",
            "https" => ":443",
            _ => return wrong("is neither of http nor of https"),
        };
        if rest.contains(['/', '?', '#', '@', ' ']) {
            return wrong("has more than a scheme, a host and a port");
        }
        let rest = rest.to_ascii_lowercase();
        let authority = rest.strip_suffix(usual).unwrap_or(&rest);
        let read = authority.parse::<axum::http::uri::Authority>();
        if read.is_err() || authority.is_empty() || authority.starts_with(':') {
            return wrong("is no origin");
        }
        Ok(Self(format!("{scheme}://{authority}")))
    }
}

impl Origin {
    /// That of the pages at an address.
    fn of(url: &str) -> Option<Self> {
        let (scheme, rest) = url.split_once("://")?;
        let authority = rest.split(['/', '?', '#']).next()?;
        format!("{scheme}://{authority}").parse().ok()
    }
}

/// What is thought of a request's origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judged {
    /// No page, or a page of this server.
    Own,
    /// A page that the settings allow.
    Allowed(HeaderValue),
    /// A page that may not; what to tell.
    Refused(String),
}

impl App {
    /// Whether the page that sends the request may.
    pub fn judge_origin(&self, headers: &HeaderMap) -> Judged {
        let options = &self.options;
        judge(headers, &options.base_url, options.public_url.as_deref(), &options.live.borrow().origins)
    }
}

fn judge(headers: &HeaderMap, base_url: &str, public_url: Option<&str>, allowed: &[Origin]) -> Judged {
    let Some(value) = headers.get(header::ORIGIN) else { return Judged::Own };
    let text = value.to_str().unwrap_or_default();
    if is_own(text, headers, base_url) {
        return Judged::Own;
    }
    if let Ok(origin) = text.parse::<Origin>() {
        // A proxy may reach the server by another name than its pages have.
        if public_url.and_then(Origin::of).is_some_and(|own| own == origin) {
            return Judged::Own;
        }
        if allowed.contains(&origin) {
            return Judged::Allowed(value.clone());
        }
    }
    Judged::Refused(format!(
        "pages of `{}` may not use this server; it can be allowed by the setting cors-allowed-origins",
        shown(text)
    ))
}

fn is_own(origin: &str, headers: &HeaderMap, base_url: &str) -> bool {
    let Ok(origin) = origin.parse::<Uri>() else { return false };
    let Some(authority) = origin.authority().map(|authority| authority.as_str().to_ascii_lowercase()) else {
        return false;
    };
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).map(str::to_ascii_lowercase);
    let base = base_url.parse::<Uri>().ok().and_then(|base| Some(base.authority()?.as_str().to_ascii_lowercase()));
    host.is_some_and(|host| host == authority) || base.is_some_and(|base| base == authority)
}

/// Answers browsers that ask before they send, refuses pages that may not, and lets the others
/// read the answer.
pub async fn cors(State(app): State<Arc<App>>, request: Request<Body>, next: Next) -> Response {
    let origin = match app.judge_origin(request.headers()) {
        Judged::Own => return varied(next.run(request).await),
        Judged::Refused(message) => {
            let fault = Fault::new(StatusCode::FORBIDDEN, Code::Forbidden, message);
            return varied(fault.reply(Media::Json));
        }
        Judged::Allowed(origin) => origin,
    };
    let asks =
        *request.method() == Method::OPTIONS && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let mut response = if asks { preflight() } else { next.run(request).await };
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HEADERS_EXPOSED);
    varied(response)
}

fn preflight() -> Response {
    let headers = [
        (header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST")),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, HEADERS_ALLOWED),
        (header::ACCESS_CONTROL_MAX_AGE, REMEMBERED),
    ];
    (StatusCode::NO_CONTENT, headers).into_response()
}

/// The answer depends on who asks; nothing between may give it to another.
fn varied(mut response: Response) -> Response {
    response.headers_mut().append(header::VARY, HeaderValue::from_static("origin"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(origin: &str, host: &str, allowed: &[&str]) -> Judged {
        let mut headers = HeaderMap::new();
        headers.insert(header::ORIGIN, origin.parse().expect("a value"));
        headers.insert(header::HOST, host.parse().expect("a value"));
        let allowed: Vec<_> = allowed.iter().map(|text| text.parse().expect("an origin")).collect();
        judge(&headers, "https://gennaker.example:8443", Some("https://cd.example/gennaker/"), &allowed)
    }

    #[test]
    fn a_page_may_use_its_own_server() {
        let own = |origin: &str, host: &str| judged(origin, host, &[]) == Judged::Own;
        assert!(own("http://127.0.0.1:8080", "127.0.0.1:8080"));
        assert!(own("http://LOCALHOST:8080", "localhost:8080"));
        assert!(own("https://gennaker.example:8443", "10.0.0.1"), "behind a proxy");
        assert!(own("https://cd.example", "10.0.0.1") && own("https://cd.example:443", "10.0.0.1"));
        assert!(!own("http://cd.example", "10.0.0.1"), "another scheme");
        assert!(!own("http://127.0.0.1:8081", "127.0.0.1:8080"));
        assert!(!own("http://evil.example", "127.0.0.1:8080"));
        assert!(!own("null", "127.0.0.1:8080"));
        assert!(!own("é", "127.0.0.1:8080"));
        assert_eq!(judge(&HeaderMap::new(), "", None, &[]), Judged::Own, "no page");
    }

    #[test]
    fn a_page_of_an_allowed_origin_may_and_of_another_scheme_or_port_may_not() {
        let allowed = ["https://console.example", "http://127.0.0.1:5173"];
        let may = |origin: &str| matches!(judged(origin, "127.0.0.1:7777", &allowed), Judged::Allowed(_));
        assert!(may("https://console.example"));
        assert!(may("https://CONSOLE.example:443"));
        assert!(may("http://127.0.0.1:5173"));
        for other in ["http://console.example", "https://console.example:8443", "https://console.example.evil", "null"]
        {
            assert!(!may(other), "{other}");
        }
    }

    #[test]
    fn an_origin_is_a_scheme_a_host_and_perhaps_a_port() {
        let read = |text: &str| text.parse::<Origin>().map(|origin| origin.to_string());
        assert_eq!(read("HTTPS://Console.Example:443").as_deref(), Ok("https://console.example"));
        assert_eq!(read("http://[::1]:5173").as_deref(), Ok("http://[::1]:5173"));
        for wrong in
            ["*", "https://*.example", "console.example", "https://", "https://x/", "ftp://x", "null", "https://:1"]
        {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
