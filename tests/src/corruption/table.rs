//! The cases: every structure of a copy, each kind of damage to it, at either site.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use tidemark_core::format::frame::FrameHeader;
use tidemark_core::format::segment::{HEADER_BYTES, SegmentHeader};
use tidemark_core::format::superblock::{self, Superblock};
use tidemark_core::types::BLOCK;

use super::damage::Damage;
use super::golden::{Golden, SIZE};
use crate::dice::Dice;

/// What may come of a case.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expected {
    /// The damaged copy is whole again, or was all the time.
    Whole,
    /// The damaged copy refuses with a reason that holds this.
    Refused(&'static str),
    /// Either: it depends on which byte it was.
    Either,
}

/// Blocks at the base's head that are identified one by one.
const FINE_BLOCKS: u64 = 16;

/// Whose files a case damages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// The volume's directory.
    Volume,
    /// The agent's state directory.
    State,
}

/// One case.
#[derive(Clone, Debug)]
pub struct Case {
    /// What it is, for people.
    pub name: String,
    /// `a` or `b`.
    pub site: &'static str,
    /// In which directory.
    pub place: Place,
    /// What is done.
    pub damage: Damage,
    /// What may come of it.
    pub expected: Expected,
}

/// A frame in a segment's file.
#[derive(Clone, Copy, Debug)]
struct Frame {
    at: u64,
    header_bytes: u64,
    len: u64,
    /// Which of the volume's first blocks it has content of, as bits.
    first_blocks: u64,
}

/// A segment's file with its frames above the floor: what recovery cannot do without.
#[derive(Clone, Debug)]
struct Slot {
    file: String,
    sequence: u64,
    frames: Vec<Frame>,
}

/// All named cases for both sites, and `drawn` single bytes of each.
///
/// # Errors
/// When the kept files are not what they should be.
pub fn cases(golden: &Golden, drawn: u32, dice: &mut Dice) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for site in ["a", "b"] {
        let slots = slots(&golden.kept_dir(site))?;
        ensure!(slots.len() > 2, "site {site} has only {} segments above its floor", slots.len());
        let mut put = |place, name: &str, damage, expected| {
            cases.push(Case { name: format!("{site}: {name}"), site, place, damage, expected });
        };
        let mut add = |name: &str, damage, expected| put(Place::Volume, name, damage, expected);
        segments(&slots, &mut add);
        small_files(&mut add);
        base(&slots, &mut add)?;
        for _ in 0..drawn {
            let (name, damage) = draw(&slots, dice);
            add(&name, damage, Expected::Either);
        }
        catalogue(&golden.kept_state(site), &mut |name, damage| put(Place::State, name, damage, Expected::Whole))?;
    }
    Ok(cases)
}

fn segments(slots: &[Slot], add: &mut impl FnMut(&str, Damage, Expected)) {
    use Expected::Either;
    let (first, middle, last) = (&slots[0], &slots[slots.len() / 2], &slots[slots.len() - 1]);
    let flip = |slot: &Slot, at| Damage::Flip { file: slot.file.clone(), at };
    let tail = last.frames[last.frames.len() - 1];
    let frame = middle.frames[middle.frames.len() / 2];
    add("header of the oldest segment", flip(first, 41), Either);
    add("header of a middle segment", flip(middle, 41), Either);
    add("header of the newest segment", flip(last, 110), Either);
    add("header of a middle frame", flip(middle, frame.at + 60), Either);
    add("payload of a middle frame", flip(middle, frame.at + frame.header_bytes + 7), Either);
    add("header of the last frame", flip(last, tail.at + 60), Either);
    add("payload of the last frame", flip(last, tail.at + tail.header_bytes), Either);
    let (file, at, len) = (last.file.clone(), tail.at, tail.len);
    add("last frame zeroed", Damage::Zero { file: file.clone(), at, len }, Either);
    add("newest segment cut in its last frame", Damage::Truncate { file, len: at + len / 2 }, Either);
    add("middle segment cut to nothing", Damage::Truncate { file: middle.file.clone(), len: 0 }, Either);
    add("middle segment removed", Damage::Remove { file: middle.file.clone() }, Either);
    add("newest segment removed", Damage::Remove { file: last.file.clone() }, Either);
    let (one, other) = (first.file.clone(), last.file.clone());
    add("oldest and newest segment swapped", Damage::Swap { one, other }, Either);
    let (file, at, len) = (middle.file.clone(), frame.at, frame.len);
    add("middle frame zeroed", Damage::Zero { file, at, len }, Either);
}

