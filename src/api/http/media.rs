//! Which media type an answer has: what the client accepts, by its weights.

use axum::http::header::{self, HeaderMap};

/// The media types of answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Media {
    /// `application/json`: for older clients, and those that do not say.
    Json,
    /// `application/graphql-response+json`.
    GraphQl,
    /// `text/event-stream`.
    Events,
}

impl Media {
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json; charset=utf-8",
            Self::GraphQl => "application/graphql-response+json; charset=utf-8",
            Self::Events => "text/event-stream",
        }
    }
}

/// The type the client likes best; None when it accepts none of ours.
pub fn negotiate(headers: &HeaderMap) -> Option<Media> {
    let mut best: Option<(u16, Media)> = None;
    let mut said = false;
    for value in headers.get_all(header::ACCEPT) {
        let Ok(value) = value.to_str() else { continue };
        for range in value.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let media = match parts.next().unwrap_or_default().to_ascii_lowercase().as_str() {
                "application/json" | "*/*" | "application/*" => Media::Json,
                "application/graphql-response+json" => Media::GraphQl,
                "text/event-stream" => Media::Events,
                "" => continue,
                _ => {
                    said = true;
                    continue;
                }
            };
            said = true;
            let weight = parts
                .filter_map(|part| part.split_once('='))
                .find(|(name, _)| name.trim().eq_ignore_ascii_case("q"))
                .map_or(1_000, |(_, weight)| thousandths(weight.trim()));
            if weight > 0 && best.is_none_or(|(known, _)| weight > known) {
                best = Some((weight, media));
            }
        }
    }
    if said { best.map(|(_, media)| media) } else { Some(Media::Json) }
}

fn thousandths(text: &str) -> u16 {
    let weight: f32 = text.parse().unwrap_or(0.0);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped before")]
    let weight = (weight.clamp(0.0, 1.0) * 1_000.0) as u16;
    weight
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_liked_type_that_we_have_is_chosen() {
        let accept = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, text.parse().expect("a value"));
            negotiate(&headers)
        };
        assert_eq!(negotiate(&HeaderMap::new()), Some(Media::Json));
        assert_eq!(accept("*/*"), Some(Media::Json));
        assert_eq!(accept("application/graphql-response+json"), Some(Media::GraphQl));
        assert_eq!(
            accept("application/graphql-response+json; charset=utf-8, application/json;q=0.9"),
            Some(Media::GraphQl)
        );
        assert_eq!(accept("application/graphql-response+json;q=0.5, application/json"), Some(Media::Json));
        assert_eq!(accept("text/event-stream"), Some(Media::Events));
        assert_eq!(accept("text/html"), None);
        assert_eq!(accept("application/json;q=0"), None);
    }
}
