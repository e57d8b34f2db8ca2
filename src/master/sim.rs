//! A world of fake processes around the master's mind: one seed, one run, no real time.
//!
//! Owns: virtual time, the fate of every fake process, and what must be true in any world. Refuses: processes, clocks,
//! and the core's private state. `SEEDS=n` plays n worlds a test, `SEED=n` replays one aloud.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::core::{
    Action, Answer, Caller, Cause, Event, ExitReason, Instant, KillCause, Master, Note, Phase, Pid, Policy,
    RecycleCause, Scale, SlotId, Stage, Worker,
};

const TIMEOUT: u64 = 3_000;
const BOOT_TIMEOUT: u64 = 5_000;
const GRACE: u64 = 10_000;
/// How far ahead a fake worker promises its next beat. Real ones promise less; a long promise keeps the worlds cheap.
const PROMISE: u64 = 10_000;
/// Twice what a thawed worker needs to beat again.
const MOMENT: u64 = 100;
/// From the fork to `Accepting`, at most.
const BOOT: u64 = 520;

struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// How the fake workers are; faults in percent of the times they could show.
#[derive(Clone, Copy)]
struct Nature {
    fork_fails: u64,
    crash_at_boot: u64,
    never_ready: u64,
    crash: u64,
    hang: u64,
    refuses_abort: u64,
    slow_drain: u64,
    never_drains: u64,
    dies_draining: u64,
    /// Workers of this slot and those after it all die at boot.
    cursed_from: u32,
    /// Milliseconds, plus up to a tenth of it; 0 is none.
    max_age: u64,
}

const CALM: Nature = Nature {
    fork_fails: 0,
    crash_at_boot: 0,
    never_ready: 0,
    crash: 0,
    hang: 0,
    refuses_abort: 0,
    slow_drain: 0,
    never_drains: 0,
    dies_draining: 0,
    cursed_from: u32::MAX,
    max_age: 0,
};

const STORM: Nature = Nature {
    fork_fails: 10,
    crash_at_boot: 10,
    never_ready: 5,
    crash: 10,
    hang: 10,
    refuses_abort: 50,
    slow_drain: 20,
    never_drains: 10,
    dies_draining: 10,
    ..CALM
};

#[derive(Clone, Copy, PartialEq, Debug)]
enum State {
    Booting,
    AwaitingGo,
    Going,
    Serving,
    Draining,
    Killed,
}

#[derive(Debug)]
struct Process {
    slot: SlotId,
    state: State,
    hung: bool,
    announced: bool,
    /// It may be gone any moment by the master's own doing.
    doomed: bool,
    /// When it must have drained, as it was told.
    drained_by: Option<u64>,
    due: u64,
    old_at: u64,
    rss: u64,
    /// First measured above the limit.
    fat_at: Option<u64>,
}

/// What lies ahead. A fact about a process comes true only if the process can still do it by then.
#[derive(Debug)]
enum Ahead {
    Fact(Event),
    /// Some worker asks to be recycled.
    RecycleAny,
    /// Somebody sends SIGTERM to some worker.
    TermAny,
    /// The whole machine stands still.
    Freeze(u64),
}

struct World {
    now: u64,
    dice: Dice,
    nature: Nature,
    policy: Policy,
    master: Master,
    /// Somebody wants to read what happens.
    replayed: bool,
    /// What the shell answers before it waits again.
    results: VecDeque<Event>,
    ahead: BTreeMap<(u64, u64), Ahead>,
    planned: u64,
    processes: BTreeMap<Pid, Process>,
    next_pid: i32,
    steered: Vec<SlotId>,
    /// Just thawed: nothing could be done in time.
    thawed: bool,
    /// From here on it may freeze again: everybody had a moment to beat.
    steady_at: u64,
    ever_ready: bool,
    asked_to_recycle: BTreeSet<Pid>,
    /// Who asked to scale and waits.
    callers: BTreeSet<Caller>,
    answers: Vec<Answer>,
    exited: Option<ExitReason>,
    forks: Vec<(u64, SlotId)>,
    /// Ends that nobody asked for, and boots given up.
    failures: Vec<(u64, SlotId)>,
    aborts: Vec<(u64, Pid)>,
    kills: Vec<(u64, Pid, KillCause)>,
    drains: Vec<(u64, Pid)>,
    notes: Vec<(u64, Note)>,
}

fn policy(workers: u32) -> Policy {
    let slots = 8.max(2 * workers);
    Policy {
        workers,
        slots,
        rows: 4 * slots,
        timeout_ms: TIMEOUT,
        boot_timeout_ms: BOOT_TIMEOUT,
        graceful_timeout_ms: GRACE,
        shutdown_delay_ms: 0,
        max_rss: 0,
    }
}

