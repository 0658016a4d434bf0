//! `accordion serve` and `accordion generate` as a user meets them: the real binary, a model directory, a socket.

#[path = "support/http.rs"]
mod http;
#[path = "support/server.rs"]
mod server;
mod support;

use accordion::engine::image::Raster;
use accordion::engine::{Engine, Job, Place};
use accordion::nets::{Condition, HostRunner, HostSampler, Model, Threads};
use accordion::routing::Fixed;
use http::{Reply, ask, send};
use image::ImageFormat;
use server::{BUDGETS, JSON, Server, Workspace, until};
use std::collections::HashMap;
use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use support::{accordion, assert_refused, text};

const SIDE: u32 = 8;

impl Workspace {
    /// Runs `accordion generate` with `--out` in this folder.
    fn generate(&self, out: &str, args: &[&str]) -> std::process::Output {
        let (model, out) = (self.path("model"), self.path(out));
        accordion(&[&["generate", "--model", text(&model), "--out", text(&out)], args].concat()).output().unwrap()
    }

    /// The file that `accordion generate` leaves.
    fn generated(&self, out: &str, args: &[&str]) -> Vec<u8> {
        let output = self.generate(out, args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        std::fs::read(self.path(out)).unwrap()
    }
}

impl Server {
    /// The value of a metric without labels, or with exactly these.
    fn metric(&self, name: &str) -> f64 {
        let page = self.get("/metrics");
        let value = page.text().lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
        value.unwrap_or_else(|| panic!("{name} is not in {}", page.text()))
    }
}

fn decoded(file: &[u8], format: ImageFormat) -> image::GrayImage {
    image::load_from_memory_with_format(file, format).unwrap().into_luma8()
}

#[test]
fn each_budget_draws_with_its_plan_and_says_what_it_did() {
    let workspace = Workspace::new("");
    let server = workspace.serve();
    for (path, says) in [("/livez", "ok"), ("/readyz", "ok")] {
        let reply = server.get(path);
        assert_eq!((reply.status, reply.text()), (200, says), "{path}");
    }
    for (query, plan) in [
        ("", "dpmpp2m-12@0.500"),
        ("?budget=fast", "dpmpp2m-4@0.250"),
        ("?budget=balanced", "dpmpp2m-12@0.500"),
        ("?budget=best", "heun-18@full"),
        ("?budget=60s", "heun-18@full"),
        ("?budget=fast&min_quality=0.8", "dpmpp2m-12@0.500"),
        ("?budget=exact:euler-3@0.25*2,full*1", "euler-3@0.250*2,full*1"),
    ] {
        let reply = server.generate(query, r#"{"class":"top","seed":7}"#);
        assert_eq!(decoded(&reply.image(), ImageFormat::Png).dimensions(), (SIDE, SIDE));
        assert_eq!(reply.headers["content-type"], "image/png");
        assert_eq!(reply.headers["x-accordion-plan"], plan, "{query}");
        assert_eq!(reply.headers["x-accordion-planned"], plan, "{query}");
        assert_eq!(reply.headers["x-seed"], "7");
        let timing = &reply.headers["server-timing"];
        let parts: Vec<(&str, &str)> = timing.split(", ").map(|part| part.split_once(";dur=").unwrap()).collect();
        assert_eq!(parts.iter().map(|part| part.0).collect::<Vec<_>>(), ["queue", "denoise", "encode"]);
        assert!(parts.iter().all(|part| part.1.parse::<f64>().unwrap() >= 0.0), "{timing}");
    }
    let drawn = server.generate("", "{}");
    let seed = &drawn.headers["x-seed"];
    assert_eq!(server.generate("", &format!(r#"{{"seed":{seed}}}"#)).image(), drawn.image());
}

#[test]
fn metrics_are_prometheus_text_and_count_by_budget_subnet_and_outcome() {
    let workspace = Workspace::new("");
    let server = workspace.serve();
    for (query, body) in [
        ("?budget=fast", r#"{"n":3,"format":"webp"}"#),
        ("?budget=fast", "{}"),
        ("?budget=exact:euler-2@0.25*1,full*1", "{}"),
        ("?budget=best", r#"{"class":"sideways"}"#),
        ("?budget=slow", "{}"),
    ] {
        server.generate(query, body);
    }
    let page = server.get("/metrics");
    assert_eq!(page.headers["content-type"], "text/plain; version=0.0.4");
    let mut types = HashMap::new();
    for line in page.text().lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            let words: Vec<&str> = comment.splitn(3, ' ').collect();
            assert!(matches!(words[0], "HELP" | "TYPE"), "{line}");
            if words[0] == "TYPE" {
                assert!(types.insert(words[1], words[2]).is_none(), "{line}");
            }
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap();
        let name = series.split('{').next().unwrap();
        assert!(value.parse::<f64>().unwrap() >= 0.0, "{line}");
        assert!(series == name || series.ends_with("\"}"), "{line}");
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
        let is_histogram = base.is_some_and(|base| types.get(base) == Some(&"histogram"));
        assert!(types.contains_key(name) || is_histogram, "{line}");
    }
    let requests = |budget: &str, outcome: &str, subnet: &str| {
        let labels = format!("budget=\"{budget}\",outcome=\"{outcome}\",subnet=\"{subnet}\"");
        server.metric(&format!("accordion_requests_total{{{labels}}}"))
    };
    assert_eq!(requests("fast", "ok", "0.250"), 2.0);
    assert_eq!(requests("exact", "ok", "mixed"), 1.0);
    assert_eq!(requests("best", "invalid", "none"), 1.0);
    assert_eq!(requests("none", "invalid", "none"), 1.0);
    assert_eq!(server.metric("accordion_images_total{budget=\"fast\",format=\"webp\",subnet=\"0.250\"}"), 3.0);
    assert_eq!(server.metric("accordion_denoise_seconds_count{budget=\"fast\"}"), 2.0);
    assert_eq!(
        server.metric("accordion_denoiser_samples_total{device=\"cpu\",model=\"tiny\",subnet=\"0.250\"}"),
        4.0 * 4.0 + 1.0
    );
    assert_eq!(server.metric("accordion_denoiser_samples_total{device=\"cpu\",model=\"tiny\",subnet=\"full\"}"), 1.0);
    assert_eq!(
        (
            server.metric("accordion_engine_up{device=\"cpu\",model=\"tiny\"}"),
            server.metric("accordion_active_images{device=\"cpu\",model=\"tiny\"}")
        ),
        (1.0, 0.0)
    );
    assert!(server.metric("accordion_weight_bytes{device=\"cpu\",model=\"tiny\"}") > 0.0);
}

#[test]
fn every_format_holds_the_same_pixels() {
    let workspace = Workspace::new("");
    let server = workspace.serve();
    let [png, webp, jpeg] = [ImageFormat::Png, ImageFormat::WebP, ImageFormat::Jpeg].map(|format| {
        let name = format.to_mime_type().strip_prefix("image/").unwrap();
        let reply = server.generate("", &format!(r#"{{"n":5,"seed":3,"format":"{name}"}}"#));
        assert_eq!(reply.headers["content-type"], format.to_mime_type());
        decoded(&reply.image(), format)
    });
    // Three columns and two rows with gaps of 2 pixels.
    assert_eq!(png.dimensions(), (3 * SIDE + 4, 2 * SIDE + 2));
    assert_eq!(png, webp);
    assert_eq!(jpeg.dimensions(), png.dimensions());
}

#[test]
fn a_seed_draws_the_same_bytes_alone_and_among_twenty_others() {
    // A policy that begins as many images as a batch holds, however little a batch brings on this machine.
    let workspace = Workspace::new("policy = 'fixed:dpmpp2m-12@0.500'");
    let server = workspace.serve();
    let wanted = r#"{"class":"bottom","seed":11,"n":2,"guidance":1.5}"#;
    let alone = server.generate("", wanted).image();
    assert_eq!(server.generate("", wanted).image(), alone);
    assert_ne!(server.generate("", &wanted.replace("11", "12")).image(), alone);
    assert_ne!(server.generate("", &wanted.replace("bottom", "top")).image(), alone);

    let other = |i: usize| format!(r#"{{"class":{},"seed":{i},"n":{}}}"#, i % 2, 1 + i % 3);
    let long = "?budget=exact:dpmpp2m-150@0.500";
    let others: Vec<TcpStream> = (0..20).map(|i| ask(server.address, long, &other(i))).collect();
    until("a batch with others", || server.metric("accordion_active_images{device=\"cpu\",model=\"tiny\"}") >= 8.0);
    assert_eq!(server.generate("", wanted).image(), alone);
    for stream in others {
        Reply::read(stream).unwrap().image();
    }
    let total = |what: &str| {
        server.metric(&format!("accordion_denoiser_{what}_total{{device=\"cpu\",model=\"tiny\",subnet=\"0.500\"}}"))
    };
    assert!(total("samples") > 4.0 * total("calls"), "{} samples in {} calls", total("samples"), total("calls"));
}

#[test]
fn the_cells_of_a_grid_are_the_images_of_the_seed_in_order() {
    let workspace = Workspace::new("");
    let server = workspace.serve();
    let query = "?budget=exact:heun-4@0.500";
    let draw = |n: u32| {
        let body = format!(r#"{{"class":"top","seed":7,"n":{n}}}"#);
        decoded(&server.generate(query, &body).image(), ImageFormat::Png)
    };
    let (one, grid) = (draw(1), draw(4));

    // The same images, drawn one at a time without a server.
    let model = Model::open(&workspace.path("model")).unwrap();
    let shape = model.image();
    let engine = Engine::start(
        Box::new(HostSampler::new(Box::new(HostRunner::new(&model, Threads::ALL).unwrap()))),
        Place::alone(4).unwrap(),
        Box::new(Fixed::unmeasured(model.subnets(), 1)),
    )
    .unwrap();
    let plan = Arc::new("heun-4@0.500".parse().unwrap());
    let job = Job { images: 4, condition: Condition::Class(0), ..Job::exact(plan, 7) };
    let images = engine.submit(job).unwrap().blocking_wait().unwrap().images;
    assert_eq!(grid.dimensions(), (2 * SIDE + 2, 2 * SIDE + 2));
    for (index, image) in images.iter().enumerate() {
        let (left, top) = ((index as u32 % 2) * (SIDE + 2), (index as u32 / 2) * (SIDE + 2));
        let cell = image::imageops::crop_imm(&grid, left, top, SIDE, SIDE).to_image();
        assert_eq!(cell.into_raw(), Raster::grid(shape, std::slice::from_ref(image)).bytes, "cell {index}");
    }
    assert_eq!(one.into_raw(), Raster::grid(shape, &images[..1]).bytes);
}

#[test]
fn a_bad_request_gets_a_status_and_a_stable_code() {
    let workspace = Workspace::new("");
    let server = workspace.serve();
    for (query, body, status, code) in [
        ("?budget=fats", "{}", 400, "unknown_budget"),
        ("?budget=exact:heun-0@full", "{}", 400, "invalid_plan"),
        ("?budget=exact:heun-4@0.3", "{}", 400, "unknown_subnet"),
        ("?budget=0ms", "{}", 400, "invalid_deadline"),
        ("?min_quality=2", "{}", 400, "invalid_min_quality"),
        ("?budget=exact:heun-4@full&min_quality=1", "{}", 400, "contradiction"),
        ("", r#"{"class":"sideways"}"#, 400, "unknown_class"),
        ("", r#"{"class":2}"#, 400, "unknown_class"),
        ("", r#"{"guidance":2}"#, 400, "guidance_without_class"),
        ("", r#"{"format":"gif"}"#, 400, "unknown_format"),
        ("", r#"{"n":17}"#, 400, "out_of_range"),
        ("?budgets=fast", "{}", 400, "invalid_query"),
        ("?budget=fast&budget=best", "{}", 400, "invalid_query"),
        ("", "", 400, "empty_body"),
        ("", "{", 400, "invalid_json"),
        ("", "[]", 400, "wrong_type"),
        ("", r#"{"prompt":"a boat"}"#, 400, "unsupported_field"),
        ("", r#"{"steps":5}"#, 400, "unknown_field"),
        ("", &" ".repeat(1 << 20), 413, "body_too_large"),
    ] {
        let reply = server.generate(query, body);
        assert_eq!((reply.status, reply.code().as_str()), (status, code), "{query} {body}");
        assert_eq!(reply.headers["content-type"], "application/json");
    }
    for (request, headers, status, code) in [
        ("GET /generat", JSON, 404, "not_found"),
        ("GET /generate", JSON, 405, "method_not_allowed"),
        ("POST /generate", "content-type: application/json\r\naccept: text/html\r\n", 406, "not_acceptable"),
        ("POST /generate", "content-type: text/plain\r\n", 415, "unsupported_media_type"),
    ] {
        let reply = Reply::read(send(server.address, request, headers, "{}")).unwrap();
        assert_eq!((reply.status, reply.code().as_str()), (status, code), "{request} {headers}");
    }
    assert!(server.generate("?budget=fats", "{}").text().contains("fast, balanced, best"));
    assert!(server.generate("", r#"{"class":"sideways"}"#).text().contains("top, bottom"));
    // It serves on after all of that.
    server.generate("", "{}").image();

    let unconditional = Workspace::of(&[], "");
    let server = unconditional.serve();
    server.generate("", "{}").image();
    let reply = server.generate("", r#"{"class":0}"#);
    assert_eq!((reply.status, reply.code().as_str()), (400, "class_not_supported"));
}

#[test]
fn a_flag_outdoes_the_config_s_threads_and_neither_changes_a_bit() {
    let workspace = Workspace::new("threads = 3\npin = true\n[limits]\ndrain_grace_s = 0");
    let [three, two] = [(&[][..], "threads=3"), (&["--threads", "2", "--pin"], "threads=2")].map(|(args, says)| {
        let server = workspace.serve_with(args);
        let image = server.generate("", r#"{"seed":5}"#).image();
        server.terminate();
        let (_, log) = server.ended();
        assert!(log.contains(says), "{log}");
        image
    });
    assert_eq!(three, two);
}

/// The longest request that the limits allow: seconds of work for one sample at a time.
const LONG: (&str, &str) = ("?budget=exact:heun-250@full", r#"{"class":"top","n":2,"guidance":2}"#);

#[test]
fn what_comes_too_slowly_or_breaks_off_is_given_up() {
    // Of a policy that refuses nothing, so that something is late.
    let settings = "max_batch = 1\npolicy = \"fixed:heun-18@full\"\n[limits]\nmax_n = 128\nbody_timeout_s = 1\nrequest_timeout_s = 1";
    let budgets =
        "[budgets.fast]\nwithin_ms = 500\n[budgets.balanced]\nwithin_ms = 500\n[budgets.best]\nwithin_ms = 500";
    let workspace = Workspace::new("");
    std::fs::write(workspace.path("serve.toml"), format!("{settings}\n{budgets}")).unwrap();
    let server = workspace.serve();
    let head =
        format!("POST /generate HTTP/1.1\r\nhost: test\r\nconnection: close\r\n{JSON}content-length: 9\r\n\r\n{{");
    let open = || {
        let mut stream = TcpStream::connect(server.address).unwrap();
        stream.write_all(head.as_bytes()).unwrap();
        stream
    };
    let (slow, broken) = (open(), open());
    broken.shutdown(Shutdown::Write).unwrap();
    let many = LONG.1.replace("\"n\":2", "\"n\":128");
    let late = ask(server.address, LONG.0, &many);
    for (stream, status, code) in [(broken, 400, "broken_body"), (slow, 408, "body_timeout"), (late, 504, "timeout")] {
        let reply = Reply::read(stream).unwrap();
        assert_eq!((reply.status, reply.code().as_str()), (status, code));
    }
    // Nobody waits for the late images any more: they make room at once.
    until("the end of the work", || server.metric("accordion_active_images{device=\"cpu\",model=\"tiny\"}") == 0.0);
    assert_eq!(server.metric("accordion_queue_images{device=\"cpu\",model=\"tiny\"}"), 0.0);
}

#[test]
fn a_full_queue_refuses_with_the_time_to_come_back() {
    let workspace = Workspace::new("max_batch = 1\nqueue_images = 2\n[limits]\nmax_n = 2");
    let server = workspace.serve();
    let (active, queued) = (
        || server.metric("accordion_active_images{device=\"cpu\",model=\"tiny\"}"),
        || server.metric("accordion_queue_images{device=\"cpu\",model=\"tiny\"}"),
    );
    let long = || ask(server.address, LONG.0, &LONG.1.replace("\"n\":2", "\"n\":1"));
    let first = long();
    until("a request runs", || active() == 1.0);
    let others = [long(), long()];
    until("requests wait", || queued() == 2.0);
    let refused = server.generate("", "{}");
    assert_eq!((refused.status, refused.code().as_str()), (429, "queue_full"));
    assert!(refused.headers["retry-after"].parse::<u64>().unwrap() >= 1);
    // Clients that go away take their images along.
    drop((first, others));
    until("an empty engine", || active() == 0.0 && queued() == 0.0);
    server.generate("", "{}").image();
}

#[test]
fn sigterm_answers_all_that_was_accepted_and_ends_well() {
    let workspace = Workspace::new("[limits]\ndrain_grace_s = 0");
    let server = workspace.serve();
    let body = |seed: usize| format!(r#"{{"class":"top","seed":{seed},"n":4}}"#);
    let long = "?budget=exact:heun-250@full";
    let asked: Vec<TcpStream> = (0..6).map(|seed| ask(server.address, long, &body(seed))).collect();
    until("everything is in the engine", || {
        server.metric("accordion_active_images{device=\"cpu\",model=\"tiny\"}")
            + server.metric("accordion_queue_images{device=\"cpu\",model=\"tiny\"}")
            == 24.0
    });
    server.terminate();
    for stream in asked {
        let reply = Reply::read(stream).unwrap();
        assert_eq!(decoded(&reply.image(), ImageFormat::Png).dimensions(), (2 * SIDE + 2, 2 * SIDE + 2));
    }
    let address = server.address;
    let (status, log) = server.ended();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(log.contains("draining"), "{log}");
    assert!(TcpStream::connect(address).is_err());
}

#[test]
fn a_server_that_cannot_start_says_why_in_one_sentence() {
    let workspace = Workspace::new("");
    let server = workspace.serve();
    let address = server.address.to_string();
    assert_refused(&workspace.serve_command(&address).output().unwrap(), &[&address, "in use"]);

    let start = || workspace.serve_command("127.0.0.1:0").output().unwrap();
    let config = workspace.path("serve.toml");
    for (text_of_config, says) in [
        ("max_bach = 1", ": max_bach: unknown field"),
        ("max_batch = 0", "max_batch"),
        ("threads = 1025", "threads: 1025 is not accepted"),
        ("devices = [\"cpu\", \"cuda:0\"]", "devices: must be all cpu or all cuda"),
        ("precision = \"f16\"", "precision: f16 is not accepted on a CPU, which computes in f32"),
        ("precision = \"f8\"", "precision: unknown variant `f8`, expected one of `f32`, `f16`, `bf16`"),
        ("[budgets]\nfast = \"euler-4@0.3\"", "budgets.fast"),
    ] {
        std::fs::write(&config, text_of_config).unwrap();
        assert_refused(&start(), &[text(&config), says]);
    }
    std::fs::write(&config, BUDGETS).unwrap();
    if cfg!(not(feature = "cuda")) {
        let output = workspace.command().args(["--devices", "cuda:0"]).output().unwrap();
        assert_refused(&output, &["cuda:0: this program was built without the feature cuda: it can use cpu"]);
    }

    let weights = workspace.path("model/supernet.safetensors");
    let whole = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &whole[..whole.len() / 2]).unwrap();
    assert_refused(&start(), &[text(&weights), "not a whole safetensors file"]);
    std::fs::write(&weights, &whole).unwrap();

    for (file, from, to, says) in [
        ("model/model.toml", "channel_mult", "channel_mul", "unknown field `channel_mul`"),
        ("model/model.toml", "model_channels = 8", "model_channels = 16", "supernet.safetensors: "),
        ("model/model.toml", "model_channels = 8", "model_channels = 9", "backbone.model_channels: 9"),
        ("model/model.toml", "\"top\"", "\"top\", \"left\"", "classes: 3 names for a network of 2 classes"),
        ("model/subnets.toml", "name = \"0.500\"", "name = \"0.250\"", "subnet 0.250: stands twice"),
        ("model/subnets.toml", "\"dec.4x4_in0.attn\" = 16", "\"dec.4x4_in0.attn\" = 15", "which the row denies"),
    ] {
        let path = workspace.path(file);
        let whole = std::fs::read_to_string(&path).unwrap();
        assert!(whole.contains(from), "{from} is not in {whole}");
        std::fs::write(&path, whole.replacen(from, to, 1)).unwrap();
        assert_refused(&start(), &[text(&workspace.path("model")), says]);
        std::fs::write(&path, whole).unwrap();
    }
    std::fs::remove_file(workspace.path("model/subnets.toml")).unwrap();
    assert_refused(&start(), &[text(&workspace.path("model/subnets.toml")), "No such file"]);
    // The first server has not noticed.
    server.generate("", "{}").image();
}

#[test]
fn generate_draws_what_the_server_draws() {
    let workspace = Workspace::new("");
    let server = workspace.serve();
    let served = server.generate("?budget=exact:heun-5@0.500", r#"{"class":"top","seed":7,"n":4}"#).image();
    let args = ["--class", "top", "--seed", "7", "--n", "4", "--steps", "5", "--subnet", "0.5"];
    assert_eq!(workspace.generated("grid.png", &args), served);
    // Endings in capitals, and a class as somebody else spells it, mean the same.
    let args = ["--class", " ＴＯＰ", "--seed", "7", "--n", "4", "--steps", "5", "--subnet", "0.5"];
    assert_eq!(workspace.generated("grid.PNG", &args), served);
    assert_eq!(workspace.generated("grid.JPG", &args), workspace.generated("grid.jpeg", &args));
    assert_eq!(decoded(&served, ImageFormat::Png).dimensions(), (2 * SIDE + 2, 2 * SIDE + 2));
}

#[test]
fn generate_is_a_function_of_its_arguments() {
    let workspace = Workspace::new("");
    let args = ["--class", "top", "--seed", "7", "--n", "3", "--steps", "5"];
    let with = |more: &[&str]| workspace.generated("grid.png", &[&args, more].concat());
    let full = with(&[]);
    assert_eq!(with(&[]), full);
    assert_eq!(with(&["--subnet", "full"]), full);
    assert_eq!(decoded(&full, ImageFormat::Png).dimensions(), (2 * SIDE + 2, 2 * SIDE + 2));
    let plan = ["--class", "top", "--seed", "7", "--n", "3", "--plan", "heun-5@full"];
    assert_eq!(workspace.generated("grid.png", &plan), full);
    assert_ne!(with(&["--subnet", "0.5"]), full);
    assert_ne!(with(&["--guidance", "2"]), full);
    assert_eq!(workspace.generated("grid.png", &[&["--class", "0"], &args[2..]].concat()), full);
    assert_ne!(workspace.generated("grid.png", &args[2..]), full);

    for (name, format) in
        [("grid.webp", ImageFormat::WebP), ("grid.jpg", ImageFormat::Jpeg), ("grid.jpeg", ImageFormat::Jpeg)]
    {
        assert_eq!(decoded(&workspace.generated(name, &args), format).dimensions(), (2 * SIDE + 2, 2 * SIDE + 2));
    }
}

#[test]
fn generate_refuses_what_it_cannot_draw_and_writes_nothing() {
    let workspace = Workspace::new("");
    for (out, args, parts) in [
        ("a.png", &["--class", "sideways"][..], &["class", "`sideways`", "top, bottom"][..]),
        ("a.png", &["--class", "2"], &["class", "`2`", "top, bottom"]),
        ("a.png", &["--subnet", "0.3"], &["subnet", "`0.3`", "0.250, 0.500, 0.750, full"]),
        ("a.png", &["--plan", "heun-5@0.3"], &["subnet", "0.250, 0.500, 0.750, full"]),
        ("a.png", &["--steps", "0"], &["0", "steps"]),
        ("a.png", &["--guidance", "2"], &["--guidance", "--class"]),
        ("a.png", &["--class", "top", "--guidance", "NaN"], &["--guidance"]),
        ("a.gif", &[], &["--out", "`gif`", "png, webp, jpeg"]),
        ("a", &[], &["--out", "png, webp, jpeg"]),
        ("a.png", &["--n", "1025"], &["--n", "1025", "--out DIR/"]),
        ("no/a.npz", &[], &["no/a.npz", "No such file"]),
        ("no/a.png", &[], &["no/a.png", "No such file"]),
    ] {
        assert_refused(&workspace.generate(out, args), parts);
        assert!(!workspace.path(out).exists());
    }
    for args in [&["--n", "0"][..], &["--seed", "-1"], &["--plan", "heun"], &["--steps", "5", "--plan", "heun-5@full"]]
    {
        assert_eq!(workspace.generate("a.png", args).status.code(), Some(2), "{args:?}");
        assert!(!workspace.path("a.png").exists());
    }
    std::fs::remove_file(workspace.path("model/model.toml")).unwrap();
    assert_refused(&workspace.generate("a.png", &[]), &[text(&workspace.path("model/model.toml"))]);
}

#[test]
fn many_images_go_into_a_directory_or_an_array_and_what_was_interrupted_goes_on() {
    let workspace = Workspace::new("");
    let args = ["--class", "top,bottom", "--seed", "4", "--steps", "2", "--n", "5"];
    let run = |out: &str| {
        let output = workspace.generate(out, &args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stderr).unwrap()
    };
    let file = |index: usize| std::fs::read(workspace.path(&format!("many/{index:06}.png"))).unwrap();
    assert!(run("many/").contains("generate: 5 of 5 images"));
    assert_eq!(file(1), workspace.generated("one.png", &["--class", "bottom", "--seed", "5", "--steps", "2"]));
    let whole: Vec<Vec<u8>> = (0..5).map(file).collect();

    std::fs::remove_file(workspace.path("many/000003.png")).unwrap();
    std::fs::write(workspace.path("many/000000.png"), "kept").unwrap();
    run("many/");
    assert_eq!((file(0), file(3)), (b"kept".to_vec(), whole[3].clone()));
    let other = [&["--class", "top,bottom", "--seed", "5"][..], &args[4..]].concat();
    assert_refused(&workspace.generate("many/", &other), &["images.toml: seed: is not what is asked for now"]);
    std::fs::create_dir(workspace.path("taken")).unwrap();
    std::fs::write(workspace.path("taken/x"), "").unwrap();
    assert_refused(&workspace.generate("taken/", &args), &["taken", "is not empty, and has no images.toml"]);

    let pixels: Vec<u8> =
        whole.iter().flat_map(|file| image::load_from_memory(file).unwrap().into_luma8().into_raw()).collect();
    let side = SIDE as usize;
    let array = |name: &str| {
        let arrays = candle_core::npy::NpzTensors::new(workspace.path(name)).unwrap();
        let [images, classes] = ["arr_0", "arr_1"].map(|name| arrays.get(name).unwrap().unwrap());
        assert_eq!(images.dims(), [5, side, side, 1]);
        assert_eq!(classes.to_vec1::<i64>().unwrap(), [0, 1, 0, 1, 0]);
        images.flatten_all().unwrap().to_vec1::<u8>().unwrap()
    };
    run("all.npz");
    assert_eq!(array("all.npz"), pixels);
    // As a run leaves it that was killed in its second image.
    std::fs::write(workspace.path("cut.npz.part"), &pixels[..side * side * 3 / 2]).unwrap();
    std::fs::copy(workspace.path("many/images.toml"), workspace.path("cut.npz.part.toml")).unwrap();
    run("cut.npz");
    assert_eq!(array("cut.npz"), pixels);
    assert!(!workspace.path("cut.npz.part").exists() && !workspace.path("cut.npz.part.toml").exists());
}

#[test]
fn images_of_several_classes_lie_in_a_row_for_each_class_and_progress_is_said() {
    let workspace = Workspace::new("");
    let alone = |class: &str, seed: &str| {
        let file = workspace.generated("one.png", &["--class", class, "--seed", seed, "--steps", "2"]);
        image::load_from_memory(&file).unwrap().into_luma8()
    };
    let output = workspace.generate("grid.png", &["--class", "top,bottom", "--seed", "4", "--n", "3", "--steps", "2"]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && stderr.contains("generate: 6 of 6 steps, "), "{stderr}");
    let grid = image::open(workspace.path("grid.png")).unwrap().into_luma8();
    assert_eq!(grid.dimensions(), (2 * SIDE + 2, 2 * SIDE + 2));
    for (class, seed, column, row) in [("top", "4", 0, 0), ("bottom", "5", 0, 1), ("top", "6", 1, 0)] {
        let (left, top) = (column * (SIDE + 2), row * (SIDE + 2));
        let cell = image::imageops::crop_imm(&grid, left, top, SIDE, SIDE).to_image();
        assert_eq!(cell, alone(class, seed), "{class} {seed}");
    }
}

#[test]
fn a_flipped_bit_of_the_weights_and_subnets_of_other_weights_are_refused() {
    let place = Workspace::new("");
    let check = |more: &[&str]| place.command().arg("--check-config").args(more).output().unwrap();
    let (weights, subnets) = (place.path("model/supernet.safetensors"), place.path("model/subnets.toml"));
    let mut bytes = std::fs::read(&weights).unwrap();
    assert!(check(&[]).status.success());
    // The lowest bit of the last weight.
    let last = bytes.len() - 4;
    bytes[last] ^= 1;
    std::fs::write(&weights, &bytes).unwrap();
    assert_refused(&check(&[]), &[text(&weights), "is not the file that model.toml was written with", "SHA-256"]);
    assert!(check(&["--no-verify"]).status.success());
    bytes[last] ^= 1;
    std::fs::write(&weights, &bytes).unwrap();
    assert!(check(&[]).status.success());
    let table = std::fs::read_to_string(&subnets).unwrap();
    let (before, rest) = table.split_once("weights = \"").unwrap();
    std::fs::write(&subnets, format!("{before}weights = \"{}{}", "0".repeat(64), &rest[64..])).unwrap();
    assert_refused(&check(&[]), &[text(&subnets), "weights", "of other weights"]);
}
