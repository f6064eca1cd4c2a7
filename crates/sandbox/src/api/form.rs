//! The form in which a client wants objects: as they are, as metadata only, or as table rows.
//!
//! Chosen from the `Accept` header, first match wins. Plain objects are written through as the store holds them.

use bytes::Bytes;
use http::{HeaderMap, header};
use serde_json::{Value, json};

use super::error::{ApiError, Result};
use super::registry::{Resource, meta};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Object,
    Metadata { version: MetaVersion },
    Table { version: MetaVersion, include: Include },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MetaVersion {
    V1,
    V1Beta1,
}

/// What a table row carries beside its cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Include {
    None,
    Metadata,
    Object,
}

impl MetaVersion {
    fn api_version(self) -> &'static str {
        match self {
            Self::V1 => "meta.k8s.io/v1",
            Self::V1Beta1 => "meta.k8s.io/v1beta1",
        }
    }
}

/// One entry of an `Accept` header: media type and parameters.
pub(crate) struct Accepted<'a> {
    pub media: &'a str,
    parameters: Vec<(&'a str, &'a str)>,
}

impl<'a> Accepted<'a> {
    pub(crate) fn parameter(&self, name: &str) -> Option<&'a str> {
        self.parameters
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, value)| *value)
    }
}

pub(crate) fn accepted(headers: &HeaderMap) -> Vec<Accepted<'_>> {
    let values = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .map(|entry| {
            let mut parts = entry.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default();
            Accepted {
                media,
                parameters: parts.filter_map(|part| part.split_once('=')).collect(),
            }
        })
        .filter(|entry| !entry.media.is_empty())
        .collect()
}

impl Form {
    pub(crate) fn negotiate(headers: &HeaderMap, include: Option<&str>) -> Result<Self> {
        let entries = accepted(headers);
        if entries.is_empty() {
            return Ok(Self::Object);
        }
        for entry in &entries {
            if !matches!(entry.media, "application/json" | "application/*" | "*/*") {
                continue;
            }
            let version = match entry.parameter("v") {
                Some("v1beta1") => MetaVersion::V1Beta1,
                _ => MetaVersion::V1,
            };
            match entry.parameter("as") {
                None => return Ok(Self::Object),
                Some("Table") => {
                    let include = match include {
                        Some("None") => Include::None,
                        Some("Object") => Include::Object,
                        _ => Include::Metadata,
                    };
                    return Ok(Self::Table { version, include });
                }
                Some("PartialObjectMetadata" | "PartialObjectMetadataList") => {
                    return Ok(Self::Metadata { version });
                }
                Some(_) => {}
            }
        }
        Err(ApiError::not_acceptable("application/json, application/yaml"))
    }

    /// One object; `bytes` is `object` as JSON.
    pub(crate) fn object(self, resource: &Resource, object: &Value, bytes: &Bytes) -> Bytes {
        match self {
            Self::Object => bytes.clone(),
            Self::Metadata { version } => metadata(object, version).to_string().into(),
            Self::Table { .. } => self
                .table(
                    resource,
                    std::iter::once(object),
                    &json!({
                        "resourceVersion": meta::text(object, "resourceVersion"),
                    }),
                    Head::Columns,
                )
                .to_string()
                .into(),
        }
    }

    /// A whole table. Watches send the column definitions once only.
    pub(crate) fn table<'a>(
        self,
        resource: &Resource,
        objects: impl Iterator<Item = &'a Value>,
        list_metadata: &Value,
        head: Head,
    ) -> Value {
        let (version, include) = match self {
            Self::Table { version, include } => (version, include),
            _ => (MetaVersion::V1, Include::Metadata),
        };
        let columns = super::table::columns(resource);
        // For people's eyes only, so it need not be the cluster's clock.
        let now = jiff::Timestamp::now();
        let rows: Vec<Value> = objects
            .map(|object| {
                let mut row =
                    json!({ "cells": columns.iter().map(|column| column.cell(object, now)).collect::<Vec<_>>() });
                match include {
                    Include::None => {}
                    Include::Metadata => row["object"] = metadata(object, version),
                    Include::Object => row["object"] = object.clone(),
                }
                row
            })
            .collect();
        let definitions: Vec<Value> = match head {
            Head::Columns => columns.iter().map(|column| column.definition()).collect(),
            Head::None => Vec::new(),
        };
        json!({
            "kind": "Table",
            "apiVersion": version.api_version(),
            "metadata": list_metadata,
            "columnDefinitions": definitions,
            "rows": rows,
        })
    }

    pub(crate) fn metadata_list(self, objects: &[Value], list_metadata: &Value) -> Value {
        let version = match self {
            Self::Metadata { version } => version,
            _ => MetaVersion::V1,
        };
        let items: Vec<Value> = objects.iter().map(|object| metadata(object, version)).collect();
        json!({
            "kind": "PartialObjectMetadataList",
            "apiVersion": version.api_version(),
            "metadata": list_metadata,
            "items": items,
        })
    }
}

/// Whether a table tells its columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Head {
    Columns,
    None,
}

fn metadata(object: &Value, version: MetaVersion) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": version.api_version(),
        "metadata": object.get("metadata").cloned().unwrap_or_else(|| json!({})),
    })
}
