//! Mail over SMTP: STARTTLS, TLS or neither, a password, and one pool of connections.

use std::fmt;
use std::time::Duration;

use lettre::message::Mailbox;
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Certificate, Tls, TlsParameters};
use lettre::transport::smtp::{self, PoolConfig};
use lettre::{AsyncSmtpTransport, AsyncTransport as _, Message, Tokio1Executor};
use tokio::sync::Mutex;

use super::letter::Sender;
use super::{Fault, Notifier};
use crate::clock::Clock;
use crate::model::EMAIL;
use crate::secrets::{Mask, Secrets, is_reference};
use crate::store::Claimed;

/// How the connection to the mail server is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Security {
    /// Not at all
    None,
    /// Begins in the clear and goes over to TLS before anything is said
    #[default]
    Starttls,
    /// TLS from the first byte
    Tls,
}

/// A password, or the reference to one. Prints as `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(String);

impl From<String> for Password {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl Password {
    /// As given.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Which server, and who we are there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The mail server's name or address.
    pub host: String,
    /// The mail server's port.
    pub port: u16,
    /// How the connection is protected.
    pub security: Security,
    /// User name and password.
    pub login: Option<(String, Password)>,
    /// `gennaker@example.org` or `Gennaker <gennaker@example.org>`.
    pub from: String,
    /// PEM of roots that are trusted beside those that browsers trust.
    pub roots: Option<Vec<u8>>,
    /// From the connection to the server's word that it has the mail.
    pub timeout: Duration,
    /// Where links lead; without it there are none.
    pub public_url: Option<String>,
}

type Transport = AsyncSmtpTransport<Tokio1Executor>;

/// The channel `email`.
pub struct Email {
    options: Options,
    sender: Sender,
    tls: Tls,
    secrets: Secrets,
    clock: Clock,
    /// The connections, and the password they were made with.
    transport: Mutex<Option<(Option<String>, Transport)>>,
}

impl Email {
    /// Nothing is connected yet.
    ///
    /// # Errors
    /// When the sender is no address or the roots are no certificates.
    pub fn new(options: Options, secrets: Secrets, clock: Clock) -> Result<Self, String> {
        let from = options.from.parse::<Mailbox>();
        let from = from.map_err(|error| format!("`{}` is not a sender: {error}", options.from))?;
        let tls = match options.security {
            Security::None => Tls::None,
            Security::Starttls => Tls::Required(parameters(&options)?),
            Security::Tls => Tls::Wrapper(parameters(&options)?),
        };
        let sender = Sender { from, public_url: options.public_url.clone() };
        Ok(Self { options, sender, tls, secrets, clock, transport: Mutex::new(None) })
    }

    fn place(&self) -> String {
        format!("{}:{}", self.options.host, self.options.port)
    }

    /// The connections, made anew when the password behind the reference has changed.
    async fn transport(&self) -> Result<(Transport, Mask), Fault> {
        let mut mask = Mask::default();
        let password = match &self.options.login {
            Some((_, password)) if is_reference(password.expose()) => {
                let secret = self.secrets.resolve(password.expose());
                let secret = secret.map_err(|error| Fault::temporary(format!("the password for mail: {error}")))?;
                mask.add(&secret);
                Some(secret.expose().to_owned())
            }
            Some((_, password)) => Some(password.expose().to_owned()),
            None => None,
        };
        let mut kept = self.transport.lock().await;
        if let Some((with, transport)) = &*kept
            && *with == password
        {
            return Ok((transport.clone(), mask));
        }
        let mut builder = Transport::builder_dangerous(&self.options.host)
            .port(self.options.port)
            .tls(self.tls.clone())
            .timeout(Some(self.options.timeout))
            .pool_config(PoolConfig::new().max_size(8).idle_timeout(Duration::from_secs(30)));
        if let (Some((user, _)), Some(password)) = (&self.options.login, &password) {
            builder = builder.credentials(Credentials::new(user.clone(), password.clone()));
        }
        let transport = builder.build();
        *kept = Some((password, transport.clone()));
        Ok((transport, mask))
    }

