//! The witness: K and A's lease, each changed only as it was expected.

use tidemark_core::config::Config;
use tidemark_core::format::witness::Lease;
use tidemark_core::group::lease::{Answer, Ask};
use tidemark_core::group::witness::Revision;

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Witness {
    pub k: Config,
    pub k_revision: u64,
    pub lease: Option<Lease>,
    pub lease_revision: u64,
}

impl Witness {
    pub fn change(&mut self, k: Config) {
        self.k = k;
        self.k_revision += 1;
    }

    pub fn holds(&self) -> Option<(Lease, Revision)> {
        self.lease.map(|lease| (lease, Revision::Counted(self.lease_revision)))
    }

    pub fn ask(&mut self, ask: &Ask) -> Answer {
        match ask {
            Ask::Change { expected, lease } if *expected == self.holds().map(|(_, revision)| revision) => {
                self.lease = Some(*lease);
                self.lease_revision += 1;
                Answer::Committed(Revision::Counted(self.lease_revision))
            }
            _ => Answer::Holds(self.holds()),
        }
    }
}
