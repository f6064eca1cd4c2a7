//! `viz tap` and `viz top`: requests as they happen.
//!
//! The extension's tap answers those who bring a token of an account that may `watch` `pods/tap`. A token for just that
//! purpose is made anew each time, so nothing that is good for more leaves this machine. What is printed is decided in
//! [`live`], purely.

mod live;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use futures::{Stream, StreamExt};
use hawser_crd::keys;
use hawser_viz::Kind;
use hawser_viz::api::Objects;
use hawser_viz::fetch::FetchError;
use hawser_viz::tap::{AUDIENCE, Ask, Line, PORT, RPS_MAX, TOKEN_SECONDS, To, watch};
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod as Object, ServiceAccount};
use kube::api::{ListParams, PostParams};
use kube::{Api, Client, ResourceExt};

use super::manifests::TAP_VIEWER;
use super::{ObjectsArgs, Output, read_objects, say, show};
use crate::forward::{self, ForwardError};
use crate::kube::{ClusterArgs, problem};
use crate::output::write_out;
use crate::problem::Problem;

const SELECTOR: &str = "linkerd.io/extension=viz,component=tap";
const DEADLINE: Duration = Duration::from_secs(15);
/// What fails, whatever the reason.
const WHAT: &str = "cannot watch requests";
/// Between two pictures of `top`.
const REPAINT: Duration = Duration::from_secs(1);

/// Which requests.
#[derive(Clone, Debug, clap::Args)]
struct WatchArgs {
    #[command(flatten)]
    objects: ObjectsArgs,
    /// Only what they send there: svc/web-svc, deploy/web
    #[arg(long)]
    to: Option<String>,
    /// Namespace of --to, if it is another
    #[arg(long, requires = "to")]
    to_namespace: Option<String>,
    /// Only this method: GET
    #[arg(long)]
    method: Option<String>,
    /// Only paths that begin so: /api
    #[arg(long)]
    path: Option<String>,
    /// Only what asks for this name
    #[arg(long)]
    authority: Option<String>,
    /// End after this time: 10s
    #[arg(long = "for", value_name = "DURATION")]
    length: Option<String>,
    /// The account in whose name to look; whoever may make tokens for it may: namespace/name
    #[arg(long, value_name = "NAMESPACE/NAME")]
    account: Option<String>,
    /// Namespace of the extension
    #[arg(long, default_value = keys::VIZ_NAMESPACE)]
    viz_namespace: String,
}

#[derive(Clone, Debug, clap::Args)]
pub(super) struct TapArgs {
    #[command(flatten)]
    watch: WatchArgs,
    /// Requests shown in a second, at most
    #[arg(long, default_value_t = 100)]
    max_rps: u32,
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
}

#[derive(Clone, Debug, clap::Args)]
pub(super) struct TopArgs {
    #[command(flatten)]
    watch: WatchArgs,
    /// Requests counted in a second, at most
    #[arg(long, default_value_t = RPS_MAX)]
    max_rps: u32,
    /// A row for each route of policy instead of each path
    #[arg(long)]
    routes: bool,
    /// Don't tell sources apart
    #[arg(long)]
    hide_sources: bool,
    /// With json, the table is printed once, at the end of --for
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
}

pub(super) async fn tap(cluster: &ClusterArgs, args: &TapArgs) -> Result<ExitCode, Problem> {
    let client = cluster.connect().await?.client;
    let end = args.watch.end()?;
    let ask = args.watch.ask(args.max_rps)?;
    let mut lines = std::pin::pin!(open(&client, &args.watch, &ask).await?);
    tokio::pin!(end);
    loop {
        let line = tokio::select! {
            line = lines.next() => line,
            () = &mut end => return Ok(ExitCode::SUCCESS),
        };
        match heard(line)? {
            Line::Told(told) => match args.output {
                Output::Json => write_out(&format!("{}\n", serde_json::json!(told)))?,
                output => write_out(&live::line(&told, output == Output::Wide))?,
            },
            Line::Trouble { pod, error } => say(&format!("{pod} cannot be watched: {error}")),
        }
    }
}

