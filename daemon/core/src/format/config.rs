//! K on disk: the content of the `config` file, of a CONFIG record and of a FORK record.

use bytes::Bytes;

use crate::config::{Config, Mode, Since};
use crate::format::codec::{FormatError, Reader, Writer};
use crate::format::twin::TwinKind;
use crate::types::{BLOCK, Epoch, GenId, Incarnation, Lsn, NodeId, Nonce, SiteId};

/// The `config` file.
pub const FILE: TwinKind =
    TwinKind { name: "config", magic: u32::from_le_bytes(*b"TMCF"), version: 1, slot_bytes: BLOCK };

fn since(w: &mut Writer, s: Since) {
    w.epoch(s.epoch);
    w.bytes(&s.nonce.0);
}

fn read_since(r: &mut Reader<'_>) -> Result<Since, FormatError> {
    Ok(Since { epoch: r.epoch()?, nonce: Nonce(r.array()?) })
}

/// Stable number of a mode, on disk and on the wire.
pub fn mode_code(mode: Mode) -> u8 {
    match mode {
        Mode::Async => 1,
        Mode::Receive => 2,
        Mode::Sync => 3,
    }
}

/// The mode of a number.
pub fn mode_of(code: u8) -> Option<Mode> {
    match code {
        1 => Some(Mode::Async),
        2 => Some(Mode::Receive),
        3 => Some(Mode::Sync),
        _ => None,
    }
}

/// Appends K:
///
/// | bytes | field |
/// |---|---|
/// | 8 | epoch |
/// | 16 | nonce |
/// | 16 | proposer node |
/// | 24 | s_since: epoch, nonce |
/// | 24 | base: epoch, nonce |
/// | 16 | primary site, zero: none |
/// | 16 | leader node |
/// | 8 | lease_gen |
/// | 8 | member_rev |
/// | 1 | mode: 1 async, 2 receive, 3 sync |
/// | 1 | flags: bit 0 forced, bit 1 hands over (older versions ignore it) |
/// | 2 | number of sites in S |
/// | 16 | generation |
/// | 16 n | S |
pub fn encode(config: &Config, w: &mut Writer) {
    w.epoch(config.epoch);
    w.bytes(&config.nonce.0);
    w.bytes(&config.proposer.0);
    since(w, config.since);
    since(w, config.base);
    w.bytes(&config.primary.unwrap_or_default().0);
    w.bytes(&config.leader.0);
    w.u64(config.lease_gen);
    w.u64(config.member_rev);
    w.u8(mode_code(config.mode));
    w.u8(u8::from(config.forced) | u8::from(config.hands_over) << 1);
    w.u16(config.sites.len() as u16);
    w.bytes(&config.generation.0);
    for site in &config.sites {
        w.bytes(&site.0);
    }
}

/// Reads K and checks its invariants.
pub fn decode(r: &mut Reader<'_>) -> Result<Config, FormatError> {
    let epoch: Epoch = r.epoch()?;
    let nonce = Nonce(r.array()?);
    let proposer = NodeId(r.array()?);
    let s_since = read_since(r)?;
    let base = read_since(r)?;
    let primary = SiteId(r.array()?);
    let leader = NodeId(r.array()?);
    let lease_gen = r.u64()?;
    let member_rev = r.u64()?;
    let mode = mode_of(r.u8()?).ok_or_else(|| r.field("mode"))?;
    let flags = r.u8()?;
    let count = r.u16()? as usize;
    if count == 0 || count > Config::MAX_SITES {
        return Err(r.field("sites"));
    }
    let generation = GenId(r.array()?);
    let sites = (0..count).map(|_| Ok(SiteId(r.array()?))).collect::<Result<Vec<_>, FormatError>>()?;
    let config = Config {
        epoch,
        nonce,
        proposer,
        since: s_since,
        base,
        primary: (!primary.is_nil()).then_some(primary),
        leader,
        lease_gen,
        member_rev,
        sites,
        mode,
        generation,
        forced: flags & 1 != 0,
        hands_over: flags & 2 != 0,
    };
    check(&config).map_err(|name| r.field(name))?;
    Ok(config)
}

