//! What two copies that have greeted each other conclude: who leads, who follows, from where, and who has to decide where neither may.

use crate::config::Config;
use crate::format::superblock::CopyFlag;
use crate::group::{self, Contact};
use crate::node::{Node, Stage};
use crate::ship::sender::Source;
use crate::ship::{Hello, Message, Refusal};
use crate::status::{Role, SuspendReason};
use crate::timeline::{History, Relation};
use crate::types::{Boundary, Epoch, Lsn, Nanos};

impl Node {
    /// Concludes from both greetings what goes on. Called again whenever one of them changed.
    pub(super) fn match_peer(&mut self, now: Nanos) {
        let busy = self.is_persisting_k() || self.sealing.is_some();
        // A copy that failed neither leads nor follows until it is opened again.
        if !matches!(self.stage, Stage::Running) || busy || self.failed {
            return;
        }
        self.refresh_hello();
        let Some(hello) = self.link.as_ref().and_then(|l| l.hello.clone()) else { return };
        let contact = group::contact(&self.k, hello.site, &hello.config);
        let wins = self.is_named_winner(contact, &hello) && !self.is_led();
        let nobody_leads = contact == Contact::AdoptTheirs && hello.config.primary.is_none();
        if hello.needs_seed && (nobody_leads || matches!(contact, Contact::Same | Contact::MineIsNewer)) {
            self.no_longer_diverged(now);
        }
        match contact {
            // An operator named the loser by reseeding it: it waits for what the other side tells it.
            Contact::SplitBrain if self.reseed_wanted => {}
            _ if wins => self.win(now, &hello),
            // Whatever was decided, its leader hears of it, and it from its leader.
            Contact::SplitBrain if self.is_led() => {}
            Contact::AdoptTheirs if self.is_led() && hello.config.primary.is_some() => {}
            Contact::SplitBrain => self.on_split_brain(),
            Contact::PeerLeads => self.follow(now, &hello, true),
            Contact::AdoptTheirs if hello.config.primary == Some(self.site) => {
                self.adopt_theirs(now, hello.config.clone());
            }
            Contact::AdoptTheirs => self.yield_to_none(now, &hello),
            Contact::Same | Contact::MineIsNewer => match self.k.primary {
                Some(site) if site == self.site => self.lead(now, &hello),
                Some(_) => self.follow(now, &hello, false),
                // A peer that has still to hear of this K seals what is its own alone when it does.
                None if contact == Contact::Same && self.has_parted_from(&hello) => {
                    self.diverge("nobody leads, and each has records of its own");
                }
                None => self.tell_k(&hello),
            },
        }
    }

    /// Both sides have a history of their own, and the peer's was given up: this one is the volume's.
    fn is_named_winner(&self, contact: Contact, hello: &Hello) -> bool {
        let claims = self.k.primary == Some(self.site);
        let theirs_to_give_up = match contact {
            Contact::SplitBrain => claims || self.k.primary.is_none(),
            Contact::AdoptTheirs => claims && (self.diverged.is_some() || self.parted_at(hello).is_some()),
            Contact::Same | Contact::PeerLeads | Contact::MineIsNewer => false,
        };
        hello.needs_seed && theirs_to_give_up && !self.is_no_prefix()
    }

    /// Brings the peer's greeting up to what has flowed since: what it acknowledged, or what was taken from it.
    pub(super) fn refresh_hello(&mut self) {
        let acked = self.link.as_ref().filter(|l| l.sender.source != Source::Probe).map(|l| l.sender.taken());
        let boundary = acked.and_then(|lsn| self.boundary_at(lsn));
        let Some(link) = &mut self.link else { return };
        let (fresh, known) = (std::mem::take(&mut link.fresh), boundary.or(link.taken));
        let Some(hello) = link.hello.as_mut().filter(|_| !fresh) else { return };
        let Some(tail) = known else { return };
        if tail.position.lsn >= hello.tail.position.lsn {
            let mut history = self.history.clone();
            history.cut_after(tail.position.lsn);
            (hello.tail, hello.history) = (tail, history.entries().to_vec());
        }
    }

