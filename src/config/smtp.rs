//! The mail server that messages go out through, and how often they are tried.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Error, Errors};
use crate::notifiers::deliver;
use crate::notifiers::email::{Options, Password, Security};
use crate::secrets::{self, Secrets};

/// The variable that may hold the password itself.
const PASSWORD: &str = "GENNAKER_SMTP_PASSWORD";

/// Flags.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Mail")]
pub struct SmtpArgs {
    /// The mail server; without it no mail is sent, and deliveries of mail end as dead
    #[arg(long, env = "GENNAKER_SMTP_HOST", value_name = "HOST")]
    pub smtp_host: Option<String>,
    /// Its port [default: 587 with starttls, 465 with tls, 25 with none]
    #[arg(long, env = "GENNAKER_SMTP_PORT", value_name = "PORT")]
    pub smtp_port: Option<u16>,
    /// How the connection to it is protected
    #[arg(long, env = "GENNAKER_SMTP_SECURITY", value_enum, default_value_t = Security::Starttls)]
    pub smtp_security: Security,
    /// Who we are there; needs a password
    #[arg(long, env = "GENNAKER_SMTP_USERNAME", value_name = "NAME")]
    pub smtp_username: Option<String>,
    /// A reference to the password: secret://env/GENNAKER_SECRET_… or secret://file/…. Only the
    /// variable may hold the password itself
    #[arg(long, env = PASSWORD, value_name = "REFERENCE", hide_env_values = true)]
    pub smtp_password: Option<Password>,
    /// Whom mail comes from: gennaker@example.org, or with a name before it in front of <…>
    #[arg(long, env = "GENNAKER_SMTP_FROM", value_name = "ADDRESS")]
    pub smtp_from: Option<String>,
    /// Root certificates (PEM) that are trusted for the mail server, beside the public ones
    #[arg(long, env = "GENNAKER_SMTP_CA_FILE", value_name = "FILE")]
    pub smtp_ca_file: Option<PathBuf>,
    /// Seconds from the connection to the server's word that it has the mail
    #[arg(long, env = "GENNAKER_SMTP_TIMEOUT_SECONDS", value_name = "SECONDS", default_value_t = SmtpArgs::TIMEOUT)]
    pub smtp_timeout_seconds: u64,
    /// Where links in mails lead: the URL under which people reach this server; without it there are
    /// no links
    #[arg(long, env = "GENNAKER_PUBLIC_URL", value_name = "URL")]
    pub public_url: Option<String>,
    /// Seconds from the first failed try to deliver a message to the second; doubled with each
    #[arg(long, env = "GENNAKER_DELIVERY_RETRY_SECONDS", value_name = "SECONDS", default_value_t = SmtpArgs::RETRY)]
    pub delivery_retry_seconds: u64,
    /// The longest wait between two tries, in seconds
    #[arg(
        long,
        env = "GENNAKER_DELIVERY_RETRY_MAX_SECONDS",
        value_name = "SECONDS",
        default_value_t = SmtpArgs::RETRY_MAX
    )]
    pub delivery_retry_max_seconds: u64,
    /// Tries after which a delivery is given up; with the defaults that is after about 13 hours
    #[arg(long, env = "GENNAKER_DELIVERY_ATTEMPTS", value_name = "COUNT", default_value_t = SmtpArgs::ATTEMPTS)]
    pub delivery_attempts: u16,
}

impl Default for SmtpArgs {
    fn default() -> Self {
        Self {
            smtp_host: None,
            smtp_port: None,
            smtp_security: Security::Starttls,
            smtp_username: None,
            smtp_password: None,
            smtp_from: None,
            smtp_ca_file: None,
            smtp_timeout_seconds: Self::TIMEOUT,
            public_url: None,
            delivery_retry_seconds: Self::RETRY,
            delivery_retry_max_seconds: Self::RETRY_MAX,
            delivery_attempts: Self::ATTEMPTS,
        }
    }
}

