//! The functions that the fuzzer calls. Only a build with `--cfg fuzzing` has them.
//!
//! Owns: the meaning of the bytes that the fuzzer makes. Refuses: to define the properties that are checked
//! (`worker::scanner::checks`, `worker::proxy_protocol`).

use tokio::runtime::{Builder, Runtime};

use crate::worker::fuzzed::{
    LIMITS, ProxyProtocol, SizeLimits, assert_any_split_parses_alike, assert_hyper_sees_what_passes,
    assert_pieces_make_no_difference,
};

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
}

/// Checks that the scanner gives the same result however its input is split into pieces. The first byte of `data`
/// chooses the length of the pieces, the second byte chooses the limits, and the rest is the input.
pub fn scanner(data: &[u8]) {
    let Some((&[pieces, limits], input)) = data.split_first_chunk() else { return };
    let small = |bits: u8, step: usize| usize::from(limits >> bits & 3) * step;
    let chosen = match limits {
        0 => LIMITS,
        _ => SizeLimits {
            request_line: small(0, 25),
            fields: small(2, 2),
            field_size: small(4, 25),
            body: small(6, 10) as u64,
        },
    };
    assert_pieces_make_no_difference(chosen, input, input.chunks(1 + usize::from(pieces % 40)));
}

/// Checks that hyper sees the same requests as the scanner in the bytes that the scanner lets pass. All of `data` is
/// the input of the scanner.
pub fn hyper(data: &[u8]) {
    RUNTIME.with(|runtime| assert_hyper_sees_what_passes(runtime, data));
}

/// Checks the parser of PROXY headers. The first byte of `data` chooses which versions are accepted. The other bytes
/// are the first bytes of a connection.
pub fn proxy_header(data: &[u8]) {
    let Some((accepted, bytes)) = data.split_first() else { return };
    let modes = [ProxyProtocol::Off, ProxyProtocol::V1, ProxyProtocol::V2, ProxyProtocol::Auto];
    assert_any_split_parses_alike(modes[usize::from(accepted % 4)], bytes);
}
