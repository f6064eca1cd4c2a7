//! What the API server fills in where a manifest is silent.
//!
//! Two steps, as in Kubernetes: [`Schema::default_`] is a property of the kind and runs on every write and read;
//! [`Schema::prepare_for_create`] happens once. Whatever needs other objects or an allocator (cluster IPs, tokens) is
//! not here.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Value, json};

use super::Schema;
use super::crd;

type Object = Map<String, Value>;

impl Schema {
    pub fn default_(&self, object: &mut Value) {
        let Some(name) = self.builtin_name() else {
            return crd::default(self.root(), object);
        };
        let Value::Object(object) = object else { return };
        match name {
            "core.v1.Pod" => pod(object),
            "core.v1.Service" => service(object),
            "core.v1.Secret" => secret(object),
            "core.v1.Namespace" => {
                if let Some(name) = text(object, &["metadata", "name"]) {
                    let labels = child(child(object, "metadata"), "labels");
                    set(labels, "kubernetes.io/metadata.name", name);
                }
            }
            "core.v1.Endpoints" => {
                for subset in list(object, "subsets") {
                    list(subset, "ports").for_each(|port| set(port, "protocol", "TCP"));
                }
            }
            "core.v1.PersistentVolumeClaim" => set(child(object, "spec"), "volumeMode", "Filesystem"),
            "discovery.v1.EndpointSlice" => {
                for port in list(object, "ports") {
                    set(port, "name", "");
                    set(port, "protocol", "TCP");
                }
            }
            "apps.v1.Deployment" => deployment(child(object, "spec")),
            "apps.v1.ReplicaSet" => {
                let spec = child(object, "spec");
                set(spec, "replicas", 1);
                template(spec);
            }
            "apps.v1.StatefulSet" => stateful_set(child(object, "spec")),
            "apps.v1.DaemonSet" => {
                let spec = child(object, "spec");
                template(spec);
                set(spec, "revisionHistoryLimit", 10);
                let strategy = child(spec, "updateStrategy");
                set(strategy, "type", "RollingUpdate");
                if strategy["type"] == "RollingUpdate" {
                    let rolling = child(strategy, "rollingUpdate");
                    set(rolling, "maxUnavailable", 1);
                    set(rolling, "maxSurge", 0);
                }
            }
            "batch.v1.Job" => job(child(object, "spec")),
            "batch.v1.CronJob" => {
                let spec = child(object, "spec");
                set(spec, "concurrencyPolicy", "Allow");
                set(spec, "suspend", false);
                set(spec, "successfulJobsHistoryLimit", 3);
                set(spec, "failedJobsHistoryLimit", 1);
                template(child(child(spec, "jobTemplate"), "spec"));
            }
            "rbac.v1.RoleBinding" | "rbac.v1.ClusterRoleBinding" => {
                const GROUP: &str = "rbac.authorization.k8s.io";
                set(child(object, "roleRef"), "apiGroup", GROUP);
                for subject in list(object, "subjects") {
                    if let Some("User" | "Group") = subject.get("kind").and_then(Value::as_str) {
                        set(subject, "apiGroup", GROUP);
                    }
                }
            }
            "networking.v1.NetworkPolicy" => network_policy(child(object, "spec")),
            "admissionregistration.v1.MutatingWebhookConfiguration" => {
                list(object, "webhooks").for_each(|hook| set(hook, "reinvocationPolicy", "Never"));
                list(object, "webhooks").for_each(webhook);
            }
            "admissionregistration.v1.ValidatingWebhookConfiguration" => {
                list(object, "webhooks").for_each(webhook)
            }
            "apiextensions.v1.CustomResourceDefinition" => custom_resource_definition(child(object, "spec")),
            "apiregistration.v1.APIService" => {
                if let Some(service) = object
                    .get_mut("spec")
                    .and_then(|spec| spec.get_mut("service"))
                    .and_then(Value::as_object_mut)
                {
                    set(service, "port", 443);
                }
            }
            "authentication.v1.TokenRequest" => set(child(object, "spec"), "expirationSeconds", 3600),
            "scheduling.v1.PriorityClass" => set(object, "preemptionPolicy", "PreemptLowerPriority"),
            "storage.v1.StorageClass" => {
                set(object, "reclaimPolicy", "Delete");
                set(object, "volumeBindingMode", "Immediate");
            }
            _ => {}
        }
    }

