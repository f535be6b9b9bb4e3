//! The configuration K in sixteen bytes, and the core's own decisions on it.
//!
//! A state of the model holds half a dozen of them, and there are millions of states: so they are small, and become the core's
//! [`Config`] only where one of its functions is asked.

use tidemark_core::config::{Config, Mode, Since};
use tidemark_core::types::{Epoch, GenId, NodeId, Nonce, SiteId};

/// A site by number: 0 is A, 1 is B.
pub type Site = usize;

/// No site.
pub const NOBODY: Site = 2;

/// The other one.
pub fn other(site: Site) -> Site {
    1 - site
}

/// Both sites as a set.
pub const BOTH: u8 = 0b11;

/// A set of one site.
pub fn only(site: Site) -> u8 {
    1 << site
}

/// Epoch and nonce of a K. Ordered by the epoch alone: see [`Id::is_before`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Id {
    /// Epoch.
    pub major: u8,
    /// Epoch.
    pub minor: u8,
    /// Tells two K of one epoch apart.
    pub nonce: u8,
}

impl std::fmt::Debug for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}'{}", self.major, self.minor, self.nonce)
    }
}

impl Id {
    /// By epoch.
    pub fn is_before(self, later: Self) -> bool {
        self.epoch() < later.epoch()
    }

    /// Major and minor.
    pub fn epoch(self) -> (u8, u8) {
        (self.major, self.minor)
    }
}

/// K.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct K {
    /// Its age.
    pub id: Id,
    /// `s_since`.
    pub since: Id,
    /// `base`.
    pub base: Id,
    /// The primary, or [`NOBODY`].
    pub primary: u8,
    /// S, one bit a site.
    pub sites: u8,
    /// Mode sync; else async.
    pub sync: bool,
    /// `member_rev`.
    pub rev: u8,
    /// Which grant of its lease it relies on.
    pub lease_gen: u8,
    /// Made on a person's word.
    pub forced: bool,
    /// The site that proposed it.
    pub by: u8,
    /// The agent of the primary site that leads.
    pub leader: u8,
}

impl std::fmt::Debug for K {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = |set: u8| ["-", "A", "B", "AB"][usize::from(set & BOTH)];
        let primary = name(1 << self.primary);
        write!(f, "K({:?} {primary} of {} since {:?} base {:?}", self.id, name(self.sites), self.since, self.base)?;
        let mut note = |on: bool, what: &str| if on { f.write_str(what) } else { Ok(()) };
        note(!self.sync, " async")?;
        note(self.forced, " forced")?;
        if self.rev != 1 {
            write!(f, " rev {}", self.rev)?;
        }
        if self.lease_gen != 0 {
            write!(f, " lease {}", self.lease_gen)?;
        }
        if self.leader != 0 {
            write!(f, " leader {}", self.leader)?;
        }
        f.write_str(")")
    }
}

/// In one piece: states are hashed by the million.
impl std::hash::Hash for K {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        let id = |id: Id| [id.major, id.minor, id.nonce];
        let [[a, b, c], [d, e, f], [g, h, i]] = [id(self.id), id(self.since), id(self.base)];
        let flags = self.sites | u8::from(self.sync) << 2 | u8::from(self.forced) << 3 | self.by << 4;
        let [j, k, l, m, n] = [self.primary, flags, self.rev, self.lease_gen, self.leader];
        state.write_u128(u128::from_le_bytes([a, b, c, d, e, f, g, h, i, j, k, l, m, n, 0, 0]));
    }
}

impl K {
    /// A's K of a volume that both sites hold, B not yet (or `both`: already) in S.
    pub fn first(both: bool, sync: bool) -> Self {
        let id = Id { major: 1, minor: 0, nonce: 0 };
        let sites = if both { BOTH } else { only(0) };
        Self { id, since: id, base: id, primary: 0, sites, sync, rev: 1, lease_gen: 0, forced: false, by: 0, leader: 0 }
    }

    /// The primary.
    pub fn primary(&self) -> Site {
        usize::from(self.primary)
    }

    /// It names `site`.
    pub fn is_led_by(&self, site: Site) -> bool {
        self.primary() == site
    }

    /// `site` is in S.
    pub fn has(&self, site: Site) -> bool {
        self.sites & only(site) != 0
    }

    /// As the core has it.
    pub fn config(&self) -> Config {
        Config {
            epoch: self.id.core().epoch,
            nonce: self.id.core().nonce,
            proposer: node(self.by.into()),
            since: self.since.core(),
            base: self.base.core(),
            primary: (self.primary() != NOBODY).then(|| site_id(self.primary())),
            leader: NodeId([self.leader; 16]),
            lease_gen: self.lease_gen.into(),
            member_rev: self.rev.into(),
            sites: [0, 1].into_iter().filter(|site| self.has(*site)).map(site_id).collect(),
            mode: if self.sync { Mode::Sync } else { Mode::Async },
            generation: GenId([1; 16]),
            forced: self.forced,
            hands_over: false,
        }
    }

    /// What the core made.
    pub fn of(config: &Config) -> Self {
        let site = |id: SiteId| id.0[0] - 1;
        let id = Id::of(Since { epoch: config.epoch, nonce: config.nonce });
        Self {
            id,
            since: Id::of(config.since),
            base: Id::of(config.base),
            primary: config.primary.map_or(NOBODY as u8, site),
            sites: config.sites.iter().fold(0, |set, id| set | 1 << site(*id)),
            sync: config.mode == Mode::Sync,
            rev: small(config.member_rev),
            lease_gen: small(config.lease_gen),
            forced: config.forced,
            by: config.proposer.0[0] - 1,
            leader: 0,
        }
    }
}

impl Id {
    /// As the core has it.
    pub fn core(self) -> Since {
        let mut nonce = Nonce::NIL;
        nonce.0[0] = self.nonce;
        Since { epoch: Epoch { major: self.major.into(), minor: self.minor.into() }, nonce }
    }

    fn of(since: Since) -> Self {
        Self { major: small(since.epoch.major.into()), minor: small(since.epoch.minor.into()), nonce: since.nonce.0[0] }
    }
}

fn small(number: u64) -> u8 {
    u8::try_from(number).expect("the bounds of the model are far below 256")
}

/// As the core has it.
pub fn site_id(site: Site) -> SiteId {
    SiteId([small(site as u64) + 1; 16])
}

/// The agent that leads at `site`.
pub fn node(site: Site) -> NodeId {
    NodeId([small(site as u64) + 1; 16])
}

/// As the core has it.
pub fn nonce(number: u8) -> Nonce {
    let mut nonce = Nonce::NIL;
    nonce.0[0] = number;
    nonce
}
