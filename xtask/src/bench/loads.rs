//! The loads of `mesh-path`: what the client does, which application answers, and beside whom we are measured.
//!
//! A table. What the words mean is the business of `crates/proxy/benches/load`, which gets them as environment.

use anyhow::{Context as _, Result};

use super::peers::{Between, Origin};
use super::pods::Way;

/// What the client does with its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Asks, again and again.
    Requests,
    /// Moves bytes one way; its unit is the MiB.
    Bytes,
    /// Uses each once and keeps it: what counts is memory.
    Hold,
}

impl Kind {
    pub(super) fn role(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Bytes => "bytes",
            Self::Hold => "hold",
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    pub(super) name: &'static str,
    pub(super) title: &'static str,
    pub(super) kind: Kind,
    pub(super) origin: Origin,
    pub(super) ways: &'static [Way],
    pub(super) settings: &'static [(&'static str, u64)],
}

impl Load {
    pub(super) fn connections(&self) -> f64 {
        let set = self.settings.iter().find(|(name, _)| *name == "CONNECTIONS");
        set.map_or(1.0, |(_, connections)| *connections as f64)
    }

    /// The rate is part of what it is, if it has one.
    pub(super) fn title_at(&self, rate: Option<u64>) -> String {
        let own = self.settings.iter().find(|(name, _)| *name == RATE);
        match own {
            Some((_, own)) => format!("{}, {} requests/s", self.title, rate.unwrap_or(*own)),
            None => self.title.to_owned(),
        }
    }

    /// What it does one of after the other.
    pub(super) fn unit(&self) -> &'static str {
        match self.kind {
            Kind::Bytes => "MiB",
            Kind::Requests | Kind::Hold => "request",
        }
    }
}

const HTTP: &[Way] = &[
    Way::NoProxy,
    Way::Hawser,
    Way::Linkerd,
    Way::Haproxy(Between::Http2),
    Way::Envoy(Between::Http2),
];
const TCP: &[Way] = &[
    Way::NoProxy,
    Way::Hawser,
    Way::Linkerd,
    Way::Haproxy(Between::Tcp),
    Way::Envoy(Between::Tcp),
];
/// The setting of loads that don't wait for answers.
pub(super) const RATE: &str = "RATE";
const KIB: u64 = 1 << 10;

/// Without a name on the command line, these.
pub(super) const USUAL: [&str; 3] = ["h1-64", "h1-1", "h2-8x8"];

const REQUESTS: Load = Load {
    name: "",
    title: "",
    kind: Kind::Requests,
    origin: Origin::Small,
    ways: HTTP,
    settings: &[],
};

static LOADS: [Load; 18] = [
    Load {
        name: "h1-64",
        title: "HTTP/1.1, 64 connections",
        ways: &Way::ALL,
        settings: &[("CONNECTIONS", 64)],
        ..REQUESTS
    },
    Load {
        name: "h1-1",
        title: "HTTP/1.1, 1 connection",
        ways: &Way::ALL,
        ..REQUESTS
    },
    Load {
        name: "h1-rate",
        title: "HTTP/1.1, 64 connections, open loop",
        ways: &Way::ALL,
        // What the slowest of them does twice as fast.
        settings: &[("CONNECTIONS", 64), (RATE, 5_000)],
        ..REQUESTS
    },
    Load {
        name: "h1-512",
        title: "HTTP/1.1, 512 connections",
        settings: &[("CONNECTIONS", 512)],
        ..REQUESTS
    },
    Load {
        name: "h1-5000",
        title: "HTTP/1.1, 5,000 connections",
        settings: &[("CONNECTIONS", 5_000)],
        ..REQUESTS
    },
    Load {
        name: "h2-8x8",
        title: "HTTP/2 to the application, 8 connections of 8 streams",
        origin: Origin::Small2,
        settings: &[("HTTP", 2), ("CONNECTIONS", 8), ("STREAMS", 8)],
        ..REQUESTS
    },
    Load {
        name: "grpc",
        title: "unary gRPC, 8 connections of 8 streams",
        origin: Origin::Grpc,
        settings: &[("HTTP", 2), ("GRPC", 1), ("CONNECTIONS", 8), ("STREAMS", 8)],
        ..REQUESTS
    },
    Load {
        name: "new",
        title: "a new connection for each request, 16 at a time",
        settings: &[("CONNECTIONS", 16), ("RENEW", 1)],
        ..REQUESTS
    },
    Load {
        name: "down-1k",
        title: "answers of 1 KiB, 64 connections",
        settings: &[("CONNECTIONS", 64), ("DOWN", KIB)],
        origin: Origin::Bytes,
        ..REQUESTS
    },
    Load {
        name: "up-1k",
        title: "requests of 1 KiB, 64 connections",
        settings: &[("CONNECTIONS", 64), ("UP", KIB)],
        origin: Origin::Bytes,
        ..REQUESTS
    },
    Load {
        name: "down-64k",
        title: "answers of 64 KiB, 16 connections",
        settings: &[("CONNECTIONS", 16), ("DOWN", 64 * KIB)],
        origin: Origin::Bytes,
        ..REQUESTS
    },
    Load {
        name: "up-64k",
        title: "requests of 64 KiB, 16 connections",
        settings: &[("CONNECTIONS", 16), ("UP", 64 * KIB)],
        origin: Origin::Bytes,
        ..REQUESTS
    },
    Load {
        name: "down-10m",
        title: "answers of 10 MiB, 4 connections",
        settings: &[("CONNECTIONS", 4), ("DOWN", 10_240 * KIB)],
        origin: Origin::Bytes,
        ..REQUESTS
    },
    Load {
        name: "up-10m",
        title: "requests of 10 MiB, 4 connections",
        settings: &[("CONNECTIONS", 4), ("UP", 10_240 * KIB)],
        origin: Origin::Bytes,
        ..REQUESTS
    },
    Load {
        name: "tcp-down",
        title: "opaque TCP, one stream to the client",
        kind: Kind::Bytes,
        origin: Origin::Bytes,
        ways: TCP,
        settings: &[],
    },
    Load {
        name: "tcp-up",
        title: "opaque TCP, one stream to the application",
        kind: Kind::Bytes,
        origin: Origin::Bytes,
        ways: TCP,
        settings: &[("UP", 1)],
    },
    Load {
        name: "idle-h1",
        title: "10,000 idle HTTP/1.1 connections",
        kind: Kind::Hold,
        // haproxy counts with two descriptors for each, which are more than a process may usually have.
        ways: &[Way::Hawser],
        settings: &[("CONNECTIONS", 10_000)],
        ..REQUESTS
    },
    Load {
        name: "idle-tcp",
        title: "5,000 idle opaque connections, TLS on each",
        kind: Kind::Hold,
        origin: Origin::Bytes,
        ways: &[
            Way::Hawser,
            Way::Linkerd,
            Way::Haproxy(Between::Tcp),
            Way::Envoy(Between::Tcp),
        ],
        settings: &[("CONNECTIONS", 5_000), ("HTTP", 0)],
    },
];

/// Of the names between commas, or all.
pub(super) fn named(names: &str) -> Result<Vec<&'static Load>> {
    if names == "all" {
        return Ok(LOADS.iter().collect());
    }
    let named = |name: &str| {
        let known = || LOADS.map(|load| load.name).join(", ");
        let found = LOADS.iter().find(|load| load.name == name);
        found.with_context(|| format!("there is no load {name:?}; there are {}, all", known()))
    };
    names.split(',').map(named).collect()
}
