//! Certify as a proxy sees it, with an API server that knows three tokens.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hawser_core::identity::Identity;
use hawser_tls::{Issuer, PrivateKey, TrustAnchors, Validity, create_issuer, create_root};
use http_body_util::BodyExt;
use kube::client::Body;
use linkerd2_proxy_api::identity::identity_client::IdentityClient;
use linkerd2_proxy_api::identity::{CertifyRequest, CertifyResponse};
use serde_json::{Value, json};
use tonic::{Code, Status};

use super::credentials::Credentials;
use super::*;
use crate::process;

const WEB: &str = "web.test.serviceaccount.identity.linkerd.cluster.local";

/// Answers TokenReviews and takes Events.
fn api_server() -> Client {
    let answer = |request: http::Request<Body>| async move {
        let body = request
            .into_body()
            .collect()
            .await
            .expect("the body is in memory")
            .to_bytes();
        let mut review: Value = serde_json::from_slice(&body).expect("JSON is sent");
        let authenticated = |user: &str| json!({"authenticated": true, "user": {"username": user}, "audiences": [certify::AUDIENCE]});
        if review["spec"]["audiences"] == json!([certify::AUDIENCE]) {
            review["status"] = match review["spec"]["token"].as_str() {
                Some("web's") => authenticated("system:serviceaccount:test:web"),
                Some("a person's") => authenticated("jane"),
                Some("for others") => {
                    json!({"authenticated": true, "user": {"username": "system:serviceaccount:test:web"}, "audiences": ["vault"]})
                }
                _ => json!({"authenticated": false}),
            };
        }
        Ok::<_, Infallible>(http::Response::new(Body::from(review.to_string().into_bytes())))
    };
    Client::new(tower::service_fn(answer), "default")
}

struct Authority {
    anchors: TrustAnchors,
    anchors_pem: String,
    issuer_pem: String,
    key_pem: String,
}

fn authority(valid_for: Duration) -> Authority {
    let now = SystemTime::now();
    let validity = Validity {
        not_before: now - Duration::from_secs(60),
        not_after: now + valid_for,
    };
    let root = create_root("root.test", validity).unwrap();
    let parent = Issuer::from_pem(&root.certificate_pem, &root.key.to_pem()).unwrap();
    let issuer = create_issuer("identity.test", &parent, validity).unwrap();
    Authority {
        anchors: TrustAnchors::from_pem(&root.certificate_pem).unwrap(),
        anchors_pem: root.certificate_pem,
        issuer_pem: issuer.certificate_pem,
        key_pem: issuer.key.to_pem(),
    }
}

fn certifier() -> Arc<Certifier> {
    let client = api_server();
    let settings = Settings {
        control_plane_namespace: "linkerd".into(),
        trust_domain: "cluster.local".parse().unwrap(),
        lifetime: Duration::from_secs(24 * 3600),
        skew: Duration::from_secs(20),
    };
    Arc::new(Certifier::new(
        client.clone(),
        settings,
        Notes::new(client, "test"),
    ))
}

fn certifier_of(authority: &Authority) -> Arc<Certifier> {
    let certifier = certifier();
    let issuer = Issuer::from_pem(&authority.issuer_pem, &authority.key_pem).unwrap();
    certifier.use_credentials(Credentials {
        issuer,
        anchors: authority.anchors.clone(),
        bundle: authority.anchors_pem.clone(),
    });
    certifier
}

fn request(identity: &str, token: &str, asks_for: &str) -> CertifyRequest {
    let key = PrivateKey::generate().unwrap();
    let asks_for: Identity = asks_for.parse().unwrap();
    CertifyRequest {
        identity: identity.into(),
        token: token.as_bytes().to_vec(),
        certificate_signing_request: hawser_tls::csr(&key, &asks_for).unwrap().to_vec(),
    }
}

async fn certify(certifier: &Arc<Certifier>, request: CertifyRequest) -> Result<CertifyResponse, Status> {
    let mut client = IdentityClient::new(IdentityServer::from_arc(certifier.clone()));
    client.certify(request).await.map(tonic::Response::into_inner)
}

