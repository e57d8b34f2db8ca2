//! Fuzz target: a PROXY header gives the same result in whatever pieces it comes.
//!
//! Owns: the entry point for libFuzzer. Refuses: the check of this property (`oxicorn::fuzzing`).
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| oxicorn::fuzzing::proxy_header(data));

#[cfg(not(fuzzing))]
fn main() {
    eprintln!("fuzz/run builds and runs this program");
}
