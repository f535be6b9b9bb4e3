//! Failover without a person: the site of the primary is killed in full load, the other one takes over as soon as the witness lets
//! it, the first one comes back as the follower, and a planned switchover in full load brings the volume home.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::agents::{Cli, NewVolume, Plan, TwoSites, VolumeView, WitnessKind, WitnessPlan};
use crate::dice::Dice;
use crate::ledger::{Audit, Ledger, Load, audit, prepare};
use crate::{devices, process};

use super::Options;
use super::database::Database;
use super::failover_report::{Return, Switch, Takeover, Trip};
use super::host::{Host, is_on_path};

const VOLUME: &str = "demo";
/// Commits that have to be there before something happens: the load is under way on every connection.
const WARM_UP_COMMITS: u64 = 50;
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks at a copy that is to take over.
const LOOK: Duration = Duration::from_millis(5);

/// The witness of the rounds: real where the host has one.
pub(super) fn witness(options: &Options) -> WitnessPlan {
    let kind = if is_on_path("etcd") { WitnessKind::Etcd } else { WitnessKind::File };
    WitnessPlan { kind, lease: Duration::from_millis(options.lease) }
}

/// One round.
pub(super) fn play(options: &Options, host: &Host, number: u32, dice: Dice) -> Result<Trip> {
    let witness = witness(options);
    let mut sites = TwoSites::new(&Plan { name: "failover".to_owned(), witness: Some(witness), ..Plan::default() })?;
    if options.keep {
        sites.stage.keep();
    }
    let mut round = Round { options, host, dice, frontend: String::new() };
    let played = round.play(&mut sites);
    let (takeover, back, switch) = played.with_context(|| sites.logs())?;
    let frontend = round.frontend;
    Ok(Trip { round: number, witness, frontend, judges_times: !options.brief, takeover, back, switch })
}

struct Round<'a> {
    options: &'a Options,
    host: &'a Host,
    dice: Dice,
    frontend: String,
}

