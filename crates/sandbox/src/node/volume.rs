//! A pod's volumes: what they contain, and how a directory is made to contain it.
//!
//! [`content`] is pure. [`Directory`] writes files so that a reader sees either all of the old ones or all of the new
//! ones: they are written into a fresh directory, and one rename of the link `..data` makes it the current one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, KeyToPath, PodSpec, Volume};

use super::env::{ConfigError, Facts, Objects, field, resource};

const MODE_DEFAULT: i32 = 0o644;
const TOKEN_LIFETIME_DEFAULT_S: i64 = 3600;

/// One file of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileContent {
    pub bytes: Vec<u8>,
    pub mode: u32,
}

/// Files by path relative to the volume.
pub(crate) type Files = BTreeMap<String, FileContent>;

/// A service-account token that some volume wants.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TokenRequest {
    pub audience: Option<String>,
    pub lifetime_s: i64,
}

/// What a volume is made of.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Empty,
    Memory,
    Host(PathBuf),
    Files(Files),
}

pub(crate) fn tokens(spec: &PodSpec) -> BTreeSet<TokenRequest> {
    spec.volumes
        .iter()
        .flatten()
        .filter_map(|volume| volume.projected.as_ref())
        .flat_map(|projected| projected.sources.iter().flatten())
        .filter_map(|source| source.service_account_token.as_ref())
        .map(|token| TokenRequest {
            audience: token.audience.clone().filter(|audience| !audience.is_empty()),
            lifetime_s: token.expiration_seconds.unwrap_or(TOKEN_LIFETIME_DEFAULT_S),
        })
        .collect()
}

/// The content of one volume, given what it refers to.
pub(crate) fn content(
    volume: &Volume,
    facts: &Facts<'_>,
    objects: &Objects,
    tokens: &BTreeMap<TokenRequest, String>,
) -> Result<Content, ConfigError> {
    if let Some(empty) = &volume.empty_dir {
        return Ok(if empty.medium.as_deref() == Some("Memory") {
            Content::Memory
        } else {
            Content::Empty
        });
    }
    if let Some(host) = &volume.host_path {
        return Ok(Content::Host(PathBuf::from(&host.path)));
    }
    let mut files = Files::new();
    if let Some(source) = &volume.config_map {
        let mode = source.default_mode.unwrap_or(MODE_DEFAULT);
        config_map(
            &mut files,
            objects,
            &source.name,
            source.items.as_deref(),
            source.optional,
            mode,
        )?;
    } else if let Some(source) = &volume.secret {
        let mode = source.default_mode.unwrap_or(MODE_DEFAULT);
        let name = source.secret_name.as_deref().unwrap_or_default();
        secret(
            &mut files,
            objects,
            name,
            source.items.as_deref(),
            source.optional,
            mode,
        )?;
    } else if let Some(source) = &volume.downward_api {
        downward(
            &mut files,
            facts,
            source.items.as_deref(),
            source.default_mode.unwrap_or(MODE_DEFAULT),
        )?;
    } else if let Some(projected) = &volume.projected {
        let mode = projected.default_mode.unwrap_or(MODE_DEFAULT);
        for source in projected.sources.iter().flatten() {
            if let Some(source) = &source.config_map {
                config_map(
                    &mut files,
                    objects,
                    &source.name,
                    source.items.as_deref(),
                    source.optional,
                    mode,
                )?;
            }
            if let Some(source) = &source.secret {
                secret(
                    &mut files,
                    objects,
                    &source.name,
                    source.items.as_deref(),
                    source.optional,
                    mode,
                )?;
            }
            if let Some(source) = &source.downward_api {
                downward(&mut files, facts, source.items.as_deref(), mode)?;
            }
            if let Some(source) = &source.service_account_token {
                let request = TokenRequest {
                    audience: source.audience.clone().filter(|audience| !audience.is_empty()),
                    lifetime_s: source.expiration_seconds.unwrap_or(TOKEN_LIFETIME_DEFAULT_S),
                };
                let token = tokens
                    .get(&request)
                    .ok_or_else(|| ConfigError::Other("token not issued yet".to_owned()))?;
                insert(&mut files, &source.path, token.as_bytes().to_vec(), mode)?;
            }
        }
    } else {
        return Err(ConfigError::Other(format!(
            "volume {} has a type that this node doesn't offer",
            volume.name
        )));
    }
    Ok(Content::Files(files))
}

fn insert(files: &mut Files, path: &str, bytes: Vec<u8>, mode: i32) -> Result<(), ConfigError> {
    let inside = Path::new(path)
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    if !inside || path.is_empty() || path.starts_with("..") {
        return Err(ConfigError::Other(format!(
            "path {path:?} leads out of its volume"
        )));
    }
    let mode = u32::try_from(mode).unwrap_or(0o644) & 0o777;
    files.insert(path.to_owned(), FileContent { bytes, mode });
    Ok(())
}

