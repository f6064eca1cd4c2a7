//! Finds out how far a request to a mirror gets, the way traffic goes: through this pod's own proxy.
//!
//! Asks with `OPTIONS` and `Max-Forwards` (RFC 9110, 7.6.2): our proxies answer such a question where it ends, so each
//! of them on the way can be asked, and the application hears nothing. Proxies of others pass it on to the
//! application, for which `OPTIONS` is safe by definition. Served on the admin port, for mirrors only; knows nothing
//! of what the answers mean.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hawser_crd::keys;
use hawser_runtime::admin::Pages;
use http::{HeaderMap, StatusCode, header};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Service;
use kube::{Api, Client, ResourceExt as _};
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

const PATH: &str = "/reach";
/// One question's patience. A proxy gives up on a service without endpoints earlier.
const DEADLINE: Duration = Duration::from_secs(5);
/// How long all questions of one asker may take.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The proxies on the way to a mirrored service, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Hop {
    /// The asking pod's own.
    Own,
    Gateway,
    /// That of a pod behind the service.
    Target,
}

impl Hop {
    const ALL: [Self; 3] = [Self::Own, Self::Gateway, Self::Target];

    /// How often a question to this one is forwarded.
    fn forwards(self) -> u32 {
        match self {
            Self::Own => 0,
            Self::Gateway => 1,
            Self::Target => 2,
        }
    }
}

/// What came of one question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// Whom the question was for.
    pub hop: Hop,
    /// Absent if there was no answer.
    pub status: Option<u16>,
    /// The proxy that answered; absent if it was an application, or a proxy that doesn't say.
    pub by: Option<String>,
    /// What went wrong, in the words of whoever noticed.
    pub error: Option<String>,
}

impl Answer {
    fn read(hop: Hop, status: StatusCode, headers: &HeaderMap) -> Self {
        let text = |name: &str| {
            headers
                .get(name)
                .and_then(|value| value.to_str().ok())
                .map(str::to_owned)
        };
        Self {
            hop,
            status: Some(status.as_u16()),
            by: text("l5d-answered-by"),
            error: text("l5d-proxy-error"),
        }
    }

    fn none(hop: Hop, error: String) -> Self {
        Self {
            hop,
            status: None,
            by: None,
            error: Some(error),
        }
    }
}

/// Where an admin port answers for this port of a mirror.
pub fn question(namespace: &str, name: &str, port: u16) -> String {
    format!("{PATH}?{namespace}/{name}:{port}")
}

/// Namespace, name and port of a question.
fn read(query: &str) -> Option<(&str, &str, u16)> {
    let (namespace, rest) = query.split_once('/')?;
    let (name, port) = rest.split_once(':')?;
    Some((namespace, name, port.parse().ok()?))
}

/// Answers questions about mirrors on the admin port, one asker at a time.
pub(super) fn answer_on(pages: &Pages, client: Client) {
    let turn = Arc::new(Semaphore::new(1));
    pages.add(PATH, move |query| {
        let (client, turn) = (client.clone(), turn.clone());
        async move {
            let Ok(_turn) = turn.try_acquire() else {
                return (
                    StatusCode::TOO_MANY_REQUESTS,
                    "somebody else is asking\n".to_owned(),
                );
            };
            match answers(&client, &query).await {
                Ok(answers) => {
                    let text = serde_json::to_string(&answers).unwrap_or_default();
                    (StatusCode::OK, text + "\n")
                }
                Err(why) => (StatusCode::BAD_REQUEST, why + "\n"),
            }
        }
    });
}

async fn answers(client: &Client, query: &str) -> Result<Vec<Answer>, String> {
    let (namespace, name, port) = read(query).ok_or("ask for ?NAMESPACE/NAME:PORT")?;
    let services: Api<Service> = Api::namespaced(client.clone(), namespace);
    let getting = tokio::time::timeout(DEADLINE, services.get(name));
    let service = getting
        .await
        .map_err(|_| "the API server does not answer".to_owned())?;
    let service = service.map_err(|error| error.to_string())?;
    let (address, host) = place(&service, port)?;
    // Whoever is farthest answers for all before it.
    let last = ask(Hop::Target, address, &host).await;
    if last.error.is_none() {
        return Ok(vec![last]);
    }
    let mut answers = Vec::new();
    for hop in Hop::ALL.into_iter().filter(|hop| *hop != Hop::Target) {
        answers.push(ask(hop, address, &host).await);
    }
    answers.push(last);
    Ok(answers)
}

