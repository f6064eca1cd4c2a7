//! What `hawser viz` says about the demo's traffic, and whether a real Prometheus says the same.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::demo::report;
use crate::grafana;
use crate::host::{self, Said, eventually};
use crate::kubectl::Running;
use crate::runner::{Test, linked};
use crate::world::{A_ROLLOUT, SOON, VISITORS, World};

pub(crate) const TESTS: &[Test] = &[
    linked(
        "viz_shows_plausible_traffic_and_secured_edges_without_any_extension",
        &["kubectl"],
        viz_shows_plausible_traffic_and_secured_edges_without_any_extension,
    ),
    linked(
        "the_collector_and_prometheus_see_the_same_and_every_target_is_up",
        &["kubectl", "curl", "prometheus", "promtool"],
        the_collector_and_prometheus_see_the_same_and_every_target_is_up,
    ),
    linked(
        "requests_are_shown_as_they_happen_to_those_who_may_see_them",
        &["kubectl"],
        requests_are_shown_as_they_happen_to_those_who_may_see_them,
    ),
    linked(
        "the_legs_of_a_path_to_another_cluster_add_up_to_what_the_client_waits",
        &["kubectl", "curl"],
        the_legs_of_a_path_to_another_cluster_add_up_to_what_the_client_waits,
    ),
];

const NAMESPACE: &str = "linkerd-viz";
/// Looks for a collector where none is.
const WITHOUT: &str = "--viz-namespace nowhere";
/// As the demo installs it.
const INSTALL: &str = "viz install --cluster-name west --every 1s";

fn viz_shows_plausible_traffic_and_secured_edges_without_any_extension(world: &World) {
    let rows = rows(world, "west", &format!("stat deploy -n emojivoto {WITHOUT}"));
    let web = rows.get("web").expect("web is shown");
    assert_eq!(web["meshed"], "1/1");
    let number = |field: &str| web[field].as_f64().unwrap_or_else(|| panic!("{field} in {web}"));
    // The vote-bot asks ten times a second, and one answer in twenty or so is a failure by design.
    assert!((4.0..40.0).contains(&number("rps")), "{web}");
    assert!((0.5..=1.0).contains(&number("success")), "{web}");
    let latencies = ["latency_ms_p50", "latency_ms_p95", "latency_ms_p99"].map(number);
    assert!(latencies.is_sorted() && latencies[2] < 5_000.0, "{web}");
    assert!(rows.contains_key("vote-bot") && rows["vote-bot"]["rps"].is_null());
    let callers = self::rows(
        world,
        "west",
        &format!("stat deploy -n emojivoto --to svc/web-svc {WITHOUT}"),
    );
    assert_eq!(callers.keys().collect::<Vec<_>>(), ["vote-bot"]);

    // Without its web, west votes through the gateway.
    world.kubectl("west", "-n emojivoto scale deployment web --replicas=0");
    let votes = eventually("votes go through the gateway", SOON, || {
        let edges = world.hawser("west", &format!("viz edges deploy -n emojivoto {WITHOUT}"), "");
        let line = edge(&edges, "vote-bot", "linkerd-gateway");
        line.ok_or(edges)
    });
    assert_eq!(
        votes,
        "vote-bot linkerd-gateway emojivoto linkerd-multicluster east √"
    );
    let edges = world.hawser(
        "east",
        &format!("viz edges deploy -n linkerd-multicluster {WITHOUT}"),
        "",
    );
    world.kubectl("west", "-n emojivoto scale deployment web --replicas=1");
    let line = edge(&edges, "linkerd-gateway", "web").unwrap_or_else(|| panic!("{edges}"));
    assert_eq!(line, "linkerd-gateway web linkerd-multicluster emojivoto - √");
    let line = edge(&edges, "default", "linkerd-gateway").unwrap_or_else(|| panic!("{edges}"));
    assert_eq!(line, "default linkerd-gateway emojivoto linkerd-multicluster - √");
    world.rolled_out("west", "emojivoto", "web");
}

