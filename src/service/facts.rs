//! `/facts`: a small collection with every verb, pages and a filter.
//!
//! Owns: what a client may send and how it is refused. Refuses: how facts are kept (`store`).

use axum::{
    Json, Router,
    body::Bytes,
    extract::{FromRequest, Path, Query, Request, State, rejection::PathRejection},
    http::{
        HeaderMap, StatusCode,
        header::{CONTENT_TYPE, LOCATION},
    },
    response::{IntoResponse, Response},
    routing::get,
};
use serde::Deserialize;
use uuid::Uuid;

use super::{
    error::{ApiError, Detail},
    store::{Draft, Fact, Listing, Page, Store},
};

const TEXT_MAX: usize = 2000;
const SOURCE_MAX: usize = 2000;
const TAGS_MAX: usize = 16;
const TAG_MAX: usize = 64;
const LIMIT_MAX: u32 = 100;
const LIMIT_DEFAULT: u32 = 20;

pub(super) fn routes(store: Store) -> Router {
    Router::new()
        .route("/facts", get(list).post(create))
        .route("/facts/{id}", get(read).put(replace).delete(delete))
        .with_state(store)
}

async fn create(State(store): State<Store>, draft: Draft) -> Result<Response, ApiError> {
    let fact = store.insert(draft).await?;
    let location = [(LOCATION, format!("/facts/{}", fact.id))];
    Ok((StatusCode::CREATED, location, Json(fact)).into_response())
}

async fn list(State(store): State<Store>, page: Page) -> Result<Json<Listing>, ApiError> {
    Ok(Json(store.list(page).await?))
}

async fn read(State(store): State<Store>, FactId(id): FactId) -> Result<Json<Fact>, ApiError> {
    store.get(id).await?.map(Json).ok_or_else(no_such_fact)
}

async fn replace(State(store): State<Store>, FactId(id): FactId, draft: Draft) -> Result<Json<Fact>, ApiError> {
    store.replace(id, draft).await?.map(Json).ok_or_else(no_such_fact)
}

async fn delete(State(store): State<Store>, FactId(id): FactId) -> Result<StatusCode, ApiError> {
    if store.delete(id).await? { Ok(StatusCode::NO_CONTENT) } else { Err(no_such_fact()) }
}

fn no_such_fact() -> ApiError {
    ApiError::not_found("there is no fact with this id")
}

/// The `{id}` of a path. One that cannot be an id is simply an id that nothing has.
struct FactId(String);

impl<S: Send + Sync> axum::extract::FromRequestParts<S> for FactId {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut axum::http::request::Parts, state: &S) -> Result<Self, ApiError> {
        let path: Result<Path<String>, PathRejection> = Path::from_request_parts(parts, state).await;
        path.map(|Path(id)| Self(id)).map_err(|_| no_such_fact())
    }
}

impl<S: Send + Sync> axum::extract::FromRequestParts<S> for Page {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut axum::http::request::Parts, state: &S) -> Result<Self, ApiError> {
        let Query(pairs) = Query::<Vec<(String, String)>>::from_request_parts(parts, state)
            .await
            .map_err(|rejection| ApiError::bad_request("query", rejection.body_text()))?;
        let mut page = Self { limit: LIMIT_DEFAULT, before: Uuid::max().to_string(), tag: None };
        // An empty value counts as absent, so that a client may always send all three names.
        for (name, value) in pairs.into_iter().filter(|(_, value)| !value.is_empty()) {
            match name.as_str() {
                "limit" => {
                    let limit = value.parse().ok().filter(|limit| (1..=LIMIT_MAX).contains(limit));
                    page.limit = limit.ok_or_else(|| {
                        let message = format!("must be a whole number from 1 to {LIMIT_MAX}");
                        ApiError::invalid(vec![Detail::new("limit", message)])
                    })?;
                }
                "cursor" => {
                    let cursor = Uuid::try_parse(&value).map_err(|_| {
                        ApiError::bad_request("cursor", "is not one that this service gave out as next_cursor")
                    })?;
                    page.before = cursor.to_string();
                }
                "tag" => page.tag = Some(value),
                _ => {}
            }
        }
        Ok(page)
    }
}

impl<S: Send + Sync> FromRequest<S> for Draft {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        if !is_json(request.headers()) {
            return Err(ApiError::unsupported_media_type());
        }
        parse(&Bytes::from_request(request, state).await?)
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let Some(kind) = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()) else { return false };
    let essence = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
}

/// The body of POST and PUT before anything is known about it. All optional: what is missing is named by `validate`,
/// together with everything else that is wrong.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    text: Option<String>,
    source: Option<String>,
    tags: Option<Vec<String>>,
}

fn parse(body: &[u8]) -> Result<Draft, ApiError> {
    let not_json = |error: &serde_json::Error| ApiError::bad_request("body", format!("is not JSON: {error}"));
    // Without this serde would take `["some text"]` for an object without names.
    if body.trim_ascii_start().first() != Some(&b'{') {
        serde_json::from_slice::<serde::de::IgnoredAny>(body).map_err(|error| not_json(&error))?;
        return Err(ApiError::invalid(vec![Detail::new("body", "must be an object")]));
    }
    let mut json = serde_json::Deserializer::from_slice(body);
    let input: Input = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        if error.inner().is_data() {
            ApiError::invalid(vec![Detail::new(error.path().to_string(), error.inner().to_string())])
        } else {
            not_json(error.inner())
        }
    })?;
    json.end().map_err(|error| not_json(&error))?;
    validate(input)
}

fn validate(input: Input) -> Result<Draft, ApiError> {
    let mut details = Vec::new();
    let mut refuse = |field: &str, message: String| details.push(Detail::new(field, message));

    let text = input.text.unwrap_or_else(|| {
        refuse("text", "is required".into());
        "-".into()
    });
    if text.trim().is_empty() {
        refuse("text", "must not be blank".into());
    } else if longer_than(&text, TEXT_MAX) {
        refuse("text", format!("must have at most {TEXT_MAX} characters"));
    }
    if input.source.as_deref().is_some_and(|source| longer_than(source, SOURCE_MAX)) {
        refuse("source", format!("must have at most {SOURCE_MAX} characters"));
    }
    let sent = input.tags.unwrap_or_default();
    if sent.len() > TAGS_MAX {
        refuse("tags", format!("must be at most {TAGS_MAX}"));
    }
    let mut tags = Vec::new();
    for (i, tag) in sent.into_iter().enumerate().take(TAGS_MAX) {
        if tag.is_empty() || longer_than(&tag, TAG_MAX) {
            refuse(&format!("tags[{i}]"), format!("must have 1 to {TAG_MAX} characters"));
        } else if !tags.contains(&tag) {
            tags.push(tag);
        }
    }
    if details.is_empty() { Ok(Draft { text, source: input.source, tags }) } else { Err(ApiError::invalid(details)) }
}

fn longer_than(text: &str, characters: usize) -> bool {
    text.chars().nth(characters).is_some()
}
