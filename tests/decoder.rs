//! Decoders that shrink: ranked, allocated, trained, carried along, named by plans and served.

#[path = "support/compare.rs"]
mod compare;
#[path = "support/http.rs"]
mod http;
#[path = "support/server.rs"]
mod server;
mod support;

use accordion::ImageShape;
use accordion::nets::program::{Inputs, Program};
use accordion::nets::sliced::Sliced;
use accordion::nets::text_to_image::{DECODER, DECODER_FILES, DECODER_IMPORTANCE, FILES};
use accordion::nets::{Decoder, Model, Threads, on_tape};
use accordion::ops::Tape;
use accordion::philox::Stream;
use accordion::supernet::spec::Role;
use accordion::supernet::{Supernet, Widths};
use accordion::training::config::{Sampling, Stage, Teacher};
use accordion::training::data::{Dataset, Source};
use accordion::training::decoder::importance::{Samples, direction, importance};
use accordion::training::decoder::{Batch, Latents, Reconstruction};
use accordion::training::learner::Learner;
use accordion::training::state::{StageName, State};
use accordion::training::trainer::{Recipe, Task, Trainer};
use candle_core::{Device, Tensor};
use compare::relative_error;
use serde_json::{Value, json};
use server::Workspace;
use std::path::{Path, PathBuf};
use support::{accordion, assert_refused, rank_decoder, text};
use tempfile::TempDir;

/// The tiny pipeline in `model`, and in `ranked` with a decoder of three widths.
fn place() -> (TempDir, PathBuf, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let [model, ranked] = ["model", "ranked"].map(|name| dir.path().join(name));
    support::write_text_model(&model, &["128x128"]);
    rank_decoder(&model, &ranked);
    (dir, model, ranked)
}

fn decoder(dir: &Path) -> Decoder {
    Decoder::of(&Model::open(dir).unwrap()).unwrap().unwrap()
}

/// A latent, as a decoder reads it.
fn latent(shape: ImageShape) -> Vec<f32> {
    let mut latent = vec![0.0; shape.elements()];
    Stream::new(5, 91, 0).fill_normals(&mut latent);
    latent
}

const SHAPE: ImageShape = ImageShape { height: 4, width: 6, channels: 4 };

