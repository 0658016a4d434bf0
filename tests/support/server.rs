//! The real binary serving a tiny model, for the tests that meet it over a socket.

use super::support::{accordion, text, write_model};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
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
/// machine is called that.
const PROFILE: &str = r#"
format = 2
weight_bytes = 1
[device]
cpu = "made up"
threads = 1
instruction_set = "none"
[quality]
metric = "mse-to-reference"
reference = "heun-18@full"
images = 2
unrelated = 1.0
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
quality = 0.7
[[frontier]]
plan = "dpmpp2m-6@0.500"
quality = 0.9
[[frontier]]
plan = "heun-18@full"
quality = 1.0
"#;

/// A model directory `model` and a server config `serve.toml` in a folder.
pub struct Workspace {
    dir: TempDir,
}

impl Workspace {
    /// `settings` are lines of the config before its budgets.
    pub fn of(classes: &[&str], settings: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        write_model(&dir.path().join("model"), classes);
        std::fs::write(dir.path().join("model/profile.toml"), PROFILE).unwrap();
        std::fs::write(dir.path().join("serve.toml"), format!("{settings}\n{BUDGETS}")).unwrap();
        Self { dir }
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The command that serves the model.
    pub fn serve_command(&self, listen: &str) -> std::process::Command {
        let (config, model) = (self.path("serve.toml"), self.path("model"));
        accordion(&["serve", "--config", text(&config), "--model", text(&model), "--listen", listen])
    }

    /// Serves on a free port, with more arguments.
    pub fn serve_with(&self, args: &[&str]) -> Server {
        let started = Instant::now();
        let mut child = self.serve_command("127.0.0.1:0").args(args).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (ready, address) = mpsc::channel();
        let log = std::thread::spawn(move || {
            let mut log = String::new();
            for line in stderr.lines().map_while(Result::ok) {
                if let Some((_, rest)) = line.split_once("ready address=") {
                    let _ = ready.send(rest.split_whitespace().next().unwrap().parse().unwrap());
                }
                log += &(line + "\n");
            }
            log
        });
        let address = address.recv_timeout(DEADLINE).expect("the server says when it is ready");
        println!("ready after {:.0} ms", started.elapsed().as_secs_f64() * 1e3);
        Server { child, address, log: Some(log) }
    }
}

/// A running server; killed when dropped.
pub struct Server {
    child: Child,
    /// Where it listens.
    pub address: SocketAddr,
    log: Option<JoinHandle<String>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// Sends SIGTERM.
    pub fn terminate(&self) {
        assert!(std::process::Command::new("kill").arg(self.child.id().to_string()).status().unwrap().success());
    }

    /// Waits for the end of the process; its status and its log.
    pub fn ended(mut self) -> (ExitStatus, String) {
        let log = self.log.take().unwrap().join().unwrap();
        (self.child.wait().unwrap(), log)
    }
}
