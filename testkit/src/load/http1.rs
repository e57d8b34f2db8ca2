//! The HTTP/1 client of a load. It builds its requests beforehand, and reads the answers with httparse.

use std::rc::Rc;

use futures_util::FutureExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{sleep, timeout},
};

use super::{AFTER_REFUSAL, ANSWER_TIMEOUT, End, Outcome, Stream, Thread};
use crate::now;

/// The size of the buffer for an answer, in bytes. A larger body is read in pieces, and the pieces are not kept.
const BUFFER: usize = 64 << 10;

struct Connection {
    stream: Stream,
    server: Option<u32>,
}

/// Sends requests on one connection at a time, until the load is over.
pub(super) async fn connection(thread: Rc<Thread>) {
    let load = &thread.load;
    let usual = load.request(load.path);
    let slow = load.slow.map(|(_, path)| load.request(path));
    let mut buffer = vec![0; BUFFER];
    let mut kept: Option<Connection> = None;
    while let Some(due) = thread.next().await {
        let slow = slow.as_ref().filter(|_| thread.is_slow());
        let request = slow.unwrap_or(&usual);
        let sent = now();
        // If the server has closed the idle connection, the client opens another one. A closed idle connection is not a
        // failure.
        let mut connection = match kept.take().and_then(Connection::unless_closed) {
            Some(connection) => Ok(connection),
            None => thread.connect().await.map(|stream| Connection { stream, server: None }),
        };
        let answered = match &mut connection {
            Ok(connection) => timeout(ANSWER_TIMEOUT, connection.exchange(request, &mut buffer, load.who))
                .await
                .unwrap_or(Err(End::Timeout)),
            Err(end) => Err(*end),
        };
        let end = answered.as_ref().map_or_else(|end| *end, |answer| answer.end);
        let server = connection.as_ref().ok().and_then(|connection| connection.server);
        thread.note(&Outcome { due, sent, end, slow: slow.is_some(), server });
        match (connection, answered) {
            (Ok(mut connection), Ok(_)) if load.wire.per_request => {
                // Wait until the server closes the connection. If the client closed it first, the client's port would
                // stay in TIME_WAIT.
                let _ = timeout(AFTER_REFUSAL, connection.stream.read(&mut buffer)).await;
            }
            (Ok(connection), Ok(Answer { goodbye: false, .. })) => kept = Some(connection),
            (Ok(_), _) => {}
            (Err(_), _) => sleep(AFTER_REFUSAL).await,
        }
    }
}

struct Answer {
    end: End,
    /// True if the head of the answer contains `Connection: close`.
    goodbye: bool,
}

/// The facts that the client takes from the head of an answer.
struct Head {
    /// The length of the head itself, in bytes.
    length: usize,
    status: u16,
    body: usize,
    goodbye: bool,
}

impl Connection {
    fn unless_closed(mut self) -> Option<Self> {
        let waiting = self.stream.read(&mut [0]).now_or_never();
        waiting.is_none().then_some(self)
    }

    async fn exchange(&mut self, request: &[u8], buffer: &mut [u8], who: bool) -> Result<Answer, End> {
        self.stream.write_all(request).await.map_err(|error| End::of_error(&error, false))?;
        let mut filled = 0;
        let head = loop {
            filled += self.read(&mut buffer[filled..], filled > 0).await?;
            if let Some(head) = head(&buffer[..filled])? {
                break head;
            }
            if filled == buffer.len() {
                return Err(End::Malformed);
            }
        };
        let mut missing = (head.length + head.body).checked_sub(filled).ok_or(End::Malformed)?;
        if who && missing == 0 {
            self.server =
                std::str::from_utf8(&buffer[head.length..filled]).ok().and_then(|pid| pid.trim().parse().ok());
        }
        while missing > 0 {
            missing = missing.checked_sub(self.read(buffer, true).await?).ok_or(End::Malformed)?;
        }
        let end = if head.status == 200 { End::Ok } else { End::Status(head.status) };
        Ok(Answer { end, goodbye: head.goodbye })
    }

    async fn read(&mut self, buffer: &mut [u8], some_came: bool) -> Result<usize, End> {
        match self.stream.read(buffer).await {
            Ok(0) if some_came => Err(End::Cut),
            Ok(0) => Err(End::Closed),
            Ok(length) => Ok(length),
            Err(error) => Err(End::of_error(&error, some_came)),
        }
    }
}

/// Parses the head of an answer. Returns `None` while the head is incomplete. Every peer must announce the length of
/// its answer, because otherwise the client could not tell a complete answer from a cut one.
fn head(buffer: &[u8]) -> Result<Option<Head>, End> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(length) = response.parse(buffer).map_err(|_| End::Malformed)? else {
        return Ok(None);
    };
    let (mut body, mut goodbye) = (None, false);
    for header in response.headers.iter() {
        if header.name.eq_ignore_ascii_case("content-length") {
            body = std::str::from_utf8(header.value).ok().and_then(|length| length.parse().ok());
        } else if header.name.eq_ignore_ascii_case("connection") {
            goodbye = header.value.eq_ignore_ascii_case(b"close");
        }
    }
    let (status, body) = (response.code.ok_or(End::Malformed)?, body.ok_or(End::Malformed)?);
    Ok(Some(Head { length, status, body, goodbye }))
}
