//! Questions as the paths of requests, and back.
//!
//! Values need no escapes, because names of Kubernetes objects have none of the characters that would; others are
//! refused.

use std::collections::BTreeMap;
use std::time::Duration;

use hawser_crd::link::parse_duration;

use crate::api::{Objects, Question, Towards};
use crate::kinds::{Kind, UnknownKind};

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    Stat(Question),
    Edges {
        objects: Objects,
        window: Duration,
    },
    Gateways {
        window: Duration,
    },
    Routes {
        objects: Objects,
        window: Duration,
    },
    /// Where the time of requests goes: from these, or everyone; to this Service, or all.
    Paths {
        from: Option<Objects>,
        to: Option<(String, String)>,
        window: Duration,
    },
    /// How a Service's requests from other clusters went on.
    Onward {
        namespace: String,
        name: String,
        window: Duration,
    },
    Status,
    /// The whole cluster.
    Portrait,
    /// A workload over time, and its pods, here or in a linked cluster.
    Workload {
        cluster: Option<String>,
        kind: Kind,
        namespace: String,
        name: String,
        window: Duration,
    },
    /// A Service over time, as callers in one cluster see it: this one, or a linked one.
    Series {
        cluster: Option<String>,
        namespace: String,
        name: String,
        window: Duration,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadQuestion {
    #[error(
        "there is nothing at {0}: try /api/stat, /api/routes, /api/edges, /api/gateways, /api/status, /api/clusters, /api/portrait, /api/series, /api/workload or /api/paths"
    )]
    Path(String),
    #[error("{0} is missing")]
    Missing(&'static str),
    #[error("{0:?} is not a name")]
    Name(String),
    #[error("{0:?} is not a duration such as 1m")]
    Window(String),
    #[error("only one of to and from can be given")]
    Both,
    #[error(transparent)]
    Kind(#[from] UnknownKind),
}

/// What is looked at where nothing else is asked for.
pub const WINDOW: Duration = Duration::from_secs(60);

impl Ask {
    /// The path that asks this.
    pub fn path(&self) -> String {
        let objects = |prefix: &str, objects: &Objects| {
            let mut pairs = vec![(format!("{prefix}kind"), objects.kind.singular().to_owned())];
            let optional = [("name", &objects.name), ("namespace", &objects.namespace)];
            pairs.extend(
                optional
                    .into_iter()
                    .filter_map(|(key, value)| Some((format!("{prefix}{key}"), value.clone()?))),
            );
            pairs
        };
        let one = |cluster: &Option<String>, kind: Option<Kind>, namespace: &String, name: &String| {
            let said = [
                ("cluster", cluster.clone()),
                ("kind", kind.map(|kind| kind.singular().to_owned())),
                ("namespace", Some(namespace.clone())),
                ("name", Some(name.clone())),
            ];
            let said = said.into_iter();
            said.filter_map(|(key, value)| Some((key.to_owned(), value?)))
                .collect()
        };
        let (place, mut pairs, window) = match self {
            Self::Status => return "/api/status".to_owned(),
            Self::Portrait => return "/api/portrait".to_owned(),
            Self::Series {
                cluster,
                namespace,
                name,
                window,
            } => ("series", one(cluster, None, namespace, name), window),
            Self::Workload {
                cluster,
                kind,
                namespace,
                name,
                window,
            } => ("workload", one(cluster, Some(*kind), namespace, name), window),
            Self::Routes {
                objects: about,
                window,
            } => ("routes", objects("", about), window),
            Self::Paths { from, to, window } => {
                let mut pairs = from.as_ref().map(|from| objects("", from)).unwrap_or_default();
                pairs.extend(to.iter().flat_map(|(namespace, name)| {
                    [
                        ("to_namespace".to_owned(), namespace.clone()),
                        ("to_name".to_owned(), name.clone()),
                    ]
                }));
                ("paths", pairs, window)
            }
            Self::Onward {
                namespace,
                name,
                window,
            } => ("onward", one(&None, None, namespace, name), window),
            Self::Gateways { window } => ("gateways", vec![], window),
            Self::Edges {
                objects: about,
                window,
            } => ("edges", objects("", about), window),
            Self::Stat(question) => {
                let mut pairs = objects("", &question.objects);
                pairs.extend(match &question.towards {
                    None => vec![],
                    Some(Towards::To(to)) => objects("to_", to),
                    Some(Towards::From(from)) => objects("from_", from),
                });
                ("stat", pairs, &question.window)
            }
        };
        pairs.push(("window".into(), format!("{}s", window.as_secs())));
        let pairs: Vec<String> = pairs
            .into_iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        format!("/api/{place}?{}", pairs.join("&"))
    }

    /// The question of a request.
    pub fn of(path: &str, query: &str) -> Result<Self, BadQuestion> {
        let pairs = pairs(query);
        let window = match pairs.get("window") {
            Some(text) => parse_duration(text)
                .filter(|window| !window.is_zero())
                .ok_or_else(|| BadQuestion::Window((*text).to_owned()))?,
            None => WINDOW,
        };
        let about = |prefix: &str| objects_of(&pairs, prefix);
        let objects = || about("")?.ok_or(BadQuestion::Missing("kind"));
        let value = |key: &'static str| pairs.get(key).map(|text| name(text)).transpose();
        let required = |key| -> Result<String, BadQuestion> { value(key)?.ok_or(BadQuestion::Missing(key)) };
        match path {
            "/api/routes" => Ok(Self::Routes {
                objects: objects()?,
                window,
            }),
            "/api/paths" => Ok(Self::Paths {
                from: about("")?,
                to: match value("to_name")? {
                    Some(name) => Some((required("to_namespace")?, name)),
                    None => None,
                },
                window,
            }),
            "/api/onward" => Ok(Self::Onward {
                namespace: required("namespace")?,
                name: required("name")?,
                window,
            }),
            "/api/status" => Ok(Self::Status),
            "/api/portrait" => Ok(Self::Portrait),
            "/api/series" => Ok(Self::Series {
                cluster: value("cluster")?,
                namespace: required("namespace")?,
                name: required("name")?,
                window,
            }),
            "/api/workload" => Ok(Self::Workload {
                cluster: value("cluster")?,
                kind: required("kind")?.parse()?,
                namespace: required("namespace")?,
                name: required("name")?,
                window,
            }),
            "/api/gateways" => Ok(Self::Gateways { window }),
            "/api/edges" => Ok(Self::Edges {
                objects: objects()?,
                window,
            }),
            "/api/stat" => Ok(Self::Stat(Question {
                objects: objects()?,
                towards: match (about("to_")?, about("from_")?) {
                    (None, None) => None,
                    (Some(to), None) => Some(Towards::To(to)),
                    (None, Some(from)) => Some(Towards::From(from)),
                    (Some(_), Some(_)) => return Err(BadQuestion::Both),
                },
                window,
            })),
            other => Err(BadQuestion::Path(other.to_owned())),
        }
    }
}

/// Where it is asked what would become of a request.
pub const EXPLAIN: &str = "/api/explain";

/// What would become of a request to a Service. Collectors can't answer it: see [`crate::front`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explain {
    /// Where it is asked, by the name that a Link has for it; here, if absent.
    pub cluster: Option<String>,
    pub namespace: String,
    pub name: String,
    /// Who asks; anybody in the mesh, if absent.
    pub from: Option<Objects>,
}

