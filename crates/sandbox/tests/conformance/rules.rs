//! What is compared of rules in CEL, which definitions state in `x-kubernetes-validations`.

use serde_json::{Value, json};

use crate::cases::{CRD, CRDS, THING, THINGS, WHY, case, defined_by, definition, thing};
use crate::script::{Case, Step, get, json_patch, merge, post};

const AREA: &str = "rules in CEL";
const CAUSES: [&str; 2] = ["/reason", "/details/causes"];
/// Expressions that are true of an object, as the evaluator's own tests have them; then those that are newer.
const TABLE: &str = include_str!("../../src/schema/cel/true.txt");
const EXAMPLE: &str = include_str!("../../src/schema/cel/example.json");

fn spec(schema: Value) -> Value {
    json!({"type": "object", "properties": {
        "spec": schema,
        "status": {"type": "object", "properties": {"seen": {"type": "integer"}}},
    }})
}

/// A spec of these properties, held to these rules.
fn ruled(properties: Value, rules: Value) -> Value {
    spec(json!({"type": "object", "properties": properties, "x-kubernetes-validations": rules}))
}

fn refused(spec: Value) -> Step {
    post(&format!("{THINGS}?dryRun=All"), thing(spec)).shows(&CAUSES)
}

/// A definition is refused whose one field `n`, a number, or whose spec has these rules.
fn bad_rules(on_field: Value, on_spec: Value) -> Step {
    let n = json!({"type": "integer", "x-kubernetes-validations": on_field});
    let properties = json!({"n": n, "list": {"type": "array", "maxItems": 3, "items": {"type": "string"}}});
    post(CRDS, definition(ruled(properties, on_spec))).shows(&CAUSES)
}

/// Each expression is a rule for the whole object.
fn table(expressions: &str) -> (Value, Value) {
    let example: Value = serde_json::from_str(EXAMPLE).expect("it is JSON");
    let rules: Vec<Value> = expressions.lines().map(|rule| json!({"rule": rule})).collect();
    let mut schema = example["schema"].clone();
    schema["x-kubernetes-validations"] = rules.into();
    (schema, example["object"].clone())
}

