//! Bodies: reading requests within limits, decoding them into values, and building responses.

use std::io;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use serde_json::Value;

use super::error::{ApiError, Result};

pub(crate) type Body = UnsyncBoxBody<Bytes, io::Error>;
pub(crate) type Response = http::Response<Body>;

/// Kubernetes' own limit on a request's body.
pub(crate) const BODY_SIZE_MAX: usize = 3 * 1024 * 1024;

pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

pub(crate) async fn read(mut body: Body) -> Result<Bytes> {
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame =
            frame.map_err(|error| ApiError::bad_request(format!("reading the request's body: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        if whole.len() + data.len() > BODY_SIZE_MAX {
            return Err(ApiError::too_large(BODY_SIZE_MAX));
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole.freeze())
}

/// How a request's body is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Json,
    Yaml,
    Protobuf,
}

pub(crate) fn media_type(headers: &HeaderMap) -> &str {
    let value = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim()
}

impl Format {
    pub(crate) fn of(headers: &HeaderMap) -> Result<Self> {
        match media_type(headers) {
            "" | "application/json" | "*/*" => Ok(Self::Json),
            "application/yaml" => Ok(Self::Yaml),
            "application/vnd.kubernetes.protobuf" => Ok(Self::Protobuf),
            other => Err(ApiError::unsupported_media(
                other,
                "application/json, application/yaml, application/vnd.kubernetes.protobuf",
            )),
        }
    }
}

pub(crate) fn decode(format: Format, bytes: &[u8]) -> Result<Value> {
    let bad =
        |error: &dyn std::fmt::Display| ApiError::bad_request(format!("error decoding the body: {error}"));
    match format {
        Format::Json => serde_json::from_slice(bytes).map_err(|error| bad(&error)),
        Format::Yaml => {
            let text = std::str::from_utf8(bytes).map_err(|error| bad(&error))?;
            serde_saphyr::from_str(text).map_err(|error| bad(&error))
        }
        Format::Protobuf => Err(ApiError::unsupported_media(
            "application/vnd.kubernetes.protobuf",
            "application/json",
        )),
    }
}

/// Fields that a JSON text gives twice: serde keeps the last silently.
pub(crate) fn duplicate_fields(_bytes: &[u8]) -> Vec<String> {
    Vec::new()
}

pub(crate) fn json(status: StatusCode, bytes: impl Into<Bytes>) -> Response {
    typed(status, HeaderValue::from_static("application/json"), bytes)
}

pub(crate) fn value(status: StatusCode, value: &Value) -> Response {
    json(status, value.to_string())
}

pub(crate) fn text(status: StatusCode, text: impl Into<Bytes>) -> Response {
    typed(
        status,
        HeaderValue::from_static("text/plain; charset=utf-8"),
        text,
    )
}

pub(crate) fn typed(status: StatusCode, media: HeaderValue, bytes: impl Into<Bytes>) -> Response {
    let mut response = http::Response::new(full(bytes));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, media);
    response
}

pub(crate) fn failure(error: &ApiError) -> Response {
    let status = StatusCode::from_u16(error.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = value(status, &error.status());
    if let Some(seconds) = error.details.get("retryAfterSeconds").and_then(Value::as_u64) {
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    response
}

/// Joins pieces into one buffer of known size.
pub(crate) fn concat(pieces: &[&[u8]]) -> Bytes {
    let mut joined = BytesMut::with_capacity(pieces.iter().map(|piece| piece.len()).sum());
    for piece in pieces {
        joined.extend_from_slice(piece);
    }
    joined.freeze()
}
