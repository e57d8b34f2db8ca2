//! Fuzz target that checks the request scanner: the same bytes have the same verdict, in whatever pieces they come.
//!
//! Owns: the entry point for libFuzzer. Refuses: to do the check (`oxicorn::fuzzing` does).
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| oxicorn::fuzzing::scanner(data));

#[cfg(not(fuzzing))]
fn main() {
    eprintln!("fuzz/run builds and runs this program");
}
