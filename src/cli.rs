//! The command line: commands, flags and their help.
//!
//! Owns: the names of commands and flags, their short forms and their help. Refuses: to define the meanings, defaults
//! and ranges of the settings (`settings`), and to run a command (`app::run`).

mod page;

use std::{ffi::OsString, io, path::PathBuf};

use clap::{
    ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum, ValueHint,
    error::{ContextKind, ContextValue, ErrorKind},
};

use crate::{
    log::terminal::DEFAULT_NAME,
    protocol::Scale,
    settings::{Flags, Given, SERVES_NO_PYTHON},
};

const AFTER_HELP: &str = "\
OXICORN_<SECTION>__<KEY> in the environment sets any key of supervisor.toml (OXICORN_WORKERS__COUNT=4).
If several sources set a key, the last of them in this order counts:
default, file, PORT and similar, OXICORN_*, command line.
DUR is a duration such as 30s, 500ms or 2m, or a number of seconds. 0 switches a limit off.";

/// The name and the version of a program, and the positional arguments that it declares.
#[derive(Clone, Debug)]
pub(crate) struct ProgramSpec {
    pub(crate) name: String,
    pub(crate) version: String,
    /// The name and the help of each positional argument, in their order on the command line.
    pub(crate) positionals: Vec<(&'static str, &'static str)>,
    /// The name and the help of each command that runs before this program is started.
    pub(crate) commands: Vec<(&'static str, &'static str)>,
}

/// The result of reading a valid command line.
#[derive(Debug)]
pub(crate) struct Parsed {
    pub(crate) command: Command,
    pub(crate) flags: Flags,
    /// The values of the positional arguments that the program declares, in the order of their declaration.
    pub(crate) arguments: Vec<String>,
}

/// The commands that read the settings. Only these commands take the positional arguments that the program declares.
const WITH_SETTINGS: [&str; 4] = ["run", "check", "config", "migrate"];

impl ProgramSpec {
    /// Declares a positional argument.
    ///
    /// # Panics
    /// If the name is empty, is declared twice, or is the name of a command or of a flag. clap would refuse such a name
    /// only in a debug build, and mix up the values in a release build.
    pub(crate) fn add_positional(&mut self, name: &'static str, help: &'static str) {
        assert!(!name.trim().is_empty(), "App::positional: the name of an argument is empty");
        assert!(
            self.positionals.iter().all(|(other, _)| *other != name),
            "App::positional: there are two arguments with the name {name:?}"
        );
        let mut own = Cli::command();
        own.build();
        let has_flag = |command: &clap::Command| {
            command.get_arguments().any(|arg| arg.get_id() == name || arg.get_long() == Some(name))
        };
        let is_command = own.get_subcommands().any(|command| command.get_name() == name);
        let is_flag = has_flag(&own) || own.get_subcommands().any(has_flag);
        assert!(!is_command, "App::positional: {name:?} is the name of a command of oxicorn");
        assert!(!is_flag, "App::positional: {name:?} is the name of a flag of oxicorn");
        self.positionals.push((name, help));
    }

    /// Adds a command to the help.
    ///
    /// # Panics
    /// If there is a command with this name.
    pub(crate) fn add_command(&mut self, name: &'static str, help: &'static str) {
        let is_known = Cli::command().get_subcommands().any(|command| command.get_name() == name)
            || self.commands.iter().any(|(other, _)| *other == name);
        assert!(!is_known, "App::command: there is a command {name:?}");
        self.commands.push((name, help));
    }

