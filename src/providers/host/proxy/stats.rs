//! Counters of one load balancer per (server group, second), for the last ten minutes. Each second
//! is appended as a line to a file, so a restarted host knows them; two hosts that overlap while
//! one takes over from the other append to the same file and read each other's lines.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::TrafficSecond;

/// Seconds kept.
const KEPT: i64 = 600;
/// A file larger than this is set aside whatever its age.
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;
const EXTENSION: &str = "jsonl";
const EXTENSION_BEFORE: &str = "before.jsonl";

/// The counters of one load balancer.
pub(super) struct Stats {
    path: PathBuf,
    /// Tells this process's lines from others'.
    writer: String,
    counters: Mutex<Counters>,
    /// Held while the file is read or written.
    file: Mutex<Tail>,
}

/// What became of a request.
#[derive(Debug, Clone, Copy)]
pub(super) enum Outcome {
    /// An instance answered with this status; the time to the answer's head.
    Answered(u16, Duration),
    /// None did.
    Failed,
}

#[derive(Default)]
struct Counters {
    /// Counted here.
    own: VecDeque<Second>,
    /// Read from the file: before the start, or by another process.
    other: VecDeque<Second>,
    /// Seconds up to this one are in the file.
    written: i64,
}

struct Second {
    second: i64,
    groups: Vec<Group>,
}

/// A line holds `[group, requests, by class, failed, retried, [[bucket, count] …]]` per group.
#[derive(Serialize, Deserialize)]
struct Group(Arc<str>, u64, [u64; 5], u64, u64, Vec<(u8, u64)>);

#[derive(Serialize)]
struct LineOut<'a> {
    w: &'a str,
    s: i64,
    g: &'a [Group],
}

#[derive(Deserialize)]
struct Line {
    w: String,
    s: i64,
    g: Vec<Group>,
}

/// How far the file is read.
#[derive(Default)]
struct Tail {
    offset: u64,
    first_second: Option<i64>,
}

impl Stats {
    /// Opens the counters of a load balancer, with what the directory holds of it.
    pub fn open(dir: &Path, load_balancer: &str) -> Self {
        let stats = Self {
            path: dir.join(format!("{}.{EXTENSION}", encode(load_balancer))),
            writer: uuid::Uuid::new_v4().simple().to_string()[..12].to_owned(),
            counters: Mutex::default(),
            file: Mutex::default(),
        };
        stats.load_before();
        stats.read_new(&mut lock(&stats.file));
        stats
    }

