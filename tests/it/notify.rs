//! Messages that leave the server: mail through a real mail server whose mailbox is read back.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Context as _;
use gennaker::cli::client::Client;
use gennaker::cli::demo::setup;
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::harness::documents::{CANCEL, SAVE, START};
use crate::harness::mail::{MailServer, PASSWORD, mail_server};
use crate::harness::{Options, Outcome, Schema, Server, follow, postgres, trial, trial_with, wait_for};

pub fn trials() -> Vec<Trial> {
    let mail = |name: &str, run: fn() -> std::pin::Pin<Box<dyn Future<Output = Outcome>>>| {
        trial_with("notify", name, mail_server(), run)
    };
    vec![
        mail("a_thread_of_mails_arrives_as_text_and_html", || Box::pin(thread())),
        mail("a_failure_and_a_cancel_are_told_by_mail_of_the_pipeline_and_of_the_stage", || Box::pin(bad_ends())),
        mail("mail_goes_over_tls_from_the_first_byte_too", || Box::pin(implicit())),
        mail("a_wrong_password_is_told_and_mail_flows_once_it_is_right", || Box::pin(wrong_password())),
        mail("the_password_itself_may_stand_in_its_variable", || Box::pin(variable())),
        mail("mail_waits_for_a_mail_server_that_is_down", || Box::pin(down())),
        mail("a_mail_that_is_put_off_is_taken_later", || Box::pin(put_off())),
        mail("the_mails_of_an_execution_come_in_order_though_the_first_is_put_off", || Box::pin(in_order())),
        mail("a_refused_mail_is_dead_at_once_and_a_person_may_retry_it", || Box::pin(refused())),
        mail("a_kill_while_a_mail_is_sent_loses_none_and_a_repetition_has_the_same_id", || Box::pin(killed())),
        mail("a_certificate_that_is_not_trusted_is_told", || Box::pin(untrusted())),
        trial_with(
            "notify",
            "two_servers_send_each_mail_once_and_one_sends_what_the_other_had_when_it_was_killed",
            mail_server().and(postgres()),
            two_servers,
        ),
        mail("a_test_mail_says_what_the_mail_server_says", || Box::pin(test_mail())),
        trial("notify", "a_mail_server_that_says_nothing_is_given_up_in_time", silent),
        trial("notify", "without_a_mail_server_mail_is_a_dead_letter_that_says_why", not_set_up),
        trial("notify", "an_address_that_is_none_is_refused_by_its_place", bad_addresses),
    ]
}

const MAX: Duration = Duration::from_secs(60);
const ANN: &str = "ann@example.org";
const DELIVERIES: &str = "
query Deliveries($state: DeliveryState) {
  deliveries(filter: { state: $state }) {
    totalCount
    nodes { id channel target state attempts lastError nextAttemptAt sentAt notification { subject occasion } }
  }
}";
const RETRY: &str = "
mutation RetryDelivery($input: RetryDeliveryInput!) {
  retryDelivery(input: $input) { delivery { state attempts } userErrors { message code field } }
}";
const TEST: &str = "
mutation SendTestEmail($input: SendTestEmailInput!) {
  sendTestEmail(input: $input) { isSent userErrors { message code field } }
}";

/// A Gennaker server with the application, whose password for mail stands in a file.
struct Rig {
    server: Server,
    client: Client,
    /// Below which the password's file is.
    _secrets: tempdir::Dir,
    password: std::path::PathBuf,
}

mod tempdir {
    use std::path::{Path, PathBuf};

    /// Removed when dropped.
    pub struct Dir(PathBuf);

    impl Dir {
        pub fn new() -> std::io::Result<Self> {
            let name = format!("gennaker-secret-{}", uuid::Uuid::new_v4().simple());
            let dir = std::env::temp_dir().canonicalize()?.join(name);
            std::fs::create_dir(&dir)?;
            Ok(Self(dir))
        }

