//! What an image name means on a machine without a registry: a program that is already here.
//!
//! The sandbox pulls nothing. A container's file system is the machine's own, read-only, with the caller's multi-call
//! binary added under every name in [`Images::programs`]. An image only chooses the entry point and the default
//! arguments. An image that nobody declared runs if its container names a `command`; otherwise the container waits
//! with the reason `ErrImagePull` and a message that says why.

use std::path::PathBuf;

/// The images and programs that pods may use.
#[derive(Clone, Debug, Default)]
pub struct Images {
    /// The multi-call binary, usually `/proc/self/exe` resolved by the caller.
    pub executable: PathBuf,
    /// Names under which the multi-call binary appears in every container's `/usr/local/bin`.
    pub programs: Vec<String>,
    /// Declared images, matched by repository: `docker.io/` prefix, tag and digest are ignored.
    pub declared: Vec<Image>,
}

/// One declared image.
#[derive(Clone, Debug)]
pub struct Image {
    /// Repository without tag or digest, for example `curlimages/curl`.
    pub repository: String,
    /// What `ENTRYPOINT` would say.
    pub entrypoint: Vec<String>,
    /// What `CMD` would say.
    pub arguments: Vec<String>,
}

impl Images {
    /// The declared image for a reference such as `docker.io/curlimages/curl:8.1@sha256:...`.
    pub fn find(&self, reference: &str) -> Option<&Image> {
        let wanted = repository(reference);
        self.declared
            .iter()
            .find(|image| repository(&image.repository) == wanted)
    }
}

/// The repository part of an image reference.
pub fn repository(reference: &str) -> &str {
    let name = reference.split('@').next().unwrap_or(reference);
    // A colon after the last slash starts a tag; one before it belongs to a registry's port.
    let tag = name
        .rfind(':')
        .filter(|colon| name.rfind('/').is_none_or(|slash| *colon > slash));
    let name = &name[..tag.unwrap_or(name.len())];
    let name = name.strip_prefix("docker.io/").unwrap_or(name);
    name.strip_prefix("library/").unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::repository;

    #[test]
    fn a_repository_is_the_reference_without_registry_default_tag_and_digest() {
        for (reference, expected) in [
            ("curlimages/curl", "curlimages/curl"),
            ("docker.io/curlimages/curl:8.1", "curlimages/curl"),
            ("docker.io/library/nginx@sha256:0f", "nginx"),
            ("localhost:5000/app", "localhost:5000/app"),
            ("localhost:5000/app:v1", "localhost:5000/app"),
        ] {
            assert_eq!(repository(reference), expected);
        }
    }
}
