use super::*;
use crate::server::{KeyHash, Limits};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

/// As large a body as clients send pictures in.
const LARGE: usize = 4 << 20;

/// Runs a client that blocks on a thread of its own.
async fn client<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> T {
    let (answer, received) = oneshot::channel();
    thread::spawn(move || answer.send(run()));
    received.await.unwrap()
}

/// Sends all of it, and only then reads until the server closes.
async fn send_all(address: SocketAddr, bytes: Vec<u8>) -> String {
    client(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(&bytes).expect("the server reads on");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("no reset");
        text
    })
    .await
}

/// A request with a body of so many bytes.
fn large(head: &str, bytes: usize) -> Vec<u8> {
    let head = format!("{head} HTTP/1.1\r\nhost: x\r\ncontent-length: {bytes}\r\n\r\n");
    [head.as_bytes(), &vec![b' '; bytes]].concat()
}

const LAST: &[u8] = b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
const JSON: &str = "content-type: application/json";

#[tokio::test]
async fn an_early_answer_reaches_a_client_that_is_still_sending_and_its_connection_goes_on() {
    let open = Server::new(&ServeConfig::default());
    let mut config = ServeConfig::default();
    config.auth.key_hashes.0.push(KeyHash::of("open sesame"));
    let locked = Server::new(&config);
    let (open, locked) = (open.listen(&ServeConfig::default()).await, locked.listen(&config).await);
    for (address, request, headers, status) in [
        (locked.address, "POST /generate", JSON, "401 Unauthorized"),
        (open.address, "POST /nowhere", JSON, "404 Not Found"),
        (open.address, "PUT /generate", JSON, "405 Method Not Allowed"),
        (open.address, "POST /generate", JSON, "413 Payload Too Large"),
        (open.address, "POST /v1/images/generations", JSON, "413 Payload Too Large"),
        (open.address, "POST /generate", "content-type: image/png", "415 Unsupported Media Type"),
        (open.address, "GET /livez", JSON, "200 OK"),
    ] {
        let body = vec![b' '; LARGE];
        let whole = [format!("content-length: {LARGE}\r\n\r\n").as_bytes(), &body].concat();
        let chunk = format!("transfer-encoding: chunked\r\n\r\n{LARGE:x}\r\n");
        let chunked = [chunk.as_bytes(), &body, b"\r\n0\r\n\r\n"].concat();
        for rest in [whole, chunked] {
            let head = format!("{request} HTTP/1.1\r\nhost: x\r\n{headers}\r\n");
            let answer = send_all(address, [head.as_bytes(), &rest, LAST].concat()).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{request}: {answer}");
            assert!(answer.ends_with("\r\n\r\nok"), "{request}: {answer}");
        }
    }
    open.serving.abort();
    locked.serving.abort();
}

#[tokio::test]
async fn an_early_answer_reaches_a_client_that_is_still_sending_before_the_model_is_loaded() {
    let host = Host::new(&ServeConfig::default(), Registry::new()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (_stop, signals) = mpsc::channel(1);
    let serving = tokio::spawn(serve(listener, host, signals.into()));
    let answer = send_all(address, [&large("POST /generate", LARGE), LAST].concat()).await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with("ok"), "{answer}");
    serving.abort();
}

#[tokio::test]
async fn an_early_answer_reaches_a_client_that_sends_more_than_is_read_for_nothing() {
    let server = Server::new(&ServeConfig::default());
    let Listening { address, serving, .. } = server.listen(&ServeConfig::default()).await;
    let answer = send_all(address, large("POST /nowhere", 32 << 20)).await;
    assert!(answer.starts_with("HTTP/1.1 404") && answer.contains("\r\nconnection: close\r\n"), "{answer}");
    // Of a length that is not said beforehand, so much is found out on the way.
    let chunk = [b"400000\r\n", vec![b' '; LARGE].as_slice(), b"\r\n"].concat();
    let head = b"POST /nowhere HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";
    let answer = send_all(address, [head, chunk.repeat(8).as_slice(), b"0\r\n\r\n"].concat()).await;
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    // What is no request is answered by hyper, and has the same end.
    let answer = send_all(address, large(&format!("GET /{}", "x".repeat(LARGE)), LARGE)).await;
    assert!(answer.starts_with("HTTP/1.1 414") || answer.starts_with("HTTP/1.1 431"), "{answer}");
    serving.abort();
}

