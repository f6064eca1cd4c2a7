//! The part of SPDY/3.1 that Kubernetes speaks: streams that a client opens over one byte stream.
//!
//! There is no flow control and there are no settings; every stream is answered with an empty SYN_REPLY. For each
//! forwarded connection a client opens an error stream and a data stream with the same `requestid`.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

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
/// How long a client may take to close a connection of which nothing more comes.
const LINGER: Duration = Duration::from_secs(5);

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

/// A stream that the client opened.
pub(super) struct Opened {
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
    pub stream: Stream,
}

/// One stream of a connection.
pub(super) struct Stream {
    id: u32,
    frames: mpsc::Sender<Vec<u8>>,
    /// Ends when the client closes its side. Dropping it discards what still comes.
    pub input: mpsc::Receiver<Bytes>,
}

impl Stream {
    /// The half that writes.
    pub(super) fn output(&self) -> Output {
        Output {
            id: self.id,
            frames: self.frames.clone(),
        }
    }
}

/// The writing half of a stream.
#[derive(Clone)]
pub(super) struct Output {
    id: u32,
    frames: mpsc::Sender<Vec<u8>>,
}

impl Output {
    pub(super) async fn send(&self, bytes: &[u8]) -> io::Result<()> {
        self.frame(0, bytes).await
    }

    /// The last bytes.
    pub(super) async fn finish(&self, bytes: &[u8]) -> io::Result<()> {
        self.frame(FIN, bytes).await
    }