impl World {
    fn new(seed: u64, nature: Nature, shape: impl FnOnce(&mut Dice) -> Policy) -> Self {
        let mut dice = Dice::new(seed);
        let policy = shape(&mut dice);
        let (master, actions) = Master::new(policy.clone(), Instant(0));
        let mut world = Self {
            now: 0,
            dice,
            nature,
            policy,
            master,
            replayed: given("SEED").is_some(),
            results: VecDeque::new(),
            ahead: BTreeMap::new(),
            planned: 0,
            processes: BTreeMap::new(),
            next_pid: 100,
            steered: Vec::new(),
            thawed: false,
            steady_at: 0,
            ever_ready: false,
            asked_to_recycle: BTreeSet::new(),
            callers: BTreeSet::new(),
            answers: Vec::new(),
            exited: None,
            forks: Vec::new(),
            failures: Vec::new(),
            aborts: Vec::new(),
            kills: Vec::new(),
            drains: Vec::new(),
            notes: Vec::new(),
        };
        world.perform(actions);
        world
    }

    /// Somebody asks to scale, and waits.
    fn asks(&mut self, scale: Scale) -> Ahead {
        self.planned += 1;
        Ahead::Fact(Event::ScaleRequested { scale, caller: Some(Caller(self.planned)) })
    }

    /// A world that booted without trouble.
    fn settled(seed: u64, shape: impl FnOnce(&mut Dice) -> Policy) -> Self {
        let mut world = Self::new(seed, CALM, shape);
        world.settle(BOOT);
        world
    }

    // ---- what will happen ------------------------------------------------------------------------------------------

    fn plan(&mut self, delay: u64, ahead: Ahead) {
        self.planned += 1;
        self.ahead.insert((self.now + delay, self.planned), ahead);
    }

    fn plan_fact(&mut self, delay: u64, event: Event) {
        self.plan(delay, Ahead::Fact(event));
    }

    fn next_at(&self) -> u64 {
        let fact = self.ahead.first_key_value().map(|(&(at, _), _)| at);
        let deadline = self.master.deadline().map(|deadline| deadline.0);
        let next = match self.results.is_empty() {
            true => fact.into_iter().chain(deadline).min(),
            false => Some(self.now),
        };
        next.unwrap_or_else(|| panic!("nothing will ever happen: {:?}", self.master)).max(self.now)
    }

    fn advance(&mut self) {
        self.now = self.next_at();
        if let Some(event) = self.results.pop_front() {
            return self.step(event);
        }
        let overdue = self.master.deadline().is_some_and(|deadline| deadline.0 <= self.now);
        let fact = self.ahead.first_key_value().map(|(&key, _)| key).filter(|key| key.0 <= self.now);
        match fact {
            // At one instant either may come first.
            Some(key) if !overdue || self.dice.chance(50) => {
                let ahead = self.ahead.remove(&key).expect("it was seen a line ago");
                if let Some(event) = self.come_true(ahead) {
                    self.step(event);
                }
            }
            Some(_) | None => self.step(Event::Tick),
        }
    }

    /// `None`: the process it is about is gone, or cannot.
    fn come_true(&mut self, ahead: Ahead) -> Option<Event> {
        let event = match ahead {
            Ahead::Fact(event) => event,
            Ahead::RecycleAny => Event::RecycleRequested { pid: self.any()? },
            Ahead::TermAny => Event::DrainBegun { pid: self.any()? },
            Ahead::Freeze(ms) if self.now < self.steady_at => {
                self.plan(MOMENT, Ahead::Freeze(ms));
                return None;
            }
            Ahead::Freeze(ms) => {
                self.freeze(ms);
                return None;
            }
        };
        let now = self.now;
        match event {
            Event::Ready { pid } => {
                let p = self.processes.get_mut(&pid).filter(|p| p.state == State::Booting)?;
                p.state = State::AwaitingGo;
                self.ever_ready = true;
            }
            Event::Accepting { pid } => {
                let p = self.processes.get_mut(&pid).filter(|p| p.state == State::Going)?;
                p.state = State::Serving;
                self.plan_fact(50, Event::Beat { pid, due: Instant(now + 50 + PROMISE) });
                self.maybe_crash(pid);
            }
            Event::Beat { pid, due } => {
                let hangs = self.dice.chance(self.nature.hang);
                let p = self.processes.get_mut(&pid).filter(|p| p.state == State::Serving && !p.hung)?;
                p.due = due.0;
                p.hung = hangs;
                // It keeps its promise, or thawed after it was due and beats as soon as it runs.
                let next = due.0.max(now + MOMENT / 2);
                self.plan_fact(next - now, Event::Beat { pid, due: Instant(next + PROMISE) });
                self.maybe_crash(pid);
            }
            Event::DrainBegun { pid } => self.drain(pid, GRACE),
            Event::RecycleRequested { pid } => {
                self.asked_to_recycle.insert(pid);
            }
            Event::Exited { pid } => {
                let p = self.processes.remove(&pid)?;
                if !p.doomed {
                    self.failures.push((now, p.slot));
                }
            }
            Event::ScaleRequested { caller, .. } => self.callers.extend(caller),
            Event::Tick
            | Event::StopRequested { .. }
            | Event::Forked { .. }
            | Event::ForkFailed { .. }
            | Event::Measured { .. } => {}
        }
        Some(event)
    }