#[tokio::test]
async fn a_body_that_waits_to_be_asked_for_is_not_asked_for_in_vain() {
    let server = Server::new(&ServeConfig::default());
    let Listening { address, serving, .. } = server.listen(&ServeConfig::default()).await;
    let head = "POST /generate HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 4194304\r\n\r\n";
    let answer = send_all(address, head.into()).await;
    assert!(answer.starts_with("HTTP/1.1 415") && answer.contains("\r\nconnection: close\r\n"), "{answer}");
    // One that is wanted is.
    let answer = client(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        let head = "POST /generate?budget=fast HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\nconnection: close\r\n\
            content-type: application/json\r\ncontent-length: 2\r\n\r\n";
        stream.write_all(head.as_bytes()).unwrap();
        let mut word = [0; 25];
        stream.read_exact(&mut word).unwrap();
        stream.write_all(b"{}").unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        String::from_utf8_lossy(&[&word[..], &rest].concat()).into_owned()
    })
    .await;
    assert!(answer.starts_with("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK"), "{answer}");
    serving.abort();
}

#[tokio::test(start_paused = true)]
async fn the_rest_of_a_body_has_as_long_as_a_body_and_then_the_connection_ends() {
    let config = ServeConfig::default();
    let server = Server::new(&config);
    let Listening { address, serving, .. } = server.listen(&config).await;
    let limit = config.limits.body_timeout_s;
    for (bytes, status) in [
        ("POST /nowhere HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\nabc", "404"),
        // One that was waited for is not waited for again.
        ("POST /generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{", "408"),
    ] {
        let start = Instant::now();
        let answer = exchange(address, bytes).await.unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
        assert_eq!(answer.contains("\r\nconnection: close\r\n"), status == "408", "{answer}");
        let waited = start.elapsed().as_secs();
        assert!((limit..limit + 5).contains(&waited), "{status}: {waited} s");
    }
    serving.abort();
}

#[tokio::test(start_paused = true)]
async fn a_head_that_never_ends_or_never_begins_is_cut_off_each_at_its_time() {
    let config = ServeConfig::default();
    let Limits { header_timeout_s: head, idle_timeout_s: idle, .. } = config.limits;
    let server = Server::new(&config);
    let Listening { address, serving, .. } = server.listen(&config).await;
    for (bytes, limit) in [
        ("POST /generate HTTP/1.1\r\nhost: x\r\nx-slow:", head),
        ("", idle),
        // Keeps its connection and then says nothing, or begins again.
        ("GET /livez HTTP/1.1\r\nhost: x\r\n\r\n", idle),
    ] {
        let start = Instant::now();
        // Ends only when the server closes.
        let answer = exchange(address, bytes).await.unwrap();
        assert_eq!(answer.contains("200 OK"), bytes.contains("livez"), "{answer}");
        assert_eq!(start.elapsed().as_secs(), limit, "{bytes}");
    }
    serving.abort();
}

#[tokio::test(start_paused = true)]
async fn the_time_of_a_head_begins_with_its_first_byte() {
    let config = ServeConfig::default();
    let Limits { header_timeout_s: head, idle_timeout_s: idle, .. } = config.limits;
    let server = Server::new(&config);
    let Listening { address, serving, .. } = server.listen(&config).await;
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let mut answers = Vec::new();
    let start = Instant::now();
    for bytes in ["GET /livez HTTP/1.1\r\nhost: x\r\n\r\n", "GET /livez"] {
        tokio::time::sleep(Duration::from_secs(idle - 1)).await;
        stream.write_all(bytes.as_bytes()).await.unwrap();
        if answers.is_empty() {
            stream.read_buf(&mut answers).await.unwrap();
        }
    }
    stream.read_to_end(&mut answers).await.unwrap();
    assert!(answers.ends_with(b"ok"), "{}", String::from_utf8_lossy(&answers));
    assert_eq!(start.elapsed().as_secs(), 2 * (idle - 1) + head);
    serving.abort();
}

#[tokio::test(start_paused = true)]
async fn a_client_that_never_reads_gives_its_place_to_the_next() {
    // One place. Waiting for a head must not be what frees it.
    let limits = "[limits]\nmax_connections = 1\nheader_timeout_s = 1000000\nidle_timeout_s = 1000000";
    let config: ServeConfig = toml::from_str(limits).unwrap();
    let server = Server::new(&config);
    let Listening { address, serving, .. } = server.listen(&config).await;
    let mut deaf = TcpStream::connect(address).unwrap();
    deaf.set_nonblocking(true).unwrap();
    let many = "GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n".repeat(1000);
    let start = Instant::now();
    // Asks until the server does not take any more, which it does while it cannot answer.
    let mut refused = 0;
    while refused < 1000 {
        match deaf.write(many.as_bytes()) {
            Ok(_) => refused = 0,
            Err(_) => refused += 1,
        }
        tokio::task::yield_now().await;
    }
    let next = "GET /subnets HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    while !exchange(address, next).await.unwrap().starts_with("HTTP/1.1 200 OK") {
        assert!(start.elapsed().as_secs() < 1000);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let waited = start.elapsed().as_secs();
    assert!((config.limits.write_timeout_s..1000).contains(&waited), "{waited} s");
    serving.abort();
}

