//! What `hawser inject` and `hawser uninject` do to manifests.
//!
//! Pure: documents in, documents and a report out. By default a manifest is only annotated and the webhook does the
//! rest; `manual` renders the proxy at once. Injecting twice gives the same as injecting once.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Value, json};

use super::inject::{Component, Injection, Namespace, Owner, Skip, decide, object, strings};
use crate::keys;
use crate::values::Values;

/// What to do with workloads.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// `linkerd.io/inject: ingress` instead of `enabled`.
    pub ingress: bool,
    /// Further annotations, with their whole names: `config.linkerd.io/skip-inbound-ports`.
    pub annotations: BTreeMap<String, String>,
    /// Render the proxy now, with these values.
    pub manual: Option<Manual>,
}

/// What rendering at once needs to know of the mesh.
#[derive(Clone, Debug)]
pub struct Manual {
    pub values: Values,
    pub control_plane_namespace: String,
}

/// What became of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub kind: String,
    pub name: String,
    pub outcome: Outcome,
    /// Ports that no proxy carries.
    pub udp: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing runs in it, but others treat it differently.
    Annotated,
    /// It has a proxy, or will have one when the webhook sees it.
    Injected,
    Uninjected,
    Skipped(Skip),
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.kind.is_empty() {
            return f.write_str("document missing \"kind\" field, skipped");
        }
        let kind = self.kind.to_ascii_lowercase();
        write!(f, "{kind} \"{}\" ", self.name)?;
        match &self.outcome {
            Outcome::Annotated => f.write_str("annotated")?,
            Outcome::Injected => f.write_str("injected")?,
            Outcome::Uninjected => f.write_str("uninjected")?,
            // There was never a question of a proxy.
            Outcome::Skipped(Skip::UnsupportedKind) => f.write_str("skipped")?,
            Outcome::Skipped(skip) => write!(f, "skipped: {skip}")?,
        }
        if self.udp {
            f.write_str(" (UDP ports are not carried by the mesh)")
        } else {
            Ok(())
        }
    }
}

/// Injects one document; a `List` is done item by item.
pub fn inject(document: Value, options: &Options) -> (Value, Vec<Report>) {
    each(document, &|document| inject_one(document, options))
}

/// Takes away what inject or the webhook added.
pub fn uninject(document: Value) -> (Value, Vec<Report>) {
    each(document, &|mut document| {
        let outcome = if template(&document).is_none() {
            Outcome::Skipped(Skip::UnsupportedKind)
        } else if clean(&mut document) {
            Outcome::Uninjected
        } else {
            Outcome::Skipped(Skip::NotAsked)
        };
        let report = report(&document, outcome);
        (document, report)
    })
}

fn each(mut document: Value, one: &dyn Fn(Value) -> (Value, Report)) -> (Value, Vec<Report>) {
    let list = document["kind"]
        .as_str()
        .is_some_and(|kind| kind.ends_with("List"));
    if !list || !document["items"].is_array() {
        let (document, report) = one(document);
        return (document, vec![report]);
    }
    let items = match document["items"].take() {
        Value::Array(items) => items,
        other => vec![other],
    };
    let (items, reports): (Vec<Value>, Vec<Vec<Report>>) =
        items.into_iter().map(|item| each(item, one)).unzip();
    document["items"] = Value::Array(items);
    (document, reports.into_iter().flatten().collect())
}

