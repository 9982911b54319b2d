//! Clients that disconnect in the middle, and clients that read or write very slowly.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use serving::api::Settings;
use serving::worker::Options;

use crate::http::{ResponseReader, Running, engine};
use crate::shared_server::{CHAT, ask, endless, request, sent, shared_server, streamed_text};

/// Number of concurrent streams that are abandoned, in each of three rounds.
const LEFT: usize = 18;

/// Clients that disconnect at different stages: while they send a request, while it waits, and while its answer is streamed.
fn vanish(server: &Running) {
    let aborted = || server.metric("vllm:request_success_total", "finished_reason=\"abort\"");
    let before = aborted();
    for _ in 0..3 {
        let mut streams: Vec<ResponseReader> = (0..LEFT).map(|_| endless(server)).collect();
        // The first streams are running, so there is text to read; later ones may still wait.
        for (index, stream) in streams.iter_mut().take(4).enumerate() {
            (0..2 + index).for_each(|_| assert!(stream.piece().is_some()));
        }
    }
    let whole = request(CHAT, ask("Tell me everything.", json!({ "ignore_eos": true })).to_string().as_bytes());
    for index in 0..60 {
        // Some disconnect before the server has read anything, some while they wait, some in the middle of their request.
        let length = if index % 3 == 0 { whole.len() } else { index * 5 };
        drop(sent(server, &whole[..length.min(whole.len())]));
    }
    let chunked = "POST /v1/responses HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nffff\r\n{\"input\": \"";
    drop(sent(server, chunked.as_bytes()));
    let until = Instant::now() + Duration::from_secs(20);
    while aborted() < before + (3 * LEFT) as f64 {
        assert!(Instant::now() < until, "the server noticed only {} abandoned streams", aborted() - before);
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn survives_disconnecting_clients() {
    shared_server().assert_survives(vanish);
}

/// The prefixes that abandoned requests leave in the cache can be evicted: texts that need most of the cache are the same as before.
#[test]
fn disconnected_clients_leave_only_evictable_pages() {
    let _alone = shared_server();
    let options = Options { max_running: 8, max_waiting: 24, ..Options::default() };
    // A little more memory than the longest text needs.
    let server = Running::start_on(Box::new(engine(Some(8 << 20))), Settings::default(), options);
    let write = |begin: &str| {
        let question = begin.to_owned() + &" word".repeat(3500);
        let answer = server.post(CHAT, &ask(&question, json!({ "max_tokens": 64, "ignore_eos": true })));
        assert_eq!(answer.status, 200, "{}", answer.body);
        let answer = answer.json();
        assert_eq!(answer["usage"]["completion_tokens"], 64, "{answer}");
        answer["choices"][0]["message"].clone()
    };
    let before = write("First");
    vanish(&server);
    server.wait_for("vllm:num_requests_running", 0.0);
    assert!(server.metric("gptoss:cached_prefixes", "") > 0.0);
    // The second text evicts the first from the cache.
    write("Second");
    assert_eq!(write("First"), before);
}

#[test]
fn survives_slow_readers() {
    shared_server().assert_survives(|server| {
        // With log probabilities the unread answers are larger than a connection's buffers.
        let fields =
            json!({ "stream": true, "ignore_eos": true, "max_tokens": 500, "logprobs": true, "top_logprobs": 20 });
        let much = request(CHAT, ask("Tell me everything.", fields).to_string().as_bytes());
        let mut slow: Vec<TcpStream> = (0..4).map(|_| sent(server, &much)).collect();
        slow.iter().for_each(narrow);

        let question = ask("What is 47 + 38?", json!({ "stream": true, "max_tokens": 200 }));
        let little = request(CHAT, question.to_string().as_bytes());
        let mut patient = sent(server, &little);
        let (head, rest) = little.split_at(60);
        let mut writing = sent(server, b"");
        let mut begin = Vec::new();
        for second in 0..3 {
            for stream in &mut slow {
                stream.read_exact(&mut [0]).expect("a byte");
            }
            let mut byte = [0];
            patient.read_exact(&mut byte).expect("a byte");
            begin.push(byte[0]);
            for byte in &head[second * 20..][..20] {
                writing.write_all(&[*byte]).expect("the server reads it");
                thread::sleep(Duration::from_millis(50));
            }
        }
        // A client that continues to read gets the whole answer, and one that continues to write is answered.
        writing.write_all(rest).expect("the server reads it");
        let written = ResponseReader::begin(writing).finish();
        let mut read = String::from_utf8(begin).expect("UTF-8");
        patient.read_to_string(&mut read).expect("the rest");
        assert!(read.starts_with("HTTP/1.1 200 OK\r\n"), "{read}");
        let (_, body) = read.split_once("\r\n\r\n").expect("a body");
        // Removes the lines of the chunked encoding, which end with CRLF; those of events end with LF.
        let body: String = body.split_inclusive('\n').filter(|line| !line.ends_with("\r\n")).collect();
        assert!(streamed_text(&written).ends_with("47 + 38 = 85."), "{}", written.body);
        assert_eq!(data(&body), data(&written.body));
    });
}

/// The server accepts one connection at a time, so that each further request is answered only after the stalled connection was closed.
#[test]
fn clients_that_stall_lose_their_connections() {
    let _alone = shared_server();
    let second = Duration::from_secs(1);
    let settings = Settings {
        max_connections: 1,
        header_time: second,
        body_time: second,
        write_time: second,
        ..Settings::default()
    };
    let server = Running::start_on(Box::new(engine(None)), settings, Options::default());
    let rest = |mut stream: TcpStream| {
        let mut rest = Vec::new();
        // The server may also reset the connection; what arrived before that is kept.
        let _ = stream.read_to_end(&mut rest);
        String::from_utf8_lossy(&rest).into_owned()
    };
    for head in ["", "GET /version HTTP/1.1\r\nhost"] {
        let stalled = sent(&server, head.as_bytes());
        assert_eq!(server.get("/version").status, 200, "{head:?}");
        assert_eq!(rest(stalled), "", "{head:?}");
    }

    let head = "POST /tokenize HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 100\r\n\r\n{\"content\": ";
    let stalled = sent(&server, head.as_bytes());
    assert_eq!(server.get("/version").status, 200);
    let answer = rest(stalled);
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("did not arrive in time"), "{answer}");

    // An answer that is larger than the system's buffers of a connection.
    let many = json!({ "content": "word ".repeat(500_000), "with_pieces": true }).to_string();
    let stalled = sent(&server, &request("/tokenize", many.as_bytes()));
    narrow(&stalled);
    assert_eq!(server.get("/version").status, 200);
    let answer = rest(stalled);
    assert!(answer.starts_with("HTTP/1.1 200 "), "{}", &answer[..answer.len().min(200)]);
    let length = answer.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
    assert!(length.is_some_and(|length| answer.len() < length), "{length:?}, {} bytes read", answer.len());
}

/// The events of a stream, without the fields that differ between streams.
fn data(body: &str) -> Vec<serde_json::Value> {
    let lines = body.lines().filter_map(|line| line.strip_prefix("data: {"));
    let deltas = lines.map(|line| {
        let event: serde_json::Value = serde_json::from_str(&format!("{{{line}")).expect("JSON");
        event["choices"].clone()
    });
    deltas.collect()
}

/// Makes the receive buffer of a connection small.
fn narrow(stream: &TcpStream) {
    let bytes: libc::c_int = 4096;
    let (value, size) = ((&raw const bytes).cast(), size_of::<libc::c_int>() as libc::socklen_t);
    // SAFETY: `value` points to `size` bytes, and the socket is open.
    let set = unsafe { libc::setsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, value, size) };
    assert_eq!(set, 0);
}
