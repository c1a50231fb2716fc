//! What people were told last of each problem of a load balancer: so that each is told once, however
//! many servers see it.

use super::sql::all;
use super::{Error, ProblemKey, Store, ToldProblem, rows};

impl Store {
    /// Of all load balancers of the account.
    ///
    /// # Errors
    /// When the database cannot do it.
    pub async fn told_problems(&self, account: &str) -> Result<Vec<ToldProblem>, Error> {
        let sql =
            format!("SELECT {} FROM told_problem WHERE account = ? ORDER BY {}", rows::TOLD_PROBLEM, rows::PROBLEM_KEY);
        all(&self.inner.read, &sql, vec![rows::text(account)]).await?.iter().map(rows::read_told_problem).collect()
    }
}

impl ProblemKey {
    /// In the order of [`rows::PROBLEM_KEY`].
    pub(super) fn values(&self) -> Vec<sea_orm::Value> {
        vec![
            rows::text(&self.place.account),
            rows::text(&self.place.location),
            rows::text(&self.load_balancer),
            rows::named(&self.kind),
            rows::text(&self.about),
        ]
    }
}
