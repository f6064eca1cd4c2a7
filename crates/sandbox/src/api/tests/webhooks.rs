//! Admission webhooks that really answer, over TLS with certificates of their own.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Mutex;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::task::JoinHandle;

use super::*;

/// A webhook server: what it was asked, and how it answers.
struct Hook {
    at: SocketAddr,
    bundle: String,
    asked: Arc<Mutex<Vec<Value>>>,
    server: JoinHandle<()>,
}

impl Drop for Hook {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Hook {
    /// `answers` gives the `response` of each review in turn, without its uid; after the last one nothing is answered.
    async fn start(answers: Vec<Value>) -> Self {
        let names = ["localhost", "hook.default.svc"].map(str::to_owned);
        let certified = rcgen::generate_simple_self_signed(names).unwrap();
        let key = rustls_pki_types::PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der());
        let tls = rustls::ServerConfig::builder_with_provider(pki::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certified.cert.der().clone()], key.into())
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let (asked, answers) = (
            Arc::new(Mutex::new(Vec::new())),
            Arc::new(Mutex::new(VecDeque::from(answers))),
        );
        let told = asked.clone();
        let server = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(stream) = acceptor.accept(stream).await else {
                    continue;
                };
                let (told, answers) = (told.clone(), answers.clone());
                let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                    let (told, answers) = (told.clone(), answers.clone());
                    async move {
                        let bytes = request.into_body().collect().await.unwrap().to_bytes();
                        let mut review: Value = serde_json::from_slice(&bytes).unwrap();
                        let answer = answers.lock().unwrap().pop_front();
                        let uid = review["request"]["uid"].clone();
                        told.lock().unwrap().push(review["request"].take());
                        let Some(mut answer) = answer else {
                            return std::future::pending().await;
                        };
                        answer["uid"] = uid;
                        review["response"] = answer;
                        Ok::<_, std::convert::Infallible>(http::Response::new(review.to_string()))
                    }
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        Self {
            at,
            bundle: STANDARD.encode(certified.cert.pem()),
            asked,
            server,
        }
    }

    fn asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }

    /// A webhook for ConfigMaps that is reached by URL.
    fn configured(&self, name: &str, extra: Value) -> Value {
        let url = format!("https://localhost:{}/mutate", self.at.port());
        let mut hook = json!({
            "name": format!("{name}.example.com"), "admissionReviewVersions": ["v1"], "sideEffects": "None",
            "clientConfig": { "url": url, "caBundle": self.bundle },
            "rules": [{ "operations": ["CREATE", "UPDATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"] }],
        });
        for (field, value) in extra.as_object().unwrap() {
            hook[field] = value.clone();
        }
        hook
    }
}

async fn configure(cluster: &Arc<Cluster>, kind: &str, webhooks: Vec<Value>) {
    let plural = format!("{}s", kind.to_lowercase());
    let uri = format!("/apis/admissionregistration.k8s.io/v1/{plural}");
    let object = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": { "name": "hooks" }, "webhooks": webhooks,
    });
    let (code, answer) = send(cluster, "POST", &uri, JSON, object).await;
    assert_eq!(code, 201, "{answer}");
}

const MUTATING: &str = "MutatingWebhookConfiguration";
const VALIDATING: &str = "ValidatingWebhookConfiguration";

fn patch(patch: Value) -> Value {
    json!({ "allowed": true, "patchType": "JSONPatch", "patch": STANDARD.encode(patch.to_string()) })
}

fn add(path: &str, value: &str) -> Value {
    json!([{ "op": "add", "path": path, "value": value }])
}

fn owned_by<'a>(object: &'a Value, manager: &str) -> &'a Value {
    let entries = object["metadata"]["managedFields"].as_array().unwrap();
    let entry = entries.iter().find(|entry| entry["manager"] == manager);
    &entry.unwrap_or_else(|| panic!("{manager} owns nothing in {object}"))["fieldsV1"]
}