        pub fn path(&self) -> &Path {
            &self.0
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

impl Rig {
    async fn start(flags: Vec<String>, password: &str) -> anyhow::Result<Self> {
        Self::start_on(None, flags, password).await
    }

    async fn start_on(database_url: Option<String>, flags: Vec<String>, password: &str) -> anyhow::Result<Self> {
        let secrets = tempdir::Dir::new()?;
        let path = secrets.path().join("password");
        std::fs::write(&path, password)?;
        let mut flags = flags;
        if flags.iter().any(|flag| flag.starts_with("--smtp-username")) {
            flags.push(format!("--secret-dir={}", secrets.path().display()));
            flags.push(format!("--smtp-password=secret://file{}", path.display()));
        }
        let server = Server::start_with(Options { database_url, flags, ..Options::default() }).await?;
        let client = server.client();
        setup::create_application(&client).await?;
        Ok(Self { server, client, _secrets: secrets, password: path })
    }

    async fn with(mail: &MailServer) -> anyhow::Result<Self> {
        Self::start(mail.flags(), PASSWORD).await
    }

    /// Saves a pipeline that tells Ann when it is over, runs it to its end.
    async fn run(&self) -> anyhow::Result<()> {
        self.save().await?;
        let execution = begin(&self.client, "tells").await?;
        follow(&self.client, &execution, MAX).await?.succeeded()
    }

    async fn save(&self) -> anyhow::Result<()> {
        let definition = json!({
            "stages": [{ "key": "a", "kind": "wait", "config": { "seconds": 0 } }],
            "notifications": [{ "on": ["COMPLETED"], "email": { "to": [ANN] } }],
        });
        self.client.mutate(SAVE, setup::saving("tells", definition)).await?;
        Ok(())
    }

    async fn deliveries(&self) -> anyhow::Result<Vec<Value>> {
        let data = self.client.query(DELIVERIES, json!({ "state": null })).await?;
        Ok(data["deliveries"]["nodes"].as_array().cloned().unwrap_or_default())
    }

    /// The only delivery, once it is as wanted.
    async fn delivery(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
        let found = wait_for(what, MAX, || async {
            self.deliveries().await.ok()?.into_iter().find(|delivery| wanted(delivery))
        })
        .await;
        match found {
            Ok(found) => Ok(found),
            Err(error) => Err(error.context(format!("{:#?}\n{}", self.deliveries().await?, self.server.log()))),
        }
    }

    /// A client with another role.
    fn as_viewer(&self) -> anyhow::Result<Client> {
        let made =
            self.server.command().args(["token", "create", "--principal", "vera", "--role", "viewer"]).output()?;
        let text = String::from_utf8(made.stdout)?;
        let token = text.split_whitespace().find(|word| word.starts_with("gnk_")).context("a token")?;
        Ok(self.client.with_token(Some(token)))
    }
}

async fn begin(client: &Client, pipeline: &str) -> anyhow::Result<String> {
    let name = json!({ "application": setup::APPLICATION, "name": pipeline });
    let started = client.mutate(START, json!({ "pipeline": { "name": name } })).await?;
    Ok(started["execution"]["id"].as_str().context("an id")?.to_owned())
}

fn header<'a>(mail: &'a Value, name: &str) -> &'a str {
    mail["headers"][name].as_str().unwrap_or_default()
}

async fn thread() -> Outcome {
    let mail = MailServer::start(&[]).await?;
    let rig = Rig::with(&mail).await?;
    let definition = json!({
        "stages": [
            { "key": "ask", "kind": "manualJudgment", "name": "Prüfen\n& <freigeben>",
              "config": { "instructions": "Bitte <b>prüfen</b> & entscheiden" } },
            { "key": "after", "kind": "wait", "requires": ["ask"], "config": { "seconds": 0 },
              "notifications": [{ "on": ["STARTED", "FAILED"], "email": { "to": [ANN] } }] },
        ],
        "notifications": [
            { "on": ["STARTED", "APPROVAL_NEEDED"], "email": { "to": [ANN] } },
            { "on": ["COMPLETED"], "email": { "to": [ANN, "ANN@example.org", "bob@example.org"] } },
        ],
    });
    rig.client.mutate(SAVE, setup::saving("Größe ändern", definition)).await?;
    let execution = begin(&rig.client, "Größe ändern").await?;
    mail.received(2).await?;
    let waiting = rig.client.query(
        "query($id: ID!) { node(id: $id) { ... on Execution { notifications { on } stages { id key notifications { on email { to } } } } } }",
        json!({ "id": execution }),
    );
    let node = waiting.await?["node"].take();
    anyhow::ensure!(node["notifications"].as_array().is_some_and(|rules| rules.len() == 2), "{node}");
    let carried = json!([{ "on": ["STARTED", "FAILED"], "email": { "to": [ANN] } }]);
    anyhow::ensure!(node["stages"][1]["notifications"] == carried, "{node}");
    let judge = "mutation J($input: JudgeStageInput!) { judgeStage(input: $input) { userErrors { message } } }";
    let input = json!({ "stage": { "id": node["stages"][0]["id"] }, "proceed": true });
    rig.client.mutate(judge, input).await?;
    follow(&rig.client, &execution, MAX).await?.succeeded()?;

    let all = mail.received(5).await?;
    anyhow::ensure!(all.len() == 5, "{} mails: one address named twice gets one", all.len());
    anyhow::ensure!(
        all.iter().all(|mail| mail["secure"] == true
            && mail["user"] == "cdmail"
            && mail["from"] == "gennaker@cd.example.org"),
        "{all:#?}"
    );
    let ann: Vec<&Value> = all.iter().filter(|mail| mail["to"] == json!([ANN])).collect();
    anyhow::ensure!(ann.len() == 4, "{all:#?}");
    let find = |occasion: &str, stage: bool| {
        let fits = |mail: &&&Value| {
            header(mail, "x-gennaker-occasion") == occasion && header(mail, "subject").contains(": ") == stage
        };
        ann.iter().find(fits).copied().with_context(|| format!("{occasion} of {ann:#?}"))
    };
    let (started, asked) = (find("started", false)?, find("approval-needed", true)?);
    let (stage, over) = (find("started", true)?, find("completed", false)?);
    anyhow::ensure!(header(started, "subject") == "hello / Größe ändern #1 started", "{started}");
    anyhow::ensure!(header(asked, "subject").ends_with("waits for approval: Prüfen & <freigeben>"), "{asked}");
    anyhow::ensure!(header(over, "subject") == "hello / Größe ändern #1 succeeded", "{over}");

    // One thread, which hangs on the first.
    let first = header(started, "message-id").to_owned();
    anyhow::ensure!(first.ends_with("@cd.example.org>") && started["headers"]["references"].is_null(), "{started}");
    let mut ids = vec![first.as_str()];
    for mail in [asked, stage, over] {
        anyhow::ensure!(header(mail, "references") == first && header(mail, "in-reply-to") == first, "{mail}");
        ids.push(header(mail, "message-id"));
    }
    ids.sort_unstable();
    ids.dedup();
    anyhow::ensure!(ids.len() == 4, "{ids:?}");

    // Text and HTML.
    anyhow::ensure!(asked["type"] == "multipart/alternative" && header(asked, "auto-submitted") == "auto-generated");
    let (text, html) = (asked["text"].as_str().unwrap_or_default(), asked["html"].as_str().unwrap_or_default());
    anyhow::ensure!(text.contains("Bitte <b>prüfen</b> & entscheiden"), "{text}");
    anyhow::ensure!(text.contains("https://cd.example.org/?query="), "{text}");
    anyhow::ensure!(html.contains("Bitte &lt;b&gt;prüfen&lt;") && !html.contains("<b>"), "{html}");
    anyhow::ensure!(html.contains("href=\"https:"), "{html}");

    // What the API says, to an operator and to a viewer.
    let sent = wait_for("all to be recorded as sent", MAX, || async {
        rig.deliveries().await.ok().filter(|all| all.len() == 5 && all.iter().all(|one| one["state"] == "SENT"))
    });
    let sent = sent.await?;
    anyhow::ensure!(sent.iter().all(|one| one["attempts"] == 1 && one["sentAt"].is_string()), "{sent:#?}");
    anyhow::ensure!(sent.iter().any(|one| one["target"] == "bob@example.org"), "{sent:#?}");
    let viewer = rig.as_viewer()?;
    let document =
        "{ notifications { nodes { deliveries { state target } execution { notifications { email { to } } } } }
        pipelines { nodes { definition { document } } } }";
    let seen = viewer.query(document, Value::Null).await?.to_string();
    anyhow::ensure!(seen.contains("\"SENT\"") && seen.contains("***") && !seen.contains("example.org"), "{seen}");
    Ok(())
}

