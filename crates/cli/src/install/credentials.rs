//! Where a mesh's trust comes from: files that the user names, or a root and an issuer of its own.
//!
//! Everything is checked before it is rendered, because a wrong certificate in a cluster shows up as proxies that never
//! get ready.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use hawser_control::values::Values;
use hawser_tls::{
    Created, Description, Error, Issuer, TrustAnchors, Validity, certificates, create_issuer, create_root,
    create_server,
};

use crate::problem::Problem;

/// Files named on the command line.
#[derive(Clone, Debug, Default)]
pub(crate) struct Files {
    pub(crate) anchors: Option<PathBuf>,
    pub(crate) issuer: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
}

/// As long as Linkerd's: long enough for a year's budget, short enough to be noticed.
const VALID_FOR: Duration = Duration::from_secs(365 * 24 * 3600);
/// Clocks of nodes may be behind the one that this runs on.
const VALID_BEFORE: Duration = Duration::from_secs(3600);

/// Puts anchors, issuer and the webhook's certificate into the values, where they aren't there already.
pub(crate) fn complete(
    values: &mut Values,
    namespace: &str,
    files: &Files,
    now: SystemTime,
) -> Result<(), Problem> {
    if let Some(path) = &files.anchors {
        values.identity_trust_anchors_pem = read(path, "the trust anchors")?;
    }
    if let Some(path) = &files.issuer {
        values.identity.issuer.tls.crt_pem = read(path, "the issuer certificate")?;
    }
    if let Some(path) = &files.key {
        values.identity.issuer.tls.key_pem = read(path, "the issuer key")?;
    }
    if !values.identity.external_ca {
        let issuer = &values.identity.issuer.tls;
        let given = [
            &values.identity_trust_anchors_pem,
            &issuer.crt_pem,
            &issuer.key_pem,
        ]
        .map(|pem| !pem.is_empty());
        match given {
            [false, false, false] if !values.issuer_is_external() => generate(values, namespace, now)?,
            [true, false, false] if values.issuer_is_external() => {
                check_anchors(&values.identity_trust_anchors_pem, now)?;
            }
            [true, true, true] => check(values, now)?,
            [false, ..] if values.issuer_is_external() => {
                return Err(Problem::new(
                    "cannot install without trust anchors",
                    "an issuer that is kept by someone else is believed through a root that install cannot know",
                    "give --identity-trust-anchors-file with the root that signs the issuer",
                ));
            }
            _ => {
                return Err(Problem::new(
                    "cannot install with only a part of the credentials",
                    "trust anchors, issuer certificate and issuer key belong together",
                    "give --identity-trust-anchors-file, --identity-issuer-certificate-file and \
                     --identity-issuer-key-file, or none of them to have new ones made",
                ));
            }
        }
    }
    if values.proxy_injector.crt_pem.is_empty() && !values.proxy_injector.external_secret {
        webhook(values, namespace, now)?;
    }
    Ok(())
}

fn read(path: &Path, what: &str) -> Result<String, Problem> {
    std::fs::read_to_string(path).map_err(|error| {
        Problem::new(
            format!("cannot read {what} from {}", path.display()),
            error,
            "check the path; the file must be PEM text",
        )
    })
}

fn validity(now: SystemTime) -> Validity {
    Validity {
        not_before: now - VALID_BEFORE,
        not_after: now + VALID_FOR,
    }
}

/// A root of the mesh's own. Its key is thrown away: it has signed the issuer, and a key that nobody has can't leak.
fn generate(values: &mut Values, namespace: &str, now: SystemTime) -> Result<(), Problem> {
    let domain = values.trust_domain().to_owned();
    let (root, issuer) = authority(namespace, &domain, now).map_err(|error| {
        Problem::new(
            "cannot make a root and an issuer",
            error,
            "check the trust domain and the namespace",
        )
    })?;
    values.identity_trust_anchors_pem = root.certificate_pem;
    values.identity.issuer.tls.crt_pem = issuer.certificate_pem;
    values.identity.issuer.tls.key_pem = issuer.key.to_pem();
    Ok(())
}

fn authority(namespace: &str, domain: &str, now: SystemTime) -> Result<(Created, Created), Error> {
    let root = create_root(&format!("root.{namespace}.{domain}"), validity(now))?;
    let parent = Issuer::from_pem(&root.certificate_pem, &root.key.to_pem())?;
    let issuer = create_issuer(&format!("identity.{namespace}.{domain}"), &parent, validity(now))?;
    Ok((root, issuer))
}