fn requests_are_shown_as_they_happen_to_those_who_may_see_them(world: &World) {
    world.rolled_out("west", NAMESPACE, "tap");
    let watch = "deploy/web -n emojivoto --path /api/vote --for 3s -o json";
    let told = world.hawser("west", &format!("viz tap {watch}"), "");
    let events: Vec<Value> = told
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line}")))
        .collect();
    let head = events.iter().find(|event| event["event"] == "request");
    let head = head.unwrap_or_else(|| panic!("no request in {told}"));
    // The bot's choices are in the query, which is nobody's business.
    assert_eq!(
        (&head["method"], &head["path"]),
        (&json!("GET"), &json!("/api/vote")),
        "{head}"
    );
    assert_eq!(head["workload"], "deployment/web");
    let client = head["source_labels"]["client_id"].as_str().unwrap_or_default();
    assert!(
        client.starts_with("default.emojivoto.serviceaccount.identity."),
        "{head}"
    );
    let of_it = events.iter().filter(|event| event["id"] == head["id"]);
    let of_it: Vec<&Value> = of_it.map(|event| &event["event"]).collect();
    assert_eq!(of_it, ["request", "response", "end"]);

    let top = world.hawser("west", "viz top deploy/web -n emojivoto --for 3s -o json", "");
    let rows: Vec<Value> = serde_json::from_str(&top).unwrap_or_else(|error| panic!("{error} in {top}"));
    let votes = rows
        .iter()
        .find(|row| row["path"] == "/api/vote")
        .unwrap_or_else(|| panic!("{top}"));
    assert!(votes["count"].as_u64().is_some_and(|count| count > 5), "{votes}");
    assert!(
        rows.iter().any(|row| row["destination"] == "voting"),
        "what web asks itself: {top}"
    );

    world.kubectl("west", &format!("-n {VISITORS} create serviceaccount curious"));
    let line = "viz tap deploy/web -n emojivoto --for 1s --account visitors/curious";
    let said = world.try_hawser("west", line);
    world.kubectl("west", &format!("-n {VISITORS} delete serviceaccount curious"));
    assert!(
        !said.succeeded() && said.err.contains("may not watch pods/tap"),
        "{said:?}"
    );
    let said = world.try_hawser("west", "viz tap deploy/tap -n linkerd-viz --for 1s");
    assert!(
        !said.succeeded() && said.err.contains("viz.linkerd.io/disable-tap"),
        "{said:?}"
    );

    world.kubectl(
        "west",
        &format!("-n {NAMESPACE} scale deployment tap --replicas=0"),
    );
    let row = "× viz extension pods are running\n    of these no pod is ready:\n    * tap: no pod\n    try: ";
    eventually("the check misses tap", SOON, || {
        let said = world.try_hawser("west", "viz check --wait 1s -o short");
        match !said.succeeded() && said.out.contains(row) {
            true => Ok(()),
            false => Err(format!("{said:?}")),
        }
    });
    world.kubectl(
        "west",
        &format!("-n {NAMESPACE} scale deployment tap --replicas=1"),
    );
    world.rolled_out("west", NAMESPACE, "tap");
}

/// With a delay that is known, in the application of another cluster; and with curl's own clock beside the proxies'.
fn the_legs_of_a_path_to_another_cluster_add_up_to_what_the_client_waits(world: &World) {
    let delay = |value: &str| {
        world.kubectl(
            "east",
            &format!("-n emojivoto set env deployment/voting ARTIFICIAL_DELAY{value}"),
        );
        world.rolled_out("east", "emojivoto", "voting");
    };
    world.citizen("west", "asker");
    // So long that what curl itself needs on a busy machine is little beside it.
    delay("=2s");
    let url = "http://web-svc-east.emojivoto/api/vote?choice=:joy:";
    let script = format!(
        "seq 20 | xargs -P 10 -I@ curl -s -o /dev/null --noproxy '*' --max-time 10 -w '%{{time_total}}\\n' '{url}'"
    );
    let said = world.shell("west", "asker", &script);
    let waited: Vec<f64> = said
        .out
        .lines()
        .filter_map(|line| line.trim().parse().ok())
        .collect();
    assert_eq!(waited.len(), 20, "{said:?}");
    let waited_ms = 1e3 * waited.iter().sum::<f64>() / 20.0;
    // So short that nobody else came through the gateway in it: a gateway doesn't count by client.
    let path = eventually("the path is known", SOON, || {
        let line =
            "viz path deploy/asker -n visitors --to svc/web-svc-east --to-namespace emojivoto -t 10s -o json";
        let text = world.hawser("west", line, "");
        let paths: Vec<Value> = serde_json::from_str(&text).map_err(|error| format!("{error} in {text}"))?;
        let known = paths.into_iter().find(|path| path["unknown"] == "");
        known.ok_or(text)
    });
    delay("-");
    world.remove("west", "asker");
    let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("{value} in {path}"));
    let legs = path["legs"].as_array().cloned().unwrap_or_default();
    let over: Vec<&Value> = legs.iter().map(|leg| &leg["over"]).collect();
    assert_eq!(over, ["wan", "network", "application"], "{path}");
    let sum: f64 = legs.iter().map(|leg| number(&leg["mean_ms"])).sum();
    report(&format!(
        "curl waits {waited_ms:.2} ms, the legs are {sum:.2} ms: {}",
        json!(legs)
    ));
    assert!(
        (sum / waited_ms - 1.0).abs() < 0.05,
        "{sum} ms of {waited_ms} ms: {path}"
    );
    let application = number(&legs[2]["mean_ms"]);
    assert!((2_000.0..waited_ms).contains(&application), "{path}");
}

