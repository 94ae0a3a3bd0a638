//! How much work a schema makes: for schemas that strangers write.
//!
//! A schema of a few lines can ask for more looks at a value than anybody has time for, since alternatives in alternatives
//! multiply, and can lead a validator deeper than its stack reaches. So the ways through a schema are counted before it is
//! compiled, and what a value may cost is known before it is looked at.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::{document::Flaw, push};

/// A schema with more parts is refused.
const MOST_PARTS: usize = 2_000;
/// So many parts may at most apply to the same value through each other.
const MOST_CHAINED: usize = 32;
/// A schema with more regular expressions is refused.
const MOST_PATTERNS: usize = 16;
/// Values that are nested deeper are not checked.
pub(super) const MOST_DEEP: usize = 64;
/// A value that takes more steps is not checked. So many take some hundred milliseconds at the very worst, and most values a
/// few thousand.
const MOST_STEPS: u64 = 2_000_000;
/// Above this, errors are not listed: that takes much more than to see that there are some.
const MOST_STEPS_LISTED: u64 = 50_000;

/// How many steps the check of a value takes at most, by its depth, for each of its parts.
#[derive(Debug)]
pub(super) struct Costs([u64; MOST_DEEP + 1]);

/// What may be done with a value.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Affordable {
    Everything,
    ToCheck,
    Nothing,
}

impl Costs {
    /// # Errors
    ///
    /// If the schema is one that is not checked here.
    pub(super) fn of(schema: &Value) -> Result<Self, Flaw> {
        let mut parts =
            Parts { root: schema, all: Vec::new(), known: HashMap::new(), ahead: Vec::new(), patterns: 0 };
        let root = parts.part(schema, "")?;
        // Without recursion: a stranger says how far it goes.
        while let Some((part, keywords, mut pointer)) = parts.ahead.pop() {
            parts.keywords(part, keywords, &mut pointer)?;
        }
        let mut order = Vec::new();
        let mut chained = vec![None; parts.all.len()];
        for part in 0..parts.all.len() {
            parts.chain(part, 0, &mut chained, &mut order)?;
        }
        let mut costs = [0; MOST_DEEP + 1];
        let mut below = vec![0_u64; parts.all.len()];
        for cost in &mut costs {
            let mut here = vec![0_u64; parts.all.len()];
            // What a part applies through comes before it.
            for &part in &order {
                let Part { weight, same, apart, each } = &parts.all[part];
                let same = same.iter().map(|other| here[*other]);
                let each = each.iter().map(|other| below[*other]);
                // A value has one of these names.
                let apart = apart.iter().map(|other| below[*other]).max();
                here[part] = same.chain(each).chain(apart).fold(*weight, u64::saturating_add);
            }
            *cost = here[root];
            below = here;
        }
        Ok(Self(costs))
    }

    pub(super) fn affordable(&self, value: &Value) -> Affordable {
        let (parts, deep) = size(value);
        let steps = self.0.get(deep).map_or(u64::MAX, |steps| steps.saturating_mul(parts));
        match steps {
            ..=MOST_STEPS_LISTED => Affordable::Everything,
            _ if steps <= MOST_STEPS => Affordable::ToCheck,
            _ => Affordable::Nothing,
        }
    }
}

/// How many values are in a value, and how many arrays and objects inside each other.
fn size(value: &Value) -> (u64, usize) {
    let all = |values: &mut dyn Iterator<Item = &Value>| {
        values.map(size).fold((1, 1), |(parts, deep), (more, deeper)| (parts + more, deep.max(deeper + 1)))
    };
    match value {
        Value::Array(items) => all(&mut items.iter()),
        Value::Object(members) => all(&mut members.values()),
        _ => (1, 0),
    }
}

/// A schema within a schema.
#[derive(Default)]
struct Part {
    /// What it says itself.
    weight: u64,
    /// Parts that apply to the same value.
    same: Vec<usize>,
    /// Parts that apply to members or items of which each is another one.
    apart: Vec<usize>,
    /// Parts that may all apply to the same member or item.
    each: Vec<usize>,
}

