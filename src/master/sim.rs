//! Tests of what must be true of the core in any world of fake processes. Each seed gives one run in virtual time.
//!
//! Owns: one test for each property. Refuses: to test single examples, to read a clock, and to look at the private
//! state of the core. With `SEEDS=n` each test plays n worlds; `SEED=n` replays one world and prints every event and
//! action.

use std::collections::BTreeSet;

use super::core::{
    CommandReply, Event, ExitReason, Generation, KillCause, Note, Phase, Pid, Policy, Scaling, SlotId, Worker,
};

mod world;

use world::{
    Ahead, BOOT, BOOT_TIMEOUT, CALM, FLOOR, GRACE, MOMENT, Nature, PROMISE, Random, STORM, TIMEOUT, World, given,
    policy,
};

/// Prints the seed of the world in which a test fails, so that it can be replayed.
struct Replay(u64);

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("replay with SEED={}", self.0);
        }
    }
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

fn up_to(most: u64) -> impl FnOnce(&mut Random) -> Policy {
    move |random| policy(1 + random.below(most) as u32)
}

// ---- storms ---------------------------------------------------------------------------------------------------------

fn storm(seed: u64) {
    let mut world = World::new(seed, STORM, |random| {
        let mut policy = up_to(6)(random);
        policy.slots = policy.workers + 2;
        // A trial needs two rows for each slot, for the old and the new worker; a real scoreboard has four rows for
        // each slot.
        policy.rows = 2 * policy.slots + 1 + random.below(20) as u32;
        policy.shutdown_delay_ms = random.below(3) * 1_000;
        policy.dump_ms = random.below(2) * 1_000;
        policy.overlap = random.chance(60);
        policy.code_on_disk = random.chance(40);
        policy
    });
    world.nature.max_age = world.random.below(3) * 15_000;
    for _ in 0..10 {
        let at = world.random.below(40_000);
        let to = world.random.below(10) as u32;
        let ahead = match world.random.below(12) {
            0 => Ahead::Fact(Event::ScaleRequested { scaling: Scaling::By(1), caller: None }),
            1 => Ahead::Fact(Event::ScaleRequested { scaling: Scaling::By(-1), caller: None }),
            6 => world.asks(Scaling::By(-1)),
            7 => world.asks(Scaling::To(to)),
            8 => Ahead::Fact(Event::ReloadRequested { caller: None }),
            9 => world.asks_to_reload(),
            10 => Ahead::Fact(Event::UpgradeRequested { program: None, force: false, caller: None }),
            11 => world.asks_to_upgrade(),
            2 | 3 => Ahead::RecycleAny,
            4 => Ahead::TermAny,
            _ => Ahead::Freeze(world.random.below(300_000)),
        };
        world.plan(at, ahead);
    }
    world.run(40_000);
    world.ahead.retain(|_, ahead| !matches!(ahead, Ahead::Freeze(_)));
    // If the machine was frozen until now, the master handles the events of that time before the checks below.
    world.run(1);
    if let Some(reason) = world.exited {
        assert_eq!(reason, ExitReason::NoWorkerReady);
        return assert!(!world.ever_ready, "gave up although a worker was ready once");
    }
    // Only a world in which a worker was ready must become calm. In other worlds the first boot may still be given up.
    if world.random.chance(50) && world.ever_ready {
        world.nature = CALM;
        if world.bad_code {
            world.plan_fact(0, Event::ReloadRequested { caller: None });
            world.run(1);
        }
        world.settle(200_000);
        assert_eq!(world.callers, BTreeSet::new(), "a caller waits for something that is done");
    }
    world.plan_fact(0, Event::StopRequested { graceful: true });
    let most = world.policy.shutdown_delay_ms + GRACE + 2;
    world.run_to_exit(most);
    assert_eq!(world.callers, BTreeSet::new(), "the master exited without a reply to a caller");
}

#[test]
fn after_any_storm_it_settles_and_stops() {
    worlds(2_000, storm);
}

#[test]
fn seed_1_a_heartbeat_from_before_a_freeze_shortens_no_deadline() {
    storm(1);
}

#[test]
fn seed_17_a_forgiven_stall_shortens_no_deadline() {
    storm(17);
}

#[test]
fn every_pair_of_operator_events_settles_or_stops() {
    const STOPS: usize = 2;
    let events = |random: &mut Random| {
        let by = 1 + random.below(3) as i32;
        [
            Ahead::Fact(Event::StopRequested { graceful: true }),
            Ahead::Fact(Event::StopRequested { graceful: false }),
            Ahead::Fact(Event::ScaleRequested { scaling: Scaling::By(by), caller: None }),
            Ahead::Fact(Event::ScaleRequested { scaling: Scaling::By(-by), caller: None }),
            Ahead::RecycleAny,
            Ahead::TermAny,
            Ahead::Fact(Event::ReloadRequested { caller: None }),
            Ahead::Fact(Event::UpgradeRequested { program: None, force: false, caller: None }),
        ]
    };
    worlds(8, |seed| {
        for (first, second) in (0..8).flat_map(|first| (0..8).map(move |second| (first, second))) {
            for gap in [0, 1, 100, 700, 3_000] {
                let mut world = World::settled(seed, |random| Policy { overlap: seed % 3 > 0, ..up_to(4)(random) });
                for (at, which) in [(0, first), (gap, second)] {
                    let ahead = events(&mut world.random).into_iter().nth(which).expect("one of eight");
                    world.plan(at, ahead);
                }
                if first < STOPS || second < STOPS {
                    world.run_to_exit(gap + GRACE + 1);
                } else {
                    world.run(gap);
                    world.settle(GRACE + if world.policy.overlap { 20 * BOOT } else { 20 * TURN });
                }
            }
        }
    });
}

// ---- replacing ------------------------------------------------------------------------------------------------------

/// Counts the slots whose worker serves while its successor starts.
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
        world.run(5_000);
        let old = world.pids();
        for &pid in &old {
            let at = world.random.below(1_000);
            world.plan_fact(at, Event::RecycleRequested { pid });
        }
        world.run_checking(1_000 + old.len() as u64 * BOOT + GRACE + 1, assert_gentle);
        assert!(world.is_settled(), "{:?}", world.master);
        assert!(old.iter().all(|pid| !world.processes.contains_key(pid)), "an old worker is still there");
        let told = world.notes_of(|note| matches!(note, Note::Stalled { .. }));
        assert_eq!(told, 0, "a request was taken for a duty that the master missed");
    });
}

#[test]
fn every_worker_is_replaced_at_its_age_and_none_before() {
    const AGE: u64 = 15_000;
    worlds(100, |seed| {
        let mut world = World::new(seed, Nature { max_age: AGE, ..CALM }, up_to(6));
        world.settle(BOOT);
        // Workers of the same age are replaced one after the other, and each replacement takes one boot. The test
        // allows for six boots.
        let late = 6 * BOOT;
        world.run_checking(3 * AGE, |world| {
            assert_gentle(world);
            for (pid, p) in &world.processes {
                let overdue = world.now > p.old_at + late && p.drained_by.is_none();
                assert!(!overdue, "{pid:?} is older than its limit: {p:?}");
            }
        });
        assert!(world.drains.len() >= 2 * world.policy.workers as usize);
        assert_eq!(
            world.notes_of(|note| matches!(note, Note::BackedOff { .. })),
            0,
            "an end that was requested counts as a failure"
        );
    });
}

