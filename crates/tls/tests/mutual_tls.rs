//! Handshakes between credentials, in memory: who is let in, who isn't, and which reason is given.

use std::io::{Read, Write};
use std::time::{Duration, SystemTime};

use hawser_core::Identity;
use hawser_tls::{
    Credentials, Error, Issuer, PrivateKey, Refusal, TrustAnchors, Validity, create_issuer, create_root, csr,
    peer_identity, refusal,
};
use rustls::{ClientConnection, HandshakeKind, ServerConnection};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

struct Mesh {
    anchors_pem: String,
    issuer: Issuer,
}

fn validity(now: SystemTime) -> Validity {
    Validity {
        not_before: now - 30 * DAY,
        not_after: now + 365 * DAY,
    }
}

fn mesh(root: &str) -> Mesh {
    let now = SystemTime::now();
    let root = create_root(root, validity(now)).expect("a root");
    let parent = Issuer::from_pem(&root.certificate_pem, &root.key.to_pem()).expect("a root is an authority");
    let issuer = create_issuer("identity.linkerd.cluster.local", &parent, validity(now)).expect("an issuer");
    let issuer = Issuer::from_pem(&issuer.certificate_pem, &issuer.key.to_pem()).expect("an issuer");
    Mesh {
        anchors_pem: root.certificate_pem,
        issuer,
    }
}

fn id(name: &str) -> Identity {
    format!("{name}.serviceaccount.identity.linkerd.cluster.local")
        .parse()
        .expect("a legal identity")
}

impl Mesh {
    fn credentials(&self, name: &str) -> Credentials {
        self.credentials_at(name, SystemTime::now(), &self.anchors_pem)
    }

    fn credentials_at(&self, name: &str, now: SystemTime, trusted: &str) -> Credentials {
        let key = PrivateKey::generate().expect("a key");
        let request = csr(&key, &id(name)).expect("a request");
        let skew = Duration::from_secs(20);
        let issued = self
            .issuer
            .issue(&request, &id(name), DAY, skew, now)
            .expect("a leaf");
        let own = TrustAnchors::from_pem(&self.anchors_pem).expect("anchors");
        own.verify(&issued.leaf, &issued.intermediates, now)
            .expect("the leaf chains to its own anchor");
        // Both roots, so that peers of a foreign mesh can hold credentials and still be refused by others.
        let anchors = TrustAnchors::from_pem(&format!("{}{trusted}", self.anchors_pem)).expect("anchors");
        Credentials::new(id(name), &key, issued.leaf, issued.intermediates, anchors, now)
            .expect("credentials")
    }
}

/// Runs a handshake and one message each way; the server's view of the client, or who refused and why.
fn handshake(
    client: &Credentials,
    expected: &str,
    server: &Credentials,
) -> Result<Option<Identity>, (&'static str, Refusal)> {
    speak(client, expected, server).map(|(seen, _)| seen)
}

/// The same, and whether the client's handshake was a resumption.
fn speak(
    client: &Credentials,
    expected: &str,
    server: &Credentials,
) -> Result<(Option<Identity>, bool), (&'static str, Refusal)> {
    let name = "gateway.example".try_into().expect("a DNS name");
    let mut client = ClientConnection::new(client.client(&id(expected), true), name).expect("a client");
    let mut server = ServerConnection::new(server.direct_server().clone()).expect("a server");
    client.writer().write_all(b"ping").expect("buffered");
    for _ in 0..10 {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).expect("into memory");
        }
        server.read_tls(&mut wire.as_slice()).expect("from memory");
        server
            .process_new_packets()
            .map_err(|error| ("server", refusal(&error)))?;
        wire.clear();
        while server.wants_write() {
            server.write_tls(&mut wire).expect("into memory");
        }
        client.read_tls(&mut wire.as_slice()).expect("from memory");
        client
            .process_new_packets()
            .map_err(|error| ("client", refusal(&error)))?;
    }
    let mut message = [0; 4];
    server
        .reader()
        .read_exact(&mut message)
        .expect("the client's message arrived");
    assert_eq!(&message, b"ping");
    assert_eq!(client.alpn_protocol(), Some(hawser_tls::ALPN_TRANSPORT));
    let seen = server
        .peer_certificates()
        .and_then(|chain| peer_identity(&chain[0]));
    Ok((seen, client.handshake_kind() == Some(HandshakeKind::Resumed)))
}

