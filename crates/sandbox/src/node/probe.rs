//! Probes: when to ask a container how it is, how to ask, and what the answers mean.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use super::PodNet;
use super::container::Runner;

/// A container that is about to come up is asked often, so that nobody waits a whole period for it.
const EAGER_FIRST: Duration = Duration::from_millis(20);
const BODY_MAX: usize = 10 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Startup,
    Liveness,
    Readiness,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        })
    }
}

/// What a container's probes found.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Finding {
    Started,
    Ready(bool),
    /// It must be restarted; it gets this grace period if the probe has one of its own.
    Unhealthy(Kind, Option<SignedDuration>),
    /// One failure, for the record.
    Failure(Kind, String),
}

/// Whom to ask.
#[derive(Clone)]
pub(crate) struct Target {
    pub net: Arc<dyn PodNet>,
    pub runner: Runner,
    pub container: Container,
}

/// Counts answers and says when to ask again. Time is given as elapsed since the first question.
#[derive(Debug)]
struct Pace {
    period: Duration,
    success_threshold: u32,
    failure_threshold: u32,
    successes: u32,
    failures: u32,
    /// While waiting for the first success: the next short pause.
    eager: Option<Duration>,
    counted: Option<Duration>,
}

impl Pace {
    fn new(probe: &Probe, kind: Kind) -> Self {
        let positive = |value: Option<i32>, default| {
            value
                .and_then(|v| u32::try_from(v).ok())
                .unwrap_or(default)
                .max(1)
        };
        Self {
            period: Duration::from_secs(positive(probe.period_seconds, 10).into()),
            success_threshold: positive(probe.success_threshold, 1),
            failure_threshold: positive(probe.failure_threshold, 3),
            successes: 0,
            failures: 0,
            eager: (kind != Kind::Liveness).then_some(EAGER_FIRST),
            counted: None,
        }
    }

    /// Takes in an answer; returns a verdict once a threshold is reached.
    fn record(&mut self, success: bool, elapsed: Duration) -> Option<bool> {
        if success {
            self.failures = 0;
            self.eager = None;
            self.successes = self.successes.saturating_add(1);
            return (self.successes >= self.success_threshold).then_some(true);
        }
        self.successes = 0;
        // Questions between two periods are a courtesy: they don't use up the container's failures.
        if self
            .counted
            .is_none_or(|counted| elapsed.saturating_sub(counted) >= self.period)
        {
            self.counted = Some(elapsed);
            self.failures = self.failures.saturating_add(1);
        }
        (self.failures >= self.failure_threshold).then_some(false)
    }

    fn pause(&mut self) -> Duration {
        match &mut self.eager {
            None => self.period,
            Some(pause) => {
                let now = (*pause).min(self.period);
                *pause *= 2;
                now
            }
        }
    }
}

/// Asks for as long as the container runs and somebody listens.
pub(crate) async fn watch(target: Target, found: mpsc::Sender<Finding>) {
    let container = &target.container;
    if let Some(probe) = &container.startup_probe
        && !ask(&target, probe, Kind::Startup, &found).await
    {
        return;
    }
    let liveness = async {
        if let Some(probe) = &container.liveness_probe {
            ask(&target, probe, Kind::Liveness, &found).await;
        }
    };
    let readiness = async {
        if let Some(probe) = &container.readiness_probe {
            ask(&target, probe, Kind::Readiness, &found).await;
        }
    };
    tokio::join!(liveness, readiness);
}