#[test]
fn a_worker_that_grew_too_large_is_replaced() {
    worlds(100, |seed| {
        let mut world = World::settled(seed, |random| Policy { max_rss: 200, ..up_to(6)(random) });
        world.run_checking(40_000, |world| {
            assert_gentle(world);
            for (pid, p) in &world.processes {
                let overdue = p.large_at.is_some_and(|at| world.now > at + 6 * BOOT) && p.drained_by.is_none();
                assert!(!overdue, "{pid:?} is too large and not replaced: {p:?}");
            }
        });
        assert!(world.drains.len() >= world.policy.workers as usize);
    });
}

#[test]
fn without_a_free_row_a_replacement_waits_and_this_is_noted_once() {
    worlds(200, |seed| {
        let mut world = World::settled(seed, |random| {
            let workers = 2 + random.below(4) as u32;
            Policy { rows: workers + 1, slots: workers, ..policy(workers) }
        });
        world.nature.never_drains = 100;
        let workers = world.pids();
        for _ in &workers {
            world.plan(0, Ahead::TermAny);
        }
        world.run(GRACE - 1);
        let no_row = |world: &World| world.notes_of(|note| matches!(note, Note::ScoreboardFull { .. }));
        assert_eq!(no_row(&world), 1);
        assert_eq!(world.processes.len(), world.policy.rows as usize);
        world.settle(2 + 2 * BOOT);
        let said = no_row(&world);
        assert!(said <= workers.len(), "noted more often than a row became free");
        for _ in &workers {
            world.plan(0, Ahead::TermAny);
        }
        world.run(0);
        assert_eq!(no_row(&world), said + 1, "another shortage is noted again");
    });
}

// ---- reloading ------------------------------------------------------------------------------------------------------

#[test]
fn a_reload_replaces_every_worker_and_never_dips() {
    worlds(300, |seed| {
        let mut world = World::settled(seed, up_to(6));
        let (target, old) = (world.master.target(), world.pids());
        let asks = world.asks_to_reload();
        world.plan(0, asks);
        world.run_checking(20 * BOOT, |world| assert!(world.serving() >= target.min(world.master.target())));
        world.settle(GRACE);
        assert_eq!(world.replies, [CommandReply::Reloaded { generation: Generation(2) }]);
        assert!(old.iter().all(|pid| !world.processes.contains_key(pid)), "an old worker is still there");
    });
}

/// Each worker serves for a shorter time than a trial takes. The trial still ends, because it counts the time for which
/// the slot is served, not the time of one worker.
#[test]
fn a_reload_ends_although_its_workers_are_recycled_all_the_time() {
    worlds(100, |seed| {
        let mut world = World::settled(seed, up_to(4));
        let asks = world.asks_to_reload();
        world.plan(0, asks);
        let end = 20 * BOOT;
        for at in (0..end).step_by(25) {
            world.plan(at, Ahead::RecycleAny);
        }
        world.run(end);
        assert_eq!(world.replies, [CommandReply::Reloaded { generation: Generation(2) }]);
    });
}

#[test]
fn a_bad_generation_is_rolled_back_and_the_old_one_never_stops_serving() {
    worlds(300, |seed| {
        let mut world = World::settled(seed, up_to(6));
        let (target, old) = (world.master.target(), world.pids());
        world.nature.bad_generation = 100;
        let asks = world.asks_to_reload();
        world.plan(0, asks);
        world.run_checking(20 * BOOT, |world| {
            let still = |pid: &Pid| world.master.worker(*pid).is_some_and(Worker::serving);
            assert!(old.iter().all(still), "a worker of the old generation was touched");
        });
        world.settle(GRACE);
        assert!(matches!(world.replies[..], [CommandReply::RolledBack { .. }]), "{:?}", world.replies);
        assert_eq!((world.master.generation(), world.master.target()), (Generation(1), target));
        world.nature.bad_generation = 0;
        world.plan_fact(0, Event::ReloadRequested { caller: None });
        world.run(1);
        world.settle(GRACE + 20 * BOOT);
        assert_eq!(world.master.generation(), Generation(3));
    });
}

#[test]
fn several_reloads_during_a_reload_become_one() {
    worlds(200, |seed| {
        let mut world = World::settled(seed, up_to(4));
        world.nature.bad_generation = 50;
        for at in [0, 1, 50] {
            let asks = world.asks_to_reload();
            world.plan(at, asks);
        }
        world.run(50);
        world.settle(2 * GRACE + 40 * BOOT);
        assert_eq!(world.replies.len(), 3);
        let begun = world.notes_of(|note| matches!(note, Note::TrialBegun { .. }));
        assert_eq!(begun, 2);
        assert_eq!(world.notes_of(|note| matches!(note, Note::ReloadQueued)), 1);
    });
}

#[test]
fn a_stop_does_not_wait_for_a_reload() {
    worlds(200, |seed| {
        let mut world = World::settled(seed, up_to(4));
        for _ in 0..2 {
            let asks = world.asks_to_reload();
            world.plan(0, asks);
        }
        let stop_at = world.random.below(2 * BOOT);
        world.plan_fact(stop_at, Event::StopRequested { graceful: true });
        world.run_to_exit(stop_at + GRACE + 1);
        assert_eq!(world.replies.len(), 2);
        assert_eq!(world.callers, BTreeSet::new());
    });
}

// ---- upgrading ------------------------------------------------------------------------------------------------------

#[test]
fn an_upgrade_replaces_every_worker_and_never_dips() {
    worlds(300, |seed| {
        let mut world = World::settled(seed, up_to(6));
        let (target, old) = (world.master.target(), world.pids());
        let asks = world.asks_to_upgrade();
        world.plan(0, asks);
        world.run_checking(20 * BOOT, |world| assert!(world.serving() >= target.min(world.master.target())));
        world.settle(GRACE);
        assert_eq!(world.replies, [CommandReply::Upgraded { generation: Generation(2) }]);
        assert_eq!((world.execs, world.master.tally().upgrades), (1, 1));
        assert!(old.iter().all(|pid| !world.processes.contains_key(pid)), "an old worker is still there");
    });
}

/// In each world one thing goes wrong: the new program is refused, hangs, cannot be executed, cannot take over, or its
/// workers fail.
#[test]
fn a_bad_program_changes_nothing_and_the_old_workers_never_stop_serving() {
    worlds(500, |seed| {
        let mut world = World::settled(seed, up_to(6));
        let (target, old) = (world.master.target(), world.pids());
        match seed % 5 {
            0 => world.nature.refused_program = 100,
            1 => world.nature.hanging_program = 100,
            2 => world.nature.exec_fails = 100,
            3 => world.nature.bad_take_over = 100,
            _ => world.nature.bad_generation = 100,
        }
        let asks = world.asks_to_upgrade();
        world.plan(0, asks);
        world.run_checking(BOOT_TIMEOUT + 20 * BOOT, |world| {
            let still = |pid: &Pid| world.master.worker(*pid).is_some_and(Worker::serving);
            assert!(old.iter().all(still), "a worker of the old program was touched");
        });
        world.settle(GRACE);
        let reply = if seed % 5 < 3 { CommandReply::UpgradeRefused } else { CommandReply::UpgradeFailed };
        assert_eq!(world.replies, [reply]);
        assert_eq!((world.master.generation(), world.master.target()), (Generation(1), target));
        assert_eq!(world.execs, [0, 0, 0, 1, 2][seed as usize % 5]);
        world.nature = CALM;
        world.replies.clear();
        let asks = world.asks_to_upgrade();
        world.plan(0, asks);
        world.run(1);
        world.settle(GRACE + 20 * BOOT);
        assert!(matches!(world.replies[..], [CommandReply::Upgraded { .. }]), "{:?}", world.replies);
    });
}

