//! A service with web sockets. It echoes the messages of each client. When the worker drains, it sends a close frame to
//! all clients.
//!
//! Run `cargo run --example websocket`, then `websocat ws://127.0.0.1:8000/echo`. At a reload, a recycle or a stop, the
//! worker closes the connection with code 1001. A client that then connects again reaches the next worker.

use std::{convert::Infallible, pin::pin, process::ExitCode};

use axum::{
    Router,
    extract::{
        State,
        ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code},
    },
    response::Response,
    routing::get,
};
use oxicorn::WorkerContext;
use tokio::select;

fn main() -> ExitCode {
    oxicorn::main(factory)
}

async fn factory(worker: WorkerContext) -> Result<Router, Infallible> {
    Ok(Router::new().route("/echo", get(upgrade)).with_state(worker))
}

async fn upgrade(State(worker): State<WorkerContext>, upgrade: WebSocketUpgrade) -> Response {
    upgrade.on_upgrade(move |socket| echo(socket, worker))
}

async fn echo(mut socket: WebSocket, worker: WorkerContext) {
    let mut draining = pin!(worker.draining());
    loop {
        let answer = select! {
            received = socket.recv() => match received {
                Some(Ok(message @ (Message::Text(_) | Message::Binary(_)))) => message,
                Some(Ok(_)) => continue, // axum has already answered a ping
                Some(Err(_)) | None => return,
            },
            () = &mut draining => {
                let frame = CloseFrame { code: close_code::AWAY, reason: "this worker ends; connect again".into() };
                Message::Close(Some(frame))
            }
        };
        let last = matches!(answer, Message::Close(_));
        if socket.send(answer).await.is_err() || last {
            return;
        }
    }
}
