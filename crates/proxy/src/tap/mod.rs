//! Live requests for whoever may watch them (`spec/proxy.md` 8.5): what is told, and to whom.
//!
//! Nobody watches, as a rule: then a request costs one relaxed load. Whoever watches is told through a queue of their
//! own; what has no room in it is left out, so a slow watcher slows nobody. [`pattern`] decides which requests, and
//! [`serve`] speaks the tap API.

mod pattern;
mod serve;

pub(crate) use serve::serve;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use linkerd2_proxy_api::http_types::{Headers, headers::Header};
use linkerd2_proxy_api::tap::tap_event::{self, ProxyDirection};
use linkerd2_proxy_api::tap::{Eos, ObserveRequest, TapEvent, tap_event::http as event};
use tokio::sync::mpsc;

use pattern::{Pattern, TooComplex};

use crate::message::{Field, Head};
use crate::span::{self, Open, Spans};

/// Who may watch at the same time.
const TAPS_MAX: usize = 8;
/// Events that wait to be sent to one watcher. With the bounds below they are at most 3 MiB.
const EVENTS_MAX: usize = 128;
/// Longer texts are cut, and headers beyond this many left out.
pub(crate) const PATH_BYTES_MAX: usize = 1024;
const HEADER_BYTES_MAX: usize = 256;
const HEADERS_MAX: usize = 64;

/// On which side of the proxy a request is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Inbound,
    Outbound,
}

/// A request as it is matched and told.
#[derive(Debug)]
pub(crate) struct Seen<'a> {
    pub(crate) direction: Direction,
    pub(crate) source: &'a Client,
    pub(crate) destination: SocketAddr,
    pub(crate) destination_labels: BTreeMap<String, String>,
    pub(crate) route_labels: BTreeMap<String, String>,
    pub(crate) method: &'a Method,
    pub(crate) scheme: &'a str,
    pub(crate) authority: &'a str,
    pub(crate) path: &'a str,
    pub(crate) headers: &'a Head,
}

/// Who sent a request. Also an extension of outbound requests that somebody may watch.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    pub(crate) addr: SocketAddr,
    pub(crate) labels: BTreeMap<String, String>,
}

/// Everybody who watches.
#[derive(Clone, Debug)]
pub(crate) struct Taps(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Whether anybody watches, for those who must not wait for the list.
    watched: AtomicBool,
    taps: Mutex<Vec<Arc<Tap>>>,
    /// Who is told of the requests of sampled traces, always.
    spans: OnceLock<Arc<Spans>>,
    /// Tells streams of this process from those of another.
    base: u32,
    streams: AtomicU64,
}

#[derive(Debug)]
struct Tap {
    pattern: Pattern,
    with_headers: bool,
    /// Requests that may still be told of.
    left: AtomicU32,
    events: mpsc::Sender<TapEvent>,
}

impl Tap {
    fn is_spent(&self) -> bool {
        self.left.load(Relaxed) == 0
    }
}

/// Why nobody can watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("limit must not be zero")]
    NoLimit,
    #[error(transparent)]
    TooComplex(#[from] TooComplex),
    #[error("{TAPS_MAX} others are watching already")]
    TooMany,
}

/// What one watcher is told. Dropped, it ends the watch.
#[derive(Debug)]
pub(crate) struct Watch {
    /// Ends when as many requests as were asked for have ended.
    pub(crate) events: mpsc::Receiver<TapEvent>,
    tap: Weak<Tap>,
    taps: Taps,
}

impl Drop for Watch {
    fn drop(&mut self) {
        let tap = self.tap.as_ptr();
        self.taps.keep(|one| Arc::as_ptr(one) != tap);
    }
}

impl Default for Taps {
    fn default() -> Self {
        Self(Arc::new(Shared {
            watched: AtomicBool::new(false),
            taps: Mutex::default(),
            spans: OnceLock::new(),
            base: rand::random(),
            streams: AtomicU64::new(0),
        }))
    }
}

impl Taps {
    /// Whether anybody wants to know of a request with such headers. All that happens to one of which nobody does.
    #[inline]
    pub(crate) fn want(&self, headers: &Head) -> bool {
        self.are_watched() || (self.0.spans.get().is_some() && span::is_sampled(headers))
    }

    /// Whether anybody watches, who may ask for any label. A span needs only who the other side proved to be.
    #[inline]
    pub(crate) fn are_watched(&self) -> bool {
        self.0.watched.load(Relaxed)
    }

