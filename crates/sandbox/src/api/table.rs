//! The columns that `kubectl get` prints.
//!
//! Pure functions from an object and the present time to cells. Built-in kinds have the columns that Kubernetes gives
//! them, CRDs those of their `additionalPrinterColumns`.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::registry::{Resource, meta};
use super::selector::LabelSelector;

/// One column: its definition and how to fill it.
pub(crate) struct Column {
    name: String,
    kind: String,
    format: String,
    description: String,
    /// Columns above zero are for `-o wide`.
    priority: i64,
    cell: Cell,
}

enum Cell {
    Builtin(fn(&Value, Timestamp) -> Value),
    Path { path: String, date: bool },
}

impl Column {
    pub(crate) fn cell(&self, object: &Value, now: Timestamp) -> Value {
        match &self.cell {
            Cell::Builtin(cell) => cell(object, now),
            Cell::Path { path, date } => match (json_path(object, path), date) {
                (None | Some(Value::Null), _) => Value::Null,
                (Some(Value::String(time)), true) => age_of(&time, now).into(),
                (Some(value @ (Value::Array(_) | Value::Object(_))), _) => value.to_string().into(),
                (Some(value), _) => value,
            },
        }
    }

    pub(crate) fn definition(&self) -> Value {
        json!({
            "name": self.name, "type": self.kind, "format": self.format, "description": self.description,
            "priority": self.priority,
        })
    }
}

type Fill = fn(&Value, Timestamp) -> Value;

fn builtin(columns: &[(&str, i64, Fill)]) -> Vec<Column> {
    columns
        .iter()
        .map(|(name, priority, cell)| Column {
            name: (*name).to_owned(),
            kind: "string".to_owned(),
            format: if *name == "Name" { "name" } else { "" }.to_owned(),
            description: String::new(),
            priority: *priority,
            cell: Cell::Builtin(*cell),
        })
        .collect()
}

const NAME: (&str, i64, Fill) = ("Name", 0, |object, _| meta::name(object).into());
const AGE: (&str, i64, Fill) = ("Age", 0, |object, now| {
    age_of(meta::text(object, "creationTimestamp"), now).into()
});
const CREATED: (&str, i64, Fill) = ("Created At", 0, |object, _| {
    meta::text(object, "creationTimestamp").into()
});
const CONTAINERS: (&str, i64, Fill) = ("Containers", 1, |object, _| containers(object, "name").into());
const IMAGES: (&str, i64, Fill) = ("Images", 1, |object, _| containers(object, "image").into());
const SELECTOR: (&str, i64, Fill) = ("Selector", 1, |object, _| {
    selector(object.pointer("/spec/selector")).into()
});

