//! Writes the first inputs of the fuzz targets into a folder. Run it as `seeds FOLDER`.
//!
//! Owns: the inputs, which are cases of tests/corpus and some PROXY headers, in the form that each target reads.
//! Refuses: to run the targets.
#![allow(clippy::disallowed_methods, reason = "the bans are the master's")]

use std::{fs, io, path::Path};

#[path = "../tests/corpus/mod.rs"]
mod corpus;

const PROXY_HEADERS: &[&[u8]] = &[
    b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n",
    b"PROXY TCP6 2001:db8::7 ::1 1 2\r\n",
    b"PROXY UNKNOWN what ever\r\n",
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0C\xC0\0\x02\x07\xC6\x33\x64\x01\xDC\x04\x01\xBB",
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x12\xC0\0\x02\x07\xC6\x33\x64\x01\xDC\x04\x01\xBB\x04\0\x03\x01\x02\x03",
    b"\r\n\r\n\0\r\nQUIT\n\x21\x31\0\0",
    b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0",
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
];

fn write(folder: &Path, inputs: impl Iterator<Item = Vec<u8>>) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    inputs.enumerate().try_for_each(|(number, input)| fs::write(folder.join(number.to_string()), input))
}

fn main() -> io::Result<()> {
    let folder = std::env::args_os().nth(1).ok_or_else(|| io::Error::other("usage: seeds FOLDER"))?;
    let folder = Path::new(&folder);
    // Leave out the long cases of the corpus. They test limits, and in the fuzzer they would only take time.
    let requests = || corpus::cases().into_iter().map(|case| case.raw).filter(|raw| raw.len() < 2000);
    write(&folder.join("scanner"), requests().map(|raw| [&[6, 0], &raw[..]].concat()))?;
    write(&folder.join("hyper"), requests())?;
    let modes = (0..4).flat_map(|mode| PROXY_HEADERS.iter().map(move |header| [&[mode], *header].concat()));
    write(&folder.join("proxy_header"), modes)
}
