//! An HTTP/1.1 client without TLS: one request per connection; responses are read as they arrive.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::bail;
use serde_json::Value;

/// How long to wait for the server to write anything.
const READ_TIMEOUT: Duration = Duration::from_secs(600);

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Status 429: the server asks the client to retry later.
    Busy,
    Failed(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Busy => f.write_str("429: too many requests"),
            Failure::Failed(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for Failure {}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Failed(error.to_string())
    }
}

/// A server, and the path at which its API begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Host and port.
    address: String,
    /// The path before `/v1`.
    base: String,
    key: Option<String>,
}

impl Target {
    /// Parses `http://HOST:PORT/BASE`, with or without `/v1` at its end.
    ///
    /// # Errors
    /// The scheme is not http.
    pub fn parse(url: &str, key: Option<String>) -> anyhow::Result<Target> {
        let rest = match url.split_once("://") {
            Some(("http", rest)) => rest,
            Some((scheme, _)) => bail!("the scheme {scheme} is not supported; give the http address behind the proxy"),
            None => url,
        };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let is_port = |(_, port): (&str, &str)| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
        let address = match authority.rsplit_once(':').is_some_and(is_port) {
            true => authority.to_owned(),
            false => format!("{authority}:80"),
        };
        let path = path.trim_end_matches('/');
        let base = match path.rsplit_once('/') {
            Some((before, "v1")) => before,
            None if path == "v1" => "",
            _ => path,
        };
        let base = if base.is_empty() { String::new() } else { format!("/{base}") };
        Ok(Target { address, base, key })
    }

    /// Fetches JSON from a path.
    ///
    /// # Errors
    /// The server does not answer, its status is not 200, or its body is not JSON.
    pub fn get(&self, path: &str) -> Result<Value, Failure> {
        self.send("GET", path, "")?.json()
    }

    /// Sends JSON.
    ///
    /// # Errors
    /// The server does not answer, or its status is not 200.
    pub fn post(&self, path: &str, body: &Value) -> Result<Response, Failure> {
        self.send("POST", path, &body.to_string())
    }

    fn send(&self, method: &str, path: &str, body: &str) -> Result<Response, Failure> {
        let Target { address, base, key } = self;
        let unreachable = |error: io::Error| Failure::Failed(format!("{address} cannot be reached: {error}"));
        let mut stream = TcpStream::connect(address).map_err(unreachable)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(READ_TIMEOUT))?;
        let key = key.as_ref().map_or(String::new(), |key| format!("authorization: Bearer {key}\r\n"));
        let length = body.len();
        let request = format!(
            "{method} {base}{path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\naccept: */*\r\n{key}\
             content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes())?;
        let response = Response::begin(stream)?;
        match response.status {
            200 => Ok(response),
            429 => Err(Failure::Busy),
            status => Err(Failure::Failed(format!("{status}: {}", response.complaint()))),
        }
    }
}

/// A response whose head has been read. Dropping it closes the connection.
pub struct Response {
    status: u16,
    body: BufReader<Box<dyn Read + Send>>,
}

impl Response {
    fn begin(stream: TcpStream) -> Result<Response, Failure> {
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.ok_or_else(|| Failure::Failed(format!("no answer in HTTP: {line:?}")))?;
        let (mut chunked, mut length) = (false, None);
        loop {
            line.clear();
            if reader.read_line(&mut line)? == 0 || line.trim_end().is_empty() {
                break;
            }
            let Some((name, value)) = line.split_once(':') else { continue };
            match name.to_ascii_lowercase().as_str() {
                "transfer-encoding" => chunked = value.trim().eq_ignore_ascii_case("chunked"),
                "content-length" => length = value.trim().parse().ok(),
                _ => {}
            }
        }
        let body: Box<dyn Read + Send> = match length {
            _ if chunked => Box::new(Chunks { inner: reader, left: 0, has_begun: false, has_ended: false }),
            Some(length) => Box::new(reader.take(length)),
            None => Box::new(reader),
        };
        Ok(Response { status, body: BufReader::new(body) })
    }

    /// The next line without its line break; `None` after the last one.
    ///
    /// # Errors
    /// The connection is interrupted, or the body is not UTF-8 or not in valid chunks.
    pub fn line(&mut self) -> Result<Option<String>, Failure> {
        let mut line = String::new();
        match self.body.read_line(&mut line)? {
            0 => Ok(None),
            _ => Ok(Some(line.trim_end_matches(['\r', '\n']).to_owned())),
        }
    }

    /// The whole body, parsed as JSON.
    ///
    /// # Errors
    /// The connection is interrupted, or the body is not JSON or not in valid chunks.
    pub fn json(mut self) -> Result<Value, Failure> {
        let mut text = String::new();
        self.body.read_to_string(&mut text)?;
        serde_json::from_str(&text).map_err(|error| Failure::Failed(format!("an answer that is not JSON: {error}")))
    }

