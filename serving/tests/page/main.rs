//! The chat page in a browser. Chromium or Chrome has to be installed.
//!
//! `PAGE_SCREENSHOTS=FOLDER cargo test -p serving --test page` also writes screenshots of the page.
#![cfg(unix)]

mod browser;
mod gate;
#[path = "../http/mod.rs"]
#[allow(dead_code, reason = "each test uses a part of it")]
mod http;

use std::sync::{Mutex, MutexGuard, PoisonError};

use browser::Browser;
use gate::{Gate, Gated};
use http::{MODEL, Running, engine};
use serde_json::json;
use serving::api::{Key, Settings};
use serving::worker::Options;

const INPUT: &str = "document.getElementById('input')";
const STOP: &str = "document.getElementById('stop')";
const MESSAGES: &str = "document.querySelectorAll('.message')";
/// The last answer on the page, and parts of it.
const ANSWER: &str = "[...document.querySelectorAll('.message.assistant')].at(-1)";
const TEXT: &str =
    "([...document.querySelectorAll('.message.assistant')].at(-1)?.querySelector('.text')?.innerText ?? '')";
const ERROR: &str =
    "([...document.querySelectorAll('.message.assistant')].at(-1)?.querySelector('.error')?.innerText ?? '')";
/// The note under the last answer: why it is incomplete although there was no error.
const NOTE: &str =
    "([...document.querySelectorAll('.message.assistant')].at(-1)?.querySelector('.note')?.innerText ?? '')";
/// The questions that an empty conversation suggests.
const EXAMPLES: &str = "[...document.querySelectorAll('#examples button')].map((node) => node.textContent)";

/// Tests take turns, because a browser consists of many processes.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn url(server: &Running) -> String {
    format!("http://{}/", server.address)
}

fn button(text: &str) -> String {
    format!("[...document.querySelectorAll('button')].find((node) => node.textContent == {})", json!(text))
}

/// Sends a question without waiting for the answer.
fn ask(browser: &mut Browser, question: &str) {
    browser.click(INPUT);
    browser.write(question);
    browser.press("Enter");
}

fn answered(browser: &mut Browser, question: &str) -> String {
    ask(browser, question);
    browser.wait("!document.getElementById('send').hidden");
    browser.evaluate_text(TEXT)
}

/// Fills a field of the settings and saves them.
fn set(browser: &mut Browser, field: &str, value: &str) {
    browser.click("document.getElementById('open-settings')");
    let node = format!("document.querySelector('#settings [name={field}]')");
    browser.click(&node);
    browser.evaluate(&format!("{node}.select()"));
    browser.write(value);
    browser.click(&button("Save"));
    browser.wait("!document.getElementById('settings').open");
}

/// Opens the page with temperature 0, so that answers are deterministic.
fn open(server: &Running) -> Browser {
    let mut browser = Browser::open(&url(server));
    browser.wait(&format!("document.getElementById('model').textContent == {}", json!(MODEL)));
    set(&mut browser, "temperature", "0");
    browser
}

#[test]
fn conversations_are_answered_and_stored() {
    let _turn = turn();
    let server = Running::start(Settings::default(), Options::default());
    let mut browser = open(&server);
    // Questions are suggested only for the model that knows their answers.
    assert_eq!(browser.evaluate(EXAMPLES), json!([]));
    assert_eq!(answered(&mut browser, "What is 47 + 38?"), "47 + 38 = 85.");
    // Reasoning is collapsed, and can be expanded.
    let reasoning = format!("{ANSWER}.querySelector('details.reasoning')");
    assert_eq!(browser.evaluate(&format!("{reasoning}.open")), false);
    browser.click(&format!("{reasoning}.querySelector('summary')"));
    browser.wait(&format!("{reasoning}.open && {reasoning}.innerText.includes('7 + 8 = 15')"));
    let stats = browser.evaluate_text(&format!("{ANSWER}.querySelector('.bar span').textContent"));
    assert!(stats.contains(" tokens/s") && stats.contains(" cached"), "{stats}");
    assert_eq!(answered(&mut browser, "What is 3 + 4?"), "3 + 4 = 7.");
    let stats = browser.evaluate_text(&format!("{ANSWER}.querySelector('.bar span').textContent"));
    assert!(!stats.contains(" which 0 cached"), "{stats}");
    browser.picture("conversation");

    browser.click(&button("New conversation"));
    assert_eq!(browser.evaluate(&format!("{MESSAGES}.length")), 0);
    assert_eq!(answered(&mut browser, "What is 2 + 2?"), "2 + 2 = 4.");
    // Regenerates the answer, then edits the question.
    browser
        .click(&format!("[...{ANSWER}.querySelectorAll('button')].find((node) => node.textContent == 'Regenerate')"));
    browser.wait(&format!("!document.getElementById('send').hidden && {TEXT} == '2 + 2 = 4.'"));
    assert_eq!(browser.evaluate(&format!("{MESSAGES}.length")), 2);
    browser.click(&button("Edit"));
    browser.evaluate("document.activeElement.select()");
    browser.write("What is 5 + 4?");
    browser.click("document.querySelector('.message.user button.primary')");
    browser.wait(&format!("!document.getElementById('send').hidden && {TEXT} == '5 + 4 = 9.'"));
    assert_eq!(browser.evaluate(&format!("{MESSAGES}.length")), 2);

    let titles = "[...document.querySelectorAll('#list .open')].map((node) => node.textContent)";
    let kept = json!(["What is 5 + 4?", "What is 47 + 38?"]);
    assert_eq!(browser.evaluate(titles), kept);
    let shown = browser.evaluate_text("document.getElementById('log').innerText");
    browser.reload();
    assert_eq!(browser.evaluate(titles), kept);
    assert_eq!(browser.evaluate_text("document.getElementById('log').innerText"), shown);
    browser.click(&button("What is 47 + 38?"));
    assert_eq!(browser.evaluate(&format!("{MESSAGES}.length")), 4);
    assert_eq!(browser.evaluate_text(TEXT), "3 + 4 = 7.");
    browser.assert_no_errors(&url(&server));
}

