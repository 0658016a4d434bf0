//! A model that draws texts, as a user meets it: the real binary, prompts, sizes, budgets.

#[path = "support/http.rs"]
mod http;
#[path = "support/server.rs"]
mod server;
mod support;

use accordion::diffusion::Course;
use accordion::nets::Model;
use accordion::philox::NoiseKey;
use candle_core::{Device, Tensor};
use http::Reply;
use serde_json::{Value, json};
use server::{Server, Workspace};
use std::collections::HashMap;
use std::sync::Arc;
use support::{accordion, assert_refused, text};

const PROMPT: &str = "a photo of a red bicycle";

fn picture(file: &[u8]) -> image::RgbImage {
    image::load_from_memory(file).unwrap().into_rgb8()
}

impl Server {
    fn draws(&self, query: &str, body: &Value) -> image::RgbImage {
        picture(&self.generate(query, &body.to_string()).image())
    }

    #[track_caller]
    fn refuses(&self, body: &Value, code: &str, says: &str) {
        let reply = self.generate("", &body.to_string());
        assert_eq!((reply.status, reply.code().as_str()), (400, code), "{body}");
        assert!(reply.text().contains(says), "{body}: no {says:?} in {}", reply.text());
    }
}

#[test]
fn a_prompt_is_drawn_as_forward_computes_it() {
    let workspace = Workspace::of_texts("");
    let server = workspace.serve();
    let plan = "dpmpp2m-6@0.500*3,full*3";
    let drawn = server
        .draws(&format!("?budget=exact:{plan}"), &json!({ "prompt": PROMPT, "negative_prompt": "blurry", "seed": 9 }));

    // The noise that the engine draws, and the contexts, as anyone can compute them.
    let dir = workspace.path("model");
    let model = Model::open(&dir).unwrap();
    let contexts = model.contexts().unwrap().unwrap();
    let contexts = ["blurry", PROMPT].map(|prompt| contexts.of(prompt).unwrap().values.to_vec()).concat();
    let course = Course::new(Arc::new(plan.parse().unwrap()), model.card.process());
    assert_eq!(course.begin()[0].draw, NoiseKey::INITIAL);
    let mut noise = vec![0f32; 16 * 16 * 4];
    NoiseKey { seed: 9, image: 0 }.draw(NoiseKey::INITIAL).fill_normals(&mut noise);
    let noise = Tensor::from_vec(noise, (1, 16, 16, 4), &Device::Cpu).unwrap().permute((0, 3, 1, 2)).unwrap();
    let save = |name: &str, tensors: HashMap<&str, Tensor>| {
        let path = workspace.path(name);
        candle_core::safetensors::save(&tensors, &path).unwrap();
        path
    };
    let forward = |input: &std::path::Path, more: &[&str]| {
        let output = workspace.path("output");
        let args = ["forward", "--model", text(&dir), "--input", text(input), "--output", text(&output)];
        let run = accordion(&[&args, more].concat()).output().unwrap();
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        candle_core::safetensors::load(output, &Device::Cpu).unwrap()
    };
    let context = Tensor::from_vec(contexts, (2, 77, 40), &Device::Cpu).unwrap();
    let inputs = HashMap::from([("initial_latents", noise.contiguous().unwrap()), ("guidance_context", context)]);
    let latents = &forward(&save("inputs", inputs), &["--part", "sample", "--plan", plan])["latents"];
    let latents = HashMap::from([("vae_latent", (latents / 0.18215).unwrap())]);
    let decoded = &forward(&save("latents", latents), &["--part", "vae-decode"])["vae_decoded"];
    let decoded: Vec<f32> =
        decoded.squeeze(0).unwrap().permute((1, 2, 0)).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    let level = |value: &f32| (255.0 * (f64::from(*value) / 2.0 + 0.5)).clamp(0.0, 255.0).round_ties_even();
    let off = decoded.iter().zip(drawn.as_raw()).map(|(want, &got)| (level(want) - f64::from(got)).abs());
    let others = off.filter(|&levels| levels > 0.0).inspect(|&levels| assert!(levels <= 1.0)).count();
    assert!(others < 50, "{others} of {} values are another level", decoded.len());
}

