//! `gptoss serve --cache-dir`: conversations are kept when the server stops or crashes, and damaged files never change an answer.
#![cfg(unix)]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use phase1_loading::{SavedSession, SessionHeader};
use serde_json::{Value, json};

/// Room for about five short conversations: 40 pages of 64 positions, in f32.
const KV_MEMORY: &str = "7680KiB";
const TIMEOUT: Duration = Duration::from_secs(120);

/// A server that is stopped at the end of its test.
struct Server {
    child: Child,
    address: String,
    log: Arc<Mutex<Vec<String>>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The command that starts a server with the arguments `rest`. The date is fixed, because prompts contain it.
fn command(rest: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gptoss"));
    command.args(["serve", "--device", "cpu", "--exact", "--port", "0", "--date", "2026-01-01"]);
    command.args(["--kv-memory", KV_MEMORY]).args(rest).stderr(Stdio::piped());
    command
}

impl Server {
    /// Starts a server and waits until it is ready.
    fn start(rest: &[&str]) -> Server {
        let mut child = command(rest).spawn().expect("starts");
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines().map_while(Result::ok);
        let log = Arc::new(Mutex::new(Vec::new()));
        let mut address = None;
        for line in lines.by_ref() {
            address = line.strip_prefix("listening on http://").map(str::to_owned).or(address);
            let is_ready = line.starts_with("serving ");
            log.lock().expect("not poisoned").push(line);
            if is_ready {
                break;
            }
        }
        let of_thread = log.clone();
        thread::spawn(move || lines.for_each(|line| of_thread.lock().expect("not poisoned").push(line)));
        Server { child, address: address.expect("it listens"), log }
    }

    fn on(folder: &Path) -> Server {
        Server::start(&["--cache-dir", folder.to_str().expect("UTF-8")])
    }

    /// Sends SIGKILL.
    fn kill(&mut self) {
        let _ = self.child.kill().and_then(|()| self.child.wait());
    }

    /// Sends SIGTERM, as `systemctl stop` does.
    fn stop(mut self) {
        let signalled = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().expect("kill");
        assert!(signalled.success());
        assert_eq!(self.child.wait().expect("it ends").code(), Some(0), "{:?}", self.log);
    }

    fn log(&self) -> Vec<String> {
        self.log.lock().expect("not poisoned").clone()
    }

    /// The body of an answer; `None` if the server is gone or the status is not 200.
    fn send(&self, method: &str, path: &str, body: &str) -> Option<String> {
        let mut stream = TcpStream::connect(&self.address).ok()?;
        stream.set_read_timeout(Some(TIMEOUT)).ok()?;
        let (address, length) = (&self.address, body.len());
        let head = format!("host: {address}\r\nconnection: close\r\ncontent-length: {length}");
        write!(stream, "{method} {path} HTTP/1.1\r\n{head}\r\n\r\n{body}").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        head.starts_with("HTTP/1.1 200").then(|| body.to_owned())
    }

    /// A turn of a chat; `None` as in [`Server::send`].
    fn try_ask(&self, messages: &[Value]) -> Option<Answer> {
        let body = json!({ "model": "gptoss-tiny", "messages": messages, "temperature": 0, "max_tokens": 120 });
        let answer: Value =
            serde_json::from_str(&self.send("POST", "/v1/chat/completions", &body.to_string())?).ok()?;
        let usage = |name: &str| answer["usage"].pointer(name).and_then(Value::as_u64).expect("a number") as usize;
        Some(Answer {
            message: answer["choices"][0]["message"].clone(),
            prompt_tokens: usage("/prompt_tokens"),
            cached_tokens: usage("/prompt_tokens_details/cached_tokens"),
        })
    }

    fn ask(&self, messages: &[Value]) -> Answer {
        self.try_ask(messages).expect("an answer")
    }

