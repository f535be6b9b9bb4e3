//! Liveness of the peers: one beat a second each way, on a connection of its own, so that bulk never delays a suspicion.
//!
//! Decides nothing: it publishes when each peer was last heard and how far away it is. A beat carries no epoch and no position.
//! [`Heart`] is the exchange without clock and socket; [`keep_beating`] dials, [`Heartbeats::answer`] is the other end.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tidemark_core::types::{BootId, NodeId, SiteId};
use tidemark_proto::peer::Beat;
use tidemark_proto::peer::control_client::ControlClient;
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::backoff::Backoff;
use super::client::{ConnectError, Dialled, PeerAddress, dial, within_deadline};
use super::convert::{Malformed, id, raw};
use super::refusal::PeerRefusal;
use super::stream::{StreamEnd, end_of_status, status_of};
use super::tls::PeerIdentity;
use super::transport::{Fault, PeerConnection, Transport};

/// Between two beats.
pub const BEAT: Duration = Duration::from_secs(1);
/// A peer that was not heard for so long counts as silent; its connection is given up.
pub const SILENCE: Duration = Duration::from_secs(5);
/// The longest time between two attempts to reach a silent peer: liveness must not lag a minute behind.
const LAST_REDIAL: Duration = Duration::from_secs(5);
/// Beats whose answer is awaited; older ones are forgotten.
const AWAITED: usize = 16;

// ---- what is published ----------------------------------------------------------------------------------------------

/// What is known of a peer's liveness.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PeerHealth {
    /// When it was last heard, on either connection.
    pub heard: Option<Instant>,
    /// The latest round trip; clocks of the two hosts play no part.
    pub rtt: Option<Duration>,
    /// Its node.
    pub node: Option<NodeId>,
    /// The boot of its kernel.
    pub boot: Option<BootId>,
    /// How long its agent had been running when it was last heard.
    pub uptime: Option<Duration>,
    /// Why the last attempt to reach it failed; `None` while our connection to it stands.
    pub fault: Option<String>,
}

impl PeerHealth {
    /// True when it was heard within [`SILENCE`].
    pub fn is_alive(&self, now: Instant) -> bool {
        self.heard.is_some_and(|heard| now.saturating_duration_since(heard) < SILENCE)
    }
}

/// The liveness of all peers, written by the heartbeats and read by status, metrics and whoever waits for a change.
#[derive(Debug, Default)]
pub struct HealthBoard {
    peers: RwLock<BTreeMap<SiteId, watch::Sender<PeerHealth>>>,
}

impl HealthBoard {
    /// Follows the liveness of a site, also of one that was never heard.
    pub fn watch(&self, site: SiteId) -> watch::Receiver<PeerHealth> {
        if let Some(sender) = self.peers.read().unwrap_or_else(PoisonError::into_inner).get(&site) {
            return sender.subscribe();
        }
        self.peers.write().unwrap_or_else(PoisonError::into_inner).entry(site).or_default().subscribe()
    }

    /// The liveness of a site now.
    pub fn health(&self, site: SiteId) -> PeerHealth {
        self.watch(site).borrow().clone()
    }

    /// Forgets a peer that was removed.
    pub fn forget(&self, site: SiteId) {
        self.peers.write().unwrap_or_else(PoisonError::into_inner).remove(&site);
    }

    fn update(&self, site: SiteId, change: impl FnOnce(&mut PeerHealth)) {
        if let Some(sender) = self.peers.read().unwrap_or_else(PoisonError::into_inner).get(&site) {
            return sender.send_modify(change);
        }
        self.peers.write().unwrap_or_else(PoisonError::into_inner).entry(site).or_default().send_modify(change);
    }

    fn heard(&self, now: Instant, heard: &Heard) {
        self.update(heard.identity.site, |health| {
            health.heard = Some(now);
            health.rtt = heard.rtt.or(health.rtt);
            health.node = Some(heard.identity.node);
            health.boot = Some(heard.boot);
            health.uptime = Some(heard.uptime);
        });
    }
}

// ---- the exchange ---------------------------------------------------------------------------------------------------

