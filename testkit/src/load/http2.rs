//! The HTTP/2 client of a load. It uses several connections, each with several streams at the same time, and is always
//! at saturation.

use std::rc::Rc;

use bytes::Bytes;
use futures_util::future::join_all;
use h2::client::{SendRequest, handshake};
use http::Request;
use tokio::time::{sleep, timeout};

use super::{AFTER_REFUSAL, ANSWER_TIMEOUT, End, Outcome, Thread};
use crate::now;

pub(super) async fn connection(thread: Rc<Thread>) {
    let streams = thread.load.wire.streams.unwrap_or(1);
    while !thread.is_over() {
        let sent = now();
        let shaken = match thread.connect().await {
            Ok(stream) => handshake(stream).await.map_err(|error| end_of(&error)),
            Err(end) => Err(end),
        };
        match shaken {
            Ok((sender, connection)) => {
                let driver = tokio::task::spawn_local(connection);
                join_all((0..streams).map(|_| stream(&thread, sender.clone()))).await;
                driver.abort();
            }
            Err(end) => {
                thread.note(&Outcome { due: sent, sent, end, slow: false, server: None });
                sleep(AFTER_REFUSAL).await;
            }
        }
    }
}

/// Sends one request after the other on a stream, until the load is over or the connection takes no more requests.
async fn stream(thread: &Thread, sender: SendRequest<Bytes>) {
    let uri = format!("http://{}{}", thread.load.address, thread.load.path);
    while let Some(due) = thread.next().await {
        // If the server has sent GOAWAY, this request cannot be sent on the connection. Such a request is not lost, so
        // it is not a failure.
        let Ok(mut ready) = sender.clone().ready().await else { return };
        let sent = now();
        let request = Request::get(&uri).body(()).expect("a request");
        let end = timeout(ANSWER_TIMEOUT, ask(&mut ready, request)).await.unwrap_or(End::Timeout);
        thread.note(&Outcome { due, sent, end, slow: false, server: None });
        if !matches!(end, End::Ok | End::Status(_)) {
            return;
        }
    }
}

async fn ask(sender: &mut SendRequest<Bytes>, request: Request<()>) -> End {
    let answer = match sender.send_request(request, true) {
        Ok((answer, _)) => answer.await,
        Err(error) => Err(error),
    };
    let response = match answer {
        Ok(response) => response,
        Err(error) => return end_of(&error),
    };
    let status = response.status().as_u16();
    let mut body = response.into_body();
    while let Some(chunk) = body.data().await {
        let Ok(chunk) = chunk else { return End::Cut };
        let _ = body.flow_control().release_capacity(chunk.len());
    }
    if status == 200 { End::Ok } else { End::Status(status) }
}

fn end_of(error: &h2::Error) -> End {
    match error.get_io() {
        Some(error) => End::of_error(error, false),
        None if error.is_go_away() => End::Closed,
        None => End::Reset,
    }
}
