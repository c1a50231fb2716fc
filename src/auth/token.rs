//! Tokens: `gnk_<token id, 32 hex>_<secret, 43 base64url>`. The id finds the row, the secret
//! proves it; the database keeps only the SHA-256 of the secret, so the text is shown once.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use uuid::Uuid;

use super::{Denied, allow};
use crate::model::{
    Action, Actor, AuditId, AuditRow, Principal, PrincipalId, PrincipalKind, Resource, Role, Token, TokenId,
};
use crate::store::{Commit, CommitError, Guard, Store, Write};

/// What every token's text begins with.
pub const PREFIX: &str = "gnk_";

const SECRET_BYTES: usize = 32;
const DESCRIPTION_CHARS_MAX: usize = 200;

/// A token could not be made or revoked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system gives no random bytes.
    #[error("the operating system gives no random bytes: {0}")]
    Random(String),
    /// The actor may not.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// The input does not hold; the text says what and why.
    #[error("{0}")]
    Invalid(String),
    /// There is no such token.
    #[error("{0}")]
    NotFound(String),
    /// The database could not be read.
    #[error(transparent)]
    Store(#[from] crate::store::Error),
    /// The database did not take it, or nobody knows.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

/// A token's text, taken apart.
#[derive(Clone, Copy)]
pub struct Parsed {
    /// Where to find the row.
    pub id: TokenId,
    hash: [u8; SECRET_BYTES],
}

impl Parsed {
    /// Whether the secret is that of the stored hash; takes the same time whatever differs.
    #[must_use]
    pub fn matches(&self, stored: &[u8]) -> bool {
        self.hash.ct_eq(stored).into()
    }
}

/// Takes a token's text apart; None when it is none.
#[must_use]
pub fn parse(text: &str) -> Option<Parsed> {
    let (id, secret) = text.strip_prefix(PREFIX)?.split_once('_')?;
    if id.len() != 32 || secret.len() != 43 {
        return None;
    }
    let id = Uuid::try_parse(id).ok()?;
    let secret = URL_SAFE_NO_PAD.decode(secret).ok()?;
    (secret.len() == SECRET_BYTES).then(|| Parsed { id: id.into(), hash: hash(&secret) })
}

/// A new token of a principal, and its text, which is kept nowhere.
///
/// # Errors
/// When the operating system has no random bytes.
pub fn create(
    principal: PrincipalId,
    description: impl Into<String>,
    now: DateTime<Utc>,
    expires_at: Option<DateTime<Utc>>,
) -> Result<(Token, String), Error> {
    let mut secret = [0_u8; SECRET_BYTES];
    getrandom::fill(&mut secret).map_err(|error| Error::Random(error.to_string()))?;
    let id = TokenId::new();
    let text = format!("{PREFIX}{}_{}", id.uuid().simple(), URL_SAFE_NO_PAD.encode(secret));
    let token = Token {
        id,
        principal,
        description: description.into(),
        hash: hash(&secret).to_vec(),
        created_at: now,
        expires_at,
        revoked_at: None,
    };
    Ok((token, text))
}

/// Makes a token of a principal and stores it with its audit row. Needs [`Action::Administer`].
///
/// # Errors
/// Where the actor may not, the input does not hold, or the database cannot.
pub async fn issue(
    store: &Store,
    actor: &Actor,
    principal: &Principal,
    description: &str,
    now: DateTime<Utc>,
    expires_at: Option<DateTime<Utc>>,
) -> Result<(Token, String), Error> {
    allow(actor, Action::Administer, &Resource::Server)?;
    if description.chars().count() > DESCRIPTION_CHARS_MAX {
        return Err(Error::Invalid(format!("the description has more than {DESCRIPTION_CHARS_MAX} characters")));
    }
    if expires_at.is_some_and(|at| at <= now) {
        return Err(Error::Invalid("the token would expire in the past; give a later instant".into()));
    }
    let (token, text) = create(principal.id, description, now, expires_at)?;
    let detail = serde_json::json!({"createToken": token.id, "principal": principal.name, "description": description});
    store
        .commit(Commit {
            writes: vec![Write::InsertToken(token.clone()), Write::InsertAudit(audit(actor, now, detail))],
            ..Commit::default()
        })
        .await?;
    Ok((token, text))
}

/// Makes a token invalid from now on. Needs [`Action::Administer`]. A token revoked before stays
/// revoked as of then.
///
/// # Errors
/// Where the actor may not, there is no such token, or the database cannot.
pub async fn revoke(store: &Store, actor: &Actor, id: TokenId, now: DateTime<Utc>) -> Result<Token, Error> {
    allow(actor, Action::Administer, &Resource::Server)?;
    let mut token =
        store.token(id).await?.ok_or_else(|| Error::NotFound(format!("there is no token `{id}`; list the tokens")))?;
    if token.revoked_at.is_none() {
        let detail = serde_json::json!({"revokeToken": id});
        store
            .commit(Commit {
                writes: vec![Write::RevokeToken { id, at: now }, Write::InsertAudit(audit(actor, now, detail))],
                ..Commit::default()
            })
            .await?;
        token.revoked_at = Some(now);
    }
    Ok(token)
}

/// The principal of that name; made with this kind and these roles when there is none.
///
/// # Errors
/// Where the actor may not make it, the name does not hold, or the database cannot.
pub async fn ensure_principal(
    store: &Store,
    actor: &Actor,
    name: &str,
    kind: PrincipalKind,
    roles: &[Role],
    now: DateTime<Utc>,
) -> Result<Principal, Error> {
    if let Some(found) = store.principal_by_name(name).await? {
        return Ok(found);
    }
    allow(actor, Action::Administer, &Resource::Server)?;
    let fits =
        (1..=64).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.@".contains(&b));
    if !fits {
        return Err(Error::Invalid(format!(
            "`{}` is no name of a principal; use 1 to 64 letters, digits, `-`, `_`, `.` and `@`",
            name.chars().take(80).collect::<String>()
        )));
    }
    let principal =
        Principal { id: PrincipalId::new(), name: name.into(), kind, roles: roles.to_vec(), created_at: now };
    let detail =
        serde_json::json!({"createPrincipal": principal.name, "kind": principal.kind, "roles": principal.roles});
    let commit = Commit {
        guards: vec![Guard::PrincipalNameFree { name: name.into() }],
        writes: vec![Write::InsertPrincipal(principal.clone()), Write::InsertAudit(audit(actor, now, detail))],
        events: Vec::new(),
    };
    match store.commit(commit).await {
        Ok(_) => Ok(principal),
        // Somebody else made it meanwhile.
        Err(refused @ CommitError::Refused(_)) => store.principal_by_name(name).await?.ok_or(Error::Commit(refused)),
        Err(error) => Err(error.into()),
    }
}

fn audit(actor: &Actor, now: DateTime<Utc>, detail: serde_json::Value) -> AuditRow {
    AuditRow {
        id: AuditId::new(),
        at: now,
        principal: actor.principal,
        principal_name: actor.name.clone(),
        action: Action::Administer,
        resource: Resource::Server,
        detail,
    }
}

fn hash(secret: &[u8]) -> [u8; SECRET_BYTES] {
    Sha256::digest(secret).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    #[test]
    fn a_token_is_recognised_by_its_text_only() {
        let now = Clock::system().now();
        let (token, text) = create(PrincipalId::new(), "bot", now, None).expect("made");
        let parsed = parse(&text).expect("parsed");
        assert_eq!(parsed.id, token.id);
        assert!(parsed.matches(&token.hash));
        let (other, other_text) = create(token.principal, "bot", now, None).expect("made");
        assert!(!parsed.matches(&other.hash));
        assert_ne!(text, other_text);
        assert!(!format!("{token:?}").contains(&text[37..]), "the secret is not in the row");
    }

    #[test]
    fn other_text_is_no_token() {
        let (_, text) = create(PrincipalId::new(), "", Clock::system().now(), None).expect("made");
        for wrong in
            ["", "gnk_", "gnk__", &text[1..], &text[..text.len() - 1], &format!("{text}A"), &text.replace('_', "-")]
        {
            assert!(parse(wrong).is_none(), "{wrong}");
        }
    }
}
