//! How well cheap metrics foretell the Fréchet distance of many images: rank correlations over candidate plans.
//! `cargo bench --bench cheap_metric [-- MODEL_DIR [IMAGES [PLANS]]]`

use accordion::evaluation::candidates::{constants, shapes};
use accordion::evaluation::drawing::{Recipe, Start, bytes, draw, starts};
use accordion::evaluation::realism::{RealImages, Realism};
use accordion::evaluation::survey::spearman;
use accordion::evaluation::to_reference::{ToReference, reference};
use accordion::evaluation::yardstick::Metric;
use accordion::nets::model::FEATURES;
use accordion::nets::{Denoiser, HostRunner, Model, Threads};
use std::path::PathBuf;

/// Images of a plan by which the metrics with a reference judge it.
const FEW: usize = 40;
/// Images of a plan by which the distance of few images judges it.
const SOME: [usize; 3] = [125, 250, 500];

fn main() {
    let mut args = std::env::args().skip(1).filter(|arg| !arg.starts_with("--"));
    let model_dir = PathBuf::from(args.next().unwrap_or_else(|| "models/fashion-mnist".into()));
    let number = |text: Option<String>, or: usize| text.map_or(or, |text| text.parse().expect("a number"));
    let (images, most) = (number(args.next(), 4000), number(args.next(), 40));
    let model = Model::open(&model_dir).expect("a model");
    let features = model_dir.join(FEATURES);
    let mut runner = HostRunner::new(&model, Threads::ALL).expect("a runner");
    let mut realism = Realism::open(&features, Threads::ALL).expect("features");
    let mut real = RealImages::open(&features, Threads::ALL).expect("features");
    let by_reference = ToReference::new(&mut runner, FEW).expect("a reference");
    let names: Vec<String> = model.subnets().iter().map(|subnet| subnet.name.to_string()).collect();
    let ends = [names[0].as_str(), names[names.len() - 1].as_str()];
    let all = constants(&shapes(Metric::Fd), &ends);
    let plans: Vec<_> =
        (0..most.min(all.len())).map(|index| all[index * all.len() / most.min(all.len())].clone()).collect();

    let starts: Vec<Start> = starts(FEW, runner.about().classes.len());
    let shape = runner.about().state();
    let mut of = |runner: &mut HostRunner, recipe: &Recipe| {
        let drawn = draw(runner, &starts, recipe).expect("images");
        real.features(&bytes(&drawn), shape).expect("features")
    };
    let seen = of(&mut runner, &reference().into());
    let mut rows: Vec<[f64; 6]> = Vec::new();
    for plan in &plans {
        let pixels = by_reference.rate(&mut runner, plan, FEW).expect("a rating").quality;
        let drawn = of(&mut runner, &plan.clone().into());
        let apart = seen.iter().zip(&drawn).map(|(a, b)| f64::from((a - b).powi(2))).sum::<f64>();
        let some = SOME.map(|images| realism.rate(&mut runner, plan, images).expect("a rating").quality);
        let many = realism.rate(&mut runner, plan, images).expect("a rating").quality;
        realism.keep_only(&[]);
        rows.push([pixels, -apart, some[0], some[1], some[2], many]);
        println!("{plan}: {:?}", rows[rows.len() - 1]);
    }
    println!("rank correlation with the quality by {images} images, over {} plans:", rows.len());
    let names = [
        format!("pixels against the reference plan's, {FEW} images"),
        format!("features against the reference plan's, {FEW} images"),
        format!("Fréchet distance to real ones, {} images", SOME[0]),
        format!("Fréchet distance to real ones, {} images", SOME[1]),
        format!("Fréchet distance to real ones, {} images", SOME[2]),
    ];
    for (column, name) in names.iter().enumerate() {
        let pairs: Vec<(f64, f64)> = rows.iter().map(|row| (row[column], row[5])).collect();
        println!("{:.3}  {name}", spearman(&pairs));
    }
}
