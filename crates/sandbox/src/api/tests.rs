//! Behaviour of the API server as clients see it, through the in-process client.

use futures::{StreamExt as _, TryStreamExt as _};
use http::Request;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use serde_json::{Value, json};

use super::*;

fn cluster() -> Arc<Cluster> {
    Cluster::new(ClusterOptions::default())
}

/// Sends a request as it is and gives status and JSON answer.
async fn send(cluster: &Arc<Cluster>, method: &str, uri: &str, media: &str, body: Value) -> (u16, Value) {
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    let request = Request::builder()
        .method(method)
        .uri(uri)
        .header("content-type", media)
        .body(body)
        .unwrap();
    let (parts, body) = request.into_parts();
    let response = cluster.answer(parts, body::full(body), Identity::admin()).await;
    let status = response.status().as_u16();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (
        status,
        serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into())),
    )
}

async fn get(cluster: &Arc<Cluster>, uri: &str) -> (u16, Value) {
    send(cluster, "GET", uri, "", Value::Null).await
}

const JSON: &str = "application/json";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn map(name: &str, data: Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name }, "data": data })
}

fn typed_map(name: &str) -> ConfigMap {
    serde_json::from_value(map(name, json!({}))).unwrap()
}

#[tokio::test]
async fn an_object_is_created_read_updated_patched_and_deleted() {
    let cluster = cluster();
    let (code, created) = send(&cluster, "POST", MAPS, JSON, map("a", json!({ "k": "1" }))).await;
    assert_eq!(code, 201, "{created}");
    assert_eq!(created["metadata"]["namespace"], "default");
    let path = format!("{MAPS}/a");
    assert_eq!(get(&cluster, &path).await, (200, created.clone()));

    let mut changed = created.clone();
    changed["data"]["k"] = "2".into();
    let (code, updated) = send(&cluster, "PUT", &path, JSON, changed.clone()).await;
    assert_eq!((code, &updated["data"]["k"]), (200, &json!("2")));
    assert_eq!(updated["metadata"]["uid"], created["metadata"]["uid"]);
    let (code, stale) = send(&cluster, "PUT", &path, JSON, changed).await;
    assert_eq!((code, &stale["reason"]), (409, &json!("Conflict")));

    let patch = json!({ "data": { "k": null, "j": "3" } });
    let (_, patched) = send(
        &cluster,
        "PATCH",
        &path,
        "application/merge-patch+json",
        patch.clone(),
    )
    .await;
    assert_eq!(patched["data"], json!({ "j": "3" }));
    let (_, again) = send(&cluster, "PATCH", &path, "application/merge-patch+json", patch).await;
    assert_eq!(again, patched, "a write that changes nothing takes no revision");

    let (code, deleted) = send(&cluster, "DELETE", &path, JSON, Value::Null).await;
    assert_eq!((code, &deleted["status"]), (200, &json!("Success")));
    let (code, missing) = get(&cluster, &path).await;
    assert_eq!(code, 404);
    assert_eq!(missing["message"], "configmaps \"a\" not found");
    assert_eq!(missing["details"], json!({ "name": "a", "kind": "configmaps" }));
}

#[tokio::test]
async fn pages_joined_are_the_list_at_the_first_pages_revision() {
    let cluster = cluster();
    for index in 0..7 {
        send(&cluster, "POST", MAPS, JSON, map(&format!("m{index}"), json!({}))).await;
    }
    let (_, whole) = get(&cluster, MAPS).await;
    let (_, first) = get(&cluster, &format!("{MAPS}?limit=3")).await;
    assert_eq!(first["metadata"]["remainingItemCount"], 4);
    send(&cluster, "DELETE", &format!("{MAPS}/m5"), JSON, Value::Null).await;
    send(&cluster, "POST", MAPS, JSON, map("m55", json!({}))).await;
    let mut items = first["items"].as_array().unwrap().clone();
    let mut next = first["metadata"]["continue"].as_str().map(str::to_owned);
    while let Some(token) = next {
        let (code, page) = get(&cluster, &format!("{MAPS}?limit=3&continue={token}")).await;
        assert_eq!(code, 200, "{page}");
        assert_eq!(
            page["metadata"]["resourceVersion"],
            whole["metadata"]["resourceVersion"]
        );
        items.extend(page["items"].as_array().unwrap().clone());
        next = page["metadata"]["continue"].as_str().map(str::to_owned);
    }
    assert_eq!(Value::from(items), whole["items"]);
}

