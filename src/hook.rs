//! Calls code of the app in which a panic must not end the process, above all the app's hooks in the master.
//!
//! Owns: the catching of such a panic, and the text of the panic. Refuses: to decide what the panic means for the
//! caller, and to log the panic (`log`).

use std::{
    any::Any,
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind},
};

use crate::{BoxError, error_chain};

thread_local! {
    /// The hook that runs in this thread now.
    static RUNNING: Cell<Option<&'static str>> = const { Cell::new(None) };
}

/// The error that a hook of the app panicked.
#[derive(Debug, thiserror::Error)]
#[error("{hook} panicked: {message}")]
pub(crate) struct HookPanicked {
    hook: &'static str,
    message: String,
}

/// Calls a hook of the app. `hook` is its name for messages, such as `App::prepare`. The call counts as unwind safe,
/// because only the app has values that a panicking hook may leave half changed.
///
/// # Errors
/// The hook panicked.
pub(crate) fn call<T>(hook: &'static str, run: impl FnOnce() -> T) -> Result<T, HookPanicked> {
    let outer = RUNNING.replace(Some(hook));
    let done = catch_unwind(AssertUnwindSafe(run));
    RUNNING.set(outer);
    done.map_err(|payload| HookPanicked { hook, message: panic_message(payload.as_ref()) })
}

/// Calls a hook that may return an error, and joins the messages of its error as [`error_chain`] does.
///
/// # Errors
/// The hook returned an error or panicked.
pub(crate) fn flat<T>(hook: &'static str, run: impl FnOnce() -> Result<T, BoxError>) -> Result<T, String> {
    match call(hook, run) {
        Ok(done) => done.map_err(|error| error_chain(error.as_ref())),
        Err(panicked) => Err(panicked.to_string()),
    }
}

/// Returns the name of the hook that runs in this thread now.
pub(crate) fn running() -> Option<&'static str> {
    RUNNING.get()
}

/// Returns the text of a panic.
pub(crate) fn panic_message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_an_error_that_names_the_hook() {
        let panicked = call("Outer", || {
            assert_eq!(running(), Some("Outer"));
            call("Inner", || assert_eq!(running(), Some("Inner"))).expect("it does not panic");
            assert_eq!(running(), Some("Outer"));
            panic!("no {}", "luck");
        });
        let panicked: HookPanicked = panicked.unwrap_err();
        assert_eq!(panicked.to_string(), "Outer panicked: no luck");
        assert_eq!(running(), None);
    }
}