    /// Names of the load balancers of which a directory holds counters.
    pub fn names_in(dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            let file = entry?.file_name();
            let name = file.to_str().and_then(|file| file.strip_suffix(EXTENSION)?.strip_suffix('.'));
            if let Some(name) = name.filter(|name| !name.ends_with(".before")).and_then(decode) {
                names.push(name);
            }
        }
        Ok(names)
    }

    /// Counts a request.
    pub fn record(&self, now: i64, group: &Arc<str>, outcome: Outcome) {
        let mut counters = lock(&self.counters);
        let counted = counters.at(now, group);
        counted.1 += 1;
        match outcome {
            Outcome::Answered(status, latency) => {
                counted.2[usize::from(status / 100).clamp(1, 5) - 1] += 1;
                add(&mut counted.5, bucket_of(latency), 1);
            }
            Outcome::Failed => counted.3 += 1,
        }
    }

    /// Counts that a request is tried again on another instance than one of this group.
    pub fn record_retry(&self, now: i64, group: &Arc<str>) {
        lock(&self.counters).at(now, group).4 += 1;
    }

    /// Seconds from `since` on, oldest first.
    pub fn traffic(&self, now: i64, since: i64) -> Vec<TrafficSecond> {
        let since = since.max(now - KEPT + 1);
        let counters = lock(&self.counters);
        let mut merged: BTreeMap<(i64, Arc<str>), Group> = BTreeMap::new();
        for second in counters.other.iter().chain(&counters.own).filter(|second| second.second >= since) {
            for group in &second.groups {
                merged
                    .entry((second.second, Arc::clone(&group.0)))
                    .or_insert_with(|| Group::new(&group.0))
                    .merge(group);
            }
        }
        merged
            .into_iter()
            .map(|((second, server_group), group)| TrafficSecond {
                second,
                server_group: server_group.to_string(),
                requests: group.1,
                by_class: group.2,
                failed: group.3,
                retried: group.4,
                latency: group.5.iter().map(|(bucket, count)| (upper_bound(*bucket), *count)).collect(),
            })
            .collect()
    }

    /// Appends the finished seconds (with `whole`, the one that runs too) and reads what others appended.
    pub fn flush(&self, now: i64, whole: bool) -> io::Result<()> {
        let up_to = if whole { now } else { now - 1 };
        let mut file = lock(&self.file);
        self.read_new(&mut file);
        let mut lines = Vec::new();
        {
            let mut counters = lock(&self.counters);
            counters.forget_before(now - KEPT);
            let written = counters.written;
            for second in counters.own.iter().filter(|second| second.second > written && second.second <= up_to) {
                serde_json::to_writer(&mut lines, &LineOut { w: &self.writer, s: second.second, g: &second.groups })?;
                lines.push(b'\n');
            }
            counters.written = counters.written.max(up_to);
        }
        if lines.is_empty() {
            return Ok(());
        }
        self.set_aside_if_old(&mut file, now)?;
        // One write to a file opened for appending: whole lines, also beside another process.
        OpenOptions::new().create(true).append(true).open(&self.path)?.write_all(&lines)
    }

    /// Removes what the directory holds.
    pub fn delete(&self) {
        let _file = lock(&self.file);
        for path in [self.path.clone(), self.path_before()] {
            if let Err(error) = fs::remove_file(&path)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(path = %path.display(), %error, "counters of a removed load balancer stay on disk");
            }
        }
    }

    fn path_before(&self) -> PathBuf {
        self.path.with_extension(EXTENSION_BEFORE)
    }

    fn load_before(&self) {
        let Ok(file) = File::open(self.path_before()) else { return };
        let mut counters = lock(&self.counters);
        for line in BufReader::new(file).lines().map_while(Result::ok) {
            if let Ok(line) = serde_json::from_str::<Line>(&line) {
                counters.add_other(line);
            }
        }
    }

    /// Takes in the lines that others appended since the last look.
    fn read_new(&self, tail: &mut Tail) {
        let Ok(mut file) = File::open(&self.path) else { return };
        let length = file.metadata().map_or(0, |metadata| metadata.len());
        if length < tail.offset {
            *tail = Tail::default();
        }
        let mut text = Vec::new();
        if file.seek(SeekFrom::Start(tail.offset)).is_err()
            || file.take(FILE_BYTES_MAX * 2).read_to_end(&mut text).is_err()
        {
            return;
        }
        // A line without its end is still being written, or was cut by a crash; it is looked at
        // again next time, together with what follows it.
        let Some(end) = text.iter().rposition(|byte| *byte == b'\n') else { return };
        tail.offset += end as u64 + 1;
        let mut counters = lock(&self.counters);
        for line in text[..end].split(|byte| *byte == b'\n') {
            let Ok(line) = serde_json::from_slice::<Line>(line) else { continue };
            tail.first_second.get_or_insert(line.s);
            if line.w != self.writer {
                counters.add_other(line);
            }
        }
    }

    /// Begins a new file when the old one's first second is out of the window.
    fn set_aside_if_old(&self, tail: &mut Tail, now: i64) -> io::Result<()> {
        let old = tail.first_second.is_some_and(|first| first < now - KEPT);
        if !old && tail.offset < FILE_BYTES_MAX {
            return Ok(());
        }
        *tail = Tail::default();
        match fs::rename(&self.path, self.path_before()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

impl Counters {
    fn at(&mut self, now: i64, group: &Arc<str>) -> &mut Group {
        // Never into a second that is in the file already, nor back when the machine's clock is.
        let newest = self.own.back().map_or(i64::MIN, |second| second.second);
        let second = now.max(self.written + 1).max(newest);
        if second != newest {
            self.own.push_back(Second { second, groups: Vec::new() });
            if self.own.len() > KEPT as usize {
                self.own.pop_front();
            }
        }
        let last = self.own.len() - 1;
        let groups = &mut self.own[last].groups;
        let index = groups.iter().position(|counted| counted.0 == *group).unwrap_or_else(|| {
            groups.push(Group::new(group));
            groups.len() - 1
        });
        &mut groups[index]
    }

    fn add_other(&mut self, line: Line) {
        let index = self.other.partition_point(|second| second.second < line.s);
        if self.other.get(index).is_none_or(|second| second.second != line.s) {
            self.other.insert(index, Second { second: line.s, groups: Vec::new() });
        }
        let groups = &mut self.other[index].groups;
        for group in line.g {
            match groups.iter_mut().find(|counted| counted.0 == group.0) {
                Some(counted) => counted.merge(&group),
                None => groups.push(group),
            }
        }
        while self.other.len() > KEPT as usize {
            self.other.pop_front();
        }
    }

    fn forget_before(&mut self, oldest: i64) {
        for seconds in [&mut self.own, &mut self.other] {
            while seconds.front().is_some_and(|second| second.second <= oldest) {
                seconds.pop_front();
            }
        }
    }
}

impl Group {
    fn new(name: &Arc<str>) -> Self {
        Self(Arc::clone(name), 0, [0; 5], 0, 0, Vec::new())
    }

    fn merge(&mut self, other: &Self) {
        self.1 += other.1;
        for (mine, theirs) in self.2.iter_mut().zip(other.2) {
            *mine += theirs;
        }
        self.3 += other.3;
        self.4 += other.4;
        for (bucket, count) in &other.5 {
            add(&mut self.5, *bucket, *count);
        }
    }
}

fn add(latency: &mut Vec<(u8, u64)>, bucket: u8, count: u64) {
    match latency.binary_search_by_key(&bucket, |(bucket, _)| *bucket) {
        Ok(index) => latency[index].1 += count,
        Err(index) => latency.insert(index, (bucket, count)),
    }
}

/// Four buckets per doubling of microseconds: within 25 % of the value.
fn bucket_of(latency: Duration) -> u8 {
    let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX).clamp(1, (1 << 40) - 1);
    if micros < 4 {
        return micros as u8;
    }
    let exponent = micros.ilog2();
    let quarter = (micros >> (exponent - 2)) & 3;
    ((exponent - 1) * 4) as u8 + quarter as u8
}

/// The largest number of microseconds that falls into a bucket.
fn upper_bound(bucket: u8) -> u64 {
    if bucket < 4 {
        return u64::from(bucket);
    }
    let exponent = u32::from(bucket / 4) + 1;
    let quarter = u64::from(bucket % 4);
    ((4 + quarter + 1) << (exponent - 2)) - 1
}

/// A file name for any name of a load balancer.
fn encode(name: &str) -> String {
    let mut file = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_') {
            file.push(char::from(byte));
        } else {
            file.push_str(&format!("%{byte:02x}"));
        }
    }
    file
}

