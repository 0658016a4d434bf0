//! A place where the binary runs on files of its own.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A file of the golden values.
pub fn fixture(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(file)
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
}
