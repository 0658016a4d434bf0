//! What happens when nobody reads, or nobody can write, what the binary says.

#[path = "support/server.rs"]
mod server;
mod support;

use server::{DEADLINE, JSON, Workspace, ask, until};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use support::{accordion, assert_refused, text};

/// A file that every write to fails with "no space left".
const FULL: &str = "/dev/full";

fn full() -> Stdio {
    File::options().write(true).open(FULL).unwrap().into()
}

/// The writing end of a pipe whose reader has gone.
fn closed() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

/// An address that is free now: for servers whose log nobody reads.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Draws images, then stops the server and asserts that it ended as it should.
#[track_caller]
fn assert_serves(mut server: Child, address: SocketAddr) {
    until("the server's readiness", || {
        TcpStream::connect(address).is_ok() && ask(address, "GET /readyz", "", "").0.starts_with("HTTP/1.1 200")
    });
    for _ in 0..3 {
        assert!(ask(address, "POST /generate", JSON, "{}").0.starts_with("HTTP/1.1 200"));
    }
    assert!(Command::new("kill").arg(server.id().to_string()).status().unwrap().success());
    until("the server's end", || server.try_wait().unwrap().is_some());
    assert!(server.wait().unwrap().success());
}

#[test]
fn a_log_that_cannot_be_written_does_not_end_the_server() {
    let place = Workspace::new("[limits]\ndrain_grace_s = 0");
    for stderr in [full(), closed()] {
        let address = free_address();
        let mut command = place.serve_command(&address.to_string());
        assert_serves(command.env("ACCORDION_LOG", "debug").stderr(stderr).spawn().unwrap(), address);
    }
}

#[test]
fn a_log_whose_reader_has_stopped_does_not_stop_the_server() {
    let place = Workspace::new("[limits]\ndrain_grace_s = 0");
    let address = free_address();
    // More lines than the pipe and the queue hold, and nobody reads them until the server is at its end.
    let mut command = place.serve_command(&address.to_string());
    let mut server = command.env("ACCORDION_LOG", "trace").stderr(Stdio::piped()).spawn().unwrap();
    let mut log = server.stderr.take().unwrap();
    let mut line = String::new();
    BufReader::new(&mut log).read_line(&mut line).unwrap();
    assert!(!line.is_empty());
    assert_serves(server, address);
    drop(log);
}

#[test]
fn lines_that_were_lost_are_counted_in_the_log_once_it_writes_again() {
    let place = Workspace::new("[limits]\ndrain_grace_s = 0");
    let address = free_address();
    let mut command = place.serve_command(&address.to_string());
    // Each request is at least a line; the pipe holds 64 KiB of them.
    let path = format!("GET /{}", "x".repeat(4000));
    let mut server = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut log = server.stderr.take().unwrap();
    until("the server's readiness", || {
        TcpStream::connect(address).is_ok() && ask(address, "GET /readyz", "", "").0.starts_with("HTTP/1.1 200")
    });
    // The queue is said to hold 4,096 lines.
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut answers = BufReader::new(stream.try_clone().unwrap());
    for _ in 0..4200 {
        stream.write_all(format!("{path} HTTP/1.1\r\nhost: test\r\n\r\n").as_bytes()).unwrap();
        let mut length = 0;
        loop {
            let mut line = String::new();
            answers.read_line(&mut line).unwrap();
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line == "\r\n" {
                break;
            }
        }
        answers.read_exact(&mut vec![0; length]).unwrap();
    }
    let reader = std::thread::spawn(move || {
        let mut all = String::new();
        log.read_to_string(&mut all).unwrap();
        all
    });
    assert_serves(server, address);
    let log = reader.join().unwrap();
    let said = log.lines().find(|line| line.contains("log lines were lost")).expect("the count of lost lines");
    let lost: u64 = said.split_once("lost=").unwrap().1.trim().parse().unwrap();
    assert!((1..4200).contains(&lost), "{said}");
}

