//! An upstream that does what a test says, and those who ask it.
#![allow(dead_code, reason = "every test target that includes this module uses its part of it")]

use std::{
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use bartizan_core::BoxError;
use bartizan_dedup::{Dedup, Frames, Playback, Recording, Replay, Served};
use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderMap, HeaderValue, Request, Response, response};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tower::{Layer, Service, service_fn};

pub(crate) const SECOND: Duration = Duration::from_secs(1);

pub(crate) enum Part {
    Data(&'static str),
    Trailer(&'static str, &'static str),
    Cut,
    Panic,
}

/// A body of which a test is the upstream.
pub(crate) struct Upstream(UnboundedReceiver<Part>);

impl Body for Upstream {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.0.poll_recv(cx).map(|part| {
            Some(match part? {
                Part::Data(data) => Ok(Frame::data(Bytes::from(data))),
                Part::Trailer(name, value) => {
                    let mut trailers = HeaderMap::new();
                    trailers.insert(name, HeaderValue::from_static(value));
                    Ok(Frame::trailers(trailers))
                }
                Part::Cut => Err("cut".into()),
                Part::Panic => panic!("the body panics"),
            })
        })
    }
}

pub(crate) type Shared = Dedup<String, Recording, Frames>;
pub(crate) type Answer = Response<Playback<Upstream>>;
pub(crate) type Head = fn(response::Builder) -> response::Builder;

/// The upstreams of all calls so far.
#[derive(Clone, Default)]
pub(crate) struct Inner(Arc<Mutex<Vec<UnboundedSender<Part>>>>);

impl Inner {
    pub(crate) fn calls(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    pub(crate) fn send(&self, n: usize, parts: impl IntoIterator<Item = Part>) {
        let upstream = &self.0.lock().unwrap()[n];
        parts.into_iter().for_each(|part| upstream.send(part).map_err(drop).expect("somebody reads"));
    }

    /// The upstream of the last call ends.
    pub(crate) fn end(&self) {
        let (other, _) = unbounded_channel();
        let mut all = self.0.lock().unwrap();
        *all.last_mut().expect("there was a call") = other;
    }

    /// Asks for the first time, and reads this answer to its end.
    pub(crate) fn give(&self, dedup: &Shared, head: Head, answer: &'static str) {
        let mut response = self.ask(dedup, head);
        self.send(0, [Part::Data(answer)]);
        self.end();
        assert_eq!(data(&mut response), answer);
        assert!(frame(&mut response).is_none());
    }

    pub(crate) fn is_dropped(&self, n: usize) -> bool {
        self.0.lock().unwrap()[n].is_closed()
    }

    pub(crate) fn ask(&self, dedup: &Shared, head: Head) -> Answer {
        self.try_ask(dedup, head).now_or_never().expect("the head comes at once").expect("the call succeeds")
    }

    pub(crate) fn try_ask(
        &self,
        dedup: &Shared,
        head: Head,
    ) -> impl Future<Output = Result<Answer, BoxError>> + use<> {
        let (all, layer) = (self.0.clone(), dedup.layer(|_: &Request<()>| Some("k".to_owned())));
        let mut service = layer.layer(service_fn(move |_| {
            let (upstream, body) = unbounded_channel();
            all.lock().unwrap().push(upstream);
            async move { Ok::<_, BoxError>(head(Response::builder()).body(Upstream(body)).unwrap()) }
        }));
        // It asks now, though it is polled later.
        service.call(Request::new(()))
    }
}

pub(crate) fn ok(head: response::Builder) -> response::Builder {
    head.header("content-type", "text/event-stream")
}

/// Its responses carry [`Served`].
pub(crate) fn told<K: Eq>(replay: Replay<Recording>) -> Dedup<K, Recording, Frames> {
    Dedup::sharing(Frames::new().served(), replay)
}

pub(crate) fn kept() -> Shared {
    told(Replay::ttl(SECOND))
}

/// The next frame, if it is there.
pub(crate) fn frame(answer: &mut Answer) -> Option<Result<Bytes, BoxError>> {
    let frame = answer.body_mut().frame().now_or_never().expect("it is there")?;
    Some(frame.map(|frame| frame.into_data().expect("data")))
}

pub(crate) fn data(answer: &mut Answer) -> Bytes {
    frame(answer).expect("more is to come").expect("all is well")
}

pub(crate) fn waits(answer: &mut Answer) -> bool {
    answer.body_mut().frame().now_or_never().is_none()
}

pub(crate) fn status(answer: &Answer) -> &str {
    answer.headers()["cache-status"].to_str().unwrap()
}

pub(crate) fn served(answer: &Answer) -> Served {
    *answer.extensions().get().expect("every answer says where it comes from")
}
