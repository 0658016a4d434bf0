//! `accordion serve` as an operator meets it: probes, logs, keys, signals.

#[path = "support/server.rs"]
mod server;
mod support;

use server::{JSON, Running, Workspace, ask};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};
use support::{accordion, assert_refused, text};

#[test]
fn probes_are_answered_while_the_model_loads() {
    let place = Workspace::new("[limits]\ndrain_grace_s = 0");
    // The model's card comes through a pipe: loading waits until the test writes it.
    let card = place.path("model/model.toml");
    let content = std::fs::read(&card).unwrap();
    std::fs::remove_file(&card).unwrap();
    assert!(Command::new("mkfifo").arg(&card).status().unwrap().success());
    let mut server = Running::start(place.command().env("ACCORDION_LOG", "debug"));
    let address = server.address("listening");
    assert!(ask(address, "GET /livez", "", "").0.starts_with("HTTP/1.1 200"));
    for request in ["GET /readyz", "GET /health", "POST /generate"] {
        let (head, body) = ask(address, request, JSON, "{}");
        assert!(head.starts_with("HTTP/1.1 503") && head.contains("retry-after: 5"), "{head}");
        assert!(body.contains("\"code\":\"starting\""), "{body}");
    }
    // Who reads it the first time waits at the pipe; after that it is the file again.
    let mut pipe = std::fs::OpenOptions::new().write(true).open(&card).unwrap();
    let file = place.path("model/card");
    std::fs::write(&file, &content).unwrap();
    std::fs::rename(file, &card).unwrap();
    pipe.write_all(&content).unwrap();
    drop(pipe);
    assert_eq!(server.address("ready"), address);
    assert_eq!(ask(address, "GET /readyz", "", "").1, "ok");
    assert!(ask(address, "POST /generate", JSON, "{}").0.starts_with("HTTP/1.1 200"));
    server.terminate();
    let (status, log) = server.ended();
    assert!(status.success(), "{log}");
}

#[test]
fn a_model_that_cannot_be_loaded_ends_the_server() {
    let place = Workspace::new("");
    std::fs::write(place.path("model/model.toml"), "name = 1").unwrap();
    assert_refused(&place.command().output().unwrap(), &[text(&place.path("model/model.toml")), "name"]);
}

#[test]
fn sigterm_fails_readiness_first_and_a_second_one_ends_at_once() {
    let place = Workspace::new("[limits]\ndrain_grace_s = 3600");
    let mut server = Running::start(&mut place.command());
    let address = server.address("ready");
    server.terminate();
    server.logs("leaving");
    let (head, body) = ask(address, "GET /readyz", "", "");
    assert!(head.starts_with("HTTP/1.1 503") && body.contains("draining"), "{head}");
    assert!(ask(address, "GET /livez", "", "").0.starts_with("HTTP/1.1 200"));
    assert!(ask(address, "POST /generate", JSON, "{}").0.starts_with("HTTP/1.1 200"));
    server.terminate();
    let (status, log) = server.ended();
    assert!(status.success() && !log.contains("draining"), "{log}");
}

#[test]
fn a_hangup_ends_nothing_however_the_server_was_started() {
    let place = Workspace::new("[limits]\ndrain_grace_s = 3600");
    for started in ["--default-signal=HUP", "--ignore-signal=HUP"] {
        let mut server = Running::start(&mut place.command_under("env", &[started]));
        let address = server.address("ready");
        server.signal("-HUP");
        server.logs("the models are as they are listed");
        assert!(ask(address, "GET /readyz", "", "").0.starts_with("HTTP/1.1 200"));
        // While the server leaves, it does nothing.
        server.terminate();
        server.logs("leaving");
        server.signal("-HUP");
        assert!(ask(address, "POST /generate", JSON, "{}").0.starts_with("HTTP/1.1 200"));
        server.terminate();
        let (status, log) = server.ended();
        assert!(status.success() && log.matches("the models are").count() == 1, "{log}");
    }
}

#[test]
fn too_few_descriptors_are_raised_or_else_said() {
    let place = Workspace::new("[limits]\nmax_connections = 300");
    let limits = |ulimit: &str| place.command_under("sh", &["-c", &format!("{ulimit} && exec \"$@\""), "sh"]);
    let mut server = Running::start(&mut limits("ulimit -n 256"));
    let warning = server.logs("the limit of file descriptors is below what limits.max_connections needs");
    assert!(warning.contains("limit=256 needed=396 max_connections=300"), "{warning}");
    server.address("ready");
    drop(server);

    let mut server = Running::start(&mut limits("ulimit -Sn 256 && ulimit -Hn 1000"));
    let address = server.address("ready");
    assert!(!server.log.contains("descriptors"), "{}", server.log);
    assert!(ask(address, "GET /metrics", "", "").1.contains("\nprocess_max_fds 1000\n"));
}

