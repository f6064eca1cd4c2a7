//! Can this machine run a sandbox, and if not, what would help?
//!
//! Everything that matters is tried, in a throw-away process with throw-away namespaces; settings of the kernel are
//! only read to explain a failure.

use std::fs;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};

use hawser_nft::{Action, Batch, Chain, Family, Hook, Kind, Match, Protocol, Rule, Table, priority};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid};
use rtnetlink::{LinkBridge, LinkVeth};
use serde::{Deserialize, Serialize};

use super::enter::PROGRAM;

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    pub name: String,
    pub ok: bool,
    /// Without it no sandbox starts.
    pub required: bool,
    /// What was seen.
    pub why: String,
    /// What to do about it; empty when all is well.
    pub fix: String,
}

/// Looks at everything. Takes well below a second.
pub fn doctor() -> Vec<Finding> {
    let mut findings = tried().unwrap_or_else(|error| {
        vec![Finding {
            name: "private namespaces".into(),
            ok: false,
            required: true,
            why: format!("the trial process could not be started: {error}"),
            fix: "check the limits of this shell: ulimit -a".into(),
        }]
    });
    findings.push(kubectl());
    findings
}

fn tried() -> io::Result<Vec<Finding>> {
    let output = Command::new("/proc/self/exe")
        .arg0(PROGRAM)
        .arg("probe")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()?;
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn kubectl() -> Finding {
    let found = Command::new("kubectl")
        .args(["version", "--client"])
        .stderr(Stdio::null())
        .output();
    let ok = found.as_ref().is_ok_and(|output| output.status.success());
    Finding {
        name: "kubectl".into(),
        ok,
        required: false,
        why: if ok {
            "installed".into()
        } else {
            "not found; the demo does without it".into()
        },
        fix: if ok {
            String::new()
        } else {
            "install kubectl 1.30 or newer to look into the clusters".into()
        },
    }
}

/// The throw-away process: tries each step in the order in which a sandbox needs them, and prints the findings.
pub(super) fn probe() -> ExitCode {
    type Step = (&'static str, fn() -> io::Result<()>, fn() -> String);
    let steps: [Step; 5] = [
        ("private namespaces", namespaces, fix_namespaces),
        ("mounts", mounts, || {
            "run outside of containers, or as root".into()
        }),
        ("bridges and virtual links", links, || {
            "load the kernel modules bridge and veth: modprobe bridge veth".into()
        }),
        ("packet filter with address translation", filter, || {
            "load the kernel modules of nf_tables: modprobe nf_tables nft_nat nft_redir nft_masq".into()
        }),
        ("forwarding", forwarding, || {
            "allow writing /proc/sys/net in network namespaces".into()
        }),
    ];
    let mut findings = Vec::new();
    let mut blocked = false;
    for (name, step, fix) in steps {
        if blocked {
            continue;
        }
        let outcome = step();
        // Without namespaces the other steps would change the machine itself.
        blocked = findings.is_empty() && outcome.is_err();
        findings.push(Finding {
            name: name.into(),
            ok: outcome.is_ok(),
            required: true,
            why: outcome
                .as_ref()
                .map_or_else(ToString::to_string, |()| "works".into()),
            fix: if outcome.is_ok() { String::new() } else { fix() },
        });
    }
    let written = serde_json::to_vec(&findings).map_err(io::Error::other);
    match written.and_then(|json| io::stdout().write_all(&json)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn namespaces() -> io::Result<()> {
    let (uid, gid) = (Uid::effective(), Gid::effective());
    let kinds = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS;
    unshare(kinds | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS)?;
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    fs::write("/proc/self/gid_map", format!("0 {gid} 1"))
}

fn fix_namespaces() -> String {
    let setting = |path: &str| {
        fs::read_to_string(path)
            .map(|text| text.trim().to_owned())
            .unwrap_or_default()
    };
    if setting("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1" {
        return "sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0, or run as root".into();
    }
    if setting("/proc/sys/kernel/unprivileged_userns_clone") == "0" {
        return "sudo sysctl kernel.unprivileged_userns_clone=1, or run as root".into();
    }
    if setting("/proc/sys/user/max_user_namespaces") == "0" {
        return "sudo sysctl user.max_user_namespaces=10000".into();
    }
    "run as root; inside a container, allow it to make namespaces (for Docker: --privileged)".into()
}

fn mounts() -> io::Result<()> {
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    mount(Some("tmpfs"), "/tmp", Some("tmpfs"), MsFlags::empty(), none)?;
    Ok(())
}

fn links() -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let connection = tokio::spawn(connection);
        let made = async {
            handle
                .link()
                .add(LinkBridge::new("probe0").build())
                .execute()
                .await?;
            handle
                .link()
                .add(LinkVeth::new("probe1", "probe2").build())
                .execute()
                .await
        };
        let outcome = made.await.map_err(io::Error::other);
        connection.abort();
        outcome
    })
}

fn filter() -> io::Result<()> {
    let redirect = Rule::new()
        .when(Match::Protocol(Protocol::Tcp))
        .then(Action::Redirect(4143));
    let masquerade = Rule::new().then(Action::Masquerade);
    let table = Table::new(Family::Ip, "probe")
        .chain(Chain::base("in", Kind::Nat, Hook::Prerouting, priority::DNAT).rule(redirect))
        .chain(Chain::base("out", Kind::Nat, Hook::Postrouting, priority::SNAT).rule(masquerade));
    Batch::new().replace(&table).apply().map_err(io::Error::other)
}

fn forwarding() -> io::Result<()> {
    fs::write("/proc/sys/net/ipv4/ip_forward", "1")
}
