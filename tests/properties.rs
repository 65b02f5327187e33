//! What holds for any pipeline file.

use proptest::prelude::*;
use vlmdiff::{engine::pipeline, stages::KINDS};

use crate::lab::{LIGHT, TOY};

const SWEEP: &str = "sweep:\n  default: [a, b]\n  images.size: [32, 16]\n";

/// The shipped pipelines and those of the tests.
fn pipelines() -> Vec<String> {
    let shipped = std::fs::read_dir(crate::lab::project().join("pipelines")).unwrap();
    let shipped = shipped.filter_map(|entry| std::fs::read_to_string(entry.unwrap().path()).ok());
    shipped.chain([TOY.to_owned(), format!("{LIGHT}{SWEEP}")]).collect()
}

/// A slip of the pen: something lost, doubled or put in, a character or a line.
#[derive(Clone, Debug)]
enum Slip {
    Lose(usize),
    Double(usize),
    Insert(usize, char),
    LoseLine(usize),
    DoubleLine(usize),
    SwapLines(usize, usize),
}

fn slip() -> impl Strategy<Value = Slip> {
    let at = any::<usize>;
    prop_oneof![
        at().prop_map(Slip::Lose),
        at().prop_map(Slip::Double),
        (at(), prop::sample::select("{}[]:,-#&*!|>'\"%@`?~. \t\n0aé$".chars().collect::<Vec<_>>()))
            .prop_map(|(at, c)| Slip::Insert(at, c)),
        at().prop_map(Slip::LoseLine),
        at().prop_map(Slip::DoubleLine),
        (at(), at()).prop_map(|(a, b)| Slip::SwapLines(a, b)),
    ]
}

fn slipped(text: &str, slip: &Slip) -> String {
    let mut chars: Vec<char> = text.chars().collect();
    let mut lines: Vec<&str> = text.split('\n').collect();
    let (in_chars, in_lines) = (chars.len().max(1), lines.len());
    match *slip {
        _ if chars.is_empty() => return text.to_owned(),
        Slip::LoseLine(at) => drop(lines.remove(at % in_lines)),
        Slip::DoubleLine(at) => lines.insert(at % in_lines, lines[at % in_lines]),
        Slip::SwapLines(a, b) => lines.swap(a % in_lines, b % in_lines),
        Slip::Lose(at) => drop(chars.remove(at % in_chars)),
        Slip::Double(at) => chars.insert(at % in_chars, chars[at % in_chars]),
        Slip::Insert(at, c) => chars.insert(at % in_chars, c),
    }
    match slip {
        Slip::LoseLine(_) | Slip::DoubleLine(_) | Slip::SwapLines(..) => lines.join("\n"),
        _ => chars.into_iter().collect(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    /// A file is a pipeline, or an error that names the file.
    #[test]
    fn no_file_is_a_panic(
        which in any::<prop::sample::Index>(),
        slips in prop::collection::vec(slip(), 1..6),
    ) {
        let text = slips.iter().fold(which.get(&pipelines()).clone(), |text, slip| slipped(&text, slip));
        if let Err(error) = pipeline::parse("slip.yaml", "slip", &text, KINDS, &[], &|_| Some("x".into())) {
            prop_assert!(error.is_input(), "{}", error);
            prop_assert!(error.to_string().starts_with("slip.yaml:"), "{}", error);
        }
    }

    #[test]
    fn no_text_is_a_panic(text in "[ \\n:{}\\[\\],a-c&*!|>'\"-]{0,60}") {
        drop(pipeline::parse("noise.yaml", "noise", &text, KINDS, &[], &|_| None));
    }

    /// A variable's value is text, whatever YAML would make of it.
    #[test]
    fn a_variable_arrives_as_it_is(value in "([ -~]|\\n|\\t|é|\\$\\{X\\}|: |- |# ){0,24}") {
        let text = LIGHT.replace("default: nothing", "default: \"${X}\"").replace("name: light\n", "name: light\n# ${Y}\n");
        let lookup = |name: &str| (name == "X").then(|| value.clone());
        let loaded = pipeline::parse("p.yaml", "p", &text, KINDS, &[], &lookup).unwrap();
        prop_assert_eq!(loaded.tables.len(), 3);
        prop_assert_eq!(&loaded.tables[1].stage.params()["default"], &serde_json::json!(value));
    }
}
