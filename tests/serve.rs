//! `gptoss serve` as a process, from start to end, and `gptoss bench-serve` with it.
#![cfg(unix)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// A server that is stopped at the end of its test.
struct Server {
    child: Child,
    address: String,
}

/// The lines of a server's log.
type Log = Box<dyn Iterator<Item = String> + Send>;

impl Server {
    /// Starts a server with the embedded model, and waits until it is ready.
    fn start_with_log(arguments: &[&str]) -> (Server, Log) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gptoss"));
        command.args(["serve", "--device", "cpu", "-p", "0"]).args(arguments);
        Server::start_command(command.env_remove("GPTOSS_API_KEY"))
    }

    fn start_command(command: &mut Command) -> (Server, Log) {
        let mut child = command.stderr(Stdio::piped()).spawn().expect("starts");
        let lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let mut lines: Log = Box::new(lines.map(|line| line.expect("UTF-8")));
        let address =
            lines.find_map(|line| Some(line.strip_prefix("listening on http://")?.to_owned())).expect("an address");
        let server = Server { child, address };
        let address = &server.address;
        let ready = format!("serving gptoss-tiny: chat page http://{address}, API http://{address}/v1");
        lines.find(|line| *line == ready).expect("a model");
        (server, lines)
    }

    /// As [`Server::start_with_log`], but discards the log, so that its pipe does not fill up.
    fn start(arguments: &[&str]) -> Server {
        let (server, log) = Server::start_with_log(arguments);
        std::thread::spawn(move || log.for_each(drop));
        server
    }

    fn send(&self, method: &str, path: &str, body: &str) -> BufReader<TcpStream> {
        let mut stream = TcpStream::connect(&self.address).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
        let head = format!("host: {}\r\nconnection: close\r\ncontent-length: {}", self.address, body.len());
        write!(stream, "{method} {path} HTTP/1.1\r\n{head}\r\n\r\n{body}").expect("it reads");
        BufReader::new(stream)
    }

    /// Status, head and body of an answer that is not streamed.
    fn ask(&self, method: &str, path: &str, body: &Value) -> (u16, String, Value) {
        let mut answer = String::new();
        let body = if body.is_null() { String::new() } else { body.to_string() };
        self.send(method, path, &body).read_to_string(&mut answer).expect("it answers");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a body");
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        (status, head.to_owned(), serde_json::from_str(body).expect("JSON"))
    }

    /// A stream of which the first piece has been read.
    fn stream(&self, most: Option<u64>) -> BufReader<TcpStream> {
        let body = json!({
            "messages": [{ "role": "user", "content": "Tell me everything." }],
            "stream": true,
            "stream_options": { "include_usage": true },
            "ignore_eos": true,
            "temperature": 0,
            "max_tokens": most,
        });
        let mut reader = self.send("POST", "/v1/chat/completions", &body.to_string());
        let mut line = String::new();
        while !line.starts_with("data: ") {
            line.clear();
            assert!(reader.read_line(&mut line).expect("a line") > 0, "the stream ends before its first piece");
        }
        reader
    }

    fn terminate(&self) {
        let signalled = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().expect("kill");
        assert!(signalled.success());
    }

    /// Waits until the server refuses new requests.
    fn wait_until_it_drains(&self) {
        let until = Instant::now() + Duration::from_secs(20);
        while self.ask("GET", "/health", &Value::Null).0 == 200 {
            assert!(Instant::now() < until, "it still accepts requests");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn status(&mut self) -> Option<i32> {
        self.child.wait().expect("it ends").code()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill().and_then(|()| self.child.wait());
    }
}

/// The remaining events of a stream. The last one, `[DONE]`, is checked and left out; each other one must be JSON.
fn rest(mut reader: BufReader<TcpStream>) -> Vec<Value> {
    let mut text = String::new();
    reader.read_to_string(&mut text).expect("the rest");
    let mut data: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    assert_eq!(data.pop(), Some("[DONE]"), "{text}");
    data.into_iter().map(|data| serde_json::from_str(data).expect("JSON")).collect()
}

/// The server answers from its line `serving …` in the log until it is stopped, even if nobody reads the log.
#[test]
fn serves_until_it_is_stopped() {
    let (mut server, mut log) = Server::start_with_log(&["--alias", "mine"]);
    let answer = |server: &Server| {
        let body =
            json!({ "model": "mine", "messages": [{ "role": "user", "content": "What is 2 + 2?" }], "temperature": 0 });
        let (status, _, answer) = server.ask("POST", "/v1/chat/completions", &body);
        assert_eq!((status, &answer["model"]), (200, &json!("mine")));
        assert_eq!(answer["choices"][0]["message"]["content"], "2 + 2 = 4.");
    };
    answer(&server);
    assert!(log.next().is_some_and(|line| line.contains("path=/v1/chat/completions status=200")));
    drop(log);
    answer(&server);
    server.terminate();
    assert_eq!(server.status(), Some(0));
}

/// Keys of all sources are accepted. The log has the key's name and the request's id, but not the key itself.
#[test]
fn keys_come_from_options_the_environment_and_a_file() {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(b"# a comment\nada secret-4\n\nsecret-5\n").expect("written");
    let mut command = Command::new(env!("CARGO_BIN_EXE_gptoss"));
    command.args(["serve", "--device", "cpu", "-p", "0", "--api-key", "secret-1", "--api-key", "secret-2"]);
    command.arg("--api-key-file").arg(file.path()).env("GPTOSS_API_KEY", "secret-3");
    let (server, mut log) = Server::start_command(&mut command);
    let mut ask = |key: &str| {
        let mut stream = TcpStream::connect(&server.address).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
        let head = format!("host: x\r\nconnection: close\r\nx-request-id: mine-7\r\nauthorization: Bearer {key}");
        write!(stream, "GET /v1/models HTTP/1.1\r\n{head}\r\n\r\n").expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        (answer.split(' ').nth(1).map(str::to_owned), log.next().expect("a line"))
    };
    // Keys without a name are logged under a number, which is different for each key.
    for (key, name) in
        [("secret-1", "key1"), ("secret-2", "key2"), ("secret-3", "key3"), ("secret-4", "ada"), ("secret-5", "key5")]
    {
        let (status, line) = ask(key);
        assert_eq!(status.as_deref(), Some("200"), "{key}");
        let logged = format!(" id=mine-7 client={name} method=GET path=/v1/models status=200 ");
        assert!(line.contains(&logged) && !line.contains("secret"), "{line}");
    }
    let (status, line) = ask("secret-6");
    assert_eq!(status.as_deref(), Some("401"));
    assert!(line.contains(" client=127.0.0.1 ") && line.contains(" status=401 "), "{line}");
}

/// The first line of a server's log.
fn first_line(arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gptoss"));
    command.args(["serve", "--device", "cpu", "-p", "0"]).args(arguments).env_remove("GPTOSS_API_KEY");
    let mut child = command.stderr(Stdio::piped()).spawn().expect("starts");
    let mut line = String::new();
    let read = BufReader::new(child.stderr.take().expect("piped")).read_line(&mut line);
    let _ = child.kill().and_then(|()| child.wait());
    read.expect("a line");
    line
}

#[test]
fn an_open_server_without_a_key_warns() {
    let warning = first_line(&["--host", "0.0.0.0"]);
    assert!(warning.starts_with("warning: anyone who can reach 0.0.0.0:"), "{warning}");
    assert!(warning.ends_with("; require a key with --api-key-file\n"), "{warning}");
    for arguments in [&["--host", "0.0.0.0", "--api-key", "sesame"][..], &[]] {
        let line = first_line(arguments);
        assert!(line.starts_with("listening on http://"), "{line}");
    }
}

#[test]
fn context_and_numbers_of_requests_are_limited() {
    let server = Server::start(&["--context", "256"]);
    let (status, _, models) = server.ask("GET", "/v1/models", &Value::Null);
    assert_eq!((status, &models["data"][0]["max_model_len"]), (200, &json!(256)));
    let (status, _, refusal) = server.ask("POST", "/v1/completions", &json!({ "prompt": vec![7; 256] }));
    assert_eq!((status, &refusal["error"]["code"]), (400, &json!("context_length_exceeded")), "{refusal}");
    drop(server);

    let server = Server::start(&["--parallel", "1", "--queue", "0"]);
    let _stream = server.stream(None);
    let (status, head, refusal) = server.ask("POST", "/v1/completions", &json!({ "prompt": "x" }));
    assert_eq!((status, &refusal["error"]["code"]), (429, &json!("rate_limit_exceeded")), "{refusal}");
    assert!(head.to_lowercase().contains("\r\nretry-after: "), "{head}");
}

#[test]
fn stopping_finishes_running_answers() {
    let mut server = Server::start(&[]);
    let stream = server.stream(Some(1500));
    server.terminate();
    server.wait_until_it_drains();
    let (status, head, refusal) = server.ask("POST", "/v1/completions", &json!({ "prompt": "x" }));
    assert_eq!((status, &refusal["error"]["type"]), (503, &json!("server_error")), "{refusal}");
    let head = head.to_lowercase();
    assert!(head.contains("\r\nretry-after: ") && head.contains("\r\nconnection: close"), "{head}");
    let events = rest(stream);
    assert!(events.iter().all(|event| event["error"].is_null()));
    assert_eq!(events.last().expect("events")["usage"]["completion_tokens"], 1500);
    assert_eq!(server.status(), Some(0));
}

#[test]
fn unfinished_answers_end_with_an_error_after_the_grace_period() {
    let mut server = Server::start(&["--grace", "0"]);
    let stream = server.stream(None);
    server.terminate();
    let events = rest(stream);
    let error = &events.last().expect("events")["error"];
    assert_eq!((&error["type"], &error["message"]), (&json!("server_error"), &json!("The server is shutting down.")));
    assert_eq!(server.status(), Some(0));
}

#[test]
fn second_signal_ends_at_once() {
    let mut server = Server::start(&["--grace", "600"]);
    let _stream = server.stream(None);
    server.terminate();
    server.wait_until_it_drains();
    server.terminate();
    assert_eq!(server.status(), Some(130));
}

fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gptoss"));
    command.args(arguments).env_remove("OPENAI_API_KEY").env_remove("GPTOSS_API_KEY");
    command.output().expect("the program starts")
}

