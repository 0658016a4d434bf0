//! Training of models that draw texts, on a folder of pictures with captions: a pipeline of tiny sizes is compressed, its subnets and
//! its other parts are trained further.

#[path = "support/workplace.rs"]
mod workplace;

use accordion::nets::text_to_image::{TEXT_ENCODER, TOKENIZER, VAE};
use accordion::nets::{Codec, Model, Threads};
use accordion::training::config::Config;
use accordion::training::flow::{Flow, Outcome};
use image::{Rgb, RgbImage};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use workplace::{Workplace, fixture};

const PICTURES: u32 = 6;
static RUNS: AtomicBool = AtomicBool::new(false);
static STOPS: AtomicBool = AtomicBool::new(true);

/// A place with the tiny pipeline as a model, `sd`, pictures with captions in `pictures`, and a config with these sections.
fn workplace(sections: &str) -> Workplace {
    let work = Workplace::new();
    let (success, says) = work.said("import", &[fixture("sd_tiny").to_str().unwrap(), "--out", "sd"]);
    assert!(success, "{says}");
    std::fs::create_dir(work.path("pictures")).unwrap();
    let mut metadata = String::new();
    for index in 0..PICTURES {
        let (name, colour) = [("red", [220, 30, 40]), ("blue", [30, 40, 220])][index as usize % 2];
        let picture = RgbImage::from_fn(160, 128, |x, y| {
            if x / 20 % 2 == y / 20 % 2 { Rgb(colour) } else { Rgb([index as u8 * 20; 3]) }
        });
        picture.save(work.path(&format!("pictures/{index}.png"))).unwrap();
        metadata += &format!("{{\"file_name\": \"{index}.png\", \"text\": \"{name} squares\"}}\n");
    }
    std::fs::write(work.path("pictures/metadata.jsonl"), metadata).unwrap();
    let config = format!(
        "name = \"squares\"\n[data]\nformat = \"captioned\"\npath = \"pictures\"\ncache = \"latents.safetensors\"\n\
         [ranking]\nsamples = 2\norder = \"global\"\n[allocation]\ntarget = \"macs\"\nstep = 0.25\n{sections}"
    );
    std::fs::write(work.path("config.toml"), config).unwrap();
    work
}

fn stage(name: &str, steps: usize, more: &str) -> String {
    format!("[{name}]\nimages = {}\nbatch = 2\nlearning_rate = 1e-3\nema_half_life = 2\n{more}\n", 2 * steps)
}

impl Workplace {
    fn config(&self) -> Config {
        Config::load(&self.path("config.toml")).unwrap()
    }

    #[track_caller]
    fn succeeds(&self, subcommand: &str, args: &[&str]) -> String {
        let (success, says) = self.said(subcommand, args);
        assert!(success, "{subcommand} {args:?}: {says}");
        says
    }

    #[track_caller]
    fn refuses(&self, subcommand: &str, args: &[&str], words: &str) {
        let (success, says) = self.said(subcommand, args);
        let line = says.lines().find(|line| line.starts_with("error: ")).unwrap_or_else(|| panic!("{args:?}: {says}"));
        assert!(!success && line.contains(words), "{args:?}: no {words:?} in {line}");
    }

    fn bytes(&self, file: &str) -> Vec<u8> {
        std::fs::read(self.path(file)).unwrap()
    }
}

fn flow<'a>(config: &'a Config, model: &'a Path, out: &'a Path) -> Flow<'a> {
    let (only, init, checkpoint_every, stop) = (None, None, Duration::MAX, &RUNS);
    Flow { config, out, resume: false, only, model: Some(model), init, checkpoint_every, stop }
}

/// The tensors of a file.
fn tensors(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let bytes = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    file.iter().map(|(name, view)| (name.to_owned(), view.data().to_vec())).collect()
}

/// Runs until the end, stopped after every step; how many sittings it took.
fn in_pieces(mut sitting: Flow, mut run: impl FnMut(&Flow) -> Outcome) -> usize {
    sitting.stop = &STOPS;
    let mut sittings = 1;
    while run(&sitting) == Outcome::Stopped {
        assert!(sittings < 100, "it gets on");
        (sitting.resume, sittings) = (true, sittings + 1);
    }
    sittings
}

