//! `/openapi.json`: the description of the API, for programs that generate clients.

use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};

const DOCUMENT: &str = include_str!("../page/openapi.json");

pub async fn openapi() -> Response {
    let text = DOCUMENT.replacen("\"VERSION\"", concat!("\"", env!("CARGO_PKG_VERSION"), "\""), 1);
    let mut response = text.into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    #[test]
    fn every_route_is_described_and_nothing_else() {
        let document: Value = serde_json::from_str(DOCUMENT).expect("JSON");
        assert_eq!(document["info"]["version"], "VERSION");
        let described = document["paths"].as_object().expect("paths").iter().flat_map(|(path, methods)| {
            let methods = methods.as_object().expect("methods").keys();
            methods.map(move |method| format!("{method} {path}"))
        });
        let routes = include_str!("mod.rs").split(".route(\"").skip(1).flat_map(|rest| {
            let (path, rest) = rest.split_once("\", ").expect("a path");
            let handlers = rest.split_once('\n').map_or(rest, |(line, _)| line);
            let methods =
                ["get", "post", "delete"].into_iter().filter(move |method| handlers.contains(&format!("{method}(")));
            methods.map(move |method| format!("{method} {}", path.replace("{*id}", "{id}")))
        });
        assert_eq!(described.collect::<BTreeSet<_>>(), routes.collect::<BTreeSet<_>>());
    }

    /// Fields that the server parses only to refuse them need no description.
    #[test]
    fn every_field_that_is_used_is_described() {
        let document: Value = serde_json::from_str(DOCUMENT).expect("JSON");
        let (chat, completion) = (include_str!("chat/request.rs"), include_str!("completions/request.rs"));
        let (response, ollama) = (include_str!("responses/request.rs"), include_str!("ollama/request.rs"));
        let requests: [(&str, &str, &str, &[&str]); 5] = [
            ("ChatRequest", chat, "ChatRequest", &["functions", "function_call", "modalities"]),
            ("CompletionRequest", completion, "CompletionRequest", &["best_of", "suffix"]),
            ("ResponseRequest", response, "ResponseRequest", &["conversation", "prompt", "background"]),
            ("OllamaChatRequest", ollama, "ChatRequest", &[]),
            ("OllamaGenerateRequest", ollama, "GenerateRequest", &["suffix", "images"]),
        ];
        for (schema, source, name, refused) in requests {
            let (_, rest) = source.split_once(&format!("pub struct {name} {{")).expect("a struct");
            let (fields, _) = rest.split_once("\n}").expect("its end");
            let fields = fields.lines().filter_map(|line| line.trim().strip_prefix("pub ")?.split_once(':'));
            let fields = fields.map(|(field, _)| field).filter(|field| !refused.contains(field));
            let described = document["components"]["schemas"][schema]["properties"].as_object().expect("properties");
            let described = described.keys().map(String::as_str);
            assert_eq!(described.collect::<BTreeSet<_>>(), fields.collect::<BTreeSet<_>>(), "{schema}");
        }
    }

    #[test]
    fn references_resolve() {
        let document: Value = serde_json::from_str(DOCUMENT).expect("JSON");
        let mut found = 0;
        for rest in DOCUMENT.split("\"$ref\": \"#").skip(1) {
            let pointer = rest.split('"').next().expect("a pointer");
            assert!(document.pointer(pointer).is_some(), "{pointer}");
            found += 1;
        }
        assert!(found > 0);
    }
}