    /// The message of an error response.
    fn complaint(mut self) -> String {
        let mut text = String::new();
        // If the connection is interrupted, the text that has arrived is used.
        let _ = self.body.read_to_string(&mut text);
        let message = serde_json::from_str::<Value>(&text).ok().and_then(|body| {
            let error = &body["error"];
            error["message"].as_str().or(error.as_str()).map(str::to_owned)
        });
        message.unwrap_or_else(|| text.chars().take(200).collect())
    }
}

/// A chunked body.
struct Chunks {
    inner: BufReader<TcpStream>,
    /// Remaining bytes of the current chunk.
    left: usize,
    has_begun: bool,
    has_ended: bool,
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 && !self.has_ended {
            let mut line = String::new();
            // A line break follows the bytes of a chunk.
            if std::mem::replace(&mut self.has_begun, true) {
                self.inner.read_line(&mut line)?;
                line.clear();
            }
            self.inner.read_line(&mut line)?;
            let length = line.split(';').next().unwrap_or_default().trim();
            let broken = |_| io::Error::other(format!("the answer is malformed: {line:?} is not a chunk length"));
            self.left = usize::from_str_radix(length, 16).map_err(broken)?;
            self.has_ended = self.left == 0;
        }
        if self.has_ended || buffer.is_empty() {
            return Ok(0);
        }
        let most = buffer.len().min(self.left);
        let read = self.inner.read(&mut buffer[..most])?;
        if read == 0 {
            return Err(io::Error::other("the answer broke off in the middle"));
        }
        self.left -= read;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_parsed() {
        let parts = |url: &str| {
            let Target { address, base, .. } = Target::parse(url, None).expect("an address");
            (address, base)
        };
        let expected = |address: &str, base: &str| (address.to_owned(), base.to_owned());
        assert_eq!(parts("http://127.0.0.1:8080"), expected("127.0.0.1:8080", ""));
        assert_eq!(parts("http://127.0.0.1:8080/v1/"), expected("127.0.0.1:8080", ""));
        assert_eq!(parts("localhost"), expected("localhost:80", ""));
        assert_eq!(parts("http://[::1]/a/b/v1"), expected("[::1]:80", "/a/b"));
        assert_eq!(parts("http://[::1]:81/mv1"), expected("[::1]:81", "/mv1"));
        assert!(Target::parse("https://example.org", None).is_err());
    }

    /// The lines that are read of a response with this text.
    fn read(response: &'static str) -> Result<Vec<String>, Failure> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        let target = Target::parse(&listener.local_addr()?.to_string(), Some("key".into())).expect("an address");
        let serving = std::thread::spawn(move || -> io::Result<String> {
            let (mut stream, _) = listener.accept()?;
            let mut request = String::new();
            let mut reader = BufReader::new(stream.try_clone()?);
            while !request.ends_with("\r\n\r\n") {
                reader.read_line(&mut request)?;
            }
            // The body has two bytes.
            reader.read_exact(&mut [0; 2])?;
            stream.write_all(response.as_bytes())?;
            Ok(request)
        });
        let mut lines = Vec::new();
        let mut read = || -> Result<(), Failure> {
            let mut response = target.post("/v1/x", &serde_json::json!({}))?;
            while let Some(line) = response.line()? {
                lines.push(line);
            }
            Ok(())
        };
        let ended = read();
        let request = serving.join().expect("no panic")?;
        assert!(
            request.starts_with("POST /v1/x HTTP/1.1\r\n") && request.contains("\r\nauthorization: Bearer key\r\n")
        );
        ended.map(|()| lines)
    }

    #[test]
    fn bodies_of_every_framing_are_read() {
        let ok = "HTTP/1.1 200 OK\r\n";
        let both = "a\nb\n";
        let lines = Ok(vec!["a".to_owned(), "b".to_owned()]);
        for rest in [
            format!("content-length: 4\r\n\r\n{both}and more"),
            format!("\r\n{both}"),
            "Transfer-Encoding: chunked\r\n\r\n1;x=y\r\na\r\n3\r\n\nb\n\r\n0\r\n\r\n".to_owned(),
        ] {
            assert_eq!(read(format!("{ok}{rest}").leak()), lines, "{rest}");
        }
        let broken = read("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab");
        assert!(matches!(broken, Err(Failure::Failed(what)) if what.contains("broke off")));
    }

    #[test]
    fn errors_contain_the_servers_message() {
        assert_eq!(read("HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\n\r\n"), Err(Failure::Busy));
        let refused = |text: &str| Err(Failure::Failed(text.to_owned()));
        let body = "HTTP/1.1 400 Bad Request\r\n\r\n{\"error\": {\"message\": \"no prompt\"}}";
        assert_eq!(read(body), refused("400: no prompt"));
        assert_eq!(read("HTTP/1.1 500 X\r\n\r\nsorry"), refused("500: sorry"));
        assert!(matches!(read("nonsense"), Err(Failure::Failed(what)) if what.contains("no answer in HTTP")));
    }
}
