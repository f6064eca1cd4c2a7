//! Which objects are refused, and why.
//!
//! Built-in kinds get the checks that catch what people get wrong: missing and misspelt values, ports, names,
//! selectors that don't match, references within a pod, and changes of what can't change. Objects are expected to be
//! pruned, of the right types and defaulted.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::{Map, Value, json};

use super::Schema;
use super::cause::{Cause, Path};
use super::names;
use super::quantity;
use super::tree::{At, Scalar, Shape};

impl Schema {
    /// Empty if the object may be stored; `old` is what it replaces.
    pub fn validate(&self, object: &Value, old: Option<&Value>) -> Vec<Cause> {
        let mut checks = Checks { causes: Vec::new() };
        let root = Path::root();
        checks.metadata(object, self.builtin_name().unwrap_or_default());
        if let Some(custom) = self.as_custom() {
            checks.causes.extend(custom.validate(object, old));
            return checks.causes;
        }
        let Some(name) = self.builtin_name() else {
            return checks.causes;
        };
        for (key, value) in object
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(key, _)| *key != "status")
        {
            if let Some(child) = self.root().child(key) {
                checks.required_texts(child, value, &root.field(key));
            }
        }
        checks.kind(name, object, old);
        checks.causes
    }
}

struct Checks {
    causes: Vec<Cause>,
}

/// Required in the schema, and yet allowed to be empty.
const MAY_BE_EMPTY: &[&str] = &["value", "apiGroup"];

fn get<'a>(value: &'a Value, path: &[&str]) -> &'a Value {
    path.iter()
        .fold(value, |value, key| value.get(key).unwrap_or(&Value::Null))
}

fn items(value: &Value) -> impl Iterator<Item = (usize, &Value)> {
    value.as_array().into_iter().flatten().enumerate()
}

fn entries(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(object) => object.is_empty(),
        _ => false,
    }
}

/// `map[string]string{"a":"b"}`
fn go_map(value: &Value) -> String {
    let entries: Vec<String> = entries(value)
        .map(|(key, value)| format!("{key:?}:{value}"))
        .collect();
    if value.is_null() {
        "map[string]string(nil)".to_owned()
    } else {
        format!("map[string]string{{{}}}", entries.join(", "))
    }
}

impl Checks {
    fn push(&mut self, cause: Cause) {
        self.causes.push(cause);
    }

    fn invalid(&mut self, at: &Path, value: &Value, detail: &str) {
        self.push(Cause::invalid(at, value, detail));
    }

    fn one_of(&mut self, at: &Path, value: &Value, supported: &[&str]) {
        if !is_empty(value) && !supported.contains(&text(value)) {
            self.push(Cause::unsupported(at, value, supported));
        }
    }

    fn unchanged(&mut self, at: &Path, new: &Value, old: &Value, detail: &str) {
        if new != old {
            self.invalid(at, new, detail);
        }
    }

    /// Strings that the schema requires.
    fn required_texts(&mut self, schema: At<'_>, value: &Value, at: &Path) {
        match (schema.shape(), value) {
            (Shape::Object { fields, .. }, Value::Object(object)) => {
                for (name, field) in fields.iter().filter(|(_, field)| field.required) {
                    let is_text = matches!(schema.go(field.node).shape(), Shape::Scalar(Scalar::String));
                    let given = object.get(name).unwrap_or(&Value::Null);
                    if is_text && (given.is_null() || given == "" && !MAY_BE_EMPTY.contains(&name.as_str())) {
                        self.push(Cause::required(&at.field(name), ""));
                    }
                }
                for (key, value) in object {
                    if let Some(child) = schema.child(key) {
                        let at = if fields.contains_key(key) {
                            at.field(key)
                        } else {
                            at.key(key)
                        };
                        self.required_texts(child, value, &at);
                    }
                }
            }
            (Shape::List { .. }, Value::Array(list)) => {
                if let Some(child) = schema.items() {
                    for (index, item) in list.iter().enumerate() {
                        self.required_texts(child, item, &at.index(index));
                    }
                }
            }
            _ => {}
        }
    }

    fn metadata(&mut self, object: &Value, kind: &str) {
        let at = Path::new("metadata");
        let metadata = get(object, &["metadata"]);
        let name = get(metadata, &["name"]);
        let fault = match kind {
            // Reviews and options have no name.
            _ if is_empty(name) => None,
            "core.v1.Service" => names::label_1035_fault(text(name)).map(str::to_owned),
            "core.v1.Namespace" => names::label_fault(text(name)).map(str::to_owned),
            _ if kind.starts_with("rbac.v1.") => names::path_segment_fault(text(name)),
            _ => names::subdomain_fault(text(name)).map(str::to_owned),
        };
        if let Some(fault) = fault {
            self.invalid(&at.field("name"), name, &fault);
        }
        self.labels(get(metadata, &["labels"]), &at.field("labels"));
        let at = at.field("annotations");
        let annotations = get(metadata, &["annotations"]);
        let mut size = 0;
        for (key, value) in entries(annotations) {
            size += key.len() + text(value).len();
            // Keys of annotations may be of either case in their prefix.
            if let Some(fault) = names::qualified_fault(&key.to_lowercase()) {
                self.invalid(&at, &json!(key), &fault);
            }
        }
        if size > 256 << 10 {
            self.push(Cause::too_long(&at, 256 << 10));
        }
    }

    fn labels(&mut self, labels: &Value, at: &Path) {
        for (key, value) in entries(labels) {
            if let Some(fault) = names::qualified_fault(key) {
                self.invalid(at, &json!(key), &fault);
            }
            if let Some(fault) = names::label_value_fault(text(value)) {
                self.invalid(at, value, fault);
            }
        }
    }

