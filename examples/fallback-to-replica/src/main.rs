//! Reads a price from the primary database, or from its replica, or from what was remembered: no HTTP anywhere.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use bartizan_core::{BoxError, Class, Classify, Rejected, RejectionKind, RetryAfter};
use bartizan_fallback::{Exhausted, Fallback, Settings};
use tower::{Layer, Service, ServiceExt, service_fn};

/// The primary says for how long it is busy; what is asked wrongly is wrong everywhere.
#[derive(Clone, Copy)]
struct Judge;

impl Classify<String> for Judge {
    fn classify(&self, result: Result<&String, &(dyn std::error::Error + 'static)>) -> Class {
        match result.map_err(ToString::to_string) {
            Ok(_) => Class::Success,
            Err(error) if error == "busy" => Class::Failure(RetryAfter::After(Duration::from_secs(5))),
            Err(error) if error.starts_with("no such") => Class::Success,
            Err(_) => Class::Failure(RetryAfter::Unknown),
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BoxError> {
    let replica_is_up = Arc::new(AtomicBool::new(true));
    let primary = service_fn(async |item: String| match item.as_str() {
        "shoes" => Err(BoxError::from("no such item")),
        _ => Err("busy".into()),
    });
    let up = replica_is_up.clone();
    let replica = service_fn(move |table: String| {
        let up = up.load(Relaxed);
        async move {
            if up { Ok(format!("9.50 (from {table})")) } else { Err(BoxError::from("connection refused")) }
        }
    });
    let remembered: HashMap<_, _> = [("hat".to_owned(), "9.40 (an hour ago)".to_owned())].into();
    let cache = service_fn(move |item: String| {
        let price = remembered.get(&item).cloned();
        async move { price.ok_or_else(|| BoxError::from("not remembered")) }
    });

    let fallback =
        Fallback::with(Settings::new().within(Duration::from_secs(2)), ["primary", "replica", "cache"]);
    let mut prices = fallback
        .layer("primary")
        .or_with("replica", replica, |item| format!("replica.{item}"))
        .or("cache", cache)
        .classify(Judge)
        .layer(primary);

    let price = prices.ready().await?.call("hat".to_owned()).await?;
    println!("hat: {price}");
    assert_eq!(price, "9.50 (from replica.hat)");

    // An item that there is not is not looked for elsewhere.
    fallback.release("primary");
    let error = prices.ready().await?.call("shoes".to_owned()).await.unwrap_err();
    println!("shoes: {error}");
    assert_eq!(error.to_string(), "no such item");

    // The primary has said that it is busy, so it is not asked again so soon.
    prices.ready().await?.call("hat".to_owned()).await?;
    replica_is_up.store(false, Relaxed);
    let price = prices.ready().await?.call("hat".to_owned()).await?;
    println!("hat: {price}");
    assert_eq!(price, "9.40 (an hour ago)");

    let error = prices.ready().await?.call("coat".to_owned()).await.unwrap_err();
    let refusal = Rejected::find(&*error).expect("nobody could answer");
    println!("coat: {refusal}: {}", Exhausted::find(&*error).expect("the causes"));
    assert_eq!(refusal.kind(), RejectionKind::Exhausted);

    for target in fallback.stats().targets {
        println!("{target:?}");
    }
    Ok(())
}
