//! The CustomResourceDefinitions, with structural schemas.
//!
//! Written out rather than derived: a CRD is an interface of its own that must not move because a Rust type did, and
//! the versions differ in ways that a type can't say. The golden files next to the tests show every change.

use serde_json::{Map, Value, json};

/// `links.multicluster.linkerd.io`.
pub fn links() -> Value {
    let version = |name: &str, stored: bool| {
        let status = name != "v1alpha1";
        let mut schema = json!({
            "type": "object",
            "description": "A Link imports the services that another cluster exports.",
            "properties": { "apiVersion": string(), "kind": string(), "metadata": {"type": "object"}, "spec": link_spec(name) },
        });
        let mut version = json!({"name": name, "served": true, "storage": stored});
        if status {
            schema["properties"]["status"] = link_status();
            version["subresources"] = json!({"status": {}});
        }
        version["schema"] = json!({"openAPIV3Schema": schema});
        version
    };
    crd(
        Names {
            group: "multicluster.linkerd.io",
            kind: "Link",
            plural: "links",
            singular: "link",
            short: &[],
        },
        "multicluster",
        vec![
            version("v1alpha1", false),
            version("v1alpha2", false),
            version("v1alpha3", true),
        ],
    )
}

/// `trafficsplits.split.smi-spec.io`.
pub fn traffic_splits() -> Value {
    let version = |name: &str, stored: bool, weight: Value| {
        json!({
            "name": name, "served": true, "storage": stored,
            "additionalPrinterColumns": [
                {"name": "Service", "type": "string", "description": "The apex service of this split.", "jsonPath": ".spec.service"},
            ],
            "schema": {"openAPIV3Schema": object(&[
                ("apiVersion", string()),
                ("kind", string()),
                ("metadata", json!({"type": "object"})),
                ("spec", object(&[
                    ("service", described(string(), "The apex service of this split.")),
                    ("backends", array(object(&[("service", string()), ("weight", weight)], &["service", "weight"]))),
                ], &["service", "backends"])),
            ], &["spec"])},
        })
    };
    // What is stored may have been written through either version, so both accept both forms.
    let quantity = json!({"x-kubernetes-int-or-string": true, "description": "A share, relative to the other backends: 50 or 500m."});
    crd(
        Names {
            group: "split.smi-spec.io",
            kind: "TrafficSplit",
            plural: "trafficsplits",
            singular: "trafficsplit",
            short: &["ts"],
        },
        "",
        vec![
            version("v1alpha1", true, quantity),
            version("v1alpha2", false, json!({"type": "number", "minimum": 0})),
        ],
    )
}

/// `servers.policy.linkerd.io`.
pub fn servers() -> Value {
    let protocol = json!({
        "type": "string", "default": "unknown",
        "enum": ["unknown", "HTTP/1", "HTTP/2", "gRPC", "opaque", "TLS"],
        "description": "The protocol of the port; unknown means that the proxy detects it.",
    });
    let port = json!({"x-kubernetes-int-or-string": true, "description": "A port number or the name of a container port."});
    let version = |name: &str, served: bool, stored: bool| {
        let mut spec = vec![
            ("podSelector", selector()),
            ("port", port.clone()),
            ("proxyProtocol", protocol.clone()),
        ];
        let mut schema = if name == "v1beta1" {
            object(&spec, &["podSelector", "port"])
        } else {
            spec.push(("externalWorkloadSelector", selector()));
            if name == "v1beta3" {
                spec.push((
                    "accessPolicy",
                    json!({"type": "string", "default": "deny", "description": "Who may connect when no authorization says anything: deny, audit, or one of the default inbound policies."}),
                ));
            }
            object(&spec, &["port"])
        };
        if name != "v1beta1" {
            schema["oneOf"] =
                json!([{"required": ["podSelector"]}, {"required": ["externalWorkloadSelector"]}]);
        }
        let mut version = policy_version(name, stored, schema);
        version["served"] = served.into();
        version["additionalPrinterColumns"] = json!([
            {"name": "Port", "type": "string", "description": "The port of the server.", "jsonPath": ".spec.port"},
            {"name": "Protocol", "type": "string", "description": "The protocol of the server.", "jsonPath": ".spec.proxyProtocol"},
        ]);
        if name == "v1beta3" {
            push(
                &mut version["additionalPrinterColumns"],
                json!({"name": "Access Policy", "type": "string", "description": "What happens to traffic that no authorization allows.", "jsonPath": ".spec.accessPolicy"}),
            );
        }
        version
    };
    crd(
        policy_names("Server", "servers", "server", &["srv"]),
        "",
        vec![
            version("v1beta1", true, false),
            version("v1beta2", true, false),
            version("v1beta3", true, true),
        ],
    )
}

