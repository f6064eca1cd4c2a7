//! `hawser-proxy-init`: writes the rules that send a pod's traffic through its proxy (`spec/proxy.md` 2.1).
//!
//! Arguments become one nf_tables table (pure); the kernel takes all of it or nothing, so running it again is
//! harmless and nobody else's rules are touched.

use std::ffi::OsString;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::process::ExitCode;

use hawser_nft::{Action, Batch, Chain, Family, Hook, Kind, Match, Protocol, Rule, Table, Verdict, priority};
use ipnet::IpNet;

const TABLE: &str = "proxy-init";

/// What the arguments ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Plan {
    incoming_port: u16,
    outgoing_port: u16,
    proxy_uid: Option<u32>,
    proxy_gid: Option<u32>,
    proxy_mark: Option<u32>,
    inbound_ignored: Vec<RangeInclusive<u16>>,
    inbound_only: Vec<RangeInclusive<u16>>,
    outbound_ignored: Vec<RangeInclusive<u16>>,
    subnets_ignored: Vec<IpNet>,
    ipv6: bool,
    simulate: bool,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            incoming_port: 4143,
            outgoing_port: 4140,
            proxy_uid: Some(2102),
            proxy_gid: None,
            proxy_mark: None,
            inbound_ignored: Vec::new(),
            inbound_only: Vec::new(),
            outbound_ignored: Vec::new(),
            subnets_ignored: Vec::new(),
            ipv6: true,
            simulate: false,
        }
    }
}

/// The program: exit code 64 for wrong arguments, 1 if the kernel refuses.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let args = args
        .into_iter()
        .skip(1)
        .map(|arg| arg.to_string_lossy().into_owned());
    let plan = match parse(args) {
        Ok(plan) => plan,
        Err(why) => return complain(&why, 64),
    };
    if plan.simulate {
        return ExitCode::SUCCESS;
    }
    match Batch::new().replace(&table(&plan)).apply() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(
            &format!("writing the redirect rules: {}", crate::identity::chain(&error)),
            1,
        ),
    }
}

#[expect(clippy::print_stderr, reason = "the program's only output")]
fn complain(text: &str, code: u8) -> ExitCode {
    eprintln!("{text}");
    ExitCode::from(code)
}

/// `--flag value` and `--flag=value`, as the original takes them.
fn parse(args: impl Iterator<Item = String>) -> Result<Plan, String> {
    let mut plan = Plan::default();
    let mut args = args.peekable();
    while let Some(arg) = args.next() {
        let flag = arg
            .strip_prefix("--")
            .or_else(|| arg.strip_prefix('-'))
            .ok_or_else(|| format!("{arg:?} is not a flag"))?;
        let (name, inline) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (flag, None),
        };
        if matches!(name, "ipv6" | "simulate" | "use-wait-flag") {
            let on = match inline.as_deref() {
                None | Some("true") => true,
                Some("false") => false,
                Some(other) => return Err(format!("--{name}: {other:?} is neither true nor false")),
            };
            match name {
                "ipv6" => plan.ipv6 = on,
                "simulate" => plan.simulate = on,
                _ => {}
            }
            continue;
        }
        let value = inline
            .or_else(|| args.next())
            .ok_or_else(|| format!("--{name} needs a value"))?;
        let number = |what: &str| format!("--{name}: {value:?} is not {what}");
        match name {
            "incoming-proxy-port" | "p" => {
                plan.incoming_port = value.parse().map_err(|_| number("a port"))?
            }
            "outgoing-proxy-port" | "o" => {
                plan.outgoing_port = value.parse().map_err(|_| number("a port"))?
            }
            "proxy-uid" | "u" => plan.proxy_uid = Some(value.parse().map_err(|_| number("a user id"))?),
            "proxy-gid" => {
                plan.proxy_gid = value
                    .parse::<i64>()
                    .ok()
                    .and_then(|gid| u32::try_from(gid).ok())
                    .filter(|gid| *gid > 0);
            }
            "proxy-mark" => plan.proxy_mark = Some(value.parse().map_err(|_| number("a mark"))?),
            "inbound-ports-to-ignore" => plan.inbound_ignored = ports(&value)?,
            "outbound-ports-to-ignore" => plan.outbound_ignored = ports(&value)?,
            "ports-to-redirect" | "r" => plan.inbound_only = ports(&value)?,
            "subnets-to-ignore" => plan.subnets_ignored = subnets(&value)?,
            // How the original finds its firewall programs, and how it talks; there are none here.
            "firewall-bin-path"
            | "firewall-save-bin-path"
            | "iptables-mode"
            | "log-level"
            | "log-format"
            | "netns"
            | "timeout-close-wait-secs" => {}
            _ => return Err(format!("--{name} is unknown")),
        }
    }
    Ok(plan)
}

