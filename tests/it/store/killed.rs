//! What was answered is there after `kill -9`. The process that is killed is this program, started
//! again with a variable that says so.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use super::*;

pub fn trials() -> Vec<Trial> {
    vec![trial("store::sqlite", "what_was_answered_outlives_a_killed_process", outlives)]
}

/// The child's data directory.
const CHILD_DIR: &str = "GENNAKER_TEST_STORE_DIR";

/// Whether this is the process to be killed.
pub fn is_child() -> bool {
    std::env::var_os(CHILD_DIR).is_some()
}

/// Writes until it is killed, and says what was answered.
pub fn child() {
    let dir = std::env::var_os(CHILD_DIR).expect("a directory");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let store = Store::open(&options(dir.into()), Clock::manual(start())).await.expect("opens");
        let writers = (0..8).map(async |writer| {
            // Ends by itself should nobody kill it.
            for n in 0..2000 {
                let name = format!("a{writer}.{n}");
                ground(&store, &name).await;
                println!("answered {name}");
            }
        });
        futures_util::future::join_all(writers).await;
    });
}

fn options(data_dir: PathBuf) -> Options {
    Options { database_url: None, data_dir, durability: Durability::Normal, queue_max: 64 }
}

/// What was answered is there, and what is there is whole.
async fn outlives() -> Outcome {
    let dir = directory();
    let mut child = Command::new(std::env::current_exe()?).env(CHILD_DIR, &dir).stdout(Stdio::piped()).spawn()?;
    let lines = BufReader::new(child.stdout.take().expect("its output")).lines();
    let mut answered = Vec::new();
    for line in lines.map_while(Result::ok) {
        answered.extend(line.strip_prefix("answered ").map(str::to_owned));
        if answered.len() == 100 {
            child.kill()?;
        }
    }
    let status = child.wait()?;
    anyhow::ensure!(answered.len() >= 100 && status.code().is_none(), "{status} after {} answers", answered.len());
    // It opens: the dead hold no lock.
    let store = Store::open(&options(dir.clone()), Clock::manual(start())).await?;
    for name in &answered {
        anyhow::ensure!(store.application_by_name(name).await?.is_some(), "{name} was lost");
    }
    for name in store.application_names().await? {
        let application = store.application_by_name(&name).await?.expect("it was listed");
        let pipelines = store.pipeline_names(application.id).await?;
        anyhow::ensure!(pipelines == ["release"], "{name} is not whole: {pipelines:?}");
    }
    store.close().await;
    std::fs::remove_dir_all(dir)?;
    Ok(())
}