pub(crate) fn cases() -> Vec<Case> {
    let (common, newer) = TABLE.split_once("\n\n").expect("an empty line between them");
    let ((rules, object), (newer, _)) = (table(common), table(newer.trim_end()));
    let integer = || json!({"type": "integer"});
    let text = || json!({"type": "string", "maxLength": 20});
    vec![
        case(AREA, "expressions are evaluated", defined_by(rules, vec![
            post(THINGS, object).shows(&["/reason", "/message", "/size"]),
            merge(THING, json!({"metadata": {"labels": {"x": "z"}}})).shows(&["/reason", "/message", "/size"]),
        ])),
        case(AREA, "newer functions are known", [
            get(CRD).until(|code, _| code == 404).quiet(),
            post(&format!("{CRDS}?dryRun=All"), definition(newer)).shows(&CAUSES),
        ]),
        case(AREA, "rules see defaults", defined_by(
            ruled(
                json!({"min": integer(), "replicas": {"type": "integer", "default": 1}}),
                json!([{"rule": "self.min <= self.replicas"}]),
            ),
            vec![refused(json!({"min": 2})), refused(json!({"min": 1})), refused(json!({}))],
        )),
        case(AREA, "rules hold for items and for values of maps", defined_by(
            spec(json!({"type": "object", "properties": {
                "list": {"type": "array", "maxItems": 4, "items": {
                    "type": "integer", "x-kubernetes-validations": [{"rule": "self > 0"}],
                }},
                "map": {"type": "object", "maxProperties": 4, "additionalProperties": {
                    "type": "object", "properties": {"n": integer()},
                    "x-kubernetes-validations": [{"rule": "self.n > 0", "message": "n is positive"}],
                }},
            }})),
            vec![
                refused(json!({"list": [1, 0, 2, -1]})),
                refused(json!({"map": {"a.b/c": {"n": 0}}})),
                refused(json!({"list": [1], "map": {"a": {"n": 1}}})),
            ],
        )),
        case(AREA, "rules about the whole object see its name", defined_by(
            json!({
                "type": "object", "properties": {"spec": {"type": "object", "properties": {"n": integer()}}},
                "x-kubernetes-validations": [{"rule": "self.metadata.name != 'a'", "message": "another name"}],
            }),
            vec![refused(json!({"n": 1}))],
        )),
        case(AREA, "a value may be compared with what it was", defined_by(
            spec(json!({"type": "object", "properties": {
                "fixed": {"type": "string", "maxLength": 9, "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "stays"}]},
                "parts": {
                    "type": "array", "maxItems": 4, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                    "items": {
                        "type": "object", "required": ["name"], "properties": {"name": text(), "n": integer()},
                        "x-kubernetes-validations": [{"rule": "self.n >= oldSelf.n", "message": "grows"}],
                    },
                },
                "maybe": {"type": "integer", "x-kubernetes-validations": [
                    {"rule": "oldSelf.hasValue() || self == 1", "optionalOldSelf": true, "message": "begins with 1"},
                ]},
            }})),
            vec![
                refused(json!({"maybe": 2})),
                post(THINGS, thing(json!({"fixed": "a", "parts": [{"name": "x", "n": 1}, {"name": "y", "n": 5}]}))).quiet(),
                merge(THING, json!({"spec": {"fixed": "b"}})).shows(&CAUSES),
                merge(THING, json!({"spec": {"parts": [{"name": "z", "n": 0}, {"name": "y", "n": 4}, {"name": "x", "n": 1}]}})).shows(&CAUSES),
                merge(THING, json!({"spec": {"fixed": null, "maybe": 1}})).shows(&["/spec"]),
                merge(THING, json!({"spec": {"fixed": "b", "maybe": 2}})).shows(&["/spec"]),
            ],
        )),
        case(AREA, "a message may be computed", defined_by(
            ruled(json!({"n": integer(), "s": text()}), json!([
                {"rule": "self.n < 5", "messageExpression": "'n is too large for ' + self.s"},
                {"rule": "self.n < 6", "message": "said instead", "messageExpression": "['six'][self.n - 6]"},
                {"rule": "self.n < 6", "messageExpression": "self.s"},
            ])),
            vec![
                refused(json!({"n": 6, "s": "x"})),
                refused(json!({"n": 7, "s": "two\nlines"})),
                refused(json!({"n": 7, "s": "  "})),
                refused(json!({"n": 7})),
            ],
        )),
        case(AREA, "a rule may name a field and a reason", defined_by(
            ruled(json!({"n": integer(), "deep": {"type": "object", "properties": {"a.b": integer()}}}), json!([
                {"rule": "self.n > 0", "message": " no ", "reason": "FieldValueForbidden", "fieldPath": ".n"},
                {"rule": "self.n > 0", "message": "wanted", "reason": "FieldValueRequired", "fieldPath": ".deep['a.b']"},
                {"rule": "self.n > 0", "message": "twice", "reason": "FieldValueDuplicate"},
                {"rule": "self.n > 0", "message": "bad", "reason": "FieldValueInvalid"},
            ])),
            vec![refused(json!({"n": 0}))],
        )),
        case(AREA, "what need not be there is asked for", defined_by(
            ruled(json!({"n": integer(), "deep": {"type": "object", "properties": {"x": integer()}}}), json!([
                {"rule": "!has(self.n) || self.n > 0"},
                {"rule": "self.?deep.x.orValue(1) == 1"},
                {"rule": "self.deep.x == 1 || !has(self.n)"},
            ])),
            vec![refused(json!({})), refused(json!({"n": 1})), refused(json!({"n": 1, "deep": {}})), refused(json!({"deep": {"x": 2}}))],
        )),
        case(AREA, "what can't be evaluated is refused", defined_by(
            ruled(
                json!({"n": integer(), "port": {"x-kubernetes-int-or-string": true}, "list": {"type": "array", "maxItems": 3, "items": integer()}}),
                json!([
                    {"rule": "1 / self.n > 0", "message": "told"},
                    {"rule": "self.list[self.n] > 0"},
                    {"rule": "self.port < 10"},
                    {"rule": "self.n + 9223372036854775807 > 0"},
                ]),
            ),
            vec![refused(json!({"n": 0, "port": "http", "list": []})), refused(json!({"n": 1, "port": 80, "list": [1, 0]}))],
        )),
        case(AREA, "rules are checked when the status is written", defined_by(
            json!({"type": "object", "properties": {
                "spec": {"type": "object", "properties": {"n": integer()}},
                "status": {"type": "object", "properties": {"seen": {
                    "type": "integer", "x-kubernetes-validations": [{"rule": "self >= oldSelf", "message": "counts up"}],
                }}},
            }, "x-kubernetes-validations": [{"rule": "!has(self.status) || self.status.seen <= self.spec.n", "message": "more than there are"}]}),
            vec![
                post(THINGS, thing(json!({"n": 3}))).quiet(),
                merge(&format!("{THING}/status"), json!({"status": {"seen": 2}})).shows(&["/status"]),
                merge(&format!("{THING}/status"), json!({"status": {"seen": 1}})).shows(&CAUSES),
                merge(&format!("{THING}/status"), json!({"status": {"seen": 4}})).shows(&CAUSES),
            ],
        )),
        case(AREA, "what a new rule forbids stays until it changes", defined_by(
            spec(json!({"type": "object", "properties": {
                "n": integer(), "other": integer(), "list": {"type": "array", "maxItems": 3, "items": integer()},
            }})),
            {
                let field = |name: &str| format!("/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/{name}/x-kubernetes-validations");
                let small = json!([{"rule": "self < 5"}]);
                vec![
                    post(THINGS, thing(json!({"n": 9, "list": [9, 1]}))).quiet(),
                    json_patch(CRD, json!([
                        {"op": "add", "path": field("n"), "value": small},
                        {"op": "add", "path": field("list/items"), "value": small},
                    ])).quiet(),
                    post(&format!("{THINGS}?dryRun=All"), json!({
                        "apiVersion": "twin.example.com/v1", "kind": "Thing", "metadata": {"name": "b"}, "spec": {"n": 9},
                    })).until(|code, _| code == 422).shows(&["/reason"]),
                    merge(THING, json!({"spec": {"other": 1}})).shows(&["/reason", "/spec"]),
                    merge(THING, json!({"spec": {"n": 8}})).shows(&CAUSES),
                    merge(THING, json!({"spec": {"list": [9, 2]}})).shows(&CAUSES),
                ]
            },
        )),
        case(AREA, "a rule that can't be compiled is refused", [
            get(CRD).until(|code, _| code == 404).quiet(),
            bad_rules(json!([{"rule": "self > 'a'"}]), json!([])).shows(&WHY),
            bad_rules(json!([{"rule": "self + 1"}]), json!([{"rule": "self.gone == 1 && foo", "message": "told"}])),
            bad_rules(json!([{"rule": "self > 0", "messageExpression": "self"}]), json!([{"rule": "self.list.all(x, x > 0)"}])),
            bad_rules(json!([]), json!([{"rule": "self.list.exists(x, y, z, true) || self.n.startsWith('a') || [1, 'a'] == []", "reason": "FieldValueInvalid"}])),
        ]),
        case(AREA, "a rule that can't be read is refused", [
            get(CRD).until(|code, _| code == 404).quiet(),
            post(CRDS, definition(ruled(json!({"n": integer()}), json!([{"rule": "self.n >"}])))).shows(&["/reason", "/details/causes/0/field", "/details/causes/0/reason"]),
        ]),
        case(AREA, "a rule of a wrong form is refused", [
            get(CRD).until(|code, _| code == 404).quiet(),
            bad_rules(json!([{"rule": " "}, {"rule": "self > 0", "message": " "}]), json!([
                {"rule": "true", "message": "two\nlines"},
                {"rule": "true ||\nfalse"},
                {"rule": "true", "messageExpression": " "},
                {"rule": "true", "fieldPath": ".gone"},
                {"rule": "true", "fieldPath": "n"},
            ])),
            bad_rules(json!([{"rule": "self > 0", "reason": "Because"}]), json!([])),
            bad_rules(json!([{"rule": "self > 0", "optionalOldSelf": true}]), json!([])),
        ]),
        case(AREA, "the past of items that nobody can tell apart is refused", [
            get(CRD).until(|code, _| code == 404).quiet(),
            post(CRDS, definition(spec(json!({"type": "object", "properties": {"list": {
                "type": "array", "maxItems": 3, "items": {"type": "integer", "x-kubernetes-validations": [{"rule": "self > oldSelf"}]},
            }}})))).shows(&CAUSES),
        ]),
        case(AREA, "rules of the Gateway API hold", defined_by(
            ruled(
                json!({"path": {"type": "object", "properties": {
                    "type": {"type": "string", "enum": ["Exact", "PathPrefix", "RegularExpression"], "default": "PathPrefix"},
                    "value": {"type": "string", "maxLength": 1024, "default": "/"},
                }, "x-kubernetes-validations": gateway_api()}}),
                json!([]),
            ),
            ["/a/b", "a", "/a//b", "/a/./b", "/a%2fb", "/a#b", "/a/..", "/a b"]
                .map(|path| refused(json!({"path": {"value": path}})))
                .to_vec(),
        )),
    ]
}

/// Those of a path in an HTTPRoute.
fn gateway_api() -> Value {
    let literal = "(self.type in ['Exact','PathPrefix'])";
    let mut rules = vec![
        json!({"message": "value must be an absolute path and start with '/' when type one of ['Exact', 'PathPrefix']", "rule": format!("{literal} ? self.value.startsWith('/') : true")}),
        json!({"message": "must only contain valid characters (matching ^(?:[-A-Za-z0-9/._~!$&'()*+,;=:@]|[%][0-9a-fA-F]{2})+$) for types ['Exact', 'PathPrefix']",
            "rule": format!("{literal} ? self.value.matches(r\"\"\"^(?:[-A-Za-z0-9/._~!$&'()*+,;=:@]|[%][0-9a-fA-F]{{2}})+$\"\"\") : true")}),
        json!({"message": "type must be one of ['Exact', 'PathPrefix', 'RegularExpression']", "rule": "self.type in ['Exact','PathPrefix'] || self.type == 'RegularExpression'"}),
    ];
    for (call, part) in [
        ("contains", "//"),
        ("contains", "/./"),
        ("contains", "/../"),
        ("contains", "%2f"),
        ("contains", "%2F"),
        ("contains", "#"),
        ("endsWith", "/.."),
        ("endsWith", "/."),
    ] {
        rules.push(json!({
            "message": format!("must not {} '{part}' when type one of ['Exact', 'PathPrefix']", if call == "contains" { "contain" } else { "end with" }),
            "rule": format!("{literal} ? !self.value.{call}('{part}') : true"),
        }));
    }
    rules.into()
}