/// What a subnet makes of a latent, op by op.
fn plainly(program: &Program, supernet: &Supernet, widths: &Widths, shape: ImageShape, latent: &[f32]) -> Vec<f32> {
    let weights = Sliced::new(&program.spec, supernet, widths).unwrap();
    let ImageShape { height, width, channels } = shape;
    let latent = Tensor::from_slice(latent, (1, height, width, channels), &Device::Cpu).unwrap();
    let made = on_tape::forward(program, &Tape::off(), &weights, &latent, Inputs::NONE).unwrap();
    made.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn the_full_width_of_a_ranked_decoder_makes_what_the_imported_one_does() {
    let (_dir, model, ranked) = place();
    let latent = latent(SHAPE);
    let [before, after] =
        [model, ranked].map(|dir| decoder(&dir).runner(Threads::new(2)).unwrap().run_sized(SHAPE, &latent));
    let error = relative_error(&after, &before);
    assert!(error < 1e-5, "{error:.1e}");
}

#[test]
fn a_subnet_of_a_decoder_is_a_prefix_that_computes_alone_what_it_does_in_the_whole() {
    let (_dir, _, ranked) = place();
    let Decoder { program, supernet, .. } = decoder(&ranked);
    let widths = decoder(&ranked).widths();
    assert!(widths.windows(2).all(|pair| pair[0].nests_in(&pair[1]) && pair[0] != pair[1]));
    let latent = latent(SHAPE);
    let mut runner = decoder(&ranked).runner(Threads::new(2)).unwrap();
    let made: Vec<Vec<f32>> = (0..widths.len()).map(|subnet| runner.run_subnet(subnet, SHAPE, &latent)).collect();
    assert!(made[0] != made[1] && made[1] != made[2]);
    for (widths, made) in widths.iter().zip(&made) {
        // Only what the subnet keeps: the rest is set to what would show.
        let kept = program.spec.params.iter().zip(&supernet.params).map(|(param, tensor)| {
            let mut mask = Tensor::ones(tensor.shape(), tensor.dtype(), &Device::Cpu).unwrap();
            for slice in &param.slices {
                let size = param.shape[slice.axis];
                let keeps: Vec<f32> = (0..size).map(|at| f32::from(u8::from(at < widths.0[slice.pipe]))).collect();
                let mut shape = vec![1; param.shape.len()];
                shape[slice.axis] = size;
                mask = mask.broadcast_mul(&Tensor::from_vec(keeps, shape, &Device::Cpu).unwrap()).unwrap();
            }
            let elsewhere = ((mask.ones_like().unwrap() - &mask).unwrap() * 1e3).unwrap();
            ((tensor * &mask).unwrap() + elsewhere).unwrap()
        });
        let cut = Supernet { params: kept.collect(), ..supernet.clone() };
        let error = relative_error(&plainly(&program, &cut, widths, SHAPE, &latent), made);
        assert!(error < 1e-5, "{error:.1e}");
    }
}

#[test]
fn later_commands_carry_a_decoder_along_and_diffusers_gets_it_in_its_own_order() {
    let (dir, model, ranked) = place();
    let at = |name: &str| dir.path().join(name);
    let run = |args: &[&str]| {
        let output = accordion(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let same = |file: &str, one: &Path, other: &Path| {
        let read = |dir: &Path| std::fs::read(dir.join(file)).unwrap();
        assert!(read(one) == read(other), "{file} of {}", other.display());
    };
    for file in ["supernet.safetensors", "subnets.toml", "importance.safetensors"].into_iter().chain(FILES) {
        same(file, &model, &ranked);
    }
    let again = at("again");
    run(&["rank", "--model", text(&ranked), "--method", "random", "--order", "global", "--out", text(&again)]);
    run(&["allocate", "--model", text(&again), "--target", "channels", "--ratios", "0.5"]);
    let narrow = at("narrow");
    run(&["extract", "--model", text(&again), "--subnet", "0.5", "--out", text(&narrow)]);
    for copy in [&again, &narrow] {
        DECODER_FILES.iter().for_each(|file| same(file, &ranked, copy));
        let names: Vec<String> =
            Model::open(copy).unwrap().decoders().iter().map(|decoder| decoder.name.to_string()).collect();
        assert_eq!(names, ["0.250", "0.500", "full"]);
    }
    let written = |from: &Path, to: &str| {
        run(&["extract", "--model", text(from), "--subnet", "full", "--format", "diffusers", "--out", text(&at(to))]);
        let file = at(to).join("vae/diffusion_pytorch_model.safetensors");
        candle_core::safetensors::load(file, &Device::Cpu).unwrap()
    };
    let (before, after) = (written(&model, "before"), written(&ranked, "after"));
    assert_eq!(before.len(), after.len());
    for (name, tensor) in &before {
        let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(values(tensor), values(&after[name]), "{name}");
    }
    // A decoder of other weights is missed at once.
    let mut bytes = std::fs::read(again.join(DECODER)).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(again.join(DECODER), bytes).unwrap();
    assert!(Model::open(&again).unwrap_err().to_string().contains("decoder.safetensors: is not the file"));
}

#[test]
fn what_a_decoder_cannot_be_asked_is_refused_in_one_sentence() {
    let (dir, model, ranked) = place();
    let out = dir.path().join("out");
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/models/fashion-mnist");
    let refuses = |args: &[&str], says: &str| assert_refused(&accordion(args).output().unwrap(), &[says]);
    let rank = |model: &str, more: &[&str], says: &str| {
        let args = ["rank", "--part", "decoder", "--order", "global", "--out", text(&out), "--model", model];
        refuses(&[&args, more].concat(), says);
    };
    rank(
        shipped,
        &["--method", "magnitude"],
        "--part: decoder is of a model that draws latents; this one draws pictures itself",
    );
    rank(text(&model), &[], "--method: taylor ranks a decoder on pictures: give --data CONFIG.toml");
    rank(text(&model), &["--inputs", "x"], "--inputs: are noisy images; a decoder is ranked on those of --data");
    let allocate = ["allocate", "--part", "decoder", "--ratios", "0.5", "--model"];
    let says = format!("{DECODER_IMPORTANCE}: is missing: run `accordion rank --part decoder` first");
    refuses(&[&allocate[..], &[text(&model)]].concat(), &says);
    let config = dir.path().join("train.toml");
    let data = "name = \"x\"\n[data]\nformat = \"folder\"\npath = \"pictures\"\nchannels = 3\n";
    std::fs::write(
        &config,
        format!("{data}[decoder]\nimages = 8\nbatch = 2\nlearning_rate = 1e-3\nema_half_life = 8\n"),
    )
    .unwrap();
    let train = ["train", "--part", "decoder", "--config", text(&config), "--out", text(&out), "--model"];
    refuses(&[&train[..], &[text(&model)]].concat(), "has a decoder of one width: run `accordion rank --part decoder`");
    pictures(&dir.path().join("pictures"), 2, [20, 16]);
    let says = "data: pictures are 20x16x3, but the autoencoder takes multiples of 8 with 3 channels";
    refuses(&[&train[..], &[text(&ranked)]].concat(), says);
    let plan = |model: &str, plan: &str, says: &str| {
        let picture = dir.path().join("out.png");
        let args = ["generate", "--model", model, "--out", text(&picture), "--plan", plan];
        let told = if model == shipped { ["--class", "bag"] } else { ["--prompt", "a cat"] };
        refuses(&[&args[..], &told].concat(), says);
    };
    plan(text(&ranked), "ddim-2@full~decode=0.75", "decoder: `0.750` is none of 0.250, 0.500, full");
    plan(text(&model), "ddim-2@full~decode=0.75", "decoder: `0.750` is none of full");
    plan(
        shipped,
        "euler-2@full~decode=0.5",
        "~decode is of models that draw latents, but this one draws pictures itself",
    );
}

/// Writes so many pictures of rows and columns, in a class folder.
fn pictures(dir: &Path, count: usize, [height, width]: [u32; 2]) {
    std::fs::create_dir_all(dir.join("all")).unwrap();
    for index in 0..count {
        let stream = Stream::new(8, 92, index as u64);
        let [a, b, c] = [0, 1, 2].map(|at| stream.uniform(at) as f32);
        let picture = image::RgbImage::from_fn(width, height, |x, y| {
            let (x, y) = (x as f32 / width as f32, y as f32 / height as f32);
            image::Rgb([a * x + b * y, b + c * x * y, (x - a).abs()].map(|value| (255.0 * value.min(1.0)) as u8))
        });
        picture.save(dir.join(format!("all/{index}.png"))).unwrap();
    }
}

fn dataset(count: usize) -> Dataset {
    let shape = ImageShape { height: 16, width: 16, channels: 3 };
    let value = |at: usize| ((at * 7 + at / 48 * 13 + at / 768 * 61) % 256) as u8;
    let images = (0..count * shape.elements()).map(value).collect();
    Dataset { shape, classes: vec!["all".to_owned()], images, labels: vec![0; count] }
}

#[test]
fn the_importance_of_a_channel_is_how_much_the_picture_moves_with_it() {
    let (_dir, _, ranked) = place();
    let Decoder { program, supernet, .. } = decoder(&ranked);
    let shape = ImageShape { height: 2, width: 2, channels: 4 };
    let samples = Samples { shape, latents: vec![latent(shape)], seed: 3 };
    let found = importance(&program, &supernet, &samples, |_| {}).unwrap();
    let full = program.spec.full();
    let along = |supernet: &Supernet| {
        let picture = plainly(&program, supernet, &full, shape, &samples.latents[0]);
        let direction = direction(3, 0, picture.len());
        picture.iter().zip(&direction).map(|(&p, &v)| f64::from(p) * f64::from(v)).sum::<f64>()
    };
    let step = 2e-2;
    // A pipe of each end, and attention, whose channel has three copies.
    for pipe in [0, 1, full.0.len() - 1] {
        for channel in [0, full.0[pipe] - 1] {
            let mut want = 0.0;
            for (index, param) in program.spec.params.iter().enumerate() {
                for slice in param.slices.iter().filter(|slice| slice.pipe == pipe && slice.role != Role::Follows) {
                    let (inner, size) =
                        (param.shape[slice.axis + 1..].iter().product::<usize>(), param.shape[slice.axis]);
                    for copy in 0..slice.copies {
                        let scaled = |by: f32| {
                            let mut values: Vec<f32> = supernet.params[index].flatten_all().unwrap().to_vec1().unwrap();
                            for (row, weights) in values.chunks_exact_mut(inner).enumerate() {
                                if row % size == channel && row / size % slice.copies == copy {
                                    weights.iter_mut().for_each(|weight| *weight *= 1.0 + by);
                                }
                            }
                            let mut moved = supernet.clone();
                            moved.params[index] =
                                Tensor::from_vec(values, param.shape.as_slice(), &Device::Cpu).unwrap();
                            along(&moved)
                        };
                        want += ((scaled(step) - scaled(-step)) / (2.0 * f64::from(step))).abs();
                    }
                }
            }
            let got = found[pipe][channel];
            assert!((got - want).abs() < 2e-2 * want + 2e-5, "{pipe}, {channel}: {got} is not {want}");
        }
    }
}

#[test]
fn the_gradient_of_a_decoder_s_loss_is_that_of_differences() {
    let (_dir, _, ranked) = place();
    let (model, data) = (Model::open(&ranked).unwrap(), dataset(2));
    let vae = &model.card.text_to_image.as_ref().unwrap().vae;
    let mut task = Reconstruction::new(vae, Latents::new(&model, &data).unwrap(), 1);
    let batch: Batch = task.draw(0, 2, &[]).unwrap();
    let Decoder { supernet, .. } = decoder(&ranked);
    let widths = decoder(&ranked).widths().swap_remove(1);
    let teacher = Sliced::new(task.spec(), &supernet, &task.spec().full()).unwrap();
    let taught = task.taught(&teacher, &batch).unwrap();
    let pass = |supernet: &Supernet| {
        let subnet = Sliced::new(task.spec(), supernet, &widths).unwrap();
        task.pass(&subnet, &batch, Some((&taught, 0.7))).unwrap()
    };
    let found = pass(&supernet);
    // The loss itself, in f64.
    let mean = |to: &[f32]| {
        let squares = found.made.iter().zip(to).map(|(&made, &to)| (f64::from(made) - f64::from(to)).powi(2));
        squares.sum::<f64>() / to.len() as f64
    };
    let want = 0.3 * mean(&batch.pictures) + 0.7 * mean(&taught);
    assert!((found.loss - want).abs() < 1e-6 * want, "{} is not {want}", found.loss);
    for (index, param) in task.spec().params.iter().enumerate().step_by(5) {
        let mut along = vec![0.0; param.shape.iter().product()];
        Stream::new(2, 93, index as u64).fill_normals(&mut along);
        let along = Tensor::from_vec(along, param.shape.as_slice(), &Device::Cpu).unwrap();
        let size = supernet.params[index].sqr().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
        let step = 1e-2 * f64::from(size.max(1e-2));
        let moved = |by: f64| {
            let mut moved = supernet.clone();
            moved.params[index] = (&moved.params[index] + (&along * by).unwrap()).unwrap();
            pass(&moved).loss
        };
        let want = (moved(step) - moved(-step)) / (2.0 * step);
        let subnet = Sliced::new(
            task.spec(),
            &Supernet { params: vec_with(&supernet, index, &along), ..supernet.clone() },
            &widths,
        );
        let along: Vec<f32> = subnet.unwrap().at(index).flatten_all().unwrap().to_vec1().unwrap();
        let Some(gradient) = &found.gradients.values[index] else { panic!("{} has no gradient", param.name) };
        let got: f64 = gradient.iter().zip(&along).map(|(&g, &a)| f64::from(g) * f64::from(a)).sum();
        let norm: f64 = gradient.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
        assert!((got - want).abs() < 5e-2 * norm + 1e-5, "{}: {got} is not {want} ({norm})", param.name);
    }
}

fn vec_with(supernet: &Supernet, index: usize, tensor: &Tensor) -> Vec<Tensor> {
    let mut params = supernet.params.clone();
    params[index] = tensor.clone();
    params
}

fn stage(images: u64) -> Stage {
    toml::from_str(&format!("images = {images}\nbatch = 2\nlearning_rate = 2e-3\nema_half_life = 8")).unwrap()
}

#[test]
fn a_run_that_is_resumed_goes_on_to_the_bit() {
    let (dir, _, ranked) = place();
    let (model, data, stage) = (Model::open(&ranked).unwrap(), dataset(5), stage(8));
    let vae = &model.card.text_to_image.as_ref().unwrap().vae;
    let sampling = Sampling { distillation: 0.7, teacher: Teacher::Frozen, ..Sampling::default() };
    let supernet = decoder(&ranked).supernet;
    let trainer = |state| {
        let task = Reconstruction::new(vae, Latents::new(&model, &data).unwrap(), 4);
        let recipe = Recipe { stage: &stage, sampling: &sampling, seed: 4 };
        Trainer::of(task, recipe, decoder(&ranked).subnets(), state, Some(&supernet)).unwrap()
    };
    let begin = || State::begin(StageName::Decoder, &supernet, &[]).unwrap();
    let mut whole = trainer(begin());
    (0..4).for_each(|_| drop(whole.step().unwrap()));
    let mut first = trainer(begin());
    (0..2).for_each(|_| drop(first.step().unwrap()));
    let path = dir.path().join("state.safetensors");
    first.state.write(first.spec(), &path).unwrap();
    let mut second = trainer(State::read(first.spec(), &path).unwrap());
    (0..2).for_each(|_| drop(second.step().unwrap()));
    assert!(whole.is_finished() && second.is_finished());
    assert!(whole.state.slots == second.state.slots);
}

#[test]
fn a_trained_decoder_is_nearer_to_what_the_full_one_made_at_narrow_widths() {
    let (dir, _, ranked) = place();
    pictures(&dir.path().join("pictures"), 12, [16, 16]);
    let data = "name = \"x\"\n[data]\nformat = \"folder\"\npath = \"pictures\"\nchannels = 3\n";
    let config = dir.path().join("train.toml");
    std::fs::write(
        &config,
        format!("{data}[decoder]\nimages = 1600\nbatch = 4\nlearning_rate = 1e-4\nema_half_life = 40\n"),
    )
    .unwrap();
    // Importance from the same pictures first, as a user would.
    let (taylor, out) = (dir.path().join("taylor"), dir.path().join("trained"));
    let run = |args: &[&str]| {
        let output = accordion(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let rank = ["rank", "--part", "decoder", "--order", "within-group", "--samples", "8"];
    run(&[&rank[..], &["--data", text(&config), "--model", text(&ranked), "--out", text(&taylor)]].concat());
    run(&["allocate", "--part", "decoder", "--model", text(&taylor), "--target", "channels", "--ratios", "0.25,0.5"]);
    run(&["train", "--part", "decoder", "--model", text(&taylor), "--config", text(&config), "--out", text(&out)]);
    let source: Source =
        toml::from_str(&format!("format = 'folder'\npath = '{}'\nchannels = 3", text(&dir.path().join("pictures"))))
            .unwrap();
    let (model, data) = (Model::open(&taylor).unwrap(), source.load().unwrap());
    let mut latents = Latents::new(&model, &data).unwrap();
    let shape = latents.shape();
    let mut latent = |index| {
        let picture = latents.picture(index);
        latents.of(&picture, Stream::new(1, 94, index as u64)).unwrap()
    };
    let shown = (0..data.len()).flat_map(&mut latent).collect::<Vec<f32>>();
    let mut before = decoder(&taylor).runner(Threads::new(2)).unwrap();
    let want = before.run_sized(shape, &shown);
    let mut after = decoder(&out).runner(Threads::new(2)).unwrap();
    let distance = |made: &[f32]| made.iter().zip(&want).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
    for subnet in 0..2 {
        let [untrained, trained] =
            [&mut before, &mut after].map(|runner| distance(&runner.run_subnet(subnet, shape, &shown)));
        assert!(trained < 0.85 * untrained, "{subnet}: {trained} is not much less than {untrained}");
    }
    let full = distance(&after.run_sized(shape, &shown));
    let narrow = distance(&after.run_subnet(0, shape, &shown));
    assert!(full < 0.5 * narrow, "the full width stays nearer than any: {full}, {narrow}");
    let card = Model::open(&out).unwrap().card;
    assert_eq!(card.made["decoder"]["images"].as_integer(), Some(1600));
}

#[test]
fn an_exact_plan_decodes_as_narrow_as_it_says_over_http_and_by_command() {
    let workspace = Workspace::of_texts("");
    let [plain, model] = ["plain", "model"].map(|name| workspace.path(name));
    std::fs::rename(&model, &plain).unwrap();
    rank_decoder(&plain, &model);
    workspace.profile(&["0.250", "0.500", "full"]);
    let server = workspace.serve();
    let loaded: Value = serde_json::from_str(server.get("/subnets").text()).unwrap();
    let names: Vec<&str> =
        loaded["decoders"].as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["0.250", "0.500", "full"]);
    let body = json!({ "prompt": "a cat", "seed": 7 }).to_string();
    let served = |plan: &str| {
        let reply = server.generate(&format!("?budget=exact:{plan}"), &body);
        assert_eq!(reply.headers["x-accordion-plan"], plan);
        image::load_from_memory(&reply.image()).unwrap().into_rgb8()
    };
    let (narrow, full) = (served("dpmpp2m-2@0.500~decode=0.250"), served("dpmpp2m-2@0.500"));
    assert!(narrow != full);
    let file = workspace.path("out.png");
    let plan = "dpmpp2m-2@0.500~decode=0.250";
    let args =
        ["generate", "--model", text(&model), "--out", text(&file), "--plan", plan, "--seed", "7", "--prompt", "a cat"];
    let output = accordion(&args).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(image::open(&file).unwrap().into_rgb8() == narrow);
    let reply = server.generate("?budget=exact:dpmpp2m-2@0.500~decode=0.750", &body);
    assert_eq!((reply.status, reply.code().as_str()), (400, "unknown_decoder"));
    assert!(reply.text().contains("decoder `0.750` is unknown: accepted are 0.250, 0.500, full"), "{}", reply.text());
}
