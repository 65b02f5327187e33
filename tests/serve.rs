//! The server: real processes, and requests over real connections.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Cursor, Read, Write},
    net::{Shutdown, TcpStream},
    process::Stdio,
    time::{Duration, Instant},
};

use image::{ImageFormat, Rgb, RgbImage};
use serde_json::Value;

use crate::lab::{Lab, Process};

/// A pipeline from photographs to regions, on two classes with a bank each.
const PIPELINE: &str = "
name: served
tables:
  images: { stage: ingest, with: { dataset: folder, root: data, size: 32 } }
  features: { stage: extract, from: [images], where: split = 'train', with: { extractor: efficientnet-lite0, layers: [4, 8], keep: 8 } }
  bank: { stage: fit, from: [features], with: { method: { knn: {} }, classes: separate } }
  anomaly_maps: { stage: detect, from: [images, bank, features], with: { sigma: 1 } }
  thresholds: { stage: calibrate, from: [images, anomaly_maps], where: split = 'train', with: { rates: [0.5], confidence: 0.5, pixel_rate: 0.3 } }
  decisions: { stage: decide, from: [images, anomaly_maps, thresholds], where: split = 'test', with: { rate: 0.5 } }
  regions: { stage: regions, from: [decisions, images, anomaly_maps], where: anomalous }
";

/// Makes a lab in which the pipeline has run.
pub(crate) fn lab() -> Lab {
    let lab = Lab::new(PIPELINE);
    lab.run(&[]);
    lab
}

/// A server in a process of its own.
pub(crate) struct Server {
    pub(crate) process: Process,
    address: String,
}

impl Server {
    fn start(lab: &Lab, arguments: &[&str]) -> Self {
        Self::with_variables(lab, arguments, &[])
    }

    /// Starts a server with variables of the environment.
    pub(crate) fn with_variables(lab: &Lab, arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        let mut command = lab.command(&[&["serve", "pipeline.yaml", "--listen", "127.0.0.1:0"], arguments].concat());
        command.envs(variables.iter().copied());
        let mut process = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        match line.trim().strip_prefix("listening on http://") {
            Some(address) => Self { process: Process(process), address: address.to_owned() },
            None => panic!("{line} {:?}", process.wait_with_output()),
        }
    }

    /// Sends a request and waits for its answer.
    fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        self.send(method, path, headers, body).unwrap().receive()
    }

    fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[], b"")
    }

    /// Sends a photograph of the class `gear`.
    pub(crate) fn judge(&self, photograph: &[u8]) -> Answer {
        self.ask("POST", "/v1/predict?class=gear", &[("content-type", "image/png")], photograph)
    }

    /// Sends a request, whose answer is read later.
    fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> std::io::Result<Sent> {
        let mut stream = TcpStream::connect(&self.address)?;
        let host = headers.iter().find(|(name, _)| *name == "host").map_or(&*self.address, |(_, host)| host);
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n");
        for (name, value) in headers.iter().filter(|(name, _)| *name != "host") {
            head += &format!("{name}: {value}\r\n");
        }
        head += &format!("content-length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes())?;
        stream.write_all(body)?;
        Ok(Sent(stream))
    }

    /// Asks the server to end, as `kill` does.
    pub(crate) fn terminate(&self) {
        vlmdiff::engine::signals::ask_to_end(&self.process.0);
    }
}

/// A request whose answer is awaited.
struct Sent(TcpStream);