fn small_files(add: &mut impl FnMut(&str, Damage, Expected)) {
    use Expected::{Either, Refused};
    let half = superblock::FILE.slot_bytes as u64;
    for (file, what) in [("superblock", "superblock:"), ("config", "configuration:")] {
        let owned = || file.to_owned();
        add(&format!("{file}, both slots"), Damage::FlipBoth { file: owned(), at: 30 }, Refused(what));
        add(&format!("{file} zeroed"), Damage::Truncate { file: owned(), len: 0 }, Refused(what));
        add(&format!("{file} removed"), Damage::Remove { file: owned() }, Refused("is missing"));
        add(&format!("{file}, even slot"), Damage::Flip { file: owned(), at: 30 }, Either);
    }
    let odd = Damage::Flip { file: "superblock".to_owned(), at: half + 30 };
    add("superblock, odd slot", odd, Either);
    let (one, other) = ("superblock".to_owned(), "config".to_owned());
    add("superblock and config swapped", Damage::Swap { one, other }, Refused("superblock"));
    let record = || "volume.toml".to_owned();
    add("record, first byte", Damage::Flip { file: record(), at: 0 }, Refused("volume.toml"));
    add("record cut to nothing", Damage::Truncate { file: record(), len: 0 }, Refused("volume.toml"));
    add("record removed", Damage::Remove { file: record() }, Refused("volume.toml"));
}

/// Nothing that happens to the catalogue's index may cost a volume.
fn catalogue(state: &Path, add: &mut impl FnMut(&str, Damage)) -> Result<()> {
    let whole = || "catalogue".to_owned();
    add("catalogue removed", Damage::Remove { file: whole() });
    let mut damaged = 0;
    for entry in fs::read_dir(state.join("catalogue"))? {
        let entry = entry?;
        let (name, len) = (entry.file_name().to_string_lossy().into_owned(), entry.metadata()?.len());
        // The others are RocksDB's log lines, lock and notes of its options.
        let kind = ["CURRENT", "MANIFEST", ".log", ".sst"].into_iter().find(|part| name.contains(part));
        let Some(kind) = kind.filter(|_| len > 0) else { continue };
        let file = || format!("{}/{name}", whole());
        add(&format!("catalogue, first byte of {kind}"), Damage::Flip { file: file(), at: 0 });
        add(&format!("catalogue, middle of {kind}"), Damage::Flip { file: file(), at: len / 2 });
        add(&format!("catalogue, {kind} cut"), Damage::Truncate { file: file(), len: len / 2 });
        add(&format!("catalogue, {kind} replaced"), Damage::Replace { file: file() });
        add(&format!("catalogue, {kind} removed"), Damage::Remove { file: file() });
        damaged += 1;
    }
    ensure!(damaged > 2, "the catalogue in {} has only {damaged} files", state.display());
    Ok(())
}

