//! Generates the sandbox's table of Kubernetes types, `crates/sandbox/src/schema/table.txt`.
//!
//! Two sources, because neither knows everything: the OpenAPI definitions have the JSON names, types, required fields,
//! list types and merge keys; the prost structs of the crate `k8s-pb` have the protobuf tags. Which optional scalars
//! are pointers in Go (so that zero is a value and not absence) is in neither and is listed here.
//!
//! The format of the table is described at the top of the table itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// Everything that these kinds refer to is in the table, and nothing else.
const KINDS: &[&str] = &[
    "admissionregistration.v1.MutatingWebhookConfiguration",
    "admissionregistration.v1.ValidatingWebhookConfiguration",
    "apiextensions.v1.CustomResourceDefinition",
    "apiregistration.v1.APIService",
    "apps.v1.ControllerRevision",
    "apps.v1.DaemonSet",
    "apps.v1.Deployment",
    "apps.v1.ReplicaSet",
    "apps.v1.StatefulSet",
    "authentication.v1.SelfSubjectReview",
    "authentication.v1.TokenRequest",
    "authentication.v1.TokenReview",
    "authorization.v1.LocalSubjectAccessReview",
    "authorization.v1.SelfSubjectAccessReview",
    "authorization.v1.SelfSubjectRulesReview",
    "authorization.v1.SubjectAccessReview",
    "autoscaling.v1.Scale",
    "batch.v1.CronJob",
    "batch.v1.Job",
    "coordination.v1.Lease",
    "core.v1.Binding",
    "core.v1.ConfigMap",
    "core.v1.Endpoints",
    "core.v1.Event",
    "core.v1.LimitRange",
    "core.v1.Namespace",
    "core.v1.Node",
    "core.v1.PersistentVolumeClaim",
    "core.v1.Pod",
    "core.v1.ResourceQuota",
    "core.v1.Secret",
    "core.v1.Service",
    "core.v1.ServiceAccount",
    "discovery.v1.EndpointSlice",
    "events.v1.Event",
    "meta.v1.DeleteOptions",
    "meta.v1.Status",
    "networking.v1.Ingress",
    "networking.v1.IngressClass",
    "networking.v1.NetworkPolicy",
    "policy.v1.Eviction",
    "policy.v1.PodDisruptionBudget",
    "rbac.v1.ClusterRole",
    "rbac.v1.ClusterRoleBinding",
    "rbac.v1.Role",
    "rbac.v1.RoleBinding",
    "scheduling.v1.PriorityClass",
    "storage.v1.StorageClass",
];

/// Definitions with a JSON form of their own, which the table treats as scalars.
const SPECIAL: &[(&str, &str)] = &[
    ("meta.v1.Time", "time"),
    ("meta.v1.MicroTime", "microtime"),
    ("meta.v1.FieldsV1", "raw"),
    ("apiextensions.v1.JSON", "raw"),
    ("apiextensions.v1.JSONSchemaPropsOrArray", "schemas"),
    ("apiextensions.v1.JSONSchemaPropsOrBool", "schemaorbool"),
    ("apiextensions.v1.JSONSchemaPropsOrStringArray", "schemaorstrings"),
    ("resource.Quantity", "quantity"),
    ("runtime.RawExtension", "raw"),
    ("intstr.IntOrString", "intorstring"),
];

