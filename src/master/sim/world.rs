//! The world of a simulated master. It has virtual time and fake processes, and checks after every step what must
//! always hold.
//!
//! Owns: which event happens when, and to which process. Refuses: the properties that only one test checks.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::super::core::{
    Action, Caller, Cause, CommandReply, CoreSnapshot, Event, ExitReason, Generation, KillCause, Master, Millis, Note,
    Phase, Pid, Policy, RecycleCause, Scaling, SlotId, Stage, Takeover, Worker,
};

pub(super) const TIMEOUT: u64 = 3_000;
pub(super) const BOOT_TIMEOUT: u64 = 5_000;
pub(super) const GRACE: u64 = 10_000;
/// How far ahead a fake worker promises its next heartbeat. Real workers promise a shorter time. The long promise lets
/// a world need fewer steps.
pub(super) const PROMISE: u64 = 10_000;
/// After a freeze, every worker sends a heartbeat within half of this time.
pub(super) const MOMENT: u64 = 100;
/// If a silent worker sends heartbeats again, it gets new connections again within this time.
const LOOK: u64 = 100;
/// The least time between two forks of one slot. While no slot is served, it is also the least time between two forks
/// that cut the wait of a slot short.
pub(super) const FLOOR: u64 = 100;
/// While some slot is served, at least this time lies between two forks that cut a wait short.
const EARLY: u64 = 1_000;
/// For how long a worker of a new generation must serve until it has passed its trial.
const TRIAL: u64 = 500;
/// For how long the last workers accept from the listeners at a stop.
const ACCEPT_REST: u64 = 1_000;
/// The longest time from the fork of a worker to its `Accepting`.
pub(super) const BOOT: u64 = 520;

/// The same generator as in the testkit. It is copied, because tests/mutants builds the core and this simulator without
/// other crates.
pub(super) struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }

    pub(super) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// How the fake workers behave. The number of a fault says, in percent, how often the fault happens when it could
/// happen.
#[derive(Clone, Copy)]
pub(super) struct Nature {
    pub(super) fork_fails: u64,
    pub(super) grow_fails: u64,
    pub(super) crash_at_boot: u64,
    pub(super) never_ready: u64,
    pub(super) crash: u64,
    /// How often a worker answers a request soon after it begins to serve. A worker that dies after such an answer has
    /// not died young.
    pub(super) answers: u64,
    pub(super) hang: u64,
    /// How often a worker sends a heartbeat late, and then continues.
    pub(super) late_heartbeat: u64,
    pub(super) refuses_abort: u64,
    pub(super) slow_drain: u64,
    pub(super) never_drains: u64,
    pub(super) dies_draining: u64,
    pub(super) refused_settings: u64,
    /// How often, in percent, the settings of a reload take up to ten seconds.
    pub(super) slow_settings: u64,
    /// How often the workers of a new generation die during the trial.
    pub(super) bad_generation: u64,
    /// How often a new program does not pass its preflight (`refused_program`), neither passes nor ends
    /// (`hanging_program`), cannot be executed (`exec_fails`), or cannot take over (`bad_take_over`).
    pub(super) refused_program: u64,
    pub(super) hanging_program: u64,
    pub(super) exec_fails: u64,
    pub(super) bad_take_over: u64,
    /// The slots below this number have no faults.
    pub(super) spared: u32,
    /// The age at which a worker is replaced, in milliseconds; 0 means no limit. Up to a tenth of this age is added for
    /// each worker.
    pub(super) max_age: u64,
}

pub(super) const CALM: Nature = Nature {
    fork_fails: 0,
    grow_fails: 0,
    crash_at_boot: 0,
    never_ready: 0,
    crash: 0,
    answers: 0,
    hang: 0,
    late_heartbeat: 0,
    refuses_abort: 0,
    slow_drain: 0,
    never_drains: 0,
    dies_draining: 0,
    refused_settings: 0,
    slow_settings: 0,
    bad_generation: 0,
    refused_program: 0,
    hanging_program: 0,
    exec_fails: 0,
    bad_take_over: 0,
    spared: 0,
    max_age: 0,
};

