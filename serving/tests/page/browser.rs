//! Controls a headless Chromium or Chrome with the DevTools protocol over a pipe: presses keys, clicks, and evaluates JavaScript.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

/// How long to wait for an answer of the browser, or for a condition of the page.
const TIMEOUT: Duration = Duration::from_secs(60);

pub struct Browser {
    child: Child,
    input: ChildStdin,
    messages: Receiver<Value>,
    /// Calls so far.
    calls: u64,
    /// The DevTools session of the page; null until it is attached.
    session: Value,
    /// Errors in the page's console, and uncaught exceptions of its scripts.
    complaints: Vec<String>,
    _folder: TempDir,
}

impl Browser {
    /// A browser that shows a page.
    pub fn open(url: &str) -> Browser {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking \
                     --disable-component-update --disable-sync --remote-debugging-pipe --window-size=1200,900";
        // The browser reads commands from file descriptor 3 and answers on 4.
        let mut command = Command::new("sh");
        command.args(["-c", "exec \"$0\" \"$@\" 3<&0 4>&1 </dev/null >/dev/null"]).arg(program());
        command.args(flags.split_whitespace()).arg(format!("--user-data-dir={}", folder.path().join("user").display()));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("the browser starts");
        let input = child.stdin.take().expect("piped");
        let mut output = BufReader::new(child.stdout.take().expect("piped"));
        let (sender, messages) = channel();
        thread::spawn(move || {
            loop {
                let mut message = Vec::new();
                if output.read_until(0, &mut message).is_err() || message.pop() != Some(0) {
                    return;
                }
                let message = serde_json::from_slice(&message).expect("JSON");
                if sender.send(message).is_err() {
                    return;
                }
            }
        });
        let (session, complaints) = (Value::Null, Vec::new());
        let mut browser = Browser { child, input, messages, calls: 0, session, complaints, _folder: folder };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" }))["targetId"].clone();
        let attached = browser.call("Target.attachToTarget", json!({ "targetId": target, "flatten": true }));
        browser.session = attached["sessionId"].clone();
        for domain in ["Page", "Runtime", "Log"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        browser.call("Page.navigate", json!({ "url": url }));
        browser.wait("document.readyState == 'complete' && document.getElementById('model')");
        browser
    }

    pub fn reload(&mut self) {
        self.evaluate("window.isOld = true");
        self.call("Page.reload", json!({}));
        self.wait("!window.isOld && document.readyState == 'complete' && document.getElementById('model')");
    }

    /// Sends a command and waits for its result.
    pub fn call(&mut self, method: &str, parameters: Value) -> Value {
        self.calls += 1;
        let mut message = json!({ "id": self.calls, "method": method, "params": parameters });
        if !self.session.is_null() {
            message["sessionId"] = self.session.clone();
        }
        self.input.write_all(format!("{message}\0").as_bytes()).expect("the browser listens");
        loop {
            let mut answer = self.messages.recv_timeout(TIMEOUT).unwrap_or_else(|_| panic!("no answer to {method}"));
            if answer["id"] == self.calls {
                assert!(answer["error"].is_null(), "{method}: {}", answer["error"]);
                return answer["result"].take();
            }
            self.handle_event(&answer);
        }
    }

    /// Records an event if it is an error of the page.
    fn handle_event(&mut self, event: &Value) {
        let entry = &event["params"]["entry"];
        let is_complaint = match event["method"].as_str() {
            Some("Runtime.exceptionThrown") => true,
            // HTTP errors are expected: the page shows them itself.
            Some("Log.entryAdded") => entry["level"] == "error" && entry["source"] != "network",
            Some("Runtime.consoleAPICalled") => event["params"]["type"] == "error",
            _ => false,
        };
        if is_complaint {
            self.complaints.push(event.to_string());
        }
    }

    /// Evaluates a JavaScript expression in the page and returns its value.
    pub fn evaluate(&mut self, expression: &str) -> Value {
        let parameters = json!({ "expression": expression, "awaitPromise": true, "returnByValue": true });
        let mut seen = self.call("Runtime.evaluate", parameters);
        assert!(seen["exceptionDetails"].is_null(), "{expression}: {}", seen["exceptionDetails"]);
        seen["result"]["value"].take()
    }

    pub fn evaluate_text(&mut self, expression: &str) -> String {
        self.evaluate(expression).as_str().unwrap_or_else(|| panic!("{expression} is not a string")).to_owned()
    }

    /// Waits until an expression is true in JavaScript's sense.
    pub fn wait(&mut self, expression: &str) {
        let until = Instant::now() + TIMEOUT;
        while self.evaluate(&format!("!!({expression})")) != true {
            if Instant::now() > until {
                let shown = self.evaluate("document.body?.innerText");
                panic!("{expression} did not become true; the page shows: {shown}; errors: {:?}", self.complaints);
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Clicks the center of the node that a JavaScript expression gives.
    pub fn click(&mut self, node: &str) {
        let middle = format!(
            "(() => {{ const node = {node}; node.scrollIntoView({{ block: 'center' }}); const at = node.getBoundingClientRect(); \
             return [at.x + at.width / 2, at.y + at.height / 2]; }})()"
        );
        let middle = self.evaluate(&middle);
        for kind in ["mousePressed", "mouseReleased"] {
            let (x, y) = (&middle[0], &middle[1]);
            let parameters = json!({ "type": kind, "x": x, "y": y, "button": "left", "clickCount": 1 });
            self.call("Input.dispatchMouseEvent", parameters);
        }
    }

    /// Types where the focus is.
    pub fn write(&mut self, text: &str) {
        self.call("Input.insertText", json!({ "text": text }));
    }

    /// Presses a key such as `Enter` or `Escape`.
    pub fn press(&mut self, key: &str) {
        let (code, text) = match key {
            "Enter" => (13, Some("\r")),
            "Escape" => (27, None),
            other => panic!("no key code is defined for {other}"),
        };
        for kind in ["keyDown", "keyUp"] {
            let mut parameters = json!({ "type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code });
            if let Some(text) = text.filter(|_| kind == "keyDown") {
                parameters["text"] = text.into();
            }
            self.call("Input.dispatchKeyEvent", parameters);
        }
    }

    /// Writes a screenshot to the folder in the environment variable `PAGE_SCREENSHOTS`, if it is set.
    pub fn picture(&mut self, name: &str) {
        let Some(folder) = std::env::var_os("PAGE_SCREENSHOTS").map(PathBuf::from) else { return };
        let picture = self.call("Page.captureScreenshot", json!({ "format": "png" }));
        let file = folder.join(format!("{name}.png"));
        std::fs::write(&file, decoded(picture["data"].as_str().expect("data")))
            .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    }

    /// Asserts that there were no errors, and that all resources came from `url` or `data:` URLs.
    pub fn assert_no_errors(&mut self, url: &str) {
        let names = self.evaluate("performance.getEntriesByType('resource').map((entry) => entry.name)");
        let foreign =
            |name: &&Value| !name.as_str().is_some_and(|name| name.starts_with(url) || name.starts_with("data:"));
        let foreign: Vec<&Value> = names.as_array().expect("names").iter().filter(foreign).collect();
        assert!(foreign.is_empty() && self.complaints.is_empty(), "{foreign:?} {:?}", self.complaints);
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill().and_then(|()| self.child.wait());
    }
}

fn program() -> PathBuf {
    let folders: Vec<PathBuf> = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect();
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let found =
        names.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name))).find(|path| path.is_file());
    found.expect("a browser on the PATH: install `chromium` (Debian: `apt-get install chromium`) or `google-chrome`")
}

/// Base64 to bytes.
fn decoded(text: &str) -> Vec<u8> {
    let value = |byte: u8| match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let digits: Vec<u8> = text.bytes().filter(|&byte| byte != b'=').map(value).collect();
    let bytes = digits.chunks(4).flat_map(|digits| {
        let bits = digits.iter().fold(0, |bits, &digit| (bits << 6) | u32::from(digit)) << (6 * (4 - digits.len()));
        bits.to_be_bytes()[1..digits.len()].to_vec()
    });
    bytes.collect()
}
