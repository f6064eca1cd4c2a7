//! Absolute URLs and absolute paths, taken apart as Go's `url.ParseRequestURI` does.

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Url {
    pub scheme: String,
    pub host: String,
    pub path: String,
    pub query: String,
}

impl Url {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let clean = text.chars().all(|c| !c.is_ascii_control() && c != ' ');
        if text.is_empty() || !clean {
            return None;
        }
        let (rest, query) = text.split_once('?').unwrap_or((text, ""));
        let (scheme, rest) = match rest.split_once(':') {
            Some((scheme, rest)) if is_scheme(scheme) => (scheme, rest),
            _ => ("", rest),
        };
        let (host, path) = match rest.strip_prefix("//") {
            Some(rest) if !scheme.is_empty() => {
                let end = rest.find('/').unwrap_or(rest.len());
                rest.split_at(end)
            }
            _ => ("", rest),
        };
        let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
        if host.is_empty() && !path.starts_with('/') {
            return None;
        }
        let (_, port) = split_port(host)?;
        port.bytes().all(|byte| byte.is_ascii_digit()).then(|| Self {
            scheme: scheme.to_ascii_lowercase(),
            host: host.to_owned(),
            path: path.to_owned(),
            query: query.to_owned(),
        })
    }

    pub(super) fn host_name(&self) -> &str {
        let host = split_port(&self.host).map_or(&*self.host, |(host, _)| host);
        host.strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host)
    }

    pub(super) fn port(&self) -> &str {
        split_port(&self.host).map_or("", |(_, port)| port)
    }

    /// Names and their values, decoded.
    pub(super) fn query(&self) -> impl Iterator<Item = (String, String)> {
        let parts = self.query.split('&').filter(|part| !part.is_empty());
        parts.map(|part| {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            (decode(name), decode(value))
        })
    }
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
}

fn split_port(host: &str) -> Option<(&str, &str)> {
    if let Some(end) = host.find(']') {
        let (address, rest) = host.split_at(end + 1);
        return match rest.strip_prefix(':') {
            Some(port) => Some((address, port)),
            None => rest.is_empty().then_some((address, "")),
        };
    }
    Some(host.split_once(':').unwrap_or((host, "")))
}

fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let code = bytes
            .get(at + 1..at + 3)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        match (byte, code.and_then(|digits| u8::from_str_radix(digits, 16).ok())) {
            (b'%', Some(code)) => {
                out.push(code);
                at += 2;
            }
            (b'+', _) => out.push(b' '),
            (byte, _) => out.push(*byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}
