//! The part of SPDY/3.1 that `kubectl port-forward` speaks: pairs of streams over one byte stream.
//!
//! For each local connection kubectl opens an error stream and a data stream with the same `requestid`. There is no
//! flow control and there are no settings; every stream is answered with an empty SYN_REPLY.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::kubelet::Kubelet;

/// Bounds on what a client may send.
const FRAME_SIZE_MAX: usize = 1 << 20;
const HEADERS_SIZE_MAX: usize = 64 * 1024;
const STREAM_COUNT_MAX: usize = 1024;
/// Pieces in flight per direction; a slow peer makes the other wait.
const QUEUE_LENGTH: usize = 32;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const FIN: u8 = 1;

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

/// The names and values that every SPDY/3 header block may refer back to.
fn dictionary() -> Vec<u8> {
    const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language \
        accept-ranges age allow authorization cache-control connection content-base content-encoding content-language \
        content-length content-location content-md5 content-range content-type date etag expect expires from host \
        if-match if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards \
        pragma proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding \
        upgrade user-agent vary via warning www-authenticate method get status";
    const PHRASES: [&str; 8] = [
        "200 OK",
        "version",
        "HTTP/1.1",
        "url",
        "public",
        "set-cookie",
        "keep-alive",
        "origin",
    ];
    const REST: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 \
        Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 \
        Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May \
        Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,\
        image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=\
        gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";
    let mut bytes = Vec::with_capacity(1423);
    for word in WORDS.split_whitespace().chain(PHRASES) {
        bytes.extend(u32::try_from(word.len()).unwrap_or(0).to_be_bytes());
        bytes.extend(word.as_bytes());
    }
    bytes.extend(REST.as_bytes());
    bytes
}

/// Reads header blocks; they share one compression state per connection.
struct Headers {
    inflate: Decompress,
}

impl Headers {
    fn read(&mut self, block: &[u8]) -> io::Result<BTreeMap<String, String>> {
        let mut plain = Vec::with_capacity(4096);
        let mut rest = block;
        loop {
            let before = self.inflate.total_in();
            let produced = plain.len();
            let result = self
                .inflate
                .decompress_vec(rest, &mut plain, FlushDecompress::Sync);
            let consumed = usize::try_from(self.inflate.total_in() - before).unwrap_or(0);
            rest = rest.get(consumed..).unwrap_or_default();
            match result {
                Ok(_) => {}
                Err(error) if error.needs_dictionary().is_some() => {
                    self.inflate
                        .set_dictionary(&dictionary())
                        .map_err(io::Error::other)?;
                    continue;
                }
                Err(error) => return Err(io::Error::other(error)),
            }
            if plain.len() == plain.capacity() {
                if plain.len() > HEADERS_SIZE_MAX {
                    return Err(invalid("SPDY headers are too large"));
                }
                plain.reserve(4096);
            } else if rest.is_empty() || (consumed == 0 && plain.len() == produced) {
                break;
            }
        }
        let mut text = plain.as_slice();
        let number = |text: &mut &[u8]| -> io::Result<usize> {
            let (bytes, tail) = text
                .split_first_chunk::<4>()
                .ok_or_else(|| invalid("a SPDY header is cut off"))?;
            *text = tail;
            usize::try_from(u32::from_be_bytes(*bytes)).map_err(io::Error::other)
        };
        let count = number(&mut text)?;
        let mut headers = BTreeMap::new();
        for _ in 0..count {
            let mut word = || -> io::Result<String> {
                let length = number(&mut text)?;
                let (word, tail) = text
                    .split_at_checked(length)
                    .ok_or_else(|| invalid("a SPDY header is cut off"))?;
                text = tail;
                Ok(String::from_utf8_lossy(word).into_owned())
            };
            let name = word()?;
            headers.insert(name, word()?);
        }
        Ok(headers)
    }
}

fn control(kind: u16, flags: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(8 + body.len());
    frame.extend([0x80, 0x03]);
    frame.extend(kind.to_be_bytes());
    frame.push(flags);
    frame.extend(&u32::try_from(body.len()).unwrap_or(0).to_be_bytes()[1..]);
    frame.extend(body);
    frame
}

fn data(stream: u32, flags: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(8 + body.len());
    frame.extend(stream.to_be_bytes());
    frame.push(flags);
    frame.extend(&u32::try_from(body.len()).unwrap_or(0).to_be_bytes()[1..]);
    frame.extend(body);
    frame
}

/// A pod whose ports are forwarded.
#[derive(Clone)]
pub(crate) struct Forward {
    pub kubelet: Arc<dyn Kubelet>,
    pub namespace: String,
    pub pod: String,
}

