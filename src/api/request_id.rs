//! The id under which a request is found in the log: given by whoever sent it, or made here.

use std::future::Future;

use uuid::Uuid;

/// Characters of an id that is taken over.
const CHARS_MAX: usize = 64;

tokio::task_local! {
    static CURRENT: String;
}

/// The id a client gave, if it is one that can stand in a log, or a new one.
pub(super) fn choose(given: Option<&str>) -> String {
    let fits = |id: &&str| {
        !id.is_empty() && id.len() <= CHARS_MAX && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
    };
    given.filter(fits).map_or_else(|| Uuid::new_v4().simple().to_string(), str::to_owned)
}

/// Runs a part of the request of that id.
pub(super) fn within<F: Future>(id: String, part: F) -> impl Future<Output = F::Output> {
    CURRENT.scope(id, part)
}

/// The id of the request that this is a part of, or a new one.
pub(super) fn current() -> String {
    CURRENT.try_with(String::clone).unwrap_or_else(|_| choose(None))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_that_cannot_stand_in_a_log_is_replaced() {
        assert_eq!(choose(Some("abc-1.2_X")), "abc-1.2_X");
        for bad in ["", "a b", "a\nb", "é", &"x".repeat(65), "a\"b"] {
            let id = choose(Some(bad));
            assert!(id != *bad && id.len() == 32, "{bad:?}: {id}");
        }
        assert_ne!(choose(None), choose(None));
    }
}