/// Optional numbers and booleans that are plain values in Go: there, zero means absent.
const VALUES: &[&str] = &[
    "*.minReadySeconds",
    "*Status.availableReplicas",
    "*Status.currentReplicas",
    "*Status.fullyLabeledReplicas",
    "*Status.numberAvailable",
    "*Status.numberUnavailable",
    "*Status.observedGeneration",
    "*Status.readyReplicas",
    "*Status.replicas",
    "*Status.unavailableReplicas",
    "*Status.updatedNumberScheduled",
    "*Status.updatedReplicas",
    "apiextensions.v1.CustomResourceColumnDefinition.priority",
    "apiextensions.v1.CustomResourceDefinitionSpec.preserveUnknownFields",
    "apiextensions.v1.CustomResourceDefinitionVersion.deprecated",
    "apiextensions.v1.JSONSchemaProps.exclusiveMaximum",
    "apiextensions.v1.JSONSchemaProps.exclusiveMinimum",
    "apiextensions.v1.JSONSchemaProps.nullable",
    "apiextensions.v1.JSONSchemaProps.uniqueItems",
    "apiextensions.v1.JSONSchemaProps.x-kubernetes-embedded-resource",
    "apiextensions.v1.JSONSchemaProps.x-kubernetes-int-or-string",
    "apiregistration.v1.APIServiceSpec.insecureSkipTLSVerify",
    "apps.v1.DeploymentSpec.paused",
    "apps.v1.StatefulSetOrdinals.start",
    "authentication.v1.TokenReviewStatus.authenticated",
    "authorization.v1.SubjectAccessReviewStatus.denied",
    "batch.v1.JobStatus.active",
    "batch.v1.JobStatus.failed",
    "batch.v1.JobStatus.succeeded",
    "core.v1.AWSElasticBlockStoreVolumeSource.partition",
    "core.v1.AWSElasticBlockStoreVolumeSource.readOnly",
    "core.v1.AzureFileVolumeSource.readOnly",
    "core.v1.CephFSVolumeSource.readOnly",
    "core.v1.CinderVolumeSource.readOnly",
    "core.v1.Container.stdin",
    "core.v1.Container.stdinOnce",
    "core.v1.Container.tty",
    "core.v1.ContainerImage.sizeBytes",
    "core.v1.ContainerPort.hostPort",
    "core.v1.ContainerStateTerminated.signal",
    "core.v1.EphemeralContainer.stdin",
    "core.v1.EphemeralContainer.stdinOnce",
    "core.v1.EphemeralContainer.tty",
    "core.v1.Event.count",
    "core.v1.EventSeries.count",
    "core.v1.FCVolumeSource.readOnly",
    "core.v1.FlexVolumeSource.readOnly",
    "core.v1.GCEPersistentDiskVolumeSource.partition",
    "core.v1.GCEPersistentDiskVolumeSource.readOnly",
    "core.v1.GlusterfsVolumeSource.readOnly",
    "core.v1.ISCSIVolumeSource.chapAuthDiscovery",
    "core.v1.ISCSIVolumeSource.chapAuthSession",
    "core.v1.ISCSIVolumeSource.readOnly",
    "core.v1.NFSVolumeSource.readOnly",
    "core.v1.NodeSpec.unschedulable",
    "core.v1.PersistentVolumeClaimVolumeSource.readOnly",
    "core.v1.PodCondition.observedGeneration",
    "core.v1.PodSpec.hostIPC",
    "core.v1.PodSpec.hostNetwork",
    "core.v1.PodSpec.hostPID",
    "core.v1.PortworxVolumeSource.readOnly",
    "core.v1.Probe.failureThreshold",
    "core.v1.Probe.initialDelaySeconds",
    "core.v1.Probe.periodSeconds",
    "core.v1.Probe.successThreshold",
    "core.v1.Probe.timeoutSeconds",
    "core.v1.QuobyteVolumeSource.readOnly",
    "core.v1.RBDVolumeSource.readOnly",
    "core.v1.ScaleIOVolumeSource.readOnly",
    "core.v1.ScaleIOVolumeSource.sslEnabled",
    "core.v1.ServicePort.nodePort",
    "core.v1.ServiceSpec.healthCheckNodePort",
    "core.v1.ServiceSpec.publishNotReadyAddresses",
    "core.v1.StorageOSVolumeSource.readOnly",
    "core.v1.VolumeMount.readOnly",
    "core.v1.VolumeMountStatus.readOnly",
    "events.v1.Event.deprecatedCount",
    "meta.v1.Condition.observedGeneration",
    "meta.v1.ObjectMeta.generation",
    "meta.v1.Status.code",
    "meta.v1.StatusDetails.retryAfterSeconds",
    "networking.v1.ServiceBackendPort.number",
    "scheduling.v1.PriorityClass.globalDefault",
];

/// Optional strings that are pointers in Go and where the empty string means something.
const POINTERS: &[&str] = &[
    "coordination.v1.LeaseSpec.holderIdentity",
    "coordination.v1.LeaseSpec.preferredHolder",
    "core.v1.EndpointAddress.nodeName",
    "core.v1.EndpointPort.appProtocol",
    "core.v1.GRPCAction.service",
    "core.v1.HostPathVolumeSource.type",
    "core.v1.PersistentVolumeClaimSpec.storageClassName",
    "core.v1.PersistentVolumeClaimSpec.volumeAttributesClassName",
    "core.v1.PodDNSConfigOption.value",
    "core.v1.ServicePort.appProtocol",
    "core.v1.TypedLocalObjectReference.apiGroup",
    "core.v1.TypedObjectReference.apiGroup",
    "discovery.v1.Endpoint.nodeName",
    "discovery.v1.Endpoint.zone",
    "discovery.v1.EndpointPort.appProtocol",
    "discovery.v1.EndpointPort.name",
    "meta.v1.Preconditions.resourceVersion",
    "meta.v1.Preconditions.uid",
    "networking.v1.IngressSpec.ingressClassName",
];