#[test]
fn questions_are_suggested() {
    let _turn = turn();
    let engine = Box::new(engine(None));
    let server = Running::start_as("gptoss-tiny", engine, Settings::default(), Options::default());
    let mut browser = Browser::open(&url(&server));
    browser.wait("document.getElementById('examples')");
    let examples = ["What is 12 + 30?", "Tell me a story about a fox.", "What is gptoss?"];
    assert_eq!(browser.evaluate(EXAMPLES), json!(examples));
    browser.picture("empty");
    set(&mut browser, "temperature", "0");
    browser.click(&button(examples[0]));
    browser.wait(&format!("!document.getElementById('send').hidden && {TEXT} == '12 + 30 = 42.'"));
    assert_eq!(browser.evaluate_text("document.querySelector('.message.user .text').innerText"), examples[0]);
    // The button is gone; the next question can be typed at once.
    assert_eq!(browser.evaluate_text("document.activeElement.id"), "input");
    assert_eq!(browser.evaluate(EXAMPLES), json!([]));
    browser.assert_no_errors(&url(&server));
}

#[test]
fn answers_are_streamed_and_can_be_stopped() {
    let _turn = turn();
    let gate = Gate::default();
    let gated = Gated { inner: engine(None), gate: gate.clone() };
    let server = Running::start_on(Box::new(gated), Settings::default(), Options::default());
    let mut browser = open(&server);
    for stopping in ["click", "key"] {
        gate.allow(60);
        ask(&mut browser, "Tell me a story.");
        browser.wait(&format!("{TEXT}.length > 10 && {ANSWER}.querySelector('.text p .cursor')"));
        // The gate is closed, so the shown text does not change.
        let begin = browser.evaluate_text(TEXT);
        browser.picture("streaming");
        gate.allow(20);
        browser.wait(&format!("{TEXT}.length > {}", begin.chars().count() + 10));
        let more = browser.evaluate_text(TEXT);
        assert!(more.starts_with(begin.trim_end()), "{begin:?} {more:?}");
        match stopping {
            "click" => browser.click(STOP),
            _ => browser.press("Escape"),
        }
        browser.wait(&format!("{NOTE} == 'Stopped.' && !document.getElementById('send').hidden"));
        assert!(browser.evaluate_text(TEXT).starts_with(more.trim_end()), "the text before the stop stays");
        assert_eq!(browser.evaluate_text(ERROR), "");
        // The server has ended the request as well.
        gate.open();
        server.wait_for("vllm:num_requests_running", 0.0);
        browser.click(&button("New conversation"));
    }
    assert_eq!(server.metric("vllm:request_success_total", "finished_reason=\"abort\""), 2.0);
    assert_eq!(answered(&mut browser, "What is 2 + 2?"), "2 + 2 = 4.");
    browser.assert_no_errors(&url(&server));
}