    /// The machine stands still, and never wakes within the second after a deadline: that is not taken for an oversleep.
    fn freeze(&mut self, ms: u64) {
        let deadline = self.master.deadline().map_or(u64::MAX, |deadline| deadline.0);
        self.now += ms;
        if (deadline..deadline.saturating_add(1_000)).contains(&self.now) {
            self.now = deadline + 1_000;
        }
        self.thawed = true;
        self.steady_at = self.now + MOMENT;
    }

    fn maybe_crash(&mut self, pid: Pid) {
        if self.dice.chance(self.nature.crash) {
            let delay = self.dice.below(3_000);
            self.plan_fact(delay, Event::Exited { pid });
        }
    }

    /// A process that listens and was not told to go.
    fn any(&mut self) -> Option<Pid> {
        let able = |p: &Process| !p.hung && !p.doomed && p.drained_by.is_none();
        let pids: Vec<Pid> = self.processes.iter().filter(|(_, p)| able(p)).map(|(&pid, _)| pid).collect();
        let nth = self.dice.below(pids.len().max(1) as u64);
        pids.get(nth as usize).copied()
    }

    // ---- what the master does --------------------------------------------------------------------------------------

    fn step(&mut self, event: Event) {
        if !std::mem::take(&mut self.thawed) {
            self.assert_woken_in_time();
        }
        if self.replayed {
            eprintln!("{:>6} {event:?}", self.now);
        }
        let actions = self.master.step(Instant(self.now), event);
        self.perform(actions);
        self.check();
    }

    fn perform(&mut self, actions: Vec<Action>) {
        for action in actions {
            if self.replayed {
                eprintln!("       -> {action:?}");
            }
            match action {
                Action::Fork { slot, generation: _ } => self.fork(slot),
                Action::Go { pid } => {
                    let p = self.alive(pid);
                    assert_eq!(p.state, State::AwaitingGo, "Go to {pid:?}");
                    p.state = State::Going;
                    let delay = 1 + self.dice.below(20);
                    self.plan_fact(delay, Event::Accepting { pid });
                }
                Action::AnnounceStop { pid } => self.alive(pid).announced = true,
                Action::Drain { pid, grace_ms, last: _, cause } => {
                    self.drains.push((self.now, pid));
                    let p = &self.processes[&pid];
                    match cause {
                        Cause::Recycle(RecycleCause::MaxAge) => assert!(p.old_at <= self.now, "{pid:?} is not old"),
                        Cause::Recycle(RecycleCause::MaxRss) => assert!(p.fat_at.is_some(), "{pid:?} is not large"),
                        Cause::Recycle(RecycleCause::MaxRequests) | Cause::ScaleDown | Cause::Stop => {}
                    }
                    self.drain(pid, grace_ms);
                }
                Action::Abort { pid, silent_ms: _ } => {
                    self.aborts.push((self.now, pid));
                    let p = self.alive(pid);
                    assert!(p.hung, "{pid:?} still beats and is aborted");
                    p.doomed = true;
                    let slot = p.slot;
                    self.failures.push((self.now, slot));
                    if !self.dice.chance(self.nature.refuses_abort) {
                        let delay = self.dice.below(2_000);
                        self.plan_fact(delay, Event::Exited { pid });
                    }
                }
                Action::Kill { pid, cause } => self.kill(pid, cause),
                Action::Measure { pid } => {
                    let (now, limit, more) = (self.now, self.policy.max_rss, self.dice.below(30));
                    let p = self.alive(pid);
                    p.rss += more;
                    if p.rss > limit {
                        p.fat_at = p.fat_at.or(Some(now));
                    }
                    let rss = p.rss;
                    self.results.push_back(Event::Measured { pid, rss });
                }
                Action::Steer { live } => {
                    assert!(!live.is_empty(), "steered to nobody");
                    self.steered = live;
                }
                Action::Answer { caller, answer } => {
                    assert!(self.callers.remove(&caller), "{caller:?} was answered twice, or never asked");
                    if let Answer::Serving { target } = answer {
                        assert_eq!(self.live().len(), target as usize, "{caller:?} was told so too early");
                        let stays = |w: &&Worker| matches!(w.phase, Phase::Starting { .. } | Phase::Serving { .. });
                        let stay = self.master.workers().iter().filter(stays).find(|w| w.slot.0 >= target);
                        assert!(stay.is_none(), "{caller:?} was told so before {stay:?} was told to go");
                    }
                    self.answers.push(answer);
                }
                Action::Note(note) => {
                    assert!(!matches!(note, Note::InvariantBroken(_)), "{note:?}");
                    self.notes.push((self.now, note));
                }
                Action::Exit { reason } => {
                    assert!(self.processes.is_empty(), "left behind: {:?}", self.processes);
                    self.exited = Some(reason);
                }
            }
        }
    }