#[test]
fn prompts_seeds_sizes_and_guidance_are_what_an_image_depends_on() {
    let workspace = Workspace::of_texts("");
    let server = workspace.serve();
    let base = json!({ "prompt": PROMPT, "seed": 7 });
    let with = |field: &str, value: Value| {
        let mut body = base.clone();
        body[field] = value;
        body
    };
    let one = server.draws("?budget=fast", &base);
    assert_eq!(one.dimensions(), (128, 128));
    assert_eq!(server.draws("?budget=fast", &base), one);
    for usual in [with("guidance", json!(7.5)), with("negative_prompt", json!("")), with("width", json!(128))] {
        assert_eq!(server.draws("?budget=fast", &usual), one, "{usual}");
    }
    for other in [
        with("prompt", json!("a cat")),
        with("negative_prompt", json!("blurry")),
        with("guidance", json!(1)),
        with("seed", json!(8)),
    ] {
        assert_ne!(server.draws("?budget=fast", &other), one, "{other}");
    }
    let mut wide = with("height", json!(64));
    assert_eq!(server.draws("?budget=fast", &wide).dimensions(), (160, 64));
    // Two sizes beside each other in time are not in one call, and a grid is of its own size.
    wide["n"] = json!(3);
    let asked = http::ask(server.address, "?budget=fast", &wide.to_string());
    assert_eq!(server.draws("?budget=fast", &base), one);
    assert_eq!(picture(&Reply::read(asked).unwrap().image()).dimensions(), (322, 130));

    // The command draws the same.
    let (model, out) = (workspace.path("model"), workspace.path("out.png"));
    let plan = "dpmpp2m-4@0.250";
    let args =
        ["generate", "--model", text(&model), "--out", text(&out), "--plan", plan, "--seed", "7", "--prompt", PROMPT];
    let output = accordion(&args).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(picture(&std::fs::read(&out).unwrap()), one);
    let output = accordion(&[&args[..], &["--size", "160x64"]].concat()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(picture(&std::fs::read(&out).unwrap()).dimensions(), (160, 64));
    let plain = ["generate", "--model", text(&model), "--out", text(&out)];
    assert_refused(&accordion(&plain).output().unwrap(), &["--prompt: is wanted"]);
    let other = [&plain[..], &["--prompt", "a", "--size", "64x64"]].concat();
    assert_refused(&accordion(&other).output().unwrap(), &["--size: 64x64 is none of the model's, 128x128, 160x64"]);
}

#[test]
fn budgets_previews_and_long_prompts_are_as_with_any_model() {
    let server = Workspace::of_texts("").serve();
    let body = json!({ "prompt": PROMPT, "seed": 3 }).to_string();
    for (budget, plan) in [("fast", "dpmpp2m-4@0.250"), ("best", "heun-18@full"), ("exact:pndm-3@full", "pndm-3@full")]
    {
        let reply = server.generate(&format!("?budget={budget}"), &body);
        assert_eq!((reply.status, reply.headers["x-accordion-plan"].as_str()), (200, plan), "{budget}");
        assert!(!reply.headers.contains_key("x-accordion-truncated"));
    }
    let long = json!({ "prompt": PROMPT, "negative_prompt": "robot ".repeat(100), "seed": 3 }).to_string();
    assert_eq!(server.generate("?budget=fast", &long).headers["x-accordion-truncated"], "negative_prompt");

    let events = "content-type: application/json\r\naccept: text/event-stream\r\n";
    let (head, told) = server::ask(server.address, "POST /generate?budget=fast", events, &body);
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert_eq!(told.matches("event: step").count(), 4);
    assert_eq!(told.matches("event: preview").count(), 4);
    let loaded: Value = serde_json::from_slice(&server.get("/subnets").body).unwrap();
    assert_eq!((&loaded["prompts"], &loaded["guidance"]), (&json!(true), &json!(7.5)));
    assert_eq!(loaded["sizes"], json!(["128x128", "160x64"]));
}

#[test]
fn what_cannot_be_honoured_is_refused_by_name() {
    let server = Workspace::of_texts("").serve();
    for (body, code, says) in [
        (json!({}), "missing_prompt", "`prompt` is missing or empty"),
        (json!({ "prompt": "" }), "missing_prompt", "`prompt` is missing or empty"),
        (
            json!({ "prompt": "x".repeat(4097) }),
            "out_of_range",
            "`prompt` is 4097 characters long, but must be of at most 4096",
        ),
        (json!({ "prompt": "a", "class": 1 }), "unsupported_field", "`class`: this model draws what a text says"),
        (json!({ "prompt": "a", "width": 64 }), "out_of_range", "sizes 128x128, 160x64"),
        (json!({ "prompt": "a", "width": 128, "height": 64 }), "out_of_range", "`width` is of 128x64"),
        (json!({ "prompt": "a", "guidance": -1 }), "out_of_range", "`guidance` is -1, but must be 0 to 20"),
        (json!({ "prompt": ["a"] }), "wrong_type", "`prompt`"),
    ] {
        server.refuses(&body, code, says);
    }
    let infinite = server.generate("", r#"{"prompt":"a","guidance":1e999}"#);
    assert_eq!(infinite.status, 400, "{}", infinite.text());
    let unknown = server.generate("?budget=exact:ddim-1000@full", r#"{"prompt":"a"}"#);
    assert_eq!(unknown.status, 400, "{}", unknown.text());

    let classes = Workspace::new("").serve();
    classes.refuses(&json!({ "prompt": "a" }), "unsupported_field", "`prompt`: this model draws no texts");
    classes.refuses(
        &json!({ "class": 1, "negative_prompt": "a" }),
        "unsupported_field",
        "`negative_prompt`: this model",
    );
    classes.refuses(&json!({ "height": 64 }), "out_of_range", "`height` is of anyx64");
    let timed = classes.generate("?budget=exact:ddim-4@full", "{}");
    assert!(timed.status == 400 && timed.text().contains("trained on a process in steps"), "{}", timed.text());
}

#[test]
fn prompts_are_not_in_the_log() {
    let secret = "zebra crossing in Ulaanbaatar";
    let server = Workspace::of_texts("").serve();
    let body = json!({ "prompt": secret, "negative_prompt": "Quetzalcoatl" }).to_string();
    assert_eq!(server.generate("?budget=fast", &body).status, 200);
    assert_eq!(server.generate("?budget=fast", &body.replace("}", r#","class":1}"#)).status, 400);
    server.terminate();
    let (_, log) = server.ended();
    assert!(log.contains("/generate") && !log.contains("zebra") && !log.contains("Quetzalcoatl"), "{log}");
}

#[test]
fn show_prints_what_a_picture_was_drawn_with_and_its_command_draws_it_again() {
    let workspace = Workspace::of_texts("");
    let model = workspace.path("model");
    let run = |args: &[&str]| accordion(args).current_dir(workspace.path("")).output().unwrap();
    let what =
        ["--prompt", "it's a cat", "--prompt", "a dog", "--negative-prompt", "blurry", "--n", "2", "--seed", "5"];
    let plan = ["--plan", "ddim-2@0.250", "--size", "160x64", "--guidance", "3"];
    let draw = [&["generate", "--model", text(&model), "--out", "first.png"], &what[..], &plan[..]].concat();
    assert!(run(&draw).status.success());
    let shown = run(&["show", "first.png"]);
    assert!(shown.status.success(), "{shown:?}");
    let shown = String::from_utf8(shown.stdout).unwrap();
    for line in [
        "prompt           it's a cat",
        "prompt           a dog",
        "plan             ddim-2@0.250",
        "size             160x64",
    ] {
        assert!(shown.lines().any(|known| known == line), "{line} is not in {shown}");
    }
    let command = shown.lines().find_map(|line| line.strip_prefix("draw it again    accordion ")).unwrap();
    let command = command.replace("--model DIR", &format!("--model '{}'", text(&model)));
    let program = env!("CARGO_BIN_EXE_accordion");
    let script = format!("'{program}' {command}");
    let again =
        std::process::Command::new("sh").args(["-c", &script]).current_dir(workspace.path("")).output().unwrap();
    assert!(again.status.success(), "{script}: {again:?}");
    let [first, again] = ["first.png", "again.png"].map(|file| std::fs::read(workspace.path(file)).unwrap());
    assert!(first == again, "another picture, or other settings");

    let json: Value = serde_json::from_slice(&run(&["show", "--json", "first.png"]).stdout).unwrap();
    assert_eq!((&json["seed"], &json["prompts"][1]), (&json!(5), &json!("a dog")));
    let weights = Model::open(&model).unwrap().card.sha256["supernet.safetensors"].clone();
    assert_eq!(json["weights"], weights);

    assert!(run(&[&draw[..], &["--no-settings"]].concat()).status.success());
    assert_refused(&run(&["show", "first.png"]), &["first.png", "has no settings"]);
    assert_refused(&run(&["show", "model/model.toml"]), &["model/model.toml", "is not a PNG file that can be read"]);
    assert_refused(&run(&["show", "missing.png"]), &["missing.png", "No such file"]);
}
