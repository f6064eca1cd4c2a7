//! Expressions and what they come to, and what can't be one.

use std::time::Duration;

use proptest::prelude::*;
use serde_json::json;

use super::types::Place;
use super::*;

/// What the table's expressions are about; the conformance test shows the same to Kubernetes.
fn example(part: &str) -> serde_json::Value {
    let example: serde_json::Value = serde_json::from_str(include_str!("example.json")).expect("it is JSON");
    example[part].clone()
}

fn schema() -> serde_json::Value {
    example("schema")
}

fn object() -> serde_json::Value {
    example("object")
}

fn ty() -> Type {
    Type::of_schema(&schema(), Place::Root).expect("objects have a type")
}

/// What an expression comes to, in CEL's own words, or why it comes to nothing.
fn outcome(text: &str) -> String {
    let (ty, object) = (ty(), object());
    let program = match Program::compile(text, &ty, &ty) {
        Ok(program) => program,
        Err(why) => return why.lines().next().unwrap_or_default().to_owned(),
    };
    let this = || Val::of(&object, &ty).expect("it fits");
    match program.evaluate(this(), Some(this())).0 {
        Ok(Val::Bool(true)) => "true".to_owned(),
        Ok(value) => format!("{value:?}"),
        Err(Stop::Budget) => "out of budget".to_owned(),
        Err(Stop::Fault(why)) => why,
    }
}

#[track_caller]
fn fail(expressions: &[(&str, &str)]) {
    for (expression, why) in expressions {
        assert_eq!(outcome(expression), *why, "{expression}");
    }
}

#[test]
fn the_table_holds() {
    let lines = include_str!("true.txt").lines().filter(|line| !line.is_empty());
    for expression in lines.chain(["// comments\n true"]) {
        assert_eq!(outcome(expression), "true", "{expression}");
    }
}

#[test]
fn literals_and_operators() {
    fail(&[
        ("1 / 0", "division by zero"),
        ("1 % 0", "modulus by zero"),
        ("9223372036854775807 + 1", "integer overflow"),
        ("-(-9223372036854775807 - 1)", "integer overflow"),
        ("0u - 1u", "unsigned integer overflow"),
        ("[1][1]", "index out of bounds: 1"),
        ("[1][-1]", "index out of bounds: -1"),
        ("{'a': 1}['b']", "no such key: b"),
        ("{'a': 1, 'a': 2}", "insert failed: key already exists"),
        ("dyn('a') + dyn(1)", "no such overload"),
    ]);
}

#[test]
fn fields_are_those_that_the_schema_declares() {
    fail(&[
        ("self.absent", "no such key: absent"),
        ("self.deep.er.x", "no such key: er"),
        ("has(self.deep.er.x)", "no such key: er"),
        ("self.gone", "ERROR: <input>:1:5: undefined field 'gone'"),
        ("has(self.gone)", "ERROR: <input>:1:4: undefined field 'gone'"),
        ("self.raw.any", "ERROR: <input>:1:9: undefined field 'any'"),
        ("self.hidden", "ERROR: <input>:1:5: undefined field 'hidden'"),
        (
            "self.metadata.labels",
            "ERROR: <input>:1:14: undefined field 'labels'",
        ),
        (
            "self.size.x",
            "ERROR: <input>:1:10: type 'int' does not support field selection",
        ),
    ]);
}

#[test]
fn macros() {
    fail(&[
        (
            "self.list.all(x, x)",
            "ERROR: <input>:1:18: expected type 'bool' but found 'int'",
        ),
        (
            "self.size.all(x, true)",
            "ERROR: <input>:1:5: expression of type 'int' cannot be range of a comprehension (must be list, map, or dynamic)",
        ),
        (
            "self.list.all(x.y, true)",
            "ERROR: <input>:1:16: argument must be a simple name",
        ),
        ("has(self)", "ERROR: <input>:1:4: invalid argument to has() macro"),
        ("self.list.all(x, 1 / (x - 3) > 0)", "Bool(false)"),
        ("[3].all(x, 1 / (x - 3) > 0)", "division by zero"),
    ]);
}

#[test]
fn conversions_times_and_durations() {
    fail(&[
        ("int('x')", "type conversion error from 'x' to 'int'"),
        ("int(1e19)", "integer overflow"),
        ("int(0.0 / 0.0)", "integer overflow"),
        ("uint(-1)", "integer overflow"),
        (
            "duration('1 day')",
            "ERROR: <input>:1:10: invalid duration argument",
        ),
        (
            "timestamp('9999-12-30T21:00:00Z') + duration('3h')",
            "timestamp overflow",
        ),
        ("self.since.getHours('Mars/Base')", "unknown time zone Mars/Base"),
    ]);
}

