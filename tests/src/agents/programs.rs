//! Where the built binaries are.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

const AGENT: &str = "tidemark-agent";
const CLI: &str = "tidemark";

/// The binaries under test.
#[derive(Clone, Debug)]
pub struct Programs {
    /// `tidemark-agent`.
    pub agent: PathBuf,
    /// `tidemark`.
    pub cli: PathBuf,
}

impl Programs {
    /// Those in `TIDEMARK_BIN_DIR`, else those beside this program (a test's binary is one directory deeper).
    ///
    /// # Errors
    /// When there are none.
    pub fn find() -> Result<Self> {
        if let Some(dir) = std::env::var_os("TIDEMARK_BIN_DIR") {
            return Self::at(Path::new(&dir))
                .with_context(|| format!("no {AGENT} and {CLI} in TIDEMARK_BIN_DIR = {}", dir.display()));
        }
        near_this_program().find_map(|dir| Self::at(&dir)).with_context(|| {
            format!("no {AGENT} and {CLI} near this program: build them with cargo build --workspace --bins")
        })
    }

    /// Those in `dir`, if both are there.
    pub fn at(dir: &Path) -> Option<Self> {
        let programs = Self { agent: dir.join(AGENT), cli: dir.join(CLI) };
        (programs.agent.is_file() && programs.cli.is_file()).then_some(programs)
    }
}

/// Another program of the harness, built beside this one.
pub fn beside_this_program(name: &str) -> Option<PathBuf> {
    near_this_program().map(|dir| dir.join(name)).find(|path| path.is_file())
}

/// The directory of this program and the one above: a test's binary is one directory deeper.
fn near_this_program() -> impl Iterator<Item = PathBuf> {
    let own = std::env::current_exe().unwrap_or_default();
    own.ancestors().skip(1).take(2).map(Path::to_owned).collect::<Vec<_>>().into_iter()
}
