//! `gennaker token`: who may come in. Works on the database itself, beside a running server or
//! without one: whoever may read the data directory administers the server.

use std::process::ExitCode;

use chrono::{DateTime, TimeDelta, Utc};
use clap::{Subcommand, ValueEnum};

use super::settings::Settings;
use super::view::visible;
use super::{Failure, Outcome, block_on};
use crate::app::local_actor;
use crate::auth::token;
use crate::clock::Clock;
use crate::config::DatabaseArgs;
use crate::model::{PrincipalKind, Role, Token, TokenId};
use crate::store::{PageRequest, Store};

/// Flags.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  gennaker token create --principal alice --role operator
  gennaker token create --principal ci --kind service --role operator \\
      --expires-in-days 90
  gennaker token list
  gennaker token revoke tk_0199a1b2c3d47e5f8a9b0c1d2e3f4a5b

Works on the database itself, beside a running server or without one: whoever
may read the data directory administers the server. A running server takes a
new token at once and refuses a revoked one within ten seconds.")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a token and show it, once
    Create(Create),
    /// List tokens, without their secrets
    List(List),
    /// Make a token invalid
    Revoke(Revoke),
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
The token is printed to standard output, what is said about it to standard
error; only its hash is stored, so it cannot be shown again.

Examples:
  gennaker token create --principal alice --role operator
  TOKEN=$(gennaker token create --principal ci --kind service 2>/dev/null)

Exit status: 0 made, 1 the database cannot be used, 2 the principal is there
with another role or kind, or its name does not hold.")]
struct Create {
    /// Whose token it is: a person's or a program's name; made if there is none of that name
    #[arg(long, value_name = "NAME")]
    principal: String,
    /// What a new principal may do [default: viewer]; one that is there keeps its role, and another one
    /// is refused
    #[arg(long, value_enum)]
    role: Option<RoleArg>,
    /// What a new principal is [default: user]; one that is there stays what it is
    #[arg(long, value_enum)]
    kind: Option<KindArg>,
    /// What the token is for
    #[arg(long, default_value = "")]
    description: String,
    /// Days until it is no longer valid; without it, it stays valid until revoked
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=36_500))]
    expires_in_days: Option<u32>,
    #[command(flatten)]
    data: DatabaseArgs,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  gennaker token list
  gennaker token list --data-dir /var/lib/gennaker")]
