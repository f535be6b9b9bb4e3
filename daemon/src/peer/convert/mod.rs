//! Between the core's messages and the wire's, both ways.
//!
//! Decides what is well-formed and nothing else: lengths of identities, presence, enum values, limits, the shape of K. What a
//! well-formed message means is the core's. To the wire is total; from the wire gives a [`Malformed`] that names the field,
//! never a panic, and never more memory than the message itself. Payload bytes are handed on, not copied.

mod bodies;
mod config;
mod parts;
mod site;
#[cfg(test)]
pub(crate) mod tests;

pub use bodies::{MAX_HEADER_BYTES, MAX_PIECES};
pub use config::{config_in, config_out, policy_in, policy_out};
pub use parts::MAX_HISTORY;
pub(super) use parts::{at_most, fixed, id, layout_in, layout_out, raw};
pub(super) use site::{membership_in, membership_out};
pub use site::{site_from_wire, site_to_wire};

use tidemark_core::layout::LayoutError;
use tidemark_core::ship::{AdoptStep, MAX_MESSAGE_BYTES, MAX_REASON_BYTES, Message};
use tidemark_core::types::{Lsn, WallMs};
use tidemark_proto::peer as wire;
use wire::envelope::Body;

use bodies::{
    ack_in, ack_out, append_in, append_out, base_in, base_out, hello_in, hello_out, seed_begin_in, seed_begin_out,
};
use config::{
    answer_in, answer_out, refusal_in, refusal_out, since_in, since_out, step_in, step_out, verdict_in, verdict_out,
};
use parts::{
    boundary_if, boundary_in, boundary_out, epoch_in, epoch_out, history_in, history_out, range_in, range_out,
};

/// The most bytes of one encoded message: the core's limit and room for what surrounds the payload.
pub const MAX_ENCODED_BYTES: usize = MAX_MESSAGE_BYTES + (64 << 10);

/// Why a message of a peer cannot be understood.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Malformed {
    /// The kind of message is unknown or absent.
    #[error("unknown kind of message")]
    UnknownKind,
    /// A required field is absent.
    #[error("field {field} is missing")]
    Missing {
        /// Name of the field.
        field: &'static str,
    },
    /// A field of fixed length has another one.
    #[error("field {field} has length {found} instead of {wanted}")]
    Length {
        /// Name of the field.
        field: &'static str,
        /// Bytes or entries wanted.
        wanted: usize,
        /// Bytes or entries found.
        found: usize,
    },
    /// More than the limit.
    #[error("field {field} has {found}, more than {limit}")]
    TooMany {
        /// Name of the field.
        field: &'static str,
        /// Bytes or entries allowed.
        limit: usize,
        /// Bytes or entries found.
        found: usize,
    },
    /// Content that should be whole blocks is not.
    #[error("field {field} has {len} bytes, which is not the blocks it should hold")]
    NotBlocks {
        /// Name of the field.
        field: &'static str,
        /// Bytes found.
        len: usize,
    },
    /// An empty range, or one beyond the largest volume.
    #[error("range of {count} blocks at {lba} is empty or too large")]
    Range {
        /// First block.
        lba: u64,
        /// Blocks.
        count: u32,
    },
    /// The extents are no group's.
    #[error("field layout: {0}")]
    Layout(#[from] LayoutError),
    /// A value that the enum does not have.
    #[error("field {field} has the unknown value {value}")]
    Enum {
        /// Name of the field.
        field: &'static str,
        /// The number found.
        value: i32,
    },
    /// A value that no policy may have.
    #[error("field {field} is {value}, which is out of its bounds")]
    Bounds {
        /// Name of the field.
        field: &'static str,
        /// The number found.
        value: u64,
    },
    /// K breaks a promise of its type.
    #[error("bad configuration: {rule}")]
    Config {
        /// The promise that is broken.
        rule: &'static str,
    },
}

/// A message of the core as the wire has it.
pub fn to_wire(message: Message) -> wire::Envelope {
    wire::Envelope { body: Some(body_out(message)) }
}

/// A message of the wire as the core has it.
pub fn from_wire(envelope: wire::Envelope) -> Result<Message, Malformed> {
    body_in(envelope.body.ok_or(Malformed::UnknownKind)?)
}

