//! What images were drawn with, in the file that they are in: a text of PNG (iTXt, PNG specification third edition, 11.3.3.4).

use crate::nets::About;
use crate::{Error, Result, Size};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io::Cursor;

/// The keyword of the text.
pub const KEYWORD: &str = "accordion";

/// Everything that the images depend on but the weights themselves. Texts and classes take turns, as those of `accordion generate` do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// The version of this program.
    pub version: String,
    /// The model's name.
    pub model: String,
    /// The SHA-256 of its weights, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<String>,
    /// The plan that ran; where images had different ones, those of all in order with `; ` between them.
    pub plan: String,
    /// The seed of all images.
    pub seed: u64,
    /// How many are drawn, in the order of their numbers.
    pub images: u32,
    /// Whether the file holds the last of them alone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub only_last: bool,
    /// Names of classes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<String>,
    /// What the images show.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prompts: Vec<String>,
    /// What they do not show.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub negative_prompt: String,
    /// Scale of the guidance.
    pub guidance: f64,
    /// The SHA-256 of the file that the images start from, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// That of the mask that says where they are drawn anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask: Option<String>,
    /// How much of it is made anew, which their plans say as well.
    #[serde(default = "whole", skip_serializing_if = "is_whole")]
    pub strength: f64,
    /// The size of each.
    pub size: Size,
}

fn whole() -> f64 {
    1.0
}

fn is_whole(strength: &f64) -> bool {
    *strength == whole()
}

impl Settings {
    /// Those of one image by this plan, of nothing.
    pub fn new(model: &str, about: &About, plan: String, seed: u64, size: Size) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            model: model.to_owned(),
            weights: about.weights.clone(),
            plan,
            seed,
            images: 1,
            only_last: false,
            classes: Vec::new(),
            prompts: Vec::new(),
            negative_prompt: String::new(),
            guidance: 1.0,
            image: None,
            mask: None,
            strength: whole(),
            size,
        }
    }

    /// The text.
    pub fn text(&self) -> String {
        serde_json::to_string(self).expect("settings are plain data")
    }

    /// Those in a PNG file.
    ///
    /// # Errors
    /// [`Error::Input`] in one sentence where `file` is no PNG file, or has none; `place` is what it is called.
    pub fn read(file: &[u8], place: &str) -> Result<Self> {
        let refuse = |problem: String| Error::input(place, problem);
        let reader = png::Decoder::new(Cursor::new(file)).read_info();
        let reader = reader.map_err(|error| refuse(format!("is not a PNG file that can be read: {error}")))?;
        let texts = &reader.info().utf8_text;
        let Some(text) = texts.iter().find(|text| text.keyword == KEYWORD) else {
            return Err(refuse("has no settings: it is not of accordion, or they were left out or lost".to_owned()));
        };
        let text = text.get_text().map_err(|error| refuse(format!("has settings that cannot be read: {error}")))?;
        serde_json::from_str(&text).map_err(|error| refuse(format!("has settings that cannot be read: {error}")))
    }

    /// The command that draws the images again, from a model directory `DIR` with the same weights, and from files `IMAGE` and `MASK` with
    /// the same hashes; None where they had different plans,
    /// or classes whose names a command cannot tell apart.
    pub fn command(&self) -> Option<String> {
        if self.classes.iter().any(|class| class.contains(',')) {
            return None;
        }
        let mut words = vec!["accordion generate --model DIR --plan".to_owned(), quoted(self.one_plan()?)];
        let mut flag = |flag: &str, value: &str| words.push(format!("{flag} {}", quoted(value)));
        flag("--seed", &self.seed.to_string());
        if self.images > 1 {
            flag("--n", &self.images.to_string());
        }
        if !self.classes.is_empty() {
            flag("--class", &self.classes.join(","));
        }
        self.prompts.iter().for_each(|prompt| flag("--prompt", prompt));
        if !self.negative_prompt.is_empty() {
            flag("--negative-prompt", &self.negative_prompt);
        }
        if !(self.classes.is_empty() && self.prompts.is_empty()) {
            flag("--guidance", &self.guidance.to_string());
        }
        if self.image.is_some() {
            flag("--image", "IMAGE");
            self.mask.iter().for_each(|_| flag("--mask", "MASK"));
            flag("--strength", &self.strength.to_string());
        }
        flag("--size", &self.size.to_string());
        words.push("--out again.png".to_owned());
        Some(words.join(" "))
    }

    /// The request that draws them again, from files `IMAGE` and `MASK` where it needs them; None where it takes several, or they had different plans.
    pub fn request(&self) -> Option<String> {
        if self.classes.len() > 1 || self.prompts.len() > 1 {
            return None;
        }
        let Size { width, height } = self.size;
        let mut body = serde_json::json!({ "seed": self.seed, "n": self.images, "width": width, "height": height });
        let mut field = |name: &str, value: serde_json::Value| body[name] = value;
        if let Some(class) = self.classes.first() {
            field("class", class.as_str().into());
        }
        if let Some(prompt) = self.prompts.first() {
            field("prompt", prompt.as_str().into());
            field("negative_prompt", self.negative_prompt.as_str().into());
        }
        if !(self.classes.is_empty() && self.prompts.is_empty()) {
            field("guidance", self.guidance.into());
        }
        let query = format!("http://127.0.0.1:8080/generate?budget=exact:{}", self.one_plan()?);
        let (body, query) = (body.to_string(), quoted(&query));
        let files = [("image", &self.image), ("mask", &self.mask)].map(|(name, file)| file.as_ref().map(|_| name));
        let files: Vec<&str> = files.into_iter().flatten().collect();
        if files.is_empty() {
            return Some(format!("curl --json {} --output again.png {query}", quoted(&body)));
        }
        // Pictures are too long for an argument of a program, but not for one of the shell's own.
        let fields: String = files.iter().map(|name| format!(",\"{name}\":\"%s\"")).collect();
        let body = body.replace('\\', r"\\").replace('%', "%%");
        let format = format!("{}{fields},\"strength\":{}}}", body.trim_end_matches('}'), self.strength);
        let read: String = files.iter().map(|name| format!(" \"$(base64 -w0 {})\"", name.to_uppercase())).collect();
        Some(format!("printf {}{read} | curl --json @- --output again.png {query}", quoted(&format)))
    }

    /// The plan of all images, if there is only one.
    fn one_plan(&self) -> Option<&str> {
        (!self.plan.contains(';')).then_some(&*self.plan)
    }
}