#[tokio::test]
async fn a_watch_tells_what_enters_changes_within_and_leaves_its_selection() {
    let cluster = cluster();
    let api: Api<ConfigMap> = Api::default_namespaced(cluster.client(Identity::admin()));
    let revision = api
        .list(&ListParams::default())
        .await
        .unwrap()
        .metadata
        .resource_version
        .unwrap();
    let events = api
        .watch(&WatchParams::default().labels("on=yes").timeout(1), &revision)
        .await
        .unwrap();
    let label = |value: &str| Patch::Merge(json!({ "metadata": { "labels": { "on": value } } }));
    let parameters = PatchParams::default();
    api.create(&PostParams::default(), &typed_map("a")).await.unwrap();
    api.patch("a", &parameters, &label("yes")).await.unwrap();
    api.patch("a", &parameters, &Patch::Merge(json!({ "data": { "k": "v" } })))
        .await
        .unwrap();
    let left = api.patch("a", &parameters, &label("no")).await.unwrap();
    api.patch("a", &parameters, &label("yes")).await.unwrap();
    api.delete("a", &DeleteParams::default()).await.unwrap();
    let events: Vec<WatchEvent<ConfigMap>> = events.boxed().try_collect().await.unwrap();
    let kinds: Vec<&str> = events
        .iter()
        .filter_map(|event| match event {
            WatchEvent::Added(_) => Some("added"),
            WatchEvent::Modified(_) => Some("modified"),
            WatchEvent::Deleted(_) => Some("deleted"),
            WatchEvent::Bookmark(_) => None,
            WatchEvent::Error(error) => panic!("{error:?}"),
        })
        .collect();
    assert_eq!(kinds, ["added", "modified", "deleted", "added", "deleted"]);
    let WatchEvent::Deleted(gone) = &events[2] else {
        panic!("the third event is a deletion")
    };
    assert_eq!(gone.metadata.resource_version, left.metadata.resource_version);
}

#[tokio::test]
async fn an_old_revision_is_gone_and_a_future_one_times_out() {
    tokio::time::pause();
    let cluster = cluster();
    cluster.store.forget();
    let (code, gone) = get(&cluster, &format!("{MAPS}?watch=true&resourceVersion=1")).await;
    assert_eq!((code, &gone["type"]), (200, &json!("ERROR")));
    assert_eq!(
        (&gone["object"]["code"], &gone["object"]["reason"]),
        (&json!(410), &json!("Expired"))
    );
    let (code, future) = get(&cluster, &format!("{MAPS}?resourceVersion=1000000")).await;
    assert_eq!(
        (code, &future["details"]["causes"][0]["reason"]),
        (504, &json!("ResourceVersionTooLarge"))
    );
}

#[tokio::test]
async fn a_running_pod_is_deleted_twice_and_an_unscheduled_one_at_once() {
    let cluster = cluster();
    let api: Api<Pod> = Api::default_namespaced(cluster.client(Identity::admin()));
    let pod = |name: &str, spec: Value| -> Pod {
        serde_json::from_value(json!({ "metadata": { "name": name }, "spec": spec })).unwrap()
    };
    let containers = json!([{ "name": "c", "image": "i" }]);
    api.create(
        &PostParams::default(),
        &pod("waiting", json!({ "containers": containers })),
    )
    .await
    .unwrap();
    api.delete("waiting", &DeleteParams::default()).await.unwrap();
    assert!(api.get_opt("waiting").await.unwrap().is_none());

    let spec = json!({ "containers": containers, "nodeName": "n", "terminationGracePeriodSeconds": 7 });
    api.create(&PostParams::default(), &pod("running", spec))
        .await
        .unwrap();
    api.delete("running", &DeleteParams::default()).await.unwrap();
    let deleting = api.get("running").await.unwrap().metadata;
    assert_eq!(deleting.deletion_grace_period_seconds, Some(7));
    api.delete("running", &DeleteParams::default().grace_period(0))
        .await
        .unwrap();
    assert!(api.get_opt("running").await.unwrap().is_none());
}

