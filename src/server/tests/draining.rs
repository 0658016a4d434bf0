use super::*;
use crate::server::terminated;
use std::time::Duration;

async fn until_draining(server: &Server) {
    while !server.state.is_draining() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_shutdown_finishes_what_was_accepted_and_accepts_no_more() {
    let config: ServeConfig = toml::from_str("limits.drain_grace_s = 0").unwrap();
    let server = Server::new(&config);
    let Listening { address, stop, serving } = server.listen(&config).await;
    server.gate.close();
    let answer = exchange(address, REQUEST);
    while server.gate.calls().is_empty() {
        tokio::task::yield_now().await;
    }
    let idle = std::net::TcpStream::connect(address).unwrap();
    stop.send(()).await.unwrap();
    until_draining(&server).await;
    assert!(std::net::TcpStream::connect(address).is_err());
    server.gate.open();
    let answer = answer.await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    assert!(answer.contains("x-accordion-plan: dpmpp2m-8@0.250"), "{answer}");
    serving.await.unwrap().unwrap();
    drop(idle);
}

#[tokio::test]
async fn during_the_grace_only_readiness_fails_and_then_the_idle_are_closed() {
    let config: ServeConfig = toml::from_str("limits.drain_grace_s = 600").unwrap();
    let server = Server::new(&config);
    let Listening { address, stop, serving } = server.listen(&config).await;
    stop.send(()).await.unwrap();
    while !server.state.is_leaving() {
        tokio::task::yield_now().await;
    }
    assert_eq!(server.get("/livez").await.text(), "ok");
    assert_eq!(server.get("/readyz").await.error().0, "draining");
    assert!(!server.state.is_draining());
    assert_eq!(server.generate("", "{}").await.status, StatusCode::OK, "still served");
    // Connected in the grace, and says nothing: it does not hold up the end.
    let idle = std::net::TcpStream::connect(address).unwrap();
    // No further than the grace: the engine's thread knows nothing of this clock.
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(600)).await;
    tokio::time::resume();
    serving.await.unwrap().unwrap();
    assert_eq!(server.generate("", "{}").await.error().0, "draining");
    drop(idle);
}

#[tokio::test(start_paused = true)]
async fn a_drain_that_takes_too_long_is_given_up_and_says_so() {
    let config = ServeConfig::default();
    let server = Server::new(&config);
    server.gate.close();
    let ticket = server.occupy(1, 1);
    let Listening { stop, serving, .. } = server.listen(&config).await;
    stop.send(()).await.unwrap();
    let error = serving.await.unwrap().unwrap_err();
    assert_eq!(error.to_string(), "limits.drain_timeout_s: requests were left unfinished after 120 s");
    server.gate.open();
    ticket.wait().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_second_signal_ends_at_once_and_says_what_was_lost() {
    let config = ServeConfig::default();
    for limit in [0, config.limits.drain_grace_s + 1] {
        let server = Server::new(&config);
        server.gate.close();
        let ticket = server.occupy(1, 1);
        let Listening { stop, serving, .. } = server.listen(&config).await;
        let start = tokio::time::Instant::now();
        stop.send(()).await.unwrap();
        tokio::time::sleep(Duration::from_secs(limit)).await;
        assert_eq!(server.state.is_draining(), limit > 0);
        stop.send(()).await.unwrap();
        let error = serving.await.unwrap().unwrap_err();
        assert_eq!(error.to_string(), "a second signal: 1 images were left unfinished");
        assert_eq!(start.elapsed().as_secs(), limit);
        server.gate.open();
        ticket.wait().await.unwrap();
    }
    let server = Server::new(&config);
    let Listening { stop, serving, .. } = server.listen(&config).await;
    for _ in 0..2 {
        stop.send(()).await.unwrap();
    }
    serving.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_server_that_is_stopped_while_it_loads_ends_at_once() {
    let host = Host::new(&ServeConfig::default(), Registry::new()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (stop, signals) = mpsc::channel(1);
    stop.send(()).await.unwrap();
    serve(listener, host, signals.into()).await.unwrap();
}

#[tokio::test]
async fn sigterm_and_sigint_end_the_serving() {
    // SIGHUP depends on how the tests were started: tests/operations.rs starts a process either way.
    for signal in ["-TERM", "-INT"] {
        // Once registered, the handlers outlive their future: the signal cannot end the other tests.
        let mut signals = terminated().unwrap();
        let own = std::process::id().to_string();
        assert!(std::process::Command::new("kill").args([signal, &own]).status().unwrap().success());
        signals.next().await;
    }
}
