//! Training on images that a tiny network learns in seconds: a bright upper half is one class, a bright lower half the other.

#[path = "support/halves.rs"]
mod halves;
mod support;

use accordion::engine::{Engine, Job, Place};
use accordion::nets::sliced::Sliced;
use accordion::nets::{Condition, HostRunner, HostSampler, Model, Network, Threads};
use accordion::ops::Tape;
use accordion::ops::pixels::to_unit;
use accordion::philox::Stream;
use accordion::routing::Fixed;
use accordion::supernet::{Order, Subnet, Supernet, Widths, widths_of};
use accordion::training::batch::{Batch, Batches};
use accordion::training::config::{Config, Rule, Stage, Teacher};
use accordion::training::flow::{Flow, Outcome};
use accordion::training::learner::Learner;
use accordion::training::state::{StageName, State};
use accordion::training::trainer::{Trainer, initial};
use candle_core::{Device, Tensor};
use halves::{SIDE, data, idx};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use support::{CLASSES, NETWORK, accordion, assert_refused, generic, subnets, text, values};
use tempfile::TempDir;

/// Images of the data set, half of them of each class.
const IMAGES: usize = 128;
const BATCH: usize = 16;
static RUNS: AtomicBool = AtomicBool::new(false);
static STOPS: AtomicBool = AtomicBool::new(true);

/// An ADM whose deeper level has two heads of attention.
const ADM: &str = r#"
[backbone]
arch = "adm"
img_resolution = 8
img_channels = 1
label_dim = 2
model_channels = 32
channel_mult = [1, 4]
num_blocks = 1
attn_resolutions = [4]

[preconditioning]
kind = "edm"
sigma_data = 0.7
"#;

/// A U-ViT with all that its options can add.
const U_VIT: &str = r#"
[backbone]
arch = "u-vit"
img_size = 8
patch_size = 2
in_chans = 1
embed_dim = 32
depth = 2
num_heads = 2
mlp_ratio = 2
qkv_bias = true
mlp_time_embed = true
num_classes = 3
null_class = true

[preconditioning]
kind = "vp"
"#;

/// A stage that the config has.
fn of(stage: &mut Option<Stage>) -> &mut Stage {
    stage.as_mut().unwrap()
}

/// A folder with the data and a config for both stages.
struct Workspace {
    dir: TempDir,
}

impl Workspace {
    /// `steps` of each stage.
    fn new(steps: [usize; 2]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        halves::write(dir.path(), IMAGES);
        let [full, all] = steps.map(|steps| steps * BATCH);
        let config = format!(
            r#"name = "halves"
seed = 0
{NETWORK}
[data]
format = "idx"
images = "{images}"
labels = "{labels}"
classes = {CLASSES:?}

[full]
images = {full}
batch = {BATCH}
learning_rate = 4e-3
final_share = 0.1
ema_half_life = 200

[ranking]
samples = 8
order = "global"

[allocation]
target = "channels"
step = 0.25

[all]
images = {all}
batch = {BATCH}
learning_rate = 3e-3
final_share = 0.1
ema_half_life = 200

[sampling]
rule = "one"
"#,
            images = dir.path().join("images").display(),
            labels = dir.path().join("labels").display(),
        );
        std::fs::write(dir.path().join("config.toml"), config).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn config(&self) -> Config {
        Config::load(&self.path("config.toml")).unwrap()
    }

    /// Runs the binary on the config with `--out` under this folder.
    fn train(&self, out: &str, more: &[&str]) -> std::process::Output {
        let (config, out) = (self.path("config.toml"), self.path(out));
        let args = ["train", "--config", text(&config), "--out", text(&out)];
        accordion(&[&args, more].concat()).output().unwrap()
    }

    /// Replaces a part of the config, which must stand there.
    fn edit(&self, from: &str, to: &str) {
        let path = self.path("config.toml");
        let config = std::fs::read_to_string(&path).unwrap();
        assert!(config.contains(from), "{from}");
        std::fs::write(&path, config.replacen(from, to, 1)).unwrap();
    }
}

fn flow<'a>(config: &'a Config, out: &'a Path) -> Flow<'a> {
    Flow {
        config,
        out,
        resume: false,
        only: None,
        model: None,
        init: None,
        checkpoint_every: Duration::MAX,
        stop: &RUNS,
    }
}

/// The whole flow, run once for all tests that look at what it leaves: its folder and the directory of its model.
fn trained() -> &'static (Workspace, PathBuf) {
    static TRAINED: OnceLock<(Workspace, PathBuf)> = OnceLock::new();
    TRAINED.get_or_init(|| {
        let workspace = Workspace::new([200, 300]);
        let out = workspace.path("out");
        assert_eq!(flow(&workspace.config(), &out).run().unwrap(), Outcome::Finished);
        (workspace, out)
    })
}

fn network(config: &Config) -> Network {
    config.network(None).unwrap()
}

/// Mean loss over the first and the last `window` steps of a stage, over every subnet that the steps trained.
fn first_and_last_loss(trainer: &mut Trainer, window: usize) -> (f64, f64) {
    let mut losses = Vec::new();
    while !trainer.is_finished() {
        losses.push(trainer.step().unwrap().losses);
    }
    let mean = |steps: &[Vec<(usize, f64)>]| {
        let losses: Vec<f64> = steps.iter().flatten().map(|&(_, loss)| loss).collect();
        losses.iter().sum::<f64>() / losses.len() as f64
    };
    (mean(&losses[..window]), mean(&losses[losses.len() - window..]))
}