#[tokio::test]
async fn a_full_server_answers_probes_and_tells_everybody_else_that_it_is_full() {
    let config: ServeConfig = toml::from_str("limits.max_connections = 1").unwrap();
    let server = Server::new(&config);
    let Listening { address, serving, .. } = server.listen(&config).await;
    server.gate.close();
    let drawn = exchange(address, REQUEST);
    while server.gate.calls().is_empty() {
        tokio::task::yield_now().await;
    }
    for path in ["/livez", "/readyz", "/health", "/metrics"] {
        // The connection is for one request, so that the answer ends.
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
        let answer = send_all(address, request.into()).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.contains("\r\nconnection: close\r\n"), "{answer}");
    }
    for request in [large("POST /generate", LARGE), large("GET /subnets", 0)] {
        let answer = send_all(address, request).await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("\"too_many_connections\""), "{answer}");
        assert!(answer.contains("\r\nretry-after: 1\r\n") && answer.contains("\r\nx-request-id: "), "{answer}");
    }
    server.gate.open();
    // Keeps its connection, and with it the place, until its client goes.
    serving.abort();
    drop(drawn);
}

#[tokio::test(start_paused = true)]
async fn silent_clients_do_not_keep_a_full_server_from_its_probes() {
    let config: ServeConfig = toml::from_str("limits.max_connections = 1").unwrap();
    let server = Server::new(&config);
    let Listening { address, serving, .. } = server.listen(&config).await;
    let silent: Vec<TcpStream> = (0..100).map(|_| TcpStream::connect(address).unwrap()).collect();
    let start = Instant::now();
    let mut probe = tokio::net::TcpStream::connect(address).await.unwrap();
    probe.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut answer = [0; 15];
    probe.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
    // One has the place; six times, sixteen of the others are given up.
    assert_eq!(start.elapsed().as_secs(), 6 * 2);
    drop(silent);
    serving.abort();
}

#[tokio::test]
async fn a_place_is_there_again_when_its_client_goes() {
    let config: ServeConfig = toml::from_str("limits.max_connections = 1").unwrap();
    let server = Server::new(&config);
    let Listening { address, serving, .. } = server.listen(&config).await;
    for _ in 0..3 {
        let held = TcpStream::connect(address).unwrap();
        let ask = || send_all(address, b"GET /subnets HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".to_vec());
        while !ask().await.starts_with("HTTP/1.1 503") {}
        held.shutdown(Shutdown::Both).unwrap();
        while !ask().await.starts_with("HTTP/1.1 200") {}
    }
    serving.abort();
}

#[tokio::test]
async fn a_request_without_its_one_host_is_refused_in_json() {
    let server = Server::new(&ServeConfig::default());
    let Listening { address, serving, .. } = server.listen(&ServeConfig::default()).await;
    for (head, status) in [
        ("GET /livez HTTP/1.1\r\n", "400 Bad Request"),
        ("GET /livez HTTP/1.1\r\nhost: a\r\nhost: a\r\n", "400 Bad Request"),
        ("GET /livez HTTP/1.1\r\nhost: a b\r\n", "400 Bad Request"),
        ("GET http://a/livez HTTP/1.1\r\nhost: a\r\n", "200 OK"),
        ("GET /livez HTTP/1.0\r\n", "200 OK"),
        // As HAProxy checks by default.
        ("OPTIONS /livez HTTP/1.0\r\n", "200 OK"),
        ("OPTIONS * HTTP/1.1\r\nhost: a\r\n", "204 No Content"),
    ] {
        let answer = send_all(address, format!("{head}connection: close\r\n\r\n").into()).await;
        let (version, rest) = answer.split_once(' ').unwrap();
        assert!(version.starts_with("HTTP/1.") && rest.starts_with(status), "{head}: {answer}");
        assert_eq!(rest.contains("\"code\":\"invalid_host\""), status.starts_with("400"), "{answer}");
    }
    serving.abort();
}