struct Parts<'a> {
    root: &'a Value,
    all: Vec<Part>,
    /// By their addresses.
    known: HashMap<usize, usize>,
    /// Those that were not looked into, and where they stand.
    ahead: Vec<(usize, &'a Map<String, Value>, String)>,
    patterns: usize,
}

/// How a keyword's schemas apply.
#[derive(Clone, Copy)]
enum Kind {
    Same,
    Apart,
    Each,
}

impl<'a> Parts<'a> {
    fn part(&mut self, schema: &'a Value, pointer: &str) -> Result<usize, Flaw> {
        let address = std::ptr::from_ref(schema).addr();
        if let Some(known) = self.known.get(&address) {
            return Ok(*known);
        }
        let part = self.all.len();
        if part == MOST_PARTS {
            return Err(flaw(pointer, "it has too many parts"));
        }
        self.known.insert(address, part);
        self.all.push(Part { weight: 1, ..Part::default() });
        if let Value::Object(keywords) = schema {
            self.ahead.push((part, keywords, pointer.to_owned()));
        }
        Ok(part)
    }

    fn keywords(
        &mut self,
        part: usize,
        keywords: &'a Map<String, Value>,
        pointer: &mut String,
    ) -> Result<(), Flaw> {
        let length = pointer.len();
        for (keyword, value) in keywords {
            push(pointer, keyword);
            match keyword.as_str() {
                "$ref" => {
                    let target = self.target(value).ok_or_else(|| {
                        flaw(pointer, "it refers to what is outside of the schema, and nothing is fetched")
                    })?;
                    let target = self.part(target, pointer)?;
                    self.all[part].same.push(target);
                }
                "$id" if part == 0 => {}
                "$id"
                | "id"
                | "$anchor"
                | "$dynamicAnchor"
                | "$recursiveAnchor"
                | "$dynamicRef"
                | "$recursiveRef"
                | "unevaluatedProperties"
                | "unevaluatedItems" => {
                    return Err(flaw(pointer, "this keyword is not checked here"));
                }
                "$schema" => {
                    let known = ["draft-06", "draft-07", "2019-09", "2020-12"];
                    if !value.as_str().is_some_and(|uri| known.iter().any(|draft| uri.contains(draft))) {
                        return Err(flaw(pointer, "this draft is not known here"));
                    }
                }
                "pattern" => self.pattern(pointer)?,
                "not" | "if" | "then" | "else" => self.add(part, Kind::Same, value, pointer)?,
                "allOf" | "anyOf" | "oneOf" | "dependentSchemas" | "dependencies" => {
                    self.add_all(part, Kind::Same, value, pointer)?;
                }
                "properties" | "prefixItems" => self.add_all(part, Kind::Apart, value, pointer)?,
                "items" if value.is_array() => self.add_all(part, Kind::Apart, value, pointer)?,
                "items" | "additionalItems" | "contains" | "additionalProperties" | "propertyNames" => {
                    self.add(part, Kind::Each, value, pointer)?;
                }
                "patternProperties" => {
                    for _ in value.as_object().into_iter().flatten() {
                        self.pattern(pointer)?;
                    }
                    self.add_all(part, Kind::Each, value, pointer)?;
                }
                // Values to compare with.
                "enum" | "const" => {
                    let (parts, _) = size(value);
                    self.all[part].weight += parts;
                }
                _ => self.all[part].weight += 1,
            }
            pointer.truncate(length);
        }
        Ok(())
    }

    fn add(&mut self, part: usize, kind: Kind, schema: &'a Value, pointer: &str) -> Result<(), Flaw> {
        let sub = self.part(schema, pointer)?;
        let part = &mut self.all[part];
        match kind {
            Kind::Same => part.same.push(sub),
            Kind::Apart => part.apart.push(sub),
            Kind::Each => part.each.push(sub),
        }
        Ok(())
    }

    fn add_all(
        &mut self,
        part: usize,
        kind: Kind,
        schemas: &'a Value,
        pointer: &mut String,
    ) -> Result<(), Flaw> {
        let length = pointer.len();
        let named = schemas.as_object().into_iter().flatten().map(|(name, schema)| (name.clone(), schema));
        let listed = schemas.as_array().into_iter().flatten().enumerate();
        for (step, schema) in named.chain(listed.map(|(index, schema)| (index.to_string(), schema))) {
            push(pointer, &step);
            self.add(part, kind, schema, pointer)?;
            pointer.truncate(length);
        }
        Ok(())
    }

