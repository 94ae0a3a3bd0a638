//! The sample file, made from the table, so that it cannot leave it.

use super::{
    batches::BATCHES,
    breaker::BREAKER,
    dedup::DEDUP,
    fallback::{BUDGET, FALLBACKS},
    health::HEALTH,
    key::Key,
    rates::{KEY, QUEUE, RATES, TENANT, TOTAL},
    rule::RULE,
    schema::{LIMITS, MOCK_MODELS, MODEL, SERVER},
    validation::{GUARD, VALIDATION},
};

/// A commented configuration file that says nothing but the defaults.
pub fn sample() -> String {
    let mut text = HEAD.to_owned();
    text += "\n[server]\n";
    for key in SERVER {
        key.sample(&mut text);
    }
    text += LIMITS_HEAD;
    for key in LIMITS {
        key.sample(&mut text);
    }
    text += RATES_HEAD;
    RATES.iter().for_each(|key| key.sample(&mut text));
    QUEUE.iter().for_each(|key| key.sample(&mut text));
    text += TOTAL_HEAD;
    TOTAL.iter().for_each(|key| key.sample(&mut text));
    text += BREAKER_HEAD;
    BREAKER.iter().for_each(|key| key.sample(&mut text));
    text += FALLBACK_HEAD;
    FALLBACKS.iter().for_each(|key| key.sample(&mut text));
    BUDGET.iter().for_each(|key| key.sample(&mut text));
    text += DEDUP_HEAD;
    DEDUP.iter().for_each(|key| key.sample(&mut text));
    text += HEALTH_HEAD;
    HEALTH.iter().for_each(|key| key.sample(&mut text));
    text += BATCHES_HEAD;
    BATCHES.iter().for_each(|key| key.sample(&mut text));
    text += VALIDATION_HEAD;
    VALIDATION.iter().for_each(|key| key.sample(&mut text));
    text += RULE_HEAD;
    RULE.iter().for_each(|key| key.line(&mut text));
    text += RULE_END;
    text += TENANT_HEAD;
    TENANT.iter().for_each(|key| key.line(&mut text));
    text += KEY_HEAD;
    KEY.iter().for_each(|key| key.line(&mut text));
    text += KEY_END;
    text += MODEL_HEAD;
    MODEL.iter().for_each(|key| key.line(&mut text));
    GUARD.iter().for_each(|key| key.line(&mut text));
    text += MODEL_END;
    for name in MOCK_MODELS {
        text += &format!("\n[[model]]\nname = \"{name}\"\nupstream = \"mock\"\n");
    }
    text
}

impl<T> Key<T> {
    fn sample(&self, text: &mut String) {
        let Self { name, kind, default, doc } = self;
        let mut kind = kind.to_string();
        kind[..1].make_ascii_uppercase();
        if default.is_empty() {
            // With a space, as there is no default to uncomment.
            *text += &format!("\n# {}\n# {kind}.\n# {name} =\n", doc.replace('\n', "\n# "));
            return;
        }
        *text += &format!("\n# {}\n# {kind}.\n#{name} = {default}\n", doc.replace('\n', "\n# "));
    }

    /// One of an entry of a list.
    fn line(&self, text: &mut String) {
        *text += &format!("#   {}: {}\n", self.name, self.doc.replace('\n', "\n#     "));
        if !self.default.is_empty() {
            *text += &format!("#     Default: {}.\n", self.default);
        }
    }
}

const HEAD: &str = "\
# The gateway's configuration: `gateway --config FILE`. Try it with `gateway --config FILE --check`.
#
# A line such as `#workers = \"auto\"` shows a key and its default; take the `#` away to change it. What is not known here
# is an error. This file is what `gateway --sample` prints.
#
# Environment variables override the keys of the sections that stand in single brackets: GATEWAY_SERVER_LISTEN,
# GATEWAY_LIMITS_TOTAL_MS and so on. The option --listen overrides both. Logs go to stderr; RUST_LOG says which
# (default: info).
";

const LIMITS_HEAD: &str = "
# How long a call to an upstream may take, in milliseconds. A [[model]] may have any of these keys for itself.
[limits]
";

const RATES_HEAD: &str = "
# What each tenant may ask for; a [[tenant]] may have limits of its own. Limits are spread evenly: 60 a minute are one a
# second, and 60 at once after a minute's pause. A request passes if all limits let it, and else none is charged.
# Requests without a tenant count together, as one.
[rate_limits]
";

const TOTAL_HEAD: &str = "
# What all tenants together may ask for.
[total_rate_limits]
";

