//! The state that the tasks of one worker share.
//!
//! Owns: the flags of a drain, the scoreboard row in which the worker counts, the listeners, and the sending end of the
//! channel to the master. Each worker process has one `Shared`. It is made once and never freed, so tasks hold plain
//! references to it. Refuses: the decision to drain (`worker`).

use std::{
    collections::BTreeMap,
    future::Future,
    os::fd::{AsFd, OwnedFd},
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::Context,
    time::Duration,
};

use tokio::{
    sync::{Notify, futures::Notified, watch},
    time::timeout,
};

use super::{
    access_log::AccessLog, app_report::AppReport, background_work::BackgroundCount, balance::Balance,
    connection_list::ConnectionList, forwarded::TrustedProxies, own_pages::OwnPages, request_id::RequestIds,
    scanner::Refusal, serve::Peer, throttle::Throttle,
};
use crate::{
    channel::ToMaster,
    listener::Listeners,
    scoreboard::{InFlightTable, Row, RowState, Scoreboard},
    settings::{Http, ProxyProtocol, ServerConfig, Settings},
    sys::clock,
};

/// The least time between two messages to the master about new connections, in milliseconds. After each message the
/// master may give the kernel a new steering program, which chooses the slot of each new connection. So a worker must
/// not send a message for every connection.
const ARRIVALS_EVERY: u64 = 10;
/// The least time between two messages about new connections, in milliseconds, if the connections do not stay open. It
/// is longer than `ARRIVALS_EVERY`, because connections that end soon leave little to balance.
const PASSERS_BY_EVERY: u64 = 250;

/// The pause after which a full worker checks again whether a sibling has room.
const LOOK_AGAIN: Duration = Duration::from_millis(25);

const NEVER: u64 = u64::MAX;

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) row: Row,
    pub(super) scoreboard: Scoreboard,
    pub(super) listeners: Listeners,
    pub(super) in_flight_table: InFlightTable,
    pub(super) http: Http,
    pub(super) own_pages: OwnPages,
    /// The access log; `None` if it is off.
    pub(super) access: Option<AccessLog>,
    pub(super) request_ids: RequestIds,
    pub(super) proxy_protocol: ProxyProtocol,
    pub(super) trust: TrustedProxies,
    /// The TLS configuration; `None` if the worker serves without TLS.
    pub(super) tls: Option<Arc<ServerConfig>>,
    channel: Arc<OwnedFd>,
    /// Messages to the master that did not fit into the channel yet, in their order.
    unsent: Mutex<Vec<ToMaster>>,
    stopping: watch::Sender<bool>,
    draining: watch::Sender<bool>,
    /// The same value as `draining`. The code that runs for each request reads this field, because that needs no lock.
    drains: AtomicBool,
    /// When the drain began, on the coarse clock; `NEVER` before.
    drain_began: AtomicU64,
    /// The time until which a drain waits for busy connections of HTTP/2 to become idle; see
    /// [`drain_waits`](Self::drain_waits).
    drain_waits: AtomicU64,
    /// The value of `workers.drain_idle`.
    pub(super) drain_idle: Duration,
    ends: AtomicBool,
    /// Wakes every connection of HTTP/2 when `drains` becomes true.
    pub(super) drain: Notify,
    /// Wakes every connection of the worker; see [`WakeListener`].
    wake: Notify,
    wakes: AtomicU64,
    pub(super) exhausted: Throttle,
    fullness: Throttle,
    evictions: Throttle,
    refusals: Throttle,
    departures: Throttle,
    sheds: Throttle,
    quarantines: Throttle,
    pub(super) stalls: Throttle,
    pub(super) timeouts: Throttle,
    pub(super) handshakes: Throttle,
    /// When the master was last told of new connections, on the coarse clock. `arrivals_known` is the number of
    /// connections that had been accepted by then.
    arrivals_told: AtomicU64,
    arrivals_known: AtomicU64,
    emptied: Notify,
    pub(super) background: BackgroundCount,
    pub(super) report: AppReport,
    pub(super) connections: ConnectionList,
    balance: Balance,
    /// Notified when a connection ends. It wakes the accept loops that wait for a place.
    vacated: Notify,
    /// Notified when a connection is accepted. It wakes the task of the heartbeats if the worker was idle.
    pub(super) traffic: Notify,
    /// How many heartbeats came late because the event loop was held up.
    delays: AtomicU64,
}

