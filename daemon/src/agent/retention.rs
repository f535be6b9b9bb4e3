//! How long sealed branches stay: one of which nothing was acknowledged for `limits.branch_retention`, every other until a person says
//! that nobody needs it. Either way a record of it stays for good, which is durable before the branch goes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tidemark_core::event::FileRef;
use tidemark_core::format::branch::BranchHead;
use tidemark_core::plan::Plan;
use tidemark_core::types::{Lsn, VolumeId, WallMs};
use tidemark_core::verb::Assertion;

use super::branches::{Sealed, class_of, sealed};
use super::volumes::failed;
use super::{Agent, At, wall_now};
use crate::control::{BranchClass, DroppedBranch, EngineError, Foretold, Seen};
use crate::crashsafe;
use crate::disk::files::path_in;
use crate::disk::home::numbered;

/// Branches are looked at so often within the time that they stay, but no more often than each second and no less than each hour.
const LOOKS: u32 = 8;
/// A branch is seen for a part of its time, but no longer than this, before it goes.
const MAX_SEEN: Duration = Duration::from_secs(3600);
/// Of the record.
const VERSION: u32 = 1;
const DROPPED: &str = "dropped-";

/// `branch/dropped-NNNN`: what there was, and who said that it may go.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    version: u32,
    class: String,
    fork_lsn: u64,
    end_lsn: u64,
    bytes: u64,
    sealed_ms: u64,
    who: String,
    why: String,
    at_ms: u64,
}

fn record_in(dir: &Path, number: u32) -> PathBuf {
    dir.join("branch").join(format!("{DROPPED}{number:04}"))
}

/// The branches of the copy in `dir` that were dropped, by number. A record that cannot be read counts, and says so.
pub(super) fn dropped_in(dir: &Path) -> Result<Vec<DroppedBranch>, EngineError> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir.join("branch")).map_err(failed)?.flatten() {
        let name = entry.file_name();
        if let Some(number) = name.to_str().and_then(|name| numbered(name, DROPPED, "")) {
            found.push(dropped(&entry.path(), number));
        }
    }
    found.sort_by_key(|branch| branch.number);
    Ok(found)
}

fn dropped(path: &Path, number: u32) -> DroppedBranch {
    let text = crashsafe::read(path).ok().flatten().unwrap_or_default();
    match toml::from_str::<Record>(&text) {
        Ok(Record { class, bytes, who, why, at_ms, .. }) => {
            DroppedBranch { number, class, bytes, word: Assertion { who, why, at: WallMs(at_ms) } }
        }
        Err(_) => {
            let why = format!("{} cannot be read", path.display());
            let word = Assertion { who: String::new(), why, at: WallMs(0) };
            DroppedBranch { number, class: "unknown".into(), bytes: 0, word }
        }
    }
}

/// Records that a branch goes, and removes it. A crash in between leaves the record, and [`finish`] for later.
fn drop_in(dir: &Path, sealed: &Sealed, word: &Assertion) -> Result<(), EngineError> {
    let head = &sealed.head;
    let record = Record {
        version: VERSION,
        class: class_of(head).as_str().into(),
        fork_lsn: head.from.position.lsn.0,
        end_lsn: head.tail.position.lsn.0,
        bytes: head.bytes,
        sealed_ms: head.sealed_at.0,
        who: word.who.clone(),
        why: word.why.clone(),
        at_ms: word.at.0,
    };
    let text = toml::to_string(&record).map_err(failed)?;
    crashsafe::replace(&record_in(dir, sealed.number), &[text]).map_err(failed)?;
    finish(dir, sealed.number)
}

/// The branches in `dir` whose drop is recorded, and whose files are there.
fn interrupted_in(dir: &Path) -> Result<Vec<u32>, EngineError> {
    let numbers = dropped_in(dir)?.into_iter().map(|of| of.number);
    let found: Result<Vec<_>, EngineError> = numbers.map(|number| sealed(dir, number)).collect();
    let left = found?.into_iter().flatten().filter(|of| is_dropped(dir, of.number, &of.head));
    Ok(left.map(|of| of.number).collect())
}