#[test]
fn sessions_are_resumed_but_never_under_other_anchors() {
    let (ours, next) = (mesh("root"), mesh("next root"));
    let (client, server) = (ours.credentials("bot.west"), ours.credentials("gateway.east"));
    let anchors = |pem: &str| TrustAnchors::from_pem(pem).expect("anchors");
    let bot = Ok((Some(id("bot.west")), false));
    assert_eq!(speak(&client, "gateway.east", &server), bot);
    let again = speak(&client, "gateway.east", &server);
    assert_eq!(
        again,
        Ok((Some(id("bot.west")), true)),
        "as long as nothing changes"
    );

    let both = anchors(&format!("{}{}", ours.anchors_pem, next.anchors_pem));
    let (new_client, new_server) = (client.with_anchors(both.clone()), server.with_anchors(both));
    let (new_client, new_server) = (new_client.expect("credentials"), new_server.expect("credentials"));
    assert_eq!(speak(&new_client, "gateway.east", &server), bot);
    assert_eq!(speak(&client, "gateway.east", &new_server), bot);

    // Sessions from before don't let an old root through.
    let only = anchors(&next.anchors_pem);
    let strict = server.with_anchors(only.clone()).expect("credentials");
    let refused = Err(("server", Refusal::UnknownIssuer));
    assert_eq!(speak(&client, "gateway.east", &strict), refused);
    let strict = client.with_anchors(only).expect("credentials");
    assert!(!strict.believed_at(SystemTime::now()));
    let refused = Err(("client", Refusal::UnknownIssuer));
    assert_eq!(speak(&strict, "gateway.east", &server), refused);
}

#[test]
fn members_of_one_mesh_know_each_other_by_identity() {
    let mesh = mesh("root.linkerd.cluster.local");
    let seen = handshake(
        &mesh.credentials("bot.west"),
        "gateway.east",
        &mesh.credentials("gateway.east"),
    );
    assert_eq!(seen, Ok(Some(id("bot.west"))));
}

#[test]
fn a_server_with_the_right_root_and_the_wrong_name_is_refused() {
    let mesh = mesh("root");
    let seen = handshake(
        &mesh.credentials("bot.west"),
        "gateway.east",
        &mesh.credentials("imposter.east"),
    );
    assert_eq!(seen, Err(("client", Refusal::WrongName)));
}

#[test]
fn a_client_of_a_foreign_root_is_refused_by_the_server() {
    let (ours, foreign) = (mesh("ours"), mesh("foreign"));
    // The foreigner believes us; we don't believe the foreigner.
    let stranger = foreign.credentials_at("bot.west", SystemTime::now(), &ours.anchors_pem);
    let seen = handshake(&stranger, "gateway.east", &ours.credentials("gateway.east"));
    assert_eq!(seen, Err(("server", Refusal::UnknownIssuer)));
}

#[test]
fn a_server_of_a_foreign_root_is_refused_by_the_client() {
    let (ours, foreign) = (mesh("ours"), mesh("foreign"));
    let seen = handshake(
        &ours.credentials("bot.west"),
        "gateway.east",
        &foreign.credentials("gateway.east"),
    );
    assert_eq!(seen, Err(("client", Refusal::UnknownIssuer)));
}

