//! Names of clusters and server groups: `application[-stack[-detail]]-vNNN`, the grammar that
//! Spinnaker's users know (Frigga). Everything is read back from the name alone; nothing panics on
//! any text.

use std::fmt;

/// The longest cluster name that is built, in characters; what exists already may be longer.
pub const CLUSTER_MAX: usize = 128;
/// The longest application name, in characters.
pub const APPLICATION_MAX: usize = 64;
/// Sequences that are given out: v000 to v999, then from the start.
const SEQUENCES: u32 = 1000;

/// A name taken apart.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Name {
    /// The first part; never empty.
    pub application: String,
    /// Absent where empty.
    pub stack: Option<String>,
    /// Absent where empty. Labeled variables are part of it.
    pub detail: Option<String>,
    /// The number in the push suffix; absent for a cluster's name.
    pub sequence: Option<u32>,
    /// The name without its push suffix.
    pub cluster: String,
    /// The push suffix: `v012`.
    pub push: Option<String>,
}

impl Name {
    /// Takes a name apart; nothing where it is not of the grammar.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let (cluster, push) = match split_push(name) {
            Some((cluster, push)) => (cluster, Some(push)),
            None => (name, None),
        };
        let mut parts = cluster.splitn(3, '-');
        let application = parts.next().filter(|text| !text.is_empty() && text.chars().all(is_name))?;
        let stack = parts.next().unwrap_or_default();
        let detail = parts.next().unwrap_or_default();
        if !stack.chars().all(is_name) || !detail.chars().all(is_name_or_hyphen) {
            return None;
        }
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Some(Self {
            application: application.to_owned(),
            stack: some(stack),
            detail: some(detail),
            sequence: push.and_then(|push| push[1..].parse().ok()),
            cluster: cluster.to_owned(),
            push: push.map(str::to_owned),
        })
    }

    /// The labeled variables at the end of the cluster's name.
    #[must_use]
    pub fn labels(&self) -> Labels {
        Labels::of(&self.cluster)
    }
}

/// Takes a name apart; nothing where it is not of the grammar.
#[must_use]
pub fn parse(name: &str) -> Option<Name> {
    Name::parse(name)
}

/// The cluster that a server group's name says it belongs to.
#[must_use]
pub fn cluster_of(name: &str) -> Option<String> {
    Name::parse(name).map(|name| name.cluster)
}

/// Whether an application may have this name: letters, digits, `.` and `_`, at most
/// [`APPLICATION_MAX`], no dot at the beginning.
#[must_use]
pub fn is_application_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= APPLICATION_MAX && !name.starts_with('.') && name.chars().all(is_name)
}

/// The name of a cluster, checked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterName(String);

impl ClusterName {
    /// `application[-stack[-detail]]`; an empty stack or detail is none.
    ///
    /// # Errors
    /// Where a part has a character outside its set, holds a push suffix, or the whole is too long.
    pub fn new(application: &str, stack: Option<&str>, detail: Option<&str>) -> Result<Self, Error> {
        Self::with_labels(application, stack, detail, &Labels::default())
    }