pub(crate) fn columns(resource: &Resource) -> Vec<Column> {
    if let Some(custom) = &resource.custom {
        let text = |column: &Value, field: &str| {
            column
                .get(field)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let mut columns = builtin(if custom.columns.is_empty() {
            &[NAME, AGE]
        } else {
            &[NAME]
        });
        columns.extend(custom.columns.iter().map(|column| Column {
            name: text(column, "name"),
            kind: text(column, "type"),
            format: text(column, "format"),
            description: text(column, "description"),
            priority: column.get("priority").and_then(Value::as_i64).unwrap_or(0),
            cell: Cell::Path {
                path: text(column, "jsonPath"),
                date: text(column, "type") == "date",
            },
        }));
        return columns;
    }
    match (resource.group.as_str(), resource.plural.as_str()) {
        ("", "pods") => builtin(&[
            NAME,
            ("Ready", 0, |pod, _| {
                let (ready, total) = ready_containers(pod);
                format!("{ready}/{total}").into()
            }),
            ("Status", 0, |pod, _| pod_status(pod).into()),
            ("Restarts", 0, |pod, now| restarts(pod, now).into()),
            AGE,
            ("IP", 1, |pod, _| or_none(at(pod, "/status/podIP")).into()),
            ("Node", 1, |pod, _| or_none(at(pod, "/spec/nodeName")).into()),
            ("Nominated Node", 1, |pod, _| {
                or_none(at(pod, "/status/nominatedNodeName")).into()
            }),
            ("Readiness Gates", 1, |pod, _| readiness_gates(pod).into()),
        ]),
        ("", "services") => builtin(&[
            NAME,
            ("Type", 0, |service, _| at(service, "/spec/type").into()),
            ("Cluster-IP", 0, |service, _| {
                or_none(at(service, "/spec/clusterIP")).into()
            }),
            ("External-IP", 0, |service, _| external_ip(service).into()),
            ("Port(s)", 0, |service, _| service_ports(service).into()),
            AGE,
            ("Selector", 1, |service, _| {
                labels(service.pointer("/spec/selector")).into()
            }),
        ]),
        ("apps", "deployments") => builtin(&[
            NAME,
            ("Ready", 0, |object, _| {
                format!(
                    "{}/{}",
                    count(object, "/status/readyReplicas"),
                    count(object, "/spec/replicas")
                )
                .into()
            }),
            ("Up-to-date", 0, |object, _| {
                count(object, "/status/updatedReplicas").into()
            }),
            ("Available", 0, |object, _| {
                count(object, "/status/availableReplicas").into()
            }),
            AGE,
            CONTAINERS,
            IMAGES,
            SELECTOR,
        ]),
        ("apps", "replicasets") | ("", "replicationcontrollers") => builtin(&[
            NAME,
            ("Desired", 0, |object, _| count(object, "/spec/replicas").into()),
            ("Current", 0, |object, _| count(object, "/status/replicas").into()),
            ("Ready", 0, |object, _| {
                count(object, "/status/readyReplicas").into()
            }),
            AGE,
            CONTAINERS,
            IMAGES,
            SELECTOR,
        ]),
        ("apps", "statefulsets") => builtin(&[
            NAME,
            ("Ready", 0, |object, _| {
                format!(
                    "{}/{}",
                    count(object, "/status/readyReplicas"),
                    count(object, "/spec/replicas")
                )
                .into()
            }),
            AGE,
            CONTAINERS,
            IMAGES,
        ]),
        ("apps", "daemonsets") => builtin(&[
            NAME,
            ("Desired", 0, |object, _| {
                count(object, "/status/desiredNumberScheduled").into()
            }),
            ("Current", 0, |object, _| {
                count(object, "/status/currentNumberScheduled").into()
            }),
            ("Ready", 0, |object, _| {
                count(object, "/status/numberReady").into()
            }),
            ("Up-to-date", 0, |object, _| {
                count(object, "/status/updatedNumberScheduled").into()
            }),
            ("Available", 0, |object, _| {
                count(object, "/status/numberAvailable").into()
            }),
            ("Node Selector", 0, |object, _| {
                labels(object.pointer("/spec/template/spec/nodeSelector")).into()
            }),
            AGE,
            CONTAINERS,
            IMAGES,
            SELECTOR,
        ]),
        ("batch", "jobs") => builtin(&[
            NAME,
            ("Status", 0, |job, _| job_status(job).into()),
            ("Completions", 0, |job, _| {
                let wanted = job
                    .pointer("/spec/completions")
                    .and_then(Value::as_i64)
                    .unwrap_or(1);
                format!("{}/{wanted}", count(job, "/status/succeeded")).into()
            }),
            ("Duration", 0, |job, now| {
                let (from, to) = (at(job, "/status/startTime"), at(job, "/status/completionTime"));
                match (from.parse::<Timestamp>(), to.parse::<Timestamp>()) {
                    (Ok(from), Ok(to)) => age(to.duration_since(from).as_secs()).into(),
                    (Ok(_), Err(_)) => age_of(&from, now).into(),
                    _ => "".into(),
                }
            }),
            AGE,
            CONTAINERS,
            IMAGES,
            SELECTOR,
        ]),
        ("batch", "cronjobs") => builtin(&[
            NAME,
            ("Schedule", 0, |job, _| at(job, "/spec/schedule").into()),
            ("Timezone", 0, |job, _| or_none(at(job, "/spec/timeZone")).into()),
            ("Suspend", 0, |job, _| {
                let suspended = job.pointer("/spec/suspend") == Some(&Value::Bool(true));
                if suspended { "True" } else { "False" }.into()
            }),
            ("Active", 0, |job, _| length(job, "/status/active").into()),
            ("Last Schedule", 0, |job, now| {
                match at(job, "/status/lastScheduleTime").as_str() {
                    "" => "<none>".into(),
                    time => age_of(time, now).into(),
                }
            }),
            AGE,
        ]),
        ("", "configmaps") => builtin(&[
            NAME,
            ("Data", 0, |map, _| {
                (length(map, "/data") + length(map, "/binaryData")).into()
            }),
            AGE,
        ]),
        ("", "secrets") => builtin(&[
            NAME,
            ("Type", 0, |secret, _| at(secret, "/type").into()),
            ("Data", 0, |secret, _| length(secret, "/data").into()),
            AGE,
        ]),
        ("", "serviceaccounts") => builtin(&[
            NAME,
            ("Secrets", 0, |account, _| length(account, "/secrets").into()),
            AGE,
        ]),
        ("", "namespaces") => builtin(&[
            NAME,
            ("Status", 0, |object, _| at(object, "/status/phase").into()),
            AGE,
        ]),
        ("", "nodes") => builtin(&[
            NAME,
            ("Status", 0, |node, _| node_status(node).into()),
            ("Roles", 0, |node, _| node_roles(node).into()),
            AGE,
            ("Version", 0, |node, _| {
                at(node, "/status/nodeInfo/kubeletVersion").into()
            }),
            ("Internal-IP", 1, |node, _| {
                node_address(node, "InternalIP").into()
            }),
            ("External-IP", 1, |node, _| {
                node_address(node, "ExternalIP").into()
            }),
            ("OS-Image", 1, |node, _| {
                at(node, "/status/nodeInfo/osImage").into()
            }),
            ("Kernel-Version", 1, |node, _| {
                at(node, "/status/nodeInfo/kernelVersion").into()
            }),
            ("Container-Runtime", 1, |node, _| {
                at(node, "/status/nodeInfo/containerRuntimeVersion").into()
            }),
        ]),
        ("" | "events.k8s.io", "events") => builtin(&[
            ("Last Seen", 0, |event, now| {
                let fields = [
                    "/lastTimestamp",
                    "/deprecatedLastTimestamp",
                    "/series/lastObservedTime",
                    "/eventTime",
                    "/metadata/creationTimestamp",
                ];
                let time = fields
                    .into_iter()
                    .map(|field| at(event, field))
                    .find(|time| !time.is_empty());
                age_of(&time.unwrap_or_default(), now).into()
            }),
            ("Type", 0, |event, _| at(event, "/type").into()),
            ("Reason", 0, |event, _| at(event, "/reason").into()),
            ("Object", 0, |event, _| {
                let of = if event.get("regarding").is_some() {
                    "regarding"
                } else {
                    "involvedObject"
                };
                let kind = at(event, &format!("/{of}/kind")).to_lowercase();
                format!("{kind}/{}", at(event, &format!("/{of}/name"))).into()
            }),
            ("Message", 0, |event, _| {
                let note = at(event, "/note");
                if note.is_empty() {
                    at(event, "/message")
                } else {
                    note
                }
                .trim()
                .into()
            }),
            ("Name", 1, |event, _| meta::name(event).into()),
        ]),
        ("", "endpoints") => builtin(&[NAME, ("Endpoints", 0, |object, _| endpoints(object).into()), AGE]),
        ("discovery.k8s.io", "endpointslices") => builtin(&[
            NAME,
            ("AddressType", 0, |slice, _| at(slice, "/addressType").into()),
            ("Ports", 0, |slice, _| {
                let ports = items(slice, "/ports").map(|port| count(port, "/port").to_string());
                short_list(&ports.collect::<Vec<_>>(), "<unset>").into()
            }),
            ("Endpoints", 0, |slice, _| {
                let all = items(slice, "/endpoints").flat_map(|endpoint| items(endpoint, "/addresses"));
                short_list(
                    &all.filter_map(Value::as_str)
                        .map(str::to_owned)
                        .collect::<Vec<_>>(),
                    "<unset>",
                )
                .into()
            }),
            AGE,
        ]),
        ("networking.k8s.io", "ingresses") => builtin(&[
            NAME,
            ("Class", 0, |object, _| {
                or_none(at(object, "/spec/ingressClassName")).into()
            }),
            ("Hosts", 0, |object, _| {
                let hosts = items(object, "/spec/rules")
                    .map(|rule| at(rule, "/host"))
                    .filter(|host| !host.is_empty());
                short_list(&hosts.collect::<Vec<_>>(), "*").into()
            }),
            ("Address", 0, |object, _| load_balancer(object).join(",").into()),
            ("Ports", 0, |object, _| {
                if length(object, "/spec/tls") > 0 {
                    "80, 443"
                } else {
                    "80"
                }
                .into()
            }),
            AGE,
        ]),
        ("coordination.k8s.io", "leases") => builtin(&[
            NAME,
            ("Holder", 0, |lease, _| at(lease, "/spec/holderIdentity").into()),
            AGE,
        ]),
        ("networking.k8s.io", "networkpolicies") => builtin(&[
            NAME,
            ("Pod-Selector", 0, |policy, _| {
                selector(policy.pointer("/spec/podSelector")).into()
            }),
            AGE,
        ]),
        ("policy", "poddisruptionbudgets") => builtin(&[
            NAME,
            ("Min Available", 0, |budget, _| {
                or_na(budget.pointer("/spec/minAvailable"))
            }),
            ("Max Unavailable", 0, |budget, _| {
                or_na(budget.pointer("/spec/maxUnavailable"))
            }),
            ("Allowed Disruptions", 0, |budget, _| {
                count(budget, "/status/disruptionsAllowed").into()
            }),
            AGE,
        ]),
        ("rbac.authorization.k8s.io", "roles" | "clusterroles") | ("apiextensions.k8s.io", _) => {
            builtin(&[NAME, CREATED])
        }
        ("rbac.authorization.k8s.io", _) => builtin(&[
            NAME,
            ("Role", 0, |binding, _| {
                format!(
                    "{}/{}",
                    at(binding, "/roleRef/kind"),
                    at(binding, "/roleRef/name")
                )
                .into()
            }),
            AGE,
            ("Users", 1, |binding, _| subjects(binding, "User").into()),
            ("Groups", 1, |binding, _| subjects(binding, "Group").into()),
            ("ServiceAccounts", 1, |binding, _| {
                subjects(binding, "ServiceAccount").into()
            }),
        ]),
        ("admissionregistration.k8s.io", _) => builtin(&[
            NAME,
            ("Webhooks", 0, |object, _| length(object, "/webhooks").into()),
            AGE,
        ]),
        _ => builtin(&[NAME, AGE]),
    }
}

fn at(object: &Value, pointer: &str) -> String {
    object
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned()
}

fn count(object: &Value, pointer: &str) -> i64 {
    object.pointer(pointer).and_then(Value::as_i64).unwrap_or(0)
}

fn length(object: &Value, pointer: &str) -> usize {
    match object.pointer(pointer) {
        Some(Value::Array(items)) => items.len(),
        Some(Value::Object(fields)) => fields.len(),
        _ => 0,
    }
}

fn items<'a>(object: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> {
    object
        .pointer(pointer)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}

