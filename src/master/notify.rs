//! Notifications to systemd about the service, by the protocol of sd_notify(3): `Type=notify`, `notify-reload`,
//! `WatchdogSec=`.
//!
//! Owns: the datagrams to `$NOTIFY_SOCKET`, and the time at which the next datagram for the watchdog is due. Refuses:
//! to wait for systemd, and to judge whether the service serves (`core`). If systemd does not take a message now, the
//! message is offered again in the next turns.

use std::{
    collections::VecDeque,
    ffi::OsStr,
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
};

use serde::{Deserialize, Serialize};

use super::core::Millis;
use crate::sys::clock;

/// How long to wait before the next attempt, after the queue of systemd was full.
const RETRY_MS: u64 = 250;

/// The states of a service that systemd knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ServiceState {
    /// No worker has served yet.
    Starting,
    Serving,
    Stopping,
}

#[derive(Debug)]
pub(super) struct Notify {
    socket: UnixDatagram,
    to: SocketAddr,
    state: ServiceState,
    reloading: bool,
    /// The status text that was sent last.
    told: String,
    /// Messages about the state that are not sent yet, the oldest first. A status text is not kept, because only the
    /// newest text matters.
    unsent: VecDeque<String>,
    /// When the master tries again to send. It is set only while a message waits for room in the queue of systemd.
    retry_at: Option<Millis>,
    watchdog: Option<Watchdog>,
    /// True if a failure to send was logged. No other failure is logged until a notification is sent again.
    failed: bool,
}

#[derive(Clone, Copy, Debug)]
struct Watchdog {
    every_ms: u64,
    due: Millis,
}

impl Notify {
    /// Returns `None` if no service manager listens, or if the service manager cannot be reached. In the second case
    /// the log has the reason.
    pub(super) fn open(now: Millis) -> Option<Self> {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let every_ms =
            watchdog_ms(variable("WATCHDOG_USEC").as_deref(), variable("WATCHDOG_PID").as_deref(), std::process::id());
        match Self::to(&variable("NOTIFY_SOCKET")?, every_ms, now) {
            Ok(notify) => Some(notify),
            Err(error) => {
                say_failed(&error);
                None
            }
        }
    }

    fn to(place: &OsStr, every_ms: Option<u64>, now: Millis) -> io::Result<Self> {
        let to = match place.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            [b'/', ..] => SocketAddr::from_pathname(place)?,
            _ => {
                return Err(io::Error::other("NOTIFY_SOCKET is neither a path nor an abstract name such as \"@name\""));
            }
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            to,
            state: ServiceState::Starting,
            reloading: false,
            told: String::new(),
            unsent: VecDeque::new(),
            retry_at: None,
            watchdog: every_ms.map(|every_ms| Watchdog { every_ms, due: now }),
            failed: false,
        })
    }

    /// Continues in place of the old program, so that nothing that the old program has sent to systemd is sent again.
    pub(super) fn resume(&mut self, (state, reloading): (ServiceState, bool)) {
        (self.state, self.reloading) = (state, reloading);
    }

    /// Returns the state that systemd was told last, so that the next program can continue from it.
    pub(super) fn told(&self) -> (ServiceState, bool) {
        (self.state, self.reloading)
    }

    /// Returns when [`turn`](Self::turn) must be called at the latest.
    pub(super) fn deadline(&self) -> Option<Millis> {
        self.watchdog.map(|watchdog| watchdog.due).into_iter().chain(self.retry_at).min()
    }

    /// Sends what has changed since the last turn, and the watchdog's signal when it is due.
    pub(super) fn turn(&mut self, state: ServiceState, status: &str, now: Millis) {
        self.retry_at = None;
        // The state never returns to an earlier one. If no worker serves at the moment, only the status text says so.
        if state > self.state {
            self.state = state;
            match state {
                ServiceState::Starting => {}
                ServiceState::Serving => self.unsent.push_back("READY=1".to_owned()),
                ServiceState::Stopping => self.unsent.push_back("STOPPING=1".to_owned()),
            }
        }
        self.flush(now);
        if self.unsent.is_empty() && status != self.told && self.send(&format!("STATUS={status}"), now) {
            status.clone_into(&mut self.told);
        }
        if let Some(Watchdog { every_ms, due }) = self.watchdog
            && due <= now
        {
            let wait_ms = if self.send("WATCHDOG=1", now) { every_ms } else { every_ms.min(RETRY_MS) };
            self.watchdog = Some(Watchdog { every_ms, due: now.after(wait_ms) });
        }
    }

    /// Notifies systemd that a reload was requested, even if the reload is refused or queued. The reason is that
    /// `systemctl reload` waits for this notification, and then for [`ready`](Self::ready).
    pub(super) fn reloading(&mut self, now: Millis) {
        if self.state == ServiceState::Serving {
            self.reloading = true;
            self.unsent.push_back(format!("RELOADING=1\nMONOTONIC_USEC={}", clock::nanoseconds() / 1_000));
            self.flush(now);
        }
    }

    /// Notifies systemd that the reload is over, with or without success.
    pub(super) fn ready(&mut self, now: Millis) {
        if std::mem::take(&mut self.reloading) && self.state == ServiceState::Serving {
            self.unsent.push_back("READY=1".to_owned());
            self.flush(now);
        }
    }

    fn flush(&mut self, now: Millis) {
        while let Some(message) = self.unsent.pop_front() {
            if !self.send(&message, now) {
                self.unsent.push_front(message);
                return;
            }
        }
    }

    /// Sends a message. Returns false if systemd has no room for the message now. A message that fails for another
    /// reason is dropped, because it would fail again.
    fn send(&mut self, message: &str, now: Millis) -> bool {
        match self.socket.send_to_addr(message.as_bytes(), &self.to) {
            Ok(_) => self.failed = false,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.retry_at = Some(now.after(RETRY_MS));
                return false;
            }
            Err(error) => {
                if !std::mem::replace(&mut self.failed, true) {
                    say_failed(&error);
                }
            }
        }
        true
    }
}

