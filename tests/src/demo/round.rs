//! One round: create, load, kill, promote, recover, compare.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::agents::{NewVolume, TwoSites};
use crate::dice::Dice;
use crate::ledger::{Ledger, Load, audit};
use crate::{process, stage};

use super::database::Database;
use super::host::Host;
use super::report::Outcome;
use super::sampler::Sampler;
use super::{Mode, Options};

const VOLUME: &str = "demo";
/// Commits that have to be there before the kill may come: the load is under way on every connection.
const WARM_UP_COMMITS: u64 = 50;
/// For the warm-up and for other things that take a second.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) struct Round<'a> {
    options: &'a Options,
    host: &'a Host,
    mode: Mode,
    number: u32,
    dice: Dice,
}

/// The end of site A.
struct Killed {
    at: Instant,
    ledger: Ledger,
    reported_rpo: Option<Duration>,
}

impl<'a> Round<'a> {
    pub fn new(options: &'a Options, host: &'a Host, mode: Mode, number: u32, dice: Dice) -> Self {
        Self { options, host, mode, number, dice }
    }

    pub fn play(mut self, sites: &mut TwoSites) -> Result<Outcome> {
        self.say("starting site A and site B");
        sites.start()?;
        let mut database = self.set_up(sites)?;
        let killed = self.load_and_kill(sites, &mut database)?;
        drop(database);
        self.say("site A is dead; opening the volume at site B");
        let (database, rto) = self.fail_over(sites, killed.at)?;
        let found =
            audit(&mut database.server.connect()?, &killed.ledger).context("the database at site B is not whole")?;
        self.tear_down(sites, database)?;
        let lost_after = found.oldest_lost.map(|acknowledged| killed.ledger.start + acknowledged);
        let rpo = lost_after.map_or(Duration::ZERO, |oldest| killed.at.saturating_duration_since(oldest));
        Ok(Outcome {
            mode: self.mode.name(),
            round: self.number,
            audit: found,
            rpo,
            reported_rpo: killed.reported_rpo,
            rto,
        })
    }

    fn say(&self, what: &str) {
        if !self.options.brief {
            eprintln!("  {}: {what}", self.mode.name());
        }
    }

    /// A volume at A with its copy at B, a file system and a database on it.
    fn set_up(&self, sites: &TwoSites) -> Result<Database> {
        self.say("creating the volume, a file system and a database on it");
        let options = vec!["--log-size", "1Gi"];
        sites.create(&NewVolume { name: VOLUME, size: &self.options.size, mode: self.mode.name(), options })?;
        let cli = sites.a.cli();
        let attachment = cli.attach(VOLUME, &self.options.frontend)?;
        let device = attachment.block_device()?;
        let database = Database::create(&sites.stage, &self.host.postgres, "a", device, self.options.writers)?;
        // A kill before the peer has the empty database would show nothing about transactions.
        cli.wait_for(VOLUME, "peer that has all of it", PATIENCE, |view| view.backlog_bytes() == 0)?;
        Ok(database)
    }

    /// Full load, and at a random moment SIGKILL to everything that runs at A.
    fn load_and_kill(&mut self, sites: &mut TwoSites, database: &mut Database) -> Result<Killed> {
        let load = Load::start(&database.server.places().socket, self.options.writers)?;
        load.wait_for(WARM_UP_COMMITS, PATIENCE).context("the load does not get going")?;
        let sampler = (self.mode == Mode::Async).then(|| Sampler::start(sites.a.cli(), VOLUME));
        let (min, max) = self.options.load();
        let moment = self.dice.between(min, max);
        self.say(&format!("{} clients commit; the kill comes after {} ms", self.options.writers, moment.as_millis()));
        std::thread::sleep(moment);
        let at = self.kill_site(sites, database);
        let ledger = load.finish()?;
        let reported_rpo = sampler.and_then(|sampler| sampler.bound_at(at));
        ensure!(ledger.committed() > WARM_UP_COMMITS, "nothing was committed after the warm-up");
        Ok(Killed { at, ledger, reported_rpo })
    }

    /// Either the agent or the database goes first: the dice say which. What is on the way to B dies with A's uplink.
    fn kill_site(&mut self, sites: &mut TwoSites, database: &mut Database) -> Instant {
        let (mut first, second) = (process::tree(sites.a.pid()), database.server.pids());
        if self.dice.happens(0.5) {
            first.splice(0..0, second);
        } else {
            first.extend(second);
        }
        if sites.has_link() {
            sites.cut_link();
        }
        process::kill_all(&first);
        let at = Instant::now();
        sites.a.kill();
        database.server.kill();
        at
    }

    /// Promote, attach, mount, recover; returns when the database answers, and how long it took since `killed`.
    fn fail_over(&self, sites: &TwoSites, killed: Instant) -> Result<(Database, Duration)> {
        let cli = sites.b.cli();
        match self.mode {
            Mode::Sync => cli.promote_fenced(VOLUME, "demo: site a was killed", &[])?,
            Mode::Async => cli.promote_fenced(VOLUME, "demo: site a was killed", &["--max-loss-seconds", "60"])?,
        };
        let attachment = cli.attach(VOLUME, &self.options.frontend)?;
        let database = Database::open(&sites.stage, &self.host.postgres, "b", attachment.block_device()?)?;
        let rto = killed.elapsed();
        // What is left of A's device would only fill the kernel's log with errors.
        stage::take_down_devices(sites.a.dir())?;
        Ok((database, rto))
    }

    fn tear_down(&self, sites: &mut TwoSites, database: Database) -> Result<()> {
        database.close_and_check(&self.host.postgres)?;
        sites.b.cli().detach(VOLUME)?;
        sites.b.stop()
    }
}
