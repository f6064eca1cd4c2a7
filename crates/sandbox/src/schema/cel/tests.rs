//! Expressions and what they come to, and what can't be one.

use std::time::Duration;

use proptest::prelude::*;
use serde_json::json;

use super::types::Place;
use super::*;

fn schema() -> serde_json::Value {
    json!({
        "type": "object",
        "properties": {
            "size": {"type": "integer"},
            "ratio": {"type": "number"},
            "name": {"type": "string"},
            "on": {"type": "boolean"},
            "port": {"x-kubernetes-int-or-string": true},
            "namespace": {"type": "string"},
            "dash-ed.name": {"type": "string"},
            "since": {"type": "string", "format": "date-time"},
            "wait": {"type": "string", "format": "duration"},
            "data": {"type": "string", "format": "byte"},
            "absent": {"type": "string"},
            "list": {"type": "array", "items": {"type": "integer"}},
            "texts": {"type": "array", "items": {"type": "string"}},
            "labels": {"type": "object", "additionalProperties": {"type": "string"}},
            "parts": {"type": "array", "items": {"type": "object", "properties": {
                "name": {"type": "string"}, "n": {"type": "integer"},
            }}},
            "deep": {"type": "object", "properties": {"er": {"type": "object", "properties": {"x": {"type": "integer"}}}}},
            "raw": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
            "hidden": {"x-kubernetes-preserve-unknown-fields": true},
        },
    })
}