fn body_out(message: Message) -> Body {
    match message {
        Message::Hello(hello) => Body::Hello(Box::new(hello_out(&hello))),
        Message::Append(append) => Body::Append(append_out(append)),
        Message::Sync { epoch, lsn } => Body::Sync(wire::Sync { epoch: epoch_out(epoch), lsn: lsn.0 }),
        Message::Ack(ack) => Body::Ack(ack_out(ack)),
        Message::Committed { epoch, committed, appended, at, backlog: backlog_bytes } => {
            let (committed, appended) = (committed.0, appended.0);
            Body::Committed(wire::Committed {
                epoch: epoch_out(epoch),
                committed,
                appended,
                at_ms: at.0,
                backlog_bytes,
            })
        }
        Message::FetchTail { from } => Body::FetchTail(wire::FetchTail { from: boundary_out(from) }),
        Message::TailEnd => Body::TailEnd(wire::TailEnd {}),
        Message::SeedBegin(begin) => Body::SeedBegin(seed_begin_out(begin)),
        Message::Base(base) => Body::Base(base_out(base)),
        Message::SeedEnd { resync, pass, visible_at, history } => {
            let (resync, history) = (raw(&resync.0), history_out(&history));
            Body::SeedEnd(wire::SeedEnd { resync, pass, visible_at: visible_at.0, history })
        }
        Message::SeedAck { resync, pass, bytes, done } => {
            Body::SeedAck(wire::SeedAck { resync: raw(&resync.0), pass, bytes, done })
        }
        Message::Expand { config, tail } => {
            Body::Expand(Box::new(wire::Expand { config: Some(config_out(&config)), tail: boundary_out(tail) }))
        }
        Message::Adopt { config, step, tail } => {
            let (config, step, tail) = (Some(config_out(&config)), step_out(step), boundary_out(tail));
            Body::Adopt(Box::new(wire::Adopt { config, step, tail }))
        }
        Message::ConfigAnswer { epoch, nonce, result } => {
            let (epoch, nonce, refusal) = (epoch_out(epoch), raw(&nonce.0), answer_out(result));
            Body::ConfigAnswer(wire::ConfigAnswer { epoch, nonce, refusal })
        }
        Message::Refused(refusal) => Body::Refused(wire::Refused { refusal: refusal_out(refusal) }),
        Message::Fenced(config) => Body::Fenced(Box::new(wire::Fenced { config: Some(config_out(&config)) })),
        Message::Policy(policy) => Body::Policy(policy_out(policy)),
        Message::Grow { size, layout } => Body::Grow(wire::Grow { size, layout: layout.map(|l| layout_out(&l)) }),
        Message::GrowAnswer { size, layout } => {
            Body::GrowAnswer(wire::GrowAnswer { size, layout: layout.map(|l| layout_out(&l)) })
        }
        Message::VerifyRange { id, range, lsn, hash } => {
            Body::VerifyRange(wire::VerifyRange { id, range: range_out(range), lsn: lsn.0, hash: raw(&hash) })
        }
        Message::VerifyAnswer { id, verdict } => {
            Body::VerifyAnswer(wire::VerifyAnswer { id, verdict: verdict_out(verdict) })
        }
        Message::Confirm { k, stamp, span_ms } => Body::Confirm(wire::Confirm { k: since_out(k), stamp, span_ms }),
        Message::Confirmed { stamp, undecided } => Body::Confirmed(wire::Confirmed { stamp, undecided }),
        Message::HandOver { k } => Body::HandOver(wire::HandOver { k: since_out(k) }),
        Message::HandedOver { result } => Body::HandedOver(wire::HandedOver { refusal: result.err() }),
        Message::Goodbye => Body::Goodbye(wire::Goodbye {}),
    }
}

fn body_in(body: Body) -> Result<Message, Malformed> {
    Ok(match body {
        Body::Hello(hello) => Message::Hello(Box::new(hello_in(*hello)?)),
        Body::Append(append) => Message::Append(append_in(append)?),
        Body::Sync(m) => Message::Sync { epoch: epoch_in(m.epoch)?, lsn: Lsn(m.lsn) },
        Body::Ack(ack) => Message::Ack(ack_in(ack)?),
        Body::Committed(m) => {
            let (committed, appended) = (Lsn(m.committed), Lsn(m.appended));
            Message::Committed {
                epoch: epoch_in(m.epoch)?,
                committed,
                appended,
                at: WallMs(m.at_ms),
                backlog: m.backlog_bytes,
            }
        }
        Body::FetchTail(m) => Message::FetchTail { from: boundary_in(m.from)? },
        Body::TailEnd(_) => Message::TailEnd,
        Body::SeedBegin(begin) => Message::SeedBegin(seed_begin_in(begin)?),
        Body::Base(base) => Message::Base(base_in(base)?),
        Body::SeedEnd(m) => {
            let (resync, history) = (id(&m.resync, "resync")?, history_in(&m.history)?);
            Message::SeedEnd { resync, pass: m.pass, visible_at: Lsn(m.visible_at), history }
        }
        Body::SeedAck(m) => {
            Message::SeedAck { resync: id(&m.resync, "resync")?, pass: m.pass, bytes: m.bytes, done: m.done }
        }
        Body::Expand(m) => Message::Expand { config: config_in(m.config)?, tail: boundary_in(m.tail)? },
        Body::Adopt(m) => {
            let step = step_in(m.step)?;
            let tail = boundary_if(step == AdoptStep::Handover, m.tail)?;
            Message::Adopt { config: config_in(m.config)?, step, tail }
        }
        Body::ConfigAnswer(m) => {
            let (epoch, nonce, result) = (epoch_in(m.epoch)?, id(&m.nonce, "nonce")?, answer_in(m.refusal)?);
            Message::ConfigAnswer { epoch, nonce, result }
        }
        Body::Refused(m) => Message::Refused(refusal_in(m.refusal)?),
        Body::Fenced(m) => Message::Fenced(config_in(m.config)?),
        Body::Policy(policy) => Message::Policy(policy_in(policy)?),
        Body::Grow(m) => Message::Grow { size: m.size, layout: layout_in(m.layout)? },
        Body::GrowAnswer(m) => Message::GrowAnswer { size: m.size, layout: layout_in(m.layout)? },
        Body::VerifyRange(m) => {
            let (range, hash) = (range_in(m.range)?, fixed(&m.hash, "hash")?);
            Message::VerifyRange { id: m.id, range, lsn: Lsn(m.lsn), hash }
        }
        Body::VerifyAnswer(m) => Message::VerifyAnswer { id: m.id, verdict: verdict_in(m.verdict)? },
        Body::Confirm(m) => Message::Confirm { k: since_in(m.k, "k")?, stamp: m.stamp, span_ms: m.span_ms },
        Body::Confirmed(m) => Message::Confirmed { stamp: m.stamp, undecided: m.undecided },
        Body::HandOver(m) => Message::HandOver { k: since_in(m.k, "k")? },
        Body::HandedOver(m) => {
            at_most(m.refusal.as_ref().map_or(0, String::len), MAX_REASON_BYTES, "refusal")?;
            Message::HandedOver { result: m.refusal.map_or(Ok(()), Err) }
        }
        Body::Goodbye(_) => Message::Goodbye,
    })
}
