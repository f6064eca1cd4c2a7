//! A browser without a window, driven over its own protocol (DevTools), to look at a page as people would.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use crate::demo::report;

/// Anything that the browser is asked.
const DEADLINE: Duration = Duration::from_secs(20);

/// A page in a browser of its own, which ends with the value.
pub(crate) struct Page {
    runtime: tokio::runtime::Runtime,
    socket: WebSocketStream<TcpStream>,
    session: String,
    asked: u64,
    /// What the page complained of: exceptions, and whatever the console shows as an error.
    complaints: Vec<String>,
    browser: Child,
    _profile: tempfile::TempDir,
}

impl Page {
    pub(crate) fn open(url: &str, width: u32, height: u32) -> Self {
        Self::open_after("", url, width, height)
    }

    /// A page before which a script has run, in whose world it finds itself.
    pub(crate) fn open_after(script: &str, url: &str, width: u32, height: u32) -> Self {
        let profile = tempfile::tempdir().expect("a directory");
        let mut browser = Command::new("chromium")
            // Root has no sandbox, and the page is ours.
            .args([
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--no-proxy-server",
            ])
            .args([
                "--disable-dev-shm-usage",
                "--no-first-run",
                "--remote-debugging-port=0",
            ])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .env("HOME", profile.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("chromium starts");
        let said = BufReader::new(browser.stderr.take().expect("it is piped"));
        let mut lines = said.lines().map_while(Result::ok);
        let endpoint = lines
            .find_map(|line| line.strip_prefix("DevTools listening on ").map(str::to_owned))
            .expect("chromium says where it listens");
        // It must not wait for somebody who reads its complaints.
        std::thread::spawn(move || lines.for_each(drop));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let socket = runtime.block_on(async {
            let (host, _) = endpoint
                .strip_prefix("ws://")
                .and_then(|rest| rest.split_once('/'))
                .expect("a URL");
            let stream = TcpStream::connect(host).await.expect("chromium listens");
            let (socket, _) = tokio_tungstenite::client_async(&endpoint, stream)
                .await
                .expect("chromium speaks DevTools");
            socket
        });
        let mut page = Self {
            runtime,
            socket,
            session: String::new(),
            asked: 0,
            complaints: Vec::new(),
            browser,
            _profile: profile,
        };
        let target = page.call("Target.createTarget", &json!({"url": "about:blank"}));
        let attached = json!({"targetId": target["targetId"], "flatten": true});
        let session = page.call("Target.attachToTarget", &attached);
        page.session = session["sessionId"].as_str().expect("a session").to_owned();
        for domain in ["Runtime.enable", "Log.enable", "Page.enable"] {
            page.call(domain, &json!({}));
        }
        let metrics =
            json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600});
        page.call("Emulation.setDeviceMetricsOverride", &metrics);
        page.call(
            "Page.addScriptToEvaluateOnNewDocument",
            &json!({"source": script}),
        );
        page.call("Page.navigate", &json!({"url": url}));
        page
    }

    /// What an expression is in the page.
    pub(crate) fn evaluate(&mut self, expression: &str) -> Value {
        let asked = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let answer = self.call("Runtime.evaluate", &asked);
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    /// All text that is shown by what a selector finds.
    pub(crate) fn texts(&mut self, selector: &str) -> Vec<String> {
        let found = self.evaluate(&format!(
            "[...document.querySelectorAll({selector:?})].map((one) => one.textContent.replace(/\\s+/g, ' ').trim())"
        ));
        let texts = found.as_array().into_iter().flatten();
        texts.filter_map(Value::as_str).map(str::to_owned).collect()
    }

    /// Keeps what is seen, for people: in `target/tmp`.
    pub(crate) fn keep_picture(&mut self, name: &str) {
        let taken = self.call("Page.captureScreenshot", &json!({"format": "png"}));
        let picture = STANDARD.decode(taken["data"].as_str().unwrap_or_default());
        let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.png"));
        std::fs::write(&file, picture.expect("a picture")).expect("it is kept");
        report(&format!("looks like {}", file.display()));
    }

    /// What all processes of the browser have used of the machine's cores.
    pub(crate) fn used(&self) -> Duration {
        let mut processes = BTreeMap::new();
        for entry in std::fs::read_dir("/proc").expect("Linux has it").flatten() {
            let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            let (Some((pid, _)), Some((_, rest))) = (stat.split_once(' '), stat.rsplit_once(") ")) else {
                continue;
            };
            let numbers: Vec<u64> = rest.split(' ').map(|word| word.parse().unwrap_or(0)).collect();
            if let (Ok(pid), [_, parent, ..]) = (pid.parse::<u64>(), &*numbers) {
                // Of the process, in user mode and in the kernel: proc_pid_stat(5), fields 14 and 15.
                processes.insert(pid, (*parent, numbers[11] + numbers[12]));
            }
        }
        let mut family = vec![u64::from(self.browser.id())];
        let mut ticks = 0;
        while let Some(one) = family.pop() {
            ticks += processes.get(&one).map_or(0, |(_, ticks)| *ticks);
            let children = processes.iter().filter(|(_, (parent, _))| *parent == one);
            family.extend(children.map(|(pid, _)| *pid));
        }
        // A hundred to the second, on every machine that runs Linux for people.
        Duration::from_millis(10 * ticks)
    }

    pub(crate) fn complaints(&self) -> &[String] {
        &self.complaints
    }

    fn call(&mut self, method: &str, params: &Value) -> Value {
        self.asked += 1;
        let id = self.asked;
        let mut message = json!({"id": id, "method": method, "params": params});
        if !self.session.is_empty() {
            message["sessionId"] = self.session.clone().into();
        }
        let (socket, complaints) = (&mut self.socket, &mut self.complaints);
        let asking = async {
            let sent = socket.send(Message::text(message.to_string())).await;
            sent.expect("chromium listens");
            loop {
                let heard = socket.next().await.expect("chromium runs").expect("it speaks");
                let Ok(heard) = serde_json::from_str::<Value>(heard.to_text().unwrap_or_default()) else {
                    continue;
                };
                if heard["id"] == id {
                    return heard;
                }
                complaints.extend(complaint(&heard));
            }
        };
        let answer = self
            .runtime
            .block_on(async { tokio::time::timeout(DEADLINE, asking).await });
        let answer = answer.unwrap_or_else(|_| panic!("chromium does not answer {method}"));
        assert!(answer["error"].is_null(), "{method}: {answer}");
        answer["result"].clone()
    }
}

fn complaint(event: &Value) -> Option<String> {
    let about = &event["params"];
    let kinds = BTreeMap::from([
        ("Runtime.exceptionThrown", true),
        ("Runtime.consoleAPICalled", about["type"] == "error"),
        ("Log.entryAdded", about["entry"]["level"] == "error"),
    ]);
    let is_complaint = kinds.get(event["method"].as_str()?)?;
    is_complaint.then(|| about.to_string())
}

impl Drop for Page {
    fn drop(&mut self) {
        let _ = self.browser.kill();
        let _ = self.browser.wait();
    }
}
