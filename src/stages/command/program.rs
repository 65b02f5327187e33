//! A running program: its output, and the way it ends.

use std::{
    collections::VecDeque,
    io::{BufRead, BufReader, Read},
    os::unix::process::ExitStatusExt,
    process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    time::{Duration, Instant},
};

use arrow::array::RecordBatch;

use crate::engine::{Error, Result, signals::ask_to_end, stage::Sink};

/// The number of lines of standard error that an error repeats.
const TAIL: usize = 20;
/// Time that a program has to end by itself once it has nothing more to do.
const PATIENCE: Duration = Duration::from_secs(5);
/// Time after an answer in which further lines may arrive.
const GRACE: Duration = Duration::from_millis(10);
/// The interval at which the state of the program and requests to stop are checked.
const POLL: Duration = Duration::from_millis(50);
/// Time after the end of a program during which its output is still read. Processes that it started may keep the
/// output open for longer.
const LINGER: Duration = Duration::from_secs(2);
/// Silence of a program after which a message is logged. The time doubles after each message.
const SILENCE: Duration = Duration::from_secs(10);
/// Time that a program may continue after a request to stop before it is asked to end.
const LAST_WORK: Duration = Duration::from_secs(2);

/// Output of a program.
pub(super) enum Said {
    /// A line of text.
    Line(String),
    /// Rows.
    Answer(RecordBatch),
    /// The end of its standard output, with the reason.
    Ended(String),
}

/// A program that was started. On drop it is waited for, and killed if it does not end.
pub(super) struct Program {
    command: String,
    child: Child,
    said: mpsc::Receiver<Said>,
    tail: VecDeque<String>,
    /// Output that arrived before the question.
    early: Option<Said>,
    /// The silence after which the next message is logged.
    silence: Duration,
    /// The time of the request to stop.
    stopping: Option<Instant>,
}

/// The reason why a program has not answered.
pub(super) enum Unanswered {
    /// The program failed, with a description.
    Failed(String),
    /// The run is asked to stop.
    Stopped,
}