/// Puts all keys, or the chosen ones under their paths, into the volume.
fn keys(
    files: &mut Files,
    data: &BTreeMap<String, Vec<u8>>,
    items: Option<&[KeyToPath]>,
    optional: bool,
    mode: i32,
    missing: impl Fn(&str) -> ConfigError,
) -> Result<(), ConfigError> {
    let Some(items) = items else {
        for (key, bytes) in data {
            insert(files, key, bytes.clone(), mode)?;
        }
        return Ok(());
    };
    for item in items {
        match data.get(&item.key) {
            Some(bytes) => insert(files, &item.path, bytes.clone(), item.mode.unwrap_or(mode))?,
            None if optional => {}
            None => return Err(missing(&item.key)),
        }
    }
    Ok(())
}

fn config_map(
    files: &mut Files,
    objects: &Objects,
    name: &str,
    items: Option<&[KeyToPath]>,
    optional: Option<bool>,
    mode: i32,
) -> Result<(), ConfigError> {
    let optional = optional == Some(true);
    let Some(map) = objects.config_maps.get(name) else {
        return if optional {
            Ok(())
        } else {
            Err(ConfigError::NoConfigMap(name.to_owned()))
        };
    };
    let texts = map
        .data
        .iter()
        .flatten()
        .map(|(key, text)| (key.clone(), text.clone().into_bytes()));
    let bytes = map
        .binary_data
        .iter()
        .flatten()
        .map(|(key, ByteString(bytes))| (key.clone(), bytes.clone()));
    keys(
        files,
        &texts.chain(bytes).collect(),
        items,
        optional,
        mode,
        |key| ConfigError::NoConfigMapKey {
            name: name.to_owned(),
            key: key.to_owned(),
        },
    )
}

fn secret(
    files: &mut Files,
    objects: &Objects,
    name: &str,
    items: Option<&[KeyToPath]>,
    optional: Option<bool>,
    mode: i32,
) -> Result<(), ConfigError> {
    let optional = optional == Some(true);
    let Some(secret) = objects.secrets.get(name) else {
        return if optional {
            Ok(())
        } else {
            Err(ConfigError::NoSecret(name.to_owned()))
        };
    };
    let data = secret
        .data
        .iter()
        .flatten()
        .map(|(key, ByteString(bytes))| (key.clone(), bytes.clone()))
        .collect();
    keys(files, &data, items, optional, mode, |key| {
        ConfigError::NoSecretKey {
            name: name.to_owned(),
            key: key.to_owned(),
        }
    })
}

fn downward(
    files: &mut Files,
    facts: &Facts<'_>,
    items: Option<&[DownwardAPIVolumeFile]>,
    mode: i32,
) -> Result<(), ConfigError> {
    for item in items.unwrap_or_default() {
        let text = match (&item.field_ref, &item.resource_field_ref) {
            (Some(reference), _) => field(reference, facts)?,
            (None, Some(reference)) => resource(reference, None, facts)?,
            (None, None) => continue,
        };
        insert(files, &item.path, text.into_bytes(), item.mode.unwrap_or(mode))?;
    }
    Ok(())
}

/// A directory whose files change all at once.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    written: Option<Files>,
    generation: u64,
}

impl Directory {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self {
            path,
            written: None,
            generation: 0,
        }
    }

    /// Makes these the files. Says whether anything changed.
    pub(crate) fn write(&mut self, files: Files) -> io::Result<bool> {
        if self.written.as_ref() == Some(&files) {
            return Ok(false);
        }
        fs::create_dir_all(&self.path)?;
        self.generation += 1;
        let fresh = format!("..{}", self.generation);
        let directory = self.path.join(&fresh);
        // Left over from a write that failed half-way.
        remove(&directory)?;
        make_directory(&directory)?;
        for (path, file) in &files {
            let target = directory.join(path);
            if let Some(parent) = target.parent().filter(|parent| *parent != directory) {
                make_directory(parent)?;
            }
            fs::write(&target, &file.bytes)?;
            fs::set_permissions(&target, fs::Permissions::from_mode(file.mode))?;
        }
        let previous = fs::read_link(self.path.join("..data")).ok();
        remove(&self.path.join("..data_tmp"))?;
        symlink(&fresh, self.path.join("..data_tmp"))?;
        fs::rename(self.path.join("..data_tmp"), self.path.join("..data"))?;

        let top: BTreeSet<&str> = files
            .keys()
            .map(|path| path.split('/').next().unwrap_or(path))
            .collect();
        for name in &top {
            match symlink(Path::new("..data").join(name), self.path.join(name)) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                other => other?,
            }
        }
        for entry in fs::read_dir(&self.path)? {
            let name = entry?.file_name();
            let stale = name
                .to_str()
                .is_some_and(|name| !name.starts_with("..") && !top.contains(name));
            if stale {
                remove(&self.path.join(name))?;
            }
        }
        if let Some(previous) = previous {
            remove(&self.path.join(previous))?;
        }
        self.written = Some(files);
        Ok(true)
    }
}

fn make_directory(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(path)
}

