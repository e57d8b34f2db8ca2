//! HTTP/2: when and how a connection of it ends.
//!
//! Owns: what the frames that pass mean for its end, the goodbye, the drain, streams that nobody reads, and clients that
//! are gone. Refuses: bytes on their way (`wire`), frames (`frames`), windows (`streams`), and the protocol: h2 speaks it.
//!
//! A GOAWAY names the last stream that is served. A stream that crosses it is lost to a client that cannot repeat its
//! request, so it is said when none is likely to: when there has been no stream for a while (the *goodbye*). Where that
//! does not come, GOAWAY(2^31-1) warns first, and h2 says the last one once its PING is answered; the answer is held back
//! until the streams that cross have come.

mod frames;
mod streams;
mod wire;

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
    task::Context,
    time::Duration,
};

use tokio::sync::futures::Notified;

pub(super) use self::wire::Wire;
use self::{
    frames::{Frame, Frames, Payload, cancel, goaway, ping},
    streams::Streams,
    wire::lock,
};
use super::{
    Connection, Ended, Keeper, Step, Timer,
    activity::{Activity, Overdue},
};
use crate::{sys::clock, worker::shared::Shared};

/// In a drain, a connection without a stream for so long gets its goodbye. In milliseconds, as all of these.
const QUIET: u64 = 50;
/// … or for so long, if it was busy: a proxy under load pauses because its machine does, and then asks for all its clients.
const QUIET_IF_BUSY: u64 = 500;
/// After the warning there is no goodbye for so long: a client that heard it may have ended its streams for that …
const WARNED_MIN: u64 = 500;
/// … and so long the answer to h2's PING is held back …
const WARNED: u64 = 1_000;
/// … or, if it does not come, so long.
const UNANSWERED: u64 = 5_000;

/// With `http.http2_rebalance`: a connection is looked at after so long, and again each time …
const WEIGH: u64 = 200;
/// … once it has had so many streams. One that is sent away is waited for so long to become quiet.
const STREAMS_MIN: u32 = 20;
const AWAY: u64 = 150;

/// A client that has said nothing for so long while a stream is open is asked whether it is there …
const SILENT: u64 = 30_000;
/// … and has so long to say something.
const DEAF: u64 = 20_000;
const OUR_PING: Payload = *b"oxicorn?";

/// What the wire and its keeper know of the frames that have passed. Both belong to one task: the lock is always free.
pub(super) struct Link {
    inbound: Frames,
    outbound: Frames,
    streams: Streams,
    stage: Stage,
    parting: Parting,
    /// Frames of ours for the client.
    ours: Vec<u8>,
    /// Streams that h2 is to be told the client has reset.
    cut: Vec<u32>,
    /// When the client last said anything.
    heard: u64,
    /// Since when our PING has been unanswered.
    asked: Option<u64>,
}

/// How far h2 is with its GOAWAYs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Open,
    /// h2 has said GOAWAY(2^31-1), and this PING behind it.
    Warned {
        since: u64,
        ping: Payload,
        answered: bool,
        over: bool,
    },
    /// h2 has its answer. It says the last GOAWAY, ignores the streams above, and ends when the others have.
    Ending {
        last: u32,
    },
}

/// How far we are with the goodbye.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Parting {
    No,
    /// At the next end of a frame, if there is no stream then.
    Wanted,
    /// It is on its way.
    Begun,
    /// h2 is told that the client has ended, and what it still writes is thrown away.
    Done,
}

impl Link {
    fn new() -> Self {
        Self {
            inbound: Frames::default(),
            outbound: Frames::default(),
            streams: Streams::new(),
            stage: Stage::Open,
            parting: Parting::No,
            ours: Vec::new(),
            cut: Vec::new(),
            heard: clock::coarse(),
            asked: None,
        }
    }

    /// Takes what the client sends, and gives `pass` what h2 is to read.
    fn hear(&mut self, mut bytes: &[u8], activity: &Activity, mut pass: impl FnMut(&[u8])) {
        let (now, were_open) = (clock::coarse(), self.streams.are_open());
        (self.heard, self.asked) = (now, None);
        while let Some(piece) = self.inbound.next(&mut bytes) {
            if piece.frame.is_none_or(|frame| self.heard(frame, now)) {
                pass(&piece.bytes);
            }
            self.forge(&mut pass);
        }
        self.tell(were_open, activity, now);
        if self.inbound.is_between() {
            activity.head_ends();
        } else {
            activity.head_begins();
        }
    }