#[test]
fn training_lowers_the_loss_of_the_full_width_and_of_all_widths_under_every_rule() {
    let (workspace, out) = trained();
    let teacher = Model::open(&out.join("ranked")).unwrap();
    let dataset = workspace.config().data.load().unwrap();
    for (stage, rule, distillation, whom) in [
        (StageName::Full, Rule::One, 0.0, Teacher::Full),
        (StageName::All, Rule::One, 0.0, Teacher::Full),
        (StageName::All, Rule::One, 0.5, Teacher::Frozen),
        (StageName::All, Rule::Sandwich, 0.5, Teacher::Full),
        (StageName::All, Rule::Sandwich, 0.5, Teacher::Frozen),
    ] {
        let mut config = workspace.config();
        (config.sampling.rule, config.sampling.distillation, config.sampling.teacher) = (rule, distillation, whom);
        (of(&mut config.full).images, of(&mut config.all).images) = (100 * BATCH as u64, 100 * BATCH as u64);
        let network = network(&config);
        let mut subnets = subnets(network.spec());
        if stage == StageName::Full {
            subnets.drain(..subnets.len() - 1);
        }
        // From scratch, so that every width starts at the loss of a network that says nothing.
        let state = State::begin(stage, &initial(network.spec(), 1).unwrap(), &dataset.classes).unwrap();
        let teacher = Some(&teacher.supernet);
        let mut trainer = Trainer::new(&network, &config, &dataset, &subnets, state, teacher).unwrap();
        let (first, last) = first_and_last_loss(&mut trainer, 10);
        println!("{stage:?} {rule:?} {distillation} {whom:?}: {first:.3} -> {last:.3}");
        assert!(last < 0.55 * first, "{stage:?} {rule:?} {distillation} {whom:?}: {first} -> {last}");
    }
}

#[test]
fn every_family_goes_through_the_flow_and_its_losses_fall() {
    for (family, network_table) in [("adm", ADM), ("u-vit", U_VIT)] {
        let workspace = Workspace::new([20, 20]);
        workspace.edit(NETWORK, network_table);
        let (mut config, out) = (workspace.config(), workspace.path("out"));
        assert_eq!(flow(&config, &out).run().unwrap(), Outcome::Finished);
        let model = Model::open(&out).unwrap();
        assert_eq!(model.subnets().len(), 4);
        let widths: Vec<Widths> = (0..4).map(|subnet| model.widths(subnet)).collect();
        assert!(widths.windows(2).all(|pair| pair[0].nests_in(&pair[1])), "{family}");

        of(&mut config.full).images = 150 * BATCH as u64;
        let (network, dataset) = (network(&config), config.data.load().unwrap());
        let state = State::begin(StageName::Full, &initial(network.spec(), 1).unwrap(), &dataset.classes).unwrap();
        let full = &subnets(network.spec())[3..];
        let mut trainer = Trainer::new(&network, &config, &dataset, full, state, None).unwrap();
        let (first, last) = first_and_last_loss(&mut trainer, 10);
        println!("{family}: {first:.3} -> {last:.3}");
        assert!(last < 0.85 * first, "{family}: {first} -> {last}");
    }
}

#[test]
fn the_flow_leaves_every_stage_and_a_model_whose_subnets_nest() {
    let (_, out) = trained();
    assert_eq!(Model::open(&out.join("full")).unwrap().table.subnets.len(), 1);
    let (ranked, model) = (Model::open(&out.join("ranked")).unwrap(), Model::open(out).unwrap());
    assert!(out.join("ranked/importance.safetensors").is_file());
    let names: Vec<&str> = model.table.subnets.iter().map(|subnet| &*subnet.name).collect();
    assert_eq!(names, ["0.250", "0.500", "0.750", "full"]);
    assert_eq!((&model.table.target, &model.table.subnets), (&ranked.table.target, &ranked.table.subnets));
    assert_eq!(model.supernet.permutations, ranked.supernet.permutations);
    assert_eq!(model.supernet.order, Order::Global);
    assert_eq!(model.card.classes, CLASSES);
    for index in 1..names.len() {
        let (narrow, wide) = (model.widths(index - 1), model.widths(index));
        assert!(narrow.nests_in(&wide) && narrow != wide, "{} in {}", names[index - 1], names[index]);
    }
    // The second stage has moved every subnet's weights.
    let moved = |index: usize| values(&model.supernet.params[index]) != values(&ranked.supernet.params[index]);
    assert!((0..model.supernet.params.len()).all(moved));
    let made = &model.card.made;
    assert_eq!(made["full"]["images"].as_integer(), Some(200 * BATCH as i64));
    assert_eq!(made["all"]["images"].as_integer(), Some(300 * BATCH as i64));
    assert_eq!(made["ranking"]["order"].as_str(), Some("global"));
}

#[test]
fn images_of_a_class_are_bright_where_the_class_is_at_the_full_and_the_smallest_width() {
    let (_, out) = trained();
    let model = Model::open(out).unwrap();
    let place = Place::alone(64).unwrap();
    let policy = Box::new(Fixed::unmeasured(model.subnets(), 16));
    let runner = HostRunner::new(&model, Threads::ALL).unwrap();
    let engine = Engine::start(Box::new(HostSampler::new(Box::new(runner))), place, policy).unwrap();
    for subnet in ["full", "0.250"] {
        for (class, sign) in [(0, 1.0), (1, -1.0)] {
            let plan = Arc::new(format!("heun-8@{subnet}").parse().unwrap());
            let job = Job { images: 16, condition: Condition::Class(class), ..Job::exact(plan, 5) };
            let images = engine.submit(job).unwrap().blocking_wait().unwrap().images;
            let half = |range: std::ops::Range<usize>| {
                images.iter().flat_map(|image| &image[range.clone()]).map(|&byte| f64::from(to_unit(byte))).sum::<f64>()
                    / (16 * 32) as f64
            };
            let contrast = sign * (half(0..32) - half(32..64));
            println!("{subnet} {}: {contrast:.3}", CLASSES[class]);
            // The data's is 1.37.
            assert!(contrast > 0.8, "{subnet} {}: {contrast}", CLASSES[class]);
        }
    }
}

