//! What the tests of training and of serving share: a network small enough to train in seconds, and the real binary.

use std::path::Path;
use std::process::{Command, Output};

/// The classes of the tiny network and its data.
pub const CLASSES: [&str; 2] = ["top", "bottom"];

/// The `[backbone]` and `[preconditioning]` tables of the tiny network: 8x8 grey images of two classes.
pub const NETWORK: &str = r#"
[backbone]
arch = "song-unet"
img_resolution = 8
img_channels = 1
label_dim = 2
model_channels = 8
channel_mult = [1, 2]
num_blocks = 1
attn_resolutions = [4]
embedding_type = "positional"
encoder_type = "standard"
decoder_type = "standard"
resample_filter = [1, 1]

[preconditioning]
kind = "edm"
sigma_data = 0.7
"#;

/// The real binary, deaf to the environment's `ACCORDION_*` variables, its log without colours.
pub fn accordion(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_accordion"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("ACCORDION_")) {
        command.env_remove(name);
    }
    command.env("NO_COLOR", "1").args(args);
    command
}

/// Asserts that the process refused its input: exit code 2 and one sentence on stderr with every one of `parts`.
#[track_caller]
pub fn assert_refused(output: &Output, parts: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.starts_with("error: ") && stderr.trim_end().lines().count() == 1, "one sentence: {stderr}");
    for part in parts {
        assert!(stderr.contains(part), "`{part}` is not in: {stderr}");
    }
}

/// A path as text.
pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
