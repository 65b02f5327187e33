//! The SQL prompt and progress bars, in a terminal.

use std::{fs, process::Command};

use crate::lab::{LIGHT, Lab};

/// Runs `vlmdiff` in a terminal of so many columns, types texts, and waits for the text that is expected after each:
/// `TYPED => EXPECTED`. Prints all that the terminal showed.
const TERMINAL: &str = r#"
import fcntl, os, pty, select, struct, sys, termios, time
columns, program, folder, steps = int(sys.argv[1]), sys.argv[2].split(), sys.argv[3], sys.argv[4:]
pid, terminal = pty.fork()
if pid == 0:
    os.chdir(folder)
    os.execvp(program[0], program)
fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
shown = b""
for step in steps:
    typed, expected = step.split(" => ")
    start, deadline = len(shown), time.time() + 100
    if typed == "\x03":
        time.sleep(2)  # until the statement before it runs
    os.write(terminal, typed.encode())
    while expected.encode() not in shown[start:]:
        ready, _, _ = select.select([terminal], [], [], 0.2)
        try:
            shown += os.read(terminal, 65536) if ready else b""
        except OSError:
            break
        if time.time() > deadline:
            break
    print(f"<<{step!r}>>", "shown" if expected.encode() in shown[start:] else "MISSING")
    print(shown[start:].decode(errors="replace"))
deadline = time.time() + 60
while time.time() < deadline:
    try:
        # Reading fails once the program has ended.
        os.read(terminal, 65536)
    except OSError:
        break
"#;

/// Types texts into the program and waits for each expected one.
fn typed(lab: &Lab, columns: u16, locale: &str, arguments: &str, steps: &[(&str, &str)]) -> String {
    lab.write("terminal.py", TERMINAL);
    let program = format!("{} {arguments}", env!("CARGO_BIN_EXE_vlmdiff"));
    let mut python = Command::new("python3");
    python.arg(lab.path("terminal.py")).args([&columns.to_string(), &program]).arg(lab.path(""));
    python.args(steps.iter().map(|(typed, expected)| format!("{typed} => {expected}")));
    python.env("HOME", lab.path("")).env("TERM", "xterm").env("LC_ALL", locale).env_remove("VLMDIFF_STORE");
    let ended = lab.ended(&mut python);
    let shown = ended.stdout + &ended.stderr;
    assert!(!shown.contains("MISSING") && shown.contains("shown"), "{shown}");
    shown
}

#[test]
fn prompt_completes_names_and_answers_shortcuts() {
    let lab = Lab::new(LIGHT);
    lab.run(&[]);
    typed(
        &lab,
        200,
        "C.UTF-8",
        "sql",
        &[
            ("", "vlmdiff> "),
            ("select n from cou\t", "counts"),
            (";\r", "| 8 |"),
            ("select 1 as one; select 2 as two;\r", "| two |"),
            ("select file_dig\t from images limit 0;\r", "file_digest |"),
            ("\\d\r", "stage_runs"),
            ("\\d counts\r", "is_nullable"),
            (".tables\r", "paper_results"),
            ("help\r", "Ctrl-C"),
            ("\\foo\r", "there is no `\\foo`"),
            ("\\x\r", "a line for each value: on"),
            ("select n from counts;\r", "-[ row 1 ]"),
            // A query that would take hours ends, and the prompt stays.
            (
                "select count(*), sum(a.width + l.width) from images a, images b, images c, images d, images e, images f, images g, images h, images i, images j, images k, images l;\r",
                "\n",
            ),
            ("\x03", "interrupted"),
            ("select n + 1 as m from counts;\r", "m | 9"),
            ("quit\r", ""),
        ],
    );
    assert!(fs::read_to_string(lab.path(".vlmdiff_history")).unwrap().contains("select 1 as one; select 2 as two;"));
}

#[test]
fn rows_that_are_wider_than_the_terminal_are_turned() {
    let lab = Lab::new(LIGHT);
    lab.run(&[]);
    let query = [("", "vlmdiff> "), ("select * from runs;\r", "pipeline_digest"), ("quit\r", "")];
    let narrow = typed(&lab, 80, "C", "sql", &query);
    assert!(narrow.contains("-[ row 1 ]") && !narrow.contains("+---"), "{narrow}");
    let wide = typed(&lab, 400, "C", "sql", &query);
    assert!(wide.contains("+---") && !wide.contains("-[ row 1 ]"), "{wide}");
}

/// Returns what a terminal showed without its control sequences, line by line.
fn lines(shown: &str) -> Vec<String> {
    let mut pieces = shown.split("\x1b[");
    let mut text = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        // A bar that is drawn again begins a line.
        let end = piece.find(|c: char| c.is_ascii_alphabetic()).map_or(piece.len(), |at| at + 1);
        if !piece[..end].ends_with('m') {
            text.push('\n');
        }
        text += &piece[end..];
    }
    text.split(['\r', '\n']).map(|line| line.trim_end().to_owned()).filter(|line| !line.is_empty()).collect()
}

#[test]
fn bars_fit_into_a_narrow_terminal_and_are_ascii_in_such_a_locale() {
    let lab = Lab::new(&format!(
        "{LIGHT}  slow: {{ stage: command, from: [captions], with: {{ run: \"python3 slow.py {{captions}} {{output}}\", \
         output: {{ image_id: utf8, caption: utf8 }}, makes: rows }} }}\n"
    ));
    lab.write("slow.py", "import shutil, sys, time\ntime.sleep(1.5)\nshutil.copy(sys.argv[1], sys.argv[2])\n");
    for (locale, bar) in [("C", "--------"), ("C.UTF-8", "░░░░░░░░")] {
        let shown = typed(&lab, 44, locale, "run pipeline.yaml --force slow", &[("", "done in")]);
        // A bar fills its line, so that one which is drawn below another follows it without a control sequence.
        let bars = lines(&shown.replace("slow  ", "\nslow  "));
        let bars: Vec<String> =
            bars.into_iter().filter(|line| line.starts_with("slow") && line.contains("  4/4  ")).collect();
        assert!(!bars.is_empty() && bars.iter().all(|line| line.chars().count() <= 44), "{bars:?}\n{shown}");
        assert!(bars.iter().any(|line| line.contains(bar)), "{bars:?}");
        assert!(locale != "C" || shown.is_ascii(), "{shown}");
    }
}
