//! Watches requests through a stream that somebody else opened.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use futures::Stream;
use futures::stream::unfold;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Ask, PATH, Tapped};
use crate::fetch::FetchError;

/// A line is a path and some labels.
const LINE_BYTES_MAX: usize = 1 << 20;
const ERROR_BYTES_MAX: usize = 64 * 1024;

/// What a watcher hears.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum Line {
    Told(Box<Tapped>),
    /// A proxy that tells nothing, and why.
    Trouble {
        pod: String,
        error: String,
    },
}

/// Asks, and returns what is told until the other side ends it. Deadlines are the caller's.
pub async fn watch<Io>(
    io: Io,
    token: &str,
    ask: &Ask,
) -> Result<impl Stream<Item = Result<Line, FetchError>> + use<Io>, FetchError>
where
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await.map_err(broke)?;
    // Ends with the body, or with whoever reads it.
    tokio::spawn(connection);
    let request = http::Request::post(PATH)
        .header(http::header::HOST, "localhost")
        .header(http::header::AUTHORIZATION, format!("Bearer {token}"))
        .body(Full::from(serde_json::to_vec(ask).map_err(broke)?))
        .map_err(broke)?;
    let response = sender.send_request(request).await.map_err(broke)?;
    let status = response.status();
    if !status.is_success() {
        let body = Limited::new(response.into_body(), ERROR_BYTES_MAX)
            .collect()
            .await;
        let body = body.map_err(broke)?.to_bytes();
        return Err(FetchError::Status {
            path: PATH.to_owned(),
            status,
            body: reason(&body),
        });
    }
    let reading = Reading {
        body: response.into_body(),
        rest: BytesMut::new(),
        lines: VecDeque::new(),
        _sender: sender,
    };
    Ok(unfold(reading, async |mut reading| {
        let line = reading.next().await?;
        Some((line, reading))
    }))
}

/// What the other side says, without the form in which it says it.
fn reason(body: &[u8]) -> String {
    let value: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    match value["error"].as_str() {
        Some(why) => why.to_owned(),
        None => String::from_utf8_lossy(body)
            .lines()
            .next()
            .unwrap_or_default()
            .to_owned(),
    }
}

fn broke(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> FetchError {
    FetchError::Http {
        path: PATH.to_owned(),
        source: source.into(),
    }
}

struct Reading {
    body: Incoming,
    rest: BytesMut,
    lines: VecDeque<Bytes>,
    /// The connection ends with it.
    _sender: http1::SendRequest<Full<Bytes>>,
}

impl Reading {
    async fn next(&mut self) -> Option<Result<Line, FetchError>> {
        loop {
            while let Some(line) = self.lines.pop_front() {
                if !line.trim_ascii().is_empty() {
                    return Some(serde_json::from_slice(&line).map_err(broke));
                }
            }
            let frame = match self.body.frame().await? {
                Ok(frame) => frame,
                Err(error) => return Some(Err(broke(error))),
            };
            let Ok(data) = frame.into_data() else { continue };
            if self.rest.len() + data.len() > LINE_BYTES_MAX {
                return Some(Err(broke("a line is too long")));
            }
            self.rest.extend_from_slice(&data);
            while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                self.lines.push_back(self.rest.split_to(end + 1).freeze());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures::StreamExt;
    use http::Response;
    use http_body_util::StreamBody;
    use hyper::body::Frame;
    use hyper::service::service_fn;

    use super::*;
    use crate::kinds::Kind;

    /// What is heard when the other side sends these pieces.
    async fn heard(pieces: &'static [&'static str]) -> Vec<Result<Line, String>> {
        let (near, far) = tokio::io::duplex(64);
        let service = service_fn(move |request: http::Request<Incoming>| async move {
            // As whoever answers it does, before anything is told.
            let asked = request
                .into_body()
                .collect()
                .await
                .expect("a question")
                .to_bytes();
            assert!(serde_json::from_slice::<Ask>(&asked).is_ok());
            let frames = pieces
                .iter()
                .map(|piece| Ok::<_, Infallible>(Frame::data(Bytes::from(*piece))));
            Ok::<_, Infallible>(Response::new(StreamBody::new(futures::stream::iter(frames))))
        });
        let server = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(far), service);
        let ask = Ask {
            kind: Kind::Pod,
            name: None,
            namespace: None,
            to: None,
            method: None,
            path: None,
            authority: None,
            max_rps: 1,
        };
        let asking = async {
            let lines = watch(near, "token", &ask).await.expect("an answer");
            lines
                .map(|line| line.map_err(|error| error.to_string()))
                .collect()
                .await
        };
        let (_, heard) = tokio::join!(server, asking);
        heard
    }

    #[tokio::test]
    async fn lines_are_put_together_and_heartbeats_left_out() {
        let trouble = |pod: &str| {
            Ok(Line::Trouble {
                pod: pod.into(),
                error: "gone".into(),
            })
        };
        let pieces = &[
            "\n{\"pod\":\"x/a\",\"err",
            "or\":\"gone\"}\n\n{\"pod\":\"x/b\",\"error\":\"gone\"}\n",
        ];
        assert_eq!(heard(pieces).await, [trouble("x/a"), trouble("x/b")]);
        assert!(heard(&["nonsense\n"]).await[0].is_err());
    }

    #[test]
    fn a_refusal_is_told_in_words() {
        assert_eq!(reason(br#"{"error": "you may not"}"#), "you may not");
        assert_eq!(reason(b"plain\nwords"), "plain");
    }
}