/// Who beats.
#[derive(Clone, Copy, Debug)]
pub struct Pulse {
    /// This agent.
    pub identity: PeerIdentity,
    /// The boot of this kernel.
    pub boot: BootId,
    /// When this agent started.
    pub started: Instant,
}

/// What a beat of the peer says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Heard {
    identity: PeerIdentity,
    boot: BootId,
    uptime: Duration,
    rtt: Option<Duration>,
}

/// One connection's exchange of beats, without clock and socket.
#[derive(Debug)]
struct Heart {
    pulse: Pulse,
    seq: u64,
    awaited: VecDeque<(u64, Instant)>,
    latest: Option<(u64, Instant)>,
}

impl Heart {
    fn new(pulse: Pulse) -> Self {
        Self { pulse, seq: 0, awaited: VecDeque::new(), latest: None }
    }

    fn beat(&mut self, now: Instant) -> Beat {
        self.seq += 1;
        if self.awaited.len() == AWAITED {
            self.awaited.pop_front();
        }
        self.awaited.push_back((self.seq, now));
        let (echo_seq, echo_age) = self.latest.map_or((0, Duration::ZERO), |(seq, at)| (seq, now - at));
        Beat {
            site: raw(&self.pulse.identity.site.0),
            node: raw(&self.pulse.identity.node.0),
            boot: raw(&self.pulse.boot.0),
            seq: self.seq,
            uptime_ms: millis(now.saturating_duration_since(self.pulse.started)),
            echo_seq,
            echo_age_us: u64::try_from(echo_age.as_micros()).unwrap_or(u64::MAX),
        }
    }

    fn on_beat(&mut self, now: Instant, beat: &Beat) -> Result<Heard, Malformed> {
        let heard = Heard {
            identity: PeerIdentity { site: id(&beat.site, "site")?, node: id(&beat.node, "node")? },
            boot: id(&beat.boot, "boot")?,
            uptime: Duration::from_millis(beat.uptime_ms),
            rtt: self.round_trip(now, beat),
        };
        self.latest = Some((beat.seq, now));
        Ok(heard)
    }

