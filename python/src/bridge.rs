//! Connects tokio with asyncio: tokio is asyncio's selector, and a request runs as a real asyncio Task.
//!
//! Owns: the way of a request to the app and back. Refuses: the life of the worker around it (`boot`, `runtime`), and
//! the settings (`settings`).
//!
//! ```text
//! service      hyper's side: the future of a response, the body of a response
//! exchange     one request: what hyper's side and Python's side share
//! hub          the batches of work that needs Python, and the wake-ups between tokio and asyncio
//! app          the Task of a request: its start, its end, its errors
//! scope        the scope of a request
//! channel      receive() and send(), as the app calls them
//! websocket    one web socket: its handshake, its frames, its messages
//! event_loop   the native part of the loop: select() runs tokio
//! ```

mod app;
mod channel;
mod event_loop;
mod exchange;
mod hub;
mod scope;
mod service;
mod websocket;

pub(crate) use self::{
    app::{App, leave, log_app_end, log_file_error, named},
    channel::ClientDisconnected,
    event_loop::{EventLoop, LoopBase, LoopHandle},
    exchange::{Ending, Outgoing, Unfinished, WINDOW, is_bodiless},
    hub::lock,
    scope::{percent_decoded_bytes, request_id},
    service::{AnyCall, AsgiService, ResponseBody, read_part},
    websocket::WebSocketChannel,
};
