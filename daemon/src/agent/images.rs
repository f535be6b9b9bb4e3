//! What a copy holds is kept as images before it is given up and seeded anew, which overwrites its base: one of each volume, whole and
//! sparse, beside its sealed branches. The records that only it has are sealed all the same; the images are what makes them something
//! to look at.
//!
//! ```text
//! <copy>/branch/image-0001                 which volumes, of which sizes, up to which record; there when all of them are
//! <copy>/branch/image-0001-<volume>.img    the volume
//! ```
//!
//! The number is that of the branch that is sealed next.

use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidemark_core::layout::Layout;
use tidemark_core::status::Status;
use tidemark_core::types::{ByteRange, Lsn, VolumeId, WallMs};
use tidemark_core::verb::{Verb, VerbError, VerbOk};

use super::volumes::failed;
use super::{Agent, At, wall_now};
use crate::control::EngineError;
use crate::crashsafe;
use crate::view::View;

const VERSION: u32 = 1;
/// Bytes that are read at a time: zeros among them are not written.
const CHUNK: u64 = 1 << 20;
/// How often, and how many times, it is looked whether all is durable.
const LOOK: Duration = Duration::from_millis(50);
const LOOKS: u32 = 100;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    version: u32,
    end_lsn: u64,
    kept_ms: u64,
    volumes: Vec<Kept>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    id: String,
    bytes: u64,
}

pub(super) fn record_in(dir: &Path, number: u32) -> PathBuf {
    dir.join("branch").join(format!("image-{number:04}"))
}

fn image_in(dir: &Path, number: u32, volume: VolumeId) -> PathBuf {
    crashsafe::with_suffix(&record_in(dir, number), &format!("-{volume}.img"))
}

fn read(dir: &Path, number: u32) -> Result<Option<Record>, EngineError> {
    let text = crashsafe::read(&record_in(dir, number)).map_err(failed)?;
    text.map(|text| toml::from_str(&text).map_err(failed)).transpose()
}

/// The images that are kept of the copy in `dir`: their number, the last record in them, and since when.
pub(super) fn all_in(dir: &Path) -> Result<Vec<(u32, Lsn, WallMs)>, EngineError> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir.join("branch")).map_err(failed)?.flatten() {
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("image-")?.parse().ok());
        if let Some(number) = number
            && let Some(record) = read(dir, number)?
        {
            found.push((number, Lsn(record.end_lsn), WallMs(record.kept_ms)));
        }
    }
    Ok(found)
}

/// Opens the images of that number as what they show. Blocks.
pub(super) fn open(dir: &Path, number: u32) -> Result<View, EngineError> {
    let record = read(dir, number)?.ok_or(EngineError::NoBranch { number })?;
    let volume = |kept: &Kept| Some((VolumeId::parse(&kept.id)?, kept.bytes));
    let runs: Option<Vec<_>> = record.volumes.iter().map(volume).collect();
    let runs = runs.ok_or_else(|| failed(format!("{} is damaged", record_in(dir, number).display())))?;
    let images = runs.iter().map(|(volume, _)| (*volume, image_in(dir, number, *volume))).collect();
    View::of_images(Layout::new(runs).map_err(failed)?, images).map_err(failed)
}

/// Removes the images of that number, the record first. Not there: success.
pub(super) fn remove(dir: &Path, number: u32) -> Result<(), EngineError> {
    let named = format!("image-{number:04}");
    let record = record_in(dir, number);
    crashsafe::unlink(&record).and_then(|()| crashsafe::sync_parent(&record)).map_err(failed)?;
    for entry in std::fs::read_dir(dir.join("branch")).map_err(failed)?.flatten() {
        if entry.file_name().to_str().is_some_and(|name| name.starts_with(&named)) {
            crashsafe::unlink(&entry.path()).map_err(failed)?;
        }
    }
    Ok(())
}

/// Writes all that `view` shows. Blocks.
fn keep(dir: &Path, number: u32, view: &View) -> Result<(), EngineError> {
    let mut volumes = Vec::new();
    for volume in view.volumes() {
        let bytes = view.size_of(volume).unwrap_or(0);
        write_image(&image_in(dir, number, volume), view, volume, bytes)?;
        volumes.push(Kept { id: volume.to_string(), bytes });
    }
    let record = Record { version: VERSION, end_lsn: view.end().position.lsn.0, kept_ms: wall_now().0, volumes };
    let text = toml::to_string(&record).map_err(failed)?;
    crashsafe::replace(&record_in(dir, number), &[text]).map_err(failed)
}

