//! `cargo xtask images`: what the mesh's manifests name, as images that hold one static program and nothing else.
//!
//! Needs neither a container engine nor a network: the programs are built here, the archives are written by [`oci`].
//! Each is then unpacked again and its program started where there is nothing but the image, as the user that it names.

mod elf;
mod oci;
mod tar;

use std::collections::BTreeMap;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use elf::Hardening;
use oci::{Image, Packed};
use tar::{Node, Tree, file};

pub(crate) const USAGE: &str = "images [-o json] [--dev] [--only IMAGE]";

const REGISTRY: &str = "cr.hawser.dev/hawser";
const BIN: &str = "usr/local/bin";
/// Every pod has one of these: what it weighs, every node fetches and every new pod waits for.
const PROXY_SIZE_MAX: usize = 15 << 20;

/// An image, and how to see that it works.
struct Recipe {
    image: &'static str,
    description: &'static str,
    package: &'static str,
    program: &'static str,
    /// Further names of the program, under which it does something else.
    names: &'static [&'static str],
    entrypoint: &'static str,
    uid: u32,
    trials: &'static [Trial],
}

/// A start of one of the programs, and the code with which it ends.
struct Trial {
    line: &'static str,
    code: i32,
}

const RECIPES: &[Recipe] = &[
    Recipe {
        image: "proxy",
        description: "the data plane of a mesh, and what redirects a pod's connections into it",
        package: "hawser-proxy",
        program: "hawser-proxy",
        names: &["hawser-proxy-init"],
        entrypoint: "hawser-proxy",
        uid: 2102,
        trials: &[
            // It has no arguments; without its environment it says what is missing.
            Trial {
                line: "hawser-proxy",
                code: 64,
            },
            Trial {
                line: "hawser-proxy-init --incoming-proxy-port 4143 --outgoing-proxy-port 4140 --proxy-uid 2102 --simulate",
                code: 0,
            },
        ],
    },
    Recipe {
        image: "controller",
        description: "the control plane of a mesh, its service mirror and its failover",
        package: "hawser-control",
        program: "hawser-control",
        names: &[],
        entrypoint: "hawser-control",
        uid: 2103,
        trials: &[Trial {
            line: "hawser-control --help",
            code: 0,
        }],
    },
    Recipe {
        image: "viz",
        description: "the collector of a mesh's metrics, and its dashboard",
        package: "hawser-viz",
        program: "hawser-viz",
        names: &[],
        entrypoint: "hawser-viz",
        uid: 2103,
        trials: &[Trial {
            line: "hawser-viz --help",
            code: 0,
        }],
    },
    Recipe {
        image: "hawser",
        description: "the command line of a mesh",
        package: "hawser-cli",
        program: "hawser",
        names: &[],
        entrypoint: "hawser",
        uid: 65_532,
        trials: &[
            Trial {
                line: "hawser --help",
                code: 0,
            },
            Trial {
                line: "hawser install --crds",
                code: 0,
            },
        ],
    },
    Recipe {
        image: "emojivoto",
        description: "a demo application: vote for your favourite emoji",
        package: "hawser-emojivoto",
        program: "hawser-emojivoto",
        names: &[
            "emojivoto-web",
            "emojivoto-emoji-svc",
            "emojivoto-voting-svc",
            "emojivoto-vote-bot",
        ],
        entrypoint: "emojivoto-web",
        uid: 65_532,
        trials: &[Trial {
            line: "hawser-emojivoto",
            code: 64,
        }],
    },
];

struct Arguments {
    json: bool,
    dev: bool,
    only: Option<String>,
}

/// One line of the table.
struct Made {
    reference: String,
    path: PathBuf,
    packed: Packed,
    program_len: usize,
    hardening: Hardening,
    uid: u32,
}