pub(super) const STORM: Nature = Nature {
    fork_fails: 10,
    grow_fails: 20,
    crash_at_boot: 10,
    never_ready: 5,
    crash: 10,
    answers: 50,
    hang: 10,
    late_heartbeat: 20,
    refuses_abort: 50,
    slow_drain: 20,
    never_drains: 10,
    dies_draining: 10,
    refused_settings: 30,
    slow_settings: 40,
    bad_generation: 30,
    refused_program: 20,
    hanging_program: 10,
    exec_fails: 10,
    bad_take_over: 20,
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
pub(super) struct Process {
    pub(super) slot: SlotId,
    generation: Generation,
    state: State,
    pub(super) hung: bool,
    pub(super) announced: bool,
    /// True if the process may end at any moment, because it drains, or because the master gave it up or killed it.
    doomed: bool,
    /// The time by which the process must have drained, if it was told to.
    pub(super) drained_by: Option<u64>,
    /// True if the process was told that this is the final stop.
    told_last: bool,
    /// The time of the next heartbeat that the process has promised in its row of the scoreboard. The master reads the
    /// row only when it wakes.
    pub(super) due: u64,
    due_read: u64,
    pub(super) old_at: u64,
    rss: u64,
    /// When the process began to serve.
    serves_at: u64,
    /// When the resident size was first measured above the limit.
    pub(super) large_at: Option<u64>,
}

/// Something that is planned for a later time. If a process cannot do what is planned for it at that time, nothing
/// happens.
#[derive(Debug)]
pub(super) enum Ahead {
    Fact(Event),
    Heartbeat(Pid),
    /// Some worker asks to be recycled.
    RecycleAny,
    /// Some worker gets a SIGTERM that the master did not send.
    TermAny,
    /// Some worker becomes full, or has room again.
    CrowdAny,
    /// The runtime has read its sources, for the reload that waits for this.
    Load,
    /// The whole machine stands still.
    Freeze(u64),
}

pub(super) struct World {
    pub(super) now: u64,
    pub(super) random: Random,
    pub(super) nature: Nature,
    pub(super) policy: Policy,
    pub(super) master: Master,
    /// True if this world is replayed, so that every event and action is printed.
    replayed: bool,
    /// The results of actions, which the shell reports before it waits again.
    results: VecDeque<Event>,
    pub(super) ahead: BTreeMap<(u64, u64), Ahead>,
    planned: u64,
    pub(super) processes: BTreeMap<Pid, Process>,
    next_pid: i32,
    pub(super) steered: Vec<SlotId>,
    /// The workers that the master knows to be silent.
    pub(super) silent: BTreeSet<Pid>,
    pub(super) full: BTreeSet<Pid>,
    /// True if the machine was frozen until now, so that nothing could be done in time.
    was_frozen: bool,
    /// The machine may freeze again from this time on, because every worker has had time to send a heartbeat.
    steady_at: u64,
    pub(super) ever_ready: bool,
    /// True if a worker has accepted, at the final stop, every connection that waited in the listeners.
    all_accepted: bool,
    asked_to_recycle: BTreeSet<Pid>,
    pub(super) on_trial: bool,
    /// How often another program took over, including each return to the old program.
    pub(super) execs: usize,
    /// The outer option is set while a preflight is under way. The inner option holds the time by which the preflight
    /// has to be ended; it is `None` once the preflight was told to end.
    preflight: Option<Option<u64>>,
    /// True if the removed addresses refuse new connections.
    refuses_at_removed: bool,
    /// The generation of the last trial.
    trial_generation: Generation,
    /// The value of `workers.overlap` in the settings that the next reload reads; `None` if it does not change.
    pub(super) next_overlap: Option<bool>,
    /// The value of `workers.overlap` before the last reload or upgrade. It counts during the trial.
    overlap_before: bool,
    /// The slots whose worker was told to drain so that another one can start, and that were not served since then.
    stopped: BTreeSet<SlotId>,
    /// True if the last reload or upgrade was refused, and since when.
    refused_at: Option<u64>,
    /// True if the code on the disk makes each new worker fail.
    pub(super) bad_code: bool,
    pub(super) bad: BTreeSet<Generation>,
    pub(super) failed: BTreeSet<Generation>,
    /// The callers that wait for a reply.
    pub(super) callers: BTreeSet<Caller>,
    pub(super) replies: Vec<CommandReply>,
    pub(super) exited: Option<ExitReason>,
    pub(super) forks: Vec<(u64, SlotId)>,
    /// When a worker ended without a request to do so, or when its boot was given up. Each time has the slot of the
    /// worker.
    pub(super) failures: Vec<(u64, SlotId)>,
    pub(super) dumps: Vec<(u64, Pid)>,
    pub(super) aborts: Vec<(u64, Pid)>,
    pub(super) kills: Vec<(u64, Pid, KillCause)>,
    pub(super) drains: Vec<(u64, Pid)>,
    pub(super) notes: Vec<(u64, Note)>,
}

pub(super) fn policy(workers: u32) -> Policy {
    let slots = 8.max(2 * workers);
    Policy {
        workers,
        workers_max: slots + 4,
        slots,
        rows: 4 * slots,
        timeout_ms: TIMEOUT,
        boot_timeout_ms: BOOT_TIMEOUT,
        graceful_timeout_ms: GRACE,
        shutdown_delay_ms: 0,
        max_rss: 0,
        dump_ms: 0,
        overlap: true,
        code_on_disk: false,
    }
}

impl World {
    pub(super) fn new(seed: u64, nature: Nature, shape: impl FnOnce(&mut Random) -> Policy) -> Self {
        let mut random = Random::new(seed);
        let policy = shape(&mut random);
        let (master, actions) = Master::new(policy.clone(), Millis(0));
        let mut world = Self {
            now: 0,
            random,
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
            silent: BTreeSet::new(),
            full: BTreeSet::new(),
            was_frozen: false,
            steady_at: 0,
            ever_ready: false,
            all_accepted: false,
            asked_to_recycle: BTreeSet::new(),
            on_trial: false,
            execs: 0,
            preflight: None,
            refuses_at_removed: false,
            trial_generation: Generation(0),
            next_overlap: None,
            overlap_before: true,
            stopped: BTreeSet::new(),
            refused_at: None,
            bad_code: false,
            bad: BTreeSet::new(),
            failed: BTreeSet::new(),
            callers: BTreeSet::new(),
            replies: Vec::new(),
            exited: None,
            forks: Vec::new(),
            failures: Vec::new(),
            dumps: Vec::new(),
            aborts: Vec::new(),
            kills: Vec::new(),
            drains: Vec::new(),
            notes: Vec::new(),
        };
        world.perform(actions);
        world
    }

    /// Returns a world in which all workers booted without trouble.
    pub(super) fn settled(seed: u64, shape: impl FnOnce(&mut Random) -> Policy) -> Self {
        let mut world = Self::new(seed, CALM, shape);
        world.settle(BOOT);
        world
    }

    /// Makes the request of a caller for a reload; the caller waits for its reply.
    pub(super) fn asks_to_reload(&mut self) -> Ahead {
        self.planned += 1;
        Ahead::Fact(Event::ReloadRequested { caller: Some(Caller(self.planned)) })
    }

    /// Makes the request of a caller for an upgrade; the caller waits for its reply.
    pub(super) fn asks_to_upgrade(&mut self) -> Ahead {
        self.planned += 1;
        Ahead::Fact(Event::UpgradeRequested { program: None, force: false, caller: Some(Caller(self.planned)) })
    }

    /// Makes the request of a caller to scale; the caller waits for its reply.
    pub(super) fn asks(&mut self, scale: Scaling) -> Ahead {
        self.planned += 1;
        Ahead::Fact(Event::ScaleRequested { scaling: scale, caller: Some(Caller(self.planned)) })
    }

    // ---- what will happen ------------------------------------------------------------------------------------------

    pub(super) fn plan(&mut self, delay: u64, ahead: Ahead) {
        self.planned += 1;
        self.ahead.insert((self.now + delay, self.planned), ahead);
    }

    pub(super) fn plan_fact(&mut self, delay: u64, event: Event) {
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
            return self.step(Some(event));
        }
        let overdue = self.master.deadline().is_some_and(|deadline| deadline.0 <= self.now);
        let fact = self.ahead.first_key_value().map(|(&key, _)| key).filter(|key| key.0 <= self.now);
        match fact {
            // If an event and a deadline fall on the same time, either may come first.
            Some(key) if !overdue || self.random.chance(50) => {
                let ahead = self.ahead.remove(&key).expect("it was seen a line ago");
                if let Some(event) = self.happen(ahead) {
                    self.step(Some(event));
                }
            }
            Some(_) | None => self.step(None),
        }
    }

    /// Returns the event that the master gets; `None` if there is no event, because the process is gone or cannot do
    /// what was planned.
    fn happen(&mut self, ahead: Ahead) -> Option<Event> {
        let event = match ahead {
            Ahead::Fact(event) => event,
            Ahead::Heartbeat(pid) => {
                self.beat(pid);
                return None;
            }
            // The shell forgets what it reads for a reload that a stop has ended.
            Ahead::Load if !self.master.loads() => return None,
            Ahead::Load => self.load(),
            Ahead::RecycleAny => Event::RecycleRequested { pid: self.any()? },
            Ahead::TermAny => Event::DrainBegun { pid: self.any()? },
            Ahead::CrowdAny => {
                let pid = self.any()?;
                Event::RoomChanged { pid, full: !self.full.contains(&pid) }
            }
            Ahead::Freeze(ms) if self.now < self.steady_at || self.has_late() => {
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
                (p.serves_at, p.due) = (now, now);
                let slot = p.slot;
                self.stopped.remove(&slot);
                // A worker of a bad generation dies before its trial can end.
                if self.bad.contains(&p.generation) {
                    let delay = self.random.below(490);
                    self.plan_fact(delay, Event::Exited { pid });
                }
                self.plan(50, Ahead::Heartbeat(pid));
                if self.random.chance(self.nature_of(slot).answers) {
                    let delay = self.random.below(1_000);
                    self.plan_fact(delay, Event::Answered { pid });
                }
                self.maybe_crash(pid);
            }
            Event::Answered { pid } => {
                self.processes.get(&pid).filter(|p| p.state == State::Serving && !p.hung)?;
            }
            Event::DrainBegun { pid } => self.drain(pid, GRACE, false),
            Event::AllAccepted { pid } => {
                self.processes.get(&pid).filter(|p| p.state == State::Draining && !p.hung)?;
                self.all_accepted = true;
            }
            Event::RecycleRequested { pid } => {
                self.asked_to_recycle.insert(pid);
            }
            Event::Exited { pid } => {
                let p = self.processes.remove(&pid)?;
                if !p.doomed {
                    self.failures.push((now, p.slot));
                }
            }
            Event::ScaleRequested { caller, .. }
            | Event::ReloadRequested { caller }
            | Event::UpgradeRequested { caller, .. } => self.callers.extend(caller),
            Event::PreflightEnded { .. } if self.preflight.take().is_none() => return None,
            // A stop ends a preflight too, and refuses nothing.
            Event::PreflightEnded { passed: false } if self.master.in_preflight() => self.refused_at = Some(now),
            Event::SlotSilent { slot } => {
                let late = |p: &Process| p.slot == slot && p.state == State::Serving && p.due < now;
                self.silent.extend(self.processes.iter().filter(|(_, p)| late(p)).map(|(&pid, _)| pid));
            }
            Event::RoomChanged { pid, full } => _ = if full { self.full.insert(pid) } else { self.full.remove(&pid) },
            Event::Heartbeat { .. }
            | Event::StopRequested { .. }
            | Event::Grown { .. }
            | Event::SettingsLoaded { .. }
            | Event::SettingsRefused
            | Event::PreflightEnded { .. }
            | Event::ExecFailed
            | Event::Forked { .. }
            | Event::ForkFailed { .. }
            | Event::Measured { .. } => {}
        }
        Some(event)
    }

    fn beat(&mut self, pid: Pid) {
        let Some(slot) = self.processes.get(&pid).map(|p| p.slot) else { return };
        let hangs = self.random.chance(self.nature_of(slot).hang);
        let late_heartbeat =
            if self.random.chance(self.nature_of(slot).late_heartbeat) { self.random.below(TIMEOUT) } else { 0 };
        let due = self.now + PROMISE;
        let Some(p) = self.processes.get_mut(&pid).filter(|p| p.state == State::Serving && !p.hung) else { return };
        p.due = due;
        p.hung = hangs;
        self.plan(PROMISE + late_heartbeat, Ahead::Heartbeat(pid));
        let told = PROMISE + 1 + self.random.below(100);
        self.plan_fact(told, Event::SlotSilent { slot });
        self.maybe_crash(pid);
    }

    /// Returns true if some worker is late with a heartbeat. The machine must not freeze again at such a time, because
    /// the master would then take the worker for hung.
    fn has_late(&self) -> bool {
        self.processes.values().any(|p| p.state == State::Serving && !p.hung && p.due < self.now)
    }

    /// Freezes the machine. The machine wakes before a deadline or at least a second after it, because a shorter delay
    /// after the deadline would not count as a stall.
    pub(super) fn freeze(&mut self, ms: u64) {
        let silences = self.processes.values().map(|p| p.due + TIMEOUT);
        let mut deadlines: Vec<u64> = silences.chain(self.master.deadline().map(|deadline| deadline.0)).collect();
        deadlines.sort_unstable();
        self.now += ms;
        for deadline in deadlines {
            if (deadline..deadline + 1_000).contains(&self.now) {
                self.now = deadline + 1_000;
            }
        }
        self.was_frozen = true;
        self.steady_at = self.now + MOMENT;
    }

    fn nature_of(&self, slot: SlotId) -> Nature {
        if slot.0 < self.nature.spared { Nature { max_age: self.nature.max_age, ..CALM } } else { self.nature }
    }

    fn maybe_crash(&mut self, pid: Pid) {
        let nature = self.nature_of(self.processes[&pid].slot);
        if self.random.chance(nature.crash) {
            let delay = self.random.below(3_000);
            self.plan_fact(delay, Event::Exited { pid });
        }
    }

    /// Picks a process that serves and was not told to drain.
    pub(super) fn any(&mut self) -> Option<Pid> {
        let able = |p: &Process| !p.hung && !p.doomed && p.drained_by.is_none();
        let pids: Vec<Pid> = self.processes.iter().filter(|(_, p)| able(p)).map(|(&pid, _)| pid).collect();
        let nth = self.random.below(pids.len().max(1) as u64);
        pids.get(nth as usize).copied()
    }

    /// Reads the settings of a reload.
    fn load(&mut self) -> Event {
        if self.random.chance(self.nature.refused_settings) {
            return Event::SettingsRefused;
        }
        let count = self.random.chance(30).then(|| 1 + self.random.below(self.policy.slots.into()) as u32);
        let overlap = self.next_overlap.unwrap_or(self.policy.overlap);
        let policy = Policy { overlap, ..self.policy.clone() };
        Event::SettingsLoaded { policy, count, removes: self.random.chance(50) }
    }

    // ---- what the master does --------------------------------------------------------------------------------------

    fn step(&mut self, event: Option<Event>) {
        if !std::mem::take(&mut self.was_frozen) {
            self.assert_woken_in_time();
            // When the master learns that slots were added, the world already has these slots. Before the master learns
            // that it goes on because an exec failed, it forks nothing. So these steps cannot be checked.
            if !matches!(event, Some(Event::Grown { .. } | Event::ExecFailed)) {
                self.assert_never_without(self.now.saturating_sub(1));
            }
        }
        if matches!(event, Some(Event::SettingsRefused | Event::ExecFailed)) {
            self.refused_at = Some(self.now);
        }
        let beats = self.processes.iter_mut().filter(|(_, p)| p.due_read != p.due).map(|(&pid, p)| {
            p.due_read = p.due;
            if p.due >= self.now {
                self.silent.remove(&pid);
            }
            Event::Heartbeat { pid, due: Millis(p.due) }
        });
        let events: Vec<Event> = beats.chain(event).collect();
        if self.replayed {
            eprintln!("{:>6} {events:?}", self.now);
        }
        let actions = self.master.step(Millis(self.now), events);
        self.perform(actions);
        self.check();
    }

    fn perform(&mut self, actions: Vec<Action>) {
        // A slot above the target has no worker because of an operator.
        let target = self.master.target();
        self.stopped.retain(|slot| slot.0 < target);
        for action in actions {
            if self.replayed {
                eprintln!("       -> {action:?}");
            }
            match action {
                Action::Fork { slot, generation } => self.fork(slot, generation),
                Action::Go { pid } => {
                    let p = self.alive(pid);
                    assert_eq!(p.state, State::AwaitingGo, "Go to {pid:?}");
                    p.state = State::Going;
                    let delay = 1 + self.random.below(20);
                    self.plan_fact(delay, Event::Accepting { pid });
                }
                Action::AnnounceStop { pid } => self.alive(pid).announced = true,
                Action::Drain { pid, grace_ms, last, cause } => {
                    self.drains.push((self.now, pid));
                    self.check_drain(pid, cause);
                    let p = &self.processes[&pid];
                    match cause {
                        Cause::Recycle(RecycleCause::MaxAge) => assert!(p.old_at <= self.now, "{pid:?} is not old"),
                        Cause::Recycle(RecycleCause::MaxRss) => assert!(p.large_at.is_some(), "{pid:?} is not large"),
                        Cause::RollBack => {
                            let failed = self.bad.contains(&p.generation) || self.failed.contains(&p.generation);
                            // After a failed upgrade the workers drain before `BecomeOld` puts their generation
                            // into `failed`.
                            assert!(failed || p.generation > self.master.generation(), "{pid:?} has not failed");
                        }
                        Cause::Reload => {
                            assert!(
                                !self.on_trial || !self.overlaps(),
                                "{pid:?} was drained before the new generation had passed its trial"
                            );
                            assert_ne!(p.generation, self.master.generation(), "{pid:?} is not old");
                        }
                        Cause::Recycle(RecycleCause::MaxRequests) | Cause::ScaleDown | Cause::Stop => {}
                    }
                    self.drain(pid, grace_ms, last);
                }
                Action::Dump { pid, cause, silent_ms } => {
                    assert!(self.policy.dump_ms > 0, "{pid:?} has nothing to write");
                    assert!(!matches!(self.master.stage(), Stage::Stopping { .. }), "{pid:?} holds up the stop");
                    assert_eq!(silent_ms.is_some(), cause == KillCause::Hung);
                    self.dumps.push((self.now, pid));
                    self.assert_may_end(pid, cause);
                    if cause == KillCause::Hung {
                        self.give_up_hung(pid);
                    } else {
                        self.give_up_late(pid, cause);
                    }
                    if self.random.chance(10) {
                        let delay = self.random.below(self.policy.dump_ms);
                        self.plan_fact(delay, Event::Exited { pid });
                    }
                }
                Action::Abort { pid, silent_ms } => {
                    self.aborts.push((self.now, pid));
                    if self.had_time_to_write(pid) {
                        assert_eq!(silent_ms, None, "the hang of {pid:?} is logged twice");
                    } else {
                        self.give_up_hung(pid);
                    }
                    let slot = self.alive(pid).slot;
                    if !self.random.chance(self.nature_of(slot).refuses_abort) {
                        let delay = self.random.below(2_000);
                        self.plan_fact(delay, Event::Exited { pid });
                    }
                }
                Action::Kill { pid, cause } => self.kill(pid, cause),
                Action::Measure { pid } => {
                    let (now, limit, more) = (self.now, self.policy.max_rss, self.random.below(30));
                    let p = self.alive(pid);
                    p.rss += more;
                    if p.rss > limit {
                        p.large_at = p.large_at.or(Some(now));
                    }
                    let rss = p.rss;
                    self.results.push_back(Event::Measured { pid, rss });
                }
                Action::Grow { workers } => {
                    let (slots, rows) = match self.random.chance(self.nature.grow_fails) {
                        true => (self.policy.slots, self.policy.rows),
                        false => (workers, self.policy.rows + 4 * (workers - self.policy.slots)),
                    };
                    (self.policy.slots, self.policy.rows) = (slots, rows);
                    self.results.push_back(Event::Grown { slots, rows });
                }
                Action::LoadSettings => {
                    if self.random.chance(self.nature.slow_settings) {
                        let delay = self.random.below(10_000);
                        self.plan(delay, Ahead::Load);
                    } else {
                        let event = self.load();
                        self.results.push_back(event);
                    }
                }
                Action::KeepSettings | Action::KeepProgram => {
                    self.on_trial = false;
                    self.refused_at = None;
                    // Without overlap, the same step may stop a worker of the new generation that has reached a limit.
                    let recycles = |w: &Worker| !self.overlaps() && matches!(w.phase, Phase::Draining { .. });
                    let serves = |w: &Worker| w.serving() || recycles(w);
                    let new = |slot: &SlotId| {
                        self.master
                            .workers()
                            .iter()
                            .any(|w| w.slot == *slot && w.generation == self.master.generation() && serves(w))
                    };
                    assert!(
                        (0..self.master.target()).map(SlotId).all(|slot| new(&slot)),
                        "the trial was passed without a worker"
                    );
                }
                Action::RestoreSettings { failed, .. } => {
                    self.on_trial = false;
                    self.refused_at = Some(self.now);
                    self.policy.overlap = self.overlap_before;
                    self.failed.insert(failed);
                }
                Action::BeginPreflight { .. } => {
                    let until = Some(self.now + self.policy.boot_timeout_ms);
                    assert!(self.preflight.replace(until).is_none(), "two preflights at once");
                    assert!(!self.on_trial, "a preflight while another generation is on trial");
                    let passed = !self.random.chance(self.nature.refused_program);
                    let boot = 50 + self.random.below(450);
                    if !self.random.chance(self.nature.hanging_program) {
                        self.plan_fact(boot, Event::PreflightEnded { passed });
                    }
                }
                Action::EndPreflight => {
                    // If the preflight has passed and ended meanwhile, there is nothing to end.
                    if let Some(until) = &mut self.preflight {
                        *until = None;
                        self.plan_fact(1, Event::PreflightEnded { passed: false });
                    }
                }
                Action::BecomeNew => self.become_new(),
                Action::BecomeOld { .. } => {
                    self.on_trial = false;
                    self.refused_at = Some(self.now);
                    self.failed
                        .insert(self.master.workers().iter().map(|w| w.generation).max().unwrap_or(Generation(0)));
                    match self.random.chance(self.nature.exec_fails) {
                        true => self.results.push_back(Event::ExecFailed),
                        false => self.take_over(Takeover::Back),
                    }
                }
                Action::RefuseAtRemoved => {
                    assert!(!self.on_trial, "removed addresses are closed during a trial");
                    self.refuses_at_removed = true;
                }
                Action::CloseRemoved => {
                    assert!(!self.on_trial, "removed addresses were closed during a trial");
                    assert!(
                        std::mem::take(&mut self.refuses_at_removed),
                        "closed without a time in which new connections are refused"
                    );
                }
                Action::Reply { caller, reply } => {
                    assert!(self.callers.remove(&caller), "{caller:?} got two replies, or never asked");
                    if let CommandReply::Serving { target } = reply {
                        assert_eq!(self.live().len(), target as usize, "{caller:?} got its reply too early");
                        let stays = |w: &&Worker| matches!(w.phase, Phase::Starting { .. } | Phase::Serving { .. });
                        let stay = self.master.workers().iter().filter(stays).find(|w| w.slot.0 >= target);
                        assert!(stay.is_none(), "{caller:?} got its reply before {stay:?} was told to drain");
                    }
                    self.replies.push(reply);
                }
                Action::Steer { live } => {
                    assert!(!live.is_empty(), "steered to no slot");
                    self.steered = live;
                }
                Action::Note(note) => {
                    if let Note::TrialBegun { generation, overlap, .. } = note {
                        self.on_trial = true;
                        self.trial_generation = generation;
                        self.overlap_before = self.policy.overlap;
                        self.policy.overlap = self.next_overlap.take().unwrap_or(self.overlap_before);
                        assert_eq!(overlap, self.overlaps());
                        let bad = self.random.chance(self.nature.bad_generation);
                        self.bad_code = bad && self.policy.code_on_disk;
                        if bad {
                            self.bad.insert(generation);
                        }
                    }
                    assert!(!matches!(note, Note::InvariantBroken(_)), "{note:?}");
                    self.notes.push((self.now, note));
                }
                Action::Exit { reason } => {
                    assert!(self.processes.is_empty(), "left behind: {:?}", self.processes);
                    assert_eq!(self.preflight.flatten(), None, "left behind: a preflight");
                    self.assert_all_accepted();
                    self.exited = Some(reason);
                }
            }
        }
    }

    fn become_new(&mut self) {
        assert!(
            self.preflight.is_none() && self.results.is_empty(),
            "executed another program while results are missing: {:?}",
            self.results
        );
        if self.random.chance(self.nature.exec_fails) {
            return self.results.push_back(Event::ExecFailed);
        }
        if self.random.chance(self.nature.bad_take_over) {
            self.refused_at = Some(self.now);
            return self.take_over(Takeover::Back);
        }
        let count = self.random.chance(30).then(|| 1 + self.random.below(self.policy.slots.into()) as u32);
        let removes = self.random.chance(50);
        self.take_over(Takeover::New { count, removes });
    }

    /// Lets another program take over. The other program gets the old state only as text.
    fn take_over(&mut self, takeover: Takeover) {
        self.execs += 1;
        let forking = self.master.workers().iter().find(|w| w.phase == Phase::Forking);
        assert!(forking.is_none(), "a fork would be lost: {forking:?}");
        let snapshot = serde_json::to_string(&self.master.snapshot()).expect("a snapshot is plain values");
        let snapshot: CoreSnapshot = serde_json::from_str(&snapshot).expect("and can be read again");
        let tally = self.master.tally();
        // The shell of each program knows its own settings, and the slots and rows that exist now.
        let (master, actions) = Master::adopt(self.policy.clone(), Millis(self.now), snapshot, takeover);
        assert_eq!(master.tally(), tally, "a count was lost");
        self.master = master;
        self.perform(actions);
        let actions = self.master.step(Millis(self.now), []);
        self.perform(actions);
    }

    /// Returns true if a worker may start beside another worker of its slot. During a trial the old and the new
    /// settings count.
    fn overlaps(&self) -> bool {
        self.policy.overlap && (!self.on_trial || self.overlap_before)
    }

    /// Returns true if no worker may be replaced by choice, because its replacement would load code that was refused.
    fn holds(&self) -> bool {
        self.policy.code_on_disk && self.refused_at.is_some()
    }

    /// Asserts what must hold before a worker is told to drain because another one is to take its place.
    fn check_drain(&mut self, pid: Pid, cause: Cause) {
        let (Cause::Recycle(_) | Cause::Reload | Cause::RollBack) = cause else { return };
        let (slot, target) = (self.processes[&pid].slot, self.master.target());
        let serves = |other: &Worker| other.serving() && other.pid != Some(pid);
        let others = self.master.workers().iter().filter(|w| serves(w) && w.slot != slot && w.slot.0 < target).count();
        let replaced = self.master.workers().iter().any(|w| serves(w) && w.slot == slot);
        let was_serving = self.processes[&pid].state == State::Serving;
        if slot.0 >= target || replaced || !was_serving || !self.steers() {
            let held = matches!(cause, Cause::Recycle(_)) && self.holds();
            return assert!(!held || replaced, "{pid:?} was recycled although the last change was refused");
        }
        assert!(!self.overlaps(), "{pid:?} was told to drain before another worker served {slot:?}");
        assert!(!(matches!(cause, Cause::Recycle(_)) && self.holds()), "{pid:?} was recycled although held");
        assert!(others > 0 || target == 1, "the last worker that serves was stopped by choice: {pid:?}");
        self.stopped.insert(slot);
        assert_eq!(self.stopped.len(), 1, "more than one slot was stopped: {:?}", self.stopped);
        let unproven = |p: &&Process| {
            self.on_trial
                && p.state == State::Serving
                && p.generation == self.master.generation()
                && self.now < p.serves_at + TRIAL
        };
        let unproven: Vec<_> = self.processes.values().filter(unproven).collect();
        assert!(unproven.is_empty(), "{slot:?} was stopped although others are not proven: {unproven:?}");
    }

    fn fork(&mut self, slot: SlotId, generation: Generation) {
        self.forks.push((self.now, slot));
        // A program whose trial has failed does not have the old code and the old settings.
        assert!(!self.on_trial || generation == self.trial_generation, "{generation:?} is forked by the wrong program");
        let beside: Vec<_> = self.processes.values().filter(|p| p.slot == slot).collect();
        assert!(beside.is_empty() || self.overlaps(), "two workers are in {slot:?}: {beside:?}");
        let serves = |p: &&&Process| p.state == State::Serving && !p.doomed && p.generation == generation;
        let held = self.holds() && !self.on_trial;
        assert!(
            !held || !beside.iter().any(|p| serves(&p)),
            "a worker is replaced although the last change was refused"
        );
        let nature = self.nature_of(slot);
        if self.random.chance(nature.fork_fails) {
            self.failures.push((self.now, slot));
            return self.results.push_back(Event::ForkFailed { slot });
        }
        assert!(self.processes.len() < self.policy.rows as usize, "no row for {slot:?}");
        let pid = Pid(self.next_pid);
        self.next_pid += 1;
        let max_age_ms = match nature.max_age {
            0 => 0,
            age => age + self.random.below(age / 10),
        };
        let process = Process {
            slot,
            generation,
            state: State::Booting,
            hung: false,
            announced: false,
            doomed: false,
            drained_by: None,
            told_last: false,
            due: 0,
            due_read: 0,
            old_at: self.now + max_age_ms,
            rss: 0,
            serves_at: 0,
            large_at: None,
        };
        self.processes.insert(pid, process);
        self.results.push_back(Event::Forked { slot, pid, max_age_ms });
        let boot = 50 + self.random.below(450);
        let fails = self.bad_code || self.random.chance(nature.crash_at_boot);
        if fails || (self.bad.contains(&generation) && self.random.chance(50)) {
            self.plan_fact(boot, Event::Exited { pid });
        } else if !self.random.chance(nature.never_ready) {
            self.plan_fact(boot, Event::Ready { pid });
        }
    }

    /// Lets a process drain, because the master told it to or because the process itself got a SIGTERM.
    fn drain(&mut self, pid: Pid, grace: u64, last: bool) {
        let slot = self.alive(pid).slot;
        let (now, nature) = (self.now, self.nature_of(slot));
        let delay = if self.random.chance(nature.dies_draining) {
            0
        } else if self.random.chance(nature.slow_drain) {
            GRACE / 2 + self.random.below(GRACE)
        } else {
            self.random.below(2_000)
        };
        let never = self.random.chance(nature.never_drains);
        let p = self.alive(pid);
        let news = last && !std::mem::replace(&mut p.told_last, last);
        let shorter = p.drained_by.is_none_or(|before| now + grace < before || (news && now + grace == before));
        assert!(shorter, "the drain of {pid:?} was not shortened");
        // A worker that drains already may have closed its listeners, so it may end before it has accepted the rest of
        // the connections.
        let holds = last && matches!(p.state, State::Serving | State::Draining);
        p.drained_by = Some(now + grace);
        p.doomed = true;
        let serves = std::mem::replace(&mut p.state, State::Draining) == State::Serving;
        let dies = delay == 0;
        if holds {
            self.plan_fact(ACCEPT_REST.min(grace), Event::AllAccepted { pid });
        }
        if !self.alive(pid).hung && !never {
            let least = if holds && serves && !dies { ACCEPT_REST + 1 } else { 0 };
            self.plan_fact(delay.max(least), Event::Exited { pid });
        }
    }

    fn give_up_hung(&mut self, pid: Pid) {
        let p = self.alive(pid);
        assert!(p.hung, "{pid:?} sends heartbeats and is given up");
        p.doomed = true;
        let slot = p.slot;
        self.failures.push((self.now, slot));
    }

    fn give_up_late(&mut self, pid: Pid, cause: KillCause) {
        let now = self.now;
        let p = self.alive(pid);
        p.doomed = true;
        let slot = p.slot;
        if cause == KillCause::BootTimeout {
            self.failures.push((now, slot));
        }
    }

    /// Returns true if the worker was asked to write where it hangs. Asserts that it then had the time for this, and
    /// that only a stop or the policy is a reason not to ask.
    fn had_time_to_write(&self, pid: Pid) -> bool {
        let stops = matches!(self.master.stage(), Stage::Stopping { .. });
        match self.dumps.iter().find(|(_, dumped)| *dumped == pid) {
            Some(&(at, _)) => {
                assert!(self.now >= at + self.policy.dump_ms || stops, "{pid:?} is ended at {}", self.now);
                true
            }
            None => {
                assert!(self.policy.dump_ms == 0 || stops, "{pid:?} had no chance to write what it does");
                false
            }
        }
    }

    fn assert_may_end(&mut self, pid: Pid, cause: KillCause) {
        let now = self.now;
        let p = self.alive(pid);
        assert_ne!(p.state, State::Killed, "{pid:?} is killed twice");
        match cause {
            KillCause::BootTimeout => assert!(!p.doomed && p.state != State::Serving, "{pid:?} had booted"),
            KillCause::Hung => {}
            KillCause::DrainTimeout => assert!(p.drained_by.is_some_and(|by| by <= now), "{pid:?} had time left"),
        }
    }

    fn kill(&mut self, pid: Pid, cause: KillCause) {
        let aborted = self.aborts.iter().any(|&(_, aborted)| aborted == pid);
        if cause == KillCause::Hung {
            assert!(aborted, "{pid:?} had no chance to leave a core file");
        } else if !self.had_time_to_write(pid) {
            self.assert_may_end(pid, cause);
            self.give_up_late(pid, cause);
        }
        let p = self.alive(pid);
        assert_ne!(p.state, State::Killed, "{pid:?} is killed twice");
        p.state = State::Killed;
        p.doomed = true;
        self.kills.push((self.now, pid, cause));
        self.plan_fact(1, Event::Exited { pid });
    }

    pub(super) fn alive(&mut self, pid: Pid) -> &mut Process {
        self.processes.get_mut(&pid).unwrap_or_else(|| panic!("{pid:?} was reaped and is spoken to"))
    }

    // ---- what is true in any world ---------------------------------------------------------------------------------

    fn assert_woken_in_time(&self) {
        for w in self.master.workers() {
            let until = match w.phase {
                Phase::Starting { until }
                | Phase::Dumping { until, .. }
                | Phase::Aborting { until }
                | Phase::Draining { until } => until,
                Phase::Serving { silent_until } => silent_until,
                Phase::Forking | Phase::Killed { .. } => continue,
            };
            assert!(self.now <= until.0, "a wake-up was lost, it is {}: {w:?}", self.now);
        }
        let overdue = self.preflight.flatten().filter(|until| *until < self.now);
        assert_eq!(overdue, None, "a wake-up was lost: a program may hang for ever");
        for pid in &self.silent {
            let beaten = self.processes.get(pid).filter(|p| p.state == State::Serving && p.due != p.due_read);
            let since = beaten.map_or(self.now, |p| p.due - PROMISE);
            assert!(
                self.now <= since + LOOK || !self.steers(),
                "{pid:?} sends heartbeats again since {since}: {}",
                self.now
            );
        }
    }

    /// Asserts that at most half of the slots wait for their next worker, however many workers die. So some slot always
    /// has a worker that serves or starts. For a short time after a fork, more slots may wait. This time is `EARLY`
    /// while some slot serves, and `FLOOR` otherwise.
    fn assert_never_without(&self, at: u64) {
        let slots = self.master.target().min(self.policy.slots);
        let has = |slot: u32| {
            let alive = |w: &Worker| matches!(w.phase, Phase::Forking | Phase::Starting { .. }) || w.serving();
            self.master.workers().iter().any(|w| w.slot.0 == slot && alive(w))
        };
        // A slot whose last worker has not ended yet does not wait for a time but for this end.
        let taken = |slot: u32| !self.overlaps() && self.master.workers().iter().any(|w| w.slot.0 == slot);
        let empty = (0..slots).filter(|slot| !has(*slot) && !taken(*slot)).count() as u32;
        // Only what the master knows counts, because it cannot know yet of workers that became silent just now.
        let some_serve = self.master.workers().iter().any(|w| w.slot.0 < slots && w.serving() && !w.silent);
        let pace = if some_serve { EARLY } else { FLOOR };
        let floor_runs = self.forks.last().is_some_and(|(forked, _)| at < forked + pace);
        let rows_taken = self.master.workers().len() >= self.policy.rows as usize;
        let told = self.results.is_empty();
        if told && self.steers() && self.master.proven() && !rows_taken && !floor_runs {
            assert!(empty <= slots / 2, "{empty} of {slots} slots wait at {}: {:?}", self.now, self.master);
        }
    }

    /// Asserts that the master did not exit while clients still waited in a queue. Four cases are excused: a quick stop
    /// was requested, the time of the stop was over, at least three workers were forked after the shutdown delay, or no
    /// worker was ever ready.
    fn assert_all_accepted(&self) {
        let stops = self.notes.iter().filter_map(|(at, note)| match note {
            Note::Stopping { graceful, delay_ms, grace_ms } => {
                Some((*graceful, at + delay_ms, at + delay_ms + grace_ms))
            }
            _ => None,
        });
        let stops: Vec<_> = stops.collect();
        let excused = stops.iter().any(|(graceful, _, until)| !graceful || *until <= self.now);
        let begun = stops.first().map_or(self.now, |(_, begun, _)| *begun);
        let last_forks = self.forks.iter().filter(|(at, _)| *at >= begun).count();
        assert!(
            self.all_accepted || excused || last_forks >= 3 || !self.ever_ready,
            "exited before all waiting connections were accepted"
        );
    }

    fn steers(&self) -> bool {
        matches!(self.master.stage(), Stage::Running | Stage::Delaying { .. })
    }

    fn check(&self) {
        self.assert_never_without(self.now);
        let deadline = self.master.deadline();
        assert!(deadline.is_none_or(|deadline| deadline.0 > self.now), "spin: {:?}", self.master);
        let (steers, delays) = (self.steers(), matches!(self.master.stage(), Stage::Delaying { .. }));
        let roomy = self.slots_of(|pid| !self.silent.contains(&pid) && !self.full.contains(&pid));
        let expected = [roomy, self.well(), self.live()].into_iter().find(|slots| !slots.is_empty());
        if let (true, Some(expected)) = (steers, expected) {
            assert_eq!(self.steered, expected, "steered to the wrong slots");
        }
        let stops = matches!(self.master.stage(), Stage::Stopping { .. });
        let late = |w: &&Worker| {
            matches!(w.phase, Phase::Draining { .. }) && !w.pid.is_some_and(|pid| self.processes[&pid].told_last)
        };
        let late: Vec<_> = self.master.workers().iter().filter(|w| stops && late(w)).collect();
        assert!(late.is_empty(), "not told that this is the final stop: {late:?}");
        let deaf = |w: &&Worker| w.serving() && !w.pid.is_some_and(|pid| self.processes[&pid].announced);
        let deaf: Vec<_> = self.master.workers().iter().filter(|w| delays && deaf(w)).collect();
        assert!(deaf.is_empty(), "not told that the service stops: {deaf:?}");
    }

    /// Returns the slots below the target whose worker serves, in ascending order.
    pub(super) fn live(&self) -> Vec<SlotId> {
        self.slots_of(|_| true)
    }

    /// Returns the slots below the target whose worker serves and is not known to be silent.
    pub(super) fn well(&self) -> Vec<SlotId> {
        self.slots_of(|pid| !self.silent.contains(&pid))
    }

    fn slots_of(&self, able: impl Fn(Pid) -> bool) -> Vec<SlotId> {
        let serving = self.master.workers().iter().filter(|w| w.serving() && w.slot.0 < self.master.target());
        let able = serving.filter(|w| w.pid.is_some_and(&able));
        able.map(|w| w.slot).collect::<BTreeSet<_>>().into_iter().collect()
    }

    pub(super) fn serving(&self) -> u32 {
        self.master.workers().iter().filter(|w| w.serving()).count() as u32
    }

    pub(super) fn is_settled(&self) -> bool {
        let workers = self.master.workers();
        self.live().len() == workers.len()
            && workers.len() == self.master.target() as usize
            && !self.master.changes()
            && workers.iter().all(|w| (w.recycle.is_none() || self.holds()) && w.generation == self.master.generation())
            && !self.processes.iter().any(|(pid, p)| p.hung || (self.asked_to_recycle.contains(pid) && !self.holds()))
    }

    // ---- time passes -----------------------------------------------------------------------------------------------

    pub(super) fn run(&mut self, ms: u64) {
        self.run_checking(ms, |_| {});
    }

    pub(super) fn run_checking(&mut self, ms: u64, check: impl Fn(&Self)) {
        let end = self.now + ms;
        while self.exited.is_none() && self.next_at() <= end {
            self.advance();
            check(self);
        }
        if self.exited.is_none() {
            self.now = self.now.max(end);
        }
    }

    pub(super) fn settle(&mut self, within: u64) {
        let end = self.now + within;
        while !self.is_settled() {
            assert_eq!(self.exited, None, "the master exited instead of settling");
            assert!(self.next_at() <= end, "not settled within {within} ms: {:?}", self.master);
            self.advance();
        }
    }

    /// Runs until the master exits, as it was asked to do, and returns how many milliseconds that took.
    pub(super) fn run_to_exit(&mut self, within: u64) -> u64 {
        let start = self.now;
        self.run(within);
        assert_eq!(self.exited, Some(ExitReason::Asked), "not stopped within {within} ms: {:?}", self.master);
        self.now - start
    }

    pub(super) fn pids(&self) -> Vec<Pid> {
        self.processes.keys().copied().collect()
    }

    pub(super) fn notes_of(&self, kind: impl Fn(&Note) -> bool) -> usize {
        self.notes.iter().filter(|(_, note)| kind(note)).count()
    }

    pub(super) fn forks_of(&self, slot: SlotId) -> Vec<u64> {
        self.forks.iter().filter(|(_, of)| *of == slot).map(|(at, _)| *at).collect()
    }

    pub(super) fn failures_of(&self, slot: SlotId) -> Vec<u64> {
        self.failures.iter().filter(|(_, of)| *of == slot).map(|(at, _)| *at).collect()
    }
}

pub(super) fn given(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}