/// The line of an edge, with single spaces.
fn edge(table: &str, src: &str, dst: &str) -> Option<String> {
    let mut lines = table
        .lines()
        .map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    let line = lines.find(|words| words.starts_with(&[src, dst]))?;
    Some(line.join(" "))
}

/// The rows of `viz stat`, by name.
fn rows(world: &World, cluster: &str, line: &str) -> BTreeMap<String, Value> {
    let text = world.hawser(cluster, &format!("viz {line} -o json"), "");
    let rows: Vec<Value> = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}"));
    rows.into_iter()
        .map(|row| (row["name"].as_str().unwrap_or_default().to_owned(), row))
        .collect()
}

/// The shipped configuration is used as it is, but for two things: Debian builds Prometheus without Kubernetes
/// discovery, so the test tells the same labels in a file, and everybody looks every second instead of every ten.
fn the_collector_and_prometheus_see_the_same_and_every_target_is_up(world: &World) {
    let manifest = world.hawser("west", INSTALL, "");
    world.kubectl_words("west", &["apply", "-f", "-"], &manifest);
    let map = world
        .get("west", &format!("-n {NAMESPACE} configmap prometheus-config"))
        .expect("it was applied");
    let shipped = map["data"]["prometheus.yml"].as_str().expect("a configuration");
    world.rolled_out("west", NAMESPACE, "metrics-api");
    start_prometheus(world, shipped);
    let checked = world.hawser("west", "viz check --wait 15s", "");
    assert!(
        checked.contains("√ every meshed pod's metrics are read"),
        "{checked}"
    );
    assert!(checked.contains("√ tap API service is running"), "{checked}");

    let targets = eventually("every target is up", SOON, || every_target_is_up(world));
    report(&format!("prometheus scrapes {} targets", targets.len()));
    let jobs: BTreeSet<&str> = targets.iter().map(|(job, _)| job.as_str()).collect();
    let expected = ["linkerd-controller", "linkerd-proxy", "linkerd-service-mirror"];
    assert_eq!(jobs, BTreeSet::from(expected));
    for (_, url) in &targets {
        lint(world, url);
    }

    let length = Duration::from_secs(8);
    let of_web = "direction=\"inbound\",namespace=\"emojivoto\",deployment=\"web\"";
    let window = format!("[{}s]", length.as_secs());
    eventually("the collector's answers are Prometheus'", SOON, || {
        let line = format!("stat deploy/web -n emojivoto -t {}s", length.as_secs());
        let rows = rows(world, "west", &line);
        let web = rows.get("web").ok_or("no row")?;
        let rate = query(world, &format!("sum(rate(response_total{{{of_web}}}{window}))"))?;
        agree("rps", web, rate, 0.1)?;
        let good = format!("sum(rate(response_total{{{of_web},classification=\"success\"}}{window}))");
        agree("success", web, query(world, &good)? / rate, 0.1)?;
        for (field, quantile) in [("latency_ms_p50", 0.5), ("latency_ms_p95", 0.95)] {
            let buckets = format!("sum by (le) (rate(response_latency_ms_bucket{{{of_web}}}{window}))");
            let value = query(world, &format!("histogram_quantile({quantile}, {buckets})"))?;
            agree(field, web, value, 0.3)?;
        }
        Ok(())
    });
    let to = format!("-n {NAMESPACE} port-forward deployment/prometheus :9090");
    let (_forward, port) = Running::forward(world, &to);
    eventually("Prometheus' samples give the collector's answers", SOON, || {
        let ask = |from: &str| {
            let line = format!("stat deploy/web -n emojivoto -t {}s {from}", length.as_secs());
            rows(world, "west", &line).remove("web").ok_or("no row")
        };
        let (ours, theirs) = (
            ask("")?,
            ask(&format!("--prometheus-url http://localhost:{port}"))?,
        );
        for (field, tolerance) in [
            ("rps", 0.1),
            ("success", 0.1),
            ("latency_ms_p50", 0.3),
            ("latency_ms_p95", 0.3),
        ] {
            agree(
                field,
                &ours,
                theirs[field].as_f64().unwrap_or(f64::NAN),
                tolerance,
            )?;
        }
        Ok::<_, String>(())
    });
    grafana::every_query_answers(port);
    let gateways = world.hawser("west", "viz gateways", "");
    // Emojivoto's web, and the collector.
    assert!(gateways.contains("east      True          2"), "{gateways}");
    let gone = world.hawser("west", "viz uninstall", "");
    world.kubectl_words("west", &["delete", "--wait=false", "-f", "-"], &gone);
    eventually("the extension is gone", A_ROLLOUT, || {
        match world.get("west", &format!("namespace {NAMESPACE}")) {
            Ok(namespace) => Err(namespace["status"].to_string()),
            Err(_) => Ok(()),
        }
    });
    world.kubectl_words("west", &["apply", "-f", "-"], &manifest);
    world.rolled_out("west", NAMESPACE, "metrics-api");
}

