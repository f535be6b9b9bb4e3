//! The two machines alone, and against each other under clocks that run apart.

use super::*;
use proptest::prelude::*;

const SECOND: u64 = 1_000_000_000;
const TERMS: Terms = Terms { span_ns: 10 * SECOND, calm: Calm::DEFAULT };
const LEADER: NodeId = NodeId([1; 16]);

fn at(ms: u64) -> Nanos {
    Nanos(ms * 1_000_000)
}

fn nonce(n: u64) -> Nonce {
    Nonce((u128::from(n) + 1).to_be_bytes())
}

/// A witness that answers at once.
#[derive(Default)]
struct Cell {
    now: Option<(Lease, u64)>,
}

impl Cell {
    fn holds(&self) -> Option<(Lease, Revision)> {
        self.now.map(|(lease, count)| (lease, Revision::Counted(count)))
    }

    fn ask(&mut self, ask: &Ask) -> Answer {
        match ask {
            Ask::Change { expected, lease } if *expected == self.holds().map(|(_, revision)| revision) => {
                let count = self.now.map_or(0, |(_, count)| count) + 1;
                self.now = Some((*lease, count));
                Answer::Committed(Revision::Counted(count))
            }
            _ => Answer::Holds(self.holds()),
        }
    }
}

/// Asks until nothing is to be asked at `now`.
fn settle(holder: &mut Holder, cell: &mut Cell, now: Nanos, nonces: &mut u64) {
    while let Some(ask) = holder.poll(now, nonce(*nonces)) {
        *nonces += 1;
        holder.on_answer(now, cell.ask(&ask));
    }
}

#[test]
fn a_started_agent_takes_a_new_grant_and_renews_it_three_times_a_span() {
    let (mut cell, mut nonces) = (Cell::default(), 0);
    let mut first = Holder::new(TERMS);
    settle(&mut first, &mut cell, at(0), &mut nonces);
    assert_eq!((first.grant(), first.valid_until(1), first.valid_until(2)), (Some(1), Some(at(10_000)), None));
    assert_eq!(first.poll_timeout(), Some(Nanos(TERMS.span_ns / 3)));
    settle(&mut first, &mut cell, at(4_000), &mut nonces);
    assert_eq!(first.valid_until(1), Some(at(14_000)));
    let mut restarted = Holder::new(TERMS);
    settle(&mut restarted, &mut cell, at(0), &mut nonces);
    assert_eq!((restarted.grant(), restarted.valid_until(1)), (Some(2), None), "an old K does not rest on it");
}

#[test]
fn a_renewal_counts_from_its_sending_also_when_its_answer_was_lost() {
    let (mut cell, mut nonces) = (Cell::default(), 0);
    let mut holder = Holder::new(TERMS);
    settle(&mut holder, &mut cell, at(0), &mut nonces);
    let ask = holder.poll(at(4_000), nonce(90)).unwrap();
    cell.ask(&ask); // it happened
    holder.on_answer(at(7_000), Answer::Lost);
    assert_eq!(holder.valid_until(1), Some(at(10_000)), "nothing is known of it yet");
    assert_eq!(holder.poll(at(7_500), nonce(91)), None, "a witness that does not answer is left alone for a while");
    let read = holder.poll(at(9_000), nonce(91)).unwrap();
    assert_eq!(read, Ask::Read);
    holder.on_answer(at(9_500), cell.ask(&read));
    assert_eq!(holder.valid_until(1), Some(at(14_000)));
}

#[test]
fn a_renewal_that_comes_late_is_known_again_by_the_next() {
    let (mut cell, mut nonces) = (Cell::default(), 0);
    let mut holder = Holder::new(TERMS);
    settle(&mut holder, &mut cell, at(0), &mut nonces);
    let late = holder.poll(at(4_000), nonce(90)).unwrap();
    holder.on_answer(at(5_000), Answer::Lost);
    let read = holder.poll(at(8_000), nonce(91)).unwrap();
    holder.on_answer(at(8_000), cell.ask(&read));
    let again = holder.poll(at(8_000), nonce(92)).unwrap();
    cell.ask(&late); // now it comes
    holder.on_answer(at(8_100), cell.ask(&again));
    assert_eq!(holder.valid_until(1), Some(at(14_000)));
}

#[test]
fn a_revoked_holder_loses_its_grant_and_takes_another() {
    let (mut cell, mut nonces) = (Cell::default(), 0);
    let mut holder = Holder::new(TERMS);
    settle(&mut holder, &mut cell, at(0), &mut nonces);
    let (lease, revision) = cell.holds().unwrap();
    cell.ask(&Ask::Change { expected: Some(revision), lease: lease.revoked(nonce(99)) });
    settle(&mut holder, &mut cell, at(4_000), &mut nonces);
    assert_eq!((holder.valid_until(1), holder.grant()), (None, Some(3)));
}