fn or_none(text: String) -> String {
    if text.is_empty() {
        "<none>".to_owned()
    } else {
        text
    }
}

fn or_na(value: Option<&Value>) -> Value {
    match value {
        Some(Value::String(text)) => text.as_str().into(),
        Some(Value::Number(number)) => number.to_string().into(),
        _ => "N/A".into(),
    }
}

fn short_list(items: &[String], empty: &str) -> String {
    match items {
        [] => empty.to_owned(),
        [a, b, c, _, ..] => format!("{a},{b},{c} + {} more...", items.len() - 3),
        few => few.join(","),
    }
}

/// A duration as kubectl shows ages: two units while that says something, one later.
pub(crate) fn age(seconds: i64) -> String {
    const MINUTE: i64 = 60;
    const HOUR: i64 = 60 * MINUTE;
    const DAY: i64 = 24 * HOUR;
    let two = |big: i64, small: i64, big_unit: &str, small_unit: &str| match (seconds % big) / small {
        0 => format!("{}{big_unit}", seconds / big),
        rest => format!("{}{big_unit}{rest}{small_unit}", seconds / big),
    };
    match seconds {
        ..0 => "<invalid>".to_owned(),
        0..120 => format!("{seconds}s"),
        120..600 => two(MINUTE, 1, "m", "s"),
        600..10_800 => format!("{}m", seconds / MINUTE),
        10_800..28_800 => two(HOUR, MINUTE, "h", "m"),
        28_800..172_800 => format!("{}h", seconds / HOUR),
        172_800..691_200 => two(DAY, HOUR, "d", "h"),
        _ if seconds < 2 * 365 * DAY => format!("{}d", seconds / DAY),
        _ if seconds < 8 * 365 * DAY => two(365 * DAY, DAY, "y", "d"),
        _ => format!("{}y", seconds / (365 * DAY)),
    }
}