/// In each world, forks are under way when the preflight has passed. The new program would not know of these forks, so
/// the exec must wait for them.
#[test]
fn an_exec_waits_for_the_forks_under_way() {
    worlds(100, |seed| {
        let mut world = World::settled(seed, |random| policy(2 + random.below(4) as u32));
        world.nature.hanging_program = 100;
        let all_die = |world: &mut World| {
            for pid in world.pids() {
                world.plan_fact(0, Event::Exited { pid });
            }
            world.run(0);
        };
        all_die(&mut world);
        world.settle(FLOOR + BOOT);
        world.run(FLOOR);
        // A slot waits half a second after the second death in a row, so all slots fork again when the preflight
        // passes, which is also half a second from now.
        all_die(&mut world);
        let asks = world.asks_to_upgrade();
        world.plan(0, asks);
        world.plan_fact(500, Event::PreflightEnded { passed: true });
        world.run(501);
        world.settle(GRACE + 20 * BOOT);
        assert_eq!((world.execs, world.replies.len()), (1, 1));
    });
}

/// During an upgrade, a second upgrade by a signal is queued, a caller is told that an upgrade is under way, and a
/// reload follows the upgrade.
#[test]
fn a_request_during_an_upgrade_follows_it_or_gets_its_reply_at_once() {
    worlds(200, |seed| {
        let mut world = World::settled(seed, up_to(4));
        world.nature.bad_generation = 50;
        let first = world.asks_to_upgrade();
        world.plan(0, first);
        // Every request comes before any preflight can end.
        let within = 1 + world.random.below(49);
        let (second, reload) = (world.asks_to_upgrade(), world.asks_to_reload());
        world.plan(within, second);
        world.plan(within, reload);
        for _ in 0..3 {
            world.plan_fact(within, Event::UpgradeRequested { program: None, force: false, caller: None });
        }
        world.run(within);
        assert_eq!(world.replies, [CommandReply::UpgradeUnderWay]);
        world.settle(2 * GRACE + 80 * BOOT);
        assert_eq!((world.replies.len(), world.callers.len()), (3, 0));
        assert_eq!(world.notes_of(|note| matches!(note, Note::TrialBegun { .. })), 3);
        assert_eq!(world.notes_of(|note| matches!(note, Note::UpgradeQueued)), 1);
    });
}

#[test]
fn a_stop_does_not_wait_for_an_upgrade() {
    worlds(300, |seed| {
        let mut world = World::settled(seed, up_to(4));
        world.nature.hanging_program = 30;
        let asks = world.asks_to_upgrade();
        world.plan(0, asks);
        world.plan_fact(0, Event::UpgradeRequested { program: None, force: false, caller: None });
        let stop_at = world.random.below(3 * BOOT);
        world.plan_fact(stop_at, Event::StopRequested { graceful: true });
        world.run_to_exit(stop_at + GRACE + 1);
        assert_eq!((world.replies.len(), world.callers.len()), (1, 0));
    });
}

#[test]
fn a_scale_does_not_wait_for_a_preflight() {
    worlds(100, |seed| {
        let mut world = World::settled(seed, up_to(4));
        world.nature.hanging_program = 100;
        let (upgrade, target) = (world.asks_to_upgrade(), world.master.target() + 1);
        world.plan(0, upgrade);
        let scale = world.asks(Scaling::To(target));
        world.plan(1, scale);
        world.run(1 + BOOT);
        assert_eq!(world.replies, [CommandReply::Serving { target }]);
    });
}

// ---- without overlap ------------------------------------------------------------------------------------------------

/// The longest time from the order to drain until the next worker of the slot is proven, if the drain is not slow.
const TURN: u64 = 2_000 + FLOOR + BOOT + 500;

fn without_overlap(most: u64) -> impl FnOnce(&mut Random) -> Policy {
    move |random| Policy { overlap: false, ..up_to(most)(random) }
}

/// The world itself asserts that a slot never has two workers, and that only one slot at a time is without a worker by
/// choice.
#[test]
fn without_overlap_a_recycle_replaces_every_worker() {
    worlds(300, |seed| {
        let mut world = World::settled(seed, without_overlap(6));
        world.nature = Nature { slow_drain: 30, never_drains: 10, dies_draining: 10, ..CALM };
        let (target, old) = (world.master.target(), world.pids());
        for &pid in &old {
            let at = world.random.below(1_000);
            world.plan_fact(at, Event::RecycleRequested { pid });
        }
        world.run_checking(1_000 + old.len() as u64 * (GRACE + BOOT + 200), |world| {
            assert!(world.serving() + 1 >= target, "dipped to {} of {target}", world.serving());
        });
        assert!(world.is_settled(), "{:?}", world.master);
        assert!(old.iter().all(|pid| !world.processes.contains_key(pid)), "an old worker is still there");
        assert_eq!(world.master.tally().recycled, old.len() as u64);
        let failures = world.notes_of(|note| matches!(note, Note::BackedOff { .. }));
        assert_eq!(failures, 0, "an end that was requested counts as a failure");
    });
}

/// The replacement of the first slot cannot boot, so no other slot is stopped.
#[test]
fn without_overlap_a_replacement_that_cannot_boot_costs_one_slot_only() {
    worlds(100, |seed| {
        let mut world = World::settled(seed, |random| Policy { overlap: false, ..policy(2 + random.below(5) as u32) });
        world.nature.crash_at_boot = 100;
        let old = world.pids();
        for &pid in &old {
            let at = world.random.below(1_000);
            world.plan_fact(at, Event::RecycleRequested { pid });
        }
        world.run(60_000);
        let kept = old.iter().filter(|pid| world.processes.contains_key(pid)).count();
        assert_eq!(kept, old.len() - 1, "one slot was stopped, and no other");
        world.nature = CALM;
        world.settle(30_000 + 8 * TURN);
    });
}

#[test]
fn without_overlap_a_reload_ends_although_its_workers_are_recycled_all_the_time() {
    worlds(100, |seed| {
        let mut world = World::settled(seed, without_overlap(4));
        let asks = world.asks_to_reload();
        world.plan(0, asks);
        let end = 10 * TURN;
        for at in (0..end).step_by(25) {
            world.plan(at, Ahead::RecycleAny);
        }
        world.run(end);
        assert_eq!(world.replies, [CommandReply::Reloaded { generation: Generation(2) }]);
    });
}

#[test]
fn without_overlap_age_and_size_stop_one_worker_after_the_other() {
    worlds(100, |seed| {
        let shape = |random: &mut Random| Policy { max_rss: 200, ..without_overlap(6)(random) };
        let mut world = World::new(seed, Nature { max_age: 30_000, ..CALM }, shape);
        world.settle(BOOT);
        let target = world.master.target();
        world.run_checking(120_000, |world| assert!(world.serving() + 1 >= target, "dipped to {}", world.serving()));
        assert!(world.drains.len() >= 2 * target as usize);
    });
}