    /// Reads a command line. The first item of `line` is the name by which the program was called.
    ///
    /// # Errors
    /// The error of clap. This error prints what is wrong with the line. If the line asks for the help or the version,
    /// the error prints that text instead.
    pub(crate) fn parse(&self, line: &[OsString]) -> Result<Parsed, clap::Error> {
        let refuse = |sentence: String| self.command().error(ErrorKind::InvalidSubcommand, sentence);
        let matches = self.command().try_get_matches_from(line).map_err(|error| match self.meant(&error) {
            Some(sentence) => refuse(sentence),
            None => error,
        })?;
        if let Some((name, _)) = self.commands.iter().find(|(name, _)| matches.subcommand_name() == Some(*name)) {
            return Err(refuse(format!("the command {name} takes other words")));
        }
        let below = matches.subcommand().filter(|(name, _)| WITH_SETTINGS.contains(name)).map(|(_, below)| below);
        let all = [Some(&matches), below].into_iter().flatten();
        let own = |matches: &ArgMatches| {
            let values = self.positionals.iter().filter_map(|(name, _)| matches.get_one::<String>(name).cloned());
            values.collect::<Vec<_>>()
        };
        let arguments: Vec<String> = all.flat_map(own).collect();
        if let (None, Some(sentence)) = (matches.subcommand(), arguments.first().and_then(|word| self.no_command(word)))
        {
            return Err(refuse(sentence));
        }
        let (command, flags) = Cli::from_arg_matches(&matches)?.split();
        Ok(Parsed { command, flags, arguments })
    }

    /// Returns clap's definition of the command line. clap makes the help from the same definition.
    fn command(&self) -> clap::Command {
        // clap needs names that live as long as the process. The leak stays small, because a process parses one command
        // line.
        let leaked = |text: &str| -> &'static str { text.to_owned().leak() };
        let command = Cli::command().name(leaked(&self.name)).version(leaked(&self.version));
        let command = self
            .commands
            .iter()
            .fold(command, |command, (name, help)| command.subcommand(clap::Command::new(*name).about(*help)));
        WITH_SETTINGS.iter().fold(self.with_positionals(command), |command, name| {
            command.mut_subcommand(name, |below| self.with_positionals(below))
        })
    }

    /// Returns the sentence for a word that other programs of this kind have as a command, and this one has not.
    fn no_command(&self, word: &str) -> Option<String> {
        let program = &self.name;
        match word {
            "start" => Some(format!("there is no command start: `{program} run` starts the service")),
            "restart" => Some(format!(
                "there is no command restart: `{program} reload` reads the settings again and replaces the workers, \
                 `{program} upgrade` replaces the program too"
            )),
            _ => None,
        }
    }

    /// Returns the sentence for a mistake whose reason is known better than clap knows it.
    fn meant(&self, error: &clap::Error) -> Option<String> {
        let word =
            [ContextKind::InvalidSubcommand, ContextKind::InvalidArg].into_iter().find_map(|kind| {
                match error.get(kind) {
                    Some(ContextValue::String(word)) => Some(word.as_str()),
                    Some(_) | None => None,
                }
            })?;
        // The program for Python has a positional argument for the app.
        let is_python = word.contains(':') || word.ends_with(".py") || word == "-k" || word == "--worker-class";
        match self.name == DEFAULT_NAME && self.positionals.is_empty() && is_python {
            true => Some(SERVES_NO_PYTHON.to_owned()),
            false => self.no_command(word),
        }
    }

    fn with_positionals(&self, command: clap::Command) -> clap::Command {
        // The argument `program` takes the words after `--`, so its index must be higher than those of the declared
        // arguments.
        let command = command.mut_arg("program", |program| program.index(self.positionals.len() + 1));
        self.positionals.iter().enumerate().fold(command, |command, (index, (name, help))| {
            command.arg(clap::Arg::new(*name).help(*help).index(index + 1))
        })
    }
}

