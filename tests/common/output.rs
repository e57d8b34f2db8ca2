//! Returns the output of a command: stdout, then stderr.

use std::process::Output;

pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Asserts that the command ended with this code, and that its output holds this text.
#[track_caller]
pub fn assert_told(output: &Output, code: i32, told: &str) {
    let text = text(output);
    assert!(output.status.code() == Some(code) && text.contains(told), "not {code} {told}: {} {text}", output.status);
}
