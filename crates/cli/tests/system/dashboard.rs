//! The dashboard that the demo serves, as a browser shows it.

use std::time::{Duration, Instant};

use crate::browser::Page;
use crate::demo::report;
use crate::host::{self, eventually};
use crate::recovery::{appears, weighs};
use crate::runner::{Test, linked};
use crate::world::{COMMAND_DEADLINE, SOON, World};

pub(crate) const TESTS: &[Test] = &[
    linked(
        "the_dashboard_shows_both_clusters_and_a_failover_as_it_happens",
        &["kubectl", "chromium"],
        the_dashboard_shows_both_clusters_and_a_failover_as_it_happens,
    ),
    linked(
        "a_workload_has_a_page_with_its_past_who_it_speaks_to_and_its_pods",
        &["chromium"],
        a_workload_has_a_page_with_its_past_who_it_speaks_to_and_its_pods,
    ),
    linked(
        "a_crowd_with_foul_names_that_is_partly_hidden_is_shown_at_little_cost",
        &["chromium"],
        a_crowd_with_foul_names_that_is_partly_hidden_is_shown_at_little_cost,
    ),
    linked(
        "a_cluster_that_is_cut_off_stays_on_the_page_with_its_age",
        &["chromium"],
        a_cluster_that_is_cut_off_stays_on_the_page_with_its_age,
    ),
    linked(
        "only_pages_of_this_machine_may_ask_the_dashboard",
        &["curl"],
        only_pages_of_this_machine_may_ask_the_dashboard,
    ),
    linked(
        "of_another_cluster_nobody_but_collectors_may_ask_the_collector",
        &["kubectl", "curl"],
        of_another_cluster_nobody_but_collectors_may_ask_the_collector,
    ),
];

/// From a change of weights to a page that says so.
const SEEN_WITHIN: Duration = Duration::from_secs(3);

fn url(world: &World) -> String {
    let transcript = world.transcript();
    let mut lines = transcript.lines();
    let line = lines.find_map(|line| {
        line.strip_prefix("dashboard: ")
            .filter(|rest| rest.starts_with("http"))
    });
    line.unwrap_or_else(|| panic!("no URL in\n{transcript}"))
        .trim()
        .to_owned()
}