    /// What only creation sets. Wants `metadata.uid` to be there already (a Job's selector is made of it).
    pub fn prepare_for_create(&self, object: &mut Value) {
        let Some(name) = self.builtin_name() else { return };
        let Value::Object(object) = object else { return };
        match name {
            "core.v1.Namespace" => {
                let spec = child(object, "spec");
                let finalizers = spec.entry("finalizers").or_insert_with(|| json!([]));
                if let Some(finalizers) = finalizers.as_array_mut()
                    && !finalizers.contains(&json!("kubernetes"))
                {
                    finalizers.push(json!("kubernetes"));
                }
                object.insert("status".to_owned(), json!({"phase": "Active"}));
            }
            "core.v1.Pod" => {
                let class = quality_of_service(object);
                object.insert(
                    "status".to_owned(),
                    json!({"phase": "Pending", "qosClass": class}),
                );
            }
            "batch.v1.Job" => job_selector(object),
            _ => {}
        }
    }
}

/// The object under `key`, made if it is absent.
fn child<'a>(object: &'a mut Object, key: &str) -> &'a mut Object {
    let value = object.entry(key).or_insert_with(|| json!({}));
    if !value.is_object() {
        *value = json!({});
    }
    value.as_object_mut().expect("it was just made an object")
}

fn list<'a>(object: &'a mut Object, key: &str) -> impl Iterator<Item = &'a mut Object> {
    object
        .get_mut(key)
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
        .filter_map(Value::as_object_mut)
}

fn set(object: &mut Object, key: &str, value: impl Into<Value>) {
    if object.get(key).is_none_or(Value::is_null) {
        object.insert(key.to_owned(), value.into());
    }
}

fn text(object: &Object, path: &[&str]) -> Option<String> {
    let (last, path) = path.split_last()?;
    let mut object = object;
    for key in path {
        object = object.get(*key)?.as_object()?;
    }
    object.get(*last)?.as_str().map(str::to_owned)
}

fn template(spec: &mut Object) {
    let template = child(spec, "template");
    child(template, "metadata");
    pod_spec(child(template, "spec"));
}

fn deployment(spec: &mut Object) {
    set(spec, "replicas", 1);
    set(spec, "revisionHistoryLimit", 10);
    set(spec, "progressDeadlineSeconds", 600);
    let strategy = child(spec, "strategy");
    set_text(strategy, "type", "RollingUpdate");
    if strategy["type"] == "RollingUpdate" {
        let rolling = child(strategy, "rollingUpdate");
        set(rolling, "maxUnavailable", "25%");
        set(rolling, "maxSurge", "25%");
    }
    template(spec);
}

/// Like [`set`], for strings that are values in Go, where the empty string is absence.
fn set_text(object: &mut Object, key: &str, value: &str) {
    if object.get(key).is_none_or(|value| value.is_null() || value == "") {
        object.insert(key.to_owned(), Value::from(value));
    }
}

fn stateful_set(spec: &mut Object) {
    set_text(spec, "podManagementPolicy", "OrderedReady");
    let strategy = child(spec, "updateStrategy");
    set_text(strategy, "type", "RollingUpdate");
    if strategy["type"] == "RollingUpdate" {
        set(child(strategy, "rollingUpdate"), "partition", 0);
    }
    let retention = child(spec, "persistentVolumeClaimRetentionPolicy");
    set_text(retention, "whenDeleted", "Retain");
    set_text(retention, "whenScaled", "Retain");
    set(spec, "replicas", 1);
    set(spec, "revisionHistoryLimit", 10);
    template(spec);
}

fn job(spec: &mut Object) {
    if spec.get("completions").is_none() && spec.get("parallelism").is_none() {
        set(spec, "completions", 1);
    }
    set(spec, "parallelism", 1);
    let per_index = spec.get("backoffLimitPerIndex").is_some();
    set(spec, "backoffLimit", if per_index { i32::MAX } else { 6 });
    set(spec, "completionMode", "NonIndexed");
    set(spec, "suspend", false);
    set(spec, "manualSelector", false);
    let policy = if spec.get("podFailurePolicy").is_some() {
        "Failed"
    } else {
        "TerminatingOrFailed"
    };
    set(spec, "podReplacementPolicy", policy);
    template(spec);
}

