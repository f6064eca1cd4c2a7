//! What an explanation consists of: findings in the order of a request's way, and what becomes of the request.
//!
//! Plain values that can be served as JSON. How they come about is [`super::judge`]'s business; here they are only
//! written down for people, readable without colour.

use serde::Serialize;

use crate::check::Paint;

/// Whether something is as it must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    Ok,
    /// Doesn't stop the request, or couldn't be looked at.
    Warning,
    Fails,
}

/// Which question a finding answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum About {
    Client,
    Name,
    Protocol,
    Weights,
    Link,
    Export,
    Gateway,
    Endpoints,
    Identity,
    Authorization,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    pub(crate) about: About,
    /// By the context of the kubeconfig that leads there.
    pub(crate) cluster: String,
    /// `service emojivoto/web-svc`
    pub(crate) subject: String,
    pub(crate) verdict: Verdict,
    pub(crate) seen: String,
    /// Why it is so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) why: Option<String>,
    #[serde(rename = "try", skip_serializing_if = "Option::is_none")]
    pub(crate) attempt: Option<String>,
    /// It concerns those who have no traffic now.
    pub(crate) standing_by: bool,
}

impl Finding {
    pub(crate) fn why(&mut self, why: impl Into<String>) -> &mut Self {
        self.why = Some(why.into());
        self
    }

    pub(crate) fn attempt(&mut self, attempt: impl Into<String>) -> &mut Self {
        self.attempt = Some(attempt.into());
        self
    }
}

/// What would become of requests now.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Share {
    /// Of the requests, 0 to 1.
    pub(crate) share: f64,
    /// Hop by hop.
    pub(crate) way: Vec<String>,
    /// How it ends.
    pub(crate) end: String,
    pub(crate) succeeds: bool,
}

/// The whole answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Explanation {
    pub(crate) from: String,
    pub(crate) to: String,
    /// `GET /`
    pub(crate) request: String,
    pub(crate) verdict: Verdict,
    /// Whether every request would arrive.
    pub(crate) succeeds: bool,
    pub(crate) decision: Vec<Share>,
    pub(crate) findings: Vec<Finding>,
}

impl About {
    fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Name => "name",
            Self::Protocol => "protocol",
            Self::Weights => "weights",
            Self::Link => "link",
            Self::Export => "export",
            Self::Gateway => "gateway",
            Self::Endpoints => "endpoints",
            Self::Identity => "identity",
            Self::Authorization => "authorization",
        }
    }
}

/// As wide as the longest name of a question.
const WIDTH: usize = 13;

impl Explanation {
    pub(crate) fn text(&self, paint: Paint) -> String {
        let mut text = format!("{} → {}, {}\n", self.from, self.to, self.request);
        let mut place = ("", false);
        for finding in &self.findings {
            if place != (&finding.cluster, finding.standing_by) {
                place = (&finding.cluster, finding.standing_by);
                let standing_by = if finding.standing_by { ", standing by" } else { "" };
                text += &format!("\nin {}{standing_by}\n", finding.cluster);
            }
            let mark = match finding.verdict {
                Verdict::Ok => "√",
                Verdict::Warning => "‼",
                Verdict::Fails => "×",
            };
            let about = finding.about.as_str();
            let (mark, subject, seen) = (paint.mark(mark), &finding.subject, &finding.seen);
            text += &format!("{mark} {about:<WIDTH$} {subject}: {seen}\n");
            for (word, said) in [("why", &finding.why), ("try", &finding.attempt)] {
                if let Some(said) = said {
                    text += &format!("  {:<WIDTH$} {word}: {said}\n", "");
                }
            }
        }
        text += "\nnow\n";
        for share in &self.decision {
            let mark = paint.mark(if share.succeeds { "√" } else { "×" });
            let percent = format!("{} %", percent(share.share));
            let mut way = share.way.clone();
            way.push(share.end.clone());
            text += &format!("{mark} {percent:<WIDTH$} {}\n", way.join(" → "));
        }
        if self.decision.is_empty() {
            let mark = paint.mark("×");
            text += &format!("{mark} {:<WIDTH$} goes nowhere\n", "every request");
        }
        text
    }
}

/// Without digits that say nothing.
fn percent(share: f64) -> f64 {
    (share * 1e3).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explanation() -> Explanation {
        let finding = |about, cluster: &str, verdict, seen: &str| Finding {
            about,
            cluster: cluster.into(),
            subject: "service emojivoto/web-svc".into(),
            verdict,
            seen: seen.into(),
            why: None,
            attempt: None,
            standing_by: false,
        };
        Explanation {
            from: "deploy/vote-bot in emojivoto".into(),
            to: "svc/web-svc:80 in emojivoto".into(),
            request: "GET /".into(),
            verdict: Verdict::Fails,
            succeeds: false,
            decision: vec![Share {
                share: 1.0 / 3.0,
                way: vec!["web-svc-east:80".into(), "gateway of east".into()],
                end: "refused: web-svc is not exported".into(),
                succeeds: false,
            }],
            findings: vec![
                finding(About::Weights, "west", Verdict::Ok, "web-svc-east 1"),
                finding(About::Export, "east", Verdict::Fails, "not exported")
                    .why("it has no label mirror.linkerd.io/exported")
                    .attempt("kubectl label")
                    .clone(),
            ],
        }
    }

    #[test]
    fn people_read_what_is_seen_in_which_cluster_and_what_to_try() {
        assert_eq!(
            explanation().text(Paint::Plain),
            "deploy/vote-bot in emojivoto → svc/web-svc:80 in emojivoto, GET /\n\
             \n\
             in west\n\
             √ weights       service emojivoto/web-svc: web-svc-east 1\n\
             \n\
             in east\n\
             × export        service emojivoto/web-svc: not exported\n                \
             why: it has no label mirror.linkerd.io/exported\n                \
             try: kubectl label\n\
             \n\
             now\n\
             × 33.3 %        web-svc-east:80 → gateway of east → refused: web-svc is not exported\n"
        );
    }

    #[test]
    fn programs_read_the_same() {
        let read = serde_json::to_value(explanation()).expect("plain values");
        assert_eq!(read["verdict"], "fails");
        assert_eq!(read["findings"][1]["try"], "kubectl label");
        assert_eq!(read["findings"][0]["about"], "weights");
        assert_eq!(read["decision"][0]["succeeds"], false);
    }
}
