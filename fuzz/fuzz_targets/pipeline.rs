//! Any text parses to a pipeline or to an error with a place, without a panic.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| {
    let variable = |name: &str| Some(format!("{name}: [x]"));
    let tables_of_sql = &["runs"];
    let _ = vlmdiff::engine::pipeline::parse(
        "fuzz.yaml",
        "fuzz",
        text,
        vlmdiff::stages::KINDS,
        tables_of_sql,
        &[],
        &variable,
    );
});