#[derive(Debug, Parser)]
#[command(max_term_width = 100, after_help = AFTER_HELP)]
#[command(about = "Serve HTTP from pre-forked workers, and keep them serving")]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,

    /// Read the settings from FILE; without it, from ./supervisor.toml if that exists [env: OXICORN_CONFIG]
    #[arg(short, long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,

    #[command(flatten)]
    options: Options,

    /// Do the same as the command "check"
    #[arg(long, conflicts_with = "print_config")]
    check_config: bool,

    /// Do the same as the command "config"
    #[arg(long)]
    print_config: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve requests; this is the default command
    Run(Options),
    /// Read and check the settings and print every problem; exit code 0 if there is no problem, else 2
    Check {
        #[command(flatten)]
        options: Options,
        /// Also do what a start does, up to one worker that is ready but accepts no connection; the exit code is that
        /// of such a start
        #[arg(long)]
        deep: bool,
        /// Print the result as one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Print the settings that the files, the environment and the flags give now, each with its source
    Config {
        #[command(flatten)]
        options: Options,
        /// Print the settings that are in effect in the running service instead
        #[arg(long)]
        running: bool,
        /// Path of the control socket of the running service
        #[arg(long, value_name = "PATH")]
        socket: Option<PathBuf>,
        /// Print the result as one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Show the workers, the listeners and the counters of a running service
    Status {
        #[command(flatten)]
        service: ServiceArgs,
        /// Do the same as --format json
        #[arg(long, conflicts_with = "format")]
        json: bool,
        /// Print the status in this format
        #[arg(long, value_enum, default_value_t = StatusFormat::Table)]
        format: StatusFormat,
        /// Print the status again every second
        #[arg(long)]
        watch: bool,
    },
    /// Change the number of workers and wait until they serve
    Scale {
        #[command(flatten)]
        service: ServiceArgs,
        /// The new number of workers, such as 4, or a change of the number, such as +1 or -1
        #[arg(value_name = "N|+N|-N", value_parser = scale, allow_hyphen_values = true)]
        workers: Scale,
        /// Print the result as one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Read the settings again and replace the workers, as SIGHUP does; exit code 0 only if the new workers serve
    Reload {
        #[command(flatten)]
        service: ServiceArgs,
        /// Print the result as one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Replace the program of a running service, as SIGUSR2 does: same pid, same sockets, new workers; exit code 0 only
    /// if the new workers serve
    Upgrade {
        #[command(flatten)]
        service: ServiceArgs,
        /// Path of the new program; without it, the path by which the service was started
        #[arg(long, value_name = "PATH")]
        program: Option<String>,
        /// Upgrade even if the service could not go back to the running program, because its files were replaced
        #[arg(long)]
        force: bool,
        /// Print the result as one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Stop the service as SIGTERM does and wait until it has ended; run the command again, a second later, to stop
    /// faster
    Stop {
        #[command(flatten)]
        service: ServiceArgs,
        /// Stop as SIGINT does, which gives the workers two seconds to finish their requests
        #[arg(long)]
        now: bool,
        /// Print the result as one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Make the database ready for this program (tables, indexes); exit code 0, or 5 if the database refuses
    Migrate {
        #[command(flatten)]
        options: Options,
        /// Print the result as one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Ask the service over HTTP, or over HTTPS if it uses TLS, whether it is alive; exit code 0 if it is, else 1. It
    /// is made for health checks of containers: it asks a service on the same machine, and accepts any certificate
    Health {
        #[command(flatten)]
        service: ServiceArgs,
        /// What to ask: http://host:port/path, unix:/path, or a path such as /ready, for which the running master says
        /// where it listens. Without it, the path http.health_path, or /health if that is not set
        url: Option<String>,
    },
    /// Print the completions of commands and flags for a shell
    #[command(hide = true)]
    Completions { shell: clap_complete::Shell },
    /// Print the manual page
    #[command(hide = true)]
    Man,
}

impl Command {
    /// Returns the page that the command `completions` or `man` prints; `None` for every other command. These two
    /// commands read no settings.
    ///
    /// # Errors
    /// An error of the writer. It does not happen, because the page is written to memory.
    pub(crate) fn page(&self, program: &ProgramSpec) -> Option<io::Result<Vec<u8>>> {
        match self {
            Self::Completions { shell } => Some(Ok(page::completions(program, *shell))),
            Self::Man => Some(page::manual(program)),
            _ => None,
        }
    }
}

/// The format in which the command `status` prints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum StatusFormat {
    /// A table for the terminal
    #[default]
    Table,
    /// One JSON object on one line
    Json,
    /// The metrics page of http.metrics_path, as Prometheus reads it
    Openmetrics,
}

/// The flags that choose the running service to which a command is sent. Without these flags the settings choose the
/// service.
#[derive(Debug, Default, Args)]
pub(crate) struct ServiceArgs {
    /// Send the command to this control socket, whatever the service is called
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// Send the command to the service with this name, which is its process.name
    #[arg(short, long, value_name = "NAME")]
    name: Option<String>,
}

/// The flags that set a key of the settings. Each value is kept as the operator typed it, because one parser reads the
/// values of the settings file, of the environment and of flags.
#[derive(Debug, Default, Args)]
pub(crate) struct Options {
    /// Listen on this address: host:port, :port, [::1]:port, unix:/path or fd://3; may be given several times [env:
    /// PORT]
    #[arg(short, long, value_name = "ADDR", help_heading = "Sockets")]
    bind: Vec<String>,
    /// Number of connections that may wait, on each listening socket, until a worker accepts them
    #[arg(long, value_name = "N", help_heading = "Sockets")]
    backlog: Option<String>,
    /// Let each worker listen on sockets of its own (the default)
    #[arg(long, overrides_with = "no_reuse_port", help_heading = "Sockets")]
    reuse_port: bool,
    /// Let all workers share one socket for each address
    #[arg(long, overrides_with = "reuse_port", help_heading = "Sockets")]
    no_reuse_port: bool,

    /// Number of workers, "auto" (the CPUs that the process may use) or a formula such as 2n+1 [env: WEB_CONCURRENCY]
    #[arg(short, long, value_name = "N", help_heading = "Workers")]
    workers: Option<String>,
    /// Replace a worker after this many requests; 0 is no limit
    #[arg(long, value_name = "N", help_heading = "Workers")]
    max_requests: Option<String>,
    /// Add a random number of requests, from 0 to N, to --max-requests for each worker
    #[arg(long, value_name = "N", help_heading = "Workers")]
    max_requests_jitter: Option<String>,
    /// Kill and replace a worker that sends no heartbeat for this long
    #[arg(short, long, value_name = "DUR", help_heading = "Workers")]
    timeout: Option<String>,
    /// Kill a new worker that is not ready within this time
    #[arg(long, value_name = "DUR", help_heading = "Workers")]
    boot_timeout: Option<String>,
    /// Kill a draining worker that has not finished its requests within this time; it cannot be 0
    #[arg(long, value_name = "DUR", help_heading = "Workers")]
    graceful_timeout: Option<String>,

    /// Close a connection that has been idle for this long
    #[arg(long, value_name = "DUR", help_heading = "HTTP")]
    keep_alive: Option<String>,
    /// Number of connections that each worker may have open; 0 is no limit
    #[arg(long, value_name = "N", help_heading = "HTTP")]
    worker_connections: Option<String>,
    /// Number of requests that each worker may have in progress; further ones are answered 503; 0 is no limit
    #[arg(long, value_name = "N", help_heading = "HTTP")]
    limit_concurrency: Option<String>,
    /// Peers whose X-Forwarded-* headers are trusted: addresses or networks, separated by commas, or * for every peer
    /// [env: FORWARDED_ALLOW_IPS]
    #[arg(long, value_name = "LIST", help_heading = "HTTP")]
    forwarded_allow_ips: Option<String>,
    /// File with the certificate chain, in PEM; switches TLS on, and needs --keyfile too
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "HTTP")]
    certfile: Option<String>,
    /// File with the private key of the certificate, in PEM
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "HTTP")]
    keyfile: Option<String>,

    /// Write the access log to this file; - is stdout, and off is no access log
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "Logs")]
    access_logfile: Option<String>,
    /// Least severe level that is logged: error, warn, info, debug or trace [env: LOG_LEVEL, DEBUG=true]
    #[arg(long, value_name = "LEVEL", help_heading = "Logs")]
    log_level: Option<String>,
    /// Format of the log: text or json
    #[arg(long, value_name = "FORMAT", help_heading = "Logs")]
    log_format: Option<String>,

    /// File to which the master writes its pid
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "Process")]
    pid: Option<String>,
    /// User that the workers run as, by name or number
    #[arg(short, long, value_name = "USER", value_hint = ValueHint::Username, help_heading = "Process")]
    user: Option<String>,
    /// Group that the workers run with, by name or number
    #[arg(short, long, value_name = "GROUP", help_heading = "Process")]
    group: Option<String>,
    /// Permission bits that new files of the workers do not get, in octal, such as 027
    #[arg(short = 'm', long, value_name = "MASK", help_heading = "Process")]
    umask: Option<String>,
    /// Name of the service, which ps shows and after which the control socket is called
    #[arg(short, long, value_name = "NAME", help_heading = "Process")]
    name: Option<String>,
    /// File with lines KEY=VALUE for the environment of the workers; a variable of the real environment overrides a
    /// line
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "Process")]
    env_file: Option<String>,

    /// The words after --, which are reserved for programs in other languages
    #[arg(last = true, hide = true, value_name = "PROGRAM")]
    program: Vec<String>,
}

