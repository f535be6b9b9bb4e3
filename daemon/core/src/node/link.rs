//! The stream to the peer: greeting, comparing, and what each message is handed to.

use crate::event::{CloseReason, ConnId, Event, Output};
use crate::format::superblock::CopyFlag;
use crate::group::{self, Contact};
use crate::node::receive::Backlog;
use crate::node::{Node, Stage};
use crate::ship::gate::Gate;
use crate::ship::sender::{Sender, Source};
use crate::ship::{Ack, FEATURE_HANDOVER, FEATURE_LAYOUT, Hello, Message, Refusal};
use crate::status::{Role, SuspendReason};
use crate::timeline::{History, Relation};
use crate::types::{Boundary, Epoch, Lsn, Nanos, SiteId};

/// Version of the wire that this core speaks.
pub const WIRE_VERSION: u32 = 1;
/// The oldest version it can speak to.
pub const WIRE_OLDEST: u32 = 1;
/// A K that the peer was too busy for is told again after this time.
pub(super) const TELL_AGAIN_MS: u64 = 200;
/// An idle primary tells its peer what is committed this often.
const IDLE_MS: u64 = 500;

/// A stream.
#[derive(Debug)]
pub(super) struct Link {
    pub conn: ConnId,
    pub site: SiteId,
    pub hello: Option<Box<Hello>>,
    /// The greeting was not looked at yet; afterwards, what flowed since says more than it.
    pub fresh: bool,
    /// Frames (or a whole seeding) of the peer were taken up to here: its log holds that.
    pub taken: Option<Boundary>,
    /// A frame was refused that does not belong here; the peer was told.
    pub strayed: bool,
    pub sender: Sender,
    /// When what is to be sent leaves.
    pub gate: Gate,
    /// Epoch of the last acknowledgement.
    pub acked_epoch: Epoch,
    /// The peer once acknowledged everything up to here as durable, and came back with less (R6).
    pub regressed: Lsn,
    /// Received and not yet processed: waits for a slot.
    pub backlog: Backlog,
    /// What was last acknowledged to the peer.
    pub told: Option<(Epoch, Lsn, Lsn)>,
    /// When it is told at the latest how far the log is written, where nobody waits for that.
    pub tell_at: Option<Nanos>,
    /// The peer asked for this to be durable.
    pub sync_wanted: Lsn,
    pub idle_at: Nanos,
    pub fetching: bool,
    /// The peer asked for what is here beyond its tail, and was not answered yet.
    pub tail_asked: Option<Boundary>,
    /// The K that the peer was told and has not answered yet.
    pub telling: Option<crate::config::Since>,
    /// The peer was not in a state to take it: it is told again then.
    pub tell_again_at: Option<Nanos>,
}

impl Node {
    pub(super) fn on_peer_up(&mut self, now: Nanos, conn: ConnId, site: SiteId) {
        if self.superblock.peer != Some(site) {
            return self.out.push(Output::Close(conn, CloseReason::Refused(Refusal::Identity)));
        }
        if let Some(old) = self.link.take() {
            self.out.push(Output::Close(old.conn, CloseReason::Replaced));
            self.on_link_lost();
        }
        self.link = Some(Link {
            conn,
            site,
            hello: None,
            fresh: false,
            taken: None,
            strayed: false,
            sender: Sender::new(Epoch::default()),
            gate: Gate::default(),
            acked_epoch: Epoch::default(),
            regressed: Lsn::ZERO,
            backlog: Backlog::default(),
            told: None,
            tell_at: None,
            sync_wanted: Lsn::ZERO,
            idle_at: now,
            fetching: false,
            tail_asked: None,
            telling: None,
            tell_again_at: None,
        });
        self.link_refused = None;
        self.greet();
    }

    pub(super) fn on_peer_down(&mut self, conn: ConnId) {
        if self.link.as_ref().is_some_and(|l| l.conn == conn) {
            self.link = None;
            self.on_link_lost();
        }
    }

    fn on_link_lost(&mut self) {
        self.seeder = None;
        self.lost_peer();
        self.verify_lost();
        self.change_lost();
        self.opening_lost_link();
    }

