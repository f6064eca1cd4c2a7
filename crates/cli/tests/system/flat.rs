//! Three clusters whose pods reach each other: a federated service of all of them, without a gateway anywhere.
//!
//! One story, because its sandbox takes longest: requests reach all members, servers see who asks and may refuse, and
//! a cluster that is cut off is left alone. Done with kubectl and `hawser` only.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::clusters::{Clusters, documents};
use crate::demo::report;
use crate::host::{Said, eventually};
use crate::runner::{Test, alone};
use crate::world::{A_ROLLOUT, SOON, words};

pub(crate) const TESTS: &[Test] = &[alone(
    "a_federated_service_spreads_over_three_clusters_and_leaves_one_that_dies",
    &["kubectl", "curl"],
    a_federated_service_spreads_over_three_clusters_and_leaves_one_that_dies,
)];

const CLUSTERS: &[&str] = &["west", "east", "north"];
const NAMESPACE: &str = "mixed";
/// A connection to a cluster that was cut off is found dead by its keep-alives, after three seconds and three more.
const LEFT: Duration = Duration::from_secs(15);

/// What clients in west see of the three.
struct Flat(Clusters);

impl std::ops::Deref for Flat {
    type Target = Clusters;

    fn deref(&self) -> &Clusters {
        &self.0
    }
}

impl Flat {
    fn shell(&self, pod: &str, script: &str) -> Said {
        let pod = format!("deployment/{pod}");
        let words = [
            "-n", NAMESPACE, "exec", &pod, "-c", "main", "--", "sh", "-c", script,
        ];
        self.try_kubectl("west", &words, "")
    }

    /// The status codes of so many requests of a client in west, many at once: one at a time would all go to whoever
    /// answered the first one fast.
    fn ask(&self, client: &str, service: &str, count: usize) -> Vec<String> {
        let script = format!(
            "curl -Z --parallel-max 30 -s -o /dev/null --noproxy '*' --max-time 2 -w '%{{http_code}} ' \
             'http://{service}/?[1-{count}]'"
        );
        let said = self.shell(client, &script);
        said.out.split_whitespace().map(str::to_owned).collect()
    }

    /// Which clusters answered a client's requests so far, as its proxy counts.
    fn answered(&self, client: &str) -> BTreeMap<String, f64> {
        let said = self.shell(client, "curl -s http://localhost:4191/metrics");
        let mut answered = BTreeMap::new();
        let counts = said.out.lines().filter(|line| {
            line.starts_with("response_total")
                && line.contains("direction=\"outbound\"")
                && line.contains("bb-federated")
        });
        for line in counts {
            let cluster = line
                .split_once("dst_target_cluster=\"")
                .and_then(|(_, rest)| rest.split('"').next())
                .unwrap_or("west");
            let count: f64 = line
                .rsplit(' ')
                .next()
                .and_then(|count| count.parse().ok())
                .unwrap_or_default();
            *answered.entry(cluster.to_owned()).or_default() += count;
        }
        answered
    }
}

fn deployment(name: &str, container: Value) -> [Value; 2] {
    let mut container = container;
    container["name"] = "main".into();
    [
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": NAMESPACE}}),
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {
                "selector": {"matchLabels": {"app": name}},
                "template": {
                    "metadata": {"labels": {"app": name}},
                    "spec": {
                        "serviceAccountName": name, "terminationGracePeriodSeconds": 1,
                        "containers": [container],
                    },
                },
            },
        }),
    ]
}

/// Emojivoto's page, for other clusters to federate and to mirror.
fn server_objects() -> String {
    let env = json!([
        {"name": "WEB_PORT", "value": "8080"},
        {"name": "EMOJISVC_HOST", "value": "localhost:1"},
        {"name": "VOTINGSVC_HOST", "value": "localhost:1"},
        {"name": "INDEX_BUNDLE", "value": "dist/index_bundle.js"},
    ]);
    let page = json!({
        "image": "docker.l5d.io/buoyantio/emojivoto-web:v11", "env": env,
        "ports": [{"name": "http", "containerPort": 8080}],
    });
    let labels =
        json!({"mirror.linkerd.io/federated": "member", "mirror.linkerd.io/exported": "remote-discovery"});
    let mut objects = vec![
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "annotations": {"linkerd.io/inject": "enabled"}}}),
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "bb", "namespace": NAMESPACE, "labels": labels},
            "spec": {"selector": {"app": "bb"}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
        }),
    ];
    objects.extend(deployment("bb", page));
    documents(&objects)
}