    /// From now on, spans go there.
    pub(crate) fn trace(&self, spans: Arc<Spans>) {
        // Asked for once, when the process starts.
        let _ = self.0.spans.set(spans);
    }

    pub(crate) fn open(&self, asked: &ObserveRequest) -> Result<Watch, Refused> {
        if asked.limit == 0 {
            return Err(Refused::NoLimit);
        }
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let tap = Arc::new(Tap {
            pattern: Pattern::of(asked.r#match.as_ref())?,
            with_headers: asked.extract.is_some(),
            left: AtomicU32::new(asked.limit),
            events: sender,
        });
        let mut taps = self.0.taps.lock().unwrap_or_else(PoisonError::into_inner);
        if taps.len() >= TAPS_MAX {
            return Err(Refused::TooMany);
        }
        let watch = Watch {
            events,
            tap: Arc::downgrade(&tap),
            taps: self.clone(),
        };
        taps.push(tap);
        self.0.watched.store(true, Relaxed);
        Ok(watch)
    }

    fn keep(&self, wanted: impl Fn(&Arc<Tap>) -> bool) {
        let mut taps = self.0.taps.lock().unwrap_or_else(PoisonError::into_inner);
        taps.retain(wanted);
        self.0.watched.store(!taps.is_empty(), Relaxed);
    }

    /// Those who watch such requests, each of which counts this one.
    fn matching(&self, seen: &Seen<'_>) -> Vec<Arc<Tap>> {
        let mut to: Vec<Arc<Tap>> = Vec::new();
        for tap in &*self.0.taps.lock().unwrap_or_else(PoisonError::into_inner) {
            let counted = || {
                tap.left
                    .fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1))
            };
            if tap.pattern.matches(seen) && counted().is_ok() {
                to.push(tap.clone());
            }
        }
        to
    }

    /// Begins to tell of a request, if anybody wants to know.
    pub(crate) fn tell(&self, seen: &Seen<'_>) -> Option<Box<Told>> {
        let to = if self.are_watched() {
            self.matching(seen)
        } else {
            Vec::new()
        };
        let spans = self.0.spans.get();
        let span = spans.and_then(|spans| Some((Open::of(seen)?, spans.clone())));
        if to.is_empty() && span.is_none() {
            return None;
        }
        if to.iter().any(|tap| tap.is_spent()) {
            self.keep(|tap| !tap.is_spent());
        }
        let told = Told {
            about: if to.is_empty() {
                TapEvent::default()
            } else {
                about(seen)
            },
            id: event::StreamId {
                base: self.0.base,
                stream: self.0.streams.fetch_add(1, Relaxed),
            },
            to,
            span,
            began: Instant::now(),
            answered: None,
            bytes: 0,
            is_over: false,
        };
        told.send(|with_headers| {
            event::Event::RequestInit(event::RequestInit {
                id: Some(told.id),
                method: Some(seen.method.clone().into()),
                scheme: Some(seen.scheme.into()),
                authority: cut(seen.authority, PATH_BYTES_MAX).to_owned(),
                path: cut(seen.path, PATH_BYTES_MAX).to_owned(),
                headers: with_headers.then(|| headers(seen.headers)),
            })
        });
        Some(Box::new(told))
    }
}

/// What all events of a request have in common.
fn about(seen: &Seen<'_>) -> TapEvent {
    let meta = |labels: &BTreeMap<String, String>| labels.clone().into_iter().collect::<HashMap<_, _>>();
    let direction = match seen.direction {
        Direction::Inbound => ProxyDirection::Inbound,
        Direction::Outbound => ProxyDirection::Outbound,
    };
    TapEvent {
        source: Some(seen.source.addr.into()),
        source_meta: Some(tap_event::EndpointMeta {
            labels: meta(&seen.source.labels),
        }),
        destination: Some(seen.destination.into()),
        destination_meta: Some(tap_event::EndpointMeta {
            labels: meta(&seen.destination_labels),
        }),
        route_meta: Some(tap_event::RouteMeta {
            labels: meta(&seen.route_labels),
        }),
        proxy_direction: direction.into(),
        event: None,
    }
}

