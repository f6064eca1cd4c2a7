//! Rulesets in a real kernel: each test runs in a user and network namespace of its own.
//!
//! What the kernel took is read back with `nft` where that program exists.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, ExitCode};

use hawser_nft::{
    Action, ApplyError, Batch, Chain, Family, Field, Hook, Key, Kind, Match, Members, Protocol, Rule, Set,
    Table, Verdict, priority, state, status,
};

/// What `nft` shows, without handles; nothing where there is no `nft`.
fn listed() -> Option<Vec<String>> {
    let output = Command::new("nft").args(["list", "ruleset"]).output().ok()?;
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Some(
        text.lines()
            .map(|line| line.trim().to_owned())
            .filter(|line| !line.is_empty())
            .collect(),
    )
}

fn check_listed(expected: &[&str]) {
    if let Some(lines) = listed() {
        assert_eq!(lines, expected);
    }
}

fn server(answer: &'static str) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback is up");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = stream.and_then(|mut stream| stream.write_all(answer.as_bytes()));
        }
    });
    address
}

fn ask(address: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn net(text: &str) -> ipnet::IpNet {
    text.parse().expect("a test's own network")
}

fn nat_output() -> Chain {
    Chain::base("output", Kind::Nat, Hook::Output, priority::DNAT)
}

fn every_match_and_action_reads_back_as_written() {
    let endpoints = ["10.42.0.2:80", "10.42.0.3:8080"].map(|text| text.parse().expect("an address"));
    let tcp = || Rule::new().when(Match::Protocol(Protocol::Tcp));
    let fields = vec![Field::DestinationAddress, Field::Protocol, Field::DestinationPort];
    let key = |last| {
        vec![
            Key::Address([10, 43, 0, last].into()),
            Key::Protocol(Protocol::Tcp),
            Key::Port(80),
        ]
    };
    let table = Table::new(Family::Ip, "t")
        .set(Set {
            name: "services".into(),
            fields: fields.clone(),
            members: Members::Verdicts(vec![(key(1), Verdict::Goto("web".into()))]),
        })
        .set(Set {
            name: "hairpin".into(),
            fields: vec![Field::SourceAddress, Field::DestinationAddress],
            members: Members::Keys(vec![vec![
                Key::Address([10, 42, 0, 2].into()),
                Key::Address([10, 42, 0, 2].into()),
            ]]),
        })
        .chain(
            Chain::new("web").rule(
                tcp()
                    .comment("default/web")
                    .then(Action::Balance(endpoints.to_vec())),
            ),
        )
        .chain(
            nat_output()
                .rule(Rule::new().when(Match::SocketUser(2102)).verdict(Verdict::Return))
                .rule(Rule::new().when(Match::Mark(7)).verdict(Verdict::Return))
                .rule(Rule::new().when(Match::OutputLoopback).verdict(Verdict::Return))
                .rule(
                    tcp()
                        .comment("ignored")
                        .when(Match::DestinationPorts(vec![4567..=4568, 4190..=4190]))
                        .verdict(Verdict::Return),
                )
                .rule(
                    tcp()
                        .when(Match::DestinationPorts(vec![443..=443]))
                        .then(Action::Redirect(4140)),
                )
                .rule(
                    Rule::new()
                        .when(Match::Source(net("10.0.0.0/8")))
                        .unless(Match::Destination(net("192.0.2.1/32")))
                        .then(Action::Look {
                            fields,
                            set: "services".into(),
                        }),
                ),
        )
        .chain(
            Chain::base("after", Kind::Nat, Hook::Postrouting, priority::SNAT)
                .rule(
                    Rule::new()
                        .when(Match::ConnectionStatus(status::DNAT))
                        .when(Match::Member {
                            fields: vec![Field::SourceAddress, Field::DestinationAddress],
                            set: "hairpin".into(),
                        })
                        .then(Action::Masquerade),
                )
                .rule(
                    Rule::new()
                        .when(Match::OutputInterface("wan0".into()))
                        .then(Action::Snat([192, 0, 2, 9].into())),
                ),
        )
        .chain(
            Chain::base("forward", Kind::Filter, Hook::Forward, priority::FILTER)
                .rule(
                    Rule::new()
                        .when(Match::ConnectionState(state::ESTABLISHED | state::RELATED))
                        .verdict(Verdict::Accept),
                )
                .rule(tcp().then(Action::Count).then(Action::RejectWithReset))
                .rule(
                    Rule::new()
                        .when(Match::InputInterface("veth*".into()))
                        .then(Action::RejectWithPortUnreachable),
                ),
        );
    // Twice: a replacement leaves nothing of what was there.
    Batch::new()
        .replace(&table)
        .apply()
        .expect("the kernel takes the table");
    Batch::new()
        .replace(&table)
        .apply()
        .expect("the kernel takes it again");
    check_listed(&[
        "table ip t {",
        "map services {",
        "type ipv4_addr . inet_proto . inet_service : verdict",
        "elements = { 10.43.0.1 . tcp . 80 : goto web }",
        "}",
        "set hairpin {",
        "type ipv4_addr . ipv4_addr",
        "elements = { 10.42.0.2 . 10.42.0.2 }",
        "}",
        "chain web {",
        "meta l4proto tcp dnat ip to numgen random mod 2 map { 0 : 10.42.0.2 . 80, 1 : 10.42.0.3 . 8080 } \
             comment \"default/web\"",
        "}",
        "chain output {",
        "type nat hook output priority -100; policy accept;",
        "meta skuid 2102 return",
        "meta mark 0x00000007 return",
        "oif \"lo\" return",
        "tcp dport { 4190, 4567-4568 } return comment \"ignored\"",
        "tcp dport 443 redirect to :4140",
        "ip saddr 10.0.0.0/8 ip daddr != 192.0.2.1 ip daddr . meta l4proto . th dport vmap @services",
        "}",
        "chain after {",
        "type nat hook postrouting priority srcnat; policy accept;",
        "ct status dnat ip saddr . ip daddr @hairpin masquerade",
        "oifname \"wan0\" snat to 192.0.2.9",
        "}",
        "chain forward {",
        "type filter hook forward priority filter; policy accept;",
        "ct state established,related accept",
        "meta l4proto tcp counter packets 0 bytes 0 reject with tcp reset",
        "iifname \"veth*\" reject",
        "}",
        "}",
    ]);
    Batch::new()
        .delete(Family::Ip, "t")
        .delete(Family::Ip, "never-was")
        .apply()
        .expect("deletion");
    check_listed(&[]);
}

fn ipv6_and_inet_tables_match_addresses_of_their_families() {
    let endpoints = ["[fd00::2]:80", "[fd00::3]:81"].map(|text| text.parse().expect("an address"));
    let six = Table::new(Family::Ip6, "six").chain(
        nat_output().rule(
            Rule::new()
                .when(Match::Protocol(Protocol::Tcp))
                .when(Match::Destination(net("fd00:1::/64")))
                .then(Action::Balance(endpoints.to_vec())),
        ),
    );
    let both = Table::new(Family::Inet, "both").chain(
        Chain::base("forward", Kind::Filter, Hook::Forward, priority::FILTER)
            .rule(
                Rule::new()
                    .when(Match::Source(net("10.0.0.0/8")))
                    .verdict(Verdict::Drop),
            )
            .rule(
                Rule::new()
                    .when(Match::Source(net("fd00::/8")))
                    .verdict(Verdict::Drop),
            ),
    );
    Batch::new()
        .replace(&six)
        .replace(&both)
        .apply()
        .expect("the kernel takes both");
    check_listed(&[
        "table ip6 six {",
        "chain output {",
        "type nat hook output priority -100; policy accept;",
        "meta l4proto tcp ip6 daddr fd00:1::/64 dnat ip6 to numgen random mod 2 map { 0 : fd00::2 . 80, 1 : \
             fd00::3 . 81 }",
        "}",
        "}",
        "table inet both {",
        "chain forward {",
        "type filter hook forward priority filter; policy accept;",
        "ip saddr 10.0.0.0/8 drop",
        "ip6 saddr fd00::/8 drop",
        "}",
        "}",
    ]);
}

fn connections_go_where_the_rules_say() {
    let (one, two) = (server("one"), server("two"));
    let to = |last: u8| {
        Rule::new()
            .when(Match::Protocol(Protocol::Tcp))
            .when(Match::Destination(net(&format!("127.9.0.{last}/32"))))
    };
    let table = Table::new(Family::Ip, "services")
        .chain(
            nat_output()
                .rule(to(1).then(Action::Dnat(one)))
                .rule(to(2).then(Action::Balance(vec![one, two])))
                .rule(to(3).then(Action::Redirect(two.port()))),
        )
        .chain(
            Chain::base("filter", Kind::Filter, Hook::Output, priority::FILTER)
                .rule(to(4).then(Action::RejectWithReset)),
        );
    Batch::new()
        .replace(&table)
        .apply()
        .expect("the kernel takes the table");
    assert_eq!(ask("127.9.0.1:80").expect("dnat"), "one");
    assert_eq!(ask("127.9.0.3:80").expect("redirect"), "two");
    let mut seen: Vec<String> = (0..64).map(|_| ask("127.9.0.2:80").expect("balance")).collect();
    seen.sort();
    seen.dedup();
    assert_eq!(
        seen,
        ["one", "two"],
        "64 connections reach both but once in 2^63 runs"
    );
    let refused = ask("127.9.0.4:80").expect_err("rejected");
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
}

fn a_refused_rule_is_named_and_nothing_of_the_batch_remains() {
    let table = Table::new(Family::Ip, "t").chain(
        nat_output().rule(Rule::new().verdict(Verdict::Return)).rule(
            Rule::new()
                .comment("bad")
                .verdict(Verdict::Jump("nowhere".into())),
        ),
    );
    let error = Batch::new()
        .replace(&table)
        .apply()
        .expect_err("the jump goes nowhere");
    assert_eq!(
        error.to_string(),
        "nf_tables: add rule 2 of chain output (bad) to table t"
    );
    assert!(matches!(error, ApplyError::Refused { source, .. } if source == nix::errno::Errno::ENOENT));
    check_listed(&[]);
}

fn large_maps_are_written_in_pieces_of_one_transaction() {
    let keys = (0..1000u16).map(|index| {
        let [high, low] = index.to_be_bytes();
        vec![Key::Address([10, 43, high, low].into()), Key::Port(80)]
    });
    let table = Table::new(Family::Ip, "t").set(Set {
        name: "many".into(),
        fields: vec![Field::DestinationAddress, Field::DestinationPort],
        members: Members::Keys(keys.collect()),
    });
    Batch::new()
        .replace(&table)
        .apply()
        .expect("the kernel takes the table");
    if let Some(lines) = listed() {
        let text = lines.join(" ");
        assert_eq!(text.matches(" . 80").count(), 1000);
    }
}

fn main() -> ExitCode {
    hawser_testing::in_namespaces(&[
        (
            "every_match_and_action_reads_back_as_written",
            every_match_and_action_reads_back_as_written,
        ),
        (
            "ipv6_and_inet_tables_match_addresses_of_their_families",
            ipv6_and_inet_tables_match_addresses_of_their_families,
        ),
        (
            "connections_go_where_the_rules_say",
            connections_go_where_the_rules_say,
        ),
        (
            "a_refused_rule_is_named_and_nothing_of_the_batch_remains",
            a_refused_rule_is_named_and_nothing_of_the_batch_remains,
        ),
        (
            "large_maps_are_written_in_pieces_of_one_transaction",
            large_maps_are_written_in_pieces_of_one_transaction,
        ),
    ])
}
