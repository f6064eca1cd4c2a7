//! How this machine reaches the API server of a linked cluster.
//!
//! The kubeconfig of a link names the server as other clusters reach it, which need not be an address that exists
//! here: clusters of a sandbox have theirs on a segment of their own. A context of this machine's kubeconfig with the
//! same certificate authority leads to the same server, so its route is taken, with the link's credential.

use std::net::Ipv4Addr;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use hawser_control::mirror::{self, Connect, RemoteError};
use kube::config::{Cluster, Kubeconfig, NamedCluster};
use serde_json::{Map, Value};

/// Makes clients of links' kubeconfigs, over routes of this machine's where there are any.
pub(crate) fn connector(ours: Kubeconfig) -> Connect {
    let over_the_network = mirror::connector();
    let ours = Arc::new(ours);
    Arc::new(move |theirs| {
        let routed = from_here(&theirs, &ours);
        let connect = Arc::clone(&over_the_network);
        Box::pin(async move { connect(routed?).await })
    })
}

/// The same kubeconfig with the server as this machine reaches it.
fn from_here(theirs: &[u8], ours: &Kubeconfig) -> Result<Vec<u8>, RemoteError> {
    let text = std::str::from_utf8(theirs).map_err(|_| RemoteError::NotText)?;
    // What can't be read is for the connector to refuse, in its words.
    let Ok(mut tree) = serde_saphyr::from_str::<Value>(text) else {
        return Ok(theirs.to_vec());
    };
    for named in tree["clusters"].as_array_mut().into_iter().flatten() {
        let Some(cluster) = named["cluster"].as_object_mut() else {
            continue;
        };
        match same_cluster(cluster, ours) {
            Some(route) => {
                let mut set = |name: &str, value: Option<&String>| match value {
                    Some(value) => drop(cluster.insert(name.to_owned(), value.as_str().into())),
                    None => drop(cluster.remove(name)),
                };
                set("server", route.server.as_ref());
                set("tls-server-name", route.tls_server_name.as_ref());
                set("proxy-url", route.proxy_url.as_ref());
            }
            None if is_nowhere(cluster) => {
                return Err(RemoteError::Unreachable(
                    cluster
                        .get("server")
                        .and_then(Value::as_str)
                        .unwrap_or_default()
                        .to_owned(),
                ));
            }
            None => {}
        }
    }
    // JSON is YAML.
    Ok(tree.to_string().into_bytes())
}

/// The context of ours that leads to the same cluster, with rights of our own there.
pub(crate) fn context_of(theirs: &[u8], ours: &Kubeconfig) -> Option<String> {
    let tree: Value = serde_saphyr::from_str(std::str::from_utf8(theirs).ok()?).ok()?;
    let mut clusters = tree["clusters"].as_array()?.iter();
    let named = clusters.find_map(|named| same_named(named["cluster"].as_object()?, ours))?;
    let mut contexts = ours.contexts.iter();
    let context = contexts.find(|candidate| {
        let context = candidate.context.as_ref();
        context.is_some_and(|context| context.cluster == named.name)
    });
    context.map(|context| context.name.clone())
}

/// Our entry for the cluster that this authority belongs to.
fn same_cluster<'a>(theirs: &Map<String, Value>, ours: &'a Kubeconfig) -> Option<&'a Cluster> {
    same_named(theirs, ours)?.cluster.as_ref()
}

fn same_named<'a>(theirs: &Map<String, Value>, ours: &'a Kubeconfig) -> Option<&'a NamedCluster> {
    let wanted = decoded(theirs.get("certificate-authority-data")?.as_str()?)?;
    ours.clusters.iter().find(|named| {
        let cluster = named.cluster.as_ref().filter(|cluster| cluster.server.is_some());
        cluster
            .and_then(authority)
            .is_some_and(|authority| authority == wanted)
    })
}

fn authority(cluster: &Cluster) -> Option<String> {
    match (
        &cluster.certificate_authority_data,
        &cluster.certificate_authority,
    ) {
        (Some(data), _) => decoded(data),
        (None, Some(path)) => Some(std::fs::read_to_string(path).ok()?.trim().to_owned()),
        (None, None) => None,
    }
}

