//! Which faults exist, how likely each is in a seed, and how often each fired.
//!
//! A fault that never fires proves nothing: every kind has a counter, and a run in which one stayed at zero fails.

use crate::sim::rng::Rng;

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// A kind of fault, or an operator's act, that the simulator counts.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub enum Fault { $($(#[$doc])* $name),* }

        impl Fault {
            /// Every kind.
            pub const ALL: &'static [Fault] = &[$(Fault::$name),*];
        }
    };
}

kinds! {
    /// A read ends with EIO.
    EioRead,
    /// A write ends with EIO; any subset of its sectors may have reached the medium.
    EioWrite,
    /// A sync fails: any subset of what it should have covered is lost for good.
    FailedSync,
    /// No space for a new log slot.
    NoSpace,
    /// An operation never ends.
    Hang,
    /// An operation ends very late.
    Late,
    /// A write is acknowledged and lands elsewhere in its file.
    Misdirected,
    /// A write is acknowledged and never happens.
    LostWrite,
    /// A bit flips in a log slot.
    RotLog,
    /// A bit flips in the superblock.
    RotSuperblock,
    /// A bit flips in the configuration.
    RotConfig,
    /// A power cut kept some sectors of an unsynced write and lost others.
    TornWrite,
    /// A power cut lost unsynced sectors.
    LostUnsynced,
    /// A crash applied part of a write that was in flight.
    PartialInFlight,
    /// The process dies; the kernel lives.
    Kill,
    /// The power fails.
    PowerCut,
    /// The process stops for a while.
    Pause,
    /// The process is closed in order and started again.
    CleanRestart,
    /// A clock that runs at another rate than the other.
    ClockRate,
    /// A wall clock that jumped.
    WallJump,
    /// A connection broke and took messages with it.
    Drop,
    /// A message of an old connection arrived after the new one was up.
    StaleMessage,
    /// One end noticed the end of a connection long after the other.
    HalfOpen,
    /// Nothing flows in one direction.
    OneWay,
    /// Nothing flows.
    Partition,
    /// Several breaks in a row.
    Flap,
    /// A message was delayed for long.
    SlowMessage,
    /// Promotion after the primary was lost.
    Failover,
    /// Demote here, promote there.
    Switchover,
    /// The same, by one verb.
    SwitchedOver,
    /// A process died, or the link broke, between the two.
    HandingStruck,
    /// Shipping was paused.
    ShippingPaused,
    /// The floor was paused.
    FloorPaused,
    /// The old primary came back after a failover.
    OldPrimaryReturned,
    /// The peer was left out of S.
    DropPeer,
    /// A copy was seeded from nothing or anew.
    Reseed,
    /// A new copy was seeded while writes went on.
    SeedUnderLoad,
    /// A copy that fell behind the log was sent what changed since.
    Difference,
    /// The same once more, as the one before broke off.
    DifferenceAgain,
    /// The volume grew.
    Resize,
    /// A volume was added to a group.
    VolumeAdded,
    /// A volume of a group grew.
    VolumeGrown,
    /// A volume was removed from a group.
    VolumeRemoved,
    /// The base of a removed volume was given up.
    BaseGivenUp,
    /// Both copies were compared.
    Verify,
    /// The base was brought up to the log.
    Drain,
    /// The policy became sync.
    ToSync,
    /// The policy became receive.
    ToReceive,
    /// The policy became async.
    ToAsync,
    /// Acknowledge-on-write.
    AckOnWrite,
    /// A request was sent to a site that does not serve.
    WrongSite,
    /// A verb was foretold to be refused, and was.
    ForetoldRefusal,
    /// A promotion was foretold to lose nothing, and done.
    ForetoldLossless,
    /// A promotion was foretold to lose something, and done.
    ForetoldLossy,
    /// A promotion was foretold to lose nobody knows what, and done.
    ForetoldUnproven,
    /// A question did not get to the witness, whose site was cut off from it.
    WitnessCut,
    /// The witness took what was about a lease, and not what was about K.
    WitnessHalf,
    /// The witness answered slowly.
    WitnessSlow,
    /// A question to the witness was lost.
    WitnessLostQuestion,
    /// The witness did what it was asked, and the answer was lost.
    WitnessLostAnswer,
    /// The witness did what it was asked after nobody waited for it any more.
    WitnessLate,
    /// The witness was gone until somebody repaired it.
    WitnessGone,
    /// A site was cut off from its peer, and badly off with the witness.
    Island,
    /// A site was promoted by a person's word, and the other one replaced.
    ByWord,
    /// A peer was asked to take over, and did.
    TakenOver,
    /// Both sites were asked at a time.
    AskedBoth,
    /// The witness learnt of a pair.
    Armed,
    /// A primary went on with a new K after a restart, or under another grant.
    Resume,
    /// A primary went on without its peer.
    Shrink,
    /// A lease was taken from its holder.
    Revoked,
    /// A follower took over.
    Takeover,
    /// A primary stopped serving as neither witness nor peer answered.
    Freeze,
    /// It went on.
    Thaw,
    /// A suffix that another history does not have was sealed.
    Sealed,
}

impl Fault {
    /// True for what only a witnessed seed has.
    pub fn needs_witness(self) -> bool {
        self >= Self::WitnessCut
    }
}