impl Round<'_> {
    fn play(&mut self, sites: &mut TwoSites) -> Result<(Takeover, Return, Switch)> {
        self.say("starting site A and site B, with a witness between them");
        sites.start()?;
        let database = self.set_up(sites)?;
        let (database, takeover) = self.take_over(sites, database)?;
        let (database, back) = self.come_back(sites, database)?;
        let switch = self.switch_over(sites, database)?;
        Ok((takeover, back, switch))
    }

    fn say(&self, what: &str) {
        if !self.options.brief {
            eprintln!("  failover: {what}");
        }
    }

    /// A volume at A with its copy at B, arbitrated, with a database on it.
    fn set_up(&mut self, sites: &TwoSites) -> Result<Database> {
        self.say("creating the volume, a file system and a database on it");
        // A silent peer is looked into long before it counts as lost, so that the wait for its lease does not begin late.
        let loss = format!("{}ms", self.options.lease / 2);
        let options = vec!["--log-size", "1Gi", "--on-peer-loss", "witness", "--auto-failover", "true"];
        let options = [options, vec!["--peer-loss", &loss]].concat();
        sites.create(&NewVolume { name: VOLUME, size: &self.options.size, mode: "sync", options })?;
        let cli = sites.a.cli();
        let attachment = cli.attach(VOLUME, &self.options.frontend)?;
        self.frontend.clone_from(&attachment.frontend);
        let device = attachment.block_device()?;
        let database = Database::create(&sites.stage, &self.host.postgres, "a", device, self.options.writers)?;
        for site in [&sites.a, &sites.b] {
            site.cli().wait_for(VOLUME, "volume that the witness arbitrates", PATIENCE, VolumeView::is_arbitrated)?;
        }
        Ok(database)
    }

    /// Full load for a while that the dice choose.
    fn load(&mut self, database: &Database) -> Result<Load> {
        let load = Load::start(&database.server.places().socket, self.options.writers)?;
        load.wait_for(WARM_UP_COMMITS, PATIENCE).context("the load does not get going")?;
        let (min, max) = self.options.load();
        std::thread::sleep(self.dice.between(min, max));
        Ok(load)
    }

    /// Site A is killed in full load; B takes over by itself, and is asked for nothing but its device.
    fn take_over(&mut self, sites: &mut TwoSites, mut database: Database) -> Result<(Database, Takeover)> {
        self.say("full load; then site A is killed");
        let load = self.load(&database)?;
        let mut pids = process::tree(sites.a.pid());
        pids.extend(database.server.pids());
        process::kill_all(&pids);
        let killed = Instant::now();
        let cli = sites.b.cli();
        let decided = until_primary(&cli, killed)?;
        let attachment = cli.attach(VOLUME, &self.options.frontend)?;
        read_first_block(attachment.block_device()?)?;
        let serving = killed.elapsed();
        let ledger = self.bury(sites, &mut database, load)?;
        let database = Database::open(&sites.stage, &self.host.postgres, "b", attachment.block_device()?)?;
        let answering = killed.elapsed();
        let audit = audit(&mut database.server.connect()?, &ledger).context("the database is not whole")?;
        Ok((database, Takeover { audit, decided, serving, answering }))
    }

    /// What is left of A's processes and devices goes.
    fn bury(&self, sites: &mut TwoSites, database: &mut Database, load: Load) -> Result<Ledger> {
        sites.a.kill();
        devices::end_kernel_devices(sites.a.dir())?;
        database.server.kill();
        let ledger = load.finish()?;
        devices::take_down(sites.a.dir())?;
        ensure!(ledger.committed() > WARM_UP_COMMITS, "nothing was committed after the warm-up");
        Ok(ledger)
    }

    /// B is written to, then A returns and follows.
    fn come_back(&mut self, sites: &mut TwoSites, database: Database) -> Result<(Database, Return)> {
        self.say("B serves a new load; then site A comes back");
        self.empty(&database)?;
        let load = self.load(&database)?;
        load.finish()?;
        let cli = sites.b.cli();
        let before = cli.show(VOLUME)?;
        let began = Instant::now();
        sites.a.start(&sites.stage)?;
        let whole = |view: &VolumeView| view.is_protected() && view.sync_sites() == 2;
        let after = cli.wait_for(VOLUME, "follower that counts again", PATIENCE, whole)?;
        let took = began.elapsed();
        let a = sites.a.cli().wait_for(VOLUME, "follower", PATIENCE, |view| view.role() == "secondary")?;
        ensure!(a.copy() == "current", "{}", a.summary());
        let moved = after.sent_bytes().saturating_sub(before.sent_bytes());
        Ok((database, Return { took, moved, size: after.number("/sizeBytes") }))
    }

    fn empty(&self, database: &Database) -> Result<()> {
        let mut connection = database.server.connect()?;
        connection.query("DROP TABLE entry, account")?;
        prepare(&mut connection, self.options.writers)
    }

    /// In full load B is told to stop and A to serve: what was acknowledged by B is at A.
    fn switch_over(&mut self, sites: &TwoSites, mut database: Database) -> Result<Switch> {
        self.say("planned switchover back to site A, in full load");
        self.empty(&database)?;
        let load = self.load(&database)?;
        let (from, to) = (sites.b.cli(), sites.a.cli());
        let began = Instant::now();
        from.demote(VOLUME, &["--force"])?;
        let demoted = began.elapsed();
        to.promote(VOLUME)?;
        let promoted = began.elapsed();
        let attachment = to.attach(VOLUME, &self.options.frontend)?;
        read_first_block(attachment.block_device()?)?;
        let pause = began.elapsed();
        database.server.kill();
        let ledger = load.finish()?;
        drop(database);
        devices::take_down(sites.b.dir())?;
        let database = Database::open(&sites.stage, &self.host.postgres, "a", attachment.block_device()?)?;
        let audit: Audit = audit(&mut database.server.connect()?, &ledger).context("the database is not whole")?;
        database.close_and_check(&self.host.postgres)?;
        to.detach(VOLUME)?;
        let equal = to.verify(VOLUME)?;
        Ok(Switch { audit, demoted, promoted, pause, equal })
    }
}

/// Since `killed` until B says that it is the primary.
fn until_primary(cli: &Cli, killed: Instant) -> Result<Duration> {
    loop {
        let view = cli.show(VOLUME)?;
        if view.role() == "primary" {
            return Ok(killed.elapsed());
        }
        ensure!(killed.elapsed() < PATIENCE, "B does not take over: {}", view.summary());
        std::thread::sleep(LOOK);
    }
}

fn read_first_block(device: &Path) -> Result<()> {
    let mut block = [0; 4096];
    File::open(device)?.read_exact_at(&mut block, 0).with_context(|| format!("{} does not serve", device.display()))
}
