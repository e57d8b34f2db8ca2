//! A storm does to a service what operators, faulty apps and accidents do. It reloads the service, stops workers for a
//! moment, kills workers, and so on. A seed determines the order of these actions.
//!
//! Owns: the storm's actions, the pauses between them, and the record of what was done and which workers were killed.
//! Refuses: to judge the result (`Report::broken` does).

use std::{
    fs,
    time::{Duration, Instant},
};

use nix::{sys::signal::kill, unistd::Pid};

use super::swarm::{Hang, Swarm};
use crate::common::{PATIENCE, Process, Random, Signal, Supervisor, eventually, now, observe_for};

/// An action that the storm can do on the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// Changes a setting and sends HUP.
    Reload,
    /// Sends USR2, so that the program replaces itself by a new copy.
    Upgrade,
    /// Sends TTIN, so that the service gets one worker more.
    More,
    /// Sends TTOU, so that the service gets one worker fewer.
    Fewer,
    /// Sends TERM to one worker, which drains and is replaced.
    Drain,
    /// Sends SIGSTOP to a worker, and SIGCONT well before `workers.timeout` is over.
    Freeze,
    /// Sends a request whose handler blocks its worker's thread.
    Block,
    /// Sends SIGKILL to a worker.
    Kill,
}

impl Deed {
    pub fn name(self) -> &'static str {
        match self {
            Self::Reload => "HUP",
            Self::Upgrade => "USR2",
            Self::More => "TTIN",
            Self::Fewer => "TTOU",
            Self::Drain => "TERM to one worker",
            Self::Freeze => "hang (SIGSTOP, SIGCONT)",
            Self::Block => "hang (/debug/block)",
            Self::Kill => "SIGKILL to a worker",
        }
    }
}

/// The range of a hang's length, in milliseconds. `workers.timeout` must be far longer, so that the master does not
/// replace the worker.
const HANG_MS: std::ops::RangeInclusive<u64> = 100..=700;

/// A worker that was killed, and the connections and requests that it had at that moment.
#[derive(Clone, Copy, Debug)]
pub struct Victim {
    pub pid: u32,
    /// The number of open connections that this worker had accepted. The kill can lose at most this number of requests.
    pub connections: u64,
    pub in_flight: u64,
}

/// What the storm has done.
#[derive(Debug, Default)]
pub struct Record {
    pub deeds: Vec<(Instant, Deed, Option<u32>)>,
    pub hangs: Vec<Hang>,
    pub victims: Vec<Victim>,
    /// The number of workers that the service should have after all scale signals so far.
    pub target: usize,
}

impl Record {
    pub fn count(&self, deed: Deed) -> usize {
        self.deeds.iter().filter(|(_, done, _)| *done == deed).count()
    }
}

/// A storm that takes its actions from a shuffled deck, so that each action is done about equally often.
pub struct Storm<'a> {
    supervisor: &'a Supervisor,
    swarm: &'a Swarm,
    random: Random,
    record: Record,
    frozen: Option<u32>,
    /// When the present hang ends. Only one worker hangs at a time. If more workers hung, there could be moments in
    /// which no worker can answer.
    hangs_until: Instant,
}

impl<'a> Storm<'a> {
    pub fn new(supervisor: &'a Supervisor, swarm: &'a Swarm, workers: usize, seed: u64) -> Self {
        let record = Record { target: workers, ..Record::default() };
        Self { supervisor, swarm, random: Random::new(seed), record, frozen: None, hangs_until: now() }
    }

    /// Does actions for the time `length`, one every `pace` on average. Continues after that if some action was done
    /// less than twice, which happens on a busy machine.
    pub fn rage(mut self, deck: &[Deed], length: Duration, pace: Duration) -> Record {
        let until = now() + length;
        let most = u64::try_from(2 * pace.as_millis()).expect("a pace in milliseconds");
        let mut left: Vec<Deed> = Vec::new();
        while now() < until || deck.iter().any(|deed| self.record.count(*deed) < 2) {
            let pause = self.random.millis(most);
            self.wait(now() + pause);
            if left.is_empty() {
                left = self.shuffled(deck);
            }
            let deed = left.pop().expect("a deck is not empty");
            if matches!(deed, Deed::Freeze | Deed::Block | Deed::Kill) {
                self.wait(self.hangs_until);
            }
            let at = now();
            let whom = self.perform(deed);
            self.record.deeds.push((at, deed, whom));
        }
        self.wait(self.hangs_until);
        std::mem::take(&mut self.record)
    }

    fn shuffled(&mut self, deck: &[Deed]) -> Vec<Deed> {
        let mut deck = deck.to_vec();
        for last in (1..deck.len()).rev() {
            let other = self.random.up_to(last as u64);
            deck.swap(last, usize::try_from(other).expect("an index"));
        }
        deck
    }