/// Settings.
#[derive(Debug, Clone)]
pub struct SmtpConfig {
    /// None: no mail is sent.
    pub email: Option<Options>,
    /// How often and how long messages of any channel are tried.
    pub deliveries: deliver::Options,
    /// What links to this server begin with, if not with its own address.
    pub public_url: Option<String>,
}

impl SmtpArgs {
    const TIMEOUT: u64 = 60;
    const RETRY: u64 = 30;
    const RETRY_FIRST_MAX: u64 = 3_600;
    const RETRY_MAX: u64 = 3_600;
    const ATTEMPTS: u16 = 20;

    /// That there is a password where a reference to one is given; it is read again for each mail.
    ///
    /// # Errors
    /// Why it is not there.
    pub(super) fn resolves(&self, secrets: &Secrets) -> Result<(), Error> {
        let given = self.smtp_password.as_ref().map(Password::expose);
        match given.filter(|password| secrets::is_reference(password)) {
            Some(reference) => super::resolved("--smtp-password", reference, secrets).map(drop),
            None => Ok(()),
        }
    }

    /// # Errors
    /// Every setting that does not hold, or that is missing beside another.
    pub fn validate(self) -> Result<SmtpConfig, Errors> {
        self.validate_with(|name| std::env::var(name).ok())
    }

    fn validate_with(self, variable: impl Fn(&str) -> Option<String>) -> Result<SmtpConfig, Errors> {
        let mut errors = Errors::none();
        errors.within("--smtp-timeout-seconds", self.smtp_timeout_seconds, 1, 600);
        errors.within("--delivery-retry-seconds", self.delivery_retry_seconds, 1, Self::RETRY_FIRST_MAX);
        let first = self.delivery_retry_seconds.min(Self::RETRY_FIRST_MAX);
        errors.within("--delivery-retry-max-seconds", self.delivery_retry_max_seconds, first, 86_400);
        errors.within("--delivery-attempts", self.delivery_attempts.into(), 1, 1_000);
        let deliveries = deliver::Options {
            retry_first: Duration::from_secs(self.delivery_retry_seconds),
            retry_max: Duration::from_secs(self.delivery_retry_max_seconds),
            attempts_max: self.delivery_attempts.into(),
            ..deliver::Options::default()
        };
        let public_url = self.public_url.as_deref().and_then(|text| errors.keep(public_url(text)));
        let email = errors.keep(self.email(public_url.clone(), variable)).flatten();
        errors.or(|| SmtpConfig { email, deliveries, public_url })
    }

