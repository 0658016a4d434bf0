//! The distances of drawn images from real ones.

use super::{Args, Metric};
use crate::cli::table::{Align, Table};
use crate::console::print;
use crate::diffusion::Plan;
use crate::evaluation::drawing::{BATCH, Recipe, starts_in_turn};
use crate::evaluation::kept_features::KeptFeatures;
use crate::evaluation::profile::{PROFILE, Profile};
use crate::evaluation::scores::{BOOTSTRAP, Measured, Overlap, kernel, overlaps};
use crate::features::classifier::File;
use crate::features::frechet::{Estimate, Gaussian, Moments, Target};
use crate::features::sample::mean_and_deviation;
use crate::features::{Classifier, Clip, Features, Inception, clip};
use crate::files::{read_text, sha256};
use crate::nets::model::{FEATURES, WEIGHTS};
use crate::nets::{Model, Opened, Threads};
use crate::routing::Budgets;
use crate::training::config::DataConfig;
use crate::training::data::Dataset;
use crate::training::progress::Progress;
use crate::{Error, Result};
use candle_core::DType;
use candle_core::npy::NpzTensors;
use faer::Mat;
use serde::Serialize;
use std::path::Path;

/// What stands for the name of a class in a text.
const CLASS: &str = "{class}";

/// What one set of images came to.
#[derive(Debug, Serialize)]
struct Row {
    /// The plan, or `real`.
    images: String,
    n: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    fd: Option<Estimate>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kid: Option<Measured>,
    #[serde(skip_serializing_if = "Option::is_none")]
    overlap: Option<Overlap>,
    /// The mean over the images of [`clip::score`].
    #[serde(skip_serializing_if = "Option::is_none")]
    clip: Option<Measured>,
    /// Share of the images whose class the model's classifier sees in them.
    #[serde(skip_serializing_if = "Option::is_none")]
    accuracy: Option<f64>,
    /// What a profile makes of the Fréchet distance.
    #[serde(skip_serializing_if = "Option::is_none")]
    quality: Option<f64>,
}

/// The networks of features that there are.
enum Network {
    /// The model's own.
    Own(Box<(File, Classifier)>),
    /// FID's Inception.
    Inception(Box<Inception>),
    /// A CLIP.
    Clip(Box<Clip>),
}

impl Network {
    /// The given one, or the model's own; and the hash of its weights.
    fn open(model: &Path, given: Option<&Path>) -> Result<(Self, String)> {
        match given {
            Some(dir) if dir.is_dir() => {
                return Ok((Self::Clip(Box::new(Clip::open(dir)?)), sha256(&clip::weights(dir)?)?));
            }
            Some(path) => return Ok((Self::Inception(Box::new(Inception::open(path, Threads::ALL)?)), sha256(path)?)),
            None => (),
        }
        let path = model.join(FEATURES);
        if !path.exists() {
            let problem = "is not there: make it with `accordion train-features`, or give --features FILE";
            return Err(Error::input(path.display(), problem));
        }
        let file = File::open(&path)?;
        let classifier = Classifier::new(&file.layout, &file.weights, Threads::ALL)?;
        Ok((Self::Own(Box::new((file, classifier))), sha256(&path)?))
    }

    fn features(&mut self) -> &mut dyn Features {
        match self {
            Self::Own(own) => &mut own.1,
            Self::Inception(inception) => &mut **inception,
            Self::Clip(clip) => &mut **clip,
        }
    }

    /// The model's own.
    fn own(&self) -> Option<(&File, &Classifier)> {
        match self {
            Self::Own(own) => Some((&own.0, &own.1)),
            Self::Inception(_) | Self::Clip(_) => None,
        }
    }
}

/// What drawn images are held against.
struct Wanted {
    real: Option<Real>,
    /// The features of the texts that they shall show, `[n, dim]`: one for each class, or one for all.
    texts: Option<Vec<f32>>,
}

/// Real images.
struct Real {
    target: Target,
    /// `[n, dim]`, where they are not only known by their mean and covariance.
    features: Option<KeptFeatures>,
}

/// What features on disk are of.
#[derive(Serialize)]
struct Record<'a> {
    /// Hash of the model's weights, or the text of the data's config.
    of: &'a str,
    /// The plan, or `data`.
    images: &'a str,
    seed: u64,
    guidance: f64,
    /// Hash of the network's weights.
    features: &'a str,
}