    /// The same with labeled variables behind it.
    ///
    /// # Errors
    /// As [`ClusterName::new`], and where a variable's value is not of letters and digits alone.
    pub fn with_labels(
        application: &str,
        stack: Option<&str>,
        detail: Option<&str>,
        labels: &Labels,
    ) -> Result<Self, Error> {
        let stack = stack.unwrap_or_default();
        let detail = detail.unwrap_or_default();
        if !is_application_name(application) {
            return Err(Error::Application(shorten(application)));
        }
        if !stack.chars().all(is_name) {
            return Err(Error::Stack(shorten(stack)));
        }
        if !detail.chars().all(is_name_or_hyphen) {
            return Err(Error::Detail(shorten(detail)));
        }
        for (part, text) in [("stack", stack), ("detail", detail)] {
            if text.split('-').any(is_push) {
                return Err(Error::Push { part, text: shorten(text) });
            }
        }
        let mut name = application.to_owned();
        if !stack.is_empty() || !detail.is_empty() {
            name.push('-');
            name.push_str(stack);
        }
        if !detail.is_empty() {
            name.push('-');
            name.push_str(detail);
        }
        for (key, variable, value) in labels.entries() {
            let Some(value) = value.filter(|value| !value.is_empty()) else { continue };
            if !value.chars().all(|letter| letter.is_ascii_alphanumeric()) {
                return Err(Error::Label { variable, value: shorten(value) });
            }
            name.push('-');
            name.push(key);
            name.push('0');
            name.push_str(value);
        }
        if name.len() > CLUSTER_MAX {
            return Err(Error::TooLong(shorten(&name)));
        }
        Ok(Self(name))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The server group of this cluster with that sequence.
    #[must_use]
    pub fn server_group(&self, sequence: u32) -> String {
        server_group(&self.0, sequence)
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for ClusterName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// A part of a name does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The application's name does not hold; it is given, cut short.
    #[error(
        "application name `{0}` is not of 1 to {APPLICATION_MAX} letters, digits, `.` and `_` without a dot at the \
         beginning"
    )]
    Application(String),
    /// The stack has a character that a stack may not have; it is given, cut short.
    #[error("stack `{0}` may have only letters, digits, `.` and `_`")]
    Stack(String),
    /// The detail has a character that a detail may not have; it is given, cut short.
    #[error("detail `{0}` may have only letters, digits, `.`, `_`, `-`, `~` and `^`")]
    Detail(String),
    /// A part would be read as the push suffix of a server group.
    #[error("{part} `{text}` holds a server group's sequence like `v012`; choose another {part}")]
    Push {
        /// `stack` or `detail`.
        part: &'static str,
        /// The part as given, cut short.
        text: String,
    },
    /// The value of a labeled variable is not of letters and digits alone.
    #[error("labeled variable {variable} `{value}` may have only letters and digits")]
    Label {
        /// The variable's name: `devPhase`.
        variable: &'static str,
        /// Its value as given, cut short.
        value: String,
    },
    /// The whole is longer than [`CLUSTER_MAX`]; its beginning is given.
    #[error("cluster name `{0}` is longer than {CLUSTER_MAX} characters; shorten the stack or the detail")]
    TooLong(String),
}

/// Every sequence of a cluster is in use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("all {SEQUENCES} server group names of cluster `{cluster}` are taken; destroy old server groups")]
pub struct NamesExhausted {
    /// The cluster's name.
    pub cluster: String,
}

/// The name of a cluster's next server group: one after the most recently created one (not the
/// highest), from v999 on to v000, and further while the name is taken. The first ever is v000.
///
/// `existing`: name and creation time of server groups; those of other clusters do not count.
///
/// # Errors
/// Where all thousand are taken.
pub fn next<N: AsRef<str>, T: Ord>(
    cluster: &str,
    existing: &[(N, T)],
    mut is_taken: impl FnMut(&str) -> bool,
) -> Result<String, NamesExhausted> {
    let newest = existing
        .iter()
        .filter_map(|(name, created)| Name::parse(name.as_ref()).map(|name| (name, created)))
        .filter(|(name, _)| name.cluster == cluster)
        .max_by_key(|(_, created)| *created);
    // One without a sequence counts as v000.
    let first = newest.map_or(0, |(name, _)| name.sequence.unwrap_or(0) + 1);
    (0..SEQUENCES)
        .map(|step| server_group(cluster, (first + step) % SEQUENCES))
        .find(|name| !existing.iter().any(|(taken, _)| taken.as_ref() == name) && !is_taken(name))
        .ok_or_else(|| NamesExhausted { cluster: cluster.to_owned() })
}

fn server_group(cluster: &str, sequence: u32) -> String {
    format!("{cluster}-v{sequence:03}")
}

/// Variables that stand at the end of a cluster's name as `-<key>0<value>`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Labels {
    /// Key `c`.
    pub countries: Option<String>,
    /// Key `d`.
    pub dev_phase: Option<String>,
    /// Key `h`.
    pub hardware: Option<String>,
    /// Key `p`.
    pub partners: Option<String>,
    /// Key `r`.
    pub revision: Option<String>,
    /// Key `u`.
    pub used_by: Option<String>,
    /// Key `w`.
    pub red_black_swap: Option<String>,
    /// Key `z`.
    pub zone: Option<String>,
}