/// A request that somebody is told of. Dropped, it was given up.
#[derive(Debug)]
pub(crate) struct Told {
    /// For those who watch.
    about: TapEvent,
    id: event::StreamId,
    to: Vec<Arc<Tap>>,
    /// If its trace is sampled.
    span: Option<(Open, Arc<Spans>)>,
    began: Instant,
    answered: Option<Instant>,
    /// Of the response.
    bytes: u64,
    is_over: bool,
}

/// How a request ended, if not by an answer's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    ByServer,
    ByClient,
}

impl Told {
    fn send(&self, event: impl Fn(bool) -> event::Event) {
        for tap in &self.to {
            let told = TapEvent {
                event: Some(tap_event::Event::Http(tap_event::Http {
                    event: Some(event(tap.with_headers)),
                })),
                ..self.about.clone()
            };
            // A watcher who can't keep up misses something; one who has gone, everything.
            let _ = tap.events.try_send(told);
        }
    }

    /// The answer begins.
    pub(crate) fn answered(&mut self, status: StatusCode, fields: &Head) {
        let now = Instant::now();
        self.answered = Some(now);
        if let Some((span, _)) = &mut self.span {
            span.answered(status);
        }
        self.send(|with_headers| {
            event::Event::ResponseInit(event::ResponseInit {
                id: Some(self.id),
                since_request_init: duration(now - self.began),
                http_status: status.as_u16().into(),
                headers: with_headers.then(|| headers(fields)),
            })
        });
    }

    pub(crate) fn passed(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_add(bytes as u64);
    }

    pub(crate) fn ended(mut self, grpc_status: Option<u32>) {
        self.over(grpc_status.map(Eos::from_grpc_status));
    }

    pub(crate) fn broke(mut self, broken: Broken) {
        self.over(Some(reset(broken)));
    }

    fn over(&mut self, eos: Option<Eos>) {
        if std::mem::replace(&mut self.is_over, true) {
            return;
        }
        let now = Instant::now();
        if let Some((span, spans)) = self.span.take() {
            spans.take(span.ended(now - self.began, eos.as_ref()));
        }
        self.send(|_| {
            event::Event::ResponseEnd(event::ResponseEnd {
                id: Some(self.id),
                since_request_init: duration(now - self.began),
                since_response_init: self.answered.and_then(|at| duration(now - at)),
                response_bytes: self.bytes,
                eos,
                trailers: None,
            })
        });
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        let broken = match self.answered {
            Some(_) => Broken::ByClient,
            None => Broken::ByServer,
        };
        self.over(Some(reset(broken)));
    }
}

fn reset(broken: Broken) -> Eos {
    match broken {
        Broken::ByServer => h2::Reason::INTERNAL_ERROR.into(),
        Broken::ByClient => h2::Reason::CANCEL.into(),
    }
}

fn duration(duration: Duration) -> Option<prost_types::Duration> {
    duration.try_into().ok()
}

pub(crate) fn cut(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

fn headers(fields: &Head) -> Headers {
    let cut = |bytes: &[u8]| bytes.get(..HEADER_BYTES_MAX).unwrap_or(bytes).to_vec();
    let header = |field: Field<'_>| Header {
        name: String::from_utf8(cut(field.name)).unwrap_or_default(),
        value: cut(field.value.as_bytes()),
    };
    Headers {
        headers: fields.iter().take(HEADERS_MAX).map(header).collect(),
    }
}

#[cfg(test)]
mod tests {
    use linkerd2_proxy_api::tap::observe_request::Extract;

    use super::*;

    fn asked(limit: u32) -> ObserveRequest {
        ObserveRequest {
            limit,
            ..ObserveRequest::default()
        }
    }

    fn tell(taps: &Taps, path: &str) -> Option<Box<Told>> {
        let source = Client {
            addr: ([10, 0, 0, 1], 4000).into(),
            labels: BTreeMap::from([("tls".into(), "true".into())]),
        };
        let mut headers = Head::default();
        headers.insert("x-secret", &http::HeaderValue::from_static("swordfish"));
        taps.tell(&Seen {
            direction: Direction::Inbound,
            source: &source,
            destination: ([10, 0, 0, 2], 80).into(),
            destination_labels: BTreeMap::new(),
            route_labels: BTreeMap::new(),
            method: &Method::GET,
            scheme: "http",
            authority: "web",
            path,
            headers: &headers,
        })
    }

    fn next(watch: &mut Watch) -> Option<event::Event> {
        let tap_event::Event::Http(http) = watch.events.try_recv().ok()?.event?;
        http.event
    }