/// Whether two answers to the same question, asked a moment apart, are the same.
fn agree(field: &str, row: &Value, theirs: f64, tolerance: f64) -> Result<(), String> {
    let ours = row[field]
        .as_f64()
        .ok_or_else(|| format!("no {field} in {row}"))?;
    if (ours - theirs).abs() <= tolerance * theirs.max(1.0) {
        return Ok(());
    }
    Err(format!("{field}: ours {ours}, theirs {theirs}"))
}

fn start_prometheus(world: &World, shipped: &str) {
    let mut config: Value = serde_saphyr::from_str(shipped).expect("YAML");
    config["global"]["scrape_interval"] = "1s".into();
    config["global"]["scrape_timeout"] = "1s".into();
    let pods = world.get("west", "pods -A").expect("pods");
    for job in config["scrape_configs"].as_array_mut().expect("jobs") {
        let discovery = job["kubernetes_sd_configs"][0].clone();
        assert_eq!(discovery["role"], "pod");
        let namespaces = &discovery["namespaces"]["names"];
        let included = |pod: &Value| {
            let namespaces = namespaces.as_array();
            namespaces.is_none_or(|names| names.contains(&pod["metadata"]["namespace"]))
        };
        let pods = pods["items"].as_array().into_iter().flatten();
        let groups: Vec<Value> = pods.filter(|pod| included(pod)).flat_map(discovered).collect();
        let fields = job.as_object_mut().expect("a job");
        fields.remove("kubernetes_sd_configs");
        fields.insert("static_configs".into(), groups.into());
    }
    let name = "prometheus";
    world.apply(
        "west",
        &json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": NAMESPACE},
            "data": {"prometheus.yml": config.to_string()},
        }),
    );
    world.apply(
        "west",
        &json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {
                "selector": {"matchLabels": {"app": name}},
                "template": {
                    // Gateways let in only the mesh, scrapes included.
                    "metadata": {"labels": {"app": name}, "annotations": {"linkerd.io/inject": "enabled"}},
                    "spec": {
                        "serviceAccountName": name,
                        "terminationGracePeriodSeconds": 1,
                        "containers": [{
                            "name": name, "image": "prom/prometheus",
                            "command": ["prometheus", "--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/data"],
                            "readinessProbe": {"httpGet": {"path": "/-/ready", "port": 9090}, "periodSeconds": 1},
                            "volumeMounts": [{"name": "config", "mountPath": "/etc/prometheus"}, {"name": "data", "mountPath": "/data"}],
                        }],
                        "volumes": [
                            {"name": "config", "configMap": {"name": name}},
                            {"name": "data", "emptyDir": {}},
                        ],
                    },
                },
            },
        }),
    );
    world.rolled_out("west", NAMESPACE, name);
}

