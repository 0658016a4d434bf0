//! Clients that break the rules, and load beyond all bounds: nothing hangs, nothing is lost, memory stays where it is.

#[path = "support/server.rs"]
mod server;
mod support;

use server::{DEADLINE, JSON, Server, Workspace, ask, until};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// Sends these bytes and leaves the connection open.
fn send(address: SocketAddr, bytes: &str) -> TcpStream {
    let mut stream = connect(address);
    stream.write_all(bytes.as_bytes()).unwrap();
    stream
}

fn request(query: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "POST /generate{query} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n{JSON}content-length: {length}\r\n\r\n{body}"
    )
}

/// The status of the answer, or `None` if the connection ended without one.
fn status(mut stream: TcpStream) -> Option<u16> {
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        // A reset ends an answer as well as a close does.
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        Err(error) => panic!("an answer that hangs: {error}"),
    }
    String::from_utf8_lossy(&answer).split(' ').nth(1)?.parse().ok()
}

/// The sum of a metric over its labels.
fn metric(address: SocketAddr, name: &str) -> f64 {
    let (_, page) = ask(address, "GET /metrics", "", "");
    let value = |line: &str| {
        let rest = line.strip_prefix(name)?;
        rest.starts_with(['{', ' ']).then(|| rest.rsplit_once(' '))??.1.parse::<f64>().ok()
    };
    page.lines().filter_map(value).sum()
}

fn serves(address: SocketAddr) {
    assert!(ask(address, "POST /generate?budget=fast", JSON, "{}").0.starts_with("HTTP/1.1 200"));
    assert_eq!(ask(address, "GET /livez", "", "").1, "ok");
}

fn start(settings: &str) -> (Server, SocketAddr) {
    // The process has read all that it needs when it is ready.
    let server = Workspace::new(settings).serve();
    let address = server.address;
    (server, address)
}

#[test]
fn malformed_requests_are_answered_or_cut_off_and_the_server_serves_on() {
    let (_server, address) = start("[limits]\nheader_timeout_s = 2\nbody_timeout_s = 2");
    let huge = "x".repeat(1 << 20);
    for (bytes, accepted) in [
        ("\0\0\0\0\r\n\r\n".to_owned(), &[Some(400)][..]),
        ("GET\r\n\r\n".to_owned(), &[Some(400)]),
        ("GET / HTTP/9.9\r\n\r\n".to_owned(), &[Some(400), None]),
        ("POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n".to_owned(), &[Some(400)]),
        ("POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999999999999\r\n\r\n".to_owned(), &[Some(400)]),
        (
            "POST /generate HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n".to_owned(),
            &[Some(415), Some(400)],
        ),
        (format!("GET /{huge} HTTP/1.1\r\nhost: x\r\n\r\n"), &[Some(414), Some(431)]),
        (format!("GET / HTTP/1.1\r\nhost: x\r\nx: {huge}\r\n\r\n"), &[Some(431)]),
        (request("", &huge), &[Some(413)]),
        ("GET / HTTP/1.1\r\nconnection: close\r\n\r\n".to_owned(), &[Some(400)]),
        ("GET / HTTP/1.1\r\nhost: x\r\nhost: y\r\nconnection: close\r\n\r\n".to_owned(), &[Some(400)]),
        (request(&format!("?budget={}", "9".repeat(4000)), "{}"), &[Some(400)]),
        (request("?budget=%ff%00", "{}"), &[Some(400)]),
        (request("", &"[".repeat(60_000)), &[Some(400)]),
        (request("", &format!("{{\"class\":\"{}\"}}", "\u{1F9E6}".repeat(1000))), &[Some(400)]),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), &[Some(400), None]),
    ] {
        let mut stream = connect(address);
        // The server may have hung up before it was told everything.
        let _ = stream.write_all(bytes.as_bytes());
        let found = status(stream);
        assert!(accepted.contains(&found), "{:?} got {found:?}", &bytes[..bytes.len().min(80)]);
    }
    serves(address);
}

#[test]
fn a_thousand_slow_connections_neither_stop_the_server_nor_stay() {
    let (_server, address) = start("[limits]\nheader_timeout_s = 3\nmax_connections = 1200");
    // A thousand heads that never end, and some bodies that never come.
    let mut slow: Vec<TcpStream> =
        (0..1000).map(|_| send(address, "POST /generate HTTP/1.1\r\nhost: x\r\nx-slow: a")).collect();
    for stream in slow.iter_mut().take(100) {
        let _ = stream.write_all(b"a");
    }
    serves(address);
    let ended = slow.into_iter().map(status).filter(|status| *status != Some(200)).count();
    assert_eq!(ended, 1000, "all are cut off, none is served");
    serves(address);
}

