//! The OpenAPI document of the service, and Swagger UI to read it and try it out.
//!
//! Owns: the parts of the document that do not describe a route (each handler describes its own), and the routes
//! `/openapi.json` and `/docs`, with the files that `/docs` loads. Refuses: to serve files from outside the binary.

use std::sync::Arc;

use axum::{
    Json, Router,
    body::Bytes,
    extract::{Path, State, rejection::PathRejection},
    http::{
        HeaderValue,
        header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE},
    },
    response::{Html, IntoResponse, Response},
    routing::get,
};
use utoipa::{
    Modify, OpenApi,
    openapi::{
        OpenApi as Document,
        security::{Http, HttpAuthScheme, SecurityScheme},
    },
};
use utoipa_axum::{router::OpenApiRouter, routes};
use utoipa_swagger_ui::Config;

use crate::{auth::Token, error::ApiError};

/// The content policy of `/docs`. It allows the page only to load files of this service and to call this service. No
/// inline script may run.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);

const PAGE: &str = r#"<!doctype html>
<html lang="en">
  <head>
    <meta charset="utf-8">
    <title>oxicorn reference service</title>
    <link rel="stylesheet" href="docs/swagger-ui.css">
    <link rel="stylesheet" href="docs/index.css">
    <link rel="icon" type="image/png" href="docs/favicon-32x32.png">
  </head>
  <body>
    <div id="swagger-ui"></div>
    <script src="docs/swagger-ui-bundle.js"></script>
    <script src="docs/swagger-ui-standalone-preset.js"></script>
    <script src="docs/swagger-initializer.js"></script>
  </body>
</html>
"#;

#[derive(OpenApi)]
#[openapi(
    info(title = "oxicorn reference service", description = "Small facts over JSON. Every error has the same shape."),
    tags(
        (name = "facts", description = "A small collection with every verb, pages and a filter"),
        (name = "health", description = "For probes and load balancers"),
        (name = "debug", description = "The state of a worker"),
        (name = "docs", description = "This OpenAPI document"),
    ),
    components(schemas(crate::error::ErrorBody)),
    modifiers(&BearerScheme),
)]
struct Frame;

struct BearerScheme;

impl Modify for BearerScheme {
    fn modify(&self, document: &mut Document) {
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        document.components.get_or_insert_default().add_security_scheme("bearer", scheme);
    }
}

/// Returns the OpenAPI document without any route, to which the routes are added.
pub(crate) fn frame() -> Document {
    Frame::openapi()
}

/// Returns the routes `/openapi.json` and `/docs`. `document` describes every other route already.
pub(crate) fn routes(document: Document, token: &Token) -> Router {
    let (router, mut document) =
        OpenApiRouter::with_openapi(document).routes(routes!(openapi)).routes(routes!(page)).split_for_parts();
    if !token.is_needed() {
        open_to_all(&mut document);
    }
    let config = Arc::new(Config::from("/openapi.json").use_base_layout().validator_url("none"));
    router.with_state(Arc::new(document)).merge(Router::new().route("/docs/{file}", get(file)).with_state(config))
}

/// Removes the token from the document, for a service that needs none.
fn open_to_all(document: &mut Document) {
    for path in document.paths.paths.values_mut() {
        for operation in [&mut path.post, &mut path.put, &mut path.delete].into_iter().flatten() {
            operation.security = None;
            operation.responses.responses.remove("401");
        }
    }
}

/// This OpenAPI document
#[utoipa::path(get, path = "/openapi.json", tag = "docs", responses(
    (status = 200, description = "OpenAPI 3.1", body = Object),
))]
async fn openapi(State(document): State<Arc<Document>>) -> Response {
    Json(document.as_ref()).into_response()
}

/// This OpenAPI document, to read and try out in a browser
#[utoipa::path(get, path = "/docs", tag = "docs", responses(
    (status = 200, description = "Swagger UI", body = str, content_type = "text/html"),
))]
async fn page() -> Response {
    ([(CONTENT_SECURITY_POLICY, POLICY)], Html(PAGE)).into_response()
}

async fn file(
    State(config): State<Arc<Config<'static>>>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let absent = || ApiError::not_found("Swagger UI has no such file");
    let Path(name) = name.map_err(|_| absent())?;
    // The HTML pages that come with Swagger UI are not served. They would get the content policy of all other answers,
    // so a browser would show them blank.
    if name.ends_with(".html") {
        return Err(absent());
    }
    let file = utoipa_swagger_ui::serve(&name, config).ok().flatten().ok_or_else(absent)?;
    let headers = [
        (CONTENT_TYPE, HeaderValue::try_from(file.content_type).map_err(|_| absent())?),
        (CACHE_CONTROL, HeaderValue::from_static("public, max-age=3600")),
    ];
    Ok((headers, Bytes::from_owner(file.bytes)).into_response())
}