#[test]
fn without_overlap_a_reload_tries_one_slot_after_the_other() {
    worlds(300, |seed| {
        let mut world = World::settled(seed, without_overlap(6));
        let (target, old) = (world.master.target(), world.pids());
        world.nature.late_heartbeat = 50;
        let asks = world.asks_to_reload();
        world.plan(0, asks);
        world.run_checking(8 * TURN, |world| assert!(world.serving() + 1 >= target.min(world.master.target())));
        world.nature = CALM;
        world.settle(GRACE + 8 * TURN);
        assert_eq!(world.replies, [CommandReply::Reloaded { generation: Generation(2) }]);
        assert!(old.iter().all(|pid| !world.processes.contains_key(pid)), "an old worker is still there");
    });
}

#[test]
fn without_overlap_a_bad_generation_costs_one_slot_its_worker_and_no_other() {
    worlds(300, |seed| {
        let mut world = World::settled(seed, without_overlap(6));
        let (target, old) = (world.master.target(), world.pids());
        world.nature.bad_generation = 100;
        let asks = world.asks_to_reload();
        world.plan(0, asks);
        world.run_checking(2 * TURN, |world| {
            let still = |pid: &&Pid| world.master.worker(**pid).is_some_and(Worker::serving);
            assert!(old.iter().filter(still).count() + 1 >= old.len(), "a second slot was touched");
        });
        world.settle(GRACE + 8 * TURN);
        assert!(matches!(world.replies[..], [CommandReply::RolledBack { overlap: false, .. }]), "{:?}", world.replies);
        assert_eq!((world.master.generation(), world.master.target()), (Generation(1), target));
        let gone = old.iter().filter(|pid| !world.processes.contains_key(pid)).count();
        assert!(gone <= 1, "{gone} old workers are gone");
    });
}

/// The first slots pass their trial, and the worker of a later slot dies. All slots get workers with the old settings
/// again, one after the other.
#[test]
fn without_overlap_a_late_failure_of_a_trial_takes_all_slots_back() {
    worlds(200, |seed| {
        let mut world = World::settled(seed, |random| Policy { overlap: false, ..policy(3 + random.below(4) as u32) });
        world.nature.refused_settings = 0;
        let target = world.master.target();
        let asks = world.asks_to_reload();
        world.plan(0, asks);
        let new = |world: &World| {
            let new = world.master.workers().iter().filter(|w| w.generation == Generation(2) && w.serving());
            new.filter_map(|w| w.pid).collect::<Vec<_>>()
        };
        while new(&world).len() < 2 && world.replies.is_empty() {
            world.run(10);
        }
        if !world.replies.is_empty() {
            // The new settings have only one worker, so there is no later slot.
            return;
        }
        world.plan_fact(0, Event::Exited { pid: new(&world)[1] });
        world.run_checking(2 * TURN, |world| assert!(world.serving() + 2 >= target.min(world.master.target())));
        world.settle(GRACE + 8 * TURN);
        assert!(matches!(world.replies[..], [CommandReply::RolledBack { .. }]), "{:?}", world.replies);
        assert_eq!((world.master.generation(), world.master.target()), (Generation(1), target));
    });
}

#[test]
fn without_overlap_an_upgrade_tries_one_slot_after_the_other_and_a_bad_one_goes_back() {
    worlds(400, |seed| {
        let mut world = World::settled(seed, without_overlap(6));
        let (target, old) = (world.master.target(), world.pids());
        let is_bad = seed % 2 == 0;
        if is_bad {
            world.nature.bad_generation = 100;
        }
        let asks = world.asks_to_upgrade();
        world.plan(0, asks);
        let began = world.now;
        while world.replies.is_empty() {
            world.run_checking(10, |world| assert!(world.serving() + 1 >= target.min(world.master.target())));
        }
        let (took, turns) = (world.now - began, u64::from(target.max(world.master.target())));
        assert!(took <= 2 * BOOT + turns * TURN, "a proven slot was not followed by the next one at once: {took} ms");
        world.settle(GRACE + 8 * TURN);
        let kept = old.iter().filter(|pid| world.processes.contains_key(pid)).count();
        if is_bad {
            assert_eq!(world.replies, [CommandReply::UpgradeFailed]);
            assert_eq!((world.master.generation(), world.master.target()), (Generation(1), target));
            assert!(kept + 1 >= old.len(), "{kept} of {} old workers are left", old.len());
        } else {
            assert_eq!(world.replies, [CommandReply::Upgraded { generation: Generation(2) }]);
            assert_eq!(kept, 0, "an old worker is still there");
        }
    });
}

/// The old and the new settings must both let workers overlap. In half of the worlds the trial fails.
#[test]
fn a_reload_that_changes_overlap_stops_first() {
    worlds(300, |seed| {
        let overlap = seed % 2 == 0;
        let mut world = World::settled(seed, |random| Policy { overlap, ..up_to(6)(random) });
        world.nature.bad_generation = world.random.below(2) * 100;
        world.next_overlap = Some(!overlap);
        for pid in world.pids() {
            let at = world.random.below(200);
            world.plan_fact(at, Event::RecycleRequested { pid });
        }
        let at = world.random.below(2_000);
        let asks = world.asks_to_reload();
        world.plan(at, asks);
        world.run(at + 1);
        world.settle(2 * GRACE + 16 * TURN);
        assert_eq!(world.replies.len(), 1);
        assert_eq!(world.policy.overlap, if world.bad.is_empty() { !overlap } else { overlap });
    });
}

/// Some slots cannot keep a worker. The slots that can are still recycled, but never the last one of them.
#[test]
fn without_overlap_slots_that_fail_do_not_stop_the_recycling_of_others() {
    worlds(100, |seed| {
        let workers = 2 + (seed % 3) as u32;
        let mut world = World::settled(seed, |_| Policy { overlap: false, ..policy(workers) });
        world.nature = Nature { crash_at_boot: 100, spared: workers - 1, ..CALM };
        let first = world.pids();
        world.plan_fact(0, Event::Exited { pid: first[workers as usize - 1] });
        world.run(20_000);
        for &pid in &first[..workers as usize - 1] {
            world.plan_fact(0, Event::RecycleRequested { pid });
        }
        world.run(200_000);
        let kept = first.iter().filter(|pid| world.processes.contains_key(pid)).count();
        assert_eq!(kept, usize::from(workers == 2), "the last slot that serves must not stop, and the others must");
    });
}

#[test]
fn without_overlap_a_hung_worker_ends_before_its_slot_gets_another() {
    worlds(200, |seed| {
        let mut world = World::settled(seed, |random| Policy { dump_ms: 1_000, ..without_overlap(4)(random) });
        world.nature.refuses_abort = 100;
        world.run(100);
        let pid = world.any().expect("all serve");
        let hung = world.alive(pid);
        hung.hung = true;
        let (slot, dumped_at) = (hung.slot, hung.due + TIMEOUT);
        world.run(dumped_at + 3_000 - world.now);
        world.run(FLOOR + 1);
        assert!(!world.processes.contains_key(&pid));
        assert_eq!(world.forks_of(slot).len(), 2, "its slot waits longer than for its end");
        world.settle(BOOT);
    });
}

