//! The log: every `tracing` event becomes one line. The process in which the event happens writes the line at once.
//!
//! Owns: the open files of the log and of the access log (a worker takes the access log for itself), and the count of
//! dropped lines. Refuses: to use threads or queues, because a fork would break them and a crash would lose their
//! lines; and to write spans (`subscriber` says why).
//!
//! After its fork, a worker continues to write with the same settings, to the same file.

mod event_line;
mod sink;
mod subscriber;
pub(crate) mod terminal;

use std::{
    io,
    os::fd::OwnedFd,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use jiff::Timestamp;
use tracing::{Event, level_filters::LevelFilter};

pub(crate) use self::sink::{OpenError, Sink};
use self::{
    event_line::{EventLine, LineFormat},
    subscriber::Levels,
};
pub use self::{sink::SharedStream, subscriber::log_layer};
use crate::{
    hook,
    settings::{self, Level, LogFormat},
};

static LOG: Mutex<Option<LogOutput>> = Mutex::new(None);

/// The number of lines that this process dropped.
static DROPPED: AtomicU64 = AtomicU64::new(0);
/// The number of dropped lines that this process has already reported by a line in the log.
static REPORTED: AtomicU64 = AtomicU64::new(0);

struct LogOutput {
    sink: Sink,
    format: LineFormat,
    access: Sink,
}

/// Applies `settings` to the log. The master calls it at the start and again at each reload.
///
/// # Errors
/// A file cannot be opened. The log then stays as it was.
pub(crate) fn configure(settings: &settings::Log) -> Result<(), OpenError> {
    let sink = Sink::open("log.file", &settings.file, io::stderr())?;
    let access = Sink::open("log.access", &settings.access, io::stdout())?;
    let journal = std::env::var("JOURNAL_STREAM").is_ok_and(|stream| sink.is_journal(&stream));
    let format = match settings.format {
        LogFormat::Text if journal => LineFormat::Journal,
        LogFormat::Text => LineFormat::Text,
        LogFormat::Json => LineFormat::Json,
    };
    *lock() = Some(LogOutput { sink, format, access });
    let level = |level: Option<Level>| level.map_or(LevelFilter::OFF, filter);
    let targets = settings.targets.iter().map(|of| (of.target.clone(), level(of.level)));
    subscriber::set_levels(Levels { level: filter(settings.level), targets: targets.collect() });
    subscriber::come_first();
    Ok(())
}

/// Does what [`configure`] does, in the new program of an upgrade. If a file cannot be opened, the lines go to the file
/// that the old program wrote to and has passed to the new program.
///
/// # Errors
/// A file cannot be opened, and the old program has passed no file.
pub(crate) fn go_on(settings: &settings::Log, file: Option<OwnedFd>, access: Option<OwnedFd>) -> Result<(), OpenError> {
    use settings::LogTarget::{Off, Standard};
    let Err(error) = configure(settings) else { return Ok(()) };
    if file.is_none() && access.is_none() {
        return Err(error);
    }
    let target = |known: &Option<_>, wanted: &settings::LogTarget, other| {
        if known.is_some() { other } else { wanted.clone() }
    };
    configure(&settings::Log {
        file: target(&file, &settings.file, Standard),
        access: target(&access, &settings.access, Off),
        ..settings.clone()
    })?;
    if let Some(log) = lock().as_mut() {
        for (sink, file) in [(&mut log.sink, file), (&mut log.access, access)] {
            if let Some(file) = file {
                sink.adopt(file.into());
            }
        }
    }
    Ok(())
}

/// Opens the files of both logs again, after an operator has moved them away. Standard streams stay as they are.
/// Returns an error for each file that cannot be opened. The lines for such a file still go to the old file.
pub(crate) fn reopen() -> Vec<OpenError> {
    let mut log = lock();
    let sinks = log.as_mut().map(|log| [&mut log.sink, &mut log.access]);
    sinks.into_iter().flatten().filter_map(|sink| sink.reopen().err()).collect()
}

/// Returns the open file of the log, for the master to pass to a worker that may lack the right to open it. The result
/// is `None` if the log is not a file.
pub(crate) fn file() -> Option<OwnedFd> {
    lock().as_ref()?.sink.file()?.try_clone().ok().map(OwnedFd::from)
}

/// Returns the open file of the access log, for the master to pass to a worker. The result is `None` if the access log
/// is not a file.
pub(crate) fn access_file() -> Option<OwnedFd> {
    lock().as_ref()?.access.file()?.try_clone().ok().map(OwnedFd::from)
}

/// Takes the output of the access log out of the log. A worker calls this after its fork and keeps the output, because
/// only workers write the access log. If the master has written only the beginning of a line of the log, the fork has
/// copied the rest of that line into the worker. The worker drops this copy, because the master itself writes the rest.
pub(crate) fn take_access() -> Sink {
    let off = Sink::off("log.access");
    match lock().as_mut() {
        Some(log) => {
            log.sink.abandon_rest();
            std::mem::replace(&mut log.access, off)
        }
        None => off,
    }
}

/// Writes what the output had no room for before: the end of a line that the output took in part, and a line that says
/// how many lines were dropped. Returns `false` if the output still has no room for one of the two.
pub(crate) fn catch_up() -> bool {
    lock().as_mut().is_none_or(|log| log.sink.finish() && log.report_dropped())
}

/// Logs every panic from now on. A panic in a hook of the app gets a message that names the hook. A panic in another
/// thread than the caller's gets a message that says that the thread is the app's. Every other panic gets `message`.
/// The default handler would write to stderr, and that write could wait for the reader of stderr for ever.
pub(crate) fn take_panics(message: &'static str) {
    let own = thread::current().id();
    std::panic::set_hook(Box::new(move |panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let reason = panic.payload_as_str().unwrap_or("of no known kind");
        let say = || match hook::running() {
            Some(hook) => tracing::error!(event = "panic", place, reason, "{hook} panicked: a mistake in the app"),
            None if thread::current().id() != own => {
                tracing::error!(event = "panic", place, reason, "a panic in a thread of the app");
            }
            None => tracing::error!(event = "panic", place, reason, "{message}"),
        };
        if !is_open() {
            return last_words(&format!("{} ({place}): {reason}", hook::running().unwrap_or(message)));
        }
        if subscriber::writes_here() { say() } else { subscriber::alone(say) }
    }));
}

