//! The sections of a configuration, and which keys each has.

use std::fmt;

use super::{
    Config,
    batches::BATCHES,
    breaker::BREAKER,
    dedup::DEDUP,
    fallback::{BUDGET, FALLBACKS},
    health::HEALTH,
    key::{Key, Value, nearest, set},
    rates::{KEY, QUEUE, RATES, TENANT, TOTAL},
    rule::RULE,
    schema::{LIMITS, MODEL, SERVER},
    validation::{GUARD, VALIDATION},
};

/// What a configuration is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Section {
    Server,
    Limits,
    RateLimits,
    TotalRateLimits,
    CircuitBreaker,
    Fallback,
    Dedup,
    Health,
    EmbeddingBatches,
    Validation,
    Rule,
    Tenant,
    Key,
    Model,
}

impl Section {
    pub(super) const ALL: [Self; 14] = [
        Self::Server,
        Self::Limits,
        Self::RateLimits,
        Self::TotalRateLimits,
        Self::CircuitBreaker,
        Self::Fallback,
        Self::Dedup,
        Self::Health,
        Self::EmbeddingBatches,
        Self::Validation,
        Self::Rule,
        Self::Tenant,
        Self::Key,
        Self::Model,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Limits => "limits",
            Self::RateLimits => "rate_limits",
            Self::TotalRateLimits => "total_rate_limits",
            Self::CircuitBreaker => "circuit_breaker",
            Self::Fallback => "fallback",
            Self::Dedup => "dedup",
            Self::Health => "health",
            Self::EmbeddingBatches => "embedding_batches",
            Self::Validation => "validation",
            Self::Rule => "rule",
            Self::Tenant => "tenant",
            Self::Key => "key",
            Self::Model => "model",
        }
    }

    /// Whether there may be many of it, written as `[[name]]`.
    pub(super) fn is_list(self) -> bool {
        matches!(self, Self::Rule | Self::Tenant | Self::Key | Self::Model)
    }

    /// The names of its keys.
    pub(super) fn keys(self) -> Vec<&'static str> {
        match self {
            Self::Server => names(SERVER),
            Self::Limits => names(LIMITS),
            Self::RateLimits => [names(RATES), names(QUEUE)].concat(),
            Self::TotalRateLimits => names(TOTAL),
            Self::CircuitBreaker => names(BREAKER),
            Self::Fallback => [names(FALLBACKS), names(BUDGET)].concat(),
            Self::Dedup => names(DEDUP),
            Self::Health => names(HEALTH),
            Self::EmbeddingBatches => names(BATCHES),
            Self::Validation => names(VALIDATION),
            Self::Rule => names(RULE),
            Self::Tenant => [names(TENANT), names(RATES)].concat(),
            Self::Key => names(KEY),
            Self::Model => [names(MODEL), names(GUARD), names(FALLBACKS), names(LIMITS)].concat(),
        }
    }

    /// Sets a key of a section that is there once.
    pub(super) fn set(
        self,
        config: &mut Config,
        name: &str,
        value: &Value<'_>,
    ) -> Option<Result<(), String>> {
        let rates = &mut config.rate_limits;
        match self {
            Self::Server => set(SERVER, &mut config.server, name, value),
            Self::Limits => set(LIMITS, &mut config.limits, name, value),
            Self::RateLimits => {
                set(RATES, &mut rates.tenant, name, value).or_else(|| set(QUEUE, rates, name, value))
            }
            Self::TotalRateLimits => set(TOTAL, &mut rates.total, name, value),
            Self::CircuitBreaker => set(BREAKER, &mut config.circuit_breaker, name, value),
            Self::Fallback => {
                let fallback = &mut config.fallback;
                set(FALLBACKS, &mut fallback.usual, name, value)
                    .or_else(|| set(BUDGET, fallback, name, value))
            }
            Self::Dedup => set(DEDUP, &mut config.dedup, name, value),
            Self::Health => set(HEALTH, &mut config.health, name, value),
            Self::EmbeddingBatches => set(BATCHES, &mut config.embedding_batches, name, value),
            Self::Validation => set(VALIDATION, &mut config.validation, name, value),
            Self::Rule | Self::Tenant | Self::Key | Self::Model => None,
        }
    }

    /// Whether it has a key of exactly that name.
    pub(super) fn has(self, key: &str) -> bool {
        self.keys().contains(&key)
    }

    /// What to do about a key that it does not have.
    pub(super) fn advice(self, key: &str) -> String {
        if let Some(other) = Self::ALL.iter().find(|other| other.has(key)) {
            return format!("it belongs in {other}");
        }
        match nearest(key, self.keys()) {
            Some(near) => format!("did you mean {near:?}?"),
            None => format!("its keys are {}", self.keys().join(", ")),
        }
    }
}

/// As it is written in the file.
impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_list() { write!(f, "[[{}]]", self.name()) } else { write!(f, "[{}]", self.name()) }
    }
}

fn names<T>(keys: &[Key<T>]) -> Vec<&'static str> {
    keys.iter().map(|key| key.name).collect()
}

/// The variable that overrides a key.
pub(super) fn variable(section: Section, key: &str) -> String {
    format!("GATEWAY_{}_{key}", section.name()).to_ascii_uppercase()
}
