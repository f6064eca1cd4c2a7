//! What the sandbox and Kubernetes are compared by.

use serde_json::{Value, json};

use crate::script::{
    Case, Step, apply, compact, delete, get, json_patch, merge, post, put, restart, strategic,
};

const MAPS: &str = "/api/v1/namespaces/{ns}/configmaps";
const MAP: &str = "/api/v1/namespaces/{ns}/configmaps/a";
const PODS: &str = "/api/v1/namespaces/{ns}/pods";
const SERVICES: &str = "/api/v1/namespaces/{ns}/services";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/{ns}/deployments";
const DEPLOYMENT: &str = "/apis/apps/v1/namespaces/{ns}/deployments/web";
pub(crate) const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
pub(crate) const CRD: &str =
    "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/things.twin.example.com";
pub(crate) const THINGS: &str = "/apis/twin.example.com/v1/namespaces/{ns}/things";
pub(crate) const THING: &str = "/apis/twin.example.com/v1/namespaces/{ns}/things/a";
/// What makes the end of a watch.
const ENDED: [&str; 5] = [
    "/type",
    "/object/kind",
    "/object/status",
    "/object/code",
    "/object/reason",
];
/// What makes a refusal.
pub(crate) const WHY: [&str; 3] = ["/reason", "/message", "/details"];

pub(crate) fn cases() -> Vec<Case> {
    [
        objects(),
        lists(),
        watches(),
        patches(),
        applies(),
        tables(),
        validation(),
        definitions(),
        versions(),
        crate::rules::cases(),
        admission(),
        permissions(),
        tokens(),
        controllers(),
        compaction(),
        restarts(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

pub(crate) fn case(area: &'static str, claim: &'static str, steps: impl Into<Vec<Step>>) -> Case {
    Case {
        area,
        claim,
        steps: steps.into(),
    }
}

fn map(name: &str, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
}

fn labelled(name: &str, app: &str) -> Value {
    let mut map = map(name, json!({}));
    map["metadata"]["labels"] = json!({"app": app});
    map
}

fn deployment(containers: Value) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {
            // Nothing is to run.
            "replicas": 0,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": containers}},
        },
    })
}

fn objects() -> Vec<Case> {
    const AREA: &str = "objects";
    let a = || map("a", json!({"k": "1"}));
    vec![
        case(
            AREA,
            "an object that is not there is not found",
            [get(MAP).shows(&WHY).shows(&["/code", "/status"])],
        ),
        case(
            AREA,
            "a kind that is not there is not found",
            [get("/api/v1/namespaces/{ns}/gadgets").shows(&["/kind"])],
        ),
        case(
            AREA,
            "a name is taken once",
            [post(MAPS, a()).quiet(), post(MAPS, a()).shows(&WHY)],
        ),
        case(
            AREA,
            "a new object has a uid, a version and a time",
            [post(MAPS, a()).shows(&[
                "/metadata/name",
                "/metadata/namespace",
                "/metadata/creationTimestamp",
                "/metadata/uid",
                "/metadata/generation",
                "/metadata/managedFields/0/operation",
            ])],
        ),
        case(
            AREA,
            "a name may be generated",
            [post(MAPS, json!({"metadata": {"generateName": "made-"}})).shows(&["/metadata/generateName"])],
        ),
        case(
            AREA,
            "bad names are refused",
            [
                post(MAPS, map("Not_A_Name", json!({}))).shows(&WHY),
                post(MAPS, json!({"metadata": {}})).shows(&WHY),
            ],
        ),
        case(
            AREA,
            "another namespace in the object than in the path is refused",
            [post(MAPS, json!({"metadata": {"name": "a", "namespace": "default"}})).shows(&WHY)],
        ),
        case(
            AREA,
            "a namespace that is not there takes no objects",
            [post("/api/v1/namespaces/nowhere-twin/configmaps", a()).shows(&WHY)],
        ),
        case(
            AREA,
            "an update of an old version is a conflict",
            [
                post(MAPS, a()).quiet().keeps("rv", "/metadata/resourceVersion"),
                merge(MAP, json!({"data": {"k": "2"}})).quiet(),
                put(
                    MAP,
                    json!({"metadata": {"name": "a", "resourceVersion": "{rv}"}, "data": {"k": "3"}}),
                )
                .shows(&WHY),
            ],
        ),
        case(
            AREA,
            "an update of another name than in the path is refused",
            [post(MAPS, a()).quiet(), put(MAP, map("b", json!({}))).shows(&WHY)],
        ),
        case(
            AREA,
            "an update without a change keeps the version",
            [
                post(MAPS, a()).quiet().keeps("rv", "/metadata/resourceVersion"),
                merge(MAP, json!({"data": {"k": "1"}}))
                    .quiet()
                    .keeps("again", "/metadata/resourceVersion"),
                put(
                    MAP,
                    json!({"metadata": {"name": "a", "resourceVersion": "{rv}"}, "data": {"k": "1"}}),
                )
                .shows(&["/data"]),
            ],
        ),
        case(
            AREA,
            "generation counts changes of the spec only",
            [
                post(DEPLOYMENTS, deployment(json!([{"name": "c", "image": "i"}]))).quiet(),
                merge(DEPLOYMENT, json!({"metadata": {"labels": {"x": "y"}}}))
                    .shows(&["/metadata/generation"]),
                merge(DEPLOYMENT, json!({"spec": {"paused": true}})).shows(&["/metadata/generation"]),
                merge(
                    &format!("{DEPLOYMENT}/status"),
                    json!({"spec": {"paused": false}}),
                )
                .shows(&["/metadata/generation", "/spec/paused"]),
            ],
        ),
        case(
            AREA,
            "a dry run leaves nothing",
            [
                post(&format!("{MAPS}?dryRun=All"), a()).shows(&["/metadata/name"]),
                get(MAP).shows(&["/reason"]),
                post(&format!("{MAPS}?dryRun=Some"), a()).shows(&WHY),
            ],
        ),
        case(
            AREA,
            "unknown fields are refused if asked",
            [
                post(
                    &format!("{MAPS}?fieldValidation=Strict"),
                    json!({"metadata": {"name": "a"}, "dada": {}}),
                )
                .shows(&WHY),
                post(
                    &format!("{MAPS}?fieldValidation=Ignore"),
                    json!({"metadata": {"name": "a"}, "dada": {}}),
                )
                .shows(&["/dada"]),
            ],
        ),
        case(
            AREA,
            "deletion answers with a status, and with preconditions that fail a conflict",
            [
                post(MAPS, a()).quiet().keeps("uid", "/metadata/uid"),
                delete(MAP)
                    .with_body(json!({"preconditions": {"uid": "another"}}))
                    .shows(&["/reason"]),
                delete(MAP)
                    .with_body(json!({"preconditions": {"uid": "{uid}"}}))
                    .shows(&["/kind", "/status", "/details"]),
                delete(MAP).shows(&WHY),
            ],
        ),
        case(
            AREA,
            "a finalizer holds an object back",
            [
                post(
                    MAPS,
                    json!({"metadata": {"name": "a", "finalizers": ["example.com/hold"]}}),
                )
                .quiet(),
                delete(MAP).shows(&[
                    "/kind",
                    "/metadata/deletionTimestamp",
                    "/metadata/deletionGracePeriodSeconds",
                ]),
                merge(MAP, json!({"metadata": {"finalizers": null}})).shows(&["/kind"]),
                get(MAP).shows(&["/reason"]),
            ],
        ),
        case(
            AREA,
            "an immutable ConfigMap stays as it is",
            [
                post(
                    MAPS,
                    json!({"metadata": {"name": "a"}, "immutable": true, "data": {"k": "1"}}),
                )
                .quiet(),
                merge(MAP, json!({"data": {"k": "2"}})).shows(&WHY),
            ],
        ),
    ]
}

