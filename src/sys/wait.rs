//! Reaps children, one in each call. The caller repeats the call until it returns `None`.
//!
//! Owns: reading how a child ended. Refuses: to choose the child. Any child is reaped, because a master that is PID 1
//! must also reap orphans that it never forked.

use std::{fmt, io};

use super::signals;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Code(i32),
    Signal { number: i32, core: bool },
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Code(code) => write!(f, "exited with code {code}"),
            Self::Signal { number, core } => {
                match signals::name(number) {
                    Some(name) => write!(f, "killed by {name}")?,
                    None => write!(f, "killed by signal {number}")?,
                }
                if core { f.write_str(" (core dumped)") } else { Ok(()) }
            }
        }
    }
}

/// Reaps one child that has ended. Returns its pid and how it ended; `None` if no child has ended or there is no child.
///
/// # Errors
/// It does not fail in practice: it repeats the call after EINTR, and returns `None` for ECHILD.
pub(crate) fn reap() -> io::Result<Option<(i32, Exit)>> {
    loop {
        let mut status = 0;
        // nix's function waitpid is not used, because it would lose a death: if a real-time signal ended the child,
        // that function reaps the child and then returns an error.
        // SAFETY: waitpid writes one int; `status` is an int and outlives the call.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
        match pid {
            0 => return Ok(None),
            -1 => match io::Error::last_os_error() {
                error if error.raw_os_error() == Some(libc::EINTR) => {}
                error if error.raw_os_error() == Some(libc::ECHILD) => return Ok(None),
                error => return Err(error),
            },
            pid if libc::WIFSIGNALED(status) => {
                let exit = Exit::Signal { number: libc::WTERMSIG(status), core: libc::WCOREDUMP(status) };
                return Ok(Some((pid, exit)));
            }
            pid => return Ok(Some((pid, Exit::Code(libc::WEXITSTATUS(status))))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{process::Command, time::Duration};

    use super::{
        super::{alone, clock, poll},
        reap,
    };

    #[expect(clippy::zombie_processes, reason = "reap() is what waits for it")]
    fn ends(script: &str) -> String {
        let child = Command::new("sh").args(["-c", script]).spawn().unwrap();
        let deadline = clock::now() + 10_000;
        loop {
            match reap().unwrap() {
                Some((pid, exit)) => {
                    assert_eq!(pid.unsigned_abs(), child.id());
                    return exit.to_string();
                }
                None if clock::now() < deadline => drop(poll::wait(&[], Some(Duration::from_millis(1))).unwrap()),
                None => panic!("{script}: not reaped"),
            }
        }
    }

    #[test]
    fn an_exit_says_how_the_child_ended() {
        alone::run("sys::wait::tests::an_exit_says_how_the_child_ended", || {
            assert_eq!(reap().unwrap(), None);
            assert_eq!(ends("exit 7"), "exited with code 7");
            assert_eq!(ends("kill -KILL $$"), "killed by SIGKILL");
            assert_eq!(ends("ulimit -c 0; kill -SEGV $$"), "killed by SIGSEGV");
            assert_eq!(ends("kill -40 $$"), "killed by signal 40");
            assert_eq!(super::Exit::Signal { number: 6, core: true }.to_string(), "killed by SIGABRT (core dumped)");
            assert_eq!(reap().unwrap(), None);
        });
    }
}