fn age_of(time: &str, now: Timestamp) -> String {
    match time.parse::<Timestamp>() {
        // Times are whole seconds, so a clock that is a moment behind is no news.
        Ok(time) => age(now.duration_since(time).as_secs().max(0)),
        Err(_) => "<unknown>".to_owned(),
    }
}

fn labels(map: Option<&Value>) -> String {
    let pairs: Vec<String> = map
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    or_none(pairs.join(","))
}

fn selector(value: Option<&Value>) -> String {
    match value {
        Some(value) if value.get("matchLabels").is_none() && value.get("matchExpressions").is_none() => {
            labels(Some(value))
        }
        value => or_none(
            value
                .and_then(LabelSelector::from_object)
                .map(|all| all.to_string())
                .unwrap_or_default(),
        ),
    }
}

fn containers(object: &Value, field: &str) -> String {
    let fields: Vec<String> = items(object, "/spec/template/spec/containers")
        .map(|container| at(container, &format!("/{field}")))
        .collect();
    fields.join(",")
}

fn is_sidecar(pod: &Value, name: &str) -> bool {
    items(pod, "/spec/initContainers")
        .any(|container| at(container, "/name") == name && at(container, "/restartPolicy") == "Always")
}

fn ready_containers(pod: &Value) -> (usize, usize) {
    let sidecars = items(pod, "/spec/initContainers")
        .filter(|one| at(one, "/restartPolicy") == "Always")
        .count();
    let total = length(pod, "/spec/containers") + sidecars;
    let is_ready = |status: &&Value| {
        status.get("ready") == Some(&Value::Bool(true)) && status.pointer("/state/running").is_some()
    };
    let main = items(pod, "/status/containerStatuses").filter(is_ready).count();
    let beside = items(pod, "/status/initContainerStatuses")
        .filter(is_ready)
        .filter(|status| is_sidecar(pod, &at(status, "/name")))
        .count();
    (main + beside, total)
}