    #[test]
    fn a_request_is_told_from_its_head_to_its_end() {
        let taps = Taps::default();
        assert!(!taps.are_watched());
        let mut watch = taps.open(&asked(10)).expect("there is room");
        assert!(taps.are_watched());
        let mut told = tell(&taps, "/a").expect("somebody watches");
        told.answered(StatusCode::OK, &Head::default());
        told.passed(5);
        told.ended(Some(0));
        let Some(event::Event::RequestInit(head)) = next(&mut watch) else {
            panic!("no head")
        };
        assert_eq!((&*head.path, &*head.authority, head.headers), ("/a", "web", None));
        let Some(event::Event::ResponseInit(answer)) = next(&mut watch) else {
            panic!("no answer")
        };
        assert_eq!((answer.id, answer.http_status), (head.id, 200));
        let Some(event::Event::ResponseEnd(end)) = next(&mut watch) else {
            panic!("no end")
        };
        assert_eq!((end.response_bytes, end.eos), (5, Some(Eos::from_grpc_status(0))));
        assert_eq!(next(&mut watch), None, "it is told once");
        drop(watch);
        assert!(!taps.are_watched());
        assert!(tell(&taps, "/b").is_none());
    }

    #[test]
    fn a_request_that_is_given_up_ends_too_and_headers_come_only_if_asked_for() {
        let taps = Taps::default();
        let with_headers = ObserveRequest {
            extract: Some(Extract::default()),
            ..asked(1)
        };
        let mut watch = taps.open(&with_headers).expect("there is room");
        drop(tell(&taps, "/"));
        let Some(event::Event::RequestInit(head)) = next(&mut watch) else {
            panic!("no head")
        };
        let values: Vec<_> = head.headers.into_iter().flat_map(|all| all.headers).collect();
        assert_eq!(values[0].value, b"swordfish");
        let Some(event::Event::ResponseEnd(end)) = next(&mut watch) else {
            panic!("no end")
        };
        assert_eq!(end.eos, Some(h2::Reason::INTERNAL_ERROR.into()));
    }

    #[test]
    fn for_spans_only_requests_of_sampled_traces_are_looked_at() {
        let headers = |flags: &str| {
            let mut headers = Head::default();
            let context = format!("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-{flags}");
            headers.insert("traceparent", &context.parse().expect("a header"));
            headers
        };
        let taps = Taps::default();
        assert!(!taps.want(&headers("01")), "nobody wants spans");
        let (spans, _waiting) = Spans::new();
        taps.trace(Arc::new(spans));
        let wanted = [headers("01"), headers("00"), Head::default()].map(|headers| taps.want(&headers));
        assert_eq!(wanted, [true, false, false]);
        let _watch = taps.open(&asked(1)).expect("there is room");
        assert!(taps.want(&Head::default()), "somebody watches all");
    }

    #[test]
    fn everything_is_bounded() {
        let taps = Taps::default();
        assert_eq!(taps.open(&asked(0)).err(), Some(Refused::NoLimit));
        let mut watch = taps.open(&asked(2)).expect("there is room");
        let told: Vec<bool> = (0..4).map(|_| tell(&taps, "/").is_some()).collect();
        assert_eq!(told, [true, true, false, false], "a limit is a limit");
        assert!(!taps.are_watched());
        while next(&mut watch).is_some() {}
        let ended = watch.events.try_recv();
        assert_eq!(ended.err(), Some(mpsc::error::TryRecvError::Disconnected));

        let mut slow = taps.open(&asked(u32::MAX)).expect("there is room");
        for _ in 0..2 * EVENTS_MAX {
            drop(tell(&taps, &"/long".repeat(PATH_BYTES_MAX)));
        }
        let mut count = 0;
        while let Some(event) = next(&mut slow) {
            if let event::Event::RequestInit(head) = event {
                assert_eq!(head.path.len(), PATH_BYTES_MAX);
            }
            count += 1;
        }
        assert_eq!(count, EVENTS_MAX);
        let others: Vec<_> = (1..TAPS_MAX)
            .map(|_| taps.open(&asked(1)).expect("room"))
            .collect();
        assert_eq!(taps.open(&asked(1)).err(), Some(Refused::TooMany));
        drop(others);
        assert!(taps.open(&asked(1)).is_ok());
    }
}
