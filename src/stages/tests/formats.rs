//! What earlier versions have stored stays readable: one fixture for each arm of each kind's
//! cursor, and a config of each kind, in files named by the version of their format. A file that was
//! released is only added to.

use serde_json::{Map, Value, json};

use super::World;

const CURSORS: &str = include_str!("fixtures/cursors-1.json");
const CONFIGS: &str = include_str!("fixtures/configs-1.json");

fn fixtures(text: &str) -> Map<String, Value> {
    serde_json::from_str(text).expect("an object by kind")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cursors_of_format_1_are_still_read_and_every_arm_has_one() {
    let world = World::new().await;
    let fixtures = fixtures(CURSORS);
    for kind in World::kinds(&world.inventory).iter() {
        let name = kind.kind().kind;
        let found = fixtures.get(name).and_then(Value::as_array);
        let cursors = found.unwrap_or_else(|| panic!("kind `{name}` has no cursors in fixtures/cursors-1.json"));
        for cursor in cursors {
            assert_eq!(kind.reread(cursor).as_ref(), Ok(cursor), "{name}");
        }
        // What it does not know it answers by the list of what it knows.
        let known = kind.reread(&json!({"at": "?"})).expect_err("there is no such arm");
        let arms: Vec<&str> = known.split('`').skip(1).step_by(2).filter(|arm| *arm != "?").collect();
        assert!(!arms.is_empty(), "{name}: {known}");
        for arm in arms {
            assert!(cursors.iter().any(|cursor| cursor["at"] == *arm), "`{name}` has no fixture of its arm `{arm}`");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn configs_of_format_1_are_still_taken() {
    let world = World::new().await;
    let fixtures = fixtures(CONFIGS);
    for kind in World::kinds(&world.inventory).iter() {
        let name = kind.kind().kind;
        let config = fixtures.get(name).unwrap_or_else(|| {
            let example = json!({name: kind.kind().example});
            panic!("kind `{name}` has no config in fixtures/configs-1.json; it may be {example}")
        });
        assert_eq!(kind.validate(config), Ok(()), "{name}");
        let (tasks, at) = kind.tasks(config, &Value::Null);
        assert!(at < tasks.len(), "{name}: the config reads as its type");
    }
}