#[tokio::test]
async fn a_finalizer_holds_a_deleted_object_until_it_is_removed() {
    let cluster = cluster();
    let mut object = map("a", json!({}));
    object["metadata"]["finalizers"] = json!(["x.io/hold"]);
    send(&cluster, "POST", MAPS, JSON, object).await;
    let path = format!("{MAPS}/a");
    let (_, held) = send(&cluster, "DELETE", &path, JSON, Value::Null).await;
    assert!(held["metadata"]["deletionTimestamp"].is_string());
    let patch = json!({ "metadata": { "finalizers": null } });
    send(&cluster, "PATCH", &path, "application/merge-patch+json", patch).await;
    assert_eq!(get(&cluster, &path).await.0, 404);
}

#[tokio::test]
async fn a_namespace_stays_until_it_is_finalized() {
    let cluster = cluster();
    let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "a" } });
    send(&cluster, "POST", "/api/v1/namespaces", JSON, namespace).await;
    let path = "/api/v1/namespaces/a";
    send(&cluster, "DELETE", path, JSON, Value::Null).await;
    let (_, mut namespace) = get(&cluster, path).await;
    assert_eq!(namespace["status"]["phase"], "Terminating");
    namespace["spec"]["finalizers"] = json!([]);
    send(&cluster, "PUT", &format!("{path}/finalize"), JSON, namespace).await;
    assert_eq!(get(&cluster, path).await.0, 404);
}

#[tokio::test]
async fn generated_names_are_filled_in_and_generation_counts_spec_changes_only() {
    let cluster = cluster();
    let path = "/apis/apps/v1/namespaces/default/deployments";
    let (code, created) = send(&cluster, "POST", path, JSON, json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "generateName": "web-" },
        "spec": { "replicas": 1, "selector": { "matchLabels": { "a": "b" } }, "template": {
            "metadata": { "labels": { "a": "b" } }, "spec": { "containers": [{ "name": "c", "image": "i" }] } } },
    }))
    .await;
    assert_eq!(code, 201, "{created}");
    let name = created["metadata"]["name"].as_str().unwrap();
    assert_eq!((name.len(), &name[..4]), (9, "web-"));
    let path = format!("{path}/{name}");
    let merge = "application/merge-patch+json";
    for (path, patch, generation) in [
        (path.clone(), json!({ "metadata": { "labels": { "x": "y" } } }), 1),
        (
            format!("{path}/status"),
            json!({ "status": { "replicas": 1 }, "spec": { "replicas": 9 } }),
            1,
        ),
        (
            path.clone(),
            json!({ "spec": { "replicas": 2 }, "status": { "replicas": 9 } }),
            2,
        ),
    ] {
        let (code, object) = send(&cluster, "PATCH", &path, merge, patch).await;
        assert_eq!(
            (code, &object["metadata"]["generation"]),
            (200, &json!(generation)),
            "{object}"
        );
    }
    let (_, object) = get(&cluster, &path).await;
    assert_eq!(
        (&object["spec"]["replicas"], &object["status"]["replicas"]),
        (&json!(2), &json!(1))
    );
}

#[tokio::test]
async fn discovery_is_served_in_both_forms() {
    let cluster = cluster();
    let client = cluster.client(Identity::admin());
    let old = client.list_core_api_resources("v1").await.unwrap();
    assert!(
        old.resources
            .iter()
            .any(|resource| resource.name == "pods" && resource.kind == "Pod")
    );
    let aggregated = client.list_api_groups_aggregated().await.unwrap();
    assert!(
        aggregated
            .items
            .iter()
            .any(|group| { group.metadata.as_ref().and_then(|meta| meta.name.as_deref()) == Some("apps") })
    );
}

const CRD: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

