//! The routes of `/facts`, a small collection that clients can list page by page, filter and change.
//!
//! Owns: the rules for what a client may send, and the answers to requests that break these rules. Refuses: to store
//! facts (`store`), and to decide whether a client may write (`auth`).

use axum::{
    Json,
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Path, Query, Request, State, rejection::PathRejection},
    http::{
        HeaderMap, StatusCode,
        header::{CONTENT_TYPE, LOCATION},
        request::Parts,
    },
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use crate::{
    auth::{Token, Unauthorized},
    error::{ApiError, BadBody, Detail, StoreFailure, documented},
    store::{Draft, Fact, Listing, Page, Store},
};

const TEXT_MAX: usize = 2000;
const SOURCE_MAX: usize = 2000;
const TAGS_MAX: usize = 16;
const TAG_MAX: usize = 64;
const LIMIT_MAX: u32 = 100;
const LIMIT_DEFAULT: u32 = 20;

#[derive(Clone)]
struct Facts {
    store: Store,
    token: Token,
}

pub(crate) fn routes(store: Store, token: Token) -> OpenApiRouter {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(read, replace, delete))
        .with_state(Facts { store, token })
}

/// Make a fact
#[utoipa::path(
    post,
    path = "/facts",
    operation_id = "createFact",
    tag = "facts",
    request_body = FactInput,
    security(("bearer" = [])),
    responses(
        (
            status = 201,
            description = "The fact, and its address in `location`",
            body = Fact,
            headers(("location" = String, description = "/facts/ and the id")),
            links(
                ("read" = (operation_id = "readFact", parameters(("id" = "$response.body#/id")))),
                ("replace" = (operation_id = "replaceFact", parameters(("id" = "$response.body#/id")))),
                ("delete" = (operation_id = "deleteFact", parameters(("id" = "$response.body#/id")))),
            ),
        ),
        BadBody,
        BadFact,
        Unauthorized,
        StoreFailure,
    ),
)]
async fn create(_: Writer, State(facts): State<Facts>, draft: Draft) -> Result<Response, ApiError> {
    let fact = facts.store.insert(draft).await?;
    let location = [(LOCATION, format!("/facts/{}", fact.id))];
    Ok((StatusCode::CREATED, location, Json(fact)).into_response())
}

/// List facts, newest first
#[utoipa::path(
    get,
    path = "/facts",
    operation_id = "listFacts",
    tag = "facts",
    params(
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 100, description = "How many; 20 by default"),
        ("cursor" = Option<String>, Query, format = Uuid, description = "`next_cursor` of the page before"),
        ("tag" = Option<String>, Query, min_length = 1, max_length = 64, description = "Only facts with this tag"),
    ),
    responses(
        (
            status = 200,
            description = "A page; `next_cursor` is null on the last one",
            body = Listing,
            links(
                ("next" = (operation_id = "listFacts", parameters(("cursor" = "$response.body#/next_cursor")))),
            ),
        ),
        BadPage,
        StoreFailure,
    ),
)]
async fn list(State(facts): State<Facts>, page: Page) -> Result<Json<Listing>, ApiError> {
    Ok(Json(facts.store.list(page).await?))
}

/// Read a fact
#[utoipa::path(
    get,
    path = "/facts/{id}",
    operation_id = "readFact",
    tag = "facts",
    params(("id" = String, Path, format = Uuid)),
    responses((status = 200, description = "The fact", body = Fact), NoSuchFact, StoreFailure),
)]
async fn read(State(facts): State<Facts>, FactId(id): FactId) -> Result<Json<Fact>, ApiError> {
    facts.store.get(id).await?.map(Json).ok_or_else(no_such_fact)
}

/// Replace the content of a fact; its id and the time of its creation stay
#[utoipa::path(
    put,
    path = "/facts/{id}",
    operation_id = "replaceFact",
    tag = "facts",
    params(("id" = String, Path, format = Uuid)),
    request_body = FactInput,
    security(("bearer" = [])),
    responses(
        (status = 200, description = "The fact as it now is", body = Fact),
        BadBody,
        BadFact,
        NoSuchFact,
        Unauthorized,
        StoreFailure,
    ),
)]
async fn replace(
    _: Writer,
    State(facts): State<Facts>,
    FactId(id): FactId,
    draft: Draft,
) -> Result<Json<Fact>, ApiError> {
    facts.store.replace(id, draft).await?.map(Json).ok_or_else(no_such_fact)
}

/// Delete a fact
#[utoipa::path(
    delete,
    path = "/facts/{id}",
    operation_id = "deleteFact",
    tag = "facts",
    params(("id" = String, Path, format = Uuid)),
    security(("bearer" = [])),
    responses((status = 204, description = "It is gone"), NoSuchFact, Unauthorized, StoreFailure),
)]
async fn delete(_: Writer, State(facts): State<Facts>, FactId(id): FactId) -> Result<StatusCode, ApiError> {
    if facts.store.delete(id).await? { Ok(StatusCode::NO_CONTENT) } else { Err(no_such_fact()) }
}

fn no_such_fact() -> ApiError {
    ApiError::not_found("there is no fact with this id")
}

