//! What has a place and a name at a cloud, read from the cached view. It belongs to the
//! application that its name begins with.

use async_graphql::{Context, Result, SimpleObject};

use super::application::Application;
use super::session::{Session, not_found, session};
use crate::api::error::{Code, coded, shown};
use crate::inventory::Inventory;
use crate::model::{Place, Resource, names};
use crate::near::did_you_mean;
use crate::providers;

/// One noun of those that have a place and a name.
pub trait Placed: Sized {
    /// In messages: `server group`.
    const WHAT: &'static str;

    fn place(&self) -> &Place;
    fn name(&self) -> &str;
    /// The name that begins with the application's.
    fn owner(&self) -> &str {
        self.name()
    }
    /// All of them, whoever asks.
    fn known(inventory: &Inventory) -> Vec<Self>;
    /// The one of that name, whoever asks.
    fn one(inventory: &Inventory, place: &Place, name: &str) -> Option<Self> {
        Self::known(inventory).into_iter().find(|one| one.place() == place && one.name() == name)
    }

    /// Those the actor may see and whose name passes, with their keys in a list.
    fn all(session: &Session<'_>, pass: impl Fn(&str) -> bool) -> Vec<(String, Self)> {
        let seen = |one: &Self| pass(one.name()) && visible(session, one.owner());
        let keyed = |one: Self| (format!("{}/{}/{}", one.place().account, one.place().location, one.name()), one);
        Self::known(&session.api.inventory).into_iter().filter(seen).map(keyed).collect()
    }

    /// The one of that name, if the actor may see it.
    fn find(session: &Session<'_>, place: &Place, name: &str) -> Option<Self> {
        Self::one(&session.api.inventory, place, name).filter(|one| visible(session, one.owner()))
    }

    /// Those of these names that are there and may be seen.
    fn named(ctx: &Context<'_>, place: &Place, names: &[String]) -> Result<Vec<Self>> {
        let session = session(ctx)?;
        Ok(names.iter().filter_map(|name| Self::find(&session, place, name)).collect())
    }

    /// What a query for that name answers: an error with the nearest names at the place, if there is none.
    fn asked(ctx: &Context<'_>, place: &Place, name: &str) -> Result<Option<Self>> {
        let session = session(ctx)?;
        if let Some(found) = Self::find(&session, place, name) {
            return Ok(Some(found));
        }
        let all = Self::all(&session, |_| true);
        let near =
            did_you_mean(name, all.iter().map(|(_, one)| one).filter(|one| one.place() == place).map(Self::name));
        let (what, account, location) = (Self::WHAT, shown(&place.account), shown(&place.location));
        Err(not_found(format!("there is no {what} `{}` in {account}/{location}{near}", shown(name))))
    }
}

/// The noun whose row has a spec with its place and name; what it is called, and the inventory's
/// functions for all of them and for one.
macro_rules! placed {
    ($noun:ident, $what:literal, $all:ident, $one:ident) => {
        impl $crate::api::graphql::place::Placed for $noun {
            const WHAT: &'static str = $what;

            fn place(&self) -> &$crate::model::Place {
                &self.0.spec.place
            }
            fn name(&self) -> &str {
                &self.0.spec.name
            }
            fn known(inventory: &$crate::inventory::Inventory) -> Vec<Self> {
                inventory.$all().into_iter().map(Self).collect()
            }
            fn one(inventory: &$crate::inventory::Inventory, place: &$crate::model::Place, name: &str) -> Option<Self> {
                inventory.$one(place, name).map(Self)
            }
        }
    };
}
pub(super) use placed;

/// Where something is: two fields of every object that has a place.
#[derive(SimpleObject)]
pub struct At {
    /// The account's name.
    account: String,
    /// The location within the account.
    location: String,
}

impl From<&Place> for At {
    fn from(place: &Place) -> Self {
        Self { account: place.account.clone(), location: place.location.clone() }
    }
}

/// Whether the actor may see what has that name: by its application.
fn visible(session: &Session<'_>, name: &str) -> bool {
    match names::parse(name) {
        Some(name) => session.sees_application(&name.application),
        None => session.sees(&Resource::Server),
    }
}

/// The application of what has that name; none where Gennaker knows none.
pub async fn application_of(ctx: &Context<'_>, name: &str) -> Result<Option<Application>> {
    match names::parse(name) {
        Some(name) => Ok(session(ctx)?.application_named(&name.application).await?.map(Application)),
        None => Ok(None),
    }
}

/// A provider's error as an error of a field.
pub fn by_provider(error: &providers::Error) -> async_graphql::Error {
    use providers::ErrorKind;
    let code = match error.kind {
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::Unavailable | ErrorKind::Exhausted => Code::Unavailable,
        ErrorKind::Conflict | ErrorKind::Invalid | ErrorKind::Fenced => Code::BadRequest,
    };
    coded(code, error.message.clone())
}