    /// Whether h2 is to see this frame.
    fn heard(&mut self, frame: Frame, now: u64) -> bool {
        let last = if let Stage::Ending { last } = self.stage { last } else { u32::MAX };
        match frame {
            Frame::Headers { stream, ends } if stream <= last => self.streams.client_sends_headers(stream, ends, now),
            Frame::Data { stream, ends: true, .. } => self.streams.client_ends(stream),
            Frame::Reset { stream } => self.streams.reset(stream),
            Frame::InitialWindow { size } => self.streams.initial_window_becomes(size, now),
            // For h2 0.4.20 such a stream is idle, and this an error of the whole connection.
            Frame::WindowUpdate { stream, .. } if stream > last => return false,
            Frame::WindowUpdate { stream, by } => self.streams.window_opens(stream, by, now),
            Frame::Ping { ack: true, payload } => return !self.is_answered(payload),
            Frame::Headers { .. } | Frame::Data { .. } | Frame::Ping { .. } | Frame::Other => {}
        }
        true
    }

    /// Whether it answers a PING of which h2 hears from us, or not at all.
    fn is_answered(&mut self, payload: Payload) -> bool {
        match &mut self.stage {
            Stage::Warned { ping, answered, .. } if *ping == payload => *answered = true,
            Stage::Open | Stage::Warned { .. } | Stage::Ending { .. } => return payload == OUR_PING,
        }
        true
    }

    /// Between two frames of the client's: says to h2 in its name what it did not say, or not now.
    fn forge(&mut self, mut pass: impl FnMut(&[u8])) {
        if !self.inbound.is_between() {
            return;
        }
        for stream in self.cut.drain(..) {
            pass(&cancel(stream));
        }
        if let Stage::Warned { over: true, ping: payload, .. } = self.stage {
            self.stage = Stage::Ending { last: self.streams.highest() };
            pass(&ping(true, payload));
        }
    }

    /// Takes what h2 has sent.
    fn say(&mut self, mut bytes: &[u8], activity: &Activity) {
        let (now, were_open) = (clock::coarse(), self.streams.are_open());
        while let Some(piece) = self.outbound.next(&mut bytes) {
            match piece.frame {
                Some(Frame::Headers { stream, ends }) => self.streams.server_sends_headers(stream, ends, now),
                Some(Frame::Data { stream, length, ends }) => {
                    self.streams.server_sends_data(stream, length, ends, now);
                }
                Some(Frame::Reset { stream }) => self.streams.reset(stream),
                // h2 asks only once: after its first GOAWAY.
                Some(Frame::Ping { ack: false, payload }) => {
                    self.stage = Stage::Warned { since: now, ping: payload, answered: false, over: false };
                }
                Some(Frame::Ping { .. } | Frame::InitialWindow { .. } | Frame::WindowUpdate { .. } | Frame::Other)
                | None => {}
            }
        }
        self.tell(were_open, activity, now);
    }

    /// What is ours to say now, if it is our turn.
    fn ours(&mut self) -> Option<&[u8]> {
        if !self.outbound.is_between() {
            return None;
        }
        if self.parting == Parting::Wanted {
            self.parting = if self.streams.are_open() { Parting::No } else { Parting::Begun };
            if self.parting == Parting::Begun {
                self.ours.extend(goaway(self.streams.highest()));
            }
        }
        (!self.ours.is_empty()).then_some(&self.ours)
    }

    fn has_said(&mut self, count: usize) {
        self.ours.drain(..count);
        if self.ours.is_empty() && self.parting == Parting::Begun {
            self.parting = Parting::Done;
        }
    }

    /// A connection is busy as long as a stream is open here: h2 may hold the end of an answer back long after the app has
    /// handed it over.
    fn tell(&self, were_open: bool, activity: &Activity, now: u64) {
        match (were_open, self.streams.are_open()) {
            (false, true) => activity.request_begins(),
            (true, false) => activity.request_ends(now),
            (true, true) | (false, false) => {}
        }
    }

    /// Resets the streams whose answers have not been let through since `before`, towards both sides; says how many.
    /// `None`: there is no other stream.
    fn cut_stalled(&mut self, before: u64, activity: &Activity) -> Option<usize> {
        let stalled = self.streams.take_stalled(before)?;
        self.ours.extend(stalled.iter().copied().flat_map(cancel));
        self.cut.extend(&stalled);
        self.tell(true, activity, clock::coarse());
        Some(stalled.len())
    }
}

/// Watches over one connection.
pub(super) struct Http2 {
    link: Arc<Mutex<Link>>,
    /// Polled for its waker alone; `drains` is what is asked.
    drain: Pin<Box<Notified<'static>>>,
    enrolled: bool,
    /// hyper was told to leave.
    left: bool,
    /// When it was last looked at whether it should go to a sibling, and how many streams it had had.
    weighed: (u64, u32),
    /// Since when it has been on its way there.
    sent_away: Option<u64>,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    /// The client reads nothing.
    Blocked,
    /// The client does not read some of its answers.
    Stalled,
    /// The goodbye.
    Part,
    /// h2 is to begin its end.
    Leave,
    /// h2 is to say the last GOAWAY.
    Conclude,
    Ask,
    Deaf,
    /// It is to be seen whether it should go to a sibling.
    Weigh,
}

