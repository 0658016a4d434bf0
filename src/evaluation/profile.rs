//! `profile.toml`: what a model's subnets cost on this machine, and what its plans are worth. Written by
//! `accordion profile`.

use super::frontier::{Point, pareto, time_of};
use super::yardstick::{Metric, Rating, Yardstick};
use crate::diffusion::Plan;
use crate::files::{read_toml, write_toml};
use crate::nets::Opened;
use crate::nets::model::WEIGHTS;
use crate::nets::opened::Processor;
use crate::nets::text_to_image::DECODER;
use crate::ops::cpu::peak;
use crate::supernet::Subnet;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// Version of the file.
const FORMAT: u32 = 5;
/// Its name in a model directory.
pub const PROFILE: &str = "profile.toml";

/// The latency of a model on one machine, and the plans that are worth serving there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Version of the format.
    pub format: u32,
    /// Memory that the weights of all subnets take together.
    pub weight_bytes: u64,
    /// The time from a picture to a latent, in milliseconds, of a model that draws latents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encode_ms: Option<f64>,
    /// The SHA-256 of the weights that the qualities are of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<String>,
    /// That of those of the decoder, where it has a file of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decoder: Option<String>,
    /// What was measured on.
    pub device: Device,
    /// What the quality of a plan is.
    pub quality: Quality,
    /// Every subnet at every batch.
    pub latency: Vec<Latency>,
    /// Every subnet of the decoder, of a model that draws latents.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub decode: Vec<Decoding>,
    /// The plans that no other beats on both time and quality, ascending in both.
    pub frontier: Vec<Rated>,
}

/// What every version of the file has.
#[derive(Deserialize)]
struct Version {
    format: u32,
}

/// A machine, as far as times depend on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// The name of the processor or the GPU.
    pub processor: String,
    /// Threads that computed; 1 where a GPU did.
    pub threads: usize,
    /// The instruction set of the kernels, or `cuda` and the type of the values.
    pub instruction_set: String,
}

/// How quality was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quality {
    /// What it is made of.
    pub metric: Metric,
    /// [`Metric::definition`], for people.
    pub definition: String,
    /// Images of each plan.
    pub images: usize,
    /// The scale of the guidance that they were drawn under, where they were guided: their times are then of guided images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guidance: Option<f64>,
    /// The distance that has quality 1.
    pub one: f64,
    /// The distance that has quality 0.
    pub zero: f64,
}

/// A plan of the frontier. Its time follows from [`Profile::latency`]: see [`Profile::image_ms`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rated {
    /// The plan.
    pub plan: Plan,
    /// Its distance, which [`Quality::metric`] is about.
    pub distance: f64,
    /// Its quality, at most 1.
    pub quality: f64,
    /// The standard error of the quality.
    pub error: f64,
}

impl Rated {
    /// A plan as it was measured, with the digits that mean something.
    pub fn new(plan: Plan, rating: Rating) -> Self {
        let Rating { distance, quality, error } = rating;
        // Down and up: nothing is made better by it.
        let quality = (quality * 1e4).floor() / 1e4;
        Self { plan, distance: rounded(distance), quality, error: (error * 1e4).ceil() / 1e4 }
    }

    fn rating(&self) -> Rating {
        let &Self { distance, quality, error, .. } = self;
        Rating { distance, quality, error }
    }
}

/// With four significant digits and more: a file for people.
fn rounded(value: f64) -> f64 {
    (value * 1e6).round() / 1e6
}

/// The time of one call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Latency {
    /// Name of the subnet.
    pub subnet: String,
    /// Samples of the call.
    pub batch: usize,
    /// Its median time, in milliseconds.
    pub ms: f64,
}

/// The time from a latent to a picture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decoding {
    /// Name of the decoder's subnet.
    pub subnet: String,
    /// The median time, in milliseconds.
    pub ms: f64,
}

impl Device {
    /// This machine, with so many threads.
    pub fn here(threads: usize) -> Self {
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu = model_name(&info).unwrap_or(std::env::consts::ARCH).to_owned();
        Self { processor: cpu, threads, instruction_set: peak::instruction_set().to_owned() }
    }

    /// What an opened model runs on.
    pub fn of(opened: &dyn Opened) -> Self {
        match opened.processor() {
            Processor::Host(threads) => Self::here(threads),
            // The thread is the engine's.
            Processor::Gpu(processor, precision) => {
                Self { processor, threads: 1, instruction_set: format!("cuda {precision}") }
            }
        }
    }
}

