//! The file system that a container sees.
//!
//! A fresh tmpfs with the host's programs and libraries bound into it read-only, a few files of `/etc`, a minimal
//! `/dev`, its own `/proc`, and the pod's volumes. Nothing else of the host is reachable after the pivot.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, mkdirat};
use nix::sys::statvfs::{FsFlags, statvfs};

use super::{Create, Mount, doing};

/// What the host's programs need of `/etc`: certificates, names of users and services, the linker's cache, the time
/// zone. Everything else (keys, passwords, configuration of the host's services) stays out.
const ETC: &[&str] = &[
    "alternatives",
    "ca-certificates",
    "ca-certificates.conf",
    "crypto-policies",
    "group",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "mime.types",
    "nsswitch.conf",
    "os-release",
    "passwd",
    "pki",
    "protocols",
    "services",
    "ssl",
    "terminfo",
];

/// Directories of the host that hold programs. `/usr` is built by hand because of `/usr/local/bin`.
const PROGRAMS: &[&str] = &["bin", "sbin", "lib", "lib32", "lib64", "libx32", "nix", "opt"];

/// Inside the container: the host's `/usr/local/bin` and the multi-call binary, to which links in `/usr/local/bin` lead.
const HOST_BIN: &str = ".sandbox/bin";
const EXECUTABLE: &str = ".sandbox/program";

const DEVICES: &[&str] = &["null", "zero", "full", "random", "urandom", "tty"];
const PROC_READ_ONLY: &[&str] = &["bus", "fs", "irq", "sys", "sysrq-trigger"];
const PROC_HIDDEN: &[&str] = &["kcore", "keys", "timer_list"];

const NONE: Option<&str> = None;

/// Builds it and makes it the root of this mount namespace.
pub(super) fn build(create: &Create) -> io::Result<()> {
    let root = create.root.as_path();
    // Nothing of what follows may show outside.
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)
        .map_err(doing("separating the container's mounts"))?;
    tmpfs(root, "mode=0755")?;
    host(root, create)?;
    etc(root, create)?;
    devices(root)?;
    for (name, mode) in [
        ("tmp", 0o1777),
        ("run", 0o755),
        ("var/tmp", 0o1777),
        ("root", 0o700),
        ("home", 0o755),
    ] {
        directory(&root.join(name))?;
        fs::set_permissions(root.join(name), fs::Permissions::from_mode(mode))?;
    }
    symlink("../run", root.join("var/run"))?;
    proc(root)?;
    let mut mounts: Vec<&Mount> = create.mounts.iter().collect();
    // A mount on a path below another's must come after it.
    mounts.sort_by_key(|mount| mount.target.components().count());
    for mount in mounts {
        volume(root, mount).map_err(doing(format_args!("mounting {}", mount.target.display())))?;
    }
    pivot(root)?;
    if create.read_only_root {
        mount(
            NONE,
            "/",
            NONE,
            MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY,
            NONE,
        )
        .map_err(doing("making the root file system read-only"))?;
    }
    Ok(())
}

fn tmpfs(path: &Path, options: &str) -> io::Result<()> {
    directory(path)?;
    mount(
        Some("tmpfs"),
        path,
        Some("tmpfs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        Some(options),
    )
    .map_err(doing(format_args!("mounting a tmpfs on {}", path.display())))
}

fn directory(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path).map_err(doing(format_args!("creating {}", path.display())))
}

/// Binds `source` on `target`, with everything mounted below it.
fn bind(source: &Path, target: &Path) -> io::Result<()> {
    mount(
        Some(source),
        target,
        NONE,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        NONE,
    )
    .map_err(doing(format_args!("binding {}", source.display())))
}

/// Makes the mount at `path` and all those below it read-only.
fn read_only(path: &Path) -> io::Result<()> {
    for point in mounts_below(path)? {
        remount_read_only(&point)?;
    }
    Ok(())
}

/// Mounts at or below a path, parents first.
pub(in super::super) fn mounts_below(path: &Path) -> io::Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo").map_err(doing("reading the mount table"))?;
    Ok(mount_points(&table)
        .into_iter()
        .filter(|point| point.starts_with(path))
        .collect())
}