#[tokio::test]
async fn a_mutating_webhook_is_called_through_its_service_and_its_patch_is_applied() {
    let hook = Hook::start(vec![patch(add("/data/added", "yes"))]).await;
    let at = hook.at;
    let cluster = Cluster::new(ClusterOptions {
        service_dialer: Some(Arc::new(move |namespace, name, port| {
            assert_eq!(
                (namespace.as_str(), name.as_str(), port),
                ("default", "hook", 8443)
            );
            Box::pin(tokio::net::TcpStream::connect(at))
        })),
        ..ClusterOptions::default()
    });
    let service = json!({ "namespace": "default", "name": "hook", "port": 8443, "path": "/mutate" });
    let config = json!({ "clientConfig": { "service": service, "caBundle": hook.bundle } });
    configure(&cluster, MUTATING, vec![hook.configured("a", config)]).await;
    let (code, created) = send(&cluster, "POST", MAPS, JSON, map("a", json!({ "own": "1" }))).await;
    assert_eq!(
        (code, &created["data"]),
        (201, &json!({ "own": "1", "added": "yes" })),
        "{created}"
    );
    let asked = hook.asked.lock().unwrap()[0].clone();
    for (pointer, expected) in [
        ("/operation", json!("CREATE")),
        ("/name", json!("a")),
        ("/namespace", json!("default")),
        ("/resource/resource", json!("configmaps")),
        ("/userInfo/username", json!("kubernetes-admin")),
        ("/object/data", json!({ "own": "1" })),
        ("/oldObject", Value::Null),
        ("/dryRun", json!(false)),
    ] {
        assert_eq!(asked.pointer(pointer), Some(&expected), "{pointer}");
    }
}

#[tokio::test]
async fn what_a_webhook_adds_belongs_to_nobody() {
    let answers = vec![
        patch(add("/data/added", "1")),
        patch(add("/data/added", "2")),
        patch(add("/data/added", "3")),
    ];
    let hook = Hook::start(answers).await;
    let cluster = cluster();
    configure(&cluster, MUTATING, vec![hook.configured("a", json!({}))]).await;
    let by = |manager: &str| format!("{MAPS}?fieldManager={manager}");
    let (_, created) = send(
        &cluster,
        "POST",
        &by("one"),
        JSON,
        map("a", json!({ "own": "1" })),
    )
    .await;
    assert_eq!(
        owned_by(&created, "one")["f:data"],
        json!({ ".": {}, "f:own": {} })
    );

    let merge = "application/merge-patch+json";
    let change = json!({ "data": { "own": "2" } });
    let (_, updated) = send(
        &cluster,
        "PATCH",
        &format!("{MAPS}/a?fieldManager=two"),
        merge,
        change,
    )
    .await;
    assert_eq!(updated["data"], json!({ "own": "2", "added": "2" }));
    assert_eq!(owned_by(&updated, "two")["f:data"], json!({ "f:own": {} }));

    let config = json!({ "apiVersion": "v1", "kind": "ConfigMap", "data": { "own": "2" } });
    let uri = format!("{MAPS}/a?fieldManager=three&force=true");
    let (code, applied) = send(&cluster, "PATCH", &uri, "application/apply-patch+yaml", config).await;
    assert_eq!(
        (code, &applied["data"]),
        (200, &json!({ "own": "2", "added": "3" })),
        "{applied}"
    );
    assert_eq!(owned_by(&applied, "three")["f:data"], json!({ "f:own": {} }));
}

#[tokio::test]
async fn a_webhook_that_does_not_answer_fails_as_its_policy_says() {
    tokio::time::pause();
    let cluster = cluster();
    let silent = Hook::start(Vec::new()).await;
    let gone = json!({ "clientConfig": { "url": "https://localhost:1/", "caBundle": silent.bundle }, "failurePolicy": "Ignore" });
    let ignored = json!({ "failurePolicy": "Ignore", "timeoutSeconds": 1 });
    configure(
        &cluster,
        MUTATING,
        vec![
            silent.configured("gone", gone),
            silent.configured("ignored", ignored),
        ],
    )
    .await;
    assert_eq!(
        send(&cluster, "POST", MAPS, JSON, map("a", json!({}))).await.0,
        201
    );

    let strict = json!({ "failurePolicy": "Fail", "timeoutSeconds": 2 });
    configure(&cluster, VALIDATING, vec![silent.configured("strict", strict)]).await;
    let (code, refused) = send(&cluster, "POST", MAPS, JSON, map("b", json!({}))).await;
    assert_eq!(code, 500);
    let url = format!("https://localhost:{}/mutate?timeout=2s", silent.at.port());
    assert_eq!(
        refused["message"],
        format!(
            "Internal error occurred: failed calling webhook \"strict.example.com\": failed to call webhook: \
             Post \"{url}\": context deadline exceeded"
        )
    );
    assert_eq!(get(&cluster, &format!("{MAPS}/b")).await.0, 404);
}

#[tokio::test]
async fn a_certificate_that_the_bundle_does_not_vouch_for_is_refused() {
    let (hook, other) = (
        Hook::start(vec![json!({ "allowed": true })]).await,
        Hook::start(Vec::new()).await,
    );
    let cluster = cluster();
    let url = format!("https://localhost:{}/", hook.at.port());
    let config = json!({ "clientConfig": { "url": url, "caBundle": other.bundle } });
    configure(&cluster, MUTATING, vec![hook.configured("a", config)]).await;
    assert_eq!(
        send(&cluster, "POST", MAPS, JSON, map("a", json!({}))).await.0,
        500
    );
    assert_eq!(hook.asked(), 0);
}