/// Do anchors and issuer make a mesh?
fn check(values: &Values, now: SystemTime) -> Result<(), Problem> {
    let anchors = check_anchors(&values.identity_trust_anchors_pem, now)?;
    let pair = &values.identity.issuer.tls;
    let unusable = |why: Box<dyn std::error::Error>| {
        Problem::new(
            "cannot use the issuer",
            why,
            "it must be an authority with an ECDSA P-256 key of its own: hawser certs create issuer issuer.crt \
             issuer.key --ca root.crt --ca-key root.key",
        )
    };
    let chain =
        certificates(&pair.crt_pem, "the issuer certificate").map_err(|error| unusable(error.into()))?;
    for certificate in chain.iter().take(1) {
        let said = Description::of(certificate).map_err(|error| unusable(error.into()))?;
        if let Some(fault) = said.fault_as_issuer(now) {
            return Err(unusable(format!("{}: {fault}", said.subject).into()));
        }
    }
    let issuer = Issuer::from_pem(&pair.crt_pem, &pair.key_pem).map_err(|error| unusable(error.into()))?;
    issuer.verify(&anchors, now).map_err(|error| {
        Problem::new(
            "cannot use the issuer with these trust anchors",
            error,
            "put the root that signed the issuer into the bundle: cat root.crt other-root.crt > bundle.crt",
        )
    })
}

/// Can each certificate of a bundle be believed by every proxy?
fn check_anchors(bundle: &str, now: SystemTime) -> Result<TrustAnchors, Problem> {
    let attempt = "give a PEM file with one or more root certificates, without keys; a new root comes from hawser certs \
                   create root root.crt root.key";
    let unusable = |what: &str, why: Box<dyn std::error::Error>| Problem::new(what, why, attempt);
    if bundle.contains("PRIVATE KEY-----") {
        let why = "there is a private key among them, and everybody in the cluster may read the bundle";
        return Err(unusable("cannot use the trust anchors", why.into()));
    }
    let anchors = TrustAnchors::from_pem(bundle)
        .map_err(|error| unusable("cannot use the trust anchors", error.into()))?;
    for (at, certificate) in anchors.certificates().iter().enumerate() {
        let what = format!("cannot use certificate {} of the trust anchors", at + 1);
        let said = Description::of(certificate).map_err(|error| unusable(&what, error.into()))?;
        if let Some(fault) = said.fault_as_anchor(now) {
            return Err(unusable(&what, format!("{}: {fault}", said.subject).into()));
        }
    }
    Ok(anchors)
}

