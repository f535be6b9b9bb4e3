//! The rows of the model's table of promotions with real agents: each site and the witness, an etcd, in a network namespace of its
//! own, ways between them cut by nftables, agents killed and stopped, and a client that knows what was acknowledged to it.
//!
//! A test has its row's number in its name. What two cores do in the same situations is in `docs/failure-matrix.md`. Those that need
//! the most time run with `--ignored`.

mod ledger;
mod promotions;
mod storms;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tidemark_tests::agents::{NewVolume, Plan, Site, TwoSites, VolumeView, WitnessKind, WitnessPlan};
use tidemark_tests::netns::{Place, between};

use ledger::Ledger;

const PATIENCE: Duration = Duration::from_secs(60);
const NAME: &str = "v";
const WITNESS: WitnessPlan = WitnessPlan { kind: WitnessKind::Etcd, lease: Duration::from_secs(2) };

const AB: (Place, Place) = (Place::A, Place::B);
const AW: (Place, Place) = (Place::A, Place::W);
const BW: (Place, Place) = (Place::B, Place::W);

/// Two sites with an arbitrated volume, primary at A, under load.
struct Stand {
    sites: TwoSites,
    ledger: Ledger,
}

impl Stand {
    fn new(name: &str, auto_failover: &'static str) -> Result<Self> {
        let plan = Plan {
            name: format!("rows-{name}"),
            witness: Some(WITNESS),
            in_namespaces: true,
            log_level: "info,tidemark_agent::witness=debug".to_owned(),
            ..Plan::default()
        };
        let mut sites = TwoSites::new(&plan)?;
        sites.start()?;
        let options = vec!["--on-peer-loss", "witness", "--peer-loss", "1s", "--auto-failover", auto_failover];
        sites.create(&NewVolume { name: NAME, size: "64Mi", mode: "sync", options })?;
        for site in [&sites.a, &sites.b] {
            site.cli().wait_for(NAME, "arbitrated copy", PATIENCE, VolumeView::is_arbitrated)?;
        }
        let ledger = Ledger::start([sites.a.cli(), sites.b.cli()]);
        let stand = Self { sites, ledger };
        stand.goes_on()?;
        Ok(stand)
    }

    /// Cuts these pairs off from each other, both ways, and no others.
    fn cut(&self, pairs: &[(Place, Place)]) -> Result<()> {
        let ways: Vec<_> = pairs.iter().flat_map(|(one, other)| between(*one, *other)).collect();
        self.sites.net().cut(&ways)
    }

    fn told<T>(&self, result: Result<T>) -> Result<T> {
        result.with_context(|| self.sites.logs())
    }

    fn goes_on(&self) -> Result<()> {
        self.told(self.ledger.goes_on())
    }

    fn wait_for(&self, site: &Site, what: &str, done: impl Fn(&VolumeView) -> bool) -> Result<VolumeView> {
        self.told(site.cli().wait_for(NAME, what, PATIENCE, done))
    }

    fn wait_for_role(&self, site: &Site, role: &str) -> Result<VolumeView> {
        self.wait_for(site, role, |view| view.role() == role)
    }

    /// A serves without B.
    fn wait_until_alone(&self) -> Result<VolumeView> {
        self.wait_for(&self.sites.a, "S = {A}", |view| view.role() == "primary" && view.sync_sites() == 1)
    }

    /// `site` serves, and every flush waits for both.
    fn wait_until_whole(&self, site: &Site) -> Result<VolumeView> {
        self.wait_for(site, "both sites in S", |view| {
            view.role() == "primary" && view.sync_sites() == 2 && view.is_protected()
        })
    }

    /// For longer than it takes to take over.
    fn stays(&self, site: &Site, role: &str) -> Result<()> {
        let lasts = WITNESS.lease_wait() + Duration::from_secs(2);
        std::thread::sleep(lasts);
        let view = site.cli().show(NAME)?;
        self.told((view.role() == role).then_some(()).with_context(|| view.summary()))
    }

    /// `promote` with these arguments is refused for this reason. A copy that has not noticed yet that its primary is silent says
    /// that this serves, and is asked again.
    fn is_refused(&self, site: &Site, args: &[&str], why: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let refused =
                site.cli().json(&[&["promote", NAME], args].concat()).err().context("it is promoted")?.to_string();
            if refused.contains(why) {
                return Ok(());
            }
            ensure!(refused.contains("peer-is-primary") && Instant::now() < deadline, "{refused}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// A planned one, from A to B.
    fn switch_over(&self) -> Result<()> {
        let a = self.sites.a.cli();
        let switched = self.ledger.away(|| a.switchover(NAME, "b", &["--detach"]));
        self.told(switched)?;
        self.goes_on()
    }

    /// All that was answered is at `serving`, and the other copy, once it is whole, is equal.
    fn ends_well(self, serves: Place) -> Result<()> {
        let Self { sites, ledger } = self;
        let site = if serves == Place::A { &sites.a } else { &sites.b };
        ledger.audit(&site.cli()).with_context(|| sites.logs())
    }

    /// As [`Self::ends_well`], with both sites in S and equal.
    fn ends_whole(self, serves: Place) -> Result<()> {
        let site = if serves == Place::A { &self.sites.a } else { &self.sites.b };
        self.wait_until_whole(site)?;
        self.goes_on()?;
        let cli = site.cli();
        self.ends_well_and(serves, |_| ensure_equal(cli.verify(NAME)?))
    }

    fn ends_well_and(self, serves: Place, check: impl FnOnce(&TwoSites) -> Result<()>) -> Result<()> {
        let Self { sites, ledger } = self;
        let site = if serves == Place::A { &sites.a } else { &sites.b };
        ledger.audit(&site.cli()).with_context(|| sites.logs())?;
        check(&sites)
    }
}

fn ensure_equal(is_equal: bool) -> Result<()> {
    ensure!(is_equal, "the copies differ");
    Ok(())
}