/// What a pod is doing, in one word: the worst news of its containers.
fn pod_status(pod: &Value) -> String {
    let phase = at(pod, "/status/phase");
    let given = at(pod, "/status/reason");
    let mut reason = if given.is_empty() { phase } else { given };
    let terminated = |status: &Value| -> Option<String> {
        let state = status.pointer("/state/terminated")?;
        let text = at(state, "/reason");
        Some(match (text.is_empty(), count(state, "/signal")) {
            (false, _) => text,
            (true, 0) => format!("ExitCode:{}", count(state, "/exitCode")),
            (true, signal) => format!("Signal:{signal}"),
        })
    };
    let mut initializing = false;
    for (index, status) in items(pod, "/status/initContainerStatuses").enumerate() {
        if status
            .pointer("/state/terminated")
            .is_some_and(|state| count(state, "/exitCode") == 0)
        {
            continue;
        }
        if is_sidecar(pod, &at(status, "/name")) && status.get("started") == Some(&Value::Bool(true)) {
            continue;
        }
        let waiting = at(status, "/state/waiting/reason");
        reason = match terminated(status) {
            Some(text) => format!("Init:{text}"),
            None if !waiting.is_empty() && waiting != "PodInitializing" => format!("Init:{waiting}"),
            None => format!("Init:{index}/{}", length(pod, "/spec/initContainers")),
        };
        initializing = true;
        break;
    }
    let initialized = items(pod, "/status/conditions")
        .any(|one| at(one, "/type") == "Initialized" && at(one, "/status") == "True");
    if !initializing || initialized {
        let mut running = false;
        let statuses: Vec<&Value> = items(pod, "/status/containerStatuses").collect();
        for status in statuses.into_iter().rev() {
            let waiting = at(status, "/state/waiting/reason");
            if !waiting.is_empty() {
                reason = waiting;
            } else if let Some(text) = terminated(status) {
                reason = text;
            } else if status.get("ready") == Some(&Value::Bool(true))
                && status.pointer("/state/running").is_some()
            {
                running = true;
            }
        }
        if reason == "Completed" && running {
            let ready = items(pod, "/status/conditions")
                .any(|one| at(one, "/type") == "Ready" && at(one, "/status") == "True");
            reason = if ready { "Running" } else { "NotReady" }.to_owned();
        }
    }
    match meta::is_deleting(pod) {
        true if at(pod, "/status/reason") == "NodeLost" => "Unknown".to_owned(),
        true if !matches!(at(pod, "/status/phase").as_str(), "Succeeded" | "Failed") => {
            "Terminating".to_owned()
        }
        _ => reason,
    }
}

