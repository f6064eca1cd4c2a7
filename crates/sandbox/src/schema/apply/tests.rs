//! The laws of apply, and what kubectl and controllers rely on.

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn by(name: &str) -> Manager<'_> {
    Manager {
        name,
        subresource: "",
        now: Timestamp::UNIX_EPOCH,
    }
}

fn deployment() -> Schema {
    Schema::for_kind("apps", "v1", "Deployment").expect("Deployment is built in")
}

fn config(spec: Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": spec})
}

fn applied(live: Option<&Value>, spec: Value, manager: &str) -> Value {
    apply(
        Some(&deployment()),
        live,
        &config(spec),
        by(manager),
        Conflicts::Refuse,
    )
    .expect("nobody objects")
}

fn refused(live: &Value, spec: Value, manager: &str) -> (String, Vec<Cause>) {
    match apply(
        Some(&deployment()),
        Some(live),
        &config(spec),
        by(manager),
        Conflicts::Refuse,
    ) {
        Err(ApplyError::Conflict { message, causes }) => (message, causes),
        other => panic!("expected a conflict, got {other:?}"),
    }
}

fn owned(object: &Value, manager: &str) -> Option<Value> {
    let entries = object["metadata"]["managedFields"].as_array()?;
    entries
        .iter()
        .find(|entry| entry["manager"] == manager)
        .map(|entry| entry["fieldsV1"].clone())
}

fn containers(list: Value) -> Value {
    json!({"template": {"spec": {"containers": list}}})
}

#[test]
fn applying_creates_and_claims_what_was_said() {
    let object = applied(
        None,
        json!({"replicas": 2, "selector": {"matchLabels": {"a": "b"}}}),
        "one",
    );
    assert_eq!(object["spec"]["replicas"], 2);
    // A label selector is atomic: one owner for the whole of it.
    assert_eq!(
        owned(&object, "one"),
        Some(json!({"f:spec": {"f:replicas": {}, "f:selector": {}}}))
    );
}

#[test]
fn applying_the_same_again_changes_nothing() {
    let object = applied(None, json!({"replicas": 2}), "one");
    assert_eq!(applied(Some(&object), json!({"replicas": 2}), "one"), object);
}

#[test]
fn another_manager_may_say_the_same_but_not_something_else() {
    let object = applied(None, json!({"replicas": 2}), "one");
    let shared = applied(Some(&object), json!({"replicas": 2}), "two");
    assert!(owned(&shared, "one").is_some() && owned(&shared, "two").is_some());
    let (message, causes) = refused(&object, json!({"replicas": 3}), "two");
    assert_eq!(
        message,
        "Apply failed with 1 conflict: conflict with \"one\": .spec.replicas"
    );
    assert_eq!(
        causes,
        [Cause::conflict(
            ".spec.replicas".to_owned(),
            "conflict with \"one\"".to_owned()
        )]
    );
}

#[test]
fn force_moves_only_the_contested_fields() {
    let object = applied(None, json!({"replicas": 2, "paused": true}), "one");
    let config = config(json!({"replicas": 3}));
    let object = apply(
        Some(&deployment()),
        Some(&object),
        &config,
        by("two"),
        Conflicts::Force,
    )
    .expect("it is forced");
    assert_eq!(object["spec"], json!({"replicas": 3, "paused": true}));
    assert_eq!(owned(&object, "one"), Some(json!({"f:spec": {"f:paused": {}}})));
    assert_eq!(owned(&object, "two"), Some(json!({"f:spec": {"f:replicas": {}}})));
}

#[test]
fn what_is_no_longer_applied_goes_unless_another_owns_it() {
    let first = applied(None, json!({"replicas": 2, "paused": true}), "one");
    let both = applied(Some(&first), json!({"paused": true}), "two");
    let rest = applied(Some(&both), json!({"minReadySeconds": 1}), "one");
    assert_eq!(rest["spec"], json!({"paused": true, "minReadySeconds": 1}));
}

#[test]
fn a_removed_container_goes_with_all_its_defaults() {
    let mut object = applied(
        None,
        containers(json!([{"name": "a", "image": "x"}, {"name": "b", "image": "y"}])),
        "one",
    );
    object["spec"]["template"]["spec"]["containers"][1]["imagePullPolicy"] = json!("Always");
    let object = applied(
        Some(&object),
        containers(json!([{"name": "a", "image": "x"}])),
        "one",
    );
    assert_eq!(object["spec"], containers(json!([{"name": "a", "image": "x"}])));
}

