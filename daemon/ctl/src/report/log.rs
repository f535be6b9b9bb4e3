//! A copy as it lies on disk.

use std::collections::BTreeMap;

use serde::Serialize;
use tidemark_core::config::{Config, Mode};
use tidemark_core::format::superblock::{CopyFlag, Superblock};
use tidemark_core::log::{Placed, Segment};
use tidemark_core::types::Position as CorePosition;

use super::{Position, moment, yes_no};
use crate::offline::copy::VolumeCopy;
use crate::offline::replay::{Replay, kind_name};
use crate::offline::verify::Findings;
use crate::output::{self, Paint, Report, Table, Tone};
use crate::units;

impl From<CorePosition> for Position {
    fn from(position: CorePosition) -> Self {
        Self { generation: position.generation.to_string(), incarnation: position.incarnation.0, lsn: position.lsn.0 }
    }
}

/// Whose copy it is and where its log stands.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CopySummary {
    directory: String,
    volume: String,
    site: String,
    node: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<String>,
    /// complete, seeding, suspect, failed, released, diverged.
    flag: &'static str,
    clean_close: bool,
    adopted: bool,
    size_bytes: u64,
    slot_bytes: u64,
    floor: Position,
    /// Known durable when the superblock was written.
    durable_lsn: u64,
    /// Where the log ends for an agent that starts now.
    end: Position,
    /// Bytes behind the end that will be cut.
    cut_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    epoch: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    primary_site: Option<String>,
    sites: Vec<String>,
    branches: u32,
}

/// Closed in order, and nothing was appended since.
fn is_closed(superblock: &Superblock, replay: &Replay) -> bool {
    let found = &replay.recovered;
    superblock.clean && superblock.durable == found.end.position.lsn && found.cut_bytes == 0
}

impl CopySummary {
    fn new(copy: &VolumeCopy, replay: &Replay) -> Self {
        let (superblock, config) = (&copy.superblock, copy.config.as_ref().ok());
        Self {
            directory: copy.dir.display().to_string(),
            volume: superblock.volume.to_string(),
            site: superblock.site.to_string(),
            node: superblock.node.to_string(),
            peer: superblock.peer.map(|peer| peer.to_string()),
            flag: flag_name(superblock.flag),
            clean_close: is_closed(superblock, replay),
            adopted: superblock.adopted,
            size_bytes: superblock.layout.size(),
            slot_bytes: superblock.slot_bytes,
            floor: superblock.floor.position.into(),
            durable_lsn: superblock.durable.0,
            end: replay.recovered.end.position.into(),
            cut_bytes: replay.recovered.cut_bytes,
            epoch: config.map(|config| config.epoch.to_string()),
            mode: config.map(|config: &Config| mode_name(config.mode)),
            primary_site: config.and_then(|config| config.primary).map(|site| site.to_string()),
            sites: config.map(|config| config.sites.iter().map(ToString::to_string).collect()).unwrap_or_default(),
            branches: superblock.branches,
        }
    }

    fn fields(&self) -> Vec<(&'static str, String)> {
        let optional = |value: &Option<String>| value.clone().unwrap_or_default();
        vec![
            ("volume", self.volume.clone()),
            ("site", self.site.clone()),
            ("peer", optional(&self.peer)),
            ("copy", self.flag.to_owned()),
            ("closed cleanly", yes_no(self.clean_close)),
            ("size", units::bytes(self.size_bytes)),
            ("epoch", optional(&self.epoch)),
            ("mode", self.mode.unwrap_or_default().to_owned()),
            ("primary site", optional(&self.primary_site)),
            ("S", self.sites.join(", ")),
            ("floor", self.floor.lsn.to_string()),
            ("end", format!("{} (incarnation {})", self.end.lsn, self.end.incarnation)),
            ("cut", units::bytes(self.cut_bytes)),
            ("branches", self.branches.to_string()),
        ]
    }
}

/// A segment in use.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct SegmentSummary {
    slot: u32,
    sequence: u64,
    first_lsn: u64,
    last_lsn: u64,
    frames: usize,
    used_bytes: u64,
}

impl From<&Segment> for SegmentSummary {
    fn from(segment: &Segment) -> Self {
        Self {
            slot: segment.slot.0,
            sequence: segment.sequence,
            first_lsn: segment.start.position.lsn.0 + 1,
            last_lsn: segment.end().position.lsn.0,
            frames: segment.frames.len(),
            used_bytes: u64::from(segment.used_blocks) * tidemark_core::types::BLOCK as u64,
        }
    }
}

/// A frame above the floor.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FrameSummary {
    first_lsn: u64,
    last_lsn: u64,
    incarnation: u32,
    epoch: String,
    committed_lsn: u64,
    durable_lsn: u64,
    slot: u32,
    payload_bytes: u64,
    records: BTreeMap<&'static str, u64>,
    wall_ms: u64,
}

impl From<&Placed> for FrameSummary {
    fn from(placed: &Placed) -> Self {
        let header = &placed.header;
        let mut records = BTreeMap::new();
        for record in &header.records {
            *records.entry(kind_name(record.kind)).or_default() += 1;
        }
        Self {
            first_lsn: header.first.0,
            last_lsn: header.last().0,
            incarnation: header.incarnation.0,
            epoch: header.epoch.to_string(),
            committed_lsn: header.committed.0,
            durable_lsn: header.durable.0,
            slot: placed.slot.0,
            payload_bytes: header.payload_bytes() as u64,
            records,
            wall_ms: header.wall_ms,
        }
    }
}