fn lists() -> Vec<Case> {
    const AREA: &str = "lists";
    let three = || {
        vec![
            post(MAPS, labelled("a", "x")).quiet(),
            post(MAPS, labelled("b", "y")).quiet(),
            post(MAPS, labelled("c", "x"))
                .quiet()
                .keeps("rv", "/metadata/resourceVersion"),
        ]
    };
    let with = |more: Vec<Step>| [three(), more].concat();
    let ours = |query: &str| format!("{MAPS}?labelSelector=app&{query}");
    vec![
        case(
            AREA,
            "a list has its kind, and items have none",
            with(vec![get(&ours("")).shows(&[
                "/kind",
                "/apiVersion",
                "/items/0/kind",
                "/items/0/metadata/name",
                "/items/2/metadata/name",
            ])]),
        ),
        case(
            AREA,
            "pages follow each other",
            with(vec![
                get(&ours("limit=2")).keeps("next", "/metadata/continue").shows(&[
                    "/items/1/metadata/name",
                    "/items/2",
                    "/metadata/remainingItemCount",
                ]),
                get(&ours("limit=2&continue={next}")).shows(&[
                    "/items/0/metadata/name",
                    "/items/1",
                    "/metadata/continue",
                ]),
            ]),
        ),
        case(
            AREA,
            "a bad continue token is refused",
            [get(&format!("{MAPS}?limit=1&continue=nonsense")).shows(&WHY)],
        ),
        case(
            AREA,
            "labels select",
            with(vec![
                get(&format!("{MAPS}?labelSelector=app%3Dx")).shows(&[
                    "/items/0/metadata/name",
                    "/items/1/metadata/name",
                    "/items/2",
                ]),
                get(&format!("{MAPS}?labelSelector=app%20in%20(y)"))
                    .shows(&["/items/0/metadata/name", "/items/1"]),
                get(&format!("{MAPS}?labelSelector=app%20notin%20(x),app"))
                    .shows(&["/items/0/metadata/name", "/items/1"]),
                get(&format!("{MAPS}?labelSelector=app%3D%3D%3Dx")).shows(&WHY),
            ]),
        ),
        case(
            AREA,
            "fields select",
            with(vec![
                get(&format!("{MAPS}?fieldSelector=metadata.name%3Db"))
                    .shows(&["/items/0/metadata/name", "/items/1"]),
                get(&format!("{MAPS}?fieldSelector=data.k%3Db")).shows(&WHY),
                get(&format!("{PODS}?fieldSelector=spec.nodeName%3Dn")).shows(&["/items"]),
            ]),
        ),
        case(
            AREA,
            "versions match as asked",
            with(vec![
                get(&ours("resourceVersion={rv}&resourceVersionMatch=NotOlderThan"))
                    .shows(&["/items/2/metadata/name"]),
                get(&ours("resourceVersion={rv}&resourceVersionMatch=Exact"))
                    .shows(&["/items/2/metadata/name"]),
                get(&ours("resourceVersionMatch=Exact")).shows(&WHY),
                get(&ours("resourceVersion=0&resourceVersionMatch=Exact")).shows(&WHY),
                get(&ours("resourceVersion=word")).shows(&["/reason"]),
            ]),
        ),
        case(
            AREA,
            "a version that is still to come is waited for in vain",
            [get(&format!("{MAPS}?resourceVersion=4000000000")).shows(&["/reason", "/code", "/details"])],
        ),
        case(
            AREA,
            "a collection is deleted by its labels",
            with(vec![
                delete(&format!("{MAPS}?labelSelector=app%3Dx")).shows(&["/kind"]),
                get(&ours("")).shows(&["/items/0/metadata/name", "/items/1"]),
            ]),
        ),
    ]
}

