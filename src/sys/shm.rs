//! Memory that the master and all its workers share: a sealed memfd that is mapped once before the first fork and never
//! unmapped. After an upgrade the new program of the master maps the same memfd again.
//!
//! Owns: the mapping, as an array of words. Refuses: to interpret the words (the scoreboard does).

use std::{
    fs::File,
    io,
    num::NonZeroUsize,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::atomic::AtomicU64,
};

use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::{
        memfd::{MFdFlags, memfd_create},
        mman::{MapFlags, ProtFlags, mmap},
    },
};

/// The shared words, which are zero at first. Every process that is forked after [`create`](Self::create) reads and
/// writes the same words.
#[derive(Debug)]
pub(crate) struct Mapping {
    fd: OwnedFd,
    words: &'static [AtomicU64],
}

impl Mapping {
    /// Makes and maps a memfd of `len` words of eight bytes. The mapping stays until the process ends, so a reference
    /// to a word is always valid. This wastes no memory, because there is only one scoreboard in a process.
    ///
    /// # Errors
    /// The kernel's errors (ENOMEM, EMFILE); InvalidInput if `len` is 0.
    pub(crate) fn create(len: usize) -> io::Result<Self> {
        let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
        let bytes = len.checked_mul(size_of::<AtomicU64>()).and_then(NonZeroUsize::new).ok_or_else(invalid)?;
        let fd = memfd_create(c"oxicorn-scoreboard", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        let file = File::from(fd);
        file.set_len(bytes.get() as u64)?;
        // The seals prevent a process with this descriptor from shrinking the file. If it could, the other processes
        // would be killed by SIGBUS when they touch a page that is gone.
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
        Self::map(file, bytes)
    }

    /// Maps a memfd that another program made by [`create`](Self::create). The mapping stays until this process ends.
    ///
    /// # Errors
    /// InvalidData: `fd` is not a sealed file of `len` words. The kernel's errors.
    pub(crate) fn of(fd: OwnedFd, len: usize) -> io::Result<Self> {
        let file = File::from(fd);
        let sealed = fcntl(&file, FcntlArg::F_GET_SEALS)? & SealFlag::F_SEAL_SHRINK.bits() != 0;
        let bytes = len.checked_mul(size_of::<AtomicU64>()).and_then(NonZeroUsize::new);
        match bytes {
            Some(bytes) if sealed && file.metadata()?.len() == bytes.get() as u64 => Self::map(file, bytes),
            Some(_) | None => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    fn map(file: File, bytes: NonZeroUsize) -> io::Result<Self> {
        // SAFETY: the kernel chooses a free address for the mapping, so it replaces no other memory of this process.
        let start =
            unsafe { mmap(None, bytes, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED, &file, 0) }?;
        // SAFETY: the mapping is page-aligned, as long as the file, zeroed at first (a valid AtomicU64), sealed at that
        // size and never unmapped; every process that maps it reaches it through atomics only.
        let words = unsafe {
            std::slice::from_raw_parts(start.cast::<AtomicU64>().as_ptr(), bytes.get() / size_of::<AtomicU64>())
        };
        Ok(Self { fd: file.into(), words })
    }

    pub(crate) fn words(&self) -> &'static [AtomicU64] {
        self.words
    }
}

/// Gives the descriptor of the memfd, so that the master can pass the scoreboard to its next program. The descriptor is
/// close-on-exec.
impl AsFd for Mapping {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::fd::AsFd, os::unix::fs::FileExt, sync::atomic::Ordering};

    use super::Mapping;

    #[test]
    fn the_memory_is_zeroed_shared_and_cannot_shrink() {
        let mapping = Mapping::create(1024).unwrap();
        assert!(mapping.words().iter().all(|word| word.load(Ordering::Relaxed) == 0));
        mapping.words()[1023].store(7, Ordering::Relaxed);

        let file = File::from(mapping.as_fd().try_clone_to_owned().unwrap());
        let mut last = [0; 8];
        file.read_exact_at(&mut last, 1023 * 8).unwrap();
        assert_eq!(u64::from_ne_bytes(last), 7);
        assert!(file.set_len(0).is_err());
        assert!(Mapping::create(0).is_err());

        let again = |len| Mapping::of(mapping.as_fd().try_clone_to_owned().unwrap(), len);
        assert_eq!(again(1024).unwrap().words()[1023].load(Ordering::Relaxed), 7);
        assert!(again(1023).is_err() && again(1025).is_err());
        assert!(Mapping::of(tempfile::tempfile().unwrap().into(), 0).is_err());
    }
}
