//! Images that are made from a picture, and into one: held against diffusers' pipelines, and as a user asks for them.

#[path = "support/inpainting.rs"]
mod inpainting;
#[path = "support/workplace.rs"]
mod workplace;

use accordion::nets::Model;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use candle_core::Tensor;
use image::{GrayImage, RgbImage};
use std::collections::HashMap;
use std::process::Command;
use workplace::{Workplace, copy, fixture};

const PROMPT: &str = "a photo of a cat";

/// What `benches/peers/edits.py` wrote.
struct Golden(HashMap<String, Tensor>);

impl Golden {
    fn read() -> Self {
        Self(inpainting::golden())
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        self.0[name].flatten_all().unwrap().to_vec1().unwrap()
    }
}

/// A place with the golden's picture and mask as files, and with two models: `model`, and `inpainting`, which is given both.
fn place(golden: &Golden) -> Workplace {
    let work = Workplace::new();
    RgbImage::from_raw(128, 128, golden.bytes("image")).unwrap().save(work.path("image.png")).unwrap();
    GrayImage::from_raw(128, 128, golden.bytes("mask")).unwrap().save(work.path("mask.png")).unwrap();
    let sd = fixture("sd_tiny");
    assert!(work.run(&["import", sd.to_str().unwrap(), "--out", "model"]).status.success());
    copy(&sd, &work.path("sd"));
    inpainting::widen(&work.path("sd"), &golden.0);
    assert!(work.run(&["import", "sd", "--out", "inpainting"]).status.success());
    work
}

impl Workplace {
    #[track_caller]
    fn draws(&self, args: &[&str], out: &str) -> Vec<u8> {
        let (success, says) = self.said("generate", &[args, &["--out", out]].concat());
        assert!(success, "{args:?}: {says}");
        image::open(self.path(out)).unwrap().into_bytes()
    }
}

/// Asserts that two pictures differ by at most one grey level, where `counts` says so of a pixel.
#[track_caller]
fn assert_near(name: &str, ours: &[u8], theirs: &[u8], counts: impl Fn(usize) -> bool) {
    let differs = |at: &usize| counts(at / 3) && ours[*at].abs_diff(theirs[*at]) > 1;
    let first = (0..theirs.len()).find(differs);
    assert_eq!(first.map(|at| (at, ours[at], theirs[at])), None, "{name}");
}

#[test]
fn a_picture_becomes_what_it_becomes_in_diffusers() {
    let golden = Golden::read();
    let work = place(&golden);
    let mask = golden.bytes("mask");
    let (image, is_new) = (golden.bytes("image"), |pixel: usize| mask[pixel] >= 128);
    for (name, plan, strength, is_masked, model) in [
        ("ddim_started", "ddim-10@full", "0.6", false, "model"),
        ("dpmpp2m_started", "dpmpp2m-10@full~leading", "0.5", false, "model"),
        ("ddim_masked", "ddim-10@full", "1", true, "model"),
        ("euler_masked", "euler-10@full~leading", "0.7", true, "model"),
        ("ddim_inpainting", "ddim-10@full", "1", true, "inpainting"),
        ("dpmpp2m_inpainting", "dpmpp2m-10@full~leading", "0.6", true, "inpainting"),
    ] {
        let mut args = vec!["--model", model, "--plan", plan, "--seed", "7", "--prompt", PROMPT];
        args.extend(["--image", "image.png", "--strength", strength]);
        args.extend(is_masked.then_some(["--mask", "mask.png"]).into_iter().flatten());
        let drawn = work.draws(&args, "drawn.png");
        assert_near(name, &drawn, &golden.bytes(name), |pixel| !is_masked || is_new(pixel));
        // What is known stays to the bit, though it has been a latent.
        let kept = (0..image.len()).filter(|at| is_masked && !is_new(at / 3));
        assert!(kept.into_iter().all(|at| drawn[at] == image[at]), "{name}");
    }
}

#[test]
fn a_network_for_inpainting_draws_from_noise_alone_too_and_every_width_of_it_paints() {
    let golden = Golden::read();
    let work = place(&golden);
    let model = ["--model", "inpainting"];
    let run = |args: &[&str]| assert!(work.run(args).status.success(), "{args:?}");
    run(&[&["rank"][..], &model, &["--method", "magnitude", "--order", "within-group", "--out", "ranked"]].concat());
    run(&["allocate", "--model", "ranked", "--target", "macs", "--ratios", "0.5"]);
    assert!(Model::open(&work.path("ranked")).unwrap().subnet("0.5").is_ok());
    let model = ["--model", "ranked"];
    let of = |rest: &[&str], out| {
        let plan = ["--plan", "dpmpp2m-4@0.500", "--seed", "3", "--prompt", PROMPT];
        work.draws(&[&model[..], &plan, rest].concat(), out)
    };
    let (alone, painted) = (of(&[], "alone.png"), of(&["--image", "image.png", "--mask", "mask.png"], "painted.png"));
    assert!(alone != painted);
}

