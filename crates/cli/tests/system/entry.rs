//! Nobody gets in who doesn't belong.
//!
//! What the gateway's proxy says to each kind of stranger, seen from pods of the other cluster; and what the token of
//! a link may do. That every kind of bad certificate is told apart is tested in `crates/tls`; here they meet a gateway.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use hawser_tls::{Issuer, PrivateKey, Validity, create_issuer, create_root, csr};
use serde_json::{Value, json};

use crate::host::{Said, eventually};
use crate::runner::{Test, linked};
use crate::world::{SOON, World};

const TOOLS: &[&str] = &["kubectl", "curl", "openssl"];
const GATEWAY: &str = "linkerd-multicluster";
const HOUR: Duration = Duration::from_secs(3600);
const GATEWAY_IDENTITY: &str =
    "linkerd-gateway.linkerd-multicluster.serviceaccount.identity.linkerd.cluster.local";

pub(crate) const TESTS: &[Test] = &[
    linked(
        "a_plain_curl_gets_an_empty_reply_until_it_is_injected",
        TOOLS,
        a_plain_curl_gets_an_empty_reply_until_it_is_injected,
    ),
    linked(
        "the_gateway_refuses_plaintext_silence_foreign_and_expired_certificates_and_wrong_names",
        TOOLS,
        the_gateway_refuses_plaintext_silence_foreign_and_expired_certificates_and_wrong_names,
    ),
    linked(
        "a_service_that_is_not_exported_is_refused_to_meshed_clients_too",
        TOOLS,
        a_service_that_is_not_exported_is_refused_to_meshed_clients_too,
    ),
    linked(
        "a_links_token_may_do_what_its_role_says_and_nothing_else",
        TOOLS,
        a_links_token_may_do_what_its_role_says_and_nothing_else,
    ),
    linked(
        "a_token_dies_with_its_service_account",
        TOOLS,
        a_token_dies_with_its_service_account,
    ),
];

