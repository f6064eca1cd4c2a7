//! What the server serves: `/api`, `/apis` and below, in the aggregated and the old form, and `/version`.
//!
//! Pure functions of the registry's table.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::{Value, json};
use sha2::Digest as _;

use super::body::{self, Response};
use super::form::accepted;
use super::registry::{Resource, Table, api_version};
use super::request::Query;

pub(crate) fn version() -> Value {
    json!({
        "major": "1",
        "minor": "33",
        "gitVersion": "v1.33.0+hawser",
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "2026-01-01T00:00:00Z",
        "goVersion": "",
        "compiler": "rustc",
        "platform": "linux/amd64",
    })
}

pub(crate) fn health(path: &str, query: &Query) -> String {
    if !query.flag("verbose") {
        return "ok".to_owned();
    }
    format!(
        "[+]ping ok\n[+]store ok\n{} check passed\n",
        path.trim_matches('/')
    )
}

/// The answer to a discovery path.
pub(crate) fn answer(table: &Table, path: &str, headers: &HeaderMap) -> Option<Response> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let value = match parts[..] {
        [] => json!({ "paths": paths(table) }),
        ["api"] | ["apis"] => {
            let legacy = parts[0] == "api";
            if let Some(version) = aggregated_version(headers) {
                return Some(aggregated(table, legacy, version, headers));
            }
            if legacy {
                json!({
                    "kind": "APIVersions",
                    "versions": ["v1"],
                    "serverAddressByClientCIDRs": [{ "clientCIDR": "0.0.0.0/0", "serverAddress": "" }],
                })
            } else {
                let groups: Vec<Value> = groups(table)
                    .iter()
                    .filter(|(group, _)| !group.is_empty())
                    .map(|(g, v)| api_group(g, v))
                    .collect();
                json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups })
            }
        }
        ["api", "v1"] => resource_list(table, "", "v1")?,
        ["apis", group] => {
            let groups = groups(table);
            let mut value = api_group(group, groups.get(group)?);
            value["kind"] = "APIGroup".into();
            value["apiVersion"] = "v1".into();
            value
        }
        ["apis", group, version] => resource_list(table, group, version)?,
        _ => return None,
    };
    Some(body::value(StatusCode::OK, &value))
}

fn paths(table: &Table) -> Vec<String> {
    let mut paths = vec!["/api".to_owned(), "/apis".to_owned()];
    for (group, versions) in groups(table) {
        for version in versions {
            paths.push(if group.is_empty() {
                format!("/api/{version}")
            } else {
                format!("/apis/{group}/{version}")
            });
        }
    }
    paths.extend(["/healthz", "/livez", "/openapi/v3", "/readyz", "/version"].map(str::to_owned));
    paths
}

/// Versions by group, the preferred one first.
fn groups(table: &Table) -> BTreeMap<&str, Vec<&str>> {
    let mut groups: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (group, version, _) in table.keys() {
        let versions = groups.entry(group).or_default();
        if !versions.contains(&version.as_str()) {
            versions.push(version);
        }
    }
    for versions in groups.values_mut() {
        versions.sort_by_key(|version| std::cmp::Reverse(version_priority(version)));
    }
    groups
}

/// Kubernetes' order of versions: stable before beta before alpha, then the higher number.
pub(crate) fn version_priority(version: &str) -> (u8, u32, u32) {
    let parse = || -> Option<(u8, u32, u32)> {
        let rest = version.strip_prefix('v')?;
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (major, rest) = rest.split_at(digits);
        let major = major.parse().ok()?;
        if rest.is_empty() {
            return Some((3, major, 0));
        }
        if let Some(minor) = rest.strip_prefix("beta") {
            return Some((2, major, minor.parse().ok()?));
        }
        Some((1, major, rest.strip_prefix("alpha")?.parse().ok()?))
    };
    parse().unwrap_or((0, 0, 0))
}

fn api_group(group: &str, versions: &[&str]) -> Value {
    let entry = |version: &&str| json!({ "groupVersion": api_version(group, version), "version": version });
    json!({
        "name": group,
        "versions": versions.iter().map(entry).collect::<Vec<_>>(),
        "preferredVersion": versions.first().map(entry),
    })
}

fn of_version<'a>(
    table: &'a Table,
    group: &'a str,
    version: &'a str,
) -> impl Iterator<Item = &'a Arc<Resource>> {
    table
        .values()
        .filter(move |resource| resource.group == group && resource.version == version)
}