fn decode(file: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(file.len());
    let mut rest = file;
    while let Some((plain, coded)) = rest.split_once('%') {
        bytes.extend_from_slice(plain.as_bytes());
        bytes.push(u8::from_str_radix(coded.get(..2)?, 16).ok()?);
        rest = &coded[2..];
    }
    bytes.extend_from_slice(rest.as_bytes());
    String::from_utf8(bytes).ok()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory of its own, gone at the end.
    struct Dir(PathBuf);
    impl Dir {
        fn new() -> Self {
            let path = std::env::temp_dir().join(format!("gennaker-stats-{}", uuid::Uuid::new_v4().simple()));
            fs::create_dir_all(&path).expect("a directory");
            Self(path)
        }
    }
    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    const MILLI: Duration = Duration::from_millis(1);

    fn requests(stats: &Stats, now: i64) -> Vec<(i64, String, u64)> {
        stats.traffic(now, 0).into_iter().map(|second| (second.second, second.server_group, second.requests)).collect()
    }

    #[test]
    fn every_latency_lies_within_a_quarter_of_its_bucket() {
        let mut before = None;
        for micros in (1..100_000_u64).chain((1..2_000).map(|step| step * 1_000_003)) {
            let bucket = bucket_of(Duration::from_micros(micros));
            let bound = upper_bound(bucket);
            assert!(bound >= micros && bound <= micros + micros / 4, "{micros} µs in a bucket up to {bound}");
            assert!(before <= Some(bucket), "buckets rise");
            before = Some(bucket);
        }
        assert!(bucket_of(Duration::MAX) < u8::MAX);
    }

    #[test]
    fn counters_come_back_and_lines_of_two_writers_add_up() {
        let dir = Dir::new();
        let (old, new): (Arc<str>, Arc<str>) = ("app-v000".into(), "app-v001".into());
        let first = Stats::open(&dir.0, "app");
        first.record(1000, &old, Outcome::Answered(200, MILLI));
        first.record(1001, &old, Outcome::Answered(503, MILLI));
        first.record_retry(1001, &old);
        first.flush(1002, false).expect("written");
        let second = Stats::open(&dir.0, "app");
        assert_eq!(requests(&second, 1002), [(1000, "app-v000".into(), 1), (1001, "app-v000".into(), 1)]);
        first.record(1002, &old, Outcome::Failed);
        second.record(1002, &old, Outcome::Answered(200, MILLI));
        second.record(1002, &new, Outcome::Answered(101, MILLI));
        first.flush(1002, true).expect("written");
        second.flush(1003, false).expect("written");
        assert_eq!(
            requests(&second, 1003),
            [
                (1000, "app-v000".into(), 1),
                (1001, "app-v000".into(), 1),
                (1002, "app-v000".into(), 2),
                (1002, "app-v001".into(), 1)
            ]
        );
        first.flush(1003, true).expect("read");
        assert_eq!(requests(&first, 1003), requests(&second, 1003), "each knows the other's");
        assert_eq!(requests(&Stats::open(&dir.0, "app"), 1003), requests(&second, 1003));
        let traffic = second.traffic(1003, 1001);
        assert_eq!((traffic[0].by_class, traffic[0].retried), ([0, 0, 0, 0, 1], 1));
        assert_eq!((traffic[1].failed, traffic[1].by_class), (1, [0, 1, 0, 0, 0]));
        assert_eq!(traffic[0].latency, [(1023, 1)]);
        assert_eq!(Stats::names_in(&dir.0).expect("read"), ["app"]);
        second.delete();
        assert!(Stats::names_in(&dir.0).expect("read").is_empty());
    }

    #[test]
    fn ten_minutes_are_kept_and_the_file_does_not_grow_without_end() {
        let dir = Dir::new();
        let group: Arc<str> = "app-v000".into();
        let stats = Stats::open(&dir.0, "app.x~1");
        for now in 0..3_000 {
            stats.record(now, &group, Outcome::Answered(200, MILLI));
            stats.flush(now, false).expect("written");
        }
        let again = Stats::open(&dir.0, "app.x~1");
        stats.flush(3_000, true).expect("written");
        for stats in [&stats, &again] {
            let seconds = requests(stats, 3_000);
            assert!((598..=600).contains(&seconds.len()), "{} seconds", seconds.len());
            assert_eq!(seconds.first().map(|(second, ..)| *second), Some(2_401));
        }
        let lines: usize = fs::read_dir(&dir.0)
            .expect("read")
            .map(|file| fs::read_to_string(file.expect("read").path()).expect("read").lines().count())
            .sum();
        assert!(lines < 1_300, "{lines} lines on disk");
        assert_eq!(Stats::names_in(&dir.0).expect("read"), ["app.x~1"]);
    }

    #[test]
    fn a_torn_line_is_skipped() {
        let dir = Dir::new();
        let group: Arc<str> = "app-v000".into();
        let stats = Stats::open(&dir.0, "app");
        stats.record(10, &group, Outcome::Answered(200, MILLI));
        stats.flush(11, false).expect("written");
        let mut file = OpenOptions::new().append(true).open(dir.0.join("app.jsonl")).expect("open");
        file.write_all(b"{\"w\":\"x\",\"s\":11,\"g\":[[\"app").expect("written");
        let again = Stats::open(&dir.0, "app");
        assert_eq!(requests(&again, 12).len(), 1);
        again.record(12, &group, Outcome::Answered(200, MILLI));
        again.record(13, &group, Outcome::Answered(200, MILLI));
        again.flush(13, false).expect("written");
        again.flush(14, false).expect("written");
        // The line written onto the torn one is lost with it, the next one is whole.
        assert_eq!(requests(&Stats::open(&dir.0, "app"), 14).last(), Some(&(13, "app-v000".into(), 1)));
    }

    #[test]
    fn names_of_files_read_back() {
        for name in ["app", "app-st~1^2", "..", "a/b", "ä%2e", "app.before"] {
            let file = encode(name);
            assert!(!file.contains(['/', '.']), "{file}");
            assert_eq!(decode(&file).as_deref(), Some(name));
        }
        assert_eq!(decode("a%zz"), None);
        assert_eq!(decode("a%"), None);
        assert_eq!(decode("a%€"), None);
    }
}
