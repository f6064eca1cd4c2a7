//! What every namespace has: a ServiceAccount `default` and the cluster's CA. And tokens in Secrets that ask for one.
//!
//! The original of the CA is the ConfigMap in kube-system, written by whoever started the cluster; all others are
//! copies of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::json;

use super::plan::{Manner, Plan, Reference, View, Write};
use super::snapshot::{Key, Resource, Target};

pub(crate) const ROOT_CA: &str = "kube-root-ca.crt";
const ORIGINAL: &str = "kube-system";

pub(crate) fn plan(view: &View<'_>, plan: &mut Plan) {
    let snapshot = view.snapshot;
    let accounts: BTreeMap<_, _> = snapshot.core("serviceaccounts").collect();
    let original = snapshot
        .root_cas
        .get(&Key::new(ORIGINAL, ROOT_CA))
        .and_then(|map| map.data.as_ref());
    // Before the first list of accounts is in, none would seem to exist.
    let known = snapshot.serves("v1", "ServiceAccount");
    for namespace in snapshot
        .namespaces
        .values()
        .filter(|namespace| namespace.metadata.deletion_timestamp.is_none())
    {
        let Some(name) = namespace.metadata.name.as_deref() else {
            continue;
        };
        if let Some(resource) = &known
            && !accounts.contains_key(&Key::new(name, "default"))
        {
            let scope = Target {
                resource: resource.clone(),
                key: Key::new(name, "default"),
            };
            let object = json!({
                "apiVersion": "v1",
                "kind": "ServiceAccount",
                "metadata": { "name": "default", "namespace": name },
            });
            plan.act(
                &scope,
                Write::Create {
                    resource: resource.clone(),
                    object,
                },
            );
        }
        let key = Key::new(name, ROOT_CA);
        let scope = Target {
            resource: Resource::of::<ConfigMap>(),
            key,
        };
        match (original, snapshot.root_cas.get(&scope.key)) {
            (Some(data), None) => {
                let object = json!({
                    "apiVersion": "v1",
                    "kind": "ConfigMap",
                    "metadata": {
                        "name": ROOT_CA,
                        "namespace": name,
                        "annotations": {
                            "kubernetes.io/description": "Contains a CA bundle that can be used to verify the kube-apiserver.",
                        },
                    },
                    "data": data,
                });
                plan.act(
                    &scope,
                    Write::Create {
                        resource: scope.resource.clone(),
                        object,
                    },
                );
            }
            (Some(data), Some(copy)) if copy.data.as_ref() != Some(data) => {
                let patch = json!({ "data": data });
                plan.act(
                    &scope,
                    Write::Patch {
                        target: scope.clone(),
                        subresource: None,
                        patch,
                    },
                );
            }
            _ => {}
        }
    }
    plan_tokens(
        view,
        plan,
        &accounts,
        original.and_then(|data| data.get("ca.crt")),
    );
}

fn plan_tokens(
    view: &View<'_>,
    plan: &mut Plan,
    accounts: &BTreeMap<&Key, &Arc<ObjectMeta>>,
    ca: Option<&String>,
) {
    for (key, secret) in &view.snapshot.token_secrets {
        let annotation = |name: &str| secret.metadata.annotations.as_ref().and_then(|all| all.get(name));
        let Some(account) = annotation("kubernetes.io/service-account.name") else {
            continue;
        };
        if secret.metadata.deletion_timestamp.is_some() {
            continue;
        }
        let scope = Target::of(&**secret);
        let uid = secret.metadata.uid.clone().unwrap_or_default();
        let account_key = Key::new(&key.namespace, account);
        let account_uid = annotation("kubernetes.io/service-account.uid");
        let filled = secret
            .data
            .as_ref()
            .is_some_and(|data| data.contains_key("token"));
        match (accounts.get(&account_key), ca) {
            (Some(found), Some(ca))
                if !filled && account_uid.is_none_or(|uid| Some(uid) == found.uid.as_ref()) =>
            {
                let account_uid = found.uid.clone().unwrap_or_default();
                let (secret, account) = (key.clone(), account.clone());
                let write = Write::Token {
                    secret,
                    uid,
                    account,
                    account_uid,
                    ca: ca.clone(),
                };
                plan.act(&scope, write);
            }
            // A token of an account that is gone goes too.
            (None, _) if filled => {
                let Some(resource) = view.snapshot.serves("v1", "ServiceAccount") else {
                    continue;
                };
                let account = Target {
                    resource,
                    key: account_key,
                };
                let unless = vec![Reference {
                    target: account,
                    uid: account_uid.cloned().unwrap_or_default(),
                }];
                plan.act(
                    &scope,
                    Write::Delete {
                        target: scope.clone(),
                        uid,
                        unless,
                        manner: Manner::Background,
                    },
                );
            }
            _ => {}
        }
    }
}
