//! The `X-Request-Id` of each request, which is the client's own id or an id that this worker makes.
//!
//! Owns: the rule for accepting the id of a client, and the digits of new ids. Refuses: the places that show ids
//! (`exchange`, the access log).

use std::{
    hash::{BuildHasher, RandomState},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};

use crate::{scoreboard::X_REQUEST_ID, sys::clock};

const LONGEST: usize = 128;

#[derive(Debug)]
pub(super) struct RequestIds {
    /// Random digits that differ in each worker, so that no two workers make the same id, even at different times.
    prefix: [u8; 16],
    made: AtomicU64,
}

impl RequestIds {
    pub(super) fn new() -> Self {
        // Forked workers inherit the keys of the hash from the master, so the hashed value must differ between workers.
        // The pair of pid and time is different in each worker.
        Self::with(RandomState::new().hash_one((std::process::id(), clock::nanoseconds())))
    }

    fn with(prefix: u64) -> Self {
        Self { prefix: digits(prefix), made: AtomicU64::new(0) }
    }

    /// Returns the id of a request, and leaves it as the only `X-Request-Id` in the headers. A new id replaces the
    /// client's id if the client's id is too long, has unusual characters, or is not the only one.
    pub(super) fn settle(&self, headers: &mut HeaderMap) -> HeaderValue {
        // Comparing a handful of names costs less than a look-up in the map, which hashes the name. `append` costs less
        // than `insert`.
        let mut given = headers.iter().filter(|(name, _)| **name == X_REQUEST_ID);
        match (given.next(), given.next()) {
            (Some((_, id)), None) if is_sane(id.as_bytes()) => return id.clone(),
            (Some(_), _) => _ = headers.remove(&X_REQUEST_ID),
            (None, _) => {}
        }
        let id = self.make();
        headers.append(&X_REQUEST_ID, id.clone());
        id
    }

    /// Makes an id of 24 hexadecimal digits.
    fn make(&self) -> HeaderValue {
        // Only the serving loop makes ids, so a load and a store are enough to count them.
        let made = self.made.load(Relaxed).wrapping_add(1);
        self.made.store(made, Relaxed);
        let mut id = [0; 24];
        id[..16].copy_from_slice(&self.prefix);
        id[16..].copy_from_slice(&digits::<8>(made));
        // With `Bytes`, the request, the response and the log share one copy of the id.
        HeaderValue::from_maybe_shared(Bytes::from_owner(id)).expect("hexadecimal digits are a value")
    }
}

/// Returns the last `N` hexadecimal digits of a number, as ASCII.
fn digits<const N: usize>(number: u64) -> [u8; N] {
    std::array::from_fn(|at| b"0123456789abcdef"[(number >> (4 * (N - 1 - at)) & 0xf) as usize])
}

/// Returns true if the id has a valid length, and no character with a meaning in a shell, in a log, or in a list in a
/// header.
fn is_sane(id: &[u8]) -> bool {
    let harmless = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:=+/@".contains(byte);
    (1..=LONGEST).contains(&id.len()) && id.iter().all(harmless)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settled(given: &[&[u8]]) -> (HeaderMap, HeaderValue) {
        let mut headers = HeaderMap::new();
        for id in given {
            headers.append(&X_REQUEST_ID, HeaderValue::from_bytes(id).unwrap());
        }
        let id = RequestIds::with(0xabc).settle(&mut headers);
        (headers, id)
    }

    #[test]
    fn a_valid_id_is_kept_and_any_other_replaced() {
        let long = [b'x'; LONGEST + 1];
        for sane in [&b"a"[..], b"7f9c-_.:=+/@Z", &long[..LONGEST]] {
            assert_eq!(settled(&[sane]).1.as_bytes(), sane);
        }
        let refused: [&[&[u8]]; 8] =
            [&[], &[b""], &[&long], &[b"a b"], &[b"a,b"], &[b"a\"b"], &[b"\xff"], &[b"one", b"two"]];
        for given in refused {
            let (headers, id) = settled(given);
            assert_eq!(id, "0000000000000abc00000001");
            assert_eq!(headers.get_all(&X_REQUEST_ID).iter().collect::<Vec<_>>(), [&id], "{given:?}");
        }
    }

    #[test]
    fn no_id_is_made_twice() {
        let ids = [RequestIds::new(), RequestIds::new()];
        let made: std::collections::HashSet<_> =
            (0..2_000).map(|at| ids[at % 2].make().to_str().unwrap().to_owned()).collect();
        assert_eq!(made.len(), 2_000);
    }
}