const DAY: Duration = Duration::from_secs(24 * 3600);

#[tokio::test]
async fn a_pod_gets_a_certificate_for_its_own_account() {
    let authority = authority(365 * DAY);
    let certified = certify(&certifier_of(&authority), request(WEB, "web's", WEB))
        .await
        .unwrap();
    let leaf = certified.leaf_certificate.into();
    let intermediates: Vec<_> = certified
        .intermediate_certificates
        .into_iter()
        .map(Into::into)
        .collect();
    authority
        .anchors
        .verify(&leaf, &intermediates, SystemTime::now())
        .unwrap();
    let valid_until = SystemTime::try_from(certified.valid_until.unwrap()).unwrap();
    let valid_for = valid_until.duration_since(SystemTime::now()).unwrap();
    assert!(
        valid_for > DAY && valid_for <= DAY + Duration::from_secs(20),
        "{valid_for:?}"
    );
}

#[tokio::test]
async fn a_leaf_never_outlives_its_issuer() {
    let authority = authority(DAY / 24);
    let certified = certify(&certifier_of(&authority), request(WEB, "web's", WEB))
        .await
        .unwrap();
    let valid_until = SystemTime::try_from(certified.valid_until.unwrap()).unwrap();
    assert!(valid_until.duration_since(SystemTime::now()).unwrap() <= DAY / 24);
}

#[tokio::test]
async fn refusals_are_told_apart_in_the_order_that_proxies_know() {
    let certifier = certifier_of(&authority(DAY));
    let other = "other.test.serviceaccount.identity.linkerd.cluster.local";
    let without = |change: fn(&mut CertifyRequest)| {
        let mut request = request(WEB, "web's", WEB);
        change(&mut request);
        request
    };
    for (request, code, message) in [
        (
            without(|request| request.identity.clear()),
            Code::InvalidArgument,
            "missing identity",
        ),
        (
            without(|request| request.token.clear()),
            Code::InvalidArgument,
            "missing token",
        ),
        (
            without(|request| request.certificate_signing_request.clear()),
            Code::InvalidArgument,
            "missing certificate signing request",
        ),
        (
            without(|request| request.certificate_signing_request.truncate(9)),
            Code::InvalidArgument,
            "PKCS#10",
        ),
        (
            request(WEB, "nobody's", other),
            Code::FailedPrecondition,
            "certificate signing request is not acceptable",
        ),
        (
            request(WEB, "nobody's", WEB),
            Code::FailedPrecondition,
            "authentication token could not be authenticated",
        ),
        (
            request(WEB, "for others", WEB),
            Code::FailedPrecondition,
            "authentication token could not be authenticated",
        ),
        (
            request(WEB, "a person's", WEB),
            Code::InvalidArgument,
            "not a ServiceAccount's",
        ),
        (
            request(other, "web's", other),
            Code::FailedPrecondition,
            "requested identity did not match provided token: requested=other.test.serviceaccount.identity.linkerd.\
             cluster.local; found=web.test.serviceaccount.identity.linkerd.cluster.local",
        ),
    ] {
        let refused = certify(&certifier, request).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
        assert!(refused.message().contains(message), "{refused}");
    }
}

#[tokio::test]
async fn without_an_issuer_the_service_is_unavailable_and_without_trust_it_says_so() {
    let refused = certify(&certifier(), request(WEB, "web's", WEB))
        .await
        .unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::Unavailable, "cert issuer not ready yet")
    );
    let (ours, foreign) = (authority(DAY), authority(DAY));
    let certifier = certifier_of(&Authority {
        anchors: foreign.anchors,
        ..ours
    });
    let refused = certify(&certifier, request(WEB, "web's", WEB)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unknown);
}

fn write(directory: &Path, authority: &Authority, names: (&str, &str)) {
    for (name, text) in [(names.0, &authority.issuer_pem), (names.1, &authority.key_pem)] {
        std::fs::write(directory.join(name), text).unwrap();
    }
    std::fs::write(directory.join("ca-bundle.crt"), &authority.anchors_pem).unwrap();
}

