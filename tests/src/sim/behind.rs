//! Peers that fall far behind: some seeds have a small log, outages that outlast it, and crashes while what changed is sent.

use tidemark_core::config::Policy;

use crate::sim::disk::Crash;
use crate::sim::faults::Rates;
use crate::sim::operator::Step;
use crate::sim::rng::Rng;

/// They have draws of their own: without them a seed is what it was.
const STREAM: u64 = 0x6265_6869_6e64_2e31;
/// So many percent of the seeds.
const SHARE: u32 = 15;

/// Makes a seed one of them, or not.
pub fn draw(
    seed: u64,
    rates: &mut Rates,
    policy: &mut Policy,
    slot_bytes: u64,
    plan: &mut Vec<(u64, Step)>,
    is_witnessed: bool,
) {
    let mut rng = Rng::new(seed ^ STREAM);
    let made = plan.iter().find(|(_, step)| matches!(step, Step::AddReplica)).map_or(0, |(at, _)| *at);
    let last = plan.iter().map(|(at, _)| *at).max().unwrap_or(0);
    if !rng.percent(SHARE) {
        return;
    }
    policy.log_bytes = slot_bytes * rng.between(4, 8);
    policy.retention_ms = *rng.pick(&[0, 10, 200]);
    if rates.link_fault_ms > 0 && rng.percent(50) {
        rates.link_fault_ms = rng.log_between(20, 400);
    }
    for _ in 0..rng.between(2, 4) {
        let at = rng.between(made + 1, last.max(made + 200));
        let by_word = rng.percent(50);
        let ms = rng.log_between(300, 8_000);
        // Where a witness decides, nobody leaves a site out by word.
        let step = if by_word && !is_witnessed { Step::DropPeer { away_ms: ms } } else { Step::Cut { ms } };
        plan.push((at, step));
        for _ in 0..rng.below(4) {
            let how = if rng.percent(50) { Crash::Power } else { Crash::Kill };
            let step = Step::Crash { primary: rng.percent(75), how, down_ms: rng.log_between(5, 300) };
            plan.push((at + rng.between(50, 400), step));
        }
    }
    plan.sort_by_key(|(at, _)| *at);
}
