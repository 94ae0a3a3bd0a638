use std::{
    future::Ready,
    sync::{Arc, Mutex},
};

use http::{Request, StatusCode};
use http_body_util::BodyExt;
use proptest::prelude::*;
use serde_json::{Value, json};
use tower::{Service, ServiceExt, service_fn};

use super::*;
use crate::embeddings::EmbeddingBatches;

fn post(body: &str) -> Request<Bytes> {
    Request::post("/v1/embeddings").body(Bytes::copy_from_slice(body.as_bytes())).unwrap()
}

fn of(input: &str) -> Request<Bytes> {
    post(&format!(r#"{{"model":"m","input":{input}}}"#))
}

fn like(body: &str) -> Option<String> {
    Embedding::read(&post(body)).map(|it| it.like().to_string())
}

#[test]
fn only_inputs_may_differ() {
    let one = like(r#"{"model":"m","input":"a","dimensions":8}"#).unwrap();
    for same in [
        r#"{"model":"m","input":["b","c"],"dimensions":8}"#,
        r#" { "dimensions" : 8 , "input" : [ "b" ] , "model" : "m" } "#,
        r#"{"mo\u0064el":"m","dimensions":8,"input":"\"]"}"#,
    ] {
        assert_eq!(like(same).as_ref(), Some(&one), "{same}");
    }
    for other in [
        r#"{"model":"n","input":"a","dimensions":8}"#,
        r#"{"model":"m","input":"a","dimensions":9}"#,
        r#"{"model":"m","input":"a"}"#,
        r#"{"model":"m","input":"a","dimensions":8,"user":"u"}"#,
        r#"{"model":"m","input":"a","dimensions":8,"encoding_format":"base64"}"#,
        r#"{"model":"m","input":[1,2],"dimensions":8}"#,
        // Parts have lengths, so nothing can be moved from one to the next.
        r#"{"model":"m\",\"dimensions\":8","input":"a"}"#,
    ] {
        assert!(like(other).is_some_and(|other| other != one), "{other}");
    }
    let with = |name: &str| {
        let mut request = of("\"a\"");
        request
            .headers_mut()
            .insert(http::HeaderName::try_from(name).unwrap(), http::HeaderValue::from_static("1"));
        Embedding::read(&request).unwrap().like().to_string()
    };
    let at = |uri: &str| {
        let request = Request::post(uri).body(of("\"a\"").into_body()).unwrap();
        Embedding::read(&request).unwrap().like().to_string()
    };
    let urls = [
        "/v1/embeddings",
        "/v1/embeddings?api-version=1",
        "http://a.example/v1/embeddings",
        "http://b.example/v1/embeddings",
        "https://a.example/v1/embeddings",
    ];
    assert!((0..5).all(|one| (0..one).all(|other| at(urls[one]) != at(urls[other]))));
    assert_ne!(with("openai-organization"), with("openai-project"));
    assert_eq!(with("user-agent"), with("x-request-id"));
}

#[test]
fn what_is_wrong_goes_alone() {
    for wrong in [
        "",
        "[]",
        r#"{"model":"m"}"#,
        r#"{"model":"m","input":null}"#,
        r#"{"model":"m","input":[]}"#,
        r#"{"model":"m","input":["a",[1]]}"#,
        r#"{"model":"m","input":["a",1]}"#,
        r#"{"model":"m","input":[1.5]}"#,
        r#"{"model":"m","input":[-1]}"#,
        r#"{"model":"m","input":{"a":1}}"#,
        r#"{"model":"m","input":"a","input":"b"}"#,
        r#"{"model":"m","input":"a","model":"n"}"#,
        r#"{"model":"m","input":"a"} x"#,
    ] {
        assert_eq!(like(wrong), None, "{wrong}");
    }
    let elsewhere = Request::post("/v1/chat/completions").body(of("\"a\"").into_body()).unwrap();
    assert!(Embedding::read(&elsewhere).is_none());
}

type Bodies = Arc<Mutex<Vec<Value>>>;

/// An upstream that gives every text its length as a vector, refuses lists with a text that is too long, and counts a token
/// for every three bytes. What it says is in the wrong order.
fn upstream(
    bodies: &Bodies,
) -> impl Service<Request<Bytes>, Response = Response<Full<Bytes>>, Error = BoxError, Future: Send>
+ Clone
+ Send
+ 'static
+ use<> {
    let bodies = bodies.clone();
    service_fn(move |request: Request<Bytes>| {
        let asked: Value = serde_json::from_slice(request.body()).unwrap();
        let answered = answered(&asked);
        bodies.lock().unwrap().push(asked);
        answered
    })
}

fn answered(asked: &Value) -> Ready<Result<Response<Full<Bytes>>, BoxError>> {
    let one = [asked["input"].clone()];
    let inputs = asked["input"].as_array().map_or(&one[..], |inputs| inputs);
    let length = |input: &Value| input.as_str().map_or(1, str::len);
    let reply = |status, body: Value| {
        let response = Response::builder().status(status).header("etag", "1").header("x-request-id", "7");
        std::future::ready(Ok(response.body(Full::from(body.to_string())).unwrap()))
    };
    if inputs.iter().any(|input| length(input) > 20) {
        return reply(400, json!({"error": {"message": "too long", "code": "context_length_exceeded"}}));
    }
    if inputs.contains(&json!("busy")) {
        return reply(503, json!({"error": {"message": "busy"}}));
    }
    let data = inputs
        .iter()
        .enumerate()
        .map(|(n, it)| json!({"object": "embedding", "index": n, "embedding": [length(it)]}));
    let tokens: usize = inputs.iter().map(|it| length(it).div_ceil(3)).sum();
    let data: Vec<_> = data.rev().collect();
    let usage = json!({"prompt_tokens": tokens, "total_tokens": tokens});
    reply(200, json!({"object": "list", "data": data, "model": "m-1", "usage": usage}))
}

async fn told(answer: Answer) -> (StatusCode, Value, Option<u64>) {
    let (head, body) = answer.unwrap().into_parts();
    let tokens =
        head.extensions.get::<UsageReport>().and_then(UsageReport::get).map(|usage| usage.total_tokens);
    let body = body.collect().await.unwrap().to_bytes();
    (head.status, serde_json::from_slice(&body).unwrap(), tokens)
}

#[tokio::test]
async fn everybody_gets_his_own_vectors_and_share() {
    let bodies = Bodies::default();
    let requests = vec![of("\"four\""), of(r#"["a","bb"]"#), of("\"seven!!\"")];
    let answers = EmbeddingBatches::new(upstream(&bodies)).oneshot(requests).await.unwrap();
    assert_eq!(*bodies.lock().unwrap(), [json!({"model": "m", "input": ["four", "a", "bb", "seven!!"]})]);

    let (mut all, mut vectors) = (0, Vec::new());
    for answer in answers {
        let headers = answer.as_ref().unwrap().headers().clone();
        assert!(headers.contains_key("x-request-id") && !headers.contains_key("etag"));
        let (status, body, tokens) = told(answer).await;
        assert_eq!(
            (status, &body["object"], &body["model"]),
            (StatusCode::OK, &json!("list"), &json!("m-1"))
        );
        let own: Vec<_> = body["data"].as_array().unwrap().iter().collect();
        assert!(own.iter().enumerate().all(|(n, item)| item["index"] == n && item["object"] == "embedding"));
        vectors.push(own.iter().map(|item| item["embedding"][0].as_u64().unwrap()).collect::<Vec<_>>());
        assert_eq!(body["usage"], json!({"prompt_tokens": tokens, "total_tokens": tokens}));
        all += tokens.unwrap();
    }
    assert_eq!(vectors, [vec![4], vec![1, 2], vec![7]]);
    assert_eq!(all, 2 + 1 + 1 + 3, "nothing is lost of what the upstream counted");
}

/// Lists of tokens are one input each, and a list of them is several, wherever they stand; what a vector is made of is the
/// upstream's affair.
#[tokio::test]
async fn tokens_and_packed_vectors_are_given_on_as_they_are() {
    let bodies = Bodies::default();
    let log = bodies.clone();
    let inner = service_fn(move |request: Request<Bytes>| {
        let asked: Value = serde_json::from_slice(request.body()).unwrap();
        let packed = |n: usize, input: &Value| json!({"index": n, "embedding": format!("{input}=="), "object": "embedding"});
        let inputs = asked["input"].as_array().unwrap().iter().enumerate();
        let mut data: Vec<_> = inputs.map(|(n, input)| packed(n, input)).collect();
        data.rotate_left(2);
        let body = json!({"data": data, "usage": {"prompt_tokens": 7, "total_tokens": 7}}).to_string();
        log.lock().unwrap().push(asked);
        std::future::ready(Ok::<_, BoxError>(Response::new(Full::<Bytes>::from(body))))
    });
    let ask = |input: &str| post(&format!(r#"{{"encoding_format":"base64","input":{input},"model":"m"}}"#));
    let requests = vec![ask("[1,2]"), ask("[[3],[4,5]]"), ask(" [ 6 ] ")];
    let answers = EmbeddingBatches::new(inner).oneshot(requests).await.unwrap();
    let expected = json!({"encoding_format": "base64", "input": [[1, 2], [3], [4, 5], [6]], "model": "m"});
    assert_eq!(*bodies.lock().unwrap(), [expected]);
    let (mut all, mut vectors) = (0, Vec::new());
    for answer in answers {
        let (_, body, tokens) = told(answer).await;
        let own = body["data"].as_array().unwrap().iter().enumerate();
        let packed = |(n, item): (usize, &Value)| {
            assert_eq!((&item["index"], &item["object"]), (&json!(n), &json!("embedding")));
            item["embedding"].as_str().unwrap().to_owned()
        };
        vectors.push(own.map(packed).collect::<Vec<_>>());
        all += tokens.unwrap();
    }
    assert_eq!(vectors, [vec!["[1,2]=="], vec!["[3]==", "[4,5]=="], vec!["[6]=="]]);
    assert_eq!(all, 7);
}

/// What was read of a body that another one has taken the place of since is not believed.
#[tokio::test]
async fn a_body_that_has_changed_is_read_again() {
    let bodies = Bodies::default();
    let rewritten = |before: &str, after: &str| {
        let mut request = of(before);
        let read = Embedding::read(&request).unwrap();
        request.extensions_mut().insert(read);
        *request.body_mut() = of(after).into_body();
        request
    };
    let requests = vec![rewritten(r#"["a","bb","ccc"]"#, "\"x\""), rewritten("\"a\"", r#"["yy","zzz"]"#)];
    let answers = EmbeddingBatches::new(upstream(&bodies)).oneshot(requests).await.unwrap();
    assert_eq!(*bodies.lock().unwrap(), [json!({"model": "m", "input": ["x", "yy", "zzz"]})]);
    for (answer, inputs) in answers.into_iter().zip([1, 2]) {
        assert_eq!(told(answer).await.1["data"].as_array().unwrap().len(), inputs);
    }
}

/// Who asks is nobody else's business, nor the upstream's.
#[tokio::test]
async fn what_is_a_callers_own_is_not_sent() {
    let heads = Arc::new(Mutex::new(Vec::new()));
    let log = heads.clone();
    let inner = service_fn(move |request: Request<Bytes>| {
        log.lock().unwrap().push(request.headers().clone());
        answered(&serde_json::from_slice(request.body()).unwrap())
    });
    let from = |who: &'static str| {
        let mut request = of("\"a\"");
        for name in ["authorization", "cookie", "x-tenant", "traceparent", "content-length"] {
            request.headers_mut().insert(name, http::HeaderValue::from_static(who));
        }
        request.headers_mut().append("openai-beta", http::HeaderValue::from_static("one"));
        request.headers_mut().append("openai-beta", http::HeaderValue::from_static("two"));
        request
    };
    EmbeddingBatches::new(inner).oneshot(vec![from("1"), from("2")]).await.unwrap();
    let heads = heads.lock().unwrap();
    let sent: Vec<_> =
        heads[0].iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
    assert_eq!(sent, [("content-type", "application/json"), ("openai-beta", "one"), ("openai-beta", "two")]);
}

#[tokio::test]
async fn one_that_is_too_long_fails_alone() {
    let bodies = Bodies::default();
    let long = format!("{:?}", "x".repeat(21));
    let requests = vec![of("\"a\""), of(&long), of(r#"["b"]"#)];
    let answers = EmbeddingBatches::new(upstream(&bodies)).oneshot(requests).await.unwrap();
    let mut seen = Vec::new();
    for answer in answers {
        seen.push(told(answer).await.0.as_u16());
    }
    assert_eq!(seen, [200, 400, 200]);
    assert_eq!(bodies.lock().unwrap().len(), 4, "together, and once each");
    assert_eq!(bodies.lock().unwrap()[3], json!({"model": "m", "input": ["b"]}), "as it came");
}

#[tokio::test]
async fn what_is_nobodys_fault_is_told_to_all_and_not_tried_again() {
    let bodies = Bodies::default();
    let answers =
        EmbeddingBatches::new(upstream(&bodies)).oneshot(vec![of("\"a\""), of("\"busy\"")]).await.unwrap();
    for answer in answers {
        let (status, body, _) = told(answer).await;
        assert_eq!((status.as_u16(), &body["error"]["message"]), (503, &json!("busy")));
    }
    assert_eq!(bodies.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn one_travels_as_it_came() {
    let bodies = Bodies::default();
    let answers = EmbeddingBatches::new(upstream(&bodies)).oneshot(vec![of("\"a\"")]).await.unwrap();
    let [answer] = answers.try_into().unwrap();
    assert!(answer.as_ref().unwrap().headers().contains_key("etag"));
    assert_eq!(told(answer).await.1["data"][0]["embedding"], json!([1]));
    assert_eq!(*bodies.lock().unwrap(), [json!({"model": "m", "input": "a"})]);
    // As do those that cannot be one.
    let requests = vec![of("\"a\""), of("[1,2]"), of("[]")];
    assert_eq!(EmbeddingBatches::new(upstream(&bodies)).oneshot(requests).await.unwrap().len(), 3);
    assert_eq!(bodies.lock().unwrap().len(), 4);
}

#[tokio::test]
async fn an_answer_that_does_not_add_up_is_nobodys() {
    let embedding = |index: &str| format!(r#"{{"index":{index},"embedding":[1]}}"#);
    for data in [
        "[]".to_owned(),
        format!("[{}]", embedding("0")),
        format!("[{},{}]", embedding("0"), embedding("0")),
        format!("[{},{}]", embedding("0"), embedding("2")),
        format!("[{},{}]", embedding("0"), embedding("-1")),
        format!("[{},7]", embedding("0")),
        "7".to_owned(),
    ] {
        let body = format!(r#"{{"data":{data}}}"#);
        let inner = service_fn(move |_: Request<Bytes>| {
            std::future::ready(Ok::<_, BoxError>(Response::new(Full::<Bytes>::from(body.clone()))))
        });
        let requests = vec![of("\"a\""), of("\"b\"")];
        let error = EmbeddingBatches::new(inner).oneshot(requests).await.unwrap_err();
        assert_eq!(Error::find(&*error).map(Error::class), Some(Class::Malformed), "{data}");
    }
}

proptest! {
    #[test]
    fn shares_add_up(tokens in any::<u64>(), lengths in proptest::collection::vec(0..1_000_usize, 1..20)) {
        let all: usize = lengths.iter().sum();
        let usage = Usage { prompt_tokens: tokens, completion_tokens: 0, total_tokens: tokens };
        let mut shares = Shares::new(all);
        let shared: Vec<_> = lengths.iter().map(|length| shares.next(usage, *length).total_tokens).collect();
        if all > 0 {
            prop_assert_eq!(shared.iter().map(|it| u128::from(*it)).sum::<u128>(), u128::from(tokens));
        }
        let most = lengths.iter().zip(&shared).all(|(length, share)| {
            let exact = u128::from(tokens) * *length as u128 / all.max(1) as u128;
            u128::from(*share).abs_diff(exact) <= 1
        });
        prop_assert!(most, "{:?}", shared);
    }
}
