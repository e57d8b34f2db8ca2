//! A service that behaves badly, as a user's own service may. Its settings table decides how it boots, lives and ends.
//!
//! Owns: every fault that a factory or an app may have. Refuses: to be an example for users (see `examples/`).

use std::{
    convert::Infallible, error::Error, fs::OpenOptions, io::Write, path::Path, process::ExitCode, sync::Arc,
    time::Duration,
};

use axum::{
    Json, Router,
    body::Body,
    extract::Request,
    http::{
        StatusCode,
        header::{CONNECTION, UPGRADE},
    },
    response::{IntoResponse, Response},
    routing::{any, get, post},
};
use futures_util::{StreamExt, stream};
use hyper_util::rt::TokioIo;
use oxicorn::{Lifespan, WorkerContext};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    signal::unix::{SignalKind, signal},
};

/// The service's own settings, from the table `[misbehave]`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
struct Table {
    /// How the factory ends: without a fault (`""`), with an `error`, with a `panic`, never (`hang`), or with an
    /// `abort`.
    boot: String,
    /// A settings file that the factory makes invalid by appending a line to it. If this text is empty, the factory
    /// changes no file.
    spoils: String,
    /// The factory fails as long as this file exists.
    fail_while: String,
    /// The worker aborts this many milliseconds after the factory has returned; 0 means never.
    abort_after_ms: u64,
    /// The file to which each worker adds a line with its pid when the worker is shut down.
    goodbye_file: String,
    /// The file to which the app adds a line with its pid each time it receives SIGHUP. The app listens for SIGHUP
    /// through tokio.
    hup_file: String,
}

fn note(path: &str) {
    let file = OpenOptions::new().create(true).append(true).open(path);
    if let Err(error) = file.and_then(|mut file| file.write_all(format!("{}\n", std::process::id()).as_bytes())) {
        eprintln!("misbehave: cannot write to {path}: {error}");
    }
}

async fn factory(context: WorkerContext) -> Result<Lifespan<Router>, Box<dyn Error + Send + Sync>> {
    let table: Arc<Table> = context.table::<Table>();
    match table.boot.as_str() {
        "error" => return Err("the moon is in the wrong house".into()),
        "panic" => panic!("the moon fell into the sea"),
        "hang" => std::future::pending().await,
        "abort" => std::process::abort(),
        _ => {}
    }
    if !table.spoils.is_empty() {
        OpenOptions::new().append(true).open(&table.spoils)?.write_all(b"\nno = = settings\n")?;
    }
    if !table.fail_while.is_empty() && Path::new(&table.fail_while).exists() {
        return Err(format!("{} is in the way", table.fail_while).into());
    }
    if table.abort_after_ms > 0 {
        let after = Duration::from_millis(table.abort_after_ms);
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            std::process::abort()
        });
    }
    if !table.hup_file.is_empty() {
        let mut hangups = signal(SignalKind::hangup())?;
        // The app also listens for TERM. This shows that the supervisor drains the worker even if the app takes the
        // signal too.
        let mut terms = signal(SignalKind::terminate())?;
        let path = table.hup_file.clone();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = hangups.recv() => note(&path),
                    _ = terms.recv() => {}
                }
            }
        });
    }
    let polite = context.clone();
    let router = Router::new()
        .route("/upgrade", get(async |request| upgraded(request, std::future::pending()).await))
        .route("/upgrade/polite", get(async move |request| upgraded(request, polite.draining()).await))
        .route(
            "/pid",
            get(move || async move { Json(serde_json::json!({ "pid": context.pid(), "slot": context.slot() })) }),
        )
        .route(
            "/sleep/{ms}",
            any(async |axum::extract::Path(ms): axum::extract::Path<u64>, request: Request| {
                tokio::time::sleep(Duration::from_millis(ms)).await;
                // Until here, the handler has kept the request with its unread body.
                drop(request);
                "slept"
            }),
        )
        .route(
            "/env/{name}",
            get(async |axum::extract::Path(name): axum::extract::Path<String>| {
                Json(serde_json::json!({ "set": std::env::var_os(name).is_some() }))
            }),
        )
        .route("/request_id", get(async |headers: axum::http::HeaderMap| format!("{:?}", headers.get("x-request-id"))))
        .route(
            "/early/{status}",
            any(async |axum::extract::Path(status): axum::extract::Path<u16>| {
                StatusCode::from_u16(status).map_err(|_| StatusCode::BAD_REQUEST)
            }),
        )
        .route("/echo", post(async |request: Request| request.into_body()))
        .route("/exempt", get(async || "exempt"))
        .route("/first_piece", post(first_piece))
        .route("/close", get(async || ([(CONNECTION, "close")], "the last")))
        .route(
            "/unknown_length",
            get(async || Body::from_stream(stream::iter(["one ", "two ", "three "].map(Ok::<_, Infallible>)))),
        )
        .route("/drip", get(async || axum::body::Body::from_stream(drips())))
        .route("/client", get(who))
        .route("/certificate", get(certificate))
        .route(
            "/endless",
            get(async || Body::from_stream(stream::repeat_with(|| Ok::<_, Infallible>(vec![b'a'; 16_384])))),
        )
        .route("/panic", any(panicking))
        .route("/exit/{code}", get(exiting));
    let goodbye = table.goodbye_file.clone();
    Ok(Lifespan::new(router).on_shutdown(async move {
        if !goodbye.is_empty() {
            note(&goodbye);
        }
    }))
}

