//! A server process that a test talks to over a socket.

use super::support::{CLASSES, accordion, text, write_model};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;
use tempfile::TempDir;

/// Longer than anything here takes, also on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// A model directory `model` and a config `serve.toml` in a folder.
pub struct Place(TempDir);

impl Place {
    /// `settings` are the config.
    pub fn new(settings: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        write_model(&dir.path().join("model"), &CLASSES);
        std::fs::write(dir.path().join("serve.toml"), settings).unwrap();
        Self(dir)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// `accordion serve`, on a port that the system chooses.
    pub fn command(&self) -> Command {
        let (config, model) = (self.path("serve.toml"), self.path("model"));
        accordion(&["serve", "--config", text(&config), "--model", text(&model), "--listen", "127.0.0.1:0"])
    }
}

/// A process with its log; killed when dropped.
pub struct Running {
    child: Child,
    lines: Receiver<String>,
    /// What it has logged so far, as far as a test has waited for it.
    pub log: String,
}

impl Running {
    pub fn start(command: &mut Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (send, lines) = channel();
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
        Self { child, lines, log: String::new() }
    }

    /// Waits for a line of the log with `what` in it; what follows `what`.
    #[track_caller]
    pub fn logs(&mut self, what: &str) -> String {
        loop {
            let line = self.lines.recv_timeout(DEADLINE).unwrap_or_else(|_| panic!("no {what} in {}", self.log));
            self.log += &format!("{line}\n");
            if let Some((_, rest)) = line.split_once(what) {
                return rest.to_owned();
            }
        }
    }

    /// The address in the line of the log with `what` in it.
    #[track_caller]
    pub fn address(&mut self, what: &str) -> SocketAddr {
        self.logs(&format!("{what} address=")).split_whitespace().next().unwrap().parse().unwrap()
    }

    pub fn terminate(&self) {
        assert!(Command::new("kill").arg(self.child.id().to_string()).status().unwrap().success());
    }

    /// Waits for the end of the process; its status and all of its log.
    pub fn ended(mut self) -> (ExitStatus, String) {
        let log = std::mem::take(&mut self.log);
        let log = self.lines.iter().fold(log, |log, line| log + &line + "\n");
        (self.child.wait().unwrap(), log)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The answer to a request: its head, and its body as text.
#[track_caller]
pub fn ask(address: SocketAddr, request: &str, headers: &str, body: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let length = body.len();
    let head =
        format!("{request} HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n");
    stream.write_all((head + body).as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer}"));
    (head.to_owned(), body.to_owned())
}

pub const JSON: &str = "content-type: application/json\r\n";
