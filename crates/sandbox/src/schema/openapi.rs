//! OpenAPI v3 documents, one per group and version, for `kubectl apply`, `create`, `edit` and `explain`.
//!
//! kubectl looks for three things: component schemas with their kind and merge keys, a PATCH operation per kind whose
//! body lists the patch types, and on it a query parameter `fieldValidation`. Everything else that a real server
//! publishes is left out. Documents are built from the same structure that merging and pruning use, so the two can't
//! disagree.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use super::Schema;
use super::tree::{At, Field, ListKind, NodeId, Raw, Rest, Scalar, Shape, table};

/// One resource as a document describes it.
#[derive(Clone, Copy, Debug)]
pub struct Served<'a> {
    pub kind: &'a str,
    pub plural: &'a str,
    pub namespaced: bool,
    pub verbs: &'a [&'a str],
    /// Names of those that hold the same kind: `status`.
    pub subresources: &'a [&'a str],
    pub schema: Option<&'a Schema>,
}

/// `/openapi/v3`, from (`apis/apps/v1`, hash of its document) pairs.
pub fn index<'a>(documents: impl IntoIterator<Item = (&'a str, &'a str)>) -> Value {
    let paths: Map<String, Value> = documents
        .into_iter()
        .map(|(path, hash)| {
            (
                path.to_owned(),
                json!({"serverRelativeURL": format!("/openapi/v3/{path}?hash={hash}")}),
            )
        })
        .collect();
    json!({"paths": paths})
}

/// Changes exactly when the document does.
pub fn hash(document: &[u8]) -> String {
    Sha256::digest(document)
        .iter()
        .map(|byte| format!("{byte:02X}"))
        .collect()
}

/// `/openapi/v3/apis/GROUP/VERSION` (`/openapi/v3/api/v1` for the core group, whose name is empty).
pub fn document(group: &str, version: &str, resources: &[Served<'_>]) -> Value {
    let mut components = Components::default();
    let mut paths = Map::new();
    for served in resources {
        let name = components.resource(group, version, served);
        let kind = json!({"group": group, "version": version, "kind": served.kind});
        let prefix = if group.is_empty() {
            format!("/api/{version}")
        } else {
            format!("/apis/{group}/{version}")
        };
        let scope = if served.namespaced {
            "/namespaces/{namespace}"
        } else {
            ""
        };
        let collection = format!("{prefix}{scope}/{}", served.plural);
        let item = format!("{collection}/{{name}}");
        let operations = Operations {
            kind: &kind,
            schema: &name,
            strategic: is_builtin(served),
            verbs: served.verbs,
        };
        paths.insert(collection, operations.on_collection(served.namespaced));
        if served.verbs.contains(&"get") {
            for subresource in served.subresources {
                paths.insert(
                    format!("{item}/{subresource}"),
                    operations.on_item(served.namespaced, Deletion::Impossible),
                );
            }
            paths.insert(item, operations.on_item(served.namespaced, Deletion::Possible));
        }
    }
    json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": "v1.33.0"},
        "paths": paths,
        "components": {"schemas": components.finish()},
    })
}

fn is_builtin(served: &Served<'_>) -> bool {
    served
        .schema
        .is_some_and(|schema| schema.builtin_name().is_some())
}

struct Operations<'a> {
    kind: &'a Value,
    schema: &'a str,
    strategic: bool,
    verbs: &'a [&'a str],
}

#[derive(PartialEq, Eq)]
enum Deletion {
    Possible,
    Impossible,
}