fn base(slots: &[Slot], add: &mut impl FnMut(&str, Damage, Expected)) -> Result<()> {
    use Expected::Refused;
    let file = || "base.img".to_owned();
    let suspect = Refused("the base image is not as it was left");
    add("base swapped for another", Damage::Replace { file: file() }, suspect);
    // What mounting does first: it writes to the file system's head. Where the log has newer content that harms nothing.
    let in_log = slots.iter().flat_map(|slot| &slot.frames).fold(0, |blocks, frame| blocks | frame.first_blocks);
    let block = u64::from(in_log.trailing_ones());
    ensure!(block < FINE_BLOCKS, "every block of the head is in the log");
    let at = block * BLOCK as u64 + 1024;
    add("base written to near its head", Damage::Scribble { file: file(), at, len: 1024 }, suspect);
    add("base zeroed", Damage::Zero { file: file(), at: 0, len: SIZE }, suspect);
    add("base cut short", Damage::Truncate { file: file(), len: SIZE / 2 }, Refused("the base image of volume"));
    add("base removed", Damage::Remove { file: file() }, Refused("the base image is missing"));
    Ok(())
}

/// One byte of a segment's header, a frame, a footer's or a small file's content.
fn draw(slots: &[Slot], dice: &mut Dice) -> (String, Damage) {
    let slot = &slots[dice.below(slots.len() as u64) as usize];
    let (file, at) = match dice.below(8) {
        0 => (slot.file.clone(), dice.below(136)),
        1 => ("superblock".to_owned(), dice.below(2) * superblock::FILE.slot_bytes as u64 + dice.below(400)),
        2 => ("config".to_owned(), dice.below(200)),
        _ => {
            let frame = slot.frames[dice.below(slot.frames.len() as u64) as usize];
            // Half of them in the header, which is the smaller part by far.
            let space = if dice.happens(0.5) { frame.header_bytes } else { frame.len };
            (slot.file.clone(), frame.at + dice.below(space))
        }
    };
    (format!("{file} byte {at}"), Damage::Flip { file, at })
}

/// The file of the oldest segment with records above the floor, by its path in the volume's directory `dir`.
pub(super) fn oldest_segment(dir: &Path) -> Result<String> {
    Ok(slots(dir)?.into_iter().next().context("a segment with records above the floor")?.file)
}

/// Every segment with frames above the floor, oldest first.
fn slots(dir: &Path) -> Result<Vec<Slot>> {
    let file = fs::read(dir.join("superblock"))?;
    let superblock = Superblock::decode(superblock::FILE.decode(&file)?.content)?;
    let mut slots = Vec::new();
    for entry in fs::read_dir(dir.join("log"))? {
        let path = entry?.path();
        let name = path.file_name().context("a name")?.to_string_lossy().into_owned();
        if name.starts_with("slot-") {
            slots.extend(slot(&format!("log/{name}"), &fs::read(&path)?, &superblock));
        }
    }
    slots.sort_by_key(|slot| slot.sequence);
    Ok(slots)
}

fn slot(file: &str, bytes: &[u8], superblock: &Superblock) -> Option<Slot> {
    let secret = &superblock.secret;
    let header = SegmentHeader::decode(bytes.get(..HEADER_BYTES)?, secret).ok()?;
    let mut end = header.start;
    let mut at = HEADER_BYTES;
    let mut frames = Vec::new();
    while let Some(rest) = bytes.get(at..).filter(|rest| rest.len() >= BLOCK) {
        let Ok(frame) = FrameHeader::decode(rest, secret) else { break };
        if !frame.follows(&end) {
            break;
        }
        end = frame.boundary();
        let (header_bytes, len) = (frame.padded_bytes(), frame.padded_bytes() + frame.payload_bytes());
        if frame.first > superblock.floor.position.lsn {
            let first_blocks = first_blocks(&frame);
            frames.push(Frame { at: at as u64, header_bytes: header_bytes as u64, len: len as u64, first_blocks });
        }
        at += len;
    }
    let found = Slot { file: file.to_owned(), sequence: header.sequence, frames };
    (!found.frames.is_empty()).then_some(found)
}

fn first_blocks(frame: &FrameHeader) -> u64 {
    let ranges = frame.records.iter().filter_map(|record| record.range());
    let blocks = ranges.flat_map(|range| range.start()..range.end().min(u64::from(u64::BITS)));
    blocks.fold(0, |bits, block| bits | 1 << block)
}
