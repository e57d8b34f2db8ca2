//! Which web pages may call from a browser (the CORS protocol of the Fetch standard).
//!
//! Owns: what an origin looks like, the answer to a preflight, the headers of the other answers. Refuses: cookies; who
//! may write is the token's business.

use std::{fmt, str::FromStr, sync::Arc};

use axum::{
    extract::{Request, State},
    http::{
        HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri,
        header::{
            ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
            ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
        },
    },
    middleware::Next,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Deserializer, de};

const PREFLIGHT: [(HeaderName, HeaderValue); 3] = [
    (ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, HEAD, POST, PUT, DELETE")),
    (ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("authorization, content-type")),
    (ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600")),
];

/// What a page may read beyond the headers that browsers always show.
const EXPOSED: HeaderValue = HeaderValue::from_static("location, retry-after, www-authenticate");

/// An origin exactly as browsers send it, `https://app.example.com`; or `*`, which is every one.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Origin(HeaderValue);

/// Why a text is no origin.
#[derive(Debug, PartialEq, thiserror::Error)]
#[error(
    "\"{0}\" is not an origin as browsers send it, such as \"https://app.example.com\" or \"http://localhost:5173\": lower case, without path, without the scheme's own port; or \"*\""
)]
pub(crate) struct BadOrigin(String);

impl FromStr for Origin {
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

impl<'de> Deserialize<'de> for Origin {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Answers a listed origin's preflight, and lets its pages read every other answer.
pub(crate) async fn cors(State(origins): State<Arc<[Origin]>>, request: Request, next: Next) -> Response {
    let allowed = allowed(&origins, request.headers());
    let is_preflight =
        request.method() == Method::OPTIONS && request.headers().contains_key(ACCESS_CONTROL_REQUEST_METHOD);
    let mut response = if is_preflight && allowed.is_some() {
        (StatusCode::NO_CONTENT, PREFLIGHT).into_response()
    } else {
        next.run(request).await
    };
    let headers = response.headers_mut();
    // Also where nothing is allowed: a cache must not show one origin's answer to another.
    headers.append(VARY, HeaderValue::from_name(ORIGIN));
    if let Some(origin) = allowed {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
    }
    response
}

fn allowed(origins: &[Origin], headers: &HeaderMap) -> Option<HeaderValue> {
    let sent = headers.get(ORIGIN)?;
    origins.iter().map(|origin| &origin.0).find(|origin| *origin == "*" || *origin == sent).cloned()
}

#[cfg(test)]
mod tests {
    use axum::{Router, body::Body, middleware, routing::get};
    use tower_service::Service;

    use super::*;

    #[test]
    fn an_origin_is_what_browsers_send() {
        for good in ["https://app.example.com", "http://localhost:5173", "http://127.0.0.1", "http://[::1]:8000", "*"] {
            assert!(good.parse::<Origin>().is_ok(), "{good}");
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
            assert!(bad.parse::<Origin>().is_err(), "{bad}");
        }
    }

    async fn ask(origins: &[&str], method: Method, headers: &[(HeaderName, &str)]) -> Response {
        let origins: Arc<[Origin]> = origins.iter().map(|origin| origin.parse().unwrap()).collect();
        let mut router = Router::new()
            .route("/", get(async || "read"))
            .layer(middleware::from_fn_with_state(origins, cors))
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