async fn bad_ends() -> Outcome {
    let mail = MailServer::start(&[]).await?;
    let rig = Rig::with(&mail).await?;
    let rules = json!([{ "on": ["COMPLETED", "FAILED", "CANCELED"], "email": { "to": [ANN] } }]);
    let definition = |seconds: u32, timeout: u32| {
        json!({
            "stages": [{ "key": "a", "kind": "wait", "name": "Rest", "timeoutSeconds": timeout,
                         "config": { "seconds": seconds }, "notifications": rules }],
            "notifications": rules,
        })
    };
    rig.client.mutate(SAVE, setup::saving("fails", definition(5, 1))).await?;
    rig.client.mutate(SAVE, setup::saving("stays", definition(3600, 7200))).await?;
    let execution = begin(&rig.client, "fails").await?;
    anyhow::ensure!(follow(&rig.client, &execution, MAX).await?.status() == "FAILED");
    let execution = begin(&rig.client, "stays").await?;
    wait_for("the stage to begin", MAX, || async {
        let query = "query($id: ID!) { node(id: $id) { ... on Execution { stages { status } } } }";
        let data = rig.client.query(query, json!({ "id": execution })).await.ok()?;
        (data["node"]["stages"][0]["status"] == "RUNNING").then_some(())
    })
    .await?;
    rig.client.mutate(CANCEL, json!({ "execution": { "id": execution }, "reason": "not today" })).await?;
    anyhow::ensure!(follow(&rig.client, &execution, MAX).await?.status() == "CANCELED");

    let all = mail.received(4).await?;
    anyhow::ensure!(all.len() == 4 && all.iter().all(|mail| mail["to"] == json!([ANN])), "{all:#?}");
    for (occasion, subject, text) in [
        ("failed", "hello / fails #1: Rest ", "did not end within 1 s"),
        ("failed", "hello / fails #1 ", "did not end within 1 s"),
        ("canceled", "hello / stays #1: Rest ", "canceled by admin: not today"),
        ("canceled", "hello / stays #1 ", "canceled by admin: not today"),
    ] {
        let fits = |mail: &&Value| {
            header(mail, "x-gennaker-occasion") == occasion && header(mail, "subject").starts_with(subject)
        };
        let found: Vec<_> = all.iter().filter(fits).collect();
        anyhow::ensure!(found.len() == 1, "{occasion} {subject}: {all:#?}");
        anyhow::ensure!(found[0]["text"].as_str().is_some_and(|said| said.contains(text)), "{:#?}", found[0]);
    }
    Ok(())
}