#[test]
fn a_step_of_the_smallest_subnet_keeps_all_other_channels_to_the_bit() {
    let workspace = Workspace::new([1, 200]);
    let config = workspace.config();
    let (network, dataset) = (network(&config), config.data.load().unwrap());
    let subnets = subnets(network.spec());
    let state = State::begin(StageName::All, &generic(&network), &dataset.classes).unwrap();
    let mut trainer = Trainer::new(&network, &config, &dataset, &subnets, state, None).unwrap();
    let (spec, smallest) = (network.spec(), widths_of(network.spec(), &subnets[0]).unwrap());
    // Steps until a wide one has filled the moments and the smallest has its turn.
    let mut widest = 0;
    let before = loop {
        let before = trainer.state.slots.clone();
        let trained = trainer.step().unwrap().losses[0].0;
        if trained == 0 && widest == subnets.len() - 1 {
            break before;
        }
        widest = widest.max(trained);
    };
    let (mut kept, mut changed, mut active_elements) = (0, 0, 0);
    for ((param, before), after) in spec.params.iter().zip(&before).zip(&trainer.state.slots) {
        let active_shape = spec.sliced_shape(param, &smallest);
        for element in 0..before.value.len() {
            if is_inside(element, &param.shape, &active_shape) {
                active_elements += 1;
                changed += usize::from(before.value[element] != after.value[element]);
                assert_eq!(after.updates[element], before.updates[element] + 1, "{} {element}", param.name);
                continue;
            }
            kept += 1;
            for (name, before, after) in
                [("value", &before.value, &after.value), ("m", &before.m, &after.m), ("v", &before.v, &after.v)]
            {
                assert_eq!(before[element].to_bits(), after[element].to_bits(), "{} {name} {element}", param.name);
            }
            assert_eq!(after.updates[element], before.updates[element], "{} {element}", param.name);
        }
    }
    assert!(kept > 1000, "{kept}");
    assert!(changed as f64 > 0.95 * active_elements as f64, "{changed} of {active_elements}");
}

#[test]
fn a_subnet_that_leaves_blocks_out_trains_what_it_has() {
    let workspace = Workspace::new([1, 200]);
    let config = workspace.config();
    let (network, dataset) = (network(&config), config.data.load().unwrap());
    let spec = network.spec();
    let widths =
        Widths(spec.pipes.iter().enumerate().map(|(i, pipe)| if i % 2 == 0 { 0 } else { pipe.width }).collect());
    let subnets = [Subnet::new(spec, 0.25, &widths), Subnet::new(spec, 1.0, &spec.full())];
    let state = State::begin(StageName::All, &generic(&network), &dataset.classes).unwrap();
    let mut trainer = Trainer::new(&network, &config, &dataset, &subnets, state, None).unwrap();
    let (before, report) = loop {
        let before = trainer.state.slots.clone();
        let report = trainer.step().unwrap();
        if report.losses[0].0 == 0 {
            break (before, report);
        }
    };
    assert!(report.losses[0].1.is_finite() && report.gradient_norm > 0.0);
    let changed = |name: &str| {
        let index = spec.params.iter().position(|param| param.name == name).unwrap();
        before[index].value != trainer.state.slots[index].value
    };
    let left_out = &spec.pipes[0].block;
    assert!(!changed(&format!("{left_out}.conv0.weight")) && !changed(&format!("{left_out}.conv1.weight")));
    // Its bias is all that there is of it.
    assert!(
        changed(&format!("{left_out}.conv1.bias")) && changed("enc.8x8_conv.weight") && changed("map_layer0.weight")
    );
    assert!(trainer.state.slots.iter().flat_map(|slot| &slot.value).all(|value| value.is_finite()));
}

/// Whether an element of a tensor of shape `whole` lies in the prefix block of shape `kept`.
fn is_inside(mut element: usize, whole: &[usize], kept: &[usize]) -> bool {
    whole.iter().zip(kept).rev().all(|(&whole, &kept)| {
        let place = element % whole;
        element /= whole;
        place < kept
    })
}

/// What a subnet makes of a batch.
fn denoised(network: &Network, supernet: &Supernet, widths: &Widths, batch: &Batch) -> Vec<f32> {
    let sliced = Sliced::new(network.spec(), supernet, widths).unwrap();
    network.call(&Tape::off(), &sliced, &batch.x, &batch.sigma, &batch.labels, &[]).unwrap().denoised
}

/// The mean of weight(sigma) (got - want)^2.
fn loss(network: &Network, batch: &Batch, got: &[f32], want: &[f32]) -> f64 {
    let elements = network.image().elements();
    let squares = got.iter().zip(want).enumerate().map(|(i, (got, want))| {
        let weight = network.preconditioning().loss_weight(batch.sigma[i / elements]);
        weight * f64::from(got - want).powi(2)
    });
    squares.sum::<f64>() / got.len() as f64
}

/// Asserts that the gradient that `state` has seen in its one step, from `supernet`, is that of `objective`: in every
/// tensor along the gradient itself, along a random direction and along the element with the largest gradient.
#[track_caller]
fn assert_gradient(network: &Network, supernet: &Supernet, state: &State, objective: impl Fn(&Supernet) -> f64) {
    const STEP: f64 = 4e-3;
    for (index, (param, slot)) in network.spec().params.iter().zip(&state.slots).enumerate() {
        // Adam's first moment after one step from zero is a tenth of the gradient.
        let gradient: Vec<f64> = slot.m.iter().map(|&m| f64::from(m) / 0.1).collect();
        let unit = |direction: Vec<f64>| {
            let norm = direction.iter().map(|d| d * d).sum::<f64>().sqrt();
            assert!(norm > 0.0, "no gradient reaches {}", param.name);
            direction.into_iter().map(|d| d / norm).collect::<Vec<f64>>()
        };
        let stream = Stream::new(5, 97, index as u64);
        let random = (0..gradient.len()).map(|i| stream.normal(i as u64)).collect();
        let largest = gradient.iter().map(|g| g.abs()).fold(0.0, f64::max);
        let strongest = gradient.iter().map(|g| f64::from(u8::from(g.abs() == largest))).collect();
        let weights = values(&supernet.params[index]);
        for direction in [gradient.clone(), random, strongest].map(unit) {
            let slope: f64 = gradient.iter().zip(&direction).map(|(g, d)| g * d).sum();
            let at = |step: f64| {
                let moved = weights.iter().zip(&direction).map(|(w, d)| (f64::from(*w) + step * d) as f32);
                let moved = Tensor::from_iter(moved, &Device::Cpu).unwrap();
                let mut supernet = supernet.clone();
                supernet.params[index] = moved.reshape(param.shape.as_slice()).unwrap();
                objective(&supernet)
            };
            // Of the fourth order: third derivatives are not small where a norm's result is scaled by another branch.
            let [near, far] = [1.0, 2.0].map(|steps| at(steps * STEP) - at(-steps * STEP));
            let difference = (8.0 * near - far) / (12.0 * STEP);
            let error = (difference - slope).abs() / slope.abs().max(0.05);
            assert!(error < 1e-2, "{}: slope {slope}, difference {difference}", param.name);
        }
    }
}

