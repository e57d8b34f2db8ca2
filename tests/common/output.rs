//! The output of a command as text, and assertions about it.

use std::process::Output;

pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Asserts that the command ended with the exit code `code` and that its output contains the text `told`.
#[track_caller]
pub fn assert_told(output: &Output, code: i32, told: &str) {
    assert_told_all(output, code, &[told]);
}

/// Asserts that the command ended with the exit code `code` and that its output contains every fragment.
#[track_caller]
pub fn assert_told_all(output: &Output, code: i32, fragments: &[&str]) {
    let text = text(output);
    assert_eq!(output.status.code(), Some(code), "{text}");
    for fragment in fragments {
        assert!(text.contains(fragment), "{fragment:?} is not in {text:?}");
    }
}