#[test]
fn a_pipeline_is_ranked_allocated_and_trained_at_all_widths_and_resumes_to_the_bit() {
    let work = workplace(&(stage("all", 3, "text_encoder = true") + "[loss]\nflip = true\nmin_snr = 5.0"));
    let says = work.succeeds("train", &["--config", "config.toml", "--model", "sd", "--out", "whole"]);
    assert!(says.contains("data: 6 latents of 16x16x4") && says.contains("; 2 captions"), "{says}");
    let model = Model::open(&work.path("whole")).unwrap();
    let names: Vec<String> = model.subnets().iter().map(|subnet| subnet.name.to_string()).collect();
    assert_eq!(names, ["0.500", "0.750", "full"]);
    assert_eq!((model.card.name.as_str(), model.card.made["all"]["images"].as_integer()), ("squares", Some(6)));
    for part in [TOKENIZER, VAE] {
        assert_eq!(work.bytes(&format!("whole/{part}")), work.bytes(&format!("sd/{part}")), "{part}");
    }
    // The encoder of texts was trained along: all of its weights but the tokens that no caption has.
    let [before, after] = ["sd", "whole"].map(|dir| tensors(&work.path(dir).join(TEXT_ENCODER)));
    assert!(before.keys().eq(after.keys()) && before.iter().all(|(name, values)| after[name] != *values));

    // Stopped after every picture and every step it ends like that, with the latents of another file.
    let again = work.path("pieces");
    let config = work.config();
    std::fs::remove_file(work.path("latents.safetensors")).unwrap();
    let sd = work.path("sd");
    let sittings = in_pieces(flow(&config, &sd, &again), |flow| flow.run().unwrap());
    assert_eq!(sittings, PICTURES as usize + 3);
    for file in [
        "ranked/supernet.safetensors",
        "ranked/importance.safetensors",
        "supernet.safetensors",
        TEXT_ENCODER,
        "state.safetensors",
    ] {
        assert!(tensors(&work.path("whole").join(file)) == tensors(&again.join(file)), "{file}");
    }
    let table = |dir: &str| String::from_utf8(work.bytes(&format!("{dir}/subnets.toml"))).unwrap();
    assert_eq!(table("whole"), table("pieces"));

    // What came out draws.
    let drawn =
        ["--model", "whole", "--prompt", "red squares", "--plan", "dpmpp2m-2@0.500", "--seed", "1", "--out", "a.png"];
    work.succeeds("generate", &drawn);
    assert!(image::open(work.path("a.png")).unwrap().width() == 128);
}

#[test]
fn a_subnet_is_trained_further_on_captions_and_its_loss_falls() {
    let more = stage("finetune", 150, "final_share = 0.1\nweight_decay = 1e-4");
    let work = workplace(&(more + "[loss]\nlabel_dropout = 0.2"));
    let args = ["--config", "config.toml", "--model", "sd", "--subnet", "full"];
    work.succeeds("finetune", &[&args[..], &["--out", "taught"]].concat());
    let loss = |dir: &str| {
        let output = work.run(&[
            "evaluate",
            "--model",
            dir,
            "--data",
            "config.toml",
            "--metric",
            "loss",
            "--samples",
            "32",
            "--json",
        ]);
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
        answer["rows"][0]["loss"].as_f64().unwrap()
    };
    let (before, after) = (loss("sd"), loss("taught"));
    assert!(after < 0.8 * before, "{before} {after}");
}

#[test]
fn an_autoencoder_learns_to_give_pictures_back_and_resumes_to_the_bit() {
    let work = workplace(&(stage("vae", 12, "") + "[loss]\nflip = true"));
    let [sd, whole, pieces] = ["sd", "whole", "pieces"].map(|name| work.path(name));
    let args = ["--part", "vae", "--config", "config.toml", "--model", "sd", "--out", "whole"];
    let says = work.succeeds("train", &args);
    assert!(says.contains("vae: 24 of 24 images"), "{says}");
    let (before, after) = (Model::open(&sd).unwrap(), Model::open(&whole).unwrap());
    assert_eq!(work.bytes(&format!("whole/{TEXT_ENCODER}")), work.bytes(&format!("sd/{TEXT_ENCODER}")));
    assert!(tensors(&whole.join("supernet.safetensors")) == tensors(&sd.join("supernet.safetensors")));

    let picture = image::open(work.path("pictures/0.png")).unwrap();
    let picture = picture.resize_to_fill(128, 128, image::imageops::FilterType::Triangle).into_rgb8().into_raw();
    let error = |model: &Model| {
        let mut codec = Codec::of(model, Threads::ALL).unwrap().unwrap();
        let canvas = model.canvases()[0];
        let values: Vec<f32> = picture.iter().map(|&byte| f32::from(byte) / 127.5 - 1.0).collect();
        let latent: Vec<f64> = codec.latent(canvas.picture, &values).unwrap().into_iter().map(f64::from).collect();
        let again = codec.pixels(0, canvas.state, &latent).unwrap();
        let deviation = (latent.iter().map(|value| value * value).sum::<f64>() / latent.len() as f64).sqrt();
        let squares = picture.iter().zip(again).map(|(&a, b)| (f64::from(a) - f64::from(b)).powi(2));
        (squares.sum::<f64>() / picture.len() as f64, deviation)
    };
    let ((untrained, _), (trained, deviation)) = (error(&before), error(&after));
    assert!(trained < 0.7 * untrained, "{untrained} {trained}");
    // The scale is that of the latents now.
    assert!((0.3..3.0).contains(&deviation), "{deviation}");

    let config = work.config();
    let sittings = in_pieces(flow(&config, &sd, &pieces), |flow| flow.autoencoder(&before, &sd).unwrap());
    assert_eq!(sittings, 12);
    for file in [VAE, "state.safetensors"] {
        assert!(tensors(&whole.join(file)) == tensors(&pieces.join(file)), "{file}");
    }
    let card = |dir: &str| Model::open(&work.path(dir)).unwrap().card.text_to_image.unwrap().vae.scaling_factor;
    assert_eq!(card("whole"), card("pieces"));
    assert_ne!(card("whole"), card("sd"));
}

