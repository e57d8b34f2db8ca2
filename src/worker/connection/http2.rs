//! Decides when and how a connection of HTTP/2 ends.
//!
//! Owns: the meaning of the passing frames for the end of a connection, the goodbye (the GOAWAY that we send), the
//! drain, streams that the client does not read, and clients that are gone. Refuses: the transfer of bytes (`wire`),
//! the parsing of frames (`frames`), windows (`streams`), and the protocol itself, which hyper's library h2 speaks.
//!
//! A GOAWAY names the last stream that the server serves. If the client opens another stream at the same time, that
//! stream is lost, unless the client can repeat its request. So we send a single GOAWAY only when such a loss is
//! unlikely, which is when no stream has been open for a while. This GOAWAY is the *goodbye*. If there is no such
//! moment, h2 first warns the client with GOAWAY(2^31-1) and a PING, and sends the last GOAWAY when the PING is
//! answered. We hold the client's answer back until the streams that the client was opening at the time of the warning
//! have come.

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

pub(super) use self::wire::Http2Wire;
use self::{
    frames::{FrameReader, H2Frame, Payload, cancel, goaway, ping},
    streams::Streams,
    wire::lock,
};
use super::{
    Connection, Ended, Lifecycle, NextStep, Timer,
    activity::{Activity, Overdue},
};
use crate::{sys::clock, worker::shared::Shared};

// All times in this file are in milliseconds.

/// In a drain, a connection gets the goodbye (one GOAWAY that we send) after this time without a stream.
const PAUSE: u64 = 50;
/// In a drain, a connection that was busy gets the goodbye (one GOAWAY that we send) only after this time without a
/// stream. A busy client may be a proxy whose machine stands still for a moment. After that moment the proxy opens
/// streams again, for all its own clients.
const PAUSE_IF_BUSY: u64 = 500;
/// After h2's warning, a connection gets no goodbye (GOAWAY that we send) for this time, because the warning itself may
/// have made the client open no stream for a moment.
const WARNED_MIN: u64 = 500;
/// The client's answer to h2's PING is held back until this time after the warning.
const WARNED: u64 = 1_000;
/// If the client has not answered h2's PING within this time after the warning, we answer the PING in the client's
/// place.
const UNANSWERED: u64 = 5_000;

/// With `http.http2_rebalance` the worker checks now and then whether a connection should move to a sibling (another
/// worker). At least this time passes between two such checks.
const WEIGH: u64 = 200;
/// With `http.http2_rebalance` a connection is checked only if it has had at least this many streams.
const STREAMS_MIN: u32 = 20;
/// How long a connection that should move to a sibling may take to become idle. After this time h2 warns the client.
const AWAY: u64 = 150;

/// A client gets a PING if it sends nothing for this time while a stream is open.
const PING_AFTER: u64 = 30_000;
/// A client counts as gone if it sends nothing for this time after our PING.
const UNRESPONSIVE: u64 = 20_000;
const OUR_PING: Payload = *b"oxicorn?";

/// What one connection knows about the frames that have passed. The stream under hyper and the connection's lifecycle
/// share this state. Both belong to one task, so the lock around the state is always free.
pub(super) struct Http2State {
    inbound: FrameReader,
    outbound: FrameReader,
    streams: Streams,
    stage: DrainStage,
    goodbye: Goodbye,
    /// Our own frames for the client that are not written yet.
    ours: Vec<u8>,
    /// The ids of streams that we have reset towards the client. h2 does not know this yet, and must still get a reset
    /// in the client's name.
    cut: Vec<u32>,
    /// When the client last sent something.
    last_received: u64,
    /// When we sent a PING; `None` once the client has sent anything after it.
    asked: Option<u64>,
}

/// How far h2 has come in ending the connection by its own two GOAWAYs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DrainStage {
    Open,
    /// h2 has warned the client with GOAWAY(2^31-1), and has sent this PING behind it.
    Warned {
        since: u64,
        ping: Payload,
        answered: bool,
        over: bool,
    },
    /// h2 has the answer to its PING. It sends the last GOAWAY, ignores streams above `last`, and ends the connection
    /// when the other streams have ended.
    Ending {
        last: u32,
    },
}

/// The present step of the goodbye, which is a GOAWAY that we send ourselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goodbye {
    No,
    /// Our GOAWAY should be sent as soon as the last frame of h2 is completely written, if no stream is open at that
    /// time.
    Wanted,
    /// Our GOAWAY is being written.
    Begun,
    /// Our GOAWAY is written. h2 is told that the client has ended its side, and the bytes that h2 still writes are
    /// discarded.
    Done,
}

impl Http2State {
    fn new() -> Self {
        Self {
            inbound: FrameReader::default(),
            outbound: FrameReader::default(),
            streams: Streams::new(),
            stage: DrainStage::Open,
            goodbye: Goodbye::No,
            ours: Vec::new(),
            cut: Vec::new(),
            last_received: clock::coarse(),
            asked: None,
        }
    }