    /// Says who this copy is and what it has; again whenever that changed.
    pub(super) fn greet(&mut self) {
        let running = matches!(self.stage, Stage::Running);
        let Some(conn) = self.link.as_ref().map(|l| l.conn).filter(|_| running) else { return };
        let hello = self.hello();
        self.out.push(Output::Send(conn, Message::Hello(Box::new(hello))));
    }

    fn hello(&self) -> Hello {
        Hello {
            version: WIRE_VERSION,
            features: FEATURE_LAYOUT | FEATURE_HANDOVER,
            volume: self.superblock.volume,
            site: self.site,
            node: self.node,
            boot: self.boot,
            layout: self.space.layout.clone(),
            config: self.k.clone(),
            is_primary: self.leads(),
            needs_seed: self.needs_seed(),
            is_suspect: self.is_suspect(),
            history: self.history.entries().to_vec(),
            floor: self.floor.at(),
            tail: self.log.end(),
            remembered: self.superblock.remembered,
        }
    }

    /// Serves, or may come to serve without asking anybody.
    pub(super) fn leads(&self) -> bool {
        match self.role {
            Role::Primary => true,
            Role::Suspended(SuspendReason::Restart | SuspendReason::Failed) => false,
            Role::Suspended(_) => true,
            _ => false,
        }
    }

    /// The copy has nothing that the peer could continue, and nothing to lose: it never was complete, or was given up.
    pub(super) fn needs_seed(&self) -> bool {
        matches!(self.superblock.flag, CopyFlag::Seeding(_)) || self.reseed_wanted
    }

    /// What lies here is not what this copy left here, or does not read; an operator decides what becomes of it.
    pub(super) fn is_suspect(&self) -> bool {
        (self.superblock.flag == CopyFlag::Suspect || self.damage.is_some()) && !self.reseed_wanted
    }

    /// Something of the log does not read as it was written: nothing more is built on this copy.
    pub(super) fn log_is_rotten(&mut self, detail: &str) {
        const WHY: &str = "a segment of the log does not read back as it was written";
        self.damage = Some(WHY.into());
        self.alarm("log_rot", format!("{WHY}; {detail}"));
        self.greet();
    }

    /// The copy is no prefix of any log: it neither takes frames nor acknowledges any.
    pub(super) fn is_no_prefix(&self) -> bool {
        self.needs_seed() || self.is_suspect()
    }

    pub(super) fn send(&mut self, message: Message) {
        if let Some(link) = &self.link {
            self.out.push(Output::Send(link.conn, message));
        }
    }

    pub(super) fn refuse(&mut self, why: Refusal) {
        self.counters.refusals += 1;
        self.link_refused = Some(why.to_string());
        self.out.push(Output::Event(Event::Link { state: format!("refused: {why}") }));
        self.send(Message::Refused(why));
    }

    /// Refuses and ends the stream; the shell comes back after its backoff.
    pub(super) fn hang_up(&mut self, why: Refusal) {
        self.refuse(why);
        if let Some(link) = self.link.take() {
            self.out.push(Output::Close(link.conn, CloseReason::Refused(why)));
            self.on_link_lost();
        }
    }