fn definition() -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": { "name": "ropes.x.io" },
        "spec": {
            "group": "x.io", "scope": "Namespaced", "names": { "kind": "Rope", "plural": "ropes" },
            "versions": [
                { "name": "v1", "served": true, "storage": true, "subresources": { "status": {}, "scale": {
                    "specReplicasPath": ".spec.strands", "statusReplicasPath": ".status.strands" } },
                  "schema": { "openAPIV3Schema": { "type": "object", "x-kubernetes-preserve-unknown-fields": true } } },
                { "name": "v1beta1", "served": true, "storage": false,
                  "schema": { "openAPIV3Schema": { "type": "object", "x-kubernetes-preserve-unknown-fields": true } } },
            ],
        },
    })
}

#[tokio::test]
async fn a_definition_serves_its_resource_at_once_and_takes_it_away_again() {
    let cluster = cluster();
    let (code, established) = send(&cluster, "POST", CRD, JSON, definition()).await;
    assert_eq!(code, 201, "{established}");
    assert_eq!(established["status"]["conditions"][1]["status"], "True");
    let path = "/apis/x.io/v1/namespaces/default/ropes";
    let rope = json!({ "apiVersion": "x.io/v1", "kind": "Rope", "metadata": { "name": "a" }, "spec": { "strands": 3 } });
    assert_eq!(send(&cluster, "POST", path, JSON, rope).await.0, 201);
    let (_, beta) = get(&cluster, "/apis/x.io/v1beta1/namespaces/default/ropes/a").await;
    assert_eq!(
        (&beta["apiVersion"], &beta["spec"]["strands"]),
        (&json!("x.io/v1beta1"), &json!(3))
    );
    let (_, scale) = get(&cluster, &format!("{path}/a/scale")).await;
    assert_eq!(scale["spec"]["replicas"], 3);
    let merge = "application/merge-patch+json";
    let (code, _) = send(
        &cluster,
        "PATCH",
        &format!("{path}/a/scale"),
        merge,
        json!({ "spec": { "replicas": 5 } }),
    )
    .await;
    assert_eq!(code, 200);
    let (_, rope) = get(&cluster, &format!("{path}/a")).await;
    assert_eq!(
        (&rope["spec"]["strands"], &rope["metadata"]["generation"]),
        (&json!(5), &json!(2))
    );
    let tried = format!("{CRD}/ropes.x.io?dryRun=All");
    assert_eq!(send(&cluster, "DELETE", &tried, JSON, Value::Null).await.0, 200);
    assert_eq!(
        get(&cluster, &format!("{path}/a")).await.0,
        200,
        "a trial takes nothing away"
    );
    assert_eq!(
        send(
            &cluster,
            "DELETE",
            &format!("{CRD}/ropes.x.io"),
            JSON,
            Value::Null
        )
        .await
        .0,
        200
    );
    assert_eq!(get(&cluster, path).await.0, 404);
    assert_eq!(send(&cluster, "POST", CRD, JSON, definition()).await.0, 201);
    assert_eq!(get(&cluster, path).await.1["items"], json!([]));
}

async fn send_as(
    cluster: &Arc<Cluster>,
    identity: Identity,
    method: &str,
    uri: &str,
    body: Value,
) -> (u16, Value) {
    let request = Request::builder().method(method).uri(uri).body(()).unwrap();
    let (parts, ()) = request.into_parts();
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    let response = cluster.answer(parts, body::full(body), identity).await;
    let status = response.status().as_u16();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&bytes).unwrap_or_default())
}

#[tokio::test]
async fn permissions_come_from_roles_and_bindings() {
    let cluster = cluster();
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let user = || Identity::new("jane", &[]);
    let (code, denied) = send_as(&cluster, user(), "GET", MAPS, Value::Null).await;
    assert_eq!(code, 403);
    assert_eq!(
        denied["message"],
        "configmaps is forbidden: User \"jane\" cannot list resource \"configmaps\" in API group \"\" in the namespace \"default\""
    );
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": { "name": "b" },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view" },
        "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "jane" }],
    });
    let bindings = format!("{rbac}/namespaces/default/rolebindings");
    assert_eq!(send(&cluster, "POST", &bindings, JSON, binding).await.0, 201);
    for (method, uri, expected) in [
        ("GET", MAPS, 200),
        ("GET", "/api/v1/namespaces/default/secrets", 403),
        ("GET", "/api/v1/namespaces/kube-system/configmaps", 403),
        ("GET", "/api/v1/configmaps", 403),
        ("DELETE", MAPS, 403),
        ("GET", "/apis", 200),
        ("GET", "/metrics", 403),
    ] {
        assert_eq!(
            send_as(&cluster, user(), method, uri, Value::Null).await.0,
            expected,
            "{method} {uri}"
        );
    }
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
        "spec": { "resourceAttributes": { "verb": "list", "resource": "pods", "namespace": "default" } },
    });
    let uri = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let (code, answer) = send_as(&cluster, user(), "POST", uri, review).await;
    assert_eq!(
        (code, &answer["status"]["allowed"]),
        (201, &json!(true)),
        "{answer}"
    );
}