fn the_dashboard_shows_both_clusters_and_a_failover_as_it_happens(world: &World) {
    weighs(world, "web-svc", [true, false]);
    let mut page = Page::open(&url(world), 1280, 720);
    eventually("both clusters are drawn", SOON, || {
        let clusters = page.texts(".box:not(.cut) .cluster");
        if clusters == ["west", "east"] {
            Ok(())
        } else {
            Err(format!("{clusters:?}"))
        }
    });
    let painted =
        page.evaluate("performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? 9999");
    let painted = painted.as_f64().unwrap_or(9_999.0);
    // A figure for whoever reads the run: a busy machine says nothing about the page.
    report(&format!("{painted:.0} ms to the first paint"));
    eventually("votes are drawn", SOON, || {
        let lines = page.evaluate("[...document.querySelectorAll('.edge .hit')].map((one) => one.getAttribute('aria-label')).join('\\n')");
        let lines = lines.as_str().unwrap_or_default();
        let vote = lines
            .lines()
            .find(|line| line.starts_with("vote-bot to web-svc: "));
        match vote {
            Some(line) if line.contains("secured by mutual TLS") && !line.contains("–") => Ok(()),
            _ => Err(lines.to_owned()),
        }
    });
    assert!(
        page.texts("h1")[0].starts_with("Two linked clusters"),
        "{:?}",
        page.texts("h1")
    );

    world.kubectl("west", "-n emojivoto scale deployment web --replicas=0");
    weighs(world, "web-svc", [false, true]);
    let moved = Instant::now();
    let said = eventually("the failover is said", SEEN_WITHIN, || {
        let sentences = page.texts(".sentence.note");
        let mut failed = sentences
            .iter()
            .filter(|one| one.contains("has failed over: answered by cluster east"));
        failed.next().cloned().ok_or_else(|| format!("{sentences:?}"))
    });
    report(&format!(
        "{:.1} s from new weights to: {said}",
        moved.elapsed().as_secs_f64()
    ));
    eventually(
        "the web that is gone is drawn as gone, and votes go to east's gateway",
        SOON,
        || {
            let gone = page.texts(".node.gone .title");
            let crossing = page.texts(".edge.crossing:not(.quiet)").len();
            if gone.contains(&"web".to_owned()) && crossing > 0 {
                Ok(())
            } else {
                Err(format!("{gone:?}, {crossing} lines"))
            }
        },
    );
    page.keep_picture("failover");
    page.evaluate("location.hash = '#/service/west/emojivoto/web-svc'");
    eventually("the service's page has its charts and the reason", SOON, || {
        let (keys, rows) = (page.texts(".chart .key"), page.texts("tbody tr"));
        let is_told = rows.iter().any(|row| row.contains("Fallback"));
        if keys.len() >= 4 && is_told {
            Ok(())
        } else {
            Err(format!("{keys:?} {rows:?}"))
        }
    });
    let way = |page: &mut Page, hops: &[&str]| {
        eventually("it says what would become of a request", SOON, || {
            let ways = page.texts(".explain .ways li");
            match ways.as_slice() {
                [way] if way.contains("100 %") && hops.iter().all(|hop| way.contains(hop)) => Ok(()),
                _ => Err(format!("{ways:?} {:?}", page.texts(".explain .hint"))),
            }
        });
    };
    way(
        &mut page,
        &[
            "web-svc-east.emojivoto:80",
            "gateway of east",
            "pod web-",
            "mutual TLS",
        ],
    );
    page.evaluate("location.hash = '#/service/east/emojivoto/web-svc'");
    way(&mut page, &["web-svc.emojivoto:80", "pod web-", "mutual TLS"]);
    world.kubectl("west", "-n emojivoto scale deployment web --replicas=1");
    weighs(world, "web-svc", [true, false]);
    for view in ["topology", "services", "links", "events"] {
        page.evaluate(&format!("location.hash = '#/{view}'"));
        eventually(view, SOON, || {
            let titles = page.texts("main h1");
            if titles.is_empty() {
                Err("no title".into())
            } else {
                Ok(())
            }
        });
    }
    assert_eq!(page.complaints(), [""; 0]);
}