#[test]
fn a_root_of_the_same_name_and_another_key_is_an_unknown_issuer() {
    let (ours, theirs) = (mesh("root"), mesh("root"));
    let (client, server) = (ours.credentials("bot.west"), theirs.credentials("gateway.east"));
    let seen = handshake(&client, "gateway.east", &server);
    assert_eq!(seen, Err(("client", Refusal::UnknownIssuer)));
}

#[test]
fn an_expired_client_is_refused() {
    let mesh = mesh("root");
    let expired = mesh.credentials_at("bot.west", SystemTime::now() - 2 * DAY, "");
    let seen = handshake(&expired, "gateway.east", &mesh.credentials("gateway.east"));
    assert_eq!(seen, Err(("server", Refusal::Expired)));
}

#[test]
fn a_client_from_the_future_is_refused() {
    let mesh = mesh("root");
    let early = mesh.credentials_at("bot.west", SystemTime::now() + 2 * HOUR, "");
    let seen = handshake(&early, "gateway.east", &mesh.credentials("gateway.east"));
    assert_eq!(seen, Err(("server", Refusal::NotYetValid)));
}

#[test]
fn an_expired_server_is_refused() {
    let mesh = mesh("root");
    let expired = mesh.credentials_at("gateway.east", SystemTime::now() - 2 * DAY, "");
    let seen = handshake(&mesh.credentials("bot.west"), "gateway.east", &expired);
    assert_eq!(seen, Err(("client", Refusal::Expired)));
}

#[test]
fn a_bundle_of_two_roots_lets_two_meshes_speak() {
    let (west, east) = (mesh("west"), mesh("east"));
    let now = SystemTime::now();
    let client = west.credentials_at("bot.west", now, &east.anchors_pem);
    let server = east.credentials_at("gateway.east", now, &west.anchors_pem);
    assert_eq!(
        handshake(&client, "gateway.east", &server),
        Ok(Some(id("bot.west")))
    );
}

#[test]
fn a_request_for_another_name_is_refused() {
    let mesh = mesh("root");
    let key = PrivateKey::generate().expect("a key");
    let request = csr(&key, &id("evil.west")).expect("a request");
    let refused = mesh
        .issuer
        .issue(&request, &id("bot.west"), DAY, HOUR, SystemTime::now());
    assert!(matches!(refused, Err(Error::Csr(_))), "{refused:?}");
}

#[test]
fn garbage_is_not_a_request() {
    let mesh = mesh("root");
    let garbage = vec![0x30, 0x82, 0xff, 0xff, 1, 2, 3].into();
    let refused = mesh
        .issuer
        .issue(&garbage, &id("bot.west"), DAY, HOUR, SystemTime::now());
    assert!(matches!(refused, Err(Error::Csr(_))), "{refused:?}");
}

#[test]
fn a_leaf_never_outlives_its_issuer() {
    let now = SystemTime::now();
    let root = create_root("root", validity(now)).expect("a root");
    let parent = Issuer::from_pem(&root.certificate_pem, &root.key.to_pem()).expect("an authority");
    let short = Validity {
        not_before: now - HOUR,
        not_after: now + HOUR,
    };
    let issuer = create_issuer("issuer", &parent, short).expect("an issuer");
    let issuer = Issuer::from_pem(&issuer.certificate_pem, &issuer.key.to_pem()).expect("an issuer");
    let key = PrivateKey::generate().expect("a key");
    let request = csr(&key, &id("bot.west")).expect("a request");
    let issued = issuer
        .issue(&request, &id("bot.west"), DAY, HOUR, now)
        .expect("a leaf");
    assert!(issued.not_after <= issuer.expires_at());
}

#[test]
fn an_issuer_must_chain_to_the_anchors_in_use() {
    let (ours, foreign) = (mesh("ours"), mesh("foreign"));
    let anchors = TrustAnchors::from_pem(&ours.anchors_pem).expect("anchors");
    let now = SystemTime::now();
    assert!(ours.issuer.verify(&anchors, now).is_ok());
    assert!(matches!(
        foreign.issuer.verify(&anchors, now),
        Err(Error::Untrusted(_))
    ));
}

