//! A message as a mail: headers, text and HTML.

use std::sync::OnceLock;
use std::time::SystemTime;

use chrono::{DateTime, Utc};
use lettre::Message;
use lettre::message::header::{HeaderName, HeaderValue};
use lettre::message::{Mailbox, MultiPart, MultiPartKind, SinglePart};
use minijinja::{Environment, context};

use crate::model::{DeliveryId, ExecutionId, Notification, Occasion};
use crate::store::Claimed;

/// Who writes, and where links lead.
#[derive(Debug, Clone)]
pub(super) struct Sender {
    pub from: Mailbox,
    /// `https://gennaker.example.org`; without it there are no links.
    pub public_url: Option<String>,
}

/// A mail could not be made of the message.
pub(super) type Unfit = Box<dyn std::error::Error + Send + Sync>;

fn templates() -> &'static Environment<'static> {
    static TEMPLATES: OnceLock<Environment<'static>> = OnceLock::new();
    TEMPLATES.get_or_init(|| {
        let mut environment = Environment::new();
        // The ending of the name decides whether values are escaped.
        for (name, text) in
            [("email.txt", include_str!("templates/email.txt")), ("email.html", include_str!("templates/email.html"))]
        {
            environment.add_template(name, text).expect("our own templates parse");
        }
        environment
    })
}

impl Sender {
    fn domain(&self) -> &str {
        self.from.email.domain()
    }

    /// The same for every try of a delivery, so that a receiver can drop a repetition.
    fn message_id(&self, delivery: DeliveryId) -> String {
        format!("<{delivery}@{}>", self.domain())
    }

    /// The mail of a delivery. Every try gives the same bytes.
    pub(super) fn letter(&self, claimed: &Claimed) -> Result<Message, Unfit> {
        let (delivery, notification) = (&claimed.delivery, &claimed.notification);
        let mut headers = vec![
            ("List-Id", format!("<{}.gennaker.{}>", notification.application_name, self.domain())),
            ("X-Gennaker-Execution", delivery.execution.to_string()),
            ("X-Gennaker-Occasion", occasion(notification.occasion).to_owned()),
        ];
        if claimed.first != delivery.id {
            let first = self.message_id(claimed.first);
            headers.push(("In-Reply-To", first.clone()));
            headers.push(("References", first));
        }
        let (text, html) = self.bodies(notification)?;
        let boundary = format!("gennaker-{}", delivery.id.uuid().simple());
        self.mail(
            &delivery.target,
            (&notification.subject, self.message_id(delivery.id), delivery.created_at),
            &headers,
            (text, html, boundary),
        )
    }

    /// A mail that says that this is a test.
    pub(super) fn test(&self, target: &str, now: DateTime<Utc>) -> Result<Message, Unfit> {
        let id = uuid::Uuid::new_v4().simple();
        let text = "This is a test of the mail settings of a Gennaker server. If you read it, they work.\n";
        let html = format!("<!doctype html><html lang=\"en\"><body><p>{}</p></body></html>", text.trim_end());
        let subject = "Gennaker: test of the mail settings";
        let message_id = format!("<test-{id}@{}>", self.domain());
        let boundary = format!("gennaker-{id}");
        self.mail(target, (subject, message_id, now), &[], (text.to_owned(), html, boundary))
    }

    fn mail(
        &self,
        target: &str,
        (subject, message_id, at): (&str, String, DateTime<Utc>),
        headers: &[(&'static str, String)],
        (text, html, boundary): (String, String, String),
    ) -> Result<Message, Unfit> {
        let mut builder = Message::builder()
            .from(self.from.clone())
            .to(Mailbox::new(None, target.parse()?))
            .subject(one_line(subject))
            .message_id(Some(message_id))
            .date(SystemTime::from(at))
            .raw_header(header("Auto-Submitted", "auto-generated".to_owned()));
        for &(name, ref value) in headers {
            builder = builder.raw_header(header(name, one_line(value)));
        }
        // The boundary too is the same in every try.
        let parts = MultiPart::builder().kind(MultiPartKind::Alternative).boundary(boundary).build();
        Ok(builder.multipart(parts.singlepart(SinglePart::plain(text)).singlepart(SinglePart::html(html)))?)
    }

    fn bodies(&self, notification: &Notification) -> Result<(String, String), Unfit> {
        let about = notification.about_execution().ok_or("only messages about executions are sent by mail")?;
        let values = context! {
            subject => notification.subject.clone(),
            text => notification.text.clone(),
            application => notification.application_name.clone(),
            name => about.execution_name.clone(),
            number => about.execution_number,
            execution => about.execution.to_string(),
            colour => colour(notification.occasion),
            link => self.public_url.as_ref().map(|url| link(url, about.execution)),
        };
        let render = |name| -> Result<String, Unfit> { Ok(templates().get_template(name)?.render(values.clone())?) };
        Ok((render("email.txt")?, render("email.html")?))
    }
}

fn header(name: &'static str, value: String) -> HeaderValue {
    HeaderValue::new(HeaderName::new_from_ascii_str(name), value)
}

/// Nothing that comes from a person may begin another header.
fn one_line(text: &str) -> String {
    text.chars().map(|char| if char.is_control() { ' ' } else { char }).collect()
}

/// The explorer with a query for the execution in it.
fn link(public_url: &str, execution: ExecutionId) -> String {
    use std::fmt::Write as _;
    let query = format!(
        "{{ node(id: \"{}\") {{ ... on Execution {{ name number status failure {{ message hint }} stages {{ key status }} }} }} }}",
        execution
    );
    let mut link = format!("{}/?query=", public_url.trim_end_matches('/'));
    for byte in query.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => link.push(char::from(byte)),
            byte => {
                let _ = write!(link, "%{byte:02X}");
            }
        }
    }
    link
}