documented!(NoSuchFact, [no_such_fact()]);
documented!(BadPage, [bad_cursor(), bad_limit()]);
documented!(BadFact, validate(FactInput { text: None, source: None, tags: Some(vec![Tag(String::new())]) }).err());

/// A value that exists only if the client may write. It is extracted before the body, so that the body of a client that
/// may not write is not read.
struct Writer;

impl FromRequestParts<Facts> for Writer {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, facts: &Facts) -> Result<Self, ApiError> {
        facts.token.admit(&parts.headers).map(|()| Self)
    }
}

/// The `{id}` in the path of a request. A text that is not a UUID is treated as an id that no fact has.
struct FactId(String);

impl<S: Send + Sync> FromRequestParts<S> for FactId {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path: Result<Path<String>, PathRejection> = Path::from_request_parts(parts, state).await;
        path.map(|Path(id)| Self(id)).map_err(|_| no_such_fact())
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Page {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Query(pairs) = Query::<Vec<(String, String)>>::from_request_parts(parts, state)
            .await
            .map_err(|rejection| ApiError::bad_request("query", rejection.body_text()))?;
        let mut page = Self { limit: LIMIT_DEFAULT, before: Uuid::max().to_string(), tag: None };
        for (name, value) in pairs {
            match name.as_str() {
                "limit" => {
                    let limit = value.parse().ok().filter(|limit| (1..=LIMIT_MAX).contains(limit));
                    page.limit = limit.ok_or_else(bad_limit)?;
                }
                "cursor" => page.before = Uuid::try_parse(&value).map_err(|_| bad_cursor())?.to_string(),
                "tag" if is_tag(&value) => page.tag = Some(value),
                "tag" => return Err(ApiError::invalid(vec![Detail::new("tag", tag_length())])),
                _ => {}
            }
        }
        Ok(page)
    }
}

fn bad_limit() -> ApiError {
    ApiError::invalid(vec![Detail::new("limit", format!("must be a whole number from 1 to {LIMIT_MAX}"))])
}

fn bad_cursor() -> ApiError {
    ApiError::bad_request("cursor", "is not one that this service gave out as next_cursor")
}

fn is_tag(text: &str) -> bool {
    !text.is_empty() && !longer_than(text, TAG_MAX)
}

fn tag_length() -> String {
    format!("must have 1 to {TAG_MAX} characters")
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

/// The body of POST and PUT, before it is checked. All fields are optional here, so that `validate` can name a missing
/// field together with every other mistake.
#[derive(Deserialize, ToSchema)]
#[schema(as = NewFact, description = "What a client decides about a fact")]
#[serde(deny_unknown_fields)]
struct FactInput {
    /// Not blank
    #[schema(required, value_type = String, min_length = 1, max_length = 2000, pattern = r"[^ \t\n\f\r]", example = "Otters hold hands")]
    text: Option<String>,
    /// The source of the fact
    #[schema(max_length = 2000, example = "a zoo keeper")]
    source: Option<String>,
    #[schema(max_items = 16, example = json!(["otter"]))]
    tags: Option<Vec<Tag>>,
}

// `Tag` is a type of its own, so that the OpenAPI document can give the maximum length of a tag.
#[derive(Deserialize, ToSchema)]
#[schema(min_length = 1, max_length = 64)]
struct Tag(String);

fn parse(body: &[u8]) -> Result<Draft, ApiError> {
    let not_json = |error: &serde_json::Error| ApiError::bad_request("body", format!("is not JSON: {error}"));
    // Without this check serde would accept `["some text"]` as an object without names.
    if body.trim_ascii_start().first() != Some(&b'{') {
        serde_json::from_slice::<serde::de::IgnoredAny>(body).map_err(|error| not_json(&error))?;
        return Err(ApiError::invalid(vec![Detail::new("body", "must be an object")]));
    }
    let mut json = serde_json::Deserializer::from_slice(body);
    let input: FactInput = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        if error.inner().is_data() {
            ApiError::invalid(vec![Detail::new(error.path().to_string(), error.inner().to_string())])
        } else {
            not_json(error.inner())
        }
    })?;
    json.end().map_err(|error| not_json(&error))?;
    validate(input)
}

fn validate(input: FactInput) -> Result<Draft, ApiError> {
    let mut details = Vec::new();
    let mut refuse = |field: &str, message: String| details.push(Detail::new(field, message));

    let text = input.text.unwrap_or_else(|| {
        refuse("text", "is required".into());
        "-".into()
    });
    // Only ASCII white space counts, as in the pattern of the OpenAPI document, because dialects of regular expressions
    // differ on other white space.
    if text.chars().all(|sign| sign.is_ascii_whitespace()) {
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
    for (i, Tag(tag)) in sent.into_iter().enumerate().take(TAGS_MAX) {
        if !is_tag(&tag) {
            refuse(&format!("tags[{i}]"), tag_length());
        } else if !tags.contains(&tag) {
            tags.push(tag);
        }
    }
    if details.is_empty() { Ok(Draft { text, source: input.source, tags }) } else { Err(ApiError::invalid(details)) }
}

fn longer_than(text: &str, characters: usize) -> bool {
    text.chars().nth(characters).is_some()
}