#[tokio::test]
async fn an_earlier_webhook_is_asked_again_if_it_wants_to_when_a_later_one_changed_something() {
    let yes = || json!({ "allowed": true });
    let (eager, lazy) = (
        Hook::start(vec![yes(), yes()]).await,
        Hook::start(vec![yes()]).await,
    );
    let later = Hook::start(vec![patch(add("/data/later", "yes"))]).await;
    let cluster = cluster();
    let again = json!({ "reinvocationPolicy": "IfNeeded" });
    let hooks = vec![
        eager.configured("eager", again),
        lazy.configured("lazy", json!({})),
        later.configured("later", json!({})),
    ];
    configure(&cluster, MUTATING, hooks).await;
    let (code, created) = send(&cluster, "POST", MAPS, JSON, map("a", json!({ "own": "1" }))).await;
    assert_eq!(
        (code, &created["data"]["later"]),
        (201, &json!("yes")),
        "{created}"
    );
    assert_eq!((eager.asked(), lazy.asked(), later.asked()), (2, 1, 1));
    assert_eq!(eager.asked.lock().unwrap()[1]["object"]["data"]["later"], "yes");
}

#[tokio::test]
async fn a_denial_says_why_and_warnings_reach_the_client() {
    let denial = json!({ "allowed": false, "status": { "code": 403, "message": "not today" }, "warnings": ["think twice"] });
    let hook = Hook::start(vec![
        json!({ "allowed": true, "warnings": ["think once"] }),
        denial,
    ])
    .await;
    let cluster = cluster();
    configure(&cluster, VALIDATING, vec![hook.configured("judge", json!({}))]).await;
    let request = |name: &str| {
        let (parts, ()) = Request::post(MAPS)
            .header("content-type", JSON)
            .body(())
            .unwrap()
            .into_parts();
        cluster.answer(
            parts,
            body::full(map(name, json!({})).to_string()),
            Identity::admin(),
        )
    };
    let response = request("a").await;
    assert_eq!(
        (response.status().as_u16(), &response.headers()["warning"]),
        (201, &"299 - \"think once\"".parse().unwrap())
    );
    let response = request("b").await;
    assert_eq!(
        (response.status().as_u16(), &response.headers()["warning"]),
        (403, &"299 - \"think twice\"".parse().unwrap())
    );
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    let status: Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(
        status["message"],
        "admission webhook \"judge.example.com\" denied the request: not today"
    );
}

#[tokio::test]
async fn selectors_choose_which_objects_and_namespaces_a_webhook_sees() {
    let yes = || json!({ "allowed": true });
    let by_object = Hook::start(vec![yes(), yes()]).await;
    let by_namespace = Hook::start(vec![yes()]).await;
    let cluster = cluster();
    let hooks = vec![
        by_object.configured(
            "object",
            json!({ "objectSelector": { "matchLabels": { "inject": "yes" } } }),
        ),
        by_namespace.configured(
            "namespace",
            json!({ "namespaceSelector": { "matchExpressions": [
            { "key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": ["default"] },
        ] } }),
        ),
    ];
    configure(&cluster, MUTATING, hooks).await;
    let mut labelled = map("labelled", json!({}));
    labelled["metadata"]["labels"] = json!({ "inject": "yes" });
    send(&cluster, "POST", MAPS, JSON, labelled).await;
    send(&cluster, "POST", MAPS, JSON, map("plain", json!({}))).await;
    assert_eq!((by_object.asked(), by_namespace.asked()), (1, 0));
    let elsewhere = "/api/v1/namespaces/kube-public/configmaps";
    send(&cluster, "POST", elsewhere, JSON, map("plain", json!({}))).await;
    assert_eq!((by_object.asked(), by_namespace.asked()), (1, 1));
    // Losing the label is still about an object that had it.
    let change = json!({ "metadata": { "labels": null } });
    send(
        &cluster,
        "PATCH",
        &format!("{MAPS}/labelled"),
        "application/merge-patch+json",
        change,
    )
    .await;
    assert_eq!(by_object.asked(), 2);
}

#[tokio::test]
async fn match_conditions_are_refused_rather_than_ignored() {
    let cluster = cluster();
    let hook = Hook::start(Vec::new()).await;
    let conditions = json!({ "matchConditions": [{ "name": "c", "expression": "true" }] });
    let object = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": MUTATING, "metadata": { "name": "hooks" },
        "webhooks": [hook.configured("a", conditions)],
    });
    let uri = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";
    let (code, refused) = send(&cluster, "POST", uri, JSON, object).await;
    assert_eq!(
        (code, &refused["details"]["causes"][0]["field"]),
        (422, &json!("webhooks[0].matchConditions")),
        "{refused}"
    );
}
