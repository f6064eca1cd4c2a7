//! The Certify call: the checks, in the order that clients and their tests know, and then a leaf.
//!
//! Source: `spec/proxy.md` 3.3.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use futures::StreamExt;
use hawser_core::identity::{Identity, TrustDomain};
use hawser_proxy_api::{Trusted, Updates};
use hawser_runtime::Shutdown;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use kube::api::PostParams;
use kube::runtime::events::EventType;
use kube::{Api, Client};
use linkerd2_proxy_api::identity::identity_server;
use linkerd2_proxy_api::identity::{CertifyRequest, CertifyResponse};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_stream::wrappers::WatchStream;
use tonic::{Request, Response, Status};

use super::credentials::Credentials;
use crate::notes::{Notes, about};

/// What proxies' tokens are made for.
pub const AUDIENCE: &str = "identity.l5d.io";
/// An API server that takes longer is down; the proxy tries again.
const REVIEW_TIMEOUT: Duration = Duration::from_secs(10);

/// How names are made and how long leaves last.
#[derive(Clone, Debug)]
pub struct Settings {
    pub control_plane_namespace: String,
    pub trust_domain: TrustDomain,
    pub lifetime: Duration,
    pub skew: Duration,
}

/// The gRPC service.
pub struct Certifier {
    client: Client,
    settings: Settings,
    credentials: ArcSwapOption<Credentials>,
    /// What watchers are told of the credentials.
    trusted: watch::Sender<Option<Trusted>>,
    notes: Notes,
}

/// The account that a token belongs to.
struct Account {
    namespace: String,
    name: String,
}

impl Certifier {
    pub fn new(client: Client, settings: Settings, notes: Notes) -> Self {
        Self {
            client,
            settings,
            credentials: ArcSwapOption::empty(),
            trusted: watch::Sender::new(None),
            notes,
        }
    }

    pub fn use_credentials(&self, credentials: Credentials) {
        let issuer = credentials.issuer.fingerprint();
        let trusted = Some(Trusted {
            anchors: credentials.bundle.clone(),
            issuer: issuer.map_or_else(String::new, |fingerprint| fingerprint.to_string()),
        });
        self.credentials.store(Some(Arc::new(credentials)));
        self.trusted
            .send_if_modified(|told| std::mem::replace(told, trusted.clone()) != trusted);
    }

    /// Tells one proxy whom to believe, from now until the process drains. Only what is public anyway.
    pub fn watch_trust(&self, drain: Shutdown) -> Updates {
        WatchStream::new(self.trusted.subscribe())
            .filter_map(|trusted| std::future::ready(trusted.map(Ok)))
            .take_until(drain.cancelled_owned())
            .boxed()
    }

    pub fn issuer_expires_at(&self) -> Option<SystemTime> {
        self.credentials
            .load()
            .as_ref()
            .map(|credentials| credentials.issuer.expires_at())
    }

    async fn account(&self, token: &str) -> Result<Account, Status> {
        let review = match self.review(token, Some(vec![AUDIENCE.into()])).await {
            // API servers without audiences for tokens say so.
            Err(kube::Error::Api(status)) if status.message.contains("token audiences") => {
                self.review(token, None).await
            }
            reviewed => reviewed,
        };
        let status = review
            .map_err(|error| {
                tracing::warn!(%error, "token review failed");
                Status::internal("the token could not be reviewed")
            })?
            .status
            .unwrap_or_default();
        let for_us = status.audiences.is_none_or(|audiences| {
            audiences.is_empty() || audiences.iter().any(|audience| audience == AUDIENCE)
        });
        if status.authenticated != Some(true) || !for_us {
            return Err(Status::failed_precondition(
                "authentication token could not be authenticated",
            ));
        }
        let username = status.user.and_then(|user| user.username).unwrap_or_default();
        let account = username
            .strip_prefix("system:serviceaccount:")
            .and_then(|rest| rest.split_once(':'));
        match account {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains(':') => {
                Ok(Account {
                    namespace: namespace.into(),
                    name: name.into(),
                })
            }
            _ => Err(Status::invalid_argument("the token is not a ServiceAccount's")),
        }
    }

    async fn review(&self, token: &str, audiences: Option<Vec<String>>) -> Result<TokenReview, kube::Error> {
        let reviews: Api<TokenReview> = Api::all(self.client.clone());
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: Some(token.to_owned()),
                audiences,
            },
            ..TokenReview::default()
        };
        let parameters = PostParams::default();
        let reviewed = timeout(REVIEW_TIMEOUT, reviews.create(&parameters, &review)).await;
        reviewed.unwrap_or_else(|_| Err(kube::Error::Service("the API server does not answer".into())))
    }
}

#[tonic::async_trait]
impl identity_server::Identity for Certifier {
    async fn certify(&self, request: Request<CertifyRequest>) -> Result<Response<CertifyResponse>, Status> {
        let CertifyRequest {
            identity: name,
            token,
            certificate_signing_request: csr,
        } = request.into_inner();
        let credentials = self.credentials.load_full();
        let credentials = credentials.ok_or_else(|| Status::unavailable("cert issuer not ready yet"))?;
        for (missing, what) in [
            (name.is_empty(), "missing identity"),
            (token.is_empty(), "missing token"),
            (csr.is_empty(), "missing certificate signing request"),
        ] {
            if missing {
                return Err(Status::invalid_argument(what));
            }
        }
        if !hawser_tls::is_csr(&csr) {
            return Err(Status::invalid_argument(
                "the certificate signing request is not PKCS#10 DER",
            ));
        }
        let csr = csr.into();
        let now = SystemTime::now();
        // Anchors and the clock may have moved on since the issuer was loaded.
        credentials
            .issuer
            .verify(&credentials.anchors, now)
            .map_err(|error| Status::unknown(error.to_string()))?;
        let requested: Identity = name
            .parse()
            .map_err(|_| Status::invalid_argument("the identity is not a name"))?;
        hawser_tls::check_csr(&csr, &requested)
            .map_err(|error| Status::failed_precondition(error.to_string()))?;

        let token =
            String::from_utf8(token).map_err(|_| Status::invalid_argument("the token is not text"))?;
        let account = self.account(token.trim()).await?;
        let Settings {
            control_plane_namespace,
            trust_domain,
            lifetime,
            skew,
        } = &self.settings;
        let found = Identity::of_service_account(
            &account.name,
            &account.namespace,
            control_plane_namespace,
            trust_domain,
        )
        .map_err(|error| Status::invalid_argument(error.to_string()))?;
        if found != requested {
            return Err(Status::failed_precondition(format!(
                "requested identity did not match provided token: requested={requested}; found={found}"
            )));
        }

        let issued = credentials
            .issuer
            .issue(&csr, &requested, *lifetime, *skew, now)
            .map_err(|error| Status::internal(error.to_string()))?;
        tracing::info!(identity = %requested, not_after = ?issued.not_after, "certified");
        self.notes.publish(
            about("v1", "ServiceAccount", &account.namespace, &account.name),
            EventType::Normal,
            "IssuedLeafCertificate",
            format!("issued certificate for {requested}"),
        );
        Ok(Response::new(CertifyResponse {
            leaf_certificate: issued.leaf.to_vec(),
            intermediate_certificates: issued.intermediates.iter().map(|der| der.to_vec()).collect(),
            valid_until: Some(issued.not_after.into()),
        }))
    }
}
