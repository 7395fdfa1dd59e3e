//! Which authorities the HTTP stack refuses, and what they become.
//!
//! | Sent | By | Becomes |
//! |---|---|---|
//! | `10.0.0.1:8081;10.0.0.2:8081` | Go | `10.0.0.1:8081` |
//! | `10.0.0.1:8081,10.0.0.2:8081` | Python, C++ | `10.0.0.1:8081` |
//! | the same with `%2C`, `%3B`, `%3A` | some versions of grpc-core | `10.0.0.1:8081` |
//! | `fe80::1:8081` | Python, C++, Node | `[fe80::1]:8081` |
//! | anything else refused | | `access-point.invalid` |
//!
//! Nothing reads the authority further on, so all that matters is that it parses.

use std::net::Ipv6Addr;

use bytes::Bytes;
use http::uri::Authority;

/// A name that can belong to nobody (RFC 2606).
const PLACEHOLDER: &[u8] = b"access-point.invalid";

/// What to put in place of `authority`, or `None` when it is fine as it is.
pub fn repaired(authority: &[u8]) -> Option<Bytes> {
    if is_accepted(authority) {
        return None;
    }
    let decoded = percent_decoded(authority);
    let first = decoded
        .split(|byte| matches!(byte, b',' | b';' | b' '))
        .find(|address| !address.is_empty())
        .unwrap_or_default();
    let repaired = if is_accepted(first) {
        Bytes::copy_from_slice(first)
    } else {
        bracketed(first).unwrap_or(Bytes::from_static(PLACEHOLDER))
    };
    assert!(is_accepted(&repaired), "a repaired authority is accepted");
    Some(repaired)
}

/// The check the HTTP/2 server makes.
fn is_accepted(authority: &[u8]) -> bool {
    Authority::try_from(authority).is_ok()
}

/// An IPv6 literal that lacks its brackets, with or without a port. `::1:8081` can be read as an
/// address too; here a port is the likelier meaning.
fn bracketed(address: &[u8]) -> Option<Bytes> {
    let text = std::str::from_utf8(address).ok()?;
    if let Some((host, port)) = text.rsplit_once(':')
        && let (Ok(host), Ok(port)) = (host.parse::<Ipv6Addr>(), port.parse::<u16>())
    {
        return Some(format!("[{host}]:{port}").into());
    }
    let host = text.parse::<Ipv6Addr>().ok()?;
    Some(format!("[{host}]").into())
}

fn percent_decoded(text: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, tail)) = rest.split_first() {
        match (byte, tail) {
            (b'%', [high, low, after @ ..]) if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                decoded.push(hex_digit(*high) << 4 | hex_digit(*low));
                rest = after;
            }
            _ => {
                decoded.push(byte);
                rest = tail;
            }
        }
    }
    decoded
}

fn hex_digit(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        b'a'..=b'f' => digit - b'a' + 10,
        b'A'..=b'F' => digit - b'A' + 10,
        _ => unreachable!("the caller has seen a hexadecimal digit"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(sent: &str, expected: Option<&str>) {
        assert_eq!(
            repaired(sent.as_bytes()),
            expected.map(|e| Bytes::copy_from_slice(e.as_bytes())),
            "{sent}"
        );
    }

    #[test]
    fn good_authorities_are_left_alone() {
        for good in
            ["localhost", "mq.example:8081", "10.0.0.1:8081", "[::1]:8081", "IPAuthority", "user@host:1"]
        {
            check(good, None);
        }
    }

    #[test]
    fn lists_become_their_first_address() {
        check("10.0.0.1:8081;10.0.0.2:8081", Some("10.0.0.1:8081"));
        check("10.0.0.1:8081,10.0.0.2:8081", Some("10.0.0.1:8081"));
        check("10.0.0.1:8081%2C10.0.0.2:8081", Some("10.0.0.1:8081"));
        check("10.0.0.1%3a8081%3b10.0.0.2%3a8081", Some("10.0.0.1:8081"));
        check(";;a:1;b:2", Some("a:1"));
        check("[::1]:8081,[::2]:8081", Some("[::1]:8081"));
        check("%5B::1%5D:8081,%5B::2%5D:8081", Some("[::1]:8081"));
    }

    #[test]
    fn unbracketed_ipv6_gets_its_brackets() {
        check("fe80::1:8081", Some("[fe80::1]:8081"));
        check("2001:db8::1:8081,2001:db8::2:8081", Some("[2001:db8::1]:8081"));
        check("2001:db8:0:0:0:0:0:1", Some("[2001:db8::1]"));
    }

    #[test]
    fn the_hopeless_becomes_a_placeholder() {
        for bad in ["", "http://a:1", "\u{7f}", "a/b,c", "a:b:c"] {
            check(bad, Some("access-point.invalid"));
        }
    }

    proptest! {
        #[test]
        fn whatever_is_sent_ends_up_accepted(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let result = repaired(&bytes);
            prop_assert!(is_accepted(result.as_deref().unwrap_or(&bytes)));
        }
    }
}
