//! The stage: pods with the injector's redirects, a control plane, origins, and proxies to put into them.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::Options;
use super::loads::{Kind, Load, RATE};
use super::namespaces::{CLIENT_IP, GATEWAY_IP, Inside, NetNs, Pods, SERVER_IP};
use super::peers::{self, Between, Hop, INBOUND_PORT, NAME, Origin, Side};
use super::process::Process;
use super::programs::Others;

/// Our proxies' own connections carry it, since there is only one user in these namespaces.
const MARK: &str = "2102";
const TOKEN: &str = "token";
const ADMIN_PORT: u16 = 4191;
const READY_DEADLINE: Duration = Duration::from_secs(20);

/// What the request passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    NoProxy,
    Hawser,
    /// Another program that understands our environment and our control plane.
    Linkerd,
    Haproxy(Between),
    Envoy(Between),
    Nginx,
}

impl Way {
    pub(super) const ALL: [Self; 7] = [
        Self::NoProxy,
        Self::Hawser,
        Self::Linkerd,
        Self::Haproxy(Between::Http2),
        Self::Envoy(Between::Http2),
        Self::Haproxy(Between::Http1),
        Self::Nginx,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::NoProxy => "no proxy",
            Self::Hawser => "hawser",
            Self::Linkerd => "linkerd2-proxy",
            Self::Haproxy(Between::Http2) => "haproxy, HTTP/2 between",
            Self::Haproxy(Between::Http1) => "haproxy, HTTP/1 between",
            Self::Haproxy(Between::Tcp) => "haproxy",
            Self::Envoy(_) => "envoy",
            Self::Nginx => "nginx",
        }
    }

    /// The program that has to be installed.
    pub(super) fn needs(self) -> Option<&'static str> {
        match self {
            Self::NoProxy | Self::Hawser => None,
            Self::Linkerd => Some("linkerd2-proxy"),
            Self::Haproxy(_) => Some("haproxy"),
            Self::Envoy(_) => Some("envoy"),
            Self::Nginx => Some("nginx"),
        }
    }
}

pub(super) struct Stage<'a> {
    inside: &'a Inside,
    others: &'a Others,
    path: &'static [Side],
    /// Instead of the load's own.
    rate: Option<u64>,
    pods: Pods,
    /// Of each pod.
    control: Vec<String>,
    /// The control plane and the origins.
    helpers: Vec<Process>,
}