impl Args {
    /// Prints how near the images of plans are to real ones.
    ///
    /// # Errors
    /// [`Error::Input`] for plans, files and images that do not fit the model.
    pub(super) fn distances(&self, model: &Model) -> Result<()> {
        let images = &self.images;
        if !(0.0..=20.0).contains(&images.guidance) {
            return Err(Error::input("--guidance", "must lie between 0 and 20"));
        }
        let plans = self.plans(model)?;
        if plans.is_empty() && images.real.is_none() {
            return Err(Error::input("--plan", "is needed: a plan, or fast, balanced or best; --real for real images"));
        }
        let wants_score = self.metric.contains(&Metric::Clip);
        if wants_score && !images.features.as_deref().is_some_and(Path::is_dir) {
            return Err(Error::input("--features", "is needed for the CLIP score: the directory of a CLIP"));
        }
        let (mut network, hash) = Network::open(&self.model, images.features.as_deref())?;
        let texts = match &network {
            Network::Clip(clip) if wants_score => Some(self.texts(model, clip)?),
            _ => None,
        };
        let real = match self.metric.iter().any(|metric| metric.is_distance()) {
            true => Some(self.real(model, &mut network, &hash)?),
            false => None,
        };
        let wanted = Wanted { real, texts };
        let mut rows = Vec::new();
        if let Some(path) = &images.real {
            let dataset = DataConfig::open(path)?.load_for(model)?;
            let n = dataset.len().min(images.n as usize);
            let mut kept = self.kept(
                "real",
                network.features().dim(),
                &Record {
                    of: &read_text(path, "a TOML file")?,
                    images: "data",
                    seed: 0,
                    guidance: 1.0,
                    features: &hash,
                },
            )?;
            of_dataset(&dataset, n, "real images", network.features(), &mut kept)?;
            let labels: Vec<usize> = (0..n).map(|index| dataset.label(index)).collect();
            rows.push(self.row("real", kept.first(n), &labels, &wanted, &mut network)?);
        }
        let mut opened = self.device.open(model, BATCH, Threads::ALL)?;
        for plan in &plans {
            let recipe = Recipe { plan: plan.clone(), guidance: images.guidance };
            rows.push(self.drawn(model, &mut *opened, &recipe, &wanted, &mut network, &hash)?);
        }
        self.report(&rows)
    }

    /// The plans that are asked for.
    fn plans(&self, model: &Model) -> Result<Vec<Plan>> {
        let plan = |text: &String| {
            let budgets = Budgets::default();
            let plan = match budgets.named().into_iter().find(|(name, _)| text.eq_ignore_ascii_case(name)) {
                Some((_, budget)) => {
                    let profile = Profile::open(&self.model.join(PROFILE))?;
                    profile.reaching(budget.quality).plan.clone()
                }
                None => text.parse::<Plan>()?,
            };
            model.check_plan(&plan)?;
            Ok(plan)
        };
        self.images.plan.iter().map(plan).collect()
    }

    fn kept(&self, name: &str, dim: usize, record: &Record) -> Result<KeptFeatures> {
        match &self.images.work {
            Some(dir) => KeptFeatures::open(dir, name, dim, record),
            None => Ok(KeptFeatures::in_memory(dim)),
        }
    }

    /// The features of the texts of all classes.
    fn texts(&self, model: &Model, clip: &Clip) -> Result<Vec<f32>> {
        let (prompt, classes) = (&self.images.prompt, &model.card.classes);
        match classes.is_empty() {
            true if prompt.contains(CLASS) => Err(Error::input(
                "--prompt",
                format!("says {CLASS}, but the model has no classes: give one text for all"),
            )),
            true => clip.text(std::slice::from_ref(prompt)),
            false => clip.text(&classes.iter().map(|class| prompt.replace(CLASS, class)).collect::<Vec<_>>()),
        }
    }

