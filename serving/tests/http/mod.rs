//! A server on a free port, and a minimal client that gives access to the raw bytes.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use phase1_loading::Checkpoint;
use phase2_forward::Engine;
use phase5_flash::{CpuEngine, CpuOptions};
use serde_json::Value;
use serving::api::{App, Model, Server, Settings};
use serving::grammar::Grammars;
use serving::worker::{Handle, Options};
use tokio::sync::oneshot;

pub const MODEL: &str = "tiny";

/// The file of the model inside the program.
pub fn checkpoint() -> Checkpoint {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/gptoss-tiny.gguf");
    Checkpoint::open(&file).expect("opens")
}

/// An engine for the model inside the program, with `kv_bytes` of memory for keys and values. The default is enough for more than a
/// whole context.
pub fn engine(kv_bytes: Option<u64>) -> CpuEngine {
    let options = CpuOptions { threads: Some(2), kv_bytes, ..CpuOptions::default() };
    CpuEngine::load(&checkpoint(), options).expect("loads")
}

/// A server in a separate thread.
pub struct Running {
    pub address: SocketAddr,
    pub app: Arc<App>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    /// Serves the model inside the program.
    pub fn start(settings: Settings, options: Options) -> Running {
        Running::start_on(Box::new(engine(None)), settings, options)
    }

    /// Serves the embedded model on this engine.
    pub fn start_on(engine: Box<dyn Engine>, settings: Settings, options: Options) -> Running {
        Running::start_as(MODEL, engine, settings, options)
    }

    /// Serves the embedded model under this name.
    pub fn start_as(name: &str, engine: Box<dyn Engine>, settings: Settings, options: Options) -> Running {
        let running = Running::starting(settings);
        let checkpoint = checkpoint();
        running.app.ready(Model {
            handle: Handle::start(engine, options),
            tokenizer: checkpoint.tokenizer().expect("builds"),
            grammars: Grammars::default(),
            names: vec![name.into(), "alias".into()],
            fingerprint: "fp_test".into(),
            bytes: checkpoint.weight_bytes(),
            positions_per_page: 64,
            date: Some("2026-01-01".into()),
            created: 1,
        });
        running
    }

    /// A server whose model is still loading.
    pub fn starting(settings: Settings) -> Running {
        let app = Arc::new(App::new(settings));
        let (stop, stopped) = oneshot::channel();
        let (send_address, address) = std::sync::mpsc::channel();
        let of_thread = app.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
            runtime.expect("a runtime").block_on(async {
                let server = Server::bind(of_thread, "127.0.0.1", 0).await.expect("a free port");
                send_address.send(server.address().expect("an address")).expect("the test receives the address");
                let end = async {
                    let _ = stopped.await;
                };
                server.run(end, Duration::from_secs(10)).await;
            });
        });
        let address = address.recv().expect("the server listens");
        Running { address, app, stop: Some(stop), thread: Some(thread) }
    }

    pub fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], b"")
    }

    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, &[], body.to_string().as_bytes())
    }

    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        self.open(method, path, headers, body).finish()
    }

    /// Sends a request and reads the head of the response.
    pub fn open(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> ResponseReader {
        let mut stream = TcpStream::connect(self.address).expect("connects");
        stream.set_read_timeout(Some(Duration::from_secs(120))).expect("a timeout");
        let length = body.len();
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n", self.address);
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += &format!("content-type: application/json\r\ncontent-length: {length}\r\n\r\n");
        // A server that has read enough may close the connection while the rest is written.
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
        ResponseReader::begin(stream)
    }

    /// Stops the server, as a signal would.
    pub fn stop(&mut self) {
        drop(self.stop.take());
    }

    /// Waits until the server has stopped.
    pub fn wait(&mut self) {
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the server ends");
        }
    }

    /// The value of a metric with `label`; other labels are ignored.
    pub fn metric(&self, name: &str, label: &str) -> f64 {
        let text = self.get("/metrics").body;
        let is_it = |line: &&str| line.split('{').next() == Some(name) && line.contains(label);
        let line = text.lines().find(is_it).unwrap_or_else(|| panic!("no {name} {label} in {text}"));
        line.rsplit(' ').next().and_then(|value| value.parse().ok()).expect("a number")
    }

    /// Waits until a metric has this value.
    pub fn wait_for(&self, name: &str, value: f64) {
        let until = Instant::now() + Duration::from_secs(20);
        while self.metric(name, "") != value {
            assert!(Instant::now() < until, "{name} is {}", self.metric(name, ""));
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
        if !std::thread::panicking() {
            self.wait();
        }
    }
}

/// A response that is being read. Dropping it closes the connection.
pub struct ResponseReader {
    reader: BufReader<TcpStream>,
    pub status: u16,
    pub headers: Vec<(String, String)>,
    chunked: bool,
}

impl ResponseReader {
    /// Reads the head of the response to a request that was already sent.
    pub fn begin(stream: TcpStream) -> ResponseReader {
        let mut reader = BufReader::new(stream);
        let mut line = || {
            let mut line = String::new();
            reader.read_line(&mut line).expect("a head");
            line.trim_end().to_owned()
        };
        let status = line();
        let status = status.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
        let headers: Vec<(String, String)> = std::iter::from_fn(|| {
            let line = line();
            let (name, value) = line.split_once(": ")?;
            Some((name.to_lowercase(), value.to_owned()))
        })
        .collect();
        let chunked = headers.iter().any(|(name, value)| name == "transfer-encoding" && value == "chunked");
        ResponseReader { reader, status, headers, chunked }
    }

    /// The next piece; `None` at the end.
    pub fn piece(&mut self) -> Option<Vec<u8>> {
        if !self.chunked {
            let mut rest = Vec::new();
            self.reader.read_to_end(&mut rest).expect("a body");
            return Some(rest).filter(|rest| !rest.is_empty());
        }
        let mut line = String::new();
        self.reader.read_line(&mut line).expect("a chunk");
        let length = usize::from_str_radix(line.trim(), 16).expect("a chunk's length");
        let mut piece = vec![0; length + 2];
        self.reader.read_exact(&mut piece).expect("a chunk");
        piece.truncate(length);
        Some(piece).filter(|piece| !piece.is_empty())
    }

    pub fn finish(mut self) -> Answer {
        let mut body = Vec::new();
        while let Some(piece) = self.piece() {
            body.extend(piece);
        }
        Answer { status: self.status, headers: self.headers, body: String::from_utf8(body).expect("UTF-8") }
    }
}

pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// The data of all events except the final `[DONE]`.
    pub fn events(&self) -> Vec<Value> {
        let data = self.body.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|data| *data != "[DONE]");
        data.map(|data| serde_json::from_str(data).expect("JSON")).collect()
    }
}