    /// Reads the frames in the bytes that the client sends, and calls `pass` with the bytes that h2 should read.
    fn received(&mut self, mut bytes: &[u8], activity: &Activity, mut pass: impl FnMut(&[u8])) {
        let (now, were_open) = (clock::coarse(), self.streams.are_open());
        (self.last_received, self.asked) = (now, None);
        while let Some(piece) = self.inbound.next(&mut bytes) {
            if piece.frame.is_none_or(|frame| self.passes_on(frame, now)) {
                pass(&piece.bytes);
            }
            self.inject(&mut pass);
        }
        self.update_activity(were_open, activity, now);
        if self.inbound.is_between() {
            activity.head_ends();
        } else {
            activity.head_begins();
        }
    }

    /// Notes a frame of the client. Returns true if h2 should see the frame.
    fn passes_on(&mut self, frame: H2Frame, now: u64) -> bool {
        let last = if let DrainStage::Ending { last } = self.stage { last } else { u32::MAX };
        match frame {
            H2Frame::Headers { stream, ends } if stream <= last => self.streams.client_sends_headers(stream, ends, now),
            H2Frame::Headers { .. } => self.repeat_goaway(last),
            H2Frame::Data { stream, ends: true, .. } => self.streams.client_ends(stream),
            H2Frame::Reset { stream } => self.streams.reset(stream),
            H2Frame::InitialWindow { size } => self.streams.initial_window_becomes(size, now),
            // Hide a WINDOW_UPDATE for a stream above `last`: h2 0.4.20 takes this stream for an idle one, and would
            // end the whole connection with an error.
            H2Frame::WindowUpdate { stream, .. } if stream > last => return false,
            H2Frame::WindowUpdate { stream, by } => self.streams.window_opens(stream, by, now),
            H2Frame::Ping { ack: true, payload } => return !self.is_answered(payload),
            H2Frame::Data { .. } | H2Frame::Ping { .. } | H2Frame::Other => {}
        }
        true
    }

    /// Sends the last GOAWAY again, to a client that has opened a stream above `last` after it. The client may have
    /// chosen this connection just before it read the GOAWAY. It would wait for an answer until our FIN comes, and then
    /// report an error instead of sending the request over another connection.
    fn repeat_goaway(&mut self, last: u32) {
        if self.ours.is_empty() {
            self.ours.extend(goaway(last));
        }
    }

    /// Discards bytes that the client sends after the last GOAWAY.
    fn discard(&mut self, mut bytes: &[u8]) {
        let last = self.streams.highest();
        while let Some(piece) = self.inbound.next(&mut bytes) {
            if matches!(piece.frame, Some(H2Frame::Headers { stream, .. }) if stream > last) {
                self.repeat_goaway(last);
            }
        }
    }

    /// Returns true if this answer to a PING must be hidden from h2, because h2 gets it later or because it answers our
    /// own PING.
    fn is_answered(&mut self, payload: Payload) -> bool {
        match &mut self.stage {
            DrainStage::Warned { ping, answered, .. } if *ping == payload => *answered = true,
            DrainStage::Open | DrainStage::Warned { .. } | DrainStage::Ending { .. } => return payload == OUR_PING,
        }
        true
    }

    /// Gives h2 frames in the client's name, if the client's last frame has come completely. These frames are resets
    /// that the client did not send, and the answer to h2's PING that we held back.
    fn inject(&mut self, mut pass: impl FnMut(&[u8])) {
        if !self.inbound.is_between() {
            return;
        }
        for stream in self.cut.drain(..) {
            pass(&cancel(stream));
        }
        if let DrainStage::Warned { over: true, ping: payload, .. } = self.stage {
            self.stage = DrainStage::Ending { last: self.streams.highest() };
            pass(&ping(true, payload));
        }
    }

    /// Reads the frames in the bytes that h2 has sent, and notes what they mean.
    fn sent(&mut self, mut bytes: &[u8], activity: &Activity) {
        let (now, were_open) = (clock::coarse(), self.streams.are_open());
        while let Some(piece) = self.outbound.next(&mut bytes) {
            match piece.frame {
                Some(H2Frame::Headers { stream, ends }) => self.streams.server_sends_headers(stream, ends, now),
                Some(H2Frame::Data { stream, length, ends }) => {
                    self.streams.server_sends_data(stream, length, ends, now);
                }
                Some(H2Frame::Reset { stream }) => self.streams.reset(stream),
                // h2 sends only one PING, right after its first GOAWAY. So this PING means that h2 has warned the
                // client.
                Some(H2Frame::Ping { ack: false, payload }) => {
                    self.stage = DrainStage::Warned { since: now, ping: payload, answered: false, over: false };
                }
                Some(
                    H2Frame::Ping { .. }
                    | H2Frame::InitialWindow { .. }
                    | H2Frame::WindowUpdate { .. }
                    | H2Frame::Other,
                )
                | None => {}
            }
        }
        self.update_activity(were_open, activity, now);
    }

