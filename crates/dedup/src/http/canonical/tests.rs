use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;

fn form(text: impl AsRef<[u8]>) -> Option<Vec<u8>> {
    of(text.as_ref(), &Exceptions::new(), &mut Scratch::new()).map(ToOwned::to_owned)
}

fn same(one: &str, other: &str) -> bool {
    let forms = [one, other].map(|text| form(text).unwrap_or_else(|| panic!("{text} is JSON")));
    forms[0] == forms[1]
}

#[test]
fn what_says_the_same_is_the_same() {
    for (one, other) in [
        (r#"{"a":1,"b":[true,null]}"#, " { \"b\" : [ true , null ] , \"a\" : 1 }\r\n\t"),
        (r#"{"b":{"d":1,"c":2},"a":{}}"#, r#"{"a":{},"b":{"c":2,"d":1}}"#),
        (r#""\u0041\/\n""#, "\"A/\\u000a\""),
        (r#""\ud83d\ude00""#, "\"😀\""),
        (r#""\uD83D\uDE00""#, r#""\ud83d\ude00""#),
        (r#"{"\u0061":1}"#, r#"{"a":1}"#),
        (r#"{"b":0,"a":1,"a":2}"#, r#"{"a":1,"a":2,"b":0}"#),
    ] {
        assert!(same(one, other), "{one} and {other}");
    }
}

#[test]
fn what_does_not_is_not() {
    for (one, other) in [
        ("[1,2]", "[2,1]"),
        ("[1,2]", "[12]"),
        ("[[1],2]", "[[1,2]]"),
        ("[[],[]]", "[[[]]]"),
        (r#""1""#, "1"),
        (r#"["a","b"]"#, r#"["a\",\"b"]"#),
        (r#"["a","b"]"#, r#"["ab"]"#),
        (r#"{"a":"b"}"#, r#"["a","b"]"#),
        (r#"{"a":null}"#, "{}"),
        (r#"{"a":{"b":1},"c":2}"#, r#"{"a":{"b":1,"c":2}}"#),
        ("1.0", "1"),
        ("true", r#""true""#),
        (r#"{"a":1,"a":2}"#, r#"{"a":2,"a":1}"#),
        (r#""\ud800""#, r#""\ud801""#),
        (r#""\ud800\ud800\udc00""#, r#""\ud800\udc00""#),
        (r#""\u00e9""#, r#""e\u0301""#),
    ] {
        assert!(!same(one, other), "{one} and {other}");
    }
}

#[test]
fn what_is_no_json_has_no_form() {
    for text in [
        "",
        " ",
        "{",
        "[",
        "[1",
        "[1,",
        "[1,]",
        "[,1]",
        "{,}",
        "{\"a\"}",
        "{\"a\":}",
        "{\"a\":1,}",
        "{a:1}",
        "{\"a\":1 \"b\":2}",
        "[1 2]",
        "1 2",
        "01",
        "-",
        "+1",
        ".5",
        "1.",
        "1e",
        "1e+",
        "0x1",
        "NaN",
        "tru",
        "nulls",
        "'a'",
        "\"",
        "\"\\\"",
        "\"\\x\"",
        "\"\\u12\"",
        "\"\\u12g4\"",
        "\"\n\"",
        "\"\u{1}\"",
        "\u{feff}1",
        "[1]]",
        "\"\\ud800\\u\"",
    ] {
        assert_eq!(form(text), None, "{text:?}");
    }
    assert_eq!(form(b"\"\xff\""), None, "no UTF-8");
    let nested = |depth| ["[".repeat(depth), "]".repeat(depth)].concat();
    assert!(form(nested(MAX_DEPTH)).is_some());
    assert_eq!(form(nested(MAX_DEPTH + 1)), None);
    assert_eq!(form("[".repeat(1_000_000)), None, "without a stack to overflow");
}

#[test]
fn what_was_written_before_is_no_part_of_a_form() {
    let mut scratch = Scratch::new();
    let text = |letter: &str, length| format!("\"{}\"", letter.repeat(length));
    of(text("a", 3 * FEW).as_bytes(), &Exceptions::new(), &mut scratch).unwrap();
    let again = of(text("b", 2 * FEW).as_bytes(), &Exceptions::new(), &mut scratch).unwrap();
    assert_eq!(again, form(text("b", 2 * FEW)).unwrap());
}

#[test]
fn members_at_the_top_may_be_left_out() {
    let mut exceptions = Exceptions::new();
    ["user", "é"].iter().for_each(|name| exceptions.leave_out(name));
    let mut scratch = Scratch::new();
    let mut without = |text: &str| of(text.as_bytes(), &exceptions, &mut scratch).unwrap().to_owned();
    let bare = without(r#"{"a":{"user":1},"z":2}"#);
    assert_eq!(without(r#"{"user":{"b":1,"a":2},"z":2,"\u00e9":[],"a":{"user":1}}"#), bare);
    assert_ne!(without(r#"{"a":{"user":2},"z":2}"#), bare, "it counts below the top");
    assert_ne!(without(r#"{"a":{},"z":2}"#), bare);
}

#[test]
fn in_members_at_the_top_order_may_count() {
    let mut exceptions = Exceptions::new();
    ["tools", "é"].iter().for_each(|name| exceptions.in_order(name));
    let form = |text: &str| of(text.as_bytes(), &exceptions, &mut Scratch::new()).unwrap().to_owned();
    let schema = form(r#"{"tools":[{"x":{"why":1,"answer":2}}],"z":{"b":1,"a":2}}"#);
    assert_eq!(form(r#"{ "z": {"a":2,"b":1}, "tools" : [ { "x" : {"why":1, "answer":2} } ]}"#), schema);
    assert_ne!(form(r#"{"tools":[{"x":{"answer":2,"why":1}}],"z":{"b":1,"a":2}}"#), schema);
    assert_ne!(form(r#"{"\u00e9":{"b":1,"a":2}}"#), form(r#"{"é":{"a":2,"b":1}}"#));
    let below = form(r#"{"a":{"tools":{"b":1,"a":2}}}"#);
    assert_eq!(form(r#"{"a":{"tools":{"a":2,"b":1}}}"#), below, "it is another one below the top");
    assert_eq!(form(r#"[{"tools":{"b":1,"a":2}}]"#), form(r#"[{"tools":{"a":2,"b":1}}]"#));
}

/// JSON in which all has an order.
#[derive(Clone, Debug, PartialEq)]
enum Tree {
    Leaf(u8),
    List(Vec<Tree>),
    Object(Vec<(String, Tree)>),
}

impl Tree {
    fn text(&self, space: &str) -> String {
        let list = |items: Vec<String>| items.join(&format!("{space},"));
        match self {
            Self::Leaf(leaf) => leaf.to_string(),
            Self::List(items) => {
                format!("[{}{space}]", list(items.iter().map(|item| item.text(space)).collect()))
            }
            Self::Object(members) => {
                let member =
                    |(name, value): &(String, Self)| format!("\"{name}\"{space}:{}", value.text(space));
                format!("{{{}{space}}}", list(members.iter().map(member).collect()))
            }
        }
    }

    /// The same with every object's members, to which `with` does something.
    fn map(&self, with: &mut impl FnMut(&mut Vec<(String, Self)>)) -> Self {
        match self {
            Self::Leaf(leaf) => Self::Leaf(*leaf),
            Self::List(items) => Self::List(items.iter().map(|item| item.map(with)).collect()),
            Self::Object(members) => {
                let mut members =
                    members.iter().map(|(name, value)| (name.clone(), value.map(with))).collect();
                with(&mut members);
                Self::Object(members)
            }
        }
    }

    /// What it says where the order of members counts below `a` at the top.
    fn meaning(&self) -> Self {
        let mut sort = |members: &mut Vec<(String, Self)>| members.sort_by(|one, other| one.0.cmp(&other.0));
        let Self::Object(members) = self else { return self.map(&mut sort) };
        let member = |(name, value): &(String, Self)| {
            (name.clone(), if name == "a" { value.clone() } else { value.map(&mut sort) })
        };
        let mut members = members.iter().map(member).collect();
        sort(&mut members);
        Self::Object(members)
    }
}

fn tree() -> impl Strategy<Value = Tree> {
    (0..3_u8).prop_map(Tree::Leaf).prop_recursive(4, 24, 3, |inner| {
        prop_oneof![
            1 => prop::collection::vec(inner.clone(), 0..3).prop_map(Tree::List),
            3 => prop::collection::vec(("[a-c]", inner), 0..4).prop_map(Tree::Object),
        ]
    })
}

/// `value` as somebody else might write it: in another order, with other white space and other escapes.
fn write(value: &Value, twist: &mut impl FnMut() -> usize) -> String {
    let space = ["", " ", "\n\t"][twist() % 3];
    let list = |items: Vec<String>| items.join(&format!("{space},{space}"));
    match value {
        Value::Array(items) => {
            format!("[{space}{}{space}]", list(items.iter().map(|item| write(item, twist)).collect()))
        }
        Value::Object(members) => {
            let mut written: Vec<_> = members
                .iter()
                .map(|(name, value)| format!("{}{space}:{}", write(&json!(name), twist), write(value, twist)))
                .collect();
            let at = twist() % written.len().max(1);
            written.rotate_left(at);
            format!("{{{space}{}{space}}}", list(written))
        }
        Value::String(text) if twist().is_multiple_of(2) => {
            let units = text.encode_utf16().map(|unit| format!("\\u{unit:04x}"));
            format!("\"{}\"", units.collect::<String>())
        }
        other => other.to_string(),
    }
}

fn value() -> impl Strategy<Value = Value> {
    let text = prop_oneof!["[ab\"\\\\\n{}:,é😀\u{0}]{0,4}", ".{0,12}"];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-3..3_i8).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        text.clone().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 40, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec((text.clone(), inner), 0..5)
                .prop_map(|members| Value::from(members.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

proptest! {
    /// serde_json reads both: texts have one form if and only if it reads the same.
    #[test]
    fn the_form_is_the_meaning(one in value(), other in value(), twists in prop::collection::vec(0..6_usize, 64)) {
        let mut twists = twists.into_iter().cycle();
        let mut twist = || twists.next().unwrap();
        let texts = [write(&one, &mut twist), write(&one, &mut twist), write(&other, &mut twist)];
        let [first, again, another] = texts.clone().map(form);
        prop_assert!(first.is_some());
        prop_assert_eq!(&first, &again, "{} and {}", texts[0], texts[1]);
        prop_assert_eq!(first == another, one == other, "{} and {}", texts[0], texts[2]);
    }

    /// Texts have one form if and only if they say the same, in the same order where that counts.
    #[test]
    fn order_counts_where_it_is_said_to(one in tree(), other in tree(), turns in prop::collection::vec(0..3_usize, 16)) {
        let mut turns = turns.into_iter().cycle();
        let turned = one.map(&mut |members| {
            let by = turns.next().unwrap() % members.len().max(1);
            members.rotate_left(by);
        });
        let mut exceptions = Exceptions::new();
        exceptions.in_order("a");
        let form = |tree: &Tree, space| of(tree.text(space).as_bytes(), &exceptions, &mut Scratch::new()).unwrap().to_owned();
        for other in [&one, &turned, &other] {
            prop_assert_eq!(form(&one, "") == form(other, " "), one.meaning() == other.meaning(), "{:?}", other);
        }
    }

    /// Whatever bytes come, it reads what serde_json reads, which knows no half surrogates, and no numbers beyond its own.
    #[test]
    fn it_takes_what_is_json(text in "[\\[\\]{}:,\"0-9eE+.ntrufalse \\\\-]{0,16}") {
        let known = serde_json::from_str::<serde::de::IgnoredAny>(&text);
        if !text.contains("\\u") {
            prop_assert_eq!(form(&text).is_some(), known.is_ok(), "{}: {:?}", text, known);
        }
    }

    #[test]
    fn sixteen_at_a_time_find_what_one_finds(
        chunk in prop::array::uniform16(prop_oneof![any::<u8>(), Just(b'a'), Just(b'"'), Just(0x1f), Just(0x9f)]),
    ) {
        let one = chunk.iter().take_while(|byte| !matches!(byte, b'"' | b'\\' | ..0x20)).count();
        prop_assert_eq!(plain(&chunk), one);
    }

    /// Strings of all lengths, in which all lengths of plain text stand between what is escaped.
    #[test]
    fn strings_are_what_serde_json_reads(text in "[a-c\"\\\\\n\u{1}é😀]{0,80}") {
        let written = form(Value::from(text.as_str()).to_string()).unwrap();
        prop_assert_eq!(written, string(&text));
    }
}