    /// From our beat to its echo, without the time that the peer sat on it; only the first echo of a beat counts.
    fn round_trip(&mut self, now: Instant, beat: &Beat) -> Option<Duration> {
        let at = self.awaited.iter().position(|(seq, _)| *seq == beat.echo_seq)?;
        let (_, sent) = self.awaited.drain(..=at).next_back()?;
        Some((now - sent).saturating_sub(Duration::from_micros(beat.echo_age_us)))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

// ---- both ends ------------------------------------------------------------------------------------------------------

/// What the two ends of a heartbeat connection share.
struct Session {
    heart: Heart,
    board: Arc<HealthBoard>,
    transport: Transport,
    connection: PeerConnection,
    /// The site that the connection is for, when that is known.
    expected: Option<SiteId>,
}

impl Session {
    /// Beats and listens until the connection ends or is silent for too long.
    async fn run(
        mut self,
        mut inbound: Streaming<Beat>,
        fault: &Fault,
        outbound: mpsc::Sender<Result<Beat, Status>>,
    ) -> StreamEnd {
        let mut ticks = interval(BEAT);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard = Instant::now();
        loop {
            tokio::select! {
                _ = ticks.tick() => {
                    if heard.elapsed() >= SILENCE {
                        return StreamEnd::Lost(format!("silent for {SILENCE:?}"));
                    }
                    // A full queue means that the connection is stuck: the silence will say so.
                    let _ = outbound.try_send(Ok(self.heart.beat(Instant::now())));
                }
                beat = inbound.message() => {
                    if let Err(end) = self.on_received(beat, fault) {
                        // The other end may be gone already.
                        let _ = outbound.try_send(Err(status_of(&end)));
                        return end;
                    }
                    heard = Instant::now();
                }
            }
        }
    }

    fn on_received(&mut self, received: Result<Option<Beat>, Status>, fault: &Fault) -> Result<(), StreamEnd> {
        let now = Instant::now();
        let heard = self.hear(now, received, fault)?;
        self.board.heard(now, &heard);
        Ok(())
    }

    /// What the peer says, if it may say so on this connection.
    fn hear(
        &mut self,
        now: Instant,
        received: Result<Option<Beat>, Status>,
        fault: &Fault,
    ) -> Result<Heard, StreamEnd> {
        let beat = received.map_err(|status| end_of_status(&status, fault))?.ok_or(StreamEnd::Closed)?;
        let heard = self.heart.on_beat(now, &beat)?;
        self.check(heard.identity)?;
        Ok(heard)
    }

    fn check(&self, claimed: PeerIdentity) -> Result<(), StreamEnd> {
        let proven = self.connection.identity.is_none_or(|identity| identity == claimed);
        if proven && self.expected.is_none_or(|site| site == claimed.site) {
            return Ok(());
        }
        Err(StreamEnd::Refused(self.transport.refuse(PeerRefusal::WrongSite, self.connection.remote, &claimed)))
    }
}

/// This agent's part in all heartbeats.
#[derive(Clone, Debug)]
pub struct Heartbeats {
    /// Who beats.
    pub pulse: Pulse,
    /// Where the peers' liveness is published.
    pub board: Arc<HealthBoard>,
}

impl Heartbeats {
    /// The listener's end of a heartbeat connection.
    pub(super) fn answer(&self, inbound: Streaming<Beat>, connection: PeerConnection, transport: Transport) -> Beats {
        let session = self.session(connection, transport, None);
        let (sender, receiver) = mpsc::channel(AWAITED);
        tokio::spawn(async move {
            let end = session.run(inbound, &Fault::default(), sender).await;
            tracing::debug!(%end, "heartbeat of a peer ended");
        });
        Beats(ReceiverStream::new(receiver))
    }

    fn session(&self, connection: PeerConnection, transport: Transport, expected: Option<SiteId>) -> Session {
        Session { heart: Heart::new(self.pulse), board: Arc::clone(&self.board), transport, connection, expected }
    }

    /// Dials the peer and beats until the connection ends.
    async fn beat_once(
        &self,
        peer: &PeerAddress,
        transport: &Transport,
        backoff: &mut Backoff,
    ) -> Result<StreamEnd, ConnectError> {
        let (inbound, dialled, sender) = within_deadline(peer, peer.port, open(peer, transport)).await?;
        backoff.reset();
        if let Some(site) = peer.site {
            self.board.update(site, |health| health.fault = None);
        }
        let session = self.session(dialled.connection.clone(), transport.clone(), peer.site);
        Ok(session.run(inbound, &dialled.fault, sender).await)
    }
}

/// Dials a peer whose site is not known and asks who it is. The answer is what its certificate says; where connections are
/// insecure nothing proves it.
///
/// # Errors
/// Any [`ConnectError`].
pub async fn first_contact(
    heartbeats: &Heartbeats,
    peer: &PeerAddress,
    transport: &Transport,
) -> Result<PeerIdentity, ConnectError> {
    within_deadline(peer, peer.port, async {
        let (mut inbound, dialled, outbound) = open(peer, transport).await?;
        let mut session = heartbeats.session(dialled.connection.clone(), transport.clone(), peer.site);
        // The queue is empty: there is room.
        let _ = outbound.try_send(Ok(session.heart.beat(Instant::now())));
        let answer = inbound.message().await;
        let heard = session.hear(Instant::now(), answer, &dialled.fault);
        let remote = dialled.connection.remote;
        heard.map(|heard| heard.identity).map_err(|end| ConnectError::Stream { remote, end })
    })
    .await
}

/// Beats with one peer for ever; drop the future to stop. Run it on the control runtime.
pub async fn keep_beating(heartbeats: Heartbeats, peer: PeerAddress, transport: Transport) {
    let mut backoff = Backoff::default();
    let mut told = None;
    loop {
        let ended = heartbeats.beat_once(&peer, &transport, &mut backoff).await;
        let end = ended.map_or_else(|error| error.to_string(), |end| end.to_string());
        if let Some(site) = peer.site {
            heartbeats.board.update(site, |health| health.fault = Some(end.clone()));
        }
        // A peer that stays away for the same reason is told once.
        if told.as_ref() != Some(&end) {
            tracing::info!(host = %peer.host, port = peer.port, %end, "no heartbeat with the peer");
            told = Some(end);
        }
        sleep(backoff.next_delay(spread()).min(LAST_REDIAL)).await;
    }
}

/// Random bits for the spread; without them all peers are redialled in step, which is harmless.
fn spread() -> u32 {
    getrandom::u32().unwrap_or_default()
}

type Opened = (Streaming<Beat>, Dialled, mpsc::Sender<Result<Beat, Status>>);

async fn open(peer: &PeerAddress, transport: &Transport) -> Result<Opened, ConnectError> {
    let dialled = dial(peer, peer.port, transport).await?;
    let (sender, receiver) = mpsc::channel(AWAITED);
    let answer = ControlClient::new(dialled.channel.clone()).heartbeat(Given(ReceiverStream::new(receiver))).await;
    let remote = dialled.connection.remote;
    let answer =
        answer.map_err(|status| ConnectError::Stream { remote, end: end_of_status(&status, &dialled.fault) })?;
    Ok((answer.into_inner(), dialled, sender))
}

/// Beats that the listener's end sends.
pub struct Beats(ReceiverStream<Result<Beat, Status>>);

impl Stream for Beats {
    type Item = Result<Beat, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut self.0).poll_next(cx)
    }
}