impl Shared {
    pub(super) fn new(
        row: Row,
        scoreboard: Scoreboard,
        listeners: Listeners,
        channel: Arc<OwnedFd>,
        settings: &Settings,
        access: Option<AccessLog>,
    ) -> &'static Self {
        Box::leak(Box::new(Self {
            row,
            in_flight_table: row.in_flight_table(),
            scoreboard,
            listeners,
            http: settings.http.clone(),
            own_pages: OwnPages::new(&settings.http),
            proxy_protocol: settings.server.proxy_protocol,
            trust: TrustedProxies::new(&settings.http.forwarded_allow_ips),
            access,
            request_ids: RequestIds::new(),
            tls: settings.tls.material.as_ref().map(|material| material.config()),
            channel,
            unsent: Mutex::new(Vec::new()),
            stopping: watch::Sender::new(false),
            draining: watch::Sender::new(false),
            drains: AtomicBool::new(false),
            drain_began: AtomicU64::new(NEVER),
            drain_waits: AtomicU64::new(NEVER),
            drain_idle: settings.workers.drain_idle,
            ends: AtomicBool::new(false),
            drain: Notify::new(),
            wake: Notify::new(),
            wakes: AtomicU64::new(0),
            exhausted: Throttle::default(),
            fullness: Throttle::default(),
            evictions: Throttle::default(),
            refusals: Throttle::default(),
            departures: Throttle::default(),
            sheds: Throttle::default(),
            quarantines: Throttle::default(),
            stalls: Throttle::default(),
            timeouts: Throttle::default(),
            handshakes: Throttle::default(),
            arrivals_told: AtomicU64::new(0),
            arrivals_known: AtomicU64::new(row.accepted()),
            emptied: Notify::new(),
            background: BackgroundCount::default(),
            report: AppReport::default(),
            connections: ConnectionList::default(),
            balance: Balance::default(),
            vacated: Notify::new(),
            traffic: Notify::new(),
            delays: AtomicU64::new(0),
        }))
    }

    pub(super) fn stopping(&self) -> watch::Receiver<bool> {
        self.stopping.subscribe()
    }

    pub(super) fn draining(&self) -> watch::Receiver<bool> {
        self.draining.subscribe()
    }

    pub(super) fn begin_stop(&self) {
        self.stopping.send_replace(true);
    }

    /// Returns true once the whole service was asked to stop. The result is true as soon as the master says so in the
    /// worker's row, even before the worker has read the master's message.
    pub(super) fn is_stopping(&self) -> bool {
        self.row.told_stopping() || *self.stopping.borrow()
    }

    /// Begins the drain. From now on every response says `Connection: close`. Connections of HTTP/2 are woken to learn
    /// of the drain.
    pub(super) fn begin_drain(&self, grace: Duration) {
        self.row.draining();
        let (now, most) = (clock::coarse(), grace / 2);
        let waits = if self.drain_idle.is_zero() { most } else { self.drain_idle.min(most) };
        self.drain_began.store(now, Relaxed);
        self.drain_waits.store(now + waits.as_millis() as u64, Relaxed);
        self.drains.store(true, Relaxed);
        self.draining.send_replace(true);
        self.drain.notify_waiters();
    }

    /// Returns true if this worker drains. The result is true as soon as the master says so in the worker's row, even
    /// before the worker has read the master's message.
    pub(super) fn drains(&self) -> bool {
        self.drains.load(Relaxed) || self.row.told_drain()
    }

    /// Returns true if the master has said in the worker's row that this worker drains, and the worker has not begun
    /// the drain yet. Connections that come in this state are for the next worker.
    pub(super) fn is_about_to_drain(&self) -> bool {
        self.row.told_drain() && !self.drains.load(Relaxed)
    }

    pub(super) fn has_begun_drain(&self) -> bool {
        self.drain_began.load(Relaxed) != NEVER
    }

    /// Returns when this drain closes a connection that has been idle since `since`; both times are on the coarse
    /// clock. Returns `None` outside of a drain, and with `workers.drain_idle = 0`.
    pub(super) fn drain_closes(&self, since: u64) -> Option<u64> {
        let began = self.drain_began.load(Relaxed);
        if began == NEVER || self.drain_idle.is_zero() {
            return None;
        }
        Some(began.max(since).saturating_add(self.drain_idle.as_millis() as u64))
    }

    /// Returns the time, on the coarse clock, until which a drain waits for a busy connection of HTTP/2 to become idle.
    /// After this time the client of the connection is warned. At least half of the grace is then left for its streams.
    pub(super) fn drain_waits(&self) -> u64 {
        self.drain_waits.load(Relaxed)
    }

    /// Ends the grace of a drain, so that connections without a request half-close now.
    pub(super) fn begin_end(&self) {
        self.ends.store(true, Relaxed);
        self.wake_all();
    }

    /// Wakes every connection, so that each one checks its deadline and [`ends`](Self::ends).
    pub(super) fn wake_all(&self) {
        self.wakes.store(self.wakes.load(Relaxed) + 1, Relaxed);
        self.wake.notify_waiters();
    }

    /// Returns the future that a [`WakeListener`] needs. The caller pins it and passes it to [`WakeListener::new`].
    pub(super) fn wake_signal(&self) -> Notified<'_> {
        self.wake.notified()
    }

    pub(super) fn ends(&self) -> bool {
        self.ends.load(Relaxed)
    }

    /// Sends a message to the master. If the message does not fit into the channel now, it is kept for
    /// [`send_unsent`](Self::send_unsent), unless it is about new connections or equals a kept message. Kept messages
    /// are sent in the order of the calls.
    pub(super) fn send(&self, message: ToMaster) {
        let mut unsent = self.unsent.lock().unwrap_or_else(PoisonError::into_inner);
        if unsent.is_empty() && self.is_sent(&message) {
            return;
        }
        // A message about new connections is not kept, because the next one replaces it.
        if !matches!(message, ToMaster::Arrivals { .. }) && !unsent.contains(&message) {
            unsent.push(message);
        }
    }

    /// Sends the messages that did not fit into the channel before. The worker calls this function at each heartbeat,
    /// because a master that stood still may read again later.
    pub(super) fn send_unsent(&self) {
        let mut unsent = self.unsent.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = unsent.iter().take_while(|message| self.is_sent(message)).count();
        unsent.drain(..sent);
    }

    /// Tries to send a message. Returns true if the message need not be sent again, because it was sent or the master
    /// is gone.
    fn is_sent(&self, message: &ToMaster) -> bool {
        message.send(self.channel.as_fd()).unwrap_or_else(|error| {
            tracing::debug!(event = "channel_closed", %error, "cannot send to the master");
            true
        })
    }

    pub(super) fn connection_opened(&'static self) -> OpenGuard {
        self.row.connection_opened();
        self.traffic.notify_waiters();
        self.tell_arrivals();
        if self.room() == 0 {
            self.tell_full(true);
        }
        OpenGuard(self)
    }

    fn connection_closed(&self) {
        self.row.connection_closed();
        let open = self.row.connections();
        if open == 0 {
            self.emptied.notify_one();
        }
        self.vacated.notify_waiters();
        // The worker reports room only when more than a tenth of its places is free. If it reported room as soon as one
        // connection ends, the kernel would be told twice for every connection.
        if self.row.full() && self.room() > self.http.worker_connections / 10 && !self.report.is_busy() {
            self.tell_full(false);
        }
    }

    /// Tells the master of new connections, so that emptier slots get more of the next connections. Does nothing if the
    /// last message was sent less than `ARRIVALS_EVERY` ago, or `PASSERS_BY_EVERY` if connections do not stay open.
    fn tell_arrivals(&self) {
        let (now, known) = (clock::coarse(), self.row.accepted());
        let came = known - self.arrivals_known.load(Relaxed);
        let stay = came <= self.row.connections();
        let every = if stay { ARRIVALS_EVERY } else { PASSERS_BY_EVERY };
        if now.saturating_sub(self.arrivals_told.load(Relaxed)) >= every {
            self.arrivals_told.store(now, Relaxed);
            self.arrivals_known.store(known, Relaxed);
            self.send(ToMaster::Arrivals { stay });
        }
    }

    /// Tells the master that this worker is full, or has room again. While the worker is full, new connections go to
    /// other workers.
    fn tell_full(&self, full: bool) {
        if self.row.full() == full {
            return;
        }
        self.set_full(full);
        if let (true, Some(suppressed)) = (full, self.fullness.pass()) {
            tracing::warn!(
                event = "worker_full",
                connections = self.row.connections(),
                suppressed,
                "http.worker_connections is reached; a new connection takes the place of an idle one, or waits"
            );
        }
    }

    fn set_full(&self, full: bool) {
        self.row.set_full(full);
        self.send(ToMaster::RoomChanged);
    }

    /// Tells the master whenever the app becomes busy, or is busy no more. While it is busy, the worker counts as full.
    pub(super) async fn tell_busy(&self) {
        loop {
            self.report.busy_changed().await;
            let full = self.report.is_busy() || self.room() == 0;
            if self.row.full() != full {
                self.set_full(full);
            }
            self.vacated.notify_waiters();
        }
    }

    /// Returns true if a new connection must look for its place: `http.worker_connections` is reached, or the app is
    /// busy.
    pub(super) fn is_full(&self) -> bool {
        self.room() == 0 || self.report.is_busy()
    }

    /// Returns how many more connections `http.worker_connections` allows.
    pub(super) fn room(&self) -> u64 {
        match self.http.worker_connections {
            0 => u64::MAX,
            limit => limit.saturating_sub(self.row.connections()),
        }
    }

    /// Returns the time until there may be a place for a new connection. It is zero if there is a place, or if an idle
    /// connection can leave.
    pub(super) fn place_in(&self) -> Duration {
        if !self.is_full() {
            Duration::ZERO
        } else if self.a_sibling_has_room() {
            LOOK_AGAIN
        } else if self.room() > 0 {
            // Every app is busy, and this one is as good as another.
            Duration::ZERO
        } else {
            self.connections.next_leaves_in()
        }
    }

    /// Returns true if the worker has a place for a new connection, or can make one.
    pub(super) fn has_place(&self) -> bool {
        self.place_in().is_zero()
    }

    /// Completes when a connection ends, or when the time `most` is over.
    pub(super) async fn vacated(&self, most: Duration) {
        let _ = timeout(most, self.vacated.notified()).await;
    }

    /// Makes idle connections leave until `new` further connections fit. Returns true if these did not fit before.
    pub(super) fn make_place(&self, new: u64) -> bool {
        let limit = self.http.worker_connections;
        let over = if limit == 0 { 0 } else { (self.row.connections() + new).saturating_sub(limit) };
        for _ in 0..over {
            self.evict("http.worker_connections is reached");
        }
        over > 0
    }

    /// Makes an idle connection leave so that its descriptor becomes free, and waits until a connection has ended, but
    /// not longer than `LOOK_AGAIN`. Returns false if no connection may leave.
    pub(super) async fn free_descriptor(&self) -> bool {
        let one_leaves = self.evict("the worker runs out of file descriptors or memory");
        if one_leaves {
            self.vacated(LOOK_AGAIN).await;
        }
        one_leaves
    }

    /// Asks the connection that has been idle longest to leave. Returns false if no connection may leave.
    fn evict(&self, reason: &str) -> bool {
        let Some(idle) = self.connections.ask_to_leave() else { return false };
        self.row.connection_evicted();
        if let Some(suppressed) = self.evictions.pass() {
            tracing::info!(
                event = "connection_evicted",
                reason,
                idle_ms = idle.as_millis() as u64,
                suppressed,
                "the connection that was idle longest is closed for a new one"
            );
        }
        true
    }

    /// Returns true if a sibling has room. That sibling takes the connections that wait for this full worker.
    fn a_sibling_has_room(&self) -> bool {
        let now = clock::coarse();
        // The row of this worker does not count here, because it says that the worker is full.
        self.scoreboard.rows().any(|row| row.state() == RowState::Serving && !row.full() && row.due() >= now)
    }

    /// Returns true if a connection of HTTP/2 should move to a sibling that has had fewer requests. The caller must
    /// then send the connection away.
    pub(super) fn sends_away(&self) -> bool {
        let now = clock::coarse();
        let mut requests = BTreeMap::new();
        for row in self.scoreboard.rows().filter(|row| row.state() == RowState::Serving && row.due() >= now) {
            *requests.entry(row.slot()).or_insert(0) += row.requests();
        }
        let sends_to = self.balance.sends_to(self.row.slot(), &requests, now);
        if let Some(slot) = sends_to.and_then(|slot| u32::try_from(slot).ok()) {
            self.send(ToMaster::SentTo { slot });
        }
        sends_to.is_some()
    }

    /// Counts and logs a request that did not reach the app, or whose body was cut short.
    pub(super) fn refused(&self, refusal: Refusal, peer: Peer) {
        self.row.refused();
        if let Some(suppressed) = self.refusals.pass() {
            tracing::info!(
                event = "request_refused",
                client = %peer,
                status = refusal.status,
                reason = refusal.reason,
                suppressed,
                "a request was refused"
            );
        }
    }

    /// Counts and logs a request that is not served, because its client has left.
    pub(super) fn abandoned(&self, peer: Peer) {
        self.row.abandoned();
        if let Some(suppressed) = self.departures.pass() {
            tracing::info!(
                event = "request_abandoned",
                client = %peer,
                suppressed,
                "a client left before its request was handed to the app; the request is not served"
            );
        }
    }

    /// Counts and logs a request that was refused because too many other requests are in flight.
    pub(super) fn shed(&self) {
        self.row.shed();
        if let Some(suppressed) = self.sheds.pass() {
            tracing::warn!(
                event = "request_shed",
                in_flight = self.row.in_flight(),
                suppressed,
                "http.limit_concurrency is reached; a request was answered 503"
            );
        }
    }

    pub(super) fn note_delay(&self) {
        self.delays.store(self.delays.load(Relaxed) + 1, Relaxed);
    }

    /// Returns how often the event loop was held up until `now`, which is in milliseconds of the monotonic clock.
    pub(super) fn delays(&self, now: u64) -> u64 {
        self.delays.load(Relaxed) + u64::from(self.is_held_up(now))
    }

    /// Returns true if the event loop is held up at `now`, which shows in a late heartbeat.
    pub(super) fn is_held_up(&self, now: u64) -> bool {
        self.row.due() < now
    }

    /// Counts and logs a request that was refused because workers died while a request with the same method and path
    /// was in flight.
    pub(super) fn quarantined<B>(&self, request: &http::Request<B>) {
        self.row.shed();
        if let Some(suppressed) = self.quarantines.pass() {
            tracing::warn!(
                event = "request_quarantined",
                method = %request.method(),
                path = request.uri().path(),
                suppressed,
                "a request was answered 503, because it was in flight when workers died (http.quarantine)"
            );
        }
    }

    /// Completes when the last connection is gone.
    pub(super) async fn emptied(&self) {
        while self.row.connections() > 0 {
            self.emptied.notified().await;
        }
    }

    /// Completes when the last connection is gone and the app has no background work.
    pub(super) async fn finished(&self) {
        while self.row.connections() + self.background.running() > 0 {
            self.emptied().await;
            self.background.ended().await;
        }
    }
}

/// Counts a connection as open until this guard is dropped.
#[derive(Debug)]
pub(super) struct OpenGuard(&'static Shared);

impl Drop for OpenGuard {
    fn drop(&mut self) {
        self.0.connection_closed();
    }
}

/// Wakes the task of one connection each time that the worker wakes all connections.
pub(super) struct WakeListener<'a> {
    notified: Pin<&'a mut Notified<'static>>,
    /// How often the worker had woken all connections when this listener last listened; `NEVER` if it has not listened
    /// yet.
    known: u64,
}

impl<'a> WakeListener<'a> {
    pub(super) fn new(notified: Pin<&'a mut Notified<'static>>) -> Self {
        Self { notified, known: NEVER }
    }

    /// Listens for the next wake. The task must call this function at each of its turns, always with the same waker. A
    /// call costs almost nothing, except the first one and the first one after a wake.
    pub(super) fn listen(&mut self, shared: &'static Shared, cx: &mut Context<'_>) {
        let wakes = shared.wakes.load(Relaxed);
        if std::mem::replace(&mut self.known, wakes) != wakes {
            self.notified.set(shared.wake_signal());
            let _ = self.notified.as_mut().poll(cx);
        }
    }
}