#[test]
fn texts() {
    fail(&[
        ("'a'.substring(2)", "index out of range: 2"),
        ("'abc'.substring(2, 1)", "index out of range: 2"),
        ("'a'.charAt(-1)", "index out of range: -1"),
        ("'a'.indexOf('a', -1)", "index out of range: -1"),
        (
            "'a'.matches('[')",
            "ERROR: <input>:1:13: invalid matches argument",
        ),
        ("'%d'.format(['x'])", "could not parse formatting clause"),
    ]);
}

#[test]
fn lists_and_sets() {
    fail(&[
        ("[].min()", "min called on empty list"),
        ("[1].slice(1, 3)", "cannot slice(1, 3), list is length 1"),
        (
            "[1, 'a']",
            "ERROR: <input>:1:5: expected type 'int' but found 'string'",
        ),
    ]);
}

#[test]
fn optional_values() {
    fail(&[("optional.none().value()", "optional.none() dereference")]);
}

#[test]
fn what_does_not_compile_is_told_as_kubernetes_tells_it() {
    let compile = |text: &str| Program::compile(text, &ty(), &ty()).expect_err("it is wrong");
    assert_eq!(
        compile("self.name >\n  self.gone"),
        "ERROR: <input>:2:7: undefined field 'gone'\n |   self.gone\n | ......^"
    );
    assert_eq!(
        compile("self.name > 1 && foo"),
        "ERROR: <input>:1:11: found no matching overload for '_>_' applied to '(string, int)'\n | self.name > 1 && foo\n | ..........^\nERROR: <input>:1:18: undeclared reference to 'foo' (in container '')\n | self.name > 1 && foo\n | .................^"
    );
    fail(&[
        (
            "self.name.startsWith(1)",
            "ERROR: <input>:1:21: found no matching overload for 'startsWith' applied to 'string.(int)'",
        ),
        (
            "self.list.foo()",
            "ERROR: <input>:1:14: undeclared reference to 'foo' (in container '')",
        ),
        (
            "self.size ==",
            "ERROR: <input>:1:13: Syntax error: mismatched input '<EOF>'",
        ),
        ("'a", "ERROR: <input>:1:1: Syntax error: the string has no end"),
        (
            "for",
            "ERROR: <input>:1:1: Syntax error: reserved identifier: for",
        ),
        (
            "99999999999999999999",
            "ERROR: <input>:1:1: Syntax error: invalid int literal",
        ),
        (
            "self.size # 1",
            "ERROR: <input>:1:11: Syntax error: token recognition error at: '#'",
        ),
    ]);
}

#[test]
fn deep_expressions_are_refused_however_they_are_deep() {
    let ty = ty();
    let far = parse::HEIGHT_MAX * 4;
    for text in [
        format!("{}true{}", "(".repeat(far), ")".repeat(far)),
        format!("{}true{}", "[".repeat(far), "]".repeat(far)),
        format!("{}true", "true ? ".repeat(far)),
        format!("{}1{}", "true ? 1 : ".repeat(far), ""),
        format!("1{} > 0", " + 1".repeat(far)),
        format!("self{}", ".a".repeat(far)),
        format!("self{}", "[0]".repeat(far)),
        format!("{}1{}", "[1].map(x, ".repeat(far), ")".repeat(far)),
        format!("{}'a'{}", "size(".repeat(far), ")".repeat(far)),
        "(".repeat(99_999),
        "x.".repeat(49_999),
        "1".repeat(200_000),
    ] {
        assert!(Program::compile(&text, &ty, &ty).is_err(), "{}", &text[..20]);
    }
    // What is wide is not deep.
    let signs = format!("{}true", "!".repeat(2 * far));
    let wide = [
        "true && ".repeat(far) + "true",
        "false || ".repeat(far) + "true",
        signs,
    ];
    for text in wide {
        assert_eq!(outcome(&text), "true");
    }
}

#[test]
fn the_deepest_expression_fits_a_small_stack() {
    let half = parse::HEIGHT_MAX / 2 - 4;
    let text = format!(
        "{}true{}",
        "[1].all(x, true && (true ? ".repeat(half / 2),
        " : x))".repeat(half / 2)
    );
    let parens = format!("{}true{}", "(".repeat(2 * half), ")".repeat(2 * half));
    let small = std::thread::Builder::new().stack_size(1 << 20);
    let outcomes = small.spawn(move || [outcome(&text), outcome(&parens)]);
    let outcomes = outcomes.expect("a thread").join().expect("no overflow");
    assert!(outcomes[1] == "true", "{outcomes:?}");
}

