//! Where a client knocks: `host:port`, several separated by `;` or `,`. Hosts are DNS names, IPv4
//! addresses, or IPv6 addresses in brackets.

use std::fmt;
use std::str::FromStr;

use crate::error::AccessPointSyntaxError;

/// More than a cluster has nodes; a longer list is a mistake.
const ACCESS_POINTS_MAX: usize = 64;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessPoint {
    pub host: String,
    pub port: u16,
}

/// At least one access point, in the order given: the first is preferred until it fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessPoints(Vec<AccessPoint>);

impl AccessPoints {
    pub fn iter(&self) -> std::slice::Iter<'_, AccessPoint> {
        self.0.iter()
    }
}

impl FromStr for AccessPoint {
    type Err = AccessPointSyntaxError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = |reason| AccessPointSyntaxError { text: text.to_owned(), reason };
        let (host, port) = text.rsplit_once(':').ok_or_else(|| refuse("expected host:port"))?;
        let host = match host.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')) {
            Some(v6) => v6,
            None if host.contains(':') => return Err(refuse("an IPv6 address needs brackets")),
            None => host,
        };
        if host.is_empty() || host.contains(char::is_whitespace) || host.contains('/') {
            return Err(refuse("the host is not a name or an address"));
        }
        match port.parse::<u16>() {
            Ok(port) if port > 0 => Ok(Self { host: host.to_owned(), port }),
            _ => Err(refuse("the port is not a number from 1 to 65535")),
        }
    }
}

impl FromStr for AccessPoints {
    type Err = AccessPointSyntaxError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = |reason| AccessPointSyntaxError { text: text.to_owned(), reason };
        let points = text
            .split([';', ','])
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .map(AccessPoint::from_str)
            .collect::<Result<Vec<_>, _>>()?;
        match points.len() {
            0 => Err(refuse("no access point given")),
            1..=ACCESS_POINTS_MAX => Ok(Self(points)),
            _ => Err(refuse("more than 64 access points")),
        }
    }
}

impl fmt::Display for AccessPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for AccessPoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, point) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { ";" };
            write!(f, "{separator}{point}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_with_either_separator_are_read_and_written_back() {
        for (text, shown) in [
            ("a:1", "a:1"),
            ("a:1;b:2", "a:1;b:2"),
            ("127.0.0.1:1, b.example:2,", "127.0.0.1:1;b.example:2"),
            ("[::1]:8081", "[::1]:8081"),
        ] {
            assert_eq!(text.parse::<AccessPoints>().unwrap().to_string(), shown);
        }
    }

    #[test]
    fn what_is_no_access_point_is_refused_with_the_reason() {
        for (text, reason) in [
            ("", "no access point given"),
            ("localhost", "expected host:port"),
            ("a:0", "the port is not a number from 1 to 65535"),
            ("a:70000", "the port is not a number from 1 to 65535"),
            ("::1:80", "an IPv6 address needs brackets"),
            ("http://a:80", "an IPv6 address needs brackets"),
            (":80", "the host is not a name or an address"),
        ] {
            assert_eq!(text.parse::<AccessPoints>().unwrap_err().reason, reason, "{text}");
        }
    }
}
