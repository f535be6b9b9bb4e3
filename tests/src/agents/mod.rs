//! Real agents at two sites on loopback: certificates, configurations, processes, and the command line to drive them.
//!
//! Everything goes through what a user has: the binaries `tidemark-agent` and `tidemark`, files, signals. Sites have
//! loopback addresses of their own, so ports never collide between tests that run at the same time.

mod address;
mod cli;
mod four;
mod programs;
mod site;
mod view;
mod witness;

use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::netns::{Net, Place};
use crate::proxy::Weather;
use crate::stage::Stage;

use address::Route;
pub use cli::{Cli, NewVolume, Refused};
pub use four::FourAgents;
pub use programs::{Programs, beside_this_program};
pub use site::Site;
pub use view::{Attachment, VolumeView};
pub use witness::{WitnessKind, WitnessPlan};

use witness::Witness;

/// What two sites are to be like.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Part of the directory's name.
    pub name: String,
    /// Serving threads of each agent.
    pub shards: u16,
    /// No TLS between the sites.
    pub insecure: bool,
    /// Log filter of the agents.
    pub log_level: String,
    /// A proxy between the sites that [`TwoSites::set_link`] controls; the seed of its dice.
    pub link_seed: Option<u64>,
    /// Each site's pool is on a volatile disk of its own.
    pub on_volatile_disks: bool,
    /// The arbiter between the sites.
    pub witness: Option<WitnessPlan>,
    /// The sites, and a witness that is a server, have a network of their own, with a namespace each.
    pub in_namespaces: bool,
    /// More lines for the agents' configuration files, as whole sections.
    pub config: String,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            name: "sites".to_owned(),
            shards: 1,
            insecure: false,
            log_level: "info".to_owned(),
            link_seed: None,
            on_volatile_disks: false,
            witness: None,
            in_namespaces: false,
            config: String::new(),
        }
    }
}

/// Two sites that know each other. Agents are not started by [`TwoSites::new`].
///
/// Fields end in this order: agents first, then the link, then everything that is left in the directory.
#[derive(Debug)]
pub struct TwoSites {
    /// The site that is primary first. It has the lower site id, so it dials.
    pub a: Site,
    /// The other one.
    pub b: Site,
    link: Option<Route>,
    net: Option<Net>,
    witness: Option<Witness>,
    /// Where all of it lies.
    pub stage: Stage,
}

impl TwoSites {
    /// Makes certificates and configurations.
    ///
    /// # Errors
    /// When the binaries are not built, or one of them fails.
    pub fn new(plan: &Plan) -> Result<Self> {
        let (stage, programs) = (Stage::new(&plan.name)?, Programs::find()?);
        let net = plan.in_namespaces.then(|| Net::new(stage.dir())).transpose()?;
        let witness = plan.witness.map(|plan| Witness::start(&stage, net.as_ref(), plan)).transpose()?;
        let config = witness.as_ref().map_or("", Witness::section).to_owned() + &plan.config;
        let plan = &Plan { config, ..plan.clone() };
        let [address_a, address_b, address_link] = match &net {
            Some(_) => address::of_places(),
            None => address::three(plan.shards)?,
        };
        let at = |place| net.clone().map(|net| (net, place));
        let a = Site::new(&stage, &programs, ("a", address_a), plan, at(Place::A))?;
        let b = Site::new(&stage, &programs, ("b", address_b), plan, at(Place::B))?;
        // Only A dials: its way to B leads over the proxy.
        let link = plan.link_seed.map(|seed| Route::new(address_link, b.address(), plan.shards, seed)).transpose()?;
        let to_b = link.as_ref().map_or(b.address(), Route::address);
        a.issue_certificates(&[address_a.ip(), address_link.ip()])?;
        b.issue_certificates(&[address_b.ip(), address_link.ip()])?;
        a.write_config(&b, to_b)?;
        b.write_config(&a, address_a)?;
        Ok(Self { a, b, link, net, witness, stage })
    }

    /// Starts both agents and waits until each answers.
    ///
    /// # Errors
    /// When that does not happen; the end of the agent's log is in the message.
    pub fn start(&mut self) -> Result<()> {
        self.a.start(&self.stage)?;
        self.b.start(&self.stage)
    }

    /// The network of the sites and their witness.
    ///
    /// # Panics
    /// When the plan has none.
    pub fn net(&self) -> &Net {
        self.net.as_ref().expect("the plan has in_namespaces")
    }

    /// The witness has forgotten everything; for an etcd.
    ///
    /// # Errors
    /// When it does not start again.
    pub fn wipe_witness(&mut self) -> Result<()> {
        self.witness.as_mut().context("the plan has no witness")?.wipe(&self.stage)
    }

    /// Whether there is a link that can be changed and cut.
    pub fn has_link(&self) -> bool {
        self.link.is_some()
    }

    /// Changes the link between the sites.
    ///
    /// # Panics
    /// When the plan has no link.
    pub fn set_link(&self, weather: Weather) {
        self.link.as_ref().expect("the plan has a link_seed").set(weather);
    }

    /// Cuts every connection between the sites.
    ///
    /// # Panics
    /// When the plan has no link.
    pub fn cut_link(&self) {
        self.link.as_ref().expect("the plan has a link_seed").cut();
    }

    /// Connections between the sites that were cut so far.
    ///
    /// # Panics
    /// When the plan has no link.
    pub fn link_cuts(&self) -> u64 {
        self.link.as_ref().expect("the plan has a link_seed").cuts()
    }

    /// Makes a volume at A with its copy at B and waits until both copies are equal and stream.
    ///
    /// # Errors
    /// When the agents refuse or it takes longer than a minute.
    pub fn create(&self, volume: &NewVolume<'_>) -> Result<VolumeView> {
        self.a.cli().create(volume)?;
        let done = |view: &VolumeView| view.link() == "streaming" && (!volume.is_sync() || view.is_protected());
        self.a.cli().wait_for(volume.name, "both copies equal", Duration::from_secs(60), done)
    }

    /// The last lines of both agents' logs, for messages.
    pub fn logs(&self) -> String {
        format!("{}\n{}", self.a.log_tail(), self.b.log_tail())
    }
}
