use super::*;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http_body_util::BodyExt;

fn listening(query: &str, body: &str) -> Request<Body> {
    let mut request = generate(query, body);
    request.headers_mut().insert("accept", "text/event-stream".parse().unwrap());
    request
}

/// The events of an answer, each with its name and its data.
pub(super) fn events(text: &str) -> Vec<(String, Value)> {
    let one = |block: &str| {
        let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        Some((field("event")?.to_owned(), serde_json::from_str(field("data")?).unwrap()))
    };
    text.split("\n\n").filter_map(one).collect()
}

#[tokio::test]
async fn a_listener_hears_the_plan_every_step_and_the_images_last() {
    let server = Server::new(&ServeConfig::default());
    let plain = server.generate("?budget=fast", r#"{"seed":7,"n":2}"#).await;
    let reply = server.send(listening("?budget=fast", r#"{"seed":7,"n":2}"#)).await;
    assert_eq!((reply.status, reply.header("content-type")), (StatusCode::OK, "text/event-stream"));
    let events = events(&reply.text());
    let named = |name: &str| events.iter().filter(|(event, _)| event == name).map(|(_, data)| data).collect::<Vec<_>>();
    assert_eq!(events[0].0, "planned");
    assert_eq!((&events[0].1["plan"], &events[0].1["seed"]), (&"dpmpp2m-8@0.250".into(), &7.into()));
    let steps = named("step");
    assert_eq!(steps.len(), 2 * 8);
    assert!(steps.iter().all(|step| step["of"] == 8 && step["plan"] == "dpmpp2m-8@0.250"));
    for preview in named("preview") {
        let url = preview["url"].as_str().unwrap().strip_prefix("data:image/png;base64,").unwrap();
        let picture = image::load_from_memory(&STANDARD.decode(url).unwrap()).unwrap();
        assert_eq!((picture.width(), picture.height()), (3, 4));
    }
    assert_eq!(named("preview").len(), steps.len());
    let (last, image) = events.last().unwrap();
    assert_eq!(last, "image");
    assert_eq!(STANDARD.decode(image["b64_json"].as_str().unwrap()).unwrap(), plain.body);
    assert_eq!((&image["quality"], &image["media_type"]), (&0.8.into(), &"image/png".into()));
    assert!(image["timings"]["denoise_ms"].as_f64().unwrap() >= 0.0);
}

#[tokio::test]
async fn what_is_refused_is_refused_with_its_status_also_for_a_listener() {
    let server = Server::new(&ServeConfig::default());
    let reply = server.send(listening("?budget=1ms", "{}")).await;
    assert_eq!(
        (reply.status, reply.json()["error"]["code"].as_str()),
        (StatusCode::UNPROCESSABLE_ENTITY, Some("infeasible"))
    );
}

#[tokio::test]
async fn a_failure_on_the_way_is_the_last_event() {
    let server = Server::new(&ServeConfig::default());
    server.gate.fail_next(crate::engine::gaussian::Fault::Error);
    let events = events(&server.send(listening("", "{}")).await.text());
    let (name, data) = events.last().unwrap();
    assert_eq!((name.as_str(), &data["code"]), ("error", &"engine_failed".into()));
    let page = server.get("/metrics").await.text();
    assert!(
        page.contains(r#"accordion_requests_total{budget="balanced",outcome="failed",subnet="0.500"} 1"#),
        "{page}"
    );
}

#[tokio::test]
async fn a_listener_that_goes_away_frees_the_engine() {
    let server = Server::new(&ServeConfig::default());
    server.gate.close();
    let response = server.router.clone().oneshot(listening("", "{}")).await.unwrap();
    let mut body = response.into_body();
    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert!(first.starts_with(b"event: planned"));
    while server.gate.calls().is_empty() {
        tokio::task::yield_now().await;
    }
    drop(body);
    // The task notices when it is next polled; the gate holds the engine until then.
    let cancelled = r#"accordion_requests_total{budget="balanced",outcome="cancelled",subnet="0.500"} 1"#;
    while !server.get("/metrics").await.text().contains(cancelled) {
        tokio::task::yield_now().await;
    }
    server.gate.open();
    server.fleet().any().join().unwrap();
    assert_eq!(server.gate.calls().len(), 1);
}

#[tokio::test]
async fn events_pass_proxies_at_once_and_no_answer_is_stored() {
    let server = Server::new(&ServeConfig::default());
    let stream = server.send(listening("", "{}")).await;
    assert_eq!((stream.header("x-accel-buffering"), stream.header("cache-control")), ("no", "no-store"));
    for reply in [server.generate("", "{}").await, server.get("/generate/x").await, server.get("/readyz").await] {
        assert_eq!(reply.header("cache-control"), "no-store");
    }
    assert_eq!(
        server.get("/").await.header("cache-control"),
        "no-cache",
        "the page may be stored, and is asked for anew"
    );
}

#[tokio::test]
async fn a_listener_is_who_weighs_events_no_less_than_any_image() {
    let server = Server::new(&ServeConfig::default());
    for (accept, media_type) in [
        ("text/event-stream;q=0, */*", "image/png"),
        ("text/event-stream;q=0.5, image/webp;q=0.6", "image/webp"),
        ("text/event-stream;q=0.5, image/webp;q=0.5", "text/event-stream"),
        ("text/*", "application/json"),
        ("text/event-stream;q=0", "application/json"),
    ] {
        let mut request = generate("?budget=fast", "{}");
        request.headers_mut().insert("accept", accept.parse().unwrap());
        let reply = server.send(request).await;
        assert_eq!(reply.header("content-type"), media_type, "{accept}");
        let refused = media_type == "application/json";
        assert_eq!(reply.status == StatusCode::NOT_ACCEPTABLE, refused, "{accept}");
    }
}

/// Asks for what is kept until it is there.
async fn fetched(server: &Server, id: &str) -> Reply {
    loop {
        let reply = server.get(&format!("/generate/{id}")).await;
        if reply.status == StatusCode::OK {
            return reply;
        }
        assert_eq!((reply.status, reply.error().0.as_str()), (StatusCode::NOT_FOUND, "not_kept"));
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_kept_request_outlives_the_listener_of_its_events() {
    let server = Server::new(&ServeConfig::default());
    let mut request = listening("?budget=fast&keep=1", r#"{"seed":7,"format":"WEBP"}"#);
    request.headers_mut().insert("x-request-id", "mine".parse().unwrap());
    server.gate.close();
    let mut body = server.router.clone().oneshot(request).await.unwrap().into_body();
    assert!(body.frame().await.unwrap().unwrap().into_data().unwrap().starts_with(b"event: planned"));
    while server.gate.calls().is_empty() {
        tokio::task::yield_now().await;
    }
    drop(body);
    server.gate.open();
    let kept = fetched(&server, "mine").await;
    assert_eq!(kept.body, server.generate("?budget=fast", r#"{"seed":7,"format":"webp"}"#).await.body);
    assert_eq!((kept.header("x-accordion-plan"), kept.header("content-type")), ("dpmpp2m-8@0.250", "image/webp"));
    let page = server.get("/metrics").await.text();
    assert!(page.contains(r#"accordion_requests_total{budget="fast",outcome="kept",subnet="0.250"} 1"#), "{page}");
    assert!(page.contains(r#"accordion_request_seconds_count{budget="fast"} 1"#), "of the other alone: {page}");
}

#[tokio::test]
async fn images_are_kept_also_from_a_client_that_goes_away_with_the_answer_under_way() {
    let server = Server::new(&ServeConfig::default());
    for (id, accept) in [("file", "*/*"), ("stream", "text/event-stream")] {
        let mut request = generate("?budget=fast&keep=True", r#"{"seed":7}"#);
        request.headers_mut().insert("x-request-id", id.parse().unwrap());
        request.headers_mut().insert("accept", accept.parse().unwrap());
        let mut body = server.router.clone().oneshot(request).await.unwrap().into_body();
        if id == "stream" {
            while !body.frame().await.unwrap().unwrap().into_data().unwrap().starts_with(b"event: image") {}
        }
        drop(body);
        assert_eq!(fetched(&server, id).await.status, StatusCode::OK);
    }
}

#[tokio::test]
async fn what_is_fetched_is_given_out_once_wholly() {
    let server = Server::new(&ServeConfig::default());
    let mut request = generate("?budget=fast&keep=true", r#"{"seed":7}"#);
    request.headers_mut().insert("x-request-id", "mine".parse().unwrap());
    drop(server.router.clone().oneshot(request).await.unwrap());
    let ask = || server.router.clone().oneshot(Request::get("/generate/mine").body(Body::empty()).unwrap());
    let broken_off = ask().await.unwrap();
    assert_eq!(broken_off.status(), StatusCode::OK);
    drop(broken_off);
    assert_eq!(server.get("/generate/mine").await.status, StatusCode::OK);
    assert_eq!(server.get("/generate/mine").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_stream_is_counted_when_it_ends_and_not_when_it_begins() {
    let server = Server::new(&ServeConfig::default());
    let mut body = server.router.clone().oneshot(listening("?budget=fast", "{}")).await.unwrap().into_body();
    while !body.frame().await.unwrap().unwrap().into_data().unwrap().starts_with(b"event: image") {}
    let counted = r#"accordion_requests_total{budget="fast",outcome="ok",subnet="0.250"} 1"#;
    let timed = r#"accordion_request_seconds_count{budget="fast"} 1"#;
    let page = server.get("/metrics").await.text();
    assert!(!page.contains(counted) && !page.contains(timed), "{page}");
    assert!(body.frame().await.is_none());
    let page = server.get("/metrics").await.text();
    assert!(page.contains(counted) && page.contains(timed), "{page}");
}

#[tokio::test]
async fn a_kept_request_outlives_its_client_and_is_fetched_once_by_its_id() {
    let server = Server::new(&ServeConfig::default());
    let mut request = generate("?budget=fast&keep=true", r#"{"seed":7}"#);
    request.headers_mut().insert("x-request-id", "mine".parse().unwrap());
    server.gate.close();
    let waiting = tokio::spawn(server.router.clone().oneshot(request));
    while server.gate.calls().is_empty() {
        tokio::task::yield_now().await;
    }
    waiting.abort();
    assert!(waiting.await.unwrap_err().is_cancelled());
    server.gate.open();
    let kept = fetched(&server, "mine").await;
    assert_eq!(kept.body, server.generate("?budget=fast", r#"{"seed":7}"#).await.body);
    assert_eq!((kept.header("x-accordion-plan"), kept.header("content-type")), ("dpmpp2m-8@0.250", "image/png"));
    assert_eq!(server.get("/generate/mine").await.status, StatusCode::NOT_FOUND);
    assert_eq!(server.generate("?keep=true", "{}").await.status, StatusCode::OK, "who waits gets the answer at once");
}
