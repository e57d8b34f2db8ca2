//! The log: every `tracing` event becomes one line, written at once by the process that says it.
//!
//! Owns the format, text or JSON, and the level; and the open file of the access log, until a worker takes it. Refuses
//! threads and queues, which a fork would break and a crash would lose, and spans, whose context costs more than a
//! supervisor needs: a program that wants them installs a subscriber of its own before it runs the app, and that one
//! stays. A forked worker goes on with the same settings and file.

mod sink;
pub(crate) mod terminal;

use std::{
    error::Error,
    fmt::{self, Write},
    io,
    os::fd::OwnedFd,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
};

use jiff::Timestamp;
use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
    level_filters::LevelFilter,
    span,
};

pub(crate) use self::sink::{OpenError, Sink};
use crate::settings::{self, Level, LogFormat};

static LOG: Mutex<Option<Log>> = Mutex::new(None);

/// The level in force, as the discriminant of [`Level`]: asked for without the lock.
static LEVEL: AtomicU8 = AtomicU8::new(Level::Info as u8);

/// Lines that were dropped, and those of them that a line in this log has told of.
static DROPPED: AtomicU64 = AtomicU64::new(0);
static TOLD: AtomicU64 = AtomicU64::new(0);

struct Log {
    sink: Sink,
    format: Format,
    access: Sink,
}

/// How a line looks.
#[derive(Clone, Copy, Debug)]
enum Format {
    Text,
    /// Text for systemd's journal: without the time, which the journal adds, and with the priority that it reads.
    Journal,
    Json,
}

/// Logs as `settings` say from now on; called again after a reload.
///
/// # Errors
/// The file cannot be opened; the log goes on as it was.
pub(crate) fn configure(settings: &settings::Log) -> Result<(), OpenError> {
    let sink = Sink::open("log.file", &settings.file, io::stderr())?;
    let access = Sink::open("log.access", &settings.access, io::stdout())?;
    let journal = std::env::var("JOURNAL_STREAM").is_ok_and(|stream| sink.is_journal(&stream));
    let format = match settings.format {
        LogFormat::Text if journal => Format::Journal,
        LogFormat::Text => Format::Text,
        LogFormat::Json => Format::Json,
    };
    *lock() = Some(Log { sink, format, access });
    LEVEL.store(settings.level as u8, Ordering::Relaxed);
    // Refused when it stands already, or when the program has its own: that one stays.
    let _ = tracing::subscriber::set_global_default(Lines);
    tracing::callsite::rebuild_interest_cache();
    Ok(())
}

/// As [`configure`], for a program that takes another's place: where a file cannot be opened, lines go where that one's
/// went.
///
/// # Errors
/// As for [`configure`], where there is no such place.
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

/// Opens the files of both logs again, after they were moved away; standard streams stay as they are. Gives back an error
/// for each file that cannot be opened: its lines still go to the old one.
pub(crate) fn reopen() -> Vec<OpenError> {
    let mut log = lock();
    let sinks = log.as_mut().map(|log| [&mut log.sink, &mut log.access]);
    sinks.into_iter().flatten().filter_map(|sink| sink.reopen().err()).collect()
}

/// The log's file, for a worker that may not open it itself; `None` where the log is no file.
pub(crate) fn file() -> Option<OwnedFd> {
    lock().as_ref()?.sink.file()?.try_clone().ok().map(OwnedFd::from)
}

/// As [`file`], of the access log.
pub(crate) fn access_file() -> Option<OwnedFd> {
    lock().as_ref()?.access.file()?.try_clone().ok().map(OwnedFd::from)
}

/// Where the access log goes, for the worker to keep; only workers write it. A line that the master has begun is the
/// master's to end.
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

/// Writes what is overdue: the end of a line that was taken in part, and how many lines were dropped. `false`: some of it
/// still waits.
pub(crate) fn catch_up() -> bool {
    lock().as_mut().is_none_or(|log| log.sink.finish() && log.tell_dropped())
}

/// From now on a panic becomes a line of the log, with `message`: on stderr it could wait for a reader for ever.
pub(crate) fn take_panics(message: &'static str) {
    std::panic::set_hook(Box::new(move |panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let reason = panic.payload_as_str().unwrap_or("of no known kind");
        tracing::error!(event = "panic", place, reason, "{message}");
    }));
}

/// Writes an error as one line on stderr, for a master that ends before it has settings, or without them.
pub(crate) fn last_words(sentence: &str) {
    if let Ok(mut sink) = Sink::open("log.file", &settings::LogTarget::Standard, io::stderr()) {
        sink.put(&format!("{}: error: {sentence}\n", terminal::name()));
    }
}

/// Lines go to this file from now on: the master opened it again.
pub(crate) fn adopt(file: OwnedFd) {
    if let Some(log) = lock().as_mut()
        && !log.sink.adopt(file.into())
    {
        DROPPED.fetch_add(1, Ordering::Relaxed);
    }
}

/// Lines this process could not write, because the reader was slow or gone, or the disk full. A forked worker counts on
/// from what its master had.
pub(crate) fn dropped() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

