//! What somebody wants to watch, and as what proxies are asked for it. Pure.

use linkerd2_proxy_api::tap::observe_request::Match;
use linkerd2_proxy_api::tap::observe_request::r#match::http::{
    Match as HttpMatch, StringMatch, string_match,
};
use linkerd2_proxy_api::tap::observe_request::r#match::{Http, Label, Match as Kind_, Seq};
use serde::{Deserialize, Serialize};

use crate::kinds::Kind;
use crate::pods::Pod;

/// Requests told of in a second, at most.
pub const RPS_MAX: u32 = 1_000;
const TEXT_BYTES_MAX: usize = 1_024;

/// Requests that come to some pods, and that they send.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    pub kind: Kind,
    /// All of the kind if absent.
    pub name: Option<String>,
    /// All namespaces if absent.
    pub namespace: Option<String>,
    /// Only what they send there.
    pub to: Option<To>,
    pub method: Option<String>,
    /// What the path begins with.
    pub path: Option<String>,
    pub authority: Option<String>,
    pub max_rps: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct To {
    pub kind: Kind,
    pub name: Option<String>,
    pub namespace: Option<String>,
}

impl Ask {
    /// Why nobody can be asked this.
    pub fn check(&self) -> Result<(), String> {
        if matches!(self.kind, Kind::Service | Kind::Authority | Kind::Route) {
            return Err(format!(
                "a {} has no proxies to watch: name a workload",
                self.kind
            ));
        }
        if let Some(to) = &self.to
            && matches!(to.kind, Kind::Authority | Kind::Route)
        {
            return Err(format!(
                "nothing is sent to a {}: name a workload or svc",
                to.kind
            ));
        }
        if !(1..=RPS_MAX).contains(&self.max_rps) {
            return Err(format!(
                "{} requests per second are not 1 to {RPS_MAX}",
                self.max_rps
            ));
        }
        let mut texts = [&self.method, &self.path, &self.authority].into_iter().flatten();
        match texts.find(|text| text.len() > TEXT_BYTES_MAX) {
            Some(_) => Err(format!("a text has at most {TEXT_BYTES_MAX} bytes")),
            None => Ok(()),
        }
    }

    pub(super) fn is_about(&self, pod: &Pod) -> bool {
        let fits = |wanted: &Option<String>, given: &str| wanted.as_deref().is_none_or(|name| name == given);
        let (namespace, is_it) = match self.kind {
            Kind::Namespace => (&self.name, true),
            Kind::Pod => (&self.namespace, fits(&self.name, &pod.name.name)),
            kind => {
                let owned = |(owner, name): &(Kind, String)| *owner == kind && fits(&self.name, name);
                (&self.namespace, pod.owner.as_ref().is_some_and(owned))
            }
        };
        is_it && fits(namespace, &pod.name.namespace) && pod.is_running()
    }

    /// All conditions at once.
    pub(super) fn pattern(&self) -> Match {
        let of = |kind| Match { r#match: Some(kind) };
        let label = |key: &str, value: &str| {
            of(Kind_::DestinationLabel(Label {
                key: key.to_owned(),
                value: value.to_owned(),
            }))
        };
        let http = |wanted| {
            of(Kind_::Http(Http {
                r#match: Some(wanted),
            }))
        };
        let text = |wanted| StringMatch {
            r#match: Some(wanted),
        };
        let mut matches = Vec::new();
        if let Some(to) = &self.to {
            // Labels of endpoints have the names of kinds.
            matches.extend(to.name.as_ref().map(|name| label(to.kind.singular(), name)));
            if to.kind != Kind::Namespace {
                matches.extend(to.namespace.as_ref().map(|name| label("namespace", name)));
            }
        }
        matches.extend(self.method.as_ref().and_then(|method| {
            let method: http::Method = method.to_ascii_uppercase().parse().ok()?;
            Some(http(HttpMatch::Method(method.into())))
        }));
        matches.extend(self.path.as_ref().map(|path| {
            let prefix = string_match::Match::Prefix(path.clone());
            http(HttpMatch::Path(text(prefix)))
        }));
        matches.extend(self.authority.as_ref().map(|authority| {
            let exact = string_match::Match::Exact(authority.clone());
            http(HttpMatch::Authority(text(exact)))
        }));
        of(Kind_::All(Seq { matches }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::PodName;

    fn ask(kind: Kind, name: Option<&str>) -> Ask {
        Ask {
            kind,
            name: name.map(str::to_owned),
            namespace: Some("x".into()),
            to: None,
            method: None,
            path: None,
            authority: None,
            max_rps: 10,
        }
    }

    #[test]
    fn pods_are_found_by_what_they_belong_to() {
        let pod = Pod {
            name: PodName {
                namespace: "x".into(),
                name: "web-1".into(),
            },
            owner: Some((Kind::Deployment, "web".into())),
            is_running: true,
            ..Pod::default()
        };
        for (ask, expected) in [
            (ask(Kind::Deployment, Some("web")), true),
            (ask(Kind::Deployment, None), true),
            (ask(Kind::Deployment, Some("other")), false),
            (ask(Kind::StatefulSet, None), false),
            (ask(Kind::Pod, Some("web-1")), true),
            (ask(Kind::Namespace, Some("x")), true),
            (ask(Kind::Namespace, Some("y")), false),
        ] {
            assert_eq!(ask.is_about(&pod), expected, "{ask:?}");
        }
    }

    #[test]
    fn every_filter_is_a_condition() {
        let count = |ask: &Ask| match ask.pattern().r#match {
            Some(Kind_::All(all)) => all.matches.len(),
            other => panic!("{other:?}"),
        };
        let plain = ask(Kind::Deployment, None);
        let to = To {
            kind: Kind::Service,
            name: Some("web-svc".into()),
            namespace: Some("x".into()),
        };
        let filtered = Ask {
            to: Some(to),
            method: Some("get".into()),
            path: Some("/api".into()),
            authority: Some("web-svc:80".into()),
            ..plain.clone()
        };
        assert_eq!((count(&plain), count(&filtered)), (0, 5));
    }

    #[test]
    fn what_has_no_proxies_is_not_watched() {
        assert!(ask(Kind::Service, None).check().is_err());
        assert!(ask(Kind::Deployment, None).check().is_ok());
        let endless = Ask {
            max_rps: RPS_MAX + 1,
            ..ask(Kind::Pod, None)
        };
        assert!(endless.check().is_err());
    }
}
