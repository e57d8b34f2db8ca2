//! The classes of bytes that the parts of a head consist of.
//!
//! Owns: one table for all classes of bytes. Refuses: the meaning of a run of such bytes.

/// The class of the characters of a method or a field name: `tchar` of RFC 9110, section 5.6.2.
pub(super) const TOKEN: u8 = 1;

/// The class of the characters of a target's path. Besides the characters of RFC 3986, the class has those that
/// `http::Uri` takes because browsers and curl send them unescaped: `"`, `[`, `\`, `]`, `^`, `{`, `|`, `}` and bytes
/// above 0x7F, which must be UTF-8. It does not have `#`, because a fragment is not sent (RFC 9112, 3.2).
pub(super) const PATH: u8 = 2;

/// The class of the characters of a target's query, as browsers send it. They send the backtick unescaped, so the class
/// has it, but it does not have `"`.
pub(super) const QUERY: u8 = 4;

/// The class of the characters of a host that is a name or an IPv4 address: `unreserved` and `sub-delims` of RFC 3986,
/// section 3.2.2. It does not have the percent sign, because `http::Uri` does not take this sign, and no host name in
/// use has it.
pub(super) const HOST: u8 = 8;

const CLASSES: [u8; 256] = {
    let mut classes = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let sign = byte as u8;
        let alphanumeric = sign.is_ascii_alphanumeric();
        let mut class = 0;
        if alphanumeric
            || matches!(sign, b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~')
        {
            class |= TOKEN;
        }
        if matches!(sign, b'!' | b'"' | b'$'..=b';' | b'=' | b'@'..=b'_' | b'a'..=b'~' | 0x80..) {
            class |= PATH;
        }
        if matches!(sign, b'!' | b'$'..=b';' | b'=' | b'?'..=b'~' | 0x80..) {
            class |= QUERY;
        }
        if alphanumeric || matches!(sign, b'-' | b'.' | b'_' | b'~' | b'!' | b'$' | b'&'..=b',' | b';' | b'=') {
            class |= HOST;
        }
        classes[byte] = class;
        byte += 1;
    }
    classes
};

/// Returns how many bytes at the front of `bytes` belong to `class`.
pub(super) fn run(bytes: &[u8], class: u8) -> usize {
    bytes.iter().position(|&byte| CLASSES[usize::from(byte)] & class == 0).unwrap_or(bytes.len())
}

pub(super) fn all(bytes: &[u8], class: u8) -> bool {
    run(bytes, class) == bytes.len()
}

/// Removes the optional whitespace around the bytes (RFC 9110, section 5.6.3).
pub(super) fn trim(bytes: &[u8]) -> &[u8] {
    let mut bytes = trim_start(bytes);
    while let [rest @ .., b' ' | b'\t'] = bytes {
        bytes = rest;
    }
    bytes
}

pub(super) fn trim_start(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = bytes {
        bytes = rest;
    }
    bytes
}

/// Returns the index of the first control character: a byte below 0x20 other than a tab, or 0x7F.
///
/// It looks at eight bytes at a time, as one number. It subtracts 0x20 from each byte; a byte below 0x20 then borrows
/// from the next higher one. To find 0x7F, it first turns such bytes into 0 by XOR, and then subtracts 1 from each
/// byte. The lowest byte that borrows is really a control character or a tab. A higher byte may borrow only because the
/// byte below it did, so only the lowest one counts.
pub(super) fn first_control(bytes: &[u8]) -> Option<usize> {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const HIGH: u64 = ONES << 7;
    let (words, rest) = bytes.as_chunks::<8>();
    for (number, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        let deleted = word ^ (ONES * 0x7F);
        let found = (word.wrapping_sub(ONES * 0x20) & !word | deleted.wrapping_sub(ONES) & !deleted) & HIGH;
        if found != 0 {
            // If the byte that was found is a tab, it is allowed. A control character may still follow the tab, so the
            // rest is searched byte by byte.
            let from = number * 8 + (found.trailing_zeros() / 8) as usize;
            return Some(from).filter(|&at| bytes[at] != b'\t').or_else(|| after(bytes, from + 1));
        }
    }
    after(bytes, bytes.len() - rest.len())
}

fn after(bytes: &[u8], from: usize) -> Option<usize> {
    let control = |&byte: &u8| byte < b' ' && byte != b'\t' || byte == 0x7F;
    bytes[from..].iter().position(control).map(|at| from + at)
}
