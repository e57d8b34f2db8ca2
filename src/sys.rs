//! The system calls. All `unsafe` code of the project is in this folder, behind safe types that own what they hold.
//!
//! Owns: the system calls of Linux that neither std nor a library offers safely. Refuses: to decide, to log, and to
//! know what a worker is. The folder imports nothing from the rest of the program, and its errors are `io::Error`.
#![allow(unsafe_code)]

pub(crate) mod bpf;
pub(crate) mod clock;
pub(crate) mod exec;
pub(crate) mod fd;
pub(crate) mod file;
pub(crate) mod fork;
pub(crate) mod host;
pub(crate) mod inherited;
pub(crate) mod memory;
pub(crate) mod poll;
pub(crate) mod process;
pub(crate) mod shm;
pub(crate) mod signals;
pub(crate) mod socket_file;
pub(crate) mod title;
pub(crate) mod wait;

#[cfg(test)]
mod alone {
    //! Runs a test alone in a new process. A test needs this if it changes something that a process has only once, such
    //! as its children, its signals, its title or its rights.

    const ALONE: &str = "OXICORN_TEST_ALONE";

    /// Runs `body` in a new process. To do this, it starts this test binary again and lets it run only the test called
    /// `name`.
    pub(super) fn run(name: &str, body: impl FnOnce()) {
        if std::env::var_os(ALONE).is_some() {
            return body();
        }
        let exe = std::env::current_exe().unwrap();
        let output = std::process::Command::new(exe).args([name, "--exact", "--nocapture"]).env(ALONE, "1").output();
        let output = output.unwrap();
        let told = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && told.contains("1 passed"), "{}: {told}", output.status);
    }
}
