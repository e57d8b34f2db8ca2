//! What proxies say about the client of a request, and which proxies are trusted.
//!
//! Owns: `http.forwarded_allow_ips`, the meaning of `X-Forwarded-For`, `-Proto`, `-Host`, `-Port` and `Forwarded` (RFC
//! 7239), and the removal of these headers, and of `SCRIPT_NAME`, if they come from an untrusted peer. Refuses: the PROXY header
//! (`proxy_protocol`).

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str,
};

use http::{
    HeaderMap, HeaderName, HeaderValue, Request,
    header::{FORWARDED, HOST},
    uri::Authority,
};
use ipnet::IpNet;

use crate::{
    client_info::{ClientInfo, Host},
    settings::AllowIp,
};

static FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
static PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
static HOST_SAID: HeaderName = HeaderName::from_static("x-forwarded-host");
static PORT: HeaderName = HeaderName::from_static("x-forwarded-port");

/// The networks of `http.forwarded_allow_ips`, whose peers are trusted.
#[derive(Debug)]
pub(super) struct TrustedProxies(Vec<IpNet>);

impl TrustedProxies {
    pub(super) fn new(allowed: &[AllowIp]) -> Self {
        Self(allowed.iter().flat_map(nets).collect())
    }

    /// Returns true if the peer with this address is trusted. A peer of a unix socket has no address, and is always
    /// trusted, as in Gunicorn. The mode of the socket file already decides which processes may connect.
    pub(super) fn trusts(&self, address: Option<IpAddr>) -> bool {
        address.is_none_or(|address| {
            let address = address.to_canonical();
            self.0.iter().any(|net| net.contains(&address))
        })
    }
}

fn nets(allowed: &AllowIp) -> Vec<IpNet> {
    let net = |address, prefix| IpNet::new(address, prefix).ok();
    match *allowed {
        AllowIp::Any => [net(Ipv4Addr::UNSPECIFIED.into(), 0), net(Ipv6Addr::UNSPECIFIED.into(), 0)],
        // An IPv4 network can be written as an IPv6 one: ::ffff:10.0.0.0/104 is 10.0.0.0/8.
        AllowIp::Net { address: IpAddr::V6(address), prefix: prefix @ 96.. } => match address.to_ipv4_mapped() {
            Some(address) => [net(address.into(), prefix - 96), None],
            None => [net(address.into(), prefix), None],
        },
        AllowIp::Net { address, prefix } => [net(address, prefix), None],
    }
    .into_iter()
    .flatten()
    .collect()
}

/// Returns the client that sent this request. `connection` is the peer of the connection, which may be a proxy. The
/// request keeps its forwarding headers only if that peer is trusted.
pub(super) fn client<B>(request: &mut Request<B>, connection: &ClientInfo, trust: &TrustedProxies) -> ClientInfo {
    let mut client = connection.clone();
    // A target in absolute form, or a target of HTTP/2, names the host itself. This host takes precedence over the
    // `Host` header (RFC 9112, section 3.2.2).
    client.host = match (request.uri().authority(), request.headers().get(HOST)) {
        (Some(authority), _) => Host::Authority(authority.clone()),
        (None, Some(value)) => Host::Header(value.clone()),
        (None, None) => Host::Unknown,
    };
    let headers = request.headers_mut();
    if headers.keys().any(forwards) {
        if trust.trusts(connection.address) {
            apply_trusted(headers, &mut client, trust);
        } else {
            let names: Vec<_> = headers.keys().filter(|name| forwards(name)).cloned().collect();
            for name in names {
                headers.remove(name);
            }
        }
    }
    client
}

/// Returns true if a proxy tells about the request by this header. `Script-Name`, with an underscore, is what a proxy
/// tells a Python app: the prefix of its paths.
fn forwards(name: &HeaderName) -> bool {
    let name = name.as_str();
    name.starts_with("x-forwarded-") || name == "forwarded" || name == "script_name"
}