fn a_workload_has_a_page_with_its_past_who_it_speaks_to_and_its_pods(world: &World) {
    weighs(world, "web-svc", [true, false]);
    let mut page = Page::open(&format!("{}/#/topology", url(world)), 1280, 720);
    let way = "#/workload/west/deployment/emojivoto/web";
    let press = "[...document.querySelectorAll('.node')].find((one) => one.getAttribute('aria-label').startsWith('web in west'))\
                 ?.dispatchEvent(new MouseEvent('click', { bubbles: true }))";
    eventually("the topology leads there", SOON, || {
        if page.texts(".detail").is_empty() {
            page.evaluate(press);
        }
        let links = page.evaluate(
            "[...document.querySelectorAll('.detail a')].map((one) => one.getAttribute('href')).join(' ')",
        );
        match links.as_str() {
            Some(links) if links.split(' ').any(|link| link == way) => Ok(()),
            _ => Err(format!("{links} {:?}", page.texts(".node .title"))),
        }
    });
    page.evaluate(
        "[...document.querySelectorAll('.detail a')].find((one) => one.href.includes('#/workload/')).click()",
    );
    eventually("its charts are drawn in both directions", SOON, || {
        let keys = page.texts(".chart .key");
        let both = ["asked of it", "asked by it"];
        if keys.len() == 8 && both.iter().all(|one| keys.iter().any(|key| key.contains(one))) {
            Ok(())
        } else {
            Err(format!("{keys:?}"))
        }
    });
    let row = |page: &mut Page, table: &str, words: &[&str]| {
        eventually(table, SOON, || {
            let rows = page.texts(&format!("table.{table} tbody tr"));
            let is_it = |row: &&String| words.iter().all(|word| row.contains(word));
            rows.iter()
                .find(is_it)
                .map(drop)
                .ok_or_else(|| format!("{rows:?} lack {words:?}"))
        });
    };
    row(
        &mut page,
        "callers",
        &["vote-bot", "web-svc", " %", "default.emojivoto"],
    );
    for (service, account) in [
        ("voting-svc", "voting.emojivoto"),
        ("emoji-svc", "emoji.emojivoto"),
    ] {
        row(&mut page, "callees", &[service, account, "ms"]);
    }
    row(
        &mut page,
        "pods",
        &["web-", concat!("v", env!("CARGO_PKG_VERSION")), "expires in"],
    );
    eventually("it says what would become of a request", SOON, || {
        let ways = page.texts(".explain .ways li");
        match ways.as_slice() {
            [way] if way.contains("100 %") && way.contains("pod web-") => Ok(()),
            _ => Err(format!("{ways:?} {:?}", page.texts(".explain .hint"))),
        }
    });
    page.keep_picture("workload");
    // Its other end, in the other cluster.
    page.evaluate("location.hash = '#/workload/east/deployment/emojivoto/voting'");
    row(&mut page, "pods", &["voting-", "expires in"]);
    page.evaluate("location.hash = '#/workload/west/deployment/emojivoto/nobody'");
    eventually("what there is not is said", SOON, || {
        let said = page.texts(".empty").join(" ");
        if said.contains("west has no deployment emojivoto/nobody") {
            Ok(())
        } else {
            Err(said)
        }
    });
    assert_eq!(page.complaints(), [""; 0]);
}

/// The collector's own answer, with two hundred edges, names that are markup, and something that it may not see.
const CROWD: &str = r#"
const ask = window.fetch;
window.fetch = async (...about) => {
  const answer = await ask(...about);
  if (!String(about[0]).includes("/api/clusters")) return answer;
  const clusters = await answer.json();
  for (const { name, portrait } of clusters) {
    const [workload] = portrait.workloads, [edge] = portrait.edges;
    const id = (at) => `deployment/crowd/${name}-${at}`;
    const golden = () => ({ rps: 1 + Math.random() * 9, success: 0.9 + Math.random() / 10, p50_ms: 1, p95_ms: 2, p99_ms: 3 });
    const about = { kind: "deployment", namespace: "crowd", is_gateway: false, is_system: false, pods: 1, meshed: 1 };
    portrait.workloads = Array.from({ length: 50 }, (_, at) => ({
      ...workload, ...about, ...golden(), id: id(at),
      name: at ? `${name}-${at}` : `<img src=x onerror="window.fooled = true">${name}`,
    }));
    portrait.edges = Array.from({ length: 100 }, (_, at) => ({
      ...edge, ...golden(), from: id(Math.floor(at / 4)), to: id(25 + (Math.floor(at / 4) + (at % 4) * 6) % 25), cluster: "", service: `crowd/s-${at}`,
      is_secured: true,
    }));
    portrait.denied = [{ resource: "links", namespace: "crowd", why: "<b>forbidden</b>" }];
  }
  return new Response(JSON.stringify(clusters));
};
"#;

/// Of a core, by all processes of a browser without a graphics card, while it shows two hundred edges that move and
/// whose every figure is another with every answer. Twice what it is beside compilers.
const AFFORDABLE: f64 = 0.10;
const WATCHED: Duration = Duration::from_secs(10);