#[test]
fn a_wiped_cell_ends_the_lease() {
    let (mut cell, mut nonces) = (Cell::default(), 0);
    let mut holder = Holder::new(TERMS);
    for _ in 0..3 {
        settle(&mut holder, &mut cell, at(0), &mut nonces);
        holder = Holder::new(TERMS);
    }
    settle(&mut holder, &mut cell, at(0), &mut nonces);
    holder.poll(at(4_000), nonce(80)).unwrap();
    holder.on_answer(at(4_000), Answer::Holds(None));
    assert_eq!(holder.grant(), None);
}

fn watching(now: Nanos, cell: &Cell) -> Watch {
    let mut watch = Watch::new(TERMS, now);
    watch.on_config(LEADER, cell.now.map_or(0, |(lease, _)| lease.lease_gen));
    watch.on_lease(now, cell.holds());
    watch
}

fn held() -> (Cell, Holder) {
    let (mut cell, mut holder) = (Cell::default(), Holder::new(TERMS));
    settle(&mut holder, &mut cell, at(0), &mut 0);
    (cell, holder)
}

#[test]
fn the_wait_is_the_span_and_two_percent_and_a_second_after_the_last_sign_of_life() {
    let (cell, _) = held();
    let mut watch = watching(at(100), &cell);
    assert_eq!(watch.revocation(at(100 + 11_199), nonce(1)), None);
    assert!(watch.revocation(at(100 + 11_200), nonce(1)).is_some());
    watch.on_heard(at(5_000));
    assert_eq!(watch.revocation(at(16_199), nonce(1)), None);
    assert!(watch.revocation(at(16_200), nonce(1)).is_some());
    assert!(!watch.may_take_over(at(16_200)), "not before the lease is taken");
}

#[test]
fn a_renewal_or_another_configuration_begins_the_wait_anew() {
    let (mut cell, mut holder) = held();
    let mut watch = watching(at(0), &cell);
    settle(&mut holder, &mut cell, at(4_000), &mut 50);
    watch.on_lease(at(9_000), cell.holds());
    assert_eq!(watch.ends(), Some(at(20_200)));
    watch.on_config(LEADER, 2);
    assert_eq!((watch.ends(), watch.may_take_over(at(99_000))), (None, false), "not read for this grant");
    watch.on_config(NodeId([9; 16]), 2);
    watch.on_lease(at(30_000), cell.holds());
    assert_eq!(watch.ends(), Some(at(41_200)));
}

#[test]
fn a_renewal_between_look_and_revocation_makes_it_fail() {
    let (mut cell, mut holder) = held();
    let watch = watching(at(0), &cell);
    let take = watch.revocation(at(20_000), nonce(70)).unwrap();
    settle(&mut holder, &mut cell, at(20_000), &mut 50);
    assert!(matches!(cell.ask(&take), Answer::Holds(_)));
}

#[test]
fn a_new_primary_serves_only_when_it_has_echoed_nothing_for_the_wait() {
    let (mut cell, _) = held();
    let mut watch = watching(at(0), &cell);
    let Some(Ask::Change { expected, lease }) = watch.revocation(at(12_000), nonce(70)) else { panic!() };
    let Answer::Committed(revision) = cell.ask(&Ask::Change { expected, lease }) else { panic!() };
    watch.on_revoked(lease, revision);
    watch.on_heard(at(12_100)); // it was under way for long
    assert!(watch.may_take_over(at(12_200)));
    assert!(!watch.may_open(at(23_299)) && watch.may_open(at(23_300)));
}

#[test]
fn a_primary_with_its_peer_in_s_serves_while_either_hears_it() {
    let authority = Authority { leased_until: Some(at(9_000)), echoed: Some(at(2_000)) };
    assert_eq!(authority.serves(TERMS, true, false), Serves::Until(at(12_000)));
    assert_eq!(authority.serves(TERMS, true, true), Serves::Until(at(9_000)));
    assert_eq!(authority.serves(TERMS, false, true), Serves::Until(at(9_000)));
    assert_eq!(authority.serves(TERMS, false, false), Serves::Unbounded);
    assert_eq!(Authority::default().serves(TERMS, true, false), Serves::Until(Nanos(0)));
}

/// One side's clock: `rate` thousandths of the true one, from another start.
#[derive(Clone, Copy, Debug)]
struct Clock {
    rate: u64,
    start: u64,
}

