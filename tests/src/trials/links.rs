//! Links that are slow, break or are not there.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::field::{Condition, Field, VOLUME, Wishes};
use crate::proxy::Weather;

const DELAY: Duration = Duration::from_millis(20);
/// For each tenth of a second and connection: one in a hundred as on a bad day, times three so that a short trial has some.
const CUT_CHANCE: f64 = 0.03;
/// What an agent may use of a processor when nothing is to be done.
const IDLE_SHARE: f64 = 0.10;
/// A lag above this on a fast host with a slow link is none that the link explains.
const MAX_LAG_MS: u64 = 5_000;

fn with_link(mode: &str) -> Wishes<'_> {
    Wishes { mode, has_link: true, ..Wishes::default() }
}

/// Every flush takes a round trip, and nothing is wrong or lost.
pub(super) fn slow_sync(condition: &Condition) -> Result<String> {
    Field::new(condition, &with_link("sync"))?.play(|field| {
        field.sites.set_link(Weather::slow(DELAY));
        field.expect_progress()?;
        std::thread::sleep(condition.span);
        field.expect_progress()?;
        let slowest = field.verifier.counts().slowest;
        ensure!(slowest >= 2 * DELAY, "no request took a round trip: {slowest:?}");
        let used = idle(field, condition.span)?;
        field.sites.set_link(Weather::default());
        Ok(format!("slowest request {} ms, {} idle", slowest.as_millis(), show(used)))
    })
}

/// The lag is bounded, reported, and gone when the load is.
pub(super) fn slow_async(condition: &Condition) -> Result<String> {
    Field::new(condition, &with_link("async"))?.play(|field| {
        field.sites.set_link(Weather::slow(DELAY));
        let deadline = Instant::now() + condition.span;
        let (mut highest, mut reported) = (0, false);
        while Instant::now() < deadline {
            let view = field.sites.a.cli().show(VOLUME)?;
            highest = highest.max(view.rpo_ms());
            reported |= view.backlog_bytes() > 0;
            std::thread::sleep(Duration::from_millis(50));
        }
        ensure!(reported, "no backlog was ever reported");
        ensure!(highest < MAX_LAG_MS, "the lag grew to {highest} ms");
        field.verifier.pause()?;
        field.wait("end of the lag", |view| view.backlog_bytes() == 0 && view.rpo_ms() == 0)?;
        let used = field.expect_quiet(condition.span, IDLE_SHARE)?;
        field.verifier.resume();
        field.sites.set_link(Weather::default());
        Ok(format!("highest lag {highest} ms, {} idle", show(used)))
    })
}

/// Connections break again and again: the load gets on, and nothing is wrong or lost.
pub(super) fn breaking(condition: &Condition) -> Result<String> {
    Field::new(condition, &with_link("sync"))?.play(|field| {
        field.sites.set_link(Weather::breaking(CUT_CHANCE));
        let deadline = Instant::now() + 2 * condition.span;
        while Instant::now() < deadline || field.sites.link_cuts() == 0 {
            field.expect_progress()?;
        }
        field.verifier.pause()?;
        let used = field.expect_quiet(condition.span, IDLE_SHARE)?;
        field.sites.set_link(Weather::default());
        field.verifier.resume();
        field.expect_progress()?;
        Ok(format!("{} cuts, slowest request {} ms, {} idle", field.sites.link_cuts(), slowest_ms(field), show(used)))
    })
}

/// A link that refuses, then one that swallows everything: nothing spins, nothing fails, and all goes on with the link.
pub(super) fn no_link(condition: &Condition) -> Result<String> {
    Field::new(condition, &with_link("sync"))?.play(|field| {
        field.expect_progress()?;
        let mut worst = [0.0_f64; 2];
        for weather in [Weather::down(), Weather::black_hole()] {
            field.sites.set_link(weather);
            if weather.refuse {
                field.sites.cut_link();
            }
            // What needs no peer is done by then.
            std::thread::sleep(Duration::from_secs(1));
            let used = field.expect_quiet(condition.span, IDLE_SHARE)?;
            worst = [worst[0].max(used[0]), worst[1].max(used[1])];
            field.sites.set_link(Weather::default());
            field.expect_progress()?;
        }
        Ok(format!("slowest request {} ms, {}", slowest_ms(field), show(worst)))
    })
}

/// The load is over for a while.
fn idle(field: &Field, span: Duration) -> Result<[f64; 2]> {
    field.verifier.pause()?;
    std::thread::sleep(Duration::from_millis(500));
    let used = field.expect_quiet(span, IDLE_SHARE)?;
    field.verifier.resume();
    Ok(used)
}

fn slowest_ms(field: &Field) -> u128 {
    field.verifier.counts().slowest.as_millis()
}

fn show([a, b]: [f64; 2]) -> String {
    format!("processor seconds A {a:.2}, B {b:.2}")
}
