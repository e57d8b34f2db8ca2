//! Gives back to the kernel memory that this process does not need now.
//!
//! Owns: the choice of pages that can be given back without a loss. Refuses: to choose the moment.

use std::{fs, io, ops::Range};

/// Gives back the pages of code and constants of the program and its libraries, if they were never written. Most of
/// these pages are used only at a start. If a page is needed again, the kernel takes it from the page cache. The page
/// stays in the cache because the workers use the same files.
///
/// # Errors
/// `/proc` is not mounted. Then nothing was given back.
pub(crate) fn let_go_of_code() -> io::Result<()> {
    for range in unwritten(&fs::read_to_string("/proc/self/smaps")?) {
        // SAFETY: each range is a whole private mapping of a file. The mapping is not writable, and no page of it was
        // ever written ("Anonymous: 0 kB"), so a later read finds the same bytes as before. This process has one
        // thread, so no mapping has changed since the list was read. If the call fails, the pages stay in memory.
        unsafe { libc::madvise(range.start as *mut libc::c_void, range.len(), libc::MADV_DONTNEED) };
    }
    Ok(())
}

/// Returns the address ranges of all private mappings of files that are not writable and were never written.
fn unwritten(smaps: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut candidate = None;
    for line in smaps.lines() {
        if let Some(mapping) = mapping(line) {
            candidate = mapping;
        } else if line.strip_prefix("Anonymous:").is_some_and(|size| size.trim() == "0 kB") {
            found.extend(candidate.take());
        }
    }
    found
}

/// Reads one line of `smaps`. Returns `None` if the line does not begin a mapping. Returns `Some(Some(range))` if it
/// begins a private mapping of a file, without the right to write, and `Some(None)` if it begins another mapping.
fn mapping(line: &str) -> Option<Option<Range<usize>>> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let address = |text| usize::from_str_radix(text, 16).ok();
    let range = address(start)?..address(end)?;
    let rights = words.next()?;
    let is_code = rights.starts_with("r-") && rights.ends_with('p');
    // In a line of smaps, three words stand between the rights and the path: offset, device and inode.
    let is_file = words.nth(3).is_some_and(|path| path.starts_with('/'));
    Some((is_code && is_file).then_some(range))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_that_is_as_in_its_file_is_let_go_of() {
        let smaps = "\
55d0c0000000-55d0c0100000 r--p 00000000 fe:00 42 /usr/bin/oxicorn\nRss: 4 kB\nAnonymous:             0 kB\n\
55d0c0100000-55d0c0200000 r-xp 00100000 fe:00 42 /usr/bin/oxicorn (deleted)\nAnonymous:             0 kB\n\
55d0c0200000-55d0c0300000 r--p 00200000 fe:00 42 /usr/bin/oxicorn\nAnonymous:            64 kB\n\
55d0c0300000-55d0c0400000 rw-p 00300000 fe:00 42 /usr/bin/oxicorn\nAnonymous:             0 kB\n\
7f0000000000-7f0000100000 r--s 00000000 00:01 7 /memfd:oxicorn\nAnonymous:             0 kB\n\
7f0000100000-7f0000200000 r-xp 00000000 00:00 0\nAnonymous:             0 kB\n\
7ffd00000000-7ffd00001000 r-xp 00000000 00:00 0 [vdso]\nAnonymous:             0 kB\n";
        assert_eq!(unwritten(smaps), [0x55d0_c000_0000..0x55d0_c010_0000, 0x55d0_c010_0000..0x55d0_c020_0000]);
    }

    #[test]
    fn the_program_runs_on_after_its_code_is_let_go_of() {
        super::super::alone::run("sys::memory::tests::the_program_runs_on_after_its_code_is_let_go_of", || {
            let resident = || super::super::process::rss_bytes(i32::try_from(std::process::id()).unwrap()).unwrap();
            let before = resident();
            let_go_of_code().unwrap();
            let after = resident();
            assert!(after + (1 << 20) < before, "{before} bytes, then {after}");
        });
    }
}
