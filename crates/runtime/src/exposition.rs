//! Reads Prometheus' text format (0.0.4): what processes write on `/metrics`.
//!
//! Strict and bounded, because the text comes from other processes: a line is a sample, a comment or an error, and
//! the next line is read either way, so the caller decides whether one bad line spoils a scrape. Nothing is copied
//! but label values with escapes. Knows no metric's meaning; [`Histogram`] computes what `histogram_quantile` does.

use std::borrow::Cow;

/// A longer line is an error. The longest that our proxy writes is a tenth of it.
pub const LINE_BYTES_MAX: usize = 16 << 10;
/// More labels than this on one sample are an error.
pub const LABELS_MAX: usize = 64;

/// One measured value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample<'a> {
    pub name: &'a str,
    pub labels: Labels<'a>,
    pub value: f64,
    /// When it was measured, where that is not the time of the scrape.
    pub timestamp_ms: Option<i64>,
}

/// The labels of a sample: well-formed and without duplicates, in the order in which they were written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Labels<'a>(&'a str);

/// A line that is neither a sample nor a comment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {fault}")]
pub struct Malformed {
    /// Counted from 1.
    pub line: usize,
    pub fault: Fault,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("not UTF-8")]
    Encoding,
    #[error("longer than {LINE_BYTES_MAX} bytes")]
    TooLong,
    #[error("more than {LABELS_MAX} labels")]
    TooManyLabels,
    #[error("does not begin with a metric's name")]
    Name,
    #[error("its labels are not name=\"value\", separated by commas")]
    Labels,
    #[error("a label is given twice")]
    DuplicateLabel,
    #[error("its value is not a number")]
    Value,
    #[error("its timestamp is not a number of milliseconds")]
    Timestamp,
    #[error("unknown metric type")]
    Type,
    #[error("more text after the sample")]
    Trailing,
}

/// The samples of an exposition, in its order.
pub fn samples<Text: AsRef<[u8]> + ?Sized>(exposition: &Text) -> Samples<'_> {
    Samples {
        rest: exposition.as_ref(),
        line: 0,
    }
}

/// See [`samples`].
#[derive(Clone, Debug)]
pub struct Samples<'a> {
    rest: &'a [u8],
    line: usize,
}

impl<'a> Iterator for Samples<'a> {
    type Item = Result<Sample<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.rest.is_empty() {
            let end = self.rest.iter().position(|byte| *byte == b'\n');
            let (line, rest) = match end {
                Some(end) => (&self.rest[..end], &self.rest[end + 1..]),
                None => (self.rest, &self.rest[self.rest.len()..]),
            };
            self.rest = rest;
            self.line += 1;
            if let Some(read) = read_line(line).transpose() {
                let line = self.line;
                return Some(read.map_err(|fault| Malformed { line, fault }));
            }
        }
        None
    }
}

impl<'a> Labels<'a> {
    pub fn iter(&self) -> impl Iterator<Item = (&'a str, Cow<'a, str>)> + use<'a> {
        let mut rest = self.0;
        // The text was read once before, so it cannot fail here.
        std::iter::from_fn(move || {
            let (name, value, after) = read_label(rest).ok()??;
            rest = after;
            Some((name, unescaped(value)))
        })
    }

    pub fn get(&self, name: &str) -> Option<Cow<'a, str>> {
        let mut rest = self.0;
        while let Ok(Some((known, value, after))) = read_label(rest) {
            if known == name {
                return Some(unescaped(value));
            }
            rest = after;
        }
        None
    }
}

