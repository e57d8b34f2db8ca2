//! Fuzz target that checks hyper: in the bytes that the request scanner passes, hyper sees the same requests as the
//! scanner.
//!
//! Owns: the entry point for libFuzzer. Refuses: to do the check (`oxicorn::fuzzing` does).
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| oxicorn::fuzzing::hyper(data));

#[cfg(not(fuzzing))]
fn main() {
    eprintln!("fuzz/run builds and runs this program");
}