/// The processor's name in the text of `/proc/cpuinfo`, which not every architecture has.
fn model_name(info: &str) -> Option<&str> {
    let line = info.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim()).filter(|name| !name.is_empty())
}

impl Quality {
    /// By this yardstick, on so many images of a plan under this scale of guidance.
    pub fn new(yardstick: &Yardstick, images: usize, guidance: f64) -> Self {
        let (metric, [one, zero]) = (yardstick.metric(), yardstick.marks());
        Self {
            metric,
            definition: metric.definition().to_owned(),
            images,
            guidance: (guidance != 1.0).then_some(guidance),
            one: rounded(one),
            zero: rounded(zero).max(1e-6),
        }
    }
}

/// The time of a subnet's call on one image, in milliseconds: a sample's share of the smallest batch in `latency`.
pub fn call_ms(latency: &[Latency], subnet: &str) -> Option<f64> {
    let rows = latency.iter().filter(|row| row.subnet == subnet);
    rows.min_by_key(|row| row.batch).map(|row| row.ms / row.batch as f64)
}

/// The time of a picture of a plan after its last call, in milliseconds; `None` for a decoder that has no row.
fn decode_ms(decode: &[Decoding], plan: &Plan) -> Option<f64> {
    match decode {
        [] => plan.decode.is_full().then_some(0.0),
        rows => rows.iter().find(|row| plan.decode == row.subnet).map(|row| row.ms),
    }
}

/// The time of an image that is drawn with `plan`, under guidance or not, alone on the idle machine, in milliseconds: the calls of its
/// subnets at the smallest batch that was measured, and its decoding. `None` for a subnet that has no row.
pub fn image_ms(latency: &[Latency], decode: &[Decoding], plan: &Plan, guided: bool) -> Option<f64> {
    Some(time_of(plan, guided, |subnet| call_ms(latency, subnet))? + decode_ms(decode, plan)?)
}

impl Profile {
    /// A profile of the current format, with those of `points` that are on the frontier; their times are taken from
    /// `latency` and `decode`.
    pub fn new(
        device: Device,
        weight_bytes: usize,
        quality: Quality,
        latency: Vec<Latency>,
        decode: Vec<Decoding>,
        points: impl IntoIterator<Item = Rated>,
    ) -> Self {
        let timed = |rated: Rated| {
            let ms = image_ms(&latency, &decode, &rated.plan, quality.guidance.is_some())?;
            Some(Point { rating: rated.rating(), plan: rated.plan, ms })
        };
        let frontier = pareto(points.into_iter().filter_map(timed).collect(), quality.metric.floor());
        let frontier = frontier.into_iter().map(|Point { plan, rating, .. }| Rated::new(plan, rating)).collect();
        let weight_bytes = weight_bytes as u64;
        Self {
            format: FORMAT,
            weight_bytes,
            encode_ms: None,
            weights: None,
            decoder: None,
            device,
            quality,
            latency,
            decode,
            frontier,
        }
    }

    /// The same qualities with the times of another machine: plans that others beat there are left out.
    pub fn with_times(self, device: Device, latency: Vec<Latency>, decode: Vec<Decoding>) -> Self {
        let (weights, decoder) = (self.weights, self.decoder);
        let anew = Self::new(device, self.weight_bytes as usize, self.quality, latency, decode, self.frontier);
        Self { weights, decoder, ..anew }
    }

    /// [`image_ms`] by this profile.
    pub fn image_ms(&self, plan: &Plan) -> Option<f64> {
        image_ms(&self.latency, &self.decode, plan, self.quality.guidance.is_some())
    }

    /// The cheapest plan of the frontier with this share of the best one's quality.
    pub fn reaching(&self, share: f64) -> &Rated {
        let best = self.frontier.last().expect("a frontier has rows");
        self.frontier.iter().find(|row| row.quality >= share * best.quality).unwrap_or(best)
    }

    /// Reads a file.
    ///
    /// # Errors
    /// One sentence with the file and the field that is missing, damaged, of another version or without sense.
    pub fn open(path: &Path) -> Result<Self> {
        // Before the fields, which another version may not have.
        let Version { format } = read_toml(path)?;
        if format != FORMAT {
            let problem = format!("version {format} is not {FORMAT}; run `accordion profile` again");
            return Err(Error::field(path, "format", problem));
        }
        let profile: Self = read_toml(path)?;
        profile.check().map_err(|(field, problem)| Error::field(path, &field, problem))?;
        Ok(profile)
    }

