//! The mesh is upgraded while it carries traffic: all of its pods are replaced, gateways included, and nothing is lost.

use std::collections::BTreeSet;
use std::time::Instant;

use crate::demo::report;
use crate::recovery::Witness;
use crate::rotation::{CLUSTERS, in_both_clusters};
use crate::runner::{Test, linked};
use crate::world::World;

pub(crate) const TESTS: &[Test] = &[linked(
    "the_mesh_is_upgraded_in_both_clusters_under_load_and_no_request_is_lost",
    &["kubectl", "curl"],
    the_mesh_is_upgraded_in_both_clusters_under_load_and_no_request_is_lost,
)];

/// What changes the template of every pod, and nothing that they do: command that renders it, namespace, Deployments.
const ROLLED: [(&str, &str, &[&str]); 2] = [
    (
        "upgrade --set controllerLogLevel=info\\,hawser_control=info",
        "linkerd",
        &[
            "linkerd-identity",
            "linkerd-destination",
            "linkerd-proxy-injector",
        ],
    ),
    (
        "multicluster install --set logLevel=info\\,hawser_control=info,gateway.podLabels.upgraded=once",
        "linkerd-multicluster",
        &["linkerd-gateway", "linkerd-local-service-mirror"],
    ),
];

fn the_mesh_is_upgraded_in_both_clusters_under_load_and_no_request_is_lost(world: &World) {
    let near = Witness::start(world, "witness-upgrade-near", "http://web-svc.emojivoto/api/list");
    let far = Witness::start(
        world,
        "witness-upgrade-far",
        "http://web-svc-east.emojivoto/api/list",
    );
    let began = Instant::now();
    let before = CLUSTERS.map(|cluster| pods(world, cluster));
    in_both_clusters(|cluster| {
        for (command, _, _) in ROLLED {
            let rendered = world.hawser(cluster, &format!("{command} -o json"), "");
            // The definitions of resource types are half of the work, and the same.
            let changed = rendered
                .lines()
                .filter(|object| !object.contains(r#""kind":"CustomResourceDefinition""#))
                .collect::<Vec<_>>()
                .join("\n");
            world.kubectl_words(cluster, &["apply", "-f", "-"], &changed);
        }
        for (_, namespace, names) in ROLLED {
            for name in names {
                world.rolled_out(cluster, namespace, name);
            }
        }
    });
    for (cluster, before) in CLUSTERS.into_iter().zip(before) {
        let after = pods(world, cluster);
        let kept: Vec<_> = before.intersection(&after).collect();
        assert!(kept.is_empty(), "not replaced: {kept:?}");
    }
    far.hears(5);
    near.hears(5);
    let seconds = began.elapsed().as_secs_f64();
    report(&format!("{seconds:.1} s until both clusters are upgraded"));
    assert_eq!(near.failures(), "", "requests were lost within west");
    assert_eq!(far.failures(), "", "requests were lost on the way to east");
}

/// Running pods of the Deployments that are replaced.
fn pods(world: &World, cluster: &str) -> BTreeSet<String> {
    let of = |namespace: &str, names: &[&str]| -> Vec<String> {
        let list = world
            .get(cluster, &format!("-n {namespace} pods"))
            .unwrap_or_else(|error| panic!("{error}"));
        let pods = list["items"].as_array().cloned().unwrap_or_default();
        let living = pods
            .iter()
            .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
            .filter_map(|pod| pod["metadata"]["name"].as_str());
        living
            .filter(|pod| names.iter().any(|name| pod.starts_with(name)))
            .map(str::to_owned)
            .collect()
    };
    let found: BTreeSet<String> = ROLLED
        .iter()
        .flat_map(|(_, namespace, names)| of(namespace, names))
        .collect();
    assert_eq!(found.len(), 5, "one of each in {cluster}: {found:?}");
    found
}