#[test]
fn changed_files_are_taken_when_they_fit_together_and_refused_once_when_not() {
    let now = SystemTime::now();
    for names in [("crt.pem", "key.pem"), ("tls.crt", "tls.key")] {
        let directory = tempfile::tempdir().unwrap();
        let (first, second) = (authority(DAY), authority(DAY));
        let mut mounted = Mounted::new(directory.path().into(), directory.path().join("ca-bundle.crt"));
        assert!(
            matches!(mounted.read(now), Changed::Refused(_)),
            "nothing is there yet"
        );
        write(directory.path(), &first, names);
        assert!(matches!(mounted.read(now), Changed::To(_)));
        assert!(matches!(mounted.read(now), Changed::No));
        // The issuer changes before the anchors know its root.
        write(
            directory.path(),
            &Authority {
                anchors_pem: first.anchors_pem.clone(),
                ..second
            },
            names,
        );
        assert!(matches!(mounted.read(now), Changed::Refused(_)));
        assert!(matches!(mounted.read(now), Changed::No));
        write(directory.path(), &authority(DAY), names);
        assert!(matches!(mounted.read(now), Changed::To(_)));
    }
}

#[test]
fn an_issuer_that_cant_be_used_does_not_hold_up_new_anchors() {
    let now = SystemTime::now();
    let directory = tempfile::tempdir().unwrap();
    let (ours, other) = (authority(DAY), authority(DAY));
    let names = ("crt.pem", "key.pem");
    let mut mounted = Mounted::new(directory.path().into(), directory.path().join("ca-bundle.crt"));
    write(directory.path(), &ours, names);
    assert!(matches!(mounted.read(now), Changed::To(_)));
    let both = format!("{}{}", ours.anchors_pem, other.anchors_pem);
    std::fs::write(directory.path().join("key.pem"), "nonsense").unwrap();
    assert!(matches!(mounted.read(now), Changed::Refused(_)));
    std::fs::write(directory.path().join("ca-bundle.crt"), &both).unwrap();
    let Changed::Anchors(credentials, _) = mounted.read(now) else {
        panic!("the anchors are new, and believe the issuer of before");
    };
    assert_eq!(credentials.bundle, both);
    assert!(matches!(mounted.read(now), Changed::No));
    // Anchors that don't believe the issuer in use have to wait for one that they believe.
    std::fs::write(directory.path().join("ca-bundle.crt"), &other.anchors_pem).unwrap();
    assert!(matches!(mounted.read(now), Changed::Refused(_)));
    write(directory.path(), &other, names);
    assert!(matches!(mounted.read(now), Changed::To(_)));
}

#[tokio::test]
async fn watchers_are_told_at_once_and_at_each_change() {
    let (first, second) = (authority(DAY), authority(DAY));
    let certifier = certifier();
    let drain = Shutdown::new();
    let (watched, stop) = (certifier.clone(), drain.clone());
    let trust = TrustServer::new(move || watched.watch_trust(stop.clone()));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let routes = tonic::service::Routes::new(IdentityServer::from_arc(certifier.clone())).add_service(trust);
    tokio::spawn(process::serve_grpc(listener, routes, drain.clone()));
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{addr}"))
        .unwrap()
        .connect_lazy();
    let mut updates = hawser_proxy_api::watch(channel).await.unwrap().into_inner();
    let fits = |authority: &Authority| Credentials {
        issuer: Issuer::from_pem(&authority.issuer_pem, &authority.key_pem).unwrap(),
        anchors: authority.anchors.clone(),
        bundle: authority.anchors_pem.clone(),
    };
    for authority in [&first, &second] {
        certifier.use_credentials(fits(authority));
        // The same again changes nothing.
        certifier.use_credentials(fits(authority));
        let told = updates.message().await.unwrap().unwrap();
        assert_eq!(told.anchors, authority.anchors_pem);
        let issuer = hawser_tls::certificates(&authority.issuer_pem, "it").unwrap();
        assert_eq!(told.issuer, hawser_tls::Fingerprint::of(&issuer[0]).to_string());
    }
    drain.cancel();
    assert_eq!(
        updates.message().await.unwrap(),
        None,
        "the next replica is asked"
    );
}