    fn fork(&mut self, slot: SlotId) {
        self.forks.push((self.now, slot));
        if self.dice.chance(self.nature.fork_fails) {
            self.failures.push((self.now, slot));
            return self.results.push_back(Event::ForkFailed { slot });
        }
        assert!(self.processes.len() < self.policy.rows as usize, "no row for {slot:?}");
        let pid = Pid(self.next_pid);
        self.next_pid += 1;
        let max_age_ms = match self.nature.max_age {
            0 => 0,
            age => age + self.dice.below(age / 10),
        };
        let process = Process {
            slot,
            state: State::Booting,
            hung: false,
            announced: false,
            doomed: false,
            drained_by: None,
            due: 0,
            old_at: self.now + max_age_ms,
            rss: 0,
            fat_at: None,
        };
        self.processes.insert(pid, process);
        self.results.push_back(Event::Forked { slot, pid, max_age_ms });
        let boot = 50 + self.dice.below(450);
        if slot.0 >= self.nature.cursed_from || self.dice.chance(self.nature.crash_at_boot) {
            self.plan_fact(boot, Event::Exited { pid });
        } else if !self.dice.chance(self.nature.never_ready) {
            self.plan_fact(boot, Event::Ready { pid });
        }
    }

    /// A process told to drain, by the master or by a SIGTERM of its own.
    fn drain(&mut self, pid: Pid, grace: u64) {
        let (now, nature) = (self.now, self.nature);
        let delay = if self.dice.chance(nature.dies_draining) {
            0
        } else if self.dice.chance(nature.slow_drain) {
            GRACE / 2 + self.dice.below(GRACE)
        } else {
            self.dice.below(2_000)
        };
        let never = self.dice.chance(nature.never_drains);
        let p = self.alive(pid);
        assert!(p.drained_by.is_none_or(|before| now + grace < before), "the drain of {pid:?} was not shortened");
        p.drained_by = Some(now + grace);
        p.doomed = true;
        p.state = State::Draining;
        if !p.hung && !never {
            self.plan_fact(delay, Event::Exited { pid });
        }
    }

    fn kill(&mut self, pid: Pid, cause: KillCause) {
        let now = self.now;
        let aborted = self.aborts.iter().any(|&(_, aborted)| aborted == pid);
        let p = self.alive(pid);
        assert_ne!(p.state, State::Killed, "{pid:?} is killed twice");
        match cause {
            KillCause::BootTimeout => assert!(!p.doomed && p.state != State::Serving, "{pid:?} had booted"),
            KillCause::Hung => assert!(aborted, "{pid:?} had no chance to leave a core file"),
            KillCause::DrainTimeout => assert!(p.drained_by.is_some_and(|by| by <= now), "{pid:?} had time left"),
        }
        let slot = p.slot;
        p.state = State::Killed;
        p.doomed = true;
        self.kills.push((now, pid, cause));
        if cause == KillCause::BootTimeout {
            self.failures.push((now, slot));
        }
        self.plan_fact(1, Event::Exited { pid });
    }

    fn alive(&mut self, pid: Pid) -> &mut Process {
        self.processes.get_mut(&pid).unwrap_or_else(|| panic!("{pid:?} was reaped and is spoken to"))
    }

    // ---- what is true in any world ---------------------------------------------------------------------------------

    fn assert_woken_in_time(&self) {
        for w in self.master.workers() {
            let until = match w.phase {
                Phase::Starting { until } | Phase::Aborting { until } | Phase::Draining { until } => until,
                Phase::Serving { silent_until } => silent_until,
                Phase::Forking | Phase::Killed => continue,
            };
            assert!(self.now <= until.0, "a wake-up was lost, it is {}: {w:?}", self.now);
        }
    }

    fn check(&self) {
        let deadline = self.master.deadline();
        assert!(deadline.is_none_or(|deadline| deadline.0 > self.now), "spin: {:?}", self.master);
        let (steers, delays) = match self.master.stage() {
            Stage::Running => (true, false),
            Stage::Delaying { .. } => (true, true),
            Stage::Stopping { .. } | Stage::Done => (false, false),
        };
        let live = self.live();
        if steers && !live.is_empty() {
            assert_eq!(self.steered, live, "steered past the serving slots");
        }
        let deaf = |w: &&Worker| w.serving() && !w.pid.is_some_and(|pid| self.processes[&pid].announced);
        let deaf: Vec<_> = self.master.workers().iter().filter(|w| delays && deaf(w)).collect();
        assert!(deaf.is_empty(), "never heard that the service stops: {deaf:?}");
    }

    /// The slots below the target whose worker serves, in order.
    fn live(&self) -> Vec<SlotId> {
        let serving = self.master.workers().iter().filter(|w| w.serving() && w.slot.0 < self.master.target());
        serving.map(|w| w.slot).collect::<BTreeSet<_>>().into_iter().collect()
    }

    fn serving(&self) -> u32 {
        self.master.workers().iter().filter(|w| w.serving()).count() as u32
    }