/// `serverauthorizations.policy.linkerd.io`.
pub fn server_authorizations() -> Value {
    let client = object(
        &[
            ("networks", networks()),
            (
                "unauthenticated",
                described(
                    json!({"type": "boolean"}),
                    "Lets in clients without any identity.",
                ),
            ),
            (
                "meshTLS",
                object(
                    &[
                        (
                            "unauthenticatedTLS",
                            described(
                                json!({"type": "boolean"}),
                                "Lets in clients that use TLS without an identity.",
                            ),
                        ),
                        ("identities", identities()),
                        (
                            "serviceAccounts",
                            array(object(&[("name", string()), ("namespace", string())], &["name"])),
                        ),
                    ],
                    &[],
                ),
            ),
        ],
        &[],
    );
    let mut server = object(&[("name", string()), ("selector", selector())], &[]);
    server["oneOf"] = json!([{"required": ["name"]}, {"required": ["selector"]}]);
    let spec = object(&[("server", server), ("client", client)], &["server", "client"]);
    let mut version = policy_version("v1beta1", true, spec);
    version["additionalPrinterColumns"] = json!([
        {"name": "Server", "type": "string", "description": "The server that this authorization is for.", "jsonPath": ".spec.server.name"},
    ]);
    crd(
        policy_names(
            "ServerAuthorization",
            "serverauthorizations",
            "serverauthorization",
            &["saz", "serverauthz", "srvauthz"],
        ),
        "",
        vec![version],
    )
}

/// `authorizationpolicies.policy.linkerd.io`.
pub fn authorization_policies() -> Value {
    let target = object(
        &[("group", group()), ("kind", name()), ("name", name())],
        &["kind", "name"],
    );
    let authentication = object(
        &[
            ("group", group()),
            ("kind", name()),
            ("name", name()),
            ("namespace", namespace()),
        ],
        &["kind", "name"],
    );
    let spec = object(
        &[
            (
                "targetRef",
                described(target, "The Server, route or Namespace that the policy is for."),
            ),
            (
                "requiredAuthenticationRefs",
                described(array(authentication), "All of them must be satisfied."),
            ),
        ],
        &["targetRef", "requiredAuthenticationRefs"],
    );
    crd(
        policy_names(
            "AuthorizationPolicy",
            "authorizationpolicies",
            "authorizationpolicy",
            &["authzpolicy"],
        ),
        "",
        vec![policy_version("v1alpha1", true, spec)],
    )
}

/// `meshtlsauthentications.policy.linkerd.io`.
pub fn mesh_tls_authentications() -> Value {
    let reference = object(
        &[
            ("group", group()),
            ("kind", name()),
            ("name", name()),
            ("namespace", namespace()),
        ],
        &["kind"],
    );
    let mut spec = object(
        &[
            ("identities", with(identities(), "minItems", json!(1))),
            ("identityRefs", with(array(reference), "minItems", json!(1))),
        ],
        &[],
    );
    spec["oneOf"] = json!([{"required": ["identities"]}, {"required": ["identityRefs"]}]);
    crd(
        policy_names(
            "MeshTLSAuthentication",
            "meshtlsauthentications",
            "meshtlsauthentication",
            &["meshtlsauthn"],
        ),
        "",
        vec![policy_version("v1alpha1", true, spec)],
    )
}