    /// Both sides decided without an arbiter. Neither gives way by itself; the operator names the loser by `reseed`, and the
    /// other side then makes a K that is newer than both.
    fn on_split_brain(&mut self) {
        if !self.leads() {
            self.diverged = Some("both sides were promoted without an arbiter".into());
        }
        self.refuse(Refusal::SplitBrain);
    }

    /// This side was named the winner: it makes a K above the loser's where its own is not, and tells it.
    fn win(&mut self, now: Nanos, hello: &Hello) {
        self.no_longer_diverged(now);
        match self.k.epoch > hello.config.epoch {
            true if self.k.primary.is_some() => self.lead(now, hello),
            true => self.tell_k(hello),
            false => self.outdo(now, &hello.config),
        }
    }

    /// There is no other history (any more) that this one could part from.
    pub(super) fn no_longer_diverged(&mut self, now: Nanos) {
        self.diverged = None;
        if self.superblock.flag == CopyFlag::Diverged {
            self.superblock.flag = CopyFlag::Complete;
            self.save_superblock(now);
        }
    }

    fn outdo(&mut self, now: Nanos, theirs: &Config) {
        let nonce = self.new_nonce();
        let above = Config { epoch: theirs.epoch, ..self.k.clone() };
        let mut k = group::forced(&above, self.node, nonce, self.k.primary, vec![self.site]);
        k.since = k.id();
        self.persist_k(now, k, super::meta::AfterK::Adopted);
    }

    /// The peer's newer K names nobody: it served, or was to serve, and was demoted. Whoever serves here stops; records that
    /// the peer lacks are judged and sealed while this copy's own K still says who wrote them.
    fn yield_to_none(&mut self, now: Nanos, hello: &Hello) {
        self.fence(now, hello.config.epoch);
        match self.parted_at(hello) {
            // A peer that was given up has no history that this one could give way to.
            Some(common) if !self.is_no_prefix() && !hello.needs_seed => self.begin_sealing(hello, common),
            _ if self.is_led() => {}
            _ => self.adopt_theirs(now, hello.config.clone()),
        }
    }

    /// Neither can follow the other, and neither was given up: a person names the loser.
    fn has_parted_from(&self, hello: &Hello) -> bool {
        let is_given_up = hello.needs_seed || self.is_no_prefix();
        !is_given_up && !hello.is_suspect && self.sealing.is_none() && self.parted_at(hello).is_some()
    }

    /// Where both sides went on with records of their own.
    pub(super) fn parted_at(&self, hello: &Hello) -> Option<Lsn> {
        match self.relation(hello) {
            Relation::Common { common, mine_has_more: true, theirs_has_more: true } => Some(common.lsn),
            // A tail of the same incarnation is no other history: the peer may still be brought to it.
            Relation::Common { .. } | Relation::Unrelated => None,
        }
    }

    /// The peer holds a K that this copy proposed and never heard of again.
    fn adopt_theirs(&mut self, now: Nanos, config: Config) {
        if self.change.is_none() {
            self.persist_k(now, config, super::meta::AfterK::Adopted);
        }
    }

    /// How the log here and the peer's relate.
    pub(super) fn relation(&self, hello: &Hello) -> Relation {
        relation_of(&self.history, self.log.end().position.lsn, hello)
    }

    /// The primary's side.
    fn lead(&mut self, now: Nanos, hello: &Hello) {
        if self.role == Role::Suspended(SuspendReason::Restart) {
            if hello.is_primary {
                return self.refuse(Refusal::SplitBrain);
            }
            if !self.is_led() {
                self.begin_opening();
            }
        }
        if hello.needs_seed {
            return self.want_seeding(now, hello);
        }
        if hello.is_suspect {
            return self.refuse(Refusal::Suspect);
        }
        match self.relation(hello) {
            Relation::Unrelated => self.refuse(Refusal::Unrelated),
            Relation::Common { common, theirs_has_more: true, .. } => self.peer_has_more(common.lsn, hello.floor),
            Relation::Common { common, .. } => self.continue_peer(now, hello, common.lsn),
        }
    }