    async fn frame(&self, flags: u8, bytes: &[u8]) -> io::Result<()> {
        let sent = self.frames.send(data(self.id, flags, bytes)).await;
        sent.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// Serves a connection until the client goes, or a while after the work is done: then the client should go.
pub(super) async fn serve<F>(
    stream: impl AsyncRead + AsyncWrite + Send,
    work: impl FnOnce(mpsc::Receiver<Opened>) -> F,
) -> io::Result<()>
where
    F: Future<Output = io::Result<()>>,
{
    let (reader, mut writer) = tokio::io::split(stream);
    let (frames, mut outgoing) = mpsc::channel::<Vec<u8>>(QUEUE_LENGTH);
    let (opened, streams) = mpsc::channel(QUEUE_LENGTH);
    let write = async move {
        while let Some(frame) = outgoing.recv().await {
            writer.write_all(&frame).await?;
            if outgoing.is_empty() {
                writer.flush().await?;
            }
        }
        writer.shutdown().await
    };
    let work = async {
        work(streams).await?;
        tokio::time::sleep(LINGER).await;
        Ok(())
    };
    // Whichever side ends first ends the connection.
    tokio::select! {
        result = read(reader, frames, opened) => result,
        result = write => result,
        result = work => result,
    }
}

async fn read(
    mut reader: impl AsyncRead + Unpin,
    frames: mpsc::Sender<Vec<u8>>,
    opened: mpsc::Sender<Opened>,
) -> io::Result<()> {
    let mut headers = Headers {
        inflate: Decompress::new(true),
    };
    let mut deflate = Compress::new(Compression::fast(), true);
    deflate.set_dictionary(&dictionary()).map_err(io::Error::other)?;
    let mut inputs: BTreeMap<u32, mpsc::Sender<Bytes>> = BTreeMap::new();
    loop {
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
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        match u16::from_be_bytes([c, d]) {
            SYN_STREAM => {
                let id = word(0)? & 0x7fff_ffff;
                let named = headers.read(body.get(10..).unwrap_or_default())?;
                let named = named
                    .into_iter()
                    .map(|(name, value)| (name.to_ascii_lowercase(), value));
                let mut reply = id.to_be_bytes().to_vec();
                let mut block = Vec::with_capacity(256);
                deflate
                    .compress_vec(&0_u32.to_be_bytes(), &mut block, FlushCompress::Sync)
                    .map_err(io::Error::other)?;
                reply.extend(block);
                frames.send(control(SYN_REPLY, 0, &reply)).await.map_err(gone)?;
                if inputs.len() >= STREAM_COUNT_MAX {
                    return Err(invalid("too many SPDY streams"));
                }
                let (sender, input) = mpsc::channel(QUEUE_LENGTH);
                if flags & FIN == 0 {
                    inputs.insert(id, sender);
                }
                let stream = Stream {
                    id,
                    frames: frames.clone(),
                    input,
                };
                let headers = named.collect();
                // Work that is done takes no more streams.
                let _ = opened.send(Opened { headers, stream }).await;
            }
            RST_STREAM => drop(inputs.remove(&(word(0)? & 0x7fff_ffff))),
            PING => frames.send(control(PING, 0, &body)).await.map_err(gone)?,
            GOAWAY => return Ok(()),
            _ => {}
        }
    }
}

/// A pod whose ports are forwarded.
#[derive(Clone)]
pub(crate) struct Forward {
    pub kubelet: Arc<dyn Kubelet>,
    pub namespace: String,
    pub pod: String,
}

/// Serves port-forward: each pair of streams is one connection.
pub(super) async fn forward(mut opened: mpsc::Receiver<Opened>, forward: Forward) -> io::Result<()> {
    let mut error_streams: BTreeMap<String, Stream> = BTreeMap::new();
    let mut connections = JoinSet::new();
    while let Some(Opened { headers, stream }) = opened.recv().await {
        while connections.try_join_next().is_some() {}
        let header = |name: &str| headers.get(name).cloned().unwrap_or_default();
        if header("streamtype") == "error" {
            if error_streams.len() >= STREAM_COUNT_MAX {
                return Err(invalid("too many SPDY streams"));
            }
            error_streams.insert(header("requestid"), stream);
            continue;
        }
        let port = header("port").parse::<u16>();
        let port = port.map_err(|_| invalid("a data stream names no port"))?;
        let errors = error_streams.remove(&header("requestid"));
        connections.spawn(connect(forward.clone(), port, stream, errors));
    }
    Ok(())
}

/// One forwarded connection.
async fn connect(forward: Forward, port: u16, mut stream: Stream, errors: Option<Stream>) {
    let mut problem = String::new();
    let output = stream.output();
    match forward
        .kubelet
        .dial(forward.namespace.clone(), forward.pod.clone(), port)
        .await
    {
        Ok(connection) => {
            let (mut from_pod, mut to_pod) = connection.into_split();
            let upload = async {
                while let Some(bytes) = stream.input.recv().await {
                    if to_pod.write_all(&bytes).await.is_err() {
                        return;
                    }
                }
                let _ = to_pod.shutdown().await;
            };
            let download = async {
                let mut buffer = vec![0; 32 * 1024];
                while let Ok(count @ 1..) = from_pod.read(&mut buffer).await {
                    if output.send(&buffer[..count]).await.is_err() {
                        return;
                    }
                }
                let _ = output.finish(&[]).await;
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
            let _ = output.finish(&[]).await;
        }
    }
    if let Some(errors) = errors {
        let _ = errors.output().finish(problem.as_bytes()).await;
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Speaks for a client.
    pub(in crate::streams) struct Client {
        deflate: Compress,
    }

    impl Client {
        pub(in crate::streams) fn new() -> Self {
            let mut deflate = Compress::new(Compression::fast(), true);
            deflate.set_dictionary(&dictionary()).unwrap();
            Self { deflate }
        }

        fn block(&mut self, headers: &[(&str, &str)]) -> Vec<u8> {
            let size = |n: usize| u32::try_from(n).unwrap().to_be_bytes();
            let mut plain = size(headers.len()).to_vec();
            for word in headers.iter().flat_map(|(name, value)| [name, value]) {
                plain.extend(size(word.len()));
                plain.extend(word.as_bytes());
            }
            let mut block = Vec::with_capacity(512);
            self.deflate
                .compress_vec(&plain, &mut block, FlushCompress::Sync)
                .unwrap();
            block
        }

        /// A frame that opens a stream.
        pub(in crate::streams) fn open(&mut self, stream: u32, headers: &[(&str, &str)]) -> Vec<u8> {
            let mut body = [stream.to_be_bytes(), [0; 4]].concat();
            body.extend([0, 0]);
            body.extend(self.block(headers));
            control(SYN_STREAM, 0, &body)
        }
    }

    /// A frame of data; the last one of its stream if said so.
    pub(in crate::streams) fn bytes(stream: u32, last: bool, bytes: &[u8]) -> Vec<u8> {
        data(stream, if last { FIN } else { 0 }, bytes)
    }

    /// What came on each stream until the server has ended so many of them.
    pub(in crate::streams) async fn hear(
        from: &mut (impl AsyncRead + Unpin),
        mut streams: usize,
    ) -> BTreeMap<u32, String> {
        let mut heard: BTreeMap<u32, String> = BTreeMap::new();
        while streams > 0 {
            let mut head = [0; 8];
            from.read_exact(&mut head).await.unwrap();
            let [a, b, c, d, flags, x, y, z] = head;
            let mut body = vec![0; usize::try_from(u32::from_be_bytes([0, x, y, z])).unwrap()];
            from.read_exact(&mut body).await.unwrap();
            if a & 0x80 == 0 {
                let stream = heard.entry(u32::from_be_bytes([a, b, c, d])).or_default();
                stream.push_str(std::str::from_utf8(&body).unwrap());
                streams -= usize::from(flags & FIN);
            }
        }
        heard
    }

    #[test]
    fn header_blocks_of_one_connection_share_their_compression() {
        let mut client = Client::new();
        let mut headers = Headers {
            inflate: Decompress::new(true),
        };
        for port in ["80", "8080"] {
            let block = client.block(&[("Port", port), ("Streamtype", "data")]);
            let read = headers.read(&block).unwrap();
            assert_eq!(read.get("Port").map(String::as_str), Some(port));
            assert_eq!(read.get("Streamtype").map(String::as_str), Some("data"));
        }
        assert!(headers.read(b"nonsense").is_err());
    }
}
