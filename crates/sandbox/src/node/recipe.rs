//! From a container's specification to what the starter is told. Pure.

use std::collections::BTreeMap;
use std::path::PathBuf;

use k8s_openapi::api::core::v1::{Container, Pod, PodSecurityContext, PodSpec, SecurityContext};
use rustix::thread::CapabilitySet;

use super::env::{self, ConfigError, Facts, Objects};
use super::starter::{Create, Mount, Process};
use crate::images::Images;
use crate::kubelet::ClusterAddresses;

/// Whom a container runs as if it must not be root and its image, which declares nobody, doesn't say more.
const NOBODY: u32 = 65532;
const TERMINATION_MESSAGE_PATH: &str = "/dev/termination-log";

/// What the container runtimes of this world give every container.
const CAPABILITIES: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::AUDIT_WRITE);

/// What a container is made of beside its specification.
pub(crate) struct Ingredients<'a> {
    pub facts: &'a Facts<'a>,
    pub objects: &'a Objects,
    pub services: &'a [(String, String)],
    pub images: &'a Images,
    pub addresses: &'a ClusterAddresses,
    /// Directories of the pod's volumes by name.
    pub volumes: BTreeMap<String, PathBuf>,
    pub netns: Option<PathBuf>,
    pub root: PathBuf,
    pub termination_log: PathBuf,
}

/// Why a container can't be made; it waits with this reason.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unready {
    pub reason: &'static str,
    pub message: String,
}

impl From<ConfigError> for Unready {
    fn from(error: ConfigError) -> Self {
        Self {
            reason: "CreateContainerConfigError",
            message: error.to_string(),
        }
    }
}

pub(crate) fn create(container: &Container, with: &Ingredients<'_>) -> Result<Create, Unready> {
    let pod = with.facts.pod;
    let spec = pod
        .spec
        .as_ref()
        .ok_or_else(|| ConfigError::Other("the pod has no spec".to_owned()))?;
    let environment = env::environment(container, with.facts, with.objects, with.services)?;
    let arguments = arguments(container, with.images, &environment)?;
    let mut mounts = mounts(container, with, &environment)?;
    mounts.push(Mount {
        source: with.termination_log.clone(),
        sub_path: None,
        target: container
            .termination_message_path
            .as_deref()
            .unwrap_or(TERMINATION_MESSAGE_PATH)
            .into(),
        read_only: false,
    });
    let hostname = env::hostname(pod);
    let own = container.security_context.as_ref();
    Ok(Create {
        process: process(container, spec.security_context.as_ref(), arguments, environment),
        netns: with.netns.clone(),
        etc: BTreeMap::from([
            ("hostname".to_owned(), format!("{hostname}\n")),
            ("hosts".to_owned(), hosts(spec, &hostname, &with.facts.pod_ip)),
            ("resolv.conf".to_owned(), resolv_conf(pod, with.addresses)),
        ]),
        hostname,
        root: with.root.clone(),
        read_only_root: own.and_then(|own| own.read_only_root_filesystem) == Some(true),
        executable: with.images.executable.clone(),
        programs: with.images.programs.clone(),
        mounts,
    })
}

fn arguments(
    container: &Container,
    images: &Images,
    environment: &[(String, String)],
) -> Result<Vec<String>, Unready> {
    let reference = container.image.as_deref().unwrap_or_default();
    let image = images.find(reference);
    let expand = |texts: &Option<Vec<String>>| -> Vec<String> {
        texts
            .iter()
            .flatten()
            .map(|text| env::expand(text, environment))
            .collect()
    };
    let (command, args) = (expand(&container.command), expand(&container.args));
    let arguments = match (command.is_empty(), args.is_empty(), image) {
        (false, _, _) => [command, args].concat(),
        (true, false, Some(image)) => [image.entrypoint.clone(), args].concat(),
        (true, true, Some(image)) => [image.entrypoint.clone(), image.arguments.clone()].concat(),
        (true, _, None) => Vec::new(),
    };
    if arguments.is_empty() {
        let known: Vec<&str> = images
            .declared
            .iter()
            .map(|image| image.repository.as_str())
            .collect();
        return Err(Unready {
            reason: "ErrImagePull",
            message: format!(
                "this node pulls no images and doesn't know {reference:?}: give the container a `command` that \
                 names a program of this machine, or use one of: {}",
                known.join(", ")
            ),
        });
    }
    Ok(arguments)
}