    /// Writes the file whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be written; what [`Self::open`] would refuse.
    pub fn write(&self, path: &Path) -> Result<()> {
        self.check().map_err(|(field, problem)| Error::field(path, &field, problem))?;
        write_toml(path, self)
    }

    /// Whether it is about a model of these subnets and those of its decoder, whose files have these hashes. `path` is where it lies.
    ///
    /// # Errors
    /// One sentence with the file, the field and what only one of the two has.
    pub fn check_against(
        &self,
        subnets: &[Subnet],
        decoders: &[Subnet],
        hashes: &BTreeMap<String, String>,
        path: &Path,
    ) -> Result<()> {
        let refuse = |field: &str, problem| Err(Error::field(path, field, problem));
        if let (Some(ours), Some(theirs)) = (&self.weights, hashes.get(WEIGHTS))
            && ours != theirs
        {
            return refuse(
                "weights",
                "its qualities are of other weights than the model's; run `accordion profile`".to_owned(),
            );
        }
        if let (Some(ours), Some(theirs)) = (&self.decoder, hashes.get(DECODER))
            && ours != theirs
        {
            return refuse(
                "decoder",
                "its qualities are of another decoder than the model's; run `accordion profile`".to_owned(),
            );
        }
        let missing = decoders.iter().find(|decoder| self.decode.iter().all(|row| decoder.name != row.subnet));
        if let Some(Subnet { name, .. }) = missing {
            let problem = format!("the decoder's subnet {name} is missing; run `accordion profile`");
            return refuse("decode", problem);
        }
        let surplus = |row: &Decoding| decoders.iter().all(|decoder| decoder.name != row.subnet);
        if let Some(index) = self.decode.iter().position(surplus) {
            let problem = format!("the model has no decoder `{}`", self.decode[index].subnet);
            return refuse(&format!("decode[{index}].subnet"), problem);
        }
        let names: Vec<&str> = subnets.iter().map(|subnet| &*subnet.name).collect();
        for (index, row) in self.latency.iter().enumerate() {
            if !names.contains(&row.subnet.as_str()) {
                let problem = format!("the model has no `{}`; it has {}", row.subnet, names.join(", "));
                return refuse(&format!("latency[{index}].subnet"), problem);
            }
        }
        match names.iter().find(|name| self.latency.iter().all(|row| row.subnet != **name)) {
            Some(name) => refuse("latency", format!("the model's subnet {name} is missing; run `accordion profile`")),
            None => Ok(()),
        }
    }

    /// Checks what the types cannot say. The error is a field and what is wrong with it.
    fn check(&self) -> std::result::Result<(), (String, String)> {
        let refuse = |field: &str, problem: String| Err((field.to_owned(), problem));
        if self.device.threads == 0 {
            return refuse("device.threads", "0 is not accepted: it must be at least 1".to_owned());
        }
        if self.latency.is_empty() {
            return refuse("latency", "has no rows".to_owned());
        }
        for (index, row) in self.latency.iter().enumerate() {
            let field = |name: &str| format!("latency[{index}]{name}");
            if row.batch == 0 {
                return refuse(&field(".batch"), "0 is not accepted: it must be at least 1".to_owned());
            }
            if !(row.ms.is_finite() && row.ms > 0.0) {
                return refuse(&field(".ms"), format!("{} is not a time: it must be positive", row.ms));
            }
            let same = |earlier: &Latency| (&earlier.subnet, earlier.batch) == (&row.subnet, row.batch);
            if self.latency[..index].iter().any(same) {
                return refuse(&field(""), format!("subnet {} at batch {} stands twice", row.subnet, row.batch));
            }
        }
        for (index, row) in self.decode.iter().enumerate() {
            if !(row.ms.is_finite() && row.ms > 0.0) {
                let problem = format!("{} is not a time: it must be positive", row.ms);
                return refuse(&format!("decode[{index}].ms"), problem);
            }
            if self.decode[..index].iter().any(|earlier| earlier.subnet == row.subnet) {
                return refuse(&format!("decode[{index}]"), format!("subnet {} stands twice", row.subnet));
            }
        }
        self.check_quality()
    }

