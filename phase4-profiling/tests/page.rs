//! Opens the HTML report in a browser. Chromium or Chrome has to be installed.

mod sample;

use std::path::PathBuf;
use std::process::Command;

use phase4_profiling::report::html;
use phase4_profiling::{Profile, TimedSpan};

/// A page as the browser rendered it.
struct Opened {
    dom: String,
    /// Messages of the page's console.
    console: Vec<String>,
}

impl Opened {
    fn bars(&self) -> usize {
        self.dom.matches("<path class=\"span\"").count()
    }

    fn is_sound(&self) -> bool {
        let html = &self.dom[..self.dom.find("<head").expect("a document")];
        self.console.is_empty() && html.contains("data-ready=\"true\"") && !html.contains("data-errors")
    }
}

fn browser() -> PathBuf {
    let folders: Vec<PathBuf> = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect();
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let found =
        names.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name))).find(|path| path.is_file());
    found.expect("a browser on the PATH: install `chromium` (Debian: `apt-get install chromium`) or `google-chrome`")
}

fn open(page: &str) -> Opened {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("page.html");
    std::fs::write(&path, page).expect("written");
    let flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking \
                 --disable-component-update --disable-sync --enable-logging=stderr --v=0 --window-size=1300,1000 --dump-dom";
    let mut command = Command::new(browser());
    command.args(flags.split_whitespace()).arg(format!("--user-data-dir={}", folder.path().join("user").display()));
    let output = command.arg(format!("file://{}", path.display())).output().expect("the browser runs");
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{log}");
    let console = log.lines().filter(|line| line.contains("CONSOLE")).map(String::from).collect();
    Opened { dom: String::from_utf8(output.stdout).expect("UTF-8"), console }
}

fn spans(profile: &Profile) -> usize {
    profile.steps[0].spans.len()
}

#[test]
fn page_draws_a_bar_for_every_span() {
    for profile in [sample::decode(1024, 1), sample::gpu(1024, 3), sample::prefill(128)] {
        let page = open(&html(&profile));
        assert!(page.is_sound(), "{:?}\n{}", page.console, page.dom);
        assert!(
            profile.steps.iter().all(|step| step.spans.len() == spans(&profile)),
            "a step of a sample has another number of spans"
        );
        assert_eq!(page.bars(), spans(&profile));
        let dots = page.dom.matches("<circle class=\"dot\"").count();
        assert_eq!(dots, profile.rows().iter().filter(|row| row.bytes > 0 && row.operations > 0).count());
        let lines = page.dom.matches("<tr><td class=\"long\">").count();
        assert_eq!(lines, profile.rows().len());
    }
}

#[test]
fn page_draws_unusual_profiles() {
    let evil = "</script><script>document.documentElement.dataset.errors = 'ran'</script><!--<script>";
    let mut odd = sample::gpu(0, 1);
    odd.model = evil.into();
    odd.machine = "<img src=x onerror=\"document.documentElement.dataset.errors = 1\">".into();
    for (index, span) in odd.steps[0].spans.iter_mut().enumerate() {
        match index % 5 {
            0 => span.duration = 0.0,
            1 => span.name = evil.into(),
            2 => span.name = "__proto__".into(),
            3 => (span.start, span.layer) = (0.0, None),
            _ => {}
        }
    }
    let mut nothing = sample::decode(0, 1);
    nothing.ceiling.read_bandwidth = 0.0;
    nothing.steps[0].wall = 0.0;
    nothing.steps[0].spans.clear();
    let mut waiting = nothing.clone();
    waiting.steps[0].spans.push(TimedSpan::overhead("launch", 0.0, 0.0));
    let mut never = nothing.clone();
    never.steps.clear();
    for (profile, bars) in [(&odd, spans(&odd)), (&nothing, 0), (&waiting, 1), (&never, 0)] {
        let page = open(&html(profile));
        assert!(page.is_sound(), "{:?}\n{}", page.console, page.dom);
        assert_eq!(page.bars(), bars);
    }
}

#[test]
fn broken_page_script_fails_the_check() {
    let page = open(&html(&sample::decode(0, 1)).replace("\"rows\":[", "\"rows\":null,\"lines\":["));
    assert!(!page.is_sound(), "{}", page.dom);
}