fn lock() -> std::sync::MutexGuard<'static, Option<Log>> {
    // A panic while a line was written is no reason to fall silent.
    LOG.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Log {
    fn write(&mut self, line: &str) {
        self.tell_dropped();
        if !self.sink.put(line) {
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Logs how many lines were dropped; `false`: that line does not fit either.
    fn tell_dropped(&mut self) -> bool {
        let dropped = dropped();
        let untold = dropped - TOLD.load(Ordering::Relaxed);
        if untold > 0 {
            let mut notice = Line::new(self.format, Timestamp::now(), tracing::Level::WARN);
            notice.message(format_args!("{untold} lines dropped: the log's reader was slow or gone, or the disk full"));
            notice.put("dropped", &untold.to_string(), true);
            if !self.sink.put(&notice.finish()) {
                return false;
            }
            TOLD.store(dropped, Ordering::Relaxed);
        }
        true
    }
}

struct Lines;

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= filter()
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(filter())
    }

    fn event(&self, event: &Event<'_>) {
        let Some(format) = lock().as_ref().map(|log| log.format) else { return };
        let metadata = event.metadata();
        let mut line = Line::new(format, Timestamp::now(), *metadata.level());
        // Not under the lock: a value may panic while it is formatted, and the panic is logged too.
        event.record(&mut line);
        if !metadata.target().starts_with("oxicorn") {
            line.put("target", metadata.target(), false);
        }
        if let Some(log) = lock().as_mut() {
            log.write(&line.finish());
        }
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

fn filter() -> LevelFilter {
    const LEVELS: [LevelFilter; 5] =
        [LevelFilter::ERROR, LevelFilter::WARN, LevelFilter::INFO, LevelFilter::DEBUG, LevelFilter::TRACE];
    LEVELS[usize::from(LEVEL.load(Ordering::Relaxed))]
}

/// One line as it grows: the message, and behind it the fields in their order.
struct Line {
    format: Format,
    text: String,
    fields: String,
}

impl Line {
    fn new(format: Format, now: Timestamp, level: tracing::Level) -> Self {
        let mut text = String::with_capacity(256);
        let written = match format {
            Format::Text => write!(text, "{now:.3} {:<5} ", level.as_str()),
            Format::Journal => write!(text, "<{}>{:<5} ", priority(level), level.as_str()),
            Format::Json => write!(text, "{{\"timestamp\":\"{now:.3}\",\"level\":\"{level}\""),
        };
        written.expect("a String takes all");
        Self { format, text, fields: String::new() }
    }

    fn message(&mut self, message: impl fmt::Display) {
        let message = message.to_string();
        match self.format {
            Format::Text | Format::Journal => escape(&mut self.text, &message, &[]),
            Format::Json => {
                self.text.push_str(",\"message\":");
                quote_json(&mut self.text, &message);
            }
        }
    }

    /// Adds a field. A `bare` value is a number or a truth value and needs no quotes in JSON.
    fn put(&mut self, name: &str, value: &str, bare: bool) {
        // The field of a keyword such as `type` is written `r#type` in the source.
        let name = name.strip_prefix("r#").unwrap_or(name);
        let fields = &mut self.fields;
        match self.format {
            Format::Text | Format::Journal => {
                fields.push(' ');
                fields.push_str(name);
                fields.push('=');
                let plain = |c: char| !c.is_whitespace() && !is_unsafe(c) && !matches!(c, '"' | '=' | '\\');
                if !value.is_empty() && value.chars().all(plain) {
                    fields.push_str(value);
                } else {
                    fields.push('"');
                    escape(fields, value, &['"', '\\']);
                    fields.push('"');
                }
            }
            Format::Json => {
                fields.push(',');
                quote_json(fields, name);
                fields.push(':');
                if bare { fields.push_str(value) } else { quote_json(fields, value) }
            }
        }
    }

    fn finish(mut self) -> String {
        self.text.push_str(&self.fields);
        self.text.push_str(match self.format {
            Format::Text | Format::Journal => "\n",
            Format::Json => "}\n",
        });
        self.text
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "message" => self.message(format_args!("{value:?}")),
            name => self.put(name, &format!("{value:?}"), false),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.message(value),
            name => self.put(name, value, false),
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field.name(), &value.to_string(), true);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field.name(), &value.to_string(), true);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field.name(), &value.to_string(), true);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has no word for infinity.
        self.put(field.name(), &value.to_string(), value.is_finite());
    }

    /// With all its causes.
    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        let causes = std::iter::successors(Some(value), |&error| error.source());
        self.put(field.name(), &causes.map(ToString::to_string).collect::<Vec<_>>().join(": "), false);
    }
}

/// As syslog(3) numbers it.
fn priority(level: tracing::Level) -> u8 {
    match level {
        tracing::Level::ERROR => 3,
        tracing::Level::WARN => 4,
        tracing::Level::INFO => 6,
        tracing::Level::DEBUG | tracing::Level::TRACE => 7,
    }
}

/// What would start a new line, or change what a terminal shows of this one.
fn is_unsafe(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}')
}