fn watches() -> Vec<Case> {
    const AREA: &str = "watches";
    let short = "watch=1&timeoutSeconds=1";
    let events = ["/type", "/object/metadata/name"];
    vec![
        case(AREA, "what happened after a version is told", [
            post(MAPS, labelled("a", "x")).quiet().keeps("rv", "/metadata/resourceVersion"),
            merge(MAP, json!({"data": {"k": "2"}})).quiet(),
            delete(MAP).quiet(),
            get(&format!("{MAPS}?{short}&resourceVersion={{rv}}&labelSelector=app")).shows(&events),
        ]),
        case(AREA, "without a version what is there is told first", [
            post(MAPS, labelled("a", "x")).quiet(),
            get(&format!("{MAPS}?{short}&labelSelector=app")).shows(&events),
        ]),
        case(AREA, "who leaves a selection is told as deleted, who enters as added", [
            post(MAPS, labelled("a", "x")).quiet().keeps("rv", "/metadata/resourceVersion"),
            merge(MAP, json!({"metadata": {"labels": {"app": "y"}}})).quiet(),
            merge(MAP, json!({"metadata": {"labels": {"app": "x"}}})).quiet(),
            get(&format!("{MAPS}?{short}&resourceVersion={{rv}}&labelSelector=app%3Dx")).shows(&events).shows(&["/object/metadata/labels"]),
        ]),
        case(AREA, "initial events end with a bookmark", [
            post(MAPS, labelled("a", "x")).quiet(),
            get(&format!("{MAPS}?{short}&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&labelSelector=app"))
                .first(2)
                .shows(&["/type", "/object/metadata/name", "/object/metadata/annotations"]),
        ]),
        case(AREA, "initial events need a match", [
            get(&format!("{MAPS}?{short}&sendInitialEvents=true")).shows(&WHY),
        ]),
    ]
}

fn patches() -> Vec<Case> {
    const AREA: &str = "patches";
    let two = || json!([{"name": "c", "image": "i"}, {"name": "d", "image": "j"}]);
    let containers = [
        "/spec/template/spec/containers/0/name",
        "/spec/template/spec/containers/0/image",
        "/spec/template/spec/containers/1/name",
        "/spec/template/spec/containers/1/image",
    ];
    vec![
        case(AREA, "merge patches remove what is null", [
            post(MAPS, map("a", json!({"k": "1", "l": "2"}))).quiet(),
            merge(MAP, json!({"data": {"k": null, "m": "3"}})).shows(&["/data"]),
        ]),
        case(AREA, "strategic patches merge lists by their keys", [
            post(DEPLOYMENTS, deployment(two())).quiet(),
            strategic(DEPLOYMENT, json!({"spec": {"template": {"spec": {"containers": [{"name": "d", "image": "k"}]}}}})).shows(&containers),
            strategic(DEPLOYMENT, json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "$patch": "delete"}]}}}})).shows(&containers),
        ]),
        case(AREA, "JSON patches test", [
            post(MAPS, map("a", json!({"k": "1"}))).quiet(),
            json_patch(MAP, json!([{"op": "test", "path": "/data/k", "value": "2"}])).shows(&WHY),
            json_patch(MAP, json!([{"op": "replace", "path": "/data/k", "value": "2"}])).shows(&["/data"]),
            json_patch(MAP, json!([{"op": "remove", "path": "/data/none"}])).shows(&["/reason"]),
        ]),
        case(AREA, "a patch of another version is a conflict", [
            post(MAPS, map("a", json!({"k": "1"}))).quiet(),
            merge(MAP, json!({"metadata": {"resourceVersion": "1"}, "data": {"k": "2"}})).shows(&["/reason"]),
            merge(MAP, json!({"metadata": {"uid": "another"}, "data": {"k": "2"}})).shows(&["/reason"]),
        ]),
        case(AREA, "a patch of nothing is not found", [merge(MAP, json!({"data": {}})).shows(&WHY)]),
        case(AREA, "scale is a view of a Deployment", [
            post(DEPLOYMENTS, deployment(two())).quiet(),
            get(&format!("{DEPLOYMENT}/scale")).shows(&["/apiVersion", "/kind", "/spec", "/status/selector"]),
        ]),
    ]
}

fn applies() -> Vec<Case> {
    const AREA: &str = "server-side apply";
    let by = |manager: &str| format!("{MAP}?fieldManager={manager}");
    let applied = |data: Value| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": data});
    vec![
        case(
            AREA,
            "an apply creates, and says who owns what",
            [apply(&by("one"), applied(json!({"k": "1"}))).shows(&["/data", "/metadata/managedFields"])],
        ),
        case(
            AREA,
            "a manager is needed",
            [apply(MAP, applied(json!({}))).shows(&WHY)],
        ),
        case(
            AREA,
            "a field of another manager is a conflict, unless forced",
            [
                apply(&by("one"), applied(json!({"k": "1"}))).quiet(),
                apply(&by("two"), applied(json!({"k": "2"}))).shows(&WHY),
                apply(&format!("{}&force=true", by("two")), applied(json!({"k": "2"})))
                    .shows(&["/data", "/metadata/managedFields"]),
            ],
        ),
        case(
            AREA,
            "what a manager applies no more is removed",
            [
                apply(&by("one"), applied(json!({"k": "1", "l": "1"}))).quiet(),
                apply(&by("one"), applied(json!({"l": "1"})))
                    .shows(&["/data", "/metadata/managedFields/0/fieldsV1"]),
            ],
        ),
        case(
            AREA,
            "what two managers apply belongs to both",
            [
                apply(&by("one"), applied(json!({"k": "1"}))).quiet(),
                apply(&by("two"), applied(json!({"k": "1"}))).shows(&["/metadata/managedFields/1/fieldsV1"]),
                apply(&by("one"), applied(json!({}))).shows(&["/data"]),
            ],
        ),
        case(
            AREA,
            "an update takes what it changes",
            [
                apply(&by("one"), applied(json!({"k": "1", "l": "1"}))).quiet(),
                merge(&by("two"), json!({"data": {"k": "2"}})).shows(&["/metadata/managedFields"]),
            ],
        ),
        case(
            AREA,
            "items of a list belong to managers by their keys",
            [apply(
                &format!("{DEPLOYMENT}?fieldManager=one"),
                deployment(json!([{"name": "c", "image": "i", "ports": [{"containerPort": 80}]}])),
            )
            .shows(&["/metadata/managedFields/0/fieldsV1/f:spec/f:template/f:spec"])],
        ),
        case(
            AREA,
            "a name in the object may not differ from the path",
            [apply(&by("one"), map("b", json!({}))).shows(&["/reason", "/message"])],
        ),
    ]
}

