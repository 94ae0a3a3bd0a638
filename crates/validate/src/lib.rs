#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod answers;
mod future;
#[cfg(feature = "service")]
mod inquiry;
mod layer;
mod level;
mod pending;
mod report;
mod rule;
mod rules;
mod service;
mod validator;

#[cfg(feature = "http")]
mod http;
#[cfg(feature = "json")]
mod json;

pub use answers::{Answers, Asked, Judging, Unchecked, Values};
pub use future::{ResponseFuture, Waiting};
#[cfg(feature = "http")]
pub use http::{
    Bodies, Checked, Checking, Gather, GatherLayer, Gathered, Gathering, InvalidPattern, Message, Pattern,
    Pii, Terms, Window, content_type, max_bytes, tail, text, well_formed,
};
#[cfg(feature = "service")]
pub use inquiry::Inquiry;
#[cfg(feature = "json")]
pub use json::{InvalidSchema, Json, ResponseFormat, Schema, Wanted, at, strings};
pub use layer::ValidateLayer;
pub use level::{Level, OnRuleError, Policy, Severity};
pub use report::{Part, Report, Violation};
pub use rule::{Found, Must, Rule, must};
pub use rules::Rules;
pub use service::Validate;
pub use validator::{Stats, Validator};

/// The layer's name in refusals.
const NAME: &str = "validate";