fn inject_one(mut document: Value, options: &Options) -> (Value, Report) {
    let mut annotations = options.annotations.clone();
    let mode = if options.ingress { "ingress" } else { "enabled" };
    match document["kind"].as_str() {
        Some("Namespace") => {
            annotations.insert(keys::INJECT.into(), mode.into());
            annotate(&mut document, annotations);
            let report = report(&document, Outcome::Injected);
            return (document, report);
        }
        Some("Service") => {
            // A Service has no proxy of its own; only its opaque ports concern others.
            annotations.retain(|name, _| name == keys::OPAQUE_PORTS);
            let outcome = if annotations.is_empty() {
                Outcome::Skipped(Skip::UnsupportedKind)
            } else {
                Outcome::Annotated
            };
            annotate(&mut document, annotations);
            let report = report(&document, outcome);
            return (document, report);
        }
        _ => {}
    }
    let Some(at) = template(&document) else {
        let report = report(&document, Outcome::Skipped(Skip::UnsupportedKind));
        return (document, report);
    };
    let component = document
        .pointer(at)
        .and_then(|pod| pod["metadata"]["labels"][keys::CONTROL_PLANE_COMPONENT].as_str());
    if component.is_some() && options.manual.is_none() {
        let report = report(&document, Outcome::Skipped(Skip::UnsupportedKind));
        return (document, report);
    }
    clean(&mut document);
    annotations.insert(keys::INJECT.into(), mode.into());
    let kind = document["kind"].as_str().unwrap_or_default().to_ascii_lowercase();
    let owner = Owner {
        kind,
        name: document["metadata"]["name"].as_str().unwrap_or_default().into(),
    };
    let namespace = document["metadata"]["namespace"]
        .as_str()
        .unwrap_or("default")
        .to_owned();
    let namespace = Namespace {
        name: namespace,
        annotations: BTreeMap::new(),
    };
    let Some(pod) = document.pointer_mut(at) else {
        unreachable!("a template's place was just found")
    };
    let mut annotated = pod.clone();
    annotate(&mut annotated, annotations);
    let outcome = match (decide(&annotated, &namespace), &options.manual) {
        (Err(skip), _) => Outcome::Skipped(skip),
        (Ok(_), None) => {
            *pod = annotated;
            Outcome::Injected
        }
        (Ok(mode), Some(manual)) => {
            let injection = Injection {
                values: &manual.values,
                control_plane_namespace: &manual.control_plane_namespace,
                namespace: &namespace,
                owner: (owner.kind != "pod").then_some(&owner),
                component: Component::None,
            };
            *pod = injection.inject(&annotated, mode);
            Outcome::Injected
        }
    };
    let report = report(&document, outcome);
    (document, report)
}

/// Where a kind keeps the pod that it makes.
fn template(document: &Value) -> Option<&'static str> {
    match document["kind"].as_str()? {
        "Pod" => Some(""),
        "Deployment" | "DaemonSet" | "StatefulSet" | "ReplicaSet" | "ReplicationController" | "Job" => {
            Some("/spec/template")
        }
        "CronJob" => Some("/spec/jobTemplate/spec/template"),
        _ => None,
    }
    .filter(|at| document.pointer(at).is_some_and(Value::is_object))
}

fn annotate(pod: &mut Value, with: BTreeMap<String, String>) {
    if with.is_empty() {
        return;
    }
    let mut annotations = strings(&pod["metadata"]["annotations"]);
    annotations.extend(with);
    object(object(pod).entry("metadata").or_insert(Value::Null))
        .insert("annotations".into(), json!(annotations));
}

/// Removes proxy, init container, volumes and what the mesh wrote into the metadata. Settings of the user stay, so
/// that injecting again gives the same proxy.
fn clean(document: &mut Value) -> bool {
    let Some(at) = template(document) else {
        return false;
    };
    let before = document.clone();
    let Some(pod) = document.pointer_mut(at) else {
        return false;
    };
    let ours = |name: &Value| {
        matches!(
            name.as_str(),
            Some(
                "linkerd-proxy"
                    | "linkerd-init"
                    | "linkerd-network-validator"
                    | "linkerd-debug"
                    | "linkerd-identity-end-entity"
                    | "linkerd-identity-token"
                    | "linkerd-proxy-init-xtables-lock"
            )
        )
    };
    if let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) {
        for list in ["containers", "initContainers", "volumes"] {
            let Some(Value::Array(items)) = spec.get_mut(list) else {
                continue;
            };
            items.retain(|item| !ours(&item["name"]));
            if items.is_empty() {
                spec.remove(list);
            }
        }
    }
    for (map, is_ours) in [
        (
            "annotations",
            (|name: &str| name.starts_with("linkerd.io/")) as fn(&str) -> bool,
        ),
        ("labels", |name: &str| {
            name.starts_with("linkerd.io/") && name != keys::CONTROL_PLANE_COMPONENT
        }),
    ] {
        let Some(metadata) = pod.get_mut("metadata").and_then(Value::as_object_mut) else {
            continue;
        };
        let Some(Value::Object(entries)) = metadata.get_mut(map) else {
            continue;
        };
        entries.retain(|name, _| !is_ours(name));
        if entries.is_empty() {
            metadata.remove(map);
        }
    }
    *document != before
}

fn report(document: &Value, outcome: Outcome) -> Report {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let pod = template(document).and_then(|at| document.pointer(at));
    let udp = pod.is_some_and(|pod| {
        let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
        containers
            .flat_map(|container| container["ports"].as_array().into_iter().flatten())
            .any(|port| port["protocol"] == "UDP")
    });
    Report {
        kind: text(&document["kind"]),
        name: text(&document["metadata"]["name"]),
        outcome,
        udp,
    }
}
