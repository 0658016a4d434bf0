//! A place where the binary runs on files of its own.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A file of the golden values.
pub fn fixture(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(file)
}

/// Copies a directory with all that is in it.
#[allow(dead_code, reason = "not every test needs it")]
pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// A scratch directory in which commands run.
pub struct Workplace(pub tempfile::TempDir);

impl Workplace {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn run(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_accordion")).args(args).current_dir(self.0.path()).output().unwrap()
    }

    /// Whether a subcommand succeeds, and what it says.
    #[allow(dead_code, reason = "not every test needs it")]
    pub fn said(&self, subcommand: &str, args: &[&str]) -> (bool, String) {
        let output = self.run(&[&[subcommand], args].concat());
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    }
}
