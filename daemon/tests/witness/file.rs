//! A witness in a directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use nix::fcntl::{Flock, FlockArg};
use tempfile::TempDir;
use tidemark_agent::witness::{FileStore, Store, WitnessError};
use tidemark_core::format::witness::Cell;
use tidemark_core::types::NodeId;

use crate::{Backend, over};

pub struct Directory {
    dir: TempDir,
}

pub async fn start() -> Directory {
    let dir = tempfile::tempdir().unwrap();
    for name in ["cells", "saved"] {
        fs::create_dir(dir.path().join(name)).unwrap();
    }
    Directory { dir }
}

impl Directory {
    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

impl Backend for Directory {
    fn store(&self) -> Box<dyn Store> {
        Box::new(FileStore::new(self.at("cells")))
    }

    fn save(&mut self) {
        copy(&self.at("cells"), &self.at("saved"));
    }

    fn restore(&mut self) {
        self.wipe();
        copy(&self.at("saved"), &self.at("cells"));
    }

    fn wipe(&mut self) {
        for entry in fs::read_dir(self.at("cells")).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
    }
}

const CELL: Cell = Cell::Probe(NodeId([5; 16]));

#[tokio::test]
async fn a_directory_that_is_not_there_or_none_is_refused_by_its_name() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    for name in ["missing", "file"] {
        let path = dir.path().join(name);
        let read = over(Box::new(FileStore::new(path.clone()))).read(CELL).await;
        let Err(WitnessError::Refused(why)) = read else { panic!("{read:?}") };
        assert!(why.contains(&path.display().to_string()), "{why}");
    }
}

#[tokio::test]
async fn a_lock_that_somebody_keeps_makes_it_unavailable() {
    let backend = start().await;
    let file = fs::File::create(backend.at("cells").join("lock")).unwrap();
    let held = Flock::lock(file, FlockArg::LockExclusiveNonblock).unwrap();
    let store = backend.store();
    let read = store.read(CELL, Instant::now()).await;
    assert!(matches!(read, Err(WitnessError::Unavailable(_))), "{read:?}");
    drop(held);
    assert_eq!(store.read(CELL, Instant::now()).await, Ok(None));
}

#[tokio::test]
async fn only_what_has_the_name_of_a_cell_is_written() {
    let backend = start().await;
    backend.witness().probe(NodeId([5; 16])).await.unwrap();
    let mut names: Vec<_> = fs::read_dir(backend.at("cells")).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(
        names,
        ["lock".to_owned(), format!("probe-{}", "05".repeat(16))].map(Into::into) as [std::ffi::OsString; 2]
    );
}