impl Explain {
    pub fn of(query: &str) -> Result<Self, BadQuestion> {
        let pairs = pairs(query);
        let value = |key: &'static str| pairs.get(key).map(|text| name(text)).transpose();
        let required = |key| -> Result<String, BadQuestion> { value(key)?.ok_or(BadQuestion::Missing(key)) };
        Ok(Self {
            cluster: value("cluster")?,
            namespace: required("namespace")?,
            name: required("name")?,
            from: objects_of(&pairs, "from_")?,
        })
    }
}

fn pairs(query: &str) -> BTreeMap<&str, &str> {
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .collect()
}

/// Those that `kind`, `name` and `namespace` with this prefix name, if any do.
fn objects_of(pairs: &BTreeMap<&str, &str>, prefix: &str) -> Result<Option<Objects>, BadQuestion> {
    let value = |key: &str| pairs.get(&*format!("{prefix}{key}")).copied();
    let name = |key: &str| value(key).map(name).transpose();
    let Some(kind) = value("kind") else {
        return Ok(None);
    };
    Ok(Some(Objects {
        kind: kind.parse::<Kind>()?,
        name: name("name")?,
        namespace: name("namespace")?,
    }))
}

/// A name as Kubernetes has them, or an authority, or `server/route`.
pub fn name(text: &str) -> Result<String, BadQuestion> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:/".contains(&byte);
    if text.is_empty() || text.len() > 320 || !text.bytes().all(legal) {
        return Err(BadQuestion::Name(text.to_owned()));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn objects() -> impl Strategy<Value = Objects> {
        let kind = proptest::sample::select(vec![Kind::Deployment, Kind::Pod, Kind::Service, Kind::Route]);
        let name = || proptest::option::of("[a-z0-9.:/-]{1,9}");
        (kind, name(), name()).prop_map(|(kind, name, namespace)| Objects {
            kind,
            name,
            namespace,
        })
    }

    fn ask() -> impl Strategy<Value = Ask> {
        let towards = prop_oneof![
            Just(None),
            objects().prop_map(|to| Some(Towards::To(to))),
            objects().prop_map(|from| Some(Towards::From(from))),
        ];
        let window = || (1..4000_u64).prop_map(Duration::from_secs);
        prop_oneof![
            (objects(), towards, window()).prop_map(|(objects, towards, window)| Ask::Stat(Question {
                objects,
                towards,
                window
            })),
            (objects(), window()).prop_map(|(objects, window)| Ask::Edges { objects, window }),
            (objects(), window()).prop_map(|(objects, window)| Ask::Routes { objects, window }),
            window().prop_map(|window| Ask::Gateways { window }),
            Just(Ask::Status),
            Just(Ask::Portrait),
            (
                proptest::option::of(objects()),
                proptest::option::of(("[a-z]{1,9}", "[a-z0-9-]{1,9}")),
                window()
            )
                .prop_map(|(from, to, window)| Ask::Paths { from, to, window }),
            ("[a-z]{1,9}", "[a-z0-9-]{1,9}", window()).prop_map(|(namespace, name, window)| Ask::Onward {
                namespace,
                name,
                window
            }),
            (
                proptest::option::of("[a-z0-9.-]{1,9}"),
                "[a-z]{1,9}",
                "[a-z0-9-]{1,9}",
                window()
            )
                .prop_map(|(cluster, namespace, name, window)| Ask::Workload {
                    cluster,
                    kind: Kind::StatefulSet,
                    namespace,
                    name,
                    window
                }),
            (
                proptest::option::of("[a-z0-9.-]{1,9}"),
                "[a-z]{1,9}",
                "[a-z0-9-]{1,9}",
                window()
            )
                .prop_map(|(cluster, namespace, name, window)| Ask::Series {
                    cluster,
                    namespace,
                    name,
                    window
                }),
        ]
    }

    proptest! {
        #[test]
        fn a_question_arrives_as_it_was_asked(ask in ask()) {
            let path = ask.path();
            let (path, query) = path.split_once('?').unwrap_or((&path, ""));
            prop_assert_eq!(Ask::of(path, query), Ok(ask));
        }

        #[test]
        fn any_question_is_read_without_panic(path in "/api/(stat|edges|series|workload|paths|onward)", query in "[a-z_=&/1 %]{0,60}") {
            let _ = Ask::of(&path, &query);
        }
    }

    #[test]
    fn what_cannot_be_asked_is_refused() {
        for (query, why) in [
            ("", BadQuestion::Missing("kind")),
            (
                "kind=secret",
                "secret".parse::<Kind>().expect_err("no such kind").into(),
            ),
            ("kind=po&name=a%20b", BadQuestion::Name("a%20b".into())),
            ("kind=po&window=soon", BadQuestion::Window("soon".into())),
            ("kind=po&to_kind=po&from_kind=po", BadQuestion::Both),
        ] {
            assert_eq!(Ask::of("/api/stat", query), Err(why), "{query}");
        }
    }
}
