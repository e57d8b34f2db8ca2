//! What a bearer token may hold.
//!
//! Owns: the grammar (RFC 6750, 2.1), for the settings and for the comparison. Refuses: to know any token (`auth`).

pub(crate) const UNSENDABLE: &str =
    "holds what no client can send: a token has letters, digits and -._~+/ only, and may end in =";

/// Whether a text is a `b64token` (RFC 6750, 2.1).
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