/// Ends what a crash interrupted.
fn finish_all(dir: &Path) -> Result<(), EngineError> {
    interrupted_in(dir)?.into_iter().try_for_each(|number| finish(dir, number))
}

/// Removes what a drop that is recorded left.
fn finish(dir: &Path, number: u32) -> Result<(), EngineError> {
    let path = path_in(dir, FileRef::Branch(number));
    crashsafe::unlink(&path).and_then(|()| crashsafe::sync_parent(&path)).map_err(failed)
}

/// True where a drop of just this branch is recorded. A sealing that a crash interrupted is done again under the same number: a record of
/// the branch that had it before says nothing of the one that has it now, and one that cannot be read says nothing of any.
pub(super) fn is_dropped(dir: &Path, number: u32, head: &BranchHead) -> bool {
    let text = crashsafe::read(&record_in(dir, number)).ok().flatten().unwrap_or_default();
    toml::from_str::<Record>(&text).is_ok_and(|record| {
        (record.fork_lsn, record.end_lsn, record.sealed_ms)
            == (head.from.position.lsn.0, head.tail.position.lsn.0, head.sealed_at.0)
    })
}

/// Whether a branch has been kept for long enough: by the wall clock as far as it has gone on since the agent began no faster than time
/// passed, and seen by this agent for a part of it. A clock that jumps forward ends no branch at once.
struct Age {
    keep: Duration,
    began: (WallMs, Instant),
    seen: BTreeMap<(VolumeId, u32, WallMs), Instant>,
}

impl Age {
    fn begins(now: WallMs, keep: Duration) -> Self {
        Self { keep, began: (now, Instant::now()), seen: BTreeMap::new() }
    }

    fn is_over(&mut self, branch: (VolumeId, u32, WallMs), now: WallMs) -> bool {
        let seen = self.seen.entry(branch).or_insert_with(Instant::now).elapsed();
        let (wall, instant) = self.began;
        let now = now.0.min(wall.0.saturating_add(instant.elapsed().as_millis() as u64));
        let kept = Duration::from_millis(now.saturating_sub(branch.2.0));
        kept >= self.keep && seen >= (self.keep / LOOKS).min(MAX_SEEN)
    }
}

impl Agent {
    /// Whether a branch may go, and what it is.
    async fn judge_drop(&self, copy: VolumeId, number: u32, acknowledged: bool) -> Result<Sealed, EngineError> {
        let sealed = self.branch_of(copy, number).await?;
        if self.is_viewed(copy, Seen::Branch(number)) {
            let text = "it is open: close it first (`tidemark branch close`)".into();
            return Err(EngineError::Refused { reason: "in-use", text });
        }
        let class = class_of(&sealed.head);
        if class != BranchClass::Unacked && !acknowledged {
            let text = format!(
                "branch {number} is {}: records in it may have been acknowledged to somebody. State that nobody needs them: --acknowledge",
                class.as_str()
            );
            return Err(EngineError::Refused { reason: "unacknowledged", text });
        }
        Ok(sealed)
    }

    /// What [`Agent::drop_branch`] would do.
    pub(super) async fn plan_drop(&self, at: At, number: u32, acknowledged: bool) -> Foretold {
        let sealed = self.judge_drop(at.copy, number, acknowledged).await?;
        let (class, bytes) = (class_of(&sealed.head).as_str(), sealed.head.bytes);
        Ok(Plan::of([
            format!("the decision is recorded for good: branch {number}, {class}, {bytes} bytes"),
            "its file is removed: what is in it alone is lost".to_owned(),
        ]))
    }

