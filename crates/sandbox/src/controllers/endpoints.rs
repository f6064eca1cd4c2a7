//! Which pods are behind a Service with a selector: its EndpointSlices, and its Endpoints for older clients.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Endpoints, Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Map, Value, json};

use super::plan::{Manner, Plan, View, controlled_by, controller_of, merge_patch, short_hash};
use super::pods::{is_finished, is_ready, is_terminating};
use super::snapshot::{Key, Resource, Target};

const SLICE_MANAGER: &str = "endpointslice-controller.k8s.io";
const ENDPOINTS_MANAGER: &str = "endpoint-controller";
/// As in Kubernetes: keeps a single change small.
const ENDPOINTS_PER_SLICE: usize = 100;

pub(crate) fn plan(view: &View<'_>, plan: &mut Plan) {
    let mut pods: BTreeMap<&str, Vec<&Pod>> = BTreeMap::new();
    for (key, pod) in &view.snapshot.pods {
        pods.entry(&key.namespace).or_default().push(pod);
    }
    for (key, service) in &view.snapshot.services {
        let Some(selector) = selector(service) else {
            continue;
        };
        if service.metadata.deletion_timestamp.is_some() {
            continue;
        }
        let selected = |pod: &&&Pod| {
            let labels = pod.metadata.labels.as_ref();
            selector
                .iter()
                .all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
        };
        let in_namespace = pods.get(key.namespace.as_str()).map_or(&[][..], Vec::as_slice);
        let mut members: Vec<Member<'_>> = in_namespace
            .iter()
            .filter(selected)
            .filter_map(|pod| Member::of(view, service, pod))
            .collect();
        members.sort_by_key(|member| member.ip.parse::<std::net::IpAddr>().ok());
        plan_slices(view, plan, service, &members);
        plan_endpoints(view, plan, service, &members);
    }
    // Endpoints that we made do not outlive their Service. They have no owner that would take them along.
    for (key, endpoints) in &view.snapshot.endpoints {
        if !view.snapshot.services.contains_key(key) && is_ours(&endpoints.metadata) {
            let target = Target::of(&**endpoints);
            let service = Target {
                resource: Resource::of::<Service>(),
                key: key.clone(),
            };
            let unless = vec![super::plan::Reference::any(service)];
            plan.delete_unless(
                &target,
                target.clone(),
                &endpoints.metadata,
                Manner::Background,
                unless,
            );
        }
    }
}

/// The selector, if this is a Service whose endpoints are ours to find.
pub(crate) fn selector(service: &Service) -> Option<&BTreeMap<String, String>> {
    let spec = service.spec.as_ref()?;
    let selector = spec.selector.as_ref().filter(|selector| !selector.is_empty())?;
    (spec.type_.as_deref() != Some("ExternalName")).then_some(selector)
}

fn is_ours(metadata: &ObjectMeta) -> bool {
    let label = metadata
        .labels
        .as_ref()
        .and_then(|labels| labels.get("endpoints.kubernetes.io/managed-by"));
    label.is_some_and(|manager| manager == ENDPOINTS_MANAGER)
}

/// A pod behind a Service.
struct Member<'a> {
    pod: &'a Pod,
    ip: &'a str,
    ready: bool,
    serving: bool,
    hostname: Option<&'a str>,
    zone: Option<&'a String>,
    ports: Vec<Value>,
}

impl<'a> Member<'a> {
    /// None for a pod that has no address yet, or has ended.
    fn of(view: &View<'a>, service: &'a Service, pod: &'a Pod) -> Option<Self> {
        let (service_spec, spec) = (service.spec.as_ref()?, pod.spec.as_ref()?);
        let ip = pod
            .status
            .as_ref()?
            .pod_ip
            .as_deref()
            .filter(|ip| !ip.is_empty())?;
        if is_finished(pod) {
            return None;
        }
        let serving = is_ready(pod);
        let all = service_spec.publish_not_ready_addresses == Some(true);
        let node = spec
            .node_name
            .as_deref()
            .and_then(|node| view.snapshot.nodes.get(&Key::new("", node)));
        let in_subdomain = spec.subdomain.is_some() && spec.subdomain == service.metadata.name;
        Some(Self {
            pod,
            ip,
            ready: all || (serving && !is_terminating(pod)),
            serving,
            hostname: spec.hostname.as_deref().filter(|_| in_subdomain),
            zone: node.and_then(|node| node.metadata.labels.as_ref()?.get("topology.kubernetes.io/zone")),
            ports: service_spec
                .ports
                .iter()
                .flatten()
                .filter_map(|port| resolve(port, pod))
                .collect(),
        })
    }

