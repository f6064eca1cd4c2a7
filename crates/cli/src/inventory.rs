//! What an installation of the control plane consists of, and what of it a cluster holds.
//!
//! The list comes from what `install` renders, so the two cannot drift apart.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use hawser_control::values::Values;
use kube::api::{ApiResource, DynamicObject, ListParams};
use kube::core::GroupVersionKind;
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};

use crate::install::manifests::{Mesh, render};
use crate::kube::is_missing;
use crate::meshed;

/// One object, by what it takes to find it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Reference {
    pub(crate) api_version: String,
    pub(crate) kind: String,
    pub(crate) namespace: Option<String>,
    pub(crate) name: String,
}

impl Reference {
    fn of(object: &Value) -> Self {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        Self {
            api_version: text("/apiVersion").unwrap_or_default(),
            kind: text("/kind").unwrap_or_default(),
            namespace: text("/metadata/namespace"),
            name: text("/metadata/name").unwrap_or_default(),
        }
    }

    /// Just enough for `kubectl delete -f -`.
    pub(crate) fn to_object(&self) -> Value {
        let mut metadata = json!({"name": self.name});
        if let Some(namespace) = &self.namespace {
            metadata["namespace"] = namespace.as_str().into();
        }
        json!({"apiVersion": self.api_version, "kind": self.kind, "metadata": metadata})
    }

    fn resource(&self) -> ApiResource {
        let (group, version) = self
            .api_version
            .split_once('/')
            .unwrap_or(("", &self.api_version));
        ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &self.kind))
    }
}

/// Everything that `install` renders for a control plane in this namespace, in that order.
pub(crate) fn expected(namespace: &str) -> Vec<Reference> {
    let mesh = Mesh::new(Values::default(), namespace);
    render(&mesh).iter().map(Reference::of).collect()
}

/// Those of `wanted` that the cluster holds, in the same order. One request per kind and namespace.
pub(crate) async fn present(client: &Client, wanted: &[Reference]) -> Result<Vec<Reference>, kube::Error> {
    let mut names: BTreeMap<(&str, &str, Option<&str>), BTreeSet<String>> = BTreeMap::new();
    let mut found = Vec::new();
    for reference in wanted {
        let key = (
            reference.api_version.as_str(),
            reference.kind.as_str(),
            reference.namespace.as_deref(),
        );
        let listed = match names.entry(key) {
            Entry::Occupied(listed) => listed.into_mut(),
            Entry::Vacant(missing) => missing.insert(list(client, reference, &ListParams::default()).await?),
        };
        if listed.contains(&reference.name) {
            found.push(reference.clone());
        }
    }
    Ok(found)
}

/// Objects of the control plane in this namespace that `install` does not render, of the kinds that it renders.
pub(crate) async fn left_over(client: &Client, namespace: &str) -> Result<Vec<Reference>, kube::Error> {
    let expected = expected(namespace);
    let ours = ListParams::default().labels(&format!("{}={namespace}", meshed::MESHED));
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for reference in &expected {
        if !seen.insert((&reference.api_version, &reference.kind, &reference.namespace)) {
            continue;
        }
        let names = list(client, reference, &ours).await?.into_iter();
        let all = names.map(|name| Reference {
            name,
            ..reference.clone()
        });
        found.extend(all.filter(|reference| !expected.contains(reference)));
    }
    Ok(found)
}

/// Names of objects of this one's kind beside it.
async fn list(
    client: &Client,
    reference: &Reference,
    which: &ListParams,
) -> Result<BTreeSet<String>, kube::Error> {
    let resource = reference.resource();
    let api: Api<DynamicObject> = match &reference.namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    match api.list_metadata(which).await {
        Ok(list) => Ok(list.items.iter().map(ResourceExt::name_any).collect()),
        Err(error) if is_missing(&error) => Ok(BTreeSet::new()),
        Err(error) => Err(error),
    }
}