fn remount_read_only(path: &Path) -> io::Result<()> {
    let what = || doing(format!("making {} read-only", path.display()));
    // In a user namespace flags that the mount already has are locked: leaving one out is refused.
    let present = statvfs(path).map_err(what())?.flags();
    let locked = [
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (FsFlags::ST_NODIRATIME, MsFlags::MS_NODIRATIME),
        (FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
    ];
    let flags = locked
        .into_iter()
        .filter(|(here, _)| present.contains(*here))
        .map(|(_, flag)| flag);
    let flags = flags.fold(
        MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY,
        |all, flag| all | flag,
    );
    mount(NONE, path, NONE, flags, NONE).map_err(what())
}

/// Mount points in the order of the table, which is parents first.
fn mount_points(mountinfo: &str) -> Vec<PathBuf> {
    mountinfo
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(unescape)
        .collect()
}

/// The kernel writes blank, tab, newline and backslash as three octal digits.
fn unescape(field: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail
            .get(..3)
            .filter(|_| *first == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(std::ffi::OsStr::from_bytes(&bytes))
}

/// Shows those entries of a host directory that `wanted` chooses: links are copied, the rest is bound read-only.
fn mirror(source: &Path, target: &Path, wanted: impl Fn(&str) -> bool) -> io::Result<()> {
    directory(target)?;
    let entries = match fs::read_dir(source) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(doing(format!("reading {}", source.display()))(error)),
    };
    for entry in entries {
        let entry = entry?;
        if !entry.file_name().to_str().is_some_and(&wanted) {
            continue;
        }
        let (from, to) = (entry.path(), target.join(entry.file_name()));
        let kind = entry.file_type()?;
        if kind.is_symlink() {
            symlink(fs::read_link(&from)?, &to)?;
        } else if kind.is_dir() || kind.is_file() {
            if kind.is_dir() {
                directory(&to)?
            } else {
                fs::write(&to, "")?
            }
            bind(&from, &to)?;
            read_only(&to)?;
        }
    }
    Ok(())
}

/// The host's programs, and the multi-call binary under each of its names.
fn host(root: &Path, create: &Create) -> io::Result<()> {
    mirror(Path::new("/"), root, |name| PROGRAMS.contains(&name))?;
    mirror(Path::new("/usr"), &root.join("usr"), |name| name != "local")?;
    mirror(Path::new("/usr/local"), &root.join("usr/local"), |name| {
        name != "bin"
    })?;

    let executable = root.join(EXECUTABLE);
    directory(&root.join(HOST_BIN))?;
    fs::write(&executable, "")?;
    bind(&create.executable, &executable)?;
    read_only(&executable)?;
    let bin = root.join("usr/local/bin");
    directory(&bin)?;
    for name in &create.programs {
        symlink(Path::new("/").join(EXECUTABLE), bin.join(name))?;
    }
    let Ok(entries) = fs::read_dir("/usr/local/bin") else {
        return Ok(());
    };
    bind(Path::new("/usr/local/bin"), &root.join(HOST_BIN))?;
    read_only(&root.join(HOST_BIN))?;
    for entry in entries {
        let name = entry?.file_name();
        match symlink(Path::new("/").join(HOST_BIN).join(&name), bin.join(&name)) {
            // Our programs come first.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => other?,
        }
    }
    Ok(())
}

fn etc(root: &Path, create: &Create) -> io::Result<()> {
    let etc = root.join("etc");
    mirror(Path::new("/etc"), &etc, |name| {
        ETC.contains(&name) && !create.etc.contains_key(name)
    })?;
    for (name, text) in &create.etc {
        fs::write(etc.join(name), text).map_err(doing(format_args!("writing /etc/{name}")))?;
    }
    symlink("/proc/self/mounts", etc.join("mtab"))
}

fn devices(root: &Path) -> io::Result<()> {
    let dev = root.join("dev");
    directory(&dev)?;
    for name in DEVICES {
        fs::write(dev.join(name), "")?;
        bind(&Path::new("/dev").join(name), &dev.join(name))?;
    }
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ] {
        symlink(target, dev.join(name))?;
    }
    directory(&dev.join("pts"))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mount(
        Some("devpts"),
        &dev.join("pts"),
        Some("devpts"),
        flags,
        Some("newinstance,ptmxmode=0666,mode=0620"),
    )
    .map_err(doing("mounting /dev/pts"))?;
    tmpfs(&dev.join("shm"), "mode=1777,size=64m")
}

fn proc(root: &Path) -> io::Result<()> {
    let proc = root.join("proc");
    directory(&proc)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    match mount(Some("proc"), &proc, Some("proc"), flags, NONE) {
        // Inside a container whose /proc is masked the kernel refuses a fresh, unmasked one. The masked one shows
        // other process numbers, but works.
        Err(Errno::EPERM) => return bind(Path::new("/proc"), &proc),
        other => other.map_err(doing("mounting /proc"))?,
    }
    for name in PROC_READ_ONLY {
        let path = proc.join(name);
        if path.exists() {
            bind(&path, &path)?;
            remount_read_only(&path)?;
        }
    }
    for name in PROC_HIDDEN {
        let path = proc.join(name);
        if path.exists() {
            bind(Path::new("/dev/null"), &path)?;
        }
    }
    Ok(())
}

