//! Refusals, exactly as Kubernetes words them: `metav1.Status` with `reason`, `code`, `details` and `message`.
//!
//! Clients branch on `reason` and `code`, people read `message`; both are interface here. Nothing in this module
//! decides to refuse anything.

use std::fmt;

use serde_json::{Map, Value, json};

use super::registry::Resource;

/// One entry of `details.causes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cause {
    pub reason: String,
    pub message: String,
    pub field: String,
}

impl From<crate::schema::Cause> for Cause {
    fn from(cause: crate::schema::Cause) -> Self {
        Self {
            reason: cause.reason.as_str().to_owned(),
            message: cause.message,
            field: cause.field,
        }
    }
}

/// A request that is answered with a `Status` of failure.
#[derive(Clone, Debug)]
pub(crate) struct ApiError {
    pub code: u16,
    pub reason: &'static str,
    pub message: String,
    pub details: Map<String, Value>,
    /// A list that lost its moment may go on from here, inconsistently.
    pub resume: Option<String>,
}

pub(crate) type Result<T, E = Box<ApiError>> = std::result::Result<T, E>;

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ApiError {}

impl ApiError {
    fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Box<Self> {
        Box::new(Self {
            code,
            reason,
            message: message.into(),
            details: Map::new(),
            resume: None,
        })
    }

    fn about(mut self: Box<Self>, group: &str, kind: &str, name: &str) -> Box<Self> {
        for (field, value) in [("name", name), ("group", group), ("kind", kind)] {
            if !value.is_empty() {
                self.details.insert(field.to_owned(), value.into());
            }
        }
        self
    }

    fn causes(mut self: Box<Self>, causes: Vec<Cause>) -> Box<Self> {
        let causes: Vec<Value> = causes
            .into_iter()
            .map(|cause| {
                let mut entry = Map::new();
                entry.insert("message".to_owned(), cause.message.into());
                for (name, value) in [("reason", cause.reason), ("field", cause.field)] {
                    if !value.is_empty() {
                        entry.insert(name.to_owned(), value.into());
                    }
                }
                entry.into()
            })
            .collect();
        self.details.insert("causes".to_owned(), causes.into());
        self
    }