    fn is_settled(&self) -> bool {
        let workers = self.master.workers();
        self.live().len() == workers.len()
            && workers.len() == self.master.target() as usize
            && workers.iter().all(|w| w.recycle.is_none())
            && !self.processes.iter().any(|(pid, p)| p.hung || self.asked_to_recycle.contains(pid))
    }

    // ---- time passes -----------------------------------------------------------------------------------------------

    fn run(&mut self, ms: u64) {
        self.run_checking(ms, |_| {});
    }

    fn run_checking(&mut self, ms: u64, check: impl Fn(&Self)) {
        let end = self.now + ms;
        while self.exited.is_none() && self.next_at() <= end {
            self.advance();
            check(self);
        }
        if self.exited.is_none() {
            self.now = self.now.max(end);
        }
    }

    fn settle(&mut self, within: u64) {
        let end = self.now + within;
        while !self.is_settled() {
            assert_eq!(self.exited, None, "the master left instead of settling");
            assert!(self.next_at() <= end, "not settled within {within} ms: {:?}", self.master);
            self.advance();
        }
    }

    /// Exits as asked, and says after how long.
    fn run_to_exit(&mut self, within: u64) -> u64 {
        let start = self.now;
        self.run(within);
        assert_eq!(self.exited, Some(ExitReason::Asked), "not stopped within {within} ms: {:?}", self.master);
        self.now - start
    }

    fn pids(&self) -> Vec<Pid> {
        self.processes.keys().copied().collect()
    }

    fn forks_of(&self, slot: SlotId) -> Vec<u64> {
        self.forks.iter().filter(|(_, of)| *of == slot).map(|(at, _)| *at).collect()
    }

    fn failures_of(&self, slot: SlotId) -> Vec<u64> {
        self.failures.iter().filter(|(_, of)| *of == slot).map(|(at, _)| *at).collect()
    }
}

/// Names the seed when a world falls apart.
struct Replay(u64);

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("replay with SEED={}", self.0);
        }
    }
}

