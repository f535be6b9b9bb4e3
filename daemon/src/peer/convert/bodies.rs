//! The messages with a body worth a function of its own.

use bytes::Bytes;
use tidemark_core::layout::Layout;
use tidemark_core::ship::{Ack, Append, BaseBlocks, Difference, Hello, MAX_MESSAGE_BYTES, Remembered, SeedBegin};
use tidemark_core::types::{BLOCK, Incarnation, Lsn};
use tidemark_proto::peer as wire;

use super::Malformed;
use super::config::{config_in, config_out};
use super::parts::{
    at_most, boundary_if, boundary_in, boundary_out, epoch_in, epoch_out, history_in, history_out, id, layout_in,
    layout_out, position_in, position_out, range_in, range_out, raw,
};

/// The most header bytes of a frame: descriptors of a frame of a thousand records take a tenth of it.
pub const MAX_HEADER_BYTES: usize = 1 << 20;
/// The most pieces of one payload: every block on its own.
pub const MAX_PIECES: usize = MAX_MESSAGE_BYTES / BLOCK;

pub(super) fn hello_out(hello: &Hello) -> wire::Hello {
    wire::Hello {
        version: hello.version,
        features: hello.features,
        volume: raw(&hello.volume.0),
        site: raw(&hello.site.0),
        node: raw(&hello.node.0),
        boot: raw(&hello.boot.0),
        size: hello.layout.size(),
        config: Some(config_out(&hello.config)),
        is_primary: hello.is_primary,
        needs_seed: hello.needs_seed,
        history: history_out(&hello.history),
        floor: boundary_out(hello.floor),
        tail: boundary_out(hello.tail),
        remembered: hello.remembered.map(remembered_out),
        is_suspect: hello.is_suspect,
        layout: (!hello.layout.is_one(hello.volume)).then(|| layout_out(&hello.layout)),
        difference: hello.difference.map(difference_out),
    }
}

pub(super) fn hello_in(hello: wire::Hello) -> Result<Hello, Malformed> {
    let volume = id(&hello.volume, "volume")?;
    Ok(Hello {
        version: hello.version,
        features: hello.features,
        volume,
        site: id(&hello.site, "site")?,
        node: id(&hello.node, "node")?,
        boot: id(&hello.boot, "boot")?,
        layout: layout_in(hello.layout)?.unwrap_or_else(|| Layout::one(volume, hello.size)),
        config: config_in(hello.config)?,
        is_primary: hello.is_primary,
        needs_seed: hello.needs_seed,
        history: history_in(&hello.history)?,
        floor: boundary_in(hello.floor)?,
        tail: boundary_in(hello.tail)?,
        remembered: hello.remembered.map(remembered_in).transpose()?,
        is_suspect: hello.is_suspect,
        difference: hello.difference.map(difference_in).transpose()?,
    })
}

fn difference_out(difference: Difference) -> wire::Difference {
    wire::Difference { from: boundary_out(difference.from), resync: raw(&difference.resync.0) }
}

fn difference_in(difference: wire::Difference) -> Result<Difference, Malformed> {
    Ok(Difference { from: boundary_in(difference.from)?, resync: id(&difference.resync, "resync")? })
}

pub(super) fn seed_begin_out(begin: SeedBegin) -> wire::SeedBegin {
    let SeedBegin { resync, pass, total_bytes, last, live_from, from } = begin;
    let (live_from, from) = (boundary_out(live_from), from.and_then(boundary_out));
    wire::SeedBegin { resync: raw(&resync.0), pass, total_bytes, last, live_from, from }
}

pub(super) fn seed_begin_in(begin: wire::SeedBegin) -> Result<SeedBegin, Malformed> {
    let (resync, live_from) = (id(&begin.resync, "resync")?, boundary_if(begin.last, begin.live_from)?);
    let from = begin.from.map(|from| boundary_in(Some(from))).transpose()?;
    let wire::SeedBegin { pass, total_bytes, last, .. } = begin;
    Ok(SeedBegin { resync, pass, total_bytes, last, live_from, from })
}

fn remembered_out(remembered: Remembered) -> wire::Remembered {
    wire::Remembered { position: position_out(remembered.position), boot: raw(&remembered.boot.0) }
}

fn remembered_in(remembered: wire::Remembered) -> Result<Remembered, Malformed> {
    Ok(Remembered { position: position_in(remembered.position)?, boot: id(&remembered.boot, "boot")? })
}

pub(super) fn append_out(append: Append) -> wire::Append {
    wire::Append { epoch: epoch_out(append.epoch), header: append.header, payload: append.payload, sync: append.sync }
}

pub(super) fn append_in(append: wire::Append) -> Result<Append, Malformed> {
    if append.header.is_empty() {
        return Err(Malformed::Missing { field: "header" });
    }
    at_most(append.header.len(), MAX_HEADER_BYTES, "header")?;
    at_most(append.payload.len(), MAX_PIECES, "payload")?;
    let len: usize = append.payload.iter().map(Bytes::len).sum();
    at_most(len, MAX_MESSAGE_BYTES, "payload")?;
    if !len.is_multiple_of(BLOCK) {
        return Err(Malformed::NotBlocks { field: "payload", len });
    }
    Ok(Append { epoch: epoch_in(append.epoch)?, header: append.header, payload: append.payload, sync: append.sync })
}

pub(super) fn ack_out(ack: Ack) -> wire::Ack {
    wire::Ack {
        epoch: epoch_out(ack.epoch),
        generation: raw(&ack.generation.0),
        incarnation: ack.incarnation.0,
        appended: ack.appended.0,
        durable: ack.durable.0,
        floor: ack.floor.0,
        boot: raw(&ack.boot.0),
    }
}

pub(super) fn ack_in(ack: wire::Ack) -> Result<Ack, Malformed> {
    Ok(Ack {
        epoch: epoch_in(ack.epoch)?,
        generation: id(&ack.generation, "generation")?,
        incarnation: Incarnation(ack.incarnation),
        appended: Lsn(ack.appended),
        durable: Lsn(ack.durable),
        floor: Lsn(ack.floor),
        boot: id(&ack.boot, "boot")?,
    })
}

pub(super) fn base_out(base: BaseBlocks) -> wire::BaseBlocks {
    wire::BaseBlocks {
        resync: raw(&base.resync.0),
        range: range_out(base.range),
        as_of: position_out(base.as_of),
        crcs: base.crcs,
        data: base.data,
    }
}

pub(super) fn base_in(base: wire::BaseBlocks) -> Result<BaseBlocks, Malformed> {
    let range = range_in(base.range)?;
    let blocks = if base.data.is_empty() { 0 } else { u64::from(range.count.0) };
    if base.data.len() as u64 != blocks * BLOCK as u64 {
        return Err(Malformed::NotBlocks { field: "data", len: base.data.len() });
    }
    if base.crcs.len() as u64 != blocks {
        return Err(Malformed::Length { field: "crcs", wanted: blocks as usize, found: base.crcs.len() });
    }
    Ok(BaseBlocks {
        resync: id(&base.resync, "resync")?,
        range,
        as_of: position_in(base.as_of)?,
        crcs: base.crcs,
        data: base.data,
    })
}
