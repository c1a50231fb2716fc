//! What was told of load balancers' problems.

use sea_orm::{QueryResult, Value};

use super::{Reader, int, text, time};
use crate::model::Place;
use crate::store::{Error, ProblemKey, ToldProblem};

pub const PROBLEM_KEY: &str = "account, location, load_balancer, kind, about";

/// One problem's row.
pub const IS_PROBLEM: &str = "account = ? AND location = ? AND load_balancer = ? AND kind = ? AND about = ?";

pub const TOLD_PROBLEM: &str =
    "account, location, load_balancer, kind, about, message, is_over, begun_at, told_at, revision";

pub fn read_told_problem(row: &QueryResult) -> Result<ToldProblem, Error> {
    let reader = &mut Reader::new(row, "told problem");
    Ok(ToldProblem {
        key: ProblemKey {
            place: Place { account: reader.get()?, location: reader.get()? },
            load_balancer: reader.get()?,
            kind: reader.named()?,
            about: reader.get()?,
        },
        message: reader.get()?,
        is_over: reader.get::<i64>()? != 0,
        begun_at: reader.time()?,
        told_at: reader.time()?,
        revision: reader.get()?,
    })
}

/// Without its key.
pub fn told_problem_row(told: &ToldProblem) -> Vec<Value> {
    vec![text(&told.message), int(told.is_over.into()), time(told.begun_at), time(told.told_at), int(told.revision)]
}
