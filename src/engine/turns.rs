//! Whose turn it is on a device that several engines share: start-time fair queueing (Goyal, Vin and Cheng 1996) by the
//! device's own time.
//!
//! A call of the denoiser, an encoding and a decoding take a turn each. The next turn is that of the engine that has used least,
//! so that one with long calls gets no more of the device than one with short calls. Who had nothing to do earns no credit by it.

use crate::engine::policy::Company;
use crate::engine::shared::{Shared, lock};
use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// Names an engine at its device.
pub type SeatId = u64;

/// How far, in seconds of the device, others may get ahead of an engine that is between two calls. Further, and the device waits
/// for it, which takes microseconds: else an engine of short calls had one for each long call of another.
const LEAD: f64 = 0.002;
/// The memory of what each engine has used lately, in seconds.
const MEMORY_S: f64 = 2.0;
/// For how long an engine counts as one that wants the device after a request to it was refused for the sake of others.
const WISH: Duration = Duration::from_secs(2);
/// How much of the longest call of an engine is remembered after another.
const FADE: f64 = 0.995;

/// Who has used how much of a device, and who is next: without a clock and without threads.
#[derive(Debug, Default)]
pub struct Ledger {
    seats: BTreeMap<SeatId, Account>,
    joined: SeatId,
    asked: u64,
    /// Where the turn that was given last began, in the seconds that [`Account::start`] counts.
    clock: f64,
    running: Option<SeatId>,
    /// All turns together.
    used: Duration,
    /// When a turn ended last.
    updated: Duration,
}

/// What is known of an engine.
#[derive(Clone, Debug, Default)]
struct Account {
    /// Whether it has work.
    works: bool,
    /// Its place among those that wait for a turn.
    waits: Option<u64>,
    /// The seconds of the device that it has used; where it had no work, at least as much as who was served then.
    start: f64,
    /// Its longest turn of those that are not long ago.
    longest: Duration,
    /// Seconds of the device that it has used lately, as of the end of the last turn.
    lately: f64,
    /// When a request to it was refused for the sake of others.
    refused: Option<Duration>,
}

impl Account {
    fn wants(&self, now: Duration) -> bool {
        self.works || self.refused.is_some_and(|refused| now.saturating_sub(refused) < WISH)
    }
}

impl Ledger {
    /// Another engine comes to the device.
    pub fn join(&mut self) -> SeatId {
        self.joined += 1;
        self.seats.insert(self.joined, Account::default());
        self.joined
    }

    /// An engine goes, whatever it did.
    pub fn leave(&mut self, seat: SeatId) {
        self.seats.remove(&seat);
        self.running = self.running.filter(|&running| running != seat);
    }

    /// An engine has work from here on.
    pub fn work(&mut self, seat: SeatId) {
        let clock = self.clock;
        if let Some(account) = self.seats.get_mut(&seat).filter(|account| !account.works) {
            account.works = true;
            account.start = account.start.max(clock);
        }
    }

    /// An engine has no work any more.
    pub fn rest(&mut self, seat: SeatId) {
        if let Some(account) = self.seats.get_mut(&seat) {
            account.works = false;
        }
    }

    /// Whether an engine has work.
    pub fn works(&self, seat: SeatId) -> bool {
        self.seats.get(&seat).is_some_and(|account| account.works)
    }

    /// A request to an engine was refused for the sake of others.
    pub fn refuse(&mut self, seat: SeatId, now: Duration) {
        if let Some(account) = self.seats.get_mut(&seat) {
            account.refused = Some(now);
        }
    }

    /// An engine wants a turn.
    pub fn ask(&mut self, seat: SeatId) {
        self.work(seat);
        self.asked += 1;
        if let Some(account) = self.seats.get_mut(&seat) {
            account.waits = Some(self.asked);
        }
    }

    /// Gives the next turn, where the device is free and somebody may have it.
    pub fn give(&mut self) -> Option<SeatId> {
        if self.running.is_some() {
            return None;
        }
        let working = self.seats.values().filter(|account| account.works);
        let least = working.map(|account| account.start).fold(f64::INFINITY, f64::min);
        let waiting = self.seats.iter_mut().filter_map(|(&seat, account)| Some((account.waits?, seat, account)));
        let first = waiting.min_by(|(a, _, one), (b, _, other)| one.start.total_cmp(&other.start).then(a.cmp(b)));
        let (_, seat, account) = first.filter(|(.., account)| account.start <= least + LEAD)?;
        account.waits = None;
        self.clock = self.clock.max(account.start);
        self.running = Some(seat);
        self.running
    }