async fn implicit() -> Outcome {
    let mail = MailServer::start(&["--implicit"]).await?;
    let mut flags = mail.flags();
    flags.push("--smtp-security=tls".to_owned());
    let rig = Rig::start(flags, PASSWORD).await?;
    rig.run().await?;
    let mails = mail.received(1).await?;
    anyhow::ensure!(mails[0]["secure"] == true && mails[0]["to"] == json!([ANN]), "{mails:#?}");
    Ok(())
}

async fn wrong_password() -> Outcome {
    let mail = MailServer::start(&[]).await?;
    let rig = Rig::start(mail.flags(), "not-the-p4ssword").await?;
    rig.run().await?;
    let seen = rig.delivery("the refusal", |one| one["lastError"].is_string()).await?;
    let error = seen["lastError"].as_str().unwrap_or_default();
    anyhow::ensure!(seen["state"] == "PENDING" && error.contains("535") && error.contains("--smtp-password"), "{seen}");
    anyhow::ensure!(mail.mails()?.is_empty());
    std::fs::write(&rig.password, format!("{PASSWORD}\n"))?;
    mail.received(1).await?;
    let sent = rig.delivery("the record", |one| one["state"] == "SENT").await?;
    anyhow::ensure!(sent["lastError"].is_null() && sent["nextAttemptAt"].is_null(), "{sent}");
    let log = rig.server.log();
    anyhow::ensure!(!log.contains("not-the-p4ssword") && !log.contains(PASSWORD) && !log.contains(ANN), "{log}");
    Ok(())
}