/// A sample, or nothing for a comment and an empty line.
fn read_line(line: &[u8]) -> Result<Option<Sample<'_>>, Fault> {
    if line.len() > LINE_BYTES_MAX {
        return Err(Fault::TooLong);
    }
    let line = std::str::from_utf8(line).map_err(|_| Fault::Encoding)?;
    let line = line.trim_matches(BLANK);
    if let Some(comment) = line.strip_prefix('#') {
        return read_comment(comment).map(|()| None);
    }
    if line.is_empty() {
        return Ok(None);
    }
    let (name, rest) = read_name(line, ':').ok_or(Fault::Name)?;
    let rest = rest.trim_start_matches(BLANK);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(inside) => read_labels(inside)?,
        None => (Labels::default(), rest),
    };
    let mut words = rest.split(BLANK).filter(|word| !word.is_empty());
    let value = words
        .next()
        .and_then(|word| word.parse().ok())
        .ok_or(Fault::Value)?;
    let timestamp_ms = words
        .next()
        .map(str::parse)
        .transpose()
        .map_err(|_| Fault::Timestamp)?;
    match words.next() {
        None => Ok(Some(Sample {
            name,
            labels,
            value,
            timestamp_ms,
        })),
        Some(_) => Err(Fault::Trailing),
    }
}

const BLANK: [char; 2] = [' ', '\t'];

/// Only `TYPE` can be wrong; other comments may say anything.
fn read_comment(comment: &str) -> Result<(), Fault> {
    let mut words = comment.split(BLANK).filter(|word| !word.is_empty());
    if words.next() != Some("TYPE") {
        return Ok(());
    }
    match words.next().and_then(|name| read_name(name, ':')) {
        Some((_, "")) => {}
        _ => return Err(Fault::Name),
    }
    match (words.next(), words.next()) {
        (Some("counter" | "gauge" | "histogram" | "summary" | "untyped"), None) => Ok(()),
        _ => Err(Fault::Type),
    }
}

/// A name and what follows it. Metrics may have colons in theirs, labels may not.
fn read_name(text: &str, also: char) -> Option<(&str, &str)> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == also;
    let end = text.find(|c| !is_name(c)).unwrap_or(text.len());
    let starts = text.chars().next().is_some_and(|c| !c.is_ascii_digit());
    (end > 0 && starts).then(|| text.split_at(end))
}

/// All labels up to the closing brace, and what follows it.
fn read_labels(inside: &str) -> Result<(Labels<'_>, &str), Fault> {
    let mut names = [""; LABELS_MAX];
    let mut count = 0;
    let mut rest = inside;
    while let Some((name, _, after)) = read_label(rest)? {
        if names[..count].contains(&name) {
            return Err(Fault::DuplicateLabel);
        }
        *names.get_mut(count).ok_or(Fault::TooManyLabels)? = name;
        count += 1;
        rest = after;
    }
    let after = rest
        .trim_start_matches(BLANK)
        .strip_prefix('}')
        .ok_or(Fault::Labels)?;
    // The brace stays, so that reading the labels again ends at it.
    let labels = &inside[..inside.len() - after.len()];
    Ok((Labels(labels), after))
}

/// A label's name, its escaped value and what follows its comma; nothing before a closing brace.
fn read_label(text: &str) -> Result<Option<(&str, &str, &str)>, Fault> {
    let text = text.trim_start_matches(BLANK);
    if text.starts_with('}') {
        return Ok(None);
    }
    let (name, rest) = read_name(text, '_').ok_or(Fault::Labels)?;
    let rest = rest.trim_start_matches(BLANK).strip_prefix('=');
    let rest = rest.and_then(|rest| rest.trim_start_matches(BLANK).strip_prefix('"'));
    let quoted = rest.ok_or(Fault::Labels)?;
    let end = closing_quote(quoted).ok_or(Fault::Labels)?;
    let after = quoted[end + 1..].trim_start_matches(BLANK);
    let after = match after.strip_prefix(',') {
        Some(after) => after,
        None if after.starts_with('}') => after,
        None => return Err(Fault::Labels),
    };
    Ok(Some((name, &quoted[..end], after)))
}

/// Where a quoted value ends. Only the three escapes of the format are known.
fn closing_quote(text: &str) -> Option<usize> {
    let mut bytes = text.bytes().enumerate();
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'"' => return Some(at),
            b'\\' => match bytes.next()?.1 {
                b'\\' | b'"' | b'n' => {}
                _ => return None,
            },
            _ => {}
        }
    }
    None
}

