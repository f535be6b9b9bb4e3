//! One round: create, load, kill, promote, recover, compare.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::agents::{Cli, NewVolume, TwoSites};
use crate::dice::Dice;
use crate::ledger::{Audit, Ledger, Load, audit};
use crate::{devices, process};

use super::database::{Database, Devices};
use super::host::Host;
use super::report::Outcome;
use super::sampler::Sampler;
use super::{Disaster, Mode, Options};

const VOLUME: &str = "demo";
/// Commits that have to be there before the kill may come: the load is under way on every connection.
const WARM_UP_COMMITS: u64 = 50;
/// A slow disk's time for a sync.
const MAX_SYNC_DELAY: Duration = Duration::from_millis(30);
/// For the warm-up and for other things that take a second.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) struct Round<'a> {
    options: &'a Options,
    host: &'a Host,
    mode: Mode,
    number: u32,
    disaster: Disaster,
    dice: Dice,
    /// What the device is, once there is one.
    frontend: String,
}

/// The end of site A.
struct Killed {
    at: Instant,
    ledger: Ledger,
    reported_rpo: Option<Duration>,
}

impl<'a> Round<'a> {
    pub fn new(options: &'a Options, host: &'a Host, mode: Mode, number: u32, mut dice: Dice) -> Self {
        let disasters = options.disasters();
        let disaster = disasters[dice.below(disasters.len() as u64) as usize];
        Self { options, host, mode, number, disaster, dice, frontend: String::new() }
    }

    pub fn play(mut self, sites: &mut TwoSites) -> Result<Outcome> {
        self.say("starting site A and site B");
        sites.start()?;
        let mut database = self.set_up(sites)?;
        let killed = self.load_and_kill(sites, &mut database)?;
        drop(database);
        Ok(self.compare(&killed, self.recover(sites, &killed)))
    }

    /// Opens the volume where the disaster left it, and reads what is there. A failure in here breaks the promise.
    fn recover(&self, sites: &mut TwoSites, killed: &Killed) -> Result<(Audit, Duration)> {
        let (database, rto) = match self.disaster {
            Disaster::ALost | Disaster::BReturns => self.open_at_b(sites, killed.at)?,
            Disaster::AReturns => self.open_at_a(sites, killed.at)?,
        };
        let found = audit(&mut database.server.connect()?, &killed.ledger).context("the database is not whole")?;
        database.close_and_check(&self.host.postgres)?;
        let site = if self.disaster == Disaster::AReturns { &mut sites.a } else { &mut sites.b };
        site.cli().detach(VOLUME)?;
        site.stop()?;
        Ok((found, rto))
    }

    fn compare(&self, killed: &Killed, recovered: Result<(Audit, Duration)>) -> Outcome {
        let broken = recovered.as_ref().err().map(|error| format!("{error:#}"));
        let (audit, rto) = recovered.unwrap_or_default();
        let lost_after = audit.oldest_lost.map(|acknowledged| killed.ledger.start + acknowledged);
        let rpo = lost_after.map_or(Duration::ZERO, |oldest| killed.at.saturating_duration_since(oldest));
        let (mode, round, disaster, reported_rpo) = (self.mode.name(), self.number, self.disaster, killed.reported_rpo);
        let frontend = self.frontend.clone();
        Outcome { mode, round, disaster, frontend, broken, audit, rpo, reported_rpo, rto }
    }

    fn say(&self, what: &str) {
        if !self.options.brief {
            eprintln!("  {}: {what}", self.mode.name());
        }
    }

    /// A volume at A with its copy at B, a file system and a database on it.
    fn set_up(&mut self, sites: &TwoSites) -> Result<Database> {
        self.say("creating the volume, a file system and a database on it");
        let options = vec!["--log-size", "1Gi"];
        sites.create(&NewVolume { name: VOLUME, size: &self.options.size, mode: self.mode.name(), options })?;
        let cli = sites.a.cli();
        let attachment = cli.attach(VOLUME, &self.options.frontend)?;
        let device = attachment.block_device()?;
        self.say(&format!("the volume is {}, a device of frontend {}", device.display(), attachment.frontend));
        self.frontend.clone_from(&attachment.frontend);
        let database =
            Database::create(&sites.stage, &self.host.postgres, "a", Devices::one(device), self.options.writers)?;
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
        if self.options.on_volatile_disk {
            self.draw_speeds(sites)?;
        }
        self.say(&format!("{} clients commit; the kill comes after {} ms", self.options.writers, moment.as_millis()));
        std::thread::sleep(moment);
        let at = self.strike(sites, database)?;
        let ledger = load.finish()?;
        let reported_rpo = sampler.and_then(|sampler| sampler.bound_at(at));
        ensure!(ledger.committed() > WARM_UP_COMMITS, "nothing was committed after the warm-up");
        Ok(Killed { at, ledger, reported_rpo })
    }