fn a_crowd_with_foul_names_that_is_partly_hidden_is_shown_at_little_cost(world: &World) {
    let url = format!("{}/#/topology", url(world));
    let mut page = Page::open_after(CROWD, &url, 1280, 720);
    let shown = eventually("the crowd is drawn", SOON, || {
        let edges = page.texts(".edge").len();
        if edges >= 200 {
            Ok(edges)
        } else {
            Err(edges.to_string())
        }
    });
    let titles = page.texts(".node .title");
    assert!(titles.iter().any(|title| title.contains("<img")), "{titles:?}");
    assert_eq!(page.evaluate("window.fooled ?? false"), false);
    let banners = page.texts(".banner");
    assert!(
        banners
            .iter()
            .any(|one| one.contains("in west, the collector may not see links")
                && one.contains("<b>forbidden</b>")),
        "{banners:?}"
    );
    page.keep_picture("crowd");
    std::thread::sleep(Duration::from_secs(2));
    let (before, began) = (page.used(), Instant::now());
    std::thread::sleep(WATCHED);
    let share = (page.used() - before).as_secs_f64() / began.elapsed().as_secs_f64();
    report(&format!(
        "{:.1} % of a core while {shown} edges are watched",
        100.0 * share
    ));
    assert!(share < AFFORDABLE, "{share}");
    assert_eq!(page.complaints(), [""; 0]);
}

fn a_cluster_that_is_cut_off_stays_on_the_page_with_its_age(world: &World) {
    let mut page = Page::open(&format!("{}/#/topology", url(world)), 1280, 720);
    let boxes = |page: &mut Page, well: &str, cut: &[&str]| {
        eventually("the boxes are drawn as they are", SOON, || {
            let (found_well, found_cut) = (page.texts(".box:not(.cut) .cluster"), page.texts(".box.cut"));
            let is_it = found_well.join(" ") == well
                && found_cut.is_empty() == cut.is_empty()
                && cut.iter().all(|words| found_cut.concat().contains(words));
            if is_it {
                Ok(())
            } else {
                Err(format!("{found_well:?} {found_cut:?}"))
            }
        });
    };
    boxes(&mut page, "west east", &[]);
    world.sandbox("cut west east");
    let shown = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        boxes(&mut page, "west", &["east", "cut off, last seen", "ago"]);
        page.texts(".node .title")
    }));
    // Whatever came out: the next test needs the link.
    world.sandbox("heal west east");
    let shown = shown.unwrap_or_else(|why| std::panic::resume_unwind(why));
    let votings = shown.iter().filter(|title| *title == "voting").count();
    assert_eq!(votings, 2, "what was known of east is still there: {shown:?}");
    boxes(&mut page, "west east", &[]);
    appears(world, "web-svc-east");
}

fn only_pages_of_this_machine_may_ask_the_dashboard(world: &World) {
    let url = format!("{}/api/clusters", url(world));
    let status = |header: &str| {
        let mut curl = std::process::Command::new("curl");
        curl.args([
            "-s",
            "-o",
            "/dev/null",
            "--noproxy",
            "*",
            "-w",
            "%{http_code}",
            "-H",
            header,
            &url,
        ]);
        host::run(curl, "", COMMAND_DEADLINE).out
    };
    assert_eq!(status("accept: application/json"), "200");
    assert_eq!(status("host: attacker.example"), "403");
    assert_eq!(status("origin: http://attacker.example"), "403");
}

/// East's collector is exported to west, where a pod in the mesh tries it, and a pod outside.
fn of_another_cluster_nobody_but_collectors_may_ask_the_collector(world: &World) {
    world.citizen("west", "curious");
    let portrait = "http://metrics-api-east.linkerd-viz:8086/api/portrait";
    assert_eq!(world.curl("west", "curious", portrait).0, 403);
    // Whatever it claims to be.
    let script = format!(
        "curl -s -o /dev/null --noproxy '*' --max-time 5 -w '%{{http_code}}' \
         -H 'forwarded: for=prometheus.linkerd-viz.serviceaccount.identity.linkerd.cluster.local' '{portrait}'"
    );
    let said = world.shell("west", "curious", &script);
    assert_eq!(said.out.trim(), "403", "{said:?}");
    world.remove("west", "curious");
}
