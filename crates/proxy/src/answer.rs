//! Answers that the proxy makes itself (`spec/proxy.md` 4.11), and why.
//!
//! Every refusal or failure is a [`Why`]; its status, gRPC code, metric label and wording follow from it here and
//! nowhere else.

use http::{HeaderValue, StatusCode, Version, header};

use crate::body::{Body, OnEnd};
use crate::message::{Head, Response};
use crate::wire::{Fault, SendError};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    Malformed(&'static str),
    Internal(&'static str),
    BadGateway(&'static str),
    /// The other side reset the stream, and why.
    Reset(h2::Reason),
    ConnectTimeout,
    FailFast,
    RequestTimeout,
    Overloaded,
    /// The application has ended, and we are about to.
    Leaving,
    Denied,
    Loop,
    NoRoute,
    GatewayDomain,
    NotExported,
    IdentityRequired,
    Injected {
        status: u16,
        grpc: Option<u32>,
        message: String,
    },
    Redirected {
        status: u16,
        location: String,
    },
}

impl Why {
    fn status(&self) -> StatusCode {
        match self {
            Self::Malformed(_) => StatusCode::BAD_REQUEST,
            Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::BadGateway(_) | Self::Reset(_) | Self::IdentityRequired => StatusCode::BAD_GATEWAY,
            Self::ConnectTimeout | Self::FailFast | Self::RequestTimeout => StatusCode::GATEWAY_TIMEOUT,
            Self::Overloaded | Self::Leaving => StatusCode::SERVICE_UNAVAILABLE,
            Self::Denied | Self::NotExported => StatusCode::FORBIDDEN,
            Self::Loop => StatusCode::LOOP_DETECTED,
            Self::NoRoute | Self::GatewayDomain => StatusCode::NOT_FOUND,
            Self::Injected { status, .. } | Self::Redirected { status, .. } => {
                StatusCode::from_u16(*status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
            }
        }
    }

    fn grpc(&self) -> u32 {
        match self {
            Self::Malformed(_) => 3,
            Self::Internal(_) => 13,
            Self::BadGateway(_)
            | Self::Reset(_)
            | Self::IdentityRequired
            | Self::Overloaded
            | Self::Leaving => 14,
            Self::ConnectTimeout | Self::FailFast | Self::RequestTimeout => 4,
            Self::Denied | Self::NotExported => 7,
            Self::Loop => 10,
            Self::NoRoute | Self::GatewayDomain | Self::Redirected { .. } => 5,
            Self::Injected { grpc, .. } => grpc.unwrap_or(9),
        }
    }

    fn closes(&self) -> bool {
        matches!(
            self,
            Self::Malformed(_)
                | Self::Internal(_)
                | Self::BadGateway(_)
                | Self::Reset(_)
                | Self::IdentityRequired
                | Self::ConnectTimeout
                | Self::FailFast
                | Self::Overloaded
                | Self::Leaving
                | Self::Loop
        )
    }

    pub(crate) fn message(&self) -> &str {
        match self {
            Self::Malformed(what) | Self::Internal(what) | Self::BadGateway(what) => what,
            Self::Reset(_) => "stream reset",
            Self::ConnectTimeout => "connect timed out",
            Self::FailFast => "service in fail-fast",
            Self::RequestTimeout => "request timed out",
            Self::Overloaded => "service unavailable",
            Self::Leaving => "proxy is shutting down",
            Self::Denied => "unauthorized request on route",
            Self::Loop => "gateway loop detected",
            Self::NoRoute => "no route found for request",
            Self::GatewayDomain => "gateway domain invalid",
            Self::NotExported => "service is not exported by this gateway",
            Self::IdentityRequired => "endpoint does not have the required identity",
            Self::Injected { message, .. } => message,
            Self::Redirected { .. } => "redirected",
        }
    }

    /// The `error` label of `*_http_errors_total`.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::FailFast => "failfast",
            Self::Overloaded => "loadshed",
            Self::Loop => "gateway loop",
            Self::GatewayDomain | Self::NotExported => "gateway domain invalid",
            Self::BadGateway(_) | Self::Reset(_) => "i/o",
            Self::IdentityRequired => "identity required",
            Self::RequestTimeout => "response timeout",
            _ => "unexpected",
        }
    }

    /// What became of a request that failed after it was sent.
    pub(crate) fn of_sending(error: &SendError) -> Self {
        match error {
            SendError::Link(Fault::Reset(reason) | Fault::Ours(reason)) => Self::Reset(*reason),
            _ => Self::BadGateway("client error (SendRequest)"),
        }
    }

    /// A reset is passed on as one, to clients that know them.
    pub(crate) fn reset(&self, version: Version) -> Option<h2::Error> {
        match self {
            Self::Reset(reason) if version == Version::HTTP_2 => Some((*reason).into()),
            _ => None,
        }
    }

    /// The answer, in the request's terms. To those who may know, headers explain it, beginning with where `hop` we are.
    pub(crate) fn response<E: OnEnd>(
        &self,
        version: Version,
        request: &RequestKind,
        hop: Option<&str>,
    ) -> Response<Body<E>> {
        let mut response = Response::new(version, Body::empty());
        let head = &mut response.head;
        let message = hop.map(|hop| {
            let message = HeaderValue::try_from(format!("{hop}{}", self.message()));
            message.unwrap_or_else(|_| HeaderValue::from_static("unexpected error"))
        });
        if let Some(message) = &message {
            head.insert("l5d-proxy-error", message);
            if self.closes() {
                head.insert("l5d-proxy-connection", &HeaderValue::from_static("close"));
            }
        }
        head.insert(header::CONTENT_LENGTH, &HeaderValue::from_static("0"));
        if request.grpc {
            head.insert(
                header::CONTENT_TYPE,
                &HeaderValue::from_static("application/grpc"),
            );
            head.insert("grpc-status", &self.grpc().into());
            if let Some(message) = &message {
                head.insert("grpc-message", message);
            }
            return response;
        }
        if version < Version::HTTP_2 && self.closes() && !request.upgraded {
            head.insert(header::CONNECTION, &HeaderValue::from_static("close"));
        }
        if let Self::Redirected { location, .. } = self
            && let Ok(location) = HeaderValue::from_str(location)
        {
            head.insert(header::LOCATION, &location);
        }
        response.status = self.status();
        response
    }
}

/// The answer to a client whose question ends here, naming us to those who may know.
pub(crate) fn reached<E: OnEnd>(version: Version, us: Option<&str>) -> Response<Body<E>> {
    let mut response = Response::new(version, Body::empty());
    let head = &mut response.head;
    head.insert(header::CONTENT_LENGTH, &HeaderValue::from_static("0"));
    if let Some(us) = us.and_then(|us| HeaderValue::from_str(us).ok()) {
        head.insert(crate::http_rules::ANSWERED_BY, &us);
    }
    response
}

/// What of a request decides the form of its answer.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RequestKind {
    pub(crate) grpc: bool,
    /// It is HTTP/1 carried in HTTP/2, whose connection is not the client's.
    pub(crate) upgraded: bool,
}