    /// One site's disk takes its time for a sync: only then is the other ahead of it at the end.
    fn draw_speeds(&mut self, sites: &TwoSites) -> Result<()> {
        let slow = if self.dice.happens(0.5) { &sites.a } else { &sites.b };
        slow.disk().set_sync_delay(self.dice.between(Duration::ZERO, MAX_SYNC_DELAY))
    }

    /// The disaster. Where the power fails at both sites, either goes first.
    fn strike(&mut self, sites: &mut TwoSites, database: &mut Database) -> Result<Instant> {
        let b_fails = self.disaster != Disaster::ALost;
        if self.options.on_volatile_disk {
            let mut failing = if b_fails { vec![&sites.a, &sites.b] } else { vec![&sites.a] };
            if self.dice.happens(0.5) {
                failing.reverse();
            }
            for site in failing {
                site.cut_disk(self.dice.number())?;
            }
        }
        let at = self.kill_site(sites, database)?;
        if b_fails {
            sites.b.kill();
        }
        Ok(at)
    }

    /// Either the agent or the database goes first: the dice say which. What is on the way to B dies with A's uplink.
    fn kill_site(&mut self, sites: &mut TwoSites, database: &mut Database) -> Result<Instant> {
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
        // A device of the kernel outlives its agent, and the processes that wait for it outlive their SIGKILL.
        devices::end_kernel_devices(sites.a.dir())?;
        database.server.kill();
        Ok(at)
    }

    /// Promote, attach, mount, recover; returns when the database answers, and how long it took since `killed`.
    fn open_at_b(&self, sites: &mut TwoSites, killed: Instant) -> Result<(Database, Duration)> {
        self.say("site A is gone; opening the volume at site B");
        if !sites.b.is_running() {
            sites.b.start(&sites.stage)?;
        }
        // Since its restart B has not heard A: it cannot say how much is missing.
        let options: &[&str] = match (self.mode, self.disaster) {
            (Mode::Sync, _) => &[],
            (Mode::Async, Disaster::BReturns) => &["--allow-unproven"],
            (Mode::Async, _) => &["--max-loss-seconds", "60"],
        };
        promote(&sites.b.cli(), "demo: site a was lost", options)?;
        let database = self.open_database(sites, &sites.b.cli(), "b")?;
        let rto = killed.elapsed();
        // What is left of A's device would only fill the kernel's log with errors.
        devices::take_down(sites.a.dir())?;
        Ok((database, rto))
    }

    /// The same at A, after its restart.
    fn open_at_a(&self, sites: &mut TwoSites, killed: Instant) -> Result<(Database, Duration)> {
        self.say("only site A has power again; opening the volume there");
        devices::take_down(sites.a.dir())?;
        sites.a.start(&sites.stage)?;
        let cli = sites.a.cli();
        if self.mode == Mode::Sync {
            promote(&cli, "demo: site b was lost", &[])?;
        }
        cli.wait_for(VOLUME, "primary", PATIENCE, |view| view.role() == "primary")?;
        Ok((self.open_database(sites, &cli, "a")?, killed.elapsed()))
    }

    fn open_database(&self, sites: &TwoSites, cli: &Cli, site: &str) -> Result<Database> {
        let attachment = cli.attach(VOLUME, &self.options.frontend)?;
        Database::open(&sites.stage, &self.host.postgres, site, Devices::one(attachment.block_device()?))
    }
}

/// Promotes by assertion; a copy that is only just recovering is asked again.
fn promote(cli: &Cli, reason: &str, options: &[&str]) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match cli.promote_fenced(VOLUME, reason, options) {
            Err(error) if error.to_string().contains("opening") && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(20));
            }
            other => return other.map(drop),
        }
    }
}
