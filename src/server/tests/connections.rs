use super::*;

#[tokio::test(start_paused = true)]
async fn a_head_that_never_ends_or_never_begins_is_cut_off() {
    let config = ServeConfig::default();
    let server = Server::new(&config);
    let Listening { address, serving, .. } = server.listen(&config).await;
    for bytes in ["POST /generate HTTP/1.1\r\nhost: x\r\nx-slow:", "", "GET /livez HTTP/1.1\r\nhost: x\r\n\r\n"] {
        // Ends only when the server closes: the third keeps its connection and then says nothing.
        let answer = exchange(address, bytes).await.unwrap();
        assert_eq!(answer.contains("200 OK"), bytes.contains("livez"), "{answer}");
    }
    serving.abort();
}

#[tokio::test(start_paused = true)]
async fn a_client_that_never_reads_gives_its_place_to_the_next() {
    // One place. Waiting for a head must not be what frees it.
    let config: ServeConfig = toml::from_str("[limits]\nmax_connections = 1\nheader_timeout_s = 1000000").unwrap();
    let server = Server::new(&config);
    let Listening { address, serving, .. } = server.listen(&config).await;
    let mut deaf = std::net::TcpStream::connect(address).unwrap();
    deaf.set_nonblocking(true).unwrap();
    let many = "GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n".repeat(1000);
    let start = tokio::time::Instant::now();
    // Asks until the server does not take any more, which it does while it cannot answer.
    let mut refused = 0;
    while refused < 1000 {
        match deaf.write(many.as_bytes()) {
            Ok(_) => refused = 0,
            Err(_) => refused += 1,
        }
        tokio::task::yield_now().await;
    }
    let next = exchange(address, "GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    assert!(next.starts_with("HTTP/1.1 200 OK"), "{next}");
    let waited = start.elapsed().as_secs();
    assert!((config.limits.write_timeout_s..1000).contains(&waited), "{waited} s");
    serving.abort();
}
