use super::*;
use crate::engine::gaussian::Fault;
use crate::server::{serve, signalled};
use std::io::{Read, Write};
use std::net::SocketAddr;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

#[tokio::test]
async fn probes_say_ok_and_readiness_alone_fails_while_draining() {
    let server = Server::new(&ServeConfig::default());
    for probe in ["/livez", "/readyz"] {
        assert_eq!((server.get(probe).await.status, server.get(probe).await.text().as_str()), (StatusCode::OK, "ok"));
    }
    server.state.drain();
    assert_eq!(server.get("/livez").await.status, StatusCode::OK);
    for reply in [server.get("/readyz").await, server.generate("", "{}").await] {
        assert_eq!((reply.status, reply.error().0.as_str()), (StatusCode::SERVICE_UNAVAILABLE, "draining"));
    }
}

#[tokio::test]
async fn a_dead_engine_fails_both_probes_and_answers_requests() {
    let server = Server::new(&ServeConfig::default());
    server.gate.fail_next(Fault::Bomb);
    for reply in [
        server.generate("", "{}").await,
        server.generate("", "{}").await,
        server.get("/livez").await,
        server.get("/readyz").await,
    ] {
        assert_eq!((reply.status, reply.error().0.as_str()), (StatusCode::INTERNAL_SERVER_ERROR, "engine_failed"));
    }
    assert!(server.get("/metrics").await.text().contains("\naccordion_engine_up{device=\"cpu\"} 0\n"));
}

#[tokio::test]
async fn what_is_loaded_can_be_listed() {
    let server = Server::new(&ServeConfig::default());
    let loaded = server.get("/subnets").await.json();
    assert_eq!(loaded["model"], "gaussian");
    assert_eq!(loaded["image"], serde_json::json!({ "height": 4, "width": 3, "channels": 1 }));
    assert_eq!(loaded["classes"], serde_json::json!(["low", "high"]));
    assert_eq!(loaded["subnets"].as_array().unwrap().len(), 3);
    let narrowest = serde_json::json!({ "name": "0.250", "ratio": 0.25, "parameters": 250_000, "macs": 250_000_000 });
    assert_eq!(loaded["subnets"][0], narrowest);
    assert_eq!(loaded["metric"], "mse-to-reference");
    let fastest = serde_json::json!({ "plan": "dpmpp2m-8@0.250", "quality": 0.8, "ms": 8.0 });
    assert_eq!(loaded["frontier"][0], fastest);
    let best = serde_json::json!({ "plan": "heun-18@full", "quality": 1.0, "within_ms": 60_000 });
    assert_eq!(loaded["budgets"]["best"], best);
    let models = server.get("/v1/models").await.json();
    assert_eq!((&models["object"], &models["data"][0]["id"]), (&Value::from("list"), &Value::from("gaussian")));
}

