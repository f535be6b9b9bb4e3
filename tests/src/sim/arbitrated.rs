//! Witnessed seeds: a share of all seeds has a witness, and nobody helps. What such a seed draws comes from a stream of its own, so
//! that the others are what they were.

use tidemark_core::config::{AckOn, Mode, OnPeerLoss, Policy};
use tidemark_core::group::flapping::Calm;
use tidemark_core::group::lease::Terms;

use crate::sim::agents::Agents;
use crate::sim::disk::Crash;
use crate::sim::faults::{DiskRates, Rates};
use crate::sim::judge::Judge;
use crate::sim::operator::Step;
use crate::sim::rng::Rng;
use crate::sim::witness::Witness;
use crate::sim::world::MS;

/// Shorter than what a waiting request is patient for.
pub(super) const CALM: Calm = Calm { window_ns: 60_000 * MS, rest_ns: 45_000 * MS };

/// Separates what witnessed seeds draw from everything else.
const STREAM: u64 = 0x7769_746e_6573_7365;
/// Of a hundred seeds.
const SHARE: u32 = 33;

/// Which seeds have a witness.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Witnessed {
    /// Some, by the seed.
    #[default]
    Some,
    /// All.
    All,
    /// None.
    None,
}

/// How a site is off with the witness.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ill {
    /// Cut off from it.
    Cut,
    /// Answers are slow.
    Slow,
    /// Only leases get through.
    Half,
}

/// What befalls a witnessed pair.
#[derive(Clone, Copy, Debug)]
pub enum Trouble {
    /// A site goes down, long enough for the other one to take over.
    Lose {
        /// The primary's site, or the other.
        primary: bool,
        /// How.
        how: Crash,
        /// For how long.
        away_ms: u64,
    },
    /// The primary's site goes down, and its peer is asked to take over.
    TakeOver {
        /// How.
        how: Crash,
        /// For how long.
        away_ms: u64,
    },
    /// Both go down at once.
    Both {
        /// How.
        how: Crash,
    },
    /// The link is cut.
    Cut {
        /// For how long.
        ms: u64,
    },
    /// Nothing flows in one direction, then nothing in the other, then the link is cut.
    OneWay {
        /// Towards the primary.
        to_primary: bool,
        /// One way for how long.
        ms: u64,
        /// The ways to the witness of the primary's site and the other are cut for so long.
        witness_ms: [u64; 2],
        /// Then cut for how long.
        cut_ms: u64,
    },
    /// The link is cut, and a site's way to the witness is cut or slow.
    Island {
        /// The primary's site, or the other.
        primary: bool,
        /// The link, for how long.
        ms: u64,
        /// The witness, for how long.
        witness_ms: u64,
        /// What is wrong with the witness.
        ill: Ill,
    },
    /// A process dies and comes back; then, before its K can be brought to the witness, the link is cut.
    Unsure {
        /// How.
        how: Crash,
        /// The process, for how long.
        down_ms: u64,
        /// The link is cut after.
        after_ms: u64,
        /// The link, for how long.
        ms: u64,
        /// The witness for K, for how long.
        witness_ms: u64,
    },
    /// The link is cut, and a process dies and comes back in the dark.
    Relapse {
        /// The primary's site, or the other.
        primary: bool,
        /// How.
        how: Crash,
        /// The link, for how long.
        ms: u64,
        /// The process, for how long.
        down_ms: u64,
        /// The witness, after the process went down, for how long.
        witness_ms: u64,
    },
    /// The link is cut, and when the primary has had time to go on alone, it goes down.
    Overtake {
        /// The link, for how long.
        ms: u64,
        /// The primary's site goes down after.
        after_ms: u64,
        /// For how long.
        away_ms: u64,
    },
    /// The witness is gone until somebody repairs it.
    LoseWitness,
    /// The primary's site is lost for good, and a person says so.
    ByWord(Crash),
    /// The policy asks for a witness, or not.
    OnPeerLoss(OnPeerLoss),
}

/// What only a witnessed seed has.
#[derive(Debug)]
pub struct Arbitration {
    /// Draws.
    pub rng: Rng,
    /// Of every lease.
    pub terms: Terms,
    /// The cells.
    pub witness: Witness,
    /// Who asks them.
    pub agents: Agents,
    /// What was seen, and must not be contradicted.
    pub judge: Judge,
    /// Mean milliseconds between faults of the ways to the witness; zero: none.
    pub fault_ms: u64,
    /// The workload rests for up to so long after a request, in nanoseconds.
    pub pace: u64,
    /// Whether trouble waits until the pair is whole.
    pub patient: bool,
    /// The pair was whole once, or nothing waits for that: until then nothing befalls it.
    pub begun: bool,
    /// Since when trouble waits for that.
    pub waits_since: Option<u64>,
    /// The witness is gone until it is repaired.
    pub gone: bool,
    /// A site that a person called dead: it is, and is replaced.
    pub dead: Option<usize>,
    /// When it was called that.
    pub dead_since: u64,
}