impl Operations<'_> {
    fn on_collection(&self, namespaced: bool) -> Value {
        let mut path = json!({"parameters": path_parameters(namespaced, false)});
        if self.verbs.contains(&"list") {
            path["get"] = self.operation(
                "list",
                &["fieldSelector", "labelSelector", "limit", "continue", "watch"],
                None,
            );
        }
        if self.verbs.contains(&"create") {
            path["post"] = self.operation("post", WRITE_PARAMETERS, Some(&["application/json"]));
        }
        path
    }

    fn on_item(&self, namespaced: bool, deletion: Deletion) -> Value {
        const PATCHES: &[&str] = &[
            "application/apply-patch+yaml",
            "application/json-patch+json",
            "application/merge-patch+json",
            "application/strategic-merge-patch+json",
        ];
        let mut path = json!({"parameters": path_parameters(namespaced, true)});
        path["get"] = self.operation("get", &[], None);
        if self.verbs.contains(&"update") {
            path["put"] = self.operation("put", WRITE_PARAMETERS, Some(&["application/json"]));
        }
        if self.verbs.contains(&"patch") {
            let patches = if self.strategic { PATCHES } else { &PATCHES[..3] };
            path["patch"] = self.operation("patch", PATCH_PARAMETERS, Some(patches));
        }
        if deletion == Deletion::Possible && self.verbs.contains(&"delete") {
            path["delete"] = self.operation(
                "delete",
                &["dryRun", "gracePeriodSeconds", "propagationPolicy"],
                None,
            );
        }
        path
    }

    fn operation(&self, action: &str, parameters: &[&str], body: Option<&[&str]>) -> Value {
        let schema = json!({"$ref": format!("#/components/schemas/{}", self.schema)});
        let mut operation = json!({
            "parameters": parameters.iter().map(|name| query_parameter(name)).collect::<Vec<_>>(),
            "responses": {"200": {"description": "OK", "content": {"application/json": {"schema": schema}}}},
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": self.kind,
        });
        if let Some(types) = body {
            let body = if action == "patch" {
                json!({"type": "object"})
            } else {
                schema
            };
            let content: Map<String, Value> = types
                .iter()
                .map(|media| ((*media).to_owned(), json!({"schema": body})))
                .collect();
            operation["requestBody"] = json!({"required": true, "content": content});
        }
        operation
    }
}

const WRITE_PARAMETERS: &[&str] = &["dryRun", "fieldManager", "fieldValidation"];
const PATCH_PARAMETERS: &[&str] = &["dryRun", "fieldManager", "fieldValidation", "force"];

fn query_parameter(name: &str) -> Value {
    let kind = match name {
        "force" | "watch" => "boolean",
        "limit" | "gracePeriodSeconds" => "integer",
        _ => "string",
    };
    json!({"name": name, "in": "query", "schema": {"type": kind, "uniqueItems": true}})
}

fn path_parameters(namespaced: bool, named: bool) -> Value {
    let names = [("name", named), ("namespace", namespaced)]
        .into_iter()
        .filter(|(_, wanted)| *wanted);
    names
        .map(|(name, _)| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}}))
        .collect()
}

/// The component schemas of one document.
#[derive(Default)]
struct Components {
    schemas: Map<String, Value>,
    /// Definitions of the table that something refers to.
    wanted: BTreeSet<&'static str>,
}

/// Nodes that have a definition of their own, to be referred to by name.
fn definitions() -> &'static BTreeMap<NodeId, &'static str> {
    static DEFINITIONS: LazyLock<BTreeMap<NodeId, &'static str>> = LazyLock::new(|| {
        table()
            .names
            .iter()
            .map(|(name, id)| (*id, name.as_str()))
            .collect()
    });
    &DEFINITIONS
}