    /// Waits until the moment `until`. If a stopped worker's hang ends before that, lets the worker continue at the end
    /// of the hang.
    fn wait(&mut self, until: Instant) {
        if self.frozen.is_some() && self.hangs_until <= until {
            observe_for(self.hangs_until.saturating_duration_since(now()));
            self.thaw();
        }
        observe_for(until.saturating_duration_since(now()));
    }

    fn perform(&mut self, deed: Deed) -> Option<u32> {
        match deed {
            Deed::Reload => {
                change_visibly(self.supervisor, self.record.count(Deed::Reload) + 1);
                self.supervisor.signal(Signal::SIGHUP);
                None
            }
            Deed::Upgrade => {
                self.supervisor.signal(Signal::SIGUSR2);
                None
            }
            Deed::More => {
                self.supervisor.signal(Signal::SIGTTIN);
                self.record.target += 1;
                None
            }
            Deed::Fewer => {
                self.supervisor.signal(Signal::SIGTTOU);
                self.record.target = (self.record.target - 1).max(1);
                None
            }
            Deed::Drain => self.hit(Signal::SIGTERM),
            Deed::Freeze => {
                let pid = self.hit(Signal::SIGSTOP)?;
                let length = self.hang_length();
                (self.frozen, self.hangs_until) = (Some(pid), now() + length);
                self.record.hangs.push(Hang { pid, from: now(), to: self.hangs_until });
                Some(pid)
            }
            Deed::Block => {
                let length = self.hang_length();
                self.hangs_until = now() + length;
                self.swarm.block_a_worker(u64::try_from(length.as_millis()).expect("below a second"));
                None
            }
            Deed::Kill => self.kill(),
        }
    }

    fn hang_length(&mut self) -> Duration {
        Duration::from_millis(HANG_MS.start() + self.random.up_to(HANG_MS.end() - HANG_MS.start()))
    }

    /// Sends a signal to a random serving worker and returns its pid. Returns `None` if the worker had already exited.
    fn hit(&mut self, signal: Signal) -> Option<u32> {
        let serving = self.supervisor.serving_pids();
        let choice = self.random.up_to((serving.len() as u64).checked_sub(1)?);
        let pid = serving[usize::try_from(choice).expect("an index")];
        send(pid, signal).then_some(pid)
    }

    /// Kills a worker. Stops the worker first, because a stopped worker accepts no more connections. The connections
    /// that it has can then be counted.
    fn kill(&mut self) -> Option<u32> {
        let pid = self.hit(Signal::SIGSTOP)?;
        let from = now();
        eventually("the victim stands still", PATIENCE, || {
            Process(pid).state().is_none_or(|state| matches!(state, 'T' | 'Z')).then_some(())
        });
        let status = self.supervisor.status();
        let row = status["workers"].as_array().and_then(|rows| rows.iter().find(|row| row["pid"] == pid)).cloned();
        if send(pid, Signal::SIGKILL)
            && let Some(row) = row
        {
            let number = |name: &str| row[name].as_u64().expect("a number of the status");
            let (connections, in_flight) = (number("connections"), number("in_flight"));
            self.record.victims.push(Victim { pid, connections, in_flight });
            self.record.hangs.push(Hang { pid, from, to: now() });
        }
        Some(pid)
    }

    fn thaw(&mut self) {
        if let Some(pid) = self.frozen.take() {
            send(pid, Signal::SIGCONT);
            if let Some(hang) = self.record.hangs.last_mut() {
                hang.to = now();
            }
        }
    }
}

impl Drop for Storm<'_> {
    fn drop(&mut self) {
        self.thaw();
    }
}

/// Changes the path of the metrics page in the settings file, and returns the new path. A test can see that the new
/// settings are in effect when the page answers at the new path. A rename replaces the file, because a queued reload
/// may read it at this moment.
pub fn change_visibly(supervisor: &Supervisor, round: usize) -> String {
    let file = supervisor.path("supervisor.toml");
    let text = fs::read_to_string(&file).expect("the settings the service was started with");
    let path = format!("/metrics-{round}");
    let lines = text.lines().map(|line| match line.split_once(" = ") {
        Some(("metrics_path", _)) => format!("metrics_path = \"{path}\"\n"),
        _ => format!("{line}\n"),
    });
    let (new, draft) = (lines.collect::<String>(), file.with_extension("draft"));
    assert_ne!(new, text, "http.metrics_path must be set, and change");
    fs::write(&draft, new).and_then(|()| fs::rename(&draft, &file)).expect("a file in our own folder");
    path
}

/// Sends a signal. Returns true if the process existed.
fn send(pid: u32, signal: Signal) -> bool {
    kill(Pid::from_raw(pid.cast_signed()), signal).is_ok()
}