fn unescaped(value: &str) -> Cow<'_, str> {
    if !value.contains('\\') {
        return Cow::Borrowed(value);
    }
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some('n') => out.push('\n'),
                Some(other) => out.push(other),
                None => {}
            },
            c => out.push(c),
        }
    }
    Cow::Owned(out)
}

/// How much a counter grew between two looks. One that went back was restarted and counts from zero.
pub fn increase(before: f64, now: f64) -> f64 {
    if now >= before { now - before } else { now }
}

/// Cumulative counts by upper bound: the `_bucket` series of one histogram, or the sum of several.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    /// Ascending by bound.
    buckets: Vec<(f64, f64)>,
}

impl Histogram {
    /// Adds to the bucket with this upper bound, the value of its label `le`.
    pub fn add(&mut self, le: f64, count: f64) {
        match self.buckets.binary_search_by(|(bound, _)| bound.total_cmp(&le)) {
            Ok(at) => self.buckets[at].1 += count,
            Err(at) => self.buckets.insert(at, (le, count)),
        }
    }

    /// Adds every bucket of another.
    pub fn merge(&mut self, other: &Self) {
        for (le, count) in &other.buckets {
            self.add(*le, *count);
        }
    }

    /// What was observed between two looks.
    pub fn since(&self, before: &Self) -> Self {
        let grown = |(le, count): &(f64, f64)| (*le, increase(before.up_to(*le), *count));
        Self {
            buckets: self.buckets.iter().map(grown).collect(),
        }
    }

    fn up_to(&self, le: f64) -> f64 {
        let at = self.buckets.binary_search_by(|(bound, _)| bound.total_cmp(&le));
        at.map_or(0.0, |at| self.buckets[at].1)
    }

    /// Prometheus' `histogram_quantile`: interpolated inside the bucket that holds the quantile, the highest finite
    /// bound where that is the last one. Nothing where Prometheus says NaN: no observation, or no `+Inf` bucket.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let (last, finite) = self.buckets.split_last()?;
        if last.0 != f64::INFINITY || !(0.0..=1.0).contains(&q) {
            return None;
        }
        let (highest, _) = finite.last()?;
        // Sums of series that were scraped apart may be uneven; counts are made monotonic from below.
        let total = self.buckets.iter().map(|(_, count)| *count).fold(0.0, f64::max);
        if total <= 0.0 {
            return None;
        }
        let rank = q * total;
        let (mut lower, mut below) = (0.0, 0.0_f64);
        for (i, (bound, count)) in finite.iter().enumerate() {
            let count = count.max(below);
            if count >= rank {
                if i == 0 && *bound <= 0.0 {
                    return Some(*bound);
                }
                let share = (rank - below) / (count - below);
                return Some(lower + (bound - lower) * share).filter(|value| !value.is_nan());
            }
            (lower, below) = (*bound, count);
        }
        Some(*highest)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::metrics::escape;

    type Owned = (String, Vec<(String, String)>, f64, Option<i64>);

    fn owned(sample: Sample<'_>) -> Owned {
        let labels = sample.labels.iter();
        let labels = labels.map(|(name, value)| (name.to_owned(), value.into_owned()));
        (
            sample.name.to_owned(),
            labels.collect(),
            sample.value,
            sample.timestamp_ms,
        )
    }

    fn read(text: &str) -> Vec<Result<Owned, Malformed>> {
        samples(text).map(|read| read.map(owned)).collect()
    }

    fn sample(name: &str, labels: &[(&str, &str)], value: f64) -> Result<Owned, Malformed> {
        let labels = labels
            .iter()
            .map(|(name, value)| ((*name).into(), (*value).into()));
        Ok((name.into(), labels.collect(), value, None))
    }

