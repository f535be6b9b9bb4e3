//! Two nodes at each of two sites: node n of one site and node n of the other are peers.

use std::time::Duration;

use anyhow::{Context as _, Result};

use super::witness::Witness;
use super::{Plan, Programs, Site, VolumeView, address};
use crate::stage::Stage;

/// Four agents. Not started by [`FourAgents::new`].
///
/// Fields end in this order: agents first, then everything that is left in the directory.
#[derive(Debug)]
pub struct FourAgents {
    /// Site A, which is primary first.
    pub a: [Site; 2],
    /// Site B.
    pub b: [Site; 2],
    _witness: Option<Witness>,
    /// Where all of it lies.
    pub stage: Stage,
}

impl FourAgents {
    /// Makes certificates and configurations.
    ///
    /// # Errors
    /// When the binaries are not built, or one of them fails.
    pub fn new(plan: &Plan) -> Result<Self> {
        let (stage, programs) = (Stage::new(&plan.name)?, Programs::find()?);
        let witness = plan.witness.map(|plan| Witness::start(&stage, None, plan)).transpose()?;
        let config = witness.as_ref().map_or("", Witness::section).to_owned() + &plan.config;
        let plan = &Plan { config, ..plan.clone() };
        let [a1, a2, _] = address::three(plan.shards)?;
        let [b1, b2, _] = address::three(plan.shards)?;
        let node = |name, number, address| Site::node(&stage, &programs, (name, number, address), plan, None);
        let site = |name, first, second| -> Result<[Site; 2]> {
            let mut site = [node(name, 1, first)?, node(name, 2, second)?];
            let ids = [site[0].node_id(), site[1].node_id()];
            site[0].add_mate(ids[1].clone(), second);
            site[1].add_mate(ids[0].clone(), first);
            site[0].issue_certificates(&[first.ip()])?;
            site[1].issue_certificates(&[second.ip()])?;
            Ok(site)
        };
        let (a, b) = (site("a", a1, a2)?, site("b", b1, b2)?);
        for (here, there) in a.iter().zip(&b).chain(b.iter().zip(&a)) {
            here.write_config(there, there.address())?;
        }
        Ok(Self { a, b, _witness: witness, stage })
    }

    /// Starts those of all four agents that do not run.
    ///
    /// # Errors
    /// When one does not answer; the end of its log is in the message.
    pub fn start(&mut self) -> Result<()> {
        let stage = &self.stage;
        let down = self.a.iter_mut().chain(&mut self.b).filter(|agent| !agent.is_running());
        down.into_iter().try_for_each(|agent| agent.start(stage))
    }

    /// Makes the first volume of a group at A's first node, or one at the second, which joins; the nodes of both sites are its
    /// members.
    ///
    /// # Errors
    /// When the agent refuses.
    pub fn create(
        &self,
        node: usize,
        (volume, size): (&str, &str),
        group: &str,
        options: &[&str],
    ) -> Result<VolumeView> {
        let list = |site: &[Site; 2]| format!("{},{}", site[0].node_id(), site[1].node_id());
        let (here, there) = (list(&self.a), list(&self.b));
        let mut args = vec!["volume", "create", volume, "--group", group, "--size", size, "--peer-site", "b"];
        args.extend(["--pool", "main", "--members", &here, "--peer-members", &there]);
        args.extend(options);
        Ok(VolumeView(self.a[node].cli().json(&args)?))
    }

    /// Waits until both volumes, each on its node of `site`, are served, and a loss of the site would lose nothing.
    ///
    /// # Errors
    /// When `patience` is over before; the ends of all logs are in the message.
    pub fn wait_until_whole(&self, site: &[Site; 2], volumes: [&str; 2], patience: Duration) -> Result<()> {
        let is_whole = |view: &VolumeView| view.role() == "primary" && view.is_protected() && view.sync_sites() == 2;
        for (agent, volume) in site.iter().zip(volumes) {
            let whole = agent.cli().wait_for(volume, "two sites in S", patience, is_whole);
            whole.with_context(|| self.logs())?;
        }
        Ok(())
    }

    /// The last lines of all logs, for messages.
    pub fn logs(&self) -> String {
        let tails =
            self.a.iter().chain(&self.b).map(|agent| format!("{}:\n{}", agent.dir().display(), agent.log_tail()));
        tails.collect::<Vec<_>>().join("\n")
    }
}