impl<'a> Stage<'a> {
    pub(super) fn set(inside: &'a Inside, options: &'a Options) -> Result<Self> {
        let pods = Pods::create()?;
        // Once: a proxy that reads it while it is written again finds it empty.
        std::fs::write(inside.dir.join(TOKEN), "token")?;
        let bench = |role: &str| {
            let mut command = Command::new(&inside.programs.bench);
            command.env("MESH_PATH_ROLE", role);
            command
        };
        // What other proxies send to each other can't carry a mark and is let through by its port, and so is what
        // clients send to the origins directly.
        let direct = Origin::ALL
            .map(|origin| origin.direct_port().to_string())
            .join(",");
        let ignored = format!("{INBOUND_PORT},{direct}");
        for side in Side::THROUGH_GATEWAY {
            let mut rules = bench("init");
            rules.args(["--ipv6=false", "--proxy-uid", "2102", "--proxy-mark", MARK]);
            rules.args(["--outbound-ports-to-ignore", &ignored]);
            rules.args(["--inbound-ports-to-ignore", &format!("{ADMIN_PORT},{direct}")]);
            let output = pods.of(*side).run(|| rules.output())?;
            ensure!(
                output.status.success(),
                "the {}'s redirects: {}",
                side.name(),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        let services = Origin::ALL.map(|origin| {
            let (near, far) = (
                origin.service(Side::DIRECT),
                origin.service(Side::THROUGH_GATEWAY),
            );
            format!("{near} {far} {SERVER_IP}:{}", origin.port())
        });
        let identities = Side::THROUGH_GATEWAY.iter().map(|side| identity(*side));
        let mut control = bench("control");
        control
            .env(
                "MESH_PATH_NETNS",
                [pods.gateway.path(), pods.server.path()].join(","),
            )
            .env("MESH_PATH_DIR", &inside.dir)
            .env("MESH_PATH_IDENTITIES", identities.collect::<Vec<_>>().join(","))
            .env("MESH_PATH_SERVICES", services.join(","))
            .env("MESH_PATH_GATEWAY", format!("{GATEWAY_IP}:{INBOUND_PORT}"));
        let (control, addrs) = Process::helper(&pods.client, &inside.dir, "control", &mut control)?;
        let addrs: Vec<_> = addrs.split(' ').map(str::to_owned).collect();
        ensure!(
            addrs.len() == Side::THROUGH_GATEWAY.len(),
            "an address for each pod"
        );
        let others = &options.others;
        let nginx = others
            .need("nginx")
            .context("it is the application that answers")?;
        let nginx = configured(
            &inside.dir,
            &pods.server,
            &nginx,
            "origin",
            &peers::nginx_origin(&inside.dir),
        )?;
        let mut ours = bench("origin");
        let listen = [Origin::Bytes, Origin::Grpc]
            .map(|origin| format!("0.0.0.0:{},0.0.0.0:{}", origin.port(), origin.direct_port()));
        ours.env("MESH_PATH_LISTEN", listen.join(","));
        let (ours, _) = Process::helper(&pods.server, &inside.dir, "ours", &mut ours)?;
        Ok(Self {
            control: addrs,
            inside,
            others,
            path: options.path,
            rate: options.rate,
            pods,
            helpers: vec![control, nginx, ours],
        })
    }

    /// Those on the path, once the load has passed them all; none if there are none.
    pub(super) fn proxies(&self, way: Way, load: &Load) -> Result<Vec<Process>> {
        // From the last to the first: who starts finds the next one there.
        let sides = self.path.iter().rev().filter(|_| way != Way::NoProxy);
        let mut proxies: Vec<_> = sides
            .map(|side| self.proxy(way, *side, load.origin))
            .collect::<Result<_>>()?;
        proxies.reverse();
        self.passes(way, load, &proxies)?;
        Ok(proxies)
    }

    fn proxy(&self, way: Way, side: Side, origin: Origin) -> Result<Process> {
        let dir = &self.inside.dir;
        let hop = Hop {
            side,
            path: self.path,
            origin,
        };
        let Some(program) = way.needs() else {
            return self.hawser(side);
        };
        let program = self.others.need(program)?;
        let text = match way {
            Way::NoProxy | Way::Hawser | Way::Linkerd => return self.mesh_proxy(&program, side),
            Way::Haproxy(between) => peers::haproxy(dir, hop, between),
            Way::Envoy(between) => peers::envoy(dir, hop, between).to_string(),
            Way::Nginx => peers::nginx_proxy(dir, hop),
        };
        configured(dir, self.pods.of(side), &program, side.name(), &text)
    }

    pub(super) fn hawser(&self, side: Side) -> Result<Process> {
        self.mesh_proxy(&self.inside.programs.proxy, side)
    }

    /// A proxy's own program with the environment that the injector writes.
    fn mesh_proxy(&self, program: &Path, side: Side) -> Result<Process> {
        let dir = &self.inside.dir;
        let (ip, control) = match side {
            Side::Outbound => (CLIENT_IP, &self.control[0]),
            Side::Gateway => (GATEWAY_IP, &self.control[1]),
            Side::Inbound => (SERVER_IP, &self.control[2]),
        };
        let token = dir.join(TOKEN);
        let identity = identity(side);
        let mut command = Command::new(program);
        let anchors = std::fs::read_to_string(dir.join("anchors.pem"))?;
        let networks = "10.0.0.0/8";
        for (name, value) in [
            ("IDENTITY_TRUST_ANCHORS", anchors.as_str()),
            ("IDENTITY_LOCAL_NAME", &identity),
            // With a key and a request, which ours could make itself.
            ("IDENTITY_DIR", &dir.join(&identity).display().to_string()),
            ("IDENTITY_TOKEN_FILE", &token.display().to_string()),
            ("IDENTITY_SVC_ADDR", control),
            ("DESTINATION_SVC_ADDR", control),
            ("POLICY_SVC_ADDR", control),
            ("POLICY_CLUSTER_NETWORKS", networks),
            ("DESTINATION_PROFILE_NETWORKS", networks),
            ("INBOUND_LISTEN_ADDR", &format!("0.0.0.0:{INBOUND_PORT}")),
            ("OUTBOUND_LISTEN_ADDRS", &peers::OUTBOUND.to_string()),
            ("ADMIN_LISTEN_ADDR", &format!("0.0.0.0:{ADMIN_PORT}")),
            ("INBOUND_IPS", &ip.to_string()),
            (
                "INBOUND_PORTS",
                &Origin::ALL.map(|origin| origin.port().to_string()).join(","),
            ),
            ("CORES", "1"),
        ] {
            command.env(format!("LINKERD2_PROXY_{name}"), value);
        }
        if side == Side::Gateway {
            command.env("LINKERD2_PROXY_INBOUND_GATEWAY_SUFFIXES", "svc.cluster.local.");
        }
        command.env("HAWSER_PROXY_MARK", MARK);
        Process::start(self.pods.of(side), dir, side.name(), &mut command)
    }

    /// Waits until our proxy in a pod has its certificate.
    pub(super) fn wait_ready(&self, side: Side) -> Result<()> {
        let namespace = self.pods.of(side);
        let admin = SocketAddr::from(([127, 0, 0, 1], ADMIN_PORT));
        let began = Instant::now();
        while namespace.run(|| get(admin, "/ready")).is_err() {
            ensure!(began.elapsed() < READY_DEADLINE, "the proxy is not ready");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// The client, in its pod.
    pub(super) fn client(&self, way: Way, load: &Load, time: Duration) -> Command {
        let target = match way {
            Way::NoProxy => format!("{SERVER_IP}:{}", load.origin.direct_port()),
            _ => load.origin.service(self.path),
        };
        let mut client = Command::new(&self.inside.programs.bench);
        client
            .env("MESH_PATH_ROLE", load.kind.role())
            .env("MESH_PATH_TARGET", target)
            .env("MESH_PATH_MILLIS", time.as_millis().to_string());
        for (name, value) in load.settings {
            let value = self.rate.filter(|_| *name == RATE).unwrap_or(*value);
            client.env(format!("MESH_PATH_{name}"), value.to_string());
        }
        client
    }

    /// Applies a load, and says what the client saw.
    pub(super) fn load(&self, way: Way, load: &Load, time: Duration) -> Result<Figures> {
        said(load, &mut self.client(way, load, time))
    }

    /// A client that keeps its connections until dropped.
    pub(super) fn hold(&self, way: Way, load: &Load) -> Result<Process> {
        let mut client = self.client(way, load, Duration::ZERO);
        Ok(Process::helper(&self.pods.client, &self.inside.dir, "client", &mut client)?.0)
    }

    /// Waits until something has passed; otherwise says what those involved said.
    fn passes(&self, way: Way, load: &Load, proxies: &[Process]) -> Result<()> {
        let mut client = self.client(way, load, Duration::from_millis(50));
        let role = match load.kind {
            Kind::Hold => Kind::Requests,
            kind => kind,
        };
        client
            .env("MESH_PATH_ROLE", role.role())
            .env("MESH_PATH_CONNECTIONS", "1")
            .env("MESH_PATH_STREAMS", "1")
            .env("MESH_PATH_RATE", "0");
        let began = Instant::now();
        loop {
            let seen = said(load, &mut client);
            let passed = seen.as_ref().is_ok_and(|seen| seen.get("done") > Some(&0.0));
            if passed {
                return Ok(());
            }
            if began.elapsed() > READY_DEADLINE {
                let words: Vec<_> = self
                    .helpers
                    .iter()
                    .chain(proxies)
                    .map(Process::last_words)
                    .collect();
                bail!("{}: nothing passes ({seen:?}): {}", way.name(), words.join("\n"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// One measurement, by name so that the report and the JSON have the same.
pub(super) type Figures = BTreeMap<String, f64>;

fn said(load: &Load, client: &mut Command) -> Result<Figures> {
    let output = client.output()?;
    ensure!(
        output.status.success(),
        "{}: the client: {}",
        load.name,
        String::from_utf8_lossy(&output.stderr)
    );
    figures(&String::from_utf8(output.stdout)?)
}

/// `name=value` pairs.
fn figures(line: &str) -> Result<Figures> {
    let pairs = line.split_whitespace().map(|pair| {
        let (name, value) = pair.split_once('=').context("a name and a value")?;
        Ok((name.to_owned(), value.parse()?))
    });
    pairs.collect()
}

/// Whose certificate a proxy has.
fn identity(side: Side) -> String {
    match side {
        Side::Inbound => NAME.to_owned(),
        side => format!("{}.ns.serviceaccount.identity.linkerd.cluster.local", side.name()),
    }
}

/// A program with a configuration file.
fn configured(dir: &Path, namespace: &NetNs, program: &Path, name: &str, text: &str) -> Result<Process> {
    // Its ending tells envoy which language it is in.
    let file = dir.join(format!("{name}.json"));
    std::fs::write(&file, text)?;
    let mut command = Command::new(program);
    match program.file_name().and_then(|name| name.to_str()) {
        Some("haproxy") => command.args(["-db", "-f"]).arg(&file),
        Some("nginx") => command.args(["-e", "stderr", "-p"]).arg(dir).arg("-c").arg(&file),
        _ => command
            .args(["--concurrency", "1", "--disable-hot-restart", "-l", "warn", "-c"])
            .arg(&file),
    };
    Process::start(namespace, dir, name, &mut command)
}

/// One request; an error unless the answer is 200.
fn get(target: SocketAddr, path: &str) -> Result<()> {
    let second = Duration::from_secs(1);
    let mut socket = TcpStream::connect_timeout(&target, second)?;
    socket.set_read_timeout(Some(second))?;
    socket
        .write_all(format!("GET {path} HTTP/1.1\r\nhost: web.ns\r\nconnection: close\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    let status = answer.lines().next().unwrap_or_default();
    ensure!(status.starts_with("HTTP/1.1 200"), "{status:?}");
    Ok(())
}