fn restarts(pod: &Value, now: Timestamp) -> String {
    let beside =
        items(pod, "/status/initContainerStatuses").filter(|status| is_sidecar(pod, &at(status, "/name")));
    let statuses: Vec<&Value> = items(pod, "/status/containerStatuses").chain(beside).collect();
    let total: i64 = statuses.iter().map(|status| count(status, "/restartCount")).sum();
    let last = statuses
        .iter()
        .map(|status| at(status, "/lastState/terminated/finishedAt"))
        .max()
        .unwrap_or_default();
    if total == 0 || last.is_empty() {
        total.to_string()
    } else {
        format!("{total} ({} ago)", age_of(&last, now))
    }
}

fn readiness_gates(pod: &Value) -> String {
    let gates: Vec<String> = items(pod, "/spec/readinessGates")
        .map(|gate| at(gate, "/conditionType"))
        .collect();
    if gates.is_empty() {
        return "<none>".to_owned();
    }
    let met = gates.iter().filter(|gate| {
        items(pod, "/status/conditions").any(|one| at(one, "/type") == **gate && at(one, "/status") == "True")
    });
    format!("{}/{}", met.count(), gates.len())
}

fn load_balancer(object: &Value) -> Vec<String> {
    items(object, "/status/loadBalancer/ingress")
        .map(|ingress| {
            let ip = at(ingress, "/ip");
            if ip.is_empty() {
                at(ingress, "/hostname")
            } else {
                ip
            }
        })
        .filter(|address| !address.is_empty())
        .collect()
}

