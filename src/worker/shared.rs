//! What the tasks of one worker have in common.
//!
//! Owns: the flags of a drain, the row the worker counts in, the listeners, and the channel's sending end. One to a process, made
//! once, never freed: tasks hold plain references. Refuses: deciding when to drain (`worker`).

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use rustls::ServerConfig;
use tokio::sync::{Notify, watch};

use crate::{
    channel::ToMaster,
    listener::Listeners,
    scoreboard::{Notepad, Row, Scoreboard},
    settings::{Http, Settings},
    worker::throttle::Throttle,
};

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) row: Row,
    pub(super) scoreboard: Scoreboard,
    pub(super) listeners: Listeners,
    pub(super) notepad: Notepad,
    pub(super) http: Http,
    /// `None` without TLS.
    pub(super) tls: Option<Arc<ServerConfig>>,
    /// Handshakes that failed: any client can fail.
    pub(super) handshakes: Throttle,
    channel: Arc<OwnedFd>,
    stopping: watch::Sender<bool>,
    draining: watch::Sender<bool>,
    /// The watch above, for the request path: no lock to read.
    drains: AtomicBool,
    ends: AtomicBool,
    /// Wakes every connection when `ends` is raised.
    pub(super) end: Notify,
    emptied: Notify,
    /// Wakes a beat that has found nothing to do.
    pub(super) traffic: Notify,
}

impl Shared {
    pub(super) fn new(
        row: Row,
        scoreboard: Scoreboard,
        listeners: Listeners,
        channel: Arc<OwnedFd>,
        settings: &Settings,
    ) -> &'static Self {
        Box::leak(Box::new(Self {
            row,
            notepad: row.notepad(),
            scoreboard,
            listeners,
            http: settings.http.clone(),
            tls: settings.tls.material.as_ref().map(|material| Arc::clone(&material.config)),
            handshakes: Throttle::default(),
            channel,
            stopping: watch::Sender::new(false),
            draining: watch::Sender::new(false),
            drains: AtomicBool::new(false),
            ends: AtomicBool::new(false),
            end: Notify::new(),
            emptied: Notify::new(),
            traffic: Notify::new(),
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

    /// From now on every answer says `Connection: close`.
    pub(super) fn begin_drain(&self) {
        self.row.draining();
        self.drains.store(true, Relaxed);
        self.draining.send_replace(true);
    }

    pub(super) fn drains(&self) -> bool {
        self.drains.load(Relaxed)
    }

    /// The grace is over: connections without a request half-close now.
    pub(super) fn begin_end(&self) {
        self.ends.store(true, Relaxed);
        self.end.notify_waiters();
    }

    pub(super) fn ends(&self) -> bool {
        self.ends.load(Relaxed)
    }

    pub(super) fn say(&self, message: &ToMaster) {
        if let Err(error) = message.send(self.channel.as_fd()) {
            tracing::debug!(event = "channel_closed", %error, "the master cannot be told");
        }
    }

    pub(super) fn connection_opened(&'static self) -> Open {
        self.row.connection_opened();
        self.traffic.notify_waiters();
        Open(self)
    }

    /// Completes when the last connection is gone.
    pub(super) async fn emptied(&self) {
        while self.row.connections() > 0 {
            self.emptied.notified().await;
        }
    }
}

/// A connection is open as long as this lives.
#[derive(Debug)]
pub(super) struct Open(&'static Shared);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.row.connection_closed();
        if self.0.row.connections() == 0 {
            self.0.emptied.notify_one();
        }
    }
}
