//! One crash and what follows from it.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{Crash, Options, VOLUME, Victim};
use crate::agents::{Refused, Site, TwoSites};
use crate::dice::Dice;
use crate::verifier::Verifier;

/// The load before the crash goes on for at most this.
const MAX_LOAD: Duration = Duration::from_millis(1500);
/// A slow disk's time for a sync.
const MAX_SYNC_DELAY: Duration = Duration::from_millis(30);
/// For a copy to come back, and to catch up.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) struct Round<'a> {
    pub options: &'a Options,
    pub victim: Victim,
    pub dice: Dice,
}

impl Round<'_> {
    pub fn play(mut self, sites: &mut TwoSites, verifier: &Verifier) -> Result<()> {
        if self.options.crash == Crash::Cut {
            self.draw_speeds(sites)?;
        }
        std::thread::sleep(self.dice.between(Duration::ZERO, MAX_LOAD));
        verifier.expect_unbroken()?;
        self.crash(sites)?;
        self.restart(sites)?;
        if self.victim == Victim::B {
            self.expect_equal(sites)?;
            verifier.expect_unbroken()?;
        } else {
            verifier.pause()?;
            verifier.check()?;
            verifier.resume();
            self.expect_equal(sites)?;
        }
        Ok(())
    }

    /// Waits until the copies are in step and compares them; again while the stream breaks in between, as it may just after a
    /// crash.
    fn expect_equal(&self, sites: &TwoSites) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.wait_until_equal(sites)?;
            match sites.a.cli().verify(VOLUME) {
                Ok(is_equal) => {
                    ensure!(is_equal, "the copies differ");
                    return Ok(());
                }
                Err(error) if error.is::<Refused>() && Instant::now() < deadline => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// One site's disk takes its time for a sync: only then is the other ahead of it at the end.
    fn draw_speeds(&mut self, sites: &TwoSites) -> Result<()> {
        let slow_a = self.dice.happens(0.5);
        let delay = self.dice.between(Duration::ZERO, MAX_SYNC_DELAY);
        for (site, is_slow) in [(&sites.a, slow_a), (&sites.b, !slow_a)] {
            site.disk().set_sync_delay(if is_slow { delay } else { Duration::ZERO })?;
        }
        Ok(())
    }

    fn crash(&mut self, sites: &mut TwoSites) -> Result<()> {
        if self.options.crash == Crash::Cut {
            let mut victims: Vec<&Site> = match self.victim {
                Victim::A => vec![&sites.a],
                Victim::B => vec![&sites.b],
                Victim::Both => vec![&sites.a, &sites.b],
            };
            if self.dice.happens(0.5) {
                victims.reverse();
            }
            for site in victims {
                site.cut_disk(self.dice.number())?;
            }
        }
        if self.victim != Victim::B {
            sites.a.kill();
        }
        if self.victim != Victim::A {
            sites.b.kill();
        }
        Ok(())
    }

    /// Either comes back first.
    fn restart(&mut self, sites: &mut TwoSites) -> Result<()> {
        let a_first = self.dice.happens(0.5);
        let TwoSites { a, b, stage, .. } = sites;
        for site in if a_first { [a, b] } else { [b, a] } {
            if !site.is_running() {
                site.start(stage)?;
            }
        }
        Ok(())
    }

    fn wait_until_equal(&self, sites: &TwoSites) -> Result<()> {
        let is_sync = self.options.mode != "async";
        sites.a.cli().wait_for(VOLUME, "copies in step again", PATIENCE, |view| {
            view.role() == "primary" && view.link() == "streaming" && (!is_sync || view.is_protected())
        })?;
        Ok(())
    }
}