/// `networkauthentications.policy.linkerd.io`.
pub fn network_authentications() -> Value {
    let spec = object(
        &[("networks", with(networks(), "minItems", json!(1)))],
        &["networks"],
    );
    crd(
        policy_names(
            "NetworkAuthentication",
            "networkauthentications",
            "networkauthentication",
            &["netauthn", "networkauthn"],
        ),
        "",
        vec![policy_version("v1alpha1", true, spec)],
    )
}

/// `httproutes.policy.linkerd.io`. The Gateway API's own routes come with the Gateway API.
pub fn http_routes() -> Value {
    let one_of =
        |values: &[&str], default: &str| json!({"type": "string", "enum": values, "default": default});
    let port = || json!({"type": "integer", "format": "int32", "minimum": 1, "maximum": 65535});
    let header = || object(&[("name", name()), ("value", string())], &["name", "value"]);
    let headers = || {
        object(
            &[
                ("set", array(header())),
                ("add", array(header())),
                ("remove", array(string())),
            ],
            &[],
        )
    };
    let named = || {
        let how = one_of(&["Exact", "RegularExpression"], "Exact");
        let fields = [("type", how), ("name", name()), ("value", string())];
        array(object(&fields, &["name", "value"]))
    };
    let path = object(
        &[
            (
                "type",
                one_of(&["Exact", "PathPrefix", "RegularExpression"], "PathPrefix"),
            ),
            (
                "value",
                json!({"type": "string", "maxLength": 1024, "default": "/"}),
            ),
        ],
        &[],
    );
    let matches = object(
        &[
            ("path", path),
            ("headers", named()),
            ("queryParams", named()),
            ("method", string()),
        ],
        &[],
    );
    let redirect_path = object(
        &[
            (
                "type",
                json!({"type": "string", "enum": ["ReplaceFullPath", "ReplacePrefixMatch"]}),
            ),
            ("replaceFullPath", string()),
            ("replacePrefixMatch", string()),
        ],
        &["type"],
    );
    let redirect = object(
        &[
            ("scheme", json!({"type": "string", "enum": ["http", "https"]})),
            ("hostname", string()),
            ("path", redirect_path),
            ("port", port()),
            (
                "statusCode",
                json!({"type": "integer", "enum": [301, 302, 303, 307, 308], "default": 302}),
            ),
        ],
        &[],
    );
    let filters = || {
        let kinds = json!({"type": "string", "enum": ["RequestHeaderModifier", "ResponseHeaderModifier", "RequestRedirect"]});
        array(object(
            &[
                ("type", kinds),
                ("requestHeaderModifier", headers()),
                ("responseHeaderModifier", headers()),
                ("requestRedirect", redirect.clone()),
            ],
            &["type"],
        ))
    };
    let backend = object(
        &[
            ("group", with(group(), "default", json!(""))),
            ("kind", with(name(), "default", json!("Service"))),
            ("name", name()),
            ("namespace", namespace()),
            ("port", port()),
            (
                "weight",
                json!({"type": "integer", "format": "int32", "minimum": 0, "maximum": 1_000_000, "default": 1}),
            ),
            ("filters", filters()),
        ],
        &["name"],
    );
    let rule = object(
        &[
            ("matches", array(matches)),
            ("filters", filters()),
            ("backendRefs", array(backend)),
            (
                "timeouts",
                object(&[("request", string()), ("backendRequest", string())], &[]),
            ),
        ],
        &[],
    );
    let parent = object(
        &[
            ("group", group()),
            ("kind", name()),
            ("name", name()),
            ("namespace", namespace()),
            ("sectionName", name()),
            ("port", port()),
        ],
        &["name"],
    );
    let spec = object(
        &[
            (
                "parentRefs",
                described(array(parent), "The Services or Servers that the route is for."),
            ),
            (
                "hostnames",
                described(array(string()), "Hosts of requests, or *.suffix; all if empty."),
            ),
            ("rules", described(array(rule), "The best match decides.")),
        ],
        &[],
    );
    let version = |name: &str, stored: bool| {
        let mut version = policy_version(name, stored, spec.clone());
        version["schema"]["openAPIV3Schema"]["properties"]["status"] =
            json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
        version["subresources"] = json!({"status": {}});
        version
    };
    crd(
        policy_names("HTTPRoute", "httproutes", "httproute", &[]),
        "",
        vec![
            version("v1alpha1", false),
            version("v1beta1", false),
            version("v1beta2", false),
            version("v1beta3", true),
        ],
    )
}

