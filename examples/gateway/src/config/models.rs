//! The `[[model]]` entries, whose keys depend on each other.

use std::collections::BTreeMap;

use toml::{Spanned, de::DeValue};

use super::{
    ApiKey, Config, Fallbacks, Guard, Limits, Model, Origin, Upstream,
    fallback::FALLBACKS,
    key::set,
    load::{Given, Loader},
    schema::{LIMITS, MODEL, OPENAI_URL, RawModel, UpstreamKind},
    section::Section,
    validation::GUARD,
};

impl Loader<'_> {
    /// Those of the file, over what holds for all of them; and which keys were given of each.
    pub(super) fn models(
        &mut self,
        entries: &[Spanned<DeValue<'_>>],
        usual: &Config,
    ) -> (Vec<Model>, Vec<(usize, Given)>) {
        let mut names = BTreeMap::new();
        let (mut models, mut all_given) = (Vec::new(), Vec::new());
        for entry in entries {
            let at = self.at(&entry.span());
            let Some(table) = self.table(Section::Model, entry) else { continue };
            let (circuit_breaker, dedup) = (usual.circuit_breaker.enabled, usual.dedup.enabled);
            let mut raw = RawModel { circuit_breaker, dedup, ..RawModel::default() };
            let mut own = usual.limits;
            let mut fallbacks = usual.fallback.usual.clone();
            let mut guard = usual.validation.usual.clone();
            let given = self.section(Section::Model, table, |name, value| {
                set(MODEL, &mut raw, name, value)
                    .or_else(|| set(GUARD, &mut guard, name, value))
                    .or_else(|| set(FALLBACKS, &mut fallbacks, name, value))
                    .or_else(|| set(LIMITS, &mut own, name, value))
            });
            self.check_limits(Section::Model, &own, &given);
            if let (Some(name), Some(origin)) = (&raw.name, given.origin("name").cloned()) {
                if let Some(first) = names.get(name) {
                    let message = format!(
                        "\"name\" in [[model]] is {name:?}, as at {first}; each needs a name of its own"
                    );
                    self.problem(origin, message);
                } else {
                    names.insert(name.clone(), origin);
                }
            }
            if let Some(model) = self.model(raw, own, fallbacks, guard, &at, &given) {
                all_given.push((models.len(), given));
                models.push(model);
            }
        }
        if entries.is_empty() {
            let message = "there is no [[model]], so there is nothing to serve; add one with \"name\" and \"upstream\" \
                           (`gateway --sample` shows how)";
            self.problem(Origin::File { path: self.path.to_owned(), line: 1 }, message.to_owned());
        }
        (models, all_given)
    }

    fn model(
        &mut self,
        raw: RawModel,
        limits: Limits,
        fallbacks: Fallbacks,
        guard: Guard,
        at: &Origin,
        given: &Given,
    ) -> Option<Model> {
        let hints = [("name", "what clients ask for"), ("upstream", "\"openai\" or \"mock\"")];
        for (key, hint) in hints {
            if given.origin(key).is_none() {
                self.problem(at.clone(), format!("missing key {key:?} in [[model]]: {hint}"));
            }
        }
        let upstream = match raw.upstream? {
            UpstreamKind::Mock => {
                for key in ["base_url", "api_key_env"] {
                    if let Some(origin) = given.origin(key) {
                        let message = format!(
                            "{key:?} in [[model]] has no effect with upstream = \"mock\"; remove it, or set upstream = \
                             \"openai\""
                        );
                        self.problem(origin.clone(), message);
                    }
                }
                Upstream::Mock
            }
            UpstreamKind::OpenAi => Upstream::OpenAi {
                base_url: raw.base_url.unwrap_or_else(|| OPENAI_URL.parse().expect("a URL")),
                api_key: raw
                    .api_key_env
                    .and_then(|variable| self.api_key(variable, Section::Model, "api_key_env", given)),
            },
        };
        let name = raw.name?;
        let RawModel { model, circuit_breaker, dedup, .. } = raw;
        let model = model.unwrap_or_else(|| name.clone());
        // What it says itself is checked; what it says nothing of may name it as well as others.
        let mut fallbacks = fallbacks;
        for (key, list) in fallbacks.lists() {
            if given.origin(key).is_none() {
                list.retain(|other| *other != name);
            }
        }
        Some(Model { model, name, upstream, limits, circuit_breaker, fallbacks, dedup, guard })
    }

    /// The key in a variable that this key of a section names.
    pub(super) fn api_key(
        &mut self,
        variable: String,
        section: Section,
        key: &str,
        given: &Given,
    ) -> Option<ApiKey> {
        let value = self.environment.0.get(&variable);
        let wrong = match value.map(|value| value.to_str()) {
            None => "is not set",
            Some(Some("")) => "is empty",
            Some(Some(key)) if key.bytes().all(|byte| byte.is_ascii_graphic()) => {
                return Some(ApiKey { variable, secret: key.into() });
            }
            Some(_) => "holds white space or characters that a header cannot carry",
        };
        let which = shown(&variable);
        let message = format!("{key:?} in {section} names {which}, which {wrong}; put the key there");
        self.problem(given.origin(key)?.clone(), message);
        None
    }
}

/// A variable in the words of an error. A key pasted in place of the name may look like a name, but not like one in
/// capitals.
pub(super) fn shown(variable: &str) -> String {
    if variable.bytes().all(|byte| !byte.is_ascii_lowercase()) {
        format!("the environment variable {variable}")
    } else {
        "an environment variable".to_owned()
    }
}
