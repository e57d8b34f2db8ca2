//! The pages that the worker answers itself, before the app: `http.metrics_path`, `http.health_path` and
//! `http.ready_path`. The app does not get a request for one of these pages, so it is neither counted nor limited.
//!
//! Owns: the paths, and what each page says. Refuses: the response (`connection::exchange`), and the numbers on the
//! page of metrics (`metrics`).

use http::{Method, Request, StatusCode};

use crate::{metrics::CONTENT_TYPE, settings::Http};

const TEXT: &str = "text/plain; charset=utf-8";

/// The pages of one worker, with their paths.
#[derive(Debug)]
pub(super) struct OwnPages(Box<[(String, OwnPage)]>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OwnPage {
    Metrics,
    Health,
    Ready,
}

/// What a page says.
pub(super) struct PageContent {
    pub(super) status: StatusCode,
    pub(super) kind: &'static str,
    pub(super) text: String,
}

impl OwnPages {
    pub(super) fn new(http: &Http) -> Self {
        let pages = [
            (&http.metrics_path, OwnPage::Metrics),
            (&http.health_path, OwnPage::Health),
            (&http.ready_path, OwnPage::Ready),
        ];
        Self(pages.into_iter().filter(|(path, _)| !path.is_empty()).map(|(path, page)| (path.clone(), page)).collect())
    }

    /// Returns the page that a request asks for; `None` if the request is for the app.
    pub(super) fn find<B>(&self, request: &Request<B>) -> Option<OwnPage> {
        // Most services set none of the three paths, so they pay only for this one comparison.
        if self.0.is_empty() || !matches!(*request.method(), Method::GET | Method::HEAD) {
            return None;
        }
        let asked = request.uri().path();
        self.0.iter().find(|(path, _)| path == asked).map(|(_, page)| *page)
    }
}

impl OwnPage {
    /// Returns what the page says. `metrics` makes the page of metrics; `is_stopping` is true once the whole service was
    /// asked to stop.
    pub(super) fn content(self, metrics: impl FnOnce() -> String, is_stopping: bool) -> PageContent {
        let text = |status, text: &str| PageContent { status, kind: TEXT, text: text.to_owned() };
        match self {
            Self::Metrics => PageContent { status: StatusCode::OK, kind: CONTENT_TYPE, text: metrics() },
            Self::Health => text(StatusCode::OK, "alive\n"),
            Self::Ready if is_stopping => text(StatusCode::SERVICE_UNAVAILABLE, "stopping\n"),
            Self::Ready => text(StatusCode::OK, "ready\n"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Settings;

    #[test]
    fn only_a_get_or_head_of_a_path_that_is_set_asks_for_a_page() {
        let mut http = Settings::default().http;
        let found = |http: &Http, method: &str, uri: &str| {
            OwnPages::new(http).find(&Request::builder().method(method).uri(uri).body(()).unwrap())
        };
        for uri in ["/", "/health", "/ready", "/metrics"] {
            assert_eq!(found(&http, "GET", uri), None, "{uri}");
        }
        (http.health_path, http.ready_path) = ("/health".to_owned(), "/ready".to_owned());
        for (method, uri, page) in [
            ("GET", "/health", Some(OwnPage::Health)),
            ("HEAD", "/health?verbose=1", Some(OwnPage::Health)),
            ("GET", "http://a.example/ready", Some(OwnPage::Ready)),
            ("POST", "/health", None),
            ("GET", "/health/", None),
            ("GET", "/metrics", None),
            ("OPTIONS", "*", None),
        ] {
            assert_eq!(found(&http, method, uri), page, "{method} {uri}");
        }
        http.metrics_path = "/metrics".to_owned();
        assert_eq!(found(&http, "GET", "/metrics"), Some(OwnPage::Metrics));
    }
}
