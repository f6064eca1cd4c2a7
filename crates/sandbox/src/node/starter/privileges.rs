//! What a container's process may do: user, groups, capabilities.
//!
//! In a user namespace with a single mapped id nobody can become another user. A container that asks for one then
//! keeps the only id but gets exactly the capabilities it would have had, so that dropping privileges is still real.

use std::io;

use nix::sys::prctl;
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, configure_capability_in_ambient_set, remove_capability_from_bounding_set,
    set_capabilities,
};

use super::{Process, doing};

/// Ids that exist in this user namespace.
pub(super) struct Mapped {
    users: Vec<Range>,
    groups: Vec<Range>,
}

struct Range {
    first: u32,
    count: u32,
}

impl Mapped {
    pub(super) fn read() -> io::Result<Self> {
        let read = |path: &str| std::fs::read_to_string(path).map_err(doing(format_args!("reading {path}")));
        Ok(Self {
            users: ranges(&read("/proc/self/uid_map")?),
            groups: ranges(&read("/proc/self/gid_map")?),
        })
    }
}

fn ranges(map: &str) -> Vec<Range> {
    map.lines()
        .filter_map(|line| {
            let mut fields = line.split_whitespace().map(str::parse::<u32>);
            let first = fields.next()?.ok()?;
            let count = fields.nth(1)?.ok()?;
            Some(Range { first, count })
        })
        .collect()
}

fn contains(ranges: &[Range], id: u32) -> bool {
    ranges.iter().any(|range| {
        id.checked_sub(range.first)
            .is_some_and(|offset| offset < range.count)
    })
}

/// Gives up everything that the process must not have.
pub(super) fn assume(process: &Process, mapped: &Mapped) -> io::Result<()> {
    let keep = CapabilitySet::from_bits_retain(process.capabilities);
    for bit in 0..64 {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        if !keep.contains(capability) {
            match remove_capability_from_bounding_set(capability) {
                // The kernel knows fewer capabilities than there are bits.
                Ok(()) | Err(rustix::io::Errno::INVAL) => {}
                Err(error) => return Err(doing("dropping a capability")(error)),
            }
        }
    }
    let groups: Vec<Gid> = process
        .groups
        .iter()
        .filter(|id| contains(&mapped.groups, **id))
        .map(|id| Gid::from_raw(*id))
        .collect();
    match setgroups(&groups) {
        // A user namespace made without privileges may not change groups at all.
        Ok(()) | Err(nix::errno::Errno::EPERM) => {}
        Err(error) => return Err(doing("setting the supplementary groups")(error)),
    }
    if contains(&mapped.groups, process.group) {
        let group = Gid::from_raw(process.group);
        setresgid(group, group, group).map_err(doing(format_args!("becoming group {group}")))?;
    }
    if contains(&mapped.users, process.user) && process.user != 0 {
        let user = Uid::from_raw(process.user);
        prctl::set_keepcaps(true)?;
        setresuid(user, user, user).map_err(doing(format_args!("becoming user {user}")))?;
        // A user other than root gets capabilities from exec only if they are ambient. Kubernetes has no such
        // thing: there a capability added to such a container is void unless the program's file carries it. Ours
        // carry none, so without this `add` could never have an effect.
        set_capabilities(
            None,
            CapabilitySets {
                effective: keep,
                permitted: keep,
                inheritable: keep,
            },
        )
        .map_err(doing("keeping capabilities"))?;
        for capability in keep.iter() {
            configure_capability_in_ambient_set(capability, true).map_err(doing("keeping a capability"))?;
        }
    }
    if process.no_new_privileges {
        prctl::set_no_new_privs()?;
    }
    // Last, since changing ids clears it.
    prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{contains, ranges};

    #[test]
    fn an_id_is_mapped_if_a_line_of_the_map_covers_it() {
        let full = ranges("         0          0 4294967295\n");
        let single = ranges("0 1000 1\n");
        let several = ranges("0 1000 1\n1 100000 65536\n");
        assert!(contains(&full, 2102));
        assert!(contains(&single, 0));
        assert!(!contains(&single, 2102));
        assert!(contains(&several, 65536));
        assert!(!contains(&several, 65537));
    }
}
