//! The dashboard's files, as `npm run build` in `ui/` left them, and the headers that keep them to themselves.
//!
//! The built files are committed, so that nobody needs Node to build Hawser; a test fails when they are older than
//! their sources.

use std::io::Write as _;
use std::sync::LazyLock;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::HeaderMap;
use http::header::{self, HeaderName, HeaderValue};

/// Nothing from anywhere but here, nothing inline, and in nobody's frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// One file.
pub(crate) struct File {
    path: &'static str,
    kind: &'static str,
    plain: &'static [u8],
    packed: Bytes,
}

impl File {
    fn new(path: &'static str, kind: &'static str, plain: &'static [u8]) -> Self {
        let mut packed = GzEncoder::new(Vec::new(), Compression::best());
        // Writing to a Vec cannot fail.
        let _ = packed.write_all(plain);
        Self {
            path,
            kind,
            plain,
            packed: packed.finish().unwrap_or_default().into(),
        }
    }

    /// What to send to somebody who can or can't unpack, with the headers that say so.
    pub(crate) fn body(&self, unpacks: bool, headers: &mut HeaderMap) -> Bytes {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(self.kind));
        headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
        if !unpacks {
            return Bytes::from_static(self.plain);
        }
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        self.packed.clone()
    }
}

static FILES: LazyLock<[File; 4]> = LazyLock::new(|| {
    [
        File::new(
            "/",
            "text/html; charset=utf-8",
            include_bytes!("../dist/index.html"),
        ),
        File::new(
            "/app.js",
            "text/javascript; charset=utf-8",
            include_bytes!("../dist/app.js"),
        ),
        File::new(
            "/app.css",
            "text/css; charset=utf-8",
            include_bytes!("../dist/app.css"),
        ),
        File::new("/icon.svg", "image/svg+xml", include_bytes!("../dist/icon.svg")),
    ]
});

/// The file at a path.
pub(crate) fn file(path: &str) -> Option<&'static File> {
    FILES.iter().find(|file| file.path == path)
}

/// On every answer, also those that are no files.
pub(crate) fn protect(headers: &mut HeaderMap) {
    let all: [(HeaderName, &'static str); 6] = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (
            HeaderName::from_static("cross-origin-resource-policy"),
            "same-origin",
        ),
        (
            HeaderName::from_static("cross-origin-opener-policy"),
            "same-origin",
        ),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    for (name, value) in all {
        headers.insert(name, HeaderValue::from_static(value));
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use sha2::{Digest, Sha256};

    use super::*;

    /// Everything that the page is made of, sorted by path; see `ui/sources.mjs`, which does the same.
    fn sources(ui: &Path) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut dirs = vec![ui.to_owned()];
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(dir).expect("ui is there") {
                let path = entry.expect("it can be listed").path();
                match path.file_name().and_then(|name| name.to_str()) {
                    Some("node_modules") => {}
                    _ if path.is_dir() => dirs.push(path),
                    _ => found.push(path),
                }
            }
        }
        let mut found: Vec<_> = found
            .into_iter()
            .map(|path| path.strip_prefix(ui).expect("it is in ui").to_owned())
            .collect();
        found.sort_by_key(|path| path.to_string_lossy().into_owned());
        found
    }

    #[test]
    fn the_built_page_is_that_of_its_sources() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let ui = here.join("../../ui");
        let mut hash = Sha256::new();
        for path in sources(&ui) {
            let text = std::fs::read(ui.join(&path)).expect("it can be read");
            hash.update(format!("{}\n{}\n", path.display(), text.len()));
            hash.update(&text);
        }
        let hash: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        let built = std::fs::read_to_string(here.join("dist/.sources")).expect("it was built once");
        assert_eq!(built.trim(), hash, "the page is stale: run `cargo xtask ui`");
    }

    #[test]
    fn the_page_is_small_and_asks_nobody_else() {
        let packed: usize = FILES.iter().map(|file| file.packed.len()).sum();
        assert!(packed < 300 << 10, "{} KiB", packed >> 10);
        for file in FILES.iter() {
            let text = String::from_utf8_lossy(file.plain);
            for (at, _) in text.match_indices("//") {
                let before = text.get(..at).unwrap_or_default();
                if !(before.ends_with("http:") || before.ends_with("https:")) {
                    continue;
                }
                let rest: String = text.chars().skip(before.chars().count() + 2).take(24).collect();
                // Names of XML namespaces, and where Svelte explains its errors; nothing that is fetched.
                let known = ["www.w3.org/", "svelte.dev/e/"];
                assert!(
                    known.iter().any(|name| rest.starts_with(name)),
                    "{}: {rest}",
                    file.path
                );
            }
        }
    }

    #[test]
    fn html_has_nothing_inline() {
        let html = String::from_utf8_lossy(file("/").expect("there is a page").plain);
        for inline in ["<style", "style=", "onload", "javascript:"] {
            assert!(!html.contains(inline), "{inline}");
        }
    }
}