/// Where clients of a mirror connect to, and the host they name. Anything but mirrors is not for us to ask.
fn place(service: &Service, port: u16) -> Result<(SocketAddr, String), String> {
    let spec = service.spec.as_ref().ok_or("it has no spec")?;
    let is_mirror = service
        .labels()
        .get(keys::MIRRORED_SERVICE)
        .is_some_and(|value| value == "true");
    let has_port = spec
        .ports
        .iter()
        .flatten()
        .any(|found| found.port == i32::from(port));
    if !is_mirror || !has_port {
        return Err("it is not a port of a mirror".to_owned());
    }
    let ip = spec.cluster_ip.as_deref().and_then(|ip| ip.parse().ok());
    let ip = ip.ok_or("it has no cluster IP")?;
    let host = format!(
        "{}.{}:{port}",
        service.name_any(),
        service.namespace().unwrap_or_default()
    );
    Ok((SocketAddr::new(ip, port), host))
}

async fn ask(hop: Hop, address: SocketAddr, host: &str) -> Answer {
    match tokio::time::timeout(DEADLINE, exchange(hop, address, host)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => Answer::none(hop, error),
        Err(_) => Answer::none(hop, format!("no answer within {DEADLINE:?}")),
    }
}

async fn exchange(hop: Hop, address: SocketAddr, host: &str) -> Result<Answer, String> {
    let socket = TcpStream::connect(address).await;
    let socket = socket.map_err(|error| format!("connecting: {error}"))?;
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(socket)).await;
    let (mut sender, connection) = handshake.map_err(|error| error.to_string())?;
    let request = http::Request::options("/")
        .header(header::HOST, host)
        .header(header::MAX_FORWARDS, hop.forwards())
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let mut response = std::pin::pin!(sender.send_request(request));
    let response = tokio::select! {
        response = &mut response => response,
        // A short answer and the end of its connection come together; then the answer is there already.
        _ = connection => response.await,
    };
    let response = response.map_err(|error| error.to_string())?;
    Ok(Answer::read(hop, response.status(), response.headers()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_question_is_read_as_it_was_asked() {
        let asked = question("emojivoto", "web-svc-east", 80);
        let (_, query) = asked.split_once('?').unwrap();
        assert_eq!(read(query), Some(("emojivoto", "web-svc-east", 80)));
        for nonsense in [
            "",
            "emojivoto",
            "emojivoto/web",
            "emojivoto/web:http",
            "a/b:70000",
        ] {
            assert_eq!(read(nonsense), None, "{nonsense}");
        }
    }

    #[test]
    fn only_ports_of_mirrors_are_asked() {
        let service = |label: &str, ip: &str| -> Service {
            serde_json::from_value(json!({
                "metadata": {"name": "web-east", "namespace": "emojivoto", "labels": {keys::MIRRORED_SERVICE: label}},
                "spec": {"clusterIP": ip, "ports": [{"port": 80}]},
            }))
            .unwrap()
        };
        let found = place(&service("true", "10.43.0.7"), 80);
        assert_eq!(
            found,
            Ok((
                "10.43.0.7:80".parse().unwrap(),
                "web-east.emojivoto:80".to_owned()
            ))
        );
        assert!(place(&service("true", "10.43.0.7"), 22).is_err());
        assert!(place(&service("", "10.43.0.7"), 80).is_err());
        assert!(place(&service("true", "None"), 80).is_err());
    }

    #[test]
    fn answers_name_who_gave_them_and_what_went_wrong() {
        let headers = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            headers
        };
        let answer = Answer::read(
            Hop::Gateway,
            StatusCode::OK,
            &headers("l5d-answered-by", "gateway gw"),
        );
        assert_eq!((answer.by.as_deref(), answer.error), (Some("gateway gw"), None));
        let answer = Answer::read(
            Hop::Target,
            StatusCode::GATEWAY_TIMEOUT,
            &headers("l5d-proxy-error", "late"),
        );
        assert_eq!(
            (answer.status, answer.error.as_deref()),
            (Some(504), Some("late"))
        );
    }
}
