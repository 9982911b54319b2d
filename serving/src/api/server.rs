//! The sockets: connections are taken, limited, and let go.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tower_service::Service;

use super::app::App;
use super::guard::Peer;
use super::{router, system};

/// For the headers of a request to arrive, and for a connection between two requests.
const HEADER_PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of a request's headers.
const HEADER_BYTES: usize = 64 << 10;
/// For answers that were broken off to say so.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// A server that listens.
pub struct Server {
    listener: TcpListener,
    app: Arc<App>,
}

impl Server {
    /// Listens. `host` may be a name; port 0 takes a free one.
    ///
    /// # Errors
    /// An address that is taken or not this machine's.
    pub async fn bind(app: Arc<App>, host: &str, port: u16) -> io::Result<Server> {
        system::allow_open_files(app.settings.max_connections);
        Ok(Server { listener: TcpListener::bind((host, port)).await?, app })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// A socket that the system has closed.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `end` comes. Then nothing new begins, what runs has `grace` to finish, and the rest is told and broken off.
    pub async fn run(self, end: impl Future<Output = ()>, grace: Duration) {
        let Server { listener, app } = self;
        let router = router(app.clone());
        let places = Arc::new(Semaphore::new(app.settings.max_connections));
        let (close, closing) = watch::channel(());
        let accepting = async {
            loop {
                // The semaphore is never closed.
                let Ok(place) = places.clone().acquire_owned().await else { return };
                match listener.accept().await {
                    Ok((stream, peer)) => {
                        let connection = serve(stream, peer, router.clone(), closing.clone());
                        tokio::spawn(async move {
                            connection.await;
                            drop(place);
                        });
                    }
                    // No more files, most likely: some will be closed.
                    Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                }
            }
        };
        let draining = async {
            end.await;
            app.drain();
            let until = Instant::now() + grace;
            while !app.is_idle() && Instant::now() < until {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            app.stop();
            let until = Instant::now() + LAST_WORDS;
            while !app.is_idle() && Instant::now() < until {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        // New connections hear that the server is on its way out.
        tokio::select! {
            () = accepting => {}
            () = draining => {}
            () = system::give_memory_back(&app) => {}
        }
        drop(listener);
        // Connections finish what they write and are closed.
        drop(closing);
        let _ = close.send(());
        let _ = tokio::time::timeout(LAST_WORDS, close.closed()).await;
    }
}

async fn serve(stream: TcpStream, peer: SocketAddr, router: Router, mut closing: watch::Receiver<()>) {
    // Pieces of a stream should not wait for each other.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(Peer(peer));
        router.clone().call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_PATIENCE)
        .max_buf_size(HEADER_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        _ = connection.as_mut() => return,
        _ = closing.changed() => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = connection.await;
}
