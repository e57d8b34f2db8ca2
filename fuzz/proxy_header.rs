//! Fuzz target: a PROXY header is read alike in whatever pieces it comes.
//!
//! Owns: the entry point for libFuzzer. Refuses: the property (`oxicorn::fuzzing`).
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| oxicorn::fuzzing::proxy_header(data));

#[cfg(not(fuzzing))]
fn main() {
    eprintln!("fuzz/run builds and runs this program");
}
