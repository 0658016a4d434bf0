use super::*;
use crate::engine::gaussian::Fault;
use crate::server::Limits;
use crate::server::wire::GenerateBody;
use hyper::body::Frame;
use proptest::prelude::*;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

#[tokio::test]
async fn every_bad_request_gets_400_with_its_code_and_what_is_accepted() {
    let server = Server::new(&ServeConfig::default());
    for (query, body, code, says) in [
        (
            "?budget=fsat",
            "{}",
            "unknown_budget",
            "accepted are fast, balanced, best, a time such as 250ms and exact:<plan>",
        ),
        ("?budget=250", "{}", "unknown_budget", "accepted are fast"),
        ("?budget=0ms", "{}", "invalid_deadline", "1ms to 3600s"),
        ("?min_quality=1.5", "{}", "invalid_min_quality", "a share of the best quality"),
        ("?min_quality=euler-3@full", "{}", "invalid_min_quality", "is not of the frontier"),
        ("?budget=exact:heun-4@full&min_quality=0.5", "{}", "contradiction", "leave out `min_quality`"),
        ("?keep=maybe", "{}", "invalid_query", "keep: `maybe` is neither true (1) nor false (0)"),
        ("?keep=", "{}", "invalid_query", "keep: `` is neither"),
        ("?budget=", "{}", "unknown_budget", "accepted are fast"),
        ("?budget=exact:heun", "{}", "invalid_plan", "heun-18@full"),
        ("?budget=exact:heun-18@0.333", "{}", "unknown_subnet", "0.250, 0.500, full"),
        ("?budgte=fast", "{}", "invalid_query", "budget"),
        ("?budget=fast&budget=best", "{}", "invalid_query", "duplicate field `budget`"),
        ("", r#"{"class":"hihg"}"#, "unknown_class", "accepted are low, high"),
        ("", r#"{"class":2}"#, "unknown_class", "accepted are low, high"),
        ("", r#"{"class":-1}"#, "wrong_type", "`class`"),
        ("", r#"{"n":0}"#, "out_of_range", "`n` is 0, but must be 1 to 16"),
        ("", r#"{"n":17}"#, "out_of_range", "1 to 16"),
        ("?budget=exact:euler-251@full", "{}", "out_of_range", "1 to 250"),
        ("", r#"{"class":1,"guidance":-0.1}"#, "out_of_range", "0 to 20"),
        ("", r#"{"class":1,"guidance":20.5}"#, "out_of_range", "0 to 20"),
        ("", r#"{"guidance":3}"#, "guidance_without_class", "needs a `class`"),
        ("", r#"{"format":"gif"}"#, "unknown_format", "png, webp and jpeg"),
        ("", "", "empty_body", "JSON object"),
        ("", r#"{"seed":"#, "invalid_json", "EOF"),
        ("", "[]", "wrong_type", "the body"),
        ("", r#"{"seed":"seven"}"#, "wrong_type", "`seed`: expected a whole number from 0 to"),
        ("", r#"{"text":"a dog","size":1}"#, "unknown_field", "unknown fields size, text: accepted are model, class,"),
    ] {
        let reply = server.generate(query, body).await;
        let (got, message) = reply.error();
        assert_eq!((reply.status, got.as_str()), (StatusCode::BAD_REQUEST, code), "{query} {body}: {message}");
        assert!(message.contains(says), "{query} {body}: {message}");
    }
    assert_eq!(server.gate.calls().len(), 0, "a bad request reached the denoiser");
}

#[tokio::test]
async fn the_edges_of_every_range_are_accepted() {
    let server = Server::new(&ServeConfig::default());
    for body in [r#"{"n":16}"#, r#"{"class":1,"guidance":0}"#, r#"{"class":1,"guidance":20}"#, r#"{"guidance":1.0}"#] {
        assert_eq!(server.generate("", body).await.status, StatusCode::OK, "{body}");
    }
}

#[tokio::test]
async fn a_path_or_a_method_that_does_not_exist_is_refused_in_json() {
    let server = Server::new(&ServeConfig::default());
    let missing = server.get("/generat").await;
    assert_eq!((missing.status, missing.error().0.as_str()), (StatusCode::NOT_FOUND, "not_found"));
    let method = server.get("/generate").await;
    assert_eq!((method.status, method.error().0.as_str()), (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"));
    assert_eq!(method.header("allow"), "POST");
}

#[tokio::test]
async fn a_body_that_is_no_json_by_its_type_gets_415_and_an_impossible_accept_406() {
    let server = Server::new(&ServeConfig::default());
    for content_type in [None, Some("text/plain"), Some("application/x-www-form-urlencoded")] {
        let mut request = generate("", "{}");
        request.headers_mut().remove("content-type");
        if let Some(value) = content_type {
            request.headers_mut().insert("content-type", value.parse().unwrap());
        }
        let reply = server.send(request).await;
        assert_eq!(reply.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
        assert_eq!(reply.error().0, "unsupported_media_type");
    }
    let mut request = generate("", "{}");
    request.headers_mut().insert("accept", "text/html".parse().unwrap());
    let reply = server.send(request).await;
    assert_eq!((reply.status, reply.error().0.as_str()), (StatusCode::NOT_ACCEPTABLE, "not_acceptable"));
}

#[tokio::test]
async fn a_compressed_body_gets_415_that_names_its_encoding_and_what_is_accepted() {
    let server = Server::new(&ServeConfig::default());
    for uri in ["/generate", "/v1/images/generations"] {
        let mut request = post(uri, r#"{"prompt":"low"}"#);
        request.headers_mut().insert("content-encoding", "gzip".parse().unwrap());
        let reply = server.send(request).await;
        assert_eq!((reply.status, reply.header("accept-encoding")), (StatusCode::UNSUPPORTED_MEDIA_TYPE, "identity"));
        let (code, message) = reply.error();
        assert_eq!(code, "unsupported_content_encoding", "{uri}");
        assert!(message.contains("`gzip`") && message.contains("accepted is identity"), "{message}");
    }
    let mut plain = generate("", "{}");
    plain.headers_mut().insert("content-encoding", "identity".parse().unwrap());
    assert_eq!(server.send(plain).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_body_that_is_larger_than_its_pictures_can_be_gets_413() {
    let server = Server::new(&ServeConfig::default());
    let most = crate::server::generate::most_body_bytes(&server.state);
    assert_eq!(most, (64 << 10) + 2 * ((64 << 10) + 8 * 12) / 3 * 4);
    let padded = |bytes: usize| format!("{{}}{}", " ".repeat(bytes - 2));
    assert_eq!(server.generate("", &padded(most)).await.status, StatusCode::OK);
    let reply = server.generate("", &padded(most + 1)).await;
    assert_eq!((reply.status, reply.error().0.as_str()), (StatusCode::PAYLOAD_TOO_LARGE, "body_too_large"));
}

#[tokio::test]
async fn more_pixels_than_the_limit_are_refused() {
    let limits = Limits { max_pixels: 8 * 10, ..Limits::default() };
    let server = Server::new(&ServeConfig { limits, ..ServeConfig::default() });
    assert_eq!(server.generate("", r#"{"n":4}"#).await.status, StatusCode::OK);
    assert_eq!(server.generate("", r#"{"n":5}"#).await.error().0, "out_of_range");
}

#[tokio::test]
async fn a_full_queue_gets_429_with_retry_after() {
    let limits = Limits { max_n: 2, ..Limits::default() };
    let server = Server::new(&ServeConfig { queue_images: 2, limits, ..ServeConfig::default() });
    server.gate.close();
    let running = server.occupy(1, 1);
    let waiting = server.occupy(2, 1);
    let reply = server.generate("", "{}").await;
    assert_eq!((reply.status, reply.error().0.as_str()), (StatusCode::TOO_MANY_REQUESTS, "queue_full"));
    assert_eq!(reply.header("retry-after"), "1");
    server.gate.open();
    for ticket in [running, waiting] {
        ticket.wait().await.unwrap();
    }
    assert_eq!(server.generate("", "{}").await.status, StatusCode::OK);
}

#[tokio::test]
async fn what_no_idle_machine_can_do_gets_422_with_the_fastest_plan() {
    let server = Server::new(&ServeConfig::default());
    for (query, plan, ms) in [
        ("?budget=5ms", "dpmpp2m-8@0.250", 8.0),
        ("?budget=100ms&min_quality=1", "heun-18@full", 140.0),
        ("?budget=20ms&min_quality=dpmpp2m-12@0.500", "dpmpp2m-12@0.500", 24.0),
    ] {
        let reply = server.generate(query, "{}").await;
        assert_eq!(
            (reply.status, reply.json()["error"]["code"].as_str().unwrap()),
            (StatusCode::UNPROCESSABLE_ENTITY, "infeasible")
        );
        let fastest = &reply.json()["error"]["fastest"];
        assert_eq!(
            (fastest["plan"].as_str(), fastest["ms"].as_f64().map(f64::round)),
            (Some(plan), Some(ms)),
            "{query}"
        );
    }
    assert_eq!(server.gate.calls().len(), 0);
}

#[tokio::test]
async fn what_is_too_much_at_present_gets_429_with_retry_after_and_is_served_later() {
    let server = Server::new(&ServeConfig::default());
    server.gate.close();
    let best = |budget: &'static str| server.generate(budget, "{}");
    let urgent = "?budget=200ms&min_quality=1";
    let (blocker, refused) = tokio::join!(best("?budget=60s&min_quality=1"), async {
        while server.gate.calls().is_empty() {
            tokio::task::yield_now().await;
        }
        // The policy believes that each of these takes 140 ms of the device.
        let (first, second) = tokio::join!(biased(best(urgent)), async {
            while server.fleet().any().waiting() == 0 {
                tokio::task::yield_now().await;
            }
            let reply = best(urgent).await;
            server.gate.open();
            reply
        });
        assert_eq!(first.status, StatusCode::OK);
        second
    });
    assert_eq!(blocker.status, StatusCode::OK);
    assert_eq!((refused.status, refused.error().0.as_str()), (StatusCode::TOO_MANY_REQUESTS, "overloaded"));
    assert_eq!(refused.header("retry-after"), "1");
    assert_eq!(best(urgent).await.status, StatusCode::OK);
}

/// A future as it is: a name for what must be polled first.
async fn biased<T>(future: impl Future<Output = T>) -> T {
    future.await
}

#[tokio::test]
async fn a_failing_denoiser_gets_500_and_the_next_request_is_served() {
    let server = Server::new(&ServeConfig::default());
    for fault in [Fault::Error, Fault::Panic, Fault::NotFinite] {
        server.gate.fail_next(fault);
        let reply = server.generate("", "{}").await;
        assert_eq!((reply.status, reply.error().0.as_str()), (StatusCode::INTERNAL_SERVER_ERROR, "engine_failed"));
        assert_eq!(server.get("/livez").await.status, StatusCode::OK);
        assert_eq!(server.generate("", "{}").await.status, StatusCode::OK);
    }
}

#[tokio::test]
async fn an_encoder_that_fails_answers_500_on_every_route_and_nothing_hangs() {
    let server = Server::of(Gaussian::unencodable(), &ServeConfig::default());
    let openai = Request::post("/v1/images/generations").header("content-type", "application/json");
    let mut listening = generate("", "{}");
    listening.headers_mut().insert("accept", "text/event-stream".parse().unwrap());
    for request in [
        generate("", "{}"),
        generate("", r#"{"n":2,"format":"webp"}"#),
        generate("?keep=true", r#"{"format":"jpeg"}"#),
        openai.body(Body::from(r#"{"prompt":"x"}"#)).unwrap(),
    ] {
        let uri = request.uri().clone();
        let reply = server.send(request).await;
        assert_eq!((reply.status, reply.error().0.as_str()), (StatusCode::INTERNAL_SERVER_ERROR, "internal"), "{uri}");
    }
    let told = server.send(listening).await.text();
    assert!(told.contains("event: error") && told.contains("internal"), "{told}");
    assert_eq!(server.get("/livez").await.status, StatusCode::OK);
    let page = server.get("/metrics").await.text();
    assert!(page.contains("accordion_active_images{device=\"cpu\",model=\"gaussian\"} 0"), "{page}");
    let failed = page.lines().filter(|line| line.contains(r#"outcome="failed""#));
    let failed: f64 = failed.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum();
    assert_eq!(failed, 5.0);
}

#[tokio::test(start_paused = true)]
async fn images_that_take_too_long_get_504_and_leave_the_engine() {
    let server = Server::new(&ServeConfig::default());
    server.gate.close();
    let reply = server.generate("", "{}").await;
    assert_eq!((reply.status, reply.error().0.as_str()), (StatusCode::GATEWAY_TIMEOUT, "timeout"));
    server.gate.open();
    server.fleet().any().join().unwrap();
    assert_eq!(server.fleet().any().stats().finished(), 0);
}

/// A body of which nothing ever arrives.
struct Silence;

impl axum::body::HttpBody for Silence {
    type Data = axum::body::Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, Infallible>>> {
        Poll::Pending
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_arrive_gets_408() {
    let server = Server::new(&ServeConfig::default());
    let reply = server.send(generate("", "").map(|_| Body::new(Silence))).await;
    assert_eq!((reply.status, reply.error().0.as_str()), (StatusCode::REQUEST_TIMEOUT, "body_timeout"));
}

proptest! {
    #[test]
    fn no_bytes_make_the_body_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let _ = GenerateBody::parse(&bytes);
    }

    #[test]
    fn no_json_makes_the_body_parser_panic(
        text in r#"\{("(class|seed|n|guidance|x)":(-?[0-9]{1,21}(\.[0-9]+)?(e[0-9]{1,4})?|"a"|null|\[\]|\{\}),?){0,4}\}?"#,
    ) {
        let _ = GenerateBody::parse(text.as_bytes());
    }
}