/// The invariants of K; names the field that breaks one.
pub fn check(config: &Config) -> Result<(), &'static str> {
    let mut sites = config.sites.clone();
    sites.sort();
    sites.dedup();
    if sites.is_empty() || sites.len() != config.sites.len() || sites[0].is_nil() || sites.len() > Config::MAX_SITES {
        return Err("sites");
    }
    match config.primary {
        Some(primary) if !config.has(primary) => Err("primary"),
        _ => Ok(()),
    }
}

/// The content of the `config` file.
pub fn encode_file(config: &Config) -> Vec<u8> {
    let mut w = Writer::default();
    encode(config, &mut w);
    w.buf
}

/// Reads the content of the `config` file.
pub fn decode_file(content: &[u8]) -> Result<Config, FormatError> {
    decode(&mut Reader::new("config", content))
}

/// The payload of a FORK record: who opened, where from, and under which K.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fork {
    /// The incarnation that begins.
    pub incarnation: Incarnation,
    /// The last record before it.
    pub fork: Lsn,
    /// The generation that the fork leaves; the same when only the incarnation is new.
    pub parent: GenId,
    /// The site that opens.
    pub site: SiteId,
    /// K at the opening.
    pub config: Config,
}

const FORK_MAGIC: u32 = u32::from_le_bytes(*b"TMFK");

impl Fork {
    /// One block: magic, incarnation, fork lsn, parent generation, site, K.
    pub fn encode(&self) -> Bytes {
        let mut w = Writer::with_capacity(BLOCK);
        w.u32(FORK_MAGIC);
        w.u32(self.incarnation.0);
        w.u64(self.fork.0);
        w.bytes(&self.parent.0);
        w.bytes(&self.site.0);
        encode(&self.config, &mut w);
        w.zeros(BLOCK - w.buf.len());
        Bytes::from(w.buf)
    }

    /// Reads the block.
    pub fn decode(payload: &[u8]) -> Result<Self, FormatError> {
        let mut r = Reader::new("fork", payload);
        if r.u32()? != FORK_MAGIC {
            return Err(FormatError::Magic("fork"));
        }
        Ok(Self {
            incarnation: Incarnation(r.u32()?),
            fork: Lsn(r.u64()?),
            parent: GenId(r.array()?),
            site: SiteId(r.array()?),
            config: decode(&mut r)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        let s = Since { epoch: Epoch { major: 3, minor: 1 }, nonce: Nonce([4; 16]) };
        Config {
            epoch: Epoch { major: 3, minor: 2 },
            nonce: Nonce([5; 16]),
            proposer: NodeId([6; 16]),
            since: s,
            base: s,
            primary: Some(SiteId([1; 16])),
            leader: NodeId([6; 16]),
            lease_gen: 7,
            member_rev: 8,
            sites: vec![SiteId([1; 16]), SiteId([2; 16])],
            mode: Mode::Sync,
            generation: GenId([9; 16]),
            forced: true,
            hands_over: false,
        }
    }

    #[test]
    fn k_survives_its_encoding() {
        let handing = Config { primary: None, hands_over: true, ..config() };
        for k in [config(), handing] {
            assert_eq!(decode_file(&encode_file(&k)).unwrap(), k);
        }
    }

    #[test]
    fn a_primary_outside_s_is_refused() {
        let bad = Config { primary: Some(SiteId([3; 16])), ..config() };
        assert!(decode_file(&encode_file(&bad)).is_err());
        let twice = Config { sites: vec![SiteId([1; 16]); 2], ..config() };
        assert!(decode_file(&encode_file(&twice)).is_err());
    }

    #[test]
    fn a_fork_survives_its_encoding() {
        let fork = Fork {
            incarnation: Incarnation(2),
            fork: Lsn(77),
            parent: GenId([1; 16]),
            site: SiteId([2; 16]),
            config: config(),
        };
        assert_eq!(Fork::decode(&fork.encode()).unwrap(), fork);
    }
}