impl Clock {
    fn read(self, truth_ms: u64) -> Nanos {
        at(self.start + truth_ms * self.rate / 1000)
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Pass(u64),
    Send,
    Execute,
    Answer,
    Lose,
    Beat,
    Hear,
    Echo,
    Look,
}

fn step() -> impl Strategy<Value = Step> {
    use Step::*;
    prop_oneof![
        6 => (1u64..4_000).prop_map(Pass),
        3 => Just(Send), 3 => Just(Execute), 3 => Just(Answer), 1 => Just(Lose),
        1 => Just(Beat), 1 => Just(Hear), 1 => Just(Echo),
        4 => Just(Look),
    ]
}

/// The holder, its challenger, and everything between them that is slow.
struct World {
    truth: u64,
    clocks: (Clock, Clock),
    cell: Cell,
    holder: Holder,
    watch: Watch,
    asked: Option<Ask>,
    answer: Option<Answer>,
    beat: Option<Nanos>,
    echo: Option<Nanos>,
    echoed: Option<Nanos>,
    nonces: u64,
    taken: bool,
}

impl World {
    fn new(clocks: (Clock, Clock)) -> Self {
        let (cell, _) = held();
        let watch = watching(clocks.1.read(0), &cell);
        let holder = Holder::new(TERMS);
        let (asked, answer, beat, echo, echoed) = (None, None, None, None, None);
        let (truth, nonces, taken) = (0, 1_000, false);
        let mut world = Self { truth, clocks, cell, holder, watch, asked, answer, beat, echo, echoed, nonces, taken };
        settle(&mut world.holder, &mut world.cell, world.clocks.0.read(0), &mut world.nonces);
        world
    }

    fn play(&mut self, step: Step) {
        let (mine, theirs) = (self.clocks.0.read(self.truth), self.clocks.1.read(self.truth));
        self.nonces += 1;
        match step {
            Step::Pass(ms) => self.truth += ms,
            Step::Send => self.asked = self.holder.poll(mine, nonce(self.nonces)).or(self.asked.take()),
            Step::Execute => {
                if let Some(ask) = self.asked.take() {
                    self.answer = Some(self.cell.ask(&ask));
                }
            }
            Step::Answer => self.answered(mine),
            Step::Lose => {
                if self.asked.take().is_some() || self.answer.take().is_some() {
                    self.holder.on_answer(mine, Answer::Lost);
                }
            }
            Step::Beat => self.beat = Some(mine),
            Step::Hear => {
                // Who has opened under another K echoes no more.
                if let Some(sent) = self.beat.take().filter(|_| !self.taken) {
                    self.watch.on_heard(theirs);
                    self.echo = Some(sent);
                }
            }
            Step::Echo => self.echoed = self.echoed.max(self.echo.take()),
            Step::Look => self.look(theirs),
        }
    }

    fn answered(&mut self, mine: Nanos) {
        if let Some(answer) = self.answer.take() {
            self.holder.on_answer(mine, answer);
        }
    }

    /// The challenger looks, and takes what it may.
    fn look(&mut self, theirs: Nanos) {
        self.watch.on_config(LEADER, 2);
        self.watch.on_lease(theirs, self.cell.holds());
        if let Some(ask) = self.watch.revocation(theirs, nonce(self.nonces))
            && let Answer::Committed(revision) = self.cell.ask(&ask)
            && let Ask::Change { lease, .. } = ask
        {
            self.watch.on_revoked(lease, revision);
        }
        self.taken |= self.watch.may_take_over(theirs) && self.watch.may_open(theirs);
    }

    /// Whether the holder would serve under the K that names its second grant.
    fn serves(&self) -> bool {
        let authority = Authority { leased_until: self.holder.valid_until(2), echoed: self.echoed };
        authority.serves(TERMS, true, false) > Serves::Until(self.clocks.0.read(self.truth))
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    #[test]
    fn nobody_serves_any_more_when_another_may_with_clocks_two_percent_apart(
        rates in prop_oneof![Just((1000u64, 1020u64)), Just((981, 1000)), Just((1000, 1000)), Just((1000, 900))],
        starts in (0u64..1_000_000, 0u64..1_000_000),
        steps in proptest::collection::vec(step(), 1..200),
    ) {
        let clock = |rate, start| Clock { rate, start };
        let mut world = World::new((clock(rates.0, starts.0), clock(rates.1, starts.1)));
        prop_assert!(world.serves());
        for step in steps {
            world.play(step);
            prop_assert!(!(world.taken && world.serves()), "both serve after {step:?} at {} ms", world.truth);
        }
    }
}