struct List {
    #[command(flatten)]
    data: DatabaseArgs,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  gennaker token revoke tk_0199a1b2c3d47e5f8a9b0c1d2e3f4a5b

Exit status: 0 it is invalid now or was before, which is said; 1 the database
cannot be used; 2 there is no such token.")]
struct Revoke {
    /// Id of the token, as listed: tk_…
    token: TokenId,
    #[command(flatten)]
    data: DatabaseArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum RoleArg {
    /// Reads everything but secrets, tokens and the audit log
    Viewer,
    /// Also saves, starts, judges and cancels
    Operator,
    /// Everything
    Admin,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum KindArg {
    User,
    Service,
}

/// Does it.
///
/// # Errors
/// When the database cannot be opened, or what is asked does not hold.
pub fn run(args: Args, settings: &Settings) -> Outcome {
    block_on(async move {
        match args.command {
            Command::Create(create) => self::create(create, settings).await,
            Command::List(list) => self::list(list, settings).await,
            Command::Revoke(revoke) => self::revoke(revoke, settings).await,
        }
    })
}

async fn open(data: DatabaseArgs, settings: &Settings, clock: &Clock) -> Result<Store, Failure> {
    let data = data.validate().map_err(|errors| settings.failure(&errors))?;
    Ok(Store::open_beside(&data.store_options(), clock.clone()).await?)
}

async fn create(args: Create, settings: &Settings) -> Outcome {
    let clock = Clock::system();
    let store = open(args.data, settings, &clock).await?;
    let actor = local_actor(&store, &clock).await?;
    let role = args.role.map(|role| match role {
        RoleArg::Viewer => Role::Viewer,
        RoleArg::Operator => Role::Operator,
        RoleArg::Admin => Role::Admin,
    });
    let kind = args.kind.map(|kind| match kind {
        KindArg::User => PrincipalKind::User,
        KindArg::Service => PrincipalKind::Service,
    });
    let principal = token::ensure_principal(
        &store,
        &actor,
        &args.principal,
        kind.unwrap_or(PrincipalKind::User),
        &[role.unwrap_or(Role::Viewer)],
        clock.now(),
    )
    .await
    .map_err(failure)?;
    // One that was there before; a token of other rights than asked for would be a surprise.
    if role.is_some_and(|role| principal.roles != [role]) || kind.is_some_and(|kind| principal.kind != kind) {
        return Err(Failure::input(anyhow::anyhow!(
            "`{}` is there already, a {} with the role {}, and keeps both; leave --role and --kind out for another \
             token of it, or choose another name (a principal's role cannot be changed: revoke its tokens and make \
             a new principal)",
            principal.name,
            format!("{:?}", principal.kind).to_lowercase(),
            roles(&principal.roles)
        )));
    }
    let expires_at = args.expires_in_days.map(|days| clock.now() + TimeDelta::days(days.into()));
    let (made, text) =
        token::issue(&store, &actor, &principal, &args.description, clock.now(), expires_at).await.map_err(failure)?;
    store.close().await;
    eprintln!("token {} of `{}` ({}), shown this once:", made.id, principal.name, roles(&principal.roles));
    println!("{text}");
    Ok(ExitCode::SUCCESS)
}

async fn list(args: List, settings: &Settings) -> Outcome {
    let clock = Clock::system();
    let store = open(args.data, settings, &clock).await?;
    let mut after = None;
    println!("{:<35}  {:<20}  {:<10}  {:<20}  {:<8}  description", "token", "principal", "roles", "created", "state");
    loop {
        let page = store.tokens(&PageRequest { after, before: None, limit: 100, backward: false }).await?;
        for (_, token) in &page.items {
            let principal = store.principal(token.principal).await?;
            let (name, roles) = principal.map_or(("?".into(), "?".into()), |p| (p.name, roles(&p.roles)));
            println!(
                "{:<35}  {name:<20}  {roles:<10}  {:<20}  {:<8}  {}",
                token.id.to_string(),
                token.created_at.format("%Y-%m-%dT%H:%M:%SZ"),
                state(token, clock.now()),
                visible(&token.description)
            );
        }
        after = page.items.last().map(|(key, _)| key.clone());
        if !page.has_next || after.is_none() {
            break;
        }
    }
    store.close().await;
    Ok(ExitCode::SUCCESS)
}

async fn revoke(args: Revoke, settings: &Settings) -> Outcome {
    let clock = Clock::system();
    let store = open(args.data, settings, &clock).await?;
    let actor = local_actor(&store, &clock).await?;
    let now = clock.now();
    let token = token::revoke(&store, &actor, args.token, now).await.map_err(failure)?;
    store.close().await;
    match token.revoked_at.filter(|at| *at != now) {
        Some(at) => println!("{} was revoked before, at {}", token.id, at.format("%Y-%m-%dT%H:%M:%SZ")),
        None => println!("{} is revoked", token.id),
    }
    Ok(ExitCode::SUCCESS)
}

fn failure(error: token::Error) -> Failure {
    match error {
        token::Error::Invalid(_) | token::Error::NotFound(_) => Failure::input(error),
        error => error.into(),
    }
}

fn state(token: &Token, now: DateTime<Utc>) -> &'static str {
    match (token.revoked_at, token.expires_at) {
        (Some(_), _) => "revoked",
        (None, Some(at)) if at <= now => "expired",
        _ => "valid",
    }
}

fn roles(roles: &[Role]) -> String {
    let names: Vec<_> = roles.iter().map(|role| format!("{role:?}").to_uppercase()).collect();
    names.join("+")
}