    fn kind(&mut self, kind: &str, object: &Value, old: Option<&Value>) {
        let spec = get(object, &["spec"]);
        let at = Path::new("spec");
        match kind {
            "core.v1.Pod" => self.pod(object, old),
            "core.v1.Service" => self.service(spec, old.map(|old| get(old, &["spec"]))),
            "core.v1.ConfigMap" | "core.v1.Secret" => self.data(object, old),
            "core.v1.Endpoints" => {
                for (index, subset) in items(get(object, &["subsets"])) {
                    let at = Path::new("subsets").index(index);
                    for (index, address) in items(get(subset, &["addresses"])) {
                        self.address(
                            get(address, &["ip"]),
                            &at.field("addresses").index(index).field("ip"),
                        );
                    }
                    for (index, port) in items(get(subset, &["ports"])) {
                        self.port(
                            get(port, &["port"]),
                            &at.field("ports").index(index).field("port"),
                        );
                    }
                }
            }
            "apps.v1.Deployment" | "apps.v1.ReplicaSet" | "apps.v1.StatefulSet" | "apps.v1.DaemonSet" => {
                self.workload(kind, spec, old.map(|old| get(old, &["spec"])));
            }
            "batch.v1.Job" => self.job(spec, old.map(|old| get(old, &["spec"]))),
            "batch.v1.CronJob" => {
                self.one_of(
                    &at.field("concurrencyPolicy"),
                    get(spec, &["concurrencyPolicy"]),
                    &["Allow", "Forbid", "Replace"],
                );
                let at = at.field("jobTemplate").field("spec").field("template");
                self.template(
                    get(spec, &["jobTemplate", "spec", "template"]),
                    &at,
                    Restarts::Sometimes,
                );
            }
            "rbac.v1.RoleBinding" | "rbac.v1.ClusterRoleBinding" => {
                let reference = get(object, &["roleRef"]);
                let supported: &[&str] = if kind == "rbac.v1.RoleBinding" {
                    &["Role", "ClusterRole"]
                } else {
                    &["ClusterRole"]
                };
                self.one_of(&Path::new("roleRef.kind"), get(reference, &["kind"]), supported);
                if let Some(old) = old {
                    self.unchanged(
                        &Path::new("roleRef"),
                        reference,
                        get(old, &["roleRef"]),
                        "cannot change roleRef",
                    );
                }
                for (index, subject) in items(get(object, &["subjects"])) {
                    let at = Path::new("subjects").index(index);
                    self.one_of(
                        &at.field("kind"),
                        get(subject, &["kind"]),
                        &["ServiceAccount", "User", "Group"],
                    );
                    if get(subject, &["kind"]) == "ServiceAccount" && is_empty(get(subject, &["namespace"])) {
                        self.push(Cause::required(&at.field("namespace"), ""));
                    }
                }
            }
            "rbac.v1.Role" | "rbac.v1.ClusterRole" => {
                self.rules(get(object, &["rules"]), kind == "rbac.v1.Role")
            }
            "coordination.v1.Lease" => {
                for name in ["leaseDurationSeconds", "leaseTransitions"] {
                    let value = get(spec, &[name]);
                    let min = i64::from(name == "leaseDurationSeconds");
                    if value.as_i64().is_some_and(|number| number < min) {
                        let detail = if min == 1 {
                            "must be greater than 0"
                        } else {
                            "must be greater than or equal to 0"
                        };
                        self.invalid(&at.field(name), value, detail);
                    }
                }
            }
            "discovery.v1.EndpointSlice" => self.endpoint_slice(object, old),
            "admissionregistration.v1.MutatingWebhookConfiguration"
            | "admissionregistration.v1.ValidatingWebhookConfiguration" => {
                for (index, webhook) in items(get(object, &["webhooks"])) {
                    self.webhook(webhook, &Path::new("webhooks").index(index));
                }
            }
            "apiextensions.v1.CustomResourceDefinition" => self.custom_resource_definition(object, old),
            "apiregistration.v1.APIService" => {
                let name = format!(
                    "{}.{}",
                    text(get(spec, &["version"])),
                    text(get(spec, &["group"]))
                );
                if get(object, &["metadata", "name"]) != name.as_str() {
                    let detail = format!("must be `spec.version+\".\"+spec.group`: {name:?}");
                    self.invalid(
                        &Path::new("metadata.name"),
                        get(object, &["metadata", "name"]),
                        &detail,
                    );
                }
            }
            _ => {}
        }
    }

    fn port(&mut self, port: &Value, at: &Path) {
        if !port.as_i64().is_some_and(|number| (1..=65535).contains(&number)) {
            let shown = if port.is_null() { json!(0) } else { port.clone() };
            self.invalid(at, &shown, "must be between 1 and 65535, inclusive");
        }
    }

    /// A port's number or its name.
    fn port_reference(&mut self, port: &Value, at: &Path) {
        match port {
            Value::String(name) => {
                let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
                if name.len() > 15 {
                    self.invalid(at, port, "must be no more than 15 characters");
                } else if name.is_empty()
                    || !name.chars().all(plain)
                    || name.chars().all(|c| !c.is_ascii_lowercase())
                {
                    let detail = "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)";
                    self.invalid(at, port, detail);
                }
            }
            number => self.port(number, at),
        }
    }