/// Returns true once a container has started; ends otherwise when it is unhealthy or nobody listens.
async fn ask(target: &Target, probe: &Probe, kind: Kind, found: &mpsc::Sender<Finding>) -> bool {
    let seconds =
        |value: Option<i32>| Duration::from_secs(value.and_then(|v| u64::try_from(v).ok()).unwrap_or(0));
    sleep(seconds(probe.initial_delay_seconds)).await;
    let limit = seconds(probe.timeout_seconds).max(Duration::from_secs(1));
    let begin = Instant::now();
    let mut pace = Pace::new(probe, kind);
    let mut ready = false;
    loop {
        let answer = match timeout(limit, question(target, probe)).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("no answer within {limit:?}")),
        };
        let was_eager = pace.eager.is_some();
        let verdict = pace.record(answer.is_ok(), begin.elapsed());
        if let Err(message) = answer
            && !was_eager
            && found.send(Finding::Failure(kind, message)).await.is_err()
        {
            return false;
        }
        let finding = match (kind, verdict) {
            (Kind::Startup, Some(true)) => Some(Finding::Started),
            (Kind::Readiness, Some(now)) if now != ready => {
                ready = now;
                Some(Finding::Ready(now))
            }
            (Kind::Startup | Kind::Liveness, Some(false)) => {
                let grace = probe
                    .termination_grace_period_seconds
                    .map(SignedDuration::from_secs);
                Some(Finding::Unhealthy(kind, grace))
            }
            _ => None,
        };
        if let Some(finding) = finding {
            let (started, unhealthy) = (
                finding == Finding::Started,
                matches!(finding, Finding::Unhealthy(..)),
            );
            let heard = found.send(finding).await.is_ok();
            if started || unhealthy || !heard {
                return started && heard;
            }
        }
        sleep(pace.pause()).await;
    }
}

async fn question(target: &Target, probe: &Probe) -> Result<(), String> {
    if let Some(action) = &probe.exec {
        let command = action.command.as_deref().unwrap_or_default();
        return match target.runner.run(command).await {
            Ok((0, _)) => Ok(()),
            Ok((code, output)) => Err(format!("command ended with code {code}: {output}")),
            Err(error) => Err(chain(&error)),
        };
    }
    if let Some(action) = &probe.http_get {
        return http_get(target, action).await;
    }
    if let Some(action) = &probe.tcp_socket {
        let address = address(target, &action.port, action.host.as_deref())?;
        return match target.net.connect(address).await {
            Ok(_) => Ok(()),
            Err(error) => Err(format!("dial tcp {address}: {error}")),
        };
    }
    Err("this node has no such kind of probe; use httpGet, tcpSocket or exec".to_owned())
}

/// Also what a lifecycle hook does.
pub(crate) async fn http_get(target: &Target, action: &HTTPGetAction) -> Result<(), String> {
    let address = address(target, &action.port, action.host.as_deref())?;
    let path = action
        .path
        .as_deref()
        .filter(|path| !path.is_empty())
        .unwrap_or("/");
    let mut request = http::Request::get(path)
        .header("user-agent", "kube-probe/1.33")
        .header("accept", "*/*");
    let headers = action.http_headers.as_deref().unwrap_or_default();
    if !headers
        .iter()
        .any(|header| header.name.eq_ignore_ascii_case("host"))
    {
        request = request.header("host", address.to_string());
    }
    for header in headers {
        request = request.header(&header.name, &header.value);
    }
    let request = request
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let stream = target
        .net
        .connect(address)
        .await
        .map_err(|error| format!("dial tcp {address}: {error}"))?;
    let status = if action.scheme.as_deref() == Some("HTTPS") {
        let stream = tls::connect(stream, address.ip())
            .await
            .map_err(|error| format!("TLS to {address}: {error}"))?;
        send(stream, request).await
    } else {
        send(stream, request).await
    };
    match status.map_err(|error| format!("Get {path}: {error}"))?.as_u16() {
        200..=399 => Ok(()),
        code => Err(format!("HTTP probe failed with statuscode: {code}")),
    }
}

async fn send(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    request: http::Request<Empty<Bytes>>,
) -> Result<http::StatusCode, hyper::Error> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        // Read a little, so that a small answer doesn't end in a reset.
        let _ = Limited::new(response.into_body(), BODY_MAX).collect().await;
        Ok(status)
    };
    tokio::pin!(exchange);
    tokio::select! {
        status = &mut exchange => status,
        Err(error) = connection => Err(error),
        else => exchange.await,
    }
}

fn address(target: &Target, port: &IntOrString, host: Option<&str>) -> Result<SocketAddr, String> {
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => target
            .container
            .ports
            .iter()
            .flatten()
            .find(|port| port.name.as_ref() == Some(name))
            .map(|port| port.container_port)
            .or_else(|| name.parse().ok()),
    };
    let port = number
        .and_then(|number| u16::try_from(number).ok())
        .ok_or_else(|| format!("no such port: {port:?}"))?;
    let ip = match host.filter(|host| !host.is_empty()) {
        None => IpAddr::V4(target.net.ip()),
        Some("localhost") => IpAddr::from([127, 0, 0, 1]),
        Some(host) => host
            .parse()
            .map_err(|_| format!("host {host} of a probe must be an address"))?,
    };
    Ok(SocketAddr::new(ip, port))
}