    /// The real images that drawn ones are held against: the data, the numbers of a file, or those that came with the model's own features.
    fn real(&self, model: &Model, network: &mut Network, hash: &str) -> Result<Real> {
        let dim = network.features().dim();
        if self.data.is_none() && self.metric.iter().any(|metric| [Metric::Kid, Metric::Pr].contains(metric)) {
            let problem = "is needed for kid and pr: they are of images, not of their mean and covariance";
            return Err(Error::input("--data", problem));
        }
        if let Some(path) = &self.images.reference {
            return Ok(Real { target: Target::new(statistics(path, dim)?)?, features: None });
        }
        let Some(path) = &self.data else {
            let Some((file, _)) = network.own() else {
                let problem = "or --reference is needed: only the model's own features come with those of real images";
                return Err(Error::input("--data", problem));
            };
            return Ok(Real { target: Target::new(file.reference.gaussian.clone())?, features: None });
        };
        let dataset = DataConfig::open(path)?.load_for(model)?;
        let of = read_text(path, "a TOML file")?;
        let record = Record { of: &of, images: "data", seed: 0, guidance: 1.0, features: hash };
        let mut kept = self.kept("data", dim, &record)?;
        of_dataset(&dataset, dataset.len(), "data", network.features(), &mut kept)?;
        let mut moments = Moments::new(dim);
        moments.add(kept.first(dataset.len()));
        Ok(Real { target: Target::new(moments.gaussian()?)?, features: Some(kept) })
    }

    /// Draws the images of a recipe and measures them.
    fn drawn(
        &self,
        model: &Model,
        opened: &mut dyn Opened,
        recipe: &Recipe,
        wanted: &Wanted,
        network: &mut Network,
        hash: &str,
    ) -> Result<Row> {
        let n = self.images.n as usize;
        let plan = recipe.plan.to_string();
        let of = model.card.sha256.get(WEIGHTS).cloned().unwrap_or_default();
        let record = Record { of: &of, images: &plan, seed: self.seed, guidance: recipe.guidance, features: hash };
        let name = format!("{plan}~seed={}~guidance={}", self.seed, recipe.guidance).replace(['/', '*', ','], "_");
        let mut kept = self.kept(&name, network.features().dim(), &record)?;
        let starts = starts_in_turn(self.seed, n, model.network.classes());
        let mut progress = Progress::new(&plan, "images", kept.len() as u64, n as u64);
        let at = |done: usize| progress.at(done as u64, "");
        kept.draw(opened.denoiser(), &starts, recipe, network.features(), at)?;
        progress.finish();
        let labels: Vec<usize> = starts.iter().filter_map(|start| start.class).collect();
        let name = if recipe.guidance == 1.0 { plan } else { format!("{plan} guided {}", recipe.guidance) };
        self.row(&name, kept.first(n), &labels, wanted, network)
    }

    /// What features `[n, dim]` of images come to; labels are theirs, where they have some.
    fn row(
        &self,
        images: &str,
        features: &[f32],
        labels: &[usize],
        wanted: &Wanted,
        network: &mut Network,
    ) -> Result<Row> {
        let dim = network.features().dim();
        let wants = |metric| self.metric.contains(&metric);
        let real = wanted.real.as_ref();
        let reals = real.and_then(|real| real.features.as_ref()).map(|kept| kept.first(usize::MAX));
        let own = network.own();
        let right = |classifier: &Classifier| {
            let found = classifier.classes(features);
            found.iter().zip(labels).filter(|(found, label)| found == label).count() as f64 / labels.len() as f64
        };
        let score = |texts: &Vec<f32>| {
            let text = |index: usize| &texts[labels.get(index).copied().unwrap_or(0) * dim..][..dim];
            let images = features.chunks_exact(dim).enumerate();
            let scores: Vec<f64> = images.map(|(index, image)| clip::score(image, text(index))).collect();
            let (value, deviation) = mean_and_deviation(&scores);
            Measured { value, error: deviation / (scores.len() as f64).sqrt() }
        };
        let estimate = |real: &Real| real.target.estimate(features, BOOTSTRAP);
        let fd = real.filter(|_| wants(Metric::Fd)).map(estimate).transpose()?;
        let by_own = self.data.is_none() && self.images.reference.is_none();
        Ok(Row {
            images: images.to_owned(),
            n: features.len() / dim,
            kid: reals.filter(|_| wants(Metric::Kid)).map(|reals| kernel(reals, features, dim)),
            overlap: reals.filter(|_| wants(Metric::Pr)).map(|reals| overlaps(reals, features, dim)),
            clip: wanted.texts.as_ref().map(score),
            accuracy: own.filter(|_| !labels.is_empty()).map(|(_, classifier)| right(classifier)),
            quality: own.filter(|_| by_own).zip(fd).map(|((file, _), fd)| file.reference.quality(fd.limit)),
            fd,
        })
    }