    fn address(&mut self, address: &Value, at: &Path) {
        if text(address).parse::<IpAddr>().is_err() {
            self.invalid(
                at,
                address,
                "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            );
        }
    }

    fn not_negative(&mut self, value: &Value, at: &Path) {
        if value.as_i64().is_some_and(|number| number < 0) {
            self.invalid(at, value, "must be greater than or equal to 0");
        }
    }

    fn selector(&mut self, selector: &Value, at: &Path) {
        self.labels(get(selector, &["matchLabels"]), &at.field("matchLabels"));
        for (index, term) in items(get(selector, &["matchExpressions"])) {
            let at = at.field("matchExpressions").index(index);
            let operator = get(term, &["operator"]);
            self.one_of(
                &at.field("operator"),
                operator,
                &["In", "NotIn", "Exists", "DoesNotExist"],
            );
            let values = is_empty(get(term, &["values"]));
            match text(operator) {
                "In" | "NotIn" if values => {
                    self.push(Cause::required(
                        &at.field("values"),
                        "must be specified when `operator` is 'In' or 'NotIn'",
                    ));
                }
                "Exists" | "DoesNotExist" if !values => {
                    let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                    self.push(Cause::forbidden(&at.field("values"), detail));
                }
                _ => {}
            }
        }
    }

    fn workload(&mut self, kind: &str, spec: &Value, old: Option<&Value>) {
        let at = Path::new("spec");
        let selector = get(spec, &["selector"]);
        let labels = get(spec, &["template", "metadata", "labels"]);
        self.not_negative(get(spec, &["replicas"]), &at.field("replicas"));
        self.not_negative(get(spec, &["minReadySeconds"]), &at.field("minReadySeconds"));
        self.not_negative(
            get(spec, &["revisionHistoryLimit"]),
            &at.field("revisionHistoryLimit"),
        );
        if selector.is_null() {
            self.push(Cause::required(&at.field("selector"), ""));
        } else if is_empty(get(selector, &["matchLabels"])) && is_empty(get(selector, &["matchExpressions"]))
        {
            let noun = kind.rsplit('.').next().unwrap_or_default().to_lowercase();
            self.invalid(
                &at.field("selector"),
                selector,
                &format!("empty selector is invalid for {noun}"),
            );
        } else if !matches(selector, labels) {
            let at = at.field("template").field("metadata").field("labels");
            self.push(Cause::invalid_shown(
                &at,
                &go_map(labels),
                "`selector` does not match template `labels`",
            ));
        }
        self.selector(selector, &at.field("selector"));
        self.template(get(spec, &["template"]), &at.field("template"), Restarts::Always);
        match kind {
            "apps.v1.Deployment" => {
                let strategy = get(spec, &["strategy"]);
                let at = at.field("strategy");
                self.one_of(
                    &at.field("type"),
                    get(strategy, &["type"]),
                    &["Recreate", "RollingUpdate"],
                );
                let rolling = get(strategy, &["rollingUpdate"]);
                if get(strategy, &["type"]) == "Recreate" && !rolling.is_null() {
                    let detail = "may not be specified when strategy `type` is 'Recreate'";
                    self.push(Cause::forbidden(&at.field("rollingUpdate"), detail));
                }
                let none = |value: &Value| value == 0 || value == "0%";
                if none(get(rolling, &["maxSurge"])) && none(get(rolling, &["maxUnavailable"])) {
                    let at = at.field("rollingUpdate").field("maxUnavailable");
                    self.invalid(
                        &at,
                        get(rolling, &["maxUnavailable"]),
                        "may not be 0 when `maxSurge` is 0",
                    );
                }
            }
            "apps.v1.StatefulSet" => {
                let supported = &["OrderedReady", "Parallel"];
                self.one_of(
                    &at.field("podManagementPolicy"),
                    get(spec, &["podManagementPolicy"]),
                    supported,
                );
            }
            _ => {}
        }
        let Some(old) = old else { return };
        self.unchanged(
            &at.field("selector"),
            selector,
            get(old, &["selector"]),
            "field is immutable",
        );
        if kind == "apps.v1.StatefulSet" {
            const CHANGEABLE: &[&str] = &[
                "replicas",
                "ordinals",
                "template",
                "updateStrategy",
                "revisionHistoryLimit",
                "persistentVolumeClaimRetentionPolicy",
                "minReadySeconds",
                "selector",
            ];
            if rest(spec, CHANGEABLE) != rest(old, CHANGEABLE) {
                self.push(Cause::forbidden(
                    &at,
                    "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', \
                     'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
                ));
            }
        }
    }

    fn job(&mut self, spec: &Value, old: Option<&Value>) {
        let at = Path::new("spec");
        for name in [
            "completions",
            "parallelism",
            "backoffLimit",
            "activeDeadlineSeconds",
            "ttlSecondsAfterFinished",
        ] {
            self.not_negative(get(spec, &[name]), &at.field(name));
        }
        self.one_of(
            &at.field("completionMode"),
            get(spec, &["completionMode"]),
            &["NonIndexed", "Indexed"],
        );
        self.template(
            get(spec, &["template"]),
            &at.field("template"),
            Restarts::Sometimes,
        );
        let selector = get(spec, &["selector"]);
        let labels = get(spec, &["template", "metadata", "labels"]);
        if !selector.is_null() && !matches(selector, labels) {
            let at = at.field("template").field("metadata").field("labels");
            self.push(Cause::invalid_shown(
                &at,
                &go_map(labels),
                "`selector` does not match template `labels`",
            ));
        }
        let Some(old) = old else { return };
        for name in ["selector", "template", "completionMode"] {
            // A suspended job's scheduling may still be changed by its queue.
            let suspended = name == "template" && get(old, &["suspend"]) == &json!(true);
            if !suspended {
                self.unchanged(
                    &at.field(name),
                    get(spec, &[name]),
                    get(old, &[name]),
                    "field is immutable",
                );
            }
        }
        if get(spec, &["completionMode"]) != "Indexed" {
            self.unchanged(
                &at.field("completions"),
                get(spec, &["completions"]),
                get(old, &["completions"]),
                "field is immutable",
            );
        }
    }

    fn template(&mut self, template: &Value, at: &Path, restarts: Restarts) {
        self.labels(
            get(template, &["metadata", "labels"]),
            &at.field("metadata").field("labels"),
        );
        let spec = get(template, &["spec"]);
        let at = at.field("spec");
        self.pod_spec(spec, &at);
        let policy = get(spec, &["restartPolicy"]);
        match (restarts, text(policy)) {
            (Restarts::Always, "OnFailure" | "Never") => {
                self.push(Cause::unsupported(
                    &at.field("restartPolicy"),
                    policy,
                    &["Always"],
                ));
            }
            (Restarts::Sometimes, "Always") => {
                let detail = "valid values: \"OnFailure\", \"Never\"";
                self.push(Cause::required(&at.field("restartPolicy"), detail));
            }
            _ => {}
        }
    }

    fn pod(&mut self, pod: &Value, old: Option<&Value>) {
        let at = Path::new("spec");
        let spec = get(pod, &["spec"]);
        self.pod_spec(spec, &at);
        if let Some(old) = old
            && frozen(spec) != frozen(get(old, &["spec"]))
            // Binding is an update like any other here, so a node may be given once.
            && (frozen_but_node(spec) != frozen_but_node(get(old, &["spec"])) || !is_empty(get(old, &["spec", "nodeName"])))
        {
            self.push(Cause::forbidden(
                &at,
                "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,\
                 `spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),\
                 `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)",
            ));
        }
    }

    fn pod_spec(&mut self, spec: &Value, at: &Path) {
        self.one_of(
            &at.field("restartPolicy"),
            get(spec, &["restartPolicy"]),
            &["Always", "OnFailure", "Never"],
        );
        let policies = &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
        self.one_of(&at.field("dnsPolicy"), get(spec, &["dnsPolicy"]), policies);
        let account = get(spec, &["serviceAccountName"]);
        if !is_empty(account)
            && let Some(fault) = names::subdomain_fault(text(account))
        {
            self.invalid(&at.field("serviceAccountName"), account, fault);
        }
        self.labels(get(spec, &["nodeSelector"]), &at.field("nodeSelector"));
        let mut volumes = BTreeSet::new();
        for (index, volume) in items(get(spec, &["volumes"])) {
            let at = at.field("volumes").index(index);
            let name = get(volume, &["name"]);
            if !is_empty(name)
                && let Some(fault) = names::label_fault(text(name))
            {
                self.invalid(&at.field("name"), name, fault);
            }
            if !volumes.insert(text(name)) {
                self.push(Cause::duplicate(&at.field("name"), name));
            }
            if entries(volume).filter(|(key, _)| *key != "name").count() > 1 {
                self.push(Cause::forbidden(&at, "may not specify more than 1 volume type"));
            }
        }
        if is_empty(get(spec, &["containers"])) {
            self.push(Cause::required(&at.field("containers"), ""));
        }
        let mut names = BTreeSet::new();
        for list in ["initContainers", "containers"] {
            for (index, container) in items(get(spec, &[list])) {
                let at = at.field(list).index(index);
                let name = get(container, &["name"]);
                if !is_empty(name) && !names.insert(text(name)) {
                    self.push(Cause::duplicate(&at.field("name"), name));
                }
                self.container(container, &at, &volumes, list == "initContainers");
            }
        }
    }

    fn container(&mut self, container: &Value, at: &Path, volumes: &BTreeSet<&str>, init: bool) {
        let name = get(container, &["name"]);
        if !is_empty(name)
            && let Some(fault) = names::label_fault(text(name))
        {
            self.invalid(&at.field("name"), name, fault);
        }
        if is_empty(get(container, &["image"])) {
            self.push(Cause::required(&at.field("image"), ""));
        }
        let policies = &["Always", "IfNotPresent", "Never"];
        self.one_of(
            &at.field("imagePullPolicy"),
            get(container, &["imagePullPolicy"]),
            policies,
        );
        if init {
            self.one_of(
                &at.field("restartPolicy"),
                get(container, &["restartPolicy"]),
                &["Always"],
            );
        }
        let mut names = BTreeSet::new();
        for (index, port) in items(get(container, &["ports"])) {
            let at = at.field("ports").index(index);
            let number = get(port, &["containerPort"]);
            if number.is_null() {
                self.push(Cause::required(&at.field("containerPort"), ""));
            } else {
                self.port(number, &at.field("containerPort"));
            }
            self.one_of(
                &at.field("protocol"),
                get(port, &["protocol"]),
                &["SCTP", "TCP", "UDP"],
            );
            let name = get(port, &["name"]);
            if !is_empty(name) {
                self.port_reference(name, &at.field("name"));
                if !names.insert(text(name)) {
                    self.push(Cause::duplicate(&at.field("name"), name));
                }
            }
        }
        let mut paths = BTreeSet::new();
        for (index, mount) in items(get(container, &["volumeMounts"])) {
            let at = at.field("volumeMounts").index(index);
            let name = get(mount, &["name"]);
            if !volumes.contains(text(name)) {
                self.push(Cause::not_found(&at.field("name"), name));
            }
            let path = get(mount, &["mountPath"]);
            if !is_empty(path) && !paths.insert(text(path)) {
                self.invalid(&at.field("mountPath"), path, "must be unique");
            }
        }
        self.resources(get(container, &["resources"]), &at.field("resources"));
        for (index, variable) in items(get(container, &["env"])) {
            let at = at.field("env").index(index);
            let from = get(variable, &["valueFrom"]);
            if !from.is_null() && !is_empty(get(variable, &["value"])) {
                self.invalid(
                    &at.field("valueFrom"),
                    &json!(""),
                    "may not be specified when `value` is not empty",
                );
            } else if !from.is_null() && entries(from).count() != 1 {
                let detail = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`";
                self.invalid(&at.field("valueFrom"), &json!(""), detail);
            }
        }
        for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
            let probe = get(container, &[name]);
            if !probe.is_null() {
                self.probe(probe, &at.field(name), name);
            }
        }
    }

    fn resources(&mut self, resources: &Value, at: &Path) {
        for part in ["limits", "requests"] {
            for (name, amount) in entries(get(resources, &[part])) {
                if quantity::nanos(text(amount)).is_some_and(|nanos| nanos < 0) {
                    self.invalid(
                        &at.field(part).key(name),
                        amount,
                        "must be greater than or equal to 0",
                    );
                }
            }
        }
        let limits = get(resources, &["limits"]);
        for (name, request) in entries(get(resources, &["requests"])) {
            let limit = limits.get(name).map(text);
            let (Some(limit), Some(asked)) = (limit, quantity::nanos(text(request))) else {
                continue;
            };
            if quantity::nanos(limit).is_some_and(|most| asked > most) {
                let detail = format!("must be less than or equal to {name} limit of {limit}");
                self.invalid(&at.field("requests"), request, &detail);
            }
        }
    }

    fn probe(&mut self, probe: &Value, at: &Path, name: &str) {
        let handlers: Vec<&str> = ["exec", "httpGet", "tcpSocket", "grpc"]
            .into_iter()
            .filter(|kind| !get(probe, &[kind]).is_null())
            .collect();
        match handlers.as_slice() {
            [] => self.push(Cause::required(at, "must specify a handler type")),
            [_] => {}
            [_, more @ ..] => {
                for kind in more {
                    self.push(Cause::forbidden(
                        &at.field(kind),
                        "may not specify more than 1 handler type",
                    ));
                }
            }
        }
        for kind in ["httpGet", "tcpSocket"] {
            let handler = get(probe, &[kind]);
            if !handler.is_null() {
                self.port_reference(get(handler, &["port"]), &at.field(kind).field("port"));
            }
        }
        for number in [
            "initialDelaySeconds",
            "timeoutSeconds",
            "periodSeconds",
            "successThreshold",
            "failureThreshold",
        ] {
            self.not_negative(get(probe, &[number]), &at.field(number));
        }
        let successes = get(probe, &["successThreshold"]);
        if name != "readinessProbe" && successes.as_i64().is_some_and(|count| count > 1) {
            self.invalid(&at.field("successThreshold"), successes, "must be 1");
        }
    }

    fn service(&mut self, spec: &Value, old: Option<&Value>) {
        let at = Path::new("spec");
        let kind = get(spec, &["type"]);
        self.one_of(
            &at.field("type"),
            kind,
            &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"],
        );
        self.one_of(
            &at.field("sessionAffinity"),
            get(spec, &["sessionAffinity"]),
            &["ClientIP", "None"],
        );
        for name in ["externalTrafficPolicy", "internalTrafficPolicy"] {
            self.one_of(&at.field(name), get(spec, &[name]), &["Cluster", "Local"]);
        }
        self.labels(get(spec, &["selector"]), &at.field("selector"));
        let cluster_ip = get(spec, &["clusterIP"]);
        let ports = get(spec, &["ports"]);
        if kind == "ExternalName" {
            if is_empty(get(spec, &["externalName"])) {
                self.push(Cause::required(&at.field("externalName"), ""));
            } else if let Some(fault) =
                names::subdomain_fault(text(get(spec, &["externalName"])).trim_end_matches('.'))
            {
                self.invalid(&at.field("externalName"), get(spec, &["externalName"]), fault);
            }
        } else {
            if is_empty(ports) && cluster_ip != "None" {
                self.push(Cause::required(&at.field("ports"), ""));
            }
            if !is_empty(cluster_ip) && cluster_ip != "None" {
                self.address(cluster_ip, &at.field("clusterIPs").index(0));
            }
        }
        let many = ports.as_array().is_some_and(|ports| ports.len() > 1);
        let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
        for (index, port) in items(ports) {
            let at = at.field("ports").index(index);
            self.port(get(port, &["port"]), &at.field("port"));
            self.one_of(
                &at.field("protocol"),
                get(port, &["protocol"]),
                &["SCTP", "TCP", "UDP"],
            );
            let name = get(port, &["name"]);
            if is_empty(name) {
                if many {
                    self.push(Cause::required(&at.field("name"), ""));
                }
            } else {
                if let Some(fault) = names::label_fault(text(name)) {
                    self.invalid(&at.field("name"), name, fault);
                }
                if !names.insert(text(name)) {
                    self.push(Cause::duplicate(&at.field("name"), name));
                }
            }
            let target = get(port, &["targetPort"]);
            if !target.is_null() {
                self.port_reference(target, &at.field("targetPort"));
            }
            if kind == "ClusterIP" && get(port, &["nodePort"]).as_i64().unwrap_or(0) != 0 {
                let why = "may not be used when `type` is 'ClusterIP'";
                self.push(Cause::forbidden(&at.field("nodePort"), why));
            }
            if !numbers.insert((get(port, &["port"]).to_string(), text(get(port, &["protocol"])))) {
                let key = json!({"port": get(port, &["port"]), "protocol": get(port, &["protocol"])});
                self.push(Cause::duplicate(&at, &key));
            }
        }
        if let Some(old) = old {
            let before = get(old, &["clusterIP"]);
            let external = |spec: &Value| get(spec, &["type"]) == "ExternalName";
            if !external(old)
                && !external(spec)
                && !is_empty(before)
                && !is_empty(cluster_ip)
                && before != cluster_ip
            {
                let shown = format!("[]string{{{cluster_ip}}}");
                self.push(Cause::invalid_shown(
                    &at.field("clusterIPs").index(0),
                    &shown,
                    "may not change once set",
                ));
            }
        }
    }

    fn data(&mut self, object: &Value, old: Option<&Value>) {
        let mut size = 0;
        for part in ["data", "binaryData"] {
            let at = Path::new(part);
            for (key, value) in entries(get(object, &[part])) {
                size += text(value).len();
                if let Some(fault) = names::data_key_fault(key) {
                    self.invalid(&at.key(key), &json!(key), fault);
                }
                if part == "binaryData" && get(object, &["data"]).get(key).is_some() {
                    let detail = format!("duplicate of key present in binaryData: {key}");
                    self.invalid(&Path::new("data").key(key), &json!(key), &detail);
                }
            }
        }
        const SIZE_MAX: usize = 1 << 20;
        if size > 4 * SIZE_MAX / 3 {
            self.push(Cause::too_long(&Path::new("data"), SIZE_MAX));
        }
        let Some(old) = old else { return };
        if get(object, &["type"]) != get(old, &["type"]) {
            self.invalid(&Path::new("type"), get(object, &["type"]), "field is immutable");
        }
        if get(old, &["immutable"]) == &json!(true) {
            for part in ["immutable", "data", "binaryData"] {
                if get(object, &[part]) != get(old, &[part]) {
                    let detail = "field is immutable when `immutable` is set";
                    self.push(Cause::forbidden(&Path::new(part), detail));
                }
            }
        }
    }

    fn rules(&mut self, rules: &Value, namespaced: bool) {
        for (index, rule) in items(rules) {
            let at = Path::new("rules").index(index);
            let missing = |name: &str| is_empty(get(rule, &[name]));
            if missing("verbs") {
                self.push(Cause::required(
                    &at.field("verbs"),
                    "verbs must contain at least one value",
                ));
            }
            if !missing("nonResourceURLs") {
                if namespaced {
                    let detail = "namespaced rules cannot apply to non-resource URLs";
                    self.invalid(
                        &at.field("nonResourceURLs"),
                        get(rule, &["nonResourceURLs"]),
                        detail,
                    );
                }
                continue;
            }
            if missing("apiGroups") {
                let detail = "resource rules must supply at least one api group";
                self.push(Cause::required(&at.field("apiGroups"), detail));
            }
            if missing("resources") {
                self.push(Cause::required(
                    &at.field("resources"),
                    "resource rules must supply at least one resource",
                ));
            }
        }
    }

    fn endpoint_slice(&mut self, slice: &Value, old: Option<&Value>) {
        let kind = get(slice, &["addressType"]);
        self.one_of(&Path::new("addressType"), kind, &["FQDN", "IPv4", "IPv6"]);
        for (index, endpoint) in items(get(slice, &["endpoints"])) {
            let at = Path::new("endpoints").index(index).field("addresses");
            if is_empty(get(endpoint, &["addresses"])) {
                self.push(Cause::required(&at, "must contain at least 1 address"));
            }
            for (index, address) in items(get(endpoint, &["addresses"])) {
                let parsed = text(address).parse::<IpAddr>();
                match (text(kind), parsed) {
                    ("IPv4", Ok(IpAddr::V4(_))) | ("IPv6", Ok(IpAddr::V6(_))) | ("FQDN", _) => {}
                    ("IPv4", _) => self.invalid(&at.index(index), address, "must be a valid IPv4 address"),
                    ("IPv6", _) => self.invalid(&at.index(index), address, "must be a valid IPv6 address"),
                    _ => {}
                }
            }
        }
        for (index, port) in items(get(slice, &["ports"])) {
            let at = Path::new("ports").index(index);
            self.one_of(
                &at.field("protocol"),
                get(port, &["protocol"]),
                &["SCTP", "TCP", "UDP"],
            );
        }
        if let Some(old) = old {
            self.unchanged(
                &Path::new("addressType"),
                kind,
                get(old, &["addressType"]),
                "field is immutable",
            );
        }
    }

    fn webhook(&mut self, webhook: &Value, at: &Path) {
        let name = get(webhook, &["name"]);
        if !is_empty(name) && (!names::is_subdomain(text(name)) || text(name).split('.').count() < 3) {
            self.invalid(
                &at.field("name"),
                name,
                "should be a domain with at least three segments separated by dots",
            );
        }
        let config = get(webhook, &["clientConfig"]);
        if get(config, &["url"]).is_null() == get(config, &["service"]).is_null() {
            let detail = "exactly one of url or service is required";
            self.push(Cause::required(&at.field("clientConfig"), detail));
        }
        let url = get(config, &["url"]);
        if let Some((scheme, _)) = text(url).split_once("://")
            && scheme != "https"
        {
            let detail = "'https' is the only allowed URL scheme; desired format: https://host[/path]";
            self.invalid(&at.field("clientConfig.url"), &scheme.into(), detail);
        }
        if !is_empty(get(webhook, &["matchConditions"])) {
            // Ignoring them would call webhooks for what they did not ask for.
            let detail = "match conditions are not evaluated here; use rules and selectors";
            self.push(Cause::forbidden(&at.field("matchConditions"), detail));
        }
        let effects = get(webhook, &["sideEffects"]);
        self.one_of(&at.field("sideEffects"), effects, &["None", "NoneOnDryRun"]);
        self.one_of(
            &at.field("failurePolicy"),
            get(webhook, &["failurePolicy"]),
            &["Fail", "Ignore"],
        );
        self.one_of(
            &at.field("matchPolicy"),
            get(webhook, &["matchPolicy"]),
            &["Equivalent", "Exact"],
        );
        let timeout = get(webhook, &["timeoutSeconds"]);
        if timeout
            .as_i64()
            .is_some_and(|seconds| !(1..=30).contains(&seconds))
        {
            let detail = "the timeout value must be between 1 and 30 seconds";
            self.invalid(&at.field("timeoutSeconds"), timeout, detail);
        }
        let versions = get(webhook, &["admissionReviewVersions"]);
        let at = at.field("admissionReviewVersions");
        if is_empty(versions) {
            self.push(Cause::required(&at, "must specify one of v1, v1beta1"));
        } else if !items(versions).any(|(_, version)| ["v1", "v1beta1"].contains(&text(version))) {
            self.invalid(&at, versions, "must include at least one of v1, v1beta1");
        }
    }

    fn custom_resource_definition(&mut self, crd: &Value, old: Option<&Value>) {
        let spec = get(crd, &["spec"]);
        let at = Path::new("spec");
        let plural = text(get(spec, &["names", "plural"]));
        let name = format!("{plural}.{}", text(get(spec, &["group"])));
        if get(crd, &["metadata", "name"]) != name.as_str() {
            let detail = "must be spec.names.plural+\".\"+spec.group";
            self.invalid(
                &Path::new("metadata.name"),
                get(crd, &["metadata", "name"]),
                detail,
            );
        }
        let group = text(get(spec, &["group"]));
        if !group.is_empty() && (!names::is_subdomain(group) || !group.contains('.')) {
            self.invalid(
                &at.field("group"),
                &json!(group),
                "should be a domain with at least one dot",
            );
        }
        for name in ["plural", "singular", "kind", "listKind"] {
            let value = get(spec, &["names", name]);
            if !is_empty(value)
                && let Some(fault) = names::label_1035_fault(&text(value).to_lowercase())
            {
                self.invalid(&at.field("names").field(name), value, fault);
            }
        }
        self.one_of(
            &at.field("scope"),
            get(spec, &["scope"]),
            &["Cluster", "Namespaced"],
        );
        let versions = get(spec, &["versions"]);
        let stored = items(versions)
            .filter(|(_, version)| get(version, &["storage"]) == &json!(true))
            .count();
        if stored != 1 {
            let detail = "must have exactly one version marked as storage version";
            self.invalid(&at.field("versions"), versions, detail);
        }
        let mut seen = BTreeSet::new();
        // What all versions say alike is the definition's own.
        let schema = |version| get(version, &["schema", "openAPIV3Schema"]);
        let mut schemas = items(versions).map(|(_, version)| schema(version));
        let first = schemas.next();
        let alike = schemas.all(|schema| Some(schema) == first);
        for (index, version) in items(versions) {
            let within = at.field("versions").index(index);
            if !seen.insert(text(get(version, &["name"]))) {
                self.invalid(&within.field("name"), get(version, &["name"]), "must be unique");
            }
            let within = if alike {
                at.field("validation")
            } else {
                within.field("schema")
            };
            if schema(version).is_null() {
                let at = at.field("versions").index(index).field("schema");
                self.push(Cause::required(
                    &at.field("openAPIV3Schema"),
                    "schemas are required",
                ));
            } else if !alike || index == 0 {
                let schema = Schema::from_crd_at(schema(version), &within.field("openAPIV3Schema"));
                self.causes.extend(schema.err().into_iter().flatten());
            }
        }
        if let Some(old) = old {
            for path in [&["scope"][..], &["names", "kind"]] {
                let at = path.iter().fold(at.clone(), |at, name| at.field(name));
                let (new, old) = (get(spec, path), get(get(old, &["spec"]), path));
                self.unchanged(&at, new, old, "field is immutable");
            }
        }
    }
}

#[derive(Clone, Copy)]
enum Restarts {
    Always,
    Sometimes,
}

/// Whether a label selector matches labels.
pub fn matches(selector: &Value, labels: &Value) -> bool {
    let terms = items(get(selector, &["matchExpressions"])).all(|(_, term)| {
        let value = labels.get(text(get(term, &["key"])));
        let listed = value.is_some_and(|value| {
            get(term, &["values"])
                .as_array()
                .is_some_and(|values| values.contains(value))
        });
        match text(get(term, &["operator"])) {
            "In" => listed,
            "NotIn" => !listed,
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            _ => false,
        }
    });
    terms && entries(get(selector, &["matchLabels"])).all(|(key, value)| labels.get(key) == Some(value))
}

/// What is left of an object without some fields.
fn rest(object: &Value, without: &[&str]) -> Map<String, Value> {
    entries(object)
        .filter(|(key, _)| !without.contains(&key.as_str()))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

/// What of a pod's spec never changes.
fn frozen(spec: &Value) -> Map<String, Value> {
    let free = [
        "activeDeadlineSeconds",
        "tolerations",
        "terminationGracePeriodSeconds",
        "schedulingGates",
        "ephemeralContainers",
    ];
    let mut frozen = rest(spec, &free);
    for list in ["containers", "initContainers"] {
        for container in frozen
            .get_mut(list)
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            if let Some(container) = container.as_object_mut() {
                container.remove("image");
            }
        }
    }
    frozen
}

fn frozen_but_node(spec: &Value) -> Map<String, Value> {
    let mut frozen = frozen(spec);
    frozen.remove("nodeName");
    frozen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(kind: (&str, &str, &str), mut object: Value, old: Option<Value>) -> Vec<String> {
        let schema = Schema::for_kind(kind.0, kind.1, kind.2).expect("the kind is built in");
        schema.default_(&mut object);
        let old = old.map(|mut old| {
            schema.default_(&mut old);
            old
        });
        schema
            .validate(&object, old.as_ref())
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    const DEPLOYMENT: (&str, &str, &str) = ("apps", "v1", "Deployment");
    const SERVICE: (&str, &str, &str) = ("", "v1", "Service");
    const POD: (&str, &str, &str) = ("", "v1", "Pod");

    fn deployment(selector: &str, label: &str) -> Value {
        json!({"metadata": {"name": "web"}, "spec": {
            "selector": {"matchLabels": {"app": selector}},
            "template": {
                "metadata": {"labels": {"app": label}},
                "spec": {"containers": [{"name": "web", "image": "web:1"}]},
            },
        }})
    }

    #[test]
    fn a_sound_deployment_is_accepted() {
        assert_eq!(
            faults(DEPLOYMENT, deployment("web", "web"), None),
            Vec::<String>::new()
        );
    }

    #[test]
    fn the_selector_must_match_the_template_and_stay() {
        assert_eq!(
            faults(DEPLOYMENT, deployment("web", "other"), None),
            [
                "spec.template.metadata.labels: Invalid value: map[string]string{\"app\":\"other\"}: `selector` does not match \
              template `labels`"
            ]
        );
        assert_eq!(
            faults(DEPLOYMENT, deployment("b", "b"), Some(deployment("a", "a"))),
            ["spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"b\"}}: field is immutable"]
        );
    }

    #[test]
    fn an_empty_deployment_lacks_everything() {
        assert_eq!(
            faults(DEPLOYMENT, json!({"metadata": {"name": "web"}}), None),
            [
                "spec.selector: Required value",
                "spec.template.spec.containers: Required value"
            ]
        );
    }

    #[test]
    fn pods_are_checked_within() {
        let pod = json!({"metadata": {"name": "Pod"}, "spec": {
            "volumes": [{"name": "data"}],
            "containers": [
                {"name": "a", "image": "x", "ports": [{"containerPort": 70000}], "volumeMounts": [{"name": "dta", "mountPath": "/"}]},
                {"name": "a"},
            ],
        }});
        let found = faults(POD, pod, None);
        assert!(
            found[0].starts_with("metadata.name: Invalid value: \"Pod\": a lowercase RFC 1123 subdomain"),
            "{found:?}"
        );
        assert_eq!(
            found[1..],
            [
                "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
                "spec.containers[0].volumeMounts[0].name: Not found: \"dta\"",
                "spec.containers[1].name: Duplicate value: \"a\"",
                "spec.containers[1].image: Required value",
            ]
        );
    }

    #[test]
    fn requests_stay_below_limits() {
        let resources =
            json!({"limits": {"cpu": "500m", "memory": "1Gi"}, "requests": {"cpu": "1", "memory": "1G"}});
        let pod = json!({"metadata": {"name": "p"}, "spec": {
            "containers": [{"name": "a", "image": "x", "resources": resources}],
        }});
        assert_eq!(
            faults(POD, pod, None),
            [
                "spec.containers[0].resources.requests: Invalid value: \"1\": must be less than or equal to cpu limit of 500m"
            ]
        );
    }

    #[test]
    fn a_pod_may_change_images_and_little_else() {
        let pod = |image: &str, command: &str| json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a", "image": image, "command": [command]}]}});
        assert_eq!(
            faults(POD, pod("b:1", "x"), Some(pod("a:1", "x"))),
            Vec::<String>::new()
        );
        assert_eq!(faults(POD, pod("a:1", "y"), Some(pod("a:1", "x"))).len(), 1);
    }

    #[test]
    fn services_need_ports_and_keep_their_address() {
        let service = |spec: Value| json!({"metadata": {"name": "s"}, "spec": spec});
        assert_eq!(
            faults(SERVICE, service(json!({})), None),
            ["spec.ports: Required value"]
        );
        assert_eq!(
            faults(SERVICE, service(json!({"clusterIP": "None"})), None),
            Vec::<String>::new()
        );
        assert_eq!(
            faults(
                SERVICE,
                service(json!({"type": "Node", "ports": [{"port": 80}]})),
                None
            ),
            [
                "spec.type: Unsupported value: \"Node\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\""
            ]
        );
        assert_eq!(
            faults(
                SERVICE,
                service(json!({"type": "ClusterIP", "ports": [{"port": 80, "nodePort": 30080}]})),
                None
            ),
            ["spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"]
        );
        let with_ip = |ip: &str| service(json!({"clusterIP": ip, "ports": [{"port": 80}]}));
        assert_eq!(
            faults(SERVICE, with_ip("10.0.0.2"), Some(with_ip("10.0.0.1"))),
            ["spec.clusterIPs[0]: Invalid value: []string{\"10.0.0.2\"}: may not change once set"]
        );
    }

    #[test]
    fn immutable_config_maps_are_immutable() {
        let map = |value: &str| json!({"metadata": {"name": "c"}, "immutable": true, "data": {"a": value}});
        assert_eq!(
            faults(("", "v1", "ConfigMap"), map("2"), Some(map("1"))),
            ["data: Forbidden: field is immutable when `immutable` is set"]
        );
    }

    #[test]
    fn jobs_must_say_how_they_end() {
        let job = json!({"metadata": {"name": "j"}, "spec": {"template": {"spec": {"containers": [{"name": "a", "image": "x"}]}}}});
        assert_eq!(
            faults(("batch", "v1", "Job"), job, None),
            ["spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\""]
        );
    }

    #[test]
    fn a_crd_with_an_unstructural_schema_is_refused_with_the_path() {
        let crd = json!({"metadata": {"name": "xs.example.com"}, "spec": {
            "group": "example.com", "scope": "Namespaced", "names": {"plural": "xs", "kind": "X"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {}}}],
        }});
        assert_eq!(
            faults(
                ("apiextensions.k8s.io", "v1", "CustomResourceDefinition"),
                crd,
                None
            ),
            ["spec.validation.openAPIV3Schema.type: Required value: must not be empty at the root"]
        );
    }
}
