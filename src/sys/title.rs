//! Sets the title that `ps` and `top` show for this process. Linux has no system call to set the command line, so a
//! process has to write over the memory of its own arguments.
//!
//! Owns: the memory in which the kernel placed arguments and environment, after both were copied elsewhere. Refuses: to
//! guess the layout of that memory. If the layout is not as the kernel reports it, only the short name of the thread is
//! set.

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

/// The memory in which arguments and environment stood at the start. It holds addresses and not references, because a
/// forked child has its own copy of the memory at the same addresses.
#[derive(Clone, Copy, Debug)]
struct Area {
    start: usize,
    /// The end of the arguments. The kernel looks at the last byte before this address to find out if a process has set
    /// a title.
    arguments_end: usize,
    end: usize,
}

static AREA: OnceLock<Area> = OnceLock::new();

/// Copies arguments and environment elsewhere, so that [`set`] may write over the originals; `std::env` continues to
/// work. Call it early, before other code keeps a pointer into the originals. It does nothing if the process has more
/// than one thread.
pub(crate) fn prepare() {
    if AREA.get().is_none()
        && fork::thread_count().is_ok_and(|threads| threads == 1)
        && let Some(area) = evacuate()
    {
        // The result is ignored: the call fails only if `AREA` is set already. This is the only thread, and it has just
        // checked that `AREA` is not set.
        let _ = AREA.set(area);
    }
}

/// Shows `title` as the command line of this process, cut to the length of the old arguments and environment. Shows the
/// first 15 bytes of `title` as the name of the thread. In a forked child this changes only the title of the child.
pub(crate) fn set(title: &str) {
    let bytes: Vec<u8> = title.bytes().filter(|byte| *byte != 0).collect();
    if let Some(area) = AREA.get() {
        // SAFETY: this memory is mapped and writable, and no code uses it any more: `evacuate` copied the strings and
        // moved all known pointers to the copies. Only one thread writes it: that of the master, or that of a worker
        // before its runtime.
        let memory = unsafe { slice::from_raw_parts_mut(area.start as *mut u8, area.end - area.start) };
        let shown = bytes.len().min(memory.len() - 1);
        memory.fill(0);
        memory[..shown].copy_from_slice(&bytes[..shown]);
        // If the last byte of the old arguments is NUL, the kernel shows the whole memory of the arguments, with the
        // padding behind the title. If the last byte is not NUL, the kernel takes the text for a title, and shows it up
        // to the first NUL.
        let mark = area.arguments_end - area.start - 1;
        if shown < mark {
            memory[mark] = b' ';
        }
    }
    if let Ok(name) = CString::new(bytes) {
        // If this fails, `top` shows the old name. That does no harm.
        let _ = prctl::set_name(&name);
    }
}

fn evacuate() -> Option<Area> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The second field of /proc/self/stat is the name of the program in parentheses. The name may hold any character,
    // so the third field begins after the last parenthesis.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<usize>().ok();
    let stack = field(28)?;
    let area = Area { start: field(48)?, arguments_end: field(49)?, end: field(51)? };
    let environment = field(50)?;

    let ordered = stack < area.start && area.start < area.arguments_end && area.arguments_end < area.end;
    if !ordered || stack == 0 || !stack.is_multiple_of(align_of::<usize>()) || environment != area.arguments_end {
        return None;
    }
    // SAFETY: the kernel reports this address as the start of the stack, where argc is. It is aligned, lies below the
    // strings, and is never unmapped.
    let argc = unsafe { *(stack as *const usize) };
    let argv = (stack + size_of::<usize>()) as *mut *mut c_char;
    if argc != std::env::args_os().count() || argc == 0 {
        return None;
    }
    // SAFETY: std reports the same argc, so argc pointers follow it in memory. std keeps a pointer to this array and
    // reads it on each call, so it sees the copies. The process has one thread.
    let arguments = unsafe { slice::from_raw_parts_mut(argv, argc) };
    if arguments[0].addr() != area.start {
        return None;
    }
    // SAFETY: libc's `environ` is null, or an array that ends with a null pointer. The process has one thread, so
    // `environ` does not change meanwhile.
    let variables = unsafe {
        let first = environ;
        let len = if first.is_null() { 0 } else { (0..).take_while(|at| !(*first.add(*at)).is_null()).count() };
        if len == 0 { &mut [] } else { slice::from_raw_parts_mut(first, len) }
    };
    (copied(arguments, area) && copied(variables, area)).then_some(area)
}

/// Replaces each pointer into `area` by a pointer to a copy that is never freed. Returns `false` if there is no memory
/// for a copy.
fn copied(strings: &mut [*mut c_char], area: Area) -> bool {
    strings.iter_mut().filter(|string| (area.start..area.end).contains(&string.addr())).all(|string| {
        // SAFETY: each pointer from argv or `environ` into the area leads to a string that ends with a NUL.
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
            // `prepare` would do nothing here, because the test harness has threads of its own. So the test calls
            // `evacuate` itself; the other threads do nothing meanwhile.
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
