//! The worker process: opens operators and runs the tasks that the driver sends.

use std::{
    io::{BufRead, Write},
    sync::mpsc,
};

use super::{
    executor::Settings,
    in_process::Runner,
    message::{Answer, STOP},
};
use crate::engine::{
    Error, Result, Stop,
    stage::{OpenFn, Task},
    store::Store,
};

/// Serves tasks from standard input until it closes. `find` returns the function that opens a stage by name.
pub fn serve(store: Store, settings: Settings, find: impl Fn(&str) -> Option<OpenFn>) -> Result<()> {
    let (send, tasks) = mpsc::channel();
    let stop = Stop::default();
    let asked = stop.clone();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { break };
            if line == STOP {
                asked.request();
            } else if send.send(line).is_err() {
                break;
            }
        }
        // The driver has ended, so uncommitted work is of no use. Destructors of libtorch are not run, because the main
        // thread may still be computing with what they free.
        // SAFETY: `_exit` takes no pointer and does not return.
        unsafe { libc::_exit(0) }
    });
    // A panic is sent as an answer, so its trace is not printed.
    std::panic::set_hook(Box::new(|_| {}));
    let mut runner = Runner::new(store, stop, settings);
    for line in tasks {
        let task =
            serde_json::from_str::<Task>(&line).map_err(|e| Error::Worker(format!("a task that cannot be read: {e}")));
        drop(line); // that of a large table takes many megabytes
        let result = task.and_then(|task| {
            let open = find(&task.job.stage)
                .ok_or_else(|| Error::Worker(format!("this worker has no stage `{}`", task.job.stage)))?;
            // libtorch errors are panics. The operator is dropped afterwards, as its state may be inconsistent.
            let run =
                std::panic::AssertUnwindSafe(|| runner.run(task, open, &mut |report| answer(&Answer::Report(report))));
            std::panic::catch_unwind(run).unwrap_or_else(|panic| {
                let text = panic
                    .downcast_ref::<String>()
                    .map(String::as_str)
                    .or_else(|| panic.downcast_ref::<&str>().copied());
                Err(Error::of_library(readable(text.unwrap_or("the stage panicked"))))
            })
        });
        answer(&match result {
            Ok(entries) => Answer::Done(entries),
            Err(error) => Answer::Failed(error.into()),
        });
    }
    Ok(())
}

/// Returns a panic's text without the additions of `unwrap` and of libtorch's own trace.
fn readable(panic: &str) -> String {
    let text = panic.split_once("value: Torch(\"").map_or(panic, |(_, text)| text);
    let text = text.split("\\nException raised").next().unwrap_or(text);
    text.split("\\nframe #").next().unwrap_or(text).to_owned()
}

fn answer(answer: &Answer) {
    if let Ok(json) = serde_json::to_string(answer) {
        let mut out = std::io::stdout().lock();
        // A failed write means that the driver has ended; standard input then closes too, which ends the loop.
        let _ = writeln!(out, "{json}");
    }
}