    fn pattern(&mut self, pointer: &str) -> Result<(), Flaw> {
        self.patterns += 1;
        if self.patterns > MOST_PATTERNS {
            return Err(flaw(pointer, "it has too many regular expressions"));
        }
        Ok(())
    }

    /// What a reference within the schema refers to.
    fn target(&self, reference: &Value) -> Option<&'a Value> {
        let fragment = reference.as_str()?.strip_prefix('#')?;
        let mut bytes = Vec::new();
        let mut rest = fragment.bytes();
        while let Some(byte) = rest.next() {
            if byte == b'%' {
                let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
                let code = digit(rest.next())? * 16 + digit(rest.next())?;
                bytes.push(u8::try_from(code).ok()?);
            } else {
                bytes.push(byte);
            }
        }
        self.root.pointer(&String::from_utf8(bytes).ok()?)
    }

    /// Puts parts behind those through which they apply to the same value.
    fn chain(
        &self,
        part: usize,
        chained: usize,
        lengths: &mut [Option<usize>],
        order: &mut Vec<usize>,
    ) -> Result<usize, Flaw> {
        if let Some(length) = lengths[part] {
            return Ok(length);
        }
        // One that leads back to itself is as long as can be.
        if chained == MOST_CHAINED {
            return Err(flaw("", "too many of its parts apply to one value through each other"));
        }
        let mut length = 0;
        for other in &self.all[part].same {
            length = length.max(1 + self.chain(*other, chained + 1, lengths, order)?);
        }
        if length >= MOST_CHAINED {
            return Err(flaw("", "too many of its parts apply to one value through each other"));
        }
        lengths[part] = Some(length);
        order.push(part);
        Ok(length)
    }
}