/// Writes an error as one line on stderr. It is for a master that ends before it has a log.
pub(crate) fn last_words(sentence: &str) {
    if let Ok(mut sink) = Sink::open("log.file", &settings::LogTarget::Standard, io::stderr()) {
        sink.put(&format!("{}: error: {}\n", terminal::name(), terminal::plain(sentence)));
    }
}

/// Returns true if this process has configured its log. If not, no lines are written.
pub(crate) fn is_open() -> bool {
    lock().is_some()
}

/// Writes the log to `file` from now on. The master has opened this file and passed it to this worker.
pub(crate) fn adopt(file: OwnedFd) {
    if let Some(log) = lock().as_mut()
        && !log.sink.adopt(file.into())
    {
        DROPPED.fetch_add(1, Ordering::Relaxed);
    }
}

/// Returns the number of lines that this process could not write, because the reader was slow or gone, or the disk was
/// full. A forked worker begins with the number of its master.
pub(crate) fn dropped() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

fn lock() -> std::sync::MutexGuard<'static, Option<LogOutput>> {
    // If a thread panicked while it held the lock, the log is used all the same, because the worst damage is half a
    // line.
    LOG.lock().unwrap_or_else(PoisonError::into_inner)
}

impl LogOutput {
    fn write(&mut self, line: &str) {
        self.report_dropped();
        if !self.sink.put(line) {
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Writes a line that says how many lines were dropped since the last such line. Returns `false` if this
    /// line cannot be written either.
    fn report_dropped(&mut self) -> bool {
        let dropped = dropped();
        let unreported = dropped - REPORTED.load(Ordering::Relaxed);
        if unreported > 0 {
            let mut notice = EventLine::new(self.format, Timestamp::now(), tracing::Level::WARN);
            notice.message(format_args!(
                "{unreported} lines dropped: the log's reader was slow or gone, or the disk full"
            ));
            notice.put("dropped", &unreported.to_string(), true);
            if !self.sink.put(&notice.finish()) {
                return false;
            }
            REPORTED.store(dropped, Ordering::Relaxed);
        }
        true
    }
}

/// Lets the app's own `tracing` subscriber, if there is one, take the events of this worker from now on. The worker
/// calls this after the factory, because the factory may install such a subscriber.
pub(crate) fn give_way() {
    if !subscriber::give_way() {
        subscriber::alone(|| {
            tracing::warn!(
                event = "log_layer_missing",
                pid = std::process::id(),
                "the app's subscriber has no oxicorn::log_layer(): it gets the events of this worker, and this log does not"
            );
        });
    }
}

/// Writes an event of `tracing` as one line of the log.
fn write(event: &Event<'_>) {
    let Some(format) = lock().as_ref().map(|log| log.format) else { return };
    let metadata = event.metadata();
    let mut line = EventLine::new(format, Timestamp::now(), *metadata.level());
    // Do not hold the lock here. A value may panic while it is formatted, and logging the panic takes the lock too.
    event.record(&mut line);
    let target = metadata.target();
    // The extension module of the Python package has an underscore before its name.
    if target.trim_start_matches('_').split("::").next() != Some("oxicorn") {
        line.put("target", target, false);
    }
    if let Some(log) = lock().as_mut() {
        log.write(&line.finish());
    }
}

fn filter(level: Level) -> LevelFilter {
    match level {
        Level::Error => LevelFilter::ERROR,
        Level::Warn => LevelFilter::WARN,
        Level::Info => LevelFilter::INFO,
        Level::Debug => LevelFilter::DEBUG,
        Level::Trace => LevelFilter::TRACE,
    }
}

#[cfg(test)]
mod tests {
    use std::{error::Error, fmt, path::Path};

    use super::*;
    use crate::settings::LogTarget;

    /// Makes tests wait for each other, because a process has only one log and one count of dropped lines.
    fn turn() -> std::sync::MutexGuard<'static, ()> {
        static TURN: Mutex<()> = Mutex::new(());
        TURN.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `say` with a log at `path`, and returns the lines of that file.
    fn lines(format: LineFormat, level: Level, path: &Path, say: impl FnOnce()) -> Vec<String> {
        let _turn = turn();
        subscriber::set_levels(Levels { level: filter(level), targets: Vec::new() });
        *lock() = Some(log(format, path));
        subscriber::alone(say);
        *lock() = None;
        std::fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect()
    }

    fn log(format: LineFormat, path: &Path) -> LogOutput {
        let sink = Sink::open("log.file", &LogTarget::File(path.to_owned()), io::stderr()).unwrap();
        LogOutput { sink, format, access: Sink::off("log.access") }
    }

    #[derive(Debug, thiserror::Error)]
    #[error("cannot do it")]
    struct Failure {
        source: fmt::Error,
    }

    fn say() {
        let (event, slot, ratio) = ("worker_ready", 0_u32, f64::INFINITY);
        tracing::info!(target: "oxicorn::master", event, slot, up = true, ratio, "worker ready");
        let forged = "x\n2026-01-01T00:00:00.000Z ERROR forged\u{1b}[31m \"q\" \\ é\u{202e}";
        tracing::warn!(target: "app", forged, r#type = %"a=b", empty = "", "first\nsecond");
        tracing::error!(target: "oxicorn", error = &Failure { source: fmt::Error } as &dyn Error, "failed");
        tracing::debug!(target: "oxicorn", "below the level");
    }

    #[test]
    fn an_event_is_one_line_of_text_that_no_value_can_break() {
        let folder = tempfile::tempdir().unwrap();
        let lines = lines(LineFormat::Text, Level::Info, &folder.path().join("log"), say);
        let (time, rest): (Vec<_>, Vec<_>) = lines.iter().map(|line| line.split_at(24)).unzip();
        assert!(time.iter().all(|time| time.parse::<Timestamp>().is_ok() && time.ends_with('Z')), "{time:?}");
        assert_eq!(
            rest,
            [
                " INFO  worker ready event=worker_ready slot=0 up=true ratio=inf",
                " WARN  first\\nsecond forged=\"x\\n2026-01-01T00:00:00.000Z ERROR forged\\u{1b}[31m \\\"q\\\" \\\\ é\\u{202e}\" \
                 type=\"a=b\" empty=\"\" target=app",
                " ERROR failed error=\"cannot do it: an error occurred when formatting an argument\"",
            ]
        );
    }

    #[test]
    fn the_journal_gets_a_priority_and_no_timestamp() {
        let folder = tempfile::tempdir().unwrap();
        let lines = lines(LineFormat::Journal, Level::Debug, &folder.path().join("log"), say);
        let begin = |line: &String| line.split(' ').next().unwrap().to_owned();
        assert_eq!(lines.iter().map(begin).collect::<Vec<_>>(), ["<6>INFO", "<4>WARN", "<3>ERROR", "<7>DEBUG"]);
        assert_eq!(lines[0], "<6>INFO  worker ready event=worker_ready slot=0 up=true ratio=inf");
    }

    #[test]
    fn an_event_is_one_json_object_on_a_line() {
        let folder = tempfile::tempdir().unwrap();
        let lines = lines(LineFormat::Json, Level::Debug, &folder.path().join("log"), say);
        let objects: Vec<serde_json::Value> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(objects.len(), 4);
        assert_eq!(objects[0]["level"], "INFO");
        assert_eq!(objects[0]["message"], "worker ready");
        assert_eq!(
            (&objects[0]["slot"], &objects[0]["up"], &objects[0]["ratio"]),
            (&0.into(), &true.into(), &"inf".into())
        );
        assert_eq!(objects[1]["message"], "first\nsecond");
        assert!(lines[1].contains("é\\u202e\""), "{}", lines[1]);
        assert!(objects[1]["forged"].as_str().unwrap().ends_with("é\u{202e}"), "the value is whole");
        assert_eq!((&objects[1]["type"], &objects[1]["target"]), (&"a=b".into(), &"app".into()));
        assert!(objects[3]["timestamp"].as_str().unwrap().parse::<Timestamp>().is_ok());
    }

    #[test]
    fn a_stalled_pipe_loses_lines_without_waiting_and_reports_them_later() {
        let _turn = turn();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        // Open the FIFO for reading and writing: without a reader the log could not open it for writing.
        let mut reader = std::fs::File::options().read(true).write(true).open(&path).unwrap();
        let mut log = log(LineFormat::Text, &path);

        let before = dropped();
        let long = "é".repeat(5_000) + "\n";
        let written = (0..).take_while(|_| (log.write(&long), dropped() == before).1).count();
        log.write("lost\n");
        assert_eq!(dropped(), before + 2);

        // A pipe takes 4096 bytes in one piece. Each character of the line has two bytes and is not cut in half, so the
        // line is cut to 4095 bytes.
        let mut read = vec![0; 4095 * written];
        std::io::Read::read_exact(&mut reader, &mut read).unwrap();
        let read = String::from_utf8(read).unwrap();
        assert!(read.lines().all(|line| line.ends_with("é…[cut]")), "{}", &read[4000..4200]);

        log.write("heard\n");
        let mut read = [0; 4096];
        let len = std::io::Read::read(&mut reader, &mut read).unwrap();
        let told = std::str::from_utf8(&read[..len]).unwrap();
        assert!(told.contains(" WARN  2 lines dropped: ") && told.ends_with(" dropped=2\nheard\n"), "{told}");
        assert_eq!(told.lines().count(), 2);
    }
}