#[test]
fn the_gradient_of_a_step_equals_central_differences_of_the_loss_in_every_tensor() {
    for network_table in [NETWORK, ADM, U_VIT] {
        let workspace = Workspace::new([1, 1]);
        workspace.edit(NETWORK, network_table);
        let mut config = workspace.config();
        (of(&mut config.full).batch, of(&mut config.full).gradient_clip) = (4, 1e9);
        let (network, dataset) = (network(&config), config.data.load().unwrap());
        let (spec, supernet) = (network.spec(), generic(&network));
        let batch = Batches::new(&dataset, &config.loss, &network, 0).draw(0, 4);
        for subnet in [&subnets(spec)[3], &subnets(spec)[1]] {
            let widths = widths_of(spec, subnet).unwrap();
            let objective =
                |supernet: &Supernet| loss(&network, &batch, &denoised(&network, supernet, &widths, &batch), &batch.x0);
            let state = State::begin(StageName::Full, &supernet, &dataset.classes).unwrap();
            let only = std::slice::from_ref(subnet);
            let mut trainer = Trainer::new(&network, &config, &dataset, only, state, None).unwrap();
            let (reported, here) = (trainer.step().unwrap().losses[0].1, objective(&supernet));
            assert!((reported - here).abs() < 1e-5 * here, "{reported} is not {here}");
            assert_gradient(&network, &supernet, &trainer.state, objective);
        }
    }
}

#[test]
fn the_gradient_of_a_distilled_step_is_that_of_all_its_subnets_and_their_teacher() {
    let workspace = Workspace::new([1, 1]);
    let mut config = workspace.config();
    (of(&mut config.all).batch, of(&mut config.all).gradient_clip) = (4, 1e9);
    config.sampling.distillation = 0.7;
    // The rule `one` draws the smallest.
    config.sampling.reweighting = 1e12;
    let (network, dataset) = (network(&config), config.data.load().unwrap());
    let (spec, supernet) = (network.spec(), generic(&network));
    let (subnets, frozen) = (subnets(spec), initial(spec, 8).unwrap());
    // The second stage has draws of its own.
    let batch = Batches::new(&dataset, &config.loss, &network, 1).draw(0, 4);
    for (rule, whom, weights) in [
        (Rule::One, Teacher::Frozen, &frozen),
        (Rule::Sandwich, Teacher::Frozen, &frozen),
        (Rule::Sandwich, Teacher::Full, &supernet),
    ] {
        (config.sampling.rule, config.sampling.teacher) = (rule, whom);
        let state = State::begin(StageName::All, &supernet, &dataset.classes).unwrap();
        let mut trainer = Trainer::new(&network, &config, &dataset, &subnets, state, Some(&frozen)).unwrap();
        let trained: Vec<usize> = trainer.step().unwrap().losses.iter().map(|&(subnet, _)| subnet).collect();
        assert_eq!(trained, if rule == Rule::One { vec![0] } else { vec![3, 0] });
        // The teacher's image is a constant, also where the teacher is a part of the step.
        let teacher = denoised(&network, weights, &spec.full(), &batch);
        assert_gradient(&network, &supernet, &trainer.state, |supernet| {
            let of = |&subnet: &usize| {
                let got = denoised(&network, supernet, &widths_of(spec, &subnets[subnet]).unwrap(), &batch);
                let share = if subnet == 3 { 0.0 } else { 0.7 };
                (1.0 - share) * loss(&network, &batch, &got, &batch.x0) + share * loss(&network, &batch, &got, &teacher)
            };
            trained.iter().map(of).sum()
        });
    }
}

/// The tensors and the metadata of a safetensors file, but for the time that it took.
type Content = (BTreeMap<String, (Vec<usize>, Vec<u8>)>, BTreeMap<String, String>);

fn content(path: &Path) -> Content {
    let bytes = std::fs::read(path).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensors = file.iter().map(|(name, view)| (name.to_string(), (view.shape().to_vec(), view.data().to_vec())));
    let mut metadata: BTreeMap<String, String> = header.metadata().clone().unwrap().into_iter().collect();
    if let Some(position) = metadata.get_mut("position") {
        let mut fields: serde_json::Map<String, serde_json::Value> = serde_json::from_str(position).unwrap();
        assert!(fields.remove("seconds").is_some());
        *position = serde_json::to_string(&fields).unwrap();
    }
    (tensors.collect(), metadata)
}

#[test]
fn a_run_that_is_stopped_at_every_step_ends_like_one_that_is_not_to_the_bit() {
    let workspace = Workspace::new([4, 4]);
    let mut config = workspace.config();
    (config.sampling.rule, config.sampling.distillation) = (Rule::Sandwich, 0.5);
    for teacher in [Teacher::Full, Teacher::Frozen] {
        config.sampling.teacher = teacher;
        let (whole, pieces) = (workspace.path(&format!("{teacher:?}-a")), workspace.path(&format!("{teacher:?}-b")));
        assert_eq!(flow(&config, &whole).run().unwrap(), Outcome::Finished);

        let mut sitting = Flow { stop: &STOPS, ..flow(&config, &pieces) };
        let mut sittings = 1;
        while sitting.run().unwrap() == Outcome::Stopped {
            sitting.resume = true;
            sittings += 1;
        }
        // The last step of the first stage goes on to the first of the second.
        assert_eq!(sittings, 7);
        for file in [
            "state.safetensors",
            "full/supernet.safetensors",
            "ranked/supernet.safetensors",
            "ranked/importance.safetensors",
            "supernet.safetensors",
        ] {
            assert!(content(&whole.join(file)) == content(&pieces.join(file)), "{teacher:?}: {file}");
        }
        let table = |dir: &Path| std::fs::read_to_string(dir.join("subnets.toml")).unwrap();
        assert_eq!(table(&whole), table(&pieces));
    }
}