fn external_ip(service: &Value) -> String {
    let given: Vec<String> = items(service, "/spec/externalIPs")
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    match at(service, "/spec/type").as_str() {
        "LoadBalancer" => {
            let all = [load_balancer(service), given].concat();
            if all.is_empty() {
                "<pending>".to_owned()
            } else {
                all.join(",")
            }
        }
        "ExternalName" => at(service, "/spec/externalName"),
        _ => or_none(given.join(",")),
    }
}

fn service_ports(service: &Value) -> String {
    let ports: Vec<String> = items(service, "/spec/ports")
        .map(|port| {
            let protocol = at(port, "/protocol");
            match count(port, "/nodePort") {
                0 => format!("{}/{protocol}", count(port, "/port")),
                node => format!("{}:{node}/{protocol}", count(port, "/port")),
            }
        })
        .collect();
    or_none(ports.join(","))
}

fn job_status(job: &Value) -> &'static str {
    let condition = |kind: &str| {
        items(job, "/status/conditions").any(|one| at(one, "/type") == kind && at(one, "/status") == "True")
    };
    match () {
        () if condition("Complete") => "Complete",
        () if condition("Failed") => "Failed",
        () if meta::is_deleting(job) => "Terminating",
        () if condition("Suspended") => "Suspended",
        () if condition("FailureTarget") => "FailureTarget",
        () => "Running",
    }
}

