//! Bodies: reading requests within limits, decoding them into values, and building responses.

use std::io;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::error::{ApiError, Result};
use crate::schema::protobuf::{self, DecodeError};

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
        Format::Protobuf => protobuf::decode(bytes).map_err(|error| match error {
            DecodeError::UnknownKind { .. } => ApiError::unsupported_media(
                &format!("application/vnd.kubernetes.protobuf: {error}"),
                "application/json, application/yaml",
            ),
            error => bad(&error),
        }),
    }
}

/// Fields that a JSON text gives twice: ordinary parsing keeps the last silently.
pub(crate) fn duplicate_fields(bytes: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    // A text that isn't JSON has been refused already.
    let _ = Duplicates {
        path: String::new(),
        found: &mut found,
    }
    .deserialize(&mut serde_json::Deserializer::from_slice(bytes));
    found
}

struct Duplicates<'a> {
    path: String,
    found: &'a mut Vec<String>,
}

impl<'de> DeserializeSeed<'de> for Duplicates<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Duplicates<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("any JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = std::collections::BTreeSet::new();
        while let Some(key) = map.next_key::<String>()? {
            let path = if self.path.is_empty() {
                key.clone()
            } else {
                format!("{}.{key}", self.path)
            };
            if !seen.insert(key) {
                self.found.push(format!("duplicate field {path:?}"));
            }
            map.next_value_seed(Duplicates {
                path,
                found: self.found,
            })?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        for index in 0.. {
            let path = format!("{}[{index}]", self.path);
            if items
                .next_element_seed(Duplicates {
                    path,
                    found: self.found,
                })?
                .is_none()
            {
                break;
            }
        }
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
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
