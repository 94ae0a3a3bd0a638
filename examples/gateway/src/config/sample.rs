//! The sample file, made from the table, so that it cannot leave it.

use super::{
    key::Key,
    schema::{LIMITS, MOCK_MODELS, MODEL, SERVER},
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
    text += MODEL_HEAD;
    for key in MODEL {
        text += &format!("#   {}: {}\n", key.name, key.doc.replace('\n', "\n#     "));
        if !key.default.is_empty() {
            text += &format!("#     Default: {}.\n", key.default);
        }
    }
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
        *text += &format!("\n# {}\n# {kind}.\n#{name} = {default}\n", doc.replace('\n', "\n# "));
    }
}

const HEAD: &str = "\
# The gateway's configuration: `gateway --config FILE`. Try it with `gateway --config FILE --check`.
#
# A line such as `#workers = \"auto\"` shows a key and its default; take the `#` away to change it. What is not known here
# is an error. This file is what `gateway --sample` prints.
#
# Environment variables override the keys of [server] and [limits]: GATEWAY_SERVER_LISTEN, GATEWAY_LIMITS_TOTAL_MS and so
# on. The option --listen overrides both. Logs go to stderr; RUST_LOG says which (default: info).
";

const LIMITS_HEAD: &str = "
# How long a call to an upstream may take, in milliseconds. A [[model]] may have any of these keys for itself.
[limits]
";

const MODEL_HEAD: &str = "
# One [[model]] for each model that clients can ask for. Its keys:
#
";

const MODEL_END: &str = "\
#   connect_ms, head_ms, first_frame_ms, idle_ms, total_ms: as in [limits], for this model only.
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
