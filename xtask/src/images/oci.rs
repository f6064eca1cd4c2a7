//! Images as the OCI's image specification wants them: a layer, a configuration and a manifest of each, and an index, all
//! in one archive that `docker load`, `ctr images import`, `skopeo copy oci-archive:` and `kind load image-archive` read.
//!
//! Pure, and the same files give the same bytes: no clock, no names of this machine.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};

use anyhow::{Context as _, Result, ensure};
use flate2::read::GzDecoder;
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::tar::{self, Node, Tree, file};

/// The beginning of time, since nothing says when an image was made but the clock.
const CREATED: &str = "1970-01-01T00:00:00Z";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

pub(super) struct Image {
    /// `registry/path`.
    pub(super) name: String,
    pub(super) tag: String,
    /// Of user and group.
    pub(super) uid: u32,
    pub(super) entrypoint: Vec<String>,
    pub(super) description: String,
    pub(super) files: Tree,
}

/// What became of one image.
pub(super) struct Packed {
    /// Of the manifest: what `name@digest` refers to.
    pub(super) digest: String,
    /// What a node fetches.
    pub(super) layer_len: usize,
}

impl Image {
    pub(super) fn reference(&self) -> String {
        format!("{}:{}", self.name, self.tag)
    }
}

/// An archive under construction.
pub(super) struct Archive {
    blobs: Blobs,
    manifests: Vec<Value>,
}