    /// Returns true if the connection ends by a GOAWAY without an error.
    fn ends_well(&self) -> bool {
        self.goodbye != Goodbye::No || matches!(self.stage, DrainStage::Ending { .. })
    }

    /// Returns our own frames if they can be written now, which is only between two frames of h2.
    fn ours(&mut self) -> Option<&[u8]> {
        if !self.outbound.is_between() {
            return None;
        }
        if self.goodbye == Goodbye::Wanted {
            self.goodbye = if self.streams.are_open() { Goodbye::No } else { Goodbye::Begun };
            if self.goodbye == Goodbye::Begun {
                self.ours.extend(goaway(self.streams.highest()));
            }
        }
        (!self.ours.is_empty()).then_some(&self.ours)
    }

    fn has_written_ours(&mut self, count: usize) {
        self.ours.drain(..count);
        if self.ours.is_empty() && self.goodbye == Goodbye::Begun {
            self.goodbye = Goodbye::Done;
        }
    }

    /// Tells the activity when the connection becomes busy or idle. A connection is busy while a stream is open on the
    /// wire. The app may have finished its response much earlier, because h2 may hold the end of a response back for
    /// long.
    fn update_activity(&self, were_open: bool, activity: &Activity, now: u64) {
        match (were_open, self.streams.are_open()) {
            (false, true) => activity.request_begins(),
            (true, false) => activity.request_ends(now),
            (true, true) | (false, false) => {}
        }
    }

    /// Resets the streams whose responses have been blocked by the client since the time `before` or longer. Both the
    /// client and h2 get the resets. Returns how many streams were reset. If no other stream is open, resets nothing
    /// and returns `None`.
    fn cut_stalled(&mut self, before: u64, activity: &Activity) -> Option<usize> {
        let stalled = self.streams.take_stalled(before)?;
        self.ours.extend(stalled.iter().copied().flat_map(cancel));
        self.cut.extend(&stalled);
        self.update_activity(true, activity, clock::coarse());
        Some(stalled.len())
    }
}

/// The lifecycle of a connection of HTTP/2: its time limits, and its part in a drain.
pub(super) struct Http2Lifecycle {
    state: Arc<Mutex<Http2State>>,
    /// Wakes the task when the drain begins. After the wake, the task asks [`Shared::drains`] whether the worker
    /// drains.
    drain: Pin<Box<Notified<'static>>>,
    enrolled: bool,
    /// True once hyper was told to end the connection.
    left: bool,
    /// When the connection was last checked for a move to a sibling, and the number of streams that it had had by then.
    weighed: (u64, u32),
    /// When the worker decided that the connection should move to a sibling; `None` if the connection should stay.
    sent_away: Option<u64>,
}

/// What is done with a connection when its next deadline comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    /// End the connection, because the client reads nothing.
    Blocked,
    /// Reset the streams whose responses the client does not read.
    Stalled,
    /// Send our GOAWAY, the goodbye, as soon as no stream is open.
    Goodbye,
    /// Tell h2 to warn the client with GOAWAY(2^31-1).
    Leave,
    /// Give h2 the answer to its PING, so that it sends the last GOAWAY.
    Conclude,
    /// Send our own PING, to see if the client still answers.
    Ask,
    /// End the connection, because the client does not answer our PING.
    Unresponsive,
    /// Check if the connection should move to a sibling.
    Weigh,
}

impl Http2Lifecycle {
    pub(super) fn new(connection: &Connection) -> Self {
        connection.activity.idles();
        let state = Arc::new(Mutex::new(Http2State::new()));
        let drain = Box::pin(connection.shared.drain.notified());
        let weighed = (clock::coarse(), 0);
        Self { state, drain, enrolled: false, left: false, weighed, sent_away: None }
    }

    pub(super) fn state(&self) -> Arc<Mutex<Http2State>> {
        Arc::clone(&self.state)
    }