#[test]
fn a_healthcheck_succeeds_while_requests_are_welcome() {
    let place = Workspace::new("[limits]\ndrain_grace_s = 3600");
    let mut server = Running::start(&mut place.command());
    let address = server.address("ready");
    // Where it listens is in the config, as in an image.
    let config = place.path("probe.toml");
    std::fs::write(&config, format!("listen = \"{address}\"")).unwrap();
    let check = || accordion(&["healthcheck", "--config", text(&config)]).output().unwrap();
    assert_eq!(check().status.code(), Some(0), "{:?}", check());
    server.terminate();
    server.logs("leaving");
    assert_unready(&check(), address, "draining");
    server.terminate();
    server.ended();
    assert_unready(&check(), address, "refused");
}

#[test]
fn a_healthcheck_does_not_wait_for_a_server_that_hangs() {
    // The system accepts the connection; nobody answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    let output = accordion(&["healthcheck", "--listen", &address.to_string()]).output().unwrap();
    assert_unready(&output, address, "no answer within");
    assert_refused(&accordion(&["healthcheck", "--config", "/no/such.toml"]).output().unwrap(), &["/no/such.toml"]);
}

/// Asserts exit code 1, which a container's runtime takes for unhealthy, and one sentence with the address and `why`.
#[track_caller]
fn assert_unready(output: &Output, address: SocketAddr, why: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.starts_with(&format!("error: {address}: ")) && stderr.contains(why), "{stderr}");
    assert_eq!(stderr.trim_end().lines().count(), 1, "{stderr}");
}

