//! CLIP's tokenizer, with the files and the ids of transformers.

mod vocabulary;

use crate::files::write_whole;
use crate::{Error, Result};
use std::path::{Path, PathBuf};
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{self, Lowercase, NFC, Replace};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior};
use vocabulary::{LAST, Vocabulary};

/// The token before every text.
const START: &str = "<|startoftext|>";
/// The token after every text, and the padding.
const END: &str = "<|endoftext|>";
/// The words of a text, each of which is encoded by itself.
const WORDS: &str = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+";

/// Turns prompts into the ids that CLIP's text encoders take, those of Stable Diffusion among them: byte pair encoding of the
/// text in lower case, as transformers' `CLIPTokenizer` does it. HTML entities stay, and no broken text is repaired; OpenAI's
/// own code does both.
#[derive(Debug)]
pub struct Tokenizer {
    encoder: tokenizers::Tokenizer,
    path: PathBuf,
    start: u32,
    end: u32,
    ids: usize,
}

impl Tokenizer {
    /// Reads `tokenizer.json`, or else `vocab.json` and `merges.txt`, of a directory or of `tokenizer/` in it.
    ///
    /// # Errors
    /// [`Error::Input`] if neither is there, or with the file and the field that is not as CLIP's are; [`Error::Io`] if one
    /// cannot be read.
    pub fn open(dir: &Path) -> Result<Self> {
        let vocabulary = Vocabulary::open(dir)?;
        let (start, end, ids) = (vocabulary.id(START)?, vocabulary.id(END)?, vocabulary.ids());
        let path = vocabulary.path.clone();
        let encoder = encoder(vocabulary).map_err(|error| Error::input(path.display(), error))?;
        Ok(Self { encoder, path, start, end, ids })
    }

    /// The token before every text, and the one after it, which is the padding too.
    pub const SPECIAL: [&str; 2] = [START, END];

    /// Writes `vocab.json` and `merges.txt` into the directory.
    ///
    /// # Errors
    /// [`Error::Input`] if they cannot be written.
    pub fn write_as_published(&self, dir: &Path) -> Result<()> {
        use tokenizers::Model;
        let saved = self.encoder.get_model().save(dir, None);
        saved.map(drop).map_err(|error| Error::input(dir.display(), error))
    }

    /// Writes `tokenizer.json`, which transformers reads as well.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = self.encoder.to_string(true).map_err(|error| Error::input(self.path.display(), error))?;
        write_whole(path, text.as_bytes())
    }

    /// The file that it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The `length` ids of a prompt: `<|startoftext|>`, those of the text, cut off where they are too many, and
    /// `<|endoftext|>`, again and again to the end. Where the text has one of these two, it has that token's id.
    ///
    /// # Errors
    /// [`Error::Input`] if the text cannot be split into words.
    ///
    /// # Panics
    /// If `length` is below 2, the number of ids of an empty prompt.
    pub fn encode(&self, prompt: &str, length: usize) -> Result<Vec<u32>> {
        assert!(length >= 2, "a prompt has a start and an end");
        let text = self.encoder.encode_fast(prompt, false).map_err(|error| Error::input("prompt", error))?;
        let mut ids = vec![self.start];
        ids.extend(text.get_ids().iter().take(length - 2));
        ids.resize(length, self.end);
        Ok(ids)
    }

    /// The id of `<|endoftext|>`.
    pub fn end(&self) -> u32 {
        self.end
    }

    /// How many ids there are; all are below.
    pub fn ids(&self) -> usize {
        self.ids
    }
}

/// The steps of `CLIPTokenizer` in transformers 5, without its first and last token, cutting and padding.
fn encoder(vocabulary: Vocabulary) -> tokenizers::Result<tokenizers::Tokenizer> {
    let pairs = BPE::builder()
        .vocab_and_merges(vocabulary.tokens, vocabulary.merges)
        .end_of_word_suffix(LAST.into())
        .unk_token(END.into())
        .build()?;
    let spaces = Replace::new(ReplacePattern::Regex(r"\s+".into()), " ")?;
    let words = Split::new(SplitPattern::Regex(WORDS.into()), SplitDelimiterBehavior::Removed, true)?;
    let bytes = ByteLevel::default().add_prefix_space(false);
    let mut encoder = tokenizers::Tokenizer::new(pairs);
    encoder.with_normalizer(Some(normalizers::Sequence::new(vec![NFC.into(), spaces.into(), Lowercase.into()])))?;
    encoder.with_pre_tokenizer(Some(Sequence::new(vec![words.into(), bytes.into()])));
    // Normalised, they are found in the text in lower case.
    encoder.add_special_tokens([START, END].map(|token| AddedToken::from(token, true).normalized(true)))?;
    Ok(encoder)
}