/// A word of a shell's command.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.,/:@".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut row = |name: &str, value: &dyn fmt::Display| writeln!(f, "{name:<16} {value}");
        row("model", &self.model)?;
        if let Some(weights) = &self.weights {
            row("weights", weights)?;
        }
        row("plan", &self.plan)?;
        row("seed", &self.seed)?;
        match self.only_last {
            true => row("images", &format_args!("{}, of which this is the last", self.images))?,
            false => row("images", &self.images)?,
        }
        self.classes.iter().try_for_each(|class| row("class", class))?;
        self.prompts.iter().try_for_each(|prompt| row("prompt", prompt))?;
        if !self.negative_prompt.is_empty() {
            row("negative prompt", &self.negative_prompt)?;
        }
        row("guidance", &self.guidance)?;
        for (name, hash) in [("image", &self.image), ("mask", &self.mask)] {
            hash.iter().try_for_each(|hash| row(name, &format_args!("of SHA-256 {hash}")))?;
        }
        if self.image.is_some() {
            row("strength", &self.strength)?;
        }
        row("size", &self.size)?;
        row("accordion", &self.version)?;
        let again = |again: Option<String>| again.unwrap_or_else(|| "not in one".to_owned());
        row("draw it again", &again(self.command()))?;
        write!(f, "{:<16} {}", "from a server", again(self.request()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ImageShape;
    use crate::engine::image::{Format, JPEG_QUALITY, Raster};

    fn settings() -> Settings {
        Settings {
            version: "0.1.0".to_owned(),
            model: "sd".to_owned(),
            weights: Some("ab12".to_owned()),
            plan: "dpmpp2m-6@0.500*3,full*3~karras".to_owned(),
            seed: u64::MAX,
            images: 2,
            only_last: false,
            classes: vec![],
            prompts: vec!["it's a 日本の城".to_owned()],
            negative_prompt: "blurry\nimages".to_owned(),
            guidance: 7.5,
            image: None,
            mask: None,
            strength: 1.0,
            size: Size { width: 64, height: 32 },
        }
    }

    fn raster() -> Raster {
        Raster { shape: ImageShape { height: 1, width: 2, channels: 1 }, bytes: vec![3, 4] }
    }

    #[test]
    fn a_png_file_gives_its_settings_back_and_the_same_pixels() {
        let file = raster().encode_with(Format::Png, JPEG_QUALITY, Some(&settings())).unwrap();
        assert_eq!(Settings::read(&file, "file").unwrap(), settings());
        assert_eq!(image::load_from_memory(&file).unwrap().into_luma8().into_raw(), [3, 4]);
    }

    #[test]
    fn what_has_no_settings_is_refused_in_one_sentence() {
        let refused = |file: &[u8]| Settings::read(file, "a.png").unwrap_err().to_string();
        let bare = raster().encode(Format::Png).unwrap();
        assert_eq!(refused(&bare), "a.png: has no settings: it is not of accordion, or they were left out or lost");
        let whole = raster().encode_with(Format::Png, JPEG_QUALITY, Some(&settings())).unwrap();
        for other in [&b"GIF89a"[..], &whole[..40], b""] {
            assert!(refused(other).starts_with("a.png: is not a PNG file that can be read: "), "{}", refused(other));
        }
    }

    #[test]
    fn images_are_drawn_again_by_a_command_or_a_request() {
        let settings = settings();
        assert_eq!(
            settings.command().unwrap(),
            "accordion generate --model DIR --plan 'dpmpp2m-6@0.500*3,full*3~karras' --seed 18446744073709551615 --n 2 \
             --prompt 'it'\\''s a 日本の城' --negative-prompt 'blurry\nimages' --guidance 7.5 --size 64x32 --out again.png"
        );
        let request = settings.request().unwrap();
        assert!(
            request.contains(r#""prompt":"it'\''s a 日本の城""#) && request.contains("budget=exact:dpmpp2m-6"),
            "{request}"
        );
        let edited =
            Settings { image: Some("cd34".to_owned()), mask: Some("ef".to_owned()), strength: 0.5, ..settings.clone() };
        let command = edited.command().unwrap();
        assert!(command.contains("--image IMAGE --mask MASK --strength 0.5 --size 64x32"), "{command}");
        let request = edited.request().unwrap();
        assert!(
            request.starts_with("printf '{") && request.contains(r#","image":"%s","mask":"%s","strength":0.5}'"#),
            "{request}"
        );
        assert!(request.contains(r"blurry\\nimages"), "printf reads what JSON shall: {request}");
        assert!(request.contains(r#" "$(base64 -w0 IMAGE)" "$(base64 -w0 MASK)" | curl --json @- "#), "{request}");
        assert!(edited.to_string().contains("image            of SHA-256 cd34"), "{edited}");
        let several = Settings { plan: "euler-2@full; euler-3@full".to_owned(), ..settings };
        assert_eq!((several.command(), several.request()), (None, None));
    }
}
