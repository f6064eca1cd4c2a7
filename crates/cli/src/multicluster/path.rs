//! What answers along the path to a mirrored service mean: where requests get, and which hop they end at if not.
//!
//! Pure. The answers come from [`reach`](hawser_control::mirror::reach), which asks every proxy on the way.

use hawser_control::mirror::reach::{Answer, Hop};
use hawser_crd::keys;
use k8s_openapi::api::core::v1::{Endpoints, Service};
use kube::ResourceExt;

/// A port of a mirror that surely speaks HTTP; others are left alone, because their applications would hear us.
pub(super) fn port(mirror: &Service) -> Option<u16> {
    let spec = mirror.spec.as_ref()?;
    let opaque = mirror.annotations().get(keys::OPAQUE_PORTS);
    if spec.cluster_ip.as_deref().is_none_or(|ip| ip == "None")
        || opaque.is_some_and(|ports| !ports.is_empty())
    {
        return None;
    }
    let mut ports = spec.ports.iter().flatten();
    let http = ports.find(|port| {
        let name = port.name.as_deref().unwrap_or_default();
        let is_named = ["http", "grpc", "h2"]
            .iter()
            .any(|protocol| name.starts_with(protocol));
        port.protocol.as_deref().unwrap_or("TCP") == "TCP" && (is_named || matches!(port.port, 80 | 8080))
    })?;
    u16::try_from(http.port).ok()
}

pub(super) fn is_ready(endpoints: &Endpoints) -> bool {
    let mut subsets = endpoints.subsets.iter().flatten();
    subsets.any(|subset| subset.addresses.iter().flatten().next().is_some())
}

/// How far requests to `service` get, or where they end and why.
pub(super) fn judge(service: &str, cluster: &str, answers: &[Answer]) -> Result<String, String> {
    let said = |hop: Hop| answers.iter().find(|answer| answer.hop == hop);
    let target = said(Hop::Target).ok_or("the controller said nothing")?;
    let Some(error) = &target.error else {
        return Ok(service.to_owned());
    };
    let why = match target.status {
        Some(status) => format!("{error} ({status})"),
        None => error.clone(),
    };
    let passed = |hop: Hop| said(hop).is_some_and(|answer| answer.error.is_none());
    // A policy that lets in others than the mirror's own controller is no fault.
    if target.status == Some(403) && error.contains("unauthorized") {
        let who = match passed(Hop::Gateway) {
            true => format!("a pod behind the gateway of {cluster}"),
            false => format!("the gateway of {cluster}"),
        };
        return Ok(format!(
            "{service}, as far as {who}, whose policy refuses this controller"
        ));
    }
    let place = match (passed(Hop::Own), passed(Hop::Gateway)) {
        (false, _) => "in this cluster, before the controller's own proxy had it".to_owned(),
        // So begins what a proxy says that took the connection in.
        (true, false) if error.starts_with("client ") => format!("at the gateway of {cluster}"),
        (true, false) => format!("between this cluster and the gateway of {cluster}"),
        (true, true) => format!("in {cluster}, behind its gateway"),
    };
    Err(format!("requests to {service} end {place}: {why}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn answer(hop: Hop, status: u16, error: &str) -> Answer {
        Answer {
            hop,
            status: (status > 0).then_some(status),
            by: None,
            error: (!error.is_empty()).then(|| error.to_owned()),
        }
    }

    #[test]
    fn the_hop_at_which_requests_end_is_named_with_its_reason() {
        let judged = |answers: &[(Hop, u16, &str)]| {
            let answers: Vec<Answer> = answers
                .iter()
                .map(|(hop, status, why)| answer(*hop, *status, why))
                .collect();
            judge("emojivoto/web-east:80", "east", &answers)
        };
        use Hop::{Gateway, Own, Target};
        // Whatever an application says to OPTIONS, it was reached.
        for status in [200, 404, 501] {
            assert_eq!(
                judged(&[(Target, status, "")]),
                Ok("emojivoto/web-east:80".to_owned())
            );
        }
        for (answers, expected) in [
            (
                [
                    (Own, 0, "connecting: refused"),
                    (Gateway, 0, "x"),
                    (Target, 0, "connecting: refused"),
                ],
                "in this cluster, before the controller's own proxy had it: connecting: refused",
            ),
            (
                [
                    (Own, 200, ""),
                    (Gateway, 504, "connect timed out"),
                    (Target, 504, "connect timed out"),
                ],
                "between this cluster and the gateway of east: connect timed out (504)",
            ),
            (
                [
                    (Own, 200, ""),
                    (Gateway, 200, ""),
                    (Target, 504, "service in fail-fast"),
                ],
                "in east, behind its gateway: service in fail-fast (504)",
            ),
            (
                [
                    (Own, 200, ""),
                    (Gateway, 403, "client c: not exported"),
                    (Target, 403, "client c: not exported"),
                ],
                "at the gateway of east: client c: not exported (403)",
            ),
        ] {
            let expected = format!("requests to emojivoto/web-east:80 end {expected}");
            assert_eq!(judged(&answers), Err(expected));
        }
        let denied = "client 1.2.3.4:5: server: 6.7.8.9:4143: unauthorized request on route";
        let told = judged(&[(Own, 200, ""), (Gateway, 403, denied), (Target, 403, denied)]);
        let expected =
            "emojivoto/web-east:80, as far as the gateway of east, whose policy refuses this controller";
        assert_eq!(told, Ok(expected.to_owned()));
    }

    #[test]
    fn only_ports_that_surely_speak_http_are_asked() {
        let mirror = |ports: serde_json::Value, opaque: &str| -> Service {
            serde_json::from_value(json!({
                "metadata": {"annotations": {keys::OPAQUE_PORTS: opaque}},
                "spec": {"clusterIP": "10.43.0.7", "ports": ports},
            }))
            .unwrap()
        };
        for (ports, opaque, expected) in [
            (
                json!([{"port": 5432}, {"name": "http-api", "port": 9000}]),
                "",
                Some(9000),
            ),
            (json!([{"name": "web", "port": 80}]), "", Some(80)),
            (json!([{"name": "http", "port": 80, "protocol": "UDP"}]), "", None),
            (json!([{"name": "http", "port": 80}]), "80", None),
            (json!([{"name": "pg", "port": 5432}]), "", None),
        ] {
            assert_eq!(port(&mirror(ports.clone(), opaque)), expected, "{ports}");
        }
    }
}
