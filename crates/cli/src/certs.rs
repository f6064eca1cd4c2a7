//! `hawser certs`: trust anchors and issuers, made as `step certificate create` makes them, and shown.
//!
//! Keys are ECDSA P-256, written so that only their owner can read them. Nothing is overwritten unasked: losing a
//! root's key means a new root for every cluster.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use hawser_tls::{Created, Description, Fingerprint, Issuer, Validity};

use crate::output::write_out;
use crate::problem::Problem;

/// Clocks of machines that verify may be a little behind ours.
const CLOCK_SKEW: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// Certificates can't name years of five digits; nobody means more than a century.
const LIFE_MAX: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Make and look at certificates: hawser certs create root root.crt root.key
#[derive(Debug, clap::Args)]
pub(crate) struct CertsArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Make a certificate and its key
    Create {
        #[command(subcommand)]
        what: What,
    },
    /// Show the certificates of PEM files: hawser certs inspect bundle.crt issuer.crt
    Inspect {
        /// Files of certificates; - is standard input
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// A trust anchor: hawser certs create root root.crt root.key
    Root(RootArgs),
    /// A mesh's issuer: hawser certs create issuer issuer.crt issuer.key --ca root.crt --ca-key root.key
    Issuer(IssuerArgs),
}

#[derive(Debug, clap::Args)]
struct RootArgs {
    #[command(flatten)]
    files: Files,
    /// Name in the certificate
    #[arg(long, default_value = "root.linkerd.cluster.local")]
    name: String,
    /// Hours until it expires (ten years)
    #[arg(long, value_name = "HOURS", default_value = "87600h")]
    not_after: String,
}

#[derive(Debug, clap::Args)]
struct IssuerArgs {
    #[command(flatten)]
    files: Files,
    /// Certificate of the anchor that signs
    #[arg(long, value_name = "FILE")]
    ca: PathBuf,
    /// Its key
    #[arg(long, value_name = "FILE")]
    ca_key: PathBuf,
    /// Name in the certificate
    #[arg(long, default_value = "identity.linkerd.cluster.local")]
    name: String,
    /// Hours until it expires (a year), at most the anchor's life
    #[arg(long, value_name = "HOURS", default_value = "8760h")]
    not_after: String,
}

#[derive(Debug, clap::Args)]
struct Files {
    /// Where the certificate is written
    certificate: PathBuf,
    /// Where its key is written
    key: PathBuf,
    /// Overwrite existing files
    #[arg(long)]
    force: bool,
}