/// Beats that the dialler's end sends; it has no status to end with.
struct Given(ReceiverStream<Result<Beat, Status>>);

impl Stream for Given {
    type Item = Beat;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Beat>> {
        Pin::new(&mut self.0).poll_next(cx).map(|item| item.and_then(Result::ok))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heart(site: u8, started: Instant) -> Heart {
        let identity = PeerIdentity { site: SiteId([site; 16]), node: NodeId([site; 16]) };
        Heart::new(Pulse { identity, boot: BootId([site; 16]), started })
    }

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_round_trip_leaves_out_what_the_peer_sat_on_the_beat() {
        let start = Instant::now();
        let (mut a, mut b) = (heart(1, start), heart(2, start));
        let first = a.beat(start);
        assert_eq!((first.seq, first.echo_seq), (1, 0));
        assert_eq!(b.on_beat(start + 10 * MS, &first).unwrap().rtt, None);
        let answer = b.beat(start + 700 * MS);
        let heard = a.on_beat(start + 720 * MS, &answer).unwrap();
        assert_eq!(heard.rtt, Some(30 * MS));
        assert_eq!((heard.identity.site, heard.boot, heard.uptime), (SiteId([2; 16]), BootId([2; 16]), 700 * MS));
    }

    #[test]
    fn an_echo_counts_once() {
        let start = Instant::now();
        let (mut a, mut b) = (heart(1, start), heart(2, start));
        b.on_beat(start, &a.beat(start)).unwrap();
        let (one, two) = (b.beat(start + MS), b.beat(start + 1000 * MS));
        assert!(a.on_beat(start + MS, &one).unwrap().rtt.is_some());
        assert_eq!(a.on_beat(start + 1000 * MS, &two).unwrap().rtt, None);
    }

    #[test]
    fn a_peer_that_never_echoes_or_lies_costs_nothing() {
        let start = Instant::now();
        let mut a = heart(1, start);
        for _ in 0..1000 {
            a.beat(start);
        }
        assert_eq!(a.awaited.len(), AWAITED);
        let mut beat = heart(2, start).beat(start);
        beat.echo_seq = 1;
        assert_eq!(a.on_beat(start, &beat).unwrap().rtt, None, "forgotten");
        beat.echo_seq = 1000;
        beat.echo_age_us = u64::MAX;
        assert_eq!(a.on_beat(start, &beat).unwrap().rtt, Some(Duration::ZERO));
        beat.boot = raw(&[1; 3]);
        assert!(a.on_beat(start, &beat).is_err());
    }

    #[test]
    fn a_peer_is_alive_until_it_was_silent_for_too_long() {
        let now = Instant::now();
        let health = PeerHealth { heard: Some(now), ..PeerHealth::default() };
        assert!(health.is_alive(now + SILENCE - MS));
        assert!(!health.is_alive(now + SILENCE));
        assert!(!PeerHealth::default().is_alive(now));
    }
}
