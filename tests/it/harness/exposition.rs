//! Prometheus' text form, read strictly.

use std::collections::BTreeMap;

use anyhow::{Context as _, bail, ensure};

#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

/// All that a scrape gave.
#[derive(Debug, Default)]
pub struct Exposition {
    pub samples: Vec<Sample>,
}

#[derive(Default)]
struct Family {
    help: bool,
    kind: String,
}

impl Exposition {
    /// Every sample belongs to a family with HELP and TYPE, given before it, once; names follow the
    /// rules; no series is there twice; histograms hold together.
    pub fn read(text: &str) -> anyhow::Result<Self> {
        ensure!(text.ends_with('\n'), "it ends with a whole line");
        let mut families: BTreeMap<String, Family> = BTreeMap::new();
        let mut samples: Vec<Sample> = Vec::new();
        for line in text.lines().filter(|line| !line.is_empty()) {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').with_context(|| format!("no help: {line}"))?;
                ensure!(!help.trim().is_empty(), "{line}");
                let family = families.entry(name.to_owned()).or_default();
                ensure!(!family.help, "two helps: {line}");
                family.help = true;
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').with_context(|| format!("no type: {line}"))?;
                ensure!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                let family = families.entry(name.to_owned()).or_default();
                ensure!(family.kind.is_empty(), "two types: {line}");
                family.kind = kind.to_owned();
                named_well(name, kind)?;
            } else {
                ensure!(!line.starts_with('#'), "{line}");
                samples.push(sample(line).with_context(|| line.to_owned())?);
            }
        }
        for sample in &samples {
            let (name, family) = family(&families, &sample.name).with_context(|| format!("no TYPE: {sample:?}"))?;
            ensure!(family.help, "no HELP: {sample:?}");
            ensure!(!family.kind.is_empty(), "no TYPE: {sample:?}");
            ensure!((family.kind == "histogram") == (*name != sample.name), "{sample:?}");
            ensure!(family.kind == "gauge" || sample.value >= 0.0, "{sample:?}");
        }
        for (index, sample) in samples.iter().enumerate() {
            let again = samples[index + 1..].iter().any(|s| s.name == sample.name && s.labels == sample.labels);
            ensure!(!again, "twice: {sample:?}");
        }
        let read = Self { samples };
        for (name, _) in families.iter().filter(|(_, family)| family.kind == "histogram") {
            read.histogram(name)?;
        }
        Ok(read)
    }

    /// Buckets rise, and the last is the count.
    fn histogram(&self, name: &str) -> anyhow::Result<()> {
        for count in self.of(&format!("{name}_count")) {
            let of_it = |sample: &&Sample| {
                let rest = sample.labels.iter().filter(|(label, _)| *label != "le");
                rest.eq(count.labels.iter())
            };
            let mut last = (f64::NEG_INFINITY, 0.0);
            for bucket in self.of(&format!("{name}_bucket")).filter(of_it) {
                let bound = match bucket.labels.get("le").context("le")?.as_str() {
                    "+Inf" => f64::INFINITY,
                    number => number.parse()?,
                };
                ensure!(bound > last.0 && bucket.value >= last.1, "{name}: {bucket:?}");
                last = (bound, bucket.value);
            }
            ensure!(last == (f64::INFINITY, count.value), "{name}: {last:?} {count:?}");
        }
        Ok(())
    }

    pub fn has(&self, name: &str) -> bool {
        self.of(name).next().is_some()
    }

    pub fn of(&self, name: &str) -> impl Iterator<Item = &Sample> {
        self.samples.iter().filter(move |sample| sample.name == name)
    }

    /// Over all series with these labels.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let fits = |sample: &&Sample| {
            labels.iter().all(|(label, value)| sample.labels.get(*label).is_some_and(|found| found == value))
        };
        self.of(name).filter(fits).map(|sample| sample.value).sum()
    }
}

fn family<'a>(families: &'a BTreeMap<String, Family>, name: &'a str) -> Option<(&'a str, &'a Family)> {
    if let Some(family) = families.get(name) {
        return Some((name, family));
    }
    ["_bucket", "_sum", "_count"].iter().find_map(|suffix| {
        let name = name.strip_suffix(suffix)?;
        families.get(name).filter(|family| family.kind == "histogram").map(|family| (name, family))
    })
}

fn named_well(name: &str, kind: &str) -> anyhow::Result<()> {
    ensure!(name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'), "{name}");
    ensure!(name.starts_with("gennaker_") || name.starts_with("process_"), "{name}");
    ensure!((kind == "counter") == name.ends_with("_total"), "{name} is a {kind}");
    ensure!(kind != "histogram" || name.ends_with("_seconds") || name.ends_with("_commits"), "{name} has a unit");
    Ok(())
}

fn sample(line: &str) -> anyhow::Result<Sample> {
    let end = line.find(['{', ' ']).context("a name")?;
    let (name, rest) = line.split_at(end);
    let mut labels = BTreeMap::new();
    let mut rest = rest;
    if let Some(mut inner) = rest.strip_prefix('{') {
        loop {
            let (label, value) = inner.split_once("=\"").context("a label")?;
            let mut text = String::new();
            let mut chars = value.char_indices();
            let after = loop {
                match chars.next().context("the end of a value")? {
                    (at, '"') => break at + 1,
                    (_, '\\') => match chars.next().context("an escape")?.1 {
                        'n' => text.push('\n'),
                        c @ ('"' | '\\') => text.push(c),
                        c => bail!("escape {c}"),
                    },
                    (_, c) => text.push(c),
                }
            };
            ensure!(labels.insert(label.to_owned(), text).is_none(), "label {label} twice");
            match value[after..].split_at_checked(1).context("more")? {
                (",", more) => inner = more,
                ("}", more) => {
                    rest = more;
                    break;
                }
                _ => bail!("neither , nor }}"),
            }
        }
    }
    let value = rest.strip_prefix(' ').context("a space")?;
    Ok(Sample { name: name.to_owned(), labels, value: value.parse()? })
}
