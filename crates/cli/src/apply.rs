//! Applies manifests the way `kubectl apply --server-side` does: every document of a YAML stream, in order.
//!
//! Knows kinds only through the cluster's discovery, so custom resources may follow their definitions in one stream;
//! a kind that is not served yet is waited for.

use std::collections::BTreeMap;
use std::time::Duration;

use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::discovery::{ApiCapabilities, ApiResource, Scope};
use kube::{Client, discovery};
use serde_json::Value;
use tokio::time::Instant;

use crate::problem::Problem;

/// How long a kind may take to be served after its definition was applied.
const KIND_DEADLINE: Duration = Duration::from_secs(15);

/// Owner of the fields that this binary applies.
const FIELD_MANAGER: &str = "hawser";

/// Applies to one cluster; remembers what discovery said.
pub(crate) struct Applier {
    client: Client,
    kinds: BTreeMap<(String, String), (ApiResource, ApiCapabilities)>,
}

impl Applier {
    pub(crate) fn new(client: Client) -> Self {
        Self {
            client,
            kinds: BTreeMap::new(),
        }
    }

    /// Applies every document of a YAML stream.
    pub(crate) async fn apply_yaml(&mut self, yaml: &str) -> Result<(), Problem> {
        for document in documents(yaml)? {
            self.apply(&document).await?;
        }
        Ok(())
    }

    /// Creates or updates one object; conflicting fields of other owners are taken over.
    pub(crate) async fn apply(&mut self, object: &Value) -> Result<(), Problem> {
        let title = title(object);
        let wrong = |why: &str| Problem::new(format!("cannot apply {title}"), why, "look at the manifest");
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
        let version = text("/apiVersion").ok_or_else(|| wrong("it has no apiVersion"))?;
        let kind = text("/kind").ok_or_else(|| wrong("it has no kind"))?;
        let name = text("/metadata/name").ok_or_else(|| wrong("it has no metadata.name"))?;
        let (resource, capabilities) = self.kind(version, kind).await?;
        let api: Api<DynamicObject> = match capabilities.scope {
            Scope::Cluster => Api::all_with(self.client.clone(), &resource),
            Scope::Namespaced => {
                let namespace = text("/metadata/namespace").unwrap_or("default");
                Api::namespaced_with(self.client.clone(), namespace, &resource)
            }
        };
        api.patch(
            name,
            &PatchParams::apply(FIELD_MANAGER).force(),
            &Patch::Apply(object),
        )
        .await
        .map_err(|error| Problem::new(format!("cannot apply {title}"), error, "look at the manifest"))?;
        Ok(())
    }

    async fn kind(&mut self, version: &str, kind: &str) -> Result<(ApiResource, ApiCapabilities), Problem> {
        let key = (version.to_owned(), kind.to_owned());
        if let Some(known) = self.kinds.get(&key) {
            return Ok(known.clone());
        }
        let (group, short) = version.split_once('/').unwrap_or(("", version));
        let gvk = GroupVersionKind::gvk(group, short, kind);
        let began = Instant::now();
        loop {
            match discovery::pinned_kind(&self.client, &gvk).await {
                Ok(found) => {
                    self.kinds.insert(key, found.clone());
                    return Ok(found);
                }
                Err(error) if began.elapsed() > KIND_DEADLINE => {
                    let what = format!("cannot apply objects of kind {kind} ({version})");
                    return Err(Problem::new(
                        what,
                        error,
                        "apply the definition of that kind first",
                    ));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }
}

/// The objects of a YAML stream, empty documents left out, `List`s taken apart.
pub(crate) fn documents(yaml: &str) -> Result<Vec<Value>, Problem> {
    let wrong = |error| {
        Problem::new(
            "cannot read the manifest",
            error,
            "check it with kubectl apply --dry-run=client",
        )
    };
    let parsed: Vec<Value> = serde_saphyr::from_multiple(yaml).map_err(|error| wrong(error.to_string()))?;
    let mut objects = Vec::new();
    for document in parsed {
        match document {
            Value::Null => {}
            list if list["kind"] == "List" => {
                objects.extend(list["items"].as_array().into_iter().flatten().cloned());
            }
            object => objects.push(object),
        }
    }
    Ok(objects)
}

fn title(object: &Value) -> String {
    let text = |pointer: &str| {
        object
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or("?")
            .to_owned()
    };
    match object.pointer("/metadata/namespace").and_then(Value::as_str) {
        Some(namespace) => format!("{} {namespace}/{}", text("/kind"), text("/metadata/name")),
        None => format!("{} {}", text("/kind"), text("/metadata/name")),
    }
}