/// An error with its causes, for messages that go to users.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// HTTPS probes don't verify: the container's certificate is for its clients' names, not for its address. Nothing
/// secret is sent, and the answer only says whether the container serves.
mod tls {
    use std::io;
    use std::net::IpAddr;
    use std::sync::{Arc, OnceLock};

    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    use rustls::crypto::{CryptoProvider, aws_lc_rs};
    use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
    use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
    use tokio::net::TcpStream;
    use tokio_rustls::TlsConnector;
    use tokio_rustls::client::TlsStream;

    pub(super) async fn connect(stream: TcpStream, ip: IpAddr) -> io::Result<TlsStream<TcpStream>> {
        static CONFIG: OnceLock<Arc<ClientConfig>> = OnceLock::new();
        let config = CONFIG.get_or_init(|| {
            let provider = Arc::new(aws_lc_rs::default_provider());
            let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
                .with_safe_default_protocol_versions()
                .expect("the provider supports the default versions")
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(Anyone(provider)))
                .with_no_client_auth();
            Arc::new(config)
        });
        TlsConnector::from(Arc::clone(config))
            .connect(ServerName::IpAddress(ip.into()), stream)
            .await
    }

    #[derive(Debug)]
    struct Anyone(Arc<CryptoProvider>);

    impl ServerCertVerifier for Anyone {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, Error> {
            Ok(ServerCertVerified::assertion())
        }

        fn verify_tls12_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            let algorithms = &self.0.signature_verification_algorithms;
            rustls::crypto::verify_tls12_signature(message, cert, signed, algorithms)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            let algorithms = &self.0.signature_verification_algorithms;
            rustls::crypto::verify_tls13_signature(message, cert, signed, algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.0.signature_verification_algorithms.supported_schemes()
        }
    }
}

/// TCP to a port on the pod's loopback address, or on its own address if nothing listens there.
pub(crate) async fn dial(net: &dyn PodNet, port: u16) -> io::Result<tokio::net::TcpStream> {
    const LIMIT: Duration = Duration::from_secs(10);
    let attempt = async |ip: IpAddr| match timeout(LIMIT, net.connect(SocketAddr::new(ip, port))).await {
        Ok(outcome) => outcome,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    };
    match attempt(IpAddr::from([127, 0, 0, 1])).await {
        Ok(stream) => Ok(stream),
        Err(_) => attempt(IpAddr::V4(net.ip())).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn pace(kind: Kind) -> Pace {
        let probe = Probe {
            period_seconds: Some(1),
            failure_threshold: Some(2),
            ..Probe::default()
        };
        Pace::new(&probe, kind)
    }

    #[test]
    fn a_container_that_comes_up_is_asked_often_until_its_first_success() {
        let mut pace = pace(Kind::Readiness);
        let pauses: Vec<_> = (0..7).map(|_| pace.pause()).collect();
        assert_eq!(
            pauses,
            [ms(20), ms(40), ms(80), ms(160), ms(320), ms(640), ms(1000)]
        );
        assert_eq!(pace.record(true, ms(0)), Some(true));
        assert_eq!(pace.pause(), ms(1000));
    }

    #[test]
    fn a_live_container_is_asked_once_per_period() {
        assert_eq!(pace(Kind::Liveness).pause(), ms(1000));
    }

    #[test]
    fn failures_count_once_per_period() {
        let mut pace = pace(Kind::Startup);
        assert_eq!(pace.record(false, ms(0)), None);
        assert_eq!(pace.record(false, ms(20)), None);
        assert_eq!(pace.record(false, ms(999)), None);
        assert_eq!(pace.record(false, ms(1000)), Some(false));
    }

    #[test]
    fn a_success_forgives_failures() {
        let mut pace = pace(Kind::Liveness);
        assert_eq!(pace.record(false, ms(0)), None);
        assert_eq!(pace.record(true, ms(1000)), Some(true));
        assert_eq!(pace.record(false, ms(2000)), None);
        assert_eq!(pace.record(false, ms(3000)), Some(false));
    }
}
