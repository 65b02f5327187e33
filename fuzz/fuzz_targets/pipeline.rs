//! Any text is a pipeline or an error with a place.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| {
    let variable = |name: &str| Some(format!("{name}: [x]"));
    let _ = vlmdiff::engine::pipeline::parse("fuzz.yaml", "fuzz", text, vlmdiff::stages::KINDS, &[], &variable);
});