/// Lets one account of west in, and nobody else.
fn only_the_caller() -> String {
    let policy = |version: &str, kind: &str, spec: Value| {
        json!({
            "apiVersion": format!("policy.linkerd.io/{version}"), "kind": kind,
            "metadata": {"name": "bb", "namespace": NAMESPACE}, "spec": spec,
        })
    };
    let named = |kind: &str| json!({"group": "policy.linkerd.io", "kind": kind, "name": "bb"});
    let caller = format!("caller.{NAMESPACE}.serviceaccount.identity.linkerd.cluster.local");
    let selector = json!({"matchLabels": {"app": "bb"}});
    documents(&[
        policy(
            "v1beta3",
            "Server",
            json!({"podSelector": selector, "port": "http"}),
        ),
        policy(
            "v1alpha1",
            "MeshTLSAuthentication",
            json!({"identities": [caller]}),
        ),
        policy(
            "v1alpha1",
            "AuthorizationPolicy",
            json!({
                "targetRef": named("Server"),
                "requiredAuthenticationRefs": [named("MeshTLSAuthentication")],
            }),
        ),
    ])
}

fn a_federated_service_spreads_over_three_clusters_and_leaves_one_that_dies() {
    let flat = Flat(Clusters::start(CLUSTERS, "--flat"));
    // One root and one issuer for all of them.
    let mesh = flat.hawser("install --set proxy.mark=2102");
    flat.everywhere(|flat, cluster| {
        flat.apply(cluster, &mesh);
        flat.rolled_out(cluster, "linkerd");
        let extension = flat.hawser(&format!("mc install --gateway=false --context {cluster}"));
        flat.apply(cluster, &extension);
        flat.apply(cluster, &server_objects());
    });
    let sleep = json!({"image": "curlimages/curl", "command": ["sleep", "infinity"]});
    for client in ["caller", "stranger"] {
        flat.apply("west", &documents(&deployment(client, sleep.clone())));
    }
    for target in ["east", "north"] {
        let server = flat.server(target);
        let link = flat.hawser(&format!(
            "mc link --context {target} --cluster-name {target} --gateway=false --api-server-address {server}"
        ));
        flat.apply("west", &link);
    }
    flat.everywhere(|flat, cluster| flat.rolled_out(cluster, NAMESPACE));

    eventually("requests reach the members in all clusters", A_ROLLOUT, || {
        let codes = flat.ask("caller", "bb-federated", 60);
        let answered = flat.answered("caller");
        let all = CLUSTERS
            .iter()
            .all(|cluster| answered.get(*cluster).is_some_and(|count| *count > 0.0));
        if all && codes.iter().all(|code| code == "200") {
            Ok(())
        } else {
            Err(format!("{codes:?} {answered:?}"))
        }
    });
    let link: Value =
        serde_json::from_str(&flat.kubectl("west", "-n linkerd-multicluster get link east -o json"))
            .expect("JSON");
    let federated = &link["status"]["federatedServices"][0];
    assert_eq!(federated["remoteRef"]["name"], "bb", "{link}");
    assert_eq!(federated["conditions"][0]["status"], "True", "{link}");
    let endpoints = flat.try_kubectl(
        "west",
        &words(&format!("-n {NAMESPACE} get endpoints bb-east")),
        "",
    );
    assert!(
        endpoints.err.contains("NotFound"),
        "a mirror without a gateway has none: {endpoints:?}"
    );

    assert_eq!(
        flat.ask("stranger", "bb-east", 1),
        ["200"],
        "nobody is refused yet"
    );
    flat.apply("east", &only_the_caller());
    eventually(
        "a server of another cluster refuses whom it doesn't know",
        SOON,
        || match flat.ask("stranger", "bb-east", 1).as_slice() {
            [code] if code == "403" => Ok(()),
            other => Err(format!("{other:?}")),
        },
    );
    assert_eq!(
        flat.ask("caller", "bb-east", 3),
        ["200"; 3],
        "and knows its client by name"
    );

    flat.hawser("sandbox cut west north");
    let began = Instant::now();
    eventually("no request goes to a cluster that is cut off", LEFT, || {
        let codes = flat.ask("caller", "bb-federated", 60);
        if codes.iter().all(|code| code == "200") {
            Ok(())
        } else {
            Err(format!("{codes:?}"))
        }
    });
    report(&format!(
        "a member cluster that was cut off was left after {:.1} s at most",
        began.elapsed().as_secs_f64()
    ));
}
