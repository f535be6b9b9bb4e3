//! One agent with its copy: a member of the group at a site.

use tidemark_core::event::Input;
use tidemark_core::group::lease::Holder;
use tidemark_core::node::Node;
use tidemark_core::status::Role;
use tidemark_core::types::{BootId, GenId, Incarnation, NodeId, SiteId, VolumeId};

use crate::sim::disk::Disk;
use crate::sim::site::Clock;

/// Members of a site.
pub const MEMBERS: usize = 2;
/// All of them.
pub const PARTIES: usize = 2 * MEMBERS;

/// The party of a member at a site.
pub fn party(site: usize, member: usize) -> usize {
    site * MEMBERS + member
}

/// A, B and their members.
pub fn name(party: usize) -> &'static str {
    ["A0", "A1", "B0", "B1"][party]
}

/// A site by number.
pub fn site_id(site: usize) -> SiteId {
    SiteId([site as u8 + 1; 16])
}

/// The agent of a party.
pub fn node_id(party: usize) -> NodeId {
    NodeId([party as u8 + 0x11; 16])
}

/// The volume of a member.
pub fn volume_id(member: usize) -> VolumeId {
    VolumeId([member as u8 + 0x51; 16])
}

/// One opening as Primary: where its records begin.
pub type Line = (GenId, Incarnation);

/// See the module.
#[derive(Debug)]
pub struct Party {
    /// Its site.
    pub site: usize,
    /// Its number there.
    pub member: usize,
    /// The running copy.
    pub node: Option<Node>,
    /// Counts processes.
    pub instance: u32,
    /// Its disk.
    pub disk: Disk,
    /// The process' clock.
    pub clock: Clock,
    /// The kernel's boot.
    pub boot: BootId,
    /// Facts that the process has not taken yet.
    pub inbox: Vec<Input>,
    /// A wake-up is scheduled.
    pub waking: bool,
    /// When the next tick is due.
    pub tick_at: Option<u64>,
    /// The role as last seen.
    pub role: Role,
    /// The line that it serves, since it was seen to.
    pub serves: Option<Line>,
    /// It starts again then.
    pub down_until: Option<u64>,
    /// Its agent's lease, where it leads.
    pub lease: Option<Holder>,
}

impl Party {
    /// One that was never started.
    pub fn new(number: usize, boot: BootId) -> Self {
        Self {
            site: number / MEMBERS,
            member: number % MEMBERS,
            node: None,
            instance: 0,
            disk: Disk::default(),
            clock: Clock::new(0, 0, 1_000_000),
            boot,
            inbox: Vec::new(),
            waking: false,
            tick_at: None,
            role: Role::Secondary,
            serves: None,
            down_until: None,
            lease: None,
        }
    }

    /// It leads its site.
    pub fn leads(&self) -> bool {
        self.member == 0
    }
}
