//! A proxy that simulates network faults: it refuses, hangs, truncates and loses answers.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    time::Duration,
};

/// The fault of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// True if the request reaches the server.
    pub(crate) reaches: bool,
    pub(crate) client: Client,
}

/// The answer that the client receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Client {
    /// A response with this status.
    Status(u16),
    /// The answer's head and half of its body; nothing for an answer without a body.
    Half,
    /// A closed connection.
    Closed,
    /// Nothing for longer than the client waits.
    Silence,
    /// The answer, after a while.
    Late,
}

/// The delay of an answer that is late.
const DELAY: Duration = Duration::from_millis(300);

/// A request as it arrived, with its fault.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) fault: Option<Fault>,
}

/// Returns the fault for a request, given its number.
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
                // An error means that the client has closed the connection.
                std::thread::spawn(move || link.serve(client).ok());
            }
        });
        Self { address, seen }
    }

    /// Returns the number of requests that reached the server with this method and this text in their path.
    pub(crate) fn count(&self, method: &str, path: &str) -> usize {
        self.seen.lock().unwrap().iter().filter(|seen| seen.method == method && seen.path.contains(path)).count()
    }

    /// Returns the faults so far.
    pub(crate) fn faults(&self) -> Vec<Fault> {
        self.seen.lock().unwrap().iter().filter_map(|seen| seen.fault).collect()
    }
}

struct Link {
    server: SocketAddr,
    hang: Duration,
    schedule: Box<Schedule>,
    seen: Arc<Mutex<Vec<Seen>>>,
    /// Serializes writes. S3 decides conditional writes one after another, but the test server checks and writes in
    /// two steps.
    writes: Mutex<()>,
}

impl Link {
    /// Serves the single request of a connection.
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
            Some(Client::Late) => {
                std::thread::sleep(DELAY);
                (&client).write_all(&answer)?;
            }
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

/// Reads a request. Returns its head, changed so that the connection is closed after the answer, and its body.
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

/// Returns the position at which a truncated answer ends.
fn half(answer: &[u8]) -> usize {
    let head = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").map_or(0, |at| at + 4);
    if head == answer.len() { 0 } else { head + (answer.len() - head) / 2 }
}

/// Returns a schedule of faults for about one request in `every`, of all kinds, the same for the same seed.
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
