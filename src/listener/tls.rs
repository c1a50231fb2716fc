//! The server's certificate and its key, which may be replaced while it serves: by hand or when the
//! files change. What is not a certificate with its key never replaces one that is.

use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use chrono::{DateTime, NaiveDateTime, Utc};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

/// The largest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// The files cannot be used. Says nothing of the key's content.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The certificate's file.
    #[error("{path}: {message}")]
    Certificate {
        /// As it was given.
        path: String,
        /// Why.
        message: String,
    },
    /// The key's file, or that the key is another certificate's.
    #[error("{path}: {message}")]
    Key {
        /// As it was given.
        path: String,
        /// Why.
        message: String,
    },
}

/// Where a certificate and its key are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// The certificate and those that lead to its root, in PEM, the server's own first.
    pub certificate: PathBuf,
    /// Its private key, in PEM.
    pub key: PathBuf,
}

/// The certificate in use. Cheap to clone; clones are the same.
#[derive(Clone)]
pub struct Certificates(Arc<RwLock<Loaded>>);

#[derive(Clone)]
struct Loaded {
    files: Files,
    /// What the files held.
    content: Content,
    key: Arc<CertifiedKey>,
}

#[derive(Clone, PartialEq, Eq)]
struct Content {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Certificates").field(&self.loaded().files).finish()
    }
}

impl Certificates {
    /// Reads the files.
    ///
    /// # Errors
    /// When they cannot be read, or do not hold a certificate and its key.
    pub fn load(files: Files) -> Result<Self, Error> {
        let content = Content::read(&files)?;
        let key = content.certified(&files)?;
        Ok(Self(Arc::new(RwLock::new(Loaded { files, content, key }))))
    }

    /// From now on what the other holds; whether that is another certificate or key.
    pub fn replace(&self, other: &Self) -> bool {
        let new = other.loaded();
        let mut loaded = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let differs = loaded.content != new.content;
        *loaded = new;
        differs
    }

    /// For people: where it is from, and until when it is valid.
    #[must_use]
    pub fn describe(&self) -> String {
        let Loaded { files, key, .. } = self.loaded();
        let until = key.cert.first().and_then(|certificate| valid_until(certificate));
        let until = until.map(|until| format!(", valid until {}", until.format("%Y-%m-%d %H:%M UTC")));
        format!("the TLS certificate in {}{}", files.certificate.display(), until.unwrap_or_default())
    }

    /// Whether the files still hold what is in use, judged by their content.
    fn changed(&self) -> Result<Option<Self>, (Option<Content>, Error)> {
        let Loaded { files, content, .. } = self.loaded();
        let now = Content::read(&files).map_err(|error| (None, error))?;
        if now == content {
            return Ok(None);
        }
        match now.certified(&files) {
            Ok(key) => Ok(Some(Self(Arc::new(RwLock::new(Loaded { files, content: now, key }))))),
            Err(error) => Err((Some(now), error)),
        }
    }

    /// Looks at the files again and again, and takes what is new in them. What cannot be used is
    /// told once, and the certificate stays.
    pub async fn watch(self, every: Duration, stop: CancellationToken) {
        let mut told = None;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(every) => {}
            }
            let these = self.clone();
            let Ok(looked) = tokio::task::spawn_blocking(move || these.changed()).await else { continue };
            match looked {
                Ok(None) => told = None,
                Ok(Some(new)) => {
                    self.replace(&new);
                    told = None;
                    info!("{} has changed and is used from now on", self.describe());
                }
                Err(what) if told.as_ref() == Some(&what) => {}
                Err(what) => {
                    // A pair is written file by file: half of it may be seen once.
                    error!("the TLS certificate has changed and cannot be used; the one before stays: {}", what.1);
                    told = Some(what);
                }
            }
        }
    }

    /// What speaks TLS 1.2 and 1.3 with the certificate in use at the time of each handshake.
    #[must_use]
    pub fn acceptor(&self) -> TlsAcceptor {
        let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the provider has the cipher suites of TLS 1.2 and 1.3");
        let mut config = builder.with_no_client_auth().with_cert_resolver(Arc::new(self.clone()));
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }

    fn loaded(&self) -> Loaded {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner).key))
    }
}

impl Content {
    fn read(files: &Files) -> Result<Self, Error> {
        let path = |path: &Path| path.display().to_string();
        let certificate = read(&files.certificate)
            .map_err(|message| Error::Certificate { path: path(&files.certificate), message })?;
        let key = read(&files.key).map_err(|message| Error::Key { path: path(&files.key), message })?;
        Ok(Self { certificate, key })
    }

    fn certified(&self, files: &Files) -> Result<Arc<CertifiedKey>, Error> {
        let bad = |message: String| Error::Certificate { path: files.certificate.display().to_string(), message };
        let bad_key = |message: String| Error::Key { path: files.key.display().to_string(), message };
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&self.certificate)
            .collect::<Result<_, _>>()
            .map_err(|error| bad(format!("is not PEM: {error}")))?;
        if chain.is_empty() {
            return Err(bad("holds no certificate in PEM (-----BEGIN CERTIFICATE-----)".to_owned()));
        }
        let key = PrivateKeyDer::from_pem_slice(&self.key)
            .map_err(|_| bad_key("holds no private key in PEM, or one with a passphrase".to_owned()))?;
        match CertifiedKey::from_der(chain, key, &ring::default_provider()) {
            Ok(key) => Ok(Arc::new(key)),
            Err(rustls::Error::InconsistentKeys(_)) => {
                Err(bad_key(format!("is not the key of the certificate in {}", files.certificate.display())))
            }
            Err(error) => Err(bad(format!("cannot be used: {error}"))),
        }
    }
}