    fn target_reference(&self) -> Value {
        let ObjectMeta {
            namespace, name, uid, ..
        } = &self.pod.metadata;
        json!({ "kind": "Pod", "namespace": namespace, "name": name, "uid": uid })
    }

    fn node(&self) -> Option<&str> {
        self.pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref())
    }
}

/// The port of this pod that a Service's port means. None if the pod has no port of that name.
fn resolve(port: &ServicePort, pod: &Pod) -> Option<Value> {
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    let number = match &port.target_port {
        None => port.port,
        Some(IntOrString::Int(0)) => port.port,
        Some(IntOrString::Int(number)) => *number,
        Some(IntOrString::String(name)) => {
            let spec = pod.spec.as_ref()?;
            let sidecars = spec.init_containers.iter().flatten();
            let sidecars = sidecars.filter(|container| container.restart_policy.as_deref() == Some("Always"));
            let ports = spec
                .containers
                .iter()
                .chain(sidecars)
                .flat_map(|container| container.ports.iter().flatten());
            let mut named = ports.filter(|port| {
                port.name.as_ref() == Some(name) && port.protocol.as_deref().unwrap_or("TCP") == protocol
            });
            named.next()?.container_port
        }
    };
    let mut resolved = json!({
        "name": port.name.as_deref().unwrap_or_default(),
        "port": number,
        "protocol": protocol,
    });
    if let Some(protocol) = &port.app_protocol {
        resolved["appProtocol"] = protocol.as_str().into();
    }
    Some(resolved)
}

fn is_headless(service: &Service) -> bool {
    service
        .spec
        .as_ref()
        .is_some_and(|spec| spec.cluster_ip.as_deref() == Some("None"))
}

fn labels(service: &Service) -> Map<String, Value> {
    let copied = service.metadata.labels.iter().flatten();
    let mut labels: Map<_, _> = copied
        .map(|(key, value)| (key.clone(), value.as_str().into()))
        .collect();
    if is_headless(service) {
        labels.insert("service.kubernetes.io/headless".to_owned(), "".into());
    }
    labels
}

fn plan_slices(view: &View<'_>, plan: &mut Plan, service: &Service, members: &[Member<'_>]) {
    let scope = Target::of(service);
    // Pods may resolve one named port to different numbers; a slice has one set of ports.
    let mut groups: BTreeMap<String, (&[Value], Vec<Value>)> = BTreeMap::new();
    for member in members {
        let group = groups
            .entry(json!(member.ports).to_string())
            .or_insert((&member.ports, Vec::new()));
        let mut endpoint = json!({
            "addresses": [member.ip],
            "conditions": {
                "ready": member.ready,
                "serving": member.serving,
                "terminating": is_terminating(member.pod),
            },
            "targetRef": member.target_reference(),
        });
        let optional = [
            ("nodeName", member.node()),
            ("hostname", member.hostname),
            ("zone", member.zone.map(String::as_str)),
        ];
        for (field, value) in optional {
            if let Some(value) = value {
                endpoint[field] = value.into();
            }
        }
        group.1.push(endpoint);
    }
    let mut wanted: Vec<(Value, Vec<Value>)> = groups
        .into_values()
        .flat_map(|(ports, endpoints)| {
            let chunks: Vec<_> = endpoints
                .chunks(ENDPOINTS_PER_SLICE)
                .map(<[Value]>::to_vec)
                .collect();
            chunks.into_iter().map(move |chunk| (json!(ports), chunk))
        })
        .collect();
    if wanted.is_empty() {
        // An empty slice tells clients that the Service exists and has nobody.
        wanted.push((json!([]), Vec::new()));
    }
    let mut labels = labels(service);
    labels.insert(
        "endpointslice.kubernetes.io/managed-by".to_owned(),
        SLICE_MANAGER.into(),
    );
    labels.insert(
        "kubernetes.io/service-name".to_owned(),
        scope.key.name.as_str().into(),
    );
    let slices = wanted.into_iter().map(|(ports, endpoints)| {
        json!({
            "metadata": { "labels": labels },
            "addressType": "IPv4",
            "endpoints": endpoints,
            "ports": ports,
        })
    });
    plan_owned_slices(view, plan, &scope, &service.metadata, slices.collect());
}