impl RequestKind {
    pub(crate) fn of(head: &Head) -> Self {
        let grpc = head
            .get(header::CONTENT_TYPE)
            .is_some_and(|t| t.as_bytes().starts_with(b"application/grpc"));
        Self {
            grpc,
            upgraded: head.contains(crate::http_rules::ORIG_PROTO),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Value;

    /// Nobody is interested in the end.
    #[derive(Debug)]
    struct Unobserved;

    impl OnEnd for Unobserved {
        fn end(self, _: Option<u32>) {}
        fn end_at_once(self) {}
        fn fail(self) {}
    }

    fn answered(
        why: &Why,
        version: Version,
        content_type: &str,
        hop: Option<&str>,
    ) -> Response<Body<Unobserved>> {
        let mut head = Head::default();
        head.insert(header::CONTENT_TYPE, &content_type.parse().unwrap());
        why.response(version, &RequestKind::of(&head), hop)
    }

    #[test]
    fn every_failure_has_its_status_its_grpc_code_and_its_word_on_the_connection() {
        let injected = Why::Injected {
            status: 503,
            grpc: None,
            message: "for a test".into(),
        };
        let redirected = Why::Redirected {
            status: 302,
            location: "http://there/".into(),
        };
        for (why, status, grpc, closes) in [
            (Why::Malformed("two lengths"), 400, "3", true),
            (Why::Internal("unexpected error"), 500, "13", true),
            (Why::BadGateway("client error (Connect)"), 502, "14", true),
            (Why::Reset(h2::Reason::CANCEL), 502, "14", true),
            (Why::ConnectTimeout, 504, "4", true),
            (Why::FailFast, 504, "4", true),
            (Why::RequestTimeout, 504, "4", false),
            (Why::Overloaded, 503, "14", true),
            (Why::Leaving, 503, "14", true),
            (Why::Denied, 403, "7", false),
            (Why::Loop, 508, "10", true),
            (Why::NoRoute, 404, "5", false),
            (injected, 503, "9", false),
            (redirected, 302, "5", false),
        ] {
            let plain = answered(&why, Version::HTTP_11, "text/plain", Some(""));
            let header = |name: &str| plain.head.get(name).map(|value| value.to_str().unwrap());
            assert_eq!(plain.status.as_u16(), status, "{why:?}");
            assert_eq!(header("l5d-proxy-error"), Some(why.message()));
            assert_eq!(
                header("l5d-proxy-connection"),
                closes.then_some("close"),
                "{why:?}"
            );
            assert_eq!(header("connection"), closes.then_some("close"), "{why:?}");
            assert_eq!(header("content-length"), Some("0"));

            let rpc = answered(
                &why,
                Version::HTTP_2,
                "application/grpc+proto",
                Some("server: a: "),
            );
            let header = |name: &str| rpc.head.get(name).map(|value| value.to_str().unwrap());
            assert_eq!(rpc.status, 200, "{why:?}");
            assert_eq!(header("grpc-status"), Some(grpc), "{why:?}");
            assert_eq!(
                header("grpc-message"),
                Some(&*format!("server: a: {}", why.message()))
            );
            assert_eq!(header("connection"), None, "HTTP/2 has no such header");
        }
    }

    #[test]
    fn strangers_are_told_nothing_but_the_status() {
        let answer = answered(&Why::FailFast, Version::HTTP_2, "application/grpc", None);
        for name in ["l5d-proxy-error", "l5d-proxy-connection", "grpc-message"] {
            assert!(!answer.head.contains(name), "{name}");
        }
        let status = answer.head.get("grpc-status");
        assert_eq!(status.and_then(Value::to_str), Some("4"));
    }
}
