//! Dropping a future wherever it can be dropped.

use crate::watch::{MAX_POLLS, Watched};

/// Starts a call, polls it `k` times and drops it, for `k` = 0, 1, 2 and so on until a call is complete.
///
/// Between two polls `nudge` moves the world one step on (it is told how often it was asked for this call), so that
/// every await point is reached. Each is left twice: while the call still waits there, and once the call was woken but
/// not yet polled again, when what it waited for may be on its way to it. After each drop `after` says whether
/// everything was given back. Returns the number of polls that complete the call.
///
/// # Errors
///
/// What `after` finds wrong, with the number of polls; or that no number of polls completes the call.
pub async fn drop_at_every_await_point<F: Future>(
    mut start: impl FnMut() -> F,
    mut nudge: impl AsyncFnMut(usize),
    mut after: impl AsyncFnMut() -> Result<(), String>,
) -> Result<usize, String> {
    for polls in 0..MAX_POLLS {
        for woken in [false, true] {
            let mut call = Watched::new(start());
            for n in 0..polls {
                if n > 0 {
                    nudge(n - 1).await;
                }
                if call.poll().is_ready() {
                    drop(call);
                    after().await.map_err(|saw| format!("complete after {polls} polls: {saw}"))?;
                    return Ok(polls);
                }
            }
            if woken && polls > 0 {
                nudge(polls - 1).await;
            }
            drop(call);
            let last = if woken { " and a wake-up" } else { "" };
            after().await.map_err(|saw| format!("dropped after {polls} polls{last}: {saw}"))?;
        }
    }
    Err(format!("not complete after {MAX_POLLS} polls"))
}

#[cfg(test)]
mod tests {
    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test]
    async fn visits_every_await_point_once() {
        let (first, second) = (Semaphore::new(0), Semaphore::new(0));
        let mut drops = 0;
        let polls = drop_at_every_await_point(
            || async {
                first.acquire().await.unwrap().forget();
                second.acquire().await.unwrap().forget();
            },
            async |n| if n == 0 { first.add_permits(1) } else { second.add_permits(1) },
            async || {
                drops += 1;
                first.forget_permits(1);
                second.forget_permits(1);
                Ok(())
            },
        )
        .await;
        assert_eq!(polls, Ok(3));
        // Twice before the first poll, twice at each of the two await points, and once complete.
        assert_eq!(drops, 7);
    }

    #[tokio::test]
    async fn names_the_await_point_that_leaks() {
        let permits = Semaphore::new(1);
        let later = Semaphore::new(0);
        let leak = drop_at_every_await_point(
            || async {
                permits.acquire().await.unwrap().forget();
                later.acquire().await.unwrap().forget();
                permits.add_permits(1);
            },
            async |_| later.add_permits(1),
            async || match permits.available_permits() {
                1 => Ok(()),
                _ => Err("the permit is gone".to_owned()),
            },
        )
        .await;
        assert_eq!(leak, Err("dropped after 1 polls: the permit is gone".to_owned()));
    }
}