fn object() -> serde_json::Value {
    json!({
        "apiVersion": "v1", "kind": "Thing", "metadata": {"name": "a", "labels": {"x": "y"}},
        "size": 3, "ratio": 1, "name": "héllo", "on": true, "port": "http", "namespace": "ns",
        "dash-ed.name": "d", "since": "2024-02-29T12:30:45.5Z", "wait": "1h30m", "data": "aGk=",
        "list": [3, 1, 2], "texts": ["b", "a"], "labels": {"a/b": "1", "c": "2"},
        "parts": [{"name": "x", "n": 1}, {"name": "y"}], "deep": {}, "raw": {"any": 1}, "hidden": 1,
    })
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
fn hold(expressions: &[&str]) {
    for expression in expressions {
        assert_eq!(outcome(expression), "true", "{expression}");
    }
}

#[track_caller]
fn fail(expressions: &[(&str, &str)]) {
    for (expression, why) in expressions {
        assert_eq!(outcome(expression), *why, "{expression}");
    }
}

#[test]
fn literals_and_operators() {
    hold(&[
        "true && !false",
        "0x10 == 16 && 16u == 0x10u && 1.5e1 == 15.0 && .5 == 0.5",
        "-9223372036854775808 < 0 && - 1 == -1 && --1 == 1",
        "1 + 2 * 3 - 4 / 2 % 3 == 5",
        "'a' + \"b\" == r'ab' && '''x'y''' == \"x'y\"",
        r"'\x41\u0042\103\n' == 'ABC' + '\n' && r'\n' != '\n' && b'\xff' != b'\xfe'",
        "b'hi' == bytes('hi') && self.data == b'hi' && string(self.data) == 'hi'",
        "1 < 2 && 2.5 > 1 && 1u <= 1 && 9007199254740993 > 9007199254740992.0",
        "'a' < 'b' && false < true && duration('1s') < duration('1m')",
        "(self.size > 2 ? 'big' : 'small') == 'big'",
        "true || 1 / 0 == 1",
        "1 / 0 == 1 || true",
        "!(false && 1 / 0 == 1) && !(1 / 0 == 1 && false)",
        "[1, 2] + [3] == [1, 2, 3] && [] == [] && [1, 2][1] == 2",
        "{'a': 1, 'b': 2} == {'b': 2, 'a': 1} && {'a': 1}.a == 1 && {1: 'x'}[1] == 'x'",
        "2 in [1, 2] && 'a' in {'a': 1} && !(3 in [1])",
        "dyn(1) == 1.0 && dyn('1') != dyn(1) && null == dyn(null)",
        "// comments\n true",
        "5 % -3 == 2 && -5 / 3 == -1",
    ]);
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
    hold(&[
        "self.name.size() == 5 && self.kind == 'Thing' && self.metadata.name == 'a'",
        "self.ratio == 1.0 && type(self.ratio) == double && type(self.size) == int",
        "self.__namespace__ == 'ns' && self.dash__dash__ed__dot__name == 'd'",
        "has(self.name) && !has(self.absent) && has(self.deep) && !has(self.deep.er)",
        "type(self.port) == string && self.port != 80",
        "self.labels['a/b'] == '1' && self.labels.c == '2' && has(self.labels.c) && !has(self.labels.d)",
        "self.since.getFullYear() == 2024 && self.wait == duration('90m')",
        "self == oldSelf && self.parts == oldSelf.parts && self.parts[0] != self.parts[1]",
        "has(self.raw)",
    ]);
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
    hold(&[
        "self.list.all(x, x > 0) && !self.list.all(x, x > 1)",
        "self.list.exists(x, x == 2) && ![].exists(x, true) && [].all(x, false)",
        "self.list.exists_one(x, x > 2) && self.list.existsOne(x, x < 2)",
        "self.list.filter(x, x > 1) == [3, 2] && self.list.map(x, x * 2) == [6, 2, 4]",
        "self.list.map(x, x > 1, x + 1) == [4, 3]",
        "self.labels.all(k, self.labels[k].size() == 1) && self.labels.map(k, k) == ['a/b', 'c']",
        "self.list.exists(x, 1 / (x - 3) == 0 || x == 2)",
        "!self.list.all(x, 1 / (x - 3) > 0 && x != 2)",
        "self.parts.all(p, self.list.exists(x, !has(p.n) || x == p.n))",
        "[1, 2].all(x, [3].all(x, x == 3) && x < 3)",
        "self.labels.all(k, v, v in ['1', '2']) && ['a', 'b'].exists(i, v, i == 1 && v == 'b')",
        "[5, 6].transformList(i, v, v - i) == [5, 5] && [5, 6].transformList(i, v, i > 0, v) == [6]",
        "self.labels.transformMap(k, v, k == 'c', v + '!') == {'c': '2!'}",
    ]);
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
    hold(&[
        "int('42') == 42 && int(4.9) == 4 && int(-4.9) == -4 && uint(7) == 7u && double('1.5') == 1.5",
        "string(12) == '12' && string(1.5) == '1.5' && string(true) == 'true' && string(duration('90s')) == '90s'",
        "bool('true') && !bool('0') && type(1u) == uint && type('') == string && type(null) == null_type && type(int) == type",
        "timestamp('2024-02-29T12:30:45.5Z') == self.since && string(self.since) == '2024-02-29T12:30:45.5Z'",
        "self.since.getMonth() == 1 && self.since.getDate() == 29 && self.since.getDayOfMonth() == 28",
        "self.since.getDayOfWeek() == 4 && self.since.getDayOfYear() == 59 && self.since.getMilliseconds() == 500",
        "self.since.getHours() == 12 && self.since.getHours('+02:00') == 14 && self.since.getHours('-01:30') == 11",
        "self.since + self.wait == timestamp('2024-02-29T14:00:45.5Z') && self.since - self.since == duration('0')",
        "duration('1h') + duration('30m') == self.wait && self.wait.getMinutes() == 90 && duration('-1.5h').getHours() == -1",
        "int(timestamp('1970-01-01T00:01:00Z')) == 60 && timestamp(60) == timestamp('1970-01-01T00:01:00Z')",
    ]);
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
    hold(&[
        "'hello'.startsWith('he') && 'hello'.endsWith('lo') && 'hello'.contains('ell')",
        "'hello'.matches('^h.*o$') && matches('abc', 'b') && !'abc'.matches('^b')",
        "'HÉllo'.lowerAscii() == 'hÉllo' && 'hé'.upperAscii() == 'Hé' && ' a '.trim() == 'a'",
        "'a,b,c'.split(',') == ['a', 'b', 'c'] && 'a,b,c'.split(',', 2) == ['a', 'b,c'] && 'ab'.split('') == ['a', 'b']",
        "'a,b'.split(',', 0) == [] && 'a,b'.split(',', -1) == ['a', 'b'] && ['a', 'b'].join('-') == 'a-b' && [].join() == ''",
        "'aXbX'.replace('X', '') == 'ab' && 'aXbX'.replace('X', 'y', 1) == 'aybX'",
        "'héllo'.substring(1, 3) == 'él' && 'héllo'.substring(3) == 'lo' && 'abc'.substring(3) == ''",
        "'héllo'.indexOf('l') == 2 && 'héllo'.indexOf('l', 3) == 3 && 'abc'.indexOf('x') == -1 && 'abc'.indexOf('', 9) == 3",
        "'héllo'.lastIndexOf('l') == 3 && 'héllo'.lastIndexOf('l', 2) == 2 && 'ab'.lastIndexOf('') == 2 && 'ab'.lastIndexOf('a', 9) == -1",
        "'héllo'.charAt(1) == 'é' && 'a'.charAt(1) == '' && size('héllo') == 5 && 'héllo'.size() == 5",
        "'a1b22'.find('[0-9]+') == '1' && 'a1b22'.findAll('[0-9]+') == ['1', '22'] && 'a1b22'.findAll('[0-9]', 1) == ['1']",
        "'%s has %d, %.2f and %x%%'.format(['a', dyn(3), dyn(1.5), dyn(255)]) == 'a has 3, 1.50 and ff%'",
        "'%s %s'.format([dyn([dyn(1), 'x']), {'k': true}]) == '[1, x] {k: true}' && '%e'.format([1234.5]) == '1.234500e+03'",
        r#"strings.quote('a"b') == '"a\\"b"'"#,
    ]);
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
    hold(&[
        "!self.list.isSorted() && [1, 2, 2].isSorted() && self.list.sum() == 6 && [1.5, 2.5].sum() == 4.0",
        "self.list.min() == 1 && self.list.max() == 3 && self.texts.min() == 'a' && [].sum() == 0",
        "self.list.indexOf(1) == 1 && [1, 2, 1].lastIndexOf(1) == 2 && [1].indexOf(2) == -1",
        "self.list.slice(1, 3) == [1, 2] && [1, 1, 2].distinct() == [1, 2] && self.list.reverse() == [2, 1, 3]",
        "self.list.sort() == [1, 2, 3] && [[1], [2, 3]].flatten() == [1, 2, 3] && lists.range(3) == [0, 1, 2]",
        "sets.contains([1, 2], [2]) && sets.equivalent([1, 2], [2, 1, 1]) && sets.intersects([1], [1, 2]) && !sets.intersects([1], [2])",
    ]);
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
    hold(&[
        "self.?name.orValue('none') == 'héllo' && self.?absent.orValue('none') == 'none'",
        "!self.?deep.?er.?x.hasValue() && self.?deep.er.x.orValue(7) == 7",
        "self.labels[?'c'].value() == '2' && self.list[?9].orValue(0) == 0",
        "optional.of(1).or(optional.of(2)).value() == 1 && !optional.ofNonZeroValue('').hasValue()",
        "self.?size.optMap(x, x + 1).value() == 4 && !self.?absent.optMap(x, x + '!').hasValue()",
        "self.?size.optFlatMap(x, optional.of(x)) == optional.of(3)",
        "[?self.?absent, 'a'] == ['a'] && {?'k': self.?absent} == {} && has(self.?deep.er) == false",
    ]);
    fail(&[("optional.none().value()", "optional.none() dereference")]);
}

#[test]
fn libraries_of_kubernetes() {
    hold(&[
        "isURL('https://example.com:80/a?b=c') && !isURL('example.com') && isURL('/abs/path') && !isURL('../rel')",
        "url('https://User@Example.com:80/a%20b?k=v&k=w%20x').getHostname() == 'Example.com'",
        "url('https://[::1]:80/').getHost() == '[::1]:80' && url('https://[::1]:80/').getHostname() == '::1' && url('https://a:81').getPort() == '81'",
        "url('https://a/b%20c?k=v').getEscapedPath() == '/b%20c' && url('HTTPS://a/').getScheme() == 'https'",
        "url('/a?k=v&k=w%20x').getQuery() == {'k': ['v', 'w x']}",
        "isQuantity('1.5Gi') && !isQuantity('1.5Gx') && quantity('1Gi').isGreaterThan(quantity('1G'))",
        "quantity('200M').add(quantity('50M')) == quantity('0.25G') && quantity('1k').sub(1).asInteger() == 999",
        "quantity('50k').compareTo(quantity('50000')) == 0 && sign(quantity('-1')) == -1 && !quantity('50m').isInteger()",
        "isIP('::1') && !isIP('1.2.3') && !isIP('::ffff:1.2.3.4') && ip('10.0.0.1').family() == 4 && ip.isCanonical('::1')",
        "ip('127.0.0.1').isLoopback() && ip('fe80::1').isLinkLocalUnicast() && ip('8.8.8.8').isGlobalUnicast()",
        "isCIDR('10.0.0.0/8') && cidr('10.0.0.0/8').containsIP('10.1.2.3') && cidr('10.0.0.0/8').containsCIDR('10.1.0.0/16')",
        "cidr('10.1.2.3/8').masked() == cidr('10.0.0.0/8') && cidr('10.0.0.0/8').prefixLength() == 8 && string(cidr('::/0').ip()) == '::'",
    ]);
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