#[test]
fn work_is_bounded() {
    let range = "lists.range(1000)";
    for text in [
        format!("{range}.all(a, {range}.all(b, {range}.all(c, a + b + c >= 0)))"),
        format!("{range}.map(a, {range}.map(b, {range})).size() > 0"),
        "lists.range(9223372036854775807).size() > 0".to_owned(),
        format!("{range}.all(a, 'x'.matches('a' + string(a)) || true)"),
        format!(
            "{range}.map(a, 'xxxxxxxxxxxxxxxx').join().replace('x', {range}.map(a, 'xxxxxxxxxxxxx').join()).size() > 0"
        ),
    ] {
        let began = std::time::Instant::now();
        assert_eq!(outcome(&text), "out of budget", "{text}");
        assert!(began.elapsed() < Duration::from_secs(20), "{text}");
    }
}

fn refusals(
    rules: serde_json::Value,
    object: serde_json::Value,
    old: Option<serde_json::Value>,
) -> Vec<String> {
    let rules = Rules::compile(&rules, &super::super::Path::new("s"));
    let rules = rules.expect("they compile").expect("there are some");
    let causes = rules.check(&object, old.as_ref());
    causes.iter().map(ToString::to_string).collect()
}

#[test]
fn items_with_keys_are_compared_with_what_they_were() {
    let rule = json!([{"rule": "self.n >= oldSelf.n", "message": "shrinks"}]);
    let items = json!({
        "type": "object", "properties": {"k": {"type": "string"}, "n": {"type": "integer"}},
        "x-kubernetes-validations": rule,
    });
    let schema = json!({"type": "object", "properties": {"list": {
        "type": "array", "items": items, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
    }}});
    let list = |n: i32, m: i32| json!({"list": [{"k": "a", "n": n}, {"k": "b", "n": m}]});
    let turned = json!({"list": [{"k": "c", "n": 0}, {"k": "b", "n": 1}, {"k": "a", "n": 1}]});
    assert_eq!(refusals(schema.clone(), list(1, 1), None), Vec::<String>::new());
    assert_eq!(
        refusals(schema, turned, Some(list(1, 2))),
        ["list[1]: Invalid value: shrinks"]
    );
}

#[test]
fn what_was_wrong_before_may_stay_until_it_changes() {
    let number = json!({"type": "integer", "x-kubernetes-validations": [{"rule": "self < 5"}]});
    let schema = json!({"type": "object", "properties": {
        "a": number, "list": {"type": "array", "items": number},
    }});
    let object = |a: i32, item: i32| json!({"a": a, "list": [9, item]});
    let refused = |a, item| refusals(schema.clone(), object(a, item), Some(object(9, 1)));
    assert_eq!(refused(9, 1), Vec::<String>::new());
    assert_eq!(refused(8, 1), ["a: Invalid value: 8: failed rule: self < 5"]);
    // Nobody can tell which item it was.
    assert_eq!(
        refused(9, 2),
        ["list[0]: Invalid value: 9: failed rule: self < 5"]
    );
}

#[test]
fn the_rules_for_one_object_share_a_budget() {
    let rule = "lists.range(1000).all(a, lists.range(90).all(b, a + b >= 0))";
    let rules = vec![json!({"rule": rule}); 40];
    let schema = json!({"type": "object", "x-kubernetes-validations": rules});
    assert_eq!(
        refusals(schema, json!({}), None),
        [
            "<nil>: Invalid value: \"object\": validation failed due to running out of cost budget, no further validation rules will be run"
        ]
    );
}

