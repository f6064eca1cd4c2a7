//! ServiceAccount tokens: signing them, and believing them only while everything they are bound to exists.
//!
//! A token names its ServiceAccount and, if bound, a pod or Secret, each with uid. Nothing is cached: a token is good
//! if the objects are there *now*, so deleting one ends it at once.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use rcgen::KeyPair;
use serde_json::{Value, json};

use super::Cluster;
use super::discovery::hash;
use super::error::{ApiError, Cause, Result};
use super::identity::Identity;
use super::registry::{Resource, meta};
use crate::store::{Key, ResourceId, Stored};

/// Seconds; the shortest life that Kubernetes gives a token.
const LIFETIME_MIN: i64 = 600;
const LIFETIME_MAX: i64 = 1 << 32;
const LIFETIME: i64 = 3600;

/// The cluster's token key.
pub(crate) struct Signer {
    encoding: EncodingKey,
    decoding: DecodingKey,
    key_id: String,
    x: String,
    y: String,
    pub issuer: String,
}

/// A token that was believed, so that it can be asked again later.
#[derive(Clone, Debug)]
pub(crate) struct Bearer {
    pub token: String,
}

impl Signer {
    pub(crate) fn new(issuer: &str) -> Option<Self> {
        let key = KeyPair::generate().ok()?;
        // An uncompressed point: 4, then both coordinates.
        let point = key.public_key_raw();
        let (x, y) = (point.get(1..33)?, point.get(33..65)?);
        let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
        Some(Self {
            encoding: EncodingKey::from_ec_pem(key.serialize_pem().as_bytes()).ok()?,
            decoding: DecodingKey::from_ec_components(&x, &y).ok()?,
            key_id: hash(&x)[..43].to_owned(),
            x,
            y,
            issuer: issuer.to_owned(),
        })
    }

    fn sign(&self, claims: &Value) -> Result<String> {
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(self.key_id.clone());
        jsonwebtoken::encode(&header, claims, &self.encoding).map_err(ApiError::internal)
    }

    /// The claims of a token with a good signature of ours; nothing else is checked.
    fn verify(&self, token: &str) -> Option<Value> {
        let mut validation = Validation::new(Algorithm::ES256);
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.validate_aud = false;
        Some(
            jsonwebtoken::decode::<Value>(token, &self.decoding, &validation)
                .ok()?
                .claims,
        )
    }

    pub(crate) fn keys(&self) -> Value {
        json!({ "keys": [{
            "use": "sig", "kty": "EC", "kid": self.key_id, "crv": "P-256", "alg": "ES256", "x": self.x, "y": self.y,
        }] })
    }

    pub(crate) fn configuration(&self) -> Value {
        json!({
            "issuer": self.issuer,
            "jwks_uri": format!("{}/openid/v1/jwks", self.issuer),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        })
    }
}

impl Cluster {
    fn core(&self, plural: &str, namespace: &str, name: &str) -> Option<std::sync::Arc<Stored>> {
        self.store
            .get(&ResourceId::from(plural), &Key::new(namespace, name))
    }

    /// The identity that a token gives to someone with one of these audiences (any of ours if empty), and which of
    /// them it has.
    pub(crate) fn believe(&self, token: &str, audiences: &[String]) -> Option<(Identity, Vec<String>)> {
        let claims = self.signer.verify(token)?;
        let text = |pointer: &str| claims.pointer(pointer).and_then(Value::as_str);
        if text("/iss") != Some(&self.signer.issuer) {
            return None;
        }
        let now = (self.options.clock)().as_second();
        if claims
            .get("exp")
            .is_some_and(|at| at.as_i64().is_none_or(|at| at <= now))
            || claims
                .get("nbf")
                .is_some_and(|at| at.as_i64().is_none_or(|at| at > now))
        {
            return None;
        }
        let own = [self.signer.issuer.clone()];
        let wanted = if audiences.is_empty() { &own[..] } else { audiences };
        let given: Vec<&str> = claims
            .get("aud")?
            .as_array()?
            .iter()
            .filter_map(Value::as_str)
            .collect();
        let shared: Vec<String> = wanted
            .iter()
            .filter(|one| given.contains(&one.as_str()))
            .cloned()
            .collect();
        if shared.is_empty() {
            return None;
        }
        const BOUND: &str = "/kubernetes.io";
        let bound = |field: &str| text(&format!("{BOUND}/{field}"));
        let (namespace, name) = (bound("namespace")?, bound("serviceaccount/name")?);
        let account = self.core("serviceaccounts", namespace, name)?;
        let uid = meta::uid(&account.value);
        if Some(uid) != bound("serviceaccount/uid") || meta::is_deleting(&account.value) {
            return None;
        }
        let mut identity = Identity::service_account(namespace, name);
        identity.uid = uid.to_owned();
        let mut extra = BTreeMap::new();
        let mut tell = |key: &str, value: &str| {
            extra.insert(
                format!("authentication.kubernetes.io/{key}"),
                vec![value.to_owned()],
            );
        };
        if let Some(id) = text("/jti") {
            tell("credential-id", &format!("JTI={id}"));
        }
        for (kind, plural) in [("pod", "pods"), ("secret", "secrets")] {
            let Some(name) = bound(&format!("{kind}/name")) else {
                continue;
            };
            let object = self.core(plural, namespace, name)?;
            let uid = meta::uid(&object.value);
            if Some(uid) != bound(&format!("{kind}/uid")) {
                return None;
            }
            if kind == "pod" {
                tell("pod-name", name);
                tell("pod-uid", uid);
                if let Some(node) = object.value.pointer("/spec/nodeName").and_then(Value::as_str) {
                    tell("node-name", node);
                }
            } else if claims.get("exp").is_none() {
                // A token without end lives in its Secret and ends when it is replaced there.
                let encoded = object.value.pointer("/data/token").and_then(Value::as_str)?;
                if STANDARD.decode(encoded).ok()? != token.as_bytes() {
                    return None;
                }
            }
        }
        identity.extra = extra;
        Some((identity, shared))
    }