/// Removes a file, link or directory that may not exist.
fn remove(path: &Path) -> io::Result<()> {
    let gone = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match gone {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::{Value, json};

    use super::*;

    fn check(volume: Value) -> Result<Content, ConfigError> {
        let volume: Volume = serde_json::from_value(volume).unwrap();
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "web-0", "labels": {"app": "web"}}, "spec": {"containers": []}
        }))
        .unwrap();
        let facts = Facts {
            pod: &pod,
            pod_ip: String::new(),
            host_ip: String::new(),
            allocatable: BTreeMap::new(),
        };
        let objects = Objects {
            config_maps: [(
                "conf".to_owned(),
                serde_json::from_value(json!({"data": {"a": "1", "b": "2"}, "binaryData": {"z": "AAE="}}))
                    .unwrap(),
            )]
            .into(),
            secrets: BTreeMap::new(),
        };
        let token = TokenRequest {
            audience: Some("mesh".to_owned()),
            lifetime_s: 600,
        };
        content(&volume, &facts, &objects, &[(token, "jwt".to_owned())].into())
    }

    fn files(expected: &[(&str, &[u8], u32)]) -> Result<Content, ConfigError> {
        let files = expected.iter().map(|(path, bytes, mode)| {
            (
                (*path).to_owned(),
                FileContent {
                    bytes: bytes.to_vec(),
                    mode: *mode,
                },
            )
        });
        Ok(Content::Files(files.collect()))
    }

    #[test]
    fn a_config_map_volume_has_all_keys_or_the_chosen_ones() {
        assert_eq!(
            check(json!({"name": "v", "configMap": {"name": "conf"}})),
            files(&[("a", b"1", 0o644), ("b", b"2", 0o644), ("z", &[0, 1], 0o644)])
        );
        assert_eq!(
            check(
                json!({"name": "v", "configMap": {"name": "conf", "defaultMode": 256,
                "items": [{"key": "a", "path": "deep/one", "mode": 384}, {"key": "b", "path": "two"}]}})
            ),
            files(&[("deep/one", b"1", 0o600), ("two", b"2", 0o400)])
        );
    }

    #[test]
    fn what_is_missing_is_an_error_unless_optional() {
        assert_eq!(
            check(json!({"name": "v", "secret": {"secretName": "no", "optional": true}})),
            files(&[])
        );
        assert_eq!(
            check(json!({"name": "v", "secret": {"secretName": "no"}})),
            Err(ConfigError::NoSecret("no".to_owned()))
        );
        let item = json!({"name": "v", "configMap": {"name": "conf", "items": [{"key": "no", "path": "x"}]}});
        assert_eq!(
            check(item),
            Err(ConfigError::NoConfigMapKey {
                name: "conf".to_owned(),
                key: "no".to_owned()
            })
        );
    }

    #[test]
    fn a_projected_volume_joins_its_sources() {
        assert_eq!(
            check(json!({"name": "v", "projected": {"sources": [
                {"serviceAccountToken": {"path": "token", "audience": "mesh", "expirationSeconds": 600}},
                {"configMap": {"name": "conf", "items": [{"key": "a", "path": "ca.crt"}]}},
                {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
            ]}})),
            files(&[
                ("ca.crt", b"1", 0o644),
                ("labels", b"app=\"web\"", 0o644),
                ("token", b"jwt", 0o644)
            ])
        );
    }

    #[test]
    fn no_path_leads_out_of_a_volume() {
        for path in ["../x", "/x", "a/../../x", "..data", ""] {
            let volume =
                json!({"name": "v", "configMap": {"name": "conf", "items": [{"key": "a", "path": path}]}});
            assert!(check(volume).is_err(), "{path}");
        }
    }

    #[test]
    fn a_directory_changes_all_its_files_at_once_and_forgets_old_ones() {
        let scratch = tempfile::tempdir().unwrap();
        let mut directory = Directory::new(scratch.path().join("v"));
        let some = |pairs: &[(&str, &str)]| -> Files {
            pairs
                .iter()
                .map(|(path, text)| {
                    (
                        (*path).to_owned(),
                        FileContent {
                            bytes: text.as_bytes().to_vec(),
                            mode: 0o640,
                        },
                    )
                })
                .collect()
        };
        let read = |path: &str| fs::read_to_string(scratch.path().join("v").join(path)).ok();
        assert!(directory.write(some(&[("a", "1"), ("deep/b", "2")])).unwrap());
        assert!(!directory.write(some(&[("a", "1"), ("deep/b", "2")])).unwrap());
        let before = fs::read_link(scratch.path().join("v/..data")).unwrap();
        assert!(directory.write(some(&[("a", "3"), ("c", "4")])).unwrap());
        assert_eq!(
            (read("a"), read("deep/b"), read("c")),
            (Some("3".to_owned()), None, Some("4".to_owned()))
        );
        assert!(!scratch.path().join("v").join(before).exists());
        assert_eq!(
            fs::metadata(scratch.path().join("v/a"))
                .unwrap()
                .permissions()
                .mode()
                & 0o777,
            0o640
        );
    }
}