    pub(super) fn on_peer_message(&mut self, now: Nanos, conn: ConnId, message: Message) {
        if self.link.as_ref().is_none_or(|l| l.conn != conn) {
            return;
        }
        self.heard_peer(now);
        match message {
            Message::Hello(hello) => self.on_hello(now, hello),
            Message::Append(_)
            | Message::Sync { .. }
            | Message::TailEnd
            | Message::VerifyRange { .. }
            | Message::SeedBegin { .. }
            | Message::Base(_)
            | Message::SeedEnd { .. } => self.enqueue(now, message),
            Message::Ack(ack) => self.on_ack(ack),
            Message::Committed { epoch, committed, appended, backlog, .. } => {
                self.on_committed(now, epoch, committed, appended, backlog);
            }
            Message::FetchTail { from } => self.on_fetch_tail(now, from),
            Message::SeedAck { resync, pass, bytes, done } => self.on_seed_ack(now, resync, pass, bytes, done),
            Message::Expand { config, tail } => self.on_expand(now, config, tail),
            Message::Adopt { config, step, tail } => self.on_adopt(now, config, step, tail),
            Message::ConfigAnswer { epoch, nonce, result } => self.on_config_answer(now, epoch, nonce, result),
            Message::Refused(why) => self.on_refused(now, why),
            Message::Fenced(config) => self.on_fenced(now, &config),
            Message::Policy(policy) => self.on_peer_policy(now, policy),
            Message::Grow { size, layout } => self.on_grow(now, size, layout),
            Message::GrowAnswer { size, layout } => self.on_grow_answer(now, size, layout),
            Message::VerifyAnswer { id, verdict } => self.on_verify_verdict(id, verdict),
            Message::Confirm { k, stamp, span_ms } => self.on_confirm(k, stamp, span_ms),
            Message::Confirmed { stamp, undecided } => self.on_confirmed(now, stamp, undecided),
            Message::HandOver { k } => self.on_hand_over(now, k),
            Message::HandedOver { result } => self.on_handed_over(now, conn, result),
            Message::Goodbye => self.on_peer_down(conn),
        }
    }

