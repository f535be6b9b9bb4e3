//! Ks that the tests of the rules begin with.

use crate::config::{Config, Mode};
use crate::group::arbitrated::Proposer;
use crate::group::{genesis, joint};
use crate::types::{GenId, NodeId, Nonce, SiteId};

pub const A: SiteId = SiteId([1; 16]);
pub const B: SiteId = SiteId([2; 16]);

pub fn by(site: SiteId, nonce: u8) -> Proposer {
    Proposer { site, node: NodeId(site.0), nonce: Nonce([nonce; 16]), lease_gen: 7 }
}

/// A alone in S.
pub fn alone() -> Config {
    genesis(A, NodeId(A.0), Nonce([1; 16]), GenId([1; 16]), Mode::Sync)
}

/// Both in S, A is the primary.
pub fn both() -> Config {
    joint(&alone(), NodeId(A.0), Nonce([2; 16]), Some(A), vec![A, B], Mode::Sync)
}
