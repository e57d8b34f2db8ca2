//! Decides whether a client may write. Either every client may write, or only clients with the bearer token (RFC 6750).
//!
//! Owns: the token, its comparison, and the 401. Refuses: to choose the routes that need the token. Those routes call
//! [`Token::admit`] themselves.

use std::{fmt, sync::Arc};

use axum::http::{HeaderMap, header::AUTHORIZATION};
use subtle::ConstantTimeEq;

use crate::{
    error::{ApiError, documented},
    settings::ServiceSettings,
};

const MISSING: &str = r#"Bearer realm="oxicorn""#;
const WRONG: &str = r#"Bearer realm="oxicorn", error="invalid_token""#;

/// The error if the program declared the table `[service]` without its files, so that the token's file was not read.
#[derive(Debug, thiserror::Error)]
#[error("service.bearer_token_file was not read: declare the table as factory::table() has it")]
pub(crate) struct TokenUnread;

/// The token that a write needs, or nothing if every client may write. It is cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Token(Option<Arc<str>>);

impl Token {
    /// # Errors
    /// [`TokenUnread`] if a file is named and was not read. Without this error, the service would be open to all.
    pub(crate) fn of(settings: &ServiceSettings) -> Result<Self, TokenUnread> {
        match settings.bearer_token.expose() {
            "" if settings.bearer_token_file.as_os_str().is_empty() => Ok(Self::default()),
            "" => Err(TokenUnread),
            token => Ok(Self(Some(token.into()))),
        }
    }

    pub(crate) fn is_needed(&self) -> bool {
        self.0.is_some()
    }

    /// # Errors
    /// 401 if a token is needed and these headers do not carry it. A client that measures the time of the comparison
    /// can learn the length of the token, but nothing else.
    pub(crate) fn admit(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let Some(token) = &self.0 else { return Ok(()) };
        let shown = headers.get(AUTHORIZATION).and_then(|value| bearer(value.as_bytes()));
        match shown.map(|shown| shown.ct_eq(token.as_bytes()).into()) {
            Some(true) => Ok(()),
            Some(false) => Err(ApiError::unauthorized("the bearer token is not the right one", WRONG)),
            None => Err(missing()),
        }
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("is_needed", &self.is_needed()).finish()
    }
}

fn missing() -> ApiError {
    ApiError::unauthorized("this needs the header Authorization: Bearer and a token", MISSING)
}

/// Returns the token of `Bearer TOKEN`. The case of the scheme does not matter (RFC 9110, 11.1).
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
}

documented!(
    /// The 401 in the OpenAPI document, for the routes that need the token.
    Unauthorized,
    [missing()]
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_token_is_admitted() {
        let token = Token(Some("s3cret".into()));
        let admit = |value: &str| {
            let headers = HeaderMap::from_iter([(AUTHORIZATION, value.parse().unwrap())]);
            token.admit(&headers)
        };
        for good in ["Bearer s3cret", "bearer s3cret", "BEARER  s3cret "] {
            assert_eq!(admit(good), Ok(()), "{good}");
        }
        for bad in ["Bearer s3cre", "Bearer s3cret2", "Bearer S3CRET", "Bearer ", "Bearer x"] {
            assert_eq!(admit(bad).unwrap_err(), ApiError::unauthorized("the bearer token is not the right one", WRONG));
        }
        for none in ["", "s3cret", "Bearer", "Basic s3cret", "Bearers3cret"] {
            assert_eq!(admit(none).unwrap_err(), missing(), "{none}");
        }
        assert_eq!(token.admit(&HeaderMap::new()).unwrap_err(), missing());
        assert_eq!(Token::default().admit(&HeaderMap::new()), Ok(()));
        assert_eq!(format!("{token:?}"), "Token { is_needed: true }");
    }
}
