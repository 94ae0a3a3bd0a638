//! The `[[tenant]]` and `[[key]]` entries, and what limits them.

use std::collections::BTreeMap;

use secrecy::{ExposeSecret, SecretString};
use toml::{Spanned, de::DeValue};

use super::{
    ClientKey, Origin, RateLimits, Rates, Tenant,
    key::{nearest, set},
    load::{Given, Loader},
    rates::{KEY, RATES, RawKey, RawTenant, TENANT, secret},
    section::Section,
};

type Entries<'a> = &'a [Spanned<DeValue<'a>>];

impl Loader<'_> {
    /// Those of the file, over the limits that hold for all of them.
    pub(super) fn tenants(
        &mut self,
        entries: Entries<'_>,
        keys: &[ClientKey],
        limits: &RateLimits,
    ) -> Vec<Tenant> {
        let mut names = BTreeMap::new();
        let mut tenants = Vec::new();
        for entry in entries {
            let at = self.at(&entry.span());
            let Some(table) = self.table(Section::Tenant, entry) else { continue };
            let mut raw = RawTenant::default();
            let mut rates = limits.tenant;
            let given = self.section(Section::Tenant, table, |name, value| {
                set(TENANT, &mut raw, name, value).or_else(|| set(RATES, &mut rates, name, value))
            });
            self.check_burst(Section::Tenant, &rates, &given);
            if given.origin("name").is_none() {
                self.problem(at, "missing key \"name\" in [[tenant]]: who is limited".to_owned());
            }
            let (Some(name), Some(origin)) = (raw.name, given.origin("name").cloned()) else { continue };
            if let Some(first) = names.get(&name) {
                let message = format!(
                    "\"name\" in [[tenant]] is {name:?}, as at {first}; each needs a name of its own"
                );
                self.problem(origin, message);
                continue;
            }
            if !keys.is_empty() && !keys.iter().any(|key| key.tenant == name) {
                let advice = match nearest(&name, keys.iter().map(|key| key.tenant.as_str())) {
                    Some(near) => format!("did you mean {near:?}?"),
                    None => "add one, or remove the tenant".to_owned(),
                };
                let message = format!(
                    "\"name\" in [[tenant]] is {name:?}, which has no effect: no [[key]] is of that tenant; {advice}"
                );
                self.problem(origin.clone(), message);
            }
            names.insert(name.clone(), origin);
            tenants.push(Tenant { name, rates });
        }
        tenants
    }

    /// The keys by which clients show whose requests are.
    pub(super) fn keys(&mut self, entries: Entries<'_>) -> Vec<ClientKey> {
        let mut places: Vec<Origin> = Vec::new();
        let mut keys: Vec<ClientKey> = Vec::new();
        for entry in entries {
            let at = self.at(&entry.span());
            let Some(table) = self.table(Section::Key, entry) else { continue };
            let mut raw = RawKey::default();
            let given = self.section(Section::Key, table, |name, value| set(KEY, &mut raw, name, value));
            if given.origin("tenant").is_none() {
                self.problem(at.clone(), "missing key \"tenant\" in [[key]]: whose key it is".to_owned());
            }
            match (given.origin("key"), given.origin("key_env")) {
                (Some(_), Some(origin)) => {
                    let message = "\"key_env\" in [[key]] has no effect beside \"key\"; remove one of them";
                    self.problem(origin.clone(), message.to_owned());
                }
                (None, None) => {
                    let message =
                        "missing key \"key_env\" in [[key]]: the environment variable that holds the key";
                    self.problem(at.clone(), message.to_owned());
                }
                _ => {}
            }
            let found = match raw.variable {
                Some(variable) => self.variable_secret(&variable, &given),
                None => raw.secret,
            };
            let (Some(tenant), Some(secret)) = (raw.tenant, found) else { continue };
            let same = |key: &ClientKey| key.secret.expose_secret() == secret.expose_secret();
            if let Some(first) = keys.iter().position(same) {
                let message =
                    format!("[[key]] is the same key as at {}; each can be of one tenant", places[first]);
                self.problem(at, message);
                continue;
            }
            places.push(at);
            keys.push(ClientKey { tenant, secret });
        }
        keys
    }

    /// A burst of what is not limited never counts.
    pub(super) fn check_burst(&mut self, section: Section, rates: &Rates, given: &Given) {
        let (Some(burst), Some(origin)) = (rates.burst, given.origin_of_valid("burst").cloned()) else {
            return;
        };
        let wrong = match rates.requests_per_minute {
            None if given.is_wrong("requests_per_minute") => return,
            None => "has no effect without requests_per_minute; set that, or remove this".to_owned(),
            Some(quota) => match quota.try_burst(burst) {
                Ok(_) => return,
                Err(invalid) => format!("cannot be: {invalid}"),
            },
        };
        self.problem(origin, format!("\"burst\" in {section} {wrong}"));
    }

    fn variable_secret(&mut self, variable: &str, given: &Given) -> Option<SecretString> {
        let wrong = match self.environment.0.get(variable).map(|value| value.to_str().map(secret)) {
            Some(Some(Ok(secret))) => return Some(secret),
            Some(Some(Err(wrong))) => wrong,
            Some(None) => "is not text".to_owned(),
            None => "is not set".to_owned(),
        };
        let which = super::models::shown(variable);
        let message = format!("\"key_env\" in [[key]] names {which}, which {wrong}; put the key there");
        self.problem(given.origin("key_env")?.clone(), message);
        None
    }
}
