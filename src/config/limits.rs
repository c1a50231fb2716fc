//! How much is taken and worked on at the most. Every limit is refused outside the range in which
//! the server can keep it.

use std::time::Duration;

use super::Errors;
use crate::{api, engine};

/// Seconds.
const HOUR: u64 = 3_600;

/// Flags.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Limits")]
pub struct LimitsArgs {
    /// Bytes of a stage's config
    #[arg(long, env = "GENNAKER_MAX_CONFIG_BYTES", value_name = "BYTES", default_value_t = 256 * 1024)]
    pub max_config_bytes: usize,
    /// Bytes of a stage's outputs
    #[arg(long, env = "GENNAKER_MAX_OUTPUTS_BYTES", value_name = "BYTES", default_value_t = 1024 * 1024)]
    pub max_outputs_bytes: usize,
    /// Bytes of the outputs of all stages of an execution
    #[arg(long, env = "GENNAKER_MAX_EXECUTION_OUTPUTS_BYTES", value_name = "BYTES", default_value_t = 16 * 1024 * 1024)]
    pub max_execution_outputs_bytes: usize,
    /// Bytes of an event; what is larger is left out of it and read from the execution
    #[arg(long, env = "GENNAKER_MAX_EVENT_BYTES", value_name = "BYTES", default_value_t = 64 * 1024)]
    pub max_event_bytes: usize,
    /// Bytes of a request's body
    #[arg(long, env = "GENNAKER_MAX_BODY_BYTES", value_name = "BYTES", default_value_t = 1024 * 1024)]
    pub max_body_bytes: usize,
    /// Items of a page of a list; clients that ask for more get an error
    #[arg(long, env = "GENNAKER_MAX_PAGE", value_name = "COUNT", default_value_t = 100)]
    pub max_page: u64,
    /// Steps of stages under way at once
    #[arg(long, env = "GENNAKER_MAX_CONCURRENT_STEPS", value_name = "COUNT", default_value_t = 1_000)]
    pub max_concurrent_steps: usize,
    /// Hours that an execution may take; more where the timeouts of its stages, one after the other, come to more
    #[arg(long, env = "GENNAKER_MAX_EXECUTION_HOURS", value_name = "HOURS", default_value_t = 72)]
    pub max_execution_hours: u64,
}

impl Default for LimitsArgs {
    fn default() -> Self {
        let (engine, api) = (engine::Options::default(), api::Live::default());
        Self {
            max_config_bytes: engine.config_max,
            max_outputs_bytes: engine.outputs_max,
            max_execution_outputs_bytes: engine.execution_outputs_max,
            max_event_bytes: engine.event_max,
            max_body_bytes: api.body_max,
            max_page: api.page_max,
            max_concurrent_steps: engine.concurrency,
            max_execution_hours: engine.deadline_default.as_secs() / HOUR,
        }
    }
}

impl LimitsArgs {
    /// # Errors
    /// Every limit outside its range.
    pub fn validate(self) -> Result<LimitsConfig, Errors> {
        const KIB: usize = 1024;
        const MIB: usize = 1024 * KIB;
        // What another limit has to have room for is at most what that one may be.
        const CONFIG_MAX: usize = 4 * MIB;
        const OUTPUTS_MAX: usize = 16 * MIB;
        let mut errors = Errors::none();
        let mut within = |setting: &'static str, value: usize, least: usize, most: usize| {
            errors.within(setting, value as u64, least as u64, most as u64);
        };
        within("--max-config-bytes", self.max_config_bytes, KIB, CONFIG_MAX);
        within("--max-outputs-bytes", self.max_outputs_bytes, KIB, OUTPUTS_MAX);
        let outputs = self.max_outputs_bytes.min(OUTPUTS_MAX);
        within("--max-execution-outputs-bytes", self.max_execution_outputs_bytes, outputs, 256 * MIB);
        within("--max-event-bytes", self.max_event_bytes, 4 * KIB, MIB);
        within("--max-body-bytes", self.max_body_bytes, self.max_config_bytes.min(CONFIG_MAX), 64 * MIB);
        within("--max-concurrent-steps", self.max_concurrent_steps, 1, 100_000);
        errors.within("--max-execution-hours", self.max_execution_hours, 1, engine::DEADLINE_MAX.as_secs() / HOUR);
        errors.within("--max-page", self.max_page, 1, 1_000);
        errors.or(|| LimitsConfig(self))
    }
}

/// Limits that hold together.
#[derive(Debug, Clone)]
pub struct LimitsConfig(LimitsArgs);

impl LimitsConfig {
    /// The engine's settings with these limits.
    #[must_use]
    pub fn engine(&self, options: engine::Options) -> engine::Options {
        engine::Options {
            config_max: self.0.max_config_bytes,
            outputs_max: self.0.max_outputs_bytes,
            execution_outputs_max: self.0.max_execution_outputs_bytes,
            event_max: self.0.max_event_bytes,
            concurrency: self.0.max_concurrent_steps,
            deadline_default: Duration::from_secs(self.0.max_execution_hours * HOUR),
            ..options
        }
    }

    /// The API's settings with these limits.
    #[must_use]
    pub fn api(&self, live: api::Live) -> api::Live {
        api::Live { body_max: self.0.max_body_bytes, page_max: self.0.max_page, ..live }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        limits: LimitsArgs,
    }

    fn limits(line: &[&str]) -> Result<LimitsConfig, Errors> {
        let line = Line::try_parse_from(std::iter::once(&"gennaker").chain(line)).expect("flags");
        line.limits.validate()
    }

    #[test]
    fn without_flags_the_defaults_of_the_parts_hold() {
        let given = limits(&[]).expect("the defaults hold");
        let (engine, api) = (engine::Options::default(), api::Live::default());
        let with = given.engine(engine::Options { config_max: 1, event_max: 1, ..engine::Options::default() });
        assert_eq!((with.config_max, with.event_max), (engine.config_max, engine.event_max));
        assert_eq!((with.outputs_max, with.concurrency), (engine.outputs_max, engine.concurrency));
        assert_eq!(with.deadline_default, engine.deadline_default);
        assert_eq!(with.execution_outputs_max, engine.execution_outputs_max);
        assert_eq!(given.api(api::Live { body_max: 1, page_max: 1, origins: Vec::new() }), api);
    }

    #[test]
    fn a_limit_outside_its_range_is_refused_by_its_flag() {
        assert_eq!(limits(&["--max-event-bytes", "8192"]).expect("fits").engine(Default::default()).event_max, 8192);
        for (flag, value) in [
            ("--max-event-bytes", "1"),
            ("--max-concurrent-steps", "0"),
            ("--max-execution-hours", "9601"),
            ("--max-page", "0"),
            ("--max-execution-outputs-bytes", "2048"),
            ("--max-body-bytes", "99999999999"),
        ] {
            let errors = limits(&[flag, value]).expect_err(flag).0;
            assert_eq!(errors.iter().map(|error| error.setting).collect::<Vec<_>>(), [flag]);
        }
        let both = limits(&["--max-outputs-bytes", "999999999", "--max-page", "0"]).expect_err("two").0;
        assert_eq!(both.iter().map(|error| error.setting).collect::<Vec<_>>(), ["--max-outputs-bytes", "--max-page"]);
    }
}
