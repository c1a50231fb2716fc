//! What operators look at beside the log: who may read the metrics, and where traces go.

use std::time::Duration;

use super::Errors;

/// Flags.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Metrics and traces")]
pub struct ObserveArgs {
    /// Give /metrics to everybody who reaches the server; otherwise it needs a token
    #[arg(long, env = "GENNAKER_METRICS_PUBLIC")]
    pub metrics_public: bool,
    /// Send a trace of each execution to this OTLP collector (HTTP with protobuf), such as
    /// http://127.0.0.1:4318/v1/traces; nothing is sent without it. Headers for the collector are
    /// taken from the variable OTEL_EXPORTER_OTLP_HEADERS (`name=value,…`)
    #[arg(long, env = "GENNAKER_OTLP_ENDPOINT", value_name = "URL")]
    pub otlp_endpoint: Option<String>,
    /// Seconds that the collector may take to answer
    #[arg(long, env = "GENNAKER_OTLP_TIMEOUT_SECONDS", value_name = "SECONDS", default_value_t = ObserveArgs::OTLP_TIMEOUT_SECONDS)]
    pub otlp_timeout_seconds: u64,
}

impl Default for ObserveArgs {
    fn default() -> Self {
        Self { metrics_public: false, otlp_endpoint: None, otlp_timeout_seconds: Self::OTLP_TIMEOUT_SECONDS }
    }
}

impl ObserveArgs {
    const OTLP_TIMEOUT_SECONDS: u64 = 10;

    /// # Errors
    /// When the collector's address is none, and when it may take too long.
    pub fn validate(self) -> Result<ObserveConfig, Errors> {
        let mut errors = Errors::none();
        errors.within("--otlp-timeout-seconds", self.otlp_timeout_seconds, 1, 60);
        if let Some(endpoint) = &self.otlp_endpoint {
            let known = ["http://", "https://"].iter().find_map(|scheme| endpoint.strip_prefix(scheme));
            let host = known.and_then(|rest| rest.split('/').next()).unwrap_or_default();
            if host.is_empty() || host.contains(['@', ' ', '?', '#']) {
                // Not repeated: there may be a password in it.
                let message = "this is no address of a collector; write one such as http://127.0.0.1:4318/v1/traces, and \
                               put credentials into OTEL_EXPORTER_OTLP_HEADERS";
                errors.add("--otlp-endpoint", message);
            }
        }
        errors.or(|| ObserveConfig {
            metrics_public: self.metrics_public,
            otlp_endpoint: self.otlp_endpoint,
            otlp_timeout: Duration::from_secs(self.otlp_timeout_seconds),
        })
    }
}

/// Settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObserveConfig {
    /// `/metrics` needs no token.
    pub metrics_public: bool,
    /// Where traces go, whole: `http://127.0.0.1:4318/v1/traces`.
    pub otlp_endpoint: Option<String>,
    /// How long the collector may take.
    pub otlp_timeout: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(text: &str) -> Result<ObserveConfig, Errors> {
        ObserveArgs { otlp_endpoint: Some(text.to_owned()), ..ObserveArgs::default() }.validate()
    }

    #[test]
    fn a_collector_has_an_address_without_credentials() {
        for good in ["http://127.0.0.1:4318/v1/traces", "https://otlp.example/v1/traces", "http://[::1]:4318/v1/traces"]
        {
            assert_eq!(endpoint(good).expect(good).otlp_endpoint.as_deref(), Some(good));
        }
        for bad in ["", "127.0.0.1:4318", "grpc://x", "http://", "http:///v1", "http://user:secret@host/v1/traces"] {
            let error = &endpoint(bad).expect_err(bad).0[0];
            assert_eq!(error.setting, "--otlp-endpoint");
            assert!(!error.message.contains("secret"), "{error}");
        }
        let args = ObserveArgs { otlp_timeout_seconds: 0, ..ObserveArgs::default() };
        assert_eq!(args.validate().expect_err("none").0[0].setting, "--otlp-timeout-seconds");
    }
}
