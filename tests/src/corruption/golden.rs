//! The state that each case begins with: both sites' files as `kill -9` left them, and what they must hold.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::VOLUME;
use crate::agents::{NewVolume, Site, TwoSites};
use crate::dice::Dice;
use crate::verifier::nbd::Command;
use crate::verifier::pattern::{SECTOR, fill};
use crate::verifier::{Model, Nbd, read_all};

/// Bytes of the volume.
pub(crate) const SIZE: u64 = 16 << 20;
/// Small enough to be reused while the state is made.
const LOG_SIZE: &str = "16Mi";
/// Written in all: twice the log.
const WRITTEN_BYTES: u64 = 32 << 20;
/// Records that both logs are to hold above their floors: four segments or so.
const LIVE_RECORDS: u64 = 120;
/// A floor that has begun to move has come to rest after this.
const FLOOR_PAUSE: Duration = Duration::from_millis(300);
/// Written at a time until they do.
const STEP_BYTES: u64 = 1 << 20;
/// Written behind the last flush.
const TAIL_WRITES: u32 = 3;
const PATIENCE: Duration = Duration::from_secs(30);

/// Kept files of both sites.
#[derive(Debug)]
pub struct Golden {
    dir: PathBuf,
    model: Model,
    /// Name of the volume's directory in the pool.
    pub id: String,
}

impl Golden {
    /// Makes a volume, writes until the log was reused and the base has content, kills both agents, keeps what they left.
    ///
    /// # Errors
    /// When the agents refuse.
    pub fn make(sites: &mut TwoSites) -> Result<Self> {
        sites.start()?;
        let size = SIZE.to_string();
        let options = vec!["--log-size", LOG_SIZE];
        let view = sites.create(&NewVolume { name: VOLUME, size: &size, mode: "sync", options })?;
        let id = view.directory().file_name().context("a directory")?.to_string_lossy().into_owned();
        let socket = sites.a.cli().attach(VOLUME, "nbd")?.nbd_socket()?;
        let mut model = Model::new(SIZE / SECTOR as u64);
        write(sites, &mut Nbd::connect(&socket, VOLUME, PATIENCE)?, &mut model)?;
        sites.a.kill();
        sites.b.kill();
        let golden = Self { dir: sites.stage.subdir("golden")?, model, id };
        for site in [&sites.a, &sites.b] {
            copy_tree(site.pool(), &golden.dir.join(site.name()))?;
            copy_tree(&site.state_dir(), &golden.kept_state(site.name()))?;
        }
        Ok(golden)
    }

    /// Puts the files of both sites back. What is still there is rewritten in place: it stays the same file.
    ///
    /// # Errors
    /// When a file cannot be copied.
    pub fn restore(&self, sites: &TwoSites) -> Result<()> {
        for site in [&sites.a, &sites.b] {
            for (kept, dir) in
                [(self.dir.join(site.name()), site.pool().to_owned()), (self.kept_state(site.name()), site.state_dir())]
            {
                remove_others(&dir, &kept)?;
                copy_tree(&kept, &dir)?;
            }
        }
        Ok(())
    }

    /// The volume's directory at a site.
    pub fn volume_dir(&self, site: &Site) -> PathBuf {
        site.pool().join(&self.id)
    }

    /// The kept directory of the volume of site `a` or `b`.
    pub fn kept_dir(&self, site: &str) -> PathBuf {
        self.dir.join(site).join(&self.id)
    }

    /// The kept state directory of site `a` or `b`.
    pub fn kept_state(&self, site: &str) -> PathBuf {
        self.dir.join(format!("{site}-state"))
    }

    /// Reads all of an export and holds it against what it must hold.
    ///
    /// # Errors
    /// When it does not, or cannot be read.
    pub fn check(&self, socket: &Path) -> Result<()> {
        let mut connection = Nbd::connect(socket, VOLUME, PATIENCE)?;
        let found = read_all(&mut connection, SIZE)?;
        Ok(self.model.clone().after_crash(&found)?)
    }
}

fn write(sites: &TwoSites, connection: &mut Nbd, model: &mut Model) -> Result<()> {
    let mut dice = Dice::new(1);
    let mut written = 0;
    let mut wanted = WRITTEN_BYTES;
    loop {
        while written < wanted {
            written += write_one(connection, model, &mut dice)?;
        }
        let flush = model.begin_flush();
        connection.plain(Command::Flush, 0, 0)?;
        model.end_flush(flush);
        for _ in 0..TAIL_WRITES {
            write_one(connection, model, &mut dice)?;
        }
        std::thread::sleep(FLOOR_PAUSE);
        if above_floor(&sites.a)? >= LIVE_RECORDS && above_floor(&sites.b)? >= LIVE_RECORDS {
            return Ok(());
        }
        ensure!(wanted < 4 * WRITTEN_BYTES, "the floors follow too closely");
        wanted += STEP_BYTES;
    }
}

/// Records that a copy's log holds and its base does not.
fn above_floor(site: &Site) -> Result<u64> {
    let view = site.cli().show(VOLUME)?;
    Ok(view.number("/status/durableLsn") - view.number("/status/floorLsn"))
}

fn write_one(connection: &mut Nbd, model: &mut Model, dice: &mut Dice) -> Result<u64> {
    let all = SIZE / SECTOR as u64;
    let first = dice.below(all);
    let sectors = first..(first + 1 + dice.below(128)).min(all);
    let number = model.begin_write(sectors.clone(), false);
    let mut data = vec![0; (sectors.end - sectors.start) as usize * SECTOR];
    fill(&mut data, sectors.start, number);
    connection.write(sectors.start * SECTOR as u64, &data, false)?;
    model.end_write(number, false);
    Ok(data.len() as u64)
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target).with_context(|| format!("cannot copy {}", entry.path().display()))?;
        }
    }
    Ok(())
}

/// Removes below `dir` what is not in `kept`.
fn remove_others(dir: &Path, kept: &Path) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let other = kept.join(entry.file_name());
        let is_dir = entry.file_type()?.is_dir();
        match (is_dir, other.exists()) {
            (true, true) => remove_others(&entry.path(), &other)?,
            (true, false) => fs::remove_dir_all(entry.path())?,
            (false, false) => fs::remove_file(entry.path())?,
            (false, true) => {}
        }
    }
    Ok(())
}
