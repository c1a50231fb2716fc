//! Following an execution to its end: a picture on a terminal, a line per change elsewhere. A
//! connection that breaks is taken up again behind the last event seen.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::client::{Client, Error};
use super::demo::setup::FOLLOW;
use super::screen::Screen;
use super::view::Tree;
use crate::clock::Clock;

/// From one drawing of the tree to the next while nothing happens.
const REDRAW: Duration = Duration::from_millis(200);
/// How long a server that went away is waited for.
const AWAY_MAX: Duration = Duration::from_secs(120);
/// From one attempt to connect again to the next.
const AGAIN: Duration = Duration::from_millis(500);

/// A task that ends with its owner.
pub(super) struct Owned(pub JoinHandle<()>);

impl Drop for Owned {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Shows an execution's tree until it ends.
///
/// # Errors
/// When the server refuses, or is away for longer than two minutes.
pub(super) async fn follow(client: &Client, execution: &str, screen: &mut Screen) -> Result<Tree, Error> {
    let clock = Clock::system();
    let (sender, mut events) = tokio::sync::mpsc::channel(64);
    // A task of its own reads, so that drawing never cuts a read short.
    let _reader = Owned(tokio::spawn(read(client.clone(), execution.to_owned(), sender)));
    let mut tree = Tree::default();
    let mut redraw = tokio::time::interval(REDRAW);
    loop {
        tokio::select! {
            event = events.recv() => match event.transpose()? {
                Some(event) => {
                    let lines = tree.apply(&event);
                    if !screen.is_terminal() {
                        lines.iter().for_each(|line| screen.line(line));
                    }
                }
                None => break,
            },
            _ = redraw.tick(), if screen.is_terminal() => screen.picture(&tree.draw(clock.now(), screen.paint())),
        }
    }
    if screen.is_terminal() {
        screen.picture(&tree.draw(clock.now(), screen.paint()));
        screen.keep();
    }
    Ok(tree)
}

/// Passes every event on, over as many connections as it takes.
async fn read(client: Client, execution: String, to: tokio::sync::mpsc::Sender<Result<Value, Error>>) {
    let mut cursor = Value::Null;
    let mut heard = Instant::now();
    loop {
        match read_once(&client, &execution, &mut cursor, &mut heard, &to).await {
            Ok(()) => return,
            Err(error) if error.is_temporary() && heard.elapsed() < AWAY_MAX => tokio::time::sleep(AGAIN).await,
            Err(error) => {
                let _ = to.send(Err(error)).await;
                return;
            }
        }
    }
}

async fn read_once(
    client: &Client,
    execution: &str,
    cursor: &mut Value,
    heard: &mut Instant,
    to: &tokio::sync::mpsc::Sender<Result<Value, Error>>,
) -> Result<(), Error> {
    let mut subscription = client.subscribe(FOLLOW, &json!({ "id": execution, "after": cursor })).await?;
    loop {
        *heard = Instant::now();
        let Some(mut data) = subscription.next().await? else { return Ok(()) };
        let event = data["executionEvents"].take();
        *cursor = event["cursor"].clone();
        if to.send(Ok(event)).await.is_err() {
            return Ok(());
        }
    }
}