#[test]
fn without_overlap_a_stop_during_a_replacement_leaves_no_connection_in_the_queues() {
    worlds(300, |seed| {
        let mut world = World::settled(seed, without_overlap(3));
        world.nature = Nature { slow_drain: 20, dies_draining: 20, ..CALM };
        for pid in world.pids() {
            world.plan_fact(0, Event::RecycleRequested { pid });
        }
        let stop_at = world.random.below(6_000);
        world.plan_fact(stop_at, Event::StopRequested { graceful: true });
        world.run_to_exit(stop_at + GRACE + 1);
    });
}

// ---- code on the disk -----------------------------------------------------------------------------------------------

/// Returns a settled world whose workers load their code from the disk, and whose last change was refused. The code on
/// the disk is bad now. `kind` chooses how the change was refused.
fn refused(seed: u64, kind: u64, overlap: bool) -> World {
    let max_rss = if kind == 1 { 200 } else { 0 };
    let shape = |random: &mut Random| Policy { code_on_disk: true, overlap, max_rss, ..up_to(6)(random) };
    let mut world = World::settled(seed, shape);
    match kind {
        0 => world.nature.bad_generation = 100,
        1 => world.nature.refused_settings = 100,
        _ => world.nature.refused_program = 100,
    }
    let asks = if kind < 2 { world.asks_to_reload() } else { world.asks_to_upgrade() };
    world.plan(0, asks);
    world.run(1);
    while !world.callers.is_empty() {
        world.run(10);
    }
    world.nature = CALM;
    // The workers that this reload has cost are back before the code becomes bad.
    world.bad_code = false;
    world.settle(2 * GRACE + 8 * TURN);
    world.bad_code = true;
    world
}

/// Every worker has reached all its limits, and all of them serve on. The next reload of good code replaces them.
#[test]
fn after_a_refused_change_nothing_is_recycled_until_a_reload_succeeds() {
    worlds(300, |seed| {
        let mut world = refused(seed, seed % 3, true);
        let old = world.pids();
        for &pid in &old {
            world.plan_fact(0, Event::RecycleRequested { pid });
        }
        // Where `max_rss` is set, the resident sizes also pass this limit in this time.
        world.run_checking(60_000, |world| {
            let still = |pid: &Pid| world.master.worker(*pid).is_some_and(Worker::serving);
            assert!(old.iter().all(still), "a worker was recycled");
        });
        let held = world.notes_of(|note| matches!(note, Note::RecycleAsked { held: true, .. }));
        assert_eq!(held, old.len(), "each worker is noted once");
        let asks = world.asks_to_reload();
        world.plan(0, asks);
        world.run(1);
        world.settle(GRACE + 20 * BOOT);
        assert!(matches!(world.replies.last(), Some(CommandReply::Reloaded { .. })), "{:?}", world.replies);
        assert!(!world.bad_code && old.iter().all(|pid| !world.processes.contains_key(pid)));
        let pid = world.any().expect("all serve");
        world.plan_fact(0, Event::RecycleRequested { pid });
        world.run(1);
        world.settle(GRACE + BOOT);
        assert!(!world.processes.contains_key(&pid), "recycling stays off");
    });
}

#[test]
fn after_a_refused_change_a_death_is_noted_and_followed_by_tries() {
    worlds(300, |seed| {
        let mut world = refused(seed, seed % 3, true);
        let old = world.pids();
        let pid = world.any().expect("all serve");
        let slot = world.processes[&pid].slot;
        let event = if seed % 2 == 0 { Event::Exited { pid } } else { Event::DrainBegun { pid } };
        world.plan_fact(0, event);
        world.run_checking(120_000, |world| {
            let still = |other: &Pid| *other == pid || world.master.worker(*other).is_some_and(Worker::serving);
            assert!(old.iter().all(still), "a worker of another slot was touched");
        });
        let of_slot = |note: &Note| matches!(note, Note::LoadsRefusedCode { slot: of, .. } if *of == slot);
        assert_eq!(world.notes_of(of_slot), 1);
        assert_eq!(world.notes_of(|note| matches!(note, Note::LoadsRefusedCode { .. })), 1);
        let tries = world.forks_of(slot).len();
        assert!(tries > 6, "{tries} forks");
        world.bad_code = false;
        world.run(30_000);
        assert_eq!(world.serving(), world.master.target(), "the slot is not tried any more");
    });
}

#[test]
fn after_a_refused_change_a_scale_up_is_taken_back_if_its_workers_fail() {
    worlds(300, |seed| {
        let mut world = refused(seed, seed % 3, seed % 2 == 0);
        let (before, old) = (world.master.target(), world.pids());
        world.replies.clear();
        let by_signal = world.random.chance(30);
        let by = 1 + world.random.below(3) as i32;
        let more = match by_signal {
            true => Ahead::Fact(Event::ScaleRequested { scaling: Scaling::By(by), caller: None }),
            false => world.asks(Scaling::By(by)),
        };
        world.plan(0, more);
        world.run(1);
        assert_eq!(world.master.target(), before + by.unsigned_abs());
        world.run(BOOT);
        assert_eq!(world.master.target(), before);
        if !by_signal {
            let [CommandReply::ScaleRefused { target, .. }] = world.replies[..] else { panic!("{:?}", world.replies) };
            assert_eq!(target, before);
        }
        assert_eq!(world.notes_of(|note| matches!(note, Note::ScaleRefused { .. })), 1);
        world.settle(GRACE);
        assert_eq!(world.pids(), old, "the workers from before were touched");

        world.bad_code = false;
        let more = world.asks(Scaling::By(1));
        world.plan(0, more);
        world.run(BOOT);
        assert_eq!(world.replies.last(), Some(&CommandReply::Serving { target: before + 1 }));
        // From now on a failure in the added slot is a failure like any other.
        world.bad_code = true;
        let added = world.master.workers().iter().find(|w| w.slot == SlotId(before)).and_then(|w| w.pid);
        world.plan_fact(0, Event::Exited { pid: added.expect("it serves") });
        world.run(10_000);
        assert_eq!(world.master.target(), before + 1);
    });
}

/// A reload asks for fewer workers, and is rolled back after a request for more of them. That request is over then, and
/// a failure in a slot from before the reload takes nothing back.
#[test]
fn a_scale_up_during_a_trial_is_forgotten_by_its_rollback() {
    let mut met = 0;
    for seed in 0..300 {
        let mut world = refused(seed, 0, true);
        let before = world.master.target();
        let last = world.master.workers().iter().find(|w| w.slot == SlotId(before - 1)).and_then(|w| w.pid);
        world.bad_code = false;
        world.nature.bad_generation = 100;
        let asks = world.asks_to_reload();
        world.plan(0, asks);
        world.run(1);
        let fewer = world.master.target();
        if fewer >= before {
            continue;
        }
        met += 1;
        let more = world.asks(Scaling::By(1));
        world.plan(0, more);
        world.plan_fact(0, Event::Exited { pid: last.expect("it serves") });
        world.run(1);
        assert_eq!(world.master.target(), fewer + 1);
        while !world.callers.is_empty() {
            world.run(10);
        }
        world.nature = CALM;
        world.run(10_000);
        assert_eq!(world.master.target(), before, "seed {seed}");
    }
    assert!(met > 10, "only {met} reloads asked for fewer workers");
}

