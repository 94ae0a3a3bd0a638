//! The keys of what is asked when a model fails.

use std::{collections::BTreeSet, ops::RangeInclusive, time::Duration};

use super::{
    Config, FallbackSettings, Fallbacks, Origin,
    key::{Key, Kind, nearest},
    load::{Given, Loader},
    schema::MILLISECONDS,
    section::Section,
};

/// As many as a fallback can have besides its first target.
const MOST: usize = 63;

/// More than anybody waits for.
const CALLS: RangeInclusive<u64> = 1..=100;

const MODELS: &str = "a list of models' names";

/// The keys of `[fallback]` that a `[[model]]` may have, too.
pub(super) const FALLBACKS: &[Key<Fallbacks>] = &[
    Key {
        name: "fallbacks",
        kind: Kind::Names(MODELS, |fallbacks, names| {
            fallbacks.models = names;
            Ok(())
        }),
        default: "[]",
        doc: "The models to ask, in this order, when one fails: no connection, timeouts, 401, 403, 404, 408, 429, 5xx, an\n\
              open circuit breaker, and answers that are garbled or break off before they have said anything.",
    },
    Key {
        name: "context_length_fallbacks",
        kind: Kind::Names(MODELS, |fallbacks, names| {
            fallbacks.context_length = names;
            Ok(())
        }),
        default: "[]",
        doc: "The models to ask when a prompt is too long for one: those that can hold more.",
    },
    Key {
        name: "content_policy_fallbacks",
        kind: Kind::Names(MODELS, |fallbacks, names| {
            fallbacks.content_policy = names;
            Ok(())
        }),
        default: "[]",
        doc: "The models to ask when a content filter refuses: those of another provider.",
    },
    Key {
        name: "retries",
        kind: Kind::Integer(0..=20, |fallbacks, n| {
            fallbacks.retries = n.try_into().expect("the range of the key is small");
        }),
        default: "0",
        doc: "How often a model that fails is asked again before others are. The pauses between are what its upstream says,\n\
              or half a second and more.",
    },
];

/// What all requests are bound by.
pub(super) const BUDGET: &[Key<FallbackSettings>] = &[
    Key {
        name: "attempts",
        kind: Kind::Integer(CALLS, |settings, n| {
            settings.attempts = n.try_into().expect("the range of the key is small");
        }),
        default: "4",
        doc: "How many calls may be made for one request, fallbacks and retries together.",
    },
    Key {
        name: "within_ms",
        kind: Kind::Integer(MILLISECONDS, |settings, ms| settings.within = Duration::from_millis(ms)),
        default: "600_000",
        doc: "How long one request may take until it is answered, or its stream has begun, all its calls together.",
    },
];

impl Loader<'_> {
    /// Models that there are not, or are asked already.
    pub(super) fn check_fallbacks(&mut self, config: &Config, given: &Given, of_models: &[(usize, Given)]) {
        let names: Vec<&str> = config.models.iter().map(|model| model.name.as_str()).collect();
        self.check_lists(Section::Fallback, &names, None, &config.fallback.usual, given);
        for (index, given) in of_models {
            let model = &config.models[*index];
            self.check_lists(Section::Model, &names, Some(&model.name), &model.fallbacks, given);
        }
        let (fallback, usual) = (&config.fallback, FallbackSettings::default());
        let falls_back = config.models.iter().any(|model| !model.fallbacks.are_none());
        let others = [
            ("attempts", fallback.attempts != usual.attempts),
            ("within_ms", fallback.within != usual.within),
        ];
        for (key, given_otherwise) in others {
            if let Some(origin) = given.origin_of_valid(key).filter(|_| given_otherwise && !falls_back) {
                let message = format!(
                    "{key:?} in {} has no effect: no model has fallbacks or retries; give it some, or remove this",
                    Section::Fallback
                );
                self.problem(origin.clone(), message);
            }
        }
    }

    fn check_lists(
        &mut self,
        section: Section,
        names: &[&str],
        own: Option<&str>,
        fallbacks: &Fallbacks,
        given: &Given,
    ) {
        let lists = [
            ("fallbacks", &fallbacks.models),
            ("context_length_fallbacks", &fallbacks.context_length),
            ("content_policy_fallbacks", &fallbacks.content_policy),
        ];
        let all: BTreeSet<_> = fallbacks.all().collect();
        if all.len() > MOST
            && let Some((key, origin)) = lists.iter().find_map(|(key, _)| Some((*key, given.origin(key)?)))
        {
            let message =
                format!("{key:?} in {section} names more than {MOST} models with those of the other lists");
            self.problem(origin.clone(), message);
        }
        for (key, list) in lists {
            let Some(origin) = given.origin_of_valid(key).cloned() else { continue };
            for (n, name) in list.iter().enumerate() {
                let wrong = if own == Some(name) {
                    "which is this model itself".to_owned()
                } else if list[..n].contains(name) {
                    "and does so twice".to_owned()
                } else if !names.contains(&name.as_str()) {
                    match nearest(name, names.iter().copied()) {
                        Some(near) => format!("which is no [[model]]; did you mean {near:?}?"),
                        None => format!("which is no [[model]]; there are {}", names.join(", ")),
                    }
                } else {
                    continue;
                };
                self.name_problem(&origin, section, key, name, &wrong);
            }
        }
    }

    fn name_problem(&mut self, origin: &Origin, section: Section, key: &str, name: &str, wrong: &str) {
        self.problem(origin.clone(), format!("{key:?} in {section} names {name:?}, {wrong}"));
    }
}
