//! How long a request may take, and after which answers it is asked again: as its route says, or itself.
//!
//! Conversions and decisions only (`spec/proxy.md` 4.10 and 5.6); [`crate::late`] keeps the time, and
//! [`crate::outbound::http`] asks again.

use std::borrow::Cow;
use std::ops::RangeInclusive;
use std::time::Duration;

use http::{HeaderName, StatusCode};
use linkerd2_proxy_api::{http_route, outbound};

use crate::config::duration;
use crate::message::Head;
use crate::snapshot::span;

/// Of a request's body, this much is kept so that it can be sent again.
pub(crate) const BODY_MAX: usize = 64 * 1024;

const RETRY_HTTP: HeaderName = HeaderName::from_static("l5d-retry-http");
const RETRY_GRPC: HeaderName = HeaderName::from_static("l5d-retry-grpc");
const RETRY_LIMIT: HeaderName = HeaderName::from_static("l5d-retry-limit");
const RETRY_TIMEOUT: HeaderName = HeaderName::from_static("l5d-retry-timeout");
const TIMEOUT: HeaderName = HeaderName::from_static("l5d-timeout");
const REQUEST_TIMEOUT: HeaderName = HeaderName::from_static("l5d-request-timeout");
const RESPONSE_TIMEOUT: HeaderName = HeaderName::from_static("l5d-response-timeout");

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Limits {
    pub(crate) timeouts: Timeouts,
    pub(crate) retry: Option<Retry>,
    /// Requests may ask for others.
    by_header: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Timeouts {
    /// From the first byte to the last, in both directions.
    pub(crate) request: Option<Duration>,
    /// From the end of the request to the end of the answer.
    pub(crate) response: Option<Duration>,
    /// Without anything in either direction.
    pub(crate) idle: Option<Duration>,
}

impl Timeouts {
    pub(crate) fn any(&self) -> bool {
        *self != Self::default()
    }
}

/// When and how a request that was answered badly is asked again.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Retry {
    pub(crate) limit: u32,
    pub(crate) body_max: usize,
    statuses: Vec<RangeInclusive<u16>>,
    /// gRPC codes.
    codes: Vec<u32>,
    /// For the head of an answer, while there may be another attempt.
    pub(crate) timeout: Option<Duration>,
    backoff: Backoff,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Backoff {
    min: Duration,
    max: Duration,
    jitter: f32,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            min: Duration::from_millis(25),
            max: Duration::from_millis(250),
            jitter: 1.0,
        }
    }
}

impl Default for Retry {
    /// What a request gets that asks for repetition where its route says nothing.
    fn default() -> Self {
        Self {
            limit: 1,
            body_max: BODY_MAX,
            statuses: Vec::new(),
            codes: Vec::new(),
            timeout: None,
            backoff: Backoff::default(),
        }
    }
}

impl Retry {
    pub(crate) fn wants_status(&self, status: StatusCode) -> bool {
        self.statuses.iter().any(|range| range.contains(&status.as_u16()))
    }

    pub(crate) fn wants_code(&self, code: u32) -> bool {
        self.codes.contains(&code)
    }

    /// Must a call's status be known before its answer is passed on?
    pub(crate) fn asks_for_codes(&self) -> bool {
        !self.codes.is_empty()
    }

    /// Before attempt `number`, from 1, is repeated.
    pub(crate) fn backoff(&self, number: u32) -> Duration {
        let Backoff { min, max, jitter } = self.backoff;
        let grown = min.saturating_mul(2u32.saturating_pow(number.saturating_sub(1).min(30)));
        grown.min(max).mul_f32(1.0 + rand::random::<f32>() * jitter)
    }