impl Program {
    /// Starts a program; `listen` reads its standard output in a thread of its own.
    pub(super) fn start(
        words: &[String],
        stdin: Stdio,
        listen: impl FnOnce(ChildStdout, &mpsc::Sender<Said>) + Send + 'static,
    ) -> Result<(Self, Option<ChildStdin>)> {
        let command = shlex::try_join(words.iter().map(String::as_str)).unwrap_or_else(|_| words.join(" "));
        let program = words.first().map(String::as_str).unwrap_or_default();
        let mut child = Command::new(program)
            .args(words.get(1..).unwrap_or_default())
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| Error::Input(format!("cannot start the program `{program}` of `{command}`: {e}")))?;
        let (say, said) = mpsc::channel();
        if let Some(stderr) = child.stderr.take() {
            let say = say.clone();
            std::thread::spawn(move || lines(stderr, &say));
        }
        if let Some(stdout) = child.stdout.take() {
            std::thread::spawn(move || listen(stdout, &say));
        }
        let stdin = child.stdin.take();
        let program =
            Self { command, child, said, tail: VecDeque::new(), early: None, silence: SILENCE, stopping: None };
        Ok((program, stdin))
    }

    /// Returns the answer to `rows` rows. Meanwhile lines are logged, and messages if the program is silent for long.
    pub(super) fn answer(&mut self, rows: usize, out: &mut Sink<'_>) -> Result<RecordBatch, Unanswered> {
        let asked = Instant::now();
        loop {
            match self.early.take().map_or_else(|| self.said.recv_timeout(POLL), Ok) {
                Ok(Said::Line(line)) => self.log(line, out),
                Ok(Said::Answer(batch)) => return Ok(batch),
                Ok(Said::Ended(why)) => return Err(Unanswered::Failed(why)),
                Err(RecvTimeoutError::Disconnected) => return Err(Unanswered::Failed("ended".into())),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if self.is_to_end(out) {
                return Err(Unanswered::Stopped);
            }
            if asked.elapsed() > self.silence {
                out.log(format!(
                    "the program has not answered a batch of {rows} row{} for {} s; it is to answer each batch, and flush, before it \
                     waits for the next: one that first reads to the end of its input waits for ever",
                    if rows == 1 { "" } else { "s" },
                    self.silence.as_secs()
                ));
                self.silence *= 2;
            }
        }
    }

    /// Returns true if the run is asked to stop and the program had time to finish the work at hand. The program is
    /// then asked to end.
    fn is_to_end(&mut self, out: &Sink<'_>) -> bool {
        if !out.is_interrupted() {
            return false;
        }
        let is_over = self.stopping.get_or_insert_with(Instant::now).elapsed() > LAST_WORK;
        if is_over {
            ask_to_end(&self.child);
        }
        is_over
    }

    /// Logs the lines that have arrived. Lines written just before the answer may still be in transit, so it waits
    /// for them shortly.
    pub(super) fn listen(&mut self, out: &mut Sink<'_>) {
        while self.early.is_none() {
            match self.said.recv_timeout(GRACE) {
                Ok(Said::Line(line)) => self.log(line, out),
                Ok(other) => self.early = Some(other),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
            }
        }
    }

    /// Waits until the program has ended by itself, and logs its lines meanwhile.
    pub(super) fn finish(&mut self, out: &mut Sink<'_>) -> Result<()> {
        let mut ended: Option<(ExitStatus, Instant)> = None;
        let status = loop {
            let is_silent = match self.said.recv_timeout(POLL) {
                Ok(Said::Line(line)) => {
                    self.log(line, out);
                    false
                }
                Ok(Said::Answer(_) | Said::Ended(_)) => false,
                Err(RecvTimeoutError::Timeout) => true,
                Err(RecvTimeoutError::Disconnected) => {
                    // The output is closed, but the program may still be working.
                    std::thread::sleep(if ended.is_none() { GRACE } else { Duration::ZERO });
                    true
                }
            };
            match ended {
                Some((status, at)) if is_silent || at.elapsed() > LINGER => break status,
                Some(_) => {}
                None => ended = self.child.try_wait()?.map(|status| (status, Instant::now())),
            }
            if ended.is_none() && self.is_to_end(out) {
                return Err(Error::Interrupted);
            }
        };
        if status.success() { Ok(()) } else { Err(self.failure("failed", out)) }
    }

    fn log(&mut self, line: String, out: &mut Sink<'_>) {
        out.log(&line);
        self.tail.push_back(line);
        if self.tail.len() > TAIL {
            self.tail.pop_front();
        }
    }

    /// Makes an error with what the program did, the way it ended and its last lines. Its input must be closed
    /// before.
    pub(super) fn failure(&mut self, what: &str, out: &mut Sink<'_>) -> Error {
        let status = self.wait();
        let ended = status.map_or_else(|| "it did not end and was killed".into(), |status| status.to_string());
        // Lines that it wrote before it ended may still be in transit.
        let deadline = Instant::now() + Duration::from_secs(1);
        loop {
            match self.said.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(Said::Line(line)) => self.log(line, out),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
            }
        }
        let mut message = format!("the program `{}` {what} ({ended})", self.command);
        if self.tail.is_empty() {
            message += "; it said nothing on its standard error";
        } else {
            message += "; its last words:";
            self.tail.iter().for_each(|line| message += &format!("\n  {line}"));
        }
        match status.and_then(|status| status.signal()) {
            Some(libc::SIGKILL) => Error::Killed(message),
            _ => Error::Stage(message),
        }
    }

    /// Waits for the end of the program; `None` if it had to be killed.
    fn wait(&mut self) -> Option<ExitStatus> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            match self.child.try_wait() {
                Ok(None) => std::thread::sleep(Duration::from_millis(5)),
                Ok(status) => return status,
                Err(_) => break,
            }
        }
        // The program may have ended just now; in both cases it is gone after this.
        let _ = self.child.kill();
        let _ = self.child.wait();
        None
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.wait();
    }
}

/// Sends each line of the stream. The states of a progress bar overwrite each other, so that only the last is sent.
pub(super) fn lines(stream: impl Read, say: &mpsc::Sender<Said>) {
    let mut stream = BufReader::new(stream);
    let mut line = Vec::new();
    while matches!(stream.read_until(b'\n', &mut line), Ok(1..)) {
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end();
        let last = text.rsplit('\r').next().unwrap_or(text);
        if say.send(Said::Line(last.to_owned())).is_err() {
            break;
        }
        line.clear();
    }
}
