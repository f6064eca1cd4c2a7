//! Files of an image, as a tar archive: written so that the same files give the same bytes, and read again.
//!
//! Only what images need of the format (POSIX ustar, with pax headers for capabilities): directories, files and symbolic
//! links of root's, without times.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};

const BLOCK: usize = 512;
/// Of a name without its directory, in one field.
const NAME_MAX: usize = 100;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Node {
    Directory,
    File {
        bytes: Vec<u8>,
        executable: bool,
        capabilities: Capabilities,
    },
    Link {
        target: String,
    },
}

/// What the program of a file may do beyond its user, as the kernel numbers it; usually nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Capabilities(pub(super) u32);

/// The extended attribute in which the kernel looks for them, as a key of a pax header.
const CAPABILITY: &str = "SCHILY.xattr.security.capability";
/// `VFS_CAP_REVISION_2`, and that they are effective from the start.
const REVISION: u32 = 0x0200_0001;

impl Capabilities {
    /// The kernel's `vfs_cap_data`: revision, then permitted and inheritable of the lower and of the upper half.
    fn attribute(self) -> Vec<u8> {
        [REVISION, self.0, self.0, 0, 0].map(u32::to_le_bytes).concat()
    }

    fn of_record(bytes: &[u8]) -> Option<Self> {
        let value = bytes.get(bytes.iter().position(|byte| *byte == b'=')? + 1..)?;
        let permitted = value.get(4..8)?.try_into().ok()?;
        let read = Self(u32::from_le_bytes(permitted));
        (record(CAPABILITY, &read.attribute()) == bytes).then_some(read)
    }
}

/// One record of a pax header, which begins with its own length.
fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + " =\n".len();
    let mut len = rest;
    // The number's own digits count.
    while rest + len.to_string().len() != len {
        len = rest + len.to_string().len();
    }
    [format!("{len} {key}=").as_bytes(), value, b"\n"].concat()
}

/// By path, without a slash at either end. Directories sort before what they hold.
pub(super) type Tree = BTreeMap<String, Node>;

/// A file that anyone may read.
pub(super) fn file(bytes: impl Into<Vec<u8>>) -> Node {
    Node::File {
        bytes: bytes.into(),
        executable: false,
        capabilities: Capabilities::default(),
    }
}

pub(super) fn write(tree: &Tree) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    for (path, node) in tree {
        match node {
            Node::Directory => entry(&mut out, &format!("{path}/"), b'5', 0o755, &[], "")?,
            Node::Link { target } => entry(&mut out, path, b'2', 0o777, &[], target)?,
            Node::File {
                bytes,
                executable,
                capabilities,
            } => {
                if *capabilities != Capabilities::default() {
                    let record = record(CAPABILITY, &capabilities.attribute());
                    let name = path.rsplit('/').next().unwrap_or_default();
                    entry(&mut out, &format!("PaxHeaders/{name}"), b'x', 0o644, &record, "")?;
                }
                let mode = if *executable { 0o755 } else { 0o644 };
                entry(&mut out, path, b'0', mode, bytes, "")?;
            }
        }
    }
    // Two empty blocks end an archive.
    out.resize(out.len() + 2 * BLOCK, 0);
    Ok(out)
}

fn entry(out: &mut Vec<u8>, name: &str, kind: u8, mode: u32, bytes: &[u8], target: &str) -> Result<()> {
    out.extend(header(name, kind, mode, bytes.len(), target)?);
    out.extend(bytes);
    out.resize(out.len().next_multiple_of(BLOCK), 0);
    Ok(())
}

fn header(name: &str, kind: u8, mode: u32, size: usize, target: &str) -> Result<[u8; BLOCK]> {
    ensure!(
        name.len() <= NAME_MAX && target.len() <= NAME_MAX,
        "{name}: its path is too long"
    );
    let mut header = [0; BLOCK];
    let mut put = |at: usize, text: &[u8]| header[at..at + text.len()].copy_from_slice(text);
    put(0, name.as_bytes());
    put(100, format!("{mode:07o}").as_bytes());
    for owner in [108, 116] {
        put(owner, b"0000000");
    }
    put(124, format!("{size:011o}").as_bytes());
    put(136, b"00000000000");
    // The sum counts its own field as spaces.
    put(148, b"        ");
    put(156, &[kind]);
    put(157, target.as_bytes());
    put(257, b"ustar\x0000");
    for device in [329, 337] {
        put(device, b"0000000");
    }
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    Ok(header)
}