fn account(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": name } })
}

async fn review(cluster: &Arc<Cluster>, token: &str, audiences: &[&str]) -> Value {
    let review = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
        "spec": { "token": token, "audiences": audiences },
    });
    let uri = "/apis/authentication.k8s.io/v1/tokenreviews";
    let (code, answer) = send(cluster, "POST", uri, JSON, review).await;
    assert_eq!(code, 201);
    answer["status"].clone()
}

#[tokio::test]
async fn a_token_is_believed_for_its_audience_while_its_account_and_pod_exist() {
    let cluster = cluster();
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    send(&cluster, "POST", accounts, JSON, account("web")).await;
    let pods = "/api/v1/namespaces/default/pods";
    let (code, pod) = send(
        &cluster,
        "POST",
        pods,
        JSON,
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "p" },
            "spec": { "serviceAccountName": "web", "containers": [{ "name": "c", "image": "i" }] },
        }),
    )
    .await;
    assert_eq!(code, 201, "{pod}");
    let mounts = &pod["spec"]["containers"][0]["volumeMounts"];
    assert_eq!(
        mounts[0]["mountPath"],
        "/var/run/secrets/kubernetes.io/serviceaccount"
    );
    let (code, answer) = send(&cluster, "POST", &format!("{accounts}/web/token"), JSON, json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
        "spec": { "audiences": ["mesh"], "boundObjectRef": { "kind": "Pod", "apiVersion": "v1", "name": "p" } },
    }))
    .await;
    assert_eq!(code, 201, "{answer}");
    let token = answer["status"]["token"].as_str().unwrap();
    let good = review(&cluster, token, &["other", "mesh"]).await;
    assert_eq!(good["authenticated"], true, "{good}");
    assert_eq!(good["user"]["username"], "system:serviceaccount:default:web");
    assert_eq!(good["audiences"], json!(["mesh"]));
    assert_eq!(
        good["user"]["extra"]["authentication.kubernetes.io/pod-name"],
        json!(["p"])
    );
    for audiences in [&[][..], &["other"][..]] {
        assert_ne!(review(&cluster, token, audiences).await["authenticated"], true);
    }
    assert_ne!(
        review(&cluster, &format!("{token}x"), &["mesh"]).await["authenticated"],
        true
    );
    send(&cluster, "DELETE", &format!("{pods}/p"), JSON, Value::Null).await;
    assert_ne!(review(&cluster, token, &["mesh"]).await["authenticated"], true);
}

#[tokio::test]
async fn a_token_secret_is_filled_and_dies_with_its_account() {
    use base64::Engine as _;
    let cluster = cluster();
    send(
        &cluster,
        "POST",
        "/api/v1/namespaces/default/serviceaccounts",
        JSON,
        account("link"),
    )
    .await;
    let secrets = "/api/v1/namespaces/default/secrets";
    let (code, secret) = send(
        &cluster,
        "POST",
        secrets,
        JSON,
        json!({
            "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/service-account-token",
            "metadata": { "name": "s", "annotations": { "kubernetes.io/service-account.name": "link" } },
        }),
    )
    .await;
    assert_eq!(code, 201, "{secret}");
    let token = base64::engine::general_purpose::STANDARD
        .decode(secret["data"]["token"].as_str().unwrap())
        .unwrap();
    let token = String::from_utf8(token).unwrap();
    assert_eq!(review(&cluster, &token, &[]).await["authenticated"], true);
    send(
        &cluster,
        "DELETE",
        "/api/v1/namespaces/default/serviceaccounts/link",
        JSON,
        Value::Null,
    )
    .await;
    assert_ne!(review(&cluster, &token, &[]).await["authenticated"], true);
    assert_eq!(get(&cluster, &format!("{secrets}/s")).await.0, 404);
}