pub(crate) fn run(workspace: &Path, arguments: &[String]) -> Result<()> {
    let arguments = parse(arguments)?;
    let recipes: Vec<&Recipe> = RECIPES
        .iter()
        .filter(|recipe| arguments.only.as_ref().is_none_or(|only| recipe.image == *only))
        .collect();
    ensure!(!recipes.is_empty(), "no such image; usage: {USAGE}");
    let programs = build(workspace, &recipes, arguments.dev)?;
    let tag = format!("v{}", env!("CARGO_PKG_VERSION"));
    let mut made = Vec::new();
    for recipe in recipes {
        let program = programs
            .get(recipe.program)
            .context("cargo built something else")?;
        made.push(
            make(recipe, &tag, program, arguments.dev).with_context(|| format!("image {}", recipe.image))?,
        );
    }
    print(&made, arguments.json);
    Ok(())
}

fn parse(arguments: &[String]) -> Result<Arguments> {
    let mut parsed = Arguments {
        json: false,
        dev: false,
        only: None,
    };
    let mut words = arguments.iter().map(String::as_str);
    while let Some(word) = words.next() {
        match word {
            "-o" => {
                let format = words.next().unwrap_or_default();
                ensure!(matches!(format, "json" | "table"), "-o is json or table");
                parsed.json = format == "json";
            }
            "--dev" => parsed.dev = true,
            "--only" => parsed.only = words.next().map(str::to_owned),
            other => bail!("{other:?} means nothing here; usage: {USAGE}"),
        }
    }
    Ok(parsed)
}

/// The programs, linked with everything that they need, by name. With a target of its own, so that build scripts and
/// macros stay ordinary.
fn build(workspace: &Path, recipes: &[&Recipe], dev: bool) -> Result<BTreeMap<String, PathBuf>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .args([
            "build",
            "--message-format=json-render-diagnostics",
            "--bins",
            "--target",
        ])
        .arg(format!("{}-unknown-linux-gnu", std::env::consts::ARCH))
        .current_dir(workspace)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env("CARGO_PROFILE_DEV_STRIP", "symbols")
        .env("CARGO_PROFILE_RELEASE_STRIP", "symbols")
        .stderr(Stdio::inherit());
    if !dev {
        command.arg("--release");
    }
    for recipe in recipes {
        command.args(["--package", recipe.package]);
    }
    let output = command.output().context("starting cargo")?;
    ensure!(output.status.success(), "cargo build failed");
    let messages = output.stdout.split(|byte| *byte == b'\n');
    let executable = |line: &[u8]| {
        let message: Value = serde_json::from_slice(line).ok()?;
        let name = message["target"]["name"].as_str()?.to_owned();
        Some((name, message["executable"].as_str()?.into()))
    };
    Ok(messages.filter_map(executable).collect())
}

fn make(recipe: &Recipe, tag: &str, program: &Path, dev: bool) -> Result<Made> {
    let bytes = std::fs::read(program).with_context(|| format!("reading {}", program.display()))?;
    let (program_len, hardening) = (bytes.len(), elf::hardening(&bytes)?);
    ensure!(
        hardening.is_static,
        "{} needs libraries that the image doesn't have",
        recipe.program
    );
    let image = Image {
        name: format!("{REGISTRY}/{}", recipe.image),
        tag: tag.to_owned(),
        uid: recipe.uid,
        entrypoint: vec![recipe.entrypoint.to_owned()],
        description: recipe.description.to_owned(),
        files: files(recipe, bytes),
    };
    let packed = oci::pack(&image)?;
    let is_heavy = recipe.image == "proxy" && packed.layer_len > PROXY_SIZE_MAX;
    ensure!(
        dev || !is_heavy,
        "{} bytes are too much for a proxy",
        packed.layer_len
    );
    let dir = program.parent().context("a program in a folder")?.join("images");
    std::fs::create_dir_all(&dir)?;
    let path = dir.join(format!("{}.tar", recipe.image));
    std::fs::write(&path, &packed.archive)?;
    let (_, files) = oci::unpack(&std::fs::read(&path)?)?;
    for trial in recipe.trials {
        start(&files, recipe.uid, trial).with_context(|| format!("trying {}", trial.line))?;
    }
    Ok(Made {
        reference: format!("{}:{}", image.name, image.tag),
        path,
        packed,
        program_len,
        hardening,
        uid: recipe.uid,
    })
}

