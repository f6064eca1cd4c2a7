//! CustomResourceDefinitions that change while their objects are in use.

use kube::core::{ApiResource, DynamicObject, GroupVersionKind};

use super::*;

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const WIDGETS: &str = "/apis/example.com/v1/namespaces/default/widgets";

fn definition(spec: Value) -> Value {
    let version = |name: &str, storage: bool| {
        json!({ "name": name, "served": true, "storage": storage, "schema": { "openAPIV3Schema": {
            "type": "object", "properties": { "spec": { "type": "object", "properties": spec } },
        } } })
    };
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": { "name": "widgets.example.com" },
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": { "plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList" },
            "versions": [version("v1", true), version("v2", false)],
        },
    })
}

fn colour() -> Value {
    json!({ "colour": { "type": "string" } })
}

async fn define(cluster: &Arc<Cluster>) {
    let (code, answer) = send(cluster, "POST", DEFINITIONS, JSON, definition(colour())).await;
    assert_eq!(code, 201, "{answer}");
    let widget = json!({
        "apiVersion": "example.com/v1", "kind": "Widget", "metadata": { "name": "w" }, "spec": { "colour": "red" },
    });
    assert_eq!(send(cluster, "POST", WIDGETS, JSON, widget).await.0, 201);
}

async fn add_size(cluster: &Arc<Cluster>) {
    let mut spec = colour();
    spec["size"] = json!({ "type": "integer", "default": 7 });
    let patch = json!({ "spec": { "versions": definition(spec)["spec"]["versions"] } });
    let uri = format!("{DEFINITIONS}/widgets.example.com");
    let (code, answer) = send(cluster, "PATCH", &uri, "application/merge-patch+json", patch).await;
    assert_eq!(code, 200, "{answer}");
}

async fn watch(
    cluster: &Arc<Cluster>,
    version: &str,
) -> impl futures::Stream<Item = kube::Result<WatchEvent<DynamicObject>>> + use<> {
    let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("example.com", version, "Widget"));
    let api: Api<DynamicObject> = Api::default_namespaced_with(cluster.client(Identity::admin()), &kind);
    let mut events = api.watch(&WatchParams::default(), "0").await.unwrap().boxed();
    events.next().await.unwrap().unwrap();
    events
}

#[tokio::test]
async fn an_object_is_read_with_the_defaults_of_the_present_definition() {
    let cluster = cluster();
    define(&cluster).await;
    add_size(&cluster).await;
    for version in ["v1", "v2"] {
        let uri = WIDGETS.replace("v1", version);
        let expected = json!({ "colour": "red", "size": 7 });
        assert_eq!(get(&cluster, &format!("{uri}/w")).await.1["spec"], expected);
        let (_, list) = get(&cluster, &uri).await;
        assert_eq!(list["items"][0]["spec"], expected);
        assert_eq!(list["items"][0]["apiVersion"], format!("example.com/{version}"));
    }
}

#[tokio::test]
async fn watches_of_every_version_end_when_the_definition_changes_and_when_it_goes() {
    tokio::time::pause();
    let cluster = cluster();
    define(&cluster).await;
    let (one, two) = (watch(&cluster, "v1").await, watch(&cluster, "v2").await);
    // Nothing that clients see changes.
    let label = json!({ "metadata": { "labels": { "a": "b" } } });
    let uri = format!("{DEFINITIONS}/widgets.example.com");
    send(&cluster, "PATCH", &uri, "application/merge-patch+json", label).await;
    let (mut one, mut two) = (Box::pin(one), Box::pin(two));
    let quiet = tokio::time::timeout(
        Duration::from_secs(1),
        futures::future::select(one.next(), two.next()),
    )
    .await;
    assert!(quiet.is_err(), "a label on the definition disturbs nobody");

    add_size(&cluster).await;
    let soon = Duration::from_secs(1);
    for watch in [one, two] {
        let rest = tokio::time::timeout(soon, watch.count())
            .await
            .expect("the watch ends soon");
        assert_eq!(rest, 0);
    }

    let watch = watch(&cluster, "v2").await;
    assert_eq!(send(&cluster, "DELETE", &uri, JSON, Value::Null).await.0, 200);
    tokio::time::timeout(soon, watch.count())
        .await
        .expect("the watch ends soon");
    assert_eq!(get(&cluster, WIDGETS).await.0, 404);
}

#[tokio::test]
async fn objects_are_held_to_the_rules_of_their_definition() {
    let cluster = cluster();
    let mut spec = colour();
    spec["colour"]["x-kubernetes-validations"] =
        json!([{ "rule": "self != 'green'", "message": "not green" }]);
    assert_eq!(
        send(&cluster, "POST", DEFINITIONS, JSON, definition(spec))
            .await
            .0,
        201
    );
    let widget = |colour: &str| {
        json!({
            "apiVersion": "example.com/v1", "kind": "Widget", "metadata": { "name": "w" },
            "spec": { "colour": colour },
        })
    };
    let (code, answer) = send(&cluster, "POST", WIDGETS, JSON, widget("green")).await;
    assert_eq!(code, 422);
    assert_eq!(
        answer["details"]["causes"],
        json!([{
            "reason": "FieldValueInvalid", "field": "spec.colour",
            "message": "Invalid value: \"green\": not green",
        }])
    );
    assert_eq!(send(&cluster, "POST", WIDGETS, JSON, widget("red")).await.0, 201);
}

#[tokio::test]
async fn a_definition_whose_rule_does_not_compile_is_refused() {
    let cluster = cluster();
    let mut spec = colour();
    spec["colour"]["x-kubernetes-validations"] = json!([{ "rule": "self > 1" }]);
    let (code, answer) = send(&cluster, "POST", DEFINITIONS, JSON, definition(spec)).await;
    assert_eq!(code, 422);
    assert_eq!(
        answer["details"]["causes"][0]["field"],
        "spec.validation.openAPIV3Schema.properties[spec].properties[colour].x-kubernetes-validations[0].rule"
    );
}
