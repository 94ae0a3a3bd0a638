//! Jobs of different weight that wait their turn: nothing here is HTTP.
//!
//! A printer takes 20 pages a second and 10 at once. Jobs wait in line for at most a second; one that would have to wait
//! longer is told at once, and one that can never be printed is told so.

use std::{future::ready, time::Duration};

use bartizan_core::{BoxError, Rejected, RejectionKind, RetryAfter};
use bartizan_rate_limit::{Limit, Quota, RateLimitLayer, RateLimiter};
use tokio::{task::JoinSet, time::Instant};
use tower::{Layer, ServiceExt, service_fn};

#[derive(Clone, Copy)]
struct Job {
    name: &'static str,
    pages: u64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BoxError> {
    run().await
}

async fn run() -> Result<(), BoxError> {
    let pages = RateLimiter::new(Limit::new("pages", Quota::per_second(20).burst(10)));
    let rule = pages.rule().cost(|job: &Job| job.pages);
    let layer = RateLimitLayer::new(rule).queue(16, Duration::from_secs(1));
    let begin = Instant::now();
    let printer = service_fn(move |job: Job| {
        println!("{:>4} ms: {} is printed", begin.elapsed().as_millis(), job.name);
        ready(Ok::<_, BoxError>(job.name))
    });
    let printer = layer.layer(printer);

    let jobs = [("report", 8), ("thesis", 10), ("ticket", 1), ("poster", 30), ("novel", 10), ("atlas", 9)];
    let mut printing = JoinSet::new();
    for (name, pages) in jobs {
        printing.spawn(printer.clone().oneshot(Job { name, pages }));
        // Each has joined the line before the next one comes.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }

    let (mut printed, mut refused) = (Vec::new(), Vec::new());
    while let Some(done) = printing.join_next().await {
        match done? {
            Ok(name) => printed.push(name),
            Err(error) => {
                println!("{:>4} ms: {error}", begin.elapsed().as_millis());
                let refusal = Rejected::find(&*error).expect("the printer itself does not fail");
                refused.push((refusal.kind(), matches!(refusal.retry_after(), RetryAfter::After(_))));
            }
        }
    }
    assert_eq!(printed, ["report", "thesis", "ticket", "novel"], "first come, first served");
    // The poster has more pages than the printer takes at once; the atlas would have to wait for more than a second.
    assert_eq!(refused, [(RejectionKind::ExceedsCapacity, false), (RejectionKind::RateLimited, true)]);
    println!("{:?}", pages.stats());
    Ok(())
}

#[cfg(test)]
mod tests {
    #[tokio::test]
    async fn it_runs_to_its_end() {
        super::run().await.unwrap();
    }
}