#[test]
fn latents_are_kept_and_only_new_pictures_are_encoded() {
    let work = workplace("");
    let rank = |out: &str| {
        work.succeeds(
            "rank",
            &["--model", "sd", "--data", "config.toml", "--order", "global", "--samples", "2", "--out", out],
        )
    };
    rank("one");
    let first = tensors(&work.path("latents.safetensors"));
    assert_eq!(first.len(), PICTURES as usize);
    // What is there is taken: nothing is encoded or written again.
    let path = work.path("latents.safetensors");
    let written = std::fs::metadata(&path).unwrap().modified().unwrap();
    rank("two");
    assert_eq!(std::fs::metadata(&path).unwrap().modified().unwrap(), written, "nothing was encoded");
    assert_eq!(work.bytes("one/importance.safetensors"), work.bytes("two/importance.safetensors"));
    RgbImage::from_pixel(200, 200, Rgb([1, 2, 3])).save(work.path("pictures/more.png")).unwrap();
    let metadata = String::from_utf8(work.bytes("pictures/metadata.jsonl")).unwrap();
    std::fs::write(
        work.path("pictures/metadata.jsonl"),
        metadata + "{\"file_name\": \"more.png\", \"text\": \"dark\"}\n",
    )
    .unwrap();
    rank("three");
    let more = tensors(&path);
    assert!(more.len() == first.len() + 1 && first.iter().all(|(name, values)| more[name] == *values));
    // A file that is not one of latents is refused.
    std::fs::remove_file(&path).unwrap();
    let alien =
        [("x".to_owned(), safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![1], &[0; 4]).unwrap())];
    std::fs::write(&path, safetensors::serialize(alien, None).unwrap()).unwrap();
    let args = ["--model", "sd", "--data", "config.toml", "--order", "global", "--out", "four"];
    work.refuses(
        "rank",
        &args,
        "latents.safetensors: encoder: is missing: this is no file of latents; give another data.cache",
    );
}

#[test]
fn what_does_not_go_together_is_refused_with_its_sentence() {
    let work = workplace(&stage("all", 1, ""));
    let train = |args: &[&str], words: &str| {
        work.refuses("train", &[&["--config", "config.toml", "--out", "new"], args].concat(), words);
        assert!(!work.path("new").exists(), "nothing is made");
    };
    train(&[], "config.toml: backbone: is missing: only where --model or --init names a model may it be left out");
    train(&["--model", "sd", "--widths", "full"], "config.toml: full: is missing: it says how many images are seen");
    train(&["--part", "vae", "--model", "sd"], "config.toml: vae: is missing: it says how many images are seen");
    train(&["--part", "vae"], "--part: needs --model");
    train(&["--part", "vae", "--model", "sd", "--widths", "all"], "does not go with --widths and --init");
    train(
        &["--model", "sd", "--init", "sd"],
        "--init: is the model that the run begins with: it does not go with --model",
    );
    let finetune = ["--model", "sd", "--subnet", "full", "--config", "config.toml", "--out", "new"];
    work.refuses("finetune", &finetune, "config.toml: finetune: is missing");
    let shipped: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/fashion-mnist");
    train(&["--model", shipped.to_str().unwrap()], "data.format: `captioned` teaches a model that draws texts");
    let config = String::from_utf8(work.bytes("config.toml")).unwrap();
    for (from, to, words) in [
        ("format = \"captioned\"", "format = \"folder\"\nchannels = 3", "data: unknown field `cache`"),
        (
            "[all]",
            "[loss]\nlevels = \"uniform-time\"\n[all]",
            "loss.levels: `uniform-time` needs preconditioning.kind = \"vp\"",
        ),
        ("[all]", "[loss]\nmin_snr = 0.0\n[all]", "loss.min_snr: must be positive"),
        ("path = \"pictures\"", "path = \"nowhere\"", "nowhere: No such file or directory"),
    ] {
        assert!(config.contains(from));
        std::fs::write(work.path("config.toml"), config.replacen(from, to, 1)).unwrap();
        let (success, says) = work.said("train", &["--config", "config.toml", "--out", "new", "--model", "sd"]);
        assert!(!success && says.contains(words), "{words}: {says}");
    }
    std::fs::write(work.path("config.toml"), &config).unwrap();
    std::fs::remove_file(work.path("pictures/metadata.jsonl")).unwrap();
    train(
        &["--model", "sd"],
        "0.png: has no caption: there is no 0.txt beside it, and no metadata.jsonl in the folder",
    );
    std::fs::write(work.path("pictures/0.png"), b"not a picture").unwrap();
    for index in 0..PICTURES {
        std::fs::write(work.path(&format!("pictures/{index}.txt")), "squares").unwrap();
    }
    train(&["--model", "sd"], "0.png: is not an intact png, jpeg or webp image");
}
