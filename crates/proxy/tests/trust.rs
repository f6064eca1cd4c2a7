//! Anchors and issuers that change under running proxies.

mod support;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use hawser_tls::{Credentials, Fingerprint, TrustAnchors};
use support::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const WEB: &str = "10.0.0.1:80";
const WEB_PATH: &str = "web.ns.svc.cluster.local:80";
const CLIENT: &str = "client.ns.serviceaccount.identity.linkerd.cluster.local";
/// Proxies spread their requests for certificates over this long.
const AT_ONCE: (&str, &str) = ("IDENTITY_MIN_REFRESH", "50ms");

fn anchors(bundle: &str) -> TrustAnchors {
    TrustAnchors::from_pem(bundle).unwrap()
}

fn info(name: &str, sha256: Fingerprint) -> String {
    format!("{name}{{sha256=\"{sha256}\"}} 1")
}

/// Waits until a proxy believes exactly these.
async fn believes(pod: &Pod, bundle: &str) {
    let mut expected: Vec<String> = anchors(bundle)
        .fingerprints()
        .into_iter()
        .map(|sha256| info("identity_trust_anchors_info", sha256))
        .collect();
    expected.sort_unstable();
    eventually("the anchors are in use", async || {
        let metrics = pod.admin("/metrics").await.into_body();
        let found = metrics
            .lines()
            .filter(|line| line.starts_with("identity_trust_anchors_info{"));
        found.eq(expected.iter().map(String::as_str))
    })
    .await;
}

/// Waits until a proxy's certificate has this issuer.
async fn signed_by(pod: &Pod, issuer: Fingerprint) {
    let expected = info("identity_cert_issuer_info", issuer);
    eventually("the certificate has the issuer", async || {
        pod.admin("/metrics").await.body().contains(&expected)
    })
    .await;
}

