//! Proves that no request is lost. Clients that never retry use a service while a storm of reloads, kills and faults
//! disturbs this service. The report then lists every lost request.
//!
//! Owns: one run from the start to the verdict. `tests/zero_loss.rs` does short runs, `make chaos` does long runs.
#![allow(dead_code, unreachable_pub, unused_imports, reason = "each program that proves something uses a part")]
#![allow(clippy::disallowed_methods, reason = "the bans are the master's: a test may read clocks and start threads")]

pub mod nginx;
mod storm;
mod swarm;

use std::{
    collections::BTreeMap,
    fmt::{self, Write},
    time::{Duration, Instant},
};

use storm::Storm;
pub use storm::{Deed, Record, change_visibly};
use swarm::{LONG_WAIT, Loss, Slow};
pub use swarm::{Manner, Outcome, Swarm, Target};

use crate::common::{Canary, Failure, Launch, PATIENCE, Supervisor, events, now};

/// The kinds of socket on which the service can listen during the storm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bind {
    /// One SO_REUSEPORT listener for each worker.
    Own,
    /// One TCP listener that all workers share.
    Shared,
    Unix,
    /// One socket on `[::]`, which the clients reach over IPv4 and IPv6 in turn.
    Dual,
}

impl Bind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Own => "one listener a worker",
            Self::Shared => "one listener for all (reuse_port = false)",
            Self::Unix => "unix socket",
            Self::Dual => "[::], IPv4 and IPv6",
        }
    }

    fn launch(self, launch: Launch) -> Launch {
        match self {
            Self::Own => launch,
            Self::Shared => launch.set("server.reuse_port", "false"),
            Self::Unix => launch.set("server.bind", r#"["unix:{dir}/service.sock"]"#),
            Self::Dual => launch.set("server.bind", r#"["[::]:0"]"#),
        }
    }

    fn target(self, supervisor: &Supervisor) -> Target {
        match self {
            Self::Own | Self::Shared => Target::Tcp(vec![supervisor.address()]),
            Self::Unix => Target::Unix(supervisor.path("service.sock")),
            Self::Dual => {
                let port = supervisor.address().port();
                Target::Tcp(vec![([127, 0, 0, 1], port).into(), ([0, 0, 0, 0, 0, 0, 0, 1], port).into()])
            }
        }
    }
}

/// The plan of one run: the kind of socket, the storm's actions, the clients, and the length.
#[derive(Clone, Debug)]
pub struct Plan {
    pub bind: Bind,
    pub deck: Vec<Deed>,
    pub manners: Vec<Manner>,
    pub workers: usize,
    /// The number of requests (roughly) after which a worker is recycled.
    pub max_requests: u64,
    pub length: Duration,
    /// The mean time between two actions of the storm, such as a reload or a kill.
    pub pace: Duration,
    pub seed: u64,
}

impl Plan {
    /// Returns a plan with every action that must not cost a request, and with every kind of client.
    pub fn without_kills(bind: Bind, length: Duration, seed: u64) -> Self {
        Self {
            bind,
            deck: vec![Deed::Reload, Deed::Upgrade, Deed::More, Deed::Fewer, Deed::Drain, Deed::Freeze, Deed::Block],
            manners: vec![
                Manner::KeepAlive { clients: 8, think_ms: 0 },
                Manner::KeepAlive { clients: 48, think_ms: 100 },
                Manner::PerRequest { clients: 4 },
                Manner::Arrivals { per_second: 100, silent_ms: 0 },
                Manner::Arrivals { per_second: 30, silent_ms: 900 },
            ],
            workers: 4,
            max_requests: 500,
            length,
            pace: Duration::from_millis(200),
            seed,
        }
    }

    pub fn with_kills(bind: Bind, length: Duration, seed: u64) -> Self {
        let mut plan = Self::without_kills(bind, length, seed);
        plan.deck.push(Deed::Kill);
        plan
    }

    /// Starts the service, carries out the plan, and stops the service again. Returns the report.
    pub fn run(&self, launch: Launch) -> Report {
        let launch = self.bind.launch(launch);
        let mut supervisor = launch
            .set("workers.count", &self.workers.to_string())
            .set("workers.max_requests", &self.max_requests.to_string())
            .set("workers.max_requests_jitter", &(self.max_requests / 2).to_string())
            .set("workers.timeout", r#""5s""#)
            .set("http.metrics_path", r#""/metrics-0""#)
            .serving(self.workers);
        let (canary, began) = (Canary::start(), now());
        let swarm = Swarm::start(self.bind.target(&supervisor), "/debug/connections", &self.manners, self.seed);
        let storm = Storm::new(&supervisor, &swarm, self.workers, self.seed);
        let record = storm.rage(&self.deck, self.length, self.pace);
        // On a busy machine the service reloads and upgrades late, so the load continues until the service has done
        // both. In a plan with kills, the load does not wait for this. Each kill can undo a reload or an upgrade, and
        // the wait might never end.
        if !self.deck.contains(&Deed::Kill) {
            for event in [events::RELOADED, events::UPGRADED] {
                supervisor.wait_log(event, 1, PATIENCE);
            }
        }
        supervisor.wait_serving_at_least(record.target);
        let outcome = swarm.finish();
        let (took, stall) = (began.elapsed(), canary.longest().max(outcome.stall));
        supervisor.stop();
        Report { plan: self.clone(), record, outcome, log: supervisor.log().0, began, took, stall }
    }
}

/// The result of one run.
#[derive(Debug)]
pub struct Report {
    plan: Plan,
    pub record: Record,
    pub outcome: Outcome,
    log: String,
    began: Instant,
    took: Duration,
    /// The longest time for which the machine, or the clients' own thread, stood still.
    stall: Duration,
}

impl Report {
    pub fn requests(&self) -> u64 {
        self.outcome.requests()
    }

    /// Returns one sentence for each broken promise; the list is empty if all were kept.
    pub fn broken(&self) -> Vec<String> {
        let mut broken = Vec::new();
        let losses = self.outcome.losses();
        if self.record.victims.is_empty() {
            if !losses.is_empty() {
                broken.push(format!("{} of {} requests were lost", losses.len(), self.requests()));
            }
        } else {
            let accepted: u64 = self.record.victims.iter().map(|victim| victim.connections).sum();
            if losses.len() as u64 > accepted {
                broken.push(format!(
                    "{} requests were lost, the killed workers held {accepted} connections",
                    losses.len()
                ));
            }
            let inexcusable = losses.iter().filter(|loss| !self.died_with_its_worker(loss)).count();
            if inexcusable > 0 {
                broken.push(format!("{inexcusable} requests were lost that no killed worker had accepted"));
            }
        }
        let late: Vec<_> = self.outcome.slow().into_iter().filter(|slow| !self.is_excused(slow)).collect();
        if let Some(longest) = late.iter().map(Slow::wait).max() {
            let after = late.iter().map(|slow| (slow.from - self.began).as_secs_f64());
            let after: Vec<_> = after.take(5).map(|at| format!("{at:.1}")).collect();
            broken.push(format!(
                "{} requests waited more than {LONG_WAIT:?} for a worker that did not hang, up to {longest:?} (the \
                 longest stall of the machine was {:?}); the first came {} s into the run",
                late.len(),
                self.stall,
                after.join(", ")
            ));
        }
        let mut never =
            vec![events::HUNG, events::KILLED, events::BOOT_FAILED, events::RELOAD_REFUSED, events::UPGRADE_REFUSED];
        if self.record.victims.is_empty() {
            // Without kills, no rollback may happen. With kills a rollback may happen, because a new generation fails
            // its trial if one of its workers is killed.
            never.extend([events::RELOAD_ROLLED_BACK, events::UPGRADE_ROLLED_BACK]);
        }
        for event in never {
            let count = self.logged(event);
            if count > 0 {
                broken.push(format!("the log has {count} lines of {event}"));
            }
        }
        broken
    }

    fn died_with_its_worker(&self, loss: &Loss) -> bool {
        let how = match loss.failure {
            Failure::ResetBeforeFirstByte | Failure::EofBeforeResponse | Failure::CutInResponse => true,
            Failure::Refused | Failure::BadStatus(_) | Failure::Timeout => false,
        };
        how && loss.pid.is_none_or(|pid| self.record.victims.iter().any(|victim| victim.pid == pid))
    }

    /// Returns true if the service is not at fault for the wait of this request. Either the worker of the request hung
    /// at that time, or the wait is short enough without the longest stall of the machine.
    fn is_excused(&self, slow: &Slow) -> bool {
        let hangs = self.record.hangs.iter().chain(&self.outcome.blocks);
        let mut own = hangs.filter(|hang| Some(hang.pid) == slow.pid);
        own.any(|hang| hang.from < slow.to && slow.from < hang.to) || slow.wait() <= LONG_WAIT + self.stall
    }

    fn logged(&self, event: &str) -> usize {
        crate::common::Log(self.log.clone()).count(event)
    }

    /// Returns each action of the plan, the recycles and the takeovers, each with the number of times that it happened.
    pub fn deeds(&self) -> Vec<(&'static str, usize)> {
        let mut done: Vec<_> = self.plan.deck.iter().map(|&deed| (deed.name(), self.record.count(deed))).collect();
        done.push(("recycle (max_requests)", self.logged(events::RECYCLE_REQUESTED)));
        done.push(("a new generation took over", self.logged(events::RELOADED)));
        done.push(("a new program took over", self.logged(events::UPGRADED)));
        done
    }

    pub fn log(&self) -> &str {
        &self.log
    }

    /// Lists the first five losses, each with the last actions before it. A search for the cause should start there.
    pub fn leads(&self) -> String {
        let mut text = String::new();
        for loss in self.outcome.losses().iter().take(5) {
            let since = |at: Instant| at.saturating_duration_since(self.began).as_secs_f64();
            _ = writeln!(text, "  lost at {:.3} s: {} (worker {:?}), after", since(loss.at), loss.failure, loss.pid);
            let before = self.record.deeds.iter().rev().filter(|(at, ..)| *at <= loss.at).take(4);
            for (at, deed, whom) in before {
                _ = writeln!(text, "    {:.3} s {} {}", since(*at), deed.name(), whom.map_or(0, |pid| pid));
            }
        }
        text
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let took = self.took.as_secs_f64();
        writeln!(f, "oxicorn, {}, seed {}, {took:.1} s", self.plan.bind.name(), self.plan.seed)?;
        for (name, times) in self.deeds() {
            writeln!(f, "  {name:<36}{times:>6} times")?;
        }
        let sum = |count: fn(&storm::Victim) -> u64| self.record.victims.iter().map(count).sum::<u64>();
        if !self.record.victims.is_empty() {
            let (connections, in_flight) = (sum(|victim| victim.connections), sum(|victim| victim.in_flight));
            writeln!(f, "  the killed held {connections} connections, with {in_flight} requests in flight")?;
        }
        write!(f, "{}", self.outcome)?;
        writeln!(f, "  longest stall of the machine: {:.1} ms", self.stall.as_secs_f64() * 1e3)
    }
}

impl Slow {
    fn wait(&self) -> Duration {
        (self.to - self.from).saturating_sub(self.silent)
    }
}

impl Outcome {
    pub fn requests(&self) -> u64 {
        self.scores.iter().map(|(_, score)| score.tally.ok + score.tally.lost()).sum()
    }

    pub fn losses(&self) -> Vec<Loss> {
        let mut losses: Vec<_> = self.scores.iter().flat_map(|(_, score)| &score.losses).copied().collect();
        losses.extend(&self.block_losses);
        losses.sort_by_key(|loss| loss.at);
        losses
    }

    fn slow(&self) -> Vec<Slow> {
        self.scores.iter().flat_map(|(_, score)| &score.slow).copied().collect()
    }
}

/// Prints one line for each kind of client: the number of requests, the losses by class, and the waits.
impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const CLASSES: [&str; 6] = ["refused", "reset", "no answer", "cut", "status", "timeout"];
        write!(f, "  {:<36}{:>9}{:>9}", "clients", "requests", "ok")?;
        for class in CLASSES {
            write!(f, "{class:>10}")?;
        }
        writeln!(f, "{:>10}{:>12}", "p99 ms", "longest ms")?;
        for (manner, score) in &self.scores {
            let tally = &score.tally;
            write!(f, "  {:<36}{:>9}{:>9}", manner.name(), tally.ok + tally.lost(), tally.ok)?;
            let lost = by_class(&tally.failures);
            for class in CLASSES {
                write!(f, "{:>10}", lost.get(class).copied().unwrap_or_default())?;
            }
            let ms = |wait: Duration| wait.as_secs_f64() * 1e3;
            writeln!(f, "{:>10.1}{:>12.1}", ms(tally.p99()), ms(tally.max_wait()))?;
        }
        Ok(())
    }
}

fn by_class(failures: &BTreeMap<Failure, u64>) -> BTreeMap<&'static str, u64> {
    let mut lost = BTreeMap::new();
    for (failure, count) in failures {
        let class = match failure {
            Failure::Refused => "refused",
            Failure::ResetBeforeFirstByte => "reset",
            Failure::EofBeforeResponse => "no answer",
            Failure::CutInResponse => "cut",
            Failure::BadStatus(_) => "status",
            Failure::Timeout => "timeout",
        };
        *lost.entry(class).or_default() += count;
    }
    lost
}