#[test]
fn containers_merge_by_name_and_keep_foreign_ones() {
    let object = applied(None, containers(json!([{"name": "app", "image": "x"}])), "one");
    let object = applied(
        Some(&object),
        containers(json!([{"name": "proxy", "image": "p"}])),
        "injector",
    );
    let names: Vec<&str> = object["spec"]["template"]["spec"]["containers"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|container| container["name"].as_str())
        .collect();
    assert_eq!(names, ["app", "proxy"]);
    let object = applied(
        Some(&object),
        containers(json!([{"name": "app", "image": "y"}])),
        "one",
    );
    assert_eq!(object["spec"]["template"]["spec"]["containers"][0]["image"], "y");
    assert_eq!(
        object["spec"]["template"]["spec"]["containers"][1]["name"],
        "proxy"
    );
}

#[test]
fn a_port_without_protocol_is_a_tcp_port() {
    let schema = Schema::for_kind("", "v1", "Service").expect("Service is built in");
    let service = |ports: Value| json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": {"ports": ports}});
    let live = apply(
        Some(&schema),
        None,
        &service(json!([{"port": 80, "protocol": "TCP"}])),
        by("one"),
        Conflicts::Refuse,
    )
    .expect("nothing is there");
    let live = apply(
        Some(&schema),
        Some(&live),
        &service(json!([{"port": 80, "name": "http"}])),
        by("two"),
        Conflicts::Refuse,
    )
    .expect("the port is the same");
    assert_eq!(
        live["spec"]["ports"],
        json!([{"port": 80, "protocol": "TCP", "name": "http"}])
    );
    assert_eq!(
        owned(&live, "two"),
        Some(
            json!({"f:spec": {"f:ports": {"k:{\"port\":80,\"protocol\":\"TCP\"}": {".": {}, "f:name": {}, "f:port": {}}}}})
        )
    );
}

#[test]
fn the_same_quantity_in_other_words_is_no_conflict() {
    let limited = |cpu: Value| containers(json!([{"name": "a", "resources": {"limits": {"cpu": cpu}}}]));
    let live = applied(None, limited(json!("500m")), "one");
    let live = applied(Some(&live), limited(json!(0.5)), "two");
    assert_eq!(live["spec"], limited(json!("500m")));
}

#[test]
fn elements_twice_or_without_key_are_refused() {
    for (list, fault) in [
        (
            json!([{"name": "a"}, {"name": "a"}]),
            "duplicate entries for key [name=\"a\"]",
        ),
        (json!([{"image": "a"}]), "omits key field \"name\""),
    ] {
        let error = apply(
            Some(&deployment()),
            None,
            &config(containers(list)),
            by("one"),
            Conflicts::Refuse,
        )
        .expect_err("the list can't be merged");
        assert!(
            matches!(&error, ApplyError::Malformed(text) if text.contains(fault)),
            "{error}"
        );
    }
}

#[test]
fn updates_are_booked_and_take_ownership() {
    let live = applied(None, json!({"replicas": 2, "paused": true}), "one");
    let mut new = live.clone();
    new["spec"]["replicas"] = json!(5);
    update_managed_fields(Some(&deployment()), Some(&live), &mut new, by("kubectl-edit"));
    assert_eq!(owned(&new, "one"), Some(json!({"f:spec": {"f:paused": {}}})));
    assert_eq!(
        owned(&new, "kubectl-edit"),
        Some(json!({"f:spec": {"f:replicas": {}}}))
    );
    let (_, causes) = refused(&new, json!({"replicas": 2, "paused": true}), "one");
    assert_eq!(causes[0].message, "conflict with \"kubectl-edit\" using apps/v1");
}

#[test]
fn creation_books_every_field_and_no_identity() {
    let mut new = config(json!({"replicas": 1}));
    new["metadata"]["labels"] = json!({"app": "web"});
    new["metadata"]["uid"] = json!("u");
    update_managed_fields(Some(&deployment()), None, &mut new, by("kubectl-create"));
    assert_eq!(
        owned(&new, "kubectl-create"),
        Some(json!({"f:metadata": {"f:labels": {".": {}, "f:app": {}}}, "f:spec": {"f:replicas": {}}}))
    );
}

