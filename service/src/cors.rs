//! Which web pages may call the service from a browser (the CORS protocol of the Fetch standard).
//!
//! Owns: the form of an origin, the rights of a listed origin, and the decision which part answers an OPTIONS request.
//! Refuses: to allow cookies, and to give the right to write. Only the token gives this right.

use std::{fmt, str::FromStr, sync::Arc, time::Duration};

use axum::{
    extract::{Request, State},
    http::{
        HeaderValue, Method, StatusCode, Uri,
        header::{
            ACCESS_CONTROL_REQUEST_METHOD, AUTHORIZATION, CONTENT_TYPE, LOCATION, ORIGIN, RETRY_AFTER, VARY,
            WWW_AUTHENTICATE,
        },
    },
    middleware::Next,
    response::Response,
};
use serde::{Deserialize, Deserializer, de};
use tower_http::cors::{AllowOrigin, CorsLayer};
use tower_layer::Layer;
use tower_service::Service;

/// An origin exactly as browsers send it, such as `https://app.example.com`, or `*`, which means every origin.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct WebOrigin(HeaderValue);

/// The error for a text that is not an origin. It holds the text.
#[derive(Debug, PartialEq, thiserror::Error)]
#[error(
    "\"{0}\" is not an origin as browsers send it, such as \"https://app.example.com\" or \"http://localhost:5173\": lower case, without path, without the scheme's own port; or \"*\""
)]
pub(crate) struct BadOrigin(String);

impl FromStr for WebOrigin {
    type Err = BadOrigin;

    fn from_str(text: &str) -> Result<Self, BadOrigin> {
        let as_sent = |uri: &Uri| {
            let scheme = uri.scheme_str().filter(|scheme| matches!(*scheme, "http" | "https"))?;
            let usual = if scheme == "https" { 443 } else { 80 };
            let port = uri.port_u16().filter(|port| *port != usual).map(|port| format!(":{port}")).unwrap_or_default();
            Some(format!("{scheme}://{}{port}", uri.host().filter(|host| !host.contains('*'))?.to_ascii_lowercase()))
        };
        let is_origin = text == "*" || text.parse().ok().as_ref().and_then(as_sent).is_some_and(|sent| sent == text);
        match HeaderValue::from_str(text) {
            Ok(value) if is_origin => Ok(Self(value)),
            _ => Err(BadOrigin(text.to_owned())),
        }
    }
}

impl WebOrigin {
    fn is_every(&self) -> bool {
        self.0 == "*"
    }
}

impl<'de> Deserialize<'de> for WebOrigin {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl fmt::Debug for WebOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The origins of `service.cors_origins`, and tower-http's layer for them. Both are cheap to clone.
#[derive(Clone)]
pub(crate) struct Cors {
    origins: Arc<[WebOrigin]>,
    layer: CorsLayer,
}

impl Cors {
    pub(crate) fn of(origins: &[WebOrigin]) -> Self {
        let allowed = if origins.iter().any(WebOrigin::is_every) {
            AllowOrigin::any()
        } else {
            AllowOrigin::list(origins.iter().map(|origin| origin.0.clone()))
        };
        let layer = CorsLayer::new()
            .allow_origin(allowed)
            .allow_methods([Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::DELETE])
            .allow_headers([AUTHORIZATION, CONTENT_TYPE])
            // A web page can read a few headers of every answer. This list names the other headers that a page needs.
            .expose_headers([LOCATION, RETRY_AFTER, WWW_AUTHENTICATE])
            .max_age(Duration::from_secs(600))
            // `Vary` is also sent to origins that are not listed, because a cache must not show one origin's answer to
            // another.
            .vary([ORIGIN]);
        Self { origins: origins.into(), layer }
    }

    fn is_preflight_of_listed(&self, request: &Request) -> bool {
        let headers = request.headers();
        let is_listed = |sent: &HeaderValue| self.origins.iter().any(|origin| origin.is_every() || origin.0 == *sent);
        headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD) && headers.get(ORIGIN).is_some_and(is_listed)
    }
}

/// Applies the layer, but not to every OPTIONS request. The layer alone would answer each OPTIONS request with 200,
/// even if the origin is not listed, or if the request is not a preflight of a browser. In these two cases the request
/// goes on to the router, which answers 405. The answer to a preflight that is allowed has no body, so its status is
/// 204.
pub(crate) async fn cors(State(cors): State<Cors>, request: Request, next: Next) -> Response {
    if *request.method() != Method::OPTIONS {
        let Ok(response) = cors.layer.layer(next).call(request).await;
        return response;
    }
    if cors.is_preflight_of_listed(&request) {
        let Ok(mut response) = cors.layer.layer(next).call(request).await;
        *response.status_mut() = StatusCode::NO_CONTENT;
        return response;
    }
    let mut response = next.run(request).await;
    response.headers_mut().append(VARY, HeaderValue::from_name(ORIGIN));
    response
}