pub(crate) fn run(args: CertsArgs) -> Result<ExitCode, Problem> {
    let what = match args.command {
        Command::Create { what } => what,
        Command::Inspect { files } => {
            let now = SystemTime::now();
            let shown: Vec<String> = files
                .iter()
                .map(|path| inspect(path, now))
                .collect::<Result<_, _>>()?;
            write_out(&shown.concat())?;
            return Ok(ExitCode::SUCCESS);
        }
    };
    match what {
        What::Root(args) => {
            let validity = validity(&args.not_after, SystemTime::now())?;
            args.files.refuse_existing()?;
            let created = hawser_tls::create_root(&args.name, validity)
                .map_err(|error| Problem::new("cannot make the trust anchor", error, "another --name"))?;
            args.files.write(&created)?;
        }
        What::Issuer(args) => {
            let validity = validity(&args.not_after, SystemTime::now())?;
            args.files.refuse_existing()?;
            let (certificate, key) = (read(&args.ca)?, read(&args.ca_key)?);
            let anchor = Issuer::from_pem(&certificate, &key).map_err(|error| {
                let what = format!("cannot sign with {}", args.ca.display());
                Problem::new(
                    what,
                    error,
                    "--ca and --ca-key of one trust anchor, from hawser certs create root",
                )
            })?;
            let created = hawser_tls::create_issuer(&args.name, &anchor, validity)
                .map_err(|error| Problem::new("cannot make the issuer", error, "another --name"))?;
            args.files.write(&created)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn validity(text: &str, now: SystemTime) -> Result<Validity, Problem> {
    let wrong = || {
        let why = format!("--not-after {text:?} is not a duration");
        Problem::new(
            "cannot tell when the certificate expires",
            why,
            "--not-after 8760h",
        )
    };
    let life = hawser_crd::link::parse_duration(text)
        .filter(|life| (HOUR..=LIFE_MAX).contains(life))
        .ok_or_else(wrong)?;
    let not_after = now.checked_add(life).ok_or_else(wrong)?;
    Ok(Validity {
        not_before: now - CLOCK_SKEW,
        not_after,
    })
}

fn inspect(path: &Path, now: SystemTime) -> Result<String, Problem> {
    let text = if path == Path::new("-") {
        std::io::read_to_string(std::io::stdin())
            .map_err(|error| Problem::new("cannot read standard input", error, "give a file instead"))?
    } else {
        read(path)?
    };
    show(&path.display().to_string(), &text, now).map_err(|error| {
        Problem::new(
            format!("cannot read the certificates in {}", path.display()),
            error,
            "a PEM file: it has a line -----BEGIN CERTIFICATE-----",
        )
    })
}

/// Every certificate of a text, as people read them.
fn show(title: &str, pem: &str, now: SystemTime) -> Result<String, hawser_tls::Error> {
    let mut text = format!("{title}\n");
    for der in hawser_tls::certificates(pem, "the file")? {
        let said = Description::of(&der)?;
        let signed_by = if said.issuer == said.subject {
            "itself"
        } else {
            &said.issuer
        };
        let kind = if said.is_authority { "authority" } else { "leaf" };
        let mut row = |name: &str, value: &str| text += &format!("    {name:<10}{value}\n");
        row("subject", &said.subject);
        row("signed by", signed_by);
        row("kind", &format!("{kind}, {}, {}", said.key, said.signature));
        if !said.names.is_empty() {
            row("names", &said.names.join(", "));
        }
        row("valid", &period(&said, now));
        row("sha256", &Fingerprint::of(&der).to_string());
        text.push('\n');
    }
    Ok(text)
}

fn period(said: &Description, now: SystemTime) -> String {
    let date = |time: SystemTime| {
        jiff::Timestamp::try_from(time).map_or_else(|_| "?".into(), |time| time.to_string())
    };
    let left = match said.not_after.duration_since(now) {
        _ if said.not_before > now => "not valid yet".to_owned(),
        Ok(left) if left >= 2 * DAY => format!("{} days left", left.as_secs() / DAY.as_secs()),
        Ok(left) if left >= 2 * HOUR => format!("{} hours left", left.as_secs() / HOUR.as_secs()),
        Ok(left) => format!("{} minutes left", left.as_secs() / 60),
        Err(_) => "expired".to_owned(),
    };
    format!("{} to {} ({left})", date(said.not_before), date(said.not_after))
}

fn read(path: &Path) -> Result<String, Problem> {
    std::fs::read_to_string(path)
        .map_err(|error| Problem::new(format!("cannot read {}", path.display()), error, "check the path"))
}

impl Files {
    fn refuse_existing(&self) -> Result<(), Problem> {
        let existing = [&self.certificate, &self.key]
            .into_iter()
            .find(|path| path.exists());
        match existing {
            Some(path) if !self.force => {
                let what = format!("cannot write {}", path.display());
                Err(Problem::new(
                    what,
                    "the file exists",
                    "another name, or --force if nothing needs the old one",
                ))
            }
            _ => Ok(()),
        }
    }

    fn write(&self, created: &Created) -> Result<(), Problem> {
        self.write_file(&self.certificate, &created.certificate_pem, 0o644)?;
        self.write_file(&self.key, &created.key.to_pem(), 0o600)
    }

    fn write_file(&self, path: &Path, text: &str, mode: u32) -> Result<(), Problem> {
        let wrong = |error| {
            Problem::new(
                format!("cannot write {}", path.display()),
                error,
                "a folder you may write to",
            )
        };
        if self.force {
            // An old file's permissions would survive being overwritten.
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(wrong(error)),
                _ => {}
            }
        }
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(path)
            .map_err(wrong)?;
        file.write_all(text.as_bytes()).map_err(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn files(folder: &Path, name: &str, force: bool) -> Files {
        Files {
            certificate: folder.join(format!("{name}.crt")),
            key: folder.join(format!("{name}.key")),
            force,
        }
    }

    fn create_root(folder: &Path, force: bool) -> Result<ExitCode, Problem> {
        let what = What::Root(RootArgs {
            files: files(folder, "root", force),
            name: "root.linkerd.cluster.local".into(),
            not_after: "87600h".into(),
        });
        run(CertsArgs {
            command: Command::Create { what },
        })
    }

    #[test]
    fn an_issuer_is_signed_by_its_anchor_and_keys_are_private() {
        let folder = tempfile::tempdir().unwrap();
        create_root(folder.path(), false).unwrap();
        let root = files(folder.path(), "root", false);
        let what = What::Issuer(IssuerArgs {
            files: files(folder.path(), "issuer", false),
            ca: root.certificate.clone(),
            ca_key: root.key.clone(),
            name: "identity.linkerd.cluster.local".into(),
            not_after: "8760h".into(),
        });
        run(CertsArgs {
            command: Command::Create { what },
        })
        .unwrap();
        let issuer = files(folder.path(), "issuer", false);
        let anchors = hawser_tls::TrustAnchors::from_pem(&read(&root.certificate).unwrap()).unwrap();
        let issuer_read =
            Issuer::from_pem(&read(&issuer.certificate).unwrap(), &read(&issuer.key).unwrap()).unwrap();
        issuer_read.verify(&anchors, SystemTime::now()).unwrap();
        for key in [root.key, issuer.key] {
            assert_eq!(
                std::fs::metadata(key).unwrap().permissions().mode() & 0o777,
                0o600
            );
        }
    }

    #[test]
    fn nothing_is_overwritten_unasked() {
        let folder = tempfile::tempdir().unwrap();
        create_root(folder.path(), false).unwrap();
        let before = read(&folder.path().join("root.key")).unwrap();
        assert!(
            create_root(folder.path(), false)
                .unwrap_err()
                .to_string()
                .contains("the file exists")
        );
        assert_eq!(read(&folder.path().join("root.key")).unwrap(), before);
        create_root(folder.path(), true).unwrap();
        assert_ne!(read(&folder.path().join("root.key")).unwrap(), before);
    }

    #[test]
    fn a_chain_is_shown_with_who_signed_it_and_how_long_it_lasts() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let validity = |days: u32| Validity {
            not_before: now - DAY,
            not_after: now + days * DAY,
        };
        let root = hawser_tls::create_root("root.test", validity(3)).unwrap();
        let parent = Issuer::from_pem(&root.certificate_pem, &root.key.to_pem()).unwrap();
        let issuer = hawser_tls::create_issuer("identity.test", &parent, validity(2)).unwrap();
        let pem = format!("{}{}", issuer.certificate_pem, root.certificate_pem);
        let shown = show("chain.crt", &pem, now + 2 * DAY - HOUR).unwrap();
        let lines: Vec<&str> = shown
            .lines()
            .map(|line| line.split("sha256").next().unwrap_or_default().trim_end())
            .collect();
        assert_eq!(
            lines,
            [
                "chain.crt",
                "    subject   CN=identity.test",
                "    signed by CN=root.test",
                "    kind      authority, ECDSA P-256, ECDSA-SHA256",
                "    valid     2027-01-14T08:00:00Z to 2027-01-17T08:00:00Z (60 minutes left)",
                "",
                "",
                "    subject   CN=root.test",
                "    signed by itself",
                "    kind      authority, ECDSA P-256, ECDSA-SHA256",
                "    valid     2027-01-14T08:00:00Z to 2027-01-18T08:00:00Z (25 hours left)",
                "",
                "",
            ]
        );
        assert!(show("it", &pem, now + 9 * DAY).unwrap().contains("(expired)"));
        assert!(show("it", "nothing", now).is_err());
    }

    #[test]
    fn a_life_that_is_no_duration_is_refused() {
        for text in ["", "forever", "0h", "999999999999999h"] {
            assert!(validity(text, SystemTime::now()).is_err(), "{text}");
        }
    }
}