impl Components {
    fn resource(&mut self, group: &str, version: &str, served: &Served<'_>) -> String {
        if let Some(name) = served.schema.and_then(Schema::builtin_name) {
            self.wanted.insert(name);
            return full_name(name);
        }
        let reversed: Vec<&str> = group.split('.').rev().collect();
        let name = format!("{}.{version}.{}", reversed.join("."), served.kind);
        let mut schema = match served.schema.and_then(Schema::as_custom) {
            Some(custom) => custom.schema.clone(),
            None => json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}),
        };
        for (field, schema_of_field) in [
            ("apiVersion", json!({"type": "string"})),
            ("kind", json!({"type": "string"})),
            ("metadata", reference("meta.v1.ObjectMeta")),
        ] {
            if !schema["properties"].is_object() {
                schema["properties"] = json!({});
            }
            schema["properties"][field] = schema_of_field;
        }
        self.wanted.insert("meta.v1.ObjectMeta");
        schema["x-kubernetes-group-version-kind"] =
            json!([{"group": group, "version": version, "kind": served.kind}]);
        self.schemas.insert(name.clone(), schema);
        name
    }

    fn finish(mut self) -> Map<String, Value> {
        let table = table();
        let mut done = BTreeSet::new();
        while let Some(name) = self.wanted.pop_first() {
            if !done.insert(name) {
                continue;
            }
            let mut schema = self.node(table.tree.at(table.names[name]));
            let kinds = table.kinds.iter().filter(|(_, of)| *of == name);
            let kinds: Vec<Value> = kinds
                .map(|((group, version, kind), _)| json!({"group": group, "version": version, "kind": kind}))
                .collect();
            if !kinds.is_empty() {
                schema["x-kubernetes-group-version-kind"] = Value::Array(kinds);
            }
            self.schemas.insert(full_name(name), schema);
        }
        self.schemas
    }

    /// A definition that has a name is referred to, everything else is spelled out in place.
    fn inner(&mut self, at: At<'static>) -> Value {
        match definitions().get(&at.id) {
            Some(name) => {
                self.wanted.insert(name);
                reference(name)
            }
            None => self.node(at),
        }
    }

    fn field(&mut self, at: At<'static>, field: &Field) -> Value {
        let mut schema = self.inner(at.go(field.node));
        if let Some(key) = &field.merge_key {
            schema["x-kubernetes-patch-merge-key"] = json!(key);
        }
        let strategies: Vec<&str> = [("merge", field.merge), ("retainKeys", field.retain_keys)]
            .into_iter()
            .filter_map(|(name, on)| on.then_some(name))
            .collect();
        if !strategies.is_empty() {
            schema["x-kubernetes-patch-strategy"] = json!(strategies.join(","));
        }
        schema
    }

    fn node(&mut self, at: At<'static>) -> Value {
        let mut schema = match at.shape() {
            Shape::Object { fields, rest } => {
                let mut schema = json!({"type": "object"});
                let properties: Map<String, Value> = fields
                    .iter()
                    .map(|(name, field)| (name.clone(), self.field(at, field)))
                    .collect();
                if !properties.is_empty() {
                    schema["properties"] = Value::Object(properties);
                }
                let required: Vec<&String> = fields
                    .iter()
                    .filter_map(|(name, field)| field.required.then_some(name))
                    .collect();
                if !required.is_empty() {
                    schema["required"] = json!(required);
                }
                if let Rest::Values(values) = rest {
                    schema["additionalProperties"] = self.inner(at.go(*values));
                }
                schema
            }
            Shape::List { items, kind } => {
                let mut schema = json!({"type": "array", "items": self.inner(at.go(*items))});
                schema["x-kubernetes-list-type"] = match kind {
                    ListKind::Atomic => json!("atomic"),
                    ListKind::Set => json!("set"),
                    ListKind::Map(keys) => {
                        schema["x-kubernetes-list-map-keys"] = json!(keys);
                        json!("map")
                    }
                };
                schema
            }
            Shape::Scalar(scalar) => scalar_schema(*scalar),
            Shape::Raw(Raw::Json) => json!({"type": "object"}),
            Shape::Raw(_) | Shape::Deduced => json!({}),
        };
        if at.node.atomic {
            schema["x-kubernetes-map-type"] = json!("atomic");
        }
        if let Some(default) = &at.node.default {
            schema["default"] = default.clone();
        }
        schema
    }
}

fn scalar_schema(scalar: Scalar) -> Value {
    match scalar {
        Scalar::String => json!({"type": "string"}),
        Scalar::Int32 => json!({"type": "integer", "format": "int32"}),
        Scalar::Int64 => json!({"type": "integer", "format": "int64"}),
        Scalar::Number => json!({"type": "number", "format": "double"}),
        Scalar::Bool => json!({"type": "boolean"}),
        Scalar::Bytes => json!({"type": "string", "format": "byte"}),
        Scalar::Time | Scalar::MicroTime => json!({"type": "string", "format": "date-time"}),
        Scalar::Quantity => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
        Scalar::IntOrString => {
            json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]})
        }
    }
}

/// In the form that kubectl's merge-key lookup expects, which can carry extensions beside the reference.
fn reference(name: &str) -> Value {
    json!({"allOf": [{"$ref": format!("#/components/schemas/{}", full_name(name))}]})
}

fn full_name(name: &str) -> String {
    let package = match name.split('.').next().unwrap_or_default() {
        "meta" => "io.k8s.apimachinery.pkg.apis",
        "apiextensions" => "io.k8s.apiextensions-apiserver.pkg.apis",
        "apiregistration" => "io.k8s.kube-aggregator.pkg.apis",
        _ => "io.k8s.api",
    };
    format!("{package}.{name}")
}

#[cfg(test)]
mod tests {
    use super::super::builtin;
    use super::*;

