//! Requests to a server, and its answers.
#![allow(dead_code, reason = "not every test needs all of it")]

use super::server::{DEADLINE, JSON, Server};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: HashMap<String, String>,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn read(mut stream: TcpStream) -> std::io::Result<Self> {
        stream.set_read_timeout(Some(DEADLINE))?;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes)?;
        let split = bytes.windows(4).position(|four| four == b"\r\n\r\n").ok_or(std::io::ErrorKind::UnexpectedEof)?;
        let (head, body) = (String::from_utf8_lossy(&bytes[..split]).into_owned(), bytes[split + 4..].to_vec());
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let header = |line: &str| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned()));
        let headers: HashMap<String, String> = lines.filter_map(header).collect();
        assert_eq!(headers["content-length"].parse::<usize>().unwrap(), body.len(), "a whole body");
        Ok(Self { status, headers, body })
    }

    /// The body as text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// The stable code of an error's body.
    #[track_caller]
    pub fn code(&self) -> String {
        let body: serde_json::Value = serde_json::from_slice(&self.body).unwrap();
        assert!(!body["error"]["message"].as_str().unwrap().is_empty());
        body["error"]["code"].as_str().unwrap().to_owned()
    }

    #[track_caller]
    pub fn image(&self) -> Vec<u8> {
        assert_eq!(self.status, 200, "{}", String::from_utf8_lossy(&self.body));
        self.body.clone()
    }
}

/// Sends a request and leaves the connection open for its answer.
pub fn send(address: SocketAddr, request: &str, headers: &str, body: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    let length = body.len();
    let head =
        format!("{request} HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n");
    stream.write_all((head + body).as_bytes()).unwrap();
    stream
}

/// Asks for images and leaves the connection open for them.
pub fn ask(address: SocketAddr, query: &str, body: &str) -> TcpStream {
    send(address, &format!("POST /generate{query}"), JSON, body)
}

impl Server {
    pub fn get(&self, path: &str) -> Reply {
        Reply::read(send(self.address, &format!("GET {path}"), "", "")).unwrap()
    }

    pub fn generate(&self, query: &str, body: &str) -> Reply {
        Reply::read(ask(self.address, query, body)).unwrap()
    }
}