/// Applies the forwarding headers of a trusted peer to `client`. Nearly every proxy writes `X-Forwarded-*` headers, and
/// passes on a `Forwarded` header that the client wrote. So `Forwarded` counts only if none of the `X-Forwarded-*`
/// headers that are read here is present.
fn apply_trusted(headers: &mut HeaderMap, client: &mut ClientInfo, trust: &TrustedProxies) {
    if [&FOR, &PROTO, &HOST_SAID, &PORT].iter().any(|name| headers.contains_key(*name)) {
        headers.remove(FORWARDED);
        follow(
            entries(headers, &FOR, false).map(|entry| Some(Hop { node: Some(node(entry)?), ..Hop::default() })),
            client,
            trust,
        );
        // The last entry of a list comes from the nearest proxy. The entries before it may come from the client.
        let last = |name| entries(headers, name, false).next();
        if let Some(https) = last(&PROTO).and_then(is_https) {
            client.https = https;
        }
        if let Some(host) = last(&HOST_SAID).and_then(authority) {
            client.host = Host::Authority(host);
        }
        if let Some(host) = last(&PORT).and_then(|port| with_port(client, port)) {
            client.host = Host::Authority(host);
        }
    } else if let Some(hop) = follow(entries(headers, &FORWARDED, true).map(hop), client, trust) {
        if let Some(https) = hop.proto.and_then(is_https) {
            client.https = https;
        }
        if let Some(host) = hop.host.and_then(authority) {
            client.host = Host::Authority(host);
        }
    }
}

/// What one proxy says about a request that it received: the address of the sender, the scheme, and the host.
#[derive(Clone, Copy, Default)]
struct Hop<'a> {
    node: Option<(IpAddr, Option<u16>)>,
    proto: Option<&'a str>,
    host: Option<&'a str>,
}

/// Follows the hops from the nearest proxy towards the client, and stores each address in `client`. The walk stops at
/// the first address that is not trusted. Returns the last hop that a trusted proxy named.
fn follow<'a>(
    hops: impl Iterator<Item = Option<Hop<'a>>>,
    client: &mut ClientInfo,
    trust: &TrustedProxies,
) -> Option<Hop<'a>> {
    let mut last = None;
    for hop in hops.map_while(|hop| hop) {
        last = Some(hop);
        let Some((address, port)) = hop.node else { break };
        (client.address, client.port) = (Some(address), port);
        if !trust.trusts(Some(address)) {
            break;
        }
    }
    last
}

/// Returns the entries of a list from the last to the first. Several fields of the same name count as one list. Reading
/// from the end protects the entry that a proxy appended. Before that entry a client may have written an open quote, or
/// bytes that are not text.
fn entries<'a>(headers: &'a HeaderMap, name: &HeaderName, quotes: bool) -> impl Iterator<Item = &'a str> {
    let fields = headers.get_all(name).iter().rev().map(HeaderValue::as_bytes);
    let split = move |field: &'a [u8]| field.rsplit(unquoted(b',', quotes));
    // An entry that is not text becomes `?`, so that it stays in the list as an entry that is not a valid address.
    fields
        .flat_map(split)
        .map(<[u8]>::trim_ascii)
        .filter(|entry| !entry.is_empty())
        .map(|entry| str::from_utf8(entry).unwrap_or("?"))
}

/// Returns a function that finds the byte `mark` outside of quotes. The function may read a text forwards or backwards.
/// If `quotes` is false, a quote has no meaning.
fn unquoted(mark: u8, quotes: bool) -> impl FnMut(&u8) -> bool {
    let mut inside = false;
    move |byte| {
        inside ^= quotes && *byte == b'"';
        *byte == mark && !inside
    }
}

/// Parses a forwarded-element (RFC 7239, section 4). The values that are read here never need escapes in quoted
/// strings.
fn hop(element: &str) -> Option<Hop<'_>> {
    let (mut said_for, mut proto, mut host) = (None, None, None);
    for pair in element.as_bytes().split(unquoted(b';', true)) {
        let pair = str::from_utf8(pair).ok()?.trim_ascii();
        if pair.is_empty() {
            continue;
        }
        let (name, value) = pair.split_once('=')?;
        let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value);
        let slot = match () {
            () if name.eq_ignore_ascii_case("for") => &mut said_for,
            () if name.eq_ignore_ascii_case("proto") => &mut proto,
            () if name.eq_ignore_ascii_case("host") => &mut host,
            () => continue,
        };
        if slot.replace(value).is_some() {
            return None;
        }
    }
    Some(Hop { node: said_for.and_then(node), proto, host })
}

