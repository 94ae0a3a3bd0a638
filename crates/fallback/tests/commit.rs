//! What the body of a response that has committed says of itself, and how it ends.
#![cfg(feature = "http")]

use std::{convert::Infallible, time::Duration};

use bartizan_core::BoxError;
use bartizan_fallback::{Commit, CommitLayer, CommittedBody, FirstChunk, NotBegun, Step, Watch};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, stream};
use http::{Response, response::Parts};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use tokio::time::Instant;
use tower::{Layer, ServiceExt, service_fn};

type Committed<B, C> = CommittedBody<B, <C as Commit>::Watch>;

async fn commit<B, C>(commit: C, body: B) -> Result<Committed<B, C>, BoxError>
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin,
    C: Commit + Clone,
{
    let inner = service_fn(async |body: B| Ok::<_, Infallible>(Response::new(body)));
    let service = CommitLayer::new(commit).within(Duration::from_secs(9)).layer(inner);
    Ok(service.oneshot(body).await?.into_body())
}

/// A body of these chunks, which does not say how long it is.
fn chunks(chunks: &'static [&'static str]) -> impl Body<Data = Bytes, Error = Infallible> + Unpin {
    StreamBody::new(stream::iter(chunks.iter().map(|chunk| Ok(Frame::data(Bytes::from(*chunk))))))
}

/// Commits with the first chunk, and wants a `.` at the end.
#[derive(Clone, Copy, Default)]
struct Sentence {
    ended: bool,
}

impl Commit for Sentence {
    type Watch = Self;

    fn watch(&self, _: &Parts) -> Option<Self> {
        Some(*self)
    }
}

impl Watch for Sentence {
    fn chunk(&mut self, chunk: &Bytes) -> Step {
        self.pass(chunk);
        if chunk.starts_with(b"#") { Step::Wait } else { Step::Commit }
    }

    fn pass(&mut self, chunk: &Bytes) {
        self.ended = chunk.ends_with(b".");
    }

    fn end(&mut self) -> Result<(), BoxError> {
        if self.ended { Ok(()) } else { Err("no full stop".into()) }
    }
}

/// What a server makes a `content-length` of, and when it asks no further, survive.
#[tokio::test(start_paused = true)]
async fn a_body_that_is_held_back_still_knows_its_length_and_its_end() {
    let mut body = commit(FirstChunk, Full::new(Bytes::from("abc"))).await.unwrap();
    assert_eq!((body.size_hint().exact(), body.is_end_stream()), (Some(3), false));
    let frame = body.frame().now_or_never().flatten().unwrap().unwrap();
    assert_eq!(frame.into_data().unwrap(), "abc");
    assert_eq!((body.size_hint().exact(), body.is_end_stream()), (Some(0), true));
    assert!(body.frame().await.is_none());

    let body = commit(FirstChunk, Empty::new()).await.unwrap();
    assert_eq!((body.size_hint().exact(), body.is_end_stream()), (Some(0), true));
}

#[tokio::test(start_paused = true)]
async fn all_that_was_held_back_comes_first_and_in_order() {
    let body = commit(Sentence::default(), chunks(&["# a", "", "# b", "One", " two."])).await.unwrap();
    assert_eq!(body.collect().await.unwrap().to_bytes(), "# a# bOne two.");
}

/// An end that must not be is an error, also of a body that says with its last frame that it was the last.
#[tokio::test(start_paused = true)]
async fn an_end_that_must_not_be_is_an_error() {
    for chunk in ["One two", "One two."] {
        let mut body = commit(Sentence::default(), Full::new(Bytes::from(chunk))).await.unwrap();
        assert!(body.frame().await.unwrap().is_ok());
        let good = chunk.ends_with('.');
        assert_eq!(body.is_end_stream(), good, "{chunk}");
        match body.frame().await {
            None => assert!(good),
            Some(end) => assert_eq!((end.unwrap_err().to_string().as_str(), good), ("no full stop", false)),
        }
        assert!(body.frame().await.is_none() && body.is_end_stream());
    }
    let body = commit(Sentence::default(), chunks(&["One", " two"])).await.unwrap();
    assert_eq!(body.collect().await.unwrap_err().to_string(), "no full stop");
    let Err(error) = commit(Sentence::default(), chunks(&["# a"])).await else { panic!("it says nothing") };
    assert_eq!(error.to_string(), "the response has not begun as it should: no full stop");
}

/// Trailers say nothing, and frames of nothing are not kept.
#[tokio::test(start_paused = true)]
async fn frames_without_data() {
    let trailers = stream::iter([http::HeaderMap::new()]);
    let trailers = StreamBody::new(trailers.map(|it| Ok::<_, Infallible>(Frame::trailers(it))));
    let mut body = commit(FirstChunk, trailers).await.unwrap();
    assert!(body.frame().await.unwrap().unwrap().is_trailers());

    let nothing = stream::iter((0..100_000).map(|_| Ok::<_, Infallible>(Frame::data(Bytes::new()))));
    let mut body = commit(FirstChunk, StreamBody::new(nothing)).await.unwrap();
    assert!(body.frame().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn time_counts_from_the_head() {
    let begin = Instant::now();
    let stalls = service_fn(async |()| {
        tokio::time::sleep(Duration::from_secs(100)).await;
        let never = stream::pending::<Result<Frame<Bytes>, BoxError>>();
        Ok::<_, Infallible>(Response::new(StreamBody::new(never)))
    });
    let service = CommitLayer::new(FirstChunk).within(Duration::from_secs(9)).layer(stalls);
    let error = service.oneshot(()).await.expect_err("it never begins");
    assert!(error.downcast_ref::<NotBegun>().is_some_and(NotBegun::is_late), "{error}");
    assert_eq!(begin.elapsed(), Duration::from_secs(109));
    assert_eq!(error.to_string(), "the response had not begun within 9s of its head");
}