fn write_image(path: &Path, view: &View, volume: VolumeId, bytes: u64) -> Result<(), EngineError> {
    let told = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => no_room(bytes),
        _ => failed(format!("{}: {error}", path.display())),
    };
    let new = crashsafe::unfinished(path);
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new).map_err(told)?;
    file.set_len(bytes).map_err(told)?;
    let mut at = 0;
    while at < bytes {
        let len = CHUNK.min(bytes - at);
        let read = view.read(volume, ByteRange::new(at, len));
        let data = read.map_err(|error| failed(format!("what the copy holds cannot be read: {error}")))?.concat();
        if data.iter().any(|byte| *byte != 0) {
            file.write_all_at(&data, at).map_err(told)?;
        }
        at += len;
    }
    file.sync_all().map_err(told)?;
    crashsafe::publish(&new, path).map_err(told)
}

fn no_room(bytes: u64) -> EngineError {
    let text = format!(
        "there is no room for an image of what the copy holds (up to {bytes} bytes): make some, or use --without-image, after which the records that only this copy has can be exported and not opened"
    );
    EngineError::Refused { reason: "no-room", text }
}

fn kept_before(number: u32) -> EngineError {
    let text = format!(
        "images of what the copy once held are kept as branch {number}: drop that first (`tidemark branch drop`)"
    );
    EngineError::Refused { reason: "kept-before", text }
}

impl Agent {
    /// Gives a copy up. What it may have alone is kept as images before, unless `without_image`. Goes on to its end when nobody waits
    /// for it any more, and is found done by who asks again.
    pub(super) async fn reseed(self: &Arc<Self>, at: At, without_image: bool) -> Result<VerbOk, EngineError> {
        let agent = self.clone();
        let done = self.runtime.spawn(async move {
            let _turn = agent.changing(at.copy).await?;
            agent.may_begin(at.copy, &Verb::Reseed)?;
            let may: Result<_, VerbError> = agent.on_copy(at.copy, at.shard, |copy| copy.plan(&Verb::Reseed)).await?;
            may?;
            if !without_image {
                agent.keep_image(at).await?;
            }
            agent.verb_on(at.copy, at.shard, Verb::Reseed).await
        });
        done.await.map_err(failed)?
    }

    /// Whether giving the copy up may take something away that only it has, and that can be read.
    pub(super) async fn needs_image(&self, at: At) -> Result<bool, EngineError> {
        self.on_copy(at.copy, at.shard, |copy| copy.may_have_more_than_peer() && copy.may_view(None).is_ok()).await
    }

    /// The status once all that the copy has is durable, which takes a moment where nobody asked for it.
    async fn all_durable(&self, at: At) -> Result<Status, EngineError> {
        for _ in 0..LOOKS {
            let status = self.status_of(at.copy, at.shard).await?;
            if status.durable == status.appended.lsn {
                return Ok(status);
            }
            tokio::time::sleep(LOOK).await;
        }
        let text = "its log is still being written to: try again in a moment".into();
        Err(EngineError::Refused { reason: "busy", text })
    }

    async fn keep_image(&self, at: At) -> Result<(), EngineError> {
        if !self.needs_image(at).await? {
            return Ok(());
        }
        let dir = self.dir_of(at.copy).ok_or_else(|| EngineError::NoVolume(at.copy.to_string()))?;
        let number = self.all_durable(at).await?.branches + 1;
        let (hold, held, ended) = self.hold(at, None).await?;
        let kept = tokio::task::spawn_blocking(move || {
            match read(&dir, number)? {
                Some(record) if record.end_lsn == held.end.position.lsn.0 => return Ok(()),
                Some(_) => return Err(kept_before(number)),
                None => {}
            }
            let view = View::open(&dir, &held, None, ended).map_err(failed)?;
            let kept = keep(&dir, number, &view);
            if kept.is_err() {
                let _ = remove(&dir, number); // the first error is the one to report
            }
            kept
        });
        let kept = kept.await.map_err(failed);
        self.let_go(at, hold).await;
        kept?
    }
}