fn job_selector(job: &mut Object) {
    let (Some(uid), name) = (
        text(job, &["metadata", "uid"]),
        text(job, &["metadata", "name"]).unwrap_or_default(),
    ) else {
        return;
    };
    let spec = child(job, "spec");
    if spec.get("manualSelector") == Some(&Value::Bool(true)) {
        return;
    }
    let labels = child(child(child(spec, "template"), "metadata"), "labels");
    for (key, value) in [
        ("controller-uid", &uid),
        ("job-name", &name),
        ("batch.kubernetes.io/controller-uid", &uid),
        ("batch.kubernetes.io/job-name", &name),
    ] {
        set(labels, key, value.as_str());
    }
    let matched = child(child(spec, "selector"), "matchLabels");
    set(matched, "batch.kubernetes.io/controller-uid", uid.as_str());
}

fn pod(pod: &mut Object) {
    let spec = child(pod, "spec");
    set(spec, "enableServiceLinks", true);
    for containers in ["containers", "initContainers"] {
        for container in list(spec, containers) {
            requests_from_limits(container);
        }
    }
    pod_spec(spec);
}

fn requests_from_limits(container: &mut Object) {
    let Some(resources) = container.get_mut("resources").and_then(Value::as_object_mut) else {
        return;
    };
    let Some(limits) = resources.get("limits").and_then(Value::as_object).cloned() else {
        return;
    };
    let requests = child(resources, "requests");
    for (name, limit) in limits {
        set(requests, &name, limit);
    }
}

fn pod_spec(spec: &mut Object) {
    set_text(spec, "restartPolicy", "Always");
    set_text(spec, "dnsPolicy", "ClusterFirst");
    set(spec, "terminationGracePeriodSeconds", 30);
    set(spec, "securityContext", json!({}));
    set_text(spec, "schedulerName", "default-scheduler");
    // One field under two names, the older of them deprecated.
    for (from, to) in [
        ("serviceAccountName", "serviceAccount"),
        ("serviceAccount", "serviceAccountName"),
    ] {
        if let Some(name) = spec
            .get(from)
            .and_then(Value::as_str)
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
        {
            set_text(spec, to, &name);
        }
    }
    let host_network = spec.get("hostNetwork") == Some(&Value::Bool(true));
    for containers in ["containers", "initContainers", "ephemeralContainers"] {
        list(spec, containers).for_each(|container| self::container(container, host_network));
    }
    list(spec, "volumes").for_each(volume);
}

fn container(container: &mut Object, host_network: bool) {
    set_text(container, "terminationMessagePath", "/dev/termination-log");
    set_text(container, "terminationMessagePolicy", "File");
    let image = container.get("image").and_then(Value::as_str).unwrap_or_default();
    let policy = if is_latest(image) {
        "Always"
    } else {
        "IfNotPresent"
    };
    set_text(container, "imagePullPolicy", policy);
    set(container, "resources", json!({}));
    for port in list(container, "ports") {
        set_text(port, "protocol", "TCP");
        if host_network && let Some(number) = port.get("containerPort").cloned() {
            set(port, "hostPort", number);
        }
    }
    for variable in list(container, "env") {
        if let Some(reference) = variable
            .get_mut("valueFrom")
            .and_then(|from| from.get_mut("fieldRef"))
        {
            field_reference(reference);
        }
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = container.get_mut(name).and_then(Value::as_object_mut) {
            for (key, value) in [
                ("timeoutSeconds", 1),
                ("periodSeconds", 10),
                ("successThreshold", 1),
                ("failureThreshold", 3),
            ] {
                if probe.get(key).is_none_or(|given| given.is_null() || given == 0) {
                    probe.insert(key.to_owned(), Value::from(value));
                }
            }
            handler(probe);
        }
    }
    for hook in ["postStart", "preStop"] {
        let hook = container
            .get_mut("lifecycle")
            .and_then(|lifecycle| lifecycle.get_mut(hook));
        if let Some(hook) = hook.and_then(Value::as_object_mut) {
            handler(hook);
        }
    }
}

fn is_latest(image: &str) -> bool {
    if image.contains('@') {
        return false;
    }
    let last = image.rsplit('/').next().unwrap_or(image);
    last.split_once(':').is_none_or(|(_, tag)| tag == "latest")
}

fn handler(handler: &mut Object) {
    if let Some(get) = handler.get_mut("httpGet").and_then(Value::as_object_mut) {
        set_text(get, "path", "/");
        set_text(get, "scheme", "HTTP");
    }
    if let Some(grpc) = handler.get_mut("grpc").and_then(Value::as_object_mut) {
        set(grpc, "service", "");
    }
}

fn field_reference(reference: &mut Value) {
    if let Some(reference) = reference.as_object_mut() {
        set_text(reference, "apiVersion", "v1");
    }
}