#[tokio::test]
async fn server_side_apply_creates_owns_and_conflicts() {
    let cluster = cluster();
    let path = |manager: &str, force: bool| format!("{MAPS}/a?fieldManager={manager}&force={force}");
    let apply = "application/apply-patch+yaml";
    let config = |value: &str| json!({ "apiVersion": "v1", "kind": "ConfigMap", "data": { "k": value } });
    let (code, created) = send(&cluster, "PATCH", &path("one", false), apply, config("1")).await;
    assert_eq!(code, 201, "{created}");
    assert_eq!(created["metadata"]["managedFields"][0]["manager"], "one");
    let (_, again) = send(&cluster, "PATCH", &path("one", false), apply, config("1")).await;
    assert_eq!(again, created, "applying the same again changes nothing");
    let (code, conflict) = send(&cluster, "PATCH", &path("two", false), apply, config("2")).await;
    assert_eq!(code, 409);
    assert_eq!(conflict["details"]["causes"][0]["reason"], "FieldManagerConflict");
    let (code, forced) = send(&cluster, "PATCH", &path("two", true), apply, config("2")).await;
    assert_eq!((code, &forced["data"]["k"]), (200, &json!("2")));
}

#[tokio::test]
async fn a_streaming_list_marks_the_end_of_what_was_there() {
    let cluster = cluster();
    send(&cluster, "POST", MAPS, JSON, map("a", json!({}))).await;
    let query = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds=1";
    let (_, body) = get(&cluster, &format!("{MAPS}?{query}")).await;
    let text = body.as_str().unwrap();
    let events: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(
        (&events[0]["type"], &events[0]["object"]["metadata"]["name"]),
        (&json!("ADDED"), &json!("a"))
    );
    assert_eq!(events[1]["type"], "BOOKMARK");
    assert_eq!(
        events[1]["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"],
        "true"
    );
}

