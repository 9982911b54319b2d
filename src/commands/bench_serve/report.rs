//! The record of a measurement: its results, the server, and all data that is needed to repeat it.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::http::Target;
use crate::args::BenchServe;
use crate::commands::record;

/// The format name by which the notebooks recognize records.
const FORMAT: &str = "gptoss bench-serve 1";

/// The record of a workload's results, an object, as text.
pub fn text(args: &BenchServe, target: &Target, model: &str, workload: &str, results: &Value) -> String {
    // Some servers name a model by the path of its file, which is private.
    let path = Some(PathBuf::from(model)).filter(|path| path.is_absolute());
    let mut content = json!({
        "format": FORMAT,
        "workload": workload,
        "url": args.url,
        "model": path.as_deref().map_or_else(|| model.to_owned(), record::name),
        "server": server(target),
        "label": args.label,
        "seed": args.seed,
    });
    for (name, value) in record::origin(path.as_slice()) {
        content[name] = value;
    }
    for (name, value) in results.as_object().into_iter().flatten() {
        content[name] = value.clone();
    }
    format!("{content:#}\n")
}

/// The name and version of a server; each is null if the server does not report it.
fn server(target: &Target) -> Value {
    let text = |path: &str, at: &str| Some(target.get(path).ok()?.pointer(at)?.as_str()?.to_owned());
    let name = text("/v1/models", "/data/0/owned_by");
    // llama-server has no `/version`.
    let version = text("/version", "/version").or_else(|| text("/props", "/build_info"));
    json!({ "name": name, "version": version })
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;

    use super::*;

    /// What is recorded of a server that answers these paths, and all others with status 404.
    fn recorded(answers: &'static [(&'static str, &'static str)]) -> Value {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address").to_string();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.expect("a connection");
                let mut reader = BufReader::new(stream.try_clone().expect("a handle"));
                let mut request = String::new();
                while !request.ends_with("\r\n\r\n") {
                    assert!(reader.read_line(&mut request).expect("a line") > 0, "{request:?}");
                }
                let path = request.split(' ').nth(1).expect("a path");
                let answer = answers.iter().find(|(known, _)| *known == path);
                let (status, body) = answer.map_or(("404 Not Found", ""), |&(_, body)| ("200 OK", body));
                write!(stream, "HTTP/1.1 {status}\r\n\r\n{body}").expect("it reads");
            }
        });
        server(&Target::parse(&address, None).expect("an address"))
    }

    #[test]
    fn servers_report_name_and_version() {
        const MODELS: (&str, &str) = ("/v1/models", r#"{ "data": [{ "id": "m", "owned_by": "someone" }] }"#);
        const VERSION: (&str, &str) = ("/version", r#"{ "version": "1.2" }"#);
        const PROPS: (&str, &str) = ("/props", r#"{ "build_info": "b1" }"#);
        assert_eq!(recorded(&[MODELS, VERSION, PROPS]), json!({ "name": "someone", "version": "1.2" }));
        assert_eq!(recorded(&[MODELS, PROPS]), json!({ "name": "someone", "version": "b1" }));
        assert_eq!(recorded(&[("/version", "1.2")]), json!({ "name": null, "version": null }));
    }
}
