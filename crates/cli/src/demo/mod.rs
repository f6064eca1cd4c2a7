//! `hawser demo`: the workshop, played on this machine.
//!
//! Starts a sandbox with two clusters that ends when the demo does, plays [`scenario`] on them and then shows live
//! traffic until Ctrl-C; with `--once` it ends with a summary.

mod live;
mod scenario;
mod stage;
mod traffic;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use hawser_crd::keys;
use hawser_sandbox::launcher::control::Status;
use hawser_sandbox::launcher::enter::{Attachment, Request};
use hawser_sandbox::network::{Layout, NodePorts};
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};

use self::scenario::{Cluster, Outcome};
use self::stage::{Stage, print_line};
use crate::kube::ClusterArgs;
use crate::problem::Problem;
use crate::sandbox;
use crate::viz::dashboard;

const WEST: &str = "west";
const EAST: &str = "east";
/// Tells the proxy's own traffic from its pod's where all processes are one user: see `hawser-proxy-init`.
const PROXY_MARK: u32 = 2102;

/// Play the workshop: two linked clusters, votes through the gateway, failover and back.
///
/// Everything runs in private namespaces of this machine and vanishes with the demo.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  hawser demo           play, then show live traffic until Ctrl-C\n  hawser demo --once    play, check every outcome, print a summary and end\n  hawser demo --once --api kubernetes\n                        the same, with control planes of Kubernetes"
)]
pub(crate) struct DemoArgs {
    /// Play once, check every outcome and end: 0 if all was as it should be
    #[arg(long)]
    once: bool,
    /// Where logs, kubeconfig and control socket live
    #[arg(long, env = "HAWSER_DEMO_DIR")]
    state_dir: Option<PathBuf>,
    #[command(flatten)]
    api: sandbox::ApiArgs,
}

pub(crate) fn run(args: DemoArgs) -> Result<ExitCode, Problem> {
    let dir = args
        .state_dir
        .unwrap_or_else(|| sandbox::default_state_dir().with_extension("demo"));
    if sandbox::status(&dir).is_ok() {
        let why = format!("one is running in {}", dir.display());
        return Err(Problem::new(
            "cannot start a demo",
            why,
            "end it, or use another --state-dir",
        ));
    }
    let request = Request {
        clusters: vec![WEST.into(), EAST.into()],
        layout: Layout::Apart,
        node_ports: NodePorts::Inside,
        api: args.api.servers()?,
        state_dir: dir.clone(),
    };
    let began = Instant::now();
    print_line("clusters: west and east, each with its own network, API server and node");
    // Before any thread: see `enter::start`.
    let mut entered = sandbox::begin(&request, Attachment::Attached)?;
    let status = sandbox::ready(&mut entered, &dir, args.api.patience(), |waiting| {
        sandbox::progress(&waiting)
    })?;
    sandbox::progress("");
    print_line(&format!(
        "  ok  clusters are up ({:.1} s)",
        began.elapsed().as_secs_f64()
    ));
    print_line(&format!(
        "      look inside: export KUBECONFIG={}",
        status.kubeconfig.display()
    ));
    let played = crate::block_on(play(&dir, &status, began, args.once));
    entered.stop();
    played
}

async fn play(dir: &Path, status: &Status, began: Instant, once: bool) -> Result<ExitCode, Problem> {
    let west = cluster(status, WEST).await?;
    let east = cluster(status, EAST).await?;
    let mut stage = Stage::new(began, dir.display().to_string());
    let interrupted = async {
        // Without a handler Ctrl-C would end us at once, which is as clean.
        let _ = tokio::signal::ctrl_c().await;
    };
    tokio::pin!(interrupted);
    // The demo goes on without its dashboard, should there be no port for it.
    let listener = match dashboard::listen(dashboard::PORT).await {
        Ok(listener) => Some(listener),
        Err(_) => dashboard::listen(0).await.ok(),
    };
    let url = listener
        .as_ref()
        .and_then(|listener| dashboard::url(listener).ok());
    let served = async {
        match listener {
            Some(listener) => {
                let args = ClusterArgs {
                    kubeconfig: Some(status.kubeconfig.clone()),
                    context: Some(WEST.to_owned()),
                    impersonate: None,
                    impersonate_groups: Vec::new(),
                    linkerd_namespace: keys::CONTROL_PLANE_NAMESPACE.to_owned(),
                };
                dashboard::serve(
                    listener,
                    west.client.clone(),
                    keys::VIZ_NAMESPACE.to_owned(),
                    args,
                )
                .await;
            }
            None => std::future::pending().await,
        }
    };
    tokio::pin!(served);
    let outcome = tokio::select! {
        outcome = scenario::play(&mut stage, &west, &east, url.as_deref()) => outcome?,
        () = &mut served => return Ok(ExitCode::FAILURE),
        () = &mut interrupted => {
            stage.curtain();
            return Ok(ExitCode::from(130));
        }
    };
    stage.curtain();
    print_line(&summary(&stage, &outcome));
    if !once {
        if let Some(url) = &url {
            print_line(&format!("dashboard: {url}\n"));
        }
        print_line("live, until Ctrl-C:\n");
        tokio::select! {
            outcome = live::show(&west, &east, interrupted) => outcome?,
            () = &mut served => {}
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn cluster(status: &Status, name: &'static str) -> Result<Cluster, Problem> {
    let unusable = |error: &dyn std::error::Error| {
        Problem::new(
            "cannot use the sandbox's kubeconfig",
            error.to_string(),
            "run the demo again",
        )
    };
    let kubeconfig = Kubeconfig::read_from(&status.kubeconfig).map_err(|error| unusable(&error))?;
    let options = KubeConfigOptions {
        context: Some(name.into()),
        ..KubeConfigOptions::default()
    };
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options)
        .await
        .map_err(|error| unusable(&error))?;
    let client = Client::try_from(config).map_err(|error| unusable(&error))?;
    let api_url = status
        .clusters
        .iter()
        .find(|cluster| cluster.name == name)
        .map(|c| c.internal_server.clone());
    Ok(Cluster {
        name,
        client,
        api_url: api_url.unwrap_or_default(),
    })
}

fn summary(stage: &Stage, outcome: &Outcome) -> String {
    let mut out = format!(
        "\nall {} outcomes are as they should be\n",
        stage.finished().len()
    );
    let figures = [
        (
            "from the start to the first vote through east",
            outcome.first_vote_through_east,
        ),
        (
            "from the loss of web in west to votes through east",
            outcome.failover,
        ),
        ("from the return of web to votes in west", outcome.failback),
    ];
    for (what, took) in figures {
        out += &format!("  {:>5.1} s  {what}\n", took.as_secs_f64());
    }
    out
}