    #[test]
    fn the_formats_own_example_is_read() {
        let text = r#"
# HELP http_requests_total The total number of HTTP requests.
# TYPE http_requests_total counter
http_requests_total{method="post",code="200"} 1027 1395066363000
http_requests_total{method="post",code="400"}    3 1395066363000

# Escaping in label values:
msdos_file_access_time_seconds{path="C:\\DIR\\FILE.TXT",error="Cannot find file:\n\"FILE.TXT\""} 1.458255915e9
metric_without_timestamp_and_labels 12.47
something_weird{problem="division by zero"} +Inf -3982045
# TYPE http_request_duration_seconds histogram
http_request_duration_seconds_bucket{le="+Inf"} 144320
"#;
        let timed = |sample: Result<Owned, Malformed>, at| {
            sample.map(|(name, labels, value, _)| (name, labels, value, Some(at)))
        };
        let requests = |code, value| {
            sample(
                "http_requests_total",
                &[("method", "post"), ("code", code)],
                value,
            )
        };
        assert_eq!(
            read(text),
            [
                timed(requests("200", 1027.0), 1_395_066_363_000),
                timed(requests("400", 3.0), 1_395_066_363_000),
                sample(
                    "msdos_file_access_time_seconds",
                    &[
                        ("path", "C:\\DIR\\FILE.TXT"),
                        ("error", "Cannot find file:\n\"FILE.TXT\"")
                    ],
                    1.458255915e9
                ),
                sample("metric_without_timestamp_and_labels", &[], 12.47),
                timed(
                    sample(
                        "something_weird",
                        &[("problem", "division by zero")],
                        f64::INFINITY
                    ),
                    -3_982_045
                ),
                sample(
                    "http_request_duration_seconds_bucket",
                    &[("le", "+Inf")],
                    144_320.0
                ),
            ]
        );
    }

    #[test]
    fn blanks_and_a_last_comma_are_allowed() {
        for text in [
            "a{b=\"c\"} 1",
            " a { b = \"c\" , } 1",
            "a{b=\"c\",}\t1\t",
            "a{b=\"c\"}1",
        ] {
            assert_eq!(read(text), [sample("a", &[("b", "c")], 1.0)], "{text}");
        }
        for text in ["a 1", "a{} 1", "a{ }1"] {
            assert_eq!(read(text), [sample("a", &[], 1.0)], "{text}");
        }
    }

    #[test]
    fn a_malformed_line_is_told_and_the_next_is_read() {
        let many: String = (0..=LABELS_MAX).map(|i| format!("l{i}=\"\",")).collect();
        for (line, fault) in [
            ("1a 1", Fault::Name),
            ("{a=\"b\"} 1", Fault::Name),
            ("a", Fault::Value),
            ("a{b=\"c\"}", Fault::Value),
            ("a one", Fault::Value),
            ("a 1 now", Fault::Timestamp),
            ("a 1 2 3", Fault::Trailing),
            ("a{b=\"c\"", Fault::Labels),
            ("a{b=\"c", Fault::Labels),
            ("a{b=\"\\t\"} 1", Fault::Labels),
            ("a{b} 1", Fault::Labels),
            ("a{,} 1", Fault::Labels),
            ("a{b=\"c\",,d=\"e\"} 1", Fault::Labels),
            ("a{b=\"c\"d=\"e\"} 1", Fault::Labels),
            ("a{b:c=\"d\"} 1", Fault::Labels),
            ("a{b=\"c\",b=\"d\"} 1", Fault::DuplicateLabel),
            ("# TYPE a number", Fault::Type),
            ("# TYPE 1a gauge", Fault::Name),
            (&format!("a{{{many}}} 1"), Fault::TooManyLabels),
            (
                &format!("a{{b=\"{}\"}} 1", "x".repeat(LINE_BYTES_MAX)),
                Fault::TooLong,
            ),
        ] {
            let expected = [Err(Malformed { line: 1, fault }), sample("next", &[], 2.0)];
            assert_eq!(read(&format!("{line}\nnext 2\n")), expected, "{line}");
        }
        let first = samples(b"a{b=\"\xff\"} 1".as_slice()).next();
        let fault = Fault::Encoding;
        assert_eq!(first, Some(Err(Malformed { line: 1, fault })));
    }

    #[test]
    fn not_a_number_is_a_value() {
        assert!(matches!(samples("a NaN").next(), Some(Ok(sample)) if sample.value.is_nan()));
    }