    fn apps() -> Value {
        let schema = Schema::for_kind("apps", "v1", "Deployment").expect("Deployment is built in");
        let resource = builtin()
            .kind("apps", "v1", "Deployment")
            .expect("Deployment is served");
        let served = Served {
            kind: resource.kind,
            plural: resource.plural,
            namespaced: true,
            verbs: resource.verbs,
            subresources: &["status"],
            schema: Some(&schema),
        };
        document("apps", "v1", &[served])
    }

    #[test]
    fn kubectl_finds_what_it_looks_for() {
        let document = apps();
        let patch = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
        assert_eq!(
            patch["x-kubernetes-group-version-kind"],
            json!({"group": "apps", "version": "v1", "kind": "Deployment"})
        );
        assert!(
            patch["parameters"]
                .as_array()
                .is_some_and(|all| all.iter().any(|it| it["name"] == "fieldValidation"))
        );
        assert!(
            patch["requestBody"]["content"]
                .get("application/strategic-merge-patch+json")
                .is_some()
        );
        let schemas = &document["components"]["schemas"];
        assert_eq!(
            schemas["io.k8s.api.apps.v1.Deployment"]["x-kubernetes-group-version-kind"],
            json!([{"group": "apps", "version": "v1", "kind": "Deployment"}])
        );
        let containers = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
        assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
        assert_eq!(containers["x-kubernetes-patch-strategy"], "merge");
    }

    #[test]
    fn every_reference_leads_somewhere() {
        fn references(value: &Value, found: &mut BTreeSet<String>) {
            match value {
                Value::Object(object) => {
                    for (key, value) in object {
                        match value.as_str() {
                            Some(target) if key == "$ref" => {
                                found.insert(target.trim_start_matches("#/components/schemas/").to_owned());
                            }
                            _ => references(value, found),
                        }
                    }
                }
                Value::Array(items) => items.iter().for_each(|item| references(item, found)),
                _ => {}
            }
        }
        let mut groups: BTreeMap<(&str, &str), Vec<_>> = BTreeMap::new();
        for resource in builtin().resources() {
            let schema =
                Schema::for_kind(resource.group, resource.version, resource.kind).expect("it is built in");
            groups
                .entry((resource.group, resource.version))
                .or_default()
                .push((resource, schema));
        }
        for ((group, version), resources) in groups {
            let served: Vec<Served<'_>> = resources
                .iter()
                .map(|(resource, schema)| Served {
                    kind: resource.kind,
                    plural: resource.plural,
                    namespaced: resource.namespaced,
                    verbs: resource.verbs,
                    subresources: &[],
                    schema: Some(schema),
                })
                .collect();
            let document = document(group, version, &served);
            let mut found = BTreeSet::new();
            references(&document, &mut found);
            for name in found {
                assert!(
                    document["components"]["schemas"].get(&name).is_some(),
                    "{group}/{version}: {name} is missing"
                );
            }
        }
    }

    #[test]
    fn custom_resources_offer_no_strategic_patch() {
        let properties = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {"a": {"type": "string"}}}}});
        let schema = Schema::from_crd(&properties).expect("it is structural");
        let served = Served {
            kind: "Link",
            plural: "links",
            namespaced: true,
            verbs: &["create", "delete", "get", "list", "patch", "update", "watch"],
            subresources: &["status"],
            schema: Some(&schema),
        };
        let document = document("multicluster.example.com", "v1", &[served]);
        let path = "/apis/multicluster.example.com/v1/namespaces/{namespace}/links/{name}";
        let types = document["paths"][path]["patch"]["requestBody"]["content"]
            .as_object()
            .expect("it is an object");
        assert!(!types.contains_key("application/strategic-merge-patch+json"));
        let link = &document["components"]["schemas"]["com.example.multicluster.v1.Link"];
        assert_eq!(
            link["properties"]["spec"]["properties"]["a"],
            json!({"type": "string"})
        );
        assert!(
            document["components"]["schemas"]
                .get("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta")
                .is_some()
        );
    }

    #[test]
    fn the_index_points_to_documents_by_hash() {
        assert_eq!(
            index([("apis/apps/v1", "AB")]),
            json!({"paths": {"apis/apps/v1": {"serverRelativeURL": "/openapi/v3/apis/apps/v1?hash=AB"}}})
        );
    }
}