async fn variable() -> Outcome {
    let mail = MailServer::start(&[]).await?;
    for (password, right) in [(PASSWORD, true), ("not-this-one", false)] {
        let environment = vec![("GENNAKER_SMTP_PASSWORD".to_owned(), password.to_owned())];
        let server = Server::start_with(Options { flags: mail.flags(), environment, ..Options::default() }).await?;
        let sent = server.client().mutate(TEST, json!({ "to": ANN })).await;
        match sent {
            Ok(sent) => anyhow::ensure!(right && sent["isSent"] == true, "{sent}"),
            Err(error) => anyhow::ensure!(!right && !error.to_string().contains(password), "{error}"),
        }
        let shown = server.command().args(["config", "show"]).args(mail.flags()).output()?;
        let shown = String::from_utf8(shown.stdout)?;
        let line = shown.lines().find(|line| line.starts_with("smtp-password")).unwrap_or_default();
        anyhow::ensure!(line.contains("***") && !shown.contains(password), "{shown}");
        anyhow::ensure!(!server.log().contains(password), "{}", server.log());
    }
    let mails = mail.received(1).await?;
    anyhow::ensure!(mails.len() == 1 && mails[0]["to"] == json!([ANN]), "{mails:#?}");
    Ok(())
}

async fn down() -> Outcome {
    let mut mail = MailServer::prepared()?;
    let rig = Rig::with(&mail).await?;
    rig.run().await?;
    let tried = rig.delivery("a second try", |one| one["attempts"].as_i64() >= Some(2)).await?;
    let error = tried["lastError"].as_str().unwrap_or_default();
    anyhow::ensure!(tried["state"] == "PENDING" && error.contains("cannot be reached"), "{tried}");
    anyhow::ensure!(tried["nextAttemptAt"].is_string(), "{tried}");
    mail.up(&[]).await?;
    mail.received(1).await?;
    rig.delivery("the record", |one| one["state"] == "SENT").await?;
    anyhow::ensure!(mail.mails()?.len() == 1);
    Ok(())
}

async fn put_off() -> Outcome {
    let mail = MailServer::start(&["--put-off", "2"]).await?;
    let rig = Rig::with(&mail).await?;
    rig.run().await?;
    let put_off = rig.delivery("the first answer", |one| one["lastError"].is_string()).await?;
    anyhow::ensure!(put_off["lastError"].as_str().is_some_and(|error| error.contains("451")), "{put_off}");
    let sent = rig.delivery("the third try", |one| one["state"] == "SENT").await?;
    anyhow::ensure!(sent["attempts"] == 3, "{sent}");
    anyhow::ensure!(mail.mails()?.len() == 1);
    Ok(())
}

async fn in_order() -> Outcome {
    let mail = MailServer::start(&["--put-off", "1"]).await?;
    let rig = Rig::with(&mail).await?;
    let definition = json!({
        "stages": [{ "key": "a", "kind": "wait", "config": { "seconds": 0 },
                     "notifications": [{ "on": ["STARTED", "COMPLETED"], "email": { "to": [ANN] } }] }],
        "notifications": [{ "on": ["STARTED", "COMPLETED"], "email": { "to": [ANN] } }],
    });
    rig.client.mutate(SAVE, setup::saving("tells", definition)).await?;
    follow(&rig.client, &begin(&rig.client, "tells").await?, MAX).await?.succeeded()?;
    let mails = mail.received(4).await?;
    let subjects: Vec<_> = mails.iter().map(|mail| header(mail, "subject").replace("hello / tells #1", "")).collect();
    anyhow::ensure!(subjects == [" started", ": Wait started", ": Wait succeeded", " succeeded"], "{subjects:?}");
    let tries = async || {
        let mut all = rig.deliveries().await.ok()?;
        all.retain(|one| one["state"] == "SENT");
        (all.len() == 4).then(|| all.iter().filter_map(|one| one["attempts"].as_i64()).sum::<i64>())
    };
    anyhow::ensure!(wait_for("the record", MAX, tries).await? == 5, "the first twice, the others once");
    Ok(())
}

