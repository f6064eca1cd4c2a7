//! The meshed pods of a workload, named as for kubectl.

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::api::ListParams;
use kube::core::Selector;
use kube::{Api, Client};

use crate::kube::problem;
use crate::meshed;
use crate::problem::Problem;

/// The pods of a workload that have a proxy.
pub(crate) async fn pods(client: &Client, namespace: &str, resource: &str) -> Result<Vec<Pod>, Problem> {
    let pods = all_pods(client, namespace, resource).await?;
    meshed_only(format!("cannot find the pods of {resource}"), pods)
}

/// The pods of a workload.
pub(crate) async fn all_pods(client: &Client, namespace: &str, resource: &str) -> Result<Vec<Pod>, Problem> {
    let what = format!("cannot find the pods of {resource}");
    let (kind, name) = resource.split_once('/').unwrap_or(("pod", resource));
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    macro_rules! selector {
        ($kind:ty, $at:expr) => {{
            let api: Api<$kind> = Api::namespaced(client.clone(), namespace);
            let found = api.get(name).await.map_err(|error| problem(&what, error))?;
            found.spec.and_then($at)
        }};
    }
    let selector: Option<LabelSelector> = match kind {
        "po" | "pod" | "pods" => {
            let pod = pods.get(name).await.map_err(|error| problem(&what, error))?;
            return Ok(vec![pod]);
        }
        "deploy" | "deployment" | "deployments" => selector!(Deployment, |spec| Some(spec.selector)),
        "ds" | "daemonset" | "daemonsets" => selector!(DaemonSet, |spec| Some(spec.selector)),
        "sts" | "statefulset" | "statefulsets" => selector!(StatefulSet, |spec| Some(spec.selector)),
        "rs" | "replicaset" | "replicasets" => selector!(ReplicaSet, |spec| Some(spec.selector)),
        "job" | "jobs" => selector!(Job, |spec| spec.selector),
        _ => {
            let why = format!("{kind:?} is not a kind that has pods");
            return Err(Problem::new(what, why, "deploy/NAME or po/NAME"));
        }
    };
    let selector: Selector =
        selector
            .unwrap_or_default()
            .try_into()
            .map_err(|error: kube::core::ParseExpressionError| {
                Problem::new(&what, error, "name one of its pods: po/NAME")
            })?;
    let found = pods.list(&ListParams::default().labels_from(&selector)).await;
    Ok(found.map_err(|error| problem(what, error))?.items)
}

fn meshed_only(what: String, mut pods: Vec<Pod>) -> Result<Vec<Pod>, Problem> {
    pods.retain(|pod| meshed::has_proxy(pod) && !meshed::is_finished(pod));
    if pods.is_empty() {
        let attempt = "mesh it: kubectl get deploy -o yaml | hawser inject - | kubectl apply -f -";
        return Err(Problem::new(what, "none of them has a proxy", attempt));
    }
    Ok(pods)
}