impl Labels {
    /// Reads them from a cluster's name; of a key given twice the first one holds.
    #[must_use]
    pub fn of(cluster: &str) -> Self {
        let mut labels = Self::default();
        // From the end for as long as they are variables; the application is never one.
        let mut rest = cluster;
        while let Some((before, token)) = rest.rsplit_once('-') {
            let Some((field, value)) = labels.field_of(token) else { break };
            *field = Some(value.to_owned());
            rest = before;
        }
        labels
    }

    fn field_of<'a>(&mut self, token: &'a str) -> Option<(&mut Option<String>, &'a str)> {
        let value = token.get(1..)?.strip_prefix('0')?;
        if value.is_empty() || !value.chars().all(|letter| letter.is_ascii_alphanumeric()) {
            return None;
        }
        let field = match token.as_bytes().first()? {
            b'c' => &mut self.countries,
            b'd' => &mut self.dev_phase,
            b'h' => &mut self.hardware,
            b'p' => &mut self.partners,
            b'r' => &mut self.revision,
            b'u' => &mut self.used_by,
            b'w' => &mut self.red_black_swap,
            b'z' => &mut self.zone,
            _ => return None,
        };
        Some((field, value))
    }

    fn entries(&self) -> [(char, &'static str, Option<&str>); 8] {
        [
            ('c', "countries", self.countries.as_deref()),
            ('d', "devPhase", self.dev_phase.as_deref()),
            ('h', "hardware", self.hardware.as_deref()),
            ('p', "partners", self.partners.as_deref()),
            ('r', "revision", self.revision.as_deref()),
            ('u', "usedBy", self.used_by.as_deref()),
            ('w', "redBlackSwap", self.red_black_swap.as_deref()),
            ('z', "zone", self.zone.as_deref()),
        ]
    }
}

/// `(cluster, push)` of a name with a push suffix behind a hyphen.
fn split_push(name: &str) -> Option<(&str, &str)> {
    name.rsplit_once('-').filter(|(cluster, push)| is_push(push) && cluster.chars().all(is_name_or_hyphen))
}

/// `v` and three to six digits.
fn is_push(token: &str) -> bool {
    token
        .strip_prefix('v')
        .is_some_and(|digits| (3..=6).contains(&digits.len()) && digits.bytes().all(|digit| digit.is_ascii_digit()))
}

const fn is_name(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || matches!(letter, '.' | '_')
}

const fn is_name_or_hyphen(letter: char) -> bool {
    is_name(letter) || matches!(letter, '-' | '~' | '^')
}

