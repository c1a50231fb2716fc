//! What was told of a problem is told by one of those who saw it.

use gennaker::model::LoadBalancerProblemKind;
use gennaker::store::{ProblemKey, ToldProblem};

use super::*;

cases! {
    both: a_problem_is_told_by_one_of_those_who_see_it,
}

fn begun(message: &str, revision: i64) -> ToldProblem {
    let key = ProblemKey {
        place: place(),
        load_balancer: "hello".to_owned(),
        kind: LoadBalancerProblemKind::Share,
        about: "hello-v000".to_owned(),
    };
    ToldProblem { key, message: message.to_owned(), is_over: false, begun_at: start(), told_at: start(), revision }
}

fn seen(told: &ToldProblem, revision: Option<i64>, write: Write) -> Commit {
    let guards = vec![Guard::ToldProblem { key: told.key.clone(), revision }];
    Commit { guards, writes: vec![write], events: Vec::new() }
}

async fn a_problem_is_told_by_one_of_those_who_see_it(at: &Home) {
    let (one, other) = (begun("one", 1), begun("other", 2));
    let insert = |told: &ToldProblem| at.store.commit(seen(told, None, Write::InsertToldProblem(told.clone())));
    let outcomes = tokio::join!(insert(&one), insert(&other));
    let refused = |outcome: &Result<_, CommitError>| matches!(outcome, Err(CommitError::Refused(_)));
    assert!(outcomes.0.is_ok() != outcomes.1.is_ok(), "{outcomes:?}");
    assert!(refused(&outcomes.0) || refused(&outcomes.1), "{outcomes:?}");
    let told = at.store.told_problems("local").await.expect("read");
    assert!(told == [one] || told == [other], "{told:?}");
    let over = ToldProblem { is_over: true, told_at: start() + TimeDelta::seconds(5), revision: 3, ..told[0].clone() };
    let update = || at.store.commit(seen(&over, Some(told[0].revision), Write::UpdateToldProblem(over.clone())));
    let outcomes = tokio::join!(update(), update());
    assert!(outcomes.0.is_ok() != outcomes.1.is_ok(), "{outcomes:?}");
    assert_eq!(at.store.told_problems("local").await.expect("read"), std::slice::from_ref(&over));
    assert_eq!(at.store.told_problems("another").await.expect("read"), []);
    let forget = seen(&over, Some(3), Write::ForgetToldProblem(over.key.clone()));
    at.store.commit(forget).await.expect("committed");
    assert_eq!(at.store.told_problems("local").await.expect("read"), []);
}