/// Runs a command with this stdout, and its stdin from `input`.
fn run(args: &[&str], input: &str, stdout: Stdio) -> Output {
    let mut command = accordion(args);
    let mut child = command.stdin(Stdio::piped()).stdout(stdout).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn a_result_that_cannot_be_written_is_a_failure_in_one_sentence_and_a_closed_pipe_a_quiet_one() {
    let place = Workspace::new("");
    let (config, model) = (place.path("serve.toml"), place.path("model"));
    let check = ["serve", "--check-config", "--config", text(&config), "--model", text(&model)];
    let bench = ["bench", "--model", text(&model), "--subnets", "full", "--batches", "1", "--seconds", "0.01"];
    for (args, input) in [
        (&["hash-key"][..], "correct-horse-battery-staple\n"),
        (&["--help"], ""),
        (&["train", "--help"], ""),
        (&["--version"], ""),
        (&check, ""),
        (&bench, ""),
    ] {
        let output = run(args, input, full());
        let stderr = String::from_utf8(output.stderr).unwrap();
        let error: Vec<&str> = stderr.lines().filter(|line| line.starts_with("error: ")).collect();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {stderr}");
        assert_eq!(error.len(), 1, "{args:?}: {stderr}");
        assert!(error[0].contains("could not be written to stdout: No space left"), "{args:?}: {stderr}");
        let output = run(args, input, closed());
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {stderr}");
        assert!(!stderr.contains("error") && !stderr.contains("panicked"), "{args:?}: {stderr}");
    }
}

#[test]
fn a_profile_that_was_measured_is_kept_where_its_summary_cannot_be_written() {
    let place = Workspace::new("");
    let (model, out) = (place.path("model"), place.path("profile.toml"));
    let args = ["profile", "--model", text(&model), "--images", "2", "--batches", "1", "--seconds", "0.01"];
    let output = run(&[&args[..], &["--out", text(&out)]].concat(), "", full());
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(std::fs::read_to_string(&out).unwrap().contains("[[frontier]]"));
}

#[test]
fn a_refusal_that_cannot_be_written_is_still_its_exit_code() {
    for stderr in [full(), closed()] {
        let mut refused = accordion(&["serve", "--config", "/no/such.toml"]);
        assert_eq!(refused.stderr(stderr).status().unwrap().code(), Some(2));
    }
    for stderr in [full(), closed()] {
        assert_eq!(accordion(&["no-such-command"]).stderr(stderr).status().unwrap().code(), Some(2));
    }
}

#[test]
fn an_empty_variable_counts_as_not_set_but_for_the_keys() {
    let place = Workspace::new("threads = 1\npin = true");
    let check = |variable: &str, value: &str| {
        let mut command = place.command();
        command.arg("--check-config").env(variable, value).output().unwrap()
    };
    for variable in
        ["THREADS", "DEVICES", "PRECISION", "MAX_BATCH", "QUEUE_IMAGES", "PIN", "AGENT_LISTEN", "LOG_FORMAT", "LOG"]
    {
        for value in ["", " "] {
            let output = check(&format!("ACCORDION_{variable}"), value);
            assert!(output.status.success(), "{variable}: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
    assert_eq!(check("ACCORDION_THREADS", "many").status.code(), Some(2));
    assert_refused(&check("ACCORDION_LOG", "a=b=c"), &["ACCORDION_LOG: `a=b=c` is no filter"]);
    for nothing in ["", " ", ",", " , ,"] {
        assert_refused(&check("ACCORDION_KEY_HASHES", nothing), &["key-hashes", "holds no key", "accordion hash-key"]);
    }
    assert_refused(&place.command().args(["--check-config", "--key-hashes", ""]).output().unwrap(), &["holds no key"]);
}

#[test]
fn a_variable_that_nothing_knows_is_named() {
    let place = Workspace::new("");
    let mut command = place.command();
    // As a slip of the finger, and as Kubernetes sets them for a service called accordion.
    command.arg("--check-config").env("ACCORDION_KEY_HASH", "sha256:00");
    command.env("ACCORDION_SERVICE_HOST", "10.0.0.1").env("ACCORDION_PORT_8080_TCP", "tcp://10.0.0.1:8080");
    let output = command.output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{stderr}");
    let warnings: Vec<&str> = stderr.lines().filter(|line| line.contains("variables")).collect();
    assert!(warnings.len() == 1 && warnings[0].contains("ACCORDION_KEY_HASH"), "{stderr}");
    assert!(!stderr.contains("sha256"), "{stderr}");
}