fn process(
    container: &Container,
    pod: Option<&PodSecurityContext>,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
) -> Process {
    let own = container.security_context.as_ref();
    let id = |value: Option<i64>| value.and_then(|value| u32::try_from(value).ok());
    let must_not_be_root = own
        .and_then(|own| own.run_as_non_root)
        .or_else(|| pod.and_then(|pod| pod.run_as_non_root));
    let image_user = if must_not_be_root == Some(true) { NOBODY } else { 0 };
    let user = id(own.and_then(|own| own.run_as_user)).or_else(|| id(pod.and_then(|pod| pod.run_as_user)));
    let user = user.unwrap_or(image_user);
    let group = id(own.and_then(|own| own.run_as_group)).or_else(|| id(pod.and_then(|pod| pod.run_as_group)));
    let groups = pod
        .and_then(|pod| pod.supplemental_groups.as_deref())
        .unwrap_or_default();
    let groups = groups.iter().copied().chain(pod.and_then(|pod| pod.fs_group));
    let privileged = own.and_then(|own| own.privileged) == Some(true);
    Process {
        arguments,
        environment,
        directory: container
            .working_dir
            .clone()
            .filter(|directory| !directory.is_empty()),
        user,
        group: group.unwrap_or(if user == NOBODY { NOBODY } else { 0 }),
        groups: groups.filter_map(|group| u32::try_from(group).ok()).collect(),
        capabilities: capabilities(own, user).bits(),
        no_new_privileges: !privileged,
    }
}

/// Root starts with the usual set, anybody else with none; then `drop` and `add` apply.
fn capabilities(context: Option<&SecurityContext>, user: u32) -> CapabilitySet {
    if context.and_then(|context| context.privileged) == Some(true) {
        return CapabilitySet::all();
    }
    let change = context.and_then(|context| context.capabilities.as_ref());
    let named = |names: Option<&Vec<String>>| {
        names
            .into_iter()
            .flatten()
            .fold(CapabilitySet::empty(), |all, name| all | capability(name))
    };
    let start = if user == 0 {
        CAPABILITIES
    } else {
        CapabilitySet::empty()
    };
    let add = named(change.and_then(|change| change.add.as_ref()));
    (start - named(change.and_then(|change| change.drop.as_ref()))) | add
}

/// `NET_ADMIN`, `CAP_NET_ADMIN` or `ALL`; an unknown name is nothing.
fn capability(name: &str) -> CapabilitySet {
    let name = name.to_ascii_uppercase();
    let name = name.strip_prefix("CAP_").unwrap_or(&name);
    if name == "ALL" {
        return CapabilitySet::all();
    }
    CapabilitySet::from_name(name).unwrap_or(CapabilitySet::empty())
}

fn mounts(
    container: &Container,
    with: &Ingredients<'_>,
    environment: &[(String, String)],
) -> Result<Vec<Mount>, ConfigError> {
    let mount = |mount: &k8s_openapi::api::core::v1::VolumeMount| {
        let source = with.volumes.get(&mount.name);
        let sub_path = match (&mount.sub_path, &mount.sub_path_expr) {
            (Some(path), _) => Some(path.clone()),
            (None, Some(text)) => Some(env::expand(text, environment)),
            (None, None) => None,
        };
        Ok(Mount {
            source: source
                .ok_or_else(|| ConfigError::Other(format!("no volume {}", mount.name)))?
                .clone(),
            sub_path: sub_path.filter(|path| !path.is_empty()),
            target: PathBuf::from(&mount.mount_path),
            read_only: mount.read_only == Some(true),
        })
    };
    container.volume_mounts.iter().flatten().map(mount).collect()
}