/// The refusal outlives the exec of another program, in both directions.
#[test]
fn a_refused_reload_is_remembered_by_the_next_program_and_a_failed_upgrade_by_the_old_one() {
    worlds(200, |seed| {
        let mut world = refused(seed, 0, true);
        world.bad_code = false;
        if seed % 2 == 0 {
            world.nature.bad_take_over = 100;
        } else {
            world.nature.bad_generation = 100;
        }
        let asks = world.asks_to_upgrade();
        world.plan(0, asks);
        world.run(1);
        while !world.callers.is_empty() {
            world.run(10);
        }
        world.nature = CALM;
        assert_eq!(world.replies.last(), Some(&CommandReply::UpgradeFailed));
        assert!(world.master.holds());
        let asks = world.asks_to_upgrade();
        world.plan(0, asks);
        world.run(1);
        world.settle(GRACE + 20 * BOOT);
        assert!(matches!(world.replies.last(), Some(CommandReply::Upgraded { .. })), "{:?}", world.replies);
        assert!(!world.master.holds());
    });
}

/// A service whose code is in the program recycles as always.
#[test]
fn a_refused_reload_changes_nothing_for_code_in_the_program() {
    worlds(50, |seed| {
        let mut world = World::settled(seed, up_to(4));
        world.nature.refused_settings = 100;
        world.plan_fact(0, Event::ReloadRequested { caller: None });
        world.run(1);
        let pid = world.any().expect("all serve");
        world.plan_fact(0, Event::RecycleRequested { pid });
        world.run(1);
        world.settle(GRACE + BOOT);
        assert!(!world.processes.contains_key(&pid));
    });
}

// ---- replies --------------------------------------------------------------------------------------------------------

#[test]
fn a_caller_that_scales_gets_one_reply() {
    worlds(200, |seed| {
        let mut world = World::settled(seed, up_to(4));
        let (target, most) = (world.master.target(), world.policy.workers_max);
        for (scale, reply) in [
            (Scaling::To(target), CommandReply::Serving { target }),
            (Scaling::To(0), CommandReply::OutOfRange { asked: 0, most }),
            (Scaling::By(-9), CommandReply::OutOfRange { asked: i64::from(target) - 9, most }),
            (Scaling::To(most + 1), CommandReply::OutOfRange { asked: i64::from(most) + 1, most }),
        ] {
            let asks = world.asks(scale);
            world.plan(0, asks);
            world.run(0);
            assert_eq!(world.replies.pop(), Some(reply), "{scale:?}");
            assert_eq!(world.master.target(), target);
        }
        let more = target + 1 + world.random.below(u64::from(most - target)) as u32;
        let asks = world.asks(Scaling::To(more));
        world.plan(0, asks);
        if seed % 3 == 0 {
            let asks = world.asks(Scaling::By(-1));
            world.plan(1, asks);
            world.run(1);
            assert_eq!(world.replies.remove(0), CommandReply::Superseded { target: more - 1 });
            world.run(BOOT);
            assert_eq!(world.replies, [CommandReply::Serving { target: more - 1 }]);
        } else if seed % 3 == 1 {
            world.nature = Nature { crash_at_boot: 100, spared: target, ..CALM };
            world.run(BOOT);
            assert!(matches!(world.replies[..], [CommandReply::BootFailed { target, .. }] if target == more));
        } else {
            world.run(1);
            world.plan_fact(0, Event::StopRequested { graceful: true });
            world.run(0);
            assert_eq!(world.replies, [CommandReply::Stopping]);
            let asks = world.asks(Scaling::By(1));
            world.plan(0, asks);
            world.run(0);
            assert_eq!(world.replies, [CommandReply::Stopping; 2]);
        }
        assert_eq!(world.callers, BTreeSet::new());
    });
}

// ---- dying ----------------------------------------------------------------------------------------------------------

/// Returns how long a slot waits after each of its young deaths in a row, beginning with the first death.
fn waits() -> impl Iterator<Item = u64> {
    let doubling = std::iter::successors(Some(500), |wait| Some((wait * 2).min(30_000)));
    std::iter::once(0).chain(doubling)
}

#[test]
fn a_slot_whose_workers_die_young_waits_longer_each_time() {
    let kinds = [
        Nature { crash: 100, ..CALM },
        Nature { crash_at_boot: 100, ..CALM },
        Nature { never_ready: 100, ..CALM },
        Nature { hang: 100, ..CALM },
        Nature { fork_fails: 100, ..CALM },
    ];
    worlds(50, |seed| {
        let workers = 2 + (seed % 4) as u32;
        // At most half of the slots may wait after a fault before they fork again. So faults happen in at most half of
        // the slots, and the other slots are spared.
        let spared = workers - workers / 2;
        let nature = Nature { spared, ..kinds[seed as usize % kinds.len()] };
        let mut world = World::new(seed, nature, |_| policy(workers));
        world.run(240_000);
        assert_eq!(world.exited, None);
        for slot in (spared..workers).map(SlotId) {
            let (failures, forks) = (world.failures_of(slot), world.forks_of(slot));
            assert!(failures.len() > 7, "the longest wait was not reached");
            for ((failed, pair), wait) in failures.iter().zip(forks.windows(2)).zip(waits()) {
                let due = (failed + wait).max(pair[0] + FLOOR);
                assert_eq!(pair[1], due, "{slot:?} failed at {failed}");
            }
        }
        assert_eq!(world.forks_of(SlotId(0)).len(), 1, "the crash loop of one slot has changed another");
    });
}

/// A client repeats one bad request. Some workers answer other requests before the bad request kills them, and some do
/// not.
#[test]
fn many_crashes_never_leave_the_service_without_a_worker() {
    worlds(200, |seed| {
        let mut world = World::settled(seed, up_to(6));
        let (answers, crash_at_boot) = (world.random.below(101), world.random.below(60));
        let crash = world.random.below(101);
        world.nature = Nature { answers, crash, crash_at_boot, ..CALM };
        for _ in 0..200 {
            let after = world.random.below(600);
            world.run(after);
            if let Some(pid) = world.any() {
                world.plan_fact(0, Event::Exited { pid });
            }
        }
        assert_eq!(world.exited, None);
        world.nature = CALM;
        // First let the crashes happen that the world planned before it became calm.
        world.run(3_000);
        world.settle(30_000 + FLOOR + BOOT);
    });
}

#[test]
fn a_worker_that_answered_is_replaced_at_once_however_often_it_dies() {
    worlds(100, |seed| {
        let mut world = World::settled(seed, up_to(4));
        for _ in 0..20 {
            world.run(FLOOR);
            let pid = world.any().expect("all serve");
            let slot = world.processes[&pid].slot;
            for event in [Event::Answered { pid }, Event::Exited { pid }] {
                world.plan_fact(0, event);
                world.run(0);
            }
            assert_eq!(world.forks.last(), Some(&(world.now, slot)));
            world.settle(BOOT);
        }
        assert_eq!(world.notes_of(|note| matches!(note, Note::BackedOff { .. })), 0);
    });
}

#[test]
fn a_slot_is_never_forked_faster_than_the_floor() {
    worlds(100, |seed| {
        let nature = Nature { answers: 100, crash: 100, fork_fails: 50, ..CALM };
        let mut world = World::new(seed, nature, up_to(4));
        world.run(20_000);
        for slot in (0..world.policy.workers).map(SlotId) {
            let forks = world.forks_of(slot);
            assert!(forks.windows(2).all(|pair| pair[1] >= pair[0] + FLOOR), "{slot:?} spins: {forks:?}");
        }
    });
}

