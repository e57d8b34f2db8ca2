//! Every error body has one shape: `{"error", "type", "details": [{"field", "message"}]}`.
//!
//! Owns: the status of a refusal, its body, and its part of the OpenAPI document. Refuses: to give a client what only
//! the log may hold.

use std::collections::BTreeMap;

use axum::{
    Json,
    extract::rejection::BytesRejection,
    http::{
        HeaderValue, StatusCode,
        header::{RETRY_AFTER, WWW_AUTHENTICATE},
    },
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::{
    ToSchema,
    openapi::{ContentBuilder, HeaderBuilder, Ref, RefOr, Response as Documented, ResponseBuilder},
};

use crate::{dependency::error_chain, store::StoreError};

/// A request that the service did not fulfil.
#[derive(Debug, PartialEq)]
pub(crate) struct ApiError {
    status: StatusCode,
    sentence: String,
    details: Vec<Detail>,
    /// The value of `WWW-Authenticate`, for a 401.
    challenge: Option<&'static str>,
}

/// One mistake in a field, a query parameter or a path segment, or in the whole `body` or `query`.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
pub(crate) struct Detail {
    #[schema(example = "tags[1]")]
    field: String,
    #[schema(example = "must have 1 to 64 characters")]
    message: String,
}

/// The body of every error.
#[derive(Serialize, ToSchema)]
#[schema(as = Error)]
pub(crate) struct ErrorBody<'a> {
    /// What went wrong, for a human.
    error: &'a str,
    r#type: ErrorType,
    /// Each mistake by name. Empty when the whole request is wrong, or when the request is not the cause.
    details: &'a [Detail],
}

/// What went wrong, for a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ErrorType {
    BadRequest,
    Unauthorized,
    NotFound,
    MethodNotAllowed,
    PayloadTooLarge,
    UnsupportedMediaType,
    ValidationError,
    InternalError,
    Unavailable,
}

impl Detail {
    pub(crate) fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }
}

impl ApiError {
    fn new(status: StatusCode, sentence: impl Into<String>) -> Self {
        Self { status, sentence: sentence.into(), details: Vec::new(), challenge: None }
    }

    pub(crate) fn bad_request(field: &str, message: impl Into<String>) -> Self {
        let details = vec![Detail::new(field, message)];
        Self { details, ..Self::new(StatusCode::BAD_REQUEST, "the request cannot be understood") }
    }

    pub(crate) fn unauthorized(sentence: &str, challenge: &'static str) -> Self {
        Self { challenge: Some(challenge), ..Self::new(StatusCode::UNAUTHORIZED, sentence) }
    }

    pub(crate) fn not_found(sentence: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, sentence)
    }

    pub(crate) fn method_not_allowed() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "this route does not answer that method; see the Allow header")
    }

    pub(crate) fn unsupported_media_type() -> Self {
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "the body must be JSON, with Content-Type: application/json")
    }

    pub(crate) fn invalid(details: Vec<Detail>) -> Self {
        Self { details, ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, "the request is not valid; see details") }
    }

    fn payload_too_large() -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "the body is larger than this server accepts (http.limit_request_body)",
        )
    }

    fn of_the_store(status: StatusCode) -> Self {
        Self::new(status, "the store cannot answer; what was asked may not have been done")
    }

    fn kind(&self) -> ErrorType {
        match self.status {
            StatusCode::BAD_REQUEST => ErrorType::BadRequest,
            StatusCode::UNAUTHORIZED => ErrorType::Unauthorized,
            StatusCode::NOT_FOUND => ErrorType::NotFound,
            StatusCode::METHOD_NOT_ALLOWED => ErrorType::MethodNotAllowed,
            StatusCode::PAYLOAD_TOO_LARGE => ErrorType::PayloadTooLarge,
            StatusCode::UNSUPPORTED_MEDIA_TYPE => ErrorType::UnsupportedMediaType,
            StatusCode::UNPROCESSABLE_ENTITY => ErrorType::ValidationError,
            StatusCode::SERVICE_UNAVAILABLE => ErrorType::Unavailable,
            _ => ErrorType::InternalError,
        }
    }

    fn body(&self) -> ErrorBody<'_> {
        ErrorBody { error: &self.sentence, r#type: self.kind(), details: &self.details }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        let status = match error {
            StoreError::Panicked => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        // This line has the level `debug`, because under load it would be logged for thousands of requests. The store
        // itself logs once that it fails.
        tracing::debug!(reason = error_chain(&error), "a client was answered {}", status.as_u16());
        Self::of_the_store(status)
    }
}

impl From<BytesRejection> for ApiError {
    fn from(rejection: BytesRejection) -> Self {
        match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => Self::payload_too_large(),
            _ => Self::bad_request("body", "could not be read to its end"),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if let Some(challenge) = self.challenge {
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        response
    }
}

/// Makes each error a response of the OpenAPI document, with the error itself as the example.
pub(crate) fn responses(errors: impl IntoIterator<Item = ApiError>) -> BTreeMap<String, RefOr<Documented>> {
    let response = |error: ApiError| {
        let content = ContentBuilder::new()
            .schema(Some(Ref::from_schema_name(ErrorBody::name())))
            .example(serde_json::to_value(error.body()).ok());
        let mut response =
            ResponseBuilder::new().description(&error.sentence).content("application/json", content.build());
        if error.status == StatusCode::SERVICE_UNAVAILABLE {
            response = response.header(RETRY_AFTER.as_str(), HeaderBuilder::new().description(Some("seconds")).build());
        }
        if error.challenge.is_some() {
            response = response.header(WWW_AUTHENTICATE.as_str(), HeaderBuilder::new().build());
        }
        (error.status.as_str().to_owned(), response.build().into())
    };
    errors.into_iter().map(response).collect()
}

/// Makes a type that stands for some errors in the `responses(…)` of a route.
macro_rules! documented {
    ($(#[$says:meta])* $name:ident, $errors:expr) => {
        $(#[$says])*
        pub(crate) struct $name;

        impl utoipa::IntoResponses for $name {
            fn responses() -> std::collections::BTreeMap<String, utoipa::openapi::RefOr<utoipa::openapi::Response>> {
                $crate::error::responses($errors)
            }
        }
    };
}
pub(crate) use documented;

documented!(
    /// The errors of a route that asks the store.
    StoreFailure,
    [StatusCode::INTERNAL_SERVER_ERROR, StatusCode::SERVICE_UNAVAILABLE].map(ApiError::of_the_store)
);
documented!(
    /// The errors of a route that takes a body.
    TooLarge,
    [ApiError::payload_too_large()]
);
documented!(
    /// The errors of a route that takes JSON, apart from the errors in the values of the JSON.
    BadBody,
    [
        ApiError::bad_request("body", "is not JSON: EOF while parsing an object at line 1 column 1"),
        ApiError::payload_too_large(),
        ApiError::unsupported_media_type(),
    ]
);
