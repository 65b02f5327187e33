//! A server between a program and another server that does what networks do: refuses, hangs, cuts short, loses answers.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    time::Duration,
};

/// What happens to one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// Whether the server does what it is asked.
    pub(crate) reaches: bool,
    pub(crate) client: Client,
}

/// What the client hears of its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Client {
    /// This status instead of the answer.
    Status(u16),
    /// The answer's head and half of its body; nothing of an answer without a body.
    Half,
    /// The end of the connection.
    Closed,
    /// Nothing, for longer than it waits.
    Silence,
}

/// One request as it came, with what was done to it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) fault: Option<Fault>,
}

/// Decides about a request, given its number.
type Schedule = dyn Fn(u64, &Seen) -> Option<Fault> + Send + Sync;

/// A proxy on a free port of this machine; its threads end with the tests.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Proxy {
    pub(crate) fn start(server: SocketAddr, hang: Duration, schedule: Box<Schedule>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::<Mutex<Vec<Seen>>>::default();
        let link = Arc::new(Link { server, hang, schedule, seen: seen.clone(), writes: Mutex::new(()) });
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let link = link.clone();
                // A client that has gone away is no concern of the proxy.
                std::thread::spawn(move || link.serve(client).ok());
            }
        });
        Self { address, seen }
    }

    /// The requests that reached the server: with this method, and this text in their path.
    pub(crate) fn count(&self, method: &str, path: &str) -> usize {
        self.seen.lock().unwrap().iter().filter(|seen| seen.method == method && seen.path.contains(path)).count()
    }

    /// The faults so far.
    pub(crate) fn faults(&self) -> Vec<Fault> {
        self.seen.lock().unwrap().iter().filter_map(|seen| seen.fault).collect()
    }
}

struct Link {
    server: SocketAddr,
    hang: Duration,
    schedule: Box<Schedule>,
    seen: Arc<Mutex<Vec<Seen>>>,
    /// S3 decides conditional writes one after another; the test server looks and writes in two steps.
    writes: Mutex<()>,
}

impl Link {
    /// Serves the one request of a connection.
    fn serve(&self, client: TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(client.try_clone()?);
        let Some((head, body)) = request(&mut reader)? else { return Ok(()) };
        let mut words = head.split(' ').map(str::to_owned);
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let fault = {
            let mut seen = self.seen.lock().unwrap();
            let mut new = Seen { method, path, fault: None };
            new.fault = (self.schedule)(seen.len() as u64, &new);
            seen.push(new.clone());
            new.fault
        };
        let answer = if fault.is_none_or(|fault| fault.reaches) { self.forward(&head, &body)? } else { Vec::new() };
        match fault.map(|fault| fault.client) {
            None => (&client).write_all(&answer)?,
            Some(Client::Half) => (&client).write_all(&answer[..half(&answer)])?,
            Some(Client::Status(status)) => {
                write!(&client, "HTTP/1.1 {status} Fault\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?;
            }
            Some(Client::Closed) => {}
            Some(Client::Silence) => std::thread::sleep(self.hang),
        }
        client.shutdown(Shutdown::Both)
    }

    fn forward(&self, head: &str, body: &[u8]) -> std::io::Result<Vec<u8>> {
        let conditional = head.to_ascii_lowercase().contains("\r\nif-none-match:");
        let _turn = conditional.then(|| self.writes.lock().unwrap());
        let mut server = TcpStream::connect(self.server)?;
        server.write_all(head.as_bytes())?;
        server.write_all(body)?;
        let mut answer = Vec::new();
        server.read_to_end(&mut answer)?;
        Ok(answer)
    }
}

/// A request's head, which asks for the connection to be closed after the answer, and its body.
fn request(reader: &mut impl BufRead) -> std::io::Result<Option<(String, Vec<u8>)>> {
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let lower = line.to_ascii_lowercase();
        if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if line == "\r\n" {
            break;
        }
        if !lower.starts_with("connection:") {
            head += &line;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(Some((head + "Connection: close\r\n\r\n", body)))
}

/// Where an answer ends that is cut short.
fn half(answer: &[u8]) -> usize {
    let head = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").map_or(0, |at| at + 4);
    if head == answer.len() { 0 } else { head + (answer.len() - head) / 2 }
}

/// Faults for about one request in `every`, of all kinds, the same for the same seed.
pub(crate) fn seeded(seed: u64, every: u64) -> Box<Schedule> {
    let fault = |reaches, client| Fault { reaches, client };
    let kinds = [
        fault(false, Client::Status(500)),
        fault(true, Client::Half),
        fault(true, Client::Closed),
        fault(false, Client::Status(503)),
        fault(true, Client::Half),
        fault(false, Client::Silence),
        fault(true, Client::Status(503)),
        fault(false, Client::Closed),
    ];
    Box::new(move |number, _| {
        // SplitMix64 of the request's number.
        let mut x = (seed << 32 | number).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^= x >> 31;
        x.is_multiple_of(every).then(|| kinds[(x / every) as usize % kinds.len()])
    })
}