    fn new(
        limit: u32,
        body_max: u32,
        statuses: Vec<RangeInclusive<u16>>,
        codes: Vec<u32>,
        timeout: Option<prost_types::Duration>,
        backoff: Option<&outbound::ExponentialBackoff>,
    ) -> Self {
        let given = backoff.and_then(|backoff| {
            let (min, max) = (span(backoff.min_backoff)?, span(backoff.max_backoff)?);
            let jitter = backoff.jitter_ratio;
            (min <= max && jitter >= 0.0).then_some(Backoff {
                min,
                max,
                jitter: jitter.min(1.0),
            })
        });
        Self {
            limit,
            body_max: match usize::try_from(body_max) {
                Ok(0) | Err(_) => BODY_MAX,
                Ok(max) => max,
            },
            statuses,
            codes,
            timeout: span(timeout),
            backoff: given.unwrap_or_default(),
        }
    }
}

impl Limits {
    pub(crate) fn of_http(rule: &outbound::http_route::Rule) -> Self {
        let retry = rule.retry.as_ref().and_then(|retry| {
            let ranges = &retry.conditions.as_ref()?.status_ranges;
            let statuses = ranges.iter().filter_map(|range| {
                let (start, end) = (u16::try_from(range.start).ok()?, u16::try_from(range.end).ok()?);
                (start <= end).then_some(start..=end)
            });
            Some(Retry::new(
                retry.max_retries,
                retry.max_request_bytes,
                statuses.collect(),
                Vec::new(),
                retry.timeout,
                retry.backoff.as_ref(),
            ))
        });
        Self::new(rule.timeouts.as_ref(), retry, rule.allow_l5d_request_headers)
    }

    pub(crate) fn of_grpc(rule: &outbound::grpc_route::Rule) -> Self {
        let retry = rule.retry.as_ref().and_then(|retry| {
            let on = retry.conditions.as_ref()?;
            let codes = [
                (on.cancelled, 1),
                // Misspelt in the API.
                (on.deadine_exceeded, 4),
                (on.resource_exhausted, 8),
                (on.internal, 13),
                (on.unavailable, 14),
            ];
            Some(Retry::new(
                retry.max_retries,
                retry.max_request_bytes,
                Vec::new(),
                codes
                    .into_iter()
                    .filter(|(on, _)| *on)
                    .map(|(_, code)| code)
                    .collect(),
                retry.timeout,
                retry.backoff.as_ref(),
            ))
        });
        Self::new(rule.timeouts.as_ref(), retry, rule.allow_l5d_request_headers)
    }

    fn new(timeouts: Option<&http_route::Timeouts>, retry: Option<Retry>, by_header: bool) -> Self {
        let timeouts = timeouts.map_or_else(Timeouts::default, |timeouts| Timeouts {
            request: span(timeouts.request),
            response: span(timeouts.response),
            idle: span(timeouts.idle),
        });
        Self {
            timeouts,
            retry,
            by_header,
        }
    }

    /// What holds for one request. Headers that ask for something else are taken out if they are heard.
    pub(crate) fn of_request(&self, head: &mut Head) -> Cow<'_, Self> {
        if !self.by_header {
            return Cow::Borrowed(self);
        }
        let mut take = |name: HeaderName| {
            let value = head.remove(name)?;
            value.to_str().map(str::to_owned)
        };
        let span = |text: Option<String>| text.and_then(|text| duration(&text).ok());
        let statuses = take(RETRY_HTTP).map(|text| statuses(&text));
        let codes = take(RETRY_GRPC).map(|text| codes(&text));
        let limit = take(RETRY_LIMIT).and_then(|text| text.trim().parse().ok());
        let per_try = span(take(RETRY_TIMEOUT));
        let (total, request) = (span(take(TIMEOUT)), span(take(REQUEST_TIMEOUT)));
        let response = span(take(RESPONSE_TIMEOUT));
        if statuses.is_none()
            && codes.is_none()
            && limit.is_none()
            && per_try.is_none()
            && total.or(request).or(response).is_none()
        {
            return Cow::Borrowed(self);
        }
        let mut limits = self.clone();
        limits.timeouts.request = request.or(total).or(self.timeouts.request);
        limits.timeouts.response = response.or(self.timeouts.response);
        if self.retry.is_some() || statuses.is_some() || codes.is_some() {
            let retry = limits.retry.get_or_insert_default();
            retry.statuses = statuses.unwrap_or_else(|| std::mem::take(&mut retry.statuses));
            retry.codes = codes.unwrap_or_else(|| std::mem::take(&mut retry.codes));
            retry.limit = limit.unwrap_or(retry.limit);
            retry.timeout = per_try.or(retry.timeout);
        }
        Cow::Owned(limits)
    }
}