async fn refused() -> Outcome {
    let mut mail = MailServer::start(&["--refuse", ANN]).await?;
    let rig = Rig::with(&mail).await?;
    rig.run().await?;
    let dead = rig.delivery("the end", |one| one["state"] == "DEAD").await?;
    let error = dead["lastError"].as_str().unwrap_or_default();
    anyhow::ensure!(dead["attempts"] == 1 && dead["nextAttemptAt"].is_null(), "{dead}");
    anyhow::ensure!(error.contains("550") && !error.contains(ANN), "{dead}");
    let listed = rig.client.query(DELIVERIES, json!({ "state": "DEAD" })).await?;
    anyhow::ensure!(listed["deliveries"]["totalCount"] == 1, "{listed}");

    let input = json!({ "delivery": dead["id"] });
    let denied = rig.as_viewer()?.mutate(RETRY, input.clone()).await;
    anyhow::ensure!(denied.as_ref().is_err_and(|error| error.code() == Some("FORBIDDEN")), "{denied:?}");
    mail.down().await?;
    mail.up(&[]).await?;
    rig.client.mutate(RETRY, input.clone()).await?;
    mail.received(1).await?;
    let sent = rig.delivery("the record", |one| one["state"] == "SENT").await?;
    anyhow::ensure!(sent["id"] == dead["id"], "{sent}");
    let again = rig.client.mutate(RETRY, input).await;
    anyhow::ensure!(again.as_ref().is_err_and(|error| error.code() == Some("WRONG_STATE")), "{again:?}");
    let audit = rig.client.query("{ auditEntries(first: 1) { nodes { action detail } } }", Value::Null).await?;
    let entry = &audit["auditEntries"]["nodes"][0];
    anyhow::ensure!(entry["action"] == "OPERATE" && entry["detail"]["delivery"].is_string(), "{audit}");
    Ok(())
}

async fn killed() -> Outcome {
    let mut mail = MailServer::prepared()?;
    let hold = mail.dir().join("hold");
    std::fs::write(&hold, "")?;
    mail.up(&["--hold", &hold.display().to_string()]).await?;
    let mut rig = Rig::with(&mail).await?;
    rig.run().await?;
    // The mail is there, and the server waits for the word that it is.
    mail.received(1).await?;
    let begun = rig.delivery("the try", |one| one["attempts"] == 1).await?;
    anyhow::ensure!(begun["state"] == "PENDING", "{begun}");
    rig.server.kill().await?;
    std::fs::remove_file(&hold)?;
    rig.server.restart().await?;
    let mails = mail.received(2).await?;
    rig.delivery("the record", |one| one["state"] == "SENT" && one["attempts"] == 2).await?;
    anyhow::ensure!(header(&mails[0], "message-id") == header(&mails[1], "message-id"), "{mails:#?}");
    anyhow::ensure!(mails[0]["html"] == mails[1]["html"] && mail.mails()?.len() == 2, "{mails:#?}");
    Ok(())
}

async fn two_servers() -> Outcome {
    let schema = Schema::create().await?;
    let outcome = two_on(&schema.url).await;
    schema.drop().await?;
    outcome
}