const fn occasion(occasion: Occasion) -> &'static str {
    match occasion {
        Occasion::Started => "started",
        Occasion::Completed => "completed",
        Occasion::Failed => "failed",
        Occasion::Canceled => "canceled",
        Occasion::ApprovalNeeded => "approval-needed",
        Occasion::LoadBalancerProblem => "load-balancer-problem",
        Occasion::LoadBalancerProblemOver => "load-balancer-problem-over",
    }
}

const fn colour(occasion: Occasion) -> &'static str {
    match occasion {
        Occasion::Started => "#5f6368",
        Occasion::Completed | Occasion::LoadBalancerProblemOver => "#188038",
        Occasion::Failed | Occasion::LoadBalancerProblem => "#c5221f",
        Occasion::Canceled => "#9aa0a6",
        Occasion::ApprovalNeeded => "#e37400",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{About, AboutExecution, Delivery, DeliveryState, NotificationId};

    fn claimed(subject: &str, text: &str) -> Claimed {
        let at = DateTime::from_timestamp(1_800_000_000, 0).expect("an instant");
        let execution = ExecutionId::new();
        let notification = Notification {
            id: NotificationId::new(),
            occasion: Occasion::Failed,
            application_name: "hello".into(),
            about: About::Execution(AboutExecution {
                execution,
                execution_name: "deploy \"hello\"".into(),
                execution_number: 7,
                stage: None,
            }),
            subject: subject.into(),
            text: text.into(),
            created_at: at,
        };
        let id = DeliveryId::new();
        let delivery = Delivery {
            id,
            notification: notification.id,
            execution,
            channel: "email".into(),
            target: "ann@example.org".into(),
            state: DeliveryState::Pending,
            attempts: 1,
            next_at: Some(at),
            last_error: None,
            created_at: at,
            sent_at: None,
        };
        Claimed { delivery, notification, first: id }
    }

    fn sender() -> Sender {
        Sender {
            from: "Gennaker <gennaker@example.org>".parse().expect("a mailbox"),
            public_url: Some("https://cd.example.org/".into()),
        }
    }

    fn formatted(claimed: &Claimed) -> String {
        String::from_utf8(sender().letter(claimed).expect("a mail").formatted()).expect("text")
    }

    #[test]
    fn a_subject_with_lines_begins_no_other_header() {
        let mail = formatted(&claimed("it failed\r\nBcc: eve@example.org\r\n\r\nbody", "x"));
        let headers = mail.split("\r\n\r\n").next().expect("headers");
        assert!(!headers.lines().any(|line| line.starts_with("Bcc")), "{headers}");
        assert!(headers.contains("Subject: it failed"), "{headers}");
    }

    #[test]
    fn values_are_escaped_in_html_and_stand_as_they_are_in_text() {
        let (text, html) =
            sender().bodies(&claimed("<b>bold</b>", "a <script>alert(1)</script>\nb & c").notification).expect("both");
        assert!(text.contains("<script>alert(1)</script>\nb & c"), "{text}");
        assert!(!html.contains("<script>") && !html.contains("<b>"), "{html}");
        assert!(html.contains("&lt;script&gt;") && html.contains("b &amp; c"), "{html}");
        assert!(text.contains("https://cd.example.org/?query=%7B%20node"), "{text}");
        let without = Sender { public_url: None, ..sender() };
        let (text, html) = without.bodies(&claimed("s", "t").notification).expect("both");
        assert!(!text.contains("://") && !html.contains("href"), "{text}{html}");
    }

    #[test]
    fn every_try_gives_the_same_mail_and_the_thread_hangs_on_its_first() {
        let mut mail = claimed("it failed", "x");
        assert_eq!(formatted(&mail), formatted(&mail));
        assert!(!formatted(&mail).contains("References"), "the first answers to nothing");
        mail.first = DeliveryId::new();
        let first = format!("<{}@example.org>", mail.first);
        let text = formatted(&mail);
        for name in ["References", "In-Reply-To"] {
            let line = text.lines().find(|line| line.starts_with(name)).expect(name);
            assert!(line.contains(&first), "{line}");
        }
        assert!(
            text.contains("Auto-Submitted: auto-generated") && text.contains("List-Id: <hello.gennaker.example.org>")
        );
    }
}