/// Defaults that a list needs to find its elements (`x-kubernetes-list-map-keys`). All others are in code.
const KEY_DEFAULTS: &[(&str, &str)] = &[
    ("core.v1.ContainerPort.protocol", "TCP"),
    ("core.v1.ServicePort.protocol", "TCP"),
];

const HEADER: &str = "\
# Kubernetes types as the sandbox's API server sees them. Generated by `cargo xtask codegen`; do not edit.
#
# TYPE [atomic] [GROUP/VERSION/KIND]
#   field TAG type [flags]
#
# TAG is the protobuf tag; `2.1` means tag 1 inside tag 2 (a message that JSON inlines), `-` that protobuf lacks it.
# type: string int32 int64 bool double bytes time microtime quantity intorstring raw, another TYPE, [list], {map}.
# flags: `!` required, `?` a pointer in Go (zero is not absence), list=atomic|set|map:KEY,KEY, map=atomic,
#        merge=KEY and strategy=... for strategic merge patches, default=VALUE.
";

pub(crate) fn generate(workspace: &Path) -> Result<()> {
    let openapi = workspace.join("../../shared/data/kubernetes-schema-v1.33.json");
    let text = std::fs::read_to_string(&openapi).with_context(|| format!("reading {}", openapi.display()))?;
    let mut definitions = BTreeMap::new();
    for source in [text.as_str(), include_str!("kubernetes_supplement.json")] {
        let Value::Object(object) = serde_json::from_str(source)? else {
            bail!("definitions must be an object")
        };
        definitions.extend(
            object
                .into_iter()
                .map(|(name, definition)| (short_name(&name), definition)),
        );
    }
    let table = Table {
        definitions,
        messages: read_messages(&k8s_pb()?)?,
    }
    .render()?;
    let target = workspace.join("crates/sandbox/src/schema/table.txt");
    std::fs::write(&target, table).with_context(|| format!("writing {}", target.display()))
}

/// `io.k8s.api.core.v1.Pod` -> `core.v1.Pod`, `io.k8s.apimachinery.pkg.util.intstr.IntOrString` -> `intstr.IntOrString`.
fn short_name(name: &str) -> String {
    let parts: Vec<&str> = name.split('.').collect();
    let versioned = parts.len() > 2 && parts[parts.len() - 2].starts_with('v');
    parts[parts.len() - if versioned { 3 } else { 2 }..].join(".")
}

fn k8s_pb() -> Result<PathBuf> {
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")));
    let registry = home
        .context("neither CARGO_HOME nor HOME is set")?
        .join("registry/src");
    for index in std::fs::read_dir(&registry).with_context(|| format!("reading {}", registry.display()))? {
        let sources = index?.path().join("k8s-pb-0.9.0/src");
        if sources.is_dir() {
            return Ok(sources);
        }
    }
    bail!(
        "the sources of k8s-pb 0.9.0 are not in {}: run `cargo add k8s-pb@0.9.0 && cargo fetch` in a scratch project",
        registry.display()
    )
}

struct ProtoField {
    tag: u32,
    /// Short name of the message type, if it is one.
    message: Option<String>,
}

type Message = BTreeMap<String, ProtoField>;

/// Reads the prost structs of the API groups and of the machinery: normalised field name -> tag.
fn read_messages(sources: &Path) -> Result<BTreeMap<String, Message>> {
    let mut files = vec![
        (
            "meta.v1".to_owned(),
            sources.join("apimachinery/pkg/apis/meta/v1/mod.rs"),
        ),
        (
            "apiextensions.v1".to_owned(),
            sources.join("apiextensions_apiserver/pkg/apis/apiextensions/v1/mod.rs"),
        ),
        (
            "apiregistration.v1".to_owned(),
            sources.join("kube_aggregator/pkg/apis/apiregistration/v1/mod.rs"),
        ),
    ];
    for group in std::fs::read_dir(sources.join("api"))? {
        let path = group?.path().join("v1/mod.rs");
        if let Some(group) = path.iter().rev().nth(2).filter(|_| path.is_file()) {
            files.push((format!("{}.v1", group.to_string_lossy()), path.clone()));
        }
    }
    let mut messages = BTreeMap::new();
    for (package, path) in files {
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        read_structs(&package, &text, &mut messages);
    }
    Ok(messages)
}

