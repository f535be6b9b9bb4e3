//! How long disk operations take, by what they do and to which file.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use tidemark_core::event::{DiskOp, FileRef};

/// What an operation does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DiskVerb {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Makes writes durable.
    Sync,
    /// Makes or removes a file, or asks about it.
    Other,
}

/// Which file an operation is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DiskFile {
    /// Segments of the log.
    Log,
    /// The base image.
    Base,
    /// Superblock, configuration, footers, branches.
    Meta,
}

impl DiskVerb {
    const ALL: [(Self, &'static str); 4] =
        [(Self::Read, "read"), (Self::Write, "write"), (Self::Sync, "sync"), (Self::Other, "other")];

    /// What `op` does, and to which file.
    pub fn of(op: &DiskOp) -> (Self, DiskFile) {
        match op {
            DiskOp::Write { file, .. } => (Self::Write, DiskFile::of(*file)),
            DiskOp::Read { file, .. } => (Self::Read, DiskFile::of(*file)),
            DiskOp::Sync { files } => (Self::Sync, files.first().map_or(DiskFile::Meta, |file| DiskFile::of(*file))),
            DiskOp::Zero { file, .. } => (Self::Write, DiskFile::of(*file)),
            DiskOp::Prepare { .. } | DiskOp::Remove { .. } => (Self::Other, DiskFile::Log),
            DiskOp::Replace { .. } => (Self::Other, DiskFile::Meta),
            DiskOp::Map { .. } | DiskOp::Grow { .. } => (Self::Other, DiskFile::Base),
        }
    }
}

impl DiskFile {
    const ALL: [(Self, &'static str); 3] = [(Self::Log, "log"), (Self::Base, "base"), (Self::Meta, "meta")];

    fn of(file: FileRef) -> Self {
        match file {
            FileRef::Log(_) => Self::Log,
            FileRef::Base => Self::Base,
            FileRef::Footer(_) | FileRef::Superblock | FileRef::Config | FileRef::Branch(_) => Self::Meta,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    op: &'static str,
    file: &'static str,
}

#[derive(Clone, Copy, Debug)]
struct Buckets;

impl MetricConstructor<Histogram> for Buckets {
    /// 16 µs to 16 s, each bucket double the one before: a cached write to a disk that hangs.
    fn new_metric(&self) -> Histogram {
        Histogram::new(exponential_buckets(16e-6, 2.0, 21))
    }
}

/// Latencies of disk operations. Clones count together; a count is one uncontended lock per shard and kind.
#[derive(Clone, Debug)]
pub struct DiskMetrics {
    family: Family<Labels, Histogram, Buckets>,
    resolved: [[Histogram; 3]; 4],
}

impl Default for DiskMetrics {
    fn default() -> Self {
        let family: Family<Labels, Histogram, Buckets> = Family::new_with_constructor(Buckets);
        let resolved = DiskVerb::ALL
            .map(|(_, op)| DiskFile::ALL.map(|(_, file)| family.get_or_create_owned(&Labels { op, file })));
        Self { family, resolved }
    }
}

impl DiskMetrics {
    /// An operation ended after `took`.
    pub fn ended(&self, verb: DiskVerb, file: DiskFile, took: Duration) {
        self.resolved[verb as usize][file as usize].observe(took.as_secs_f64());
    }

    /// Adds everything to `registry`.
    pub fn register(&self, registry: &mut Registry) {
        let help = "Time from asking for a disk operation to its end, by operation and file";
        registry.register("disk_op_seconds", help, self.family.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidemark_core::event::Slot;

    #[test]
    fn kinds_are_numbered_as_they_are_listed() {
        for (i, (verb, _)) in DiskVerb::ALL.into_iter().enumerate() {
            assert_eq!(verb as usize, i);
        }
        for (i, (file, _)) in DiskFile::ALL.into_iter().enumerate() {
            assert_eq!(file as usize, i);
        }
    }

    #[test]
    fn a_sync_counts_for_the_file_that_it_names() {
        let sync = DiskOp::Sync { files: vec![FileRef::Log(Slot(1)), FileRef::Log(Slot(2))] };
        assert_eq!(DiskVerb::of(&sync), (DiskVerb::Sync, DiskFile::Log));
        let zero = DiskOp::Zero { file: FileRef::Base, offset: 0, len: 4096, deallocate: true };
        assert_eq!(DiskVerb::of(&zero), (DiskVerb::Write, DiskFile::Base));
    }
}
