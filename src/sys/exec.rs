//! Executes another program, in this process or in a child. It opens programs, keeps descriptors open over an exec, and
//! makes files in memory.
//!
//! Owns: the choice of the descriptors that stay open over an exec. All other descriptors are close-on-exec. Refuses:
//! to know what these descriptors are for.

use std::{
    ffi::{CString, OsStr, OsString},
    fs::{File, OpenOptions},
    io::{self, PipeReader, PipeWriter, Read, Seek, SeekFrom, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::{ffi::OsStrExt, fs::OpenOptionsExt},
    },
    path::Path,
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, FcntlArg, OFlag, fcntl},
    sys::memfd::{MFdFlags, memfd_create},
    unistd,
};

/// Opens a program file. The descriptor leads to this file even if another file takes its path later.
///
/// # Errors
/// The errors that the file system reports.
pub(crate) fn open(program: &Path) -> io::Result<OwnedFd> {
    Ok(OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(program)?.into())
}

/// Opens the program that this process runs, even if its file was replaced or removed after the start.
///
/// # Errors
/// `/proc` is not mounted.
pub(crate) fn own_program() -> io::Result<OwnedFd> {
    open(Path::new("/proc/self/exe"))
}

/// The arguments and the environment of a program. They are made before a fork, because the child of a process with
/// several threads must not take the lock of the environment.
#[derive(Debug)]
pub(crate) struct Image {
    arguments: Vec<CString>,
    environment: Vec<CString>,
}

impl Image {
    /// Makes an image of `arguments` and of the environment of this process. In the copied environment the variable
    /// `name` is set to `value`.
    pub(crate) fn new(arguments: &[OsString], name: &str, value: &str) -> Self {
        let c_string = |bytes: &[u8]| CString::new(bytes).unwrap_or_default();
        let pair = |name: &OsStr, value: &OsStr| c_string(&[name.as_bytes(), b"=", value.as_bytes()].concat());
        let arguments = arguments.iter().map(|argument| c_string(argument.as_bytes())).collect();
        let environment = std::env::vars_os()
            .filter(|(other, _)| other != name)
            .map(|(name, value)| pair(&name, &value))
            .chain([pair(name.as_ref(), value.as_ref())])
            .collect();
        Self { arguments, environment }
    }

    /// Replaces the program of this process by `program`, which [`open`] returned. It returns only if the exec fails.
    /// Call it with all signals blocked; they stay blocked in the new program.
    pub(crate) fn replace(&self, program: BorrowedFd<'_>) -> io::Error {
        match unistd::execveat(program, c"", &self.arguments, &self.environment, AtFlags::AT_EMPTY_PATH) {
            Ok(never) => match never {},
            Err(Errno::ENOENT) => io::Error::other("it is a script, or the loader it asks for is missing"),
            Err(error) => error.into(),
        }
    }
}

/// Replaces the program of this process, as [`Image::replace`] does.
pub(crate) fn replace(program: BorrowedFd<'_>, arguments: &[OsString], name: &str, value: &str) -> io::Error {
    Image::new(arguments, name, value).replace(program)
}

/// Makes descriptors stay open over an exec. It ignores numbers that are not open.
pub(crate) fn clear_cloexec(numbers: &[RawFd]) {
    set_flags(numbers, 0);
}

/// Undoes [`clear_cloexec`]: the descriptors are closed at an exec again. It ignores numbers that are not open.
pub(crate) fn set_cloexec(numbers: &[RawFd]) {
    set_flags(numbers, libc::FD_CLOEXEC);
}

fn set_flags(numbers: &[RawFd], flags: i32) {
    for number in numbers {
        // SAFETY: F_SETFD changes a flag of the descriptor and touches no memory; a number that is not open is EBADF.
        unsafe { libc::fcntl(*number, libc::F_SETFD, flags) };
    }
}

/// Returns a copy of the descriptor `number`, which the previous program left open over the exec. The copy is
/// close-on-exec; `number` itself stays open and unchanged.
///
/// # Errors
/// EBADF: `number` is not open. EMFILE: this process has too many open descriptors.
pub(crate) fn received(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_DUPFD_CLOEXEC copies the descriptor and touches no memory; a number that is not open is EBADF.
    let copy = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) };
    if copy == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: F_DUPFD_CLOEXEC made `copy` this moment; no other code knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Closes the descriptors with these numbers. The previous program left them open over the exec. Call it after