#[tokio::test]
async fn a_kubernetes_rs_reflector_survives_interruptions_with_the_right_state() {
    use kube::runtime::{WatchStreamExt as _, reflector, watcher};
    tokio::time::pause();
    let cluster = cluster();
    let api: Api<ConfigMap> = Api::default_namespaced(cluster.client(Identity::admin()));
    let (reader, writer) = reflector::store();
    let watcher = watcher(api.clone(), watcher::Config::default()).default_backoff();
    let task = tokio::spawn(reflector(writer, watcher).for_each(|_| std::future::ready(())));
    for round in 0..20 {
        api.create(&PostParams::default(), &typed_map(&format!("m{round}")))
            .await
            .unwrap();
        if round % 2 == 1 {
            api.delete(&format!("m{}", round - 1), &DeleteParams::default())
                .await
                .unwrap();
        }
        if round % 3 == 0 {
            cluster.interrupt(Duration::from_millis(0));
        }
        tokio::task::yield_now().await;
    }
    let expected: Vec<String> = cluster
        .store
        .list(&"configmaps".into())
        .objects
        .keys()
        .map(|key| key.name.clone())
        .collect();
    let settled = async {
        loop {
            let mut names: Vec<String> = reader
                .state()
                .iter()
                .filter_map(|map| map.metadata.name.clone())
                .collect();
            names.sort();
            if names == expected {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(600), settled)
        .await
        .expect("the reflector catches up");
    task.abort();
}

/// A node whose containers echo: exec runs `cat`, every port answers what it hears.
struct EchoNode(std::net::SocketAddr);

impl Kubelet for EchoNode {
    fn logs(
        &self,
        container: kubelet::ContainerRef,
        options: kubelet::LogOptions,
    ) -> kubelet::BoxFuture<'_, Result<tokio::sync::mpsc::Receiver<bytes::Bytes>, kubelet::KubeletError>>
    {
        Box::pin(async move {
            let (sender, receiver) = tokio::sync::mpsc::channel(1);
            let _ = sender.try_send(format!("{} says hello\n", container.container).into());
            if options.follow {
                tokio::spawn(async move { sender.closed().await });
            }
            Ok(receiver)
        })
    }

    fn exec(
        &self,
        _: kubelet::ContainerRef,
        options: kubelet::ExecOptions,
    ) -> kubelet::BoxFuture<'_, Result<kubelet::ExecSession, kubelet::KubeletError>> {
        Box::pin(async move {
            let (stdin, stdout) = tokio::io::duplex(1024);
            let code: i32 = options
                .command
                .last()
                .and_then(|code| code.parse().ok())
                .unwrap_or(0);
            let (resize, _) = tokio::sync::mpsc::channel(1);
            Ok(kubelet::ExecSession {
                stdin: Some(Box::pin(stdin)),
                stdout: Box::pin(stdout),
                stderr: Box::pin(tokio::io::empty()),
                resize,
                exit: Box::pin(async move {
                    if options.command == ["wait"] {
                        std::future::pending::<()>().await;
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    Ok(code)
                }),
            })
        })
    }

    fn attach(
        &self,
        _: kubelet::ContainerRef,
    ) -> kubelet::BoxFuture<'_, Result<kubelet::ExecSession, kubelet::KubeletError>> {
        Box::pin(async move {
            let (resize, _) = tokio::sync::mpsc::channel(1);
            Ok(kubelet::ExecSession {
                stdin: None,
                stdout: Box::pin(std::io::Cursor::new("said later\n")),
                stderr: Box::pin(tokio::io::empty()),
                resize,
                exit: Box::pin(std::future::ready(Ok(0))),
            })
        })
    }

    fn dial(
        &self,
        _: String,
        _: String,
        _: u16,
    ) -> kubelet::BoxFuture<'_, Result<tokio::net::TcpStream, kubelet::KubeletError>> {
        Box::pin(async move {
            let dialled = tokio::net::TcpStream::connect(self.0).await;
            dialled.map_err(|source| kubelet::KubeletError::Dial { port: 0, source })
        })
    }
}

#[tokio::test]
async fn logs_exec_and_port_forward_reach_the_node() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let cluster = cluster();
    cluster.set_kubelet(Arc::new(EchoNode(listener.local_addr().unwrap())));
    let echo = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let (mut read, mut write) = stream.split();
        tokio::io::copy(&mut read, &mut write).await.unwrap();
    });
    let api: Api<Pod> = Api::default_namespaced(cluster.client(Identity::admin()));
    let pod =
        json!({ "metadata": { "name": "p" }, "spec": { "containers": [{ "name": "c", "image": "i" }] } });
    api.create(&PostParams::default(), &serde_json::from_value(pod).unwrap())
        .await
        .unwrap();
    assert_eq!(
        api.logs("p", &kube::api::LogParams::default()).await.unwrap(),
        "c says hello\n"
    );

    let parameters = kube::api::AttachParams::default().stdin(true).stderr(false);
    let mut process = api.exec("p", ["exit", "3"], &parameters).await.unwrap();
    process.stdin().unwrap().write_all(b"ping").await.unwrap();
    let mut heard = [0; 4];
    process.stdout().unwrap().read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"ping");
    let status = process.take_status().unwrap().await.unwrap();
    assert_eq!(status.reason.as_deref(), Some("NonZeroExitCode"));

    let parameters = kube::api::AttachParams::default().stderr(false);
    let mut attached = api.attach("p", &parameters).await.unwrap();
    let mut said = String::new();
    attached
        .stdout()
        .unwrap()
        .read_to_string(&mut said)
        .await
        .unwrap();
    assert_eq!(said, "said later\n");

    let mut forward = api.portforward("p", &[80]).await.unwrap();
    let mut stream = forward.take_stream(80).unwrap();
    stream.write_all(b"pong").await.unwrap();
    stream.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"pong");
    drop(stream);
    echo.abort();
}

mod definitions;
mod impersonation;
mod load;
mod revocation;
mod webhooks;