impl Archive {
    pub(super) fn new() -> Self {
        Self {
            blobs: Blobs::default(),
            manifests: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, image: &Image) -> Result<Packed> {
        let layer = tar::write(&image.files)?;
        // Time and operating system would be in its head.
        let mut gzip = GzBuilder::new()
            .mtime(0)
            .operating_system(255)
            .write(Vec::new(), Compression::best());
        gzip.write_all(&layer)?;
        let packed_layer = gzip.finish()?;
        let layer_len = packed_layer.len();
        let config = json!({
            "architecture": architecture(),
            "config": {
                "Entrypoint": image.entrypoint,
                "Env": ["PATH=/usr/local/bin"],
                "Labels": {
                    "org.opencontainers.image.description": image.description,
                    "org.opencontainers.image.version": image.tag,
                },
                "User": format!("{0}:{0}", image.uid),
                "WorkingDir": "/",
            },
            "created": CREATED,
            "history": [{"created": CREATED, "created_by": "cargo xtask images"}],
            "os": "linux",
            "rootfs": {"diff_ids": [digest(&layer)], "type": "layers"},
        });
        let layer = self.blobs.add(LAYER, packed_layer);
        let config = self.blobs.add(CONFIG, config.to_string().into_bytes());
        let manifest =
            json!({"config": config, "layers": [layer], "mediaType": MANIFEST, "schemaVersion": 2});
        let mut manifest = self.blobs.add(MANIFEST, manifest.to_string().into_bytes());
        let digest = manifest["digest"].as_str().unwrap_or_default().to_owned();
        manifest["platform"] = json!({"architecture": architecture(), "os": "linux"});
        manifest["annotations"] = json!({
            // The first is containerd's. A tag alone would be that of all images.
            "io.containerd.image.name": image.reference(),
            "org.opencontainers.image.ref.name": image.reference(),
        });
        self.manifests.push(manifest);
        Ok(Packed { digest, layer_len })
    }

    pub(super) fn finish(self) -> Result<Vec<u8>> {
        let index = json!({"manifests": self.manifests, "mediaType": INDEX, "schemaVersion": 2});
        let mut files = self.blobs.files;
        files.insert("index.json".into(), file(index.to_string()));
        files.insert(
            "oci-layout".into(),
            file(json!({"imageLayoutVersion": "1.0.0"}).to_string()),
        );
        tar::write(&files)
    }
}

/// An image of an archive: its configuration and the files of its layer.
#[derive(Debug, PartialEq)]
pub(super) struct Unpacked {
    pub(super) config: Value,
    pub(super) files: Tree,
}

/// The images of an archive by their references, every digest and length on the way compared.
pub(super) fn unpack(archive: &[u8]) -> Result<BTreeMap<String, Unpacked>> {
    let files = tar::read(archive)?;
    let content = |path: &str| match files.get(path) {
        Some(Node::File { bytes, .. }) => Ok(bytes.as_slice()),
        _ => Err(anyhow::anyhow!("the archive has no file {path}")),
    };
    let layout: Value = serde_json::from_slice(content("oci-layout")?)?;
    ensure!(
        layout["imageLayoutVersion"] == "1.0.0",
        "an unknown layout: {layout}"
    );
    let blob = |descriptor: &Value| {
        let expected = descriptor["digest"]
            .as_str()
            .context("a descriptor without a digest")?;
        let bytes = content(&blob_path(expected))?;
        ensure!(digest(bytes) == expected, "{expected} is {}", digest(bytes));
        ensure!(
            descriptor["size"] == bytes.len(),
            "{expected} has {} bytes",
            bytes.len()
        );
        Ok(bytes)
    };
    let index: Value = serde_json::from_slice(content("index.json")?)?;
    let mut images = BTreeMap::new();
    for descriptor in index["manifests"].as_array().into_iter().flatten() {
        let manifest: Value = serde_json::from_slice(blob(descriptor)?)?;
        let config: Value = serde_json::from_slice(blob(&manifest["config"])?)?;
        let mut layer = Vec::new();
        GzDecoder::new(blob(&manifest["layers"][0])?).read_to_end(&mut layer)?;
        let expected = &config["rootfs"]["diff_ids"][0];
        ensure!(*expected == digest(&layer), "the layer is not {expected}");
        let files = tar::read(&layer)?;
        let name = &descriptor["annotations"]["org.opencontainers.image.ref.name"];
        let name = name.as_str().context("an image without a name")?.to_owned();
        images.insert(name, Unpacked { config, files });
    }
    Ok(images)
}

/// What a layout holds by digest.
struct Blobs {
    files: Tree,
}

impl Default for Blobs {
    fn default() -> Self {
        let directories = ["blobs", "blobs/sha256"].map(|path| (path.to_owned(), Node::Directory));
        Self {
            files: Tree::from(directories),
        }
    }
}

impl Blobs {
    /// Its descriptor.
    fn add(&mut self, media_type: &str, bytes: Vec<u8>) -> Value {
        let digest = digest(&bytes);
        let descriptor = json!({"digest": digest, "mediaType": media_type, "size": bytes.len()});
        self.files.insert(blob_path(&digest), file(bytes));
        descriptor
    }
}

fn blob_path(digest: &str) -> String {
    format!("blobs/{}", digest.replace(':', "/"))
}

fn digest(bytes: &[u8]) -> String {
    let mut text = "sha256:".to_owned();
    for byte in Sha256::digest(bytes) {
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// As Go calls this machine's, and so the OCI.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> Image {
        Image {
            name: "registry.example/a".into(),
            tag: "v1".into(),
            uid: 2102,
            entrypoint: vec!["program".into()],
            description: "a program".into(),
            files: Tree::from([
                ("etc".into(), Node::Directory),
                ("etc/passwd".into(), file("a:x:1:1:::")),
            ]),
        }
    }

    fn pack(images: &[Image]) -> Vec<u8> {
        let mut archive = Archive::new();
        for image in images {
            archive.add(image).unwrap();
        }
        archive.finish().unwrap()
    }

    #[test]
    fn an_archive_holds_what_went_in() {
        let other = Image {
            name: "registry.example/b".into(),
            ..image()
        };
        let images = unpack(&pack(&[image(), other])).unwrap();
        let names: Vec<&String> = images.keys().collect();
        assert_eq!(names, ["registry.example/a:v1", "registry.example/b:v1"]);
        for unpacked in images.values() {
            assert_eq!(unpacked.files, image().files);
            assert_eq!(unpacked.config["config"]["Entrypoint"], json!(["program"]));
            assert_eq!(unpacked.config["config"]["User"], "2102:2102");
        }
    }

    #[test]
    fn the_same_files_give_the_same_bytes_and_others_give_others() {
        let archive = pack(&[image()]);
        assert!(pack(&[image()]) == archive, "not the same bytes");
        let mut other = image();
        other.files.insert("more".into(), file("x"));
        assert!(pack(&[other]) != archive, "the same bytes");
    }

    #[test]
    fn a_layout_has_what_the_specification_asks_for() {
        let mut archive = Archive::new();
        let packed = archive.add(&image()).unwrap();
        let files = tar::read(&archive.finish().unwrap()).unwrap();
        let Some(Node::File { bytes: index, .. }) = files.get("index.json") else {
            panic!("no index: {:?}", files.keys())
        };
        let index: Value = serde_json::from_slice(index).unwrap();
        let manifest = &index["manifests"][0];
        assert_eq!(
            (index["schemaVersion"].as_u64(), &manifest["mediaType"]),
            (Some(2), &json!(MANIFEST))
        );
        assert_eq!(manifest["digest"], packed.digest.as_str());
        assert_eq!(
            manifest["annotations"]["io.containerd.image.name"],
            "registry.example/a:v1"
        );
        assert_eq!(
            files.len(),
            2 + 2 + 3,
            "directories, layout and index, layer, configuration and manifest"
        );
    }

    #[test]
    fn a_changed_blob_is_noticed() {
        let mut files = tar::read(&pack(&[image()])).unwrap();
        for (path, node) in &mut files {
            if let (true, Node::File { bytes, .. }) = (path.starts_with("blobs/"), node) {
                let last = bytes.len() - 1;
                bytes[last] ^= 1;
            }
        }
        let changed = tar::write(&files).unwrap();
        assert!(unpack(&changed).unwrap_err().to_string().starts_with("sha256:"));
    }

    #[test]
    fn digests_are_sha256() {
        assert_eq!(
            digest(b""),
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
    }
}