fn decoded(base64: &str) -> Option<String> {
    let pem = String::from_utf8(BASE64.decode(base64).ok()?).ok()?;
    Some(pem.trim().to_owned())
}

/// Addresses that are set aside for examples are used inside of sandboxes; from here they lead nowhere.
fn is_nowhere(cluster: &Map<String, Value>) -> bool {
    let server = cluster.get("server").and_then(Value::as_str).unwrap_or_default();
    let uri: Option<http::Uri> = server.parse().ok();
    let host = uri.as_ref().and_then(http::Uri::host).unwrap_or_default();
    host.parse()
        .is_ok_and(|address: Ipv4Addr| address.is_documentation())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn kubeconfig(server: &str, authority: &str) -> Value {
        let authority = BASE64.encode(authority);
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "east",
            "clusters": [{"name": "east", "cluster": {"server": server, "certificate-authority-data": authority}}],
            "users": [{"name": "link", "user": {"token": "secret"}}],
            "contexts": [{"name": "east", "context": {"cluster": "east", "user": "link"}}],
        })
    }

    fn routed(theirs: &Value, ours: &Value) -> Result<Value, RemoteError> {
        let ours = Kubeconfig::from_yaml(&ours.to_string()).unwrap();
        let routed = from_here(theirs.to_string().as_bytes(), &ours)?;
        Ok(serde_json::from_slice(&routed).unwrap())
    }

    #[test]
    fn the_route_of_our_own_context_is_taken_with_the_credential_of_the_link() {
        let theirs = kubeconfig("https://203.0.113.2:6443", "CA east\n");
        let ours = kubeconfig("https://127.0.0.1:40001", "CA east");
        let routed = routed(&theirs, &ours).unwrap();
        let cluster = &routed["clusters"][0]["cluster"];
        assert_eq!(cluster["server"], "https://127.0.0.1:40001");
        assert_eq!(
            cluster["certificate-authority-data"],
            theirs["clusters"][0]["cluster"]["certificate-authority-data"]
        );
        assert_eq!(routed["users"], theirs["users"]);
    }

    #[test]
    fn our_own_context_is_found_by_the_authority_of_the_cluster_and_not_by_its_name() {
        let theirs = kubeconfig("https://203.0.113.2:6443", "CA east\n").to_string();
        let ours = |tree: &Value| Kubeconfig::from_yaml(&tree.to_string()).unwrap();
        let other = kubeconfig("https://127.0.0.1:40001", "CA west");
        let mut east = kubeconfig("https://127.0.0.1:40001", "CA east");
        east["contexts"][0]["name"] = "admin@east".into();
        let context = |tree: &Value| context_of(theirs.as_bytes(), &ours(tree));
        assert_eq!(context(&east).as_deref(), Some("admin@east"));
        assert_eq!(context(&other), None);
    }

    #[test]
    fn another_clusters_route_is_never_taken() {
        let theirs = kubeconfig("https://east.example:6443", "CA east");
        let ours = kubeconfig("https://127.0.0.1:40001", "CA west");
        assert_eq!(routed(&theirs, &ours).unwrap(), theirs);
    }

    #[test]
    fn an_address_of_a_sandbox_without_a_route_is_not_dialled() {
        let theirs = kubeconfig("https://203.0.113.2:6443", "CA east");
        let ours = kubeconfig("https://127.0.0.1:40001", "CA west");
        assert!(matches!(
            routed(&theirs, &ours),
            Err(RemoteError::Unreachable(server)) if server == "https://203.0.113.2:6443"
        ));
    }

    #[test]
    fn what_is_no_kubeconfig_is_left_to_be_refused() {
        let ours = Kubeconfig::default();
        assert_eq!(from_here(b"{", &ours).unwrap(), b"{");
        assert!(matches!(from_here(&[0xff], &ours), Err(RemoteError::NotText)));
    }
}
