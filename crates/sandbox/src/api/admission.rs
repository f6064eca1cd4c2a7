//! Admission: what may be changed in, or said against, a write before it happens.
//!
//! First the built-in rules (namespaces must exist and live; pods get their ServiceAccount and its token), then the
//! mutating webhooks, and after validation the validating ones.

use serde_json::{Value, json};

use super::Cluster;
use super::error::{ApiError, Result};
use super::objects::{Write, suffix};
use super::registry::meta;
use crate::store::{Key, ResourceId};

/// Where pods find their token.
const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const TOKEN_VOLUME: &str = "kube-api-access-";

impl Cluster {
    pub(crate) async fn admit_mutating(
        &self,
        write: &Write<'_>,
        old: Option<&Value>,
        object: &mut Value,
    ) -> Result<()> {
        let creating_pod = old.is_none() && write.resource.is("", "pods");
        if old.is_none() {
            self.namespace_lives(write)?;
        }
        if creating_pod {
            self.give_account(write, object)?;
        }
        let before = object.clone();
        self.call_mutating_webhooks(write, old, object).await?;
        if creating_pod && before != *object {
            // Containers that a webhook added need the token as well.
            self.give_account(write, object)?;
        }
        self.check_escalation(write.call, write.resource, object)
    }

    pub(crate) async fn admit_validating(
        &self,
        write: &Write<'_>,
        old: Option<&Value>,
        new: Option<&Value>,
    ) -> Result<()> {
        if new.is_none() && write.resource.is("", "namespaces") {
            let name = old.map(meta::name).unwrap_or_default();
            if matches!(name, "default" | "kube-system" | "kube-public") {
                return Err(ApiError::forbidden(
                    "",
                    "namespaces",
                    name,
                    "this namespace may not be deleted",
                ));
            }
        }
        self.call_validating_webhooks(write, old, new).await
    }

    fn namespace_lives(&self, write: &Write<'_>) -> Result<()> {
        if write.namespace.is_empty()
            || write
                .resource
                .is("authorization.k8s.io", "localsubjectaccessreviews")
        {
            return Ok(());
        }
        let found = self
            .store
            .get(&ResourceId::from("namespaces"), &Key::new("", write.namespace));
        let Some(namespace) = found else {
            let Some(resource) = self.registry.lookup("", "v1", "namespaces") else {
                return Ok(());
            };
            return Err(ApiError::not_found(&resource, write.namespace));
        };
        if meta::is_deleting(&namespace.value) {
            let why = format!(
                "unable to create new content in namespace {} because it is being terminated",
                write.namespace
            );
            let name = write.call.target.name.as_deref().unwrap_or_default();
            return Err(ApiError::terminating(write.resource, name, write.namespace, &why));
        }
        Ok(())
    }

    /// Sets a new pod's ServiceAccount and mounts its token, unless the pod or the account says not to.
    fn give_account(&self, write: &Write<'_>, pod: &mut Value) -> Result<()> {
        let spec = meta::child(pod, "spec");
        let given = |field: &str| {
            spec.get(field)
                .and_then(Value::as_str)
                .filter(|name| !name.is_empty())
        };
        let name = given("serviceAccountName")
            .or_else(|| given("serviceAccount"))
            .unwrap_or("default")
            .to_owned();
        spec.insert("serviceAccountName".to_owned(), name.as_str().into());
        spec.insert("serviceAccount".to_owned(), name.as_str().into());
        let account = self.store.get(
            &ResourceId::from("serviceaccounts"),
            &Key::new(write.namespace, &*name),
        );
        if account.is_none() && name != "default" {
            // `default` is about to be made by its controller; its token is asked for much later.
            let why = format!(
                "error looking up service account {}/{name}: serviceaccount {name:?} not found",
                write.namespace
            );
            let pod = write.call.target.name.as_deref().unwrap_or_default();
            return Err(ApiError::forbidden("", "pods", pod, why));
        }
        let wish = |value: Option<&Value>| {
            value.and_then(|value| value.get("automountServiceAccountToken")?.as_bool())
        };
        let account = account.as_ref().map(|stored| &stored.value);
        if spec
            .get("automountServiceAccountToken")
            .and_then(Value::as_bool)
            .or_else(|| wish(account))
            == Some(false)
        {
            return Ok(());
        }
        let volumes = spec
            .get("volumes")
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default();
        let volume_name = |volume: &Value| volume.get("name").and_then(Value::as_str).map(str::to_owned);
        let existing = volumes
            .iter()
            .filter_map(volume_name)
            .find(|name| name.starts_with(TOKEN_VOLUME));
        let volume = existing
            .clone()
            .unwrap_or_else(|| format!("{TOKEN_VOLUME}{}", suffix()));
        let mut mounted = false;
        for list in ["initContainers", "containers", "ephemeralContainers"] {
            for container in spec
                .get_mut(list)
                .and_then(Value::as_array_mut)
                .into_iter()
                .flatten()
            {
                let Some(container) = container.as_object_mut() else {
                    continue;
                };
                let mounts = container.entry("volumeMounts").or_insert_with(|| json!([]));
                let Some(mounts) = mounts.as_array_mut() else {
                    continue;
                };
                if mounts
                    .iter()
                    .any(|mount| mount.get("mountPath").and_then(Value::as_str) == Some(TOKEN_PATH))
                {
                    continue;
                }
                mounts.push(json!({ "name": volume, "mountPath": TOKEN_PATH, "readOnly": true }));
                mounted = true;
            }
        }
        if mounted && existing.is_none() {
            let volumes = spec.entry("volumes").or_insert_with(|| json!([]));
            if let Some(volumes) = volumes.as_array_mut() {
                volumes.push(json!({ "name": volume, "projected": { "defaultMode": 420, "sources": [
                    { "serviceAccountToken": { "expirationSeconds": 3607, "path": "token" } },
                    { "configMap": { "name": "kube-root-ca.crt", "items": [{ "key": "ca.crt", "path": "ca.crt" }] } },
                    { "downwardAPI": { "items": [{
                        "path": "namespace", "fieldRef": { "apiVersion": "v1", "fieldPath": "metadata.namespace" },
                    }] } },
                ] } }));
            }
        }
        Ok(())
    }
}