fn volume(root: &Path, volume: &Mount) -> io::Result<()> {
    let what = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let mut source = open(&volume.source, what, Mode::empty())?;
    if let Some(sub_path) = &volume.sub_path {
        source = descend(source, Path::new(sub_path))?;
    }
    let as_directory = is_directory(&source)?;
    // The target is resolved inside the new root, so that a link in an image can't lead a mount outside.
    let relative = volume.target.strip_prefix("/").unwrap_or(&volume.target);
    let parent = open(root, what, Mode::empty())?;
    let target = create_inside(parent, relative, as_directory)?;
    let (from, to) = (fd_path(&source), fd_path(&target));
    bind(&from, &to)?;
    if volume.read_only {
        read_only(&root.join(relative))?;
    }
    Ok(())
}

fn fd_path(fd: &OwnedFd) -> PathBuf {
    use std::os::fd::AsRawFd;
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

fn is_directory(fd: &OwnedFd) -> io::Result<bool> {
    Ok(fs::metadata(fd_path(fd))?.is_dir())
}

/// Opens a path below `base` without ever leaving it; missing directories are made.
fn descend(base: OwnedFd, path: &Path) -> io::Result<OwnedFd> {
    let how = || {
        OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH)
    };
    match openat2(base.as_fd(), path, how()) {
        Err(Errno::ENOENT) => create_inside(base, path, true),
        other => Ok(other?),
    }
}

/// Opens a path as if `base` were the root, making what is missing; the last component becomes a file or directory.
fn create_inside(base: OwnedFd, path: &Path, last_is_directory: bool) -> io::Result<OwnedFd> {
    let how = |flags| {
        OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT)
    };
    let components: Vec<_> = path
        .components()
        .filter(|part| !matches!(part, Component::CurDir))
        .collect();
    let mut at = PathBuf::new();
    for (position, component) in components.iter().enumerate() {
        let Component::Normal(name) = component else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the path must not contain `..`",
            ));
        };
        let parent = match at.as_os_str().is_empty() {
            true => base.try_clone()?,
            false => openat2(base.as_fd(), &at, how(OFlag::O_PATH))?,
        };
        at.push(name);
        if openat2(base.as_fd(), &at, how(OFlag::O_PATH)).is_ok() {
            continue;
        }
        if position + 1 < components.len() || last_is_directory {
            mkdirat(&parent, *name, Mode::from_bits_truncate(0o755))?;
        } else {
            let file = OpenHow::new().flags(OFlag::O_CREAT | OFlag::O_WRONLY | OFlag::O_CLOEXEC);
            openat2(&parent, *name, file.mode(Mode::from_bits_truncate(0o644)))?;
        }
    }
    match at.as_os_str().is_empty() {
        true => Ok(base),
        false => Ok(openat2(base.as_fd(), &at, how(OFlag::O_PATH))?),
    }
}

fn pivot(root: &Path) -> io::Result<()> {
    std::env::set_current_dir(root)?;
    // The old root is stacked on the new one and taken away at once, so no directory is needed for it.
    nix::unistd::pivot_root(".", ".").map_err(doing("changing the root"))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(doing("leaving the old root"))?;
    std::env::set_current_dir("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_come_from_the_fifth_field_without_its_escapes() {
        let table =
            "29 1 0:25 / / rw - ext4 /dev/vda rw\n30 29 0:26 / /a\\040b rw,ro shared:1 - tmpfs none rw\n";
        assert_eq!(mount_points(table), [PathBuf::from("/"), PathBuf::from("/a b")]);
    }

    #[test]
    fn a_sub_path_is_created_but_never_leads_out_of_its_volume() {
        let volume = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        symlink(outside.path(), volume.path().join("link")).unwrap();
        fs::write(volume.path().join("file"), "x").unwrap();
        let attempt = |path: &str| {
            let base = open(volume.path(), OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).unwrap();
            descend(base, Path::new(path)).map(|fd| fs::read_link(fd_path(&fd)).unwrap())
        };
        assert_eq!(
            attempt("a/b").unwrap(),
            volume.path().canonicalize().unwrap().join("a/b")
        );
        assert_eq!(
            attempt("file").unwrap(),
            volume.path().canonicalize().unwrap().join("file")
        );
        assert!(attempt("../x").is_err());
        assert!(attempt("link").is_err());
    }
}