const BREAKER_HEAD: &str = "
# When a model's upstream fails too often, the model is not asked for a while: requests for it get a 503 that says when to
# come back. Then a few are let through to see, and what becomes of them decides. Each model has a circuit breaker of its
# own. Failures are no connection, timeouts, 5xx, 429 and answers that are garbled or break off; not what clients do wrong,
# nor refused credentials or a quota that is used up, which no pause mends. An upstream's Retry-After makes the pause
# longer, up to an hour.
[circuit_breaker]
";

const FALLBACK_HEAD: &str = "
# When a model fails, others answer in its place, in order, before the client has seen anything of it. A [[model]] may have
# the first four of these keys for itself. A model that has said when to come back is left alone until then. Whoever was
# asked instead of a model has no fallbacks of its own for that request. The header x-bartizan-served-by says which model has
# answered, x-bartizan-attempts what was tried before; with x-bartizan-fallback: off a request is for its model alone.
[fallback]
";

const DEDUP_HEAD: &str = "
# Requests for the same, to the last field of the body, are sent once: whoever comes while the answer runs joins it, a stream
# too, and gets all of it. With ttl_ms good answers are given again afterwards: complete ones, not cut short by a length or a
# filter, and no errors. Tenants never share; requests without a tenant count together, as one. A shared answer counts as a
# request and costs no tokens. Clients can say `Cache-Control: no-store`, or `no-cache` for a new answer that others may have
# again. Where answers would have differed, as at most temperatures, all who ask the same now get the same.
[dedup]
";

const HEALTH_HEAD: &str = "
# How each model's upstream fares, as GET /health, GET /metrics and the page at / tell: healthy, degraded or unhealthy. The
# share of calls that fail decides; a worse state is left only below its exit, so that it does not flap. Failures are those
# of [circuit_breaker], and also a key that is refused, a quota that is used up, and a model that the upstream does not
# know. While a model's circuit breaker is open the model is unhealthy as well.
[health]
";

const BATCHES_HEAD: &str = "
# Embedding requests that differ in nothing but their inputs can be sent to the upstream as one. Each gets its own vectors
# and its share of the tokens; an input that the upstream refuses fails alone. That makes fewer calls of an upstream that
# counts them, or is slow to answer each; it makes every request wait a little.
[embedding_batches]
";

const VALIDATION_HEAD: &str = "
# Requests and answers can be checked by rules: what breaks one is refused, or passes and is told of in the header
# x-bartizan-validation. A refused request is sent to nobody and costs no tokens. Streams are held back, a window at a time;
# one that breaks a rule ends with an error instead of that window. What is found is never repeated in errors or logs.
[validation]
";

const RULE_HEAD: &str = "
# One [[rule]] for each. It has one of terms, terms_file, deny, require, pii, schema and max_bytes. Files are looked for beside
# this one. Streams are checked by rules that look at texts; with a rule for answers that has schema, max_bytes or `at`, which
# need the whole, requests for streams break that rule. Its keys:
#
";

const RULE_END: &str = "\
#
# Nobody sends card numbers, and nobody gets to hear of a secret project:
#
#   [[rule]]
#   name = \"cards\"
#   side = \"request\"
#   pii = [\"cards\"]
#
#   [[rule]]
#   name = \"codenames\"
#   side = \"answer\"
#   severity = \"safety\"
#   terms = [\"nightfall\", \"red door\"]
";

const TENANT_HEAD: &str = "
# One [[tenant]] for each that has limits of its own. Its keys:
#
";

const KEY_HEAD: &str = "\
#   The limits and the burst of [rate_limits]: instead of those, for this tenant only.
#
# One [[key]] for each API key that clients may use. If there is one, a request without a known key is refused. Its keys:
#
";

const KEY_END: &str = "\
#
# A tenant that may ask ten times a second, and its key:
#
#   [[tenant]]
#   name = \"acme\"
#   requests_per_minute = 600
#   tokens_per_minute = \"unlimited\"
#
#   [[key]]
#   tenant = \"acme\"
#   key_env = \"ACME_KEY\"
";

const MODEL_HEAD: &str = "
# One [[model]] for each model that clients can ask for. Its keys:
#
";

const MODEL_END: &str = "\
#   fallbacks, context_length_fallbacks, content_policy_fallbacks, retries: as in [fallback], for this model only.
#   connect_ms, head_ms, first_frame_ms, idle_ms, total_ms, keep_idle_ms: as in [limits], for this model only.
#
# A model of OpenAI's:
#
#   [[model]]
#   name = \"gpt-4o-mini\"
#   upstream = \"openai\"
#   api_key_env = \"OPENAI_API_KEY\"
#
# The same API on a machine of your own, with a model that needs its time to think:
#
#   [[model]]
#   name = \"local\"
#   upstream = \"openai\"
#   base_url = \"http://127.0.0.1:11434/v1\"
#   model = \"qwen3:8b\"
#   first_frame_ms = 300_000
";
