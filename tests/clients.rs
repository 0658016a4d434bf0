//! The server as others' clients meet it: the official OpenAI client, a tester of OpenAPI documents, a browser.

#[path = "support/server.rs"]
mod server;
mod support;

use accordion::server::KeyHash;
use server::{Server, Workspace};
use std::path::{Path, PathBuf};
use std::process::Command;
use support::CLASSES;

const KEY: &str = "open sesame";

/// What `scripts/setup.sh` installs for these tests.
struct Clients {
    bin: PathBuf,
}

impl Clients {
    fn find() -> Self {
        let cache = std::env::var_os("XDG_CACHE_HOME").filter(|path| !path.is_empty()).map(PathBuf::from);
        let cache = cache.unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache"));
        let bin = cache.join("accordion/clients/bin");
        require(&bin.join("python"));
        Self { bin }
    }

    /// Runs one of these programs from the folder of the clients, with the address of `server` for `SERVER`, and fails with what it says if it fails.
    #[track_caller]
    fn run(&self, program: &str, args: &[&str], server: &Server) {
        let args: Vec<String> = args.iter().map(|arg| arg.replace("SERVER", &server.address.to_string())).collect();
        let mut command = Command::new(self.bin.join(program));
        command.args(&args).current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients"));
        // No files beside the scripts, and nothing between them and the server.
        let scratch = tempfile::tempdir().unwrap();
        command.env("PYTHONDONTWRITEBYTECODE", "1").env("HYPOTHESIS_STORAGE_DIRECTORY", scratch.path());
        command.env("NO_PROXY", "*");
        let output = command.output().unwrap();
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{program} {args:?}:\n{said}");
        println!("{said}");
    }
}

#[track_caller]
fn require(path: &Path) {
    assert!(path.exists(), "{} is missing: scripts/setup.sh installs what these tests need", path.display());
}

#[test]
fn the_official_openai_client_works_unchanged() {
    let clients = Clients::find();
    let workspace = Workspace::new("");
    clients.run("python", &["openai_client.py", "http://SERVER"], &workspace.serve());
}

#[test]
fn schemathesis_finds_nothing_that_the_document_does_not_say() {
    let clients = Clients::find();
    let args = ["--config-file", "schemathesis.toml", "run", "http://SERVER/openapi.json"];
    for (classes, more) in [(&CLASSES[..], &[][..]), (&[], &["--include-tag", "images"])] {
        let workspace = Workspace::of(classes, "[limits]\nmax_n = 4\nmax_steps = 30");
        clients.run("schemathesis", &[&args, more].concat(), &workspace.serve());
    }
}

#[test]
fn the_playground_draws_in_a_browser() {
    for program in ["/usr/bin/chromium", "/usr/bin/chromedriver"] {
        require(program.as_ref());
    }
    let clients = Clients::find();
    let workspace = Workspace::new("");
    clients.run("python", &["playground.py", "http://SERVER"], &workspace.serve());
    let locked = Workspace::new(&format!("[auth]\nkey_hashes = [{:?}]", KeyHash::of(KEY).line()));
    clients.run("python", &["playground.py", "http://SERVER", KEY], &locked.serve());
}