impl Http2 {
    pub(super) fn new(connection: &Connection) -> Self {
        connection.activity.idles();
        let link = Arc::new(Mutex::new(Link::new()));
        let drain = Box::pin(connection.shared.drain.notified());
        let weighed = (clock::coarse(), 0);
        Self { link, drain, enrolled: false, left: false, weighed, sent_away: None }
    }

    pub(super) fn link(&self) -> Arc<Mutex<Link>> {
        Arc::clone(&self.link)
    }

    /// When the next thing is to be done, on the coarse clock.
    fn deadline(&self, link: &Link, connection: &Connection) -> Option<(u64, Due)> {
        let Connection { shared, activity, .. } = connection;
        let (http, busy) = (&shared.http, link.streams.are_open());
        let blocked = activity.blocked(http).map(|(at, _)| (at, Due::Blocked));
        if link.parting != Parting::No {
            return blocked;
        }
        let limit = millis(http.write_timeout);
        let stalled = link.streams.stalled_since().filter(|_| limit > 0).map(|since| (since + limit, Due::Stalled));
        let silent = busy.then(|| match link.asked {
            None => (link.heard + SILENT, Due::Ask),
            Some(since) => (since + DEAF, Due::Deaf),
        });
        let idle = activity.waiting(shared).filter(|_| !matches!(link.stage, Stage::Ending { .. }));
        let idle = idle.map(|(at, overdue)| match overdue {
            Overdue::Silent | Overdue::Head | Overdue::Idle => (at, Due::Part),
            Overdue::Blocked => (at, Due::Blocked),
        });
        let leaves_by =
            if shared.drains() { Some(shared.drain_waits()) } else { self.sent_away.map(|since| since + AWAY) };
        let leave = leaves_by.and_then(|by| self.leave_deadline(by, link, shared, activity));
        let weigh = (http.http2_rebalance && leaves_by.is_none() && self.has_streams_to_weigh(link))
            .then_some((self.weighed.0 + WEIGH, Due::Weigh));
        [blocked, stalled, silent, idle, leave, weigh].into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    fn has_streams_to_weigh(&self, link: &Link) -> bool {
        let streams = link.streams.highest() / 2;
        streams >= STREAMS_MIN && streams > self.weighed.1
    }

    /// Of one that is to leave; if it does not become quiet, from `by` on. Once the grace is over, nothing is waited for.
    fn leave_deadline(&self, by: u64, link: &Link, shared: &Shared, activity: &Activity) -> Option<(u64, Due)> {
        let ends = shared.ends();
        let after = |since: u64, time: u64| if ends { 0 } else { since + time };
        let pause = if link.streams.are_busy() { QUIET_IF_BUSY } else { QUIET };
        let quiet = activity.idle_since().map(|since| after(since, pause));
        match link.stage {
            Stage::Open if quiet.is_some() => quiet.map(|at| (at, Due::Part)),
            Stage::Open => (!self.left).then(|| (after(by, 0), Due::Leave)),
            Stage::Warned { over: true, .. } | Stage::Ending { .. } => None,
            Stage::Warned { since, answered, .. } => {
                let part = quiet.map(|at| (at.max(after(since, WARNED_MIN)), Due::Part));
                let conclude = (after(since, if answered { WARNED } else { UNANSWERED }), Due::Conclude);
                [part, Some(conclude)].into_iter().flatten().min_by_key(|(at, _)| *at)
            }
        }
    }
}

impl Keeper for Http2 {
    fn step(&mut self, connection: &Connection, timer: &mut Timer<'_>, cx: &mut Context<'_>) -> Step {
        if !std::mem::replace(&mut self.enrolled, true) {
            let _ = self.drain.as_mut().poll(cx);
        }
        let link = Arc::clone(&self.link);
        let mut link = lock(&link);
        let deadline = self.deadline(&link, connection);
        // Its place is needed now.
        let gives_way = link.parting == Parting::No && connection.activity.is_asked_to_leave();
        let due = if gives_way { Some(Due::Part) } else { timer.due(deadline, cx) };
        let Some(due) = due else { return Step::Wait };
        let now = clock::coarse();
        match due {
            Due::Blocked => return Step::End(Ended::Blocked),
            Due::Deaf => return Step::End(Ended::Deaf),
            Due::Leave => {
                self.left = true;
                return Step::Leave;
            }
            Due::Part => link.parting = Parting::Wanted,
            Due::Conclude => {
                if let Stage::Warned { over, .. } = &mut link.stage {
                    *over = true;
                }
            }
            Due::Weigh => {
                self.weighed = (now, link.streams.highest() / 2);
                self.sent_away = connection.shared.sends_away().then_some(now);
            }
            Due::Ask => {
                link.asked = Some(now);
                link.ours.extend(ping(false, OUR_PING));
            }
            Due::Stalled => {
                let limit = millis(connection.shared.http.write_timeout);
                match link.cut_stalled(now.saturating_sub(limit), &connection.activity) {
                    None => return Step::End(Ended::Blocked),
                    Some(count) => (0..count).for_each(|_| connection.stalled("its stream was reset")),
                }
            }
        }
        Step::Poll
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