fn node_status(node: &Value) -> String {
    let ready = items(node, "/status/conditions").find(|one| at(one, "/type") == "Ready");
    let mut status = match ready.map(|one| at(one, "/status")).as_deref() {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    if node.pointer("/spec/unschedulable") == Some(&Value::Bool(true)) {
        status.push_str(",SchedulingDisabled");
    }
    status
}

fn node_roles(node: &Value) -> String {
    let labels = node
        .pointer("/metadata/labels")
        .and_then(Value::as_object)
        .into_iter()
        .flatten();
    let roles: Vec<&str> = labels
        .filter_map(|(key, _)| key.strip_prefix("node-role.kubernetes.io/"))
        .collect();
    or_none(roles.join(","))
}

fn node_address(node: &Value, kind: &str) -> String {
    let found = items(node, "/status/addresses").find(|address| at(address, "/type") == kind);
    or_none(found.map(|address| at(address, "/address")).unwrap_or_default())
}

fn endpoints(object: &Value) -> String {
    let all: Vec<String> = items(object, "/subsets")
        .flat_map(|subset| {
            let ports: Vec<i64> = items(subset, "/ports").map(|port| count(port, "/port")).collect();
            items(subset, "/addresses").flat_map(move |address| {
                let ip = at(address, "/ip");
                match ports.is_empty() {
                    true => vec![ip],
                    false => ports.iter().map(|port| format!("{ip}:{port}")).collect(),
                }
            })
        })
        .collect();
    short_list(&all, "<none>")
}

fn subjects(binding: &Value, kind: &str) -> String {
    let of_kind = items(binding, "/subjects").filter(|subject| at(subject, "/kind") == kind);
    let names: Vec<String> = of_kind
        .map(|subject| match at(subject, "/namespace").as_str() {
            "" => at(subject, "/name"),
            namespace => format!("{namespace}/{}", at(subject, "/name")),
        })
        .collect();
    names.join(", ")
}

/// The subset of JSONPath that printer columns use: fields, indexes, `[*]` and `[?(@.field=="text")]`.
fn json_path(object: &Value, path: &str) -> Option<Value> {
    let mut place = object;
    let mut rest = path;
    while !rest.is_empty() {
        if let Some(tail) = rest.strip_prefix('[') {
            let (inside, tail) = split_bracket(tail)?;
            rest = tail;
            place = match inside
                .strip_prefix("?(@.")
                .and_then(|filter| filter.strip_suffix(')'))
            {
                Some(filter) => {
                    let (field, wanted) = filter.split_once("==")?;
                    let wanted = wanted.trim().trim_matches(['"', '\'']);
                    let field = format!("/{}", field.trim().replace('.', "/"));
                    place.as_array()?.iter().find(|item| at(item, &field) == wanted)?
                }
                None if inside == "*" => {
                    let all = place.as_array()?.iter();
                    let found: Vec<Value> = all.filter_map(|item| json_path(item, rest)).collect();
                    return Some(found.into());
                }
                None => match inside.trim_matches(['"', '\'']) {
                    quoted if quoted.len() < inside.len() => place.get(quoted)?,
                    index => place.get(index.parse::<usize>().ok()?)?,
                },
            };
        } else {
            rest = rest.trim_start_matches('.');
            // A backslash keeps a dot in a field's name, as in labels.
            let mut name = String::new();
            let mut characters = rest.char_indices();
            let mut end = rest.len();
            while let Some((index, character)) = characters.next() {
                match character {
                    '\\' => name.extend(characters.next().map(|(_, escaped)| escaped)),
                    '.' | '[' => {
                        end = index;
                        break;
                    }
                    other => name.push(other),
                }
            }
            rest = rest.get(end..)?;
            if !name.is_empty() {
                place = place.get(&name)?;
            }
        }
    }
    Some(place.clone())
}

fn split_bracket(text: &str) -> Option<(&str, &str)> {
    let mut quote = None;
    for (index, character) in text.char_indices() {
        match (character, quote) {
            (']', None) => return Some((&text[..index], &text[index + 1..])),
            ('"' | '\'', None) => quote = Some(character),
            (_, Some(open)) if open == character => quote = None,
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_read_as_kubectl_prints_them() {
        for (seconds, expected) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (150, "2m30s"),
            (601, "10m"),
            (7200, "120m"),
            (10_900, "3h1m"),
            (90_000, "25h"),
            (200_000, "2d7h"),
            (864_000, "10d"),
            (70_000_000, "2y80d"),
        ] {
            assert_eq!(age(seconds), expected, "{seconds}");
        }
    }

    #[test]
    fn printer_columns_find_fields_items_and_conditions() {
        let object = json!({
            "metadata": { "labels": { "a.b/c": "x" } },
            "spec": { "list": [{ "name": "one" }, { "name": "two" }] },
            "status": { "conditions": [{ "type": "Ready", "status": "True" }] },
        });
        for (path, expected) in [
            (".spec.list[1].name", json!("two")),
            (".status.conditions[?(@.type==\"Ready\")].status", json!("True")),
            (".spec.list[*].name", json!(["one", "two"])),
            (".metadata.labels.a\\.b/c", json!("x")),
            (".metadata.labels['a.b/c']", json!("x")),
        ] {
            assert_eq!(json_path(&object, path), Some(expected), "{path}");
        }
        assert_eq!(json_path(&object, ".spec.missing[0]"), None);
    }

    #[test]
    fn a_pod_shows_the_worst_news_of_its_containers() {
        let status =
            |containers: Value| json!({ "status": { "phase": "Running", "containerStatuses": containers } });
        for (pod, expected) in [
            (json!({ "status": { "phase": "Pending" } }), "Pending"),
            (
                status(json!([{ "ready": true, "state": { "running": {} } }])),
                "Running",
            ),
            (
                status(json!([{ "state": { "waiting": { "reason": "CrashLoopBackOff" } } }])),
                "CrashLoopBackOff",
            ),
            (
                status(json!([{ "state": { "terminated": { "exitCode": 3 } } }])),
                "ExitCode:3",
            ),
            (
                json!({ "spec": { "initContainers": [{}, {}] }, "status": { "phase": "Pending",
                    "initContainerStatuses": [{ "state": { "terminated": { "exitCode": 0 } } }, { "state": { "running": {} } }] } }),
                "Init:1/2",
            ),
        ] {
            assert_eq!(pod_status(&pod), expected);
        }
    }
}
