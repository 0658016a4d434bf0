//! `accordion hash-key`: the line of an API key for the server's config.

use crate::console::print;
use crate::server::KeyHash;
use crate::{Error, Result};
use std::io::Read;

/// What guessing cannot reach: 16 characters of even 6 bits are 96 bits.
const SHORT: usize = 16;

/// Read an API key from stdin and print its hash for `key_hashes`.
#[derive(Debug, clap::Args)]
pub struct Args {}

impl Args {
    /// Runs the subcommand.
    pub fn run(self) -> Result<()> {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map_err(Error::io("stdin".as_ref()))?;
        let key = text.strip_suffix('\n').unwrap_or(&text);
        let key = key.strip_suffix('\r').unwrap_or(key);
        if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Error::input("stdin", "a key must be one line of visible ASCII characters without spaces"));
        }
        if key.len() < SHORT {
            tracing::warn!("a key of fewer than {SHORT} characters can be guessed from its hash");
        }
        print(KeyHash::of(key).line())
    }
}
