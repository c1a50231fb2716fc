//! Which trials there are where something is missing.

use std::collections::BTreeSet;

use libtest_mimic::Trial;

use crate::harness::{Outcome, REQUIRE_ALL, trial};

pub fn trials() -> Vec<Trial> {
    vec![trial("required", "a_trial_is_left_out_only_where_that_is_asked_for_and_then_it_is_said", said)]
}

async fn said() -> Outcome {
    // Names, and what is said of them; `None` where the variable is not set.
    let list = |value: Option<&str>| {
        let mut command = std::process::Command::new(std::env::current_exe()?);
        command.args(["--list", "--format", "terse"]).env_remove(REQUIRE_ALL).env_remove("GENNAKER_TEST_SLOWEST");
        command.envs(value.map(|value| (REQUIRE_ALL, value)));
        let output = command.output()?;
        anyhow::ensure!(output.status.success(), "{output:?}");
        let names: BTreeSet<_> = String::from_utf8(output.stdout)?.lines().map(str::to_owned).collect();
        anyhow::Ok((names, String::from_utf8(output.stderr)?))
    };
    let (all, _) = list(None)?;
    anyhow::ensure!(all.len() > 250, "{}", all.len());
    let (required, told) = list(Some("1"))?;
    anyhow::ensure!(required == all && told.is_empty(), "{told}");
    let (rest, told) = list(Some("except-machine"))?;
    let left_out: BTreeSet<_> = all.difference(&rest).map(|name| name.trim_end_matches(": test")).collect();
    let named: BTreeSet<_> =
        told.lines().filter_map(|line| line.split_once(" is left out: ")).map(|(name, _)| name).collect();
    anyhow::ensure!(left_out == named, "{left_out:?}: {told}");
    Ok(())
}