/// Exit status and last line of a refusal.
fn refusal(arguments: &[&str]) -> String {
    let output = run(arguments);
    let message = String::from_utf8_lossy(&output.stderr);
    format!("{}: {}", output.status.code().expect("an exit status"), message.lines().last().unwrap_or_default())
}

#[test]
fn serve_failures_are_one_sentence() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("an address").port().to_string();
    let serve = |rest: &[&str]| refusal(&[&["serve", "--device", "cpu"][..], rest].concat());
    let message = serve(&["--port", &port]);
    assert!(message.starts_with(&format!("2: gptoss: cannot listen on 127.0.0.1:{port}: ")), "{message}");
    assert!(message.ends_with("; choose another port with --port, or any free one with --port 0"), "{message}");
    let empty = tempfile::NamedTempFile::new().expect("a file");
    let file = empty.path().to_str().expect("UTF-8");
    assert_eq!(serve(&["--port", "0", "--api-key-file", file]), format!("2: gptoss: {file} contains no API key"));
    assert_eq!(
        serve(&["--port", "0", "--context", "4097"]),
        "2: gptoss: --context 4097 is more than the 4096 tokens that this model was made for"
    );
    // A model that does not exist is refused before the server listens.
    let output = run(&["serve", "no-such.gguf", "--port", "0"]);
    let expected = "gptoss: no-such.gguf cannot be read: No such file or directory (os error 2)\n";
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(2), expected));
}

