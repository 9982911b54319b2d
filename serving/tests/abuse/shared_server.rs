//! The server that the tests abuse, and a neighbour: a client that streams at the same time.

use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use serving::api::Settings;
use serving::worker::Options;

use crate::http::{Answer, MODEL, ResponseReader, Running, engine};

pub const CHAT: &str = "/v1/chat/completions";
/// Requests that the server computes together, and requests that may wait.
pub const RUNNING: usize = 8;
pub const WAITING: usize = 24;
/// Bytes of memory for keys and values.
const CACHE: u64 = 16 << 20;
/// Bytes of memory that may remain allocated: the last 32 compiled grammars are cached.
const NEAR: u64 = 128 << 20;

/// One server for all tests of this test program, so that damage done by one test affects the next.
pub struct SharedServer {
    server: Running,
    /// The text of the neighbour's stream without any abuse.
    undisturbed: String,
    /// Bytes of memory before any abuse.
    memory: u64,
}

/// The shared server, for one test at a time.
pub fn shared_server() -> MutexGuard<'static, SharedServer> {
    static SHARED_SERVER: LazyLock<Mutex<SharedServer>> = LazyLock::new(|| Mutex::new(SharedServer::new()));
    SHARED_SERVER.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SharedServer {
    fn new() -> SharedServer {
        allow_open_files();
        let options = Options { max_running: RUNNING, max_waiting: WAITING, prefix_cache: false, ..Options::default() };
        let server = Running::start_on(Box::new(engine(Some(CACHE))), Settings::default(), options);
        // Makes the server allocate what it allocates only once: the tables of constraints, and memory for steps with `RUNNING` long
        // prompts.
        let format = json!({ "type": "json_object" });
        let long = "a long question ".repeat(100);
        thread::scope(|scope| {
            for _ in 0..RUNNING {
                let first = ask(&long, json!({ "response_format": format, "max_tokens": 8 }));
                let server = &server;
                scope.spawn(move || assert_eq!(server.post(CHAT, &first).status, 200));
            }
        });
        let undisturbed = streamed_text(&server.post(CHAT, &neighbours_question()));
        assert!(undisturbed.len() > 100, "{undisturbed}");
        SharedServer { server, undisturbed, memory: memory() }
    }

    /// Abuses the server while the neighbour streams, and checks that the neighbour's text is unchanged and that everything is freed.
    pub fn assert_survives(&self, abuse: impl FnOnce(&Running)) {
        let server = &self.server;
        let over = AtomicBool::new(false);
        let (begin, begun) = channel();
        let streams = thread::scope(|scope| {
            let over = &over;
            let neighbour = scope.spawn(move || self.stream_until(over, &begin));
            // Set even if the abuse panics; otherwise the neighbour would stream forever.
            let end = SetOnDrop(over);
            begun.recv().expect("the neighbour streams");
            abuse(server);
            drop(end);
            neighbour.join().expect("the neighbour was not affected")
        });
        assert!(streams > 0);
        assert_eq!(server.get("/health").status, 200);
        for gauge in ["vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"] {
            server.wait_for(gauge, 0.0);
        }
        let until = Instant::now() + Duration::from_secs(15);
        while memory() > self.memory + NEAR {
            assert!(Instant::now() < until, "{} MiB were not freed", memory().saturating_sub(self.memory) >> 20);
            // The server has the allocator release memory only after another request was answered.
            server.get("/ping");
            thread::sleep(Duration::from_millis(200));
        }
        eprintln!("{} MiB more than before", memory().saturating_sub(self.memory) >> 20);
    }

    /// Repeats the same stream, and signals when the first one has begun.
    fn stream_until(&self, over: &AtomicBool, begin: &Sender<()>) -> usize {
        let mut streams = 0;
        let body = neighbours_question().to_string();
        loop {
            let mut reading = self.server.open("POST", CHAT, &[], body.as_bytes());
            if reading.status == 429 {
                // The abusive clients have filled the queue.
                thread::sleep(Duration::from_millis(20));
                continue;
            }
            assert_eq!(reading.status, 200);
            let first = reading.piece().expect("a piece");
            let _ = begin.send(());
            let Answer { status, headers, body: rest } = reading.finish();
            let body = String::from_utf8(first).expect("UTF-8") + &rest;
            assert_eq!(streamed_text(&Answer { status, headers, body }), self.undisturbed);
            streams += 1;
            if over.load(Ordering::Relaxed) {
                return streams;
            }
        }
    }
}

struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The body of a chat request with greedy sampling and the given further fields.
pub fn ask(question: &str, fields: Value) -> Value {
    let messages = json!([{ "role": "user", "content": question }]);
    let mut body = json!({ "model": MODEL, "messages": messages, "temperature": 0 });
    for (name, value) in fields.as_object().expect("fields") {
        body[name] = value.clone();
    }
    body
}

fn neighbours_question() -> Value {
    ask("Tell me a story.", json!({ "stream": true, "max_tokens": 200 }))
}

/// Reasoning and text of a stream that ended normally.
pub fn streamed_text(answer: &Answer) -> String {
    assert!(answer.body.ends_with("data: [DONE]\n\n"), "{}", answer.body);
    let events = answer.events();
    let part = |field: &str| -> String {
        events.iter().filter_map(|event| event["choices"][0]["delta"][field].as_str()).collect()
    };
    format!("{}\n{}", part("reasoning"), part("content"))
}

/// Checks a refusal in OpenAI's format; `param` is not checked if it is `None`.
#[track_caller]
pub fn assert_refused(what: &str, answer: &Answer, status: u16, code: Option<&str>, param: Option<&str>) {
    let context = format!("{what}: {} {}", answer.status, answer.body);
    assert_eq!(answer.status, status, "{context}");
    let error = &answer.json()["error"];
    assert!(error["message"].as_str().is_some_and(|message| (1..2000).contains(&message.len())), "{context}");
    let kind = if status == 429 { "rate_limit_error" } else { "invalid_request_error" };
    assert_eq!((error["type"].as_str(), error["code"].as_str()), (Some(kind), code), "{context}");
    assert!(error.get("param").is_some() && param.is_none_or(|param| error["param"] == param), "{context}");
}

/// A connection on which `bytes` have been sent.
pub fn sent(server: &Running, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(server.address).expect("connects");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
    // A server that has read enough may close the connection meanwhile.
    let _ = stream.write_all(bytes);
    stream
}

/// The bytes of a request with a body.
pub fn request(path: &str, body: &[u8]) -> Vec<u8> {
    let head =
        format!("POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

/// A stream that does not end by itself; a refused request is repeated.
pub fn endless(server: &Running) -> ResponseReader {
    let fields = json!({ "stream": true, "ignore_eos": true, "temperature": 1, "max_tokens": null });
    let body = ask("Tell me everything.", fields).to_string();
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        let reading = server.open("POST", CHAT, &[], body.as_bytes());
        if reading.status == 200 {
            return reading;
        }
        assert!(reading.status == 429 && Instant::now() < until, "{}", reading.status);
        thread::sleep(Duration::from_millis(20));
    }
}

/// Bytes of memory that this process has allocated and not freed. Freed memory that the allocator keeps is not counted: it does not grow
/// with time.
fn memory() -> u64 {
    // SAFETY: the function has no arguments.
    let info = unsafe { libc::mallinfo2() };
    (info.uordblks + info.hblkhd) as u64
}

/// Files that this process may have open.
pub fn open_files() -> usize {
    limit().rlim_cur as usize
}

/// Raises the limit as far as the system allows: the clients' ends of the connections are in this process too.
fn allow_open_files() {
    let mut limit = limit();
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: the pointer is valid for reads.
    unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) };
}

fn limit() -> libc::rlimit {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is valid for writes.
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) }, 0);
    limit
}
