//! The grammar of a bearer token.
//!
//! Owns: which texts a client can send as a token (RFC 6750, 2.1). Refuses: the token itself (`auth`).

pub(crate) const UNSENDABLE: &str =
    "cannot be sent by a client: a token has only letters, digits and -._~+/, and may end in =";

/// Returns true if the text is a `b64token` (RFC 6750, 2.1).
pub(crate) fn is_sendable(token: &str) -> bool {
    let core = token.trim_end_matches('=');
    !core.is_empty() && core.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~+/".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_what_a_header_can_carry() {
        for good in ["x", "abc.DEF-123_~+/", "bGV0IG1lIGlu=="] {
            assert!(is_sendable(good), "{good}");
        }
        for bad in ["", "=", "two words", "=x", "ü", "a\n", "\"quoted\""] {
            assert!(!is_sendable(bad), "{bad:?}");
        }
    }
}
