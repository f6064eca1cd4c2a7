//! `cargo xtask images`: what the mesh's manifests name, as images that hold static programs and nothing else.
//!
//! Needs neither a container engine nor a network: the programs are built here, the archive is written by [`oci`]. It is
//! then read again, and each program started where there is nothing but its image, as the user that the image names.

mod elf;
mod oci;
mod tar;

use std::collections::BTreeMap;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use elf::Hardening;
use oci::{Archive, Image, Packed};
use tar::{Capabilities, Node, Tree, file};

pub(crate) const USAGE: &str = "images [-o json] [--dev] [--only IMAGE]";

const BIN: &str = "usr/local/bin";
const PROXY: &str = "hawser-proxy";
/// The profile of what is optimised as a whole.
const DIST: &str = "dist";
/// Every pod has one of these: what it weighs, every node fetches and every new pod waits for.
const PROXY_SIZE_MAX: usize = 15 << 20;

/// An image, and how to see that it works.
struct Recipe {
    /// Without the version.
    name: &'static str,
    /// Instead of our version.
    tag: Option<&'static str>,
    description: &'static str,
    package: &'static str,
    programs: &'static [Program],
    /// The first program, unless it is another of the names.
    entrypoint: &'static str,
    uid: u32,
    trials: &'static [Trial],
}

struct Program {
    name: &'static str,
    /// Further names, under which it does something else.
    names: &'static [&'static str],
    capabilities: Capabilities,
}

const fn program(name: &'static str) -> Program {
    Program {
        name,
        names: &[],
        capabilities: Capabilities(0),
    }
}

/// A start of one of the programs, and the code with which it ends.
struct Trial {
    line: &'static str,
    code: i32,
}

/// `CAP_NET_ADMIN`, which writing redirect rules takes.
const NET_ADMIN: Capabilities = Capabilities(1 << 12);