impl Sent {
    fn receive(mut self) -> Answer {
        let mut bytes = Vec::new();
        self.0.read_to_end(&mut bytes).unwrap();
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").unwrap_or_else(|| panic!("{bytes:?}"));
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers = lines.filter_map(|line| line.split_once(": ")).map(|(name, value)| (name.into(), value.into()));
        Answer { status, headers: headers.collect(), body: bytes[end + 4..].to_vec() }
    }
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Answer {
    fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    /// Returns the message of an error.
    fn error(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{}", self.text());
        self.json()["error"].as_str().unwrap().to_owned()
    }
}

fn png(picture: &RgbImage) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// Returns photographs of a gear that differ: with squares of another colour and place.
pub(crate) fn photographs(lab: &Lab, count: u32) -> Vec<Vec<u8>> {
    let gear = image::open(lab.path("data/gear/train/good/000.png")).unwrap().into_rgb8();
    let spoilt = |n: u32| {
        let mut picture = gear.clone();
        for (x, y) in (0..=n % 8).flat_map(|x| (0..=n % 8).map(move |y| (x, y))) {
            picture.put_pixel((7 * n + x) % 48, (5 * n + y) % 48, Rgb([(40 * n) as u8, 255, 0]));
        }
        png(&picture)
    };
    (0..count).map(spoilt).collect()
}

/// Returns the fields that `predict` and the server share.
fn verdict(answer: &Value) -> Vec<Value> {
    ["class", "anomalous", "score", "p_value", "rate", "threshold", "model", "regions", "nearest"]
        .iter()
        .map(|field| answer[field].clone())
        .collect()
}

#[test]
fn served_verdicts_are_those_of_predict_for_any_number_of_clients() {
    let lab = lab();
    let photographs = photographs(&lab, 15);
    fs::create_dir(lab.path("new")).unwrap();
    for (n, photograph) in photographs.iter().enumerate() {
        fs::write(lab.path(&format!("new/{n:02}.png")), photograph).unwrap();
    }
    let predicted = lab.vlmdiff(&["predict", "pipeline.yaml", "new", "--class", "gear", "--json"]);
    let expected: Vec<Value> = predicted.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(expected.len(), 15, "{}", predicted.stderr);
    assert!(expected.iter().any(|verdict| !verdict["regions"].as_array().unwrap().is_empty()), "{}", predicted.stdout);
    assert!(expected.iter().any(|verdict| verdict["anomalous"] == false), "{}", predicted.stdout);

    let mut server = Server::start(&lab, &[]);
    // Each photograph is sent by two clients at once.
    let answers: Vec<(usize, Answer)> = std::thread::scope(|scope| {
        let clients = (0..30).map(|client| {
            let (server, photograph) = (&server, &photographs[client % 15]);
            scope.spawn(move || (client % 15, server.judge(photograph)))
        });
        clients.collect::<Vec<_>>().into_iter().map(|client| client.join().unwrap()).collect()
    });
    for (n, answer) in &answers {
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(verdict(&answer.json()), verdict(&expected[*n]), "{n}");
        assert_eq!(answer.json()["verdict"], if expected[*n]["anomalous"] == true { "anomalous" } else { "good" });
    }
    // A photograph that comes again is not judged again, and keeps the time of its verdict.
    let first = answers[0].1.json();
    assert_eq!(server.judge(&photographs[answers[0].0]).json(), first);
    let metrics = server.get("/metrics").text();
    for line in
        ["vlmdiff_requests_total{code=\"200\"} 31", "vlmdiff_verdict_seconds_count 31", "vlmdiff_queue_length 0"]
    {
        assert!(metrics.lines().any(|other| other == line), "{line}\n{metrics}");
    }
    let judged = metrics.lines().filter_map(|line| line.strip_prefix("vlmdiff_images_total{")?.rsplit(' ').next());
    assert_eq!(judged.map(|count| count.parse::<u32>().unwrap()).sum::<u32>(), 15, "{metrics}");
    assert_eq!(server.get("/v1/images").json()["total"], 15);

    // Pictures have the size of the photograph, and the mask is where the regions are.
    let found = answers.iter().map(|(_, answer)| answer.json());
    let found = found.filter(|answer| answer["regions"].as_array().is_some_and(|regions| !regions.is_empty()));
    for answer in found {
        let picture = |link: &str| {
            let answer = server.get(answer["links"][link].as_str().unwrap());
            assert_eq!((answer.status, &*answer.headers["content-type"]), (200, "image/png"), "{}", answer.text());
            image::load_from_memory(&answer.body).unwrap()
        };
        assert_eq!(picture("map").color(), image::ColorType::L16);
        assert_eq!((picture("overlay").width(), picture("overlay").height()), (48, 48));
        // A photograph that was fitted on, as it is stored.
        assert!(answer["nearest"]["image_id"].as_str().unwrap().starts_with("gear/train/good/"), "{answer}");
        assert_eq!((picture("nearest").width(), picture("nearest").height()), (32, 32));
        let area = picture("mask").into_luma8().pixels().filter(|pixel| pixel.0[0] == 255).count() as u64;
        let regions = answer["regions"].as_array().unwrap();
        assert_eq!(regions.iter().map(|region| region["area"].as_u64().unwrap()).sum::<u64>(), area);
    }
    let page = server.get("/").text();
    assert!(page.contains("nearest good: <span class=\"id\">gear"), "{page}");
    let link = first["links"]["photograph"].as_str().unwrap();
    assert_eq!(server.get(link).body, photographs[answers[0].0]);
    let small = server.get(&format!("{}?side=24", first["links"]["overlay"].as_str().unwrap()));
    assert_eq!(image::load_from_memory(&small.body).unwrap().width(), 24);
    let known = [("if-none-match", &*small.headers["etag"])];
    let again = server.ask("GET", &format!("{}?side=24", first["links"]["overlay"].as_str().unwrap()), &known, b"");
    assert_eq!((again.status, again.body.len()), (304, 0));

    // A server that is started again has the photographs and their verdicts.
    server.terminate();
    assert_eq!(server.process.end().0, Some(0));
    let server = Server::start(&lab, &[]);
    assert_eq!(server.judge(&photographs[answers[0].0]).json(), first);
    let metrics = server.get("/metrics").text();
    assert!(metrics.contains("vlmdiff_images_total{verdict=\"anomalous\"} 0"), "{metrics}");
}

#[test]
fn what_cannot_be_judged_is_refused_with_what_would_work() {
    let lab = lab();
    let server = Server::start(&lab, &["--max-bytes", "60000", "--max-pixels", "10000"]);
    let photograph = &photographs(&lab, 1)[0];
    let of =
        |content_type: &str, path: &str, body: &[u8]| server.ask("POST", path, &[("content-type", content_type)], body);
    let predict = "/v1/predict?class=gear";
    assert_eq!(
        of("image/png", predict, b"no picture").error(422),
        "not an image: it begins with the text \"no picture\"; png, jpeg, bmp, tiff and webp are read"
    );
    // The header is whole, and the pixels are not.
    let broken = of("image/png", predict, &photograph[..photograph.len() / 2]).error(422);
    assert!(broken.starts_with("truncated or broken png image"), "{broken}");
    let bytes = of("image/png", predict, &[0; 100_000]).error(413);
    assert!(bytes.contains("more than 60000 bytes") && bytes.contains("--max-bytes"), "{bytes}");
    let pixels = of("image/png", predict, &png(&RgbImage::new(101, 100))).error(413);
    assert!(pixels.contains("101x100 pixels, more than the 10000 that `--max-pixels`"), "{pixels}");
    let kind = of("text/plain", predict, photograph).error(415);
    assert!(
        kind.contains("`text/plain`") && kind.contains("image/png") && kind.contains("multipart/form-data"),
        "{kind}"
    );
    let class = of("image/png", "/v1/predict", photograph).error(400);
    assert!(class.contains("Name one by ?class=: gear, tile"), "{class}");
    let class = of("image/png", "/v1/predict?class=screw", photograph).error(400);
    assert_eq!(class, "nothing was fitted for the class `screw`; there are gear, tile");
    assert!(server.get("/nothing").error(404).contains("POST /v1/predict"));
    assert!(server.get("/v1/predict").error(405).contains("POST /v1/predict"));
    assert!(server.get("/v1/images?page=none").error(400).starts_with("after the `?`: page: "));
    assert!(server.get("/v1/images?sort=newest").error(400).contains("`newest`, expected `score` or `time`"));
    let misspelt = of("image/png", "/v1/predict?clas=gear", photograph).error(400);
    assert!(misspelt.contains("unknown field `clas`, expected `class` or `name`"), "{misspelt}");
    assert!(server.get("/v1/images/0/map.png").error(404).contains("GET /v1/images"));
    assert!(server.ask("GET", "/", &[("host", "evil.example")], b"").error(403).contains("--token-file"));
    let foreign = [("content-type", "image/png"), ("sec-fetch-site", "cross-site")];
    assert!(server.ask("POST", predict, &foreign, photograph).error(403).contains("another server"));
    let older = [("content-type", "image/png"), ("origin", "http://evil.example")];
    assert!(server.ask("POST", predict, &older, photograph).error(403).contains("another server"));
    let own = format!("http://{}", server.address);
    let own = [("content-type", "image/png"), ("origin", &*own), ("host", &*server.address)];
    assert_eq!(server.ask("POST", predict, &own, &png(&RgbImage::new(20, 20))).status, 200);

    // A form, whose file has a hostile name that the page escapes.
    let form = [
        b"--b\r\ncontent-disposition: form-data; name=\"class\"\r\n\r\ngear\r\n".as_slice(),
        b"--b\r\ncontent-disposition: form-data; name=\"image\"; filename=\"<script>alert(1)</script>.png\"\r\n",
        b"content-type: image/png\r\n\r\n",
        photograph,
        b"\r\n--b--\r\n",
    ]
    .concat();
    let twice = [b"--b\r\ncontent-disposition: form-data; name=\"class\"\r\n\r\ntile\r\n", &*form].concat();
    let twice = of("multipart/form-data; boundary=b", "/v1/predict", &twice).error(400);
    assert_eq!(twice, "the form has two fields `class`; one would work");
    let answer = of("multipart/form-data; boundary=b", "/v1/predict", &form);
    assert_eq!((answer.status, answer.json()["name"].as_str()), (200, Some("script>.png")), "{}", answer.text());
    let named = of("image/png", "/v1/predict?class=tile&name=%3Cimg+src=x+onerror=alert(1)%3E", photograph);
    assert_eq!(named.json()["name"], "<img src=x onerror=alert(1)>");
    let page = server.get("/");
    let html = page.text();
    assert!(html.contains("&lt;img src=x onerror=alert(1)&gt;") && !html.contains("<img src=x"), "{html}");
    assert!(page.headers["content-security-policy"].starts_with("default-src 'none'"));
    assert!(!html.contains("<script") && html.contains("Thresholds and their false alarms"));
    let unsafe_class = server.get("/?class=%22%3E%3Cscript%3E&sort=time").text();
    assert!(!unsafe_class.contains("<script"), "{unsafe_class}");
    let description = server.get("/openapi.json").json();
    assert_eq!(description["openapi"], "3.1.0");
    assert!(description["paths"]["/v1/predict"]["post"]["responses"]["429"].is_object());
    assert_eq!(server.get("/health").json()["status"], "ok");

    // Another server on the same store does not disturb this one.
    let second = lab.vlmdiff(&["serve", "pipeline.yaml", "--listen", "127.0.0.1:0"]);
    assert_eq!(second.code, Some(2));
    assert!(
        second.stderr.contains("publishes its tables as `served_serve`") && second.stderr.contains("--name"),
        "{}",
        second.stderr
    );
    let other = Server::start(&lab, &["--name", "other"]);
    assert_eq!(other.judge(photograph).json()["score"], of("image/png", predict, photograph).json()["score"]);
    // The tables of the last batch can be queried.
    assert_eq!(lab.sql(".vlmdiff", "select count(*) from other.decisions"), ["1"]);
}

#[test]
fn token_is_asked_for_and_never_shown() {
    let lab = lab();
    let token = "0123456789abcdef-secret";
    lab.write("token", &format!("{token}\n"));
    lab.write("short", "secret-word");
    let short = lab.vlmdiff(&["serve", "pipeline.yaml", "--token-file", "short"]);
    assert_eq!(short.code, Some(2));
    assert!(
        short.stderr.contains("fewer than 16 characters") && !short.stderr.contains("secret-word"),
        "{}",
        short.stderr
    );

    let mut server = Server::start(&lab, &["--token-file", "token"]);
    let with = |header: &str| server.ask("GET", "/v1/images", &[("authorization", header)], b"");
    let refused = server.get("/v1/images");
    assert!(refused.error(401).contains("Authorization: Bearer TOKEN"));
    assert_eq!(refused.headers["www-authenticate"], "Basic realm=\"vlmdiff\"");
    assert_eq!(with("Bearer 0123456789abcdef-wrong!").status, 401);
    assert_eq!(with(&format!("Bearer {token}")).status, 200);
    // A name leads to a server with a token.
    let headers = [("authorization", &*format!("Bearer {token}")), ("host", "inspect.example")];
    assert_eq!(server.ask("GET", "/", &headers, b"").status, 200);
    assert_eq!(server.get("/health").status, 200);
    server.terminate();
    let (code, said) = server.process.end();
    assert_eq!(code, Some(0));
    assert!(!said.contains(token), "{said}");
}

#[test]
fn full_queue_sends_clients_away_and_the_end_finishes_what_was_accepted() {
    let lab = lab();
    let photographs = photographs(&lab, 3);
    let headers = [("content-type", "image/png")];
    let send = |server: &Server, photograph: &[u8]| {
        server.send("POST", "/v1/predict?class=gear", &headers, photograph).unwrap()
    };
    let wait = |what: &str, is_so: &dyn Fn() -> bool| {
        let began = Instant::now();
        while !is_so() {
            assert!(began.elapsed() < Duration::from_secs(60), "{what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    let mut server = Server::start(&lab, &["--queue", "1"]);
    // The first photograph waits for its network to be loaded.
    let first = send(&server, &photographs[0]);
    wait("the photograph is not in the queue", &|| server.get("/health").json()["queue"] == 1);
    let full = server.judge(&photographs[1]);
    assert!(full.error(429).contains("the queue of 1 photographs is full"), "{}", full.text());
    assert!(full.headers["retry-after"].parse::<u64>().unwrap() >= 1);
    server.terminate();
    assert_eq!(first.receive().status, 200);
    let (code, said) = server.process.end();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("what was accepted is judged"), "{said}");

    // A client that leaves does no harm: its photograph is judged all the same.
    let server = Server::start(&lab, &[]);
    let left = send(&server, &photographs[2]);
    wait("the photograph is not judged", &|| server.get("/").text().contains("At work:"));
    left.0.shutdown(Shutdown::Both).unwrap();
    wait("the photograph is not judged", &|| server.get("/v1/images").json()["total"] == 2);
    assert_eq!(server.judge(&photographs[1]).status, 200);
}
