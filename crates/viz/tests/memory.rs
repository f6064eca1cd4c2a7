//! What the window takes of the machine's memory, as the kernel counts it. Alone in its process for that.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use hawser_viz::{Pod, Reading, Window};

/// A thousand of them are too slow for an unoptimised build.
const PROXIES: u64 = 40;
const FLOWS: u64 = 10;
const PROMISED_PER_THOUSAND: u64 = 192 << 20;

/// Ten busy peers: each answers on two codes, in eight buckets of latency, at every look.
fn exposition(look: u64) -> String {
    let mut text = "process_start_time_seconds 1\n".to_owned();
    let names = "dst_namespace=\"emojivoto\",dst_service=\"web-svc\",dst_deployment=\"web\"";
    for peer in 0..FLOWS {
        let labels = format!(
            "direction=\"outbound\",authority=\"web-svc.emojivoto.svc.cluster.local:80\",tls=\"true\",\
             server_id=\"web.emojivoto.serviceaccount.identity.linkerd.cluster.local\",{names},dst_pod=\"web-pn69hq6jg7-{peer:05}\""
        );
        let requests = look * 400 + peer;
        for (class, share) in [("success", 19), ("failure", 1)] {
            let _ = writeln!(
                text,
                "response_total{{{labels},classification=\"{class}\"}} {}",
                requests * share / 20
            );
        }
        for (at, le) in ["1", "2", "3", "4", "5", "10", "20", "+Inf"].iter().enumerate() {
            let count = requests * (at as u64 + 1) / 8;
            let _ = writeln!(text, "response_latency_ms_bucket{{{labels},le=\"{le}\"}} {count}");
        }
        for side in ["read", "write"] {
            let _ = writeln!(
                text,
                "tcp_{side}_bytes_total{{{labels},peer=\"dst\"}} {}",
                requests * 900
            );
        }
    }
    text
}

fn resident() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").expect("Linux has it");
    let pages: u64 = pages
        .split(' ')
        .nth(1)
        .and_then(|text| text.parse().ok())
        .expect("a number");
    pages * 4096
}

#[test]
fn an_hour_of_a_thousand_busy_proxies_stays_within_what_is_promised() {
    let object = |number: u64| {
        serde_json::json!({
            "metadata": {"namespace": "emojivoto", "name": format!("web-{number}")},
            "spec": {"containers": [{"name": "linkerd-proxy"}]},
        })
    };
    let pods: Vec<Arc<Pod>> = (0..PROXIES)
        .map(|number| Arc::new(Pod::of(&serde_json::from_value(object(number)).expect("a pod"))))
        .collect();
    let mut window = Window::new(Duration::from_secs(3600));
    let began = resident();
    // Longer than the hour, so that the oldest goes.
    for look in 1..=400 {
        let at = Duration::from_secs(10 * look);
        let reading = Reading::of(&exposition(look));
        for pod in &pods {
            window.record(pod, 4191, at, reading.clone());
        }
        window.forget(at);
    }
    let per_thousand = |bytes: u64| bytes * 1_000 / PROXIES;
    let (counted, taken) = (window.bytes() as u64, resident().saturating_sub(began));
    assert!(
        per_thousand(counted) <= PROMISED_PER_THOUSAND && per_thousand(taken) <= PROMISED_PER_THOUSAND,
        "counted {} MiB, taken {} MiB",
        per_thousand(counted) >> 20,
        per_thousand(taken) >> 20
    );
    assert!(
        counted * 2 > taken,
        "what it says it takes is about what it takes: {counted} of {taken}"
    );
}
