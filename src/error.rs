//! What can go wrong, told apart by who can mend it.

use crate::engine::EngineError;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// The result of every fallible function of the library.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of the library. Every message is one sentence.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The user's input is wrong: a flag, a field of a file, a file's content. -> exit code 2, HTTP 400.
    #[error("{place}: {problem}")]
    Input {
        /// The flag, the file or the file and its field, as the user would look for it.
        place: String,
        /// What is wrong with it and what is accepted.
        problem: String,
    },
    /// A file could not be read or written. -> exit code 2.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The result of a command could not be written to stdout; a closed pipe is no news to whoever closed it. -> exit code 1.
    #[error("the result could not be written to stdout: {0}")]
    Output(std::io::Error),
    /// A tensor operation failed: a bug of ours or a device fault. -> exit code 1, HTTP 500.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
    /// An engine refused work, or has failed. -> exit code 1.
    #[error("{0}")]
    Engine(EngineError),
    /// A denoiser answered with something that is no image: a bug of ours or a device fault. -> exit code 1, HTTP 500.
    #[error("{0}")]
    Denoiser(String),
    /// Numbers are not finite: training diverged, or values do not fit the format that they are to be written in. Nothing of
    /// them is written. -> exit code 1.
    #[error("{place}: {problem}")]
    NotFinite {
        /// The stage and step, or the file and its tensor.
        place: String,
        /// What is not finite, and what may help.
        problem: String,
    },
    /// A server that was asked does not answer, or says that it is not ready. -> exit code 1.
    #[error("{address}: {problem}")]
    Unready {
        /// Where it was asked.
        address: SocketAddr,
        /// What it said, or what kept it from answering.
        problem: String,
    },
}

impl Error {
    /// An [`Error::Input`]: `place` names the flag, file or field, `problem` what is wrong and what is accepted.
    pub fn input(place: impl std::fmt::Display, problem: impl std::fmt::Display) -> Self {
        Self::Input { place: place.to_string(), problem: problem.to_string() }
    }

    /// An [`Error::Input`] about a field of a file.
    pub fn field(path: &Path, field: &str, problem: impl std::fmt::Display) -> Self {
        Self::input(format!("{}: {field}", path.display()), problem)
    }

    /// The same error about a field of `path`, where it was about a field.
    pub fn in_file(self, path: &Path) -> Self {
        self.in_table(path, "")
    }

    /// The same error, with what stands before the field that it is about: a table's name with a dot, or a device's with a colon.
    pub fn within(self, prefix: &str) -> Self {
        match self {
            Self::Input { place, problem } => Self::input(format!("{prefix}{place}"), problem),
            other => other,
        }
    }

    /// As [`Self::in_file`], for a field of a table: `prefix` is the table's name with a dot.
    pub fn in_table(self, path: &Path, prefix: &str) -> Self {
        match self {
            Self::Input { place, problem } => Self::field(path, &format!("{prefix}{place}"), problem),
            other => other,
        }
    }

    /// For `map_err`: an [`Error::Io`] about `path`.
    pub fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_path_buf(), source }
    }
}
