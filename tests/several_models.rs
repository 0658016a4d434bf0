//! `accordion serve` with several models: which of them draws, and how they come, change and go while requests are served.

#[path = "support/server.rs"]
mod server;
mod support;

use server::{BUDGETS, JSON, Running, Workspace, ask};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use support::{accordion, assert_refused, text};

/// Model directories and the config that lists them.
struct Shelf {
    tiny: Workspace,
    texts: Workspace,
}

impl Shelf {
    /// A model `tiny` of classes and a model `sd_tiny` that draws texts.
    fn new() -> Self {
        let shelf = Self { tiny: Workspace::new(""), texts: Workspace::of_texts("") };
        name(&shelf.texts.path("model"), "sd_tiny");
        shelf
    }

    fn directories(&self) -> [PathBuf; 2] {
        [self.tiny.path("model"), self.texts.path("model")]
    }

    /// Lists these directories in the config.
    fn list(&self, models: &[&Path]) {
        let models: Vec<&str> = models.iter().map(|path| text(path)).collect();
        let config = format!("models = {models:?}\nthreads = 1\n[limits]\ndrain_grace_s = 0\n{BUDGETS}");
        std::fs::write(self.config(), config).unwrap();
    }

    fn config(&self) -> PathBuf {
        self.tiny.path("serve.toml")
    }

    fn command(&self) -> std::process::Command {
        accordion(&["serve", "--config", text(&self.config()), "--listen", "127.0.0.1:0"])
    }
}

/// Calls the model in this directory so.
fn name(directory: &Path, name: &str) {
    let card = directory.join("model.toml");
    let content = std::fs::read_to_string(&card).unwrap();
    let (before, rest) = content.split_once("name = \"").unwrap();
    let (_, after) = rest.split_once('"').unwrap();
    std::fs::write(card, format!("{before}name = \"{name}\"{after}")).unwrap();
}