/// `5xx`, `gateway-error`, `503`, `500-504`, and commas; what can't be read asks for nothing.
fn statuses(text: &str) -> Vec<RangeInclusive<u16>> {
    let one = |item: &str| match item {
        "5xx" => Some(500..=599),
        "gateway-error" => Some(502..=504),
        item => {
            let (start, end) = item.split_once('-').unwrap_or((item, item));
            let (start, end) = (start.trim().parse().ok()?, end.trim().parse().ok()?);
            (100 <= start && start <= end && end <= 599).then_some(start..=end)
        }
    };
    text.split(',').map(str::trim).filter_map(one).collect()
}

fn codes(text: &str) -> Vec<u32> {
    let one = |item: &str| match item {
        "cancelled" => Some(1),
        "deadline-exceeded" => Some(4),
        "resource-exhausted" => Some(8),
        "internal" => Some(13),
        "unavailable" => Some(14),
        _ => None,
    };
    text.split(',').map(str::trim).filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Field;

    fn asked(limits: &Limits, headers: &[(&'static str, &str)]) -> (Limits, Vec<String>) {
        let mut head = Head::default();
        for (name, value) in headers {
            head.insert(name, &value.parse().unwrap());
        }
        let limits = limits.of_request(&mut head).into_owned();
        let name = |field: Field<'_>| String::from_utf8_lossy(field.name).into();
        (limits, head.iter().map(name).collect())
    }

    #[test]
    fn a_request_is_heard_where_its_route_listens_and_nowhere_else() {
        let headers = [
            ("l5d-retry-http", "gateway-error, 429,500-501,nonsense, 7"),
            ("l5d-retry-grpc", "unavailable,nonsense"),
            ("l5d-retry-limit", "3"),
            ("l5d-retry-timeout", "100ms"),
            ("l5d-timeout", "2s"),
            ("l5d-response-timeout", "1s"),
            ("x-mine", "kept"),
        ];
        let deaf = Limits::default();
        let (same, left) = asked(&deaf, &headers);
        assert_eq!((same, left.len()), (deaf.clone(), 7));

        let listening = Limits {
            by_header: true,
            ..Limits::default()
        };
        let (limits, left) = asked(&listening, &headers);
        assert_eq!(left, ["x-mine"]);
        let expected = Retry {
            limit: 3,
            statuses: vec![502..=504, 429..=429, 500..=501],
            codes: vec![14],
            timeout: Some(Duration::from_millis(100)),
            ..Retry::default()
        };
        assert_eq!(limits.retry, Some(expected));
        assert_eq!(limits.timeouts.request, Some(Duration::from_secs(2)));
        assert_eq!(limits.timeouts.response, Some(Duration::from_secs(1)));

        // A limit alone doesn't say what to repeat.
        assert_eq!(asked(&listening, &[("l5d-retry-limit", "9")]).0.retry, None);
    }

    #[test]
    fn pauses_grow_to_a_maximum() {
        let retry = Retry::default();
        for (number, from, to) in [(1, 25, 50), (2, 50, 100), (5, 250, 500), (u32::MAX, 250, 500)] {
            let pause = retry.backoff(number).as_millis();
            assert!((from..=to).contains(&pause), "{number}: {pause} ms");
        }
    }
}