    /// A counter or gauge of `/metrics`.
    fn metric(&self, name: &str) -> f64 {
        let text = self.send("GET", "/metrics", "").expect("metrics");
        let line = text.lines().find(|line| line.starts_with(&format!("{name}{{"))).expect("the metric");
        line.rsplit(' ').next().and_then(|value| value.parse().ok()).expect("a number")
    }
}

struct Answer {
    message: Value,
    prompt_tokens: usize,
    cached_tokens: usize,
}

impl Answer {
    fn content(&self) -> &str {
        self.message["content"].as_str().expect("content")
    }
}

fn user(text: &str) -> Value {
    json!({ "role": "user", "content": text })
}

fn sum(a: usize, b: usize) -> (Value, String) {
    (user(&format!("What is {a} + {b}?")), format!("{a} + {b} = {}.", a + b))
}

/// Asks two questions of a chat. Returns its messages including the third question, and the number of tokens of the second prompt.
fn two_turns(server: &Server) -> (Vec<Value>, usize) {
    let mut messages = vec![sum(47, 38).0];
    let first = server.ask(&messages);
    assert_eq!(first.content(), "47 + 38 = 85.");
    messages.extend([first.message, sum(12, 30).0]);
    let second = server.ask(&messages);
    assert_eq!(second.content(), "12 + 30 = 42.");
    messages.extend([second.message, sum(21, 17).0]);
    (messages, second.prompt_tokens)
}

/// The answer of a server that has nothing of the chat in its cache.
fn cold(messages: &[Value]) -> Value {
    let server = Server::start(&["--no-prefix-cache"]);
    let answer = server.ask(messages);
    assert_eq!(answer.cached_tokens, 0);
    answer.message
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(folder).expect("readable").map(|entry| entry.expect("readable").path());
    paths.filter(|path| path.extension().is_some_and(|end| end == "kv")).collect()
}

/// The file of a sequence with this many tokens, if it is complete.
fn file_of(folder: &Path, tokens: usize) -> Option<PathBuf> {
    let is_it = |path: &PathBuf| SessionHeader::open(path).is_ok_and(|header| header.length == tokens);
    files(folder).into_iter().find(is_it)
}

fn parts(folder: &Path) -> usize {
    let names = fs::read_dir(folder).expect("readable").map(|entry| entry.expect("readable").file_name());
    names.filter(|name| name.to_string_lossy().ends_with(".part")).count()
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + TIMEOUT;
    while !is_so() {
        assert!(Instant::now() < until, "{what}");
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn killed_server_restores_its_conversations() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let mut server = Server::on(folder.path());
    let (messages, prompt_tokens) = two_turns(&server);
    // Other conversations need the memory.
    for a in 10..26 {
        let (question, answer) = sum(a, a + 3);
        assert_eq!(server.ask(&[question]).content(), answer);
    }
    wait_until("the conversation is written", || file_of(folder.path(), prompt_tokens).is_some());
    assert!(server.metric("gptoss:spilled_tokens_total") >= prompt_tokens as f64);
    assert!(server.metric("gptoss:spilled_bytes") > 0.0);
    server.kill();

    let server = Server::on(folder.path());
    let answer = server.ask(&messages);
    assert!((prompt_tokens..answer.prompt_tokens).contains(&answer.cached_tokens), "{}", answer.cached_tokens);
    assert_eq!(answer.content(), "21 + 17 = 38.");
    assert_eq!(answer.message, cold(&messages));
    assert!(server.metric("gptoss:restored_tokens_total") >= prompt_tokens as f64);
    // The server may have been killed while it was writing a file.
    let deleted: Vec<String> = server.log().into_iter().filter(|line| line.contains("deleted")).collect();
    assert!(deleted.iter().all(|line| line.contains("incomplete")), "{deleted:?}");
}

#[test]
fn stopping_server_writes_its_prefixes() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let server = Server::on(folder.path());
    let (messages, prompt_tokens) = two_turns(&server);
    assert_eq!(files(folder.path()).len(), 0, "there is room in memory");
    server.stop();
    let server = Server::on(folder.path());
    let answer = server.ask(&messages);
    assert!(answer.cached_tokens >= prompt_tokens, "{} of {prompt_tokens}", answer.cached_tokens);
    assert_eq!(answer.message, cold(&messages));
}

/// The server is killed at a different time in each round, mostly while it writes a file.
#[test]
fn kill_during_write_leaves_no_damaged_file() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    for round in 0..6 {
        let mut server = Server::on(folder.path());
        // Incomplete files of the last round are deleted.
        assert_eq!(parts(folder.path()), 0);
        let before = files(folder.path()).len();
        thread::scope(|scope| {
            let asking = scope.spawn(|| {
                for number in 0.. {
                    let (question, expected) = sum(10 + round * 7, 11 + number % 80);
                    match server.try_ask(&[question]) {
                        Some(answer) => assert_eq!(answer.content(), expected),
                        None => return,
                    }
                }
            });
            let until = Instant::now() + TIMEOUT;
            let wanted = before + 1 + round;
            while parts(folder.path()) == 0 && files(folder.path()).len() < wanted && Instant::now() < until {
                thread::yield_now();
            }
            let signalled =
                Command::new("kill").args(["-KILL", &server.child.id().to_string()]).status().expect("kill");
            assert!(signalled.success());
            asking.join().expect("right answers");
        });
        server.kill();
    }
    let server = Server::on(folder.path());
    for path in files(folder.path()) {
        SavedSession::open(&path).expect("a whole file");
    }
    for round in 0..6 {
        let (question, expected) = sum(10 + round * 7, 11);
        assert_eq!(server.ask(&[question]).content(), expected);
    }
}