/// [`received`] has copied those that this program needs.
pub(crate) fn close(numbers: &[RawFd]) {
    for number in numbers {
        // SAFETY: the numbers are of descriptors that the previous program handed over, and no code here owns them.
        unsafe { libc::close(*number) };
    }
}

/// Makes a file in memory that holds `content`. Its descriptor is close-on-exec.
///
/// # Errors
/// The kernel's errors, such as EMFILE, ENFILE and ENOMEM.
pub(crate) fn memory(content: &[u8]) -> io::Result<File> {
    let mut file = File::from(memfd_create(c"oxicorn", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(content)?;
    Ok(file)
}

/// Returns the whole content of a [`memory`] file, whatever the current position of the file is.
///
/// # Errors
/// The errors that the kernel reports.
pub(crate) fn content(file: &mut File) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut content)?;
    Ok(content)
}

/// Makes a pipe for the output of a child. The reading end does not block.
///
/// # Errors
/// The kernel's errors, such as EMFILE and ENFILE.
pub(crate) fn words() -> io::Result<(PipeReader, PipeWriter)> {
    let (reader, writer) = io::pipe()?;
    fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok((reader, writer))
}

/// Makes this process, a child, the leader of a new process group, and sends its stdout and stderr to the pipe `words`.
///
/// # Errors
/// The errors that the kernel reports.
pub(crate) fn stand_apart(words: BorrowedFd<'_>) -> io::Result<()> {
    lead_group(0)?;
    unistd::dup2_stdout(words)?;
    unistd::dup2_stderr(words)?;
    Ok(())
}

/// Makes `child` (0: this process) the leader of a new process group. Call it both in the parent and in the child, so
/// that the group exists before the parent or the child continues.
///
/// # Errors
/// EACCES: the child has already executed another program.
pub(crate) fn lead_group(child: i32) -> io::Result<()> {
    let child = unistd::Pid::from_raw(child);
    Ok(unistd::setpgid(child, child)?)
}

/// Ends this process, a child that could not execute another program. It runs no destructors and does not flush the
/// buffers that the child inherited from its parent.
pub(crate) fn end_child() -> ! {
    // SAFETY: _exit(2) runs no code of this process.
    unsafe { libc::_exit(127) }
}

/// The descriptors that should stay open over an exec.
#[derive(Debug, Default)]
pub(crate) struct FdTransfer {
    numbers: Vec<RawFd>,
    kept: Vec<OwnedFd>,
}

impl FdTransfer {
    /// Adds a descriptor, and returns its number. The owner of the descriptor must keep it open until the exec.
    pub(crate) fn add(&mut self, fd: BorrowedFd<'_>) -> RawFd {
        self.add_number(fd.as_raw_fd())
    }

    /// Adds a descriptor, and returns its number. The `FdTransfer` keeps the descriptor open until the exec.
    pub(crate) fn add_owned(&mut self, fd: OwnedFd) -> RawFd {
        let number = self.add(fd.as_fd());
        self.kept.push(fd);
        number
    }

    /// Adds a descriptor by its number, and returns the number. The descriptor must stay open until the exec.
    pub(crate) fn add_number(&mut self, number: RawFd) -> RawFd {
        self.numbers.push(number);
        number
    }

    pub(crate) fn numbers(&self) -> &[RawFd] {
        &self.numbers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_chosen_descriptors_stay_open_over_an_exec() {
        let file = memory(b"over the exec").unwrap();
        let mut transfer = FdTransfer::default();
        let number = transfer.add(file.as_fd());
        let lives = |number: RawFd| {
            let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap();
            let flags = text.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim().to_owned();
            u32::from_str_radix(&flags, 8).unwrap() & libc::O_CLOEXEC.cast_unsigned() == 0
        };
        assert!(!lives(number));
        clear_cloexec(transfer.numbers());
        assert!(lives(number));
        let copy = received(number).unwrap();
        assert!(!lives(copy.as_raw_fd()));
        set_cloexec(transfer.numbers());
        assert!(!lives(number));
        assert_eq!(content(&mut File::from(copy)).unwrap(), b"over the exec");
        assert!(received(i32::MAX).is_err());
    }

    #[test]
    fn a_file_that_cannot_be_executed_is_an_error_with_its_reason() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("text");
        std::fs::write(&path, "no program").unwrap();
        let error = replace(open(&path).unwrap().as_fd(), &["text".into()], "NAME", "value");
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}");
        assert!(open(&folder.path().join("missing")).is_err());
    }
}
