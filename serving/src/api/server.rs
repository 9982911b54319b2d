//! Accepts, limits and closes connections.

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
use super::write_timeout::WriteTimeout;
use super::{router, system};

/// The largest size of a request's headers, in bytes.
const HEADER_BYTES: usize = 64 << 10;
/// The longest time for aborted answers to send an error, and then for connections to close.
const ABORT_TIMEOUT: Duration = Duration::from_secs(2);

/// A listening server.
pub struct Server {
    listener: TcpListener,
    app: Arc<App>,
}

impl Server {
    /// Binds the socket. `host` may be a name; port 0 selects a free port.
    ///
    /// # Errors
    /// The address is in use or not local, or the name is unknown.
    pub async fn bind(app: Arc<App>, host: &str, port: u16) -> io::Result<Server> {
        system::allow_open_files(app.settings.max_connections);
        Ok(Server { listener: TcpListener::bind((host, port)).await?, app })
    }

    /// The bound address.
    ///
    /// # Errors
    /// The socket has been closed.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `end` completes. Then new requests are refused, running ones have `grace` to finish, and those that
    /// still run after that end with an error.
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
                        let connection = serve(stream, peer, app.clone(), router.clone(), closing.clone());
                        tokio::spawn(async move {
                            connection.await;
                            drop(place);
                        });
                    }
                    // Most likely the limit of open files is reached. Waits for connections to close, and tries again.
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
            let until = Instant::now() + ABORT_TIMEOUT;
            while !app.is_idle() && Instant::now() < until {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        // During the shutdown, connections are still accepted; their requests receive an error.
        tokio::select! {
            () = accepting => {}
            () = draining => {}
            () = system::release_free_memory(&app) => {}
        }
        drop(listener);
        // Connections finish writing and are then closed.
        drop(closing);
        let _ = close.send(());
        let _ = tokio::time::timeout(ABORT_TIMEOUT, close.closed()).await;
    }
}

async fn serve(stream: TcpStream, peer: SocketAddr, app: Arc<App>, router: Router, mut closing: watch::Receiver<()>) {
    // Sends each chunk of a stream immediately.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(Peer(peer));
        router.clone().call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(app.settings.header_time)
        .max_buf_size(HEADER_BYTES)
        .serve_connection(TokioIo::new(WriteTimeout::new(stream, app.settings.write_time)), service);
    tokio::pin!(connection);
    tokio::select! {
        _ = connection.as_mut() => return,
        _ = closing.changed() => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = connection.await;
}
