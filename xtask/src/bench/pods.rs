//! The stage: two pods with the injector's redirects, a control plane, origins, and proxies to put into them.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::loads::{Kind, Load};
use super::namespaces::{CLIENT_IP, Inside, NetNs, Pods, SERVER_IP};
use super::peers::{self, Between, INBOUND_PORT, NAME, Origin};
use super::process::Process;

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
    Haproxy(Between),
    Nginx,
}

impl Way {
    pub(super) const ALL: [Self; 5] = [
        Self::NoProxy,
        Self::Hawser,
        Self::Haproxy(Between::Http2),
        Self::Haproxy(Between::Http1),
        Self::Nginx,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::NoProxy => "no proxy",
            Self::Hawser => "hawser",
            Self::Haproxy(Between::Http2) => "haproxy, HTTP/2 between",
            Self::Haproxy(Between::Http1) => "haproxy, HTTP/1 between",
            Self::Haproxy(Between::Tcp) => "haproxy",
            Self::Nginx => "nginx",
        }
    }

    /// Where the client connects to.
    fn target(self, origin: Origin) -> String {
        match self {
            Self::NoProxy => format!("{SERVER_IP}:{}", origin.direct_port()),
            _ => origin.service(),
        }
    }

    /// The program that has to be installed.
    pub(super) fn needs(self) -> Option<&'static str> {
        match self {
            Self::NoProxy | Self::Hawser => None,
            Self::Haproxy(_) => Some("haproxy"),
            Self::Nginx => Some("nginx"),
        }
    }
}

pub(super) struct Stage<'a> {
    inside: &'a Inside,
    pods: Pods,
    control: [String; 2],
    /// The control plane and the origins.
    others: Vec<Process>,
}