/// What Prometheus' discovery tells about a pod: a target for each port of each container.
fn discovered(pod: &Value) -> Vec<Value> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut common = BTreeMap::from([
        (
            "__meta_kubernetes_namespace".to_owned(),
            text(&pod["metadata"]["namespace"]),
        ),
        (
            "__meta_kubernetes_pod_name".to_owned(),
            text(&pod["metadata"]["name"]),
        ),
        (
            "__meta_kubernetes_pod_phase".to_owned(),
            text(&pod["status"]["phase"]),
        ),
    ]);
    for (key, value) in pod["metadata"]["labels"].as_object().into_iter().flatten() {
        let key = key.replace(|c: char| !c.is_ascii_alphanumeric(), "_");
        common.insert(format!("__meta_kubernetes_pod_label_{key}"), text(value));
    }
    let ip = text(&pod["status"]["podIP"]);
    let mut targets = Vec::new();
    for container in ["containers", "initContainers"]
        .iter()
        .flat_map(|list| pod["spec"][list].as_array().into_iter().flatten())
    {
        for port in container["ports"].as_array().into_iter().flatten() {
            let mut labels = common.clone();
            labels.insert(
                "__meta_kubernetes_pod_container_name".into(),
                text(&container["name"]),
            );
            labels.insert(
                "__meta_kubernetes_pod_container_port_name".into(),
                text(&port["name"]),
            );
            targets.push(json!({"targets": [format!("{ip}:{}", port["containerPort"])], "labels": labels}));
        }
    }
    targets
}

/// Job and URL of each target, if all are up and were read.
fn every_target_is_up(world: &World) -> Result<Vec<(String, String)>, String> {
    let answer = prometheus(world, "http://localhost:9090/api/v1/targets?state=active", &[])?;
    let targets = answer["data"]["activeTargets"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    if targets.is_empty() {
        return Err("no targets".into());
    }
    if let Some(down) = targets.iter().find(|target| target["health"] != "up") {
        return Err(format!(
            "{} is {}: {}",
            down["scrapeUrl"], down["health"], down["lastError"]
        ));
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(targets
        .iter()
        .map(|target| (text(&target["scrapePool"]), text(&target["scrapeUrl"])))
        .collect())
}

/// What `promtool` says about one process's metrics. Names that it would choose otherwise are Linkerd's.
fn lint(world: &World, url: &str) {
    let metrics = curl(world, &[url]);
    assert!(metrics.succeeded(), "{url}: {metrics:?}");
    let mut promtool = Command::new("promtool");
    promtool.args(["check", "metrics"]);
    let said = host::run(promtool, &metrics.out, SOON);
    let known = [
        "no help text",
        "counter metrics should have \"_total\" suffix",
        "metric names should not contain abbreviated units",
        // The controllers' quantiles over the last minute, which `mc gateways` shows, are gauges.
        "non-summary metrics should not have \"quantile\" label",
    ];
    let news: Vec<&str> = said
        .err
        .lines()
        .chain(said.out.lines())
        .filter(|line| !known.iter().any(|known| line.ends_with(known)))
        .collect();
    assert!(
        matches!(said.code(), Some(0 | 3)) && news.is_empty(),
        "{url}: {said:?}"
    );
}

fn query(world: &World, expression: &str) -> Result<f64, String> {
    let argument = format!("query={expression}");
    let answer = prometheus(
        world,
        "http://localhost:9090/api/v1/query",
        &["--data-urlencode", &argument],
    )?;
    let value = answer["data"]["result"][0]["value"][1].as_str();
    let value = value.ok_or_else(|| format!("{expression} is {answer}"))?;
    value.parse().map_err(|error| format!("{value}: {error}"))
}

fn prometheus(world: &World, url: &str, more: &[&str]) -> Result<Value, String> {
    let said = curl(world, &[&[url], more].concat());
    if !said.succeeded() {
        return Err(said.err);
    }
    serde_json::from_str(&said.out).map_err(|error| format!("{error} in {}", said.out))
}

/// From inside the cluster, beside Prometheus.
fn curl(world: &World, args: &[&str]) -> Said {
    let exec = [
        "-n",
        NAMESPACE,
        "exec",
        "deployment/prometheus",
        "-c",
        "prometheus",
        "--",
        "curl",
        "-s",
        "--max-time",
        "5",
    ];
    world.try_kubectl("west", &[&exec, args].concat(), "")
}
