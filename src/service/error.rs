//! The one shape of every error body: `{"error", "type", "details": [{"field", "message"}]}`.
//!
//! Owns: which status a refusal has and how it is written. Refuses: telling a client what only the log should know.

use axum::{
    Json,
    extract::rejection::BytesRejection,
    http::{HeaderValue, StatusCode, header::RETRY_AFTER},
    response::{IntoResponse, Response},
};
use serde::Serialize;

use super::store::StoreError;
use crate::error_chain;

/// A request that was not answered as asked.
#[derive(Debug, PartialEq)]
pub(super) struct ApiError {
    status: StatusCode,
    sentence: String,
    details: Vec<Detail>,
}

/// What is wrong with one field, query parameter or path segment. `body` stands for the body as a whole.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Detail {
    field: String,
    message: String,
}

impl Detail {
    pub(super) fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }
}

impl ApiError {
    fn new(status: StatusCode, sentence: impl Into<String>) -> Self {
        Self { status, sentence: sentence.into(), details: Vec::new() }
    }

    pub(super) fn bad_request(field: &str, message: impl Into<String>) -> Self {
        let details = vec![Detail::new(field, message)];
        Self { details, ..Self::new(StatusCode::BAD_REQUEST, "the request cannot be understood") }
    }

    pub(super) fn not_found(sentence: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, sentence)
    }

    pub(super) fn method_not_allowed() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "this route does not answer that method; see the Allow header")
    }

    pub(super) fn unsupported_media_type() -> Self {
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "the body must be JSON, with Content-Type: application/json")
    }

    pub(super) fn invalid(details: Vec<Detail>) -> Self {
        Self { details, ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, "the request is not valid; see details") }
    }

    fn kind(&self) -> &'static str {
        match self.status {
            StatusCode::BAD_REQUEST => "bad_request",
            StatusCode::NOT_FOUND => "not_found",
            StatusCode::METHOD_NOT_ALLOWED => "method_not_allowed",
            StatusCode::PAYLOAD_TOO_LARGE => "payload_too_large",
            StatusCode::UNSUPPORTED_MEDIA_TYPE => "unsupported_media_type",
            StatusCode::UNPROCESSABLE_ENTITY => "validation_error",
            StatusCode::SERVICE_UNAVAILABLE => "unavailable",
            _ => "internal_error",
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        let status = match error {
            StoreError::Panicked => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        // The store says once that it fails; under load this line would come a thousand times.
        tracing::debug!(reason = error_chain(&error), "a client was answered {}", status.as_u16());
        Self::new(status, "the store cannot answer; what was asked may not have been done")
    }
}

impl From<BytesRejection> for ApiError {
    fn from(rejection: BytesRejection) -> Self {
        match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => Self::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "the body is larger than this server accepts (http.limit_request_body)",
            ),
            _ => Self::bad_request("body", "could not be read to its end"),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        #[derive(Serialize)]
        struct Shape<'a> {
            error: &'a str,
            r#type: &'static str,
            details: &'a [Detail],
        }

        let body = Json(Shape { error: &self.sentence, r#type: self.kind(), details: &self.details });
        let mut response = (self.status, body).into_response();
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
