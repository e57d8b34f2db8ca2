//! Serves a WSGI app: tokio runs on the main thread without the GIL, and threads of Python run the requests.
//!
//! Owns: the way of a request to a WSGI app and back. Refuses: ASGI (`bridge`), the life of the worker around it (`boot`,
//! `runtime`), and the settings (`settings`).
//!
//! ```text
//! service         hyper's side: the future of a response, the body of a response
//! exchange        one request: what hyper's side and the thread share
//! pool            the queue of the requests, and the threads that wait for one
//! app             the run of one request in its thread: the call, the iteration, close(), the errors
//! environ         the environ of a request
//! start_response  start_response() and write()
//! input           wsgi.input
//! wakes           what the threads ask of the tasks of tokio
//! outer_loop      the loop of the main thread
//! watch           the requests that run for longer than workers.timeout
//! ```

mod app;
mod environ;
mod exchange;
mod input;
mod outer_loop;
mod pool;
mod service;
mod start_response;
mod wakes;
mod watch;

pub(crate) use self::{
    app::WsgiApp,
    outer_loop::run,
    service::{WsgiBody, WsgiCall, WsgiService},
};
