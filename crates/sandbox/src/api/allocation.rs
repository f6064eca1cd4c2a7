//! ClusterIPs and node ports of Services: chosen before a write, reserved until it is over.
//!
//! Between the choice and the moment at which the store shows it, webhooks may take their time. A [`Reservation`]
//! keeps others from choosing the same meanwhile, without a lock that everybody would wait for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};

use super::Cluster;
use super::error::{ApiError, Cause, Result};
use super::registry::meta;
use crate::controllers::addresses::{allocate_cluster_ip, allocate_node_port};
use crate::store::{Key, ResourceId};

/// What Services that are being written will have, by number of the write.
#[derive(Debug, Default)]
pub(crate) struct Reserved(Mutex<(u64, BTreeMap<u64, Held>)>);

#[derive(Debug)]
struct Held {
    service: Key,
    address: Option<Ipv4Addr>,
    ports: BTreeSet<u16>,
}

impl Reserved {
    fn lock(&self) -> MutexGuard<'_, (u64, BTreeMap<u64, Held>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One write's claim; dropped once the store shows it, or once the write has failed.
#[must_use]
pub(crate) struct Reservation {
    cluster: Arc<Cluster>,
    number: u64,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.cluster.reserved.lock().1.remove(&self.number);
    }
}

/// Gives a Service its ClusterIP and node ports, where it needs them and has none.
pub(crate) fn allocate(cluster: &Arc<Cluster>, service: &mut Value) -> Result<Option<Reservation>> {
    let Some(range) = cluster.options.services else {
        return Ok(None);
    };
    let name = meta::name(service).to_owned();
    let key = Key::new(meta::namespace(service), name.as_str());
    let seed = meta::uid(service)
        .bytes()
        .fold(0_u64, |seed, byte| seed.wrapping_mul(31) + u64::from(byte));
    let refuse = |field: &str, value: &Value, error: &str| {
        let message = format!("Invalid value: {value}: {error}");
        let cause = Cause {
            reason: "FieldValueInvalid".to_owned(),
            message,
            field: field.to_owned(),
        };
        ApiError::invalid("", "Service", &name, vec![cause])
    };

    // In this order: a write that is no longer reserved is in the store.
    let mut reserved = cluster.reserved.lock();
    let stored = cluster.store.list(&ResourceId::from("services")).objects;
    let held = || reserved.1.values().filter(|held| held.service != key);
    let others = || {
        let others = stored.iter().filter(|(other, _)| **other != key);
        others.map(|(_, stored)| &stored.value)
    };
    let taken_addresses: BTreeSet<Ipv4Addr> = others()
        .filter_map(|other| other.pointer("/spec/clusterIP")?.as_str()?.parse().ok())
        .chain(held().filter_map(|held| held.address))
        .collect();
    let mut taken_ports: BTreeSet<u16> = others()
        .flat_map(ports)
        .filter_map(|port| u16::try_from(port.get("nodePort")?.as_u64()?).ok())
        .chain(held().flat_map(|held| held.ports.iter().copied()))
        .collect();

    let mut claim = Held {
        service: key.clone(),
        address: None,
        ports: BTreeSet::new(),
    };
    let spec = meta::child(service, "spec");
    let text = |field: &str| spec.get(field).and_then(Value::as_str).unwrap_or_default();
    let (kind, given) = (text("type").to_owned(), text("clusterIP").to_owned());
    if kind != "ExternalName" && given != "None" {
        // An address of another family is left to validation.
        let wanted: Option<Ipv4Addr> = given.parse().ok();
        if wanted.is_some() || given.is_empty() {
            let address = allocate_cluster_ip(range, wanted, &taken_addresses, seed).map_err(|error| {
                let error = format!("failed to allocate IP {given}: {error}");
                refuse("spec.clusterIPs[0]", &given.as_str().into(), &error)
            })?;
            spec.insert("clusterIP".to_owned(), address.to_string().into());
            spec.insert("clusterIPs".to_owned(), json!([address.to_string()]));
            claim.address = Some(address);
        }
    }
    if has_node_ports(spec) {
        let unasked = spec.get("allocateLoadBalancerNodePorts") != Some(&Value::Bool(false));
        let ports = spec.get_mut("ports").and_then(Value::as_array_mut);
        let mut ports: Vec<&mut Value> = ports.into_iter().flatten().collect();
        // One number that is served over several protocols has one node port, whichever of them names it.
        let mut by_number: BTreeMap<String, u16> = BTreeMap::new();
        // What a manifest names goes first, lest the port of another entry is chosen for this one.
        let named = |port: &Value| {
            port.get("nodePort")
                .and_then(Value::as_u64)
                .filter(|port| *port > 0)
        };
        for naming in [true, false] {
            for (index, port) in ports.iter_mut().enumerate() {
                let wanted = named(port);
                if !port.is_object() || wanted.is_some() != naming || !(naming || unasked) {
                    continue;
                }
                let number = port["port"].to_string();
                let wanted = wanted.map(|port| u16::try_from(port).unwrap_or(0));
                let known = by_number.get(&number).copied();
                let chosen = match (known, wanted) {
                    (Some(known), None) => known,
                    (Some(known), Some(wanted)) if known == wanted => known,
                    _ => allocate_node_port(wanted, &taken_ports, seed).map_err(|error| {
                        let field = format!("spec.ports[{index}].nodePort");
                        refuse(&field, &port["nodePort"], &error.to_string())
                    })?,
                };
                taken_ports.insert(chosen);
                claim.ports.insert(chosen);
                by_number.insert(number, chosen);
                port["nodePort"] = chosen.into();
            }
        }
    }
    reserved.0 += 1;
    let number = reserved.0;
    reserved.1.insert(number, claim);
    Ok(Some(Reservation {
        cluster: cluster.clone(),
        number,
    }))
}

