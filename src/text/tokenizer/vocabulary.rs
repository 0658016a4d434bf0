//! The files of a byte pair encoding: its tokens with their ids, and which two of them become one, the first pairs first.

use crate::files::{read_json, read_text};
use crate::{Error, Result};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use tokenizers::models::bpe::{Merges, Vocab};

/// What the last token of every word ends in.
pub const LAST: &str = "</w>";

/// What the files hold.
pub struct Vocabulary {
    /// The file with the tokens.
    pub path: PathBuf,
    /// The id of each token.
    pub tokens: Vocab,
    /// Pairs of tokens that become one.
    pub merges: Merges,
}

/// What is read of `tokenizer.json`.
#[derive(Deserialize)]
struct Document {
    model: Model,
}

#[derive(Deserialize)]
struct Model {
    vocab: Vocab,
    merges: Vec<Merge>,
    end_of_word_suffix: Option<String>,
}

/// A pair: as text, with a space, in older files.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Text(String),
}

impl Vocabulary {
    /// Reads the files of a directory, or of `tokenizer/` in it.
    ///
    /// # Errors
    /// As [`super::Tokenizer::open`].
    pub fn open(dir: &Path) -> Result<Self> {
        for dir in [dir.to_owned(), dir.join("tokenizer")] {
            let [whole, tokens, merges] = ["tokenizer.json", "vocab.json", "merges.txt"].map(|name| dir.join(name));
            if whole.is_file() {
                return Self::of_one(whole);
            }
            if tokens.is_file() {
                return Self::of_two(tokens, &merges);
            }
        }
        let problem =
            "has neither tokenizer.json nor vocab.json, and its tokenizer/ has neither; CLIP's files are wanted";
        Err(Error::input(dir.display(), problem))
    }

    fn of_one(path: PathBuf) -> Result<Self> {
        let Document { model } = read_json(&path)?;
        if model.end_of_word_suffix.as_deref() != Some(LAST) {
            let problem = format!("is not {LAST}, so it is not CLIP's tokenizer");
            return Err(Error::field(&path, "model.end_of_word_suffix", problem));
        }
        let merges = model.merges.into_iter().map(Merge::pair).collect();
        check(&model.vocab, &merges).map_err(|problem| Error::field(&path, "model.merges", problem))?;
        Ok(Self { path, tokens: model.vocab, merges })
    }

    fn of_two(path: PathBuf, merges: &Path) -> Result<Self> {
        let tokens = read_json(&path)?;
        let text = read_text(merges, "a text with two tokens a line")?;
        let lines = text.lines().skip_while(|line| line.contains("#version")).filter(|line| !line.is_empty());
        let pairs = lines.map(pair).collect();
        check(&tokens, &pairs).map_err(|problem| Error::input(merges.display(), problem))?;
        Ok(Self { path, tokens, merges: pairs })
    }

    /// The id of a token.
    ///
    /// # Errors
    /// [`Error::Input`] if there is none.
    pub fn id(&self, token: &str) -> Result<u32> {
        let id = self.tokens.get(token).copied();
        id.ok_or_else(|| Error::input(self.path.display(), format!("has no token {token}, so it is not CLIP's")))
    }

    /// One more than the largest id.
    pub fn ids(&self) -> usize {
        self.tokens.values().max().map_or(0, |&id| id as usize + 1)
    }
}

impl Merge {
    fn pair(self) -> (String, String) {
        match self {
            Self::Pair(first, second) => (first, second),
            Self::Text(text) => pair(&text),
        }
    }
}

/// Two tokens with a space between them.
fn pair(text: &str) -> (String, String) {
    let (first, second) = text.split_once(' ').unwrap_or((text, ""));
    (first.to_owned(), second.to_owned())
}

/// Says which pair, or what it makes, is not among the tokens.
fn check(tokens: &Vocab, merges: &Merges) -> std::result::Result<(), String> {
    let is_known = |(first, second): &(String, String)| {
        [first, second, &format!("{first}{second}")].into_iter().all(|token| tokens.contains_key(token))
    };
    match merges.iter().enumerate().find(|(_, pair)| !is_known(pair)) {
        None => Ok(()),
        Some((index, (first, second))) => {
            let which = index + 1;
            Err(format!("pair {which}, `{first} {second}`, is of tokens or makes one that the vocabulary lacks"))
        }
    }
}