#[tokio::test]
async fn the_metrics_count_requests_images_and_steps() {
    let server = Server::new(&ServeConfig::default());
    server.generate("?budget=fast", r#"{"n":3,"format":"webp"}"#).await;
    server.generate("?budget=exact:heun-3@0.250*1,full*2", "{}").await;
    server.generate("?budget=fsat", "{}").await;
    server.generate("?budget=best", r#"{"class":"x"}"#).await;
    let page = server.get("/metrics").await;
    assert!(page.header("content-type").starts_with("text/plain"));
    let page = page.text();
    for line in [
        r#"accordion_requests_total{budget="fast",outcome="ok",subnet="0.250"} 1"#,
        r#"accordion_requests_total{budget="exact",outcome="ok",subnet="mixed"} 1"#,
        r#"accordion_requests_total{budget="none",outcome="invalid",subnet="none"} 1"#,
        r#"accordion_requests_total{budget="best",outcome="invalid",subnet="none"} 1"#,
        r#"accordion_images_total{budget="fast",format="webp",subnet="0.250"} 3"#,
        r#"accordion_denoise_seconds_count{budget="fast"} 1"#,
        r#"accordion_denoiser_calls_total{device="cpu",subnet="0.250"} 10"#,
        r#"accordion_denoiser_samples_total{device="cpu",subnet="0.250"} 26"#,
        r#"accordion_denoiser_samples_total{device="cpu",subnet="0.500"} 0"#,
        r#"accordion_denoiser_samples_total{device="cpu",subnet="full"} 3"#,
        r#"accordion_queue_images{device="cpu"} 0"#,
        r#"accordion_weight_bytes{device="cpu"} 1234"#,
        r#"accordion_activation_bytes{device="cpu"} 617"#,
        r#"accordion_denoiser_call_seconds_count{device="cpu",subnet="0.250"} 10"#,
        r#"accordion_denoiser_batch_samples_sum{device="cpu",subnet="full"} 3"#,
        r#"accordion_engine_up{device="cpu"} 1"#,
    ] {
        assert!(page.lines().any(|found| found == line), "no {line} in\n{page}");
    }
    assert_eq!(page, server.get("/metrics").await.text(), "a scrape changes nothing");
}

#[tokio::test]
async fn a_client_that_goes_away_frees_the_engine_and_is_counted() {
    let server = Server::new(&ServeConfig::default());
    server.gate.close();
    let request = tokio::spawn(server.router.clone().oneshot(generate("", "{}")));
    while server.gate.calls().is_empty() {
        tokio::task::yield_now().await;
    }
    request.abort();
    assert!(request.await.unwrap_err().is_cancelled());
    server.gate.open();
    server.engine().join().unwrap();
    assert_eq!(server.gate.calls().len(), 1);
    let page = server.get("/metrics").await.text();
    let line = r#"accordion_requests_total{budget="balanced",outcome="cancelled",subnet="0.500"} 1"#;
    assert!(page.contains(line), "{page}");
}

#[tokio::test]
async fn a_request_id_is_passed_through_or_made() {
    let server = Server::new(&ServeConfig::default());
    let request = Request::get("/livez").header("x-request-id", "abc-1").body(Body::empty()).unwrap();
    assert_eq!(server.send(request).await.header("x-request-id"), "abc-1");
    let made =
        [server.get("/livez").await, server.get("/nowhere").await].map(|reply| reply.header("x-request-id").to_owned());
    assert!(made[0].len() == 36 && made[1].len() == 36 && made[0] != made[1]);
}

/// Sends raw bytes and reads until the server closes, on a thread of its own.
fn exchange(address: SocketAddr, bytes: &'static str) -> oneshot::Receiver<String> {
    let (answer, received) = oneshot::channel();
    std::thread::spawn(move || {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.write_all(bytes.as_bytes()).unwrap();
        let mut text = Vec::new();
        // A reset ends the answer as well as a close does.
        let _ = stream.read_to_end(&mut text);
        let _ = answer.send(String::from_utf8_lossy(&text).into_owned());
    });
    received
}

const REQUEST: &str = "POST /generate?budget=fast HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 10\r\n\r\n{\"seed\":1}";

#[tokio::test]
async fn a_shutdown_finishes_what_was_accepted_and_accepts_no_more() {
    let server = Server::new(&ServeConfig::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (shutdown, asked) = oneshot::channel::<()>();
    let serving = tokio::spawn(serve(listener, server.state.clone(), async { asked.await.unwrap() }));
    server.gate.close();
    let answer = exchange(address, REQUEST);
    while server.gate.calls().is_empty() {
        tokio::task::yield_now().await;
    }
    let idle = std::net::TcpStream::connect(address).unwrap();
    shutdown.send(()).unwrap();
    while !server.state.is_draining() {
        tokio::task::yield_now().await;
    }
    assert!(std::net::TcpStream::connect(address).is_err());
    server.gate.open();
    let answer = answer.await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    assert!(answer.contains("x-accordion-plan: dpmpp2m-8@0.250"), "{answer}");
    serving.await.unwrap().unwrap();
    drop(idle);
}

#[tokio::test(start_paused = true)]
async fn a_head_that_never_ends_is_cut_off() {
    let server = Server::new(&ServeConfig::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(serve(listener, server.state.clone(), std::future::pending()));
    let answer = exchange(address, "POST /generate HTTP/1.1\r\nhost: x\r\nx-slow:");
    assert!(!answer.await.unwrap().contains("200"));
    serving.abort();
}

#[tokio::test(start_paused = true)]
async fn a_drain_that_takes_too_long_is_given_up_and_says_so() {
    let server = Server::new(&ServeConfig::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    server.gate.close();
    let ticket = server.occupy(1, 1);
    let error = serve(listener, server.state.clone(), std::future::ready(())).await.unwrap_err();
    assert_eq!(error.to_string(), "limits.drain_timeout_s: requests were left unfinished after 120 s");
    server.gate.open();
    ticket.wait().await.unwrap();
}

#[tokio::test]
async fn sigterm_and_sigint_end_the_serving() {
    for signal in ["-TERM", "-INT"] {
        // Once registered, the handlers outlive their future: the signal cannot end the other tests.
        let ended = signalled().unwrap();
        let own = std::process::id().to_string();
        assert!(std::process::Command::new("kill").args([signal, &own]).status().unwrap().success());
        ended.await;
    }
}
