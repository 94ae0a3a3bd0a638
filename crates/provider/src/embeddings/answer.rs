//! One answer, and what of it is whose.

use bartizan_core::BoxError;
use bytes::Bytes;
use http::{Response, header::CONTENT_LENGTH, response::Parts};
use http_body_util::Full;
use serde_json::value::RawValue;

use super::{Answer, Embedding, request::Fields};
use crate::{Class, Error, Usage, UsageReport, future::OF_THE_BYTES};

/// Gives each member its own vectors, and its share of the usage.
pub(super) fn split(head: &Parts, body: &[u8], members: &[Embedding]) -> Result<Vec<Answer>, BoxError> {
    let inputs: usize = members.iter().map(Embedding::inputs).sum();
    let fields: Fields<'_> = serde_json::from_slice(body).map_err(|error| {
        Error::new(Class::Malformed, "the upstream's answer is no JSON object").with_source(error)
    })?;
    let data = fields.0.iter().find(|(name, _)| name.0 == "data").map_or("[]", |(_, data)| data.get());
    let items: Vec<Fields<'_>> = serde_json::from_str(data).map_err(|error| {
        Error::new(Class::Malformed, "the upstream's answer has no list of embeddings").with_source(error)
    })?;
    if items.len() != inputs {
        let message = format!("the upstream gave {} embeddings for {inputs} inputs", items.len());
        return Err(Error::new(Class::Malformed, message).into());
    }
    let mut items = in_order(items)?.into_iter();
    let usage =
        head.extensions.get::<UsageReport>().and_then(UsageReport::get).or_else(|| Usage::of_json(body));
    let mut shares = Shares::new(members.iter().map(Embedding::length).sum());

    let mut head = head.clone();
    for name in OF_THE_BYTES {
        head.headers.remove(name);
    }
    head.headers.remove(CONTENT_LENGTH);
    head.extensions.remove::<UsageReport>();
    Ok(members
        .iter()
        .map(|member| {
            let data = list(items.by_ref().take(member.inputs()));
            let share = usage.map(|usage| shares.next(usage, member.length()));
            let body = answer(&fields, &data, share);
            let mut head = head.clone();
            if let Some(share) = share {
                head.extensions.insert(UsageReport::of(share));
            }
            Ok(Response::from_parts(head, Full::new(Bytes::from(body))))
        })
        .collect())
}

/// The embeddings in the order of their inputs, which their `index` tells, or else their place.
fn in_order(items: Vec<Fields<'_>>) -> Result<Vec<Fields<'_>>, Error> {
    let mut ordered: Vec<Option<Fields<'_>>> = items.iter().map(|_| None).collect();
    for (place, item) in items.into_iter().enumerate() {
        let index = item.0.iter().find(|(name, _)| name.0 == "index");
        let index = index.map_or(Some(place), |(_, index)| index.get().parse().ok());
        match index.and_then(|index| ordered.get_mut(index)) {
            Some(free @ None) => *free = Some(item),
            _ => return Err(Error::new(Class::Malformed, "the upstream's embeddings are numbered wrongly")),
        }
    }
    Ok(ordered.into_iter().flatten().collect())
}

/// A list of embeddings, numbered from 0.
fn list<'a>(items: impl Iterator<Item = Fields<'a>>) -> String {
    let items: Vec<_> = items
        .enumerate()
        .map(|(place, item)| {
            let place = place.to_string();
            let number =
                |name: &str, value: &'a RawValue| if name == "index" { None } else { Some(value.get()) };
            object(item.0.iter().map(|(name, value)| (&*name.0, number(&name.0, value).unwrap_or(&place))))
        })
        .collect();
    format!("[{}]", items.join(","))
}

/// The upstream's answer with these data and this usage.
fn answer(fields: &Fields<'_>, data: &str, usage: Option<Usage>) -> String {
    let usage = usage.map(|usage| {
        format!(r#"{{"prompt_tokens":{},"total_tokens":{}}}"#, usage.prompt_tokens, usage.total_tokens)
    });
    object(fields.0.iter().filter_map(|(name, value)| {
        let value = match &*name.0 {
            "data" => data,
            "usage" => usage.as_deref()?,
            _ => value.get(),
        };
        Some((&*name.0, value))
    }))
}

fn object<'a>(fields: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let name = |name| serde_json::to_string(name).expect("a string always serializes");
    let fields: Vec<_> = fields.map(|(key, value)| format!("{}:{value}", name(key))).collect();
    format!("{{{}}}", fields.join(","))
}

/// Divides what was counted together in proportion to lengths, without losing any of it.
struct Shares {
    all: u128,
    before: u128,
}

impl Shares {
    fn new(all: usize) -> Self {
        Self { all: (all as u128).max(1), before: 0 }
    }

    /// That of the next one, who is so long.
    fn next(&mut self, of: Usage, length: usize) -> Usage {
        let (from, to) = (self.before, self.before + length as u128);
        self.before = to;
        // What all have got who came before is rounded down, so the last gets what is left.
        let upto = |tokens: u64, at: u128| u128::from(tokens) * at / self.all;
        let share = |tokens| u64::try_from(upto(tokens, to) - upto(tokens, from)).unwrap_or(u64::MAX);
        Usage {
            prompt_tokens: share(of.prompt_tokens),
            completion_tokens: share(of.completion_tokens),
            total_tokens: share(of.total_tokens),
        }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