    fn email(
        self,
        public_url: Option<String>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Options>, Errors> {
        let mut errors = Errors::none();
        let Some(host) = self.smtp_host.filter(|host| !host.is_empty()) else {
            let given = self.smtp_username.is_some() || self.smtp_password.is_some() || self.smtp_from.is_some();
            if given {
                errors.add("--smtp-host", "other settings of mail are given, but not the server");
            }
            return errors.or(|| None);
        };
        if !is_host(&host) {
            let message = format!(
                "`{}` is neither a host's name nor an address; write mail.example.org, and its port as --smtp-port",
                host.escape_debug()
            );
            errors.add("--smtp-host", message);
        }
        match &self.smtp_from {
            None => errors.add("--smtp-from", "mail needs a sender: gennaker@your.domain"),
            Some(from) => {
                if let Err(error) = from.parse::<lettre::message::Mailbox>() {
                    errors.add(
                        "--smtp-from",
                        format!("`{}` is not an address ({error}); write gennaker@example.org", from.escape_debug()),
                    );
                }
            }
        }
        let has_login = self.smtp_username.is_some() || self.smtp_password.is_some();
        let login = match (self.smtp_username, self.smtp_password) {
            (Some(name), Some(password)) => errors.keep(held(password, variable)).map(|password| (name, password)),
            (None, None) => None,
            (Some(_), None) => {
                errors.add("--smtp-password", "--smtp-username is given without it");
                None
            }
            (None, Some(_)) => {
                errors.add("--smtp-username", "--smtp-password is given without it");
                None
            }
        };
        if has_login && self.smtp_security == Security::None && !is_loopback(&host) {
            errors.add(
                "--smtp-security",
                format!("the password would cross the network to {host} in the clear; use starttls or tls"),
            );
        }
        let roots = self.smtp_ca_file.and_then(|path| errors.keep(roots(&path)));
        let port = self.smtp_port.unwrap_or(match self.smtp_security {
            Security::None => 25,
            Security::Starttls => 587,
            Security::Tls => 465,
        });
        errors.or(|| {
            Some(Options {
                host,
                port,
                security: self.smtp_security,
                login,
                from: self.smtp_from.unwrap_or_default(),
                roots,
                timeout: Duration::from_secs(self.smtp_timeout_seconds),
                public_url,
            })
        })
    }
}

fn roots(path: &Path) -> Result<Vec<u8>, Error> {
    let fault = |what: String| Error::new("--smtp-ca-file", format!("{}: {what}", path.display()));
    let pem = std::fs::read(path).map_err(|error| fault(error.to_string()))?;
    match String::from_utf8_lossy(&pem).contains("-----BEGIN CERTIFICATE-----") {
        true => Ok(pem),
        false => Err(fault("there is no certificate in PEM form in it".to_owned())),
    }
}

/// A flag stands in the list of processes, and a file is copied around: there only a reference may
/// stand. The variable may hold the password.
fn held(password: Password, variable: impl Fn(&str) -> Option<String>) -> Result<Password, Error> {
    let text = password.expose();
    if text.is_empty() {
        return Err(Error::new("--smtp-password", "is empty"));
    }
    if secrets::is_reference(text) || variable(PASSWORD).as_deref() == Some(text) {
        return Ok(password);
    }
    Err(Error::new(
        "--smtp-password",
        "a password must not stand here as it is; write secret://env/GENNAKER_SECRET_SMTP or secret://file/<path>, or \
         set the variable GENNAKER_SMTP_PASSWORD",
    ))
}

/// An address, or a name as DNS has them: labels of letters, digits, hyphens and underscores.
fn is_host(host: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    let name = host.strip_suffix('.').unwrap_or(host);
    host.parse::<IpAddr>().is_ok() || (name.len() <= 253 && name.split('.').all(label))
}

fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn public_url(text: &str) -> Result<String, Error> {
    let url = reqwest::Url::parse(text).ok();
    if url.as_ref().is_some_and(|url| !url.username().is_empty() || url.password().is_some()) {
        return Err(Error::new(
            "--public-url",
            "has a user or a password in it, and would be sent with mails; leave them out",
        ));
    }
    let holds =
        url.is_some_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host() && url.query().is_none());
    if !holds || text.contains('#') {
        let message = format!("`{}` is not a URL like https://gennaker.example.org", text.escape_debug());
        return Err(Error::new("--public-url", message));
    }
    Ok(text.trim_end_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> SmtpArgs {
        SmtpArgs {
            smtp_host: Some("mail.example.org".into()),
            smtp_from: Some("Gennaker <gennaker@example.org>".into()),
            ..SmtpArgs::default()
        }
    }

    fn login(password: &str) -> SmtpArgs {
        SmtpArgs {
            smtp_username: Some("cd".into()),
            smtp_password: Some(Password::from(password.to_owned())),
            ..args()
        }
    }

    fn setting(args: SmtpArgs) -> &'static str {
        args.validate_with(|_| None).expect_err("refused").0[0].setting
    }

    #[test]
    fn without_a_host_there_is_no_mail_and_a_half_setting_is_refused() {
        assert!(SmtpArgs::default().validate_with(|_| None).expect("holds").email.is_none());
        assert_eq!(setting(SmtpArgs { smtp_host: None, ..args() }), "--smtp-host");
        assert_eq!(setting(SmtpArgs { smtp_from: None, ..args() }), "--smtp-from");
        assert_eq!(setting(SmtpArgs { smtp_from: Some("nobody".into()), ..args() }), "--smtp-from");
        assert_eq!(setting(SmtpArgs { smtp_username: Some("cd".into()), ..args() }), "--smtp-password");
    }