fn given(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn worlds(count: u64, test: impl Fn(u64)) {
    let seeds = match given("SEED") {
        Some(seed) => seed..seed + 1,
        None => 1..given("SEEDS").unwrap_or(count) + 1,
    };
    for seed in seeds {
        let _replay = Replay(seed);
        test(seed);
    }
}

fn up_to(most: u64) -> impl FnOnce(&mut Dice) -> Policy {
    move |dice| policy(1 + dice.below(most) as u32)
}

// ---- storms ----------------------------------------------------------------------------------------------------------

fn storm(seed: u64) {
    let mut world = World::new(seed, STORM, |dice| {
        let mut policy = up_to(6)(dice);
        policy.slots = policy.workers + 2;
        policy.rows = policy.slots + 1 + dice.below(20) as u32;
        policy.shutdown_delay_ms = dice.below(3) * 1_000;
        policy
    });
    world.nature.max_age = world.dice.below(3) * 15_000;
    for _ in 0..10 {
        let at = world.dice.below(40_000);
        let to = world.dice.below(10) as u32;
        let ahead = match world.dice.below(8) {
            0 => Ahead::Fact(Event::ScaleRequested { scale: Scale::By(1), caller: None }),
            1 => Ahead::Fact(Event::ScaleRequested { scale: Scale::By(-1), caller: None }),
            6 => world.asks(Scale::By(-1)),
            7 => world.asks(Scale::To(to)),
            2 | 3 => Ahead::RecycleAny,
            4 => Ahead::TermAny,
            _ => Ahead::Freeze(world.dice.below(300_000)),
        };
        world.plan(at, ahead);
    }
    world.run(40_000);
    if let Some(reason) = world.exited {
        assert_eq!(reason, ExitReason::NoWorkerReady);
        return assert!(!world.ever_ready, "gave up although a worker was ready once");
    }
    world.ahead.retain(|_, ahead| !matches!(ahead, Ahead::Freeze(_)));
    if world.dice.chance(50) {
        world.nature = CALM;
        world.settle(200_000);
        assert_eq!(world.callers, BTreeSet::new(), "left waiting for what is done");
    }
    world.plan_fact(0, Event::StopRequested { graceful: true });
    let most = world.policy.shutdown_delay_ms + GRACE + 2;
    world.run_to_exit(most);
    assert_eq!(world.callers, BTreeSet::new(), "left waiting by a master that is gone");
}

#[test]
fn after_any_storm_it_settles_and_stops() {
    worlds(2_000, storm);
}

#[test]
fn every_pair_of_operator_events_settles_or_stops() {
    const STOPS: usize = 2;
    let events = |dice: &mut Dice| {
        let by = 1 + dice.below(3) as i32;
        [
            Ahead::Fact(Event::StopRequested { graceful: true }),
            Ahead::Fact(Event::StopRequested { graceful: false }),
            Ahead::Fact(Event::ScaleRequested { scale: Scale::By(by), caller: None }),
            Ahead::Fact(Event::ScaleRequested { scale: Scale::By(-by), caller: None }),
            Ahead::RecycleAny,
            Ahead::TermAny,
        ]
    };
    worlds(8, |seed| {
        for (first, second) in (0..6).flat_map(|first| (0..6).map(move |second| (first, second))) {
            for gap in [0, 1, 100, 700, 3_000] {
                let mut world = World::settled(seed, up_to(4));
                for (at, which) in [(0, first), (gap, second)] {
                    let ahead = events(&mut world.dice).into_iter().nth(which).expect("one of six");
                    world.plan(at, ahead);
                }
                if first < STOPS || second < STOPS {
                    world.run_to_exit(gap + GRACE + 1);
                } else {
                    world.run(gap);
                    world.settle(GRACE + 4 * BOOT);
                }
            }
        }
    });
}

// ---- replacing -------------------------------------------------------------------------------------------------------

/// The slots whose worker serves while its successor starts.
fn replacing(world: &World) -> usize {
    let starts = |w: &&Worker| matches!(w.phase, Phase::Forking | Phase::Starting { .. });
    let starting: BTreeSet<SlotId> = world.master.workers().iter().filter(starts).map(|w| w.slot).collect();
    world.live().iter().filter(|slot| starting.contains(slot)).count()
}

fn assert_gentle(world: &World) {
    let target = world.master.target();
    assert!(world.serving() >= target, "dipped to {} of {target}", world.serving());
    assert!(replacing(world) <= (target as usize / 4).max(1), "too many are replaced at once");
}

#[test]
fn a_recycle_replaces_every_worker_and_never_dips() {
    worlds(500, |seed| {
        let mut world = World::settled(seed, up_to(8));
        world.nature = Nature { slow_drain: 30, never_drains: 10, dies_draining: 10, ..CALM };
        let old = world.pids();
        for &pid in &old {
            let at = world.dice.below(1_000);
            world.plan_fact(at, Event::RecycleRequested { pid });
        }
        world.run_checking(1_000 + old.len() as u64 * BOOT + GRACE + 1, assert_gentle);
        assert!(world.is_settled(), "{:?}", world.master);
        assert!(old.iter().all(|pid| !world.processes.contains_key(pid)), "an old one lives");
    });
}

#[test]
fn every_worker_is_replaced_at_its_age_and_none_before() {
    const AGE: u64 = 15_000;
    worlds(100, |seed| {
        let mut world = World::new(seed, Nature { max_age: AGE, ..CALM }, up_to(6));
        world.settle(BOOT);
        // All of one age, they go one after the other, and each takes a boot.
        let late = 6 * BOOT;
        world.run_checking(3 * AGE, |world| {
            assert_gentle(world);
            for (pid, p) in &world.processes {
                let overdue = world.now > p.old_at + late && p.drained_by.is_none();
                assert!(!overdue, "{pid:?} has outlived its age: {p:?}");
            }
        });
        assert!(world.drains.len() >= 2 * world.policy.workers as usize);
    });
}

#[test]
fn a_worker_that_grew_too_large_is_replaced() {
    worlds(100, |seed| {
        let mut world = World::settled(seed, |dice| Policy { max_rss: 200, ..up_to(6)(dice) });
        world.run_checking(40_000, |world| {
            assert_gentle(world);
            for (pid, p) in &world.processes {
                let overdue = p.fat_at.is_some_and(|at| world.now > at + 6 * BOOT) && p.drained_by.is_none();
                assert!(!overdue, "{pid:?} may stay: {p:?}");
            }
        });
        assert!(world.drains.len() >= world.policy.workers as usize);
    });
}

#[test]
fn without_a_free_row_a_replacement_waits_and_says_so_once() {
    worlds(200, |seed| {
        let mut world = World::settled(seed, |dice| {
            let workers = 2 + dice.below(4) as u32;
            Policy { rows: workers + 1, slots: workers, ..policy(workers) }
        });
        world.nature.never_drains = 100;
        let workers = world.pids();
        for _ in &workers {
            world.plan(0, Ahead::TermAny);
        }
        world.run(GRACE - 1);
        let no_row = |world: &World| world.notes.iter().filter(|(_, note)| matches!(note, Note::NoRow { .. })).count();
        assert_eq!(no_row(&world), 1);
        assert_eq!(world.processes.len(), world.policy.rows as usize);
        world.settle(2 + 2 * BOOT);
        assert!(no_row(&world) <= workers.len(), "said more often than a row came free");
    });
}

// ---- answering -------------------------------------------------------------------------------------------------------

#[test]
fn whoever_scales_hears_once_when_it_is_done_or_why_not() {
    worlds(200, |seed| {
        let mut world = World::settled(seed, up_to(4));
        let (target, most) = (world.master.target(), world.policy.slots);
        for (scale, answer) in [
            (Scale::To(target), Answer::Serving { target }),
            (Scale::To(0), Answer::OutOfRange { asked: 0, most }),
            (Scale::By(-9), Answer::OutOfRange { asked: i64::from(target) - 9, most }),
            (Scale::To(most + 1), Answer::OutOfRange { asked: i64::from(most) + 1, most }),
        ] {
            let asks = world.asks(scale);
            world.plan(0, asks);
            world.run(0);
            assert_eq!(world.answers.pop(), Some(answer), "{scale:?}");
            assert_eq!(world.master.target(), target);
        }
        let more = target + 1 + world.dice.below(u64::from(most - target)) as u32;
        let asks = world.asks(Scale::To(more));
        world.plan(0, asks);
        if seed % 3 == 0 {
            let asks = world.asks(Scale::By(-1));
            world.plan(1, asks);
            world.run(1);
            assert_eq!(world.answers.remove(0), Answer::Superseded { target: more - 1 });
            world.run(BOOT);
            assert_eq!(world.answers, [Answer::Serving { target: more - 1 }]);
        } else if seed % 3 == 1 {
            world.nature.cursed_from = target;
            world.run(BOOT);
            assert!(matches!(world.answers[..], [Answer::BootFailed { target, .. }] if target == more));
        } else {
            world.run(1);
            world.plan_fact(0, Event::StopRequested { graceful: true });
            world.run(0);
            assert_eq!(world.answers, [Answer::Stopping]);
            let asks = world.asks(Scale::By(1));
            world.plan(0, asks);
            world.run(0);
            assert_eq!(world.answers, [Answer::Stopping; 2]);
        }
        assert_eq!(world.callers, BTreeSet::new());
    });
}

// ---- dying -----------------------------------------------------------------------------------------------------------

/// What the n-th death in a row of one slot costs.
fn waits() -> impl Iterator<Item = u64> {
    let doubling = std::iter::successors(Some(500), |wait| Some((wait * 2).min(30_000)));
    std::iter::once(0).chain(doubling)
}

#[test]
fn a_crash_loop_slows_down_in_its_slot_whether_ready_or_not() {
    worlds(100, |seed| {
        let ready = seed % 2 == 0;
        let nature = Nature { crash: 100, cursed_from: if ready { u32::MAX } else { 1 }, ..CALM };
        let mut world = World::new(seed, nature, |dice| policy(2 + dice.below(3) as u32));
        world.run(120_000);
        assert_eq!(world.exited, None);
        for slot in (1..world.policy.workers).map(SlotId) {
            let (failures, forks) = (world.failures_of(slot), world.forks_of(slot));
            assert!(failures.len() > 7, "the last wait was not reached");
            for ((failed, forked), wait) in failures.iter().zip(&forks[1..]).zip(waits()) {
                assert_eq!(forked - failed, wait, "{slot:?} failed at {failed}");
            }
        }
    });
}

#[test]
fn calm_forgives_a_crash_loop() {
    worlds(100, |seed| {
        let mut world = World::new(seed, Nature { crash: 100, ..CALM }, up_to(4));
        world.run(40_000);
        world.nature = CALM;
        world.run(10_000);
        world.settle(30_000);
        world.run(30_000 + 3_000);
        world.settle(BOOT);
        let pid = world.any().expect("all serve");
        let slot = world.processes[&pid].slot;
        world.plan_fact(0, Event::Exited { pid });
        world.run(0);
        assert_eq!(world.forks.last(), Some(&(world.now, slot)));
    });
}

#[test]
fn eight_deaths_at_a_stroke_are_replaced_at_once() {
    worlds(100, |seed| {
        let mut world = World::settled(seed, |_| policy(8));
        for pid in world.pids() {
            world.plan_fact(0, Event::Exited { pid });
        }
        world.run(0);
        assert_eq!(world.forks.iter().filter(|(at, _)| *at == world.now).count(), 8);
        world.settle(BOOT);
    });
}

#[test]
fn a_hung_worker_is_aborted_then_killed_and_its_slot_never_waits_for_it() {
    worlds(200, |seed| {
        let mut world = World::settled(seed, up_to(6));
        world.nature.refuses_abort = 100;
        world.run(100);
        let pid = world.any().expect("all serve");
        let hung = world.alive(pid);
        hung.hung = true;
        let (slot, aborted_at) = (hung.slot, hung.due + TIMEOUT);
        world.run(aborted_at - 1 - world.now);
        assert_eq!(world.aborts, []);
        world.run(1);
        assert_eq!(world.aborts, [(aborted_at, pid)]);
        assert_eq!(world.forks.last(), Some(&(aborted_at, slot)));
        world.run(1_999);
        assert_eq!(world.kills, []);
        world.run(1);
        assert_eq!(world.kills, [(aborted_at + 2_000, pid, KillCause::Hung)]);
        world.settle(1);
        assert_eq!(world.aborts.len(), 1, "others were aborted too");
    });
}

#[test]
fn an_oversleep_is_forgiven_once_to_the_hung_and_always_to_those_who_beat() {
    worlds(200, |seed| {
        let mut world = World::settled(seed, up_to(6));
        world.run(100);
        let pid = world.any().expect("all serve");
        world.alive(pid).hung = true;
        let mut thaw = |world: &mut World| {
            let long = 60_000 + world.dice.below(600_000);
            world.freeze(long);
            world.now
        };
        let thawed = thaw(&mut world);
        if seed % 2 == 0 {
            world.run(TIMEOUT - 1);
            assert_eq!(world.aborts, []);
            world.run(1);
            assert_eq!(world.aborts, [(thawed + TIMEOUT, pid)]);
        } else {
            let between = MOMENT + world.dice.below(TIMEOUT - MOMENT);
            world.run(between);
            assert_eq!(world.aborts, []);
            let thawed = thaw(&mut world);
            world.run(0);
            assert_eq!(world.aborts, [(thawed, pid)]);
        }
        world.settle(2_000 + BOOT);
        thaw(&mut world);
        world.run(20_000);
        assert_eq!(world.aborts.len(), 1, "a worker that beats was aborted");
        let told = world.notes.iter().filter(|(_, note)| matches!(note, Note::Overslept { .. })).count();
        assert_eq!(told, if seed % 2 == 0 { 2 } else { 3 });
    });
}

// ---- booting ---------------------------------------------------------------------------------------------------------

#[test]
fn a_first_boot_that_fails_thrice_in_every_slot_is_given_up() {
    worlds(200, |seed| {
        let mixed = Nature { fork_fails: 30, never_ready: 20, crash_at_boot: 60, ..CALM };
        let nature = if seed % 2 == 0 { mixed } else { CALM };
        let mut world = World::new(seed, Nature { cursed_from: 0, ..nature }, up_to(4));
        world.run(60_000);
        assert_eq!(world.exited, Some(ExitReason::NoWorkerReady));
        let given_up = world.notes.iter().find(|(_, note)| matches!(note, Note::BootGivenUp { .. }));
        let (at, _) = given_up.expect("a reason is given");
        let (last, slot) = *world.failures.last().expect("all failed");
        assert_eq!(last, *at, "it lived on after the last failure");
        let counts = (0..world.policy.workers).map(|slot| world.failures_of(SlotId(slot)).len());
        assert_eq!(counts.min(), Some(3));
        assert_eq!(world.failures_of(slot).len(), 3, "it was not the third failure of a slot that decided");
    });
}

#[test]
fn one_slot_that_can_serve_keeps_the_service_alive() {
    worlds(50, |seed| {
        let nature = Nature { cursed_from: 1, ..CALM };
        let mut world = World::new(seed, nature, |dice| policy(2 + dice.below(3) as u32));
        world.run(600_000);
        assert_eq!(world.exited, None);
        assert_eq!(world.live(), [SlotId(0)]);
        let late = world.forks.iter().filter(|(at, _)| *at > 300_000).count();
        assert!(late <= 10 * (world.policy.workers as usize - 1), "{late} forks in five minutes");
    });
}

// ---- stopping --------------------------------------------------------------------------------------------------------

#[test]
fn a_stop_ends_at_its_deadline_and_signals_only_hurry_it() {
    worlds(500, |seed| {
        let mut world = World::settled(seed, |dice| {
            let shutdown_delay_ms = dice.below(3) * 2_000;
            Policy { shutdown_delay_ms, ..up_to(4)(dice) }
        });
        world.nature.never_drains = 100;
        let patience = [world.policy.shutdown_delay_ms + GRACE, 2_000, 0, 0];
        let first_is_quick = usize::from(world.dice.chance(50));
        let (mut at, mut end) = (0, u64::MAX);
        for patience in &patience[first_is_quick..] {
            let graceful = if end == u64::MAX { first_is_quick == 0 } else { world.dice.chance(50) };
            world.plan_fact(at, Event::StopRequested { graceful });
            end = end.min(at + patience);
            at += world.dice.below(GRACE);
            if at > end || world.dice.chance(30) {
                break;
            }
        }
        assert_eq!(world.run_to_exit(end + 1), end + 1);
    });
}

#[test]
fn a_shutdown_delay_serves_as_before_but_tells_every_worker_at_once() {
    const DELAY: u64 = 5_000;
    worlds(200, |seed| {
        let mut world = World::settled(seed, |dice| Policy { shutdown_delay_ms: DELAY, ..up_to(4)(dice) });
        let all = world.pids().len() as u32;
        world.plan_fact(0, Event::StopRequested { graceful: true });
        world.run(0);
        assert!(world.processes.values().all(|p| p.announced), "{:?}", world.processes);
        let crashed = world.any().expect("all serve");
        let crash_in = world.dice.below(DELAY - BOOT);
        world.plan_fact(crash_in, Event::Exited { pid: crashed });
        world.run_checking(DELAY - 1, |world| assert!(world.serving() >= all - 1));
        assert_eq!(world.serving(), all, "the crash was not mended");
        assert_eq!(world.drains, []);
        let last = world.pids();
        world.run(1);
        assert_eq!(world.drains.iter().map(|&(_, pid)| pid).collect::<Vec<_>>(), last);
        world.run_to_exit(GRACE + 1);
    });
}