#[cfg(test)]
mod tests {
    use axum::{
        Router,
        body::Body,
        http::{
            HeaderName,
            header::{
                ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
                ACCESS_CONTROL_EXPOSE_HEADERS,
            },
        },
        middleware,
        routing::get,
    };

    use super::*;

    #[test]
    fn an_origin_is_what_browsers_send() {
        for good in ["https://app.example.com", "http://localhost:5173", "http://127.0.0.1", "http://[::1]:8000", "*"] {
            assert!(good.parse::<WebOrigin>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "null",
            "example.com",
            "https://",
            "https://example.com/",
            "https://example.com/path",
            "https://Example.com",
            "https://example.com:443",
            "http://example.com:80",
            "https://u:p@example.com",
            "https://*.example.com",
            "ftp://example.com",
            "https://example.com?x",
            "https://a.example, https://b.example",
        ] {
            assert!(bad.parse::<WebOrigin>().is_err(), "{bad}");
        }
    }

    async fn ask(origins: &[&str], method: Method, headers: &[(HeaderName, &str)]) -> Response {
        let origins: Vec<WebOrigin> = origins.iter().map(|origin| origin.parse().unwrap()).collect();
        let mut router = Router::new()
            .route("/", get(async || "read"))
            .layer(middleware::from_fn_with_state(Cors::of(&origins), cors))
            .with_state(());
        let mut request = Request::new(Body::empty());
        *request.method_mut() = method;
        for (name, value) in headers {
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        router.call(request).await.unwrap()
    }

    fn header(response: &Response, name: &HeaderName) -> String {
        response.headers().get(name).map_or(String::new(), |value| value.to_str().unwrap().to_owned())
    }

    const OURS: [&str; 2] = ["https://a.example", "https://b.example"];

    #[tokio::test]
    async fn a_listed_origin_may_read_and_no_other() {
        for origin in OURS {
            let response = ask(&OURS, Method::GET, &[(ORIGIN, origin)]).await;
            assert_eq!(response.status(), StatusCode::OK);
            assert_eq!(header(&response, &ACCESS_CONTROL_ALLOW_ORIGIN), origin);
            assert!(header(&response, &ACCESS_CONTROL_EXPOSE_HEADERS).contains("location"));
            assert_eq!(header(&response, &VARY), "origin");
        }
        for headers in [&[][..], &[(ORIGIN, "https://evil.example")], &[(ORIGIN, "https://a.example.evil.example")]] {
            let response = ask(&OURS, Method::GET, headers).await;
            assert_eq!(response.status(), StatusCode::OK);
            assert_eq!(header(&response, &ACCESS_CONTROL_ALLOW_ORIGIN), "");
            assert_eq!(header(&response, &VARY), "origin", "a cache must know");
        }
        let response = ask(&["*"], Method::GET, &[(ORIGIN, "https://anyone.example")]).await;
        assert_eq!(header(&response, &ACCESS_CONTROL_ALLOW_ORIGIN), "*");
    }

    #[tokio::test]
    async fn a_preflight_is_answered_to_a_listed_origin() {
        let asks = (ACCESS_CONTROL_REQUEST_METHOD, "PUT");
        let response = ask(&OURS, Method::OPTIONS, &[(ORIGIN, OURS[1]), asks.clone()]).await;
        assert_eq!(response.status(), StatusCode::NO_CONTENT);
        assert_eq!(header(&response, &ACCESS_CONTROL_ALLOW_ORIGIN), OURS[1]);
        assert!(header(&response, &ACCESS_CONTROL_ALLOW_METHODS).contains("PUT"));
        assert!(header(&response, &ACCESS_CONTROL_ALLOW_HEADERS).contains("authorization"));
        assert_eq!(header(&response, &VARY), "origin");

        for headers in [&[(ORIGIN, "https://evil.example"), asks][..], &[(ORIGIN, OURS[0])], &[]] {
            let response = ask(&OURS, Method::OPTIONS, headers).await;
            assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED, "{headers:?}");
            assert_eq!(header(&response, &ACCESS_CONTROL_ALLOW_METHODS), "");
        }
    }
}