/// Parses `192.0.2.7`, `192.0.2.7:80`, `2001:db8::7`, `[2001:db8::7]` or `[2001:db8::7]:80`. Leaves out an obfuscated
/// port. Returns `None` for an obfuscated or unknown address.
fn node(text: &str) -> Option<(IpAddr, Option<u16>)> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some((address.to_canonical(), None));
    }
    let (address, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, rest) = rest.split_once(']')?;
            (IpAddr::V6(address.parse().ok()?), if rest.is_empty() { None } else { Some(rest.strip_prefix(':')?) })
        }
        None => {
            let (address, port) = text.split_once(':')?;
            (IpAddr::V4(address.parse().ok()?), Some(port))
        }
    };
    Some((address.to_canonical(), port.and_then(|port| port.parse().ok())))
}

/// Returns true if the scheme is encrypted, and `None` if it is unknown. Some proxies name the schemes of WebSocket,
/// `ws` and `wss`.
fn is_https(proto: &str) -> Option<bool> {
    let is = |name: &str| proto.eq_ignore_ascii_case(name);
    if is("https") || is("wss") {
        Some(true)
    } else if is("http") || is("ws") {
        Some(false)
    } else {
        None
    }
}

fn authority(host: &str) -> Option<Authority> {
    let authority: Authority = host.parse().ok()?;
    (!authority.as_str().contains('@') && !authority.host().is_empty()).then_some(authority)
}