#[test]
fn calm_time_resets_a_crash_loop() {
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
fn eight_workers_that_die_at_once_are_replaced_at_once() {
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
fn a_hung_worker_writes_what_it_does_before_it_is_aborted_and_its_slot_does_not_wait() {
    const DUMP: u64 = 1_000;
    worlds(200, |seed| {
        let mut world = World::settled(seed, |random| Policy { dump_ms: DUMP, ..up_to(6)(random) });
        world.nature.refuses_abort = 100;
        world.run(100);
        let pid = world.any().expect("all serve");
        let hung = world.alive(pid);
        hung.hung = true;
        let (slot, dumped_at) = (hung.slot, hung.due + TIMEOUT);
        world.run(dumped_at - world.now);
        assert_eq!((&world.dumps[..], &world.aborts[..]), (&[(dumped_at, pid)][..], &[][..]));
        assert_eq!(world.forks.last(), Some(&(dumped_at, slot)), "its slot waits");
        world.run(DUMP - 1);
        assert_eq!(world.aborts, []);
        world.run(1);
        if !world.processes.contains_key(&pid) {
            return assert_eq!(world.aborts, [], "the signal has ended it, and it is aborted");
        }
        assert_eq!(world.aborts, [(dumped_at + DUMP, pid)]);
        world.run(2_000);
        assert_eq!(world.kills, [(dumped_at + DUMP + 2_000, pid, KillCause::Hung)]);
        world.settle(1);
    });
}

#[test]
fn a_late_worker_writes_what_it_does_before_it_is_killed_and_its_slot_does_not_wait() {
    const DUMP: u64 = 1_000;
    worlds(200, |seed| {
        let mut world = World::settled(seed, |random| Policy { dump_ms: DUMP, ..policy(2 + random.below(4) as u32) });
        let pid = world.any().expect("all serve");
        world.nature.never_ready = 100;
        world.plan_fact(0, Event::Exited { pid });
        world.run(BOOT);
        let &(forked_at, slot) = world.forks.last().expect("the slot is filled");
        world.nature.never_ready = 0;
        world.run(forked_at + BOOT_TIMEOUT - world.now);
        let &(dumped_at, late) = world.dumps.last().expect("the late worker was asked");
        assert_eq!((dumped_at, world.alive(late).slot), (forked_at + BOOT_TIMEOUT, slot));
        world.settle(DUMP + 4 * BOOT);
        world.run(DUMP);
        let ended = (dumped_at + DUMP, late, KillCause::BootTimeout);
        assert!(world.kills == [ended] || world.kills.is_empty(), "{:?}, not {ended:?}", world.kills);

        world.nature.never_drains = 100;
        world.kills.clear();
        world.dumps.clear();
        let begun = world.now;
        world.plan_fact(0, Event::ScaleRequested { scaling: Scaling::By(-1), caller: None });
        world.run(GRACE + DUMP);
        let &[(dumped_at, late)] = &world.dumps[..] else { panic!("{:?}", world.dumps) };
        assert_eq!(dumped_at, begun + GRACE);
        let ended = (dumped_at + DUMP, late, KillCause::DrainTimeout);
        assert!(world.kills == [ended] || world.kills.is_empty(), "{:?}, not {ended:?}", world.kills);
    });
}

/// A stop shortens everything that is under way, so the master aborts the hung worker at once.
#[test]
fn a_stop_does_not_wait_for_what_a_hung_worker_writes() {
    worlds(200, |seed| {
        let mut world = World::settled(seed, |random| Policy { dump_ms: 1_000, ..up_to(4)(random) });
        world.nature.refuses_abort = 100;
        let pid = world.any().expect("all serve");
        world.alive(pid).hung = true;
        let (after, graceful) = (world.random.below(900), world.random.chance(50));
        let stop_at = world.processes[&pid].due + TIMEOUT + after;
        world.run(stop_at - world.now);
        let ended = !world.processes.contains_key(&pid);
        world.plan_fact(0, Event::StopRequested { graceful });
        world.run_to_exit(GRACE + 1);
        let aborted: Vec<u64> = world.aborts.iter().map(|&(at, _)| at).collect();
        assert!(aborted == [stop_at] || (ended && aborted.is_empty()), "{aborted:?}, not {stop_at}");
    });
}

#[test]
fn a_stall_is_forgiven_once_to_hung_workers_and_always_to_workers_with_heartbeats() {
    worlds(200, |seed| {
        let mut world = World::settled(seed, up_to(6));
        world.run(100);
        let pid = world.any().expect("all serve");
        world.alive(pid).hung = true;
        let thaw = |world: &mut World| {
            let long = 60_000 + world.random.below(600_000);
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
            let between = MOMENT + world.random.below(TIMEOUT - MOMENT);
            world.run(between);
            assert_eq!(world.aborts, []);
            let thawed = thaw(&mut world);
            world.run(0);
            assert_eq!(world.aborts, [(thawed, pid)]);
        }
        world.settle(2_000 + BOOT);
        thaw(&mut world);
        world.run(20_000);
        assert_eq!(world.aborts.len(), 1, "a worker that sends heartbeats was aborted");
        // After the last stall, all workers may have sent a heartbeat before the master woke. In this case the master
        // notes no stall.
        let told = world.notes_of(|note| matches!(note, Note::Stalled { .. }));
        assert!((1..=2).contains(&(told - usize::from(seed % 2 == 1))), "told {told} times");
    });
}

// ---- silence --------------------------------------------------------------------------------------------------------

#[test]
fn silent_workers_get_no_new_connections_until_they_send_heartbeats_again() {
    worlds(200, |seed| {
        let mut world = World::settled(seed, |random| policy(1 + random.below(6) as u32));
        world.nature.late_heartbeat = 100;
        let all = world.live();
        let mut around: BTreeSet<SlotId> = BTreeSet::new();
        for _ in 0..600 {
            world.run(50);
            if world.steered != all {
                around.extend(all.iter().filter(|slot| !world.steered.contains(slot)));
            }
        }
        assert_eq!(around.is_empty(), all.len() == 1, "{around:?} of {all:?}");
        world.nature = CALM;
        world.run(PROMISE + TIMEOUT);
        assert_eq!((world.steered.clone(), world.aborts.len()), (all, 0));
    });
}

#[test]
fn full_workers_get_no_new_connections_unless_all_are_full_and_none_is_killed() {
    worlds(200, |seed| {
        let mut world = World::settled(seed, up_to(6));
        let all = world.live();
        let mut around: BTreeSet<SlotId> = BTreeSet::new();
        for _ in 0..300 {
            let at = world.random.below(50);
            world.plan(at, Ahead::CrowdAny);
            world.run(50);
            around.extend(all.iter().filter(|slot| !world.steered.contains(slot)));
        }
        assert_eq!(around.is_empty(), all.len() == 1, "{around:?} of {all:?}");
        world.run(PROMISE + TIMEOUT);
        assert_eq!((world.aborts.len(), world.kills.len()), (0, 0));
    });
}

#[test]
fn a_storm_with_full_and_silent_workers_settles() {
    worlds(200, |seed| {
        let mut world = World::new(seed, STORM, up_to(6));
        for _ in 0..100 {
            let at = world.random.below(40_000);
            world.plan(at, Ahead::CrowdAny);
        }
        world.run(40_000);
        if world.exited.is_none() && world.ever_ready {
            world.nature = CALM;
            world.settle(200_000);
        }
    });
}

#[test]
fn a_master_with_healthy_workers_sleeps_until_one_could_hang() {
    worlds(100, |seed| {
        let mut world = World::settled(seed, up_to(6));
        world.nature.late_heartbeat = 50;
        world.run(30_000);
        world.nature = CALM;
        world.run(PROMISE + TIMEOUT);
        let hangs = world.master.workers().iter().filter_map(|w| match w.phase {
            Phase::Serving { silent_until } => Some(silent_until),
            _ => None,
        });
        assert_eq!(world.master.deadline(), hangs.min());
    });
}

// ---- booting --------------------------------------------------------------------------------------------------------

#[test]
fn a_first_boot_that_fails_three_times_in_every_slot_is_given_up() {
    worlds(200, |seed| {
        let nature = match seed % 3 {
            0 => Nature { fork_fails: 30, never_ready: 100, ..CALM },
            1 => Nature { crash_at_boot: 100, ..CALM },
            _ => Nature { crash_at_boot: 80, never_ready: 100, ..CALM },
        };
        // The slow boot lasts longer than the calm time of the backoff.
        let boot_timeout_ms = if seed % 2 == 0 { BOOT_TIMEOUT } else { 60_000 };
        let mut world = World::new(seed, nature, |random| Policy { boot_timeout_ms, ..up_to(4)(random) });
        world.run(4 * boot_timeout_ms);
        assert_eq!(world.exited, Some(ExitReason::NoWorkerReady));
        let given_up = world.notes.iter().find(|(_, note)| matches!(note, Note::BootGivenUp { .. }));
        let (at, _) = given_up.expect("a reason is given");
        let (last, slot) = *world.failures.last().expect("all failed");
        assert_eq!(last, *at, "the master continued after the last failure");
        let counts = (0..world.policy.workers).map(|slot| world.failures_of(SlotId(slot)).len());
        assert_eq!(counts.min(), Some(3));
        assert_eq!(world.failures_of(slot).len(), 3, "it was not the third failure of a slot that decided");
        // No worker has been ready yet, so no wait is cut short.
        for slot in (0..world.policy.workers).map(SlotId) {
            let forks = world.forks_of(slot);
            for ((failed, wait), next) in world.failures_of(slot).into_iter().zip(waits()).zip(&forks[1..]) {
                assert!(*next >= failed + wait, "{slot:?} failed at {failed} and did not wait");
            }
        }
    });
}

#[test]
fn one_slot_that_can_serve_keeps_the_service_alive() {
    worlds(50, |seed| {
        let nature = Nature { crash_at_boot: 100, spared: 1, ..CALM };
        let mut world = World::new(seed, nature, |random| policy(2 + random.below(3) as u32));
        world.run(600_000);
        assert_eq!(world.exited, None);
        assert_eq!(world.live(), [SlotId(0)]);
        let late = world.forks.iter().filter(|(at, _)| *at > 300_000).count();
        // If more slots fail than may wait, their waits are cut short. While one slot serves, all failing slots
        // together fork once a second.
        let expected = if world.policy.workers == 2 { 8..=10 } else { 200..=300 };
        assert!(expected.contains(&late), "{late} forks in five minutes");
    });
}

// ---- stopping -------------------------------------------------------------------------------------------------------

#[test]
fn a_stop_ends_at_its_deadline_and_signals_only_make_it_faster() {
    worlds(500, |seed| {
        let mut world = World::settled(seed, |random| {
            let shutdown_delay_ms = random.below(3) * 2_000;
            Policy { shutdown_delay_ms, ..up_to(4)(random) }
        });
        world.nature = Nature { never_drains: 100, refuses_abort: 100, ..CALM };
        if world.random.chance(50) {
            world.run(100);
            let hung = world.any().expect("all serve");
            world.alive(hung).hung = true;
            let aborted_in = world.processes[&hung].due + TIMEOUT - world.now;
            world.run(aborted_in);
        }
        let patience = [world.policy.shutdown_delay_ms + GRACE, 2_000, 0, 0];
        let first_is_quick = usize::from(world.random.chance(50));
        let mut patience = patience[first_is_quick..].iter();
        let (mut at, mut end) = (0, u64::MAX);
        let mut before: Option<(u64, bool)> = None;
        loop {
            let graceful = if before.is_none() { first_is_quick == 0 } else { world.random.chance(50) };
            world.plan_fact(at, Event::StopRequested { graceful });
            let same = |(then, was_graceful): (u64, bool)| at < then + 1_000 && (graceful || !was_graceful);
            if !before.is_some_and(same) {
                before = Some((at, graceful));
                let Some(patience) = patience.next() else { break };
                end = end.min(at + patience);
            }
            let most = if world.random.chance(50) { 1_500 } else { GRACE };
            at += world.random.below(most);
            if at > end || world.random.chance(20) {
                break;
            }
        }
        assert_eq!(world.run_to_exit(end + 1), end + 1);
    });
}

/// A TERM to the process group, or to a part of it, may reach the workers before or after the master. Half of the
/// workers that drain die before they have drained.
#[test]
fn a_stop_that_reaches_the_workers_too_leaves_no_connection_in_the_queues() {
    worlds(500, |seed| {
        let mut world = World::settled(seed, |random| {
            let shutdown_delay_ms = random.below(2) * 2_000;
            Policy { shutdown_delay_ms, ..up_to(4)(random) }
        });
        world.nature = Nature { dies_draining: 50, crash_at_boot: 10, ..CALM };
        let workers = world.pids().len() as u64;
        let stop_at = world.random.below(600);
        world.plan_fact(stop_at, Event::StopRequested { graceful: true });
        for _ in 0..=world.random.below(workers) {
            let at = world.random.below(2 * stop_at + 1);
            world.plan(at, Ahead::TermAny);
        }
        world.run_to_exit(stop_at + world.policy.shutdown_delay_ms + GRACE + 1);
    });
}

#[test]
fn a_stop_before_any_worker_was_ready_does_not_wait() {
    worlds(50, |seed| {
        let mut world = World::new(seed, CALM, up_to(4));
        world.plan_fact(0, Event::StopRequested { graceful: true });
        world.run_to_exit(2_000);
        assert_eq!(world.forks.len() as u32, world.policy.workers);
    });
}

#[test]
fn during_a_shutdown_delay_workers_serve_as_before_and_know_of_the_stop() {
    const DELAY: u64 = 5_000;
    worlds(200, |seed| {
        let mut world = World::settled(seed, |random| Policy { shutdown_delay_ms: DELAY, ..up_to(4)(random) });
        let all = world.pids().len() as u32;
        world.plan_fact(0, Event::StopRequested { graceful: true });
        world.run(0);
        assert!(world.processes.values().all(|p| p.announced), "{:?}", world.processes);
        let crashed = world.any().expect("all serve");
        let crash_in = world.random.below(DELAY - BOOT);
        world.plan_fact(crash_in, Event::Exited { pid: crashed });
        world.run_checking(DELAY - 1, |world| assert!(world.serving() >= all - 1));
        assert_eq!(world.serving(), all, "the worker that crashed was not replaced");
        assert_eq!(world.drains, []);
        let last = world.pids();
        world.run(1);
        assert_eq!(world.drains.iter().map(|&(_, pid)| pid).collect::<Vec<_>>(), last);
        world.run_to_exit(GRACE + 1);
    });
}
