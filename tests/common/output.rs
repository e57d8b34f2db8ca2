//! What a command said, on stdout and then on stderr.

use std::process::Output;

pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Whether it ended with this code, and said this.
#[track_caller]
pub fn assert_told(output: &Output, code: i32, told: &str) {
    let text = text(output);
    assert!(output.status.code() == Some(code) && text.contains(told), "not {code} {told}: {} {text}", output.status);
}