/// For messages.
fn shorten(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Row = (&'static str, &'static str, Option<&'static str>, Option<&'static str>, Option<u32>, &'static str);

    const VECTORS: &[Row] = &[
        ("app", "app", None, None, None, "app"),
        ("app-v000", "app", None, None, Some(0), "app"),
        ("app-test-v012", "app", Some("test"), None, Some(12), "app-test"),
        ("app--detail-v003", "app", None, Some("detail"), Some(3), "app--detail"),
        ("app-test-a-b-c-v100", "app", Some("test"), Some("a-b-c"), Some(100), "app-test-a-b-c"),
        ("app-v00", "app", Some("v00"), None, None, "app-v00"),
        ("app-v1234567", "app", Some("v1234567"), None, None, "app-v1234567"),
        ("app-v123456", "app", None, None, Some(123_456), "app"),
        ("app-test-v001-v002", "app", Some("test"), Some("v001"), Some(2), "app-test-v001"),
        ("app-", "app", None, None, None, "app-"),
        ("app--", "app", None, None, None, "app--"),
        ("app--v001", "app", None, None, Some(1), "app-"),
        ("app_x.y-st", "app_x.y", Some("st"), None, None, "app_x.y-st"),
        ("v001", "v001", None, None, None, "v001"),
        ("app-v001-v002", "app", Some("v001"), None, Some(2), "app-v001"),
        ("app-st-d~1^2-v003", "app", Some("st"), Some("d~1^2"), Some(3), "app-st-d~1^2"),
    ];

    #[test]
    fn every_vector_of_the_grammar_is_taken_apart() {
        for (name, application, stack, detail, sequence, cluster) in VECTORS {
            let parsed = Name::parse(name).unwrap_or_else(|| panic!("{name} is of the grammar"));
            assert_eq!(parsed.application, *application, "{name}");
            assert_eq!(parsed.stack.as_deref(), *stack, "{name}");
            assert_eq!(parsed.detail.as_deref(), *detail, "{name}");
            assert_eq!(parsed.sequence, *sequence, "{name}");
            assert_eq!(parsed.cluster, *cluster, "{name}");
            let push = parsed.push.map(|push| format!("{cluster}-{push}"));
            assert_eq!(push.as_deref().unwrap_or(cluster), *name, "{name}");
        }
    }

    #[test]
    fn what_is_not_of_the_grammar_gives_nothing() {
        for name in ["", " ", "app~x", "app~x-v001", "-app", "-v001", "-", "app-st~x", "app x", "äpp", "app\n", "a/b"]
        {
            assert_eq!(Name::parse(name), None, "{name:?}");
        }
    }

    #[test]
    fn labeled_variables_are_read_from_the_end_of_the_cluster() {
        let name = Name::parse("cass-nccpint-random-c0latam-d0prod-h0m1xl-p0vizio-r027-u0nccp-w0A-z0useast1a-v003")
            .expect("of the grammar");
        assert_eq!(name.detail.as_deref(), Some("random-c0latam-d0prod-h0m1xl-p0vizio-r027-u0nccp-w0A-z0useast1a"));
        let some = |text: &str| Some(text.to_owned());
        let labels = Labels {
            countries: some("latam"),
            dev_phase: some("prod"),
            hardware: some("m1xl"),
            partners: some("vizio"),
            revision: some("27"),
            used_by: some("nccp"),
            red_black_swap: some("A"),
            zone: some("useast1a"),
        };
        assert_eq!(name.labels(), labels);
        let built = ClusterName::with_labels("cass", Some("nccpint"), Some("random"), &labels).expect("valid");
        assert_eq!(built.as_str(), name.cluster);
        assert_eq!(Labels::of("cass-c0latam-other"), Labels::default(), "not at the end");
        assert_eq!(Labels::of("c0latam"), Labels::default(), "the application is no variable");
        assert_eq!(Labels::of("cass-c0"), Labels::default(), "no value");
    }

    #[test]
    fn a_cluster_is_built_from_its_parts() {
        let built = |stack, detail| ClusterName::new("app", stack, detail).map(|name| name.to_string());
        assert_eq!(built(None, None).as_deref(), Ok("app"));
        assert_eq!(built(Some(""), Some("")).as_deref(), Ok("app"));
        assert_eq!(built(Some("st"), None).as_deref(), Ok("app-st"));
        assert_eq!(built(None, Some("de-tail")).as_deref(), Ok("app--de-tail"));
        assert_eq!(built(Some("st"), Some("d")).as_deref(), Ok("app-st-d"));
        assert!(matches!(built(Some("s-t"), None), Err(Error::Stack(_))));
        assert!(matches!(built(Some("v001"), None), Err(Error::Push { part: "stack", .. })));
        assert!(matches!(built(None, Some("a-v0012-b")), Err(Error::Push { part: "detail", .. })));
        assert!(matches!(built(None, Some("a/b")), Err(Error::Detail(_))));
        assert_eq!(built(Some("v00"), Some("xv001")).as_deref(), Ok("app-v00-xv001"));
        for name in ["", "a-b", "a b", "..", ".a", "ä"] {
            assert!(matches!(ClusterName::new(name, None, None), Err(Error::Application(_))), "{name:?}");
        }
        let long = "d".repeat(CLUSTER_MAX);
        assert!(matches!(built(None, Some(&long)), Err(Error::TooLong(_))));
    }

    #[test]
    fn the_next_name_follows_the_newest_and_wraps() {
        let free = |_: &str| false;
        let none: &[(&str, i32)] = &[];
        assert_eq!(next("app", none, free).as_deref(), Ok("app-v000"));
        assert_eq!(
            next("app", &[("app-v007", 1), ("app-v003", 2)], free).as_deref(),
            Ok("app-v004"),
            "newest, not highest"
        );
        assert_eq!(next("app", &[("app-v999", 1)], free).as_deref(), Ok("app-v000"));
        assert_eq!(next("app", &[("app-v001234", 1)], free).as_deref(), Ok("app-v235"), "more digits are read");
        assert_eq!(next("app", &[("app-v999999", 1)], free).as_deref(), Ok("app-v000"));
        assert_eq!(next("app", &[("app", 1)], free).as_deref(), Ok("app-v001"), "without a sequence it counts as 0");
        assert_eq!(next("app", &[("app-st-v005", 1)], free).as_deref(), Ok("app-v000"), "another cluster");
        assert_eq!(
            next("app", &[("app-v004", 1), ("app-v003", 2)], free).as_deref(),
            Ok("app-v005"),
            "existing is taken"
        );
        assert_eq!(next("app", &[("app-v998", 1)], |name| name == "app-v999").as_deref(), Ok("app-v000"));
        let mut asked = 0;
        let exhausted = next("app", &[("app-v998", 1)], |_| {
            asked += 1;
            true
        });
        assert_eq!(exhausted, Err(NamesExhausted { cluster: "app".into() }));
        assert_eq!(asked, 999, "all but the one known to exist");
    }

    proptest! {
        #[test]
        fn what_is_built_reads_back(
            application in "[a-zA-Z0-9_][a-zA-Z0-9._]{0,15}",
            stack in "[a-zA-Z0-9._]{0,8}",
            detail in "[a-zA-Z0-9._~^-]{0,12}",
            sequence in proptest::option::of(0_u32..1000),
        ) {
            let Ok(cluster) = ClusterName::new(&application, Some(&stack), Some(&detail)) else {
                prop_assert!(stack.split('-').chain(detail.split('-')).any(is_push));
                return Ok(());
            };
            let text = sequence.map_or_else(|| cluster.to_string(), |sequence| cluster.server_group(sequence));
            let name = Name::parse(&text).expect("what is built is of the grammar");
            prop_assert_eq!(name.application, application);
            prop_assert_eq!(name.stack.unwrap_or_default(), stack);
            prop_assert_eq!(name.detail.unwrap_or_default(), detail);
            prop_assert_eq!(name.sequence, sequence);
            prop_assert_eq!(name.cluster, cluster.to_string());
        }

        #[test]
        fn labels_that_are_built_read_back(
            countries in proptest::option::of("[a-zA-Z0-9]{1,4}"),
            revision in proptest::option::of("[a-zA-Z0-9]{1,4}"),
            zone in proptest::option::of("[a-zA-Z0-9]{1,4}"),
        ) {
            let labels = Labels { countries, revision, zone, ..Labels::default() };
            let cluster = ClusterName::with_labels("app", Some("st"), Some("detail"), &labels).expect("valid");
            prop_assert_eq!(Labels::of(cluster.as_str()), labels.clone());
            prop_assert_eq!(Name::parse(&cluster.server_group(7)).map(|name| name.labels()), Some(labels));
        }

        #[test]
        fn no_text_panics_and_what_is_parsed_keeps_its_text(text in "\\PC{0,40}|[a-c0-9v~^._-]{0,24}") {
            if let Some(name) = Name::parse(&text) {
                let again = name.push.as_ref().map_or_else(|| name.cluster.clone(), |push| format!("{}-{push}", name.cluster));
                prop_assert_eq!(again.as_str(), text.as_str());
                let _ = name.labels();
            }
            let _ = Labels::of(&text);
            let _ = ClusterName::new(&text, Some(&text), Some(&text));
            prop_assert!(next(&text, &[(&text, 0)], |_| false).is_ok());
        }
    }
}
