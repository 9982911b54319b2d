//! Stub of `reqwest`, with which `openai-harmony` downloads a vocabulary that is missing. All requests fail.

pub mod blocking {
    use std::io::{Empty, Error};

    /// Fails every request.
    #[derive(Default)]
    pub struct Client;

    impl Client {
        pub fn new() -> Client {
            Client
        }

        pub fn get(&self, url: &str) -> Request {
            Request(url.to_owned())
        }
    }

    pub struct Request(String);

    impl Request {
        pub fn send(self) -> Result<Response, Error> {
            Err(Error::other(format!("{} is not downloaded", self.0)))
        }
    }

    /// Never constructed.
    pub struct Response(Empty);

    impl Response {
        pub fn error_for_status(self) -> Result<Response, Error> {
            Ok(self)
        }
    }

    impl std::io::Read for Response {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            self.0.read(buffer)
        }
    }
}