/// The names of `/v1/models`.
fn listed(address: SocketAddr) -> Vec<String> {
    let list: serde_json::Value = serde_json::from_str(&ask(address, "GET /v1/models", "", "").1).unwrap();
    list["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap().to_owned()).collect()
}

fn classes(address: SocketAddr, model: &str) -> serde_json::Value {
    let about: serde_json::Value =
        serde_json::from_str(&ask(address, &format!("GET /subnets?model={model}"), "", "").1).unwrap();
    about["classes"].clone()
}

#[test]
fn each_request_is_drawn_by_the_model_that_it_names_and_the_first_without_a_name() {
    let shelf = Shelf::new();
    let [tiny, texts] = shelf.directories();
    shelf.list(&[&tiny, &texts]);
    let mut server = Running::start(&mut shelf.command());
    let address = server.address("ready");
    assert!(server.log.contains("models=\"tiny, sd_tiny\""), "{}", server.log);
    assert_eq!(listed(address), ["tiny", "sd_tiny"]);
    for (request, body, status, says) in [
        ("/generate?budget=fast", r#"{"class":"top"}"#, 200, ""),
        ("/generate?budget=fast&model=tiny", r#"{"class":"top"}"#, 200, ""),
        ("/generate?budget=fast&model=sd_tiny", r#"{"prompt":"a dog"}"#, 200, ""),
        ("/generate?budget=fast", r#"{"prompt":"a dog","model":"sd_tiny","width":160}"#, 200, ""),
        ("/v1/images/generations", r#"{"prompt":"top","quality":"low"}"#, 200, "\"size\":\"8x8\""),
        (
            "/v1/images/generations",
            r#"{"prompt":"a dog","model":"sd_tiny","quality":"low"}"#,
            200,
            "\"size\":\"128x128\"",
        ),
        ("/generate", r#"{"prompt":"a dog"}"#, 400, "this model draws no texts"),
        ("/generate?model=sd_tiny", r#"{"class":"top"}"#, 400, "this model draws what a text says"),
        (
            "/generate?model=tiny",
            r#"{"model":"sd_tiny"}"#,
            400,
            "the query asks for model tiny and the body for sd_tiny",
        ),
        ("/generate?model=sdxl", "{}", 404, "model `sdxl` is not loaded: accepted are tiny, sd_tiny"),
        ("/generate", r#"{"model":"sdxl"}"#, 404, "model `sdxl` is not loaded: accepted are tiny, sd_tiny"),
        (
            "/v1/images/generations",
            r#"{"prompt":"top","model":"sdxl"}"#,
            404,
            "`sdxl` is not loaded: accepted are tiny, sd_tiny",
        ),
    ] {
        let (head, answer) = ask(address, &format!("POST {request}"), JSON, body);
        assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{request} {body}: {head} {answer}");
        assert!(answer.contains(says), "{request} {body}: {answer}");
    }
    let page = ask(address, "GET /metrics", "", "").1;
    for model in ["tiny", "sd_tiny"] {
        let up = format!("accordion_engine_up{{device=\"cpu\",model=\"{model}\"}} 1");
        assert!(page.contains(&up), "{page}");
    }
}

#[test]
fn two_models_of_one_name_and_an_empty_list_are_refused() {
    let shelf = Shelf::new();
    let [tiny, texts] = shelf.directories();
    name(&texts, "tiny");
    shelf.list(&[&tiny, &texts]);
    let both = [text(&tiny), text(&texts), "are both called tiny"];
    assert_refused(&shelf.command().output().unwrap(), &both);
    shelf.list(&[]);
    assert_refused(&shelf.command().output().unwrap(), &["models: is empty"]);
    name(&texts, "sd_tiny");
    let flags = ["--model", text(&tiny), "--model", text(&texts), "--check-config"];
    let output = shelf.command().args(flags).output().unwrap();
    assert_refused(&output, &["models: is empty"]);
    shelf.list(&[&tiny]);
    let output = shelf.command().args(flags).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.ends_with("accepted, with models tiny of 4 subnets, sd_tiny of 4 subnets\n"), "{output:?}");
}

#[test]
fn a_hangup_brings_models_changes_them_and_takes_them_away_without_a_lost_request() {
    let shelf = Shelf::new();
    let [tiny, texts] = shelf.directories();
    shelf.list(&[&tiny]);
    let mut server = Running::start(&mut shelf.command());
    let address = server.address("ready");
    let (is_over, answered, failed) = (AtomicBool::new(false), AtomicUsize::new(0), std::sync::Mutex::new(Vec::new()));
    let more = |count: usize| {
        let before = answered.load(Relaxed);
        server::until("more requests", || {
            answered.load(Relaxed) >= before + count || !failed.lock().unwrap().is_empty()
        });
    };
    std::thread::scope(|scope| {
        // Whatever ends this, the clients end too.
        struct Over<'a>(&'a AtomicBool);
        impl Drop for Over<'_> {
            fn drop(&mut self) {
                self.0.store(true, Relaxed);
            }
        }
        let _over = Over(&is_over);
        for _ in 0..3 {
            scope.spawn(|| {
                while !is_over.load(Relaxed) {
                    let (head, body) = ask(address, "POST /generate?model=tiny", JSON, "{}");
                    if head.starts_with("HTTP/1.1 200") {
                        answered.fetch_add(1, Relaxed);
                    } else {
                        failed.lock().unwrap().push(head + &body);
                    }
                }
            });
        }
        more(10);

        // Another version of it, in the same place.
        support::write_model(&tiny, &["left", "right"]);
        server.signal("-HUP");
        assert!(server.logs("replaced").contains("model=\"tiny\""), "{}", server.log);
        assert_eq!(classes(address, "tiny"), serde_json::json!(["left", "right"]));
        more(10);

        // One more.
        shelf.list(&[&tiny, &texts]);
        server.signal("-HUP");
        assert!(server.logs("loaded").contains("sd_tiny"), "{}", server.log);
        assert_eq!(listed(address), ["tiny", "sd_tiny"]);
        let prompt = r#"{"prompt":"a dog","model":"sd_tiny"}"#;
        assert!(ask(address, "POST /generate", JSON, prompt).0.starts_with("HTTP/1.1 200"));
        more(10);

        // One that is broken changes nothing.
        std::fs::write(texts.join("model.toml"), "name = 1").unwrap();
        server.signal("-HUP");
        let said = server.logs("the models are served as they were");
        assert!(said.contains(text(&texts.join("model.toml"))), "{said}");
        assert!(ask(address, "POST /generate", JSON, prompt).0.starts_with("HTTP/1.1 200"));
        more(10);

        // Nor does a list that is none.
        shelf.list(&[]);
        server.signal("-HUP");
        let said = server.logs("the models are served as they were");
        assert!(said.contains(&format!("error={}: models: is empty", text(&shelf.config()))), "{said}");

        // It goes.
        shelf.list(&[&tiny]);
        server.signal("-HUP");
        server.logs("unloaded");
        assert_eq!(listed(address), ["tiny"]);
        let (head, body) = ask(address, "POST /generate", JSON, prompt);
        assert!(head.starts_with("HTTP/1.1 404"), "{head}");
        assert!(body.contains("model `sd_tiny` is not loaded: accepted is tiny"), "{body}");
        let page = ask(address, "GET /metrics", "", "").1;
        assert!(page.contains("model=\"tiny\"") && !page.contains("model=\"sd_tiny\""), "{page}");
        more(10);

        server.signal("-HUP");
        server.logs("the models are as they are listed");
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "of {} requests {} failed: {:?}", answered.into_inner(), failed.len(), failed.first());
    server.terminate();
    let (status, log) = server.ended();
    assert!(status.success(), "{log}");
}