    /// A turn has ended that took so long.
    pub fn ended(&mut self, seat: SeatId, took: Duration, now: Duration) {
        self.running = self.running.filter(|&running| running != seat);
        self.used += took;
        let kept = self.kept(now);
        self.updated = now;
        self.seats.values_mut().for_each(|account| account.lately *= kept);
        if let Some(account) = self.seats.get_mut(&seat) {
            account.start += took.as_secs_f64();
            account.lately += took.as_secs_f64();
            account.longest = took.max(account.longest.mul_f64(FADE));
        }
    }

    /// With whom an engine shares the device.
    pub fn company(&self, seat: SeatId, now: Duration) -> Company {
        if self.seats.len() == 1 {
            return Company::ALONE;
        }
        let others = || self.seats.iter().filter(|(other, _)| **other != seat).map(|(_, account)| account);
        let wanting = || others().filter(|account| account.wants(now));
        let lately: f64 = others().map(|account| account.lately).sum();
        // Where the turns of this engine begin once the one under way is over: what it is ahead by the others get first.
        let running = self.running == Some(seat);
        let own = self
            .seats
            .get(&seat)
            .map_or(0.0, |account| account.start + if running { account.longest.as_secs_f64() } else { 0.0 });
        let wait =
            |account: &Account| (own - account.start.max(self.clock)).max(0.0) + LEAD + account.longest.as_secs_f64();
        Company {
            engines: 1 + wanting().count(),
            wait: Duration::from_secs_f64(wanting().map(wait).sum()),
            taken: (self.kept(now) * lately / MEMORY_S).min(1.0),
        }
    }

    /// The share of what was used lately that counts now.
    fn kept(&self, now: Duration) -> f64 {
        (-now.saturating_sub(self.updated).as_secs_f64() / MEMORY_S).exp()
    }
}

/// A device, as the engines that share it see it.
#[derive(Debug)]
pub struct Turns {
    ledger: Mutex<Ledger>,
    given: Condvar,
    /// The engines, by their seats.
    engines: Mutex<BTreeMap<SeatId, Weak<Shared>>>,
    /// Held while a request is taken: two engines that ask whether the other's promises hold would else wait for each other.
    admission: Mutex<()>,
    began: Instant,
}

impl Default for Turns {
    fn default() -> Self {
        Self {
            ledger: Mutex::default(),
            given: Condvar::new(),
            engines: Mutex::default(),
            admission: Mutex::default(),
            began: Instant::now(),
        }
    }
}

impl Turns {
    /// The time of all turns together.
    pub fn used(&self) -> Duration {
        lock(&self.ledger).used
    }

    /// The work that all engines have taken and not done.
    pub fn work(&self) -> Duration {
        self.engines().iter().map(|(_, engine)| lock(&engine.policy).work()).sum()
    }

    /// What whoever takes a request has to hold.
    pub(super) fn admission(&self) -> MutexGuard<'_, ()> {
        lock(&self.admission)
    }

    pub(super) fn company(&self, seat: SeatId) -> Company {
        lock(&self.ledger).company(seat, self.now())
    }

    /// An engine without work takes some: by how much a promise of another breaks, if one does; then the engine has none.
    ///
    /// The admission is held, and so is the policy of the engine.
    pub(super) fn work_begins(&self, seat: SeatId) -> Option<Duration> {
        let now = self.now();
        {
            let mut ledger = lock(&self.ledger);
            if ledger.works(seat) {
                return None;
            }
            ledger.work(seat);
        }
        let others = self.engines().into_iter().filter(|(other, _)| *other != seat);
        let late = others.filter(|(other, _)| lock(&self.ledger).works(*other)).filter_map(|(other, engine)| {
            let company = lock(&self.ledger).company(other, now);
            lock(&engine.policy).breach(engine.now(), &company)
        });
        let late = late.max()?;
        let mut ledger = lock(&self.ledger);
        ledger.rest(seat);
        ledger.refuse(seat, now);
        self.give(&mut ledger);
        Some(late)
    }

    /// An engine has nothing to do. Its policy is held.
    pub(super) fn rest(&self, seat: SeatId) {
        let mut ledger = lock(&self.ledger);
        ledger.rest(seat);
        self.give(&mut ledger);
    }

    fn engines(&self) -> Vec<(SeatId, Arc<Shared>)> {
        lock(&self.engines).iter().filter_map(|(&seat, engine)| Some((seat, engine.upgrade()?))).collect()
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// Gives the next turn to whoever may have it, and wakes it.
    fn give(&self, ledger: &mut Ledger) {
        if ledger.give().is_some() {
            self.given.notify_all();
        }
    }
}