fn resource_list(table: &Table, group: &str, version: &str) -> Option<Value> {
    let mut resources = Vec::new();
    for resource in of_version(table, group, version) {
        let mut entry = json!({
            "name": resource.plural,
            "singularName": resource.singular,
            "namespaced": resource.namespaced,
            "kind": resource.kind,
            "verbs": resource.verbs,
        });
        if !resource.short_names.is_empty() {
            entry["shortNames"] = resource.short_names.clone().into();
        }
        if !resource.categories.is_empty() {
            entry["categories"] = resource.categories.clone().into();
        }
        if resource.allows("list") {
            entry["storageVersionHash"] = hash(&resource.qualified())[..12].into();
        }
        resources.push(entry);
        for sub in &resource.subresources {
            let mut entry = json!({
                "name": format!("{}/{}", resource.plural, sub.name),
                "singularName": "",
                "namespaced": resource.namespaced,
                "kind": sub.kind,
                "verbs": sub.verbs,
            });
            if (sub.group.as_str(), sub.version.as_str()) != (group, version) {
                entry["group"] = sub.group.as_str().into();
                entry["version"] = sub.version.as_str().into();
            }
            resources.push(entry);
        }
    }
    (!resources.is_empty()).then(|| {
        json!({
            "kind": "APIResourceList",
            "apiVersion": "v1",
            "groupVersion": api_version(group, version),
            "resources": resources,
        })
    })
}

/// The version of aggregated discovery that a client wants most, if any.
fn aggregated_version(headers: &HeaderMap) -> Option<&'static str> {
    for entry in accepted(headers) {
        let wanted = entry.parameter("g") == Some("apidiscovery.k8s.io")
            && entry.parameter("as") == Some("APIGroupDiscoveryList");
        match entry.parameter("v") {
            Some("v2") if wanted => return Some("v2"),
            Some("v2beta1") if wanted => return Some("v2beta1"),
            _ if entry.media == "application/json" && entry.parameter("as").is_none() => return None,
            _ => {}
        }
    }
    None
}

fn aggregated(table: &Table, legacy: bool, form: &'static str, headers: &HeaderMap) -> Response {
    let items: Vec<Value> = groups(table)
        .into_iter()
        .filter(|(group, _)| group.is_empty() == legacy)
        .map(|(group, versions)| {
            let versions: Vec<Value> = versions
                .into_iter()
                .map(|version| {
                    let resources: Vec<Value> = of_version(table, group, version)
                        .map(|resource| discovered(resource))
                        .collect();
                    json!({ "version": version, "resources": resources, "freshness": "Current" })
                })
                .collect();
            json!({ "metadata": { "name": group, "creationTimestamp": null }, "versions": versions })
        })
        .collect();
    let value = json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": format!("apidiscovery.k8s.io/{form}"),
        "metadata": {},
        "items": items,
    });
    let bytes = value.to_string();
    let tag = format!("\"{}\"", hash(&bytes).to_uppercase());
    let unchanged = headers
        .get(header::IF_NONE_MATCH)
        .is_some_and(|known| known.as_bytes() == tag.as_bytes());
    let media = format!("application/json;g=apidiscovery.k8s.io;v={form};as=APIGroupDiscoveryList");
    let plain = || HeaderValue::from_static("application/json");
    let media = HeaderValue::from_str(&media).unwrap_or_else(|_| plain());
    let mut response = if unchanged {
        body::typed(StatusCode::NOT_MODIFIED, media, "")
    } else {
        body::typed(StatusCode::OK, media, bytes)
    };
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
        .headers_mut()
        .insert(header::VARY, HeaderValue::from_static("Accept"));
    response
}

fn discovered(resource: &Resource) -> Value {
    let kind =
        |group: &str, version: &str, kind: &str| json!({ "group": group, "version": version, "kind": kind });
    let scope = if resource.namespaced {
        "Namespaced"
    } else {
        "Cluster"
    };
    let mut entry = json!({
        "resource": resource.plural,
        "responseKind": kind(&resource.group, &resource.version, &resource.kind),
        "scope": scope,
        "singularResource": resource.singular,
        "verbs": resource.verbs,
    });
    if !resource.short_names.is_empty() {
        entry["shortNames"] = resource.short_names.clone().into();
    }
    if !resource.categories.is_empty() {
        entry["categories"] = resource.categories.clone().into();
    }
    if !resource.subresources.is_empty() {
        let entries: Vec<Value> = resource
            .subresources
            .iter()
            .map(|sub| {
                let response = kind(&sub.group, &sub.version, &sub.kind);
                json!({ "subresource": sub.name, "responseKind": response, "verbs": sub.verbs })
            })
            .collect();
        entry["subresources"] = entries.into();
    }
    entry
}

pub(crate) fn hash(text: &str) -> String {
    use std::fmt::Write as _;
    sha2::Sha256::digest(text.as_bytes())
        .iter()
        .fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        })
}