#[test]
fn one_subnet_is_trained_further_as_a_network_of_its_own_and_resumes_to_the_bit() {
    let (trained, dir) = trained();
    let mut config = trained.config();
    let steps = 40;
    let further = Stage { images: (steps * BATCH) as u64, learning_rate: 2e-3, ..config.all.clone().unwrap() };
    config.finetune = Some(further);
    let model = Model::open(dir).unwrap();
    let smallest = model.extract(0).unwrap();
    let workspace = Workspace::new([1, 1]);
    let (whole, pieces) = (workspace.path("whole"), workspace.path("pieces"));
    assert_eq!(flow(&config, &whole).finetune(&model, dir, 0).unwrap(), Outcome::Finished);
    let mut sitting = Flow { stop: &STOPS, ..flow(&config, &pieces) };
    let mut sittings = 1;
    while sitting.finetune(&model, dir, 0).unwrap() == Outcome::Stopped {
        sitting.resume = true;
        sittings += 1;
    }
    assert_eq!(sittings, steps);
    for file in ["state.safetensors", "supernet.safetensors"] {
        // The smoothed loss of the progress line may lose its last bit on its way through a text.
        assert!(content(&whole.join(file)).0 == content(&pieces.join(file)).0, "{file}");
    }
    let further = Model::open(&whole).unwrap();
    assert_eq!(further.card.backbone, smallest.card.backbone);
    assert_eq!(further.subnets().len(), 1);
    assert_eq!(further.card.made["subnet_of"].as_str().unwrap(), format!("halves {}", model.subnets()[0].name));
    assert_eq!(further.card.made["finetune"]["images"].as_integer(), Some((steps * BATCH) as i64));
    // It was trained: it draws the data better than it did among the others.
    let loss = |of: &Model| {
        let dataset = config.data.load().unwrap();
        let batch = Batches::new(&dataset, &config.loss, &of.network, 99).draw(0, 128);
        let got = denoised(&of.network, &of.supernet, &Widths(of.network.spec().full().0), &batch);
        loss(&of.network, &batch, &got, &batch.x0)
    };
    let (before, after) = (loss(&smallest), loss(&further));
    assert!(after < before, "{before} {after}");
    // What was not trained is as it was.
    assert!(
        Model::open(dir)
            .unwrap()
            .supernet
            .params
            .iter()
            .zip(&model.supernet.params)
            .all(|(a, b)| values(a) == values(b))
    );
}