#[test]
fn an_empty_entry_resets_the_books() {
    let live = applied(None, json!({"replicas": 2}), "one");
    let mut new = live.clone();
    new["metadata"]["managedFields"] = json!([{}]);
    update_managed_fields(Some(&deployment()), Some(&live), &mut new, by("kubectl"));
    assert_eq!(new["metadata"].get("managedFields"), None);
    let object = applied(Some(&new), json!({"replicas": 2}), "one");
    assert!(owned(&object, "before-first-apply").is_some());
}

#[test]
fn old_updaters_are_folded_into_one_entry() {
    let mut live = config(json!({"replicas": 0}));
    update_managed_fields(Some(&deployment()), None, &mut live, by("first"));
    for number in 0..14 {
        let mut new = live.clone();
        new["metadata"]["annotations"][format!("a{number}")] = json!("x");
        update_managed_fields(
            Some(&deployment()),
            Some(&live),
            &mut new,
            by(&format!("m{number:02}")),
        );
        live = new;
    }
    assert_eq!(
        live["metadata"]["managedFields"].as_array().map(Vec::len),
        Some(10)
    );
    assert!(owned(&live, "ancient-changes").is_some());
}

#[test]
fn kubectl_takes_over_what_it_applied_from_the_client() {
    let mut live = config(json!({"replicas": 2}));
    let annotation = config(json!({"replicas": 2})).to_string();
    live["metadata"]["annotations"] = json!({LAST_APPLIED: annotation});
    update_managed_fields(
        Some(&deployment()),
        None,
        &mut live,
        by("kubectl-client-side-apply"),
    );
    let (_, causes) = refused(&live, json!({"replicas": 3}), "somebody");
    assert_eq!(causes.len(), 1);
    let object = applied(Some(&live), json!({"replicas": 3}), "kubectl");
    assert_eq!(object["spec"]["replicas"], 3);
    let annotation = object["metadata"]["annotations"][LAST_APPLIED]
        .as_str()
        .unwrap_or_default();
    assert!(annotation.contains("\"replicas\":3"), "{annotation}");
}

#[test]
fn without_schema_objects_merge_and_lists_are_one_value() {
    let object =
        |spec: Value| json!({"apiVersion": "x/v1", "kind": "X", "metadata": {"name": "x"}, "spec": spec});
    let live = apply(
        None,
        None,
        &object(json!({"a": {"b": 1}, "l": [1]})),
        by("one"),
        Conflicts::Refuse,
    )
    .expect("new");
    let live = apply(
        None,
        Some(&live),
        &object(json!({"a": {"c": 2}})),
        by("two"),
        Conflicts::Refuse,
    )
    .expect("disjoint");
    assert_eq!(live["spec"], json!({"a": {"b": 1, "c": 2}, "l": [1]}));
    let live = apply(
        None,
        Some(&live),
        &object(json!({"a": {"b": 1}})),
        by("one"),
        Conflicts::Refuse,
    )
    .expect("own");
    assert_eq!(live["spec"], json!({"a": {"b": 1, "c": 2}}));
    assert!(
        apply(
            None,
            Some(&live),
            &object(json!({"a": 1})),
            by("three"),
            Conflicts::Refuse
        )
        .is_err()
    );
}

#[test]
fn lists_of_custom_resources_merge_by_their_keys() {
    let port = json!({
        "type": "object",
        "required": ["port"],
        "properties": {
            "port": {"type": "integer"},
            "protocol": {"type": "string", "default": "TCP"},
            "name": {"type": "string"},
        },
    });
    let ports = json!({
        "type": "array",
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["port", "protocol"],
        "items": port,
    });
    let spec = json!({"type": "object", "properties": {"ports": ports}});
    let schema =
        Schema::from_crd(&json!({"type": "object", "properties": {"spec": spec}})).expect("it is structural");
    let object = |ports: Value| json!({"apiVersion": "x/v1", "kind": "X", "metadata": {"name": "x"}, "spec": {"ports": ports}});
    let with = |live: Option<&Value>, ports: Value, who: &str| {
        apply(Some(&schema), live, &object(ports), by(who), Conflicts::Refuse).expect("nobody objects")
    };
    let live = with(None, json!([{"port": 80, "name": "a"}]), "one");
    let live = with(
        Some(&live),
        json!([{"port": 80, "protocol": "UDP"}, {"port": 80, "protocol": "TCP"}]),
        "two",
    );
    assert_eq!(
        live["spec"]["ports"],
        json!([{"port": 80, "protocol": "UDP"}, {"port": 80, "protocol": "TCP", "name": "a"}])
    );
}

