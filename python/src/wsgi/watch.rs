//! The requests that run for longer than `workers.timeout`.
//!
//! Owns: the decision that a worker hangs: each of its threads has been running its request for that long. Refuses: to
//! end the worker, which the master does.
//!
//! The loop of a WSGI worker never waits for the app, so its heartbeats say nothing about the app.

use std::{collections::HashSet, sync::Arc, time::Duration};

use oxicorn::{WorkerContext, settings::duration};
use pyo3::prelude::*;
use tokio::{task::spawn_blocking, time::sleep};

use super::pool::{Running, ThreadPool};
use crate::bridge::named;

/// The shortest and the longest time between two looks.
const LOOK_MIN: Duration = Duration::from_millis(20);
const LOOK_MAX: Duration = Duration::from_secs(1);

/// Watches the threads until the worker ends.
pub(super) async fn watch(pool: Arc<ThreadPool>, context: WorkerContext) {
    let timeout = context.settings().workers.timeout;
    if timeout.is_zero() {
        return;
    }
    let every = (timeout / 10).clamp(LOOK_MIN, LOOK_MAX);
    let mut told = HashSet::new();
    loop {
        if pool.rest() {
            told.clear();
            pool.has_work().await;
        }
        sleep(every).await;
        let running = pool.running();
        let late: Vec<_> = running.into_iter().filter(|running| running.age >= timeout).collect();
        if late.len() == pool.len() {
            let since = late.iter().map(|late| late.age).min().unwrap_or_default();
            context.app_stands_still(Some(since));
            continue;
        }
        context.app_stands_still(None);
        let numbers: HashSet<_> = late.iter().map(Running::number).collect();
        for one in late {
            if !told.contains(&one.number()) {
                // The stack needs the GIL, for which the loop must not wait.
                drop(spawn_blocking(move || tell(&one, timeout)));
            }
        }
        told = numbers;
    }
}

fn tell(late: &Running, timeout: Duration) {
    let stack = Python::attach(|py| {
        py.import("oxicorn._wsgi")?.call_method1("stack_of", (late.ident,))?.extract::<Option<String>>()
    });
    let (method, path, request_id) = named(&late.exchange.request);
    let (age, timeout) = (duration::display(late.age), duration::display(timeout));
    tracing::warn!(
        event = "request_late",
        method,
        path,
        request_id,
        stack = stack.ok().flatten(),
        "{method} {path} has been running for {age}, longer than workers.timeout ({timeout}); the other threads serve on"
    );
}