    fn check_quality(&self) -> std::result::Result<(), (String, String)> {
        let Quality { images, one, zero, .. } = self.quality;
        if images == 0 {
            return Err(("quality.images".to_owned(), "0 is not accepted: it must be at least 1".to_owned()));
        }
        if !(one.is_finite() && one >= 0.0) {
            return Err(("quality.one".to_owned(), format!("{one} is not a distance: it must not be negative")));
        }
        if !(zero.is_finite() && zero > one) {
            return Err((
                "quality.zero".to_owned(),
                format!("{zero} is not a distance above that of quality 1, {one}"),
            ));
        }
        if self.frontier.is_empty() {
            return Err(("frontier".to_owned(), "has no rows".to_owned()));
        }
        let mut before = (0.0, f64::NEG_INFINITY);
        for (index, Rated { plan, quality, error, distance }) in self.frontier.iter().enumerate() {
            let refuse = |field: &str, problem: String| Err((format!("frontier[{index}].{field}"), problem));
            let Some(ms) = self.image_ms(plan) else {
                return refuse("plan", format!("{plan} has a subnet without a row of latency or decode"));
            };
            if !(quality.is_finite() && *quality <= 1.0) {
                return refuse("quality", format!("{quality} is not a quality: it must be finite and at most 1"));
            }
            if !(error.is_finite() && *error >= 0.0) {
                return refuse("error", format!("{error} is not a standard error: it must not be negative"));
            }
            if !distance.is_finite() {
                return refuse("distance", format!("{distance} is not a distance"));
            }
            if *quality <= before.1 {
                return refuse("quality", format!("{quality} is not above the {} of the row before", before.1));
            }
            if ms <= before.0 {
                return refuse(
                    "plan",
                    format!("{plan} takes {ms:.3} ms, not more than the {:.3} of the row before", before.0),
                );
            }
            before = (ms, *quality);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"format = 5
weight_bytes = 5000000

[device]
processor = "AMD EPYC"
threads = 2
instruction_set = "avx512"

[quality]
metric = "mse-to-reference"
definition = "DEFINITION"
images = 40
one = 0.0
zero = 0.41

[[latency]]
subnet = "0.500"
batch = 1
ms = 0.25

[[latency]]
subnet = "full"
batch = 1
ms = 0.5

[[frontier]]
plan = "dpmpp2m-3@0.500*2,full*1"
distance = 0.29
quality = 0.71
error = 0.0

[[frontier]]
plan = "heun-18@full"
distance = 0.0
quality = 1.0
error = 0.0
"#;

    fn device(threads: usize) -> Device {
        Device { processor: "AMD EPYC".to_owned(), threads, instruction_set: "avx512".to_owned() }
    }

    fn latency(subnet: &str, batch: usize, ms: f64) -> Latency {
        Latency { subnet: subnet.to_owned(), batch, ms }
    }

    fn rated(plan: &str, quality: f64) -> Rated {
        Rated { plan: plan.parse().unwrap(), distance: ((1.0 - quality) * 1e6_f64).round() / 1e6, quality, error: 0.0 }
    }

    fn profile() -> Profile {
        let definition = "DEFINITION".to_owned();
        let metric = Metric::MseToReference;
        let quality = Quality { metric, definition, images: 40, guidance: None, one: 0.0, zero: 0.41 };
        let rows = vec![latency("0.500", 1, 0.25), latency("full", 1, 0.5)];
        // The first is slower than the one of width 0.500 and no better.
        let points =
            [rated("dpmpp2m-3@full", 0.7), rated("heun-18@full", 1.0), rated("dpmpp2m-3@0.500*2,full*1", 0.71)];
        Profile::new(device(2), 5_000_000, quality, rows, vec![], points)
    }

    #[test]
    fn a_profile_is_read_as_it_was_written() {
        let file = tempfile::NamedTempFile::new().unwrap();
        profile().write(file.path()).unwrap();
        assert_eq!(std::fs::read_to_string(file.path()).unwrap(), TEXT);
        assert_eq!(Profile::open(file.path()).unwrap(), profile());
    }

    #[test]
    fn what_would_be_refused_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(PROFILE);
        let mut profile = profile();
        profile.latency[0].ms = f64::NAN;
        let refusal = profile.write(&path).unwrap_err().to_string();
        assert!(refusal.ends_with("profile.toml: latency[0].ms: NaN is not a time: it must be positive"), "{refusal}");
        assert!(!path.exists());
    }

    #[test]
    fn a_damaged_or_foreign_file_is_refused_with_the_field() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (from, to, says) in [
            ("format = 5", "format = 4", ": format: version 4 is not 5; run `accordion profile` again"),
            ("format = 5\n", "", ": missing field `format`"),
            ("weight_bytes = 5000000", "weight_bytes = -1", ": weight_bytes: invalid value"),
            ("processor = ", "gpu = ", ": device.gpu: unknown field `gpu`"),
            ("threads = 2", "threads = 0", ": device.threads: 0 is not accepted"),
            ("batch = 1", "batch = 0", ": latency[0].batch: 0 is not accepted"),
            ("ms = 0.5", "ms = 'fast'", ": latency[1].ms: invalid type"),
            ("ms = 0.5", "ms = nan", ": latency[1].ms: NaN is not a time"),
            ("ms = 0.25", "ms = -0.25", ": latency[0].ms: -0.25 is not a time"),
            ("ms = 0.5\n", "", ": latency[1]: missing field `ms`"),
            ("\"full\"", "\"0.500\"", ": latency[1]: subnet 0.500 at batch 1 stands twice"),
            ("ms = 0.5\n", "ms = 0.5\nbits = 8", ": latency[1].bits: unknown field"),
            ("[device]", "[device", "unclosed table"),
            ("images = 40", "images = 0", ": quality.images: 0 is not accepted"),
            ("zero = 0.41", "zero = inf", ": quality.zero: inf is not a distance above"),
            ("one = 0.0", "one = -1.0", ": quality.one: -1 is not a distance"),
            ("error = 0.0", "error = -0.1", ": frontier[0].error: -0.1 is not a standard error"),
            ("mse-to-reference", "mse", ": quality.metric: unknown variant `mse`"),
            ("metric = ", "name = ", ": quality.name: unknown field"),
            ("dpmpp2m-3@", "dpmpp3m-3@", ": frontier[0].plan: plan: solver \"dpmpp3m\" is not one of"),
            ("0.500*2,full", "0.250*2,full", ": frontier[0].plan: dpmpp2m-3@0.250*2,full*1 has a subnet without a row"),
            (
                "dpmpp2m-3@0.500*2,full*1",
                "heun-18@full",
                ": frontier[1].plan: heun-18@full takes 17.500 ms, not more than",
            ),
            ("quality = 0.71", "quality = nan", ": frontier[0].quality: NaN is not a quality"),
            ("quality = 0.71", "quality = 1.0", ": frontier[1].quality: 1 is not above the 1 of the row before"),
            ("quality = 1.0", "quality = 1.01", ": frontier[1].quality: 1.01 is not a quality"),
            ("quality = 0.71\n", "", ": frontier[0]: missing field `quality`"),
        ] {
            assert!(TEXT.contains(from), "{from}");
            std::fs::write(file.path(), TEXT.replacen(from, to, 1)).unwrap();
            let message = Profile::open(file.path()).unwrap_err().to_string();
            assert!(message.starts_with(&file.path().display().to_string()), "{message}");
            assert!(message.contains(says) && !message.contains('\n'), "{to}: {message}");
        }
        let rows = TEXT.find("[[frontier]]").unwrap();
        std::fs::write(file.path(), &TEXT.replace("weight_bytes", "frontier = []\nweight_bytes")[..rows + 14]).unwrap();
        let message = Profile::open(file.path()).unwrap_err().to_string();
        assert!(message.ends_with(": frontier: has no rows"), "{message}");
        assert!(matches!(Profile::open(Path::new("/no/such.toml")), Err(Error::Io { .. })));
    }