fn hosts(spec: &PodSpec, hostname: &str, ip: &str) -> String {
    let mut text =
        format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{ip}\t{hostname}\n");
    for alias in spec.host_aliases.iter().flatten() {
        let names = alias.hostnames.as_deref().unwrap_or_default();
        text.push_str(&format!("{}\t{}\n", alias.ip, names.join("\t")));
    }
    text
}

fn resolv_conf(pod: &Pod, addresses: &ClusterAddresses) -> String {
    let spec = pod.spec.as_ref();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let domain = &addresses.domain;
    let (mut servers, mut searches, mut options) = match spec.and_then(|spec| spec.dns_policy.as_deref()) {
        Some("None") => (Vec::new(), Vec::new(), BTreeMap::new()),
        _ => (
            vec![addresses.dns.to_string()],
            vec![
                format!("{namespace}.svc.{domain}"),
                format!("svc.{domain}"),
                domain.clone(),
            ],
            BTreeMap::from([("ndots".to_owned(), Some("5".to_owned()))]),
        ),
    };
    if let Some(config) = spec.and_then(|spec| spec.dns_config.as_ref()) {
        servers.extend(config.nameservers.iter().flatten().cloned());
        searches.extend(config.searches.iter().flatten().cloned());
        for option in config.options.iter().flatten() {
            options.extend(option.name.clone().map(|name| (name, option.value.clone())));
        }
    }
    let mut text: String = servers
        .iter()
        .map(|server| format!("nameserver {server}\n"))
        .collect();
    if !searches.is_empty() {
        text.push_str(&format!("search {}\n", searches.join(" ")));
    }
    if !options.is_empty() {
        let options = options.into_iter().map(|(name, value)| match value {
            Some(value) => format!("{name}:{value}"),
            None => name,
        });
        text.push_str(&format!("options {}\n", options.collect::<Vec<_>>().join(" ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::images::Image;

    fn addresses() -> ClusterAddresses {
        ClusterAddresses {
            name: "west".to_owned(),
            pods: "10.42.0.0/16".parse().unwrap(),
            reachable_pods: Vec::new(),
            external: None,
            services: "10.43.0.0/16".parse().unwrap(),
            node: [172, 30, 0, 1].into(),
            load_balancers: "172.30.1.0/24".parse().unwrap(),
            api: ([172, 30, 0, 1], 6443).into(),
            dns: [10, 43, 0, 10].into(),
            domain: "cluster.local".to_owned(),
        }
    }

    fn check(container: Value, pod_security: Value) -> Result<Create, Unready> {
        let container: Container = serde_json::from_value(container).unwrap();
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "web-0", "namespace": "shop"},
            "spec": {"containers": [], "securityContext": pod_security},
        }))
        .unwrap();
        let facts = Facts {
            pod: &pod,
            pod_ip: "10.42.0.2".to_owned(),
            host_ip: "172.30.0.1".to_owned(),
            allocatable: BTreeMap::new(),
        };
        let web = Image {
            repository: "web".to_owned(),
            entrypoint: vec!["web".to_owned()],
            arguments: vec!["--port=80".to_owned()],
        };
        let images = Images {
            declared: vec![web],
            ..Images::default()
        };
        let ingredients = Ingredients {
            facts: &facts,
            objects: &Objects::default(),
            services: &[],
            images: &images,
            addresses: &addresses(),
            volumes: [("data".to_owned(), PathBuf::from("/state/data"))].into(),
            netns: None,
            root: PathBuf::from("/state/root"),
            termination_log: PathBuf::from("/state/termination-log"),
        };
        create(&container, &ingredients)
    }

    fn made(container: Value) -> Create {
        check(container, json!({})).unwrap()
    }

    #[test]
    fn command_and_args_replace_what_the_image_says() {
        let arguments = |container| made(container).process.arguments.join(" ");
        assert_eq!(arguments(json!({"name": "c", "image": "web:1"})), "web --port=80");
        assert_eq!(
            arguments(json!({"name": "c", "image": "web:1", "args": ["-v"]})),
            "web -v"
        );
        assert_eq!(
            arguments(json!({"name": "c", "image": "web:1", "command": ["sh"]})),
            "sh"
        );
        assert_eq!(
            arguments(
                json!({"name": "c", "image": "no", "command": ["echo", "$(X)"], "env": [{"name": "X", "value": "1"}]})
            ),
            "echo 1"
        );
    }

    #[test]
    fn an_unknown_image_without_a_command_says_what_to_do() {
        let unready = check(json!({"name": "c", "image": "nginx:1"}), json!({})).unwrap_err();
        assert_eq!(unready.reason, "ErrImagePull");
        assert!(
            unready.message.contains("\"nginx:1\"") && unready.message.contains("web"),
            "{}",
            unready.message
        );
    }

    #[test]
    fn the_container_overrides_the_pod_in_who_it_runs_as() {
        let who = |container: Value, pod| {
            let process = check(
                json!({"name": "c", "image": "web", "securityContext": container}),
                pod,
            )
            .unwrap()
            .process;
            (process.user, process.group, process.groups)
        };
        assert_eq!(who(json!({}), json!({})), (0, 0, vec![]));
        assert_eq!(
            who(
                json!({"runAsUser": 2102}),
                json!({"runAsUser": 5, "runAsGroup": 6})
            ),
            (2102, 6, vec![])
        );
        assert_eq!(
            who(json!({}), json!({"runAsNonRoot": true, "fsGroup": 9})),
            (NOBODY, NOBODY, vec![9])
        );
    }

    #[test]
    fn capabilities_follow_drop_and_add() {
        let kept = |context: Value| {
            let made = made(json!({"name": "c", "image": "web", "securityContext": context}));
            CapabilitySet::from_bits_retain(made.process.capabilities)
        };
        assert_eq!(kept(json!({})), CAPABILITIES);
        assert_eq!(
            kept(json!({"capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]}})),
            CapabilitySet::NET_ADMIN
        );
        assert_eq!(
            kept(json!({"capabilities": {"drop": ["CAP_NET_RAW"]}})),
            CAPABILITIES - CapabilitySet::NET_RAW
        );
        assert_eq!(kept(json!({"runAsUser": 7})), CapabilitySet::empty());
        assert_eq!(kept(json!({"privileged": true})), CapabilitySet::all());
    }

    #[test]
    fn names_resolve_by_the_cluster_and_then_as_the_pod_says() {
        let etc = made(json!({"name": "c", "image": "web"})).etc;
        assert_eq!(
            etc["resolv.conf"],
            "nameserver 10.43.0.10\nsearch shop.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n"
        );
        assert!(etc["hosts"].ends_with("10.42.0.2\tweb-0\n"));
        assert_eq!(etc["hostname"], "web-0\n");
        let own: Pod = serde_json::from_value(
            json!({"metadata": {}, "spec": {"containers": [], "dnsPolicy": "None",
            "dnsConfig": {"nameservers": ["1.1.1.1"], "options": [{"name": "edns0"}]}}}),
        )
        .unwrap();
        assert_eq!(
            resolv_conf(&own, &addresses()),
            "nameserver 1.1.1.1\noptions edns0\n"
        );
    }

    #[test]
    fn volume_mounts_name_volumes() {
        let mount = |mount: Value| {
            check(
                json!({"name": "c", "image": "web", "volumeMounts": [mount],
                "env": [{"name": "N", "value": "x"}]}),
                json!({}),
            )
        };
        assert_eq!(
            mount(json!({"name": "data", "mountPath": "/data", "readOnly": true, "subPathExpr": "a/$(N)"}))
                .unwrap()
                .mounts[0],
            Mount {
                source: PathBuf::from("/state/data"),
                sub_path: Some("a/x".to_owned()),
                target: PathBuf::from("/data"),
                read_only: true,
            }
        );
        assert_eq!(
            mount(json!({"name": "no", "mountPath": "/x"}))
                .unwrap_err()
                .message,
            "no volume no"
        );
    }
}
