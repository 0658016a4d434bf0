//! Any number of images: into a directory of numbered files, or into one array.

use super::npz::{self, Array};
use crate::engine::image::{Format, JPEG_QUALITY, Raster};
use crate::engine::settings::Settings;
use crate::engine::{Engine, Job, Ticket};
use crate::files::{continues, write_whole, write_whole_with};
use crate::nets::Condition;
use crate::training::progress::Progress;
use crate::{Error, ImageShape, Result, Size};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{Cursor, Read, Write};
use std::path::{Path, PathBuf};

/// Images that are with the engine at a time: enough for its batches, and few enough to hold.
pub const IN_FLIGHT: usize = 64;
/// What the images of a directory are of.
const RECORD: &str = "images.toml";

/// What images are drawn of: image i has the seed `seed + i`, and the classes take turns.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The model's name, and the hash of its weights where it has one.
    pub model: String,
    /// The plan.
    pub plan: String,
    /// Of the first image.
    pub seed: u64,
    /// Scale of the guidance.
    pub guidance: f64,
    /// Names or numbers; empty for images of no class.
    pub classes: Vec<String>,
    /// Of images of texts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prompts: Vec<String>,
    /// What they do not show.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub negative_prompt: String,
    /// Their size, where it is not the usual one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<Size>,
    /// The SHA-256 of the picture that they start from,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// and of the mask that says where they are drawn anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask: Option<String>,
}

/// The job of one of many images: the next seed for each, and what they are of in turns. `job` is of the first, of nothing.
pub fn in_turn(job: &Job, conditions: &[Condition], index: u32) -> Job {
    let condition = conditions[index as usize % conditions.len()].clone();
    Job { condition, seed: job.seed.wrapping_add(u64::from(index)), images: 1, ..job.clone() }
}

/// What is told in the file of one of many images, as [`in_turn`] draws it.
fn of_turn(settings: &Settings, index: u32) -> Settings {
    let turn = |of: &[String]| of.get(index as usize % of.len().max(1)).cloned().into_iter().collect();
    let (classes, prompts) = (turn(&settings.classes), turn(&settings.prompts));
    let seed = settings.seed.wrapping_add(u64::from(index));
    Settings { seed, images: 1, classes, prompts, ..settings.clone() }
}

/// Images to draw.
pub struct Order<'a> {
    /// Who draws.
    pub engine: &'a Engine,
    /// Their size.
    pub shape: ImageShape,
    /// What all have in common: of the first image, of nothing.
    pub job: Job,
    /// What take turns.
    pub conditions: &'a [Condition],
    /// How many.
    pub n: u32,
    /// What is written beside them.
    pub record: Record,
    /// What is written into a file of each, but for what takes turns.
    pub settings: Option<Settings>,
}

impl Order<'_> {
    /// Draws the images of these indices, and hands each to `keep` in their order.
    fn draw(&self, indices: Vec<u32>, mut keep: impl FnMut(u32, Vec<u8>) -> Result<()>) -> Result<()> {
        let done = u64::from(self.n) - indices.len() as u64;
        let mut progress = Progress::new("generate", "images", done, u64::from(self.n));
        let mut waiting: VecDeque<(u32, Ticket)> = VecDeque::new();
        let mut coming = indices.into_iter();
        let mut made = done;
        loop {
            let room = IN_FLIGHT - waiting.len();
            for index in coming.by_ref().take(room) {
                waiting.push_back((index, self.engine.submit(in_turn(&self.job, self.conditions, index))?));
            }
            let Some((index, ticket)) = waiting.pop_front() else { break };
            let images = ticket.blocking_wait()?.images;
            images.into_iter().try_for_each(|image| keep(index, image))?;
            made += 1;
            progress.at(made, "");
        }
        progress.finish();
        Ok(())
    }

    /// Makes `000000.png` and so on in the directory `dir`, but for those that are there.
    ///
    /// # Errors
    /// [`Error::Input`] if the directory holds something else; [`Error::Io`] and engine faults.
    pub fn into_directory(self, dir: &Path) -> Result<()> {
        std::fs::create_dir_all(dir).map_err(Error::io(dir))?;
        let path = dir.join(RECORD);
        let is_empty = std::fs::read_dir(dir).map_err(Error::io(dir))?.next().is_none();
        if !path.exists() && !is_empty {
            let problem = format!("is not empty, and has no {RECORD} that says what its images are of");
            return Err(Error::input(format!("--out {}", dir.display()), problem));
        }
        continues(&path, &self.record)?;
        let file = |index: u32| dir.join(format!("{index:06}.png"));
        let missing = (0..self.n).filter(|&index| !file(index).exists()).collect();
        self.draw(missing, |index, image| {
            let path = file(index);
            let settings = self.settings.as_ref().map(|settings| of_turn(settings, index));
            let encoded = Raster::grid(self.shape, &[image]).encode_with(Format::Png, JPEG_QUALITY, settings.as_ref());
            write_whole(&path, &encoded.map_err(|error| Error::input(path.display(), error))?)
        })
    }

    /// Makes the array file `path`: `arr_0` the images, uint8 `[n, height, width, channels]`, and `arr_1` their classes, int64
    /// `[n]`, where they have some. What is drawn is in `path` with `.part` behind it until all is.
    ///
    /// # Errors
    /// As [`Self::into_directory`].
    pub fn into_array(self, path: &Path) -> Result<()> {
        let with = |ending: &str| PathBuf::from(format!("{}{ending}", path.display()));
        let (part, record) = (with(".part"), with(".part.toml"));
        if part.exists() != record.exists() {
            let problem = "and its .part.toml belong together, and one is missing; remove the other";
            return Err(Error::input(part.display(), problem));
        }
        continues(&record, &self.record)?;
        let mut file = OpenOptions::new().create(true).append(true).open(&part).map_err(Error::io(&part))?;
        let elements = self.shape.elements() as u64;
        // An image that was cut off is drawn again.
        let whole = (file.metadata().map_err(Error::io(&part))?.len() / elements).min(u64::from(self.n));
        file.set_len(whole * elements).map_err(Error::io(&part))?;
        self.draw((whole as u32..self.n).collect(), |_, image| file.write_all(&image).map_err(Error::io(&part)))?;
        let ImageShape { height, width, channels } = self.shape;
        let n = self.n as usize;
        let pixels = Box::new(File::open(&part).map_err(Error::io(&part))?.take(u64::from(self.n) * elements));
        let mut arrays = vec![Array { dtype: "|u1", shape: vec![n, height, width, channels], elements: pixels }];
        if let Some(classes) = self.conditions.iter().map(Condition::class).collect::<Option<Vec<usize>>>() {
            let labels: Vec<u8> =
                (0..n).flat_map(|index| (classes[index % classes.len()] as i64).to_le_bytes()).collect();
            arrays.push(Array { dtype: "<i8", shape: vec![n], elements: Box::new(Cursor::new(labels)) });
        }
        write_whole_with(path, |file| npz::write(file, arrays))?;
        [&part, &record].into_iter().try_for_each(|path| std::fs::remove_file(path).map_err(Error::io(path)))
    }
}