fn ports(text: &str) -> Result<Vec<RangeInclusive<u16>>, String> {
    let port = |text: &str| {
        text.trim()
            .parse::<u16>()
            .map_err(|_| format!("{text:?} is not a port"))
    };
    let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
    items
        .map(|item| match item.split_once('-') {
            None => port(item).map(|p| p..=p),
            Some((first, last)) => {
                let range = port(first)?..=port(last)?;
                if range.is_empty() {
                    Err(format!("the range {item:?} is reversed"))
                } else {
                    Ok(range)
                }
            }
        })
        .collect()
}

fn subnets(text: &str) -> Result<Vec<IpNet>, String> {
    let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
    items
        .map(|item| {
            let whole = |_| item.parse::<IpAddr>().map(IpNet::from);
            item.parse::<IpNet>()
                .or_else(whole)
                .map_err(|_| format!("{item:?} is not a subnet"))
        })
        .collect()
}

/// The order of the rules matters: the proxy's own traffic first, loopback never, then what is skipped.
fn table(plan: &Plan) -> Table {
    let tcp = || Rule::new().when(Match::Protocol(Protocol::Tcp));
    let go = |rule: Rule| rule.verdict(Verdict::Return);
    let mut inbound = Chain::base("inbound", Kind::Nat, Hook::Prerouting, priority::DNAT);
    if !plan.inbound_ignored.is_empty() {
        inbound = inbound.rule(go(tcp()
            .comment("proxy-init/ignore-port")
            .when(Match::DestinationPorts(plan.inbound_ignored.clone()))));
    }
    for subnet in &plan.subnets_ignored {
        inbound = inbound.rule(go(Rule::new()
            .comment("proxy-init/ignore-subnet")
            .when(Match::Source(*subnet))));
    }
    let mut redirect = tcp().comment("proxy-init/redirect-all-incoming-to-proxy-port");
    if !plan.inbound_only.is_empty() {
        redirect = redirect.when(Match::DestinationPorts(plan.inbound_only.clone()));
    }
    inbound = inbound.rule(redirect.then(Action::Redirect(plan.incoming_port)));

    let mut outbound = Chain::base("outbound", Kind::Nat, Hook::Output, priority::DNAT);
    if let Some(mark) = plan.proxy_mark {
        outbound = outbound.rule(go(Rule::new()
            .comment("proxy-init/ignore-proxy-mark")
            .when(Match::Mark(mark))));
    }
    if let Some(uid) = plan.proxy_uid {
        outbound = outbound.rule(go(Rule::new()
            .comment("proxy-init/ignore-proxy-user-id")
            .when(Match::SocketUser(uid))));
    }
    if let Some(gid) = plan.proxy_gid {
        outbound = outbound.rule(go(Rule::new()
            .comment("proxy-init/ignore-proxy-group-id")
            .when(Match::SocketGroup(gid))));
    }
    outbound = outbound.rule(go(Rule::new()
        .comment("proxy-init/ignore-loopback")
        .when(Match::OutputLoopback)));
    if !plan.outbound_ignored.is_empty() {
        outbound = outbound.rule(go(tcp()
            .comment("proxy-init/ignore-port")
            .when(Match::DestinationPorts(plan.outbound_ignored.clone()))));
    }
    let redirect = tcp().comment("proxy-init/redirect-all-outgoing-to-proxy-port");
    outbound = outbound.rule(redirect.then(Action::Redirect(plan.outgoing_port)));
    let family = if plan.ipv6 { Family::Inet } else { Family::Ip };
    Table::new(family, TABLE).chain(inbound).chain(outbound)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(args: &str) -> Result<Plan, String> {
        parse(args.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn the_injectors_arguments_are_understood() {
        let args = "--ipv6=false --incoming-proxy-port 4143 --outgoing-proxy-port 4140 --proxy-uid 2102 \
                    --inbound-ports-to-ignore 4190,4191,4567-4568 --outbound-ports-to-ignore=4567 --proxy-mark 66 \
                    --firewall-bin-path iptables-nft --log-format plain";
        let expected = Plan {
            ipv6: false,
            proxy_mark: Some(66),
            inbound_ignored: vec![4190..=4190, 4191..=4191, 4567..=4568],
            outbound_ignored: vec![4567..=4567],
            ..Plan::default()
        };
        assert_eq!(plan(args), Ok(expected));
    }

    #[test]
    fn wrong_arguments_are_named() {
        for wrong in [
            "--proxy-uid",
            "--proxy-uid x",
            "--ports-to-redirect 9-1",
            "--nonsense 1",
            "word",
            "--ipv6=maybe",
        ] {
            assert!(plan(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_proxys_own_traffic_is_let_out_before_anything_is_redirected() {
        let table = table(&plan("--proxy-mark 66 --outbound-ports-to-ignore 25").unwrap());
        let outbound: Vec<_> = table.chains[1]
            .rules
            .iter()
            .map(|rule| format!("{rule:?}"))
            .collect();
        let order = [
            "Mark(66)",
            "SocketUser(2102)",
            "OutputLoopback",
            "DestinationPorts([25..=25])",
            "Redirect(4140)",
        ];
        assert_eq!(outbound.len(), order.len());
        for (rule, expected) in outbound.iter().zip(order) {
            assert!(rule.contains(expected), "{rule} has {expected}");
        }
    }
}