    fn report(&self, rows: &[Row]) -> Result<()> {
        if self.json {
            return print(serde_json::json!({ "rows": rows }));
        }
        let cell = |value: Option<f64>, digits: usize| value.map_or(String::new(), |value| format!("{value:.digits$}"));
        let with_error = |value: Option<(f64, f64)>, digits: usize| {
            value.map_or(String::new(), |(value, error)| format!("{value:.digits$} ± {error:.digits$}"))
        };
        let share = |measured: Measured| (measured.value, measured.error);
        type Column<'a> = (&'static str, Box<dyn Fn(&Row) -> String + 'a>);
        let columns: Vec<Column> = vec![
            ("FD", Box::new(|row| with_error(row.fd.map(|fd| (fd.distance, fd.error)), 2))),
            ("FD without end", Box::new(|row| cell(row.fd.map(|fd| fd.limit), 2))),
            ("KID x 1000", Box::new(|row| with_error(row.kid.map(|kid| (1e3 * kid.value, 1e3 * kid.error)), 3))),
            ("precision", Box::new(|row| with_error(row.overlap.map(|overlap| share(overlap.precision)), 3))),
            ("recall", Box::new(|row| with_error(row.overlap.map(|overlap| share(overlap.recall)), 3))),
            ("density", Box::new(|row| cell(row.overlap.map(|overlap| overlap.density), 3))),
            ("coverage", Box::new(|row| with_error(row.overlap.map(|overlap| share(overlap.coverage)), 3))),
            ("CLIP score", Box::new(|row| with_error(row.clip.map(share), 2))),
            ("right class", Box::new(|row| cell(row.accuracy, 3))),
            ("quality", Box::new(|row| cell(row.quality, 3))),
        ];
        // Without those that nothing is said in.
        let shown: Vec<&Column> =
            columns.iter().filter(|(_, cell)| rows.iter().any(|row| !cell(row).is_empty())).collect();
        let heads = shown.iter().map(|(head, _)| (Align::Right, *head));
        let mut table = Table::new([(Align::Left, "images of"), (Align::Right, "n")].into_iter().chain(heads));
        for row in rows {
            let cells = shown.iter().map(|(_, cell)| cell(row));
            table.row([row.images.clone(), row.n.to_string()].into_iter().chain(cells));
        }
        print(table)
    }
}

/// Adds the features of the first `n` images of a dataset to those that are kept.
fn of_dataset(
    dataset: &Dataset,
    n: usize,
    name: &str,
    features: &mut dyn Features,
    kept: &mut KeptFeatures,
) -> Result<()> {
    let mut progress = Progress::new(name, "images", kept.len() as u64, n as u64);
    kept.take(dataset, n, features, |done| progress.at(done as u64, ""))?;
    progress.finish();
    Ok(())
}

/// `mu` and `sigma` of an .npz file.
fn statistics(path: &Path, dim: usize) -> Result<Gaussian> {
    let refuse = |problem: String| Error::input(path.display(), problem);
    let file = NpzTensors::new(path).map_err(|error| refuse(format!("is no .npz file that can be read: {error}")))?;
    let values = |name: &str, shape: &[usize]| {
        let tensor = file.get(name).map_err(|error| refuse(format!("{name} cannot be read: {error}")))?;
        let tensor = tensor.ok_or_else(|| refuse(format!("has no array {name}; mu and sigma are wanted")))?;
        if tensor.dims() != shape {
            return Err(refuse(format!("{name} is {:?}, but the features take {shape:?}", tensor.dims())));
        }
        Ok(tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?)
    };
    let (mean, rows) = (values("mu", &[dim])?, values("sigma", &[dim, dim])?);
    Ok(Gaussian { mean, covariance: Mat::from_fn(dim, dim, |row, column| rows[row * dim + column]) })
}
