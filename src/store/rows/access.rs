//! Who may do what, and who did: principals, tokens, the audit log.

use sea_orm::{QueryResult, Value};

use super::{Reader, id, json, named, text, time, time_opt};
use crate::model::{AuditRow, Principal, Token};
use crate::store::Error;

pub const PRINCIPAL: &str = "id, name, kind, roles, created_at";

pub fn read_principal(row: &QueryResult) -> Result<Principal, Error> {
    let reader = &mut Reader::new(row, "principal");
    Ok(Principal {
        id: reader.id()?,
        name: reader.get()?,
        kind: reader.named()?,
        roles: reader.json()?,
        created_at: reader.time()?,
    })
}

pub fn principal_row(principal: &Principal) -> Vec<Value> {
    vec![
        id(principal.id.uuid()),
        text(&principal.name),
        named(&principal.kind),
        json(&principal.roles),
        time(principal.created_at),
    ]
}

pub const TOKEN: &str = "id, principal_id, description, hash, created_at, expires_at, revoked_at";

pub fn read_token(row: &QueryResult) -> Result<Token, Error> {
    let reader = &mut Reader::new(row, "token");
    Ok(Token {
        id: reader.id()?,
        principal: reader.id()?,
        description: reader.get()?,
        hash: reader.get()?,
        created_at: reader.time()?,
        expires_at: reader.time_opt()?,
        revoked_at: reader.time_opt()?,
    })
}

pub fn token_row(token: &Token) -> Vec<Value> {
    vec![
        id(token.id.uuid()),
        id(token.principal.uuid()),
        text(&token.description),
        Value::Bytes(Some(token.hash.clone())),
        time(token.created_at),
        time_opt(token.expires_at),
        time_opt(token.revoked_at),
    ]
}

pub const AUDIT: &str = "id, at, principal_id, principal_name, action, resource, detail";

pub fn read_audit(row: &QueryResult) -> Result<AuditRow, Error> {
    let reader = &mut Reader::new(row, "audit row");
    Ok(AuditRow {
        id: reader.id()?,
        at: reader.time()?,
        principal: reader.id()?,
        principal_name: reader.get()?,
        action: reader.named()?,
        resource: reader.json()?,
        detail: reader.json()?,
    })
}

pub fn audit_row(row: &AuditRow) -> Vec<Value> {
    vec![
        id(row.id.uuid()),
        time(row.at),
        id(row.principal.uuid()),
        text(&row.principal_name),
        named(&row.action),
        json(&row.resource),
        json(&row.detail),
    ]
}
