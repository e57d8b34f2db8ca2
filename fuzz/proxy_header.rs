//! Fuzz target that checks the parser of PROXY headers: the same bytes have the same result, in whatever pieces they
//! come.
//!
//! Owns: the entry point for libFuzzer. Refuses: to do the check (`oxicorn::fuzzing` does).
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| oxicorn::fuzzing::proxy_header(data));

#[cfg(not(fuzzing))]
fn main() {
    eprintln!("fuzz/run builds and runs this program");
}
