//! Two agents with a volume under verify load, and the check of everything at the end.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::agents::{NewVolume, Plan, Site, TwoSites, VolumeView};
use crate::process;
use crate::verifier::{Target, Verifier};

/// The volume's name.
pub(super) const VOLUME: &str = "trial";
const VOLUME_BYTES: u64 = 64 << 20;
const WORKERS: u32 = 8;
/// Longer than any condition that holds requests up.
const REQUEST_PATIENCE: Duration = Duration::from_secs(120);
/// For a state to show, and to go.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// What a trial is told.
pub(super) struct Condition {
    pub seed: u64,
    pub span: Duration,
    pub keep: bool,
}

/// What a trial wants.
pub(super) struct Wishes<'a> {
    pub mode: &'a str,
    pub log_size: &'a str,
    pub disk_timeout: &'a str,
    pub on_volatile_disks: bool,
    pub has_link: bool,
}

impl Default for Wishes<'_> {
    fn default() -> Self {
        Self { mode: "sync", log_size: "64Mi", disk_timeout: "30s", on_volatile_disks: false, has_link: false }
    }
}

/// Agents, volume and load. Fields end in this order: the load first.
pub(super) struct Field {
    pub verifier: Verifier,
    pub sites: TwoSites,
}

impl Field {
    pub fn new(condition: &Condition, wishes: &Wishes<'_>) -> Result<Self> {
        let Wishes { on_volatile_disks, has_link, .. } = *wishes;
        let link_seed = has_link.then_some(condition.seed);
        let name = "trial".to_owned();
        let mut sites = TwoSites::new(&Plan { name, link_seed, on_volatile_disks, ..Plan::default() })?;
        if condition.keep {
            sites.stage.keep();
        }
        let started = start(&mut sites, wishes, condition.seed);
        let verifier = started.with_context(|| sites.logs())?;
        Ok(Self { verifier, sites })
    }

    /// Does `what`, then [`Self::finish`]; with the agents' logs when it goes wrong.
    pub fn play<T>(mut self, what: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let result = what(&mut self).and_then(|said| self.finish().map(|()| said));
        result.with_context(|| self.sites.logs())
    }

    /// Does `what`, after which A is not to be used any more, then [`Self::take_over`].
    pub fn play_to_the_end_of_a<T>(mut self, what: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let result = what(&mut self).and_then(|said| self.take_over().map(|()| said));
        result.with_context(|| self.sites.logs())
    }

    /// A is gone; B is promoted without a loss and serves what it must.
    fn take_over(&mut self) -> Result<()> {
        self.sites.a.kill();
        self.verifier.pause()?;
        let cli = self.sites.b.cli();
        cli.promote_fenced(VOLUME, "trial: the disk of site a failed", &[])?;
        self.verifier.check_at(&cli.attach(VOLUME, "nbd")?.nbd_socket()?).context("at site B")
    }

    /// Both agents are killed and come back; everything is there and equal.
    fn finish(&mut self) -> Result<()> {
        self.verifier.pause()?;
        self.sites.a.kill();
        self.sites.b.kill();
        self.sites.start()?;
        self.wait("primary again", |view| view.role() == "primary")?;
        self.verifier.check().context("after the end")?;
        self.wait("copies in step", |view| view.link() == "streaming" && view.is_protected())?;
        ensure!(self.sites.a.cli().verify(VOLUME)?, "the copies differ");
        Ok(())
    }

    /// Waits for a state of A's copy.
    pub fn wait(&self, what: &str, done: impl Fn(&VolumeView) -> bool) -> Result<VolumeView> {
        self.sites.a.cli().wait_for(VOLUME, what, PATIENCE, done)
    }

    /// Requests that were answered so far.
    pub fn answered(&self) -> u64 {
        let counts = self.verifier.counts();
        counts.reads + counts.writes + counts.flushes
    }

    /// Waits until the load gets on, and no connection was lost.
    pub fn expect_progress(&self) -> Result<()> {
        let (before, deadline) = (self.answered(), Instant::now() + PATIENCE);
        while self.answered() < before + 100 {
            ensure!(Instant::now() < deadline, "the load does not get on");
            std::thread::sleep(Duration::from_millis(20));
        }
        self.verifier.expect_unbroken()
    }

    /// Processor seconds that each agent uses in `span`.
    pub fn processor_seconds(&self, span: Duration) -> [f64; 2] {
        let used = || [&self.sites.a, &self.sites.b].map(|site| process::processor_seconds(site.pid()));
        let before = used();
        std::thread::sleep(span);
        let after = used();
        [after[0] - before[0], after[1] - before[1]]
    }

    /// That neither agent uses more than `share` of a processor in `span`.
    pub fn expect_quiet(&self, span: Duration, share: f64) -> Result<[f64; 2]> {
        let used = self.processor_seconds(span);
        let limit = share * span.as_secs_f64();
        ensure!(
            used.iter().all(|seconds| *seconds <= limit),
            "{used:?} processor seconds in {span:?}: something spins"
        );
        Ok(used)
    }
}

fn start(sites: &mut TwoSites, wishes: &Wishes<'_>, seed: u64) -> Result<Verifier> {
    sites.start()?;
    let size = VOLUME_BYTES.to_string();
    let options = vec!["--log-size", wishes.log_size, "--disk-timeout", wishes.disk_timeout];
    sites.create(&NewVolume { name: VOLUME, size: &size, mode: wishes.mode, options })?;
    let socket = sites.a.cli().attach(VOLUME, "nbd")?.nbd_socket()?;
    let export = VOLUME.to_owned();
    let target = Target { socket, export, size: VOLUME_BYTES, workers: WORKERS, patience: REQUEST_PATIENCE, seed };
    Ok(Verifier::start(target))
}

/// That the metrics of a site show a state of the role or the copy.
pub(super) fn expect_metric(site: &Site, kind: &str, state: &str) -> Result<()> {
    let metrics = site.metrics()?;
    let shown = metrics.lines().any(|line| {
        line.starts_with(&format!("tidemark_volume_{kind}{{"))
            && line.contains(&format!("state=\"{state}\""))
            && line.split_whitespace().last().is_some_and(|value| value.starts_with('1'))
    });
    ensure!(shown, "no metric says that the {kind} is {state}");
    Ok(())
}
