//! A volume grows: its base at the peer first, then by a record in the log.

use crate::event::{DiskOp, VerbId};
use crate::format::record::{Descriptor, Kind};
use crate::log::Record;
use crate::node::Node;
use crate::node::verbs::{DEADLINE_MS, Pending};
use crate::outbox::Route;
use crate::ship::Message;
use crate::status::Role;
use crate::types::{BLOCK, Nanos, SECTOR};
use crate::verb::VerbError;

impl Node {
    pub(super) fn resize(&mut self, now: Nanos, id: VerbId, size: u64) -> Result<(), VerbError> {
        self.need_primary("a volume is resized at its primary")?;
        if !size.is_multiple_of(SECTOR as u64) || size < self.size {
            return Err(VerbError::Invalid("a volume can only grow, to a multiple of 512 bytes".into()));
        }
        if self.verbs.iter().any(|v| matches!(v.kind, Pending::Grow { .. } | Pending::Resized { .. })) {
            let (state, hint) = ("being resized".into(), "wait until that is done".into());
            return Err(VerbError::CopyState { state, hint });
        }
        if !self.size.is_multiple_of(BLOCK as u64) && self.base_size > self.size && size > self.size {
            let why = "the volume ends inside a block of 4096 bytes that its device goes on behind: it cannot grow";
            return Err(VerbError::Invalid(why.into()));
        }
        self.base_size = self.base_size.max(size);
        if size == self.size {
            self.finish_verb(now, id);
            return Ok(());
        }
        let linked = self.link.as_ref().is_some_and(|l| l.hello.is_some());
        match self.superblock.peer {
            Some(site) if !linked => return Err(VerbError::PeerUnproven { site }),
            Some(_) => {
                self.wait(now, id, DEADLINE_MS, Pending::Grow { size });
                self.send(Message::Grow { size });
            }
            None => self.log_resize(now, id, size),
        }
        Ok(())
    }

    fn log_resize(&mut self, now: Nanos, id: VerbId, size: u64) {
        let descriptor = Descriptor { kind: Kind::Resize, flags: 0, blocks: 0, lba: size };
        let resize = self.log.push(Record::new(descriptor, Default::default()));
        // What a device holds behind the volume is not the volume's, and no other site has it.
        let (first, end) = (self.size.div_ceil(BLOCK as u64), size.div_ceil(BLOCK as u64));
        let lsn = self.push_zero_blocks(Kind::Zero, first, end).unwrap_or(resize);
        self.log.want_durable(lsn);
        self.wait(now, id, DEADLINE_MS, Pending::Resized { lsn });
    }

    pub(super) fn on_grow(&mut self, now: Nanos, size: u64) {
        let shrinks = size < self.size && !self.needs_seed();
        if self.leads() || shrinks || !size.is_multiple_of(SECTOR as u64) {
            let size = self.base_size;
            return self.send(Message::GrowAnswer { size });
        }
        self.grow_to = size;
        self.out.disk(now, Route::Grow, DiskOp::Grow { size });
    }

    pub(super) fn on_grown(&mut self, now: Nanos, ok: bool) {
        if ok {
            self.base_size = self.base_size.max(self.grow_to);
        }
        self.grow_to = 0;
        let size = self.base_size;
        self.send(Message::GrowAnswer { size });
        self.pump_receiver(now);
    }

    pub(super) fn on_grow_answer(&mut self, now: Nanos, size: u64) {
        let (grows, rest) = std::mem::take(&mut self.verbs)
            .into_iter()
            .partition::<Vec<_>, _>(|v| matches!(v.kind, Pending::Grow { .. }));
        self.verbs = rest;
        for verb in grows {
            match verb.kind {
                Pending::Grow { size: wanted } if wanted <= size && self.role == Role::Primary => {
                    self.log_resize(now, verb.id, wanted);
                }
                _ => {
                    let error = VerbError::Invalid(format!("the peer's base image can only hold {size} bytes"));
                    self.end_verb(verb.id, Err(error));
                }
            }
        }
    }
}
