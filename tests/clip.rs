//! CLIP's tokens, pixels and embeddings against those of transformers, Pillow and PyTorch.

use accordion::text::Tokenizer;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Tokens of a text.
const LENGTH: usize = 77;

fn fixture(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(file)
}

fn read(file: &str) -> Value {
    serde_json::from_slice(&std::fs::read(fixture(file)).unwrap()).unwrap()
}

/// Prompts with their ids.
fn prompts() -> Vec<(String, Vec<u32>)> {
    let ids = |row: &Value| row["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
    let rows = read("sd_tiny.tokens.json");
    rows.as_array().unwrap().iter().map(|row| (row["prompt"].as_str().unwrap().to_owned(), ids(row))).collect()
}

#[track_caller]
fn assert_encodes_as_transformers(tokenizer: &Tokenizer) {
    let prompts = prompts();
    assert_eq!(prompts.len(), 18);
    for (prompt, mut ids) in prompts {
        ids.resize(LENGTH, tokenizer.end());
        assert_eq!(tokenizer.encode(&prompt, LENGTH).unwrap(), ids, "{prompt:?}");
    }
}

/// The pairs of the golden tokenizer.
fn merges() -> Vec<String> {
    let text = std::fs::read_to_string(fixture("sd_tiny/tokenizer/merges.txt")).unwrap();
    text.lines().skip(1).map(str::to_owned).collect()
}

/// A `tokenizer.json` as transformers writes it, as far as it is read, with these pairs.
fn tokenizer_json(merges: Value) -> Value {
    let vocab = read("sd_tiny/tokenizer/vocab.json");
    json!({"version": "1.0", "model": {"type": "BPE", "end_of_word_suffix": "</w>", "vocab": vocab, "merges": merges}})
}

#[test]
fn token_ids_are_those_of_transformers_whichever_files_they_come_from() {
    assert_encodes_as_transformers(&Tokenizer::open(&fixture("sd_tiny")).unwrap());
    assert_encodes_as_transformers(&Tokenizer::open(&fixture("sd_tiny/tokenizer")).unwrap());
    let pairs = merges().iter().map(|line| line.split(' ').map(Value::from).collect()).collect::<Vec<Value>>();
    for merges in [json!(merges()), json!(pairs)] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("tokenizer.json"), tokenizer_json(merges).to_string()).unwrap();
        assert_encodes_as_transformers(&Tokenizer::open(dir.path()).unwrap());
    }
}

#[test]
fn a_prompt_that_is_too_long_is_cut_to_any_length_and_keeps_its_end() {
    let tokenizer = Tokenizer::open(&fixture("sd_tiny")).unwrap();
    let whole = tokenizer.encode("a photo of a red bicycle", LENGTH).unwrap();
    assert_eq!(tokenizer.ids(), 894);
    for length in [2, 3, 5] {
        let cut = tokenizer.encode("a photo of a red bicycle", length).unwrap();
        assert_eq!(cut[..length - 1], whole[..length - 1]);
        assert_eq!(cut[length - 1..], [tokenizer.end()]);
    }
}

#[test]
fn special_tokens_in_a_prompt_are_found_in_any_case() {
    let tokenizer = Tokenizer::open(&fixture("sd_tiny")).unwrap();
    let ids = |prompt| tokenizer.encode(prompt, LENGTH).unwrap();
    let word = ids("text")[1..].iter().position(|&id| id == tokenizer.end()).unwrap();
    assert_eq!(ids("<|EndOfText|>text")[1], tokenizer.end());
    assert_eq!(ids("<|EndOfText|>text")[2..2 + word], ids("text")[1..1 + word]);
    assert_eq!(ids("<|STARTOFTEXT|>")[..2], [ids("")[0]; 2]);
}

#[test]
fn a_tokenizer_that_is_not_as_clips_is_refused_with_the_file_and_the_field() {
    let refusal = |files: &[(&str, &str)]| {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in files {
            std::fs::write(dir.path().join(name), content).unwrap();
        }
        let message = Tokenizer::open(dir.path()).unwrap_err().to_string();
        assert!(!message.contains('\n'), "{message}");
        message.replace(&format!("{}", dir.path().display()), "DIR")
    };
    assert!(refusal(&[]).starts_with("DIR: has neither tokenizer.json nor vocab.json"));
    let (vocab, ends) = (r#"{"a": 0, "b</w>": 1}"#, r#"{"a": 0, "<|startoftext|>": 1, "<|endoftext|>": 2}"#);
    assert!(refusal(&[("vocab.json", vocab)]).starts_with("DIR/merges.txt: No such file"));
    let message = refusal(&[("vocab.json", vocab), ("merges.txt", "#version: 0.2\n\n")]);
    assert_eq!(message, "DIR/vocab.json: has no token <|startoftext|>, so it is not CLIP's");
    let message = refusal(&[("vocab.json", ends), ("merges.txt", "#version: 0.2\na a\n")]);
    assert_eq!(message, "DIR/merges.txt: pair 1, `a a`, is of tokens or makes one that the vocabulary lacks");
    assert!(refusal(&[("vocab.json", r#"{"a": -1}"#), ("merges.txt", "")]).starts_with("DIR/vocab.json: a: invalid"));
    let mut whole = tokenizer_json(json!(["o f</w>", "of</w> of</w>"]));
    let message = refusal(&[("tokenizer.json", &whole.to_string())]);
    assert!(message.starts_with("DIR/tokenizer.json: model.merges: pair 2, `of</w> of</w>`"), "{message}");
    whole["model"]["end_of_word_suffix"] = Value::Null;
    let message = refusal(&[("tokenizer.json", &whole.to_string())]);
    assert_eq!(message, "DIR/tokenizer.json: model.end_of_word_suffix: is not </w>, so it is not CLIP's tokenizer");
    assert!(refusal(&[("tokenizer.json", "{}")]).starts_with("DIR/tokenizer.json: missing field `model`"));
}