#[test]
fn a_network_for_inpainting_is_not_run_on_samples_alone() {
    let work = place(&Golden::read());
    let input = fixture("sd_tiny.expected.safetensors");
    let args = ["--model", "inpainting", "--input", input.to_str().unwrap(), "--output", "out"];
    for part in [&["--part", "denoiser"][..], &["--part", "sample", "--plan", "ddim-4@full"]] {
        let (success, said) = work.said("forward", &[&args, part].concat());
        assert!(!success && said.contains("9 are more than the 4 that it makes"), "{part:?}: {said}");
        assert!(!work.path("out").exists());
    }
}

#[test]
fn a_picture_that_cannot_be_started_from_is_refused_in_one_sentence() {
    let work = Workplace::new();
    let grey = |width, height| GrayImage::from_fn(width, height, |x, y| image::Luma([(8 * x + y) as u8]));
    grey(28, 28).save(work.path("image.png")).unwrap();
    grey(20, 28).save(work.path("other.png")).unwrap();
    GrayImage::new(28, 28).save(work.path("black.png")).unwrap();
    std::fs::write(work.path("text.png"), "no picture").unwrap();
    let whole = std::fs::read(work.path("image.png")).unwrap();
    std::fs::write(work.path("cut.png"), &whole[..whole.len() / 2]).unwrap();
    let refuses = |args: &[&str], says: &str| {
        let model = concat!(env!("CARGO_MANIFEST_DIR"), "/models/fashion-mnist");
        let (success, said) = work.said("generate", &[&["--model", model, "--out", "out.png"], args].concat());
        assert!(!success && said.contains(says), "{args:?}: no {says:?} in {said}");
        assert!(!work.path("out.png").exists());
    };
    let image = ["--image", "image.png"];
    let of = |file| ["--image", file];
    refuses(&of("missing.png"), "missing.png");
    refuses(&of("text.png"), "--image text.png: is not an intact png, jpeg or webp image");
    refuses(&of("cut.png"), "--image cut.png: is not an intact png, jpeg or webp image (the file is cut off)");
    refuses(
        &of("other.png"),
        "--image other.png: has 20x28 pixels, but must have those of one of the model's sizes, 28x28",
    );
    let with = |more: &[&'static str]| [&image[..], more].concat();
    refuses(
        &with(&["--mask", "other.png"]),
        "--mask other.png: has 20x28 pixels, but must have those of the picture, 28x28",
    );
    refuses(&with(&["--mask", "black.png"]), "--mask black.png: marks nothing to be drawn anew");
    refuses(&with(&["--strength", "0"]), "--strength: is 0, but must be above 0 and at most 1");
    refuses(&with(&["--strength", "1.5"]), "--strength: is 1.5, but must be above 0 and at most 1");
    refuses(&with(&["--strength", "0.5", "--plan", "heun-4@full~strength=0.6"]), "the plan's ~strength is 0.6");
    refuses(&["--plan", "heun-4@full~strength=0.6"], "--plan: starts from a picture, with ~strength: give --image");
    refuses(&["--strength", "0.6"], "--image");
}

#[test]
fn a_file_says_what_it_was_made_from_and_the_command_makes_it_again() {
    let work = Workplace::new();
    GrayImage::from_fn(28, 28, |x, y| image::Luma([(8 * x + y) as u8])).save(work.path("image.png")).unwrap();
    GrayImage::from_fn(28, 28, |x, _| image::Luma([if x < 14 { 255 } else { 0 }])).save(work.path("mask.png")).unwrap();
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/models/fashion-mnist");
    let args = ["--model", model, "--class", "bag", "--image", "image.png", "--mask", "mask.png"];
    work.draws(&[&args[..], &["--strength", "0.7", "--plan", "dpmpp2m-6@full"]].concat(), "first.png");
    let shown = work.run(&["show", "first.png"]);
    let shown = String::from_utf8(shown.stdout).unwrap();
    let command = shown.lines().find_map(|line| line.strip_prefix("draw it again")).unwrap();
    let command = command.replace("DIR", model).replace("IMAGE", "image.png").replace("MASK", "mask.png");
    assert!(
        command.contains("dpmpp2m-6@full~strength=0.7") && shown.contains("image            of SHA-256 "),
        "{shown}"
    );
    let command: Vec<String> = command.split_whitespace().map(|word| word.trim_matches('\'').to_owned()).collect();
    let words: Vec<&str> = command.iter().skip(1).map(String::as_str).collect();
    let output = work.run(&words);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let [first, again] = ["first.png", "again.png"].map(|file| std::fs::read(work.path(file)).unwrap());
    assert!(first == again);
    // The request's body, as the shell makes it of the files.
    let request = shown.lines().find_map(|line| line.strip_prefix("from a server")).unwrap();
    let request = request.replace("IMAGE", "image.png").replace("MASK", "mask.png");
    let printed = request.split(" | curl --json @- ").next().unwrap();
    let body = Command::new("sh").args(["-c", printed]).current_dir(work.0.path()).output().unwrap().stdout;
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((&body["class"], &body["strength"]), (&"bag".into(), &0.7.into()), "{body}");
    let file = STANDARD.decode(body["mask"].as_str().unwrap()).unwrap();
    assert_eq!(file, std::fs::read(work.path("mask.png")).unwrap());
}