/// The program, its names, and what a C library looks up: who the user is, and where names of hosts come from.
fn files(recipe: &Recipe, program: Vec<u8>) -> Tree {
    let uid = recipe.uid;
    let mut tree = Tree::new();
    for directory in ["etc", "usr", "usr/local", BIN] {
        tree.insert(directory.to_owned(), Node::Directory);
    }
    tree.insert("etc/group".into(), file(format!("root:x:0:\nhawser:x:{uid}:\n")));
    tree.insert("etc/nsswitch.conf".into(), file("hosts: files dns\n"));
    tree.insert(
        "etc/passwd".into(),
        file(format!(
            "root:x:0:0::/:/nonexistent\nhawser:x:{uid}:{uid}::/:/nonexistent\n"
        )),
    );
    tree.insert(
        format!("{BIN}/{}", recipe.program),
        Node::File {
            bytes: program,
            executable: true,
        },
    );
    for name in recipe.names {
        let target = recipe.program.to_owned();
        tree.insert(format!("{BIN}/{name}"), Node::Link { target });
    }
    tree
}

/// Starts a program of an image where there is nothing else, as its user, who can't write anywhere.
fn start(files: &Tree, uid: u32, trial: &Trial) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let root = dir.path();
    for (path, node) in files {
        let path = root.join(path);
        match node {
            Node::Directory => std::fs::create_dir(&path)?,
            Node::File { bytes, executable } => {
                std::fs::write(&path, bytes)?;
                let mode = if *executable { 0o555 } else { 0o444 };
                std::fs::set_permissions(&path, PermissionsExt::from_mode(mode))?;
            }
            Node::Link { target } => symlink(target, &path)?,
        }
    }
    let directories: Vec<PathBuf> = files
        .iter()
        .filter(|(_, node)| **node == Node::Directory)
        .map(|(path, _)| root.join(path))
        .chain([root.to_owned()])
        .collect();
    let all_may = |mode: u32| {
        directories
            .iter()
            .try_for_each(|directory| std::fs::set_permissions(directory, PermissionsExt::from_mode(mode)))
    };
    all_may(0o555)?;
    let mut words = trial.line.split(' ');
    let program = words.next().unwrap_or_default();
    let output = Command::new("unshare")
        .args(["--user", "--net", "--ipc", "--uts"])
        .args([format!("--map-user={uid}"), format!("--map-group={uid}")])
        .arg(format!("--root={}", root.display()))
        .arg("--wd=/")
        .arg(format!("/{BIN}/{program}"))
        .args(words)
        .env_clear()
        .output()
        .context("starting unshare");
    all_may(0o755)?;
    let output = output?;
    ensure!(
        output.status.code() == Some(trial.code),
        "it ended with {}, not with code {}: {}",
        output.status,
        trial.code,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the answer")]
fn print(made: &[Made], as_json: bool) {
    if as_json {
        let images: Vec<Value> = made
            .iter()
            .map(|made| {
                json!({
                    "image": made.reference, "digest": made.packed.digest, "archive": made.path,
                    "layerBytes": made.packed.layer_len, "programBytes": made.program_len, "user": made.uid,
                    "hardening": made.hardening.json(),
                })
            })
            .collect();
        println!("{:#}", json!(images));
        return;
    }
    let size = |bytes: usize| format!("{:.1} MB", bytes as f64 / 1e6);
    println!(
        "{:<38} {:>8} {:>9}  {:<6} HARDENING",
        "IMAGE", "LAYER", "PROGRAM", "USER"
    );
    for made in made {
        println!(
            "{:<38} {:>8} {:>9}  {:<6} {}",
            made.reference,
            size(made.packed.layer_len),
            size(made.program_len),
            made.uid,
            made.hardening.words()
        );
    }
    if let Some(dir) = made.first().and_then(|made| made.path.parent()) {
        println!("\nThe archives are in {}", dir.display());
    }
}