/// The report of a measurement.
fn measured(arguments: &[&str]) -> Value {
    let output = run(&[&["bench-serve"][..], arguments, &["--json"]].concat());
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn bench_serve_counts_clients_answers() {
    let server = Server::start(&[]);
    let url = format!("http://{}/v1", server.address);
    let load = ["--clients", "1,3", "--requests", "2", "--prompt", "64", "--generate", "8"];
    let report = measured(&[&[url.as_str()][..], &load].concat());
    assert_eq!((&report["model"], &report["workload"]), (&json!("gptoss-tiny"), &json!("load")));
    assert_eq!((&report["url"], &report["label"]), (&json!(url), &Value::Null));
    for (level, answers) in report["levels"].as_array().expect("levels").iter().zip([2, 6]) {
        assert_eq!((&level["answers"], &level["failures"]), (&json!(answers), &json!(0)), "{level}");
        assert_eq!(level["generated_tokens"], 8 * answers);
        let (prompt, cached) = (level["prompt_tokens"].as_u64(), level["cached_tokens"].as_u64());
        let (prompt, cached) = (prompt.expect("a number"), cached.expect("a number"));
        assert!((50 * answers..80 * answers).contains(&prompt), "{level}");
        assert_eq!(level["read_tokens"], prompt - cached);
        for times in [&level["first_token_ms"], &level["between_tokens_ms"]] {
            let times = ["p50", "p95", "p99"].map(|name| times[name].as_f64().expect("a time"));
            assert!(times[0] >= 0.0 && times.is_sorted(), "{level}");
        }
        assert!(level["generated_tokens_per_second"].as_f64() > Some(0.0), "{level}");
    }
    assert_eq!(report["levels"].as_array().map(Vec::len), Some(2));

    let agents = ["--agent", "--turns", "6", "--clients", "2", "--generate", "48"];
    let report = measured(&[&[url.as_str()][..], &agents].concat());
    let level = &report["levels"][0];
    assert_eq!((&report["workload"], &report["turns"], &report["generate"]), (&json!("agent"), &json!(6), &json!(48)));
    assert_eq!((&level["answers"], &level["failures"]), (&json!(12), &json!(0)), "{level}");
    let tokens = |name: &str| level[name].as_u64().expect("a number");
    assert!(2 * tokens("read_tokens") < tokens("prompt_tokens"), "{level}");

    let joining = ["--joining", "--clients", "4", "--requests", "3", "--prompt", "64"];
    let report = measured(&[&[url.as_str()][..], &joining].concat());
    let level = &report["levels"][0];
    assert_eq!((&report["workload"], &level["clients"]), (&json!("joining"), &json!(4)), "{report}");
    assert_eq!((&report["requests"], &report["prompt"]), (&json!(3), &json!(64)));
    assert_eq!((&level["requests"], &level["failures"]), (&json!(3), &json!(0)), "{level}");
    for times in ["first_token_alone_ms", "first_token_ms", "between_tokens_ms", "longest_wait_ms"] {
        assert!(level[times]["p50"].as_f64() > Some(0.0), "{times}: {level}");
    }

    let output = run(&[&["bench-serve", url.as_str()][..], &load].concat());
    let table = String::from_utf8(output.stdout).expect("UTF-8");
    let clients: Vec<&str> = table.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(clients, ["clients", "p50", "1", "3"], "{table}");
}

#[test]
fn bench_serve_records_its_origin() {
    let server = Server::start(&["--api-key", "sesame"]);
    let url = format!("http://{}", server.address);
    let load = ["--clients", "1", "--requests", "1", "--prompt", "32", "--generate", "4"];
    let report = measured(&[&[url.as_str()][..], &load, &["--api-key", "sesame", "--label", "one sequence"]].concat());
    let version = env!("CARGO_PKG_VERSION");
    let expected = json!({
        "format": "gptoss bench-serve 1",
        "workload": "load",
        "url": url,
        "model": "gptoss-tiny",
        "server": { "name": "gptoss", "version": version },
        "label": "one sequence",
        "seed": 0,
        "command": format!("gptoss bench-serve {url} {} --api-key KEY --label 'one sequence' --json", load.join(" ")),
        "system": format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        "gptoss": version,
        "requests": 1,
        "prompt": 32,
        "generate": 4,
    });
    for (name, value) in expected.as_object().expect("fields") {
        assert_eq!(&report[name], value, "{name}");
    }
    let date = report["date"].as_str().expect("a date");
    assert!(date.len() == 20 && date.ends_with('Z'), "{date}");
    assert!(report["machine"].as_str().is_some_and(|machine| machine.ends_with(" threads)")), "{report}");
    assert!(!report.to_string().contains("sesame"), "{report}");
}

#[test]
fn random_load_has_no_failures() {
    let server = Server::start(&[]);
    let (url, pid) = (format!("http://{}", server.address), server.child.id().to_string());
    let minutes = ["--minutes", "0.08", "--clients", "4", "--prompt", "100", "--generate", "24"];
    let watched = ["--pid", pid.as_str()];
    let watched = if cfg!(target_os = "linux") { &watched[..] } else { &[] };
    let report = measured(&[&[url.as_str()][..], &minutes, watched].concat());
    assert_eq!((&report["failures"], &report["clients"]), (&json!(0), &json!(4)), "{report}");
    assert_eq!((&report["workload"], &report["format"]), (&json!("random"), &json!("gptoss bench-serve 1")));
    assert_eq!((&report["minutes"], &report["prompt"], &report["generate"]), (&json!(0.08), &json!(100), &json!(24)));
    assert!(report["answers"].as_u64() > Some(0), "{report}");
    let memory = ["begin", "end", "most"].map(|name| report["memory_bytes"][name].as_u64());
    assert!(memory.iter().all(|bytes| bytes > &Some(1 << 20)) || watched.is_empty(), "{report}");
}

#[test]
fn bench_serve_explains_failed_measurements() {
    assert_eq!(
        refusal(&["bench-serve", "https://example.org"]),
        "2: gptoss: the scheme https is not supported; give the http address behind the proxy"
    );
    // The port was free a moment ago, so no server listens on it.
    let port = TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("an address").port();
    let message = refusal(&["bench-serve", &format!("127.0.0.1:{port}")]);
    let expected = format!("2: gptoss: no model of 127.0.0.1:{port}: 127.0.0.1:{port} cannot be reached: ");
    assert!(message.starts_with(&expected), "{message}");

    let server = Server::start(&["--api-key", "sesame"]);
    let url = format!("http://{}", server.address);
    let message = refusal(&["bench-serve", &url]);
    assert!(
        message.starts_with(&format!("2: gptoss: no model of {url}: 401: You didn't provide an API key")),
        "{message}"
    );
    let long = ["--api-key", "sesame", "--prompt", "5000", "--clients", "1", "--requests", "1"];
    let message = refusal(&[&["bench-serve", url.as_str()][..], &long].concat());
    assert!(message.starts_with("2: gptoss: every request failed: 400: This model's maximum context"), "{message}");
}
