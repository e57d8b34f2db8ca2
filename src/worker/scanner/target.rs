//! Checks the target of a request.
//!
//! Owns: the four forms of a target (RFC 9112, section 3.2) and the syntax of `host[:port]`. Refuses: the meaning of a
//! target.

use std::{net::Ipv6Addr, ops::Range};

use super::{Refusal, class};

/// Checks the form of a target. If the target has an authority (`host[:port]`), returns the range of the authority in
/// the target.
pub(super) fn check(method: &[u8], target: &[u8]) -> Result<Option<Range<usize>>, Refusal> {
    // A target that begins with a slash has the origin-form of RFC 9112, section 3.2.1.
    if target.first() == Some(&b'/') && method != b"CONNECT" {
        return check_path(target).map(|()| None);
    }
    // The target of CONNECT must have the authority-form of RFC 9112, section 3.2.3, with a port. No other method may
    // use this form.
    if method == b"CONNECT" {
        return match split_authority(target) {
            Some((_, Some(port))) if !port.is_empty() => Ok(Some(0..target.len())),
            _ => Err(Refusal::CONNECT_TARGET),
        };
    }
    // The target `*` is the asterisk-form of RFC 9112, section 3.2.4. Only OPTIONS may use it.
    if target == b"*" && method == b"OPTIONS" {
        return Ok(None);
    }
    // Any other target must have the absolute-form of RFC 9112, section 3.2.2. It must not name a user (RFC 9110,
    // section 4.2.4); `split_authority` refuses a target that does.
    let begin = ["http://", "https://"]
        .into_iter()
        .find(|scheme| target.get(..scheme.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(scheme.as_bytes())))
        .map(str::len)
        .ok_or(Refusal::TARGET)?;
    let end =
        target.iter().skip(begin).position(|sign| matches!(sign, b'/' | b'?')).map_or(target.len(), |at| begin + at);
    split_authority(&target[begin..end]).ok_or(Refusal::TARGET)?;
    check_path(&target[end..])?;
    Ok(Some(begin..end))
}

fn check_path(path: &[u8]) -> Result<(), Refusal> {
    let end = class::run(path, class::PATH);
    let whole = match &path[end..] {
        [] => true,
        [b'?', query @ ..] => class::all(query, class::QUERY),
        _ => false,
    };
    // Bytes above ASCII should be percent-encoded (RFC 3986), but many clients do not encode them. nginx accepts such
    // bytes, and `http::Uri` accepts them if they are UTF-8.
    if whole && (path.is_ascii() || str::from_utf8(path).is_ok()) { Ok(()) } else { Err(Refusal::TARGET_CHARACTER) }
}

/// Splits an authority, `host[:port]` (RFC 3986, section 3.2). Returns `None` if the authority is not valid. A host
/// must not be empty (RFC 9110, section 4.2.1).
pub(super) fn split_authority(authority: &[u8]) -> Option<(&[u8], Option<&[u8]>)> {
    let end = match authority {
        [b'[', rest @ ..] => {
            let end = rest.iter().position(|&sign| sign == b']')?;
            let address: &str = str::from_utf8(&rest[..end]).ok()?;
            address.parse::<Ipv6Addr>().ok()?;
            end + 2
        }
        _ => class::run(authority, class::HOST),
    };
    let (host, rest) = authority.split_at(end);
    let port = match rest {
        [] => None,
        // An empty port is valid (RFC 3986, section 3.2.3).
        [b':', port @ ..] if port.len() <= 5 && port.iter().all(u8::is_ascii_digit) => Some(port),
        _ => return None,
    };
    let number = port.unwrap_or_default().iter().fold(0, |number, digit| number * 10 + u32::from(digit - b'0'));
    (!host.is_empty() && number <= u32::from(u16::MAX)).then_some((host, port))
}
