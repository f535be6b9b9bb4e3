//! Everything of a copy's directory that can be checked without its base: the log, the footers, the branches, the small files.

use std::path::Path;

use tidemark_core::format::footer::Footer;
use tidemark_core::format::superblock::CopyFlag;

use super::copy::{Numbered, VolumeCopy, read_small};
use super::replay::{Replay, is_seeding};
use super::{OfflineError, branch};

/// What a check found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Findings {
    /// What is damaged; empty for a sound copy.
    pub problems: Vec<String>,
    /// What is worth knowing and no damage.
    pub notes: Vec<String>,
}

impl Findings {
    /// Checks the small files of `copy`, its footers and its branches, and judges `replay`.
    pub fn of(copy: &VolumeCopy, replay: &Replay) -> Self {
        let mut found = Self::default();
        found.small_files(copy);
        found.log(copy, replay);
        for footer in &copy.footers {
            if let Err(why) = check_footer(copy, footer) {
                found
                    .problems
                    .push(format!("{}: {why} (counts as: nothing is known of what changed)", name(&footer.path)));
            }
        }
        for file in &copy.branches {
            if let Err(why) = branch::check(file, copy.superblock.volume, &copy.superblock.secret) {
                found.problems.push(format!("{}: {why}", name(&file.path)));
            }
        }
        found
    }

    fn small_files(&mut self, copy: &VolumeCopy) {
        if copy.superblock_torn {
            self.notes.push("superblock: its other version does not verify (an unfinished write, or rot)".to_owned());
        }
        if copy.config_torn {
            self.notes.push("config: its other version does not verify (an unfinished write, or rot)".to_owned());
        }
        if let Err(why) = &copy.config {
            self.problems.push(format!("config: {why}"));
        }
        match copy.superblock.flag {
            CopyFlag::Complete => {}
            CopyFlag::Seeding(_) => {
                self.notes.push("the copy receives its first content: its log means nothing yet".to_owned())
            }
            CopyFlag::Released => self.notes.push("the copy was released: its base is to be used directly".to_owned()),
            CopyFlag::Suspect => self.problems.push("the copy is marked suspect".to_owned()),
            CopyFlag::Failed => self.problems.push("the copy is marked failed".to_owned()),
            CopyFlag::Diverged => self.problems.push("the copy is marked diverged".to_owned()),
        }
        let missing = copy.superblock.branches.saturating_sub((copy.branches.len() + copy.dropped) as u32);
        if missing > 0 {
            self.problems.push(format!("{missing} of {} branch files are missing", copy.superblock.branches));
        }
    }

    fn log(&mut self, copy: &VolumeCopy, replay: &Replay) {
        let recovered = &replay.recovered;
        if let Some(damage) = recovered.damage {
            let (end, required) = (recovered.end.position.lsn, recovered.required);
            self.problems.push(format!("log: {damage}: it ends at lsn {end}, and {required} was durable once"));
        } else if recovered.cut_bytes > 0 && !is_seeding(copy.superblock.flag) {
            let cut = recovered.cut_bytes;
            self.notes
                .push(format!("log: {cut} bytes behind its end will be cut: nothing says that they were ever durable"));
        }
        for slot in copy.slots.iter().filter(|slot| slot.len != copy.superblock.slot_bytes) {
            let (len, want) = (slot.len, copy.superblock.slot_bytes);
            self.notes.push(format!("{}: has {len} bytes instead of {want} and is not used", name(&slot.path)));
        }
    }
}

fn check_footer(copy: &VolumeCopy, file: &Numbered) -> Result<(), String> {
    let bytes = read_small(&file.path).map_err(|error: OfflineError| error.to_string())?;
    let footer = Footer::decode(&bytes).map_err(|error| error.to_string())?;
    if footer.volume != copy.superblock.volume {
        return Err(format!("belongs to volume {}", footer.volume));
    }
    Ok(())
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