/// How often each kind fired.
#[derive(Clone, Debug)]
pub struct Fired(Vec<u64>);

impl Default for Fired {
    fn default() -> Self {
        Self(vec![0; Fault::ALL.len()])
    }
}

impl Fired {
    /// It fired.
    pub fn hit(&mut self, fault: Fault) {
        self.0[fault as usize] += 1;
    }

    /// How often.
    pub fn count(&self, fault: Fault) -> u64 {
        self.0[fault as usize]
    }

    /// Adds another seed's counts.
    pub fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(a, b)| *a += b);
    }

    /// Kinds that never fired.
    pub fn silent(&self) -> Vec<Fault> {
        Fault::ALL.iter().copied().filter(|f| self.count(*f) == 0).collect()
    }
}

/// Rates of one site's disk, in events per million operations.
#[derive(Clone, Copy, Debug, Default)]
pub struct DiskRates {
    /// EIO on reads.
    pub eio_read: u32,
    /// EIO on writes.
    pub eio_write: u32,
    /// Failed syncs.
    pub failed_sync: u32,
    /// Never ends.
    pub hang: u32,
    /// Ends after seconds.
    pub late: u32,
    /// Lands elsewhere (log, superblock, footers).
    pub misdirected: u32,
    /// Never happens (log, superblock, footers).
    pub lost: u32,
    /// Prepare fails.
    pub no_space: u32,
}

impl Fault {
    /// What befalls groups with several agents a site.
    pub const OF_MEMBERS: [Self; 11] = [
        Self::Kill,
        Self::PowerCut,
        Self::LostUnsynced,
        Self::Partition,
        Self::OneWay,
        Self::SlowMessage,
        Self::HalfOpen,
        Self::Switchover,
        Self::Failover,
        Self::WitnessCut,
        Self::WitnessLostAnswer,
    ];
}

/// What a seed draws once.
#[derive(Clone, Debug)]
pub struct Rates {
    /// Per site.
    pub disk: [DiskRates; 2],
    /// The one site whose medium may lie (misdirect, lose, rot): a single copy cannot survive that, the pair must.
    pub liar: Option<usize>,
    /// Bit flips per seed at the liar.
    pub flips: u32,
    /// Usual disk latency bounds in nanoseconds.
    pub disk_ns: (u64, u64),
    /// Usual one-way network delay bounds in nanoseconds.
    pub net_ns: (u64, u64),
    /// Mean true time between link faults in milliseconds; zero: none.
    pub link_fault_ms: u64,
    /// Long delays per million messages.
    pub slow_message: u32,
    /// Clock rate of each site in parts per million of true time.
    pub clock_ppm: [u64; 2],
    /// Pauses per million wake-ups.
    pub pause: u32,
    /// Crashes in the workload.
    pub crashes: u32,
}

fn maybe(rng: &mut Rng, percent: u32, low: u64, high: u64) -> u32 {
    if rng.percent(percent) { rng.log_between(low, high) as u32 } else { 0 }
}

impl Rates {
    /// Draws a seed's rates: each kind is off in most seeds, so that a seed is dominated by a few.
    pub fn draw(rng: &mut Rng) -> Self {
        let liar = rng.percent(25).then(|| rng.below(2) as usize);
        let mut disk = [DiskRates::default(); 2];
        // Device errors at one site only: the promise is about the loss of one copy.
        let sick = rng.below(2) as usize;
        disk[sick] = DiskRates {
            eio_read: maybe(rng, 15, 50, 3_000),
            eio_write: maybe(rng, 12, 20, 700),
            failed_sync: maybe(rng, 12, 100, 2_500),
            hang: maybe(rng, 8, 20, 400),
            late: 0,
            misdirected: 0,
            lost: 0,
            no_space: 0,
        };
        for d in &mut disk {
            d.late = maybe(rng, 20, 50, 1_000);
            d.no_space = maybe(rng, 25, 20_000, 400_000);
        }
        if let Some(site) = liar {
            disk[1 - site] = DiskRates { late: disk[1 - site].late, ..DiskRates::default() };
            disk[site].misdirected = maybe(rng, 40, 100, 3_000);
            disk[site].lost = maybe(rng, 40, 100, 3_000);
        }
        let slowest = rng.log_between(200_000, 20_000_000);
        let net = rng.log_between(50_000, 20_000_000);
        Self {
            disk,
            liar,
            flips: if rng.percent(60) { rng.between(1, 8) as u32 } else { 0 },
            disk_ns: (20_000, slowest),
            net_ns: (20_000, net),
            link_fault_ms: if rng.percent(70) { rng.log_between(50, 5_000) } else { 0 },
            slow_message: maybe(rng, 40, 100, 10_000),
            clock_ppm: std::array::from_fn(
                |_| if rng.percent(50) { 1_000_000 } else { rng.between(980_000, 1_020_000) },
            ),
            pause: maybe(rng, 25, 50, 2_000),
            crashes: rng.between(3, 7) as u32,
        }
    }

    /// The site whose device may fail or lie must not be the only one that has what was promised: true when this site's
    /// medium may lie.
    pub fn lies(&self, site: usize) -> bool {
        self.liar == Some(site)
    }
}
