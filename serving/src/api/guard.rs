//! The middleware that every request passes first: sets the request's id, and checks its key and its origin.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use subtle::ConstantTimeEq;

use super::app::App;
use super::error::ApiError;
use super::id;
use super::key::Key;
use super::record::Record;

/// The client's address.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// Passes a request on, answers a CORS preflight request, or refuses the request with an error. The response always has the request's id.
pub async fn guard(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let headers = request.headers();
    let origin = headers.get(header::ORIGIN).cloned();
    let allowed = origin.as_ref().and_then(|origin| app.settings.cors_answer(origin));
    let id = request_id(headers).unwrap_or_else(|| id::random("req_"));
    let key = authorized(&app.settings.keys, headers);
    let peer = request.extensions().get::<Peer>().map(|peer| peer.0.ip());
    let address = || peer.map(|peer| peer.to_string());
    let client = key.map(|key| key.name.clone()).or_else(address).unwrap_or_else(|| "-".into());
    // Only a server without keys has to check the host: a page of another site does not know a key.
    let is_open_here = app.settings.keys.is_empty() && peer.is_some_and(|peer| peer.to_canonical().is_loopback());
    let quiet = matches!(path.as_str(), "/health" | "/ping" | "/metrics");
    let record = Record::begin(id, request.method().as_str(), &path, client, quiet);

    let preflight = request.method() == Method::OPTIONS && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let mut response = if preflight && allowed.is_some() {
        empty(StatusCode::NO_CONTENT)
    } else if origin.is_some_and(|origin| allowed.is_none() && !is_own_page(&origin, headers, is_open_here)) {
        ApiError::forbidden_origin().respond_on(&path)
    } else if key.is_none() && !app.settings.keys.is_empty() && !is_open(&path) {
        let message = match headers.contains_key(header::AUTHORIZATION) {
            true => "Incorrect API key provided.",
            false => "You didn't provide an API key; send it as `Authorization: Bearer KEY`.",
        };
        ApiError::unauthorized(message).respond_on(&path)
    } else {
        request.extensions_mut().insert(record.clone());
        next.run(request).await
    };

    let headers = response.headers_mut();
    headers.extend(HeaderValue::from_str(record.id()).map(|id| (HeaderName::from_static("x-request-id"), id)));
    if let Some(origin) = allowed {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::VARY, HeaderValue::from_static("origin"));
        let exposed = HeaderValue::from_static("x-request-id, retry-after");
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
        if preflight {
            let methods = HeaderValue::from_static("GET, POST, DELETE, OPTIONS");
            headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
            headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("*, authorization"));
            headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
        }
    }
    record.facts().status = Some(response.status());
    app.metrics.answer();
    response
}

/// Paths that need no key, because they reveal nothing private.
fn is_open(path: &str) -> bool {
    matches!(path, "/" | "/health" | "/ping" | "/version" | "/openapi.json" | "/api/version")
}

/// The client's own request id, if it is safe to write to the log.
fn request_id(headers: &HeaderMap) -> Option<String> {
    let id = headers.get("x-request-id")?.to_str().ok()?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
    ((1..=128).contains(&id.len()) && id.bytes().all(plain)).then(|| id.to_owned())
}

/// The key in the headers. Compares all keys, in constant time.
fn authorized<'a>(keys: &'a [Key], headers: &HeaderMap) -> Option<&'a Key> {
    let given = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
    let bearer = given.and_then(|value| match value.split_at_checked(7) {
        Some((scheme, secret)) if scheme.eq_ignore_ascii_case(b"bearer ") => Some(secret.trim_ascii()),
        _ => None,
    });
    let given = bearer.or_else(|| headers.get("x-api-key").map(HeaderValue::as_bytes))?;
    let mut found = None;
    for key in keys {
        if bool::from(key.secret.as_bytes().ct_eq(given)) {
            found = Some(key);
        }
    }
    found
}

/// Whether the request comes from a web page of this server. With `only_addresses`, the host must be an IP address or `localhost`: the
/// owner of another site can make its name resolve to this machine (DNS rebinding), so that its pages seem to be this server's.
fn is_own_page(origin: &HeaderValue, headers: &HeaderMap, only_addresses: bool) -> bool {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let origin = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
    host.zip(origin)
        .is_some_and(|(host, (_, origin))| host.eq_ignore_ascii_case(origin) && (!only_addresses || is_address(host)))
}

/// Whether a host is an IP address or `localhost`, with or without a port.
fn is_address(host: &str) -> bool {
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let is_ip = |text: &str| text.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    name.eq_ignore_ascii_case("localhost") || is_ip(name) || is_ip(host)
}

fn empty(status: StatusCode) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let fields =
            fields.iter().map(|&(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        fields.collect()
    }

    #[test]
    fn keys_are_parsed_and_authorize() {
        let keys = Key::parse_lines("# team\nsecret-1\n\n  ada  secret-2 \n", 0);
        let names: Vec<_> = keys.iter().map(|key| (key.name.as_str(), key.secret.as_str())).collect();
        assert_eq!(names, [("key1", "secret-1"), ("ada", "secret-2")]);
        assert_eq!(Key::parse_lines("secret-3", 2)[0].name, "key3");
        let found = |fields| authorized(&keys, &headers(fields)).map(|key| key.name.as_str());
        assert_eq!(found(&[("authorization", "Bearer secret-2")]), Some("ada"));
        assert_eq!(found(&[("authorization", "bearer secret-1")]), Some("key1"));
        assert_eq!(found(&[("x-api-key", "secret-1")]), Some("key1"));
        assert_eq!(found(&[("authorization", "Bearer secret-")]), None);
        assert_eq!(found(&[("authorization", "secret-1")]), None);
        assert_eq!(found(&[]), None);
    }

    #[test]
    fn ids_that_could_forge_a_log_line_are_replaced() {
        assert_eq!(request_id(&headers(&[("x-request-id", "a-1.b:2_c")])).as_deref(), Some("a-1.b:2_c"));
        assert_eq!(request_id(&headers(&[("x-request-id", "a status=200")])), None);
        assert_eq!(request_id(&headers(&[("x-request-id", "")])), None);
    }

    #[test]
    fn same_origin_is_recognized() {
        let here = headers(&[("host", "127.0.0.1:8080")]);
        assert!(is_own_page(&HeaderValue::from_static("http://127.0.0.1:8080"), &here, true));
        assert!(!is_own_page(&HeaderValue::from_static("http://evil.example"), &here, true));
        assert!(!is_own_page(&HeaderValue::from_static("null"), &here, true));
        let named = headers(&[("host", "a.example:8080")]);
        let page = HeaderValue::from_static("http://a.example:8080");
        assert!(is_own_page(&page, &named, false) && !is_own_page(&page, &named, true));
    }

    #[test]
    fn names_that_may_be_of_another_site_are_no_addresses() {
        for host in ["127.0.0.1", "127.0.0.1:80", "LocalHost", "localhost:8080", "[::1]", "[::1]:8080", "192.168.0.7:1"]
        {
            assert!(is_address(host), "{host}");
        }
        for host in ["", "a.example", "a.example:8080", "localhost.example", "127.0.0.1.example:80", "x127.0.0.1"] {
            assert!(!is_address(host), "{host}");
        }
    }
}
