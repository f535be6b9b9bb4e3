//! A copy that comes back with less than it had (R6): who notices, what is missed, and when it is missed no more.

use crate::group;
use crate::node::Node;
use crate::node::contact::relation_of;
use crate::ship::Hello;
use crate::timeline::{History, Relation};

impl Node {
    /// A follower that comes back with less than it acknowledged as durable, in the same incarnation, has lost that: its disk was
    /// put back, or lied (R6). It counts as no protection until it has it again; it learns so from the greeting (`miss_regressed`).
    pub(super) fn notice_regression(&mut self, hello: &Hello) {
        let lost =
            self.superblock.remembered.map(|r| r.position).filter(|acked| {
                hello.tail.position.lsn < acked.lsn && self.history.position(acked.lsn) == Some(*acked)
            });
        let Some(lost) = lost else { return };
        let Some(link) = self.link.as_mut().filter(|l| l.regressed < lost.lsn) else { return };
        link.regressed = lost.lsn;
        let detail = format!(
            "the peer acknowledged records up to {} as durable and came back with {}",
            lost.lsn, hello.tail.position.lsn
        );
        self.alarm("peer_regressed", detail);
    }

    /// The leader remembers that this copy acknowledged more as durable than is here: it is no lossless successor before it has
    /// that again (R6).
    pub(super) fn miss_regressed(&mut self, hello: &Hello) {
        let Some(acked) = hello.remembered.map(|r| r.position) else { return };
        let theirs = History::new(hello.history.clone());
        let was_mine = acked.lsn <= hello.tail.position.lsn && theirs.position(acked.lsn) == Some(acked);
        if was_mine && self.log.end().position.lsn < acked.lsn && self.required < acked.lsn {
            self.required = acked.lsn;
            let end = self.log.end().position.lsn;
            self.alarm("regressed", format!("records up to {} were durable here once; {end} found", acked.lsn));
        }
    }

    /// Durable records that were lost here are missed no more once the leader has them, or where nobody was promised them. Those
    /// that this copy acknowledged and the leader never had are not passed over in silence.
    pub(super) fn miss_no_more(&mut self, hello: &Hello) {
        if self.lost_for_good(hello) && !self.reseed_wanted {
            return self.diverge(
                "records that may have been acknowledged here do not read any more, and the newer history lacks them",
            );
        }
        self.required = self.required.min(hello.tail.position.lsn);
    }

    /// The log here is damaged, and records that it held are in no log any more.
    fn lost_for_good(&self, hello: &Hello) -> bool {
        let promised = self.was_primary() && !group::suffix_is_unacked(hello.site, &self.k, &hello.config);
        let Some(lost) = self.lost_tail.as_ref().filter(|_| promised) else { return false };
        !matches!(relation_of(&lost.history, lost.end, hello), Relation::Common { mine_has_more: false, .. })
    }
}