#[test]
fn a_leaf_is_not_an_issuer() {
    let now = SystemTime::now();
    let leaf = hawser_tls::create_server(&["a.b".to_owned()], validity(now)).expect("a leaf");
    let refused = Issuer::from_pem(&leaf.certificate_pem, &leaf.key.to_pem());
    assert!(matches!(refused, Err(Error::NotAnAuthority)), "{refused:?}");
}

#[test]
fn an_issuer_needs_its_own_key() {
    let now = SystemTime::now();
    let root = create_root("root", validity(now)).expect("a root");
    let other = PrivateKey::generate().expect("a key");
    let refused = Issuer::from_pem(&root.certificate_pem, &other.to_pem());
    assert!(matches!(refused, Err(Error::KeyMismatch)), "{refused:?}");
}

#[test]
fn bundles_are_compared_as_sets() {
    let (a, b) = (mesh("a").anchors_pem, mesh("b").anchors_pem);
    let parse = |pem: String| TrustAnchors::from_pem(&pem).expect("anchors");
    assert!(parse(format!("{a}{b}")).same_set(&parse(format!("{b}{a}"))));
    assert!(!parse(format!("{a}{b}")).same_set(&parse(a)));
}

#[test]
fn malformed_bundles_are_errors() {
    for bad in [
        "",
        "garbage",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    ] {
        assert!(TrustAnchors::from_pem(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn secrets_are_not_printed() {
    let key = PrivateKey::generate().expect("a key");
    assert_eq!(format!("{key:?}"), "PrivateKey(..)");
}

#[test]
fn keys_and_certificates_of_openssl_work() {
    let openssl = |args: &[&str], dir: &std::path::Path| {
        std::process::Command::new("openssl")
            .args(args)
            .current_dir(dir)
            .output()
            .map(|out| {
                assert!(
                    out.status.success(),
                    "openssl {args:?}: {}",
                    String::from_utf8_lossy(&out.stderr)
                );
            })
    };
    let dir = tempfile::tempdir().expect("a directory");
    if openssl(&["version"], dir.path()).is_err() {
        eprintln_skip("openssl is not installed");
        return;
    }
    let ca = "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\n";
    std::fs::write(dir.path().join("ca.ext"), ca).expect("written");
    for args in [
        // SEC1 ("EC PRIVATE KEY"), as older openssl and step write.
        "ecparam -name prime256v1 -genkey -noout -out root.key",
        "req -new -key root.key -subj /CN=root.linkerd.cluster.local -out root.csr",
        "x509 -req -in root.csr -signkey root.key -days 30 -extfile ca.ext -out root.crt",
        "ecparam -name prime256v1 -genkey -noout -out issuer.sec1",
        "pkcs8 -topk8 -nocrypt -in issuer.sec1 -out issuer.key",
        "req -new -key issuer.key -subj /CN=identity.linkerd.cluster.local -out issuer.csr",
        "x509 -req -in issuer.csr -CA root.crt -CAkey root.key -CAcreateserial -days 30 -extfile ca.ext -out issuer.crt",
    ] {
        openssl(&args.split(' ').collect::<Vec<_>>(), dir.path()).expect("openssl runs");
    }
    let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).expect("written by openssl");
    Issuer::from_pem(&read("root.crt"), &read("root.key")).expect("a root with a SEC1 key");
    let issuer =
        Issuer::from_pem(&read("issuer.crt"), &read("issuer.key")).expect("an issuer with a PKCS#8 key");
    let anchors = TrustAnchors::from_pem(&read("root.crt")).expect("anchors");
    issuer
        .verify(&anchors, SystemTime::now())
        .expect("leaves of it are believed");
}

#[expect(clippy::print_stderr, reason = "a skipped test says so")]
fn eprintln_skip(why: &str) {
    eprintln!("skipped: {why}");
}
