//! `GET` over a stream that somebody else opened: a pod's port from inside the cluster, or forwarded from outside.

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

/// A longer answer is not read. A proxy's metrics are a tenth of a megabyte, a megabyte if it has many peers.
const BODY_BYTES_MAX: usize = 16 << 20;

#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("connecting")]
    Connect(#[source] std::io::Error),
    #[error("asking for {path}")]
    Http {
        path: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("the answer to {path} is {status}: {body}")]
    Status {
        path: String,
        status: http::StatusCode,
        /// Its first line.
        body: String,
    },
    #[error("no answer in time")]
    Silent,
}

/// The body of a successful answer. Deadlines are the caller's.
pub async fn get<Io>(io: Io, path: &str) -> Result<String, FetchError>
where
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    get_from(io, "localhost", path).await
}

/// The same from a host that cares for its name.
pub async fn get_from<Io>(io: Io, host: &str, path: &str) -> Result<String, FetchError>
where
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| FetchError::Http {
        path: path.to_owned(),
        source,
    };
    let (mut sender, connection) = http1::handshake(TokioIo::new(io))
        .await
        .map_err(|error| failed(error.into()))?;
    let request = http::Request::get(path)
        .header(http::header::HOST, host)
        .header(http::header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| failed(error.into()))?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), BODY_BYTES_MAX)
            .collect()
            .await?;
        Ok((status, body.to_bytes()))
    };
    tokio::pin!(connection);
    tokio::pin!(answer);
    // The connection may end before the answer has been taken from it.
    let outcome = tokio::select! {
        outcome = &mut answer => outcome,
        _ = &mut connection => answer.await,
    };
    let (status, body) = outcome.map_err(failed)?;
    let text = String::from_utf8(body.into()).map_err(|error| failed(error.into()))?;
    if status.is_success() {
        return Ok(text);
    }
    Err(FetchError::Status {
        path: path.to_owned(),
        status,
        body: text.lines().next().unwrap_or_default().to_owned(),
    })
}