async fn two_on(url: &str) -> Outcome {
    const FIRST: usize = 30;
    const THEN: usize = 20;
    let mut mail = MailServer::start(&[]).await?;
    let mut rig = Rig::start_on(Some(url.to_owned()), mail.flags(), PASSWORD).await?;
    let other = Server::start_beside(&rig.server).await?;
    let there = other.client();
    rig.save().await?;
    for client in [&rig.client, &there].into_iter().cycle().take(FIRST) {
        begin(client, "tells").await?;
    }
    let document = "{ deliveries(first: 100) { nodes { state attempts } } }";
    let all_sent = async |count: usize| {
        wait_for("all to be recorded as sent", MAX, || async {
            let data = there.query(document, Value::Null).await.ok()?;
            let nodes = data["deliveries"]["nodes"].as_array()?.clone();
            (nodes.len() == count && nodes.iter().all(|one| one["state"] == "SENT")).then_some(nodes)
        })
        .await
    };
    let sent = all_sent(FIRST).await?;
    anyhow::ensure!(sent.iter().all(|one| one["attempts"] == 1), "{sent:#?}");
    let ids = |mails: &[Value]| mails.iter().map(|mail| header(mail, "message-id").to_owned()).collect::<BTreeSet<_>>();
    let mails = mail.mails()?;
    anyhow::ensure!(mails.len() == FIRST && ids(&mails).len() == FIRST, "{} mails", mails.len());

    // The mail server keeps each without a word: both servers have their hands full when one is killed.
    mail.down().await?;
    let hold = mail.dir().join("hold");
    std::fs::write(&hold, "")?;
    mail.up(&["--hold", &hold.display().to_string()]).await?;
    for client in [&rig.client, &there].into_iter().cycle().take(THEN) {
        begin(client, "tells").await?;
    }
    mail.received(FIRST + 16).await?;
    rig.server.kill().await?;
    std::fs::remove_file(&hold)?;
    all_sent(FIRST + THEN).await.with_context(|| other.log())?;
    let mails = mail.mails()?;
    anyhow::ensure!(ids(&mails).len() == FIRST + THEN, "none is lost, and what comes again has the same id");
    let again = mails.len() - FIRST - THEN;
    anyhow::ensure!((1..=8).contains(&again), "{again} came again, of the 8 that the killed server was sending");
    Ok(())
}

async fn untrusted() -> Outcome {
    let mail = MailServer::start(&[]).await?;
    let flags = mail.flags().into_iter().filter(|flag| !flag.starts_with("--smtp-ca-file")).collect();
    let rig = Rig::start(flags, PASSWORD).await?;
    rig.run().await?;
    let seen = rig.delivery("the refusal", |one| one["lastError"].is_string()).await?;
    let error = seen["lastError"].as_str().unwrap_or_default();
    anyhow::ensure!(seen["state"] == "PENDING", "{seen}");
    anyhow::ensure!(error.contains("not trusted") && error.contains("--smtp-ca-file"), "{seen}");
    anyhow::ensure!(mail.mails()?.is_empty());
    Ok(())
}

async fn silent() -> Outcome {
    // Takes connections and never says a word.
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let flags = [
        "--smtp-host=127.0.0.1".to_owned(),
        format!("--smtp-port={}", listener.local_addr()?.port()),
        "--smtp-from=gennaker@cd.example.org".to_owned(),
        "--smtp-timeout-seconds=1".to_owned(),
        "--delivery-retry-seconds=1".to_owned(),
        "--delivery-attempts=2".to_owned(),
    ];
    let rig = Rig::start(flags.to_vec(), "").await?;
    rig.run().await?;
    let waiting = rig.delivery("the first try's end", |one| one["lastError"].is_string()).await?;
    let error = waiting["lastError"].as_str().unwrap_or_default();
    anyhow::ensure!(error.contains("within 1 s") && error.contains("not known"), "{waiting}");
    let dead = rig.delivery("the end", |one| one["state"] == "DEAD").await?;
    anyhow::ensure!(dead["attempts"] == 2, "{dead}");
    let error = dead["lastError"].as_str().unwrap_or_default();
    anyhow::ensure!(error.starts_with("given up after 2 tries: "), "{dead}");
    Ok(())
}