impl<'a> Stage<'a> {
    pub(super) fn set(inside: &'a Inside) -> Result<Self> {
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
        for (name, namespace) in [("client", &pods.client), ("server", &pods.server)] {
            let mut rules = bench("init");
            rules.args(["--ipv6=false", "--proxy-uid", "2102", "--proxy-mark", MARK]);
            rules.args(["--outbound-ports-to-ignore", &ignored]);
            rules.args(["--inbound-ports-to-ignore", &format!("{ADMIN_PORT},{direct}")]);
            let output = namespace.run(|| rules.output())?;
            ensure!(
                output.status.success(),
                "the {name}'s redirects: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        let services =
            Origin::ALL.map(|origin| format!("{}={SERVER_IP}:{}", origin.service(), origin.port()));
        let mut control = bench("control");
        control
            .env("MESH_PATH_NETNS", pods.server.path())
            .env("MESH_PATH_DIR", &inside.dir)
            .env("MESH_PATH_IDENTITY", NAME)
            .env("MESH_PATH_SERVICES", services.join(","))
            .env("MESH_PATH_INBOUND", format!("{SERVER_IP}:{INBOUND_PORT}"));
        let (control, addrs) = Process::helper(&pods.client, &inside.dir, "control", &mut control)?;
        let (here, there) = addrs.split_once(' ').context("two addresses")?;
        let nginx = find("nginx").context("nginx is not installed: it is the application that answers")?;
        let nginx = configured(
            &inside.dir,
            &pods.server,
            &nginx,
            "origin",
            &peers::nginx_origin(&inside.dir),
        )?;
        let mut bytes = bench("origin");
        let ports = [Origin::Bytes.port(), Origin::Bytes.direct_port()];
        bytes.env(
            "MESH_PATH_LISTEN",
            ports.map(|port| format!("0.0.0.0:{port}")).join(","),
        );
        let (bytes, _) = Process::helper(&pods.server, &inside.dir, "bytes", &mut bytes)?;
        Ok(Self {
            control: [here.to_owned(), there.to_owned()],
            inside,
            pods,
            others: vec![control, nginx, bytes],
        })
    }

    /// Outbound and inbound, once the load has passed both; none if there are none.
    pub(super) fn proxies(&self, way: Way, load: &Load) -> Result<Vec<Process>> {
        let dir = &self.inside.dir;
        let installed = |program: &str| find(program).with_context(|| format!("{program} is not installed"));
        let pair = |program: &Path, outbound: String, inbound: String| -> Result<Vec<Process>> {
            let server = configured(dir, &self.pods.server, program, "inbound", &inbound)?;
            let client = configured(dir, &self.pods.client, program, "outbound", &outbound)?;
            Ok(vec![client, server])
        };
        let proxies = match way {
            Way::NoProxy => Vec::new(),
            Way::Hawser => vec![self.hawser(Side::Outbound)?, self.hawser(Side::Inbound)?],
            Way::Haproxy(between) => pair(
                &installed("haproxy")?,
                peers::haproxy_outbound(dir, between),
                peers::haproxy_inbound(dir, between, load.origin),
            )?,
            Way::Nginx => pair(
                &installed("nginx")?,
                peers::nginx_outbound(dir),
                peers::nginx_inbound(dir),
            )?,
        };
        self.passes(way, load, &proxies)?;
        Ok(proxies)
    }

    /// The proxy's own program with the environment that the injector writes.
    pub(super) fn hawser(&self, side: Side) -> Result<Process> {
        let dir = &self.inside.dir;
        let (name, namespace, ip, control) = match side {
            Side::Outbound => ("outbound", &self.pods.client, CLIENT_IP, &self.control[0]),
            Side::Inbound => ("inbound", &self.pods.server, SERVER_IP, &self.control[1]),
        };
        let token = dir.join(TOKEN);
        let identity = match side {
            Side::Outbound => "client.ns.serviceaccount.identity.linkerd.cluster.local",
            Side::Inbound => NAME,
        };
        let mut command = Command::new(&self.inside.programs.proxy);
        let anchors = std::fs::read_to_string(dir.join("anchors.pem"))?;
        let networks = "10.0.0.0/8";
        for (name, value) in [
            ("IDENTITY_TRUST_ANCHORS", anchors.as_str()),
            ("IDENTITY_LOCAL_NAME", identity),
            ("IDENTITY_TOKEN_FILE", &token.display().to_string()),
            ("IDENTITY_SVC_ADDR", control),
            ("DESTINATION_SVC_ADDR", control),
            ("POLICY_SVC_ADDR", control),
            ("POLICY_CLUSTER_NETWORKS", networks),
            ("DESTINATION_PROFILE_NETWORKS", networks),
            ("INBOUND_LISTEN_ADDR", &format!("0.0.0.0:{INBOUND_PORT}")),
            ("OUTBOUND_LISTEN_ADDRS", peers::OUTBOUND),
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
        command.env("HAWSER_PROXY_MARK", MARK);
        Process::start(namespace, dir, name, &mut command)
    }

    /// Waits until our proxy in a pod has its certificate.
    pub(super) fn wait_ready(&self, side: Side) -> Result<()> {
        let namespace = match side {
            Side::Outbound => &self.pods.client,
            Side::Inbound => &self.pods.server,
        };
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
        let mut client = Command::new(&self.inside.programs.bench);
        client
            .env("MESH_PATH_ROLE", load.kind.role())
            .env("MESH_PATH_TARGET", way.target(load.origin))
            .env("MESH_PATH_MILLIS", time.as_millis().to_string());
        for (name, value) in load.settings {
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
            .env("MESH_PATH_STREAMS", "1");
        let began = Instant::now();
        loop {
            let seen = said(load, &mut client);
            let passed = seen.as_ref().is_ok_and(|seen| seen.get("done") > Some(&0.0));
            if passed {
                return Ok(());
            }
            if began.elapsed() > READY_DEADLINE {
                let words: Vec<_> = self
                    .others
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Outbound,
    Inbound,
}

/// haproxy or nginx with a configuration file.
fn configured(dir: &Path, namespace: &NetNs, program: &Path, name: &str, text: &str) -> Result<Process> {
    let file = dir.join(format!("{name}.conf"));
    std::fs::write(&file, text)?;
    let mut command = Command::new(program);
    if program.ends_with("haproxy") {
        command.args(["-db", "-f"]).arg(&file);
    } else {
        command.args(["-e", "stderr", "-p"]).arg(dir).arg("-c").arg(&file);
    }
    Process::start(namespace, dir, name, &mut command)
}

/// Servers are often where an ordinary user's path doesn't lead.
pub(super) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    let mut dirs = std::env::split_paths(&path).chain(usual);
    dirs.find_map(|dir| Some(dir.join(program)).filter(|file| file.is_file()))
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