fn flaw(pointer: &str, message: &str) -> Flaw {
    Flaw { pointer: pointer.to_owned(), message: message.to_owned() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::Schema;

    fn refused(schema: &Value) -> Option<(String, String)> {
        Costs::of(schema).err().map(|flaw| (flaw.pointer, flaw.message))
    }

    #[test]
    fn what_is_not_checked_is_named() {
        for (schema, pointer) in [
            (json!({"properties": {"a": {"$ref": "http://127.0.0.1:9/a.json"}}}), "/properties/a/$ref"),
            (json!({"items": {"$ref": "other.json#/a"}}), "/items/$ref"),
            (json!({"$ref": "#nowhere"}), "/$ref"),
            (json!({"$ref": "#/%zz"}), "/$ref"),
            (json!({"allOf": [{"$dynamicRef": "#a"}]}), "/allOf/0/$dynamicRef"),
            (json!({"items": {"$id": "x"}}), "/items/$id"),
            (json!({"unevaluatedProperties": false}), "/unevaluatedProperties"),
            (json!({"$schema": "http://127.0.0.1:9/meta"}), "/$schema"),
            (json!({"$ref": "#"}), ""),
            (json!({"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{}, {"$ref": "#/$defs/a"}]}}}), ""),
        ] {
            assert_eq!(refused(&schema).expect("refused").0, pointer, "{schema}");
        }
        let many: Map<_, _> = (0..17).map(|n| (n.to_string(), json!({"pattern": "a"}))).collect();
        assert!(refused(&json!({"properties": many})).is_some());
        let many: Vec<_> = (0..2_001).map(|_| json!({})).collect();
        assert!(refused(&json!({"anyOf": many})).is_some());
        // Names of members are no keywords, and values to compare with no schemas.
        let fine = json!({"properties": {"$ref": {}, "$id": {}}, "enum": [{"$ref": "http://a"}], "$id": "x"});
        assert_eq!(refused(&fine), None);
        assert_eq!(refused(&json!({"$ref": "#/$defs/a%7E1b~0", "$defs": {"a/b~": {}}})), None);
    }

    /// As deep as a schema can lead, it does not lead beyond the stack of a thread.
    #[test]
    fn the_deepest_schema_is_borne() {
        let mut defs = Map::new();
        for n in 0..MOST_CHAINED - 2 {
            defs.insert(format!("d{n}"), json!({"$ref": format!("#/$defs/d{}", n + 1)}));
        }
        let last = format!("d{}", MOST_CHAINED - 2);
        defs.insert(last, json!({"properties": {"a": {"$ref": "#/$defs/d0"}}}));
        let mut schema = json!({"properties": {"a": {"$ref": "#/$defs/d0"}}, "$defs": defs});
        let costs = Costs::of(&schema).unwrap();
        let value = (0..MOST_DEEP).fold(json!(1), |value, _| json!({"a": value}));
        assert_eq!(costs.affordable(&value), Affordable::ToCheck);
        assert_eq!(costs.affordable(&json!({"a": value})), Affordable::Nothing, "deeper than is checked");
        let compiled = Schema::new(&schema).unwrap();
        let found = crate::Rules::new().error("schema", compiled).check(&value, crate::Level::Strict);
        assert!(found.is_clean());
        schema["$defs"]["d0"] = json!({"anyOf": [{"$ref": "#/$defs/d1"}]});
        assert!(refused(&schema).is_some(), "one longer");
        schema["properties"]["0"] = json!({"$ref": "#/$defs/d16"});
        assert!(refused(&schema).is_some(), "in whatever order its parts are looked at");
    }

    /// Neither here nor where it is compiled.
    #[test]
    fn a_schema_of_many_parts_is_borne() {
        let def = |n| json!({"properties": {"a": {"$ref": format!("#/$defs/d{}", n + 1)}}});
        let mut defs: Map<_, _> = (0..900).map(|n| (format!("d{n}"), def(n))).collect();
        defs.insert("d900".to_owned(), json!(true));
        let schema = json!({"$ref": "#/$defs/d0", "$defs": defs});
        let cost = Costs::of(&schema).unwrap().affordable(&json!({}));
        assert_eq!(cost, Affordable::Everything);
        let compiled = Schema::new(&schema).unwrap();
        assert!(
            crate::Rules::new()
                .error("schema", compiled)
                .check(&json!({"a": 1}), crate::Level::Strict)
                .is_clean()
        );
    }

    /// Twenty lines that ask for 2^40 looks at one string.
    #[test]
    fn what_multiplies_is_not_checked() {
        let mut defs = Map::new();
        for n in 0..15 {
            let next = json!({"$ref": format!("#/$defs/d{}", n + 1)});
            defs.insert(format!("d{n}"), json!({"anyOf": [next, next, next]}));
        }
        defs.insert("d15".to_owned(), json!({"type": "number"}));
        let costs = Costs::of(&json!({"$ref": "#/$defs/d0", "$defs": defs})).unwrap();
        assert_eq!(costs.affordable(&json!("x")), Affordable::Nothing);
        // Where only depth multiplies, it depends on the value.
        let tree = json!({"$ref": "#/$defs/t", "$defs": {"t": {"anyOf": [
            {"properties": {"l": {"$ref": "#/$defs/t"}, "r": {"$ref": "#/$defs/t"}}},
            {"properties": {"l": {"$ref": "#/$defs/t"}}},
        ]}}});
        let costs = Costs::of(&tree).unwrap();
        let deep = |n| (0..n).fold(json!(1), |value, _| json!({"l": value}));
        assert_eq!(costs.affordable(&deep(5)), Affordable::Everything);
        assert_eq!(costs.affordable(&deep(14)), Affordable::ToCheck);
        assert_eq!(costs.affordable(&deep(40)), Affordable::Nothing);
        // Where nothing multiplies, it does not.
        let list = json!({"properties": {"value": {"type": "string"}, "next": {"anyOf": [{"type": "null"}, {"$ref": "#"}]}}});
        let deep = (0..60).fold(json!(null), |value, _| json!({"next": value, "value": "a"}));
        assert_eq!(Costs::of(&list).unwrap().affordable(&deep), Affordable::Everything);
    }
}