pub(super) async fn top(cluster: &ClusterArgs, args: &TopArgs) -> Result<ExitCode, Problem> {
    if args.output == Output::Json && args.watch.length.is_none() {
        let why = "a table that never ends is no JSON";
        return Err(Problem::new("cannot show the top of requests", why, "--for 10s"));
    }
    let client = cluster.connect().await?.client;
    let end = args.watch.end()?;
    let ask = args.watch.ask(args.max_rps)?;
    let mut lines = std::pin::pin!(open(&client, &args.watch, &ask).await?);
    let mut top = live::Top::new(live::By {
        routes: args.routes,
        sources: !args.hide_sources,
    });
    let mut screen = show::Screen::default();
    let mut ticks = tokio::time::interval(REPAINT);
    let mut troubles = BTreeMap::new();
    tokio::pin!(end);
    loop {
        tokio::select! {
            line = lines.next() => match heard(line)? {
                Line::Told(told) => top.hear(&told),
                Line::Trouble { pod, error } => {
                    if troubles.insert(pod.clone(), error.clone()).as_ref() != Some(&error) {
                        say(&format!("{pod} cannot be watched: {error}"));
                    }
                }
            },
            _ = ticks.tick() => if args.output != Output::Json {
                screen.paint(&live::table(&top.rows(live::ROWS_MAX), args.output == Output::Wide))?;
            },
            () = &mut end => {
                let rows = top.rows(usize::MAX);
                match args.output {
                    Output::Json => write_out(&show::json_text(&rows))?,
                    output => screen.paint(&live::table(&rows, output == Output::Wide))?,
                }
                return Ok(ExitCode::SUCCESS);
            }
        }
    }
}

