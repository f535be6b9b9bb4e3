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
        let own = std::env::current_exe()?;
        let found = own.ancestors().skip(1).take(2).find_map(Self::at);
        found.with_context(|| {
            format!("no {AGENT} and {CLI} near {}: build them with cargo build --workspace --bins", own.display())
        })
    }

    /// Those in `dir`, if both are there.
    pub fn at(dir: &Path) -> Option<Self> {
        let programs = Self { agent: dir.join(AGENT), cli: dir.join(CLI) };
        (programs.agent.is_file() && programs.cli.is_file()).then_some(programs)
    }
}
