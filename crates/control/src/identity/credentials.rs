//! The issuer and the trust anchors as Kubernetes mounts them: files that may change at any moment.
//!
//! A new pair replaces the old one only if its leaves would be believed by the current anchors. One that can't be used
//! doesn't hold up new anchors: those go with the last good pair, if they believe it. Reads files; knows no cluster.

use std::io;
use std::path::PathBuf;
use std::time::SystemTime;

use hawser_tls::{Issuer, TrustAnchors};

/// What leaves are signed with, and who must believe them.
pub struct Credentials {
    pub issuer: Issuer,
    pub anchors: TrustAnchors,
    /// The anchors as they were read, for those who are told of them.
    pub bundle: String,
}

/// Why the mounted files can't be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    #[error("reading {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} holds neither crt.pem and key.pem nor tls.crt and tls.key")]
    NoIssuer { path: PathBuf },
    #[error("loading the issuer: {0}")]
    Issuer(hawser_tls::Error),
    #[error("loading the trust anchors: {0}")]
    Anchors(hawser_tls::Error),
    #[error("verifying the issuer against the trust anchors: {0}")]
    Verify(hawser_tls::Error),
}

/// What a look at the files found.
pub enum Changed {
    No,
    To(Box<Credentials>),
    /// Said once per content.
    Refused(CredentialsError),
    /// The anchors are new, but the issuer is the one of before.
    Anchors(Box<Credentials>, CredentialsError),
}

/// Where the files are, and what they held the last time.
pub struct Mounted {
    issuer_dir: PathBuf,
    anchors_file: PathBuf,
    last: Option<Texts>,
    /// What was used last.
    good: Option<Texts>,
}

#[derive(Clone, PartialEq)]
struct Texts {
    certificate: String,
    key: String,
    anchors: String,
}

/// Linkerd's names and those of `kubernetes.io/tls` Secrets.
const NAMES: [(&str, &str); 2] = [("crt.pem", "key.pem"), ("tls.crt", "tls.key")];

impl Mounted {
    pub fn new(issuer_dir: PathBuf, anchors_file: PathBuf) -> Self {
        Self {
            issuer_dir,
            anchors_file,
            last: None,
            good: None,
        }
    }

    pub fn read(&mut self, now: SystemTime) -> Changed {
        let texts = match self.texts() {
            Ok(texts) => texts,
            // Mounts are swapped atomically, but they may not be there yet. Nothing was loaded, so say it each time.
            Err(error) => {
                return if self.last.is_none() {
                    Changed::Refused(error)
                } else {
                    Changed::No
                };
            }
        };
        if self.last.as_ref() == Some(&texts) {
            return Changed::No;
        }
        self.last = Some(texts.clone());
        let error = match texts.credentials(now) {
            Ok(credentials) => {
                self.good = Some(texts);
                return Changed::To(Box::new(credentials));
            }
            Err(error) => error,
        };
        let good = self.good.take();
        let kept = good
            .as_ref()
            .filter(|good| good.anchors != texts.anchors)
            .map(|good| Texts {
                anchors: texts.anchors,
                ..good.clone()
            });
        match kept.and_then(|kept| Some((kept.credentials(now).ok()?, kept))) {
            Some((credentials, kept)) => {
                self.good = Some(kept);
                Changed::Anchors(Box::new(credentials), error)
            }
            None => {
                self.good = good;
                Changed::Refused(error)
            }
        }
    }

    fn texts(&self) -> Result<Texts, CredentialsError> {
        let read = |path: PathBuf| {
            std::fs::read_to_string(&path).map_err(|source| CredentialsError::Read { path, source })
        };
        let names = NAMES
            .iter()
            .find(|(certificate, _)| self.issuer_dir.join(certificate).exists());
        let (certificate, key) = names.ok_or_else(|| CredentialsError::NoIssuer {
            path: self.issuer_dir.clone(),
        })?;
        Ok(Texts {
            certificate: read(self.issuer_dir.join(certificate))?,
            key: read(self.issuer_dir.join(key))?,
            anchors: read(self.anchors_file.clone())?,
        })
    }
}

impl Texts {
    fn credentials(&self, now: SystemTime) -> Result<Credentials, CredentialsError> {
        let issuer = Issuer::from_pem(&self.certificate, &self.key).map_err(CredentialsError::Issuer)?;
        let anchors = TrustAnchors::from_pem(&self.anchors).map_err(CredentialsError::Anchors)?;
        issuer.verify(&anchors, now).map_err(CredentialsError::Verify)?;
        let bundle = self.anchors.clone();
        Ok(Credentials {
            issuer,
            anchors,
            bundle,
        })
    }
}
