//! The server as others' clients meet it: the official OpenAI clients, a tester of OpenAPI documents, a browser, a proxy.

#[path = "support/server.rs"]
mod server;
mod support;

use accordion::server::KeyHash;
use server::{Server, Workspace, until};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use support::{CLASSES, text};
use tempfile::TempDir;

const KEY: &str = "open sesame";

/// What `scripts/setup.sh` installs for these tests.
struct Clients {
    folder: PathBuf,
}

impl Clients {
    fn find() -> Self {
        let cache = std::env::var_os("XDG_CACHE_HOME").filter(|path| !path.is_empty()).map(PathBuf::from);
        let cache = cache.unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache"));
        let folder = cache.join("accordion/clients");
        for installed in ["bin/python", "node_modules/openai", "nginx/usr/sbin/nginx"] {
            require(&folder.join(installed));
        }
        Self { folder }
    }

    /// nginx in front of `server`, with Debian's defaults but for the size of a body.
    fn proxy(&self, server: &Server) -> Proxy {
        let folder = tempfile::tempdir().unwrap();
        // Free a moment ago: nginx chooses no port itself.
        let free = |_| TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let [plain, reusing] = [(); 2].map(free);
        let config = include_str!("clients/nginx.conf").replace("SERVER", &server.address.to_string());
        let config = config.replace("PLAIN", &plain.to_string()).replace("REUSING", &reusing.to_string());
        std::fs::write(folder.path().join("nginx.conf"), config).unwrap();
        let mut command = Command::new(self.folder.join("nginx/usr/sbin/nginx"));
        command.args(["-p", text(folder.path()), "-c", "nginx.conf", "-e", "stderr"]);
        let proxy = Proxy { child: command.spawn().unwrap(), plain, reusing, _folder: folder };
        until("nginx", || [plain, reusing].into_iter().all(|address| TcpStream::connect(address).is_ok()));
        proxy
    }

    /// Runs one of these programs from the folder of the clients, with the address of `server` for `SERVER`, and fails with what it says if it fails.
    #[track_caller]
    fn run(&self, program: &str, args: &[&str], server: &Server) {
        let args: Vec<String> = args.iter().map(|arg| arg.replace("SERVER", &server.address.to_string())).collect();
        let own = self.folder.join("bin").join(program);
        let mut command = Command::new(if own.exists() { own } else { program.into() });
        command.args(&args).current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients"));
        // No files beside the scripts, and nothing between them and the server.
        let scratch = tempfile::tempdir().unwrap();
        command.env("PYTHONDONTWRITEBYTECODE", "1").env("HYPOTHESIS_STORAGE_DIRECTORY", scratch.path());
        command.env("NO_PROXY", "*").env("NODE_PATH", self.folder.join("node_modules"));
        let output = command.output().unwrap();
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{program} {args:?}:\n{said}");
        println!("{said}");
    }
}

/// A running nginx; killed when dropped.
struct Proxy {
    child: Child,
    /// Where it makes a connection to the server for each request.
    plain: SocketAddr,
    /// Where it keeps some.
    reusing: SocketAddr,
    _folder: TempDir,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
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
    clients.run("python", &["openai_prompts.py", "http://SERVER"], &Workspace::of_texts("").serve());
}

#[test]
fn refusals_reach_a_client_that_is_still_sending_also_through_a_proxy() {
    let clients = Clients::find();
    let server = Workspace::new(&format!("[auth]\nkey_hashes = [{:?}]", KeyHash::of(KEY).line())).serve();
    let proxy = clients.proxy(&server);
    let [plain, reusing] = [proxy.plain, proxy.reusing].map(|address| format!("http://{address}"));
    clients.run("node", &["early_answers.cjs", KEY, "http://SERVER", &plain, &reusing], &server);
}

#[test]
fn schemathesis_finds_nothing_that_the_document_does_not_say() {
    let clients = Clients::find();
    let args = ["--config-file", "schemathesis.toml", "run", "http://SERVER/openapi.json"];
    for (classes, more) in [(&CLASSES[..], &[][..]), (&[], &["--include-tag", "images"])] {
        let workspace = Workspace::of(classes, "[limits]\nmax_n = 4\nmax_steps = 30");
        clients.run("schemathesis", &[&args, more].concat(), &workspace.serve());
    }
    let texts = Workspace::of_texts("[limits]\nmax_n = 2\nmax_steps = 30");
    clients.run("schemathesis", &[&args[..], &["--include-tag", "images"]].concat(), &texts.serve());
}

#[test]
fn the_playground_draws_in_a_browser() {
    for program in ["/usr/bin/chromium", "/usr/bin/chromedriver"] {
        require(program.as_ref());
    }
    let clients = Clients::find();
    let workspace = Workspace::new("");
    clients.run("python", &["playground.py", "http://SERVER"], &workspace.serve());
    clients.run("python", &["playground.py", "http://SERVER"], &Workspace::of_texts("").serve());
    let texts = Workspace::of_texts("");
    let both = workspace.serve_with(&["--model", text(&texts.path("model"))]);
    clients.run("python", &["playground.py", "http://SERVER"], &both);
    let locked = Workspace::new(&format!("[auth]\nkey_hashes = [{:?}]", KeyHash::of(KEY).line()));
    clients.run("python", &["playground.py", "http://SERVER", KEY], &locked.serve());
}
