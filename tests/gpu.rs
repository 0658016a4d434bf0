//! The real binary on a GPU, or on the stand-in for its driver (scripts/cuda-check.sh):
//! `cargo test --release --features cuda -- --ignored gpu`.

#[path = "support/server.rs"]
mod server;
mod support;

use server::{JSON, Workspace, ask};
use std::path::Path;
use support::{accordion, text};

/// The bytes of a grey image file.
fn pixels(file: &Path) -> Vec<u8> {
    image::open(file).unwrap().into_luma8().into_raw()
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_images_are_those_of_the_cpu() {
    let workspace = Workspace::new("");
    let model = workspace.path("model");
    let draw = |device: &str, precision: &str| {
        let out = workspace.path("image.png");
        let place = ["--model", text(&model), "--out", text(&out), "--device", device, "--precision", precision];
        let what = ["--n", "3", "--class", "top,bottom", "--guidance", "2", "--plan", "heun-3@0.500*1,full*2~churn=3"];
        let output = accordion(&[&["generate"], &place[..], &what[..]].concat()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        pixels(&out)
    };
    let want = draw("cpu", "f32");
    for (precision, levels) in [("f32", 1), ("f16", 3)] {
        let got = draw("cuda:0", precision);
        let distance = got.iter().zip(&want).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        assert!(got.len() == want.len() && distance <= levels, "{precision}: {distance} grey levels");
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_a_prompt_gives_the_picture_of_the_cpu() {
    let workspace = Workspace::of_texts("");
    let model = workspace.path("model");
    let draw = |device: &str| {
        let out = workspace.path("image.png");
        let place = ["--model", text(&model), "--out", text(&out), "--device", device, "--size", "160x64"];
        let what = ["--prompt", "a red bicycle", "--negative-prompt", "blurry", "--plan", "pndm-2@0.250"];
        let output = accordion(&[&["generate"], &place[..], &what[..]].concat()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        image::open(&out).unwrap().into_rgb8()
    };
    let [want, got] = ["cpu", "cuda:0"].map(draw);
    assert_eq!(got.dimensions(), (160, 64));
    assert!(got.iter().zip(want.iter()).all(|(a, b)| a.abs_diff(*b) <= 1));
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_a_server_serves_from_it_and_ends_well() {
    let workspace = Workspace::new("precision = \"bf16\"\nmax_batch = 4");
    let server = workspace.serve_with(&["--devices", "cuda:0"]);
    let asked = std::thread::scope(|scope| {
        let ask = |seed| {
            let body = format!(r#"{{"class":"top","seed":{seed},"n":2,"guidance":1.5}}"#);
            ask(server.address, "POST /generate?budget=exact:dpmpp2m-3@0.250*2,full*1", JSON, &body).0
        };
        let asking: Vec<_> = (0..4).map(|seed| scope.spawn(move || ask(seed))).collect();
        asking.into_iter().map(|asked| asked.join().unwrap()).collect::<Vec<_>>()
    });
    for head in &asked {
        assert!(head.starts_with("HTTP/1.1 200 ") && head.contains("content-type: image/png"), "{head}");
    }
    let budget = ask(server.address, "POST /generate?budget=fast", JSON, r#"{"class":"bottom"}"#).0;
    assert!(budget.starts_with("HTTP/1.1 200 "), "{budget}");
    let (_, metrics) = ask(server.address, "GET /metrics", "", "");
    let value = |name: &str| {
        let line = metrics.lines().find(|line| line.starts_with(&format!("{name}{{device=\"cuda:0\",model=")));
        line.unwrap_or_else(|| panic!("no {name} in {metrics}")).rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    assert!(value("accordion_weight_bytes_as_copies") > 2.0 * value("accordion_weight_bytes"));
    assert!(value("accordion_activation_bytes") > 0.0 && value("accordion_engine_up") == 1.0);
    server.terminate();
    let (status, log) = server.ended();
    assert!(status.success(), "{log}");
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_steps_are_timed_on_it() {
    let workspace = Workspace::new("");
    let model = workspace.path("model");
    let bench = ["bench", "--model", text(&model), "--device", "cuda:0", "--precision", "f16", "--seconds", "0.001"];
    let output = accordion(&[&bench[..], &["--batches", "2", "--subnets", "0.250,full"]].concat()).output().unwrap();
    let table = String::from_utf8_lossy(&output.stdout);
    let all: Vec<_> = table.lines().filter(|line| line.contains(" all ")).collect();
    assert_eq!(all.len(), 2, "{output:?}");
    assert!(all.iter().all(|line| line.split_whitespace().last().unwrap().parse::<f64>().unwrap() > 0.0), "{table}");
}