    #[test]
    fn a_profile_of_another_model_is_refused() {
        let check = |names: &[&str]| {
            let subnet = |name: &&str| Subnet {
                name: name.parse().unwrap(),
                ratio: 1.0,
                parameters: 1,
                macs: 1,
                widths: Default::default(),
            };
            let subnets: Vec<Subnet> = names.iter().map(subnet).collect();
            profile()
                .check_against(&subnets, &[], &BTreeMap::new(), Path::new("p.toml"))
                .map_err(|error| error.to_string())
        };
        assert_eq!(check(&["0.500", "full"]), Ok(()));
        let says = "p.toml: latency[0].subnet: the model has no `0.500`; it has 0.250, full";
        assert_eq!(check(&["0.250", "full"]), Err(says.to_owned()));
        let says = "p.toml: latency: the model's subnet 0.750 is missing; run `accordion profile`";
        assert_eq!(check(&["0.500", "0.750", "full"]), Err(says.to_owned()));
    }

    #[test]
    fn a_picture_takes_the_time_of_its_plan_s_decoder_and_the_decoders_are_the_model_s() {
        let row = |subnet: &str, ms| Decoding { subnet: subnet.to_owned(), ms };
        let decode = vec![row("0.500", 2.0), row("full", 3.0)];
        let Profile { latency, quality, .. } = profile();
        let points =
            ["heun-18@full", "heun-18@full~decode=0.5", "dpmpp2m-1@full~decode=0.5"].iter().zip([1.0, 0.9, 0.7]);
        let points =
            points.map(|(plan, quality)| Rated { plan: plan.parse().unwrap(), distance: 0.0, quality, error: 0.0 });
        let profile = Profile::new(device(2), 1, quality, latency, decode, points.collect::<Vec<_>>());
        let profile = Profile { decoder: Some("def".to_owned()), ..profile };
        let ms = |plan: &str| profile.image_ms(&plan.parse().unwrap());
        assert_eq!(ms("heun-2@0.500*1,full*1~decode=0.5"), Some(3.0));
        assert_eq!([ms("heun-2@0.500*1,full*1"), ms("heun-2@full~decode=0.25")], [Some(4.0), None]);
        let frontier: Vec<String> = profile.frontier.iter().map(|row| row.plan.to_string()).collect();
        assert_eq!(frontier, ["dpmpp2m-1@full~decode=0.500", "heun-18@full~decode=0.500", "heun-18@full"]);
        let subnet = |name: &&str| Subnet {
            name: name.parse().unwrap(),
            ratio: 1.0,
            parameters: 1,
            macs: 1,
            widths: Default::default(),
        };
        let of = |names: &[&str]| names.iter().map(subnet).collect::<Vec<Subnet>>();
        let check = |decoders: &[&str], hash: Option<&str>| {
            let hashes = hash.map(|hash| (DECODER.to_owned(), hash.to_owned())).into_iter().collect();
            let checked = profile.check_against(&of(&["0.500", "full"]), &of(decoders), &hashes, Path::new("p.toml"));
            checked.map_err(|error| error.to_string())
        };
        assert_eq!(check(&["0.500", "full"], None), Ok(()));
        let says = "p.toml: decode: the decoder's subnet 0.250 is missing; run `accordion profile`";
        assert_eq!(check(&["0.250", "0.500", "full"], None), Err(says.to_owned()));
        assert_eq!(
            check(&["full"], None),
            Err("p.toml: decode[0].subnet: the model has no decoder `0.500`".to_owned())
        );
        let says = "p.toml: decoder: its qualities are of another decoder than the model's; run `accordion profile`";
        assert_eq!(check(&["0.500", "full"], Some("abc")), Err(says.to_owned()));
    }

