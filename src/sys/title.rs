//! The name that `ps` and `top` show. Linux has no call for the command line: a process writes over its own arguments.
//!
//! Owns: the memory in which the kernel placed arguments and environment, after copies replaced them. Refuses: to
//! guess. If the layout is not what the kernel reports, only the short name is set.

use std::{
    ffi::{CString, c_char},
    fs, slice,
    sync::OnceLock,
};

use nix::sys::prctl;

use super::fork;

unsafe extern "C" {
    static mut environ: *mut *mut c_char;
}

/// The bytes that were argument and environment strings. Addresses, not references: the child has its own copy.
#[derive(Clone, Copy, Debug)]
struct Area {
    start: usize,
    /// The end of the arguments: the kernel looks at the byte before it.
    arguments_end: usize,
    end: usize,
}

static AREA: OnceLock<Area> = OnceLock::new();

/// Copies arguments and environment elsewhere, so that [`set`] may write over the originals; `std::env` continues to
/// work. Call it early, before other code keeps a pointer into them, and with one thread; otherwise it does nothing.
pub(crate) fn prepare() {
    if AREA.get().is_none()
        && fork::thread_count().is_ok_and(|threads| threads == 1)
        && let Some(area) = evacuate()
    {
        // It cannot be set yet: there is one thread, and it has just looked.
        let _ = AREA.set(area);
    }
}

/// Shows `title` as the command line of this process, as much as fits where arguments and environment were, and its
/// first 15 bytes as the name of the thread. A child changes only its own.
pub(crate) fn set(title: &str) {
    let bytes: Vec<u8> = title.bytes().filter(|byte| *byte != 0).collect();
    if let Some(area) = AREA.get() {
        // SAFETY: `evacuate` found this memory mapped, writable and nobody's: what stood here was copied, and all known
        // pointers into it moved. One thread writes it: the master's, or a worker's only one before its runtime.
        let memory = unsafe { slice::from_raw_parts_mut(area.start as *mut u8, area.end - area.start) };
        let shown = bytes.len().min(memory.len() - 1);
        memory.fill(0);
        memory[..shown].copy_from_slice(&bytes[..shown]);
        // If that byte is a NUL, the kernel shows the whole length of the old arguments with their padding. Otherwise
        // it takes this for a title and stops at its end.
        let mark = area.arguments_end - area.start - 1;
        if shown < mark {
            memory[mark] = b' ';
        }
    }
    if let Ok(name) = CString::new(bytes) {
        // A missing name in `top` is not a reason to fail.
        let _ = prctl::set_name(&name);
    }
}

fn evacuate() -> Option<Area> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is a name that may hold anything; the third follows its last parenthesis.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<usize>().ok();
    let stack = field(28)?;
    let area = Area { start: field(48)?, arguments_end: field(49)?, end: field(51)? };
    let environment = field(50)?;

    let ordered = stack < area.start && area.start < area.arguments_end && area.arguments_end < area.end;
    if !ordered || stack == 0 || !stack.is_multiple_of(align_of::<usize>()) || environment != area.arguments_end {
        return None;
    }
    // SAFETY: the kernel says the stack began here with argc; it lies below the strings, aligned, and is never
    // unmapped.
    let argc = unsafe { *(stack as *const usize) };
    let argv = (stack + size_of::<usize>()) as *mut *mut c_char;
    if argc != std::env::args_os().count() || argc == 0 {
        return None;
    }
    // SAFETY: argc was just confirmed by std, so argc pointers follow it. std keeps a pointer to this array and reads
    // it on each call, so it sees the copies; there is one thread.
    let arguments = unsafe { slice::from_raw_parts_mut(argv, argc) };
    if arguments[0].addr() != area.start {
        return None;
    }
    // SAFETY: `environ` is libc's, null or an array that ends with a null; one thread, so nobody changes it meanwhile.
    let variables = unsafe {
        let first = environ;
        let len = if first.is_null() { 0 } else { (0..).take_while(|at| !(*first.add(*at)).is_null()).count() };
        if len == 0 { &mut [] } else { slice::from_raw_parts_mut(first, len) }
    };
    (copied(arguments, area) && copied(variables, area)).then_some(area)
}

/// Replaces each string in `area` by a copy that is never freed; `false` if there is no memory left.
fn copied(strings: &mut [*mut c_char], area: Area) -> bool {
    strings.iter_mut().filter(|string| (area.start..area.end).contains(&string.addr())).all(|string| {
        // SAFETY: a pointer into the area, from argv or environ, is a string that ends with a NUL.
        let copy = unsafe { libc::strdup(*string) };
        if !copy.is_null() {
            *string = copy;
        }
        !copy.is_null()
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{super::alone, AREA, evacuate, set};

    #[test]
    fn ps_shows_the_title_and_env_still_works() {
        alone::run("sys::title::tests::ps_shows_the_title_and_env_still_works", || {
            let (arguments, variables) = (std::env::args_os(), std::env::vars_os().collect::<Vec<_>>());
            // Not `prepare`: the test harness has threads of its own, which do nothing meanwhile.
            AREA.set(evacuate().unwrap()).unwrap();
            let long = "oxicorn: ".to_owned() + &"long ".repeat(10_000);
            for title in ["oxicorn: worker 2", &long, "oxicorn: master", ""] {
                set(title);
                let shown = fs::read("/proc/self/cmdline").unwrap();
                let shown = shown.strip_suffix(b"\0").unwrap_or(&shown);
                // The kernel shows at most one page of a title.
                assert!(shown == title.as_bytes() || shown.len() > 500 && long.as_bytes().starts_with(shown));
                let name = fs::read_to_string("/proc/thread-self/comm").unwrap();
                assert_eq!(name.trim_end_matches('\n'), &title[..title.len().min(15)]);
            }
            assert!(std::env::args_os().eq(arguments));
            assert!(std::env::vars_os().eq(variables));
        });
    }
}