    fn retry_after(mut self: Box<Self>, seconds: u32) -> Box<Self> {
        self.details
            .insert("retryAfterSeconds".to_owned(), seconds.into());
        self
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Box<Self> {
        Self::new(400, "BadRequest", message)
    }

    pub(crate) fn unauthorized() -> Box<Self> {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    pub(crate) fn forbidden(group: &str, plural: &str, name: &str, why: impl fmt::Display) -> Box<Self> {
        let message = match (plural, name) {
            ("", _) => format!("forbidden: {why}"),
            (_, "") => format!("{} is forbidden: {why}", qualified(plural, group)),
            _ => format!("{} {name:?} is forbidden: {why}", qualified(plural, group)),
        };
        Self::new(403, "Forbidden", message).about(group, plural, name)
    }

    /// New content for a namespace that is going away.
    pub(crate) fn terminating(resource: &Resource, name: &str, namespace: &str, why: &str) -> Box<Self> {
        Self::forbidden(&resource.group, &resource.plural, name, why).causes(vec![Cause {
            reason: "NamespaceTerminating".to_owned(),
            message: format!("namespace {namespace} is being terminated"),
            field: "metadata.namespace".to_owned(),
        }])
    }

    pub(crate) fn path_not_found() -> Box<Self> {
        Self::new(
            404,
            "NotFound",
            "the server could not find the requested resource",
        )
    }

    pub(crate) fn not_found(resource: &Resource, name: &str) -> Box<Self> {
        let message = format!("{} {name:?} not found", resource.qualified());
        Self::new(404, "NotFound", message).about(&resource.group, &resource.plural, name)
    }

    pub(crate) fn method_not_allowed() -> Box<Self> {
        let message = "the server does not allow this method on the requested resource";
        Self::new(405, "MethodNotAllowed", message)
    }

    pub(crate) fn not_acceptable(offered: &str) -> Box<Self> {
        let message = format!("only the following media types are accepted: {offered}");
        Self::new(406, "NotAcceptable", message)
    }

    pub(crate) fn already_exists(resource: &Resource, name: &str) -> Box<Self> {
        let message = format!("{} {name:?} already exists", resource.qualified());
        Self::new(409, "AlreadyExists", message).about(&resource.group, &resource.plural, name)
    }

    /// A generated name was taken; the client may simply try again.
    pub(crate) fn generated_name_conflict(resource: &Resource, name: &str) -> Box<Self> {
        let message = format!(
            "{} {name:?} already exists, the server was not able to generate a unique name for the object",
            resource.qualified()
        );
        Self::new(409, "AlreadyExists", message)
            .about(&resource.group, &resource.plural, name)
            .retry_after(1)
    }

    pub(crate) fn conflict(resource: &Resource, name: &str, why: impl fmt::Display) -> Box<Self> {
        let message = format!(
            "Operation cannot be fulfilled on {} {name:?}: {why}",
            resource.qualified()
        );
        Self::new(409, "Conflict", message).about(&resource.group, &resource.plural, name)
    }

    /// The object moved on since the client read it.
    pub(crate) fn outdated(resource: &Resource, name: &str) -> Box<Self> {
        Self::conflict(
            resource,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// Server-side apply met fields that belong to somebody else.
    pub(crate) fn apply_conflict(message: String, causes: Vec<Cause>) -> Box<Self> {
        Self::new(409, "Conflict", message).causes(causes)
    }

    /// The history that was asked for is gone; `token` continues an interrupted list inconsistently.
    pub(crate) fn expired(message: impl Into<String>) -> Box<Self> {
        Self::new(410, "Expired", message)
    }

    pub(crate) fn unsupported_media(given: &str, accepted: &str) -> Box<Self> {
        let message = format!(
            "the body of the request was in an unknown format ({given}) - accepted media types include: {accepted}"
        );
        Self::new(415, "UnsupportedMediaType", message)
    }

    pub(crate) fn too_large(limit: usize) -> Box<Self> {
        Self::new(
            413,
            "RequestEntityTooLarge",
            format!("Request entity too large: limit is {limit}"),
        )
    }

    pub(crate) fn invalid(group: &str, kind: &str, name: &str, causes: Vec<Cause>) -> Box<Self> {
        let listed: Vec<String> = causes
            .iter()
            .map(|cause| match cause.field.as_str() {
                "" => cause.message.clone(),
                field => format!("{field}: {}", cause.message),
            })
            .collect();
        let listed = match listed.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let message = format!("{} {name:?} is invalid: {listed}", qualified(kind, group));
        Self::new(422, "Invalid", message)
            .about(group, kind, name)
            .causes(causes)
    }

    pub(crate) fn unprocessable(message: impl Into<String>) -> Box<Self> {
        Self::new(422, "Invalid", message)
    }

    pub(crate) fn too_many_requests(message: impl Into<String>) -> Box<Self> {
        Self::new(429, "TooManyRequests", message).retry_after(1)
    }

    pub(crate) fn internal(message: impl fmt::Display) -> Box<Self> {
        Self::new(
            500,
            "InternalError",
            format!("Internal error occurred: {message}"),
        )
        .causes(vec![Cause {
            reason: String::new(),
            message: message.to_string(),
            field: String::new(),
        }])
    }

    pub(crate) fn not_implemented(message: impl Into<String>) -> Box<Self> {
        Self::new(501, "NotImplemented", message)
    }

    pub(crate) fn unavailable(message: impl Into<String>) -> Box<Self> {
        Self::new(503, "ServiceUnavailable", message).retry_after(1)
    }

    pub(crate) fn future_revision(asked: u64, now: u64) -> Box<Self> {
        let message = format!("Too large resource version: {asked}, current: {now}");
        let cause = Cause {
            reason: "ResourceVersionTooLarge".to_owned(),
            message: "Too large resource version".to_owned(),
            field: String::new(),
        };
        Self::new(504, "Timeout", format!("Timeout: {message}"))
            .causes(vec![cause])
            .retry_after(1)
    }

    pub(crate) fn timeout(message: impl fmt::Display) -> Box<Self> {
        Self::new(504, "Timeout", format!("Timeout: {message}"))
    }

    /// A webhook's own words.
    pub(crate) fn denied(code: u16, reason: Option<&str>, message: String) -> Box<Self> {
        const REASONS: [&str; 12] = [
            "BadRequest",
            "Unauthorized",
            "Forbidden",
            "NotFound",
            "MethodNotAllowed",
            "AlreadyExists",
            "Conflict",
            "Gone",
            "Invalid",
            "TooManyRequests",
            "InternalError",
            "ServiceUnavailable",
        ];
        let reason = REASONS
            .into_iter()
            .find(|known| Some(*known) == reason)
            .unwrap_or_default();
        Self::new(code, reason, message)
    }

    pub(crate) fn status(&self) -> Value {
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "code": self.code,
        });
        if !self.reason.is_empty() {
            status["reason"] = self.reason.into();
        }
        if !self.details.is_empty() {
            status["details"] = self.details.clone().into();
        }
        if let Some(token) = &self.resume {
            status["metadata"]["continue"] = token.as_str().into();
        }
        status
    }
}

/// `pods`, or `deployments.apps`.
fn qualified(name: &str, group: &str) -> String {
    if group.is_empty() {
        name.to_owned()
    } else {
        format!("{name}.{group}")
    }
}
