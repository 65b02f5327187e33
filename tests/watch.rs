//! A folder that is watched for new photographs.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    process::{Child, Stdio},
    sync::mpsc::{self, Receiver},
    time::Duration,
};

use serde_json::Value;

use crate::{lab::Lab, methods::INSPECTION};

/// The longest time that a verdict is waited for.
const PATIENCE: Duration = Duration::from_secs(120);
/// The time after which nothing more is expected: several times the interval at which the folder is listed.
const QUIET: Duration = Duration::from_secs(2);

/// A process that watches the folder `incoming`.
struct Watch {
    process: Child,
    /// The objects that it prints.
    printed: Receiver<Value>,
}

impl Watch {
    fn start(lab: &Lab) -> Self {
        let arguments = ["predict", "pipeline.yaml", "--class", "gear", "--json", "--watch", "incoming"];
        let mut process = lab.command(&arguments).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let (send, printed) = mpsc::channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                // The test has ended if nobody receives.
                let _ = send.send(serde_json::from_str(&line).unwrap());
            }
        });
        Self { process, printed }
    }

    /// Waits for the next object.
    fn next(&self) -> Value {
        self.printed.recv_timeout(PATIENCE).expect("the watching process printed nothing more")
    }

    /// Asks the process to end, as `kill` does, and returns its exit code.
    fn end(mut self) -> Option<i32> {
        vlmdiff::engine::signals::ask_to_end(&self.process);
        self.process.wait().unwrap().code()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // It has ended where a test waited for it.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn photographs_are_judged_as_they_appear_until_a_signal_comes() {
    let lab = Lab::new(INSPECTION);
    lab.run(&[]);
    let photograph = fs::read(lab.path("data/gear/train/good/000.png")).unwrap();
    fs::create_dir(lab.path("incoming")).unwrap();
    // A file that is moved to its name is there as a whole.
    let put = |name: &str, bytes: &[u8]| {
        fs::write(lab.path("moving"), bytes).unwrap();
        fs::rename(lab.path("moving"), lab.path(&format!("incoming/{name}"))).unwrap();
    };
    put("first.png", &photograph);
    let watch = Watch::start(&lab);
    let first = watch.next();
    assert_eq!(first["image_id"], "incoming/first.png");
    assert!(first["score"].is_number() && first["anomalous"].is_boolean(), "{first}");

    // Other files are left alone, and one that is no picture is a row with its error.
    put("notes.txt", b"no picture");
    put("broken.png", b"no picture");
    let broken = watch.next();
    assert_eq!(broken["image_id"], "incoming/broken.png");
    assert!(broken["error"].as_str().unwrap().starts_with("not an image"), "{broken}");
    assert!(watch.printed.recv_timeout(QUIET).is_err(), "what has not changed is judged once");

    // A file that is copied slowly is an error as long as its end is missing.
    let (head, tail) = photograph.split_at(photograph.len() / 2);
    put("slow.png", head);
    let half = watch.next();
    assert_eq!(half["image_id"], "incoming/slow.png");
    assert!(half["error"].is_string(), "{half}");
    fs::OpenOptions::new().append(true).open(lab.path("incoming/slow.png")).unwrap().write_all(tail).unwrap();
    // The folder may be listed once more while the rest is written.
    let whole = (0..3).map(|_| watch.next()).find(|row| row["error"].is_null()).expect("no verdict on the whole file");
    assert_eq!((&whole["image_id"], &whole["score"]), (&"incoming/slow.png".into(), &first["score"]));
    assert_eq!(watch.end(), Some(130));
}

/// A program that reserves the space of a file before it copies leaves its size as it is.
#[test]
fn file_that_changes_without_growing_is_judged_again() {
    let lab = Lab::new(INSPECTION);
    lab.run(&[]);
    let photograph = fs::read(lab.path("data/gear/train/good/000.png")).unwrap();
    fs::create_dir(lab.path("incoming")).unwrap();
    let path = lab.path("incoming/reserved.png");
    fs::write(&path, vec![0; photograph.len()]).unwrap();
    let watch = Watch::start(&lab);
    assert!(watch.next()["error"].is_string());
    let mut file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all(&photograph).unwrap();
    let row = (0..3).map(|_| watch.next()).find(|row| row["error"].is_null()).expect("no verdict on the whole file");
    assert!(row["image_id"] == "incoming/reserved.png" && row["score"].is_number(), "{row}");
}
