//! Many clients at once: nobody waits for the slowest, and nothing is handed out twice.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Service;

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_services_never_share_an_address_or_a_port() {
    let cluster = Cluster::new(ClusterOptions {
        services: Some("10.43.0.0/24".parse().unwrap()),
        ..ClusterOptions::default()
    });
    let api: Api<Service> = Api::default_namespaced(cluster.client(Identity::admin()));
    let creations = (0..100).map(|index| {
        let api = api.clone();
        tokio::spawn(async move {
            let service = json!({
                "metadata": { "name": format!("s{index}") },
                "spec": { "type": "NodePort", "ports": [{ "name": "a", "port": 80 }, { "name": "b", "port": 81 }] },
            });
            api.create(&PostParams::default(), &serde_json::from_value(service).unwrap()).await.unwrap()
        })
    });
    let (mut addresses, mut ports) = (BTreeSet::new(), BTreeSet::new());
    for created in futures::future::join_all(creations).await {
        let spec = created.unwrap().spec.unwrap();
        addresses.insert(spec.cluster_ip.unwrap());
        ports.extend(
            spec.ports
                .unwrap()
                .into_iter()
                .map(|port| port.node_port.unwrap()),
        );
    }
    assert_eq!((addresses.len(), ports.len()), (100, 200));
}

#[tokio::test]
async fn an_address_is_reserved_while_a_webhook_thinks_and_free_again_when_the_write_failed() {
    let cluster = Cluster::new(ClusterOptions {
        services: Some("10.43.0.0/24".parse().unwrap()),
        ..ClusterOptions::default()
    });
    let service = |name: &str| json!({ "metadata": { "namespace": "default", "name": name }, "spec": { "clusterIP": "10.43.0.77" } });
    let first = allocation::allocate(&cluster, &mut service("a")).unwrap();
    let Err(refused) = allocation::allocate(&cluster, &mut service("b")) else {
        panic!("the address is taken");
    };
    assert!(
        refused.message.contains("provided IP is already allocated"),
        "{refused}"
    );
    drop(first);
    assert!(allocation::allocate(&cluster, &mut service("b")).is_ok());
}

#[tokio::test]
async fn an_update_that_names_no_node_port_keeps_it() {
    let cluster = Cluster::new(ClusterOptions {
        services: Some("10.43.0.0/24".parse().unwrap()),
        ..ClusterOptions::default()
    });
    let uri = "/api/v1/namespaces/default/services";
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "s" },
        "spec": { "type": "NodePort", "ports": [{ "port": 80 }] },
    });
    let (_, created) = send(&cluster, "POST", uri, JSON, service.clone()).await;
    let (code, updated) = send(&cluster, "PUT", &format!("{uri}/s"), JSON, service).await;
    assert_eq!((code, &updated["spec"]), (200, &created["spec"]), "{updated}");
}

#[tokio::test]
async fn node_ports_are_chosen_once_per_number_and_refused_as_kubernetes_does() {
    let cluster = Cluster::new(ClusterOptions {
        services: Some("10.43.0.0/24".parse().unwrap()),
        ..ClusterOptions::default()
    });
    let uri = "/api/v1/namespaces/default/services";
    let service = |name: &str, kind: &str, ports: Value| {
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": name },
            "spec": { "type": kind, "ports": ports },
        })
    };
    let dns = json!([
        { "name": "udp", "port": 53, "protocol": "UDP" },
        { "name": "tcp", "port": 53, "nodePort": 30053 },
        { "name": "metrics", "port": 9153 },
    ]);
    let (code, dns) = send(&cluster, "POST", uri, JSON, service("dns", "LoadBalancer", dns)).await;
    let ports = &dns["spec"]["ports"];
    assert_eq!(
        (code, &ports[0]["nodePort"], &ports[1]["nodePort"]),
        (201, &json!(30053), &json!(30053))
    );
    let chosen = ports[2]["nodePort"].as_u64().unwrap();
    assert!((30000..=32767).contains(&chosen) && chosen != 30053, "{dns}");

    for (port, why) in [
        (30053, "provided port is already allocated"),
        (
            80,
            "provided port is not in the valid range. The range of valid ports is 30000-32767",
        ),
    ] {
        let ports = json!([{ "port": 81, "nodePort": port }]);
        let (code, refused) = send(&cluster, "POST", uri, JSON, service("web", "NodePort", ports)).await;
        let said =
            format!("Service \"web\" is invalid: spec.ports[0].nodePort: Invalid value: {port}: {why}");
        assert_eq!((code, &refused["message"]), (422, &json!(said)));
    }

    let back = json!({ "spec": { "type": "ClusterIP" } });
    let merge = "application/merge-patch+json";
    let (code, back) = send(&cluster, "PATCH", &format!("{uri}/dns"), merge, back).await;
    assert_eq!(
        (code, back.pointer("/spec/ports/1/nodePort")),
        (200, None),
        "{back}"
    );
    let (code, _) = send(
        &cluster,
        "POST",
        uri,
        JSON,
        service("web", "NodePort", json!([{ "port": 81, "nodePort": 30053 }])),
    )
    .await;
    assert_eq!(code, 201, "and it is free again");
}

/// Reads a watch's raw bytes, so that the test decides when.
async fn raw_watch(cluster: &Arc<Cluster>, uri: &str) -> Body {
    let (parts, ()) = Request::get(uri).body(()).unwrap().into_parts();
    cluster
        .answer(parts, body::full(""), Identity::admin())
        .await
        .into_body()
}

#[tokio::test]
async fn a_watcher_that_never_reads_blocks_no_writer_and_is_told_that_it_is_too_late() {
    let history = History {
        age_min: Duration::ZERO,
        count_min: 100,
        count_max: 200,
    };
    let cluster = Cluster::new(ClusterOptions {
        history,
        ..ClusterOptions::default()
    });
    let uri = format!("{MAPS}?watch=true");
    let mut slow: Vec<Body> = Vec::new();
    for _ in 0..50 {
        slow.push(raw_watch(&cluster, &uri).await);
    }
    let large = "x".repeat(10_000);
    for round in 0..1000 {
        let merge = "application/apply-patch+yaml";
        let config = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "data": { "round": round.to_string(), "large": large },
        });
        let uri = format!("{MAPS}/m{}?fieldManager=test&force=true", round % 200);
        let (code, answer) = send(&cluster, "PATCH", &uri, merge, config).await;
        assert!(code < 300, "{answer}");
    }
    // What is kept is bounded by the history, whoever watches.
    let configmaps = "configmaps".into();
    assert!(
        cluster
            .store
            .list_at(&configmaps, cluster.store.revision() - 90)
            .is_ok()
    );
    assert!(
        cluster
            .store
            .list_at(&configmaps, cluster.store.revision() - 210)
            .is_err()
    );
    for watch in slow {
        let text = watch.collect().await.unwrap().to_bytes();
        let last = text
            .split(|byte| *byte == b'\n')
            .rfind(|line| !line.is_empty())
            .unwrap();
        let event: Value = serde_json::from_slice(last).unwrap();
        assert_eq!(
            (&event["type"], &event["object"]["reason"]),
            (&json!("ERROR"), &json!("Expired"))
        );
    }
}
