//! What `cargo xtask bench mesh-path` needs beside proxies, each in a process of its own: the control plane, the
//! redirect rules, an origin for bodies and bare bytes, and the client ([`load`]). The environment says which.

#![expect(clippy::print_stdout, reason = "the figures are the output")]

mod load;
#[path = "../tests/support/mod.rs"]
mod support;

use std::net::SocketAddr;
use std::process::ExitCode;

use bytes::{Buf as _, BytesMut};
use support::{ControlPlane, meshed, service};
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

/// One connection: HTTP/1.1, or bytes as the first one says.
async fn serve(mut socket: TcpStream) -> Result<(), Error> {
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

/// A control plane that proxies in two network namespaces reach on their own loopback, and files for other servers.
fn control() {
    let listen = || {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("a setting");
        listener
    };
    let namespace = std::fs::File::open(env("MESH_PATH_NETNS")).expect("the other namespace");
    let there = std::thread::spawn(move || {
        nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).expect("the namespace is ours");
        listen()
    });
    let listeners = [listen(), there.join().expect("a listener")];
    let addrs = listeners
        .each_ref()
        .map(|listener| listener.local_addr().expect("its address"));
    let inbound: SocketAddr = env("MESH_PATH_INBOUND").parse().expect("an address");
    let identity = env("MESH_PATH_IDENTITY");

    runtime().block_on(async {
        let control = ControlPlane::new(addrs[0]);
        for (number, pair) in env("MESH_PATH_SERVICES").split(',').enumerate() {
            let (addr, origin) = pair.split_once('=').expect("service=origin");
            let endpoint = meshed(origin.parse().expect("an address"), &identity, inbound.port());
            let name = format!("web-{number}.ns.svc.cluster.local:80");
            control.change(|world| service(world, addr, &name, vec![endpoint]));
        }
        for listener in listeners {
            control.serve(TcpListener::from_std(listener).expect("a listener"));
        }
        let dir = std::path::PathBuf::from(env("MESH_PATH_DIR"));
        std::fs::write(dir.join("anchors.pem"), &control.anchors).expect("a file");
        std::fs::write(dir.join("peer.pem"), control.certificate_file(&identity)).expect("a file");
        std::thread::spawn(move || wait_for_parent(&format!("{} {}", addrs[0], addrs[1])));
        std::future::pending::<()>().await;
    });
}