#[test]
fn damaged_files_are_refused_and_answers_stay_correct() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let server = Server::on(folder.path());
    let (messages, prompt_tokens) = two_turns(&server);
    server.stop();
    let prompt = file_of(folder.path(), prompt_tokens).expect("the prompt's file");
    let [mut flipped, header, truncated] = [(); 3].map(|()| fs::read(&prompt).expect("readable"));
    let mut foreign = SavedSession::from_bytes(&prompt, header.clone().into()).expect("whole");
    for path in files(folder.path()) {
        fs::remove_file(path).expect("there");
    }
    let path = |name: &str| folder.path().join(name);
    // Damage in the items, which is found only when they are read.
    let middle = flipped.len() - 1000;
    flipped[middle] ^= 1;
    fs::write(&prompt, flipped).expect("written");
    let mut header = header;
    header[60] ^= 1;
    fs::write(path("00000000000000a1.kv"), header).expect("written");
    fs::write(path("00000000000000a2.kv"), &truncated[..truncated.len() / 2]).expect("written");
    fs::write(path("00000000000000a3.kv.Zx81Qa.part"), &truncated[..100]).expect("written");
    foreign.header.model = "another".into();
    foreign.write(&path("00000000000000a4.kv")).expect("written");
    fs::write(path("notes.txt"), "mine").expect("written");

    let server = Server::on(folder.path());
    let deletions =
        |name: &str| server.log().iter().filter(|line| line.contains(name) && line.contains("deleted")).count();
    for name in ["00000000000000a1.kv", "00000000000000a2.kv", "00000000000000a3.kv", "with another model"] {
        assert_eq!(deletions(name), 1, "{name}: {:?}", server.log());
    }
    let answer = server.ask(&messages);
    assert_eq!((answer.cached_tokens, answer.content()), (0, "21 + 17 = 38."));
    assert_eq!(answer.message, cold(&messages));
    let name = prompt.file_name().and_then(|name| name.to_str()).expect("UTF-8");
    wait_until("the deletion is logged", || deletions(name) == 1);
    assert!(!prompt.exists() && path("00000000000000a4.kv").exists() && path("notes.txt").exists());
}

#[test]
fn folder_keeps_its_limit_and_is_locked() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let name = folder.path().to_str().expect("UTF-8");
    let server = Server::start(&["--cache-dir", name, "--cache-size", "3MiB"]);
    for a in 10..22 {
        let (question, answer) = sum(a, a + 5);
        assert_eq!(server.ask(&[question]).content(), answer);
    }
    let refused = |rest: &[&str]| {
        let output = command(rest).output().expect("it runs");
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(refused(&["--cache-dir", name]).contains("is in use by a running server"));
    assert!(refused(&["--cache-dir", name, "--no-prefix-cache"]).contains("--no-prefix-cache"));
    server.stop();
    let bytes: u64 = files(folder.path()).iter().map(|path| fs::metadata(path).expect("there").len()).sum();
    assert!(bytes > 0 && bytes <= 3 << 20, "{bytes} bytes");
}