impl WatchArgs {
    /// When to stop.
    fn end(&self) -> Result<impl Future<Output = ()> + use<>, Problem> {
        let length = self.length.as_deref().map(|text| {
            hawser_crd::link::parse_duration(text).ok_or_else(|| {
                let why = format!("--for {text:?} is not a duration");
                Problem::new(WHAT, why, "--for 10s")
            })
        });
        let length = length.transpose()?;
        Ok(async move {
            let over = async {
                match length {
                    Some(length) => tokio::time::sleep(length).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = over => {}
                _ = tokio::signal::ctrl_c() => {}
            }
        })
    }

    fn ask(&self, max_rps: u32) -> Result<Ask, Problem> {
        let Objects {
            kind,
            name,
            namespace,
        } = self.objects.read()?;
        let to_namespace = self.to_namespace.clone().or_else(|| namespace.clone());
        let to = self
            .to
            .as_ref()
            .map(|to| read_objects(std::slice::from_ref(to), to_namespace));
        let ask = Ask {
            // A namespace's name is where its pods are.
            namespace: if kind == Kind::Namespace {
                name.clone()
            } else {
                namespace
            },
            kind,
            name,
            to: to.transpose()?.map(|to| To {
                kind: to.kind,
                name: to.name,
                namespace: to.namespace,
            }),
            method: self.method.clone(),
            path: self.path.clone(),
            authority: self.authority.clone(),
            max_rps,
        };
        ask.check()
            .map_err(|why| Problem::new(WHAT, why, "hawser viz tap deploy/web -n emojivoto"))?;
        Ok(ask)
    }

    fn account(&self) -> Result<(&str, &str), Problem> {
        match &self.account {
            None => Ok((&self.viz_namespace, TAP_VIEWER)),
            Some(account) => account.split_once('/').ok_or_else(|| {
                let why = format!("--account {account:?} is not namespace/name");
                Problem::new(
                    WHAT,
                    why,
                    format!("--account {}/{TAP_VIEWER}", self.viz_namespace),
                )
            }),
        }
    }
}

type Heard = Result<Line, FetchError>;

/// What is told, or why nothing more is.
fn heard(line: Option<Heard>) -> Result<Line, Problem> {
    let what = "the requests can no longer be watched";
    match line {
        Some(Ok(line)) => Ok(line),
        Some(Err(error)) => Err(Problem::new(what, error, "run it again; hawser viz check")),
        None => Err(Problem::new(
            what,
            "the extension's tap ended",
            "run it again; hawser viz check",
        )),
    }
}

/// Finds the extension's tap and asks it.
async fn open(
    client: &Client,
    args: &WatchArgs,
    ask: &Ask,
) -> Result<impl Stream<Item = Heard> + use<>, Problem> {
    let namespace = &args.viz_namespace;
    let pod = running(client, namespace).await?;
    let token = token(client, args.account()?).await?;
    let pods: Api<Object> = Api::namespaced(client.clone(), namespace);
    within(async {
        let stream = forward::connect(&pods, &pod, PORT).await.map_err(unreached)?;
        watch(stream, &token, ask).await.map_err(refused)
    })
    .await
}

/// Whether tap can ask the API server whose a token is: it must refuse one that is nobody's, and say so. That takes no
/// right but to forward a port, and shows nothing.
pub(super) async fn refuses(client: &Client, namespace: &str) -> Result<(), Problem> {
    let pod = running(client, namespace).await?;
    let pods: Api<Object> = Api::namespaced(client.clone(), namespace);
    let ask = Ask {
        kind: Kind::Pod,
        name: None,
        namespace: Some(namespace.to_owned()),
        to: None,
        method: None,
        path: None,
        authority: None,
        max_rps: 1,
    };
    within(async {
        let stream = forward::connect(&pods, &pod, PORT).await.map_err(unreached)?;
        match watch(stream, "nobodys", &ask).await.map(drop) {
            Err(FetchError::Status { status, .. }) if status == http::StatusCode::UNAUTHORIZED => Ok(()),
            Err(error) => Err(refused(error)),
            Ok(()) => Err(Problem::new(
                WHAT,
                "it shows requests to whoever asks",
                "hawser viz install | kubectl apply -f -",
            )),
        }
    })
    .await
}

fn unreached(error: ForwardError) -> Problem {
    Problem::new(WHAT, error, "hawser viz check")
}

async fn within<T>(asking: impl Future<Output = Result<T, Problem>>) -> Result<T, Problem> {
    let silent = || Problem::new(WHAT, "the extension's tap does not answer", "hawser viz check");
    tokio::time::timeout(DEADLINE, asking)
        .await
        .map_err(|_| silent())?
}

/// The pod of the extension's tap.
async fn running(client: &Client, namespace: &str) -> Result<String, Problem> {
    let pods: Api<Object> = Api::namespaced(client.clone(), namespace);
    let list = pods.list(&ListParams::default().labels(SELECTOR)).await;
    let list = list.map_err(|error| problem(WHAT, error))?;
    let running = list
        .items
        .iter()
        .find(|pod| hawser_viz::Pod::of(pod).is_running());
    running.map(ResourceExt::name_any).ok_or_else(|| {
        let why = format!("no tap runs in namespace {namespace}");
        Problem::new(
            WHAT,
            why,
            "hawser viz install | kubectl apply -f -; then hawser viz check",
        )
    })
}

fn refused(error: FetchError) -> Problem {
    match error {
        FetchError::Status { status, body, .. } => {
            let attempt = match status {
                http::StatusCode::FORBIDDEN => {
                    "--account NAMESPACE/NAME of one that may; kubectl create role tap --verb=watch \
                     --resource=pods.tap.linkerd.io/tap gives the right"
                }
                http::StatusCode::NOT_FOUND => {
                    "kubectl rollout restart of what should be seen, or another name or -n NAMESPACE"
                }
                _ => "hawser viz tap --help; hawser viz check",
            };
            Problem::new(WHAT, body, attempt)
        }
        error => Problem::new(WHAT, error, "hawser viz check"),
    }
}

/// A token that is good for tap only, and not for long.
async fn token(client: &Client, (namespace, name): (&str, &str)) -> Result<String, Problem> {
    let what = format!("cannot make a token for account {namespace}/{name}");
    let request = TokenRequest {
        spec: TokenRequestSpec {
            audiences: vec![AUDIENCE.to_owned()],
            expiration_seconds: Some(TOKEN_SECONDS),
            ..TokenRequestSpec::default()
        },
        ..TokenRequest::default()
    };
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let made = accounts
        .create_token_request(name, &PostParams::default(), &request)
        .await;
    let status = made.map_err(|error| problem(&what, error))?.status;
    status
        .map(|status| status.token)
        .ok_or_else(|| Problem::new(what, "the API server gave none", "kubectl create token"))
}