/// A certificate's notAfter.
fn valid_until(certificate: &[u8]) -> Option<DateTime<Utc>> {
    let (_, signed, _) = item(certificate)?;
    let (_, mut fields, _) = item(signed)?;
    // The version is marked, and may be missing.
    if fields.first() == Some(&0xa0) {
        fields = item(fields)?.2;
    }
    // Serial number, algorithm and issuer come before it.
    for _ in 0..3 {
        fields = item(fields)?.2;
    }
    let (_, validity, _) = item(fields)?;
    let (tag, text, _) = item(item(validity)?.2)?;
    let text = std::str::from_utf8(text).ok()?;
    let century = match tag {
        // UTCTime has a year of two digits, of which those from 50 on are of the last century.
        0x17 if text < "50" => "20",
        0x17 => "19",
        _ => "",
    };
    let until = NaiveDateTime::parse_from_str(&format!("{century}{text}"), "%Y%m%d%H%M%SZ").ok()?;
    Some(until.and_utc())
}

/// The first item of some DER: its tag, its content, and what comes behind it.
fn item(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, rest) = der.split_first()?;
    let (length, rest) = rest.split_first()?;
    let (length, rest) = match length {
        0..=0x7f => (usize::from(*length), rest),
        0x81..=0x84 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(length & 0x7f))?;
            (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((*tag, content, rest))
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err("is larger than 1 MiB".to_owned());
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/fixtures").join(name)
    }

    fn load(certificate: &str, key: &str) -> Result<Certificates, Error> {
        Certificates::load(Files { certificate: fixture(certificate), key: fixture(key) })
    }

    #[test]
    fn a_certificate_and_its_key_are_taken_and_nothing_else_is() {
        assert!(load("tls-first.pem", "tls-first.key").is_ok());
        for (certificate, key, word) in [
            ("gone.pem", "tls-first.key", "gone.pem"),
            ("tls-first.pem", "gone.key", "gone.key"),
            ("tls-first.key", "tls-first.key", "no certificate"),
            ("tls-first.pem", "tls-first.pem", "no private key"),
            ("tls-first.pem", "tls-second.key", "not the key"),
        ] {
            let error = load(certificate, key).expect_err(word).to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn a_certificate_says_until_when_it_is_valid() {
        let said = load("tls-first.pem", "tls-first.key").expect("a pair").describe();
        assert!(said.ends_with("tls-first.pem, valid until 2120-01-01 00:00 UTC"), "{said}");
        let der =
            |tag: u8, content: &[u8]| [&[tag, 0x82, 0, u8::try_from(content.len()).expect("short")], content].concat();
        let until = |version: &[u8], tag: u8, time: &str| {
            let validity = der(0x30, &[der(0x17, b"200101000000Z"), der(tag, time.as_bytes())].concat());
            let fields = [version, &der(2, &[1]), &der(0x30, &[]), &der(0x30, &[]), &validity].concat();
            valid_until(&der(0x30, &der(0x30, &fields))).map(|until| until.to_rfc3339())
        };
        let version = der(0xa0, &der(2, &[2]));
        for (version, tag, time, expected) in [
            (&version[..], 0x17, "310203040506Z", Some("2031-02-03T04:05:06+00:00")),
            (&[], 0x17, "991231235959Z", Some("1999-12-31T23:59:59+00:00")),
            (&version, 0x18, "20500101000000Z", Some("2050-01-01T00:00:00+00:00")),
            (&version, 0x18, "soon", None),
        ] {
            assert_eq!(until(version, tag, time).as_deref(), expected, "{time}");
        }
        assert_eq!((valid_until(b""), valid_until(&[0x30, 0x84, 0xff, 0xff, 0xff, 0xff])), (None, None));
    }

    #[test]
    fn files_that_no_longer_fit_do_not_replace_what_is_in_use() {
        let dir = std::env::temp_dir().join(format!("gennaker-tls-{}", uuid::Uuid::new_v4().simple()));
        std::fs::create_dir(&dir).expect("made");
        let files = Files { certificate: dir.join("cert.pem"), key: dir.join("key.pem") };
        let put = |name: &str, to: &Path| std::fs::copy(fixture(name), to).map(|_| ()).expect("copied");
        put("tls-first.pem", &files.certificate);
        put("tls-first.key", &files.key);
        let certificates = Certificates::load(files.clone()).expect("a pair");
        assert!(matches!(certificates.changed(), Ok(None)));
        put("tls-second.pem", &files.certificate);
        assert!(certificates.changed().is_err(), "half of the new pair");
        put("tls-second.key", &files.key);
        let new = certificates.changed().unwrap_or_else(|(_, error)| panic!("{error}")).expect("another pair");
        assert!(certificates.replace(&new) && !certificates.replace(&new));
        assert!(matches!(certificates.changed(), Ok(None)));
        std::fs::remove_dir_all(dir).expect("removed");
    }
}
