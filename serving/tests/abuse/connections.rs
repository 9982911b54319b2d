//! Many connections, and connections that send something other than HTTP.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::json;
use serving::api::Settings;

use crate::http::{ResponseReader, Running};
use crate::shared_server::{CHAT, RUNNING, WAITING, ask, assert_refused, open_files, request, sent, shared_server};

/// The beginning of a TLS handshake.
const TLS: &[u8] = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\0\0\0\0\0\0\0\0";

#[test]
fn survives_a_thousand_connections() {
    let shared_server = shared_server();
    // Both ends of each connection are in this process, which also has other files open.
    let most = open_files().saturating_sub(200) / 2;
    assert!(most >= 200, "{} open files are too few for this test; raise the hard limit", open_files());
    let count = most.min(1000);
    shared_server.assert_survives(|server| {
        let mut silent: Vec<TcpStream> = (0..count).map(|_| sent(server, b"")).collect();
        assert_eq!(server.get("/health").status, 200);
        let asking = silent.split_off(count / 2);
        for (index, stream) in silent.iter_mut().enumerate() {
            let bytes: &[u8] = match index % 3 {
                0 => b"POST /v1/chat/comp",
                1 => b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{\"mess",
                _ => b"",
            };
            stream.write_all(bytes).expect("the server reads it");
        }
        // The other half send a request at the same time: a few are answered, the others are asked to try again later.
        let body = ask("What is 2 + 2?", json!({ "max_tokens": 100 })).to_string();
        let bytes = request(CHAT, body.as_bytes());
        let mut answered = 0;
        for mut stream in &asking {
            stream.write_all(&bytes).expect("the server reads it");
        }
        for (index, stream) in asking.into_iter().enumerate() {
            let answer = ResponseReader::begin(stream).finish();
            if answer.status == 200 {
                assert_eq!(answer.json()["choices"][0]["message"]["content"], "2 + 2 = 4.");
                answered += 1;
                continue;
            }
            assert_refused(&format!("request {index}"), &answer, 429, Some("rate_limit_exceeded"), None);
            let delay = answer.header("retry-after").and_then(|delay| delay.parse::<u64>().ok());
            assert!(delay.is_some_and(|delay| (1..=60).contains(&delay)), "{delay:?}");
        }
        // The neighbour (the client that `assert_survives` runs meanwhile) takes one of the places of running and waiting requests.
        assert!(answered >= RUNNING + WAITING - 1, "{answered} answers; {count} connections, half of which asked");
    });
}

#[test]
fn survives_data_that_is_not_http() {
    shared_server().assert_survives(|server| {
        let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n";
        let headers = "x-a: y\r\n".repeat(1000);
        let refused = |bytes: &[u8]| {
            let mut stream = sent(server, bytes);
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).expect("an end");
            String::from_utf8_lossy(&answer).into_owned()
        };
        for (bytes, status) in [
            (TLS.to_vec(), "400"),
            (b"GET /health\r\n\r\n".to_vec(), "400"),
            (format!("{head}content-length: many\r\n\r\n").into_bytes(), "400"),
            (format!("{head}content-length: -1\r\n\r\n").into_bytes(), "400"),
            (format!("{head}content-length: 1\r\ncontent-length: 2\r\n\r\n").into_bytes(), "400"),
            (format!("{head}transfer-encoding: chunked\r\n\r\nzz\r\n").into_bytes(), "400"),
            (format!("{head}transfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n").into_bytes(), "400"),
            (format!("{head}{headers}\r\n").into_bytes(), "431"),
        ] {
            let answer = refused(&bytes);
            let what = String::from_utf8_lossy(&bytes[..bytes.len().min(120)]).into_owned();
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{what:?}: {answer}");
        }
    });
}

/// Connections beyond the limit wait, and are served when others are closed.
#[test]
fn connections_beyond_the_limit_wait() {
    let server = Running::starting(Settings { max_connections: 4, ..Settings::default() });
    // A connection has certainly been accepted once an answer arrives on it.
    let mut taken: Vec<TcpStream> = Vec::new();
    for _ in 0..4 {
        let mut stream = sent(&server, b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n");
        assert!(stream.read(&mut [0; 16]).expect("an answer") > 0);
        taken.push(stream);
    }
    let mut late = sent(&server, b"GET /version HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    late.set_read_timeout(Some(Duration::from_millis(300))).expect("a timeout");
    let kind = late.read(&mut [0; 16]).map_err(|error| error.kind());
    assert!(matches!(kind, Err(ErrorKind::WouldBlock | ErrorKind::TimedOut)), "{kind:?}");
    drop(taken.pop());
    late.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
    assert_eq!(ResponseReader::begin(late).finish().status, 200);
}
