//! One case: damage, start, and what is served.

use std::fmt;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::VOLUME;
use super::golden::Golden;
use super::table::{Case, Expected, Place};
use crate::agents::{Site, TwoSites, VolumeView};

/// A copy that is expected to refuse does, when it has for so long.
const SETTLED: Duration = Duration::from_secs(1);
/// A copy that refuses for so long is not made whole any more: the peer is asked again with growing pauses.
const GIVEN_UP: Duration = Duration::from_secs(15);
/// A copy that neither serves nor refuses after this is stuck.
const PATIENCE: Duration = Duration::from_secs(40);

/// What came of a case.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Both copies are equal and protected.
    Whole,
    /// The damaged copy refuses, for this reason.
    Refused(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole => f.write_str("whole"),
            Self::Refused(reason) => write!(f, "refused: {reason}"),
        }
    }
}

/// Plays a case on restored files; with `repair` a suspect copy is seeded anew.
///
/// # Errors
/// When something wrong is served, nothing is served any more, or the outcome is not the expected one.
pub fn play(sites: &mut TwoSites, golden: &Golden, case: &Case, repair: bool) -> Result<Outcome> {
    let damaged = if case.site == "a" { &sites.a } else { &sites.b };
    let dir = match case.place {
        Place::Volume => golden.volume_dir(damaged),
        Place::State => damaged.state_dir(),
    };
    case.damage.inflict(&dir)?;
    for site in [&sites.a, &sites.b] {
        fs::write(site.log_path(), "")?;
    }
    sites.start()?;
    let outcome = settle(sites, golden, case)?;
    match (&outcome, case.site) {
        (Outcome::Refused(reason), "a") => {
            sites.a.kill();
            check_b_alone(sites, golden).context("at site B, promoted")?;
            if repair && reason.contains("copy suspect") {
                repair_a(sites).context("when A is given up and seeded anew")?;
            }
        }
        (Outcome::Refused(reason), _) if repair && reason.contains("copy suspect") => {
            repair_b(sites).context("when B is given up and seeded anew")?;
            check_whole(sites, golden)?;
        }
        (Outcome::Refused(_), _) => {
            sites.b.kill();
            check_a_alone(sites, golden).context("at site A")?;
        }
        (Outcome::Whole, _) => check_whole(sites, golden)?,
    }
    sites.a.kill();
    sites.b.kill();
    judge(&outcome, case.expected)?;
    Ok(outcome)
}

fn judge(outcome: &Outcome, expected: Expected) -> Result<()> {
    match (outcome, expected) {
        (_, Expected::Either) | (Outcome::Whole, Expected::Whole) => Ok(()),
        (Outcome::Refused(reason), Expected::Refused(part)) if reason.contains(part) => Ok(()),
        _ => bail!("expected {expected:?}, and it is {outcome}"),
    }
}

/// Waits until both copies are equal, or the damaged one has refused for a while.
fn settle(sites: &TwoSites, golden: &Golden, case: &Case) -> Result<Outcome> {
    let damaged = if case.site == "a" { &sites.a } else { &sites.b };
    let deadline = Instant::now() + PATIENCE;
    let mut refused_since = None;
    loop {
        let view = sites.a.cli().show(VOLUME).ok();
        if view.as_ref().is_some_and(|view| view.role() == "primary" && view.is_protected()) {
            return Ok(Outcome::Whole);
        }
        match refusal(damaged, golden) {
            None => refused_since = None,
            Some(reason) => {
                let since = *refused_since.get_or_insert_with(Instant::now);
                let is_expected = matches!(case.expected, Expected::Refused(part) if reason.contains(part));
                if since.elapsed() > if is_expected { SETTLED } else { GIVEN_UP } {
                    return Ok(Outcome::Refused(reason));
                }
            }
        }
        if Instant::now() > deadline {
            let state = |site: &Site| site.cli().show(VOLUME).map_or_else(|e| e.to_string(), |view| view.summary());
            bail!("neither whole nor refused after {PATIENCE:?}: A {}; B {}", state(&sites.a), state(&sites.b));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Why a copy does not take part, when it does not.
fn refusal(site: &Site, golden: &Golden) -> Option<String> {
    // A volume whose record is damaged goes by its id where the catalogue does not remember its name.
    let view = site.cli().show(VOLUME).or_else(|_| site.cli().show(&golden.id)).ok()?;
    match view.open_error() {
        "" => is_refusing(&view).then(|| view.summary()),
        reason => Some(reason.to_owned()),
    }
}

fn is_refusing(view: &VolumeView) -> bool {
    ["suspect", "failed", "diverged"].contains(&view.copy()) && view.role() != "primary"
}

/// Everything that a site serves is right.
fn check(site: &Site, golden: &Golden) -> Result<()> {
    golden.check(&site.cli().attach(VOLUME, "nbd")?.nbd_socket()?)
}

/// What an operator does about a damaged copy at B: A goes on without it, and B starts over.
fn repair_b(sites: &TwoSites) -> Result<()> {
    let [a, b] = [&sites.a, &sites.b].map(Site::cli);
    a.json(&["drop-peer", VOLUME, "--reason", "test: the copy at site b is damaged", "--yes"])?;
    a.wait_for(VOLUME, "primary without B", PATIENCE, |view| view.role() == "primary")?;
    b.json(&["reseed", VOLUME, "--yes"])?;
    a.wait_for(VOLUME, "whole copy at B", PATIENCE, VolumeView::is_protected)?;
    Ok(())
}

/// The same for A, after B has taken over. B may have been promoted with all that A lost: then A is made whole unasked.
fn repair_a(sites: &mut TwoSites) -> Result<()> {
    sites.a.start(&sites.stage)?;
    // Until it has heard B it takes itself for the primary, and a primary is not given up.
    let is_given_way = |view: &VolumeView| view.copy() == "suspect" && !view.role().starts_with("suspended");
    let is_settled = |view: &VolumeView| is_given_way(view) || view.is_streaming();
    let view = sites.a.cli().wait_for(VOLUME, "damage remembered or made good", PATIENCE, is_settled)?;
    if view.copy() == "suspect" {
        sites.a.cli().json(&["reseed", VOLUME, "--yes"])?;
    }
    sites.b.cli().wait_for(VOLUME, "whole copy at A", PATIENCE, VolumeView::is_protected)?;
    ensure!(sites.b.cli().verify(VOLUME)?, "the copies differ");
    Ok(())
}

/// Both serve what they must, B after a promotion, and they are equal.
fn check_whole(sites: &mut TwoSites, golden: &Golden) -> Result<()> {
    check(&sites.a, golden).context("at site A")?;
    ensure!(sites.a.cli().verify(VOLUME)?, "the copies differ");
    sites.a.kill();
    check_b_alone(sites, golden).context("at site B, promoted")
}

/// A without B: goes on by an operator's word, unless B has confirmed before that it may.
fn check_a_alone(sites: &TwoSites, golden: &Golden) -> Result<()> {
    sites.a.cli().promote_fenced(VOLUME, "test: site b is down", &[])?;
    check(&sites.a, golden)
}

/// B without A: promotes without a loss and serves what is right.
fn check_b_alone(sites: &TwoSites, golden: &Golden) -> Result<()> {
    sites.b.cli().promote_fenced(VOLUME, "test: site a is down", &[])?;
    check(&sites.b, golden)
}