fn escape(to: &mut String, text: &str, also: &[char]) {
    for c in text.chars() {
        if is_unsafe(c) || also.contains(&c) {
            to.extend(c.escape_default());
        } else {
            to.push(c);
        }
    }
}

fn quote_json(to: &mut String, text: &str) {
    to.push_str(&serde_json::Value::from(text).to_string());
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tracing::subscriber::with_default;

    use super::*;
    use crate::settings::LogTarget;

    /// Tests of what a process has once, its log and its count of dropped lines, take turns.
    fn turn() -> std::sync::MutexGuard<'static, ()> {
        static TURN: Mutex<()> = Mutex::new(());
        TURN.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What `say` leaves in a file.
    fn lines(format: Format, level: Level, path: &Path, say: impl FnOnce()) -> Vec<String> {
        let _turn = turn();
        LEVEL.store(level as u8, Ordering::Relaxed);
        *lock() = Some(log(format, path));
        with_default(Lines, say);
        *lock() = None;
        std::fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect()
    }

    fn log(format: Format, path: &Path) -> Log {
        let sink = Sink::open("log.file", &LogTarget::File(path.to_owned()), io::stderr()).unwrap();
        Log { sink, format, access: Sink::off("log.access") }
    }

    #[derive(Debug, thiserror::Error)]
    #[error("cannot do it")]
    struct Failure {
        source: fmt::Error,
    }

    fn say() {
        let (event, slot, ratio) = ("worker_ready", 0_u32, f64::INFINITY);
        tracing::info!(target: "oxicorn::master", event, slot, up = true, ratio, "worker ready");
        let forged = "x\n2026-01-01T00:00:00.000Z ERROR forged\u{1b}[31m \"q\" \\ é";
        tracing::warn!(target: "app", forged, r#type = %"a=b", empty = "", "first\nsecond");
        tracing::error!(target: "oxicorn", error = &Failure { source: fmt::Error } as &dyn Error, "failed");
        tracing::debug!(target: "oxicorn", "too quiet");
    }

    #[test]
    fn text_is_one_line_an_event_and_cannot_be_forged() {
        let folder = tempfile::tempdir().unwrap();
        let lines = lines(Format::Text, Level::Info, &folder.path().join("log"), say);
        let (time, rest): (Vec<_>, Vec<_>) = lines.iter().map(|line| line.split_at(24)).unzip();
        assert!(time.iter().all(|time| time.parse::<Timestamp>().is_ok() && time.ends_with('Z')), "{time:?}");
        assert_eq!(
            rest,
            [
                " INFO  worker ready event=worker_ready slot=0 up=true ratio=inf",
                " WARN  first\\nsecond forged=\"x\\n2026-01-01T00:00:00.000Z ERROR forged\\u{1b}[31m \\\"q\\\" \\\\ é\" \
                 type=\"a=b\" empty=\"\" target=app",
                " ERROR failed error=\"cannot do it: an error occurred when formatting an argument\"",
            ]
        );
    }

    #[test]
    fn the_journal_gets_a_priority_and_no_second_time() {
        let folder = tempfile::tempdir().unwrap();
        let lines = lines(Format::Journal, Level::Debug, &folder.path().join("log"), say);
        let begin = |line: &String| line.split(' ').next().unwrap().to_owned();
        assert_eq!(lines.iter().map(begin).collect::<Vec<_>>(), ["<6>INFO", "<4>WARN", "<3>ERROR", "<7>DEBUG"]);
        assert_eq!(lines[0], "<6>INFO  worker ready event=worker_ready slot=0 up=true ratio=inf");
    }

    #[test]
    fn json_is_one_object_a_line() {
        let folder = tempfile::tempdir().unwrap();
        let lines = lines(Format::Json, Level::Debug, &folder.path().join("log"), say);
        let objects: Vec<serde_json::Value> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(objects.len(), 4);
        assert_eq!(objects[0]["level"], "INFO");
        assert_eq!(objects[0]["message"], "worker ready");
        assert_eq!(
            (&objects[0]["slot"], &objects[0]["up"], &objects[0]["ratio"]),
            (&0.into(), &true.into(), &"inf".into())
        );
        assert_eq!(objects[1]["message"], "first\nsecond");
        assert_eq!((&objects[1]["type"], &objects[1]["target"]), (&"a=b".into(), &"app".into()));
        assert!(objects[3]["timestamp"].as_str().unwrap().parse::<Timestamp>().is_ok());
    }

    #[test]
    fn a_stalled_pipe_costs_lines_never_time_and_says_so_later() {
        let _turn = turn();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        // Both ends: a FIFO without a reader cannot be opened.
        let mut reader = std::fs::File::options().read(true).write(true).open(&path).unwrap();
        let mut log = log(Format::Text, &path);

        let before = dropped();
        let long = "é".repeat(5_000) + "\n";
        let written = (0..).take_while(|_| (log.write(&long), dropped() == before).1).count();
        log.write("lost\n");
        assert_eq!(dropped(), before + 2);

        // Cut between two characters of two bytes each: a byte less than a pipe would take.
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
