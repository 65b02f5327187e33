//! The connections of the server. The head of a request has to come in time, because a connection that never sends one
//! would keep a file descriptor for ever.

use std::{pin::pin, time::Duration};

use axum::{Router, serve::Listener};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// Answers requests until `stopped` is true, and finishes those that were begun. A connection is closed that sends no
/// whole head of a request within `patience`, also one that is kept open between requests.
pub(super) async fn serve(
    mut listener: TcpListener,
    router: Router,
    stopped: watch::Receiver<bool>,
    patience: Duration,
) {
    // Each connection holds a receiver, so that the channel is closed when the last one has ended.
    let (all, one) = watch::channel(());
    loop {
        let stream = tokio::select! {
            // Errors, such as too many open files, are waited out.
            (stream, _) = Listener::accept(&mut listener) => stream,
            () = is_true(stopped.clone()) => break,
        };
        tokio::spawn(connection(stream, router.clone(), stopped.clone(), patience, one.clone()));
    }
    drop((listener, one));
    all.closed().await;
}

async fn connection(
    stream: TcpStream,
    router: Router,
    stopped: watch::Receiver<bool>,
    patience: Duration,
    _one: watch::Receiver<()>,
) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(patience);
    let mut served = pin!(http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)));
    let is_served = tokio::select! {
        // A client that breaks its connection, or says nothing, is no error of the server.
        _ = served.as_mut() => true,
        () = is_true(stopped) => false,
    };
    if !is_served {
        served.as_mut().graceful_shutdown();
        let _ = served.await;
    }
}

/// Waits until a value is true, or can no longer become so.
pub(super) async fn is_true(mut value: watch::Receiver<bool>) {
    let _ = value.wait_for(|value| *value).await;
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        time::timeout,
    };

    use super::*;

    /// The time after which a connection counts as left open.
    const FOR_EVER: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn connection_without_a_whole_request_is_closed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = watch::channel(false);
        let server = tokio::spawn(serve(listener, Router::new(), stopped, Duration::from_millis(100)));
        for sent in ["", "GET / HT", "GET / HTTP/1.1\r\nhost: a\r\nx: y\r\n"] {
            let mut client = TcpStream::connect(address).await.unwrap();
            client.write_all(sent.as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            timeout(FOR_EVER, client.read_to_end(&mut answer)).await.unwrap_or_else(|_| panic!("{sent:?}")).unwrap();
            assert!(!answer.starts_with(b"HTTP/1.1 200"), "{sent:?}");
        }
        // A whole request is answered, and the connection stays open for the next one until the server ends.
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"GET /none HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        let mut answer = [0; 12];
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 404");
        stop.send(true).unwrap();
        timeout(FOR_EVER, server).await.unwrap().unwrap();
    }
}