    /// The peer has records that this copy lacks: before the fork they are fetched (R7a), afterwards the peer seals them and
    /// greets again.
    fn peer_has_more(&mut self, common: Lsn, floor: Boundary) {
        let end = self.log.end();
        let in_s = self.link.as_ref().is_some_and(|l| self.k.has(l.site));
        if common == end.position.lsn && in_s {
            // What a base holds was durable at every member of S: here too, once.
            self.required = self.required.max(floor.position.lsn);
        }
        if self.wants_tail()
            && common == end.position.lsn
            && let Some(link) = self.link.as_mut().filter(|l| !l.fetching)
        {
            link.fetching = true;
            self.send(Message::FetchTail { from: end });
        }
    }

    /// The peer's log is a prefix of this one: go on from its end.
    fn continue_peer(&mut self, now: Nanos, hello: &Hello, common: Lsn) {
        let Some(boundary) = self.boundary_at(common) else {
            return self.want_seeding(now, hello);
        };
        if boundary != hello.tail {
            return self.refuse(Refusal::Chain);
        }
        if !self.space.layout.extends(&hello.layout) {
            return self.refuse(Refusal::Size);
        }
        if !self.tell_k_first(hello) {
            return;
        }
        let epoch = hello.config.epoch;
        self.start_sender(common, epoch);
    }

    /// Starts streaming after `from` under the K that the receiver confirmed.
    pub(super) fn start_sender(&mut self, from: Lsn, epoch: Epoch) {
        if let Some(link) = &mut self.link {
            if link.sender.source == Source::Probe || link.sender.next <= from || link.sender.taken() > from {
                link.sender.start(from);
            }
            link.sender.confirmed = epoch;
            link.parted = false;
        }
        self.link_refused = None;
        self.seeder = None;
        let policy = self.superblock.policy;
        self.send(Message::Policy(policy));
    }

    /// What ends there is in this copy's history: in its log, or in its base.
    pub(super) fn has_in_history(&self, tail: &Boundary) -> bool {
        self.boundary_at(tail.position.lsn) == Some(*tail) || tail.position.lsn <= self.floor.at().position.lsn
    }

    /// A frame boundary of the log or the floor.
    pub(super) fn boundary_at(&self, lsn: Lsn) -> Option<Boundary> {
        let floor = self.floor.at();
        if floor.position.lsn == lsn && self.log.segments.start().is_none_or(|s| s.position.lsn >= lsn) {
            return Some(floor);
        }
        if self.log.end().position.lsn == lsn {
            return Some(self.log.end());
        }
        self.log.segments.boundary_at(lsn)
    }

    /// The follower's side: seal what the leader does not have, then let it continue.
    fn follow(&mut self, now: Nanos, hello: &Hello, fenced: bool) {
        if fenced {
            self.fence(now, hello.config.epoch);
        }
        // A leader that was given up has no history to seal anything for.
        if self.is_no_prefix() || hello.needs_seed {
            return;
        }
        self.miss_regressed(hello);
        match self.relation(hello) {
            Relation::Unrelated => self.refuse(Refusal::Unrelated),
            Relation::Common { common, mine_has_more: true, theirs_has_more } => {
                // A leader that ends where this copy goes on has not forked yet: while it opens it fetches the suffix.
                if theirs_has_more || common.lsn != hello.tail.position.lsn {
                    self.begin_sealing(hello, common.lsn);
                }
            }
            Relation::Common { .. } if hello.is_primary => self.miss_no_more(hello),
            Relation::Common { .. } => {}
        }
    }

    /// The peer's log is a prefix of this one, or nothing.
    pub(super) fn holds_all_of(&self, hello: &Hello) -> bool {
        if hello.needs_seed {
            return true;
        }
        match self.relation(hello) {
            Relation::Common { common, theirs_has_more: false, .. } => {
                common.lsn == Lsn::ZERO || self.boundary_at(common.lsn).is_none_or(|b| b == hello.tail)
            }
            _ => false,
        }
    }
}

/// How a history that ends at `tail` and the peer's relate.
pub(super) fn relation_of(history: &History, tail: Lsn, hello: &Hello) -> Relation {
    history.compare(tail, &History::new(hello.history.clone()), hello.tail.position.lsn)
}
