//! What `cargo xtask bench mesh-path` needs beside proxies, each in a process of its own: the control plane, the
//! redirect rules, an origin for bodies, bare bytes and gRPC, and the client ([`load`]). The environment says which.

#![expect(clippy::print_stdout, reason = "the figures are the output")]

mod load;
#[path = "../tests/support/mod.rs"]
mod support;

use std::net::SocketAddr;
use std::process::ExitCode;

use base64::Engine as _;
use bytes::{Buf as _, Bytes, BytesMut};
use http::HeaderMap;
use support::{ControlPlane, meshed, service, through_gateway};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

type Error = Box<dyn std::error::Error + Send + Sync>;

fn main() {
    match std::env::var("MESH_PATH_ROLE").as_deref() {
        Ok("origin") => origin(),
        Ok("control") => control(),
        Ok("init") => std::process::exit(i32::from(
            hawser_proxy::init::main(std::env::args_os().collect()) != ExitCode::SUCCESS,
        )),
        Ok("requests") => println!("{}", load::requests()),
        Ok("bytes") => println!("{}", load::bytes()),
        Ok("hold") => load::hold(),
        _ => println!("This is a part of `cargo xtask bench mesh-path`."),
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

/// Set by the parent.
fn env(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is set"))
}

/// Says that we are ready, and ends the process when the parent has gone.
fn wait_for_parent(line: &str) {
    println!("{line}");
    let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
    std::process::exit(0);
}

fn origin() {
    let addrs = env("MESH_PATH_LISTEN");
    runtime().block_on(async move {
        for addr in addrs.split(',') {
            let listener = TcpListener::bind(addr).await.expect("a port");
            tokio::spawn(async move {
                while let Ok((socket, _)) = listener.accept().await {
                    let _ = socket.set_nodelay(true);
                    tokio::spawn(serve(socket));
                }
            });
        }
        std::thread::spawn(|| wait_for_parent("ready"));
        std::future::pending::<()>().await;
    });
}

/// One connection: HTTP/1.1, gRPC over HTTP/2, or bytes as the first one says.
async fn serve(mut socket: TcpStream) -> Result<(), Error> {
    let mut first = [0; 4];
    if socket.peek(&mut first).await? == first.len() && &first == b"PRI " {
        return serve_grpc(socket).await;
    }
    let mut read = BytesMut::with_capacity(64 << 10);
    while socket.read_buf(&mut read).await? > 0 {
        match read[0] {
            load::DOWN => loop {
                load::write(&mut socket, 1 << 20).await?;
            },
            load::UP => {
                let mut came = 0;
                while socket.read_buf(&mut read).await? > 0 {
                    came += read.len() as u64;
                    read.clear();
                }
                return Ok(socket.write_u64(came).await?);
            }
            load::ECHO => {
                socket.write_all(&read.split()).await?;
                continue;
            }
            _ => {}
        }
        let asked = head_of(&mut read, |head| {
            let mut headers = [httparse::EMPTY_HEADER; 32];
            let mut request = httparse::Request::new(&mut headers);
            let parsed = request.parse(head)?;
            let path = request.path.unwrap_or_default();
            let down = path.trim_start_matches('/').parse::<u64>().unwrap_or(0);
            Ok(parsed
                .is_complete()
                .then(|| (parsed.unwrap(), (down, length_of(request.headers)))))
        })?;
        if let Some((down, up)) = asked {
            discard(&mut socket, &mut read, up).await?;
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {down}\r\n\r\n");
            socket.write_all(head.as_bytes()).await?;
            load::write(&mut socket, down).await?;
        }
    }
    Ok(())
}

/// Every call is answered with the same message.
async fn serve_grpc(socket: TcpStream) -> Result<(), Error> {
    let mut connection = h2::server::handshake(socket).await?;
    while let Some(accepted) = connection.accept().await {
        let (request, mut respond) = accepted?;
        tokio::spawn(async move {
            let mut asked = request.into_body();
            while let Some(data) = asked.data().await {
                asked.flow_control().release_capacity(data?.len())?;
            }
            let head = http::Response::builder().header("content-type", "application/grpc");
            let mut body = respond.send_response(head.body(()).expect("a head"), false)?;
            body.send_data(Bytes::from_static(load::MESSAGE), false)?;
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
            body.send_trailers(trailers)
        });
    }
    Ok(())
}

/// Takes a head off the front, once it is whole.
fn head_of<T>(
    read: &mut BytesMut,
    parse: impl FnOnce(&[u8]) -> Result<Option<(usize, T)>, httparse::Error>,
) -> Result<Option<T>, Error> {
    let Some((length, found)) = parse(read)? else {
        return Ok(None);
    };
    read.advance(length);
    Ok(Some(found))
}

fn length_of(headers: &[httparse::Header<'_>]) -> u64 {
    let found = headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case("content-length"));
    let text = found.and_then(|header| std::str::from_utf8(header.value).ok());
    text.and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Reads a body of this length, of which `read` has the beginning.
async fn discard(socket: &mut TcpStream, read: &mut BytesMut, mut length: u64) -> Result<(), Error> {
    loop {
        let here = length.min(read.len() as u64);
        read.advance(here as usize);
        length -= here;
        if length == 0 {
            return Ok(());
        }
        if socket.read_buf(read).await? == 0 {
            return Err("the end came early".into());
        }
    }
}

/// A control plane that proxies in several network namespaces reach on their own loopback, and files for other servers.
fn control() {
    let listen = || {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("a setting");
        listener
    };
    let mut listeners = vec![listen()];
    for namespace in env("MESH_PATH_NETNS").split(',') {
        let namespace = std::fs::File::open(namespace).expect("the other namespace");
        let there = std::thread::spawn(move || {
            nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET)
                .expect("the namespace is ours");
            listen()
        });
        listeners.push(there.join().expect("a listener"));
    }
    let addrs: Vec<_> = listeners
        .iter()
        .map(|listener| listener.local_addr().expect("its address"))
        .collect();
    let gateway: SocketAddr = env("MESH_PATH_GATEWAY").parse().expect("an address");
    let identities = env("MESH_PATH_IDENTITIES");
    let identities: Vec<_> = identities.split(',').collect();
    let [_, gateway_identity, identity] = identities[..] else {
        panic!("three identities");
    };

    runtime().block_on(async {
        let control = ControlPlane::new(addrs[0]);
        for (number, words) in env("MESH_PATH_SERVICES").split(',').enumerate() {
            let words: Vec<_> = words.split(' ').collect();
            let [near, far, origin] = words[..] else {
                panic!("service, service through the gateway, origin");
            };
            // Proxies listen for each other on the same port everywhere.
            let here = meshed(origin.parse().expect("an address"), identity, gateway.port());
            let name = format!("web-{number}.ns.svc.cluster.local:80");
            let there = through_gateway(gateway, gateway_identity, &name);
            control.change(|world| {
                service(world, near, &name, vec![here]);
                service(
                    world,
                    far,
                    &format!("web-{number}-far.ns.svc.cluster.local:80"),
                    vec![there],
                );
            });
        }
        for listener in listeners {
            control.serve(TcpListener::from_std(listener).expect("a listener"));
        }
        let dir = std::path::PathBuf::from(env("MESH_PATH_DIR"));
        std::fs::write(dir.join("anchors.pem"), &control.anchors).expect("a file");
        std::fs::write(dir.join("peer.pem"), control.certificate_file(identity)).expect("a file");
        for identity in &identities {
            key_and_request(&dir.join(identity), identity);
        }
        let addrs: Vec<_> = addrs.iter().map(SocketAddr::to_string).collect();
        std::thread::spawn(move || wait_for_parent(&addrs.join(" ")));
        std::future::pending::<()>().await;
    });
}

/// What linkerd2-proxy finds beside it, where a helper made it before.
fn key_and_request(dir: &std::path::Path, identity: &str) {
    let key = hawser_tls::PrivateKey::generate().expect("a key");
    let request = hawser_tls::csr(&key, &identity.parse().expect("an identity")).expect("a request");
    let pem = key.to_pem();
    let text: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    let der = base64::engine::general_purpose::STANDARD
        .decode(text)
        .expect("base64");
    std::fs::create_dir(dir).expect("a directory");
    std::fs::write(dir.join("key.p8"), der).expect("a file");
    std::fs::write(dir.join("csr.der"), &request).expect("a file");
}