fn tables() -> Vec<Case> {
    const AREA: &str = "tables";
    const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";
    const METADATA: &str = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";
    vec![
        case(
            AREA,
            "ConfigMaps have columns",
            [
                post(MAPS, labelled("a", "x")).quiet(),
                get(&format!("{MAPS}?labelSelector=app")).accepts(TABLE).shows(&[
                    "/kind",
                    "/apiVersion",
                    "/columnDefinitions/0/name",
                    "/columnDefinitions/1/name",
                    "/columnDefinitions/2/name",
                    "/rows/0/cells/0",
                    "/rows/0/cells/1",
                    "/rows/0/object/kind",
                ]),
            ],
        ),
        case(
            AREA,
            "Deployments have columns",
            [
                post(DEPLOYMENTS, deployment(json!([{"name": "c", "image": "i"}]))).quiet(),
                get(DEPLOYMENTS).accepts(TABLE).shows(&[
                    "/columnDefinitions/1",
                    "/columnDefinitions/5",
                    "/rows/0/cells/0",
                    "/rows/0/cells/1",
                ]),
            ],
        ),
        case(
            AREA,
            "metadata alone can be asked for",
            [
                post(MAPS, labelled("a", "x")).quiet(),
                get(&format!("{MAPS}?labelSelector=app"))
                    .accepts(METADATA)
                    .shows(&[
                        "/kind",
                        "/items/0/kind",
                        "/items/0/metadata/name",
                        "/items/0/data",
                    ]),
            ],
        ),
        case(
            AREA,
            "what nobody can give is not acceptable",
            [get(MAPS).accepts("text/html").shows(&WHY)],
        ),
    ]
}

fn validation() -> Vec<Case> {
    const AREA: &str = "defaults and validation";
    let service = |spec: Value| json!({"metadata": {"name": "s"}, "spec": spec});
    vec![
        case(AREA, "a Deployment is filled in", [
            post(DEPLOYMENTS, deployment(json!([{"name": "c", "image": "i", "ports": [{"containerPort": 80}]}])))
                .shows(&["/spec/strategy", "/spec/revisionHistoryLimit", "/spec/progressDeadlineSeconds", "/spec/template/spec"]),
        ]),
        case(AREA, "a Deployment's selector must match, and stays", [
            post(DEPLOYMENTS, json!({"metadata": {"name": "web"}, "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "c"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}}))
                .shows(&WHY),
            post(DEPLOYMENTS, deployment(json!([{"name": "c", "image": "i"}]))).quiet(),
            merge(DEPLOYMENT, json!({"spec": {"selector": {"matchLabels": {"app": "other"}}}})).shows(&["/reason", "/details/causes"]),
        ]),
        case(AREA, "a Service is filled in", [
            post(SERVICES, service(json!({"ports": [{"port": 80}]}))).shows(&[
                "/spec/type", "/spec/sessionAffinity", "/spec/ports", "/spec/ipFamilies", "/spec/ipFamilyPolicy", "/spec/internalTrafficPolicy", "/status",
            ]),
        ]),
        case(AREA, "a Service's address stays", [
            post(SERVICES, service(json!({"ports": [{"port": 80}]}))).quiet(),
            merge(&format!("{SERVICES}/s"), json!({"spec": {"clusterIP": "10.43.200.200"}})).shows(&["/reason", "/details/causes/0/field"]),
        ]),
        case(AREA, "a Service's ports need names if there are several", [
            post(SERVICES, service(json!({"ports": [{"port": 80}, {"port": 81}]}))).shows(&["/reason", "/details/causes"]),
            post(SERVICES, service(json!({"ports": [{"port": 99999}]}))).shows(&["/reason", "/details/causes"]),
        ]),
        case(AREA, "a pod needs containers with names", [
            post(PODS, json!({"metadata": {"name": "p"}, "spec": {"containers": []}})).shows(&["/reason", "/details/causes"]),
            post(PODS, json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "A B", "image": "i"}]}})).shows(&["/reason", "/details/causes"]),
        ]),
        case(AREA, "a value of another type is refused", [
            post(DEPLOYMENTS, json!({"metadata": {"name": "web"}, "spec": {"replicas": "many"}})).shows(&["/reason"]),
        ]),
    ]
}

pub(crate) fn definition(schema: Value) -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "things.twin.example.com"},
        "spec": {
            "group": "twin.example.com", "scope": "Namespaced",
            "names": {"kind": "Thing", "listKind": "ThingList", "plural": "things", "singular": "thing", "shortNames": ["th"]},
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "subresources": {"status": {}},
                "additionalPrinterColumns": [{"name": "Size", "type": "integer", "jsonPath": ".spec.size"}],
                "schema": {"openAPIV3Schema": schema},
            }],
        },
    })
}

pub(crate) fn thing(spec: Value) -> Value {
    json!({"apiVersion": "twin.example.com/v1", "kind": "Thing", "metadata": {"name": "a"}, "spec": spec})
}

/// With the definition made before and removed after.
fn defined(steps: Vec<Step>) -> Vec<Step> {
    let schema = json!({
        "type": "object",
        "properties": {
            "spec": {
                "type": "object",
                "required": ["size"],
                "properties": {
                    "size": {"type": "integer", "minimum": 1, "maximum": 9},
                    "color": {"type": "string", "enum": ["red", "blue"], "default": "red"},
                    "anything": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                    "parts": {
                        "type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                        "items": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}, "n": {"type": "integer"}}},
                    },
                },
                "x-kubernetes-validations": [
                    {"rule": "self.color != 'blue' || self.size > 4", "message": "blue things are large"},
                    {"rule": "!has(oldSelf.size) || self.size >= oldSelf.size", "message": "things don't shrink"},
                ],
            },
            "status": {"type": "object", "properties": {"seen": {"type": "integer"}}},
        },
    });
    defined_by(schema, steps)
}

pub(crate) fn defined_by(schema: Value, steps: Vec<Step>) -> Vec<Step> {
    let before = vec![
        // An earlier case's may still be going.
        get(CRD).until(|code, _| code == 404).quiet(),
        post(CRDS, definition(schema)).quiet(),
        get(THINGS).until(|code, _| code == 200).quiet(),
    ];
    let after = vec![delete(CRD).quiet()];
    [before, steps, after].concat()
}

