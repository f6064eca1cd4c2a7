//! `/openapi/v3`: documents made from the registry's table, once per table.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};

use super::body::{self, Response};
use super::registry::{Resource, Table};
use super::request::Query;
use crate::schema::openapi::{self, Served};

/// An OpenAPI v2 document that describes nothing, in JSON and in the protobuf form that kubectl asks for: `swagger`
/// (1), `info` (2) with title (1) and version (2), `paths` (8). kubectl looks here when a `List` is applied, because
/// v3 has no such kind, and takes what is not described for valid; the server judges.
const V2_JSON: &str = r#"{"swagger":"2.0","info":{"title":"Kubernetes","version":"v1"},"paths":{}}"#;
const V2_PROTOBUF: &[u8] = b"\x0a\x032.0\x12\x10\x0a\x0aKubernetes\x12\x02v1\x42\x00";
const V2_PROTOBUF_TYPE: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// Answers `/openapi/v2`.
pub(crate) fn version_2(headers: &HeaderMap) -> Response {
    let accepted = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    if !accepted.is_some_and(|accepted| accepted.contains("protobuf")) {
        return body::json(StatusCode::OK, V2_JSON);
    }
    let mut response = body::json(StatusCode::OK, V2_PROTOBUF);
    let kind = HeaderValue::from_static(V2_PROTOBUF_TYPE);
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// The documents of one table by path, each with its hash.
type Documents = BTreeMap<String, (String, Bytes)>;

#[derive(Debug, Default)]
pub(crate) struct Cache(Mutex<Option<(Arc<Table>, Arc<Documents>)>>);

impl Cache {
    fn documents(&self, table: &Arc<Table>) -> Arc<Documents> {
        let mut cached = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, documents)) = &*cached
            && Arc::ptr_eq(of, table)
        {
            return documents.clone();
        }
        let mut groups: BTreeMap<(&str, &str), Vec<&Resource>> = BTreeMap::new();
        for resource in table.values() {
            groups
                .entry((&resource.group, &resource.version))
                .or_default()
                .push(resource);
        }
        let documents: Documents = groups
            .into_iter()
            .map(|((group, version), resources)| {
                let texts: Vec<(Vec<&str>, Vec<&str>)> = resources
                    .iter()
                    .map(|resource| {
                        let same = resource
                            .subresources
                            .iter()
                            .filter(|sub| sub.kind == resource.kind);
                        (
                            resource.verbs.iter().map(String::as_str).collect(),
                            same.map(|sub| sub.name.as_str()).collect(),
                        )
                    })
                    .collect();
                let served: Vec<Served<'_>> = resources
                    .iter()
                    .zip(&texts)
                    .map(|(resource, (verbs, subresources))| Served {
                        kind: &resource.kind,
                        plural: &resource.plural,
                        namespaced: resource.namespaced,
                        verbs,
                        subresources,
                        schema: resource.schema.as_ref(),
                    })
                    .collect();
                let document = openapi::document(group, version, &served).to_string();
                let path = match group {
                    "" => format!("api/{version}"),
                    group => format!("apis/{group}/{version}"),
                };
                (path, (openapi::hash(document.as_bytes()), Bytes::from(document)))
            })
            .collect();
        let documents = Arc::new(documents);
        *cached = Some((table.clone(), documents.clone()));
        documents
    }

    /// `path` is what follows `/openapi/v3`.
    pub(crate) fn answer(
        &self,
        table: &Arc<Table>,
        path: &str,
        query: &Query,
        headers: &HeaderMap,
    ) -> Option<Response> {
        let documents = self.documents(table);
        let path = path.trim_matches('/');
        if path.is_empty() {
            let index = openapi::index(
                documents
                    .iter()
                    .map(|(path, (hash, _))| (path.as_str(), hash.as_str())),
            );
            return Some(body::value(StatusCode::OK, &index));
        }
        let (hash, document) = documents.get(path)?;
        let tag = format!("\"{hash}\"");
        let unchanged = headers
            .get(header::IF_NONE_MATCH)
            .is_some_and(|known| known.as_bytes() == tag.as_bytes());
        let mut response = match unchanged {
            true => body::json(StatusCode::NOT_MODIFIED, ""),
            false => body::json(StatusCode::OK, document.clone()),
        };
        if let Ok(tag) = HeaderValue::from_str(&tag) {
            response.headers_mut().insert(header::ETAG, tag);
        }
        if query.get("hash") == Some(hash) {
            // The address names the content, so it never changes.
            let forever = HeaderValue::from_static("public, immutable, max-age=31536000");
            response.headers_mut().insert(header::CACHE_CONTROL, forever);
        }
        Some(response)
    }
}