    fn on_hello(&mut self, now: Nanos, hello: Box<Hello>) {
        if hello.version < WIRE_OLDEST {
            return self.hang_up(Refusal::Version);
        }
        if hello.features & FEATURE_LAYOUT == 0 && !self.space.layout.is_one(self.superblock.volume) {
            return self.hang_up(Refusal::Version);
        }
        let peer = self.superblock.peer;
        if hello.volume != self.superblock.volume || Some(hello.site) != peer || hello.site == self.site {
            return self.hang_up(Refusal::Identity);
        }
        if self.k.primary == Some(self.site) && !hello.needs_seed {
            self.notice_regression(&hello);
        }
        self.heard_whether_it_serves(now, hello.is_primary);
        if let Some(link) = &mut self.link {
            link.hello = Some(hello);
            link.fresh = true;
        }
        self.link_refused = None;
        self.match_peer(now);
    }

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
        if hello.needs_seed && matches!(contact, Contact::Same | Contact::MineIsNewer) {
            self.no_longer_diverged(now);
        }
        match contact {
            // An operator named the loser by reseeding it: it waits for what the other side tells it.
            Contact::SplitBrain if self.reseed_wanted => {}
            _ if self.is_named_winner(contact, &hello) && !self.is_led() => self.win(now, &hello),
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

    fn outdo(&mut self, now: Nanos, theirs: &crate::config::Config) {
        let nonce = self.new_nonce();
        let above = crate::config::Config { epoch: theirs.epoch, ..self.k.clone() };
        let mut k = group::forced(&above, self.node, nonce, self.k.primary, vec![self.site]);
        k.since = k.id();
        self.persist_k(now, k, super::meta::AfterK::Adopted);
    }

    /// The peer's newer K names nobody: it served, or was to serve, and was demoted. Whoever serves here stops; records that
    /// the peer lacks are judged and sealed while this copy's own K still says who wrote them.
    fn yield_to_none(&mut self, now: Nanos, hello: &Hello) {
        self.fence(now, hello.config.epoch);
        match self.parted_at(hello) {
            Some(common) if !self.is_no_prefix() => self.begin_sealing(hello, common),
            _ if self.is_led() => {}
            _ => self.adopt_theirs(now, hello.config.clone()),
        }
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
    fn adopt_theirs(&mut self, now: Nanos, config: crate::config::Config) {
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
        }
        self.link_refused = None;
        self.seeder = None;
        let policy = self.superblock.policy;
        self.send(Message::Policy(policy));
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

    pub(super) fn fence(&mut self, now: Nanos, epoch: Epoch) {
        if self.role.serves() {
            self.opening = None;
            self.seeder = None;
            self.change = None;
            self.set_role(Role::Fenced(epoch));
            self.superblock.fenced = epoch;
            self.save_superblock(now);
            self.stop_serving();
            // The peer may wait for just this before it opens.
            self.greet();
        }
    }

    fn on_fenced(&mut self, now: Nanos, config: &crate::config::Config) {
        let Some(peer) = self.superblock.peer else { return };
        if group::contact(&self.k, peer, config) == Contact::PeerLeads {
            self.fence(now, config.epoch);
        }
        self.match_peer(now);
    }

    fn on_refused(&mut self, now: Nanos, why: Refusal) {
        self.counters.refusals += 1;
        if why == Refusal::Storage && self.seeder.take().is_some() {
            self.seeding_failed(now, "the peer has no room for it, or cannot write it");
        }
        self.link_refused = Some(format!("by the peer: {why}"));
        self.fetch_refused();
        self.out.push(Output::Event(Event::Link { state: format!("refused by the peer: {why}") }));
        let transient =
            matches!(why, Refusal::OldEpoch | Refusal::NeedConfig | Refusal::Gap | Refusal::Payload | Refusal::Header);
        if transient {
            // A fresh greeting sorts it out; the shell's backoff keeps this from spinning.
            if let Some(link) = self.link.take() {
                self.out.push(Output::Close(link.conn, CloseReason::Refused(why)));
                self.on_link_lost();
            }
        }
    }

    fn on_ack(&mut self, ack: Ack) {
        let known = ack.appended == Lsn::ZERO
            || self.history.position(ack.appended).is_none_or(|p| {
                p.incarnation == ack.incarnation && p.generation == ack.generation
                    || ack.appended <= self.floor.at().position.lsn
            });
        let Some(link) = &mut self.link else { return };
        if link.sender.source == Source::Probe || !known {
            return;
        }
        if !link.sender.on_ack(&ack) {
            return self.hang_up(Refusal::Gap);
        }
        link.acked_epoch = ack.epoch;
        // Whatever was refused before, this stream flows.
        self.link_refused = None;
        let position = crate::types::Position {
            generation: ack.generation,
            incarnation: ack.incarnation,
            lsn: link.sender.durable(),
        };
        if link.regressed > position.lsn {
            return;
        }
        self.superblock.remembered = Some(crate::ship::Remembered { position, boot: ack.boot });
    }

    fn on_committed(&mut self, now: Nanos, epoch: Epoch, committed: Lsn, appended: Lsn, backlog: u64) {
        if epoch == self.k.epoch && self.k.primary != Some(self.site) && !self.is_no_prefix() {
            self.committed = self.committed.max(committed.min(self.log.durable()));
            self.primary_appended_seen = appended;
            self.primary_backlog_seen = backlog;
            self.primary_heard_at = Some(now);
        }
    }

    /// Tells an idle follower what is committed.
    pub(super) fn pump_idle(&mut self, now: Nanos) {
        let (committed, appended) = (self.committed, self.log.appended());
        let (at, (backlog, _)) = (self.wall_at(now), self.backlog(now));
        let Some(link) = &mut self.link else { return };
        let epoch = link.sender.confirmed;
        let streaming = link.sender.source != Source::Probe && self.k.primary == Some(self.site);
        // Also while the log is full: the follower's log may be full as well, and wait for just this.
        if streaming && now >= link.idle_at {
            link.idle_at = now.after_ms(IDLE_MS);
            self.send(Message::Committed { epoch, committed, appended, at, backlog });
        }
    }

    pub(super) fn link_timeout(&self) -> Option<Nanos> {
        let link = self.link.as_ref()?;
        let idle = (self.leads() && link.sender.source != Source::Probe).then_some(link.idle_at);
        [idle, link.tell_again_at, link.tell_at, link.gate.timeout()].into_iter().flatten().min()
    }

    /// Tells a peer again what it was too busy for.
    pub(super) fn pump_tell(&mut self, now: Nanos) {
        let due = self.link.as_mut().is_some_and(|l| l.tell_again_at.take_if(|at| now >= *at).is_some());
        if due {
            self.match_peer(now);
        }
    }
}

/// How a history that ends at `tail` and the peer's relate.
pub(super) fn relation_of(history: &History, tail: Lsn, hello: &Hello) -> Relation {
    history.compare(tail, &History::new(hello.history.clone()), hello.tail.position.lsn)
}