/// One answered request on a direct connection, or why there was none.
async fn asks(credentials: &Credentials, pod: &Pod, port: u16) -> io::Result<()> {
    let mut tls = direct(
        credentials,
        pod.proxy.inbound[0],
        &pod.identity,
        port,
        Session::Http1,
    )
    .await?;
    tls.write_all(b"GET / HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n")
        .await?;
    let mut answer = String::new();
    tls.read_to_string(&mut answer).await?;
    match answer.starts_with("HTTP/1.1 200") {
        true => Ok(()),
        false => Err(io::Error::other(answer)),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_is_rotated_under_load_without_a_restart_or_a_lost_request() {
    let control = ControlPlane::start().await;
    let app = app("127.0.0.2", "web").await;
    let server = Pod::start(&control, "web", "127.0.0.2", &[AT_ONCE]);
    let client = Arc::new(Pod::start(&control, "client", "127.0.0.3", &[AT_ONCE]));
    control.change(|world| {
        let endpoint = meshed(app, &server.identity, server.inbound_port());
        service(world, WEB, WEB_PATH, vec![endpoint]);
    });
    assert_eq!(client.get(WEB, "/").await.status(), 200);
    let old = control.credentials(CLIENT);
    asks(&old, &server, app.port()).await.unwrap();

    let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let load: Vec<_> = (0..4)
        .map(|_| {
            let (client, stop, answered) = (client.clone(), stop.clone(), answered.clone());
            tokio::spawn(async move {
                let mut http = http1(client.connect(WEB).await).await;
                while !stop.load(SeqCst) {
                    let response = send(&mut http, get("/")).await;
                    assert_eq!(response.status(), 200, "{response:?}");
                    answered.fetch_add(1, SeqCst);
                }
            })
        })
        .collect();

    let Authority {
        anchors: new_root,
        issuer,
    } = Authority::new();
    let both = format!("{}{new_root}", control.anchors);
    let new_issuer = issuer.fingerprint().unwrap();
    control.trust(&both, None);
    for pod in [&server, &client] {
        believes(pod, &both).await;
    }
    control.trust(&both, Some(issuer));
    for pod in [&server, &client] {
        signed_by(pod, new_issuer).await;
    }
    control.trust(&new_root, None);
    for pod in [&server, &client] {
        believes(pod, &new_root).await;
    }
    let before = answered.load(SeqCst);
    eventually("requests go on", async || answered.load(SeqCst) > before + 50).await;
    stop.store(true, SeqCst);
    for task in load {
        task.await.unwrap();
    }
    // Even somebody who believes the new root is refused with a certificate of the old one.
    let old = old.with_anchors(anchors(&both)).unwrap();
    assert!(asks(&old, &server, app.port()).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_starts_again_believes_what_it_believed_last() {
    let control = ControlPlane::start().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().display().to_string();
    let env = [AT_ONCE, ("IDENTITY_DIR", path.as_str())];
    let pod = Pod::start(&control, "web", "127.0.0.2", &env);
    believes(&pod, &control.anchors).await;
    let Authority {
        anchors: new_root, ..
    } = Authority::new();
    let both = format!("{}{new_root}", control.anchors);
    control.trust(&both, None);
    believes(&pod, &both).await;
    drop(pod);
    // Its environment is the same, and nobody is there to tell it more.
    control.stop();
    let again = Pod::start(&control, "web", "127.0.0.2", &env);
    believes(&again, &both).await;
    std::fs::write(dir.path().join("trust-anchors.pem"), "nonsense").unwrap();
    let stale = Pod::start(&control, "web", "127.0.0.2", &env);
    believes(&stale, &control.anchors).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_of_peers_that_lost_our_trust_end_in_time() {
    let control = ControlPlane::start().await;
    let app = greeter("127.0.0.2").await;
    let server = Pod::start(
        &control,
        "web",
        "127.0.0.2",
        &[AT_ONCE, ("SHUTDOWN_GRACE_PERIOD", "300ms")],
    );
    let Authority {
        anchors: new_root,
        issuer,
    } = Authority::new();
    let both = format!("{}{new_root}", control.anchors);
    let old = control.credentials(CLIENT).with_anchors(anchors(&both)).unwrap();
    let connecting = direct(
        &old,
        server.proxy.inbound[0],
        &server.identity,
        app.port(),
        Session::Opaque,
    );
    let mut opaque = within(connecting).await.unwrap();
    let mut greeting = [0; 11];
    within(opaque.read_exact(&mut greeting)).await.unwrap();

    control.trust(&both, Some(issuer));
    believes(&server, &both).await;
    within(opaque.write_all(b"still here")).await.unwrap();
    within(opaque.read_exact(&mut greeting[..10])).await.unwrap();
    assert_eq!(&greeting[..10], b"still here", "an added root cuts nobody off");

    control.trust(&new_root, None);
    believes(&server, &new_root).await;
    let mut rest = Vec::new();
    // However it ends: the peer that we don't believe any more hears nothing else.
    let _ = within(opaque.read_to_end(&mut rest)).await;
    assert_eq!(rest, b"");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_that_cannot_be_used_changes_nothing() {
    let control = ControlPlane::start().await;
    let server = Pod::start(&control, "web", "127.0.0.2", &[AT_ONCE]);
    let both = format!("{}{}", control.anchors, Authority::new().anchors);
    for bad in [
        "",
        "nonsense",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    ] {
        control.trust(bad, None);
        believes(&server, &control.anchors).await;
    }
    control.trust(&both, None);
    believes(&server, &both).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_nobody_would_believe_is_replaced_at_once() {
    let control = ControlPlane::start().await;
    let server = Pod::start(&control, "web", "127.0.0.2", &[AT_ONCE]);
    believes(&server, &control.anchors).await;
    let Authority { anchors, issuer } = Authority::new();
    let new_issuer = issuer.fingerprint().unwrap();
    // Both steps in one: not how it should be done, but the proxy finds its way.
    control.trust(&anchors, Some(issuer));
    tokio::time::timeout(Duration::from_secs(10), signed_by(&server, new_issuer))
        .await
        .unwrap();
}