fn say_failed(error: &io::Error) {
    tracing::warn!(
        event = "notify_failed",
        %error,
        "could not notify systemd (NOTIFY_SOCKET); it may take the service for not started, or for hung"
    );
}

/// Returns half of the time that the service manager allows between two signals; `None` if the service manager does not
/// watch the process `pid`.
fn watchdog_ms(usec: Option<&OsStr>, watched: Option<&OsStr>, pid: u32) -> Option<u64> {
    let ours = watched.is_none_or(|watched| watched.to_str() == Some(&pid.to_string()));
    let usec: u64 = usec?.to_str()?.parse().ok().filter(|usec| *usec > 0)?;
    ours.then_some((usec / 2_000).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(theirs: &UnixDatagram) -> Vec<String> {
        let mut buffer = [0; 256];
        std::iter::from_fn(|| theirs.recv(&mut buffer).ok().map(|len| String::from_utf8_lossy(&buffer[..len]).into()))
            .collect()
    }

    fn pair(every_ms: Option<u64>) -> (Notify, UnixDatagram, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let theirs = UnixDatagram::bind(&path).unwrap();
        theirs.set_nonblocking(true).unwrap();
        (Notify::to(path.as_os_str(), every_ms, Millis(0)).unwrap(), theirs, folder)
    }

    #[test]
    fn each_change_is_sent_once_and_the_state_never_goes_back() {
        let (mut notify, theirs, _folder) = pair(None);
        notify.turn(ServiceState::Starting, "0 of 1", Millis(0));
        notify.reloading(Millis(0));
        notify.ready(Millis(0));
        assert_eq!(told(&theirs), ["STATUS=0 of 1"], "no READY before a worker serves, reload or not");
        for status in ["1 of 1", "1 of 1"] {
            notify.turn(ServiceState::Serving, status, Millis(1));
        }
        assert_eq!(told(&theirs), ["READY=1", "STATUS=1 of 1"]);
        notify.turn(ServiceState::Starting, "0 of 1", Millis(2));
        notify.turn(ServiceState::Serving, "1 of 1", Millis(3));
        assert_eq!(told(&theirs), ["STATUS=0 of 1", "STATUS=1 of 1"]);
        notify.reloading(Millis(4));
        notify.reloading(Millis(4));
        notify.ready(Millis(5));
        notify.ready(Millis(5));
        let reload = told(&theirs);
        assert_eq!(reload.len(), 3, "{reload:?}");
        assert!(reload[0].starts_with("RELOADING=1\nMONOTONIC_USEC="), "{reload:?}");
        assert!(reload[1].starts_with("RELOADING=1\n") && reload[2] == "READY=1", "{reload:?}");
        notify.reloading(Millis(6));
        told(&theirs);
        notify.turn(ServiceState::Stopping, "1 of 1", Millis(7));
        notify.ready(Millis(8));
        assert_eq!(told(&theirs), ["STOPPING=1"]);
        assert_eq!(notify.deadline(), None);
    }

    #[test]
    fn a_full_queue_does_not_block_and_loses_no_state() {
        let (mut notify, theirs, _folder) = pair(None);
        while notify.send("STATUS=full", Millis(0)) {}
        notify.turn(ServiceState::Serving, "1 of 1", Millis(1_000));
        assert_eq!(notify.deadline(), Some(Millis(1_000 + RETRY_MS)));
        notify.turn(ServiceState::Stopping, "draining", Millis(1_100));
        told(&theirs);
        notify.turn(ServiceState::Stopping, "draining", Millis(1_250));
        assert_eq!(told(&theirs), ["READY=1", "STOPPING=1", "STATUS=draining"]);
        assert_eq!(notify.deadline(), None);
    }

    #[test]
    fn the_watchdog_gets_its_signal_in_time() {
        let (mut notify, theirs, _folder) = pair(Some(500));
        for now in [0, 499, 500, 501, 1_300, 1_799, 1_800] {
            notify.turn(ServiceState::Starting, "", Millis(now));
        }
        assert_eq!(told(&theirs), ["WATCHDOG=1"; 4]);
        assert_eq!(notify.deadline(), Some(Millis(2_300)));
        // Without a receiver the send fails, and the master does not try again in a busy loop.
        drop(theirs);
        notify.turn(ServiceState::Starting, "", Millis(2_300));
        assert_eq!(notify.deadline(), Some(Millis(2_800)));
    }

    #[test]
    fn the_watchdog_is_served_only_by_the_process_that_systemd_watches() {
        let ms = |usec: &str, pid: Option<&str>| watchdog_ms(Some(OsStr::new(usec)), pid.map(OsStr::new), 42);
        assert_eq!(ms("30000000", Some("42")), Some(15_000));
        assert_eq!(ms("30000000", None), Some(15_000));
        assert_eq!(ms("30000000", Some("41")), None);
        assert_eq!((ms("0", None), ms("x", None), ms("1", None)), (None, None, Some(1)));
        assert_eq!(watchdog_ms(None, None, 42), None);
    }

    #[test]
    fn a_notify_socket_that_is_no_unix_address_is_refused() {
        for place in ["vsock:2:1234", "relative"] {
            assert!(Notify::to(OsStr::new(place), None, Millis(0)).is_err(), "{place}");
        }
    }
}
