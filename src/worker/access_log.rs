//! The access log of one worker, with a line for each request that the worker answered or refused.
//!
//! Owns: the lines that are not yet written, and the moments at which they are written. Lines are written when 16 KiB
//! of them wait, at each heartbeat, and at the worker's end. Refuses: the format of a line (`format`), the opening of
//! files (the master), and a wait for a reader or a disk while the worker serves. Lines that a reader or disk does not
//! take in time are dropped and counted.

mod entry;
mod format;

use std::{
    fs::File,
    io,
    net::IpAddr,
    os::fd::OwnedFd,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use http::{HeaderName, Request, StatusCode};
use jiff::Timestamp;

pub(super) use self::entry::{AccessEntry, LoggedBody};
use self::format::{AccessFacts, TimestampCache};
use crate::{
    log::{self, Sink},
    scoreboard::Row,
    settings::{self, Form},
    sys::clock,
};

/// When this many bytes of lines wait, they are written at once, and not only at the next heartbeat.
const FULL: usize = 16 * 1024;

/// If this many bytes of lines wait, because the reader of the log does not read or the disk is full, each further line
/// is dropped.
const MOST: usize = 64 * 1024;

/// How long a worker tries, at its end, to write the rest of a line of which a part is already written. `LAST_LINE_TRY`
/// is the pause between two tries.
const LAST_LINE: Duration = Duration::from_millis(100);
const LAST_LINE_TRY: Duration = Duration::from_millis(2);

/// The least time between two reports of dropped lines in the log, in milliseconds.
const TELL_EVERY: u64 = 1_000;

#[derive(Debug)]
pub(super) struct AccessLog {
    form: Form,
    exclude: Vec<String>,
    /// `request_headers` and `response_headers` hold the names of the headers that a line shows.
    request_headers: Vec<HeaderName>,
    response_headers: Vec<HeaderName>,
    row: Row,
    pid: u32,
    writer: Mutex<LineWriter>,
}

#[derive(Debug)]
struct LineWriter {
    sink: Sink,
    /// Whole lines that are not yet written.
    buffer: Vec<u8>,
    /// Why the last write did not take the whole buffer; `None` if it took the whole buffer.
    stalled: Option<io::ErrorKind>,
    timestamps: TimestampCache,
    dropped: u64,
    told: u64,
    told_at: u64,
}

impl AccessLog {
    /// Returns `None` if `log.access` is off.
    pub(super) fn new(sink: Sink, settings: &settings::Log, row: Row) -> Option<Self> {
        if sink.is_off() {
            return None;
        }
        let form = settings.access_format.form.clone();
        let (request_headers, response_headers) = match &form {
            Form::Json => (format::json_headers(), Vec::new()),
            Form::Text(parts) => settings::headers(parts),
        };
        let writer = LineWriter {
            sink,
            buffer: Vec::new(),
            stalled: None,
            timestamps: TimestampCache::default(),
            dropped: 0,
            told: 0,
            told_at: 0,
        };
        let (exclude, pid) = (settings.access_exclude.clone(), std::process::id());
        Some(Self { form, exclude, request_headers, response_headers, row, pid, writer: Mutex::new(writer) })
    }

    /// Begins the entry of a request whose head was read at `begun`, in nanoseconds of the monotonic clock. Its line is
    /// written when the entry is dropped. Returns `None` if the request's path is in `log.access_exclude`.
    pub(super) fn begin<B>(
        &'static self,
        begun: u64,
        client: Option<IpAddr>,
        request: &Request<B>,
    ) -> Option<Box<AccessEntry>> {
        if self.excludes(request.uri().path()) {
            return None;
        }
        let facts = AccessFacts {
            client,
            request: Some((request.method().clone(), request.uri().clone(), request.version())),
            request_headers: format::keep(&self.request_headers, request.headers()),
            ..AccessFacts::default()
        };
        Some(Box::new(AccessEntry::new(self, begun, facts)))
    }

    /// Writes the line of a request that was refused before it was parsed. `bytes` is the size of the response's body,
    /// and `took` is the time since the request began. `head` is the part of the request that has arrived. The line
    /// shows the request line in `head` if that is complete and valid.
    pub(super) fn refused(&self, client: Option<IpAddr>, head: &[u8], status: StatusCode, bytes: u64, took: Duration) {
        let took_ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let request = format::request_line(head);
        if request.as_ref().is_some_and(|(_, uri, _)| self.excludes(uri.path())) {
            return;
        }
        self.write(&AccessFacts { client, request, status: Some(status), bytes, took_ns, ..AccessFacts::default() });
    }

    fn excludes(&self, path: &str) -> bool {
        self.exclude.iter().any(|excluded| excluded == path)
    }

    fn write(&self, facts: &AccessFacts) {
        let mut writer = self.lock();
        if writer.buffer.len() >= MOST {
            self.count_dropped(&mut writer, 1);
            return;
        }
        writer.put(&self.form, facts, self.pid);
        // If the last write did not take the whole buffer, only the next heartbeat tries again. A try for each new line
        // would come too often.
        if writer.buffer.len() >= FULL && writer.stalled.is_none() {
            writer.flush();
        }
    }

    /// Writes the lines that wait, and reports lost lines in the log. The worker calls this function at each heartbeat.
    pub(super) fn flush(&self) {
        let mut writer = self.lock();
        if !writer.buffer.is_empty() || writer.sink.is_torn() {
            writer.flush();
        }
        let now = clock::coarse();
        if writer.dropped > writer.told && now.saturating_sub(writer.told_at) >= TELL_EVERY {
            writer.told_at = now;
            writer.tell();
        }
    }

    /// Writes new lines to `file` from now on, because the master has opened the access log again. Lines that wait
    /// already are first written to the old file, if the old file takes them.
    pub(super) fn adopt(&self, file: OwnedFd) {
        let mut writer = self.lock();
        writer.flush();
        if !writer.sink.adopt(File::from(file)) {
            self.count_dropped(&mut writer, 1);
        }
        writer.stalled = None;
    }

    /// Writes the waiting lines at the worker's end. Lines that cannot be written now are lost and counted.
    pub(super) fn finish(&self) {
        let mut writer = self.lock();
        writer.flush();
        // The worker serves no more requests, so it can wait a moment for a reader that has got only a part of a line.
        let began = clock::now();
        while !writer.sink.finish() && clock::now() - began < LAST_LINE.as_millis() as u64 {
            thread::sleep(LAST_LINE_TRY);
        }
        let lines = writer.buffer.iter().filter(|byte| **byte == b'\n').count() as u64;
        let lost = lines + u64::from(writer.sink.is_torn());
        writer.buffer.clear();
        self.count_dropped(&mut writer, lost);
        if writer.dropped > writer.told {
            writer.tell();
        }
    }

    fn count_dropped(&self, writer: &mut LineWriter, lines: u64) {
        writer.dropped += lines;
        self.row.access_lines_dropped(lines);
    }

    fn lock(&self) -> MutexGuard<'_, LineWriter> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LineWriter {
    fn put(&mut self, form: &Form, facts: &AccessFacts, pid: u32) {
        self.timestamps.update(Timestamp::now());
        let (buffer, timestamps) = (&mut self.buffer, &self.timestamps);
        let begin = buffer.len();
        match form {
            Form::Text(parts) => {
                format::text(buffer, parts, facts, timestamps, pid);
                if let Some(cut) = self.sink.cut(&buffer[begin..]) {
                    buffer.splice(begin.., cut);
                }
            }
            Form::Json => {
                format::json(buffer, facts, timestamps, pid, usize::MAX);
                if self.sink.cut(&buffer[begin..]).is_some() {
                    // A cut JSON object would not be valid. So the object is written again, with each of its values
                    // cut.
                    buffer.truncate(begin);
                    format::json(buffer, facts, timestamps, pid, format::SHORT);
                }
            }
        }
    }

    fn flush(&mut self) {
        let (taken, why) = self.sink.put_all(&self.buffer);
        self.buffer.drain(..taken);
        self.stalled = why;
    }

    fn tell(&mut self) {
        let lines = self.dropped - self.told;
        let lost = log::dropped();
        let reason = match self.stalled {
            None => "it could not be written for a moment".to_owned(),
            Some(io::ErrorKind::WouldBlock) => "its reader is slow or stopped".to_owned(),
            Some(other) => other.to_string(),
        };
        tracing::warn!(
            event = "access_lines_dropped",
            pid = std::process::id(),
            lines,
            reason,
            "{lines} lines of the access log are lost; requests are still served"
        );
        // The log may have the same reader as the access log, and may therefore lose this warning. If it has lost the
        // warning, the next warning counts these lines again.
        if log::dropped() == lost {
            self.told = self.dropped;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Read, path::Path};

    use super::*;
    use crate::{
        scoreboard::Scoreboard,
        settings::{AccessFormat, LogTarget, Settings},
    };

    fn to(path: &Path) -> (Scoreboard, &'static AccessLog) {
        let board = Scoreboard::create(1, 1).unwrap();
        let row = board.claim(0, 1, 0, 0).unwrap();
        let sink = Sink::open("log.access", &LogTarget::File(path.to_owned()), io::stdout()).unwrap();
        let mut settings = Settings::default().log;
        settings.access_format = AccessFormat::parse("%(U)s").unwrap();
        settings.access_exclude = vec!["/health".to_owned()];
        (board, Box::leak(Box::new(AccessLog::new(sink, &settings, row).unwrap())))
    }

    fn ask(log: &'static AccessLog, path: &str) {
        drop(log.begin(clock::nanoseconds(), None, &Request::get(path).body(()).unwrap()));
    }

    fn read(path: &Path) -> String {
        fs::read_to_string(path).unwrap()
    }

    #[test]
    fn lines_wait_for_the_heartbeat_or_until_there_are_many() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let (_board, log) = to(&path);
        ask(log, "/one");
        ask(log, "/health");
        assert_eq!(read(&path), "");
        log.flush();
        assert_eq!(read(&path), "/one\n");
        (0..=FULL / 5).for_each(|_| ask(log, "/two"));
        assert!(read(&path).len() >= FULL);
        ask(log, "/three");
        log.finish();
        assert!(read(&path).ends_with("/two\n/three\n"));
    }

    #[test]
    fn lines_begun_before_a_rotation_go_to_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let (old, new) = (folder.path().join("old"), folder.path().join("new"));
        let (board, log) = to(&old);
        ask(log, "/one");
        log.adopt(fs::File::create(&new).unwrap().into());
        ask(log, "/two");
        log.finish();
        assert_eq!((read(&old), read(&new)), ("/one\n".to_owned(), "/two\n".to_owned()));
        assert_eq!(board.totals().access_lines_dropped, 0);
    }

    #[test]
    fn a_full_disk_keeps_some_lines_and_counts_the_lost_ones() {
        let (board, log) = to(Path::new("/dev/full"));
        let kept = (0..).take_while(|_| (ask(log, "/123456789"), board.totals().access_lines_dropped == 0).1).count();
        assert_eq!(kept, MOST / 11 + 1);
        ask(log, "/lost");
        log.flush();
        assert_eq!(board.totals().access_lines_dropped, 2);

        // The master opens another file, and that file has room for more lines.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        log.adopt(fs::File::create(&path).unwrap().into());
        log.finish();
        assert_eq!(read(&path), "/123456789\n".repeat(kept));
        assert_eq!(board.totals().access_lines_dropped, 2);

        let (board, log) = to(Path::new("/dev/full"));
        ask(log, "/lost");
        log.finish();
        assert_eq!(board.totals().access_lines_dropped, 1);
    }

    #[test]
    fn a_pipe_that_is_read_again_gets_the_lines_that_were_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        // The FIFO is opened for reading too, because a FIFO without a reader cannot be opened for writing.
        let mut reader = fs::File::options().read(true).write(true).open(&path).unwrap();
        let (board, log) = to(&path);
        let long = format!("/{}", "x".repeat(9_000));
        let asked = (0..).take_while(|_| (ask(log, &long), board.totals().access_lines_dropped == 0).1).count();
        let mut whole = vec![0; 4096 * asked];
        for page in whole.chunks_mut(4096) {
            log.flush();
            reader.read_exact(page).unwrap();
            assert!(page.starts_with(b"/xx") && page.ends_with("x…[cut]\n".as_bytes()));
        }
        assert_eq!(board.totals().access_lines_dropped, 1);
    }
}