impl Arbitration {
    /// The seed's witness, if it has one; the rest of the world is adapted to it.
    pub fn draw(
        seed: u64,
        which: Witnessed,
        rates: &mut Rates,
        policy: &mut Policy,
        plan: &mut Vec<(u64, Step)>,
        requests: u64,
    ) -> Option<Box<Self>> {
        let mut rng = Rng::new(seed ^ STREAM);
        let drawn = rng.percent(SHARE);
        let is_one = match which {
            Witnessed::Some => drawn,
            Witnessed::All => true,
            Witnessed::None => false,
        };
        if !is_one {
            return None;
        }
        soften(rates, &mut rng);
        if rng.percent(80) {
            policy.mode = Mode::Sync;
        }
        policy.on_peer_loss = if rng.percent(90) { OnPeerLoss::Witness } else { OnPeerLoss::Suspend };
        policy.auto_failover = rng.percent(80);
        policy.peer_loss_ms = rng.between(500, 1_500);
        *plan = draw_plan(&mut rng, requests);
        let pace = *rng.pick(&[1, 4, 12, 30]) * MS;
        let span = rng.between(1_000, 2_000) * MS;
        Some(Box::new(Self {
            terms: Terms { calm: CALM, ..Terms::new(span) },
            witness: Witness::default(),
            agents: Agents::draw(&mut rng),
            judge: Judge::default(),
            fault_ms: if rng.percent(60) { rng.log_between(1_000, 15_000) } else { 0 },
            pace,
            patient: rng.percent(75),
            begun: rng.percent(15),
            waits_since: None,
            gone: false,
            dead: None,
            dead_since: 0,
            rng,
        }))
    }
}

/// Devices neither fail nor lie, as only a person makes up for that; clocks run apart by less than 2 %, as the wait assumes.
fn soften(rates: &mut Rates, rng: &mut Rng) {
    for disk in &mut rates.disk {
        *disk = DiskRates { no_space: disk.no_space, ..DiskRates::default() };
    }
    rates.liar = None;
    for ppm in &mut rates.clock_ppm {
        *ppm = 1_000_000 + *ppm / 2 - 500_000;
    }
    rates.link_fault_ms = if rng.percent(40) { rng.log_between(1_000, 20_000) } else { 0 };
}

fn draw_plan(rng: &mut Rng, requests: u64) -> Vec<(u64, Step)> {
    let replica = if rng.percent(70) { 0 } else { rng.below(requests / 6) };
    let mut plan = vec![(replica, Step::AddReplica)];
    let later = |rng: &mut Rng| rng.between(replica + requests / 50, requests.saturating_sub(1));
    for _ in 0..rng.between(2, 6) {
        let step = Step::Trouble(trouble(rng));
        plan.push((later(rng), step));
    }
    for _ in 0..rng.below(4) {
        let step = verb_step(rng);
        plan.push((later(rng), step));
    }
    plan.sort_by_key(|(at, _)| *at);
    plan
}

/// Long enough for a take-over in most cases.
fn long(rng: &mut Rng) -> u64 {
    if rng.percent(75) { rng.between(3_000, 12_000) } else { rng.log_between(20, 3_000) }
}

fn trouble(rng: &mut Rng) -> Trouble {
    let how = if rng.percent(50) { Crash::Power } else { Crash::Kill };
    let primary = rng.percent(75);
    match rng.below(100) {
        0..=9 => Trouble::Lose { primary, how, away_ms: long(rng) },
        10..=12 => Trouble::Both { how },
        13..=17 => Trouble::TakeOver { how, away_ms: long(rng) },
        18..=26 => Trouble::Cut { ms: long(rng) },
        27..=42 => Trouble::OneWay {
            to_primary: rng.percent(70),
            ms: rng.between(100, 4_800),
            witness_ms: [if rng.percent(70) { long(rng) } else { 0 }, if rng.percent(20) { long(rng) } else { 0 }],
            cut_ms: long(rng),
        },
        43..=68 => {
            let ill = *rng.pick(&[Ill::Cut, Ill::Cut, Ill::Cut, Ill::Slow, Ill::Slow, Ill::Half]);
            let ms = long(rng);
            let witness_ms = if rng.percent(50) { ms } else { long(rng) };
            Trouble::Island { primary, ms, witness_ms, ill }
        }
        69..=72 => Trouble::Unsure {
            how,
            down_ms: rng.log_between(5, 500),
            after_ms: rng.between(200, 3_000),
            ms: long(rng),
            witness_ms: long(rng),
        },
        73..=83 => Trouble::Relapse {
            primary,
            how,
            ms: long(rng),
            down_ms: if rng.percent(50) { rng.log_between(5, 1_000) } else { long(rng) },
            witness_ms: if rng.percent(50) { long(rng) } else { 0 },
        },
        84..=91 => Trouble::Overtake { ms: long(rng), after_ms: rng.between(1_000, 4_000), away_ms: long(rng) },
        92..=94 => Trouble::LoseWitness,
        95..=97 => Trouble::ByWord(how),
        _ => Trouble::OnPeerLoss(*rng.pick(&[OnPeerLoss::Witness, OnPeerLoss::Suspend])),
    }
}

fn verb_step(rng: &mut Rng) -> Step {
    match rng.below(100) {
        draw @ 0..=39 => Step::Switchover { at_once: draw.is_multiple_of(2) },
        40..=54 => Step::CleanRestart { primary: rng.percent(60) },
        55..=64 => {
            let mode = if rng.percent(70) { Mode::Sync } else { *rng.pick(&[Mode::Async, Mode::Receive]) };
            Step::Policy(mode, if rng.percent(25) { AckOn::Write } else { AckOn::Flush })
        }
        65..=74 => Step::Resize(rng.between(1, 800)),
        75..=84 => Step::Verify,
        85..=94 => Step::Drain,
        _ => Step::Reseed,
    }
}