#[test]
fn a_subnet_that_cannot_be_trained_further_is_refused() {
    let (trained, dir) = trained();
    let config = trained.config();
    let model = Model::open(dir).unwrap();
    let out = trained.path("refused");
    let refusal = |config: &Config, out: &Path| flow(config, out).finetune(&model, dir, 0).unwrap_err().to_string();
    let says = refusal(&config, &out);
    assert!(
        says.ends_with(
            "config.toml: finetune: is missing: it says how many images are seen, and how fast they are learnt from"
        ),
        "{says}"
    );
    let with = |finetune| Config { finetune: Some(finetune), ..config.clone() };
    let further = with(config.all.clone().unwrap());
    assert!(refusal(&further, dir).contains("holds a run; --resume continues it"));
    let mut other = further.clone();
    other.preconditioning = Some(serde_json::from_str(r#"{"kind":"vp"}"#).unwrap());
    assert!(refusal(&other, &out).contains("preconditioning: is not that of the config"));
    let wide =
        Flow { resume: true, ..flow(&further, dir) }.finetune(&model, dir, model.subnets().len() - 1).unwrap_err();
    assert!(wide.to_string().contains("holds a run of another kind"), "{wide}");
    assert!(!out.exists(), "nothing is made");
    let mut missing = accordion(&[
        "finetune",
        "--model",
        text(dir),
        "--subnet",
        "0.3",
        "--config",
        text(&trained.path("config.toml")),
        "--out",
        text(&out),
    ]);
    assert_refused(&missing.output().unwrap(), &["subnet", "`0.3` is none of"]);
}

#[test]
fn a_run_that_was_killed_while_it_wrote_the_ranked_model_ranks_again() {
    let workspace = Workspace::new([2, 2]);
    let (config, out) = (workspace.config(), workspace.path("out"));
    assert_eq!(flow(&config, &out).run().unwrap(), Outcome::Finished);
    let (model, ranked) =
        (content(&out.join("supernet.safetensors")), content(&out.join("ranked/supernet.safetensors")));
    // What such a run leaves: no state of the second stage, and the directory under its temporary name, half written.
    std::fs::remove_file(out.join("state.safetensors")).unwrap();
    std::fs::rename(out.join("ranked"), out.join(".ranked.partial-1")).unwrap();
    std::fs::remove_file(out.join(".ranked.partial-1/model.toml")).unwrap();
    let again = Flow { resume: true, only: Some(StageName::All), ..flow(&config, &out) };
    assert_eq!(again.run().unwrap(), Outcome::Finished);
    assert!(content(&out.join("ranked/supernet.safetensors")) == ranked);
    assert!(content(&out.join("supernet.safetensors")) == model);
}

#[test]
fn sigterm_stops_the_binary_with_a_state_that_continues_to_the_bit() {
    let workspace = Workspace::new([1_000_000, 1]);
    let (config, out) = (workspace.path("config.toml"), workspace.path("out"));
    let mut child =
        accordion(&["train", "--config", text(&config), "--out", text(&out)]).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    // It says so when its first step is done.
    let mut line = String::new();
    while !line.starts_with("full: ") {
        line.clear();
        assert!(stderr.read_line(&mut line).unwrap() > 0, "it says no more");
    }
    assert!(std::process::Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
    let mut rest = String::new();
    stderr.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0), "{rest}");
    assert!(rest.contains("stopped; `--resume` continues from"), "{rest}");

    let config = workspace.config();
    let (network, dataset) = (network(&config), config.data.load().unwrap());
    let stopped = State::read(network.spec(), &out.join("state.safetensors")).unwrap();
    assert!(stopped.position.seen > 0);
    let state =
        State::begin(StageName::Full, &initial(network.spec(), config.seed).unwrap(), &dataset.classes).unwrap();
    let full = [Subnet::new(network.spec(), 1.0, &network.spec().full())];
    let mut trainer = Trainer::new(&network, &config, &dataset, &full, state, None).unwrap();
    while trainer.state.position.seen < stopped.position.seen {
        trainer.step().unwrap();
    }
    assert!(trainer.state.slots == stopped.slots, "after {} images", stopped.position.seen);
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn the_stages_run_one_by_one_when_asked() {
    let workspace = Workspace::new([2, 2]);
    let done = |out: &str, more: &[&str]| {
        let output = workspace.train(out, more);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    done("stages", &["--widths", "full"]);
    assert_eq!(names(&workspace.path("stages")), ["full", "state.safetensors"]);
    done("stages", &["--widths", "all", "--resume"]);
    done("flow", &[]);
    done("given", &["--widths", "all", "--init", text(&workspace.path("flow/ranked"))]);
    assert_eq!(
        names(&workspace.path("given")),
        ["model.toml", "state.safetensors", "subnets.toml", "supernet.safetensors"]
    );
    let model = |out: &str| content(&workspace.path(out).join("supernet.safetensors"));
    assert!(model("stages") == model("flow"), "one by one");
    assert!(model("given") == model("flow"), "from a given model");
}

#[test]
fn stages_that_cannot_follow_each_other_are_refused_and_change_nothing() {
    let workspace = Workspace::new([2, 2]);
    let refused = |out: &str, more: &[&str], parts: &[&str]| assert_refused(&workspace.train(out, more), parts);
    refused("new", &["--widths", "all"], &["--widths all", "--init", text(&workspace.path("new/full"))]);
    refused("new", &["--widths", "all", "--init", "no/such"], &["no/such/model.toml"]);
    refused("new", &["--widths", "full", "--init", "no/such"], &["--init", "--widths full"]);
    assert!(!workspace.path("new").exists());

    assert!(workspace.train("out", &[]).status.success());
    let before = content(&workspace.path("out/state.safetensors"));
    refused("out", &[], &["--out", text(&workspace.path("out")), "--resume"]);
    refused("out", &["--resume", "--widths", "full"], &["--widths full", text(&workspace.path("out"))]);
    assert!(workspace.train("stateless", &["--widths", "full"]).status.success());
    std::fs::remove_file(workspace.path("stateless/state.safetensors")).unwrap();
    refused("stateless", &[], &["stateless/full: ", "whose state is gone", "--widths all", "--out"]);
    workspace.edit("num_blocks = 1", "num_blocks = 2");
    let ranked = workspace.path("out/ranked");
    refused("new", &["--widths", "all", "--init", text(&ranked)], &["ranked/model.toml: backbone"]);
    refused("out", &["--resume"], &["state.safetensors: permutations", "network of the config"]);
    assert!(content(&workspace.path("out/state.safetensors")) == before);
    assert!(!workspace.path("new").exists());
}

/// A folder of class folders with the workspace's images, which come in another order of classes, and IDX files with the same
/// images in the order of the folders; the names of their configs.
fn as_folders(workspace: &Workspace) -> [&'static str; 2] {
    let (images, labels) = data(IMAGES);
    let mut order: Vec<usize> = (0..IMAGES).collect();
    // "bottom" comes before "top".
    order.sort_by_key(|&image| CLASSES[labels[image] as usize]);
    let picture = |image: usize| &images[image * SIDE * SIDE..][..SIDE * SIDE];
    for (place, &image) in order.iter().enumerate() {
        let folder = workspace.path("pictures").join(CLASSES[labels[image] as usize]);
        std::fs::create_dir_all(&folder).unwrap();
        let grey = image::GrayImage::from_raw(SIDE as u32, SIDE as u32, picture(image).to_vec()).unwrap();
        grey.save(folder.join(format!("{place:03}.png"))).unwrap();
    }
    let sorted: Vec<u8> = order.iter().flat_map(|&image| picture(image).to_vec()).collect();
    std::fs::write(workspace.path("sorted-images"), idx(&[IMAGES, SIDE, SIDE], &sorted)).unwrap();
    let sorted: Vec<u8> = order.iter().map(|&image| labels[image]).collect();
    std::fs::write(workspace.path("sorted-labels"), idx(&[IMAGES], &sorted)).unwrap();
    let config = std::fs::read_to_string(workspace.path("config.toml")).unwrap();
    let (head, rest) = config.split_once("[data]").unwrap();
    let (_, stages) = rest.split_once("[full]").unwrap();
    let write = |name: &str, data: &str| {
        std::fs::write(workspace.path(name), format!("{head}[data]\n{data}\n[full]{stages}")).unwrap();
    };
    write("folder.toml", "format = 'folder'\npath = 'pictures'\nchannels = 1");
    let files = "images = 'sorted-images'\nlabels = 'sorted-labels'";
    write("sorted.toml", &format!("format = 'idx'\n{files}\nclasses = {CLASSES:?}"));
    ["folder.toml", "sorted.toml"]
}

#[test]
fn labels_follow_the_names_of_the_model_or_the_state_that_a_run_continues() {
    let workspace = Workspace::new([4, 4]);
    let configs = as_folders(&workspace);
    let full = workspace.path("full-only");
    let only_full = Flow { only: Some(StageName::Full), ..flow(&workspace.config(), &full) }.run();
    assert_eq!(only_full.unwrap(), Outcome::Finished);
    let given = workspace.path("given");
    assert_eq!(flow(&workspace.config(), &given).run().unwrap(), Outcome::Finished);
    for (what, continues) in [("--init", true), ("--resume", false)] {
        let models = configs.map(|name| {
            let config = Config::load(&workspace.path(name)).unwrap();
            let out = workspace.path(&format!("{name}{what}"));
            let ranked = given.join("ranked");
            let mut run = Flow { only: Some(StageName::All), ..flow(&config, &out) };
            if continues {
                run.init = Some(&ranked);
            } else {
                copy(&full, &out);
                run.resume = true;
            }
            assert_eq!(run.run().unwrap(), Outcome::Finished);
            (Model::open(&out).unwrap().card.classes, content(&out.join("supernet.safetensors")))
        });
        assert_eq!(models[0].0, CLASSES, "{what}");
        assert!(models[0] == models[1], "{what}: the same images with the same labels");
    }

    std::fs::rename(workspace.path("pictures/bottom"), workspace.path("pictures/floor")).unwrap();
    let config = Config::load(&workspace.path("folder.toml")).unwrap();
    let says = ": data: has the classes floor, top, but the model's are top, bottom";
    let (new, ranked) = (workspace.path("new"), given.join("ranked"));
    for run in [
        Flow { only: Some(StageName::All), init: Some(&ranked), ..flow(&config, &new) },
        Flow { resume: true, ..flow(&config, &full) },
        Flow { resume: true, ..flow(&config, &given) },
    ] {
        let refusal = run.run().unwrap_err().to_string();
        assert!(refusal.ends_with(says), "{refusal}");
    }
}

/// Copies a directory of a run.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (from, to) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
        match from.is_dir() {
            true => copy(&from, &to),
            false => drop(std::fs::copy(&from, &to).unwrap()),
        }
    }
}

#[test]
fn a_network_without_classes_is_trained_on_class_folders_into_a_model_without_classes() {
    let workspace = Workspace::new([2, 2]);
    workspace.edit("label_dim = 2", "label_dim = 0");
    let out = workspace.path("out");
    assert_eq!(flow(&workspace.config(), &out).run().unwrap(), Outcome::Finished);
    assert!(Model::open(&out).unwrap().card.classes.is_empty());
}

#[test]
fn a_run_that_diverges_stops_at_once_and_leaves_its_last_finite_checkpoint() {
    let workspace = Workspace::new([4, 40]);
    let out = workspace.path("out");
    assert!(workspace.train("out", &["--widths", "full"]).status.success());
    let before = content(&out.join("state.safetensors"));
    workspace.edit("learning_rate = 3e-3", "learning_rate = 1e9");
    let output = workspace.train("out", &["--resume"]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    let said = stderr.lines().last().unwrap();
    let says = ["error: all, after step ", " images): the ", "a lower all.learning_rate than 1000000000 may help"];
    assert!(says.iter().all(|part| said.contains(part)), "{said}");
    assert!(content(&out.join("state.safetensors")) == before, "the checkpoint is left as it was");
    assert_eq!(names(&out), ["full", "ranked", "state.safetensors"]);

    // With a rate that goes well, it goes on from there.
    workspace.edit("learning_rate = 1e9", "learning_rate = 3e-3");
    assert!(workspace.train("out", &["--resume"]).status.success());
}

#[test]
fn a_gradient_or_a_loss_that_is_not_finite_changes_nothing_of_the_state() {
    let workspace = Workspace::new([4, 4]);
    let config = workspace.config();
    let (network, dataset) = (network(&config), config.data.load().unwrap());
    let full = [Subnet::new(network.spec(), 1.0, &network.spec().full())];
    // The last norm and convolution overflow in the forward pass, the convolution alone only in the backward pass.
    for (scaled, scale, says) in [(4, 1e25, "the loss at ratio 1.000 is "), (2, 1e30, "the norm of the gradient is ")] {
        let mut supernet = generic(&network);
        for param in supernet.params.iter_mut().rev().take(scaled) {
            *param = (&*param * scale).unwrap();
        }
        let state = State::begin(StageName::Full, &supernet, &dataset.classes).unwrap();
        let before = state.slots.clone();
        let mut trainer = Trainer::new(&network, &config, &dataset, &full, state, None).unwrap();
        let refusal = trainer.step().map(|report| (report.losses, report.gradient_norm)).unwrap_err();
        assert!(matches!(refusal, accordion::Error::NotFinite { .. }), "{refusal}");
        assert!(refusal.to_string().starts_with(&format!("full, after step 0 (0 images): {says}")), "{refusal}");
        assert!(trainer.state.slots == before && trainer.state.position.seen == 0);
    }
}

#[test]
fn a_state_that_is_not_finite_is_neither_written_nor_resumed() {
    let workspace = Workspace::new([2, 2]);
    assert!(workspace.train("out", &["--widths", "full"]).status.success());
    let path = workspace.path("out/state.safetensors");
    let network = network(&workspace.config());
    let whole = std::fs::read(&path).unwrap();
    let (header, metadata) = safetensors::SafeTensors::read_metadata(&whole).unwrap();
    for part in ["value", "average", "m", "v"] {
        let name = format!("{}#{part}", network.spec().params[0].name);
        let place = 8 + header + metadata.info(&name).unwrap().data_offsets.0;
        let mut damaged = whole.clone();
        damaged[place..place + 4].copy_from_slice(&f32::NAN.to_le_bytes());
        std::fs::write(&path, &damaged).unwrap();
        let says = [text(&path), name.as_str(), "not finite"];
        assert_refused(&workspace.train("out", &["--resume"]), &says);
        assert_eq!(std::fs::read(&path).unwrap(), damaged);
    }
    std::fs::write(&path, &whole).unwrap();
    let mut state = State::read(network.spec(), &path).unwrap();
    state.slots[0].v[0] = f32::INFINITY;
    assert!(matches!(state.write(network.spec(), &path), Err(accordion::Error::NotFinite { .. })));
    assert_eq!(std::fs::read(&path).unwrap(), whole);
}

#[test]
fn a_run_says_what_it_loaded_and_what_is_rarely_meant() {
    let workspace = Workspace::new([2, 2]);
    let said = |workspace: &Workspace, out: &str| {
        let output = workspace.train(out, &["--widths", "full"]);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{stderr}");
        stderr
    };
    let stderr = said(&workspace, "meant");
    let loaded =
        "data: 128 images of 8x8x1, mean -0.003 and deviation 0.691 in [-1, 1]; 2 classes: top (64), bottom (64)";
    assert!(stderr.contains(loaded), "{stderr}");
    assert!(stderr.contains("full: 32 of 32 images, ") && stderr.contains(" images/s, full: loss "), "{stderr}");
    assert!(!stderr.contains("WARN"), "{stderr}");
    workspace.edit("attn_resolutions = [4]", "attn_resolutions = [4, 16]");
    workspace.edit("sigma_data = 0.7", "sigma_data = 0.5");
    let stderr = said(&workspace, "not-meant");
    for warning in [
        "backbone.attn_resolutions: no level of the network has 16; it has 8, 4",
        "preconditioning.sigma_data: 0.5 is more than a factor of 1.25 from the deviation of the images, 0.691",
    ] {
        assert!(stderr.lines().any(|line| line.contains("WARN") && line.contains(warning)), "{stderr}");
    }
}

#[test]
fn the_example_config_trains_on_a_folder_of_pictures_beside_it_and_says_what_it_skips() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("my.toml");
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/train-folder.toml");
    let written = std::fs::read_to_string(example).unwrap();
    std::fs::write(&config, written.replace("batch = 64", "batch = 4")).unwrap();
    let train = || accordion(&["train", "--config", text(&config), "--bench-steps", "1"]).output().unwrap();
    assert_refused(&train(), &[text(&dir.path().join("pictures")), "No such file"]);
    for (class, shade) in [("crow", 20), ("wren", 200)] {
        let folder = dir.path().join("pictures").join(class);
        std::fs::create_dir_all(&folder).unwrap();
        image::RgbImage::from_pixel(32, 32, image::Rgb([shade; 3])).save(folder.join("a.png")).unwrap();
        std::fs::write(folder.join("Thumbs.db"), "x").unwrap();
    }
    let output = train();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{stderr}");
    let skipped = "pictures: skipped 2 that end in none of png, jpg, jpeg, webp: crow/Thumbs.db, wren/Thumbs.db";
    assert_eq!(stderr.matches("WARN").count(), 1, "{stderr}");
    assert!(stderr.contains(skipped), "{stderr}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(report["images_per_s"].as_f64().unwrap() > 0.0);
}

#[test]
fn a_config_with_a_mistake_is_refused_with_the_file_and_the_field() {
    for (from, to, parts) in [
        ("seed = 0", "sead = 0", &["line 2", "unknown field `sead`"][..]),
        ("ema_half_life = 200", "ema_half_live = 200", &["unknown field `ema_half_live`"]),
        ("learning_rate = 4e-3", "learning_rate = \"fast\"", &["invalid type"]),
        ("learning_rate = 4e-3", "learning_rate = -1", &[": full.learning_rate: must be positive"]),
        ("learning_rate = 3e-3", "learning_rate = inf", &[": all.learning_rate: "]),
        ("batch = 16", "batch = 0", &[": full.batch: "]),
        ("images = 32\nbatch", "images = 3\nbatch", &[": full.images: "]),
        ("final_share = 0.1", "final_share = 2.0", &[": full.final_share: "]),
        ("sigma_data = 0.7", "sigma_data = 0", &[": preconditioning.sigma_data: "]),
        ("sigma_data = 0.7", "sigma = 0.7", &["unknown field `sigma`"]),
        ("kind = \"edm\"", "kind = \"eddm\"", &["unknown variant `eddm`"]),
        ("model_channels = 8", "model_channels = 10", &[": backbone.model_channels: 10"]),
        ("img_resolution = 8", "img_resolution = 7", &[": backbone.img_resolution: 7"]),
        ("resample_filter = [1, 1]", "resample_filter = [1]", &[": backbone.resample_filter: "]),
        ("num_blocks = 1", "num_blocks = 1\ndropout = 0.1", &[": backbone.dropout: "]),
        ("step = 0.25", "step = 0.0", &[": allocation.step: "]),
        ("step = 0.25", "step = 0.25\nalign = 0", &[": allocation.align: "]),
        ("samples = 8", "samples = 0", &[": ranking.samples: "]),
        ("order = \"global\"", "order = \"original\"", &[": ranking.order: "]),
        ("rule = \"one\"", "rule = \"two\"", &["unknown variant `two`"]),
        ("rule = \"one\"", "rule = \"one\"\ndistillation = 0.5", &[": sampling.teacher: "]),
        ("rule = \"one\"", "rule = \"one\"\nreweighting = nan", &[": sampling.reweighting: "]),
        ("label_dim = 2", "label_dim = 3", &[": backbone.label_dim: 3 is not the number of classes in data, 2"]),
        ("img_resolution = 8", "img_resolution = 16", &[": data: images are 8x8x1, but backbone takes 16x16x1"]),
        ("img_channels = 1", "img_channels = 3", &[": data: images are 8x8x1, but backbone takes 8x8x3"]),
    ] {
        let workspace = Workspace::new([2, 2]);
        workspace.edit(from, to);
        let output = workspace.train("out", &[]);
        assert_refused(&output, &[&[text(&workspace.path("config.toml"))], parts].concat());
        assert!(!workspace.path("out").exists(), "{to}");
    }
}

#[test]
fn data_that_is_missing_or_damaged_is_refused_with_its_file() {
    let workspace = Workspace::new([2, 2]);
    let (images, labels) = (workspace.path("images"), workspace.path("labels"));
    let whole = (std::fs::read(&images).unwrap(), std::fs::read(&labels).unwrap());
    let refused = |parts: &[&str]| {
        assert_refused(&workspace.train("out", &[]), parts);
        assert!(!workspace.path("out").exists());
        std::fs::write(&images, &whole.0).unwrap();
        std::fs::write(&labels, &whole.1).unwrap();
    };
    std::fs::remove_file(&images).unwrap();
    refused(&[text(&images), "No such file"]);
    std::fs::write(&images, &whole.0[..1000]).unwrap();
    refused(&[text(&images), "truncated"]);
    std::fs::write(&images, b"\x89PNG").unwrap();
    refused(&[text(&images), "magic number"]);
    std::fs::write(&labels, idx(&[IMAGES], &[2; IMAGES])).unwrap();
    refused(&[text(&labels), "label 2"]);
    std::fs::write(&labels, idx(&[3], &[0; 3])).unwrap();
    refused(&[text(&labels), "3 labels"]);
    assert_refused(
        &accordion(&["train", "--config", "no/such.toml", "--out", text(&workspace.path("out"))]).output().unwrap(),
        &["no/such.toml"],
    );
    assert!(!workspace.path("out").exists());
}

#[test]
fn a_damaged_state_is_refused_and_left_as_it_is() {
    let workspace = Workspace::new([2, 2]);
    assert!(workspace.train("out", &["--widths", "full"]).status.success());
    let path = workspace.path("out/state.safetensors");
    let whole = std::fs::read(&path).unwrap();
    for (damaged, parts) in [
        (&whole[..whole.len() - 1], "not a whole safetensors file"),
        (&whole[..4], "not a whole"),
        (&b"nonsense"[..], "not a whole safetensors file"),
    ] {
        std::fs::write(&path, damaged).unwrap();
        assert_refused(&workspace.train("out", &["--resume"]), &[text(&path), parts]);
        assert_eq!(std::fs::read(&path).unwrap(), damaged);
        assert_eq!(names(&workspace.path("out")), ["full", "state.safetensors"]);
    }
}