const RECIPES: &[Recipe] = &[
    Recipe {
        name: "cr.hawser.dev/hawser/proxy",
        tag: None,
        description: "the data plane of a mesh, and what redirects a pod's connections into it",
        package: "hawser-proxy",
        programs: &[
            program("hawser-proxy"),
            // Its container isn't root's, so the capability that the container has must be the file's as well. The
            // proxy's container hasn't got it: a file that asked for it couldn't be started there.
            Program {
                name: "hawser-proxy-init",
                names: &[],
                capabilities: NET_ADMIN,
            },
        ],
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
        name: "cr.hawser.dev/hawser/controller",
        tag: None,
        description: "the control plane of a mesh, its service mirror and its failover",
        package: "hawser-control",
        programs: &[program("hawser-control")],
        entrypoint: "hawser-control",
        uid: 2103,
        trials: &[Trial {
            line: "hawser-control --help",
            code: 0,
        }],
    },
    Recipe {
        name: "cr.hawser.dev/hawser/viz",
        tag: None,
        description: "the collector of a mesh's metrics, and its dashboard",
        package: "hawser-viz",
        programs: &[program("hawser-viz")],
        entrypoint: "hawser-viz",
        uid: 2103,
        trials: &[Trial {
            line: "hawser-viz --help",
            code: 0,
        }],
    },
    Recipe {
        name: "cr.hawser.dev/hawser/hawser",
        tag: None,
        description: "the command line of a mesh",
        package: "hawser-cli",
        programs: &[program("hawser")],
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
        name: "cr.hawser.dev/hawser/emojivoto",
        tag: None,
        description: "a demo application: vote for your favourite emoji",
        package: "hawser-emojivoto",
        programs: &[Program {
            name: "hawser-emojivoto",
            names: &[
                "emojivoto-web",
                "emojivoto-emoji-svc",
                "emojivoto-voting-svc",
                "emojivoto-vote-bot",
            ],
            capabilities: Capabilities(0),
        }],
        entrypoint: "emojivoto-web",
        uid: 65_532,
        trials: &[Trial {
            line: "hawser-emojivoto",
            code: 64,
        }],
    },
    Recipe {
        // For clusters that can't fetch Kubernetes' own, which does the same.
        name: "registry.k8s.io/pause",
        tag: Some("3.2"),
        description: "does nothing until it is told to stop",
        package: "hawser-runtime",
        programs: &[program("pause")],
        entrypoint: "pause",
        uid: 65_535,
        // It would wait for ever.
        trials: &[],
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
    packed: Packed,
    /// Of all programs.
    program_len: usize,
    /// As bad as the worst of them.
    hardening: Hardening,
    uid: u32,
}

pub(crate) fn run(workspace: &Path, arguments: &[String]) -> Result<()> {
    let arguments = parse(arguments)?;
    let is_wanted = |recipe: &&Recipe| {
        let short = recipe.name.rsplit('/').next();
        arguments.only.is_none() || arguments.only.as_deref() == short
    };
    let recipes: Vec<&Recipe> = RECIPES.iter().filter(is_wanted).collect();
    ensure!(!recipes.is_empty(), "no such image; usage: {USAGE}");
    let programs = build(workspace, &recipes, arguments.dev)?;
    let mut archive = Archive::new();
    let mut made = Vec::new();
    for recipe in &recipes {
        let image = make(recipe, &programs, arguments.dev, &mut archive);
        made.push(image.with_context(|| format!("image {}", recipe.name))?);
    }
    // Above the directories of the profiles, one of which programs have in common.
    let target = programs.values().next().and_then(|path| path.parent()?.parent());
    let profile = if arguments.dev { "debug" } else { "release" };
    let dir = target.context("cargo built nothing")?.join(profile);
    std::fs::create_dir_all(&dir)?;
    let path = dir.join("images.tar");
    std::fs::write(&path, archive.finish()?)?;
    let unpacked = oci::unpack(&std::fs::read(&path)?)?;
    for (recipe, made) in recipes.iter().zip(&made) {
        let image = unpacked.get(&made.reference).context("an image is missing")?;
        for trial in recipe.trials {
            start(&image.files, recipe.uid, trial).with_context(|| format!("trying {}", trial.line))?;
        }
    }
    print(&made, &path, arguments.json);
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

/// The programs of the images, by name. Of the proxy every pod has one: it is optimised as a whole, which takes minutes.
fn build(workspace: &Path, recipes: &[&Recipe], dev: bool) -> Result<BTreeMap<String, PathBuf>> {
    let is_proxy = |package: &&str| *package == PROXY;
    let packages = || recipes.iter().map(|recipe| recipe.package);
    let (proxy, others) = if dev { ("dev", "dev") } else { (DIST, "release") };
    let mut programs = BTreeMap::new();
    for (profile, packages) in [
        (
            others,
            packages()
                .filter(|package| !is_proxy(package))
                .collect::<Vec<_>>(),
        ),
        (proxy, packages().filter(is_proxy).collect()),
    ] {
        if !packages.is_empty() {
            programs.extend(static_programs(workspace, profile, &packages)?);
        }
    }
    Ok(programs)
}

/// The data plane as its image has it.
pub(crate) fn proxy(workspace: &Path) -> Result<PathBuf> {
    let mut programs = static_programs(workspace, DIST, &[PROXY])?;
    programs.remove(PROXY).context("cargo built no hawser-proxy")
}

/// Programs of these packages, linked with everything that they need, by name. With a target of its own, so that build
/// scripts and macros stay ordinary.
fn static_programs(workspace: &Path, profile: &str, packages: &[&str]) -> Result<BTreeMap<String, PathBuf>> {
    let mut command = Command::new(crate::cargo());
    command
        .args([
            "build",
            "--message-format=json-render-diagnostics",
            "--bins",
            "--profile",
            profile,
            "--target",
        ])
        .arg(format!("{}-unknown-linux-gnu", std::env::consts::ARCH))
        .current_dir(workspace)
        .env("RUSTFLAGS", "-C target-feature=+crt-static");
    for package in packages {
        // A package with a profile of its own doesn't take the profile's word for it.
        let strip = format!("profile.{profile}.package.{package}.strip=\"symbols\"");
        command.args(["--package", package, "--config", &strip]);
    }
    Ok(crate::executables(&mut command)?.into_iter().collect())
}

fn make(
    recipe: &Recipe,
    built: &BTreeMap<String, PathBuf>,
    dev: bool,
    archive: &mut Archive,
) -> Result<Made> {
    let mut files = account(recipe.uid);
    let (mut program_len, mut hardening) = (0, Hardening::BEST);
    for program in recipe.programs {
        let path = built.get(program.name).context("cargo built something else")?;
        let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        let found = elf::hardening(&bytes)?;
        ensure!(
            found.is_static,
            "{} needs libraries that the image doesn't have",
            program.name
        );
        ensure!(found.stripped, "{} still has its symbols", program.name);
        program_len += bytes.len();
        hardening = hardening.and(found);
        let node = Node::File {
            bytes,
            executable: true,
            capabilities: program.capabilities,
        };
        files.insert(format!("{BIN}/{}", program.name), node);
        for name in program.names {
            let target = program.name.to_owned();
            files.insert(format!("{BIN}/{name}"), Node::Link { target });
        }
    }
    let ours = format!("v{}", env!("CARGO_PKG_VERSION"));
    let image = Image {
        name: recipe.name.to_owned(),
        tag: recipe.tag.map_or(ours, str::to_owned),
        uid: recipe.uid,
        entrypoint: vec![format!("/{BIN}/{}", recipe.entrypoint)],
        description: recipe.description.to_owned(),
        files,
    };
    let packed = archive.add(&image)?;
    let is_heavy = recipe.package == "hawser-proxy" && packed.layer_len > PROXY_SIZE_MAX;
    ensure!(
        dev || !is_heavy,
        "{} bytes are too much for a proxy",
        packed.layer_len
    );
    Ok(Made {
        reference: image.reference(),
        packed,
        program_len,
        hardening,
        uid: recipe.uid,
    })
}

/// What a C library looks up: who the user is, and where names of hosts come from.
fn account(uid: u32) -> Tree {
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
            Node::File {
                bytes, executable, ..
            } => {
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
fn print(made: &[Made], archive: &Path, as_json: bool) {
    if as_json {
        let images: Vec<Value> = made
            .iter()
            .map(|made| {
                json!({
                    "image": made.reference, "digest": made.packed.digest,
                    "layerBytes": made.packed.layer_len, "programBytes": made.program_len, "user": made.uid,
                    "hardening": made.hardening.json(),
                })
            })
            .collect();
        println!("{:#}", json!({"archive": archive, "images": images}));
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
    println!("\nAll of them are in {}", archive.display());
}