impl Cli {
    /// Splits the command line into its command and the flags that set keys. A flag may stand before or after the
    /// command; if a flag is given twice, the later one counts.
    fn split(self) -> (Command, Flags) {
        let mut flags = Flags { config: self.config, ..Flags::default() };
        self.options.add_to(&mut flags);
        let mut command = self.command.unwrap_or_else(|| match () {
            () if self.check_config => Command::Check { options: Options::default(), deep: false, json: false },
            () if self.print_config => {
                Command::Config { options: Options::default(), running: false, socket: None, json: false }
            }
            () => Command::Run(Options::default()),
        });
        match &mut command {
            Command::Run(options)
            | Command::Check { options, .. }
            | Command::Config { options, .. }
            | Command::Migrate { options, .. } => {
                std::mem::take(options).add_to(&mut flags);
            }
            Command::Status { service, .. }
            | Command::Scale { service, .. }
            | Command::Reload { service, .. }
            | Command::Upgrade { service, .. }
            | Command::Stop { service, .. }
            | Command::Health { service, .. } => {
                let name = service.name.take();
                flags.given.extend(name.map(|text| Given { key: "process.name", flag: "--name", text }));
            }
            Command::Completions { .. } | Command::Man => {}
        }
        (command, flags)
    }
}

fn scale(text: &str) -> Result<Scale, String> {
    let refused = || format!("\"{text}\" is not a number of workers: write 4, +1 or -1");
    let number: i32 = text.parse().map_err(|_| refused())?;
    match u32::try_from(number) {
        Ok(target) if !text.starts_with('+') => Ok(Scale::To(target)),
        Ok(_) | Err(_) => Ok(Scale::By(number)),
    }
}

