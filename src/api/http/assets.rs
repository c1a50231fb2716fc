//! The explorer: GraphiQL at `/`, all its files from the binary, under a policy that lets nothing
//! in from elsewhere. Licences of what others wrote are in `assets/THIRD-PARTY-LICENSES`.

use std::sync::Arc;

use axum::Router;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::App;

/// Scripts, connections and everything else from here only. Styles may be inline: the editor
/// sets them so.
const POLICY: &str = "default-src 'none'; script-src 'self'; connect-src 'self'; style-src 'self' 'unsafe-inline'; \
     img-src 'self' data:; font-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";

macro_rules! asset {
    ($name:literal) => {
        include_str!(concat!("assets/", $name))
    };
}

const FILES: [(&str, &str, &str); 7] = [
    ("/assets/explorer.js", SCRIPT, asset!("explorer.js")),
    ("/assets/explorer.css", STYLE, asset!("explorer.css")),
    ("/assets/graphiql.min.js", SCRIPT, asset!("graphiql.min.js")),
    ("/assets/graphiql.min.css", STYLE, asset!("graphiql.min.css")),
    ("/assets/react.production.min.js", SCRIPT, asset!("react.production.min.js")),
    ("/assets/react-dom.production.min.js", SCRIPT, asset!("react-dom.production.min.js")),
    ("/assets/THIRD-PARTY-LICENSES", TEXT, asset!("THIRD-PARTY-LICENSES")),
];

pub fn routes() -> Router<Arc<App>> {
    let page = || async { file(HTML, asset!("index.html")) };
    FILES.into_iter().fold(Router::new().route("/", get(page)), |router, (path, kind, text)| {
        router.route(path, get(move || async move { file(kind, text) }))
    })
}

fn file(kind: &'static str, text: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        // Asked for anew after the server was upgraded.
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, text).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_asks_for_nothing_from_elsewhere() {
        let page = asset!("index.html");
        for (path, ..) in FILES.iter().filter(|(path, ..)| !path.contains("LICENSES")) {
            assert!(page.contains(path), "{path}");
        }
        assert!(!page.contains("://"), "no absolute address");
        assert!(!page.contains("<script>") && !page.contains(" on"), "no inline script");
    }
}