#[test]
fn a_key_opens_the_server_and_no_log_shows_it() {
    const KEY: &str = "correct-horse-battery-staple";
    let mut hashing = accordion(&["hash-key"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    hashing.stdin.take().unwrap().write_all(format!("{KEY}\n").as_bytes()).unwrap();
    let output = hashing.wait_with_output().unwrap();
    let hash = String::from_utf8(output.stdout).unwrap().trim_end().to_owned();

    let place = Workspace::new("log_format = 'text'");
    let mut command = place.command();
    command.args(["--log-format", "json"]).env("ACCORDION_LOG", "trace").env("ACCORDION_KEY_HASHES", &hash);
    let mut server = Running::start(&mut command);
    server.logs("\"message\":\"ready\"");
    let ready: serde_json::Value = serde_json::from_str(server.log.lines().last().unwrap()).unwrap();
    let address = ready["address"].as_str().unwrap().parse().unwrap();
    let trace = "0af7651916cd43dd8448eb211c80319c";
    for (authorization, status) in [
        (String::new(), "401"),
        (format!("authorization: Bearer {KEY}x\r\n"), "401"),
        (format!("authorization: Bearer {hash}\r\n"), "401"),
        (
            format!(
                "authorization: Bearer {KEY}\r\nx-request-id: id-7\r\ntraceparent: 00-{trace}-b7ad6b7169203331-01\r\n"
            ),
            "200",
        ),
    ] {
        let (head, _) = ask(address, "POST /generate?budget=fast", &(JSON.to_owned() + &authorization), "{}");
        assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{authorization}: {head}");
        assert_eq!(head.contains("www-authenticate: Bearer"), status == "401");
        assert_eq!(
            head.contains("x-request-id: id-7") && head.contains(&format!("traceparent: 00-{trace}-")),
            status == "200"
        );
    }
    assert!(ask(address, "GET /metrics", "", "").1.contains("\nprocess_resident_memory_bytes "));
    server.terminate();
    server.terminate();
    let (status, log) = server.ended();
    assert!(status.success(), "{log}");
    let lines: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let answered = lines.iter().find(|line| line["span"]["id"] == "id-7").unwrap_or_else(|| panic!("{log}"));
    assert_eq!((&answered["message"], &answered["status"]), (&"answered".into(), &200.into()));
    assert_eq!((&answered["span"]["trace"], &answered["path"]), (&trace.into(), &"/generate".into()));
    let digits = hash.strip_prefix("sha256:").unwrap();
    assert!(!log.contains(KEY) && !log.contains(digits), "{log}");
}

/// Sends a request for events and goes away when the first step was told.
fn leave_midway(address: SocketAddr, query: &str, id: &str) {
    let mut stream = TcpStream::connect(address).unwrap();
    let body = r#"{"n":16}"#;
    let headers = format!("accept: text/event-stream\r\nx-request-id: {id}\r\n{JSON}");
    let length = body.len();
    write!(stream, "POST /generate{query} HTTP/1.1\r\nhost: test\r\ncontent-length: {length}\r\n{headers}\r\n{body}")
        .unwrap();
    let mut told = Vec::new();
    while !String::from_utf8_lossy(&told).contains("event: step") {
        let mut some = [0; 1024];
        let read = stream.read(&mut some).unwrap();
        assert!(read > 0, "{}", String::from_utf8_lossy(&told));
        told.extend(&some[..read]);
    }
}

#[test]
fn a_request_is_logged_when_it_ends_with_its_plan_and_whether_its_client_stayed() {
    let place = Workspace::new("");
    let mut server = Running::start(place.command().args(["--log-format", "json"]));
    server.logs("\"message\":\"ready\"");
    let last =
        |server: &Running| -> serde_json::Value { serde_json::from_str(server.log.lines().last().unwrap()).unwrap() };
    let address = last(&server)["address"].as_str().unwrap().parse().unwrap();
    let long = "exact:heun-250@full";
    let headers = |id: &str| format!("accept: text/event-stream\r\nx-request-id: {id}\r\n{JSON}");
    let (head, events) = ask(address, "POST /generate?budget=fast", &headers("stays"), "{}");
    assert!(head.starts_with("HTTP/1.1 200") && events.contains("event: image"), "{head}");
    leave_midway(address, &format!("?budget={long}"), "leaves");
    leave_midway(address, &format!("?budget={long}&keep=true"), "is-kept");
    // The last one ends when its images are there.
    for (id, message, plan) in [
        ("stays", "answered", "dpmpp2m-4@0.250"),
        ("leaves", "the client went away", long.strip_prefix("exact:").unwrap()),
        ("is-kept", "the client went away: its images are kept", long.strip_prefix("exact:").unwrap()),
    ] {
        server.logs(&format!("\"id\":\"{id}\""));
        let line = last(&server);
        assert_eq!((&line["message"], &line["status"], &line["plan"]), (&message.into(), &200.into(), &plan.into()));
        let ms = line["ms"].as_f64().unwrap();
        assert_eq!(ms.to_string(), format!("{:.1}", ms).trim_end_matches(".0"), "{line}");
    }
    let (head, _) = ask(address, "GET /generate/is-kept", "", "");
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("content-type: image/png"), "{head}");
    let (page, counted) = (ask(address, "GET /metrics", "", "").1, "accordion_request_seconds_count");
    assert!(
        page.contains(&format!("{counted}{{budget=\"fast\"}} 1"))
            && !page.contains(&format!("{counted}{{budget=\"exact\""))
    );
}

#[test]
fn a_key_given_in_place_of_its_hash_is_refused_and_not_shown() {
    let place = Workspace::new("");
    let output = place.command().env("ACCORDION_KEY_HASHES", "my-plain-key").output().unwrap();
    assert_refused(&output, &["--key-hashes", "entry 0", "accordion hash-key"]);
    assert!(!String::from_utf8_lossy(&output.stderr).contains("my-plain-key"));
    for text in ["", "\n", "two words\n", "two\nlines\n"] {
        let mut hashing = accordion(&["hash-key"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        hashing.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        assert_refused(&hashing.wait_with_output().unwrap(), &["stdin", "one line of visible ASCII"]);
    }
}

#[test]
fn a_config_is_checked_without_serving() {
    let place = Workspace::new("");
    let check = || place.command().arg("--check-config").output().unwrap();
    let output = check();
    let config = place.path("serve.toml");
    assert!(output.status.success(), "{output:?}");
    let line = String::from_utf8(output.stdout).unwrap();
    assert_eq!(line, format!("{}: accepted, with model tiny of 4 subnets\n", text(&config)));

    std::fs::write(&config, "[budgets.fast]\nquality = 2").unwrap();
    assert_refused(&check(), &[text(&config), "budgets.fast: quality"]);
    std::fs::write(&config, "cors_origins = [\"example.com\"]").unwrap();
    assert_refused(&check(), &[text(&config), "cors_origins: `example.com`"]);
    std::fs::write(&config, "").unwrap();
    std::fs::remove_file(place.path("model/supernet.safetensors")).unwrap();
    assert_refused(&check(), &[text(&place.path("model/supernet.safetensors"))]);
}

#[test]
fn the_agent_s_port_says_ready_and_then_drain() {
    let place = Workspace::new("agent_listen = \"127.0.0.1:0\"\n[limits]\ndrain_grace_s = 3600");
    let mut server = Running::start(&mut place.command());
    let agent = server.address("answering agent-checks");
    server.address("ready");
    let says = || {
        let mut line = String::new();
        TcpStream::connect(agent).unwrap().read_to_string(&mut line).unwrap();
        line
    };
    assert_eq!(says(), "ready 100% up\n");
    server.terminate();
    server.logs("leaving");
    assert_eq!(says(), "drain\n");
}