fn definitions() -> Vec<Case> {
    const AREA: &str = "custom resources";
    const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";
    vec![
        case(AREA, "defaults are filled in, unknown fields pruned", defined(vec![
            post(THINGS, thing(json!({"size": 2, "shape": "round", "anything": {"goes": [1]}}))).shows(&["/spec", "/metadata/generation"]),
            post(&format!("{THINGS}?fieldValidation=Strict&dryRun=All"), thing(json!({"size": 2, "shape": "round"}))).shows(&["/reason", "/message"]),
        ])),
        case(AREA, "values are checked against the schema", defined(vec![
            post(THINGS, thing(json!({"size": 10}))).shows(&WHY),
            post(THINGS, thing(json!({"size": "two"}))).shows(&["/reason", "/details/causes"]),
            post(THINGS, thing(json!({"color": "green"}))).shows(&["/reason", "/details/causes"]),
            post(THINGS, thing(json!({"size": 1, "parts": [{"name": "x"}, {"name": "x"}]}))).shows(&["/reason", "/details/causes"]),
        ])),
        case(AREA, "rules are checked, also against the old value", defined(vec![
            post(&format!("{THINGS}?dryRun=All"), thing(json!({"size": 2, "color": "blue"}))).shows(&WHY),
            post(THINGS, thing(json!({"size": 2}))).quiet(),
            merge(THING, json!({"spec": {"size": 1}})).shows(&["/reason", "/details/causes"]),
        ])),
        case(AREA, "status is a subresource", defined(vec![
            post(THINGS, json!({"apiVersion": "twin.example.com/v1", "kind": "Thing", "metadata": {"name": "a"}, "spec": {"size": 1}, "status": {"seen": 1}})).shows(&["/status"]),
            merge(&format!("{THING}/status"), json!({"spec": {"size": 5}, "status": {"seen": 2}})).shows(&["/spec/size", "/status", "/metadata/generation"]),
        ])),
        case(AREA, "lists with keys merge when applied", defined(vec![
            apply(&format!("{THING}?fieldManager=one"), thing(json!({"size": 1, "parts": [{"name": "x", "n": 1}]}))).quiet(),
            apply(&format!("{THING}?fieldManager=two"), thing(json!({"size": 1, "parts": [{"name": "y", "n": 2}]}))).shows(&["/spec/parts"]),
            strategic(THING, json!({"spec": {"size": 2}})).shows(&["/reason", "/code"]),
        ])),
        case(AREA, "columns are those of the definition", defined(vec![
            post(THINGS, thing(json!({"size": 3}))).quiet(),
            get(THINGS).accepts(TABLE).shows(&["/columnDefinitions/0/name", "/columnDefinitions/1/name", "/columnDefinitions/1/type", "/rows/0/cells"]),
        ])),
        case(AREA, "a definition tells what it accepted", defined(vec![
            get(CRD).shows(&["/status/acceptedNames", "/status/storedVersions", "/status/conditions/0/type", "/status/conditions/0/status", "/status/conditions/1/type"]),
            get("/apis/twin.example.com/v1").shows(&["/kind", "/groupVersion", "/resources/0/name", "/resources/0/shortNames", "/resources/0/verbs"]),
        ])),
        case(AREA, "a definition without a structural schema is refused", [
            post(CRDS, definition(json!({"properties": {"spec": {"type": "object"}}}))).shows(&["/reason", "/details/causes/0/field"]),
        ]),
        case(AREA, "a definition's name is made of plural and group", [
            post(CRDS, {
                let mut wrong = definition(json!({"type": "object"}));
                wrong["metadata"]["name"] = "other.twin.example.com".into();
                wrong
            })
            .shows(&["/reason", "/details/causes"]),
        ]),
    ]
}

/// What happens to objects when their definition changes.
fn versions() -> Vec<Case> {
    const AREA: &str = "custom resources";
    let older = |name: &str| format!("/apis/twin.example.com/{name}/namespaces/{{ns}}/things");
    vec![
        case(AREA, "without a converter versions differ in their name only", defined(vec![
            json_patch(CRD, json!([
                {"op": "copy", "from": "/spec/versions/0", "path": "/spec/versions/1"},
                {"op": "replace", "path": "/spec/versions/1/name", "value": "v1beta1"},
                {"op": "replace", "path": "/spec/versions/1/storage", "value": false},
            ])).shows(&["/spec/conversion"]),
            get(&older("v1beta1")).until(|code, _| code == 200).quiet(),
            post(THINGS, thing(json!({"size": 2}))).quiet(),
            get(&format!("{}/a", older("v1beta1"))).shows(&["/apiVersion", "/kind", "/spec"]),
            merge(&format!("{}/a", older("v1beta1")), json!({"spec": {"size": 3}})).shows(&["/apiVersion", "/metadata/generation"]),
            get(THING).shows(&["/apiVersion", "/spec"]),
            get(&older("v2")),
        ])),
        case(AREA, "a value that was valid stays until it changes", defined(vec![
            post(THINGS, thing(json!({"size": 8}))).quiet(),
            json_patch(CRD, json!([{"op": "replace", "path": "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/size/maximum", "value": 5}])).quiet(),
            post(&format!("{THINGS}?dryRun=All"), json!({"apiVersion": "twin.example.com/v1", "kind": "Thing", "metadata": {"name": "b"}, "spec": {"size": 9}})).until(|code, _| code == 422).shows(&["/reason"]),
            merge(THING, json!({"spec": {"color": "blue"}})).shows(&["/spec"]),
            merge(THING, json!({"spec": {"size": 9}})).shows(&["/reason", "/details/causes"]),
        ])),
    ]
}

const SECRETS: &str = "/api/v1/namespaces/{ns}/secrets";
const SECRET: &str = "/api/v1/namespaces/{ns}/secrets/a";

/// With webhooks that see this namespace's Secrets. Each is a name, which is its path, and what is unusual about it.
fn hooked(kind: &str, webhooks: &[(&str, Value)], steps: Vec<Step>) -> Vec<Step> {
    let path = format!("/apis/admissionregistration.k8s.io/v1/{}s", kind.to_lowercase());
    let webhooks: Vec<Value> = webhooks.iter().map(|(name, more)| webhook(name, more)).collect();
    let before = vec![post(&path, json!({"metadata": {"name": "{ns}"}, "webhooks": webhooks})).quiet()];
    let after = vec![delete(&format!("{path}/{{ns}}")).quiet()];
    [before, steps, after].concat()
}

