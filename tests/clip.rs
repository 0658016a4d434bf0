//! CLIP's tokens, pixels and embeddings against those of transformers, Pillow and PyTorch.

#[path = "support/halves.rs"]
mod halves;
mod support;

use accordion::features::sample::mean_and_deviation;
use accordion::features::{Clip, Features, clip};
use accordion::text::Tokenizer;
use accordion::{Error, ImageShape};
use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use support::{CLASSES, accordion, assert_refused, text, write_model};
use tempfile::TempDir;

/// Tokens of a text.
const LENGTH: usize = 77;

fn fixture(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(file)
}

fn read(file: &str) -> Value {
    serde_json::from_slice(&std::fs::read(fixture(file)).unwrap()).unwrap()
}

/// Prompts with their ids.
fn prompts() -> Vec<(String, Vec<u32>)> {
    let ids = |row: &Value| row["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
    let rows = read("sd_tiny.tokens.json");
    rows.as_array().unwrap().iter().map(|row| (row["prompt"].as_str().unwrap().to_owned(), ids(row))).collect()
}

#[track_caller]
fn assert_encodes_as_transformers(tokenizer: &Tokenizer) {
    let prompts = prompts();
    assert_eq!(prompts.len(), 18);
    for (prompt, mut ids) in prompts {
        ids.resize(LENGTH, tokenizer.end());
        assert_eq!(tokenizer.encode(&prompt, LENGTH).unwrap(), ids, "{prompt:?}");
    }
}

/// The pairs of the golden tokenizer.
fn merges() -> Vec<String> {
    let text = std::fs::read_to_string(fixture("sd_tiny/tokenizer/merges.txt")).unwrap();
    text.lines().skip(1).map(str::to_owned).collect()
}

/// A `tokenizer.json` as transformers writes it, as far as it is read, with these pairs.
fn tokenizer_json(merges: Value) -> Value {
    let vocab = read("sd_tiny/tokenizer/vocab.json");
    json!({"version": "1.0", "model": {"type": "BPE", "end_of_word_suffix": "</w>", "vocab": vocab, "merges": merges}})
}

#[test]
fn token_ids_are_those_of_transformers_whichever_files_they_come_from() {
    assert_encodes_as_transformers(&Tokenizer::open(&fixture("sd_tiny")).unwrap());
    assert_encodes_as_transformers(&Tokenizer::open(&fixture("sd_tiny/tokenizer")).unwrap());
    let pairs = merges().iter().map(|line| line.split(' ').map(Value::from).collect()).collect::<Vec<Value>>();
    for merges in [json!(merges()), json!(pairs)] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("tokenizer.json"), tokenizer_json(merges).to_string()).unwrap();
        assert_encodes_as_transformers(&Tokenizer::open(dir.path()).unwrap());
    }
}

#[test]
fn a_prompt_that_is_too_long_is_cut_to_any_length_and_keeps_its_end() {
    let tokenizer = Tokenizer::open(&fixture("sd_tiny")).unwrap();
    let whole = tokenizer.encode("a photo of a red bicycle", LENGTH).unwrap();
    assert_eq!(tokenizer.ids(), 894);
    for length in [2, 3, 5] {
        let cut = tokenizer.encode("a photo of a red bicycle", length).unwrap();
        assert_eq!(cut[..length - 1], whole[..length - 1]);
        assert_eq!(cut[length - 1..], [tokenizer.end()]);
    }
}

#[test]
fn special_tokens_in_a_prompt_are_found_in_any_case() {
    let tokenizer = Tokenizer::open(&fixture("sd_tiny")).unwrap();
    let ids = |prompt| tokenizer.encode(prompt, LENGTH).unwrap();
    let word = ids("text")[1..].iter().position(|&id| id == tokenizer.end()).unwrap();
    assert_eq!(ids("<|EndOfText|>text")[1], tokenizer.end());
    assert_eq!(ids("<|EndOfText|>text")[2..2 + word], ids("text")[1..1 + word]);
    assert_eq!(ids("<|STARTOFTEXT|>")[..2], [ids("")[0]; 2]);
}