/// Pieces of expressions, in any order: most are wrong, in all sorts of ways.
fn any_text() -> impl Strategy<Value = String> {
    let pieces = prop::sample::select(vec![
        "self",
        "oldSelf",
        ".size",
        ".list",
        ".labels",
        ".name",
        ".parts",
        ".?name",
        ".all(x, ",
        ".map(k, v, ",
        ".filter(x, ",
        "x",
        "has(",
        "size(",
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        "'a'",
        "b'\\xff'",
        "1",
        "-9223372036854775808",
        "2.5",
        "3u",
        " + ",
        " - ",
        " * ",
        " / ",
        " % ",
        " == ",
        " < ",
        " && ",
        " || ",
        " ? ",
        " : ",
        ", ",
        " in ",
        "!",
        "true",
        "null",
        "duration('1h')",
        "self.since",
        ".getHours(",
        "'\\u12",
        "\n",
        "é",
        ".split(",
        ".join(",
        ".format([",
        "])",
        "type(",
        "dyn(",
        "lists.range(99)",
        ".substring(1)",
        ".matches('a*')",
        ".sum()",
        ".sort()",
        "optional.of(",
    ]);
    prop_oneof![
        prop::collection::vec(pieces, 0..24).prop_map(|pieces| pieces.concat()),
        any::<String>(),
    ]
}

/// Expressions that often compile.
fn any_expression() -> impl Strategy<Value = String> {
    let leaf = prop::sample::select(vec![
        "self.size",
        "self.ratio",
        "self.name",
        "self.list",
        "self.texts",
        "self.labels",
        "self.parts",
        "self.port",
        "self.since",
        "self.wait",
        "self.data",
        "self.absent",
        "1",
        "-1",
        "0u",
        "1.5",
        "'aé'",
        "''",
        "true",
        "null",
        "[1, 2]",
        "{'a': 1}",
        "dyn(1)",
        "9223372036854775807",
        "[]",
        "self.?absent",
        "'%s%d'",
    ])
    .prop_map(str::to_owned);
    leaf.prop_recursive(4, 48, 3, |inner| {
        let two = (inner.clone(), inner.clone());
        prop_oneof![
            (
                two.clone(),
                prop::sample::select(vec!["+", "-", "*", "/", "%", "==", "<", "&&", "||", "in"])
            )
                .prop_map(|((one, other), operator)| format!("({one} {operator} {other})")),
            (
                two.clone(),
                prop::sample::select(vec!["all", "exists", "exists_one", "map", "filter", "optMap",])
            )
                .prop_map(|((over, body), name)| format!("{over}.{name}(x, {body})")),
            (
                inner.clone(),
                prop::sample::select(vec![
                    "size",
                    "string",
                    "int",
                    "uint",
                    "double",
                    "bytes",
                    "duration",
                    "timestamp",
                    "type",
                    "dyn",
                    "url",
                    "quantity",
                    "ip",
                    "cidr",
                    "lists.range",
                    "optional.of",
                    "strings.quote",
                ])
            )
                .prop_map(|(inner, name)| format!("{name}({inner})")),
            (
                inner.clone(),
                prop::sample::select(vec![
                    "sum()",
                    "min()",
                    "sort()",
                    "distinct()",
                    "flatten()",
                    "trim()",
                    "getHours()",
                    "split('')",
                    "charAt(9)",
                    "substring(-1)",
                    "join(',')",
                    "format([1])",
                    "value()",
                    "reverse()",
                    "find('(a|b)*')",
                    "slice(0, 9)",
                ])
            )
                .prop_map(|(inner, call)| format!("{inner}.{call}")),
            (inner.clone(), two).prop_map(|(one, (two, three))| format!("({one} ? {two} : {three})")),
            (inner.clone(), inner).prop_map(|(of, key)| format!("dyn({of})[dyn({key})]")),
        ]
    })
}

/// A bounded mixture of everything, damaged as much as one likes.
fn any_value() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        "[a-zé%0-9]{0,6}".prop_map(Into::into),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        let names = prop::sample::select(vec![
            "size", "list", "labels", "name", "parts", "since", "wait", "port",
        ]);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(serde_json::Value::Array),
            prop::collection::btree_map(names, inner, 0..6).prop_map(|map| json!(map)),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_text_and_no_value_panics_or_spends_too_much(text in prop_oneof![any_text(), any_expression()], value in any_value()) {
        let ty = ty();
        if let Ok(program) = Program::compile(&text, &ty, &ty)
            && let Ok(this) = Val::of(&value, &ty)
        {
            let (_, cost) = program.evaluate(this.clone(), Some(this));
            prop_assert!(cost <= CALL_BUDGET);
        }
        let _ = outcome(&text);
    }

    #[test]
    fn no_rules_panic(rules in any_value(), text in any_text(), value in any_value()) {
        let mut schema = schema();
        schema["x-kubernetes-validations"] = json!([rules, {"rule": text, "fieldPath": text, "messageExpression": text}]);
        if let Ok(Some(rules)) = Rules::compile(&schema, &super::super::Path::root()) {
            rules.check(&value, Some(&value));
        }
    }
}
