//! Failover without a person: the site of the primary is killed in full load, the other one takes over as soon as the witness lets
//! it, the first one comes back as the follower, and a planned switchover in full load brings the volume home.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::agents::{Cli, FourAgents, Plan, Site, VolumeView, WitnessKind, WitnessPlan};
use crate::dice::Dice;
use crate::ledger::{Audit, Ledger, Load, audit, prepare};
use crate::{devices, process};

use super::Options;
use super::database::{Database, Devices};
use super::failover_report::{Return, Switch, Takeover, Trip};
use super::host::{Host, is_on_path};

/// The group, and its volumes, each on a node of its own: the database's data and its write-ahead log.
const GROUP: &str = "demo";
const DATA: &str = "data";
const WAL: &str = "wal";
const VOLUMES: [&str; 2] = [DATA, WAL];
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
    let mut sites = FourAgents::new(&Plan { name: "failover".to_owned(), witness: Some(witness), ..Plan::default() })?;
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
    fn play(&mut self, sites: &mut FourAgents) -> Result<(Takeover, Return, Switch)> {
        self.say("starting site A and site B, two nodes each, with a witness between them");
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

    /// A group of two volumes at A, on a node each, with their copies at B, arbitrated, with a database on them.
    fn set_up(&mut self, sites: &FourAgents) -> Result<Database> {
        self.say("creating a group of two volumes on two nodes, a file system on each, a database on one and its log on the other");
        // A silent peer is looked into long before it counts as lost, so that the wait for its lease does not begin late.
        let loss = format!("{}ms", self.options.lease / 2);
        let options = ["--log-size", "1Gi", "--on-peer-loss", "witness", "--auto-failover", "true", "--mode", "sync"];
        let options = [&options[..], &["--peer-loss", &loss]].concat();
        for (node, (volume, size)) in [(DATA, self.options.size.as_str()), (WAL, WAL_SIZE)].into_iter().enumerate() {
            sites.create(node, (volume, size), GROUP, &options)?;
        }
        sites.wait_until_whole(&sites.a, VOLUMES, PATIENCE)?;
        let devices = self.attach(&sites.a)?;
        let database = Database::create(&sites.stage, &self.host.postgres, "a", devices, self.options.writers)?;
        for agent in sites.a.iter().chain(&sites.b) {
            agent.cli().wait_for(GROUP, "volume that the witness arbitrates", PATIENCE, VolumeView::is_arbitrated)?;
        }
        Ok(database)
    }

    /// Both volumes as devices.
    fn attach(&mut self, site: &[Site; 2]) -> Result<Devices> {
        let attach = |node: usize| site[node].cli().attach(VOLUMES[node], &self.options.frontend);
        let (data, wal) = (attach(0)?, attach(1)?);
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

    /// Both nodes of site A are killed in full load; B takes over by itself, and is asked for nothing but its devices.
    fn take_over(&mut self, sites: &mut FourAgents, mut database: Database) -> Result<(Database, Takeover)> {
        self.say("full load; then site A is killed");
        let load = self.load(&database)?;
        let mut pids: Vec<_> = sites.a.iter().flat_map(|agent| process::tree(agent.pid())).collect();
        pids.extend(database.server.pids());
        process::kill_all(&pids);
        let killed = Instant::now();
        let decided = until_primary(&sites.b, killed)?;
        let devices = self.attach(&sites.b)?;
        read_first_blocks(&devices)?;
        let serving = killed.elapsed();
        let ledger = self.bury(sites, &mut database, load)?;
        let database = Database::open(&sites.stage, &self.host.postgres, "b", devices)?;
        let answering = killed.elapsed();
        let audit = audit(&mut database.server.connect()?, &ledger).context("the database is not whole")?;
        Ok((database, Takeover { audit, decided, serving, answering }))
    }

    /// What is left of A's processes and devices goes.
    fn bury(&self, sites: &mut FourAgents, database: &mut Database, load: Load) -> Result<Ledger> {
        sites.a.iter_mut().for_each(Site::kill);
        sites.a.iter().try_for_each(|agent| devices::end_kernel_devices(agent.dir()))?;
        database.server.kill();
        let ledger = load.finish()?;
        sites.a.iter().try_for_each(|agent| devices::take_down(agent.dir()))?;
        ensure!(ledger.committed() > WARM_UP_COMMITS, "nothing was committed after the warm-up");
        Ok(ledger)
    }

    /// B is written to, then A returns and follows.
    fn come_back(&mut self, sites: &mut FourAgents, database: Database) -> Result<(Database, Return)> {
        self.say("B serves a new load; then site A comes back");
        self.empty(&database)?;
        let load = self.load(&database)?;
        load.finish()?;
        let sum = |of: fn(&VolumeView) -> u64| {
            let volumes = sites.b.iter().zip(VOLUMES);
            volumes.map(|(agent, volume)| Ok(of(&agent.cli().show(volume)?))).sum::<Result<u64>>()
        };
        let (before, size) = (sum(VolumeView::sent_bytes)?, sum(|view| view.number("/sizeBytes"))?);
        let began = Instant::now();
        sites.start()?;
        sites.wait_until_whole(&sites.b, VOLUMES, PATIENCE)?;
        let took = began.elapsed();
        for agent in &sites.a {
            let a = agent.cli().wait_for(GROUP, "follower", PATIENCE, |view| view.role() == "secondary")?;
            ensure!(a.copy() == "current", "{}", a.summary());
        }
        let after: u64 = {
            let volumes = sites.b.iter().zip(VOLUMES);
            volumes.map(|(agent, volume)| Ok(agent.cli().show(volume)?.sent_bytes())).sum::<Result<u64>>()?
        };
        let moved = after.saturating_sub(before);
        Ok((database, Return { took, moved, size }))
    }

    fn empty(&self, database: &Database) -> Result<()> {
        let mut connection = database.server.connect()?;
        connection.query("DROP TABLE entry, account")?;
        prepare(&mut connection, self.options.writers)
    }

    /// In full load B is told to stop and A to serve: what was acknowledged by B is at A.
    fn switch_over(&mut self, sites: &FourAgents, mut database: Database) -> Result<Switch> {
        self.say("planned switchover back to site A, in full load");
        self.empty(&database)?;
        let load = self.load(&database)?;
        // Asked where the group is led.
        let (from, to) = (sites.b[0].cli(), sites.a[0].cli());
        let began = Instant::now();
        from.demote(GROUP, &["--force"])?;
        let demoted = began.elapsed();
        to.promote(GROUP)?;
        until_primary(&sites.a, began)?;
        let promoted = began.elapsed();
        let devices = self.attach(&sites.a)?;
        read_first_blocks(&devices)?;
        let pause = began.elapsed();
        database.server.kill();
        let ledger = load.finish()?;
        drop(database);
        sites.b.iter().try_for_each(|agent| devices::take_down(agent.dir()))?;
        let database = Database::open(&sites.stage, &self.host.postgres, "a", devices)?;
        let audit: Audit = audit(&mut database.server.connect()?, &ledger).context("the database is not whole")?;
        database.close_and_check(&self.host.postgres)?;
        let mut equal = true;
        for (agent, volume) in sites.a.iter().zip(VOLUMES) {
            agent.cli().detach(volume)?;
            equal &= agent.cli().verify(volume)?;
        }
        Ok(Switch { audit, demoted, promoted, pause, equal })
    }
}

/// Since `began` until both nodes of a site say that they are the primary.
fn until_primary(site: &[Site; 2], began: Instant) -> Result<Duration> {
    let clis: Vec<Cli> = site.iter().map(Site::cli).collect();
    for cli in &clis {
        loop {
            let view = cli.show(GROUP)?;
            if view.role() == "primary" {
                break;
            }
            ensure!(began.elapsed() < PATIENCE, "it does not take over: {}", view.summary());
            std::thread::sleep(LOOK);
        }
    }
    Ok(began.elapsed())
}

fn read_first_blocks(devices: &Devices) -> Result<()> {
    [&devices.data].into_iter().chain(&devices.wal).try_for_each(|device| read_first_block(device))
}

fn read_first_block(device: &Path) -> Result<()> {
    let mut block = [0; 4096];
    File::open(device)?.read_exact_at(&mut block, 0).with_context(|| format!("{} does not serve", device.display()))
}