fn webhook(name: &str, more: &Value) -> Value {
    let mut webhook = json!({
        "name": format!("{name}.example.com"),
        "clientConfig": {"url": format!("{{hooks}}/{name}"), "caBundle": "{hooks-ca}"},
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["secrets"], "operations": ["CREATE", "UPDATE"]}],
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "{ns}"}},
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
    });
    if let (Some(webhook), Some(more)) = (webhook.as_object_mut(), more.as_object()) {
        webhook.extend(more.clone());
    }
    webhook
}

fn secret() -> Value {
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "a"}, "data": {"k": "dg=="}})
}

/// An API server learns of a configuration a moment later: asks without consequences until it refuses.
fn refused() -> Step {
    post(&format!("{SECRETS}?dryRun=All"), secret()).until(|code, _| code >= 400)
}

/// The same until `/label` was called.
fn labelled_by_a_webhook() -> Step {
    post(&format!("{SECRETS}?dryRun=All"), secret())
        .until(|_, answer| answer.pointer("/metadata/labels/hook").is_some())
}

fn admission() -> Vec<Case> {
    const AREA: &str = "admission webhooks";
    const MUTATING: &str = "MutatingWebhookConfiguration";
    const VALIDATING: &str = "ValidatingWebhookConfiguration";
    let plain = || json!({});
    vec![
        case(AREA, "a webhook refuses in its own words", hooked(VALIDATING, &[("deny", plain())], vec![
            refused().shows(&WHY).shows(&["/code"]),
            get(SECRET).shows(&["/reason"]),
        ])),
        case(AREA, "a webhook may refuse without a word", hooked(VALIDATING, &[("deny-silently", plain())], vec![
            refused().shows(&WHY).shows(&["/code"]),
        ])),
        case(AREA, "a webhook patches what is written", hooked(MUTATING, &[("label", plain())], vec![
            labelled_by_a_webhook().shows(&["/metadata/labels"]),
            post(SECRETS, secret()).shows(&["/metadata/labels", "/data"]),
            merge(SECRET, json!({"metadata": {"labels": {"hook": "gone"}}})).shows(&["/metadata/labels"]),
        ])),
        case(AREA, "a patch that does not fit is refused", hooked(MUTATING, &[("misfit", plain())], vec![
            refused().shows(&["/reason", "/code", "/message"]),
        ])),
        case(AREA, "a webhook that fails is a refusal", hooked(VALIDATING, &[("broken", plain())], vec![
            refused().shows(&WHY).shows(&["/code"]),
        ])),
        case(AREA, "a webhook that may fail is gone without", hooked(
            MUTATING,
            &[("broken", json!({"failurePolicy": "Ignore"})), ("label", plain())],
            vec![
                labelled_by_a_webhook().quiet(),
                post(SECRETS, secret()).shows(&["/metadata/labels"]),
            ],
        )),
        case(AREA, "a webhook that is too slow fails", hooked(VALIDATING, &[("slow", json!({"timeoutSeconds": 1}))], vec![
            refused().shows(&WHY).shows(&["/code"]),
        ])),
        case(AREA, "an answer to another question fails", hooked(VALIDATING, &[("mistaken", plain())], vec![
            refused().shows(&["/reason", "/code", "/message"]),
        ])),
        case(AREA, "selectors say what a webhook sees", hooked(
            MUTATING,
            &[
                ("deny", json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "nowhere"}}})),
                ("broken", json!({"objectSelector": {"matchLabels": {"hook": "wanted"}}})),
                ("label", json!({"objectSelector": {"matchExpressions": [{"key": "hook", "operator": "DoesNotExist"}]}})),
            ],
            vec![
                labelled_by_a_webhook().quiet(),
                post(SECRETS, secret()).shows(&["/metadata/labels"]),
                merge(SECRET, json!({"metadata": {"labels": {"hook": "wanted"}}})).shows(&["/reason", "/code"]),
                // The old object is selected no less than the new.
                merge(SECRET, json!({"metadata": {"labels": {"hook": null}}})).shows(&["/metadata/labels"]),
            ],
        )),
        case(AREA, "a webhook is told what is written, by whom and how", hooked(
            VALIDATING,
            &[("tell", json!({
                "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["secrets"], "operations": ["*"]}],
                "objectSelector": {"matchLabels": {"hook": "wanted"}},
            }))],
            vec![
                post(SECRETS, secret()).quiet(),
                merge(&format!("{SECRET}?dryRun=All"), json!({"metadata": {"labels": {"hook": "wanted"}}}))
                    .until(|code, _| code >= 400)
                    .shows(&["/message"]),
                post(&format!("{SECRETS}?fieldManager=twin"), json!({
                    "apiVersion": "v1", "kind": "Secret",
                    "metadata": {"generateName": "made-", "labels": {"hook": "wanted"}},
                })).shows(&["/message"]),
                put(SECRET, json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "a", "labels": {"hook": "wanted"}}})).shows(&["/message"]),
            ],
        )),
        case(AREA, "a webhook may refuse deletion", hooked(
            VALIDATING,
            &[("tell", json!({"rules": [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["secrets"], "operations": ["DELETE"]}]}))],
            vec![
                post(SECRETS, secret()).quiet(),
                delete(&format!("{SECRET}?dryRun=All")).until(|code, _| code >= 400).shows(&["/message"]),
            ],
        )),
        case(AREA, "subresources are named", hooked(
            VALIDATING,
            &[("tell", json!({"rules": [{"apiGroups": ["apps"], "apiVersions": ["v1"], "resources": ["deployments/scale"], "operations": ["*"]}]}))],
            vec![
                post(DEPLOYMENTS, deployment(json!([{"name": "c", "image": "i"}]))).quiet(),
                merge(&format!("{DEPLOYMENT}/scale?dryRun=All"), json!({"spec": {"replicas": 1}})).until(|code, _| code >= 400).shows(&["/message"]),
                merge(DEPLOYMENT, json!({"metadata": {"labels": {"x": "y"}}})).shows(&["/metadata/labels"]),
            ],
        )),
        case(AREA, "a configuration is filled in", hooked(MUTATING, &[("label", plain())], vec![
            get("/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/{ns}").shows(&[
                "/metadata/generation", "/webhooks/0/failurePolicy", "/webhooks/0/matchPolicy", "/webhooks/0/objectSelector",
                "/webhooks/0/reinvocationPolicy", "/webhooks/0/timeoutSeconds", "/webhooks/0/rules/0/scope",
            ]),
        ])),
        case(AREA, "a configuration that can't work is refused", {
            let path = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";
            let with = |more: Value| {
                post(path, json!({"metadata": {"name": "{ns}"}, "webhooks": [webhook("allow", &more)]})).shows(&["/reason", "/details/causes"])
            };
            [
                with(json!({"sideEffects": "Some"})),
                with(json!({"admissionReviewVersions": ["v7"]})),
                with(json!({"timeoutSeconds": 31})),
                with(json!({"failurePolicy": "Perhaps"})),
                with(json!({"clientConfig": {"url": "http://127.0.0.1/"}})),
                with(json!({"name": "short"})),
            ]
        }),
    ]
}