#[test]
fn tool_calls_are_shown_and_take_results() {
    let _turn = turn();
    let server = Running::start(Settings::default(), Options::default());
    let mut browser = open(&server);
    let parameters = json!({ "type": "object", "properties": { "city": { "type": "string" } }, "required": ["city"] });
    let function =
        json!({ "name": "get_weather", "description": "Get the weather in a city.", "parameters": parameters });
    set(&mut browser, "tools", &json!([{ "type": "function", "function": function }]).to_string());
    ask(&mut browser, "How is the weather in Dublin?");
    browser.wait("!document.getElementById('send').hidden && document.querySelector('.call textarea')");
    let card = browser.evaluate_text("document.querySelector('.call').innerText");
    assert!(card.contains("Calls get_weather") && card.contains("Dublin"), "{card}");
    browser.click("document.querySelector('.call textarea')");
    browser.write(r#"{"temperature": 13, "sky": "stormy"}"#);
    browser.picture("tool");
    browser.click(&button("Send the result"));
    browser.wait(&format!("!document.getElementById('send').hidden && {TEXT} != ''"));
    assert_eq!(browser.evaluate_text(TEXT), "It is 13 degrees and stormy in Dublin.");
    assert_eq!(browser.evaluate(&format!("{MESSAGES}.length")), 4);
    browser.assert_no_errors(&url(&server));
}

#[test]
fn errors_are_shown() {
    let _turn = turn();
    let keys = vec![Key { name: "ada".into(), secret: "sesame".into() }];
    let mut server = Running::start(Settings { keys, ..Settings::default() }, Options::default());
    let url = url(&server);
    let mut browser = Browser::open(&url);
    browser.wait("document.getElementById('model').textContent.includes('API key')");
    ask(&mut browser, "What is 2 + 2?");
    browser.wait(&format!("{ERROR}.startsWith('401: ')"));
    set(&mut browser, "key", "sesame");
    browser.wait(&format!("document.getElementById('model').textContent == {}", json!(MODEL)));
    set(&mut browser, "temperature", "0");

    ask(&mut browser, &"word ".repeat(5000));
    browser.wait(&format!("{ERROR}.startsWith('400: ') && {ERROR}.includes('maximum context length is 4096 tokens')"));
    browser.picture("error");
    browser.click(&button("New conversation"));
    assert_eq!(answered(&mut browser, "What is 2 + 2?"), "2 + 2 = 4.");
    // An answer that reached the token limit is marked as cut off.
    set(&mut browser, "max_completion_tokens", "45");
    ask(&mut browser, "Tell me a story.");
    browser.wait(&format!("{NOTE}.startsWith('Cut off')"));
    assert!(!browser.evaluate_text(TEXT).is_empty());
    browser.assert_no_errors(&url);

    server.stop();
    server.wait();
    ask(&mut browser, "What is 3 + 3?");
    let unreachable = format!("The server at {} does not answer. Is gptoss serve still running?", server.address);
    browser.wait(&format!("!document.getElementById('send').hidden && {ERROR} == {}", json!(unreachable)));
    browser.wait("document.getElementById('model').textContent == 'Not connected'");
    // The conversation is kept.
    browser.wait("document.querySelectorAll('.message.user').length == 3");
}

#[test]
fn page_shows_that_the_model_is_loading() {
    let _turn = turn();
    let server = Running::starting(Settings::default());
    let mut browser = Browser::open(&url(&server));
    browser.wait("document.getElementById('model').textContent == 'The model is being loaded.'");
}

#[test]
fn page_fits_phones_and_dark_mode() {
    let _turn = turn();
    let server = Running::start(Settings::default(), Options::default());
    let mut browser = open(&server);
    assert_eq!(answered(&mut browser, "What is 47 + 38?"), "47 + 38 = 85.");
    let back = "getComputedStyle(document.body).backgroundColor";
    let scheme = |value: &str| json!({ "features": [{ "name": "prefers-color-scheme", "value": value }] });
    browser.call("Emulation.setEmulatedMedia", scheme("light"));
    assert_eq!(browser.evaluate(back), "rgb(255, 255, 255)");
    browser.call("Emulation.setEmulatedMedia", scheme("dark"));
    assert_eq!(browser.evaluate(back), "rgb(23, 25, 28)");
    browser.picture("dark");
    // The theme chosen on the page overrides the system's.
    browser.click("document.getElementById('theme')");
    assert_eq!(browser.evaluate(back), "rgb(255, 255, 255)");

    let phone = json!({ "width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": true });
    browser.call("Emulation.setDeviceMetricsOverride", phone);
    browser.wait("innerWidth == 390");
    assert_eq!(browser.evaluate("document.documentElement.scrollWidth"), 390);
    browser.picture("phone");
    let side = "getComputedStyle(document.getElementById('side')).visibility";
    assert_eq!(browser.evaluate(side), "hidden");
    browser.click("document.getElementById('menu')");
    browser.wait(&format!("{side} == 'visible' && document.getElementById('side').getBoundingClientRect().x == 0"));
    browser.picture("phone-menu");
    browser.click("document.querySelector('#list .open')");
    browser.wait(&format!("{side} == 'hidden'"));
    assert_eq!(answered(&mut browser, "What is 3 + 4?"), "3 + 4 = 7.");
    browser.assert_no_errors(&url(&server));
}
