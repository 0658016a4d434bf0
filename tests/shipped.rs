//! The model in models/fashion-mnist, as a user meets it.

#[path = "support/company.rs"]
mod company;

use accordion::diffusion::Level;
use accordion::engine::{Engine, Job, Place};
use accordion::nets::{Condition, HostRunner, HostSampler, Model, Rows, Threads};
use accordion::ops::pixels::to_unit;
use accordion::philox::Stream;
use accordion::routing::Fixed;
use accordion::supernet::widths_of;
use accordion::training::config::DataConfig;
use accordion::training::data::Dataset;
use company::assert_a_sample_is_the_same_in_any_company;
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn path(relative: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(relative)
}

fn model() -> Model {
    Model::open(&path("models/fashion-mnist")).unwrap()
}

/// Fashion-MNIST's test images, from Debian's package `dataset-fashion-mnist`.
fn heldout() -> Dataset {
    DataConfig::open(&path("config/heldout-fashion-mnist.toml")).unwrap().data.load().unwrap()
}

/// The network's values of an image.
fn units(image: &[u8]) -> Vec<f64> {
    image.iter().map(|&byte| f64::from(to_unit(byte))).collect()
}

/// `per_class` images of each class in turn, image i from seed i.
fn draw(plan: &str, per_class: usize) -> Vec<Vec<f64>> {
    let model = model();
    let classes = model.card.classes.len();
    let place = Place::alone(classes * per_class).unwrap();
    let policy = Box::new(Fixed::unmeasured(model.subnets(), 16));
    let runner = HostRunner::new(&model, Threads::ALL).unwrap();
    let engine = Engine::start(Box::new(HostSampler::new(Box::new(runner))), place, policy).unwrap();
    let plan = Arc::new(plan.parse().unwrap());
    let submit = |i: usize| {
        let job = Job { condition: Condition::Class(i / per_class), ..Job::exact(Arc::clone(&plan), i as u64) };
        engine.submit(job).unwrap()
    };
    let tickets: Vec<_> = (0..classes * per_class).map(submit).collect();
    let images = tickets.into_iter().flat_map(|ticket| ticket.blocking_wait().unwrap().images);
    images.map(|image| units(&image)).collect()
}

/// The mean image of each class.
fn centroids(data: &Dataset) -> Vec<Vec<f64>> {
    let mut sums = vec![vec![0.0; data.shape.elements()]; data.classes.len()];
    let mut counts = vec![0.0; data.classes.len()];
    for index in 0..data.len() {
        let label = data.label(index);
        counts[label] += 1.0;
        sums[label].iter_mut().zip(data.image(index)).for_each(|(sum, &byte)| *sum += f64::from(to_unit(byte)));
    }
    sums.iter_mut().zip(counts).for_each(|(sum, count)| sum.iter_mut().for_each(|value| *value /= count));
    sums
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum()
}

/// Share of images whose nearest class mean is that of the class at their place.
fn accuracy(images: impl Iterator<Item = (Vec<f64>, usize)>, centroids: &[Vec<f64>]) -> f64 {
    let (mut right, mut all) = (0.0, 0.0);
    for (image, label) in images {
        let nearest = (0..centroids.len())
            .min_by(|&a, &b| distance(&image, &centroids[a]).total_cmp(&distance(&image, &centroids[b])));
        right += f64::from(nearest == Some(label));
        all += 1.0;
    }
    right / all
}

#[test]
fn its_subnets_nest_and_cost_less_the_narrower_they_are() {
    let model = model();
    let widths: Vec<_> =
        model.subnets().iter().map(|subnet| widths_of(model.network.spec(), subnet).unwrap()).collect();
    assert!(widths.len() >= 4, "{} subnets", widths.len());
    assert!(widths.windows(2).all(|pair| pair[0].nests_in(&pair[1])));
    assert!(model.subnets().windows(2).all(|pair| pair[0].macs < pair[1].macs));
    for name in ["0.250", "0.500", "full"] {
        model.subnet(name).unwrap();
    }
}

#[test]
fn what_it_draws_of_a_class_looks_as_much_like_the_class_as_real_images_do() {
    let data = heldout();
    let centroids = centroids(&data);
    let real = (0..500).map(|i| (units(data.image(i)), data.label(i)));
    let real = accuracy(real, &centroids);
    for plan in ["dpmpp2m-8@0.250", "dpmpp2m-8@0.500", "dpmpp2m-8@full"] {
        let drawn = draw(plan, 6);
        let drawn = accuracy(drawn.into_iter().enumerate().map(|(i, image)| (image, i / 6)), &centroids);
        println!("{plan}: nearest class mean is right for {drawn:.2}, for real images {real:.2}");
        // 60 images: three standard errors below what real images reach.
        assert!(drawn > real - 0.18, "{plan}: {drawn} against {real}");
    }
}

#[test]
fn one_seed_draws_the_same_garment_at_full_and_half_width() {
    let (full, half) = (draw("dpmpp2m-8@full", 4), draw("dpmpp2m-8@0.500", 4));
    let own = (0..40).filter(|&i| {
        let to = |j: usize| distance(&half[i], &full[j]);
        (0..40).all(|j| to(i) <= to(j))
    });
    let own = own.count();
    println!("{own} of 40 half-width images are nearest to the full-width image of their own seed");
    assert!(own >= 34, "{own} of 40");
}