/// What the control plane's policy controller reads.
pub fn policy() -> Vec<Value> {
    vec![
        servers(),
        server_authorizations(),
        authorization_policies(),
        mesh_tls_authentications(),
        network_authentications(),
    ]
}

/// Every CustomResourceDefinition of this crate.
pub fn all() -> Vec<Value> {
    let mut all = policy();
    all.extend([http_routes(), links(), traffic_splits()]);
    all
}

fn link_spec(version: &str) -> Value {
    let period = if version == "v1alpha1" {
        string()
    } else {
        with(string(), "format", json!("duration"))
    };
    let mut fields = vec![
        (
            "clusterCredentialsSecret",
            described(string(), "Secret that holds the target's kubeconfig."),
        ),
        (
            "gatewayAddress",
            described(
                string(),
                "Addresses of the target's gateway, separated by commas.",
            ),
        ),
        (
            "gatewayIdentity",
            described(string(), "Identity that the target's gateway must prove."),
        ),
        (
            "gatewayPort",
            described(string(), "Port of the target's gateway."),
        ),
        (
            "probeSpec",
            described(
                object(
                    &[
                        (
                            "failureThreshold",
                            described(
                                with(string(), "default", json!("3")),
                                "Failed probes in a row after which the gateway counts as dead.",
                            ),
                        ),
                        (
                            "path",
                            described(string(), "Path of the probe; empty means no probing."),
                        ),
                        ("period", described(period, "Time between probes.")),
                        ("port", described(string(), "Port of the probe.")),
                        (
                            "timeout",
                            described(
                                with(
                                    with(string(), "default", json!("30s")),
                                    "format",
                                    json!("duration"),
                                ),
                                "How long one probe may take.",
                            ),
                        ),
                    ],
                    &[],
                ),
                "How the gateway's health is found out.",
            ),
        ),
        (
            "selector",
            described(
                selector(),
                "Services to mirror behind the gateway. Empty selects nothing.",
            ),
        ),
        (
            "remoteDiscoverySelector",
            described(
                selector(),
                "Services to mirror without the gateway. Empty selects nothing.",
            ),
        ),
        (
            "targetClusterName",
            described(string(), "Name of the target cluster."),
        ),
        (
            "targetClusterDomain",
            described(string(), "DNS domain of the target cluster."),
        ),
        (
            "targetClusterLinkerdNamespace",
            described(string(), "Namespace of the target's control plane."),
        ),
    ];
    if version != "v1alpha1" {
        fields.push((
            "federatedServiceSelector",
            described(
                selector(),
                "Services that join a federated service. Empty selects nothing.",
            ),
        ));
    }
    if version == "v1alpha3" {
        fields.push((
            "excludedAnnotations",
            described(array(string()), "Annotations that aren't copied."),
        ));
        fields.push((
            "excludedLabels",
            described(array(string()), "Labels that aren't copied."),
        ));
    }
    object(&fields, &[])
}