fn read_structs(package: &str, text: &str, messages: &mut BTreeMap<String, Message>) {
    let mut current: Option<(String, Message)> = None;
    let mut tag = None;
    let mut lines = text.lines().map(str::trim);
    while let Some(line) = lines.next() {
        if let Some(name) = line
            .strip_prefix("pub struct ")
            .and_then(|rest| rest.strip_suffix(" {"))
        {
            current = Some((format!("{package}.{name}"), Message::new()));
        } else if line == "}" {
            messages.extend(
                current
                    .take()
                    .map(|(name, message)| (message_key(&name), message)),
            );
        } else if line.starts_with("#[prost(") {
            tag = line
                .split("tag = \"")
                .nth(1)
                .and_then(|rest| rest.split('"').next()?.parse::<u32>().ok());
        } else if let (Some(number), Some(field), Some((_, message))) =
            (tag, line.strip_prefix("pub "), &mut current)
        {
            let mut field = field.to_owned();
            while !field.ends_with(',') {
                field.push_str(lines.next().unwrap_or(","));
            }
            let Some((name, kind)) = field.split_once(':') else {
                continue;
            };
            let inner = kind
                .rsplit('<')
                .next()
                .unwrap_or(kind)
                .trim_end_matches([',', '>', ' '])
                .trim();
            let inner = inner.rsplit(", ").next().unwrap_or(inner);
            let path: Vec<&str> = inner.split("::").filter(|part| *part != "super").collect();
            let referred = match path.as_slice() {
                [one] if one.starts_with(char::is_uppercase) => Some(format!("{package}.{one}")),
                [.., group, version, name] if version.starts_with('v') => {
                    Some(format!("{group}.{version}.{name}"))
                }
                _ => None,
            };
            message.insert(
                normalise(name),
                ProtoField {
                    tag: number,
                    message: referred,
                },
            );
            tag = None;
        }
    }
}

/// prost spells type names its own way (`HttpIngressPath`).
fn message_key(name: &str) -> String {
    name.to_ascii_lowercase()
}

/// Makes `x-kubernetes-int-or-string`, `$ref`, `podCIDRs` and prost's spellings of them comparable.
fn normalise(name: &str) -> String {
    let name = name.strip_prefix("r#").unwrap_or(name);
    name.chars()
        .filter(char::is_ascii_alphanumeric)
        .map(|c| c.to_ascii_lowercase())
        .collect()
}

struct Table {
    definitions: BTreeMap<String, Value>,
    messages: BTreeMap<String, Message>,
}

impl Table {
    fn render(&self) -> Result<String> {
        let mut out = HEADER.to_owned();
        let mut wanted: BTreeSet<String> = KINDS.iter().map(|kind| (*kind).to_owned()).collect();
        wanted.insert("apiextensions.v1.JSONSchemaProps".to_owned());
        let mut rendered = BTreeMap::new();
        while let Some(name) = wanted.pop_first() {
            let (text, refers) = self.definition(&name).with_context(|| name.clone())?;
            rendered.insert(name, text);
            wanted.extend(refers.into_iter().filter(|refers| !rendered.contains_key(refers)));
        }
        out.extend(rendered.into_values());
        Ok(out)
    }

