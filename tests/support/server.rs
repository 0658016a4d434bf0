//! The real binary serving a tiny model, for the tests that meet it over a socket.
#![allow(dead_code, reason = "not every test needs all of it")]

use super::support::{CLASSES, accordion, text, write_model, write_text_model};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Longer than anything takes that is waited for, also on a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(60);
/// The budgets of [`Workspace`]'s config.
pub const BUDGETS: &str = r#"
[budgets.fast]
quality = 0.7
[budgets.balanced]
quality = 0.9
"#;
/// A made-up frontier, so that the tests know which plan a budget is; the times are measured at the start, since no
/// machine is called that. Each plan has about three times the calls of the one before, so that they stay in this order on a
/// machine that other tests disturb.
const PROFILE: &str = r#"
format = 5
weight_bytes = 1
[device]
processor = "made up"
threads = 1
instruction_set = "none"
[quality]
metric = "mse-to-reference"
definition = "made up"
images = 2
one = 0.0
zero = 1.0
[[latency]]
subnet = "0.250"
batch = 1
ms = 1.0
[[latency]]
subnet = "0.500"
batch = 1
ms = 1.0
[[latency]]
subnet = "0.750"
batch = 1
ms = 1.0
[[latency]]
subnet = "full"
batch = 1
ms = 1.0
[[frontier]]
plan = "dpmpp2m-4@0.250"
distance = 0.3
quality = 0.7
error = 0.0
[[frontier]]
plan = "dpmpp2m-12@0.500"
distance = 0.1
quality = 0.9
error = 0.0
[[frontier]]
plan = "heun-18@full"
distance = 0.0
quality = 1.0
error = 0.0
"#;

/// A model directory `model` and a server config `serve.toml` in a folder.
pub struct Workspace {
    dir: TempDir,
}

impl Workspace {
    /// With the usual classes.
    pub fn new(settings: &str) -> Self {
        Self::of(&CLASSES, settings)
    }

    /// `settings` are the config before its budgets.
    pub fn of(classes: &[&str], settings: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        write_model(&dir.path().join("model"), classes);
        std::fs::write(dir.path().join("model/profile.toml"), PROFILE).unwrap();
        std::fs::write(dir.path().join("serve.toml"), format!("{settings}\n{BUDGETS}")).unwrap();
        Self { dir }
    }

    /// The same with the tiny pipeline of the golden values, which draws texts, in two sizes.
    pub fn of_texts(settings: &str) -> Self {
        let workspace = Self::new(settings);
        std::fs::remove_dir_all(workspace.path("model")).unwrap();
        write_text_model(&workspace.path("model"), &["128x128", "160x64"]);
        workspace.profile(&["full"]);
        workspace
    }

    /// Writes the made-up profile of a model of latents with these decoders.
    pub fn profile(&self, decoders: &[&str]) {
        let rows = decoders.iter().map(|name| format!("[[decode]]\nsubnet = \"{name}\"\nms = 1.0\n"));
        std::fs::write(self.path("model/profile.toml"), rows.fold(PROFILE.to_owned(), |text, row| text + &row))
            .unwrap();
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The command that serves the model.
    pub fn serve_command(&self, listen: &str) -> Command {
        let (config, model) = (self.path("serve.toml"), self.path("model"));
        accordion(&["serve", "--config", text(&config), "--model", text(&model), "--listen", listen])
    }

    /// `accordion serve`, on a port that the system chooses.
    pub fn command(&self) -> Command {
        self.serve_command("127.0.0.1:0")
    }

    /// As [`Self::command`], run by another program, which becomes it.
    pub fn command_under(&self, program: &str, args: &[&str]) -> Command {
        let served = self.command();
        let mut command = Command::new(program);
        command.args(args).arg(served.get_program()).args(served.get_args());
        for (name, value) in served.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command
    }

    /// Serves on a free port.
    pub fn serve(&self) -> Server {
        self.serve_with(&[])
    }

    /// Serves on a free port, with more arguments.
    pub fn serve_with(&self, args: &[&str]) -> Server {
        let started = Instant::now();
        let mut running = Running::start(self.command().args(args));
        let address = running.address("ready");
        println!("ready after {:.0} ms", started.elapsed().as_secs_f64() * 1e3);
        Server { running, address }
    }
}

/// A server that is ready; killed when dropped.
pub struct Server {
    running: Running,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Server {
    /// Sends SIGTERM.
    pub fn terminate(&self) {
        self.running.terminate();
    }

    /// Waits for the end of the process; its status and its log.
    pub fn ended(self) -> (ExitStatus, String) {
        self.running.ended()
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
        self.signal("-TERM");
    }

    /// Sends a signal, such as `-HUP`.
    pub fn signal(&self, signal: &str) {
        assert!(Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap().success());
    }

    /// What Linux says of the process under a name of `/proc/*/status`.
    #[track_caller]
    pub fn status(&self, name: &str) -> String {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        value.unwrap_or_else(|| panic!("no {name} in {status}")).trim().to_owned()
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

/// Polls until `holds`.
#[track_caller]
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < DEADLINE, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(2));
    }
}
