//! Sends texts to a URL from a thread of its own, so that nobody waits for a server.

use std::{
    sync::mpsc::{self, Receiver, RecvTimeoutError, Sender},
    thread,
    time::Duration,
};

use reqwest::{
    Client,
    header::{AUTHORIZATION, CONTENT_TYPE},
};

/// Time after which a request is given up.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Time for which the end of a run waits for texts that are not sent yet.
const PATIENCE: Duration = Duration::from_secs(5);
/// After so many failures in a row nothing more is sent.
const FAILURES: usize = 3;

/// A thread that sends JSON by POST.
#[derive(Debug)]
pub(super) struct JsonSender {
    url: String,
    texts: Option<Sender<String>>,
    /// The first failure, when the thread has ended.
    ended: Receiver<Option<String>>,
}

impl JsonSender {
    /// Starts the thread. `token` is sent with each text, if there is one.
    pub(super) fn start(url: String, token: Option<String>) -> Self {
        let ((texts, received), (say, ended)) = (mpsc::channel(), mpsc::channel());
        let to = url.clone();
        thread::spawn(move || {
            // Nobody hears the result if the run did not wait for it.
            let _ = say.send(send(&to, token.as_deref(), &received));
        });
        Self { url, texts: Some(texts), ended }
    }

    pub(super) fn send(&self, text: String) {
        if let Some(texts) = &self.texts {
            // The thread has ended if it cannot send, and then says why.
            let _ = texts.send(text);
        }
    }

    /// Waits for a while until all texts are sent. Returns the first failure.
    pub(super) fn finish(&mut self) -> Option<String> {
        self.texts.take()?;
        let failure = match self.ended.recv_timeout(PATIENCE) {
            Ok(failure) => failure?,
            Err(RecvTimeoutError::Timeout) => format!("it does not answer within {} s", PATIENCE.as_secs()),
            Err(RecvTimeoutError::Disconnected) => "the thread that sends has ended".to_owned(),
        };
        Some(format!("{}: {failure}", self.url))
    }
}

/// Sends texts until there are no more. Returns the first failure.
fn send(url: &str, token: Option<&str>, texts: &Receiver<String>) -> Option<String> {
    let failed = |e: &dyn std::fmt::Display| Some(e.to_string());
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    let client = match Client::builder().timeout(TIMEOUT).build() {
        Ok(client) => client,
        Err(error) => return failed(&error),
    };
    let (mut first, mut in_a_row) = (None, 0);
    for text in texts {
        let request = client.post(url).header(CONTENT_TYPE, "application/json").body(text);
        let request = match token {
            Some(token) => request.header(AUTHORIZATION, format!("Bearer {token}")),
            None => request,
        };
        // A request is made within the runtime, whose clock it uses.
        let answer = runtime.block_on(async { request.send().await?.error_for_status() });
        match answer {
            Ok(_) => in_a_row = 0,
            Err(error) => {
                // The address stands before the message already, and may hold a password.
                first.get_or_insert_with(|| causes(&error.without_url()));
                in_a_row += 1;
                if in_a_row == FAILURES {
                    break;
                }
            }
        }
    }
    first
}

/// Returns an error with its causes.
fn causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