#[test]
fn a_sample_is_the_same_in_any_company_at_any_place_on_any_number_of_threads() {
    let model = model();
    let sigma = [0.002, 0.3, 2.0, 80.0];
    let mut x = vec![0.0; sigma.len() * model.image().elements()];
    Stream::new(1, 1, 0).fill_normals(&mut x);
    let samples = x.chunks_exact_mut(model.image().elements()).zip(sigma);
    samples.for_each(|(x, sigma)| x.iter_mut().for_each(|x| *x *= (sigma * sigma + 0.5f64).sqrt() as f32));
    let levels = sigma.map(Level::from);
    let conditions = [Some(0), None, Some(5), Some(9)].map(Condition::from);
    let rows = Rows { image: model.image(), x: &x, beside: &[], levels: &levels, conditions: &conditions };
    assert_a_sample_is_the_same_in_any_company(&model, &rows);
}

#[test]
fn the_loss_is_the_same_on_class_folders_whose_alphabetical_order_is_not_the_model_s() {
    const IMAGES: usize = 200;
    let (data, dir) = (heldout(), tempfile::tempdir().unwrap());
    // In the order in which the folders are read, so that every image gets the same noise.
    let mut order: Vec<usize> = (0..IMAGES).collect();
    order.sort_by_key(|&image| &data.classes[data.label(image)]);
    let side = data.shape.width as u32;
    for (place, &image) in order.iter().enumerate() {
        let folder = dir.path().join("pictures").join(&data.classes[data.label(image)]);
        std::fs::create_dir_all(&folder).unwrap();
        let picture = image::GrayImage::from_raw(side, side, data.image(image).to_vec()).unwrap();
        picture.save(folder.join(format!("{place:04}.png"))).unwrap();
    }
    let idx = |file: &str, sizes: &[u32], values: Vec<u8>| {
        let header = [0, 0, 8, sizes.len() as u8].into_iter().chain(sizes.iter().flat_map(|size| size.to_be_bytes()));
        std::fs::write(dir.path().join(file), header.chain(values).collect::<Vec<u8>>()).unwrap();
    };
    idx("images", &[IMAGES as u32, side, side], order.iter().flat_map(|&image| data.image(image).to_vec()).collect());
    idx("labels", &[IMAGES as u32], order.iter().map(|&image| data.label(image) as u8).collect());
    // Their paths begin at their own folder, wherever the command runs.
    let evaluate = |config: &str, table: String| {
        let config = dir.path().join(config);
        std::fs::write(&config, table).unwrap();
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_accordion"));
        command.args(["evaluate", "--samples", "200", "--data"]).arg(config);
        command.arg("--model").arg(path("models/fashion-mnist")).output().unwrap()
    };
    let source = format!("[data]\nformat = 'idx'\nimages = 'images'\nlabels = 'labels'\nclasses = {:?}", data.classes);
    let wanted = evaluate("idx.toml", source);
    assert!(wanted.status.success(), "{}", String::from_utf8_lossy(&wanted.stderr));
    let folders = || evaluate("folder.toml", "[data]\nformat = 'folder'\npath = 'pictures'\nchannels = 1".to_owned());
    assert_eq!(String::from_utf8(folders().stdout).unwrap(), String::from_utf8(wanted.stdout).unwrap());

    std::fs::rename(dir.path().join("pictures/ankle boot"), dir.path().join("pictures/boot")).unwrap();
    let refused = folders();
    let stderr = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(2), "{stderr}");
    let says = "folder.toml: data: has the classes bag, boot, coat, dress, pullover, sandal, shirt, sneaker, t-shirt, \
                trouser, but the model's are t-shirt, trouser, pullover, dress, coat, sandal, shirt, sneaker, bag, ankle \
                boot";
    assert!(stderr.trim_end().ends_with(says), "{stderr}");
}

#[test]
fn the_subnets_of_the_shipped_model_can_be_cut_anew() {
    let dir = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(path("models/fashion-mnist")).unwrap() {
        let file = file.unwrap().path();
        std::fs::copy(&file, dir.path().join(file.file_name().unwrap())).unwrap();
    }
    let mut allocate = std::process::Command::new(env!("CARGO_BIN_EXE_accordion"));
    let output = allocate.args(["allocate", "--target", "macs", "--model"]).arg(dir.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (cut, shipped) = (Model::open(dir.path()).unwrap(), model());
    assert_eq!(cut.table.target, "macs");
    let full = cut.subnets().last().unwrap().macs as f64;
    // As `allocate` promises, within 2 %.
    let cheaper = cut.subnets().iter().find(|subnet| subnet.name == "0.750").unwrap();
    assert!((cheaper.macs as f64 / full - 0.75).abs() < 0.02, "{} of {full}", cheaper.macs);
    assert_eq!(cut.subnets().last(), shipped.subnets().last());
}
