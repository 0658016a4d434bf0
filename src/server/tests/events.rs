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
fn events(text: &str) -> Vec<(String, Value)> {
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
    server.engine().join().unwrap();
    assert_eq!(server.gate.calls().len(), 1);
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
    let kept = loop {
        let reply = server.get("/generate/mine").await;
        if reply.status == StatusCode::OK {
            break reply;
        }
        assert_eq!((reply.status, reply.error().0.as_str()), (StatusCode::NOT_FOUND, "not_kept"));
        tokio::task::yield_now().await;
    };
    assert_eq!(kept.body, server.generate("?budget=fast", r#"{"seed":7}"#).await.body);
    assert_eq!((kept.header("x-accordion-plan"), kept.header("content-type")), ("dpmpp2m-8@0.250", "image/png"));
    assert_eq!(server.get("/generate/mine").await.status, StatusCode::NOT_FOUND);
    assert_eq!(server.generate("?keep=true", "{}").await.status, StatusCode::OK, "who waits gets the answer at once");
}