    /// Removes a branch for good, by a person's word where that is needed.
    pub(super) async fn drop_branch(
        self: &Arc<Self>,
        at: At,
        number: u32,
        word: Assertion,
        acknowledged: bool,
    ) -> Result<(), EngineError> {
        let agent = self.clone();
        let dropped = self.runtime.spawn(async move {
            // Nobody opens it meanwhile.
            let no_copy = || EngineError::NoVolume(at.copy.to_string());
            let viewing = agent.viewing_of(at.copy).ok_or_else(no_copy)?;
            let _turn = viewing.turn().await;
            let sealed = agent.judge_drop(at.copy, number, acknowledged).await?;
            agent.remove_branch(at.copy, sealed, word).await
        });
        dropped.await.map_err(failed)?
    }

    async fn remove_branch(&self, copy: VolumeId, sealed: Sealed, word: Assertion) -> Result<(), EngineError> {
        let dir = self.dir_of(copy).ok_or_else(|| EngineError::NoVolume(copy.to_string()))?;
        let Assertion { who, why, .. } = &word;
        tracing::warn!(id = %copy, number = sealed.number, class = class_of(&sealed.head).as_str(), who, why, "branch dropped");
        let removed = tokio::task::spawn_blocking(move || drop_in(&dir, &sealed, &word));
        removed.await.map_err(failed)??;
        self.tell_kept(copy).await
    }

    /// Tells the copy where the branches begin that are left, so that its base need not wait for others.
    async fn tell_kept(&self, copy: VolumeId) -> Result<(), EngineError> {
        let Some(shard) = self.state().copies.get(&copy).map(|copy| copy.shard) else { return Ok(()) };
        let Ok(status) = self.status_of(copy, shard).await else { return Ok(()) };
        let first: Option<Lsn> = self.sealed_of(copy).await?.iter().map(|sealed| sealed.head.from.position.lsn).min();
        self.on_copy(copy, shard, move |copy| copy.keep_branches(status.branches, first)).await
    }

    /// Drops branches of which nothing was acknowledged when their time is over, and raises an alarm for each that waits for a person.
    /// Never ends.
    pub async fn keep_branches(self: Arc<Self>) {
        let keep = self.config.limits.branch_retention;
        let pause = (keep / LOOKS).clamp(Duration::from_secs(1), Duration::from_secs(3600));
        let mut told = BTreeSet::new();
        let mut age = Age::begins(wall_now(), keep);
        loop {
            let copies: Vec<VolumeId> = self.state().copies.keys().copied().collect();
            for copy in copies {
                if let Err(error) = self.look_at_branches(copy, keep, &mut age, &mut told).await {
                    tracing::warn!(id = %copy, %error, "its branches cannot be looked at");
                }
            }
            tokio::time::sleep(pause).await;
        }
    }

