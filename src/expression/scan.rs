//! Finds expressions in a text and counts what is in them, before a parser sees them.

use super::{NESTING_MAX, SOURCE_MAX, TOKENS_MAX};

/// A piece of a text.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Part<'a> {
    /// Stands for itself, `$${` already turned into `${`.
    Text(String),
    /// What is between `${` and its `}`.
    Expression(&'a str),
}

/// Whether an expression begins somewhere in the text.
pub(super) fn opens(text: &str) -> bool {
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        if at == 0 || rest.as_bytes()[at - 1] != b'$' {
            return true;
        }
        rest = &rest[at + 2..];
    }
    false
}

/// The text in pieces.
///
/// # Errors
/// When an expression is not closed.
pub(super) fn parts(text: &str) -> Result<Vec<Part<'_>>, String> {
    let mut parts = Vec::new();
    let mut plain = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        if at > 0 && rest.as_bytes()[at - 1] == b'$' {
            plain.push_str(&rest[..at - 1]);
            plain.push_str("${");
            rest = &rest[at + 2..];
            continue;
        }
        plain.push_str(&rest[..at]);
        if !plain.is_empty() {
            parts.push(Part::Text(std::mem::take(&mut plain)));
        }
        let inner = &rest[at + 2..];
        let end = end(inner).ok_or_else(|| {
            let shown: String = inner.chars().take(40).collect();
            format!("`${{{shown}` is not closed; end it with `}}`, or write `$${{` for a literal `${{`")
        })?;
        parts.push(Part::Expression(&inner[..end]));
        rest = &inner[end + 1..];
    }
    plain.push_str(rest);
    if !plain.is_empty() {
        parts.push(Part::Text(plain));
    }
    Ok(parts)
}

/// Where the `}` is that closes the expression: not within a string, not that of a map.
fn end(text: &str) -> Option<usize> {
    let mut depth = 0usize;
    let mut quote = None;
    let mut bytes = text.bytes().enumerate();
    while let Some((at, byte)) = bytes.next() {
        match (quote, byte) {
            (Some(_), b'\\') => {
                bytes.next();
            }
            (Some(open), _) if byte == open => quote = None,
            (Some(_), _) => {}
            (None, b'\'' | b'"') => quote = Some(byte),
            (None, b'{') => depth += 1,
            (None, b'}') if depth == 0 => return Some(at),
            (None, b'}') => depth -= 1,
            _ => {}
        }
    }
    None
}

/// Checks the expression's size: long or deep ones would take a parser's stack.
///
/// # Errors
/// When it is empty or over a limit.
pub(super) fn vet(source: &str) -> Result<(), String> {
    if source.trim().is_empty() {
        return Err("the expression is empty".to_owned());
    }
    if source.len() > SOURCE_MAX {
        return Err(format!("the expression has {} bytes; at most {SOURCE_MAX} are allowed", source.len()));
    }
    let (mut tokens, mut depth, mut deepest) = (0usize, 0usize, 0usize);
    let mut chars = source.chars().peekable();
    while let Some(char) = chars.next() {
        if char.is_whitespace() {
            continue;
        }
        tokens += 1;
        match char {
            '\'' | '"' => {
                while let Some(inner) = chars.next() {
                    if inner == '\\' {
                        chars.next();
                    } else if inner == char {
                        break;
                    }
                }
            }
            '(' | '[' | '{' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            _ if char.is_alphanumeric() || char == '_' => {
                while chars.next_if(|next| next.is_alphanumeric() || *next == '_').is_some() {}
            }
            _ => {}
        }
    }
    if tokens > TOKENS_MAX {
        return Err(format!("the expression has {tokens} parts; at most {TOKENS_MAX} are allowed"));
    }
    if deepest > NESTING_MAX {
        return Err(format!("the expression is nested {deepest} deep; at most {NESTING_MAX} is allowed"));
    }
    Ok(())
}
