//! Bodies above the size limit, of up to a hundred megabytes, and large bodies below it, which are parsed.

use std::io::Write;
use std::thread;

use serde_json::json;

use crate::http::{Answer, MODEL, ResponseReader, Running};
use crate::shared_server::{CHAT, assert_refused, sent, shared_server};

const MEGABYTE: usize = 1_000_000;

/// Sends a large body in pieces, with a content length or in chunks.
fn upload(server: &Running, path: &str, bytes: usize, chunked: bool) -> Answer {
    let framing = if chunked { "transfer-encoding: chunked".into() } else { format!("content-length: {bytes}") };
    let mut stream =
        sent(server, format!("POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{framing}\r\n\r\n").as_bytes());
    let piece = [b'x'; 50_000];
    let framed = match chunked {
        true => [format!("{:x}\r\n", piece.len()).as_bytes(), &piece, b"\r\n"].concat(),
        false => piece.to_vec(),
    };
    for _ in 0..bytes / piece.len() {
        stream.write_all(&framed).expect("the server reads the body, even to discard it");
    }
    if chunked {
        stream.write_all(b"0\r\n\r\n").expect("the server reads it");
    }
    ResponseReader::begin(stream).finish()
}

#[test]
fn refuses_a_body_of_a_hundred_megabytes() {
    shared_server().assert_survives(|server| {
        thread::scope(|scope| {
            for (path, chunked) in [(CHAT, false), (CHAT, true), ("/v1/responses", false), ("/tokenize", true)] {
                scope.spawn(move || {
                    let answer = upload(server, path, 100 * MEGABYTE, chunked);
                    assert_refused(path, &answer, 413, Some("request_too_large"), None);
                });
            }
        });
        // Ollama's paths return errors in Ollama's format.
        let answer = upload(server, "/api/chat", 20 * MEGABYTE, false);
        assert_eq!((answer.status, answer.json()["error"].is_string()), (413, true), "{}", answer.body);
        // A client that sends `Expect: 100-continue` need not send the body.
        for length in ["100000000", "1000000000000000000"] {
            let head =
                format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\nexpect: 100-continue\r\n\r\n");
            let answer = ResponseReader::begin(sent(server, head.as_bytes())).finish();
            assert_refused(length, &answer, 413, Some("request_too_large"), None);
        }
    });
}

#[test]
fn refuses_long_prompts_within_the_body_limit() {
    shared_server().assert_survives(|server| {
        let long = json!({ "model": MODEL, "messages": [{ "role": "user", "content": "word ".repeat(MEGABYTE) }] });
        let word = json!({ "model": MODEL, "messages": [{ "role": "user", "content": "x".repeat(15 * MEGABYTE) }] });
        let many = json!({ "model": MODEL, "messages": vec![json!({ "role": "user", "content": "" }); 100_000] });
        for (what, path, body, param) in [
            ("a long message", CHAT, &long, "messages"),
            ("a long word", CHAT, &word, "messages"),
            ("many messages", CHAT, &many, "messages"),
            ("a long prompt", "/v1/completions", &json!({ "prompt": "x".repeat(MEGABYTE) }), "prompt"),
            ("many tokens", "/v1/completions", &json!({ "prompt": vec![7; 200_000] }), "prompt"),
            ("a long input", "/v1/responses", &json!({ "input": "word ".repeat(MEGABYTE / 4) }), "input"),
        ] {
            assert_refused(what, &server.post(path, body), 400, Some("context_length_exceeded"), Some(param));
        }
        let name = json!({ "model": "m".repeat(MEGABYTE), "messages": [{ "role": "user", "content": "x" }] });
        assert_refused("a long name", &server.post(CHAT, &name), 404, Some("model_not_found"), Some("model"));
        let url = server.get(&format!("/{}", "a".repeat(60_000)));
        assert_refused("a long path", &url, 404, Some("unknown_url"), None);
    });
}