fn a_plain_curl_gets_an_empty_reply_until_it_is_injected(world: &World) {
    let stranger = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "stranger", "namespace": "visitors"},
        "spec": {
            "selector": {"matchLabels": {"app": "stranger"}},
            "template": {
                "metadata": {"labels": {"app": "stranger"}},
                "spec": {
                    "terminationGracePeriodSeconds": 1,
                    "containers": [{"name": "main", "image": "curlimages/curl", "command": ["sleep", "infinity"]}],
                },
            },
        },
    });
    world.apply("west", &stranger);
    world.rolled_out("west", "visitors", "stranger");
    let url = "http://web-svc-east.emojivoto";
    let (status, code) = world.curl("west", "stranger", url);
    assert!(
        status == 0 && [52, 56].contains(&code),
        "an empty reply, not status {status} with curl's code {code}"
    );
    let log = world.proxy_log("east", GATEWAY, "linkerd-gateway");
    let refused = log
        .lines()
        .find(|line| line.contains("direct connections must be mutually authenticated"));
    let refused = refused.unwrap_or_else(|| panic!("the gateway says why:\n{log}"));
    assert!(
        refused.contains("client.addr=203.0.113."),
        "the client's address: {refused}"
    );

    let injected = world.hawser_alone("inject -", &stranger.to_string());
    world.kubectl_words("west", &["apply", "-f", "-"], &injected);
    world.rolled_out("west", "visitors", "stranger");
    eventually("the injected curl gets in", SOON, || {
        match world.curl("west", "stranger", url) {
            (200, 0) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    world.remove("west", "stranger");
}

/// A gateway's client with a certificate, as files that openssl reads.
struct Caller {
    certificates: String,
    key: String,
}

impl Caller {
    /// With a certificate for an hour from `now`.
    fn of(issuer: &Issuer, now: SystemTime) -> Self {
        let identity = "guest.visitors.serviceaccount.identity.linkerd.cluster.local"
            .parse()
            .expect("an identity");
        let key = PrivateKey::generate().expect("a key");
        let request = csr(&key, &identity).expect("a request");
        let issued = issuer
            .issue(&request, &identity, HOUR, Duration::from_secs(60), now)
            .expect("the issuer issues");
        let chain = std::iter::once(&issued.leaf).chain(&issued.intermediates);
        let certificates = chain.map(|der| pem(der.as_ref())).collect();
        Self {
            certificates,
            key: key.to_pem(),
        }
    }
}

fn pem(der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
}

fn the_gateway_refuses_plaintext_silence_foreign_and_expired_certificates_and_wrong_names(world: &World) {
    world.visitor("west", "knocker");
    let gateway = load_balancer(world, "east");

    let secret = world
        .get("west", "-n linkerd secret linkerd-identity-issuer")
        .expect("west has an issuer");
    let field = |name: &str| decoded(&secret["data"][name]);
    let known = Issuer::from_pem(&field("crt.pem"), &field("key.pem")).expect("west's issuer");
    let now = SystemTime::now();
    let validity = Validity {
        not_before: now - HOUR,
        not_after: now + 24 * HOUR,
    };
    let root = create_root("root.foreign", validity).expect("a root");
    let root = Issuer::from_pem(&root.certificate_pem, &root.key.to_pem()).expect("usable");
    let foreign = create_issuer("identity.foreign", &root, validity).expect("an issuer");
    let foreign = Issuer::from_pem(&foreign.certificate_pem, &foreign.key.to_pem()).expect("usable");

    let good = Caller::of(&known, now);
    let expired = Caller::of(&known, now - 2 * HOUR);
    let foreign = Caller::of(&foreign, now);
    for (name, caller) in [("good", &good), ("expired", &expired), ("foreign", &foreign)] {
        let script = format!(
            "cat > /tmp/{name}.crt <<'END'\n{}END\ncat > /tmp/{name}.key <<'END'\n{}\nEND\n",
            caller.certificates, caller.key
        );
        let said = world.shell("west", "knocker", &script);
        assert!(said.succeeded(), "{said:?}");
    }
    let tls = |who: &str, name: &str| {
        let files = if who.is_empty() {
            String::new()
        } else {
            format!("-cert_chain /tmp/{who}.crt -cert /tmp/{who}.crt -key /tmp/{who}.key")
        };
        // The input stays open: only the gateway can end the connection before the timeout does.
        format!(
            "timeout 8 openssl s_client -connect {gateway}:4143 -servername {name} -alpn transport.l5d.io/v1 \
             -ign_eof -quiet {files} < /dev/zero 2>&1 | head -c 2000"
        )
    };
    let attempts = [
        (
            "plaintext",
            format!("curl -s --max-time 5 http://{gateway}:4143/; test $? = 52 -o $? = 56"),
            "direct connections must be mutually authenticated",
        ),
        (
            "no client certificate",
            tls("", GATEWAY_IDENTITY),
            "direct connections must be mutually authenticated",
        ),
        (
            "a foreign root",
            tls("foreign", GATEWAY_IDENTITY),
            "certificate does not chain to a trust anchor",
        ),
        (
            "an expired certificate",
            tls("expired", GATEWAY_IDENTITY),
            "certificate has expired",
        ),
        (
            "a wrong server name",
            tls("good", "web-svc.emojivoto"),
            "direct connections must name this proxy's identity as TLS server name",
        ),
        (
            "no transport header",
            tls("good", GATEWAY_IDENTITY),
            "direct connections must begin with a transport header",
        ),
        (
            "silence",
            // An input that never says a word and never ends.
            format!(
                "mkfifo /tmp/silence; exec 3<>/tmp/silence; timeout 15 curl -s telnet://{gateway}:4143 <&3"
            ),
            "TLS detection timed out",
        ),
    ];
    for (what, script, reason) in attempts {
        let before = refusals(world, reason);
        let said: Said = world.shell("west", "knocker", &script);
        eventually(
            &format!("{what} is refused with {reason:?} ({said:?})"),
            SOON,
            || match refusals(world, reason) {
                now if now > before => Ok(()),
                now => Err(format!("{now} refusals, as before")),
            },
        );
        assert!(!said.out.contains("HTTP/1.1 200"), "{what} was let in: {said:?}");
        let log = world.proxy_log("east", GATEWAY, "linkerd-gateway");
        assert!(log.contains(reason), "{what} is logged as {reason:?}:\n{log}");
    }
    world.remove("west", "knocker");
}

/// How often east's gateway closed a connection for this reason.
fn refusals(world: &World, reason: &str) -> u64 {
    world.gateway_count("inbound_tcp_errors_total", &format!("reason=\"{reason}\""))
}

fn a_service_that_is_not_exported_is_refused_to_meshed_clients_too(world: &World) {
    world.citizen("west", "forger");
    let mirror = world
        .get("west", "-n emojivoto endpoints web-svc-east")
        .expect("the mirror");
    let mut annotations = mirror["metadata"]["annotations"].clone();
    annotations["mirror.linkerd.io/remote-svc-fq-name"] = "emoji-svc.emojivoto.svc.cluster.local".into();
    let port = json!({"name": "prom", "port": 8801, "protocol": "TCP"});
    let metadata = |annotations: &Value| json!({"name": "emoji-svc-forged", "namespace": "emojivoto", "annotations": annotations});
    world.apply(
        "west",
        &json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata(&json!({})), "spec": {"ports": [port]}}),
    );
    let subset = json!({
        "addresses": [{"ip": load_balancer(world, "east")}],
        "ports": [{"name": "prom", "port": 4143, "protocol": "TCP"}],
    });
    world.apply(
        "west",
        &json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": metadata(&annotations), "subsets": [subset]}),
    );
    let url = "http://emoji-svc-forged.emojivoto:8801/metrics";
    eventually("the gateway forbids it", SOON, || {
        match world.curl("west", "forger", url) {
            (403, 0) => Ok(()),
            (200, 0) => panic!("it was served"),
            other => Err(format!("{other:?}")),
        }
    });
    let log = world.proxy_log("east", GATEWAY, "linkerd-gateway");
    assert!(
        log.lines()
            .any(|line| line.contains("is not exported") && line.contains("emoji-svc")),
        "an audit line names the service:\n{log}"
    );
    // It was the missing label, nothing else.
    world.kubectl(
        "east",
        "-n emojivoto label service emoji-svc mirror.linkerd.io/exported=true",
    );
    eventually("once exported, it is served", SOON, || {
        match world.curl("west", "forger", url) {
            (200, 0) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    world.kubectl(
        "east",
        "-n emojivoto label service emoji-svc mirror.linkerd.io/exported-",
    );
    eventually(
        "no longer exported, it is forbidden again",
        SOON,
        || match world.curl("west", "forger", url) {
            (403, 0) => Ok(()),
            other => Err(format!("{other:?}")),
        },
    );
    world.kubectl("west", "-n emojivoto delete service emoji-svc-forged");
    world.remove("west", "forger");
}

fn a_links_token_may_do_what_its_role_says_and_nothing_else(world: &World) {
    let secret = world
        .get("west", "-n linkerd-multicluster secret cluster-credentials-east")
        .expect("the link's credentials");
    let kubeconfig = decoded(&secret["data"]["kubeconfig"]);
    let token = token_in(&kubeconfig);
    let may = |line: &str| {
        let said = as_bearer(world, "east", &token, &format!("auth can-i {line}"));
        match said.out.trim() {
            "yes" => true,
            "no" => false,
            _ => panic!("can-i {line}: {said:?}"),
        }
    };
    for allowed in [
        "list services -A",
        "watch endpoints -A",
        "list endpointslices.discovery.k8s.io -A",
        "get configmaps/linkerd-config -n linkerd",
        "create events -n emojivoto",
    ] {
        assert!(may(allowed), "the mirror needs {allowed}");
    }
    for refused in [
        "list secrets -A",
        "get secrets -n linkerd",
        "create services -n emojivoto",
        "update services -n emojivoto",
        "delete pods -n emojivoto",
        "create pods/exec -n emojivoto",
        "get configmaps/other -n linkerd",
        "create serviceaccounts/token -n linkerd-multicluster",
    ] {
        assert!(!may(refused), "a link's token may {refused}");
    }
    // The same, tried rather than asked.
    let said = as_bearer(world, "east", &token, "get services -n emojivoto");
    assert!(said.succeeded() && said.out.contains("web-svc"), "{said:?}");
    for line in [
        "get secrets -A",
        "-n emojivoto delete service web-svc",
        "-n emojivoto label service web-svc stolen=yes",
    ] {
        let said = as_bearer(world, "east", &token, line);
        assert!(
            !said.succeeded() && said.err.contains("Forbidden"),
            "{line}: {said:?}"
        );
    }
}

fn a_token_dies_with_its_service_account(world: &World) {
    let account = world.hawser("east", "multicluster allow --service-account-name guest", "");
    world.kubectl_words("east", &["apply", "-f", "-"], &account);
    let token = eventually("the account gets its token", SOON, || {
        let secret = world.get("east", "-n linkerd-multicluster secret guest-token")?;
        match decoded(&secret["data"]["token"]) {
            token if token.is_empty() => Err("no token yet".into()),
            token => Ok(token),
        }
    });
    let said = as_bearer(world, "east", &token, "get services -n emojivoto");
    assert!(said.succeeded(), "the account works: {said:?}");
    world.kubectl("east", "-n linkerd-multicluster delete serviceaccount guest");
    // No waiting: the next request must fail.
    let said = as_bearer(world, "east", &token, "get services -n emojivoto");
    assert!(
        !said.succeeded() && said.err.contains("Unauthorized"),
        "the token still works: {said:?}"
    );
    world.kubectl_words(
        "east",
        &["delete", "--ignore-not-found", "--wait=false", "-f", "-"],
        &account_only(&account),
    );
}

/// Without the namespace that `allow` prints in front of the account.
fn account_only(manifest: &str) -> String {
    let documents = manifest
        .split("---\n")
        .filter(|text| !text.contains("kind: Namespace\n"));
    documents.collect::<Vec<_>>().join("---\n")
}

/// kubectl with nothing but a token, at the API server as this machine sees it.
fn as_bearer(world: &World, cluster: &str, token: &str, line: &str) -> Said {
    let config: Value = serde_saphyr::from_str(
        &std::fs::read_to_string(world.kubeconfig()).expect("the sandbox's kubeconfig"),
    )
    .expect("YAML");
    let clusters = config["clusters"].as_array().into_iter().flatten();
    let found = clusters
        .filter(|entry| entry["name"] == cluster)
        .map(|entry| entry["cluster"].clone())
        .next()
        .expect("the cluster is in its kubeconfig");
    let bearer = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "bearer",
        "clusters": [{"name": "bearer", "cluster": found}],
        "users": [{"name": "bearer", "user": {"token": token}}],
        "contexts": [{"name": "bearer", "context": {"cluster": "bearer", "user": "bearer"}}],
    });
    let path = world.dir().join("bearer.kubeconfig");
    std::fs::write(&path, bearer.to_string()).expect("written");
    let mut command = std::process::Command::new("kubectl");
    command
        .arg("--kubeconfig")
        .arg(&path)
        .args(crate::world::words(line))
        .env("HOME", world.dir());
    crate::host::run(command, "", crate::world::COMMAND_DEADLINE)
}

fn token_in(kubeconfig: &str) -> String {
    let config: Value = serde_saphyr::from_str(kubeconfig).expect("a kubeconfig");
    let token = config["users"][0]["user"]["token"]
        .as_str()
        .expect("it has a token");
    token.to_owned()
}

fn decoded(field: &Value) -> String {
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(field.as_str().unwrap_or_default())
        .expect("base64");
    String::from_utf8(bytes).expect("text")
}

/// The address of a cluster's gateway, as other clusters see it.
pub(crate) fn load_balancer(world: &World, cluster: &str) -> String {
    let service = world
        .get(cluster, "-n linkerd-multicluster service linkerd-gateway")
        .expect("the gateway");
    let address = service["status"]["loadBalancer"]["ingress"][0]["ip"].as_str();
    address.expect("the gateway has an address").to_owned()
}
