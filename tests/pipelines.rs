//! Pipelines of Stable Diffusion as people have them: what is imported, what is refused, and what `forward` and `rank` make of them,
//! value by value against diffusers and transformers.

#[path = "support/compare.rs"]
mod compare;
#[path = "support/workplace.rs"]
mod workplace;

use accordion::diffusion::preconditioning::{Preconditioning, Predicts};
use accordion::nets::Model;
use accordion::nets::text_to_image::FILES;
use accordion::supernet::{Order, Pipe, Spec, Subnet, Widths};
use candle_core::{DType, Device, Tensor};
use compare::relative_error;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use workplace::{Workplace, copy, fixture};

type Tensors = HashMap<String, Tensor>;

const UNET: &str = "unet/diffusion_pytorch_model.safetensors";
const VAE: &str = "vae/diffusion_pytorch_model.safetensors";
const TEXT_ENCODER: &str = "text_encoder/model.safetensors";

fn tensors(path: &Path) -> Tensors {
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

/// A place with a pipeline, `sd`, that may be changed.
fn pipeline() -> Workplace {
    let work = Workplace::new();
    copy(&fixture("sd_tiny"), &work.path("sd"));
    work
}

impl Workplace {
    #[track_caller]
    fn imports(&self, args: &[&str]) -> String {
        let (success, says) = self.said("import", args);
        assert!(success, "{args:?}: {says}");
        says
    }

    #[track_caller]
    fn refuses(&self, args: &[&str], words: &[&str]) {
        let (success, says) = self.said("import", &[args, &["--out", "new"]].concat());
        let line = says.lines().find(|line| line.starts_with("error: ")).unwrap_or_else(|| panic!("{args:?}: {says}"));
        assert!(!success && says.lines().count() <= 2, "{args:?}: {says}");
        for word in words {
            assert!(line.contains(word), "{args:?}: no {word:?} in {line}");
        }
        assert!(!self.path("new").exists());
    }

    /// Asserts that two model directories have the same files to the bit.
    #[track_caller]
    fn assert_same(&self, one: &str, other: &str) {
        for file in ["model.toml", "supernet.safetensors", "subnets.toml"].into_iter().chain(FILES) {
            let read = |dir: &str| std::fs::read(self.path(dir).join(file)).unwrap();
            assert!(read(one) == read(other), "{file}");
        }
    }

    /// Changes fields of a config; null takes one away.
    fn change(&self, file: &str, fields: &[(&str, Value)]) {
        let path = self.path(file);
        let mut config: BTreeMap<String, Value> = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        for (field, value) in fields {
            config.insert((*field).to_owned(), value.clone());
        }
        std::fs::write(path, serde_json::to_string(&config).unwrap()).unwrap();
    }

    /// All tensors of `sd` in one file, under the names of CompVis' code.
    fn single_file(&self, file: &str) -> Tensors {
        let names: BTreeMap<String, String> =
            serde_json::from_slice(&std::fs::read(fixture("sd_tiny.single_file.json")).unwrap()).unwrap();
        let [unet, vae, text] = [UNET, VAE, TEXT_ENCODER].map(|file| tensors(&self.path("sd").join(file)));
        let mut all = Tensors::new();
        for (theirs, ours) in &names {
            let (part, name) = ours.split_once('/').unwrap();
            let tensor = &[("unet", &unet), ("vae", &vae), ("text_encoder", &text)]
                .into_iter()
                .find(|(known, _)| *known == part)
                .unwrap()
                .1[name];
            // There the attention of the autoencoder is made of convolutions.
            let is_conv = theirs.contains(".attn_1.") && tensor.rank() == 2;
            let tensor = if is_conv { tensor.unsqueeze(2).unwrap().unsqueeze(3).unwrap() } else { tensor.clone() };
            all.insert(theirs.clone(), tensor);
        }
        let positions = Tensor::arange(0i64, 77, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        all.insert("cond_stage_model.transformer.text_model.embeddings.position_ids".into(), positions);
        all.insert("alphas_cumprod".into(), Tensor::ones(1000, DType::F32, &Device::Cpu).unwrap());
        self.save(&all, file);
        all
    }

    fn save(&self, tensors: &Tensors, file: &str) {
        candle_core::safetensors::save(tensors, self.path(file)).unwrap();
    }
}

#[test]
fn a_directory_of_diffusers_becomes_a_model_whose_parts_later_commands_keep() {
    let work = pipeline();
    let says = work.imports(&["sd", "--out", "model"]);
    assert_eq!(says, "import: sd: a Stable Diffusion pipeline: a U-Net of 24, 48, 48 channels, texts of 40\n");
    let model = Model::open(&work.path("model")).unwrap();
    let parts = model.card.text_to_image.as_ref().unwrap();
    assert_eq!(parts.sizes[0].to_string(), "128x128");
    let (encoder, tokenizer) = parts.texts(&work.path("model")).unwrap();
    assert_eq!((encoder.ids(), tokenizer.ids()), (894, 894));
    // The tokenizer is the same out of its one file.
    let prompts: Vec<String> = serde_json::from_value(
        serde_json::from_slice::<Value>(&std::fs::read(fixture("sd_tiny.json")).unwrap()).unwrap()["prompts"].clone(),
    )
    .unwrap();
    let original = accordion::text::Tokenizer::open(&work.path("sd")).unwrap();
    for prompt in &prompts {
        assert_eq!(tokenizer.encode(prompt, 77).unwrap(), original.encode(prompt, 77).unwrap(), "{prompt}");
    }

    let run = |args: &[&str]| {
        let output = work.run(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    run(&["rank", "--model", "model", "--method", "magnitude", "--order", "global", "--out", "ranked"]);
    run(&["allocate", "--model", "ranked", "--target", "macs", "--ratios", "0.6"]);
    run(&["extract", "--model", "ranked", "--subnet", "0.6", "--out", "narrow"]);
    for dir in ["ranked", "narrow"] {
        assert!(Model::open(&work.path(dir)).unwrap().card.text_to_image.is_some());
        for file in FILES {
            let read = |dir: &str| std::fs::read(work.path(dir).join(file)).unwrap();
            assert!(read(dir) == read("model"), "{dir}/{file}");
        }
    }
    // A part that is not the one that it was written with is missed at once.
    std::fs::write(work.path("narrow").join(FILES[1]), "{}").unwrap();
    assert!(Model::open(&work.path("narrow")).unwrap_err().to_string().contains("tokenizer.json: is not the file"));
}

#[test]
fn halves_pieces_and_older_names_become_the_same_model() {
    let work = pipeline();
    work.imports(&["sd", "--out", "whole", "--name", "x"]);
    let unet = tensors(&work.path("sd").join(UNET));
    std::fs::remove_file(work.path("sd").join(UNET)).unwrap();
    let mut map = BTreeMap::new();
    for piece in 0..2 {
        let file = format!("diffusion_pytorch_model-0000{}-of-00002.safetensors", piece + 1);
        let of_piece = unet.iter().filter(|(name, _)| name.len() % 2 == piece);
        let of_piece: Tensors = of_piece.map(|(name, tensor)| (name.clone(), tensor.clone())).collect();
        map.extend(of_piece.keys().map(|name| (name.clone(), file.clone())));
        work.save(&of_piece, &format!("sd/unet/{file}"));
    }
    let index = work.path("sd/unet/diffusion_pytorch_model.safetensors.index.json");
    std::fs::write(&index, json!({ "metadata": {}, "weight_map": map }).to_string()).unwrap();
    for part in ["vae", "text_encoder"] {
        copy(&fixture("sd_tiny_older_names").join(part), &work.path("sd").join(part));
    }
    work.imports(&["sd", "--out", "pieces", "--name", "x"]);
    work.assert_same("whole", "pieces");

    std::fs::remove_file(index).unwrap();
    let halves = unet.iter().map(|(name, tensor)| (name.clone(), tensor.to_dtype(DType::F16).unwrap())).collect();
    work.save(&halves, "sd/unet/diffusion_pytorch_model.fp16.safetensors");
    work.imports(&["sd", "--out", "halves", "--name", "x"]);
    let weights = |dir: &str| Model::open(&work.path(dir)).unwrap().supernet.values().unwrap().concat();
    let close = |(a, b): (&f32, &f32)| (a - b).abs() <= a.abs() / 1024.0 + 1e-7;
    let (whole, halves) = (weights("whole"), weights("halves"));
    assert!(whole != halves && whole.iter().zip(&halves).all(close));
}

#[test]
fn one_file_with_all_networks_becomes_the_model_that_their_directory_becomes() {
    let work = pipeline();
    work.single_file("sd.safetensors");
    work.imports(&["sd", "--out", "directory", "--name", "x"]);
    work.imports(&["sd.safetensors", "--config", "sd", "--out", "file", "--name", "x"]);
    work.assert_same("directory", "file");
    work.refuses(&["sd.safetensors"], &["sd.safetensors: has no tokenizer", "--config", "tokenizer/"]);
    // With the tokenizer alone it is as large as Stable Diffusion 1.5, which this one is not.
    copy(&fixture("sd_tiny/tokenizer"), &work.path("tokenizer"));
    let refused = ["lacks", "of the network", "of another shape"];
    work.refuses(&["sd.safetensors", "--config", "."], &refused);
}

#[test]
fn an_inpainting_network_has_nine_channels() {
    let work = pipeline();
    let mut all = work.single_file("sd.safetensors");
    let conv_in = "model.diffusion_model.input_blocks.0.0.weight";
    let wide = Tensor::ones((24, 9, 3, 3), DType::F32, &Device::Cpu).unwrap();
    all.insert(conv_in.into(), wide);
    work.save(&all, "inpainting.safetensors");
    let says = work.imports(&["inpainting.safetensors", "--config", "sd", "--out", "model"]);
    assert!(says.contains("a Stable Diffusion pipeline, for inpainting: "), "{says}");
    assert_eq!(Model::open(&work.path("model")).unwrap().image().channels, 9);
    all.insert(conv_in.into(), Tensor::ones((24, 8, 3, 3), DType::F32, &Device::Cpu).unwrap());
    work.save(&all, "other.safetensors");
    work.refuses(&["other.safetensors", "--config", "sd"], &["backbone.in_channels: 8 are neither the 4 channels"]);
}

/// How far two tensors of one shape are apart, as a share of the range.
fn apart(one: &Tensor, other: &Tensor) -> f64 {
    assert_eq!(one.dims(), other.dims());
    relative_error(&floats(one), &floats(other))
}

#[test]
fn a_lora_is_added_as_diffusers_fuses_it() {
    let work = pipeline();
    work.imports(&["sd", "--out", "plain"]);
    let expected = tensors(&fixture("sd_tiny.lora.expected.safetensors"));
    let [kohya, diffusers] = ["kohya", "diffusers"].map(|kind| fixture(&format!("sd_tiny.lora.{kind}.safetensors")));
    for file in [&kohya, &diffusers] {
        let lora = format!("{}:0.7", file.display());
        let says = work.imports(&["sd", "--lora", &lora, "--out", "model"]);
        assert!(says.contains("a LoRA of 7 layers, added at scale 0.7"), "{says}");
        // In the layout of diffusers again, every weight can be looked at.
        work.run(&["extract", "--model", "model", "--subnet", "full", "--format", "diffusers", "--out", "again"]);
        let (unet, text) = (tensors(&work.path("again").join(UNET)), tensors(&work.path("again").join(TEXT_ENCODER)));
        for (name, wanted) in &expected {
            let (part, layer) = name.split_once('.').unwrap();
            let found = match part {
                "unet" => &unet[&format!("{layer}.weight")],
                _ => {
                    text.iter()
                        .find(|(name, _)| name.ends_with(&format!("{}.weight", &layer["text_model.".len()..])))
                        .unwrap()
                        .1
                }
            };
            assert!(apart(found, wanted) < 1e-6, "{name}");
        }
        let card = std::fs::read_to_string(work.path("model/model.toml")).unwrap();
        assert!(card.contains("[[made.lora]]") && card.contains("scale = 0.7"), "{card}");
        for dir in ["model", "again"] {
            std::fs::remove_dir_all(work.path(dir)).unwrap();
        }
    }
    // Taken away again, but for roundings, nothing is left of it.
    let [add, take] = ["0.5", "-0.5"].map(|scale| format!("{}:{scale}", kohya.display()));
    work.imports(&["sd", "--lora", &add, "--lora", &take, "--out", "back"]);
    let [plain, back] = ["plain", "back"].map(|dir| tensors(&work.path(dir).join("supernet.safetensors")));
    assert!(plain.iter().all(|(name, tensor)| apart(&back[name], tensor) < 1e-6));
}

/// What becomes of a tensor, or that it is left out.
type Change<'a> = &'a dyn Fn(&str, &Tensor) -> Option<(String, Tensor)>;

#[test]
fn a_lora_of_another_network_is_refused_by_its_layers() {
    let work = pipeline();
    let kohya = tensors(&fixture("sd_tiny.lora.kohya.safetensors"));
    let changed = |file: &str, change: Change| {
        work.save(&kohya.iter().filter_map(|(name, tensor)| change(name, tensor)).collect(), file);
    };
    changed("other.safetensors", &|name, tensor| {
        Some((name.replace("down_blocks_0", "input_blocks_1"), tensor.clone()))
    });
    changed("wide.safetensors", &|name, tensor| {
        let wider = name.contains("to_q.lora_down").then(|| Tensor::cat(&[tensor, tensor], 1).unwrap());
        Some((name.to_owned(), wider.unwrap_or(tensor.clone())))
    });
    changed("half.safetensors", &|name, tensor| {
        (!name.contains("to_q.lora_up")).then(|| (name.to_owned(), tensor.clone()))
    });
    changed("loha.safetensors", &|name, tensor| Some((name.replace("lora_down.weight", "hada_w1_a"), tensor.clone())));
    let refuses = |file: &str, words: &[&str]| work.refuses(&["sd", "--lora", file], words);
    let layers = "lora_unet_input_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q";
    refuses(
        "other.safetensors",
        &["other.safetensors: is of another network: it changes 2 layers that this has not", layers],
    );
    refuses("wide.safetensors", &["is of another network, with layers of other sizes: lora_unet_", "for [24, 24]"]);
    refuses("half.safetensors", &["half.safetensors: lacks a factor of lora_unet_down_blocks_0"]);
    refuses("loha.safetensors", &["loha.safetensors: is LoHa; LoRAs of two factors a layer are merged"]);
    refuses("missing.safetensors", &["missing.safetensors"]);
    let unet = work.path("sd").join(UNET);
    refuses(unet.to_str().unwrap(), &["is no LoRA: no name in it ends as those of kohya's scripts and diffusers do"]);
    let other = fixture("song_unet_vp_cond.weights.safetensors");
    work.refuses(
        &[other.to_str().unwrap(), "--preconditioning", "vp", "--lora", "half.safetensors"],
        &["--lora: half.safetensors is added to pipelines"],
    );
}

#[test]
fn other_pipelines_are_refused_with_what_they_seem_to_be() {
    let work = pipeline();
    for (class, seems) in [
        ("StableDiffusionXLPipeline", "Stable Diffusion XL (StableDiffusionXLPipeline)"),
        ("StableDiffusion3Pipeline", "Stable Diffusion 3 (StableDiffusion3Pipeline)"),
        ("FluxPipeline", "FLUX (FluxPipeline)"),
        ("KandinskyPipeline", "KandinskyPipeline"),
    ] {
        work.change("sd/model_index.json", &[("_class_name", json!(class))]);
        work.refuses(&["sd"], &["model_index.json: seems to be", seems, "Stable Diffusion 1.x are read"]);
    }
    work.change("sd/model_index.json", &[("_class_name", json!("StableDiffusionPipeline"))]);
    work.change("sd/unet/config.json", &[("use_linear_projection", json!(true))]);
    work.refuses(&["sd"], &["unet/config.json: seems to be Stable Diffusion 2;"]);
    work.change("sd/unet/config.json", &[("addition_embed_type", json!("text_time"))]);
    work.refuses(&["sd"], &["unet/config.json: seems to be Stable Diffusion XL;"]);

    for (name, seems) in [
        ("conditioner.embedders.0.transformer.x", "Stable Diffusion XL"),
        ("cond_stage_model.model.ln_final.weight", "Stable Diffusion 2"),
        ("model.diffusion_model.joint_blocks.0.x", "Stable Diffusion 3"),
        ("double_blocks.0.img_attn.qkv.weight", "FLUX"),
    ] {
        let one = Tensor::ones((2, 2), DType::F32, &Device::Cpu).unwrap();
        work.save(&Tensors::from([(name.to_owned(), one)]), "other.safetensors");
        work.refuses(&["other.safetensors"], &["other.safetensors: seems to be", seems]);
    }
}

#[test]
fn a_pipeline_that_is_not_whole_or_does_not_fit_together_is_refused_by_the_part() {
    for part in ["unet", "vae", "text_encoder", "tokenizer", "scheduler"] {
        let work = pipeline();
        std::fs::remove_dir_all(work.path("sd").join(part)).unwrap();
        work.refuses(&["sd"], &[&format!("sd/{part}: is missing, a part of the pipeline")]);
    }
    let work = pipeline();
    work.refuses(&["sd/unet"], &["sd/unet: is one network of a pipeline, UNet2DConditionModel"]);
    work.refuses(&[&format!("sd/{UNET}")], &["is the U-Net of a Stable Diffusion pipeline alone"]);
    work.refuses(&["sd", "--classes", "cat,dog"], &["--classes: says nothing of a pipeline"]);
    work.refuses(&["sd", "--arch", "unet"], &["--arch: says nothing of a pipeline"]);
    for (file, field, value, words) in [
        (
            "unet/config.json",
            "act_fn",
            json!("gelu"),
            r#"act_fn: "gelu" is not "silu", as Stable Diffusion 1.x has it"#,
        ),
        ("unet/config.json", "_class_name", json!("UNet3D"), "_class_name: UNet3D is not UNet2DConditionModel"),
        ("unet/config.json", "layers_per_block", json!(1), "that the network does not have"),
        ("unet/config.json", "attention_head_dim", json!(5), "attention_head_dim: 24 channels do not divide into 5"),
        ("unet/config.json", "sample_size", json!(18), "sample_size: 18 is not a multiple of 4"),
        (
            "vae/config.json",
            "latent_channels",
            json!(16),
            "vae.latent_channels: 16 are not the 4 channels of the U-Net",
        ),
        ("vae/config.json", "shift_factor", json!(0.1), "shift_factor: 0.1 is not null"),
        ("vae/config.json", "layers_per_block", json!(1), "has tensors that the autoencoder does not have"),
        ("text_encoder/config.json", "hidden_size", json!(48), "text_encoder.hidden_size: 48 are not the 40 channels"),
        ("text_encoder/config.json", "max_position_embeddings", json!(64), "max_position_embeddings: 64 is not 77"),
        ("scheduler/scheduler_config.json", "prediction_type", json!("sample"), "is neither \"epsilon\" nor"),
        ("scheduler/scheduler_config.json", "beta_schedule", json!("linear"), "is not \"scaled_linear\""),
        ("scheduler/scheduler_config.json", "beta_start", json!(0.5), "0.5 to 0.012 is not a range between 0 and 1"),
    ] {
        let work = pipeline();
        work.change(&format!("sd/{file}"), &[(field, value)]);
        work.refuses(&["sd"], &[words]);
    }

    let work = pipeline();
    let vocabulary = work.path("sd/tokenizer/vocab.json");
    let mut ids: BTreeMap<String, u32> = serde_json::from_slice(&std::fs::read(&vocabulary).unwrap()).unwrap();
    ids.insert("another".into(), 894);
    std::fs::write(&vocabulary, serde_json::to_string(&ids).unwrap()).unwrap();
    work.refuses(&["sd"], &["vocab.json: is of another vocabulary than the encoder of texts: it has 895 ids, not 894"]);

    let work = pipeline();
    let mut vae = tensors(&work.path("sd").join(VAE));
    vae.remove("quant_conv.bias").unwrap();
    work.save(&vae, &format!("sd/{VAE}"));
    work.refuses(&["sd"], &["vae/diffusion_pytorch_model.safetensors: lacks 1 tensor of the network: quant_conv.bias"]);
}

fn expected() -> Tensors {
    tensors(&fixture("sd_tiny.expected.safetensors"))
}

fn json() -> Value {
    serde_json::from_slice(&std::fs::read(fixture("sd_tiny.json")).unwrap()).unwrap()
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[track_caller]
fn assert_near(what: &str, got: &Tensor, want: &Tensor, tolerance: f64) {
    assert_eq!(got.dims(), want.dims(), "{what}");
    let error = relative_error(&floats(got), &floats(want));
    println!("{what}: {error:.1e} of the range");
    assert!(error < tolerance, "{what}: {error:.1e} of the range");
}

impl Workplace {
    /// Runs `forward` on the golden tensors, or others.
    #[track_caller]
    fn forward(&self, args: &[&str], inputs: Option<&Tensors>) -> Tensors {
        let path = match inputs {
            None => fixture("sd_tiny.expected.safetensors"),
            Some(inputs) => {
                self.save(inputs, "inputs.safetensors");
                self.path("inputs.safetensors")
            }
        };
        let output = self.run(&[&["forward", "--input", path.to_str().unwrap(), "--output", "out"], args].concat());
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        tensors(&self.path("out"))
    }
}

/// The widths that the reference allocates.
fn stored_widths(spec: &Spec, ratio: f64) -> Widths {
    let table = &json()["allocation"][format!("{ratio:.3}")];
    let kept = |pipe: &Pipe| table[&pipe.block][format!("{}_keep", pipe.kind.as_str())].as_u64().unwrap() as usize;
    Widths(spec.pipes.iter().map(kept).collect())
}

/// A place with the imported pipeline, `model`, and with it ranked as the reference is, `ranked`.
fn imported() -> Workplace {
    let work = pipeline();
    work.imports(&["sd", "--out", "model"]);
    let (model, expected) = (Model::open(&work.path("model")).unwrap(), expected());
    let spec = model.network.spec().clone();
    let scores = |pipe: &Pipe| floats(&expected[&format!("importance.{}.{}", pipe.kind.as_str(), pipe.block)]);
    let scores = spec.pipes.iter().map(|pipe| scores(pipe).into_iter().map(f64::from).collect());
    let rows = [0.25, 0.5, 0.75].map(|ratio| Subnet::new(&spec, ratio, &stored_widths(&spec, ratio)));
    let ranked = model.ranked(&scores.collect::<Vec<_>>(), Order::Global).unwrap();
    let ranked = ranked.with_subnets("channels", rows.into()).unwrap();
    ranked.write(&work.path("ranked"), DType::F32).unwrap();
    work
}

#[test]
fn forward_predicts_the_noise_that_diffusers_does_at_every_width() {
    let (work, expected) = (imported(), expected());
    let eps = work.forward(&["--model", "model"], None);
    assert_near("eps_full", &eps["eps"], &expected["eps_full"], 1e-5);
    for ratio in ["0.250", "0.500", "0.750"] {
        let eps = work.forward(&["--model", "ranked", "--subnet", ratio], None);
        let name = format!("eps_subnet_{ratio}");
        assert_near(&name, &eps["eps"], &expected[&name], 1e-5);
    }
    // Latents of another size at a time between two steps.
    let context = expected["context"].narrow(0, 0, 1).unwrap().contiguous().unwrap();
    let wide =
        [("latents_xt", "wide_latents"), ("t", "wide_t")].map(|(ours, theirs)| (ours.into(), expected[theirs].clone()));
    let wide: Tensors = wide.into_iter().chain([("context".to_owned(), context)]).collect();
    for model in ["model", "ranked"] {
        let eps = work.forward(&["--model", model], Some(&wide));
        assert_near("wide_eps", &eps["eps"], &expected["wide_eps"], 1e-5);
    }
}

#[test]
fn forward_runs_the_other_parts_as_diffusers_and_transformers_do() {
    let (work, expected) = (imported(), expected());
    let text = work.forward(&["--model", "model", "--part", "text"], None);
    assert_near("text_hidden", &text["text_hidden"], &expected["text_hidden"], 1e-5);
    let moments = work.forward(&["--model", "model", "--part", "vae-encode"], None);
    for name in ["vae_mean", "vae_logvar"] {
        assert_near(name, &moments[name], &expected[name], 1e-5);
    }
    let decoded = work.forward(&["--model", "model", "--part", "vae-decode"], None);
    assert_near("vae_decoded", &decoded["vae_decoded"], &expected["vae_decoded"], 1e-5);
}

/// Our plan for a solver of the reference.
fn plan(solver: &str, steps: usize, subnet: &str) -> String {
    let (solver, spacing) = match solver {
        "dpmpp2m" => ("dpmpp2m", "~linspace"),
        "dpmpp2m_karras" => ("dpmpp2m", ""),
        "euler" => ("euler", "~linspace"),
        other => (other, ""),
    };
    format!("{solver}-{steps}@{subnet}{spacing}")
}

#[test]
fn plans_draw_what_the_solvers_of_diffusers_draw() {
    let (work, expected) = (imported(), expected());
    for solver in ["ddim", "pndm", "dpmpp2m", "dpmpp2m_karras", "euler"] {
        for steps in [10, 25] {
            let plan = plan(solver, steps, "full");
            let drawn = work.forward(&["--model", "model", "--part", "sample", "--plan", &plan], None);
            let want = &expected[&format!("{solver}.{steps}.latents")];
            assert_near(&plan, &drawn["latents"], want, 2e-5);

            let Some(image) = expected.get(&format!("{solver}.{steps}.image")) else { continue };
            let latent = (&drawn["latents"] / 0.18215).unwrap();
            let inputs = Tensors::from([("vae_latent".to_owned(), latent)]);
            let decoded = &work.forward(&["--model", "model", "--part", "vae-decode"], Some(&inputs))["vae_decoded"];
            let decoded = floats(&decoded.squeeze(0).unwrap().permute((1, 2, 0)).unwrap());
            let level = |value: &f32| (255.0 * (f64::from(*value) / 2.0 + 0.5).clamp(0.0, 1.0)).round_ties_even();
            let want = floats(image);
            let off: Vec<f64> =
                decoded.iter().zip(&want).map(|(got, want)| (level(got) - f64::from(*want)).abs()).collect();
            let others = off.iter().filter(|&&levels| levels > 0.0).count();
            println!("{plan}: {others} of {} values are another level", off.len());
            assert!(off.iter().all(|&levels| levels <= 1.0) && others < 30, "{plan}: {others}");
        }
    }
    let plan = plan("dpmpp2m", 10, "0.500");
    let drawn = work.forward(&["--model", "ranked", "--part", "sample", "--plan", &plan], None);
    assert_near(&plan, &drawn["latents"], &expected["dpmpp2m.10.latents_subnet_0.500"], 2e-5);
}

#[test]
fn rank_reads_the_golden_tensors_and_finds_their_importances() {
    let (work, expected) = (imported(), expected());
    let inputs = fixture("sd_tiny.expected.safetensors");
    let args =
        ["rank", "--model", "model", "--inputs", inputs.to_str().unwrap(), "--order", "global", "--out", "again"];
    let output = work.run(&args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let found = tensors(&work.path("again/importance.safetensors"));
    for pipe in &Model::open(&work.path("model")).unwrap().network.spec().pipes {
        let name = format!("importance.{}.{}", pipe.kind.as_str(), pipe.block);
        let got = floats(&found[&name]);
        let want = floats(&expected[&name]);
        let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v * v)).sum::<f64>().sqrt();
        let error = norm(&mut got.iter().zip(&want).map(|(a, b)| a - b)) / norm(&mut want.iter().copied());
        assert!(error < 1e-3, "{}: {error:.1e}", pipe.name);
    }
}

#[test]
fn forward_refuses_what_does_not_fit_by_name() {
    let (work, expected) = (imported(), expected());
    work.save(&expected, "golden.safetensors");
    let refuses = |args: &[&str], words: &str| {
        let output = work
            .run(&[&["forward", "--model", "model", "--input", "golden.safetensors", "--output", "o"], args].concat());
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && stderr.contains(words), "{args:?}: no {words:?} in {stderr}");
        assert!(stderr.lines().count() == 1 && !work.path("o").exists(), "{stderr}");
    };
    refuses(&["--part", "sample"], "--plan: is missing, by which to sample");
    refuses(&["--plan", "ddim-4@full"], "--plan: is of a trajectory");
    refuses(&["--part", "sample", "--plan", "ddim-4@0.3"], "subnet: `0.300` is none of full");
    refuses(&["--part", "sample", "--plan", "ddim-4@full^0.3"], "subnet: `0.300` is none of full");
    refuses(&["--part", "sample", "--plan", "ddim-4@full~strength=0.5"], "~strength starts from a picture");
    refuses(&["--part", "sample", "--plan", "ddim-1000@full"], "--plan: ddim-1000@full: 1000 steps are too many");
    refuses(&["--part", "sample", "--plan", "ddim-4@full", "--guidance", "nan"], "--guidance: NaN is not a number");
    let with = |name: &str, tensor: Tensor| {
        let mut tensors = expected.clone();
        tensors.insert(name.into(), tensor);
        work.save(&tensors, "golden.safetensors");
    };
    let zeros = |shape: &[usize], dtype| Tensor::zeros(shape, dtype, &Device::Cpu).unwrap();
    with("latents_xt", zeros(&[3, 4, 18, 16], DType::F32));
    refuses(&[], "latents_xt: shape [3, 4, 18, 16] is not [B, 4, H, W] with H and W multiples of 4");
    with("t", zeros(&[3], DType::F32).affine(0.0, 1000.0).unwrap());
    refuses(&[], "t: 1000 is not a time from 0 to 999");
    with("context", zeros(&[3, 76, 40], DType::F32));
    refuses(&[], "context: shape [3, 76, 40] is not [3, 77, 40]");
    with("text_token_ids", (zeros(&[1, 77], DType::I64) + 894.0).unwrap());
    refuses(&["--part", "text"], "text_token_ids: 894 is not an id from 0 to 893");
    with("vae_image", zeros(&[1, 3, 48, 60], DType::F32));
    refuses(
        &["--part", "vae-encode"],
        "vae_image: shape [1, 3, 48, 60] is not [B, 3, H, W] with H and W multiples of 8",
    );
}

#[test]
fn an_extracted_pipeline_is_read_again_and_a_narrower_one_has_other_formats() {
    let work = imported();
    let run = |args: &[&str]| {
        let output = work.run(args);
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let extract = ["extract", "--model", "ranked", "--out"];
    let (code, says) = run(&[&extract[..], &["again", "--subnet", "full", "--format", "diffusers"]].concat());
    assert_eq!(code, Some(0), "{says}");
    // The channels are back in their order.
    work.imports(&["again", "--out", "back", "--name", "x"]);
    work.imports(&["sd", "--out", "first", "--name", "x"]);
    work.assert_same("first", "back");
    let (code, says) = run(&[&extract[..], &["narrow", "--subnet", "0.5", "--format", "diffusers"]].concat());
    assert!(
        code == Some(2) && says.contains("--format: diffusers knows no narrower networks: give --subnet full"),
        "{says}"
    );
    assert!(!work.path("narrow").exists());
    let (code, says) = run(&[&extract[..], &["narrow", "--subnet", "0.5", "--format", "torch-names"]].concat());
    assert_eq!(code, Some(0), "{says}");
    let config: Value = serde_json::from_slice(&std::fs::read(work.path("narrow/config.json")).unwrap()).unwrap();
    let widths = config["config"]["pipe_widths"].as_object().unwrap();
    let weights = tensors(&work.path("narrow/weights.safetensors"));
    let name = "down_blocks.0.resnets.0";
    let kept = stored_widths(Model::open(&work.path("model")).unwrap().network.spec(), 0.5).0[0];
    assert_eq!(widths[&format!("{name}.conv")], kept);
    assert_eq!(weights[&format!("{name}.conv1.weight")].dims(), [kept, 24, 3, 3]);
    assert!(kept.is_multiple_of(config["norm_groups"][format!("{name}.norm2")].as_u64().unwrap() as usize));
}

#[test]
fn what_a_network_predicts_is_kept() {
    let work = pipeline();
    work.change("sd/scheduler/scheduler_config.json", &[("prediction_type", json!("v_prediction"))]);
    work.imports(&["sd", "--out", "model"]);
    let model = Model::open(&work.path("model")).unwrap();
    let predicts = match model.network.preconditioning() {
        Preconditioning::Ddpm { predicts, .. } => predicts,
        other => panic!("{other:?}"),
    };
    assert_eq!(predicts, Predicts::VPrediction);
    for (format, file) in [("diffusers", "scheduler/scheduler_config.json"), ("torch-names", "config.json")] {
        let out = format!("as-{format}");
        let args = ["extract", "--model", "model", "--subnet", "full", "--format", format, "--out", &out];
        assert!(work.run(&args).status.success());
        let config: Value = serde_json::from_slice(&std::fs::read(work.path(&out).join(file)).unwrap()).unwrap();
        assert_eq!(config["prediction_type"], "v_prediction", "{format}");
    }
    work.imports(&["as-diffusers", "--out", "again"]);
    assert_eq!(Model::open(&work.path("again")).unwrap().card.preconditioning, model.card.preconditioning);
}

/// The Python that has diffusers, in the environment that `benches/peers/venv.sh` makes; where it is missing that is said, and None.
fn peers() -> Option<PathBuf> {
    let cache = Path::new(&std::env::var_os("HOME").unwrap()).join(".cache/accordion/peers-venv");
    let venv = std::env::var_os("ACCORDION_PEERS_VENV").map_or(cache, Into::into);
    let python = venv.join("bin/python");
    let has = std::process::Command::new(&python).args(["-c", "import diffusers, transformers"]).output();
    if !has.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED: {} has no diffusers and transformers: run benches/peers/venv.sh", python.display());
        return None;
    }
    Some(python)
}

/// Runs a script of `benches/peers`, which fails where we differ from diffusers.
fn agrees(python: &Path, script: &str, args: &[&Path]) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers").join(script);
    let output = std::process::Command::new(python).arg(script).args(args).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    println!("{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn an_extracted_pipeline_draws_the_same_in_diffusers() {
    let Some(python) = peers() else { return };
    let work = imported();
    let args = ["extract", "--model", "ranked", "--subnet", "full", "--format", "diffusers", "--out", "extracted"];
    assert!(work.run(&args).status.success());
    agrees(&python, "pipeline.py", &[&work.path("sd"), &work.path("extracted")]);
}

#[test]
fn a_network_that_predicts_v_draws_what_it_draws_in_diffusers() {
    let Some(python) = peers() else { return };
    let work = pipeline();
    work.change("sd/scheduler/scheduler_config.json", &[("prediction_type", json!("v_prediction"))]);
    work.imports(&["sd", "--out", "model"]);
    let tensors = fixture("sd_tiny.expected.safetensors");
    for solver in ["ddim", "dpmpp2m"] {
        let (plan, input) = (format!("{solver}-10@full"), tensors.to_str().unwrap());
        let sample = ["forward", "--model", "model", "--part", "sample", "--plan", &plan, "--guidance", "7.5"];
        let output = work.run(&[&sample[..], &["--input", input, "--output", "drawn"]].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        agrees(&python, "v_prediction.py", &[&work.path("sd"), &tensors, &work.path("drawn"), Path::new(solver)]);
    }
}
