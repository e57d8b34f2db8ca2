//! A world of fake processes around the master's mind: one seed, one run, no real time.
//!
//! Owns: virtual time, the fate of every fake process, and what must be true in any world. Refuses: processes, clocks,
//! and the core's private state. `SEEDS=n` plays n worlds a test, `SEED=n` replays one aloud.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::core::{
    Action, Cause, Event, ExitReason, Instant, KillCause, Master, Note, Phase, Pid, Policy, RecycleCause, SlotId,
    Stage, Worker,
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

/// What goes wrong, in percent of the times it could.
#[derive(Clone, Copy)]
struct Faults {
    fork_fails: u64,
    crash_at_boot: u64,
    never_ready: u64,
    crash: u64,
    hang: u64,
    refuses_abort: u64,
    slow_drain: u64,
    never_drains: u64,
    dies_draining: u64,
}

const CALM: Faults = Faults {
    fork_fails: 0,
    crash_at_boot: 0,
    never_ready: 0,
    crash: 0,
    hang: 0,
    refuses_abort: 0,
    slow_drain: 0,
    never_drains: 0,
    dies_draining: 0,
};

const STORM: Faults = Faults {
    fork_fails: 10,
    crash_at_boot: 10,
    never_ready: 5,
    crash: 10,
    hang: 10,
    refuses_abort: 50,
    slow_drain: 20,
    never_drains: 10,
    dies_draining: 10,
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
    faults: Faults,
    policy: Policy,
    /// Slots whose workers all die at boot.
    cursed: BTreeSet<SlotId>,
    max_age: u64,
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
    exited: Option<ExitReason>,
    forks: Vec<(u64, SlotId)>,
    /// Ends that nobody asked for, and boots given up.
    failures: Vec<(u64, SlotId)>,
    aborts: Vec<(u64, Pid)>,
    kills: Vec<(u64, Pid, KillCause)>,
    drains: Vec<(u64, Pid, Cause)>,
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
    fn new(seed: u64, faults: Faults, shape: impl FnOnce(&mut Dice) -> Policy) -> Self {
        let mut dice = Dice::new(seed);
        let policy = shape(&mut dice);
        let (master, actions) = Master::new(policy.clone(), Instant(0));
        let mut world = Self {
            now: 0,
            dice,
            faults,
            policy,
            cursed: BTreeSet::new(),
            max_age: 0,
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
                let hangs = self.dice.chance(self.faults.hang);
                let p = self.processes.get_mut(&pid).filter(|p| p.state == State::Serving && !p.hung)?;
                p.due = due.0;
                p.hung = hangs;
                // It keeps its promise, or thawed after it was due and beats as soon as it runs.
                let next = due.0.max(now + MOMENT / 2);
                self.plan_fact(next - now, Event::Beat { pid, due: Instant(next + PROMISE) });
                self.maybe_crash(pid);
            }
            Event::DrainBegun { pid } => self.drain(pid, GRACE),
            Event::Exited { pid } => {
                let p = self.processes.remove(&pid)?;
                if !p.doomed {
                    self.failures.push((now, p.slot));
                }
            }
            Event::Tick
            | Event::StopRequested { .. }
            | Event::ScaleRequested { .. }
            | Event::Forked { .. }
            | Event::ForkFailed { .. }
            | Event::RecycleRequested { .. }
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
        if self.dice.chance(self.faults.crash) {
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
                    self.drains.push((self.now, pid, cause));
                    self.drain(pid, grace_ms);
                }
                Action::Abort { pid, silent_ms: _ } => {
                    self.aborts.push((self.now, pid));
                    let p = self.alive(pid);
                    assert!(p.hung, "{pid:?} still beats and is aborted");
                    p.doomed = true;
                    let slot = p.slot;
                    self.failures.push((self.now, slot));
                    if !self.dice.chance(self.faults.refuses_abort) {
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
        if self.dice.chance(self.faults.fork_fails) {
            self.failures.push((self.now, slot));
            return self.results.push_back(Event::ForkFailed { slot });
        }
        assert!(self.processes.len() < self.policy.rows as usize, "no row for {slot:?}");
        let pid = Pid(self.next_pid);
        self.next_pid += 1;
        let max_age_ms = match self.max_age {
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
        if self.cursed.contains(&slot) || self.dice.chance(self.faults.crash_at_boot) {
            self.plan_fact(boot, Event::Exited { pid });
        } else if !self.dice.chance(self.faults.never_ready) {
            self.plan_fact(boot, Event::Ready { pid });
        }
    }

    /// A process told to drain, by the master or by a SIGTERM of its own.
    fn drain(&mut self, pid: Pid, grace: u64) {
        let (now, faults) = (self.now, self.faults);
        let delay = if self.dice.chance(faults.dies_draining) {
            0
        } else if self.dice.chance(faults.slow_drain) {
            GRACE / 2 + self.dice.below(GRACE)
        } else {
            self.dice.below(2_000)
        };
        let never = self.dice.chance(faults.never_drains);
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
            && !self.processes.values().any(|p| p.hung)
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
    world.max_age = world.dice.below(3) * 15_000;
    for _ in 0..10 {
        let at = world.dice.below(40_000);
        let ahead = match world.dice.below(6) {
            0 => Ahead::Fact(Event::ScaleRequested { by: 1 }),
            1 => Ahead::Fact(Event::ScaleRequested { by: -1 }),
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
        world.faults = CALM;
        world.max_age = 0;
        world.settle(200_000);
    }
    world.plan_fact(0, Event::StopRequested { graceful: true });
    let most = world.policy.shutdown_delay_ms + GRACE + 2;
    world.run_to_exit(most);
}

#[test]
fn after_any_storm_it_settles_and_stops() {
    worlds(2_000, storm);
}