/// Returns the client's host with this port, for proxies that forward host and port in separate headers. Returns `None`
/// if the host names a port already, or if the port is the usual one of the scheme.
fn with_port(client: &ClientInfo, port: &str) -> Option<Authority> {
    let port: u16 = port.parse().ok()?;
    let host = authority(client.host()?).filter(|host| host.port().is_none())?;
    let usual = if client.https { 443 } else { 80 };
    (port != usual).then(|| format!("{host}:{port}").parse().ok())?
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*, sample::select};

    use super::*;
    use crate::settings::Settings;

    fn trust(list: &[&str]) -> TrustedProxies {
        let net = |text: &&str| match text.split_once('/') {
            _ if *text == "*" => AllowIp::Any,
            Some((address, prefix)) => {
                AllowIp::Net { address: address.parse().unwrap(), prefix: prefix.parse().unwrap() }
            }
            None => {
                let address: IpAddr = text.parse().unwrap();
                AllowIp::Net { address, prefix: if address.is_ipv4() { 32 } else { 128 } }
            }
        };
        TrustedProxies::new(&list.iter().map(net).collect::<Vec<_>>())
    }

    /// Returns what the app sees of a request from this peer: `address port scheme host`, and the names of the headers
    /// that are left.
    fn seen(peer: &str, trust: &TrustedProxies, headers: &[(&'static str, &str)]) -> (String, Vec<String>) {
        let mut request = Request::new(());
        for (name, value) in headers {
            request.headers_mut().append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        let client = client(&mut request, &ClientInfo::of_peer(peer.parse().ok()), trust);
        let word = |word: Option<String>| word.unwrap_or("-".to_owned());
        let said = [
            word(client.address().map(|address| address.to_string())),
            word(client.port().map(|port| port.to_string())),
            client.scheme().to_owned(),
            word(client.host().map(str::to_owned)),
        ];
        (said.join(" "), request.headers().keys().map(ToString::to_string).collect())
    }

    const PROXY: &str = "10.0.0.1:999";

    fn told(headers: &[(&'static str, &str)]) -> String {
        let trust = trust(&["10.0.0.0/8", "2001:db8:1::/48"]);
        seen(PROXY, &trust, headers).0
    }

    #[test]
    fn peers_in_the_list_are_trusted_and_others_are_not() {
        let usual = TrustedProxies::new(&Settings::default().http.forwarded_allow_ips);
        for (trust, trusted, not) in [
            (usual, "127.0.0.1 ::1 ::ffff:127.0.0.1", "127.0.0.2 ::2 10.0.0.1"),
            (trust(&["10.1.2.3/8"]), "10.0.0.0 10.255.255.255 ::ffff:10.9.9.9", "11.0.0.0 9.255.255.255 ::a00:1"),
            (trust(&["10.0.0.128/25"]), "10.0.0.128 10.0.0.255", "10.0.0.127 10.0.1.128"),
            (trust(&["::ffff:10.0.0.0/104"]), "10.1.1.1 ::ffff:10.1.1.1", "11.0.0.0 ::1"),
            (trust(&["::ffff:10.0.0.1"]), "10.0.0.1", "10.0.0.2"),
            (trust(&["2001:db8::/32"]), "2001:db8:ffff::1", "2001:db9:: 10.0.0.1"),
            (trust(&["*"]), "1.2.3.4 2001:db8::1 ::ffff:1.2.3.4", ""),
            (trust(&[]), "", "127.0.0.1 ::1"),
        ] {
            let trusts = |list: &str| {
                list.split_whitespace().map(|ip| trust.trusts(Some(ip.parse().unwrap()))).collect::<Vec<_>>()
            };
            assert!(trusts(trusted).into_iter().all(|it| it), "{trust:?}: {trusted}");
            assert!(!trusts(not).into_iter().any(|it| it), "{trust:?}: {not}");
            assert!(trust.trusts(None), "a unix socket has a mode of its own");
        }
    }

    #[test]
    fn forwarding_headers_of_an_untrusted_peer_are_removed() {
        let headers = [
            ("host", "example.org"),
            ("x-forwarded-for", "1.1.1.1"),
            ("x-forwarded-for", "1.1.1.2"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "evil"),
            ("x-forwarded-port", "1"),
            ("x-forwarded-prefix", "/admin"),
            ("forwarded", "for=1.1.1.1"),
            ("accept", "*/*"),
        ];
        let (said, left) = seen("192.0.2.9:5000", &trust(&["10.0.0.0/8"]), &headers);
        assert_eq!(said, "192.0.2.9 5000 http example.org");
        assert_eq!(left, ["host", "accept"]);
        let (said, left) = seen("[::ffff:192.0.2.9]:5000", &trust(&[]), &headers);
        assert_eq!((said.as_str(), left.len()), ("192.0.2.9 5000 http example.org", 2));
    }

    #[test]
    fn the_nearest_untrusted_hop_is_the_client() {
        for (said_for, expected) in [
            (&["192.0.2.7"][..], "192.0.2.7"),
            (&["1.1.1.1, 192.0.2.7"], "192.0.2.7"),
            (&["1.1.1.1, 192.0.2.7, 10.9.9.9"], "192.0.2.7"),
            (&["1.1.1.1", "192.0.2.7", "10.9.9.9,2001:db8:1::1"], "192.0.2.7"),
            (&["10.0.0.7, 10.0.0.8"], "10.0.0.7"),
            (&["2001:db8::7"], "2001:db8::7"),
            (&["::ffff:192.0.2.7"], "192.0.2.7"),
            (&[" 192.0.2.7 ,, "], "192.0.2.7"),
            (&["garbage, 192.0.2.7"], "192.0.2.7"),
            (&["\", \u{e9}, 192.0.2.7"], "192.0.2.7"),
            (&["1.1.1.1, garbage, 10.0.0.8"], "10.0.0.8"),
            (&["1.1.1.1, garbage"], "10.0.0.1"),
            (&["\u{e9}"], "10.0.0.1"),
            (&[""], "10.0.0.1"),
        ] {
            let headers: Vec<_> = said_for.iter().map(|value| ("x-forwarded-for", *value)).collect();
            assert_eq!(told(&headers).split(' ').next(), Some(expected), "{said_for:?}");
        }
        let (said, left) = seen("192.0.2.1:1", &trust(&["*"]), &[("x-forwarded-for", "1.1.1.1, 2.2.2.2")]);
        assert_eq!((said.as_str(), left), ("1.1.1.1 - http -", vec!["x-forwarded-for".to_owned()]));
        let (said, _) = seen("", &trust(&[]), &[("x-forwarded-for", "1.1.1.1, 2.2.2.2")]);
        assert_eq!(said, "2.2.2.2 - http -", "the peer of a unix socket is trusted");
    }

    #[test]
    fn port_scheme_and_host_are_read() {
        let client = ("x-forwarded-for", "192.0.2.7");
        let host = ("host", "inner");
        for (headers, expected) in [
            (&[("x-forwarded-for", "192.0.2.7:81")][..], "192.0.2.7 81 http -"),
            (&[("x-forwarded-for", "[2001:db8::7]:81")], "2001:db8::7 81 http -"),
            (&[("x-forwarded-for", "[2001:db8::7]")], "2001:db8::7 - http -"),
            (&[("x-forwarded-for", "192.0.2.7:_p")], "192.0.2.7 - http -"),
            (&[("x-forwarded-proto", "https")], "10.0.0.1 999 https -"),
            (&[client, ("x-forwarded-proto", "HTTPS")], "192.0.2.7 - https -"),
            (&[client, ("x-forwarded-proto", "wss")], "192.0.2.7 - https -"),
            (&[client, ("x-forwarded-proto", "https, http")], "192.0.2.7 - http -"),
            (&[client, ("x-forwarded-proto", "http"), ("x-forwarded-proto", "https")], "192.0.2.7 - https -"),
            (&[client, ("x-forwarded-proto", "gopher")], "192.0.2.7 - http -"),
            (&[client, host], "192.0.2.7 - http inner"),
            (&[client, host, ("x-forwarded-host", "a.example:8443")], "192.0.2.7 - http a.example:8443"),
            (&[client, host, ("x-forwarded-host", "evil, a.example")], "192.0.2.7 - http a.example"),
            (&[client, host, ("x-forwarded-host", "user@evil")], "192.0.2.7 - http inner"),
            (&[client, host, ("x-forwarded-host", "/\\")], "192.0.2.7 - http inner"),
            (&[client, host, ("x-forwarded-host", ":80")], "192.0.2.7 - http inner"),
            (&[client, host, ("x-forwarded-port", "8080")], "192.0.2.7 - http inner:8080"),
            (&[client, host, ("x-forwarded-port", "80")], "192.0.2.7 - http inner"),
            (&[host, ("x-forwarded-port", "443"), ("x-forwarded-proto", "https")], "10.0.0.1 999 https inner"),
            (&[host, ("x-forwarded-port", "many")], "10.0.0.1 999 http inner"),
            (&[("host", "inner:81"), ("x-forwarded-port", "8080")], "10.0.0.1 999 http inner:81"),
            (&[("host", "[::1]"), ("x-forwarded-port", "8080")], "10.0.0.1 999 http [::1]:8080"),
            (&[("x-forwarded-port", "8080")], "10.0.0.1 999 http -"),
        ] {
            assert_eq!(told(headers), expected, "{headers:?}");
        }
    }

    #[test]
    fn forwarded_is_read_as_in_rfc_7239() {
        for (fields, expected) in [
            (&["for=192.0.2.7"][..], "192.0.2.7 - http -"),
            (
                &["For=\"192.0.2.7:81\";Proto=HTTPS;by=203.0.113.43;host=\"a.example:8443\""],
                "192.0.2.7 81 https a.example:8443",
            ),
            (&["for=\"[2001:db8::7]:4711\""], "2001:db8::7 4711 http -"),
            (&["for=\"[2001:db8::7]\"; proto=https ;"], "2001:db8::7 - https -"),
            (&["for=1.1.1.1;proto=https, for=192.0.2.7;proto=http, for=10.0.0.2;proto=https"], "192.0.2.7 - http -"),
            (&["for=1.1.1.1", "for=192.0.2.7;host=a, for=10.0.0.2;host=b"], "192.0.2.7 - http a"),
            (&["for=10.0.0.3;proto=https, for=10.0.0.2"], "10.0.0.3 - https -"),
            // Quotes and bytes that the client wrote first cannot spoil what the proxy appended.
            (&["for=\", for=192.0.2.7;proto=https"], "192.0.2.7 - https -"),
            (&["\u{e9}\\\", for=192.0.2.7"], "192.0.2.7 - http -"),
            (&["for=1.1.1.1;x=\"a,b\", for=192.0.2.7;x=\",;\""], "192.0.2.7 - http -"),
            // The nearest proxy does not tell the address of its sender, so the entries before the proxy's own entry do
            // not count.
            (&["for=1.1.1.1, for=unknown;proto=https"], "10.0.0.1 999 https -"),
            (&["for=1.1.1.1, for=_hidden, for=10.0.0.2"], "10.0.0.2 - http -"),
            (&["for=1.1.1.1, proto=https"], "10.0.0.1 999 https -"),
            (&["for=1.1.1.1;for=2.2.2.2;proto=https"], "10.0.0.1 999 http -"),
            (&["for"], "10.0.0.1 999 http -"),
            (&["for=\"192.0.2.\\7\""], "10.0.0.1 999 http -"),
            (&["host=\"a b\";proto=x"], "10.0.0.1 999 http -"),
        ] {
            let headers: Vec<_> = fields.iter().map(|value| ("forwarded", *value)).collect();
            assert_eq!(told(&headers), expected, "{fields:?}");
        }
    }

    #[test]
    fn forwarded_counts_only_without_other_forwarding_headers() {
        let trust = trust(&["10.0.0.0/8"]);
        let both = [("forwarded", "for=1.1.1.1;proto=https;host=evil"), ("x-forwarded-for", "192.0.2.7")];
        let (said, left) = seen(PROXY, &trust, &both);
        assert_eq!((said.as_str(), left), ("192.0.2.7 - http -", vec!["x-forwarded-for".to_owned()]));
        let (said, left) = seen(PROXY, &trust, &[("forwarded", "for=192.0.2.7"), ("x-forwarded-prefix", "/a")]);
        assert_eq!((said.as_str(), left.len()), ("192.0.2.7 - http -", 2));
    }

    #[test]
    fn a_target_with_a_host_counts_before_the_header() {
        let mut request = Request::builder().uri("http://a.example:81/x").header("host", "b.example").body(()).unwrap();
        assert_eq!(client(&mut request, &ClientInfo::default(), &trust(&[])).host(), Some("a.example:81"));
    }

    proptest! {
        /// Nothing panics, and an address that the client invented never counts, whatever the client wrote before the
        /// trusted proxy appended its entry.
        #[test]
        fn what_a_client_wrote_before_the_proxy_never_counts(
            lines in vec(vec(select(vec![
                "for=", "1.1.1.1", "unknown", "\"", "\\", ",", ";", "=", "proto=https", "host=x", "[::1]:1", " ", "_", "\u{e9}", "\0",
            ]), 0..12), 0..3),
            name in select(vec!["forwarded", "x-forwarded-for"]),
        ) {
            let mut request = Request::new(());
            let appended = if name == "forwarded" { "for=192.0.2.7" } else { "192.0.2.7" };
            let mut lines: Vec<_> = lines.into_iter().map(|words| words.concat().replace('\0', "")).collect();
            match lines.last_mut() {
                Some(line) => *line += &format!(", {appended}"),
                None => lines.push(appended.to_owned()),
            }
            for line in &lines {
                request.headers_mut().append(name, HeaderValue::from_bytes(line.as_bytes()).unwrap());
            }
            let client = client(&mut request, &ClientInfo::of_peer(PROXY.parse().ok()), &trust(&["10.0.0.0/8"]));
            prop_assert_eq!(client.address(), Some("192.0.2.7".parse().unwrap()), "{:?}", lines);
        }
    }
}