async fn test_mail() -> Outcome {
    let mail = MailServer::start(&["--refuse", "nobody@example.org"]).await?;
    let rig = Rig::with(&mail).await?;
    let sent = rig.client.mutate(TEST, json!({ "to": ANN })).await?;
    anyhow::ensure!(sent["isSent"] == true, "{sent}");
    let mails = mail.received(1).await?;
    anyhow::ensure!(
        mails[0]["text"].as_str().is_some_and(|text| text.contains("test of the mail settings")),
        "{mails:?}"
    );
    let refused = rig.client.mutate(TEST, json!({ "to": "nobody@example.org" })).await;
    anyhow::ensure!(refused.as_ref().is_err_and(|error| error.to_string().contains("550")), "{refused:?}");
    let denied = rig.as_viewer()?.mutate(TEST, json!({ "to": ANN })).await;
    anyhow::ensure!(denied.as_ref().is_err_and(|error| error.code() == Some("FORBIDDEN")), "{denied:?}");
    Ok(())
}

async fn not_set_up() -> Outcome {
    let rig = Rig::start(Vec::new(), "").await?;
    let kinds = rig.client.query("{ notifierKinds { kind schema example isConfigured } }", Value::Null).await?;
    let kind = &kinds["notifierKinds"][0];
    anyhow::ensure!(kind["kind"] == "email" && kind["isConfigured"] == false, "{kinds}");
    let validator = jsonschema::validator_for(&kind["schema"]).map_err(|error| anyhow::anyhow!("{error}"))?;
    anyhow::ensure!(validator.is_valid(&kind["example"]), "{kinds}");
    let definition = json!({
        "stages": [{ "key": "a", "kind": "wait", "config": { "seconds": 0 } }],
        "notifications": [{ "on": ["STARTED"], "email": kind["example"] }],
    });
    rig.client.mutate(SAVE, setup::saving("example", definition)).await?;
    rig.run().await?;
    let dead = rig.delivery("the end", |one| one["state"] == "DEAD").await?;
    anyhow::ensure!(dead["lastError"].as_str().is_some_and(|error| error.contains("--smtp-host")), "{dead}");
    let refused = rig.client.mutate(TEST, json!({ "to": ANN })).await;
    anyhow::ensure!(refused.as_ref().is_err_and(|error| error.to_string().contains("not set up")), "{refused:?}");
    Ok(())
}

async fn bad_addresses() -> Outcome {
    let rig = Rig::start(Vec::new(), "").await?;
    let rule = |to: Value| json!([{ "on": ["FAILED"] }, { "on": ["FAILED"], "email": { "to": to } }]);
    let stage =
        |rules: Value| json!([{ "key": "a", "kind": "wait", "config": { "seconds": 0 }, "notifications": rules }]);
    let many: Vec<String> = (0..101).map(|n| format!("u{n}@example.org")).collect();
    let cases = [
        (rule(json!([ANN, "not an address"])), json!([]), json!(["notifications", "1", "email", "to", "1"])),
        (rule(json!(["a@b\r\nBcc: eve@example.org"])), json!([]), json!(["notifications", "1", "email", "to", "0"])),
        (rule(json!([])), json!([]), json!(["notifications", "1", "email", "to"])),
        (json!([]), rule(json!(["x"])), json!(["stages", "0", "notifications", "1", "email", "to", "0"])),
        (rule(json!(many)), json!([]), json!(["notifications"])),
        // The feed tells it without a rule, of no execution.
        (
            json!([{ "on": ["FAILED"] }, { "on": ["STARTED", "LOAD_BALANCER_PROBLEM"] }]),
            json!([]),
            json!(["notifications", "1", "on", "1"]),
        ),
    ];
    for (of_pipeline, of_stage, field) in cases {
        let definition = json!({ "stages": stage(of_stage), "notifications": of_pipeline });
        let error = match rig.client.mutate(SAVE, setup::saving("bad", definition)).await {
            Err(gennaker::cli::client::Error::Refused(errors)) => errors[0].clone(),
            other => anyhow::bail!("{field} was not refused: {other:?}"),
        };
        anyhow::ensure!(error["code"] == "INVALID" && error["field"] == field, "{error} instead of {field}");
    }
    Ok(())
}