/// Makes the slices that `owner` controls read as wanted: changed ones are patched, missing ones made, others deleted.
pub(crate) fn plan_owned_slices(
    view: &View<'_>,
    plan: &mut Plan,
    owner: &Target,
    metadata: &ObjectMeta,
    wanted: Vec<Value>,
) {
    let resource = Resource::of::<EndpointSlice>();
    let names: Vec<String> = (0..wanted.len())
        .map(|index| {
            format!(
                "{}-{}",
                owner.key.name,
                &short_hash(&json!([metadata.uid, index]))[..5]
            )
        })
        .collect();
    for (name, mut wanted) in names.iter().zip(wanted) {
        let key = Key::new(&owner.key.namespace, name);
        let Some(current) = view.snapshot.endpoint_slices.get(&key) else {
            wanted["apiVersion"] = json!(resource.api_version);
            wanted["kind"] = json!(resource.kind);
            wanted["metadata"]["name"] = json!(name);
            wanted["metadata"]["namespace"] = json!(owner.key.namespace);
            wanted["metadata"]["ownerReferences"] = json!([controlled_by(owner, metadata)]);
            plan.create(owner, resource.clone(), wanted);
            continue;
        };
        if current.metadata.deletion_timestamp.is_some() {
            continue;
        }
        let annotations = wanted["metadata"].get("annotations").is_some();
        let current = json!({
            "metadata": {
                "labels": current.metadata.labels,
                "annotations": annotations.then_some(&current.metadata.annotations),
            },
            "addressType": current.address_type,
            "endpoints": current.endpoints,
            "ports": current.ports.as_deref().unwrap_or_default(),
        });
        if let Some(patch) = merge_patch(&current, &wanted) {
            let target = Target {
                resource: resource.clone(),
                key,
            };
            plan.patch(owner, target, patch);
        }
    }
    let in_namespace = view.snapshot.endpoint_slices.values();
    for slice in in_namespace.filter(|slice| slice.metadata.namespace.as_ref() == Some(&owner.key.namespace))
    {
        let controlled =
            controller_of(&slice.metadata).is_some_and(|owner| Some(&owner.uid) == metadata.uid.as_ref());
        let named = slice
            .metadata
            .name
            .as_ref()
            .is_some_and(|name| names.contains(name));
        if controlled && !named && slice.metadata.deletion_timestamp.is_none() {
            plan.delete(owner, Target::of(&**slice), &slice.metadata, Manner::Background);
        }
    }
}

fn plan_endpoints(view: &View<'_>, plan: &mut Plan, service: &Service, members: &[Member<'_>]) {
    let scope = Target::of(service);
    let all = service
        .spec
        .as_ref()
        .and_then(|spec| spec.publish_not_ready_addresses)
        == Some(true);
    let mut groups: BTreeMap<String, Subset> = BTreeMap::new();
    for member in members.iter().filter(|member| all || !is_terminating(member.pod)) {
        let ports: Vec<Value> = member.ports.iter().map(subset_port).collect();
        let subset = groups.entry(json!(ports).to_string()).or_insert_with(|| Subset {
            ports,
            ..Subset::default()
        });
        let mut address = json!({ "ip": member.ip, "targetRef": member.target_reference() });
        for (field, value) in [("nodeName", member.node()), ("hostname", member.hostname)] {
            if let Some(value) = value {
                address[field] = value.into();
            }
        }
        let list = if member.ready {
            &mut subset.addresses
        } else {
            &mut subset.not_ready_addresses
        };
        list.push(address);
    }
    let complete = |subset: &Subset| !subset.ports.is_empty() || is_headless(service);
    let subsets: Vec<Subset> = groups.into_values().filter(complete).collect();
    let mut labels = labels(service);
    labels.insert(
        "endpoints.kubernetes.io/managed-by".to_owned(),
        ENDPOINTS_MANAGER.into(),
    );
    let resource = Resource::of::<Endpoints>();
    let Some(current) = view.snapshot.endpoints.get(&scope.key) else {
        let object = json!({
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": { "name": scope.key.name, "namespace": scope.key.namespace, "labels": labels },
            "subsets": subsets,
        });
        return plan.create(&scope, resource, object);
    };
    let wanted = json!({ "metadata": { "labels": labels }, "subsets": subsets });
    let current = json!({
        "metadata": { "labels": current.metadata.labels },
        "subsets": current.subsets.as_deref().unwrap_or_default(),
    });
    if let Some(patch) = merge_patch(&current, &wanted) {
        let target = Target {
            resource,
            key: scope.key.clone(),
        };
        plan.patch(&scope, target, patch);
    }
}

/// Pods whose ports have the same numbers.
#[derive(Default, serde::Serialize)]
#[serde(rename_all = "camelCase")]
struct Subset {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    addresses: Vec<Value>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_ready_addresses: Vec<Value>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ports: Vec<Value>,
}

/// Endpoints leave out the empty name.
fn subset_port(port: &Value) -> Value {
    let mut port = port.clone();
    if port["name"] == ""
        && let Some(fields) = port.as_object_mut()
    {
        fields.remove("name");
    }
    port
}
