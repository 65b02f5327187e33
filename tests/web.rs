//! A web server on this machine, for tests of what reads from one.

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpListener,
};

/// A request without its body.
pub(crate) struct Request {
    /// The path without its first slash.
    pub(crate) path: String,
    /// The first and last byte that are asked for, if it is a part.
    pub(crate) range: Option<(usize, usize)>,
}

/// An answer: the status, further lines of the head, and the body.
pub(crate) type Answer = (&'static str, String, Vec<u8>);

/// Serves over HTTP what a function answers. Its thread ends with the tests.
pub(crate) fn serve(answer: impl Fn(&Request) -> Answer + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
            let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
            let mut words = head.first().map_or("", String::as_str).split(' ');
            let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            let range = head.iter().find_map(|line| {
                let line = line.to_lowercase();
                let (first, last) = line.strip_prefix("range: bytes=")?.split_once('-')?;
                Some((first.parse().unwrap(), last.parse().unwrap()))
            });
            let request = Request { path: path.trim_start_matches('/').to_owned(), range };
            let (status, more, body) = answer(&request);
            let length = body.len();
            let head = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{more}Connection: close\r\n\r\n");
            let bytes = if method == "HEAD" { head.into_bytes() } else { [head.as_bytes(), &body].concat() };
            // An error means that the client has closed the connection.
            stream.write_all(&bytes).unwrap_or(());
        }
    });
    format!("http://{address}")
}