    /// Returns what must be done next on the connection, and at which time of the coarse clock.
    fn deadline(&self, state: &Http2State, connection: &Connection) -> Option<(u64, Due)> {
        let Connection { shared, activity, .. } = connection;
        let (http, busy) = (&shared.http, state.streams.are_open());
        let blocked = activity.blocked(http).map(|(at, _)| (at, Due::Blocked));
        if state.goodbye != Goodbye::No {
            return blocked;
        }
        let limit = millis(http.write_timeout);
        let stalled = state.streams.stalled_since().filter(|_| limit > 0).map(|since| (since + limit, Due::Stalled));
        let silent = busy.then(|| match state.asked {
            None => (state.last_received + PING_AFTER, Due::Ask),
            Some(since) => (since + UNRESPONSIVE, Due::Unresponsive),
        });
        let idle = activity.waiting(shared).filter(|_| !matches!(state.stage, DrainStage::Ending { .. }));
        let idle = idle.map(|(at, overdue)| match overdue {
            Overdue::Silent | Overdue::Head | Overdue::Idle => (at, Due::Goodbye),
            Overdue::Blocked => (at, Due::Blocked),
        });
        let leaves_by =
            if shared.drains() { Some(shared.drain_waits()) } else { self.sent_away.map(|since| since + AWAY) };
        let leave = leaves_by.and_then(|by| self.leave_deadline(by, state, shared, activity));
        let weigh = (http.http2_rebalance && leaves_by.is_none() && self.has_streams_to_weigh(state))
            .then_some((self.weighed.0 + WEIGH, Due::Weigh));
        [blocked, stalled, silent, idle, leave, weigh].into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    fn has_streams_to_weigh(&self, state: &Http2State) -> bool {
        let streams = state.streams.highest() / 2;
        streams >= STREAMS_MIN && streams > self.weighed.1
    }

    /// Returns the next step by which a connection that should end is brought to its end, and the time for this step.
    /// Until `by` the connection gets the goodbye (our GOAWAY) in a moment without streams. After `by` h2 warns the
    /// client. Once the grace period of the drain is over, no step waits.
    fn leave_deadline(&self, by: u64, state: &Http2State, shared: &Shared, activity: &Activity) -> Option<(u64, Due)> {
        let ends = shared.ends();
        let after = |since: u64, time: u64| if ends { 0 } else { since + time };
        let pause = if state.streams.are_busy() { PAUSE_IF_BUSY } else { PAUSE };
        let unoccupied_since = activity.unoccupied_since();
        let goodbye_at = unoccupied_since.map(|since| after(since, pause));
        match state.stage {
            DrainStage::Open if unoccupied_since.is_some_and(|since| since <= by || ends || self.left) => {
                goodbye_at.map(|at| (at, Due::Goodbye))
            }
            // The client is warned even if the connection is idle now. The connection was busy after `by`, but each
            // request was so short that no check found a request under way.
            DrainStage::Open => (!self.left).then(|| (after(by, 0), Due::Leave)),
            DrainStage::Warned { over: true, .. } | DrainStage::Ending { .. } => None,
            DrainStage::Warned { since, answered, .. } => {
                let part = goodbye_at.map(|at| (at.max(after(since, WARNED_MIN)), Due::Goodbye));
                let conclude = (after(since, if answered { WARNED } else { UNANSWERED }), Due::Conclude);
                [part, Some(conclude)].into_iter().flatten().min_by_key(|(at, _)| *at)
            }
        }
    }
}

impl Lifecycle for Http2Lifecycle {
    fn step(&mut self, connection: &Connection, timer: &mut Timer<'_>, cx: &mut Context<'_>) -> NextStep {
        if !std::mem::replace(&mut self.enrolled, true) {
            let _ = self.drain.as_mut().poll(cx);
        }
        let state = Arc::clone(&self.state);
        let mut state = lock(&state);
        let deadline = self.deadline(&state, connection);
        // If another connection needs the place of this one now, this connection gets the goodbye (our GOAWAY) at once.
        let gives_way = state.goodbye == Goodbye::No && connection.activity.is_asked_to_leave();
        let due = if gives_way { Some(Due::Goodbye) } else { timer.due(deadline, cx) };
        let Some(due) = due else { return NextStep::Wait };
        let now = clock::coarse();
        match due {
            Due::Blocked => return NextStep::End(Ended::Blocked),
            Due::Unresponsive => return NextStep::End(Ended::Unresponsive),
            Due::Leave => {
                self.left = true;
                return NextStep::Leave;
            }
            Due::Goodbye => state.goodbye = Goodbye::Wanted,
            Due::Conclude => {
                if let DrainStage::Warned { over, .. } = &mut state.stage {
                    *over = true;
                }
            }
            Due::Weigh => {
                self.weighed = (now, state.streams.highest() / 2);
                self.sent_away = connection.shared.sends_away().then_some(now);
            }
            Due::Ask => {
                state.asked = Some(now);
                state.ours.extend(ping(false, OUR_PING));
            }
            Due::Stalled => {
                let limit = millis(connection.shared.http.write_timeout);
                match state.cut_stalled(now.saturating_sub(limit), &connection.activity) {
                    None => return NextStep::End(Ended::Blocked),
                    Some(count) => (0..count).for_each(|_| connection.stalled("its stream was reset")),
                }
            }
        }
        NextStep::Poll
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