/// Answers with what the app knows of its client, and with the names of the forwarding headers that have reached it.
async fn who(request: Request) -> Result<Json<serde_json::Value>, &'static str> {
    let client = request.extensions().get::<oxicorn::ClientInfo>().ok_or("no client")?;
    let names = request.headers().keys().map(ToString::to_string);
    let forwarding: Vec<_> = names.filter(|name| name.contains("forwarded")).collect();
    Ok(Json(serde_json::json!({
        "pid": std::process::id(),
        "address": client.address(),
        "port": client.port(),
        "scheme": client.scheme(),
        "host": client.host(),
        "peer": client.peer(),
        "tls": client.is_tls(),
        "forwarding": forwarding,
    })))
}

/// Switches the connection to a protocol that echoes everything, and that sends one message when `goodbye` completes.
async fn upgraded(mut request: Request, goodbye: impl Future<Output = ()> + Send + 'static) -> Response {
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let stream = upgrade.await.expect("what was asked for and granted");
        let (mut reader, mut writer) = tokio::io::split(TokioIo::new(stream));
        let mut goodbye = std::pin::pin!(goodbye);
        let (mut buffer, mut said) = ([0; 4096], false);
        loop {
            tokio::select! {
                () = &mut goodbye, if !said => {
                    said = true;
                    let _ = writer.write_all(b"draining").await;
                }
                read = reader.read(&mut buffer) => match read {
                    Ok(length) if length > 0 => {
                        if writer.write_all(&buffer[..length]).await.is_err() {
                            return;
                        }
                    }
                    _ => break,
                },
            }
        }
        let _ = writer.shutdown().await;
    });
    (StatusCode::SWITCHING_PROTOCOLS, [(CONNECTION, "upgrade"), (UPGRADE, "echo")]).into_response()
}

/// A response body without an end: it sends five bytes every few milliseconds.
fn drips() -> impl futures_util::Stream<Item = Result<&'static str, Infallible>> {
    futures_util::stream::unfold((), async |()| {
        tokio::time::sleep(Duration::from_millis(5)).await;
        Some((Ok("drip\n"), ()))
    })
}

/// Answers with the first piece of the request's body, and does not read the rest.
async fn first_piece(request: Request) -> Body {
    Body::from_stream(request.into_body().into_data_stream().take(1))
}

/// Answers with the subject and the length of the certificate that the client showed, or with `nobody` if it showed
/// none.
async fn certificate(request: axum::extract::Request) -> String {
    let shown = request.extensions().get::<oxicorn::ClientCertificate>();
    shown.map_or_else(|| "nobody".to_owned(), |shown| format!("{} {}", shown.subject(), shown.der().len()))
}

async fn panicking() -> &'static str {
    panic!("a bug in one route")
}

#[expect(clippy::disallowed_methods, reason = "a silent exit is the fault to show")]
async fn exiting(axum::extract::Path(code): axum::extract::Path<i32>) {
    std::process::exit(code)
}

#[expect(clippy::disallowed_methods, reason = "a second thread before the fork is the fault to show")]
fn main() -> ExitCode {
    if std::env::var_os("MISBEHAVE_THREAD").is_some() {
        std::thread::spawn(|| {
            loop {
                std::thread::park();
            }
        });
    }
    oxicorn::App::new(factory).table::<Table>("misbehave").run()
}