    fn definition(&self, name: &str) -> Result<(String, BTreeSet<String>)> {
        let definition = self.definitions.get(name).context("no such definition")?;
        let mut text = format!("\n{name}");
        let mut refers = BTreeSet::new();
        if definition["x-kubernetes-map-type"] == "atomic" {
            text.push_str(" atomic");
        }
        if let Some(kinds) = definition["x-kubernetes-group-version-kind"].as_array() {
            let kind = &kinds[0];
            let part = |name: &str| kind[name].as_str().unwrap_or_default().to_owned();
            write!(text, " {}/{}/{}", part("group"), part("version"), part("kind"))?;
        }
        text.push('\n');
        let empty = serde_json::Map::new();
        let properties = definition["properties"].as_object().unwrap_or(&empty);
        let required: Vec<&str> = definition["required"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        for (field, schema) in properties {
            let kind = type_of(schema, &mut refers)?;
            let tag = match self.tag(name, field) {
                Some(tag) => tag,
                // The envelope carries these.
                None if ["apiVersion", "kind"].contains(&field.as_str()) => "-".to_owned(),
                None => {
                    note(&format!("{name}.{field} has no protobuf tag"));
                    "-".to_owned()
                }
            };
            write!(text, "  {field} {tag} {kind}")?;
            let path = format!("{name}.{field}");
            if required.contains(&field.as_str()) {
                text.push_str(" !");
            } else if is_pointer(&path, &kind) {
                text.push_str(" ?");
            }
            match schema["x-kubernetes-list-type"].as_str() {
                Some("map") => {
                    let keys = schema["x-kubernetes-list-map-keys"]
                        .as_array()
                        .context("list type map without keys")?;
                    let keys: Vec<&str> = keys.iter().filter_map(Value::as_str).collect();
                    write!(text, " list=map:{}", keys.join(","))?;
                }
                Some(list) if kind.starts_with('[') => write!(text, " list={list}")?,
                _ => {}
            }
            if schema["x-kubernetes-map-type"] == "atomic" {
                text.push_str(" map=atomic");
            }
            if let Some(key) = schema["x-kubernetes-patch-merge-key"].as_str() {
                write!(text, " merge={key}")?;
            }
            if let Some(strategy) = schema["x-kubernetes-patch-strategy"].as_str() {
                write!(text, " strategy={strategy}")?;
            }
            if let Some((_, default)) = KEY_DEFAULTS.iter().find(|(key, _)| *key == path) {
                write!(text, " default={default}")?;
            }
            text.push('\n');
        }
        Ok((text, refers))
    }

    fn tag(&self, definition: &str, field: &str) -> Option<String> {
        let message = self.messages.get(&message_key(definition))?;
        let field = normalise(field);
        if let Some(found) = message.get(&field) {
            return Some(found.tag.to_string());
        }
        // A message that JSON inlines: its own name is no property of this definition.
        let properties: BTreeSet<String> = self.definitions[definition]["properties"]
            .as_object()?
            .keys()
            .map(|name| normalise(name))
            .collect();
        message
            .iter()
            .filter(|(name, _)| !properties.contains(*name))
            .find_map(|(_, inlined)| {
                let inner = self.messages.get(&message_key(inlined.message.as_ref()?))?;
                Some(format!("{}.{}", inlined.tag, inner.get(&field)?.tag))
            })
    }
}

fn type_of(schema: &Value, refers: &mut BTreeSet<String>) -> Result<String> {
    if let Some(reference) = schema["$ref"].as_str() {
        let name = short_name(reference.rsplit('/').next().unwrap_or(reference));
        if let Some((_, special)) = SPECIAL.iter().find(|(special, _)| *special == name) {
            return Ok((*special).to_owned());
        }
        refers.insert(name.clone());
        return Ok(name);
    }
    let kind = match &schema["type"] {
        Value::Array(kinds) => kinds.first().and_then(Value::as_str),
        kind => kind.as_str(),
    };
    Ok(match (kind, schema["format"].as_str()) {
        (Some("string"), Some("byte")) => "bytes".to_owned(),
        (Some("string"), _) => "string".to_owned(),
        (Some("boolean"), _) => "bool".to_owned(),
        (Some("number"), _) => "double".to_owned(),
        (Some("integer"), Some("int32")) => "int32".to_owned(),
        (Some("integer"), _) => "int64".to_owned(),
        (Some("array"), _) => format!("[{}]", type_of(&schema["items"], refers)?),
        (Some("object"), _) if schema["additionalProperties"].is_object() => {
            format!("{{{}}}", type_of(&schema["additionalProperties"], refers)?)
        }
        (kind, format) => bail!("type {kind:?} with format {format:?} is not known"),
    })
}

fn is_pointer(path: &str, kind: &str) -> bool {
    match kind {
        "bool" | "int32" | "int64" | "double" => !VALUES.iter().any(|value| match value.strip_prefix('*') {
            Some(end) => path.ends_with(end),
            None => *value == path,
        }),
        "string" => POINTERS.contains(&path),
        _ => false,
    }
}

#[expect(
    clippy::print_stderr,
    reason = "the generator talks to the person who runs it"
)]
fn note(text: &str) {
    eprintln!("note: {text}");
}