impl Options {
    fn add_to(self, flags: &mut Flags) {
        let bind = (!self.bind.is_empty()).then(|| self.bind.join(","));
        let reuse_port = match (self.reuse_port, self.no_reuse_port) {
            (true, _) => Some(("--reuse-port", "true")),
            (false, true) => Some(("--no-reuse-port", "false")),
            (false, false) => None,
        };
        flags.given.extend(reuse_port.map(|(flag, text)| Given {
            key: "server.reuse_port",
            flag,
            text: text.to_owned(),
        }));
        let given = [
            ("server.bind", "--bind", bind),
            ("server.backlog", "--backlog", self.backlog),
            ("workers.count", "--workers", self.workers),
            ("workers.max_requests", "--max-requests", self.max_requests),
            ("workers.max_requests_jitter", "--max-requests-jitter", self.max_requests_jitter),
            ("workers.timeout", "--timeout", self.timeout),
            ("workers.boot_timeout", "--boot-timeout", self.boot_timeout),
            ("workers.graceful_timeout", "--graceful-timeout", self.graceful_timeout),
            ("http.keep_alive", "--keep-alive", self.keep_alive),
            ("http.worker_connections", "--worker-connections", self.worker_connections),
            ("http.limit_concurrency", "--limit-concurrency", self.limit_concurrency),
            ("http.forwarded_allow_ips", "--forwarded-allow-ips", self.forwarded_allow_ips),
            ("tls.certfile", "--certfile", self.certfile),
            ("tls.keyfile", "--keyfile", self.keyfile),
            ("log.access", "--access-logfile", self.access_logfile),
            ("log.level", "--log-level", self.log_level),
            ("log.format", "--log-format", self.log_format),
            ("process.pidfile", "--pid", self.pid),
            ("process.user", "--user", self.user),
            ("process.group", "--group", self.group),
            ("process.umask", "--umask", self.umask),
            ("process.name", "--name", self.name),
            ("process.env_file", "--env-file", self.env_file),
        ];
        let given = given.into_iter().filter_map(|(key, flag, text)| Some(Given { key, flag, text: text? }));
        flags.given.extend(given);
        flags.program.extend(self.program);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> (Command, Flags) {
        Cli::try_parse_from(line.split(' ')).unwrap().split()
    }

    fn given(line: &str) -> Vec<String> {
        let (_, flags) = parse(line);
        flags.given.iter().map(|given| format!("{} {}={}", given.flag, given.key, given.text)).collect()
    }

    #[test]
    fn clap_accepts_the_definition() {
        Cli::command().debug_assert();
    }

    fn program(name: &str) -> ProgramSpec {
        ProgramSpec { name: name.into(), version: "1".into(), positionals: Vec::new(), commands: Vec::new() }
    }

    #[test]
    fn what_others_have_and_this_program_has_not_is_told_in_a_sentence() {
        let told = |program: &ProgramSpec, line: &str| {
            let words: Vec<_> = line.split(' ').map(OsString::from).collect();
            let error = program.parse(&words).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            error.to_string().lines().next().unwrap_or_default().to_owned()
        };
        let (plain, mut python) = (program("oxicorn"), program("oxicorn"));
        python.add_positional("APP", "the app");
        for program in [&plain, &python] {
            let told = |line: &str| told(program, line);
            assert!(told("oxicorn restart").contains("no command restart: `oxicorn reload` reads"));
            assert!(told("oxicorn -w 2 start").contains("no command start: `oxicorn run` starts"));
        }
        for line in
            ["oxicorn main:app", "oxicorn -w 2 app/main.py", "oxicorn -k gthread", "oxicorn --worker-class=sync"]
        {
            assert_eq!(told(&plain, line), format!("error: {SERVES_NO_PYTHON}"), "{line}");
        }
        let other = told(&program("shop"), "shop main:app");
        assert!(!other.contains("Python"), "{other}");
        let words = ["oxicorn", "run", "start"].map(OsString::from);
        assert_eq!(python.parse(&words).unwrap().arguments, ["start"], "after a command it is a name");
    }

    #[test]
    fn a_command_that_runs_elsewhere_is_in_the_help() {
        let mut program = program("oxicorn");
        program.add_command("import", "Write a settings file");
        let help = program.command().render_help().to_string();
        assert!(help.contains("import") && help.contains("Write a settings file"), "{help}");
        let words = ["oxicorn", "import"].map(OsString::from);
        assert_eq!(program.parse(&words).unwrap_err().exit_code(), 2);
        program.command().debug_assert();
    }

    #[test]
    fn an_argument_of_the_program_has_a_name_of_its_own() {
        let declare = |names: &[&'static str]| {
            let mut program = program("a");
            names.iter().for_each(|name| program.add_positional(name, "help"));
            program
        };
        for wrong in [&[""][..], &[" "], &["APP", "APP"], &["check"], &["help"], &["workers"], &["check-config"]] {
            assert!(std::panic::catch_unwind(|| declare(wrong)).is_err(), "{wrong:?}");
        }
        let program = declare(&["APP", "WORKERS"]);
        program.command().debug_assert();
        let parsed = program.parse(&["a", "-w", "2", "x", "y"].map(OsString::from)).unwrap();
        assert_eq!(parsed.arguments, ["x", "y"]);
    }

    #[test]
    fn commands_have_the_names_that_gunicorn_has_too() {
        assert!(matches!(parse("oxicorn").0, Command::Run(_)));
        assert!(matches!(parse("oxicorn run").0, Command::Run(_)));
        assert!(matches!(parse("oxicorn check").0, Command::Check { json: false, .. }));
        assert!(matches!(parse("oxicorn check --json").0, Command::Check { json: true, .. }));
        assert!(matches!(parse("oxicorn --check-config").0, Command::Check { .. }));
        assert!(matches!(parse("oxicorn config --json").0, Command::Config { json: true, .. }));
        assert!(matches!(parse("oxicorn --print-config").0, Command::Config { .. }));
    }

    #[test]
    fn scale_takes_a_number_or_a_change() {
        let scale = |line: &str| match parse(line).0 {
            Command::Scale { workers, .. } => workers,
            other => panic!("{other:?}"),
        };
        assert_eq!(scale("oxicorn scale 4"), Scale::To(4));
        assert_eq!(scale("oxicorn scale +2 --json"), Scale::By(2));
        assert_eq!(scale("oxicorn scale -2"), Scale::By(-2));
        assert_eq!(scale("oxicorn scale --json -2"), Scale::By(-2));
        for wrong in ["x", "1.5", "--", "+", "99999999999"] {
            let error = Cli::try_parse_from(["oxicorn", "scale", wrong]).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{wrong}");
        }
        assert_eq!(given("oxicorn status -n other"), ["--name process.name=other"]);
    }

    #[test]
    fn flags_stand_before_or_after_the_command() {
        assert_eq!(
            given("oxicorn -w 2n+1 -t 5 check -t 6"),
            ["--workers workers.count=2n+1", "--timeout workers.timeout=5", "--timeout workers.timeout=6",]
        );
        assert_eq!(parse("oxicorn -c a.toml check").1.config, Some("a.toml".into()));
        assert_eq!(parse("oxicorn check -c a.toml").1.config, Some("a.toml".into()));
        assert_eq!(given("oxicorn -b :1 -b [::1]:2"), ["--bind server.bind=:1,[::1]:2"]);
        assert_eq!(given("oxicorn --no-reuse-port"), ["--no-reuse-port server.reuse_port=false"]);
        assert_eq!(given("oxicorn --no-reuse-port --reuse-port"), ["--reuse-port server.reuse_port=true"]);
        assert_eq!(
            given("oxicorn -p a -u b -g c -m 022 -n d"),
            [
                "--pid process.pidfile=a",
                "--user process.user=b",
                "--group process.group=c",
                "--umask process.umask=022",
                "--name process.name=d",
            ]
        );
    }

    #[test]
    fn every_flag_sets_a_key_that_exists() {
        let options = Cli::command();
        let own = ["config", "check_config", "print_config", "program", "help", "version"];
        for flag in options.get_arguments().filter(|flag| !own.contains(&flag.get_id().as_str())) {
            let long = flag.get_long().unwrap();
            let line = match flag.get_action() {
                clap::ArgAction::SetTrue => format!("oxicorn --{long}"),
                _ => format!("oxicorn --{long} x"),
            };
            let (_, flags) = parse(&line);
            assert_eq!(flags.given.len(), 1, "{line}");
            assert_eq!(flags.given[0].flag, format!("--{long}"));
            assert!(crate::settings::is_key(flags.given[0].key), "{line} sets {}", flags.given[0].key);
        }
    }

    #[test]
    fn the_words_after_two_dashes_are_the_program() {
        assert_eq!(parse("oxicorn -w 2 -- uvicorn --fd 3").1.program, ["uvicorn", "--fd", "3"]);
        assert_eq!(parse("oxicorn run -- uvicorn").1.program, ["uvicorn"]);
    }

    #[test]
    fn clap_refuses_unknown_flags_and_names_the_nearest() {
        let error = Cli::try_parse_from(["oxicorn", "--wrokers", "2"]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnknownArgument);
        assert!(error.to_string().contains("'--workers'"), "{error}");
        assert_eq!(error.exit_code(), 2);
    }
}