/// What `log inspect` shows.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Inspection {
    #[serde(flatten)]
    copy: CopySummary,
    segments: Vec<SegmentSummary>,
    free_slots: usize,
    frames_above_floor: u64,
    records_above_floor: BTreeMap<&'static str, u64>,
    payload_bytes_above_floor: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    frames: Vec<FrameSummary>,
}

impl Inspection {
    /// Of a copy, its replayed log, and the frames that are to be listed.
    pub fn new(copy: &VolumeCopy, replay: &Replay, frames: Vec<FrameSummary>) -> Self {
        let segments = &replay.recovered.segments;
        Self {
            copy: CopySummary::new(copy, replay),
            segments: segments.live().map(Into::into).collect(),
            free_slots: segments.ready(),
            frames_above_floor: replay.contents.frames,
            records_above_floor: replay.contents.records.clone(),
            payload_bytes_above_floor: replay.contents.payload_bytes,
            frames,
        }
    }

    fn segment_table(&self, paint: Paint) -> String {
        let mut table = Table::new(&["SLOT", "SEQUENCE", "LSN", "FRAMES", "USED"]);
        for segment in &self.segments {
            let lsn = format!("{}..{}", segment.first_lsn, segment.last_lsn);
            let (slot, sequence) = (segment.slot.to_string(), segment.sequence.to_string());
            let used = units::bytes(segment.used_bytes);
            table.row(Tone::Plain, [slot, sequence, lsn, segment.frames.to_string(), used]);
        }
        table.render(paint)
    }

    fn frame_table(&self, paint: Paint) -> String {
        let mut table = Table::new(&["LSN", "INC", "EPOCH", "COMMITTED", "SLOT", "PAYLOAD", "RECORDS", "WRITTEN"]);
        for frame in &self.frames {
            let written = i64::try_from(frame.wall_ms).map(moment).unwrap_or_default();
            let cells = [
                format!("{}..{}", frame.first_lsn, frame.last_lsn),
                frame.incarnation.to_string(),
                frame.epoch.clone(),
                frame.committed_lsn.to_string(),
                frame.slot.to_string(),
                units::bytes(frame.payload_bytes),
                counts(&frame.records),
                written,
            ];
            table.row(Tone::Plain, cells);
        }
        table.render(paint)
    }
}

impl Report for Inspection {
    fn table(&self, paint: Paint) -> String {
        let mut pairs = self.copy.fields();
        let (frames, payload) = (self.frames_above_floor, units::bytes(self.payload_bytes_above_floor));
        let records = counts(&self.records_above_floor);
        pairs.push(("above the floor", format!("{frames} frames with {payload}: {records}")));
        pairs.push(("free slots", self.free_slots.to_string()));
        let mut parts = vec![output::fields(&pairs), self.segment_table(paint)];
        if !self.frames.is_empty() {
            parts.push(self.frame_table(paint));
        }
        parts.join("\n\n")
    }
}

/// What `log verify` found.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    /// Nothing is damaged.
    pub sound: bool,
    problems: Vec<String>,
    notes: Vec<String>,
    segments: usize,
    frames: usize,
    end: Position,
    required_lsn: u64,
    footers: usize,
    branches: usize,
}

impl Verdict {
    /// Of a copy, its replayed log, and what was found.
    pub fn new(copy: &VolumeCopy, replay: &Replay, found: Findings) -> Self {
        let segments = &replay.recovered.segments;
        Self {
            sound: found.problems.is_empty(),
            problems: found.problems,
            notes: found.notes,
            segments: segments.live().count(),
            frames: segments.live().map(|segment| segment.frames.len()).sum(),
            end: replay.recovered.end.position.into(),
            required_lsn: replay.recovered.required.0,
            footers: copy.footers.len(),
            branches: copy.branches.len(),
        }
    }
}

impl Report for Verdict {
    fn table(&self, paint: Paint) -> String {
        let word = if self.sound { "sound" } else { "damaged" };
        let counted = format!(
            "{word}: {} frames in {} segments up to lsn {}, {} footers, {} branches",
            self.frames, self.segments, self.end.lsn, self.footers, self.branches
        );
        let problems = self.problems.iter().map(|text| paint.line(Tone::Alarm, &format!("problem: {text}")));
        let notes = self.notes.iter().map(|text| format!("note: {text}"));
        std::iter::once(counted).chain(problems).chain(notes).collect::<Vec<_>>().join("\n")
    }
}

fn counts(records: &BTreeMap<&'static str, u64>) -> String {
    records.iter().map(|(kind, count)| format!("{count} {kind}")).collect::<Vec<_>>().join(", ")
}

fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Async => "async",
        Mode::Receive => "receive",
        Mode::Sync => "sync",
    }
}

fn flag_name(flag: CopyFlag) -> &'static str {
    match flag {
        CopyFlag::Complete => "complete",
        CopyFlag::Seeding(_) => "seeding",
        CopyFlag::Suspect => "suspect",
        CopyFlag::Failed => "failed",
        CopyFlag::Released => "released",
        CopyFlag::Diverged => "diverged",
    }
}
