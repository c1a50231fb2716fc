//! The parts of a config in which no expression stands, for what is checked at save time beside
//! the expressions. Whether a part is of its type the schema has said before.

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::cloud;
use crate::expression;
use crate::inventory::Inventory;
use crate::model::Capacity;

/// A member of an object, or what stands for it where it is absent. None: it is not known yet.
pub(super) fn member<T: DeserializeOwned>(of: &Value, name: &str, absent: impl FnOnce() -> T) -> Option<T> {
    match of.as_object()?.get(name) {
        None => Some(absent()),
        Some(value) => whole(value),
    }
}

/// The same of a member that may be absent.
pub(super) fn optional<T: DeserializeOwned>(of: &Value, name: &str) -> Option<Option<T>> {
    member(of, name, || None)
}

/// Those items of a list that are known, each with its place.
///
/// # Errors
/// At the first that cannot be read.
pub(super) fn items<T: DeserializeOwned>(of: &Value, name: &str) -> Result<Vec<(usize, T)>, (String, String)> {
    let items = of.get(name).and_then(Value::as_array).into_iter().flatten().enumerate();
    let known = items.filter(|(_, item)| !expression::has_expression(item));
    known.map(|(index, item)| Ok((index, read(item, format!("/{name}/{index}"))?))).collect()
}

/// That a member can be read, if it is there and known.
pub(super) fn check_reads<T: DeserializeOwned>(of: &Value, name: &str) -> Result<(), (String, String)> {
    let known = of.get(name).filter(|value| !expression::has_expression(value));
    known.map_or(Ok(()), |value| read::<T>(value, format!("/{name}")).map(|_| ()))
}

fn read<T: DeserializeOwned>(value: &Value, at: String) -> Result<T, (String, String)> {
    T::deserialize(value).map_err(|error| (at, error.to_string()))
}

fn whole<T: DeserializeOwned>(value: &Value) -> Option<T> {
    if expression::has_expression(value) { None } else { T::deserialize(value).ok() }
}

/// [`cloud::check_place`] of an object with `account` and `location`.
pub(super) fn check_place(inventory: &Inventory, of: &Value) -> Result<(), (String, String)> {
    let (account, location) = (member(of, "account", cloud::local), member(of, "location", cloud::local));
    cloud::check_place_parts(inventory, account.as_deref(), location.as_deref())
        .map_err(|(field, message)| (format!("/{field}"), message))
}

/// The order of the numbers in `capacity`.
pub(super) fn check_capacity(of: &Value) -> Result<(), (String, String)> {
    let fault = |message| Err(("/capacity".to_owned(), message));
    let number = |name| optional::<u32>(&of["capacity"], name).flatten();
    let numbers = ["min", "desired", "max"].map(|name| (name, number(name)));
    if let [(_, Some(min)), (_, Some(desired)), (_, Some(max))] = numbers {
        let checked = Capacity { min, desired, max }.checked();
        return checked.map(|_| ()).or_else(|error| fault(error.to_string()));
    }
    for (less, more) in [(0, 1), (1, 2), (0, 2)] {
        if let ((lower, Some(less)), (upper, Some(more))) = (numbers[less], numbers[more])
            && less > more
        {
            return fault(format!("capacity needs min ≤ desired ≤ max, got {lower} {less}, {upper} {more}"));
        }
    }
    Ok(())
}
