//! The time of the FID Inception's features: `cargo bench --bench inception -- --weights FILE --images FILE`.
//! `benches/peers/inception.sh` calls it.

use accordion::Result;
use accordion::features::{Features, Inception};
use accordion::nets::Threads;
use accordion::{Error, ImageShape};
use candle_core::{Device, Tensor};
use clap::Parser;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Time features of images, from bytes to vectors.
#[derive(Debug, Parser)]
struct Args {
    /// The network's weights.
    #[arg(long)]
    weights: PathBuf,
    /// A safetensors file with `images`, uint8 [n, height, width, channels].
    #[arg(long)]
    images: PathBuf,
    /// Images of a call, several numbers separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "1,8,32")]
    batches: Vec<usize>,
    /// Seconds for each of them.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Threads that compute; one for each core without it.
    #[arg(long)]
    threads: Option<usize>,
    /// Write the features of all images to this safetensors file.
    #[arg(long)]
    features: Option<PathBuf>,
    /// Show the least time of every layer.
    #[arg(long)]
    layers: bool,
    /// What cargo gives every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let threads = args.threads.map_or(Threads::ALL, Threads::new);
    let mut inception = Inception::open(&args.weights, threads)?;
    let images = candle_core::safetensors::load(&args.images, &Device::Cpu)?
        .remove("images")
        .ok_or_else(|| Error::field(&args.images, "images", "is missing"))?;
    let (count, height, width, channels) = images.dims4()?;
    let (bytes, shape) = (images.flatten_all()?.to_vec1::<u8>()?, ImageShape { height, width, channels });
    if let Some(path) = &args.features {
        let features = Tensor::from_vec(inception.of(&bytes, shape)?, (count, inception.dim()), &Device::Cpu)?;
        candle_core::safetensors::save(&HashMap::from([("features", features)]), path)?;
    }
    let mut report = BTreeMap::new();
    for batch in args.batches {
        let bytes: Vec<u8> = bytes.iter().copied().cycle().take(batch * shape.elements()).collect();
        inception.of(&bytes, shape)?;
        let (start, mut times) = (Instant::now(), Vec::new());
        while times.len() < 3 || start.elapsed() < Duration::from_secs_f64(args.seconds) {
            let call = Instant::now();
            inception.of(&bytes, shape)?;
            times.push(call.elapsed());
        }
        report.insert(batch, times.iter().map(|time| time.as_secs_f64() * 1e3).collect::<Vec<_>>());
        if args.layers {
            show_layers(&mut inception, &bytes, shape, batch)?;
        }
    }
    println!("{}", serde_json::json!({ "ms": report, "threads": threads.number() }));
    Ok(())
}

/// The layers, each of the fastest of some calls, and their kinds.
fn show_layers(inception: &mut Inception, bytes: &[u8], shape: ImageShape, batch: usize) -> Result<()> {
    let mut layers = inception.recorded(bytes, shape)?;
    for _ in 0..30 {
        for (layer, again) in layers.iter_mut().zip(inception.recorded(bytes, shape)?) {
            layer.time = layer.time.min(again.time);
        }
    }
    let mut kinds = BTreeMap::<String, (f64, u64)>::new();
    for layer in &layers {
        let (ms, gflops) = (layer.time.as_secs_f64() * 1e3, 2e-9 * layer.macs as f64 / layer.time.as_secs_f64());
        let [height, width, from, to] = layer.shape;
        println!(
            "{:36} {:16} {height:3}x{width:<3} {from:4} {to:4} {ms:8.3} ms {gflops:7.1} GFLOP/s",
            layer.name,
            layer.kind.to_string()
        );
        let sum = kinds.entry(layer.kind.to_string()).or_default();
        *sum = (sum.0 + ms, sum.1 + layer.macs);
    }
    for (kind, (ms, macs)) in kinds {
        println!("{batch:3} {kind:16} {ms:8.3} ms {:7.1} GFLOP/s", 2e-6 * macs as f64 / ms);
    }
    Ok(())
}
