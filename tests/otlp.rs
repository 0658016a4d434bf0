//! `--features otlp`: a collector on loopback gets the span of a request.

#[path = "support/server.rs"]
mod server;
#[allow(dead_code, reason = "what a server needs of it is little")]
mod support;

use server::{JSON, Running, Workspace, ask};
use std::io::{Read, Write};
use std::net::TcpListener;

/// The body of one POST.
fn receive(listener: &TcpListener) -> (String, Vec<u8>) {
    let (mut stream, _) = listener.accept().unwrap();
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let read = stream.read(&mut chunk).unwrap();
        bytes.extend(&chunk[..read]);
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
        let length =
            head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap().parse::<usize>().unwrap();
        if bytes.len() >= end + 4 + length {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").unwrap();
            return (head, bytes[end + 4..].to_vec());
        }
    }
}

#[test]
fn a_collector_gets_the_span_whose_id_the_answer_names() {
    let collector = TcpListener::bind("127.0.0.1:0").unwrap();
    let place = Workspace::new("[limits]\ndrain_grace_s = 0");
    let mut command = place.command();
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{}", collector.local_addr().unwrap()));
    let mut server = Running::start(&mut command);
    let address = server.address("ready");
    let parent = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n";
    let (head, _) = ask(address, "POST /generate", &(JSON.to_owned() + parent), "{}");
    let context = head.lines().find_map(|line| line.strip_prefix("traceparent: 00-")).unwrap();
    let (trace, rest) = context.split_once('-').unwrap();
    let (span, sampled) = rest.split_once('-').unwrap();
    assert_eq!((trace, sampled), ("0af7651916cd43dd8448eb211c80319c", "01"));

    // The end of the process sends what is still under way.
    server.terminate();
    let (request, body) = receive(&collector);
    assert!(request.starts_with("post /v1/traces ") && request.contains("content-type: application/x-protobuf"));
    let holds = |part: &[u8]| body.windows(part.len()).any(|window| window == part);
    let bytes =
        |hex: &str| (0..hex.len() / 2).map(|i| u8::from_str_radix(&hex[2 * i..][..2], 16).unwrap()).collect::<Vec<_>>();
    for part in [
        &bytes(trace)[..],
        &bytes(span),
        &bytes("b7ad6b7169203331"),
        b"POST /generate",
        b"http.route",
        b"accordion.plan",
        b"dpmpp2m-12@0.500",
    ] {
        assert!(holds(part), "{part:?} is not in {}", String::from_utf8_lossy(&body));
    }
    let (status, log) = server.ended();
    assert!(status.success(), "{log}");
}

#[test]
fn without_a_collector_the_server_serves_and_says_that_traces_are_not_recorded() {
    let place = Workspace::new("");
    let mut server = Running::start(&mut place.command());
    let address = server.address("ready");
    let (head, _) = ask(address, "POST /generate", JSON, "{}");
    let context = head.lines().find_map(|line| line.strip_prefix("traceparent: 00-")).unwrap();
    assert!(head.starts_with("HTTP/1.1 200") && context.ends_with("-00"), "{head}");
}
