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
use super::database::{Database, Devices};
use super::failover_report::{Return, Switch, Takeover, Trip};
use super::host::{Host, is_on_path};

/// The group, and its volumes: the database's data and its write-ahead log.
const GROUP: &str = "demo";
const DATA: &str = "data";
const WAL: &str = "wal";
const WAL_SIZE: &str = "512Mi";
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

    /// A group of two volumes at A with its copy at B, arbitrated, with a database on them.
    fn set_up(&mut self, sites: &TwoSites) -> Result<Database> {
        self.say("creating a group of two volumes, a file system on each, a database on one and its log on the other");
        // A silent peer is looked into long before it counts as lost, so that the wait for its lease does not begin late.
        let loss = format!("{}ms", self.options.lease / 2);
        let options = vec!["--log-size", "1Gi", "--on-peer-loss", "witness", "--auto-failover", "true"];
        let options = [options, vec!["--peer-loss", &loss, "--group", GROUP]].concat();
        sites.create(&NewVolume { name: DATA, size: &self.options.size, mode: "sync", options })?;
        let cli = sites.a.cli();
        cli.json(&["volume", "create", WAL, "--group", GROUP, "--size", WAL_SIZE])?;
        let devices = self.attach(&cli)?;
        let database = Database::create(&sites.stage, &self.host.postgres, "a", devices, self.options.writers)?;
        for site in [&sites.a, &sites.b] {
            site.cli().wait_for(GROUP, "volume that the witness arbitrates", PATIENCE, VolumeView::is_arbitrated)?;
        }
        Ok(database)
    }

    /// Both volumes as devices.
    fn attach(&mut self, cli: &Cli) -> Result<Devices> {
        let (data, wal) = (cli.attach(DATA, &self.options.frontend)?, cli.attach(WAL, &self.options.frontend)?);
        self.frontend.clone_from(&data.frontend);
        Ok(Devices { data: data.block_device()?.clone(), wal: Some(wal.block_device()?.clone()) })
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
        let devices = self.attach(&cli)?;
        read_first_blocks(&devices)?;
        let serving = killed.elapsed();
        let ledger = self.bury(sites, &mut database, load)?;
        let database = Database::open(&sites.stage, &self.host.postgres, "b", devices)?;
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
        let before = cli.show(GROUP)?;
        let began = Instant::now();
        sites.a.start(&sites.stage)?;
        let whole = |view: &VolumeView| view.is_protected() && view.sync_sites() == 2;
        let after = cli.wait_for(GROUP, "follower that counts again", PATIENCE, whole)?;
        let took = began.elapsed();
        let a = sites.a.cli().wait_for(GROUP, "follower", PATIENCE, |view| view.role() == "secondary")?;
        ensure!(a.copy() == "current", "{}", a.summary());
        let moved = after.sent_bytes().saturating_sub(before.sent_bytes());
        let size = [DATA, WAL].iter().map(|name| Ok(cli.show(name)?.number("/sizeBytes"))).sum::<Result<u64>>()?;
        Ok((database, Return { took, moved, size }))
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
        from.demote(GROUP, &["--force"])?;
        let demoted = began.elapsed();
        to.promote(GROUP)?;
        let promoted = began.elapsed();
        let devices = self.attach(&to)?;
        read_first_blocks(&devices)?;
        let pause = began.elapsed();
        database.server.kill();
        let ledger = load.finish()?;
        drop(database);
        devices::take_down(sites.b.dir())?;
        let database = Database::open(&sites.stage, &self.host.postgres, "a", devices)?;
        let audit: Audit = audit(&mut database.server.connect()?, &ledger).context("the database is not whole")?;
        database.close_and_check(&self.host.postgres)?;
        [DATA, WAL].iter().try_for_each(|name| to.detach(name))?;
        let equal = to.verify(GROUP)?;
        Ok(Switch { audit, demoted, promoted, pause, equal })
    }
}

/// Since `killed` until B says that it is the primary.
fn until_primary(cli: &Cli, killed: Instant) -> Result<Duration> {
    loop {
        let view = cli.show(GROUP)?;
        if view.role() == "primary" {
            return Ok(killed.elapsed());
        }
        ensure!(killed.elapsed() < PATIENCE, "B does not take over: {}", view.summary());
        std::thread::sleep(LOOK);
    }
}

fn read_first_blocks(devices: &Devices) -> Result<()> {
    [&devices.data].into_iter().chain(&devices.wal).try_for_each(|device| read_first_block(device))
}

fn read_first_block(device: &Path) -> Result<()> {
    let mut block = [0; 4096];
    File::open(device)?.read_exact_at(&mut block, 0).with_context(|| format!("{} does not serve", device.display()))
}