fn volume(volume: &mut Object) {
    if volume.keys().all(|key| key == "name") {
        volume.insert("emptyDir".to_owned(), json!({}));
    }
    for source in ["secret", "configMap", "downwardAPI", "projected"] {
        let Some(source) = volume.get_mut(source).and_then(Value::as_object_mut) else {
            continue;
        };
        set(source, "defaultMode", 0o644);
        downward_items(source);
        for projection in list(source, "sources") {
            if let Some(token) = projection
                .get_mut("serviceAccountToken")
                .and_then(Value::as_object_mut)
            {
                set(token, "expirationSeconds", 3600);
            }
            if let Some(downward) = projection.get_mut("downwardAPI").and_then(Value::as_object_mut) {
                downward_items(downward);
            }
        }
    }
    if let Some(path) = volume.get_mut("hostPath").and_then(Value::as_object_mut) {
        set(path, "type", "");
    }
}

fn downward_items(source: &mut Object) {
    for item in list(source, "items") {
        if let Some(reference) = item.get_mut("fieldRef") {
            field_reference(reference);
        }
    }
}

fn quality_of_service(pod: &Object) -> &'static str {
    let spec = pod.get("spec");
    let containers = ["containers", "initContainers"]
        .iter()
        .filter_map(|name| spec?.get(name)?.as_array())
        .flatten();
    let mut any = false;
    let mut guaranteed = true;
    for container in containers {
        let amounts = |kind: &str| {
            container
                .get("resources")
                .and_then(|resources| resources.get(kind))
                .cloned()
                .unwrap_or_default()
        };
        let (limits, requests) = (amounts("limits"), amounts("requests"));
        for resource in ["cpu", "memory"] {
            let limit = limits.get(resource);
            any |= limit.is_some() || requests.get(resource).is_some();
            guaranteed &= limit.is_some()
                && requests
                    .get(resource)
                    .is_none_or(|request| Some(request) == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

fn service(service: &mut Object) {
    let spec = child(service, "spec");
    set_text(spec, "sessionAffinity", "None");
    set_text(spec, "type", "ClusterIP");
    if spec["sessionAffinity"] == "ClientIP" {
        set(
            child(child(spec, "sessionAffinityConfig"), "clientIP"),
            "timeoutSeconds",
            10800,
        );
    }
    for port in list(spec, "ports") {
        set_text(port, "protocol", "TCP");
        if port
            .get("targetPort")
            .is_none_or(|target| target.is_null() || target == 0 || target == "")
            && let Some(number) = port.get("port").cloned()
        {
            port.insert("targetPort".to_owned(), number);
        }
    }
    let kind = spec["type"].as_str().unwrap_or_default().to_owned();
    let outside = ["NodePort", "LoadBalancer"].contains(&kind.as_str());
    if outside {
        set_text(spec, "externalTrafficPolicy", "Cluster");
    }
    if outside || kind == "ClusterIP" {
        set(spec, "internalTrafficPolicy", "Cluster");
        set(spec, "ipFamilies", json!(["IPv4"]));
        set(spec, "ipFamilyPolicy", "SingleStack");
        if let Some(ip) = spec
            .get("clusterIP")
            .and_then(Value::as_str)
            .filter(|ip| !ip.is_empty())
            .map(str::to_owned)
        {
            set(spec, "clusterIPs", json!([ip]));
        }
    }
    if kind == "LoadBalancer" {
        set(spec, "allocateLoadBalancerNodePorts", true);
    }
    set(child(service, "status"), "loadBalancer", json!({}));
}

fn secret(secret: &mut Object) {
    set_text(secret, "type", "Opaque");
    // Write-only convenience: it is never stored.
    if let Some(Value::Object(plain)) = secret.remove("stringData") {
        let data = child(secret, "data");
        for (key, value) in plain {
            if let Value::String(value) = value {
                data.insert(key, Value::String(BASE64.encode(value)));
            }
        }
    }
}

fn network_policy(spec: &mut Object) {
    if spec.get("policyTypes").is_none_or(Value::is_null) {
        let egress = spec
            .get("egress")
            .and_then(Value::as_array)
            .is_some_and(|rules| !rules.is_empty());
        let types = if egress {
            json!(["Ingress", "Egress"])
        } else {
            json!(["Ingress"])
        };
        spec.insert("policyTypes".to_owned(), types);
    }
    for rules in ["ingress", "egress"] {
        for rule in list(spec, rules) {
            list(rule, "ports").for_each(|port| set(port, "protocol", "TCP"));
        }
    }
}

fn webhook(webhook: &mut Object) {
    set(webhook, "failurePolicy", "Fail");
    set(webhook, "matchPolicy", "Equivalent");
    set(webhook, "namespaceSelector", json!({}));
    set(webhook, "objectSelector", json!({}));
    set(webhook, "timeoutSeconds", 10);
    list(webhook, "rules").for_each(|rule| set(rule, "scope", "*"));
    let service = webhook
        .get_mut("clientConfig")
        .and_then(|config| config.get_mut("service"));
    if let Some(service) = service.and_then(Value::as_object_mut) {
        set(service, "port", 443);
    }
}

fn custom_resource_definition(spec: &mut Object) {
    set(child(spec, "conversion"), "strategy", "None");
    let names = child(spec, "names");
    if let Some(kind) = names.get("kind").and_then(Value::as_str).map(str::to_owned) {
        set_text(names, "singular", &kind.to_lowercase());
        set_text(names, "listKind", &format!("{kind}List"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defaulted(kind: (&str, &str, &str), mut object: Value) -> Value {
        Schema::for_kind(kind.0, kind.1, kind.2)
            .expect("the kind is built in")
            .default_(&mut object);
        object
    }

    #[test]
    fn a_bare_deployment_gets_what_kubernetes_gives_it() {
        let container = json!({"name": "web", "image": "nginx", "ports": [{"containerPort": 80}]});
        let object = defaulted(
            ("apps", "v1", "Deployment"),
            json!({"spec": {"template": {"spec": {"containers": [container]}}}}),
        );
        assert_eq!(
            object,
            json!({"spec": {
                "replicas": 1,
                "revisionHistoryLimit": 10,
                "progressDeadlineSeconds": 600,
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}},
                "template": {
                    "metadata": {},
                    "spec": {
                        "containers": [{
                            "name": "web",
                            "image": "nginx",
                            "imagePullPolicy": "Always",
                            "ports": [{"containerPort": 80, "protocol": "TCP"}],
                            "resources": {},
                            "terminationMessagePath": "/dev/termination-log",
                            "terminationMessagePolicy": "File",
                        }],
                        "dnsPolicy": "ClusterFirst",
                        "restartPolicy": "Always",
                        "schedulerName": "default-scheduler",
                        "securityContext": {},
                        "terminationGracePeriodSeconds": 30,
                    },
                },
            }})
        );
    }

    #[test]
    fn a_service_port_targets_itself() {
        let object = defaulted(("", "v1", "Service"), json!({"spec": {"ports": [{"port": 80}]}}));
        assert_eq!(
            object["spec"]["ports"],
            json!([{"port": 80, "protocol": "TCP", "targetPort": 80}])
        );
        assert_eq!(object["spec"]["type"], "ClusterIP");
    }

    #[test]
    fn defaults_are_stable() {
        for kind in super::super::builtin().resources() {
            let schema = Schema::for_kind(kind.group, kind.version, kind.kind).expect("it is built in");
            let mut once = json!({"metadata": {"name": "x"}, "spec": {"sessionAffinity": "ClientIP", "type": "LoadBalancer"}});
            schema.default_(&mut once);
            let mut twice = once.clone();
            schema.default_(&mut twice);
            assert_eq!(once, twice, "{}", kind.kind);
        }
    }

    #[test]
    fn string_data_becomes_data() {
        let object = defaulted(("", "v1", "Secret"), json!({"stringData": {"a": "b"}}));
        assert_eq!(object, json!({"type": "Opaque", "data": {"a": "Yg=="}}));
    }

    #[test]
    fn a_new_job_selects_by_its_uid() {
        let schema = Schema::for_kind("batch", "v1", "Job").expect("Job is built in");
        let mut object = json!({"metadata": {"name": "j", "uid": "u"}, "spec": {"template": {}}});
        schema.prepare_for_create(&mut object);
        assert_eq!(
            object["spec"]["selector"],
            json!({"matchLabels": {"batch.kubernetes.io/controller-uid": "u"}})
        );
        assert_eq!(object["spec"]["template"]["metadata"]["labels"]["job-name"], "j");
    }

    #[test]
    fn images_without_tag_are_always_pulled() {
        for (image, latest) in [
            ("a", true),
            ("a:latest", true),
            ("a:1", false),
            ("host:5000/a", true),
            ("a@sha256:00", false),
        ] {
            assert_eq!(is_latest(image), latest, "{image}");
        }
    }
}