fn link_status() -> Value {
    let reference = |extra: &[&str]| {
        let mut required = vec!["name", "namespace"];
        required.extend(extra);
        object(
            &[
                (
                    "group",
                    json!({"type": "string", "maxLength": 253, "default": "core"}),
                ),
                ("kind", name()),
                ("name", name()),
                ("namespace", namespace()),
            ],
            &required,
        )
    };
    let condition = object(
        &[
            (
                "lastTransitionTime",
                json!({"type": "string", "format": "date-time"}),
            ),
            ("message", json!({"type": "string", "maxLength": 32768})),
            (
                "reason",
                json!({"type": "string", "minLength": 1, "maxLength": 1024, "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"}),
            ),
            (
                "status",
                json!({"type": "string", "enum": ["True", "False", "Unknown"]}),
            ),
            ("type", json!({"type": "string", "maxLength": 316})),
            ("localRef", reference(&[])),
        ],
        &["lastTransitionTime", "message", "reason", "status", "type"],
    );
    let service = object(
        &[
            ("conditions", array(condition.clone())),
            ("controllerName", described(string(), "Who writes this entry.")),
            ("remoteRef", reference(&["group", "kind"])),
        ],
        &["controllerName", "remoteRef"],
    );
    object(
        &[
            (
                "mirrorServices",
                described(array(service.clone()), "Services mirrored through this Link."),
            ),
            (
                "federatedServices",
                described(array(service), "Services this Link adds to federated services."),
            ),
            (
                "conditions",
                described(
                    array(condition),
                    "Whether the Link as a whole works, and if not, why.",
                ),
            ),
        ],
        &[],
    )
}

struct Names<'a> {
    group: &'a str,
    kind: &'a str,
    plural: &'a str,
    singular: &'a str,
    short: &'a [&'a str],
}

fn policy_names<'a>(kind: &'a str, plural: &'a str, singular: &'a str, short: &'a [&'a str]) -> Names<'a> {
    Names {
        group: "policy.linkerd.io",
        kind,
        plural,
        singular,
        short,
    }
}

fn policy_version(name: &str, stored: bool, spec: Value) -> Value {
    json!({
        "name": name, "served": true, "storage": stored,
        "schema": {"openAPIV3Schema": object(&[
            ("apiVersion", string()),
            ("kind", string()),
            ("metadata", json!({"type": "object"})),
            ("spec", spec),
        ], &["spec"])},
    })
}

fn crd(names: Names<'_>, extension: &str, versions: Vec<Value>) -> Value {
    let Names {
        group,
        kind,
        plural,
        singular,
        short,
    } = names;
    let mut metadata = json!({"name": format!("{plural}.{group}")});
    if extension.is_empty() {
        metadata["labels"] = json!({"linkerd.io/control-plane-ns": "linkerd"});
    } else {
        metadata["labels"] = json!({crate::keys::EXTENSION: extension});
    }
    let mut names =
        json!({"kind": kind, "listKind": format!("{kind}List"), "plural": plural, "singular": singular});
    if !short.is_empty() {
        names["shortNames"] = json!(short);
    }
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": metadata,
        "spec": {"group": group, "names": names, "scope": "Namespaced", "versions": versions},
    })
}

fn object(fields: &[(&str, Value)], required: &[&str]) -> Value {
    let properties: Map<String, Value> = fields
        .iter()
        .map(|(name, schema)| ((*name).to_owned(), schema.clone()))
        .collect();
    let mut schema = json!({"type": "object", "properties": properties});
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    schema
}

fn array(items: Value) -> Value {
    json!({"type": "array", "items": items})
}

fn string() -> Value {
    json!({"type": "string"})
}

fn with(mut schema: Value, key: &str, value: Value) -> Value {
    schema[key] = value;
    schema
}

fn described(schema: Value, text: &str) -> Value {
    with(schema, "description", text.into())
}

fn push(array: &mut Value, item: Value) {
    if let Value::Array(items) = array {
        items.push(item);
    }
}

fn group() -> Value {
    json!({"type": "string", "maxLength": 253})
}

fn name() -> Value {
    json!({"type": "string", "minLength": 1, "maxLength": 253})
}

