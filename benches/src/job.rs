//! The jobs: what fio is asked to do, the same for every target.

use clap::ValueEnum;

/// One kind of load.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, ValueEnum)]
pub enum Job {
    /// 4 KiB random writes, one at a time.
    Write1,
    /// 4 KiB random writes, 32 under way.
    Write32,
    /// 4 KiB random writes, one at a time, a flush after each.
    Flush1,
    /// 128 KiB sequential writes, 8 under way.
    Seq128,
    /// 4 KiB random reads, 32 under way.
    Read32,
    /// 4 KiB random reads, 32 under way, of a region that was written just before: a log still holds it.
    ReadLog32,
    /// 4 KiB random, 70% reads, 16 under way.
    Mixed16,
}

impl Job {
    /// All, in the order of the tables.
    pub const ALL: [Self; 7] =
        [Self::Write1, Self::Write32, Self::Flush1, Self::Seq128, Self::Read32, Self::ReadLog32, Self::Mixed16];

    /// Heading.
    pub fn title(self) -> &'static str {
        match self {
            Self::Write1 => "4k randwrite qd1",
            Self::Write32 => "4k randwrite qd32",
            Self::Flush1 => "4k randwrite qd1, a flush after each",
            Self::Seq128 => "128k seq write qd8",
            Self::Read32 => "4k randread qd32",
            Self::ReadLog32 => "4k randread qd32, blocks just written",
            Self::Mixed16 => "70/30 4k qd16",
        }
    }

    /// fio's options for it.
    pub fn fio(self) -> &'static [&'static str] {
        match self {
            Self::Write1 => &["--rw=randwrite", "--bs=4k", "--iodepth=1"],
            Self::Write32 => &["--rw=randwrite", "--bs=4k", "--iodepth=32"],
            Self::Flush1 => &["--rw=randwrite", "--bs=4k", "--iodepth=1", "--fsync=1"],
            Self::Seq128 => &["--rw=write", "--bs=128k", "--iodepth=8"],
            Self::Read32 | Self::ReadLog32 => &["--rw=randread", "--bs=4k", "--iodepth=32"],
            Self::Mixed16 => &["--rw=randrw", "--rwmixread=70", "--bs=4k", "--iodepth=16"],
        }
    }

    /// Whether anything is written, so that draining means something.
    pub fn writes(self) -> bool {
        !matches!(self, Self::Read32 | Self::ReadLog32)
    }

    /// Large blocks are counted in bytes, small ones in operations.
    pub fn is_streaming(self) -> bool {
        self == Self::Seq128
    }
}