/// The place of an engine's thread at a device. The engine has left when it is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    turns: Arc<Turns>,
    id: SeatId,
}

impl Seat {
    pub fn at(turns: &Arc<Turns>) -> Self {
        Self { turns: turns.clone(), id: lock(&turns.ledger).join() }
    }

    pub fn id(&self) -> SeatId {
        self.id
    }

    /// Says whose seat it is.
    pub fn is_of(&self, engine: &Arc<Shared>) {
        lock(&self.turns.engines).insert(self.id, Arc::downgrade(engine));
    }

    /// Waits for a turn.
    pub fn turn(&self) -> InTurn<'_> {
        let mut ledger = lock(&self.turns.ledger);
        ledger.ask(self.id);
        self.turns.give(&mut ledger);
        let is_its_turn = |ledger: &mut Ledger| ledger.running != Some(self.id);
        drop(self.turns.given.wait_while(ledger, is_its_turn).unwrap_or_else(PoisonError::into_inner));
        InTurn { seat: self, began: Instant::now() }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        lock(&self.turns.engines).remove(&self.id);
        let mut ledger = lock(&self.turns.ledger);
        ledger.leave(self.id);
        self.turns.give(&mut ledger);
    }
}

/// The right to the device. The turn is over when it is dropped.
#[derive(Debug)]
pub(super) struct InTurn<'a> {
    seat: &'a Seat,
    began: Instant,
}

impl InTurn<'_> {
    /// Ends the turn; how long it took.
    pub fn end(self) -> Duration {
        self.began.elapsed()
    }
}