fn namespace() -> Value {
    json!({"type": "string", "minLength": 1, "maxLength": 63})
}

fn identities() -> Value {
    // A name, a name under `*.`, or `*` for every client that proves any identity of the mesh.
    let pattern =
        r"^(\*|(\*\.)?[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*|spiffe://.+)$";
    array(json!({"type": "string", "pattern": pattern}))
}

fn networks() -> Value {
    array(object(
        &[("cidr", string()), ("except", array(string()))],
        &["cidr"],
    ))
}

fn selector() -> Value {
    let mut requirement = object(
        &[
            ("key", string()),
            ("operator", string()),
            ("values", array(string())),
        ],
        &["key", "operator"],
    );
    requirement["properties"]["operator"]["enum"] = json!(["In", "NotIn", "Exists", "DoesNotExist"]);
    object(
        &[
            ("matchExpressions", array(requirement)),
            (
                "matchLabels",
                json!({"type": "object", "additionalProperties": {"type": "string"}}),
            ),
        ],
        &[],
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    /// Compares with `golden/<name>.json`; `UPDATE_GOLDEN=1` rewrites it.
    fn golden(name: &str, value: &Value) {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("golden")
            .join(format!("{name}.json"));
        let text = format!("{value:#}\n");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &text).unwrap();
        }
        let expected: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(
            value,
            &expected,
            "{} differs; UPDATE_GOLDEN=1 rewrites it",
            path.display()
        );
    }

    #[test]
    fn definitions_are_what_was_reviewed() {
        for crd in all() {
            golden(crd["spec"]["names"]["plural"].as_str().unwrap(), &crd);
        }
    }

    /// A structural schema gives every node a type (or is int-or-string), and nothing else decides types.
    fn assert_structural(schema: &Value, path: &str) {
        assert!(
            schema["type"].is_string() || schema["x-kubernetes-int-or-string"] == json!(true),
            "{path} has no type"
        );
        for (name, child) in schema["properties"].as_object().into_iter().flatten() {
            assert_structural(child, &format!("{path}.{name}"));
        }
        for key in ["items", "additionalProperties"] {
            if schema[key].is_object() {
                assert_structural(&schema[key], &format!("{path}[]"));
            }
        }
        for required in schema["required"].as_array().into_iter().flatten() {
            assert!(
                schema["properties"][required.as_str().unwrap()].is_object(),
                "{path} requires {required}"
            );
        }
    }

    #[test]
    fn schemas_are_structural_and_exactly_one_version_is_stored() {
        for crd in all() {
            let versions = crd["spec"]["versions"].as_array().unwrap();
            assert_eq!(
                versions
                    .iter()
                    .filter(|version| version["storage"] == json!(true))
                    .count(),
                1
            );
            for version in versions {
                let path = format!("{} {}", crd["metadata"]["name"], version["name"]);
                assert_structural(&version["schema"]["openAPIV3Schema"], &path);
            }
        }
    }

    #[test]
    fn the_types_speak_a_served_version() {
        use crate::{
            AuthorizationPolicy, Link, MeshTLSAuthentication, NetworkAuthentication, Server,
            ServerAuthorization, TrafficSplit,
        };
        let served = |crd: &Value, version: &str| {
            crd["spec"]["versions"]
                .as_array()
                .unwrap()
                .iter()
                .any(|v| v["name"] == version && v["served"] == json!(true))
        };
        assert!(served(&links(), Link::VERSION));
        assert!(served(&traffic_splits(), TrafficSplit::VERSION));
        assert!(served(&servers(), Server::VERSION));
        assert!(served(&server_authorizations(), ServerAuthorization::VERSION));
        assert!(served(&authorization_policies(), AuthorizationPolicy::VERSION));
        assert!(served(
            &mesh_tls_authentications(),
            MeshTLSAuthentication::VERSION
        ));
        assert!(served(&network_authentications(), NetworkAuthentication::VERSION));
    }
}
