//! The certificate of a client, as a handler of the app sees it.
//!
//! Owns: the text of the certificate's subject. Refuses: to verify the certificate. The TLS handshake has already
//! verified that an authority in `tls.client_ca` has signed the certificate.

use std::{
    fmt::{self, Write},
    sync::Arc,
};

#[cfg(feature = "tls")]
use x509_parser::{
    objects::{oid_registry, oid2abbrev},
    parse_x509_certificate,
    x509::X509Name,
};

/// The certificate that a client showed in the TLS handshake. If `tls.client_ca` is set, every request has this value
/// as an extension. The handshake has then proved that an authority in `tls.client_ca` has signed the certificate, that
/// the certificate was valid when the connection began, and that the client has the certificate's private key. Without
/// the feature `tls` no request has the extension.
///
/// ```
/// use axum::{Extension, Router, routing::get};
/// use oxicorn::ClientCertificate;
///
/// async fn hello(certificate: Option<Extension<ClientCertificate>>) -> String {
///     match certificate {
///         Some(Extension(certificate)) => format!("hello {}\n", certificate.subject()),
///         None => "hello, client without a certificate\n".to_owned(),
///     }
/// }
/// # let _: Router = Router::new().route("/", get(hello));
/// ```
#[derive(Clone)]
pub struct ClientCertificate(Arc<Shown>);

struct Shown {
    der: Vec<u8>,
    subject: String,
}

impl ClientCertificate {
    #[cfg(feature = "tls")]
    pub(crate) fn of(der: impl AsRef<[u8]>) -> Self {
        let der = der.as_ref().to_vec();
        let parsed = parse_x509_certificate(&der);
        let subject = parsed.map_or_else(|_| String::new(), |(_, certificate)| name(certificate.subject()));
        Self(Arc::new(Shown { der, subject }))
    }

    /// Returns the subject's distinguished name in the form of RFC 4514, with the most specific part first:
    /// `CN=alice,O=Example`. Commas and other separators in a value are escaped, so that no name can look like another.
    /// Compare the whole name, not a part of it.
    #[must_use]
    pub fn subject(&self) -> &str {
        &self.0.subject
    }

    /// Returns the whole certificate in DER, which the app can pass to a parser of its own.
    #[must_use]
    pub fn der(&self) -> &[u8] {
        &self.0.der
    }
}

impl fmt::Debug for ClientCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientCertificate").field("subject", &self.0.subject).finish_non_exhaustive()
    }
}

/// Formats a distinguished name as RFC 4514, section 2 says.
#[cfg(feature = "tls")]
fn name(name: &X509Name<'_>) -> String {
    let mut parts: Vec<_> = name
        .iter_rdn()
        .map(|part| {
            let attributes = part.iter().map(|attribute| {
                let kind = attribute.attr_type();
                let kind = oid2abbrev(kind, oid_registry()).map_or_else(|_| kind.to_id_string(), str::to_owned);
                match attribute.as_str() {
                    Ok(text) => format!("{kind}={}", escaped(text)),
                    Err(_) => format!("{kind}=#{}", hexadecimal(attribute.as_slice())),
                }
            });
            attributes.collect::<Vec<_>>().join("+")
        })
        .collect();
    parts.reverse();
    parts.join(",")
}

/// Escapes a value of a distinguished name as RFC 4514, section 2.4 says. It also escapes control characters, because
/// the text may be written to a log. The RFC allows this.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    let last = text.chars().count().saturating_sub(1);
    for (index, sign) in text.chars().enumerate() {
        match sign {
            '"' | '+' | ',' | ';' | '<' | '>' | '\\' => escaped.extend(['\\', sign]),
            '#' if index == 0 => escaped.push_str("\\#"),
            ' ' if index == 0 || index == last => escaped.push_str("\\ "),
            control if control.is_control() => {
                let mut bytes = [0; 4];
                for byte in control.encode_utf8(&mut bytes).bytes() {
                    let _ = write!(escaped, "\\{byte:02X}");
                }
            }
            sign => escaped.push(sign),
        }
    }
    escaped
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02X}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_with_separators_cannot_look_like_two_values() {
        for (text, wanted) in [
            ("alice", "alice"),
            ("a,CN=root", r"a\,CN=root"),
            ("a+b;c<d>\"e\\", r#"a\+b\;c\<d\>\"e\\"#),
            (" # ", r"\ #\ "),
            ("#a#", r"\#a#"),
            ("a\nb\0\u{85}", r"a\0Ab\00\C2\85"),
            ("Zoë", "Zoë"),
            ("", ""),
        ] {
            assert_eq!(escaped(text), wanted, "{text:?}");
        }
    }
}