#[test]
fn a_tokenizer_that_is_not_as_clips_is_refused_with_the_file_and_the_field() {
    let refusal = |files: &[(&str, &str)]| {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in files {
            std::fs::write(dir.path().join(name), content).unwrap();
        }
        let message = Tokenizer::open(dir.path()).unwrap_err().to_string();
        assert!(!message.contains('\n'), "{message}");
        message.replace(&format!("{}", dir.path().display()), "DIR")
    };
    assert!(refusal(&[]).starts_with("DIR: has neither tokenizer.json nor vocab.json"));
    let (vocab, ends) = (r#"{"a": 0, "b</w>": 1}"#, r#"{"a": 0, "<|startoftext|>": 1, "<|endoftext|>": 2}"#);
    assert!(refusal(&[("vocab.json", vocab)]).starts_with("DIR/merges.txt: No such file"));
    let message = refusal(&[("vocab.json", vocab), ("merges.txt", "#version: 0.2\n\n")]);
    assert_eq!(message, "DIR/vocab.json: has no token <|startoftext|>, so it is not CLIP's");
    let message = refusal(&[("vocab.json", ends), ("merges.txt", "#version: 0.2\na a\n")]);
    assert_eq!(message, "DIR/merges.txt: pair 1, `a a`, is of tokens or makes one that the vocabulary lacks");
    assert!(refusal(&[("vocab.json", r#"{"a": -1}"#), ("merges.txt", "")]).starts_with("DIR/vocab.json: a: invalid"));
    let mut whole = tokenizer_json(json!(["o f</w>", "of</w> of</w>"]));
    let message = refusal(&[("tokenizer.json", &whole.to_string())]);
    assert!(message.starts_with("DIR/tokenizer.json: model.merges: pair 2, `of</w> of</w>`"), "{message}");
    whole["model"]["end_of_word_suffix"] = Value::Null;
    let message = refusal(&[("tokenizer.json", &whole.to_string())]);
    assert_eq!(message, "DIR/tokenizer.json: model.end_of_word_suffix: is not </w>, so it is not CLIP's tokenizer");
    assert!(refusal(&[("tokenizer.json", "{}")]).starts_with("DIR/tokenizer.json: missing field `model`"));
}

/// A directory as transformers writes it, of the golden CLIP.
fn directory() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(fixture("clip_tiny.weights.safetensors"), dir.path().join("model.safetensors")).unwrap();
    std::fs::write(dir.path().join("config.json"), read("clip_tiny.json")["config"].to_string()).unwrap();
    std::fs::create_dir(dir.path().join("tokenizer")).unwrap();
    for name in ["vocab.json", "merges.txt"] {
        std::fs::copy(fixture("sd_tiny/tokenizer").join(name), dir.path().join("tokenizer").join(name)).unwrap();
    }
    dir
}

fn clip() -> Clip {
    Clip::open(directory().path()).unwrap()
}

fn expected() -> HashMap<String, Tensor> {
    candle_core::safetensors::load(fixture("clip_tiny.expected.safetensors"), &Device::Cpu).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn bytes(tensor: &Tensor) -> Vec<u8> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// An image with its size.
fn image(tensor: &Tensor) -> (Vec<u8>, ImageShape) {
    let (height, width, channels) = tensor.dims3().unwrap();
    (bytes(tensor), ImageShape { height, width, channels })
}

/// The golden images, each with its size, and the golden prompts.
fn images_and_prompts() -> (Vec<(Vec<u8>, ImageShape)>, Vec<String>) {
    let expected = expected();
    let images = (0..3).map(|index| image(&expected[&format!("image_{index}")])).collect();
    (images, serde_json::from_value(read("clip_tiny.json")["prompts"].clone()).unwrap())
}

/// Refuses a difference above 1e-5 anywhere; says the largest.
#[track_caller]
fn assert_near(what: &str, got: &[f64], want: &[f64]) {
    assert_eq!(got.len(), want.len(), "{what}");
    let largest = got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    println!("{what}: {largest:.1e}");
    // A NaN is not below either.
    assert!(got.iter().all(|value| value.is_finite()) && largest < 1e-5, "{what}: {largest}");
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().copied().map(f64::from).collect()
}

#[test]
fn resized_pixels_are_those_of_pillow_to_the_byte() {
    let (clip, expected) = (clip(), expected());
    for (index, (image, shape)) in images_and_prompts().0.iter().enumerate() {
        let resized = clip.resized(image, *shape).unwrap();
        assert_eq!(resized, bytes(&expected[&format!("resized_{index}")]), "image {index}");
    }
}

#[test]
fn embeddings_and_scores_are_those_of_pytorch() {
    let (mut clip, expected) = (clip(), expected());
    let (images, prompts) = images_and_prompts();
    assert_eq!(clip.dim(), 24);
    let ids =
        prompts.iter().map(|prompt| Tokenizer::open(&fixture("sd_tiny")).unwrap().encode(prompt, LENGTH).unwrap());
    let want: Vec<f64> = values(&expected["token_ids"]);
    assert_eq!(ids.flatten().map(f64::from).collect::<Vec<_>>(), want);
    let pictures: Vec<f32> = images.iter().flat_map(|(image, shape)| clip.of(image, *shape).unwrap()).collect();
    assert_near("image_embeds", &wide(&pictures), &values(&expected["image_embeds"]));
    let texts = clip.text(&prompts).unwrap();
    assert_near("text_embeds", &wide(&texts), &values(&expected["text_embeds"]));
    let pairs = || pictures.chunks(24).flat_map(|image| texts.chunks(24).map(move |text| (image, text)));
    let cosines: Vec<f64> = pairs().map(|(image, text)| clip::cosine(image, text)).collect();
    assert_near("cosine", &cosines, &values(&expected["cosine"]));
    let hundredths: Vec<f64> = pairs().map(|(image, text)| clip::score(image, text) / 100.0).collect();
    let want: Vec<f64> = values(&expected["clip_score"]).iter().map(|score| score / 100.0).collect();
    assert_near("clip_score / 100", &hundredths, &want);
    assert!(want.contains(&0.0) && want.iter().any(|&score| score > 0.0), "both sides of zero are covered");
}

#[test]
fn features_do_not_depend_on_what_is_encoded_beside_them() {
    let mut clip = clip();
    let (images, prompts) = images_and_prompts();
    let (image, shape) = &images[2];
    let other: Vec<u8> = image.iter().map(|value| 255 - value).collect();
    let [alone, other_alone] = [image, &other].map(|image| wide(&clip.of(image, *shape).unwrap()));
    // More than are encoded at once.
    let many = wide(&clip.of(&[&image[..], &other].concat().repeat(10), *shape).unwrap());
    assert_near("images", &many, &[alone, other_alone].concat().repeat(10));
    let alone: Vec<f32> = prompts.iter().flat_map(|prompt| clip.text(std::slice::from_ref(prompt)).unwrap()).collect();
    let many: Vec<String> = prompts.iter().cycle().take(20).cloned().collect();
    assert_near("texts", &wide(&clip.text(&many).unwrap()), &wide(&alone.repeat(5)));
    assert!(clip.of(&[], *shape).unwrap().is_empty() && clip.text(&[]).unwrap().is_empty());
}

#[test]
fn a_grey_image_has_the_features_of_the_colour_image_with_its_values_three_times() {
    let mut clip = clip();
    let grey: Vec<u8> = (0..50 * 41).map(|index| (index * index / 97 % 256) as u8).collect();
    let colour: Vec<u8> = grey.iter().flat_map(|&value| [value; 3]).collect();
    let shape = |channels| ImageShape { height: 50, width: 41, channels };
    assert_eq!(clip.resized(&grey, shape(1)).unwrap(), clip.resized(&colour, shape(3)).unwrap());
    assert_eq!(clip.of(&grey, shape(1)).unwrap(), clip.of(&colour, shape(3)).unwrap());
}

#[test]
fn images_of_another_size_than_said_are_refused() {
    let mut clip = clip();
    for (bytes, height, width, channels) in [(11, 2, 2, 3), (16, 2, 2, 4), (0, 0, 2, 3)] {
        let refusal = clip.of(&vec![0; bytes], ImageShape { height, width, channels }).unwrap_err();
        assert!(matches!(refusal, Error::Input { .. }), "{refusal:?}");
        assert!(refusal.to_string().starts_with(&format!("images: {bytes} bytes are not of images")), "{refusal}");
    }
}

#[test]
fn a_preprocessor_config_is_followed() {
    let dir = directory();
    let path = dir.path().join("preprocessor_config.json");
    let open = |json: Value| {
        std::fs::write(&path, json.to_string()).unwrap();
        Clip::open(dir.path())
    };
    let (images, _) = images_and_prompts();
    let (image, shape) = &images[0];
    let mut usual = clip();
    let said = json!({"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, "resample": 3,
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]});
    assert_eq!(open(said).unwrap().of(image, *shape).unwrap(), usual.of(image, *shape).unwrap());
    let other = open(json!({"size": 32, "image_mean": [0.5, 0.5, 0.5]})).unwrap().of(image, *shape).unwrap();
    assert_ne!(other, usual.of(image, *shape).unwrap());
    // 32 of 60 rows, each of which is one of the image.
    let cut = open(json!({"size": {"shortest_edge": 60}, "crop_size": 32})).unwrap();
    let rows = image.chunks(90 * 3).skip(14).take(32);
    assert_eq!(
        cut.resized(image, *shape).unwrap(),
        rows.flat_map(|row| &row[29 * 3..61 * 3]).copied().collect::<Vec<_>>()
    );
    for (json, field, says) in [
        (json!({"size": {"height": 32, "width": 40}}), "size", "is no square"),
        (json!({"size": 16}), "size", "is 16, but 32 pixels are cut out of it"),
        (json!({"size": 64, "crop_size": 64}), "crop_size", "is 64, but the image encoder takes 32"),
        (json!({"resample": 2}), "resample", "is another filter than 3, bicubic"),
        (json!({"image_std": [1, 0, 1]}), "image_std", "only positive numbers"),
        (json!({"image_mean": [1]}), "image_mean", "invalid length 1"),
    ] {
        let refusal = open(json).unwrap_err().to_string();
        let place = format!("preprocessor_config.json: {field}");
        assert!(refusal.contains(&place) && refusal.contains(says), "{refusal}");
    }
}

/// The refusal of the golden directory after a change, without the directory's path.
fn refusal(change: impl FnOnce(&Path)) -> String {
    let dir = directory();
    change(dir.path());
    let message = Clip::open(dir.path()).unwrap_err().to_string();
    assert!(!message.contains('\n'), "{message}");
    message.replace(&dir.path().display().to_string(), "DIR")
}

/// As [`refusal`], with another value in the config.
fn refusal_of_config(place: &str, value: Value) -> String {
    refusal(|dir| {
        let mut config = read("clip_tiny.json")["config"].clone();
        *config.pointer_mut(place).unwrap() = value;
        std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    })
}

#[test]
fn a_directory_without_one_of_its_files_is_refused_with_what_is_wanted() {
    let message = refusal(|dir| std::fs::remove_file(dir.join("config.json")).unwrap());
    assert!(message.starts_with("DIR/config.json: No such file"), "{message}");
    let message = refusal(|dir| std::fs::remove_dir_all(dir.join("tokenizer")).unwrap());
    assert!(message.starts_with("DIR: has neither tokenizer.json nor vocab.json"), "{message}");
    let message = refusal(|dir| std::fs::remove_file(dir.join("model.safetensors")).unwrap());
    assert!(message.starts_with("DIR: has neither model.safetensors nor pytorch_model.bin"), "{message}");
}

#[test]
fn a_config_that_is_not_of_a_clip_is_refused_with_the_field() {
    for (place, value, says) in [
        ("/text_config", Value::Null, "text_config: invalid type: null"),
        ("/text_config/hidden_act", json!("relu"), "text_config.hidden_act: unknown variant `relu`"),
        ("/text_config/num_attention_heads", json!(3), "text_config: hidden_size 40 does not split into 3 heads"),
        ("/text_config/max_position_embeddings", json!(1), "text_config.max_position_embeddings: is below 2"),
        ("/text_config/vocab_size", json!(893), "text_config.vocab_size: is 893, but the tokenizer has 894 ids"),
        ("/vision_config/num_attention_heads", json!(0), "vision_config: hidden_size 48 does not split into 0 heads"),
        ("/vision_config/num_channels", json!(1), "vision_config.num_channels: is 1, but only 3 is accepted"),
        ("/vision_config/image_size", json!(0), "vision_config.image_size: is 0, but only 1 to 4096"),
        ("/vision_config/patch_size", json!(33), "vision_config.patch_size: is 33, but an image has 32 pixels"),
    ] {
        let message = refusal_of_config(place, value);
        assert!(message.starts_with(&format!("DIR/config.json: {says}")), "{message}");
    }
    let message = refusal(|dir| std::fs::write(dir.join("config.json"), "{}").unwrap());
    assert!(message.starts_with("DIR/config.json: missing field `text_config`"), "{message}");
}

#[test]
fn weights_that_are_missing_or_of_another_size_are_refused_by_name() {
    let message = refusal_of_config("/text_config/num_hidden_layers", json!(3));
    let name = "text_model.encoder.layers.2.layer_norm1.weight";
    assert_eq!(message, format!("DIR/model.safetensors: {name}: tensor is missing"));
    let message = refusal_of_config("/projection_dim", json!(16));
    let says = "visual_projection.weight: is [24, 48], but of this config it is [16, 48]";
    assert_eq!(message, format!("DIR/model.safetensors: {says}"));
    let message = refusal(|dir| {
        let path = dir.join("model.safetensors");
        let mut tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
        tensors.remove("vision_model.pre_layrnorm.bias").unwrap();
        candle_core::safetensors::save(&tensors, &path).unwrap();
    });
    assert_eq!(message, "DIR/model.safetensors: vision_model.pre_layrnorm.bias: tensor is missing");
}

#[test]
fn weights_are_read_from_pytorch_model_bin_without_running_it() {
    let replaced = |file: &str| {
        let dir = directory();
        std::fs::remove_file(dir.path().join("model.safetensors")).unwrap();
        std::fs::copy(fixture(file), dir.path().join("pytorch_model.bin")).unwrap();
        dir
    };
    // Which kind of file it is, its content says.
    let mut clip = Clip::open(replaced("clip_tiny.weights.safetensors").path()).unwrap();
    let (image, shape) = &images_and_prompts().0[0];
    assert_eq!(clip.of(image, *shape).unwrap(), self::clip().of(image, *shape).unwrap());
    for (file, says) in [("malicious.pth", "posix.system"), ("u_vit_uncond.pth", "has no tensor vision_model.*")] {
        let refusal = Clip::open(replaced(file).path()).unwrap_err().to_string();
        assert!(refusal.contains("pytorch_model.bin: ") && refusal.contains(says), "{refusal}");
    }
}

#[test]
fn what_a_config_leaves_out_is_as_in_transformers() {
    let dir = directory();
    let mut config = read("clip_tiny.json")["config"].clone();
    for (tower, fields) in [
        ("text_config", &["hidden_act", "layer_norm_eps", "max_position_embeddings"][..]),
        ("vision_config", &["hidden_act", "layer_norm_eps", "num_channels"]),
    ] {
        for field in fields {
            config[tower].as_object_mut().unwrap().remove(*field).unwrap();
        }
    }
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let (mut partial, mut whole) = (Clip::open(dir.path()).unwrap(), clip());
    let (images, prompts) = images_and_prompts();
    let (image, shape) = &images[0];
    assert_eq!(partial.of(image, *shape).unwrap(), whole.of(image, *shape).unwrap());
    assert_eq!(partial.text(&prompts).unwrap(), whole.text(&prompts).unwrap());
}

#[test]
fn the_clip_score_of_images_is_the_mean_over_them_of_that_for_the_text_of_their_class() {
    const IMAGES: usize = 20;
    let (dir, clip_dir) = (tempfile::tempdir().unwrap(), directory());
    let [model, data] = ["model", "data.toml"].map(|name| dir.path().join(name));
    write_model(&model, &CLASSES);
    halves::write(dir.path(), IMAGES);
    let source = format!("format = 'idx'\nimages = 'images'\nlabels = 'labels'\nclasses = {CLASSES:?}\n");
    std::fs::write(&data, format!("[data]\n{source}")).unwrap();
    let evaluate = |model: &Path, args: &[&str]| {
        let of = ["evaluate", "--model", text(model), "--metric", "clip", "--json", "--n", "20"];
        accordion(&[&of[..], args].concat()).current_dir(dir.path()).output().unwrap()
    };
    let with_clip = ["--features", text(clip_dir.path())];
    let rows = |args: &[&str]| {
        let output = evaluate(&model, &[&with_clip[..], args].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice::<Value>(&output.stdout).unwrap()["rows"].clone()
    };

    let mut clip = clip();
    let (bytes, labels) = halves::data(IMAGES);
    let shape = ImageShape { height: halves::SIDE, width: halves::SIDE, channels: 1 };
    let images = clip.of(&bytes, shape).unwrap();
    let expected = |prompt: &str| {
        let texts = clip.text(&CLASSES.map(|class| prompt.replace("{class}", class))).unwrap();
        let dim = clip.dim();
        let text = |label: u8| &texts[usize::from(label) * dim..][..dim];
        let pairs = images.chunks(dim).zip(&labels);
        mean_and_deviation(&pairs.map(|(image, &label)| clip::score(image, text(label))).collect::<Vec<_>>())
    };
    for (args, prompt) in [(vec![], "a photo of a {class}"), (vec!["--prompt", "not {class}"], "not {class}")] {
        let found = rows(&[&["--real", "data.toml"], &args[..]].concat())[0]["clip"].clone();
        let (mean, deviation) = expected(prompt);
        let [value, error] = ["value", "error"].map(|name| found[name].as_f64().unwrap());
        assert!((value - mean).abs() < 1e-9 && (error - deviation / (IMAGES as f64).sqrt()).abs() < 1e-9, "{found}");
    }
    // Its features tell how far images are from real ones, too.
    let both = rows(&["--metric", "fd,clip", "--data", "data.toml", "--real", "data.toml", "--plan", "euler-1@full"]);
    assert!(both[0]["fd"]["distance"].as_f64().unwrap() < 1e-6, "{both}");
    assert!(both[1]["fd"]["distance"].as_f64().unwrap() > 1e-2 && both[1]["clip"]["value"].is_f64(), "{both}");

    let output = evaluate(&model, &["--real", "data.toml"]);
    assert_refused(&output, &["--features: is needed for the CLIP score: the directory of a CLIP"]);
    let without_classes = dir.path().join("without");
    write_model(&without_classes, &[]);
    let output = evaluate(&without_classes, &[&with_clip[..], &["--plan", "euler-1@full"]].concat());
    assert_refused(&output, &["--prompt: says {class}, but the model has no classes"]);
}