    #[test]
    fn a_call_on_one_image_is_a_share_of_the_smallest_batch() {
        let rows = [latency("full", 8, 3.2), latency("full", 2, 1.0), latency("0.500", 1, 0.25)];
        assert_eq!(
            [call_ms(&rows, "full"), call_ms(&rows, "0.500"), call_ms(&rows, "0.250")],
            [Some(0.5), Some(0.25), None]
        );
        assert_eq!(profile().image_ms(&"heun-2@0.500*1,full*1".parse().unwrap()), Some(1.0));
    }

    #[test]
    fn another_machine_s_times_leave_out_what_is_beaten_there() {
        let here = |half, full| {
            let rows = vec![latency("0.500", 1, half), latency("full", 1, full)];
            let profile = profile().with_times(device(4), rows.clone(), vec![]);
            assert_eq!((profile.device.threads, profile.latency), (4, rows));
            profile.frontier.into_iter().map(|row| row.plan.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(here(2.5, 3.0), ["dpmpp2m-3@0.500*2,full*1", "heun-18@full"]);
        assert_eq!(here(100.0, 3.0), ["heun-18@full"], "width 0.500 is slow there");
    }

    #[test]
    fn the_processor_s_name_is_found_where_there_is_one() {
        let info = "processor\t: 0\nmodel\t\t: 2\nmodel name\t: AMD EPYC 9654\nstepping\t: 1\nmodel name\t: other";
        assert_eq!(model_name(info), Some("AMD EPYC 9654"));
        assert_eq!(model_name("model name\t:\n"), None);
        assert_eq!(model_name("processor\t: 0\nBogoMIPS\t: 50"), None);
        assert!(!Device::here(1).processor.is_empty());
    }
}