    fn histogram(buckets: &[(f64, f64)]) -> Histogram {
        let mut histogram = Histogram::default();
        for (le, count) in buckets {
            histogram.add(*le, *count);
        }
        histogram
    }

    #[test]
    fn quantiles_are_those_of_prometheus() {
        let inf = f64::INFINITY;
        let even = histogram(&[(inf, 100.0), (10.0, 100.0), (1.0, 50.0)]);
        assert_eq!(even.quantile(0.5), Some(1.0));
        assert_eq!(even.quantile(0.75), Some(5.5));
        assert_eq!(even.quantile(1.0), Some(10.0));
        let high = histogram(&[(1.0, 10.0), (inf, 100.0)]);
        assert_eq!(high.quantile(0.99), Some(1.0), "the highest finite bound");
        assert_eq!(histogram(&[(1.0, 0.0), (inf, 0.0)]).quantile(0.5), None);
        assert_eq!(histogram(&[(1.0, 5.0)]).quantile(0.5), None);
        assert_eq!(histogram(&[(inf, 5.0)]).quantile(0.5), None);
        assert_eq!(Histogram::default().quantile(0.5), None);
        assert_eq!(even.quantile(1.5), None);
        let uneven = histogram(&[(1.0, 6.0), (2.0, 4.0), (inf, 8.0)]);
        assert_eq!(uneven.quantile(1.0), Some(2.0));
    }

    #[test]
    fn a_restarted_histogram_counts_from_zero() {
        let inf = f64::INFINITY;
        let before = histogram(&[(1.0, 10.0), (inf, 20.0)]);
        let after = histogram(&[(1.0, 11.0), (inf, 24.0)]);
        assert_eq!(after.since(&before), histogram(&[(1.0, 1.0), (inf, 4.0)]));
        assert_eq!(before.since(&after), before);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            name in "[a-zA-Z_:][a-zA-Z0-9_:]{0,20}",
            labels in proptest::collection::btree_map("[a-zA-Z_][a-zA-Z0-9_]{0,9}", "(?s).{0,20}", 0..9),
            value in any::<f64>().prop_filter("compared below", |value| !value.is_nan()),
            timestamp in any::<Option<i64>>(),
        ) {
            let mut line = format!("{name}{{");
            for (name, value) in &labels {
                line += &format!("{name}=\"");
                escape(value, &mut line);
                line += "\",";
            }
            line += &format!("}} {value}");
            if let Some(timestamp) = timestamp {
                line += &format!(" {timestamp}");
            }
            let labels = labels.into_iter().collect();
            prop_assert_eq!(read(&line), [Ok((name, labels, value, timestamp))]);
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            samples(&bytes).for_each(|read| _ = read.map(owned));
        }

        #[test]
        fn anything_like_a_sample_is_read_without_panic(text in "[a{}=\",\\\\n1 \t#\n\u{e9}]{0,40}") {
            for sample in samples(&text).flatten() {
                let labels: Vec<_> = sample.labels.iter().collect();
                for (name, value) in &labels {
                    prop_assert_eq!(sample.labels.get(name), Some(value.clone()));
                }
            }
        }

        #[test]
        fn quantiles_rise_and_stay_inside_the_bounds(
            buckets in proptest::collection::vec((0.0..1e6, 0.0..1e6), 1..20),
            lower in 0.0..1.0, upper in 0.0..1.0,
        ) {
            let (lower, upper): (f64, f64) = if lower <= upper { (lower, upper) } else { (upper, lower) };
            let mut histogram = histogram(&buckets);
            histogram.add(f64::INFINITY, 1e6);
            let highest = buckets.iter().map(|(le, _)| *le).fold(0.0, f64::max);
            if let (Some(low), Some(high)) = (histogram.quantile(lower), histogram.quantile(upper)) {
                prop_assert!(low <= high + 1e-6, "{} {}", low, high);
                prop_assert!((0.0..=highest + 1e-6).contains(&high));
            }
        }
    }
}
