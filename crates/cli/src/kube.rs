//! Which cluster a command talks to, and what to say when it can't.
//!
//! Flags are kubectl's. The kubeconfig's own cluster entry is kept beside the client, because a link hands it on.

use std::path::PathBuf;

use ::kube::config::{Cluster, KubeConfigOptions, Kubeconfig, KubeconfigError};
use ::kube::{Client, Config, Error};
use hawser_crd::keys;

use crate::problem::Problem;

/// Every command's help has these apart from its own flags.
const HEADING: &str = "Cluster";

/// The cluster to talk to.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ClusterArgs {
    /// Path of the kubeconfig
    #[arg(long, global = true, value_name = "FILE", help_heading = HEADING)]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig
    #[arg(long, global = true, help_heading = HEADING)]
    pub(crate) context: Option<String>,
    /// User to act as
    #[arg(long = "as", global = true, value_name = "USER", help_heading = HEADING)]
    pub(crate) impersonate: Option<String>,
    /// Group to act as; may be repeated
    #[arg(long = "as-group", global = true, value_name = "GROUP", help_heading = HEADING)]
    pub(crate) impersonate_groups: Vec<String>,
    /// Namespace of the control plane
    #[arg(
        short = 'L', long, global = true, value_name = "NAMESPACE", help_heading = HEADING,
        default_value = keys::CONTROL_PLANE_NAMESPACE
    )]
    pub(crate) linkerd_namespace: String,
}

/// A cluster, and how we got to it.
pub(crate) struct Connection {
    pub(crate) client: Client,
    pub(crate) context: String,
    /// The kubeconfig's entry: server, certificate authority, TLS name.
    pub(crate) cluster: Cluster,
}

impl ClusterArgs {
    /// Every cluster that this machine knows.
    pub(crate) fn read(&self) -> Result<Kubeconfig, KubeconfigError> {
        match &self.kubeconfig {
            Some(path) => Kubeconfig::read_from(path),
            None => Kubeconfig::read(),
        }
    }

    pub(crate) async fn connect(&self) -> Result<Connection, Problem> {
        let what = "cannot find the cluster to talk to";
        let kubeconfig = self
            .read()
            .map_err(|error| Problem::new(what, error, "give --kubeconfig, or set KUBECONFIG"))?;
        let context = self
            .context
            .clone()
            .or_else(|| kubeconfig.current_context.clone())
            .unwrap_or_default();
        let contexts: Vec<String> = kubeconfig
            .contexts
            .iter()
            .map(|named| named.name.clone())
            .collect();
        let Some(named) = kubeconfig.contexts.iter().find(|named| named.name == context) else {
            let why = format!("the kubeconfig has no context {context:?}");
            return Err(Problem::new(
                what,
                why,
                format!("--context with one of: {}", contexts.join(", ")),
            ));
        };
        let cluster_name = named
            .context
            .as_ref()
            .map(|context| context.cluster.clone())
            .unwrap_or_default();
        let cluster = kubeconfig
            .clusters
            .iter()
            .find(|named| named.name == cluster_name)
            .and_then(|named| named.cluster.clone())
            .unwrap_or_default();
        let options = KubeConfigOptions {
            context: Some(context.clone()),
            ..Default::default()
        };
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &options)
            .await
            .map_err(|error| Problem::new(what, error, format!("kubectl --context {context} version")))?;
        config.auth_info.impersonate.clone_from(&self.impersonate);
        if !self.impersonate_groups.is_empty() {
            config.auth_info.impersonate_groups = Some(self.impersonate_groups.clone());
        }
        let client = Client::try_from(config)
            .map_err(|error| Problem::new(what, error, format!("kubectl --context {context} version")))?;
        Ok(Connection {
            client,
            context,
            cluster,
        })
    }
}

/// A failed request, with what to try by the kind of failure.
pub(crate) fn problem(what: impl std::fmt::Display, error: Error) -> Problem {
    let attempt = match &error {
        Error::Api(status) if status.code == 401 => "renew the credentials in the kubeconfig",
        Error::Api(status) if status.code == 403 => {
            "use a context whose user may do this, or ask for the permission"
        }
        Error::Api(status) if status.code == 404 => {
            "check --context and the namespace; is the extension installed?"
        }
        Error::Api(_) => "read what the API server says, and try again",
        _ => "check that the cluster is up and reachable: kubectl version",
    };
    Problem::new(what, error, attempt)
}

/// Whether a request failed because there is no such object (or kind).
pub(crate) fn is_missing(error: &Error) -> bool {
    matches!(error, Error::Api(status) if status.code == 404)
}