#[test]
fn status_has_books_of_its_own() {
    let live = applied(None, json!({"replicas": 2}), "one");
    let mut new = live.clone();
    new["status"] = json!({"replicas": 2});
    let status = Manager {
        subresource: "status",
        ..by("one")
    };
    update_managed_fields(Some(&deployment()), Some(&live), &mut new, status);
    let entries = new["metadata"]["managedFields"].as_array().expect("two managers");
    assert_eq!(entries.len(), 2);
    assert_eq!(entries[1]["subresource"], "status");
}

fn any_spec() -> impl Strategy<Value = Value> {
    let container = (
        "[a-d]",
        prop::option::of("[xy]"),
        prop::option::of(prop::collection::btree_map("[a-c]", "[xy]", 0..3)),
    );
    let containers = prop::collection::btree_map("[a-d]", container, 0..4).prop_map(|map| {
        let list = map.into_iter().map(|(name, (_, image, _))| match image {
            Some(image) => json!({"name": name, "image": image}),
            None => json!({"name": name}),
        });
        Value::Array(list.collect())
    });
    (
        prop::option::of(0..3),
        prop::option::of(any::<bool>()),
        prop::collection::btree_map("[a-c]", "[xy]", 1..3),
        containers,
    )
        .prop_map(|(replicas, paused, labels, containers)| {
            let mut spec =
                json!({"template": {"metadata": {"labels": labels}, "spec": {"containers": containers}}});
            if let Some(replicas) = replicas {
                spec["replicas"] = json!(replicas);
            }
            if let Some(paused) = paused {
                spec["paused"] = json!(paused);
            }
            spec
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn apply_is_idempotent(first in any_spec(), second in any_spec()) {
        let schema = deployment();
        let live = applied(None, first, "one");
        let once = apply(Some(&schema), Some(&live), &config(second.clone()), by("two"), Conflicts::Force).expect("forced");
        let twice = apply(Some(&schema), Some(&once), &config(second), by("two"), Conflicts::Refuse).expect("all is owned");
        prop_assert_eq!(once, twice);
    }

    #[test]
    fn one_manager_alone_always_gets_exactly_what_it_says(first in any_spec(), second in any_spec()) {
        let live = applied(None, first, "one");
        let object = applied(Some(&live), second.clone(), "one");
        let fresh = applied(None, second, "one");
        let set = |object: &Value| typed::field_set(deployment().root(), &without_managed_fields(object));
        prop_assert_eq!(set(&object), set(&fresh));
    }

    #[test]
    fn force_takes_nothing_that_is_not_contested(first in any_spec(), second in any_spec()) {
        let schema = deployment();
        let live = applied(None, first, "one");
        let before = Managers::of(&live).union();
        let object = apply(Some(&schema), Some(&live), &config(second), by("two"), Conflicts::Force).expect("forced");
        // Every field that was owned still is, by somebody: nothing of one's is lost, it can only move.
        let after = Managers::of(&object).union();
        let leaf_paths = |set: &Set| set.paths();
        for path in leaf_paths(&before) {
            prop_assert!(leaf_paths(&after).contains(&path), "{} has no owner", path);
        }
    }

    #[test]
    fn field_sets_survive_their_json_form(spec in any_spec()) {
        let set = typed::field_set(deployment().root(), &config(spec));
        prop_assert_eq!(Set::from_json(&set.to_json()), Some(set));
    }
}

#[test]
fn an_object_keeps_its_name_when_its_last_label_is_given_up() {
    let mut labelled = config(json!({"replicas": 2}));
    labelled["metadata"]["labels"] = json!({"a": "b"});
    let apply = |live: Option<&Value>, config: &Value| {
        apply(Some(&deployment()), live, config, by("one"), Conflicts::Refuse).expect("nobody objects")
    };
    let before = apply(None, &labelled);
    let after = apply(Some(&before), &config(json!({"replicas": 2})));
    assert_eq!(after["metadata"]["labels"], Value::Null);
    assert_eq!(after["metadata"]["name"], "web");
    assert_eq!(owned(&after, "one"), Some(json!({"f:spec": {"f:replicas": {}}})));
}
