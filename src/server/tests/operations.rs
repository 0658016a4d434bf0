use super::*;
use crate::engine::gaussian::Fault;
use std::time::Duration;

#[tokio::test]
async fn probes_say_ok_and_readiness_alone_fails_while_draining() {
    let server = Server::new(&ServeConfig::default());
    for probe in ["/livez", "/readyz", "/health"] {
        assert_eq!((server.get(probe).await.status, server.get(probe).await.text().as_str()), (StatusCode::OK, "ok"));
    }
    server.state.drain();
    assert_eq!(server.get("/livez").await.status, StatusCode::OK);
    for reply in [server.get("/readyz").await, server.get("/health").await, server.generate("", "{}").await] {
        assert_eq!((reply.status, reply.error().0.as_str()), (StatusCode::SERVICE_UNAVAILABLE, "draining"));
    }
}

/// A request without a body.
async fn ask(server: &Server, method: &Method, path: &str) -> Reply {
    server.send(Request::builder().method(method).uri(path).body(Body::empty()).unwrap()).await
}

#[tokio::test]
async fn a_probe_tells_the_same_to_every_method_that_balancers_use() {
    // With origins, OPTIONS is the browsers' too.
    for config in ["", "cors_origins = ['https://a.example']", "cors_origins = ['*']"] {
        let server = Server::new(&toml::from_str(config).unwrap());
        for method in [Method::GET, Method::HEAD, Method::OPTIONS] {
            for path in ["/livez", "/readyz", "/health"] {
                let reply = ask(&server, &method, path).await;
                assert_eq!(
                    (reply.status, reply.header("allow")),
                    (StatusCode::OK, "GET,HEAD,OPTIONS"),
                    "{method} {path}"
                );
            }
        }
        server.state.drain();
        for method in [Method::GET, Method::HEAD, Method::OPTIONS] {
            for path in ["/readyz", "/health"] {
                assert_eq!(
                    ask(&server, &method, path).await.status,
                    StatusCode::SERVICE_UNAVAILABLE,
                    "{method} {path}"
                );
            }
            assert_eq!(ask(&server, &method, "/livez").await.status, StatusCode::OK, "{method}");
        }
    }
}

#[tokio::test]
async fn options_say_which_methods_a_path_has() {
    let server = Server::new(&ServeConfig::default());
    for (path, allowed) in [("/generate", "POST"), ("/v1/models", "GET,HEAD"), ("/", "GET,HEAD")] {
        let reply = ask(&server, &Method::OPTIONS, path).await;
        assert_eq!((reply.status, reply.header("allow")), (StatusCode::NO_CONTENT, allowed), "{path}");
    }
    // The server as a whole.
    assert_eq!(ask(&server, &Method::OPTIONS, "*").await.status, StatusCode::NO_CONTENT);
    assert_eq!(ask(&server, &Method::OPTIONS, "/nowhere").await.status, StatusCode::NOT_FOUND);
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
    assert!(
        server.get("/metrics").await.text().contains("\naccordion_engine_up{device=\"cpu\",model=\"gaussian\"} 0\n")
    );
}

#[tokio::test]
async fn an_engine_that_hangs_fails_both_probes_until_it_goes_on() {
    let server = Server::new(&toml::from_str("limits.hang_timeout_s = 20").unwrap());
    server.gate.close();
    let ticket = server.occupy(1, 1);
    assert_eq!(server.get("/livez").await.status, StatusCode::OK, "a call has only begun");
    server.fleet().any().stats().backdate_call(Duration::from_secs(21));
    for probe in ["/livez", "/readyz"] {
        let reply = server.get(probe).await;
        assert_eq!((reply.status, reply.error().0.as_str()), (StatusCode::INTERNAL_SERVER_ERROR, "engine_stalled"));
    }
    server.gate.open();
    ticket.wait().await.unwrap();
    assert_eq!(server.get("/livez").await.text(), "ok");
    assert_eq!(server.fleet().any().stats().stalled_for(), None);
}

#[tokio::test]
async fn before_the_model_is_loaded_only_liveness_and_metrics_are_there() {
    let config = ServeConfig::default();
    let host = Host::new(&config, crate::server::process_registry().unwrap()).unwrap();
    let ask = async |request: Request<Body>| Reply::of(host.router().oneshot(request).await.unwrap()).await;
    let get = async |path: &str| ask(Request::get(path).body(Body::empty()).unwrap()).await;
    assert_eq!(get("/livez").await.text(), "ok");
    assert!(get("/metrics").await.text().contains("accordion_build_info{"));
    for reply in [get("/readyz").await, get("/health").await, get("/subnets").await, ask(generate("", "{}")).await] {
        assert_eq!((reply.status, reply.error().0.as_str()), (StatusCode::SERVICE_UNAVAILABLE, "starting"));
        assert_eq!(reply.header("retry-after"), "5");
        assert_eq!(reply.header("x-request-id").len(), 36);
    }
    host.ready(Server::new(&config).state);
    assert_eq!(get("/readyz").await.text(), "ok");
    assert_eq!(ask(generate("", "{}")).await.status, StatusCode::OK);
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
        r#"accordion_denoiser_calls_total{device="cpu",model="gaussian",subnet="0.250"} 10"#,
        r#"accordion_denoiser_samples_total{device="cpu",model="gaussian",subnet="0.250"} 26"#,
        r#"accordion_denoiser_samples_total{device="cpu",model="gaussian",subnet="0.500"} 0"#,
        r#"accordion_denoiser_samples_total{device="cpu",model="gaussian",subnet="full"} 3"#,
        r#"accordion_queue_images{device="cpu",model="gaussian"} 0"#,
        r#"accordion_weight_bytes{device="cpu",model="gaussian"} 1234"#,
        r#"accordion_activation_bytes{device="cpu",model="gaussian"} 617"#,
        r#"accordion_denoiser_call_seconds_count{device="cpu",model="gaussian",subnet="0.250"} 10"#,
        r#"accordion_denoiser_batch_samples_sum{device="cpu",model="gaussian",subnet="full"} 3"#,
        r#"accordion_engine_up{device="cpu",model="gaussian"} 1"#,
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
    server.fleet().any().join().unwrap();
    assert_eq!(server.gate.calls().len(), 1);
    let page = server.get("/metrics").await.text();
    let line = r#"accordion_requests_total{budget="balanced",outcome="cancelled",subnet="0.500"} 1"#;
    assert!(page.contains(line), "{page}");
}