/// Clients that send back less than they read keep their addresses and ports.
pub(crate) fn keep(current: &Value, service: &mut Value) {
    let same_type = service.pointer("/spec/type") == current.pointer("/spec/type");
    let headless = current.pointer("/spec/clusterIP").and_then(Value::as_str) == Some("None");
    let external = service.pointer("/spec/type").and_then(Value::as_str) == Some("ExternalName");
    for field in ["clusterIP", "clusterIPs"] {
        let given = service
            .pointer(&format!("/spec/{field}"))
            .is_some_and(|value| !value.is_null() && value != "");
        if !given
            && (same_type || !headless)
            && !external
            && let Some(value) = current.pointer(&format!("/spec/{field}"))
        {
            meta::child(service, "spec").insert(field.to_owned(), value.clone());
        }
    }
    let has = |value: &Value| {
        value
            .get("spec")
            .and_then(Value::as_object)
            .is_some_and(has_node_ports)
    };
    if !has(current) {
        return;
    }
    if !has(service) {
        // Whoever changes the type alone doesn't ask for the node ports that came with the old one.
        let before: BTreeSet<u64> = ports(current)
            .filter_map(|port| port.get("nodePort")?.as_u64())
            .collect();
        let after = meta::child(service, "spec")
            .get_mut("ports")
            .and_then(Value::as_array_mut);
        for port in after.into_iter().flatten().filter_map(Value::as_object_mut) {
            if port
                .get("nodePort")
                .and_then(Value::as_u64)
                .is_some_and(|port| before.contains(&port))
            {
                port.remove("nodePort");
            }
        }
        return;
    }
    let same = |a: &Value, b: &Value, field: &str, default: &Value| {
        a.get(field).unwrap_or(default) == b.get(field).unwrap_or(default)
    };
    let wanting = meta::child(service, "spec")
        .get_mut("ports")
        .and_then(Value::as_array_mut);
    for port in wanting.into_iter().flatten().filter(|port| port.is_object()) {
        if port.get("nodePort").and_then(Value::as_u64).unwrap_or(0) != 0 {
            continue;
        }
        let mut before = ports(current).filter(|before| {
            same(before, port, "port", &Value::Null) && same(before, port, "protocol", &"TCP".into())
        });
        if let Some(known) = before.find_map(|before| before.get("nodePort")) {
            port["nodePort"] = known.clone();
        }
    }
}

fn has_node_ports(spec: &serde_json::Map<String, Value>) -> bool {
    let kind = spec.get("type").and_then(Value::as_str).unwrap_or_default();
    matches!(kind, "NodePort" | "LoadBalancer")
}

fn ports(service: &Value) -> impl Iterator<Item = &Value> {
    let ports = service.pointer("/spec/ports").and_then(Value::as_array);
    ports.into_iter().flatten()
}