#[test]
fn a_client_that_closes_its_side_gets_its_image_or_frees_its_place() {
    let (_server, address) = start("");
    let streams: Vec<TcpStream> = (0..20)
        .map(|_| {
            let stream = send(address, &request("?budget=fast", "{}"));
            stream.shutdown(Shutdown::Write).unwrap();
            stream
        })
        .collect();
    // Nothing tells a client that has said all from one that has gone, and places are freed for those that go.
    let ended = streams.into_iter().map(status).filter(|status| matches!(status, Some(200) | None)).count();
    assert_eq!(ended, 20, "none hangs");
    until("an empty engine", || metric(address, "accordion_active_images") == 0.0);
    serves(address);
}

#[test]
fn a_storm_of_cancellations_leaves_nothing_behind() {
    let (_server, address) = start("");
    let long = "?budget=exact:heun-250@full";
    for round in 0..20 {
        let streams: Vec<TcpStream> =
            (0..10).map(|i| send(address, &request(long, &format!("{{\"seed\":{i},\"n\":4}}")))).collect();
        if round % 2 == 0 {
            until("something runs", || metric(address, "accordion_active_images") > 0.0);
        }
        drop(streams);
    }
    until("an empty engine", || {
        metric(address, "accordion_active_images") == 0.0
            && metric(address, "accordion_queue_images") == 0.0
            && metric(address, "accordion_queue_work_seconds") == 0.0
    });
    serves(address);
}

#[test]
fn sigterm_at_full_load_loses_nothing_that_was_admitted() {
    let (server, address) = start("[limits]\ndrain_grace_s = 0");
    let clients: Vec<_> = (0..16)
        .map(|client| {
            std::thread::spawn(move || {
                let (mut served, mut refused) = (0, 0);
                // Until the door is shut.
                for seed in 0..10_000 {
                    let Ok(mut stream) = TcpStream::connect(address) else { break };
                    stream.set_read_timeout(Some(DEADLINE)).unwrap();
                    let body = format!("{{\"seed\":{}}}", 16 * seed + client);
                    if stream.write_all(request("?budget=2s", &body).as_bytes()).is_err() {
                        break;
                    }
                    match status(stream) {
                        Some(200) => served += 1,
                        Some(429 | 503) => refused += 1,
                        // Accepted by the system, never by the server.
                        None => break,
                        Some(other) => panic!("an admitted request got {other}"),
                    }
                }
                (served, refused)
            })
        })
        .collect();
    until("load", || metric(address, "accordion_images_total") > 50.0);
    server.terminate();
    let counts: Vec<(u32, u32)> = clients.into_iter().map(|client| client.join().unwrap()).collect();
    let (status, log) = server.ended();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(counts.iter().map(|count| count.0).sum::<u32>() > 50);
    assert!(!log.contains("left unfinished") && !log.contains("failed"), "{log}");
}

/// Resident memory of the server, in bytes.
fn resident(address: SocketAddr) -> f64 {
    metric(address, "process_resident_memory_bytes")
}

#[test]
fn memory_stays_bounded_under_overload() {
    let seconds: f64 = std::env::var("OVERLOAD_SECONDS").map_or(4.0, |text| text.parse().unwrap());
    let (_server, address) = start("queue_images = 64");
    let storm = |until: Instant| {
        let client = move |client: u64| {
            let mut answers = [0u64; 2];
            for seed in 0.. {
                if Instant::now() >= until {
                    break;
                }
                let body = format!("{{\"seed\":{},\"n\":8}}", 32 * seed + client);
                let stream = send(address, &request("?budget=exact:dpmpp2m-40@full", &body));
                if seed % 5 == 4 {
                    continue; // goes away at once
                }
                match status(stream) {
                    Some(200) => answers[0] += 1,
                    Some(429) => answers[1] += 1,
                    other => panic!("{other:?}"),
                }
            }
            answers
        };
        let clients: Vec<_> = (0..32).map(|index| std::thread::spawn(move || client(index))).collect();
        clients.into_iter().map(|client| client.join().unwrap()).fold([0, 0], |a, b| [a[0] + b[0], a[1] + b[1]])
    };
    let now = Instant::now();
    let part = Duration::from_secs_f64(seconds / 2.0);
    storm(now + part);
    let before = resident(address);
    let [served, refused] = storm(Instant::now() + part);
    let after = resident(address);
    println!("{seconds} s: {served} served, {refused} refused, {before:.3e} to {after:.3e} bytes");
    assert!(served > 0 && refused > 0, "{served} {refused}: no overload");
    assert!(after < 1.2 * before + 16e6, "{before} to {after} bytes");
    until("an empty engine", || metric(address, "accordion_active_images") == 0.0);
    serves(address);
}
