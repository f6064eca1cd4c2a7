//! `emojivoto-emoji-svc`: the list of emoji, by gRPC.

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::emoji;
use crate::grpc::{
    self, EMOJI_SERVICE, Emoji, Empty, FindByShortcodeRequest, FindByShortcodeResponse, ListAllEmojiResponse,
};
use crate::metrics::Metrics;
use crate::process::{self, Env};

/// The program. It takes its settings from the environment: `GRPC_PORT`, `PROM_PORT`.
pub fn main(_arguments: Vec<OsString>) -> ExitCode {
    process::run(|shutdown| async move {
        let env = Env(&|name| std::env::var(name).ok());
        let port = env.port("GRPC_PORT")?;
        let prom_port = env
            .optional("PROM_PORT")
            .map(|_| env.port("PROM_PORT"))
            .transpose()?;
        let listener = process::listen(port).await?;
        process::say(format_args!("Starting grpc server on GRPC_PORT=[{port}]"));
        let metrics = Arc::new(Metrics::default());
        let metrics_served = process::serve_metrics(prom_port, Arc::clone(&metrics), shutdown.clone());
        let (served, ()) = tokio::join!(metrics_served, serve(listener, metrics, shutdown));
        served
    })
}

pub(crate) async fn serve(listener: TcpListener, metrics: Arc<Metrics>, shutdown: CancellationToken) {
    process::serve(listener, shutdown, move |request| {
        let metrics = Arc::clone(&metrics);
        async move {
            match grpc::method(&request, EMOJI_SERVICE) {
                Some("ListAll") => grpc::answer(request, &metrics, |_: Empty| Ok(list_all())).await,
                Some("FindByShortcode") => {
                    let find = |wanted: FindByShortcodeRequest| Ok(find_by_shortcode(&wanted.shortcode));
                    grpc::answer(request, &metrics, find).await
                }
                _ => grpc::unimplemented(),
            }
        }
    })
    .await;
}

fn list_all() -> ListAllEmojiResponse {
    ListAllEmojiResponse {
        list: listed().collect(),
    }
}

/// An unknown shortcode is an answer without an emoji, not an error.
fn find_by_shortcode(shortcode: &str) -> FindByShortcodeResponse {
    FindByShortcodeResponse {
        emoji: listed().find(|emoji| emoji.shortcode == shortcode),
    }
}

fn listed() -> impl Iterator<Item = Emoji> {
    let emoji = emoji::ALL.iter().take(emoji::LISTED);
    emoji.map(|(shortcode, unicode)| Emoji {
        unicode: (*unicode).into(),
        shortcode: (*shortcode).into(),
    })
}
