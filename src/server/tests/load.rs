use super::*;
use crate::engine::gaussian::Fault;
use crate::server::agent::line;
use crate::server::answer_agents;
use http_body_util::BodyExt;
use std::time::Duration;

async fn report(server: &Server, format: &str) -> Option<String> {
    let mut request = generate("", "{}");
    request.headers_mut().insert("endpoint-load-metrics-format", format.parse().unwrap());
    let reply = server.send(request).await;
    assert_eq!(reply.status, StatusCode::OK);
    reply.headers.get("endpoint-load-metrics").map(|value| value.to_str().unwrap().to_owned())
}

#[tokio::test]
async fn the_load_is_reported_in_the_format_that_is_asked_and_only_then() {
    let server = Server::new(&ServeConfig::default());
    assert!(report(&server, "TEXT").await.unwrap().starts_with("TEXT cpu_utilization=0."));
    assert!(report(&server, "json").await.unwrap().starts_with("JSON {\"application_utilization\":0.0,"));
    assert!(report(&server, "BIN").await.unwrap().starts_with("BIN CQAAAAAAAAAAE"));
    assert_eq!(report(&server, "XML").await, None);
    assert!(!server.generate("", "{}").await.headers.contains_key("endpoint-load-metrics"));
    // A refusal says how loaded the server is, too.
    let request = Request::get("/nowhere").header("endpoint-load-metrics-format", "TEXT").body(Body::empty()).unwrap();
    assert!(server.send(request).await.headers.contains_key("endpoint-load-metrics"));
}

#[tokio::test]
async fn the_load_is_that_of_the_last_interval() {
    let server = Server::new(&ServeConfig::default());
    for _ in 0..10 {
        server.generate("?budget=fast", "{}").await;
    }
    assert_eq!(server.state.load().rps, 0.0, "the interval is not over");
    // Only now: the engine's thread does not wait for a clock that runs ahead.
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(5)).await;
    let load = server.state.load();
    assert!(load.rps > 1.0 && load.rps <= 2.0 && load.quality_deficit == 0.0, "{load:?}");
    assert!(load.utilization > 0.0 && load.utilization < 1.0, "{load:?}");
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(server.state.load().rps, 0.0);
}

#[tokio::test]
async fn a_stream_is_answered_when_it_ends() {
    let server = Server::new(&ServeConfig::default());
    let mut request = generate("?budget=fast", "{}");
    request.headers_mut().insert("accept", "text/event-stream".parse().unwrap());
    let mut body = server.router.clone().oneshot(request).await.unwrap().into_body();
    while !body.frame().await.unwrap().unwrap().into_data().unwrap().starts_with(b"event: image") {}
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(5)).await;
    assert_eq!(server.state.load().rps, 0.0);
    assert!(body.frame().await.is_none());
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(server.state.load().rps, 1.0);
}

#[tokio::test]
async fn an_agent_check_says_ready_drain_or_down() {
    let config = ServeConfig::default();
    let server = Server::new(&config);
    let starting = Host::new(&config, Registry::new()).unwrap();
    assert_eq!(line(&starting), "down\n");
    let host = server.host(&config);
    assert_eq!(line(&host), "ready 100% up\n");
    server.state.leave();
    assert_eq!(line(&host), "drain\n");

    let dead = Server::new(&config);
    dead.gate.fail_next(Fault::Bomb);
    dead.generate("", "{}").await;
    assert_eq!(line(&dead.host(&config)), "down\n");
}

#[tokio::test]
async fn an_agent_check_gets_one_line_and_the_end() {
    let config = ServeConfig::default();
    let server = Server::new(&config);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let answering = tokio::spawn(answer_agents(listener, server.host(&config)));
    for sent in ["", "hello from the balancer\n"] {
        assert_eq!(exchange(address, sent).await.unwrap(), "ready 100% up\n", "{sent}");
    }
    answering.abort();
}

#[tokio::test(start_paused = true)]
async fn agents_that_linger_give_their_places_to_others() {
    let config = ServeConfig::default();
    let server = Server::new(&config);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let answering = tokio::spawn(answer_agents(listener, server.host(&config)));
    let lingering: Vec<_> = (0..40).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
    assert_eq!(exchange(address, "").await.unwrap(), "ready 100% up\n");
    drop(lingering);
    answering.abort();
}