fn webhook(values: &mut Values, namespace: &str, now: SystemTime) -> Result<(), Problem> {
    let name = format!("linkerd-proxy-injector.{namespace}.svc");
    let names = [name.clone(), format!("{name}.{}", values.cluster_domain)];
    let created = create_server(&names, validity(now)).map_err(|error| {
        Problem::new(
            "cannot make the webhook's certificate",
            error,
            "check the cluster domain",
        )
    })?;
    values
        .proxy_injector
        .ca_bundle
        .clone_from(&created.certificate_pem);
    values.proxy_injector.crt_pem = created.certificate_pem;
    values.proxy_injector.key_pem = created.key.to_pem();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn complete_in(directory: &Path, anchors: &str, issuer: &str, key: &str) -> Result<Values, String> {
        let write = |name: &str, text: &str| {
            let path = directory.join(name);
            std::fs::write(&path, text).unwrap();
            Some(path)
        };
        let files = Files {
            anchors: write("ca.crt", anchors),
            issuer: write("i.crt", issuer),
            key: write("i.key", key),
        };
        let mut values = Values::default();
        complete(&mut values, "linkerd", &files, now()).map_err(|problem| problem.to_string())?;
        Ok(values)
    }

    #[test]
    fn a_mesh_of_its_own_believes_its_issuer() {
        let mut values = Values::default();
        complete(&mut values, "linkerd", &Files::default(), now()).unwrap();
        assert!(check(&values, now()).is_ok());
        assert!(values.proxy_injector.ca_bundle.contains("BEGIN CERTIFICATE"));
    }

    #[test]
    fn a_bundle_that_holds_the_issuers_root_is_accepted_and_any_other_refused() {
        let directory = tempfile::tempdir().unwrap();
        let (root, issuer) = authority("linkerd", "cluster.local", now()).unwrap();
        let (other, _) = authority("linkerd", "cluster.local", now()).unwrap();
        let bundle = format!("{}{}", other.certificate_pem, root.certificate_pem);
        let (certificate, key) = (&issuer.certificate_pem, issuer.key.to_pem());
        let values = complete_in(directory.path(), &bundle, certificate, &key).unwrap();
        assert_eq!(values.identity_trust_anchors_pem, bundle);
        for (anchors, certificate, key, expected) in [
            (
                &other.certificate_pem,
                certificate,
                &key,
                "with these trust anchors",
            ),
            (
                &"not pem".to_owned(),
                certificate,
                &key,
                "cannot use the trust anchors",
            ),
            (&bundle, certificate, &other.key.to_pem(), "cannot use the issuer"),
            (&bundle, &"nonsense".to_owned(), &key, "cannot use the issuer"),
        ] {
            let problem = complete_in(directory.path(), anchors, certificate, key).unwrap_err();
            assert!(problem.contains(expected), "{problem}");
            assert!(
                problem.contains("why: ") && problem.contains("try: "),
                "{problem}"
            );
        }
    }

    #[test]
    fn an_expired_issuer_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let (root, issuer) = authority("linkerd", "cluster.local", now() - 2 * VALID_FOR).unwrap();
        let (certificate, key) = (&issuer.certificate_pem, issuer.key.to_pem());
        let problem = complete_in(directory.path(), &root.certificate_pem, certificate, &key).unwrap_err();
        assert!(
            problem.contains("certificate 1 of the trust anchors"),
            "{problem}"
        );
        assert!(problem.contains("it has expired"), "{problem}");
        let (alive, _) = authority("linkerd", "cluster.local", now()).unwrap();
        let problem = complete_in(directory.path(), &alive.certificate_pem, certificate, &key).unwrap_err();
        assert!(
            problem.contains("cannot use the issuer") && problem.contains("it has expired"),
            "{problem}"
        );
    }

    #[test]
    fn a_bundle_with_a_private_key_is_not_published() {
        let directory = tempfile::tempdir().unwrap();
        let (root, issuer) = authority("linkerd", "cluster.local", now()).unwrap();
        let leaky = format!("{}{}", root.certificate_pem, root.key.to_pem());
        let (certificate, key) = (&issuer.certificate_pem, issuer.key.to_pem());
        let problem = complete_in(directory.path(), &leaky, certificate, &key).unwrap_err();
        assert!(problem.contains("there is a private key among them"), "{problem}");
    }

    #[test]
    fn a_leaf_is_neither_an_anchor_nor_an_issuer() {
        let directory = tempfile::tempdir().unwrap();
        let (root, issuer) = authority("linkerd", "cluster.local", now()).unwrap();
        let leaf = create_server(&["web.test".to_owned()], validity(now())).unwrap();
        for (anchors, certificate, expected) in [
            (
                &leaf.certificate_pem,
                &issuer.certificate_pem,
                "of the trust anchors",
            ),
            (
                &root.certificate_pem,
                &leaf.certificate_pem,
                "cannot use the issuer",
            ),
        ] {
            let key = leaf.key.to_pem();
            let problem = complete_in(directory.path(), anchors, certificate, &key).unwrap_err();
            assert!(problem.contains(expected), "{problem}");
            assert!(problem.contains("not a certificate authority"), "{problem}");
        }
    }

    #[test]
    fn an_external_issuer_needs_anchors_and_no_more() {
        let mut values = Values::default();
        values.identity.issuer.scheme = hawser_control::values::TLS_SCHEME.into();
        let problem = complete(&mut values, "linkerd", &Files::default(), now()).unwrap_err();
        assert!(problem.to_string().contains("without trust anchors"), "{problem}");
        let (root, _) = authority("linkerd", "cluster.local", now()).unwrap();
        values.identity_trust_anchors_pem = root.certificate_pem;
        complete(&mut values, "linkerd", &Files::default(), now()).unwrap();
        assert_eq!(
            values.identity.issuer.tls,
            Default::default(),
            "nothing is made up"
        );
    }

    #[test]
    fn a_part_of_the_credentials_is_refused() {
        let mut values = Values {
            identity_trust_anchors_pem: "x".into(),
            ..Values::default()
        };
        assert!(complete(&mut values, "linkerd", &Files::default(), now()).is_err());
    }
}