    async fn hand_over(&self, mail: &Message, target: &str) -> Result<(), Fault> {
        let (transport, mask) = self.transport().await?;
        let bytes = mail.formatted();
        let sending = transport.send_raw(mail.envelope(), &bytes);
        match tokio::time::timeout(self.options.timeout, sending).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => {
                let mut fault = self.fault(&error, target);
                fault.message = tidy(&mask.text(&fault.message), target);
                if let Some((_, password)) = &self.options.login
                    && password.expose().len() >= 4
                {
                    fault.message = fault.message.replace(password.expose(), "***");
                }
                Err(fault)
            }
            Err(_) => {
                // What was half said on that connection must not be taken up by the next mail.
                *self.transport.lock().await = None;
                let (place, seconds) = (self.place(), self.options.timeout.as_secs());
                Err(Fault::temporary(format!(
                    "{place} did not take the mail within {seconds} s; whether it has it is not known"
                )))
            }
        }
    }

    fn fault(&self, error: &smtp::Error, target: &str) -> Fault {
        let place = self.place();
        let text = error.to_string();
        let code = error.status().map(|code| code.to_string());
        // About our settings, not about this mail: it waits until they are right.
        if matches!(code.as_deref(), Some("530" | "534" | "535" | "538")) {
            return Fault::temporary(format!(
                "{place} refused to let us in: {text}; check --smtp-username and --smtp-password"
            ));
        }
        if error.is_permanent() {
            return Fault::permanent(format!("{place} refused the mail: {text}"));
        }
        if error.is_transient() {
            return Fault::temporary(format!("{place} asks to try again later: {text}"));
        }
        if text.contains("certificate") {
            return Fault::temporary(format!(
                "the certificate of {place} is not trusted: {text}; give the root of your own certificates with \
                 --smtp-ca-file, and the host by the name that is in the certificate"
            ));
        }
        if error.is_tls() {
            return Fault::temporary(format!("no TLS with {place}: {text}; check --smtp-security and --smtp-port"));
        }
        if error.is_client() && !target.is_ascii() {
            return Fault::permanent(format!("{place} takes no address with letters beyond ASCII: {text}"));
        }
        if error.is_client() || error.is_response() {
            return Fault::temporary(format!("{place} cannot be used as it is set up: {text}; check --smtp-security"));
        }
        Fault::temporary(format!("{place} cannot be reached: {text}"))
    }
}

fn parameters(options: &Options) -> Result<TlsParameters, String> {
    let mut builder = TlsParameters::builder(options.host.clone());
    if let Some(pem) = &options.roots {
        let roots = Certificate::from_pem(pem).map_err(|error| format!("the extra roots: {error}"))?;
        builder = builder.add_root_certificate(roots);
    }
    builder.build().map_err(|error| format!("TLS cannot be set up: {error}"))
}

/// One line of at most 500 bytes, without the address.
fn tidy(text: &str, target: &str) -> String {
    let lower = text.to_ascii_lowercase();
    let wanted = target.to_ascii_lowercase();
    let (mut tidy, mut done) = (String::with_capacity(text.len()), 0);
    for (at, found) in lower.match_indices(&wanted) {
        tidy.push_str(&text[done..at]);
        tidy.push_str("the recipient");
        done = at + found.len();
    }
    tidy.push_str(&text[done..]);
    let mut tidy: String = tidy.chars().map(|char| if char.is_control() { ' ' } else { char }).collect();
    tidy.truncate(tidy.floor_char_boundary(500));
    tidy
}

#[async_trait::async_trait]
impl Notifier for Email {
    fn kind(&self) -> &'static str {
        EMAIL
    }

    async fn send(&self, claimed: &Claimed) -> Result<(), Fault> {
        let target = &claimed.delivery.target;
        let mail = self.sender.letter(claimed);
        let mail = mail.map_err(|error| Fault::permanent(format!("no mail can be made of the message: {error}")))?;
        self.hand_over(&mail, target).await
    }

    async fn send_test(&self, target: &str) -> Result<(), Fault> {
        let mail = self.sender.test(target, self.clock.now());
        let mail = mail.map_err(|error| Fault::permanent(format!("no mail can be made: {error}")))?;
        self.hand_over(&mail, target).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_line_and_does_not_tell_the_address() {
        let text = "550 5.1.1 <Ann@Example.org>: no such user\r\nsecond ann@example.org";
        assert_eq!(tidy(text, "ann@example.org"), "550 5.1.1 <the recipient>: no such user  second the recipient");
        assert_eq!(tidy(&"x".repeat(2_000), "a@b").len(), 500);
    }

    #[test]
    fn a_password_is_not_printed() {
        let password = Password::from("s3cret".to_owned());
        assert_eq!(format!("{password:?}"), "***");
    }
}
