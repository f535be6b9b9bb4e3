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
    /// The peer says that its history parts from this one: it takes nothing until one of the two is given up.
    pub parted: bool,
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
            parted: false,
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
            difference: self.takes_difference(),
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
            | Message::SeedBegin(_)
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
        if self.seeder.is_none() && !hello.needs_seed {
            self.tracking.take_back();
        }
        self.heard_whether_it_serves(now, hello.is_primary);
        if let Some(link) = &mut self.link {
            link.hello = Some(hello);
            link.fresh = true;
            // One that still says so refuses again.
            link.parted = false;
        }
        self.link_refused = None;
        self.match_peer(now);
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
        if let Some(link) = self.link.as_mut().filter(|_| why == Refusal::Diverged) {
            link.parted = true;
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