    async fn look_at_branches(
        self: &Arc<Self>,
        copy: VolumeId,
        keep: Duration,
        age: &mut Age,
        told: &mut BTreeSet<(VolumeId, u32)>,
    ) -> Result<(), EngineError> {
        let Some(dir) = self.dir_of(copy).filter(|dir| dir.join("branch").is_dir()) else { return Ok(()) };
        let finished = tokio::task::spawn_blocking(move || finish_all(&dir));
        finished.await.map_err(failed)??;
        // Told also where a drop ended before it was: the base may wait for that.
        self.tell_kept(copy).await?;
        for sealed in self.sealed_of(copy).await? {
            let class = class_of(&sealed.head);
            if class != BranchClass::Unacked {
                if told.insert((copy, sealed.number)) {
                    tracing::error!(
                        id = %copy, code = "rescue_branch_unacked", number = sealed.number, class = class.as_str(),
                        "alarm: a sealed branch holds records that may have been acknowledged: it stays until it is dropped"
                    );
                }
            } else if age.is_over((copy, sealed.number, sealed.head.sealed_at), wall_now()) {
                // Nobody opens it meanwhile.
                let Some(viewing) = self.viewing_of(copy) else { return Ok(()) };
                let _turn = viewing.turn().await;
                if self.is_viewed(copy, Seen::Branch(sealed.number)) {
                    continue;
                }
                let why = format!("nothing in it was acknowledged, and it was kept for {keep:?}");
                let word = Assertion { who: "retention".into(), why, at: wall_now() };
                self.remove_branch(copy, sealed, word).await?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tidemark_core::format::branch::BranchClass as Class;
    use tidemark_core::types::Boundary;

    use super::super::branches::sealed_in;
    use super::*;

    fn sealed_here() -> (tempfile::TempDir, Sealed) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("branch")).unwrap();
        let head = BranchHead {
            volume: VolumeId([1; 16]),
            class: Class::Acked,
            from: Boundary::default(),
            tail: Boundary::default(),
            bytes: 0,
            sealed_at: WallMs(3),
        };
        std::fs::write(path_in(dir.path(), FileRef::Branch(4)), head.encode()).unwrap();
        let sealed = sealed_in(dir.path()).unwrap().remove(0);
        assert_eq!((sealed.number, &sealed.head), (4, &head));
        (dir, sealed)
    }

    fn word() -> Assertion {
        Assertion { who: "me".into(), why: "it was a test".into(), at: WallMs(9) }
    }

    #[test]
    fn a_branch_that_is_dropped_leaves_a_record_of_what_it_was_and_who_said_so() {
        let (dir, sealed) = sealed_here();
        drop_in(dir.path(), &sealed, &word()).unwrap();
        assert!(sealed_in(dir.path()).unwrap().is_empty());
        let dropped = dropped_in(dir.path()).unwrap();
        assert_eq!(dropped, [DroppedBranch { number: 4, class: "acked".into(), bytes: 0, word: word() }]);
    }

    #[test]
    fn a_drop_that_was_interrupted_counts_and_is_finished_later() {
        let (dir, sealed) = sealed_here();
        let file = std::fs::read(&sealed.path).unwrap();
        drop_in(dir.path(), &sealed, &word()).unwrap();
        std::fs::write(&sealed.path, file).unwrap();
        assert!(sealed_in(dir.path()).unwrap().is_empty(), "it is recorded as dropped");
        assert_eq!(interrupted_in(dir.path()).unwrap(), [4]);
        finish(dir.path(), 4).unwrap();
        finish(dir.path(), 4).unwrap();
        assert!(!sealed.path.exists());
    }

    #[test]
    fn the_record_of_a_drop_says_nothing_of_another_branch_that_got_its_number() {
        let (dir, sealed) = sealed_here();
        drop_in(dir.path(), &sealed, &word()).unwrap();
        let again = BranchHead { sealed_at: WallMs(4), ..sealed.head.clone() };
        std::fs::write(&sealed.path, again.encode()).unwrap();
        assert_eq!(sealed_in(dir.path()).unwrap().len(), 1, "it is there");
        assert!(interrupted_in(dir.path()).unwrap().is_empty(), "and stays");
    }

    #[test]
    fn a_clock_that_jumps_forward_ends_no_branch_at_once() {
        let day = Duration::from_secs(86_400);
        let (now, mut age) = (WallMs(1_700_000_000_000), Age::begins(WallMs(1_700_000_000_000), 7 * day));
        let fresh = (VolumeId([1; 16]), 1, now);
        let jumped = WallMs(now.0 + 30 * day.as_millis() as u64);
        assert!(!age.is_over(fresh, jumped), "it was sealed now");
        let old = (VolumeId([1; 16]), 2, WallMs(now.0 - 8 * day.as_millis() as u64));
        assert!(!age.is_over(old, now), "the agent has only begun");
        let mut short = Age::begins(now, Duration::ZERO);
        assert!(short.is_over(old, now));
    }

    #[test]
    fn a_name_that_is_nearly_that_of_a_branch_is_none() {
        let (dir, sealed) = sealed_here();
        let file = std::fs::read(&sealed.path).unwrap();
        for name in ["branch-+5", "branch- 6", "branch-7x", "branch-"] {
            std::fs::write(dir.path().join("branch").join(name), &file).unwrap();
        }
        std::fs::write(dir.path().join("branch/dropped-+4"), "").unwrap();
        assert_eq!(sealed_in(dir.path()).unwrap().len(), 1);
        assert!(dropped_in(dir.path()).unwrap().is_empty());
    }
}