    #[test]
    fn a_mail_server_is_a_name_or_an_address() {
        let with = |host: &str| SmtpArgs { smtp_host: Some(host.into()), ..args() };
        for bad in
            ["mail example.org", " mail", "mail.example.org:587", "smtp://mail", "mail..org", "m\u{e4}il.org", "."]
        {
            assert_eq!(setting(with(bad)), "--smtp-host", "{bad}");
        }
        for good in ["mail", "mail.example.org", "mail.example.org.", "smtp_out.internal", "127.0.0.1", "::1"] {
            assert!(with(good).validate_with(|_| None).is_ok(), "{good}");
        }
    }

    #[test]
    fn the_port_follows_the_protection() {
        for (smtp_security, port) in [(Security::Starttls, 587), (Security::Tls, 465), (Security::None, 25)] {
            let options = SmtpArgs { smtp_security, ..args() }.validate_with(|_| None).expect("holds").email;
            assert_eq!(options.map(|options| options.port), Some(port));
        }
    }

    #[test]
    fn a_password_is_a_reference_or_comes_from_the_variable() {
        assert_eq!(setting(login("s3cret")), "--smtp-password");
        let error = login("s3cret").validate_with(|_| None).expect_err("refused");
        assert!(!error.to_string().contains("s3cret"), "{error}");
        assert!(login("secret://env/GENNAKER_SECRET_SMTP").validate_with(|_| None).is_ok());
        assert!(login("s3cret").validate_with(|name| (name == PASSWORD).then(|| "s3cret".to_owned())).is_ok());
        assert!(!format!("{:?}", login("s3cret")).contains("s3cret"));
    }

    #[test]
    fn a_reference_has_to_lead_to_a_password() {
        let secrets = Secrets::with_environment([], |name| (name == "GENNAKER_SECRET_SMTP").then(|| "pw".into()));
        assert_eq!(login("secret://env/GENNAKER_SECRET_SMTP").resolves(&secrets), Ok(()));
        for (reference, word) in [
            ("secret://env/GENNAKER_SECRET_OTHER", "`GENNAKER_SECRET_OTHER` is not set"),
            ("secret://env/HOME", "GENNAKER_SECRET_"),
            ("secret://file/etc/hostname", "setting for secret directories"),
        ] {
            let error = login(reference).resolves(&secrets).expect_err(reference);
            assert!(error.setting == "--smtp-password" && error.message.contains(word), "{error}");
        }
        assert_eq!(SmtpArgs::default().resolves(&secrets), Ok(()));
    }

    #[test]
    fn a_password_in_the_clear_stays_on_this_machine() {
        let clear = |host: &str| SmtpArgs {
            smtp_host: Some(host.into()),
            smtp_security: Security::None,
            ..login("secret://env/GENNAKER_SECRET_SMTP")
        };
        assert_eq!(setting(clear("mail.example.org")), "--smtp-security");
        for host in ["localhost", "127.0.0.1", "::1"] {
            assert!(clear(host).validate_with(|_| None).is_ok(), "{host}");
        }
    }

    #[test]
    fn a_public_url_is_one() {
        for bad in ["gennaker", "ftp://x", "https://x/?a=b", "https://x/#a"] {
            assert_eq!(setting(SmtpArgs { public_url: Some(bad.into()), ..args() }), "--public-url", "{bad}");
        }
        for bad in ["https://cd@x", "https://cd:s3cret@x", "https://:s3cret@x/?a=b"] {
            let args = SmtpArgs { public_url: Some(bad.into()), ..args() };
            let error = &args.validate_with(|_| None).expect_err(bad).0[0];
            assert!(error.setting == "--public-url" && error.message.contains("a user or a password"), "{error}");
            assert!(!error.message.contains("s3cret"), "{error}");
        }
    }
}
