//! A guest book behind axum: what guests write is checked before anybody sees it, and what is read out while it is read.
//!
//! What is written must fit a schema and have no card numbers in it; a name that shouts is only reported, in a header. A
//! moderator, here a service of a few lines, has the last word. What is read out is a stream: where a key would get out, it
//! breaks off.

use std::{future::IntoFuture, time::Duration};

use axum::{
    Router,
    body::Body,
    routing::{get, post},
};
use bartizan_core::{BoxError, RejectionLayer};
use bartizan_validate::{
    GatherLayer, Inquiry, Json, Level, Pattern, Pii, Rules, Schema, Severity, Validator, Window, at,
    content_type, must, strings,
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tower::{ServiceBuilder, service_fn};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BoxError> {
    run().await
}

async fn run() -> Result<(), BoxError> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let base = format!("http://{}", listener.local_addr()?);
    tokio::select! {
        served = axum::serve(listener, router()?).into_future() => served.map_err(Into::into),
        asked = ask(&base) => asked,
    }
}

fn router() -> Result<Router, BoxError> {
    let entry = Schema::new(&json!({
        "type": "object",
        "required": ["name", "text"],
        "additionalProperties": false,
        "properties": {
            "name": {"type": "string", "maxLength": 40},
            "text": {"type": "string", "maxLength": 400},
        },
    }))?;
    let written = Rules::new().error("type", content_type(["application/json"])).json(
        Json::new(),
        Rules::new()
            .error("entry", entry)
            .safety("cards", strings(Pii::new().cards()))
            .warn("shouting", at("/name", Pattern::deny("^[A-Z]{4,}$")?))
            .inquire("moderator", Severity::Error, moderator()),
    );
    let writing = Validator::http(written).report_header();
    let reading = Validator::http(Rules::new())
        .window(Window::new(64), Rules::new().safety("keys", Pii::new().secrets()));

    let problems = RejectionLayer::problem_json();
    let write = ServiceBuilder::new()
        .layer(problems)
        .layer(GatherLayer::new(4096))
        .layer(writing.layer(Level::Moderate));
    let read = ServiceBuilder::new().layer(problems).layer(reading.layer(Level::Moderate));
    Ok(Router::new()
        .route("/entries", post(async |body: String| (StatusCode::CREATED, body)).layer(write))
        .route("/entries/{page}", get(pages).layer(read)))
}

/// Who reads a text and thinks about it. It would be another server.
fn moderator() -> Inquiry<Value> {
    let think = service_fn(async |text: String| {
        tokio::time::sleep(Duration::from_millis(10)).await;
        Ok::<_, BoxError>(!text.contains("a plague on"))
    });
    let text = |entry: &Value| entry["text"].as_str().map(str::to_owned);
    Inquiry::new(text, think, must("nothing rude", |polite: &bool| *polite)).within(Duration::from_secs(1))
}

/// Entries, one by one. On the second page somebody has left a key.
async fn pages(axum::extract::Path(page): axum::extract::Path<u8>) -> Body {
    let mut lines = vec!["We had a lovely stay, and the breakfast was beyond all praise. "; 4];
    if page == 2 {
        lines.extend(["My key, just in case: AKIAIOSF", "ODNN7EXAMPLE ", "See you next year!"]);
    }
    // Nobody reads out everything at once.
    Body::from_stream(stream::iter(lines).then(async |line| {
        tokio::time::sleep(Duration::from_millis(10)).await;
        Ok::<_, BoxError>(line)
    }))
}

async fn ask(base: &str) -> Result<(), BoxError> {
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let write = async |entry: &str| -> Result<(u16, String, String), BoxError> {
        let request = Request::post(format!("{base}/entries")).header("content-type", "application/json");
        let response = client.request(request.body(Full::from(entry.to_owned()))?).await?;
        let status = response.status().as_u16();
        let report = response.headers().get("validation-report");
        let report = report.map_or("", |report| report.to_str().unwrap_or_default()).to_owned();
        let body = String::from_utf8_lossy(&response.into_body().collect().await?.to_bytes()).into_owned();
        println!("POST /entries {entry:.60}: {status} {report}");
        Ok((status, report, body))
    };
    // What passes passes as it came.
    let entry = r#"{ "name": "Ann",  "text": "Lovely." }"#;
    assert_eq!(write(entry).await?, (201, String::new(), entry.to_owned()));
    // A warning passes, too, and is told.
    let (status, report, _) = write(r#"{"name": "ANNABEL", "text": "Lovely."}"#).await?;
    assert_eq!((status, report.as_str()), (201, r#""shouting";at="/name";is=warn"#));
    // The rest does not.
    for (entry, expected) in [
        (r#"{"name": "Ann"}"#, r#""entry";is=error"#),
        (r#"{"name": "Ann", "text": "I paid by 4111 1111 1111 1111."}"#, r#""cards";at="/text";is=safety"#),
        (r#"{"name": "Ann", "text": "A", "text": "B"}"#, r#""json";at="/text";is=malformed"#),
        (r#"{"name": "Ann", "text": "a plague on both your houses"}"#, r#""moderator";is=error"#),
    ] {
        let (status, report, _) = write(entry).await?;
        assert_eq!((status, report.as_str()), (400, expected));
    }
    assert_eq!(write(&"x".repeat(5000)).await?.0, 413);

    // What is read out passes window by window, and breaks off before the one with the key.
    let read = async |page: u8| -> Result<(String, bool), BoxError> {
        let mut body = client.get(format!("{base}/entries/{page}").parse()?).await?.into_body();
        let (mut text, mut whole) = (String::new(), true);
        while let Some(frame) = body.frame().await {
            match frame {
                Ok(frame) => text.push_str(str::from_utf8(frame.data_ref().map_or(&[][..], |data| data))?),
                Err(_) => whole = false,
            }
        }
        println!(
            "GET /entries/{page}: {} bytes, {}",
            text.len(),
            if whole { "all of it" } else { "broken off" }
        );
        Ok((text, whole))
    };
    assert!(read(1).await?.1);
    let (text, whole) = read(2).await?;
    assert!(!whole && text.starts_with("We had a lovely stay") && !text.contains("ODNN7EXAMPLE"), "{text}");
    Ok(())
}

#[cfg(test)]
mod tests {
    #[tokio::test]
    async fn it_runs_to_its_end() {
        super::run().await.unwrap();
    }
}