fn permissions() -> Vec<Case> {
    const AREA: &str = "permissions";
    let access = |user: &str, verb: &str, resource: &str| {
        post(
            "/apis/authorization.k8s.io/v1/subjectaccessreviews",
            json!({"spec": {"user": user, "resourceAttributes": {"namespace": "{ns}", "verb": verb, "resource": resource}}}),
        )
    };
    let rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/{ns}";
    vec![
        case(AREA, "a role gives what it says", [
            post(&format!("{rbac}/roles"), json!({"metadata": {"name": "r"}, "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]})).quiet(),
            post(&format!("{rbac}/rolebindings"), json!({
                "metadata": {"name": "r"},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"},
                "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "ann"}],
            })).quiet(),
            access("ann", "get", "pods").until(|_, answer| answer["status"]["allowed"] == true).shows(&["/status/allowed"]),
            access("ann", "list", "pods").shows(&["/status"]),
            access("bob", "get", "pods").shows(&["/status/allowed"]),
        ]),
        case(AREA, "what a binding points at stays", [
            post(&format!("{rbac}/rolebindings"), json!({"metadata": {"name": "r"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"}})).quiet(),
            merge(&format!("{rbac}/rolebindings/r"), json!({"roleRef": {"name": "edit"}})).shows(&["/reason", "/details/causes"]),
        ]),
        case(AREA, "roles that every cluster has", [
            get("/apis/rbac.authorization.k8s.io/v1/clusterroles/cluster-admin").shows(&["/rules"]),
            get("/apis/rbac.authorization.k8s.io/v1/clusterroles/system:auth-delegator").shows(&["/rules"]),
            get("/apis/rbac.authorization.k8s.io/v1/clusterroles/system:discovery").shows(&["/rules"]),
        ]),
        case(AREA, "administrators know who they are", [
            post("/apis/authentication.k8s.io/v1/selfsubjectreviews", json!({})).shows(&["/status/userInfo/username", "/status/userInfo/groups"]),
        ]),
    ]
}

fn tokens() -> Vec<Case> {
    const AREA: &str = "tokens";
    let accounts = "/api/v1/namespaces/{ns}/serviceaccounts";
    let token = |spec: Value| post(&format!("{accounts}/a/token"), json!({"spec": spec}));
    let review = |spec: Value| {
        post(
            "/apis/authentication.k8s.io/v1/tokenreviews",
            json!({"spec": spec}),
        )
    };
    vec![
        case(AREA, "a token is for whom it was asked for", [
            post(accounts, json!({"metadata": {"name": "a"}})).quiet(),
            token(json!({"audiences": ["mesh"], "expirationSeconds": 3600})).keeps("token", "/status/token").shows(&["/kind", "/spec/audiences", "/spec/expirationSeconds"]),
            review(json!({"token": "{token}", "audiences": ["mesh"]})).shows(&["/status/authenticated", "/status/audiences", "/status/user/username", "/status/user/groups"]),
            review(json!({"token": "{token}", "audiences": ["other"]})).shows(&["/status/authenticated"]),
            review(json!({"token": "nonsense"})).shows(&["/status/authenticated"]),
        ]),
        case(AREA, "a token lives ten minutes at least", [
            post(accounts, json!({"metadata": {"name": "a"}})).quiet(),
            token(json!({"expirationSeconds": 5})).shows(&["/reason", "/details/causes"]),
        ]),
        case(AREA, "an account that is not there has no tokens", [token(json!({})).shows(&WHY)]),
        case(AREA, "a Secret of an account gets a token", [
            post(accounts, json!({"metadata": {"name": "a"}})).quiet(),
            post("/api/v1/namespaces/{ns}/secrets", json!({
                "metadata": {"name": "a-token", "annotations": {"kubernetes.io/service-account.name": "a"}},
                "type": "kubernetes.io/service-account-token",
            })).quiet(),
            get("/api/v1/namespaces/{ns}/secrets/a-token").until(|_, answer| answer.pointer("/data/token").is_some()).shows(&["/type"]),
        ]),
    ]
}

fn controllers() -> Vec<Case> {
    const AREA: &str = "controllers";
    let owned = |extra: Value| {
        let mut owner = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "a", "uid": "{uid}"});
        if let (Some(owner), Some(extra)) = (owner.as_object_mut(), extra.as_object()) {
            owner.extend(extra.clone());
        }
        json!({"metadata": {"name": "b", "ownerReferences": [owner]}})
    };
    vec![
        case(AREA, "what is owned goes with its owner", [
            post(MAPS, map("a", json!({}))).quiet().keeps("uid", "/metadata/uid"),
            post(MAPS, owned(json!({}))).quiet(),
            delete(MAP).quiet(),
            get(&format!("{MAPS}/b")).until(|code, _| code == 404).shows(&["/reason"]),
        ]),
        case(AREA, "orphans stay", [
            post(MAPS, map("a", json!({}))).quiet().keeps("uid", "/metadata/uid"),
            post(MAPS, owned(json!({}))).quiet(),
            delete(MAP).with_body(json!({"propagationPolicy": "Orphan"})).quiet(),
            get(MAP).until(|code, _| code == 404).shows(&["/reason"]),
            get(&format!("{MAPS}/b")).shows(&["/metadata/ownerReferences"]),
        ]),
        case(AREA, "an owner in the foreground waits for what it owns", [
            post(MAPS, map("a", json!({}))).quiet().keeps("uid", "/metadata/uid"),
            post(MAPS, owned(json!({"blockOwnerDeletion": true}))).quiet(),
            delete(MAP).with_body(json!({"propagationPolicy": "Foreground"})).shows(&["/kind", "/metadata/finalizers"]),
            get(MAP).until(|code, _| code == 404).shows(&["/reason"]),
            get(&format!("{MAPS}/b")).shows(&["/reason"]),
        ]),
        case(AREA, "a namespace begins with an account and the authority", [
            get("/api/v1/namespaces/{ns}/serviceaccounts/default").until(|code, _| code == 200).shows(&["/metadata/name"]),
            get("/api/v1/namespaces/{ns}/configmaps/kube-root-ca.crt").until(|code, _| code == 200).shows(&["/metadata/annotations"]),
            get("/api/v1/namespaces/{ns}").shows(&["/metadata/labels", "/spec", "/status"]),
        ]),
        case(AREA, "a namespace goes with all that is in it", [
            post("/api/v1/namespaces", json!({"metadata": {"name": "{ns}-gone"}})).quiet(),
            post("/api/v1/namespaces/{ns}-gone/configmaps", map("a", json!({}))).quiet(),
            delete("/api/v1/namespaces/{ns}-gone").shows(&["/status/phase"]),
            get("/api/v1/namespaces/{ns}-gone").until(|code, _| code == 404).shows(&["/reason"]),
        ]),
        case(AREA, "a Deployment makes a ReplicaSet", [
            post(DEPLOYMENTS, deployment(json!([{"name": "c", "image": "i"}]))).quiet(),
            get("/apis/apps/v1/namespaces/{ns}/replicasets").until(|_, answer| answer.pointer("/items/0").is_some()).shows(&[
                "/items/0/metadata/ownerReferences/0/kind", "/items/0/metadata/annotations", "/items/0/spec/replicas",
            ]),
            get(DEPLOYMENT)
                .until(|_, answer| {
                    ["/status/observedGeneration", "/metadata/annotations"].iter().all(|part| answer.pointer(part).is_some())
                })
                .shows(&["/metadata/annotations", "/status/observedGeneration"]),
        ]),
        case(AREA, "a Service without pods has an empty slice", [
            post(SERVICES, json!({"metadata": {"name": "s"}, "spec": {"selector": {"app": "none"}, "ports": [{"port": 80}]}})).quiet(),
            get("/apis/discovery.k8s.io/v1/namespaces/{ns}/endpointslices").until(|_, answer| answer.pointer("/items/0").is_some()).shows(&[
                "/items/0/metadata/labels", "/items/0/addressType", "/items/0/endpoints", "/items/0/ports",
            ]),
            get("/api/v1/namespaces/{ns}/endpoints/s").until(|code, _| code == 200).shows(&["/subsets"]),
        ]),
    ]
}

fn compaction() -> Vec<Case> {
    const AREA: &str = "compaction";
    const EVENTS: &str = "/api/v1/namespaces/{ns}/events";
    // These come from etcd itself; of other kinds an API server remembers some that etcd has forgotten.
    let event = |name: &str| {
        let about = json!({"kind": "ConfigMap", "namespace": "{ns}", "name": "a"});
        post(
            EVENTS,
            json!({"metadata": {"name": name}, "involvedObject": about}),
        )
        .quiet()
    };
    let first = || event("a").keeps("rv", "/metadata/resourceVersion");
    let last = || event("c").keeps("now", "/metadata/resourceVersion");
    vec![
        case(
            AREA,
            "what was before a compaction can't be listed",
            [
                first(),
                last(),
                get(&format!(
                    "{EVENTS}?resourceVersion={{rv}}&resourceVersionMatch=Exact"
                ))
                .shows(&["/items/0/metadata/name", "/items/1"]),
                compact("now"),
                get(&format!(
                    "{EVENTS}?resourceVersion={{rv}}&resourceVersionMatch=Exact"
                ))
                .shows(&WHY)
                .shows(&["/code"]),
                get(&format!(
                    "{EVENTS}?resourceVersion={{rv}}&resourceVersionMatch=NotOlderThan"
                ))
                .shows(&["/items/1/metadata/name"]),
            ],
        ),
        case(
            AREA,
            "pages of a list from before a compaction go on with what is there now",
            [
                first(),
                event("b"),
                get(&format!("{EVENTS}?limit=1"))
                    .quiet()
                    .keeps("next", "/metadata/continue"),
                last(),
                compact("now"),
                get(&format!("{EVENTS}?limit=1&continue={{next}}"))
                    .keeps("anew", "/metadata/continue")
                    .shows(&WHY),
                get(&format!("{EVENTS}?limit=2&continue={{anew}}"))
                    .shows(&["/items/0/metadata/name", "/items/1/metadata/name"]),
            ],
        ),
        case(
            AREA,
            "who watches from before a compaction must list again",
            [
                first(),
                event("b"),
                last(),
                compact("now"),
                get(&format!(
                    "{EVENTS}?watch=1&timeoutSeconds=1&resourceVersion={{rv}}"
                ))
                .first(1)
                .shows(&ENDED),
            ],
        ),
    ]
}

/// Last, so that no other case meets an API server that has just begun.
fn restarts() -> Vec<Case> {
    const AREA: &str = "restarts";
    vec![case(
        AREA,
        "who watches from before a restart must list again",
        [
            post(MAPS, map("a", json!({})))
                .quiet()
                .keeps("rv", "/metadata/resourceVersion"),
            merge(MAP, json!({"data": {"k": "1"}})).quiet(),
            restart(),
            get(&format!("{MAPS}?watch=1&timeoutSeconds=1&resourceVersion={{rv}}"))
                .until(|_, answer| answer["type"] == "ERROR")
                .first(1)
                .shows(&ENDED)
                .shows(&["/object/message"]),
            get(MAP).shows(&["/data"]),
        ],
    )]
}