    /// `POST serviceaccounts/NAME/token`.
    pub(crate) fn token_request(&self, account: &Stored, request: &Value) -> Result<Value> {
        let (namespace, name) = (&account.key.namespace, &account.key.name);
        let texts = |pointer: &str| -> Vec<String> {
            let items = request
                .pointer(pointer)
                .and_then(Value::as_array)
                .into_iter()
                .flatten();
            items.filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let mut audiences = texts("/spec/audiences");
        if audiences.is_empty() {
            audiences.push(self.signer.issuer.clone());
        }
        let invalid = |field: &str, message: String| {
            let cause = Cause {
                reason: "FieldValueInvalid".to_owned(),
                message,
                field: field.to_owned(),
            };
            ApiError::invalid("authentication.k8s.io", "TokenRequest", "", vec![cause])
        };
        let lifetime = request
            .pointer("/spec/expirationSeconds")
            .and_then(Value::as_i64)
            .unwrap_or(LIFETIME);
        if lifetime < LIFETIME_MIN {
            let message =
                format!("Invalid value: {lifetime}: may not specify a duration less than 10 minutes");
            return Err(invalid("spec.expirationSeconds", message));
        }
        if lifetime > LIFETIME_MAX {
            let message =
                format!("Invalid value: {lifetime}: may not specify a duration larger than 2^32 seconds");
            return Err(invalid("spec.expirationSeconds", message));
        }
        let mut bound = json!({
            "namespace": namespace,
            "serviceaccount": { "name": name, "uid": meta::uid(&account.value) },
        });
        if let Some(reference) = request
            .pointer("/spec/boundObjectRef")
            .filter(|reference| reference.is_object())
        {
            let text = |field: &str| reference.get(field).and_then(Value::as_str).unwrap_or_default();
            let (kind, target, uid) = (text("kind"), text("name"), text("uid"));
            let (field, plural) = match kind {
                "Pod" => ("pod", "pods"),
                "Secret" => ("secret", "secrets"),
                _ => {
                    return Err(ApiError::bad_request(format!(
                        "cannot bind token for serviceaccount {name:?} to kind {kind:?}"
                    )));
                }
            };
            let found = self.core(plural, namespace, target);
            let found = found.ok_or_else(|| {
                let resource = self.registry.lookup("", "v1", plural);
                resource.map_or_else(ApiError::path_not_found, |resource| {
                    ApiError::not_found(&resource, target)
                })
            })?;
            let present = meta::uid(&found.value);
            if !uid.is_empty() && uid != present {
                return Err(ApiError::bad_request(format!(
                    "the UID in the bound object reference ({uid}) does not match the UID in record. The object might \
                     have been deleted and then recreated"
                )));
            }
            if kind == "Pod" {
                let runs_as = found
                    .value
                    .pointer("/spec/serviceAccountName")
                    .and_then(Value::as_str);
                if runs_as.unwrap_or("default") != name {
                    return Err(ApiError::bad_request(format!(
                        "cannot bind token for serviceaccount {name:?} to pod running with different serviceaccount name."
                    )));
                }
                if let Some(node) = found.value.pointer("/spec/nodeName").and_then(Value::as_str) {
                    bound["node"] = json!({ "name": node });
                }
            }
            bound[field] = json!({ "name": target, "uid": present });
        }
        let now = (self.options.clock)().as_second();
        let token = self.signer.sign(&json!({
            "iss": self.signer.issuer,
            "sub": format!("system:serviceaccount:{namespace}:{name}"),
            "aud": audiences,
            "iat": now,
            "nbf": now,
            "exp": now + lifetime,
            "jti": self.uid(),
            "kubernetes.io": bound,
        }))?;
        let mut answer = request.clone();
        answer["apiVersion"] = "authentication.k8s.io/v1".into();
        answer["kind"] = "TokenRequest".into();
        answer["metadata"] = json!({ "name": name, "namespace": namespace, "creationTimestamp": self.now() });
        let spec = meta::child(&mut answer, "spec");
        spec.insert("audiences".to_owned(), audiences.into());
        spec.insert("expirationSeconds".to_owned(), lifetime.into());
        answer["status"] = json!({
            "token": token,
            "expirationTimestamp": self.after(lifetime.unsigned_abs()),
        });
        Ok(answer)
    }

    /// Fills a Secret of type `kubernetes.io/service-account-token` when it is created, or when its account is.
    pub(crate) fn fill_token_secret(&self, secret: &mut Value) -> Result<()> {
        const ACCOUNT: &str = "/metadata/annotations/kubernetes.io~1service-account.name";
        let text =
            |value: &Value, pointer: &str| value.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        if text(secret, "/type").as_deref() != Some("kubernetes.io/service-account-token") {
            return Ok(());
        }
        let namespace = meta::namespace(secret).to_owned();
        let Some(name) = text(secret, ACCOUNT) else {
            return Ok(());
        };
        let Some(account) = self.core("serviceaccounts", &namespace, &name) else {
            return Ok(());
        };
        let uid = meta::uid(&account.value).to_owned();
        if secret.pointer("/data/token").is_none() {
            let token = self.signer.sign(&json!({
                "iss": self.signer.issuer,
                "sub": format!("system:serviceaccount:{namespace}:{name}"),
                "aud": [self.signer.issuer],
                "iat": (self.options.clock)().as_second(),
                "jti": self.uid(),
                "kubernetes.io": {
                    "namespace": namespace,
                    "serviceaccount": { "name": name, "uid": uid },
                    "secret": { "name": meta::name(secret), "uid": meta::uid(secret) },
                },
            }))?;
            meta::child(secret, "data").insert("token".to_owned(), STANDARD.encode(token).into());
        }
        let data = meta::child(secret, "data");
        data.insert("ca.crt".to_owned(), STANDARD.encode(&self.pki.ca_pem).into());
        data.insert("namespace".to_owned(), STANDARD.encode(&namespace).into());
        let annotations = meta::child(&mut secret["metadata"], "annotations");
        annotations.insert("kubernetes.io/service-account.uid".to_owned(), uid.into());
        Ok(())
    }

    /// A ServiceAccount came or went: its token Secrets follow.
    pub(crate) fn account_changed(&self, account: &Stored, gone: bool) {
        let secrets = ResourceId::from("secrets");
        for stored in self.store.list(&secrets).objects.values() {
            if stored.key.namespace != account.key.namespace {
                continue;
            }
            let of = stored
                .value
                .pointer("/metadata/annotations/kubernetes.io~1service-account.name");
            let kind = stored.value.get("type").and_then(Value::as_str);
            if of.and_then(Value::as_str) != Some(&account.key.name)
                || kind != Some("kubernetes.io/service-account-token")
            {
                continue;
            }
            // Losing a race means that somebody else just changed the Secret, which fills it as well.
            if gone {
                let _ = self
                    .store
                    .delete(&secrets, &stored.key, stored.value.clone(), stored.revision);
            } else if stored.value.pointer("/data/token").is_none() {
                let mut secret = stored.value.clone();
                if self.fill_token_secret(&mut secret).is_ok() {
                    let expect = crate::store::Expect::Revision(stored.revision);
                    let _ = self.store.put(&secrets, stored.key.clone(), secret, expect);
                }
            }
        }
    }

    pub(crate) fn token_review(&self, review: &Value) -> Value {
        let token = review
            .pointer("/spec/token")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let audiences: Vec<String> = review
            .pointer("/spec/audiences")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect();
        let status = match self.believe(token, &audiences) {
            Some((identity, audiences)) => {
                json!({ "authenticated": true, "user": user_info(&identity), "audiences": audiences })
            }
            None => json!({ "user": {}, "error": "[invalid bearer token, token lookup failed]" }),
        };
        let mut answer = review.clone();
        answer["status"] = status;
        answer
    }
}

pub(crate) fn user_info(identity: &Identity) -> Value {
    let mut user = json!({ "username": identity.user, "groups": identity.groups });
    if !identity.uid.is_empty() {
        user["uid"] = identity.uid.as_str().into();
    }
    if !identity.extra.is_empty() {
        user["extra"] = json!(identity.extra);
    }
    user
}

/// Whether losing an object of this resource may end a token.
pub(crate) fn binds_tokens(resource: &Resource) -> bool {
    resource.group.is_empty() && matches!(resource.plural.as_str(), "serviceaccounts" | "secrets" | "pods")
}