impl Drop for InTurn<'_> {
    fn drop(&mut self) {
        let Seat { turns, id } = self.seat;
        let mut ledger = lock(&turns.ledger);
        ledger.ended(*id, self.began.elapsed(), turns.now());
        turns.give(&mut ledger);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An engine whose calls take so many milliseconds, and which is between two calls for so long.
    #[derive(Clone, Copy, Debug)]
    struct Caller {
        ms: f64,
        between_ms: f64,
    }

    /// Who has used how many milliseconds after so many, where all have work all the time.
    fn used(callers: &[Caller], ms: f64) -> Vec<f64> {
        let mut ledger = Ledger::default();
        let seats: Vec<SeatId> = callers.iter().map(|_| ledger.join()).collect();
        seats.iter().for_each(|&seat| ledger.work(seat));
        let mut used = vec![0.0; callers.len()];
        let mut back = vec![Some(0.0); callers.len()];
        let mut now: f64 = 0.0;
        while now < ms {
            for (at, &seat) in back.iter_mut().zip(&seats) {
                if at.is_some_and(|at| at <= now) {
                    *at = None;
                    ledger.ask(seat);
                }
            }
            let Some(next) = ledger.give() else {
                now = back.iter().flatten().copied().fold(f64::INFINITY, f64::min);
                continue;
            };
            let index = seats.iter().position(|&seat| seat == next).unwrap();
            let Caller { ms, between_ms } = callers[index];
            now += ms;
            used[index] += ms;
            ledger.ended(next, Duration::from_secs_f64(ms / 1e3), Duration::from_secs_f64(now / 1e3));
            back[index] = Some(now + between_ms);
        }
        used
    }

    #[test]
    fn long_calls_get_no_more_of_the_device_than_short_ones() {
        let shares = used(&[Caller { ms: 100.0, between_ms: 0.05 }, Caller { ms: 1.0, between_ms: 0.05 }], 10_000.0);
        assert!((shares[0] - shares[1]).abs() <= 100.0 + 1e3 * LEAD, "{shares:?}");
        assert!(shares.iter().sum::<f64>() > 0.94 * 10_000.0, "the device seldom waits: {shares:?}");
    }

    #[test]
    fn an_engine_alone_never_waits() {
        let mut ledger = Ledger::default();
        let seat = ledger.join();
        for call in 1..100 {
            ledger.ask(seat);
            assert_eq!(ledger.give(), Some(seat));
            ledger.ended(seat, Duration::from_millis(5), Duration::from_millis(5 * call));
        }
        assert_eq!(ledger.company(seat, Duration::from_secs(1)), Company::ALONE);
    }

    #[test]
    fn who_had_nothing_to_do_earns_no_credit_by_it() {
        let mut ledger = Ledger::default();
        let (busy, idle) = (ledger.join(), ledger.join());
        let mut now = Duration::ZERO;
        let mut turn = |ledger: &mut Ledger, seat| {
            now += Duration::from_millis(20);
            ledger.ended(seat, Duration::from_millis(20), now);
            ledger.ask(seat);
        };
        ledger.ask(busy);
        for _ in 0..100 {
            assert_eq!(ledger.give(), Some(busy));
            turn(&mut ledger, busy);
        }
        ledger.ask(idle);
        let mut turns = Vec::new();
        for _ in 0..8 {
            let next = ledger.give().unwrap();
            turns.push(next == idle);
            turn(&mut ledger, next);
        }
        assert_eq!(turns.iter().filter(|is_idle| **is_idle).count(), 4, "{turns:?}");
    }

    #[test]
    fn who_is_far_behind_is_waited_for_and_who_rests_is_not() {
        let mut ledger = Ledger::default();
        let (long, short) = (ledger.join(), ledger.join());
        ledger.work(short);
        ledger.ask(long);
        assert_eq!(ledger.give(), Some(long), "nobody is ahead yet");
        ledger.ended(long, Duration::from_millis(100), Duration::from_millis(100));
        ledger.ask(long);
        assert_eq!(ledger.give(), None, "the other is between two calls");
        ledger.rest(short);
        assert_eq!(ledger.give(), Some(long));
    }

    #[test]
    fn an_engine_that_goes_in_the_middle_of_its_turn_gives_it_back() {
        let mut ledger = Ledger::default();
        let (gone, other) = (ledger.join(), ledger.join());
        ledger.ask(gone);
        ledger.ask(other);
        assert_eq!(ledger.give(), Some(gone));
        ledger.leave(gone);
        assert_eq!(ledger.give(), Some(other));
    }

    #[test]
    fn company_is_who_has_work_or_was_refused_of_late() {
        let mut ledger = Ledger::default();
        let (own, other) = (ledger.join(), ledger.join());
        let engines = |ledger: &Ledger, s| ledger.company(own, Duration::from_secs(s)).engines;
        assert_eq!(engines(&ledger, 0), 1);
        ledger.ask(other);
        assert_eq!(ledger.give(), Some(other));
        ledger.ended(other, Duration::from_millis(500), Duration::from_millis(500));
        let company = ledger.company(own, Duration::from_millis(500));
        assert_eq!((company.engines, company.wait), (2, Duration::from_millis(502)));
        assert!((company.taken - 0.25).abs() < 1e-9, "{company:?}");
        ledger.rest(other);
        assert_eq!(engines(&ledger, 1), 1);
        ledger.refuse(other, Duration::from_secs(1));
        assert_eq!([1, 2, 3].map(|s| engines(&ledger, s)), [2, 2, 1]);
    }

    proptest! {
        #[test]
        fn nobody_falls_behind_by_more_than_a_call_of_each_and_the_lead(
            callers in prop::collection::vec((0.1f64..200.0, 0.0f64..0.2), 2..5),
        ) {
            let callers: Vec<Caller> =
                callers.into_iter().map(|(ms, between_ms)| Caller { ms, between_ms }).collect();
            let shares = used(&callers, 20_000.0);
            let longest = callers.iter().map(|caller| caller.ms).fold(0.0, f64::max);
            for (one, a) in shares.iter().zip(&callers) {
                for (other, b) in shares.iter().zip(&callers) {
                    prop_assert!((one - other).abs() <= a.ms + b.ms + longest + 1e3 * LEAD, "{shares:?} {callers:?}");
                }
            }
        }
    }
}