/// What [`write`] wrote, or another program of the same few kinds of entries.
pub(super) fn read(mut archive: &[u8]) -> Result<Tree> {
    let mut tree = Tree::new();
    let mut capabilities = Capabilities::default();
    loop {
        let (header, rest) = archive
            .split_at_checked(BLOCK)
            .context("the archive is cut off")?;
        if header.iter().all(|byte| *byte == 0) {
            return Ok(tree);
        }
        let text = |from: usize, to: usize| -> Result<&str> {
            let field = &header[from..to];
            let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
            Ok(std::str::from_utf8(&field[..end])?.trim())
        };
        let number =
            |from: usize, to: usize| -> Result<usize> { Ok(usize::from_str_radix(text(from, to)?, 8)?) };
        let name = text(0, NAME_MAX)?.to_owned();
        let sum: usize = header.iter().map(|byte| usize::from(*byte)).sum();
        let of_field: usize = header[148..156].iter().map(|byte| usize::from(*byte)).sum();
        ensure!(
            sum - of_field + 8 * usize::from(b' ') == number(148, 156)?,
            "{name}: a wrong sum"
        );
        let size = number(124, 136)?;
        let (bytes, _) = rest.split_at_checked(size).context("the archive is cut off")?;
        let node = match header[156] {
            b'5' => Node::Directory,
            b'0' => Node::File {
                bytes: bytes.to_vec(),
                executable: number(100, 108)? & 0o111 != 0,
                capabilities: std::mem::take(&mut capabilities),
            },
            b'x' => {
                capabilities = Capabilities::of_record(bytes)
                    .with_context(|| format!("{name}: more than capabilities"))?;
                archive = rest
                    .get(size.next_multiple_of(BLOCK)..)
                    .context("the archive is cut off")?;
                continue;
            }
            b'2' => Node::Link {
                target: text(157, 257)?.to_owned(),
            },
            other => bail!("{name}: an entry of kind {other}"),
        };
        tree.insert(name.trim_end_matches('/').to_owned(), node);
        archive = rest
            .get(size.next_multiple_of(BLOCK)..)
            .context("the archive is cut off")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> Tree {
        let executable = Node::File {
            bytes: vec![7; BLOCK + 1],
            executable: true,
            capabilities: Capabilities(1 << 12),
        };
        let link = Node::Link {
            target: "program".into(),
        };
        Tree::from([
            ("bin".into(), Node::Directory),
            ("bin/alias".into(), link),
            ("bin/program".into(), executable),
            ("empty".into(), file("")),
        ])
    }

    #[test]
    fn what_is_written_is_read_again() {
        let archive = write(&tree()).unwrap();
        assert_eq!(archive.len() % BLOCK, 0);
        assert_eq!(read(&archive).unwrap(), tree());
    }

    #[test]
    fn tar_itself_lists_the_same() {
        let archive = write(&tree()).unwrap();
        let mut tar = std::process::Command::new("tar")
            .args(["--list", "--verbose", "--numeric-owner", "--full-time", "--utc"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("tar is everywhere");
        std::io::Write::write_all(&mut tar.stdin.take().unwrap(), &archive).unwrap();
        let listed = tar.wait_with_output().unwrap();
        let lines: Vec<String> = String::from_utf8_lossy(&listed.stdout)
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(
            lines,
            [
                "drwxr-xr-x 0/0 0 1970-01-01 00:00:00 bin/",
                "lrwxrwxrwx 0/0 0 1970-01-01 00:00:00 bin/alias -> program",
                "-rwxr-xr-x 0/0 513 1970-01-01 00:00:00 bin/program",
                "-rw-r--r-- 0/0 0 1970-01-01 00:00:00 empty",
            ]
        );
    }

    #[test]
    fn capabilities_are_what_the_kernel_reads() {
        let attribute = Capabilities(1 << 12).attribute();
        let expected = [1, 0, 0, 2, 0, 0x10, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(attribute, expected);
        let record = record(CAPABILITY, &attribute);
        assert!(record.starts_with(b"57 SCHILY.xattr.security.capability=\x01\0\0\x02"));
        assert_eq!(record.len(), 57);
    }

    #[test]
    fn a_damaged_archive_is_refused() {
        let archive = write(&tree()).unwrap();
        let mut wrong = archive.clone();
        wrong[0] ^= 1;
        assert!(read(&wrong).is_err());
        for cut in [1, BLOCK, archive.len() - 2 * BLOCK] {
            assert!(read(&archive[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn a_path_that_does_not_fit_is_refused() {
        let long = Tree::from([("a".repeat(NAME_MAX + 1), Node::Directory)]);
        assert!(write(&long).is_err());
    }
}