/// Serves port-forward until the client goes.
pub(crate) async fn serve(
    stream: impl AsyncRead + AsyncWrite + Send + 'static,
    forward: Forward,
) -> io::Result<()> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let (frames, mut outgoing) = mpsc::channel::<Vec<u8>>(QUEUE_LENGTH);
    let write = async move {
        while let Some(frame) = outgoing.recv().await {
            writer.write_all(&frame).await?;
            if outgoing.is_empty() {
                writer.flush().await?;
            }
        }
        writer.shutdown().await
    };
    let read = async move {
        let mut headers = Headers {
            inflate: Decompress::new(true),
        };
        let mut deflate = Compress::new(Compression::fast(), true);
        deflate.set_dictionary(&dictionary()).map_err(io::Error::other)?;
        let mut error_streams: BTreeMap<String, u32> = BTreeMap::new();
        let mut inputs: BTreeMap<u32, mpsc::Sender<Bytes>> = BTreeMap::new();
        let mut tasks = JoinSet::new();
        loop {
            while tasks.try_join_next().is_some() {}
            let mut head = [0; 8];
            match reader.read_exact(&mut head).await {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Err(error) => return Err(error),
            }
            let [a, b, c, d, flags, x, y, z] = head;
            let size = usize::try_from(u32::from_be_bytes([0, x, y, z])).unwrap_or(usize::MAX);
            if size > FRAME_SIZE_MAX {
                return Err(invalid("a SPDY frame is too large"));
            }
            let mut body = vec![0; size];
            reader.read_exact(&mut body).await?;
            let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
            let word = |at: usize| -> io::Result<u32> {
                let bytes = body.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
                Ok(u32::from_be_bytes(
                    bytes.ok_or_else(|| invalid("a SPDY frame is cut off"))?,
                ))
            };
            if a & 0x80 == 0 {
                let stream = u32::from_be_bytes([a, b, c, d]);
                if let Some(input) = inputs.get(&stream)
                    && !body.is_empty()
                    && input.send(Bytes::from(body)).await.is_err()
                {
                    inputs.remove(&stream);
                }
                if flags & FIN != 0 {
                    inputs.remove(&stream);
                }
                continue;
            }
            match u16::from_be_bytes([c, d]) {
                SYN_STREAM => {
                    let stream = word(0)? & 0x7fff_ffff;
                    let named = headers.read(body.get(10..).unwrap_or_default())?;
                    // Header names may come in any case.
                    let header = |name: &str| {
                        named
                            .iter()
                            .find(|(known, _)| known.eq_ignore_ascii_case(name))
                            .map(|(_, value)| value.clone())
                    };
                    let mut reply = stream.to_be_bytes().to_vec();
                    let mut block = Vec::with_capacity(256);
                    deflate
                        .compress_vec(&0_u32.to_be_bytes(), &mut block, FlushCompress::Sync)
                        .map_err(io::Error::other)?;
                    reply.extend(block);
                    frames.send(control(SYN_REPLY, 0, &reply)).await.map_err(gone)?;
                    let request = header("requestid").unwrap_or_default();
                    if error_streams.len() + inputs.len() > STREAM_COUNT_MAX {
                        return Err(invalid("too many SPDY streams"));
                    }
                    if header("streamtype").as_deref() == Some("error") {
                        error_streams.insert(request, stream);
                        continue;
                    }
                    let port = header("port").and_then(|port| port.parse::<u16>().ok());
                    let port = port.ok_or_else(|| invalid("a data stream names no port"))?;
                    let (input, received) = mpsc::channel(QUEUE_LENGTH);
                    inputs.insert(stream, input);
                    let error_stream = error_streams.remove(&request);
                    tasks.spawn(connect(
                        forward.clone(),
                        port,
                        stream,
                        error_stream,
                        received,
                        frames.clone(),
                    ));
                }
                RST_STREAM => drop(inputs.remove(&(word(0)? & 0x7fff_ffff))),
                PING => frames.send(control(PING, 0, &body)).await.map_err(gone)?,
                GOAWAY => return Ok(()),
                _ => {}
            }
        }
    };
    // Whichever side ends first ends the connection; the tasks of single streams end with `read`.
    tokio::select! {
        result = read => result,
        result = write => result,
    }
}

/// One forwarded connection.
async fn connect(
    forward: Forward,
    port: u16,
    stream: u32,
    error_stream: Option<u32>,
    mut received: mpsc::Receiver<Bytes>,
    frames: mpsc::Sender<Vec<u8>>,
) {
    let mut problem = String::new();
    match forward
        .kubelet
        .dial(forward.namespace.clone(), forward.pod.clone(), port)
        .await
    {
        Ok(connection) => {
            let (mut from_pod, mut to_pod) = connection.into_split();
            let upload = async {
                while let Some(bytes) = received.recv().await {
                    if to_pod.write_all(&bytes).await.is_err() {
                        return;
                    }
                }
                let _ = to_pod.shutdown().await;
            };
            let download = async {
                let mut buffer = vec![0; 32 * 1024];
                while let Ok(count @ 1..) = from_pod.read(&mut buffer).await {
                    if frames.send(data(stream, 0, &buffer[..count])).await.is_err() {
                        return;
                    }
                }
                let _ = frames.send(data(stream, FIN, &[])).await;
            };
            tokio::join!(upload, download);
        }
        Err(error) => {
            let source = std::error::Error::source(&error)
                .map(|source| format!(": {source}"))
                .unwrap_or_default();
            problem = format!(
                "error forwarding port {port} to pod {}: {error}{source}",
                forward.pod
            );
            let _ = frames.send(data(stream, FIN, &[])).await;
        }
    }
    if let Some(error_stream) = error_stream {
        let _ = frames.send(data(error_stream, FIN, problem.as_bytes())).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_blocks_of_one_connection_share_their_compression() {
        let mut deflate = Compress::new(Compression::fast(), true);
        deflate.set_dictionary(&dictionary()).unwrap();
        let mut headers = Headers {
            inflate: Decompress::new(true),
        };
        for port in ["80", "8080"] {
            let mut plain = 2_u32.to_be_bytes().to_vec();
            for word in ["Port", port, "Streamtype", "data"] {
                plain.extend(u32::try_from(word.len()).unwrap().to_be_bytes());
                plain.extend(word.as_bytes());
            }
            let mut block = Vec::with_capacity(512);
            deflate
                .compress_vec(&plain, &mut block, FlushCompress::Sync)
                .unwrap();
            let read = headers.read(&block).unwrap();
            assert_eq!(read.get("Port").map(String::as_str), Some(port));
            assert_eq!(read.get("Streamtype").map(String::as_str), Some("data"));
        }
        assert!(headers.read(b"nonsense").is_err());
    }
}
