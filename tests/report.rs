//! The page about a run: what it says of sweeps and of protocols.

use std::fs;

use crate::{
    lab::{LIGHT, Lab},
    metrics,
};

/// The page, and its text with a line for each piece.
fn page(lab: &Lab) -> (String, String) {
    let ended = lab.vlmdiff(&["report"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let html = fs::read_to_string(lab.path("report.html")).unwrap();
    let body = html.split("<body>").nth(1).unwrap().split("<script>").next().unwrap();
    let pieces = body.split('<').filter_map(|piece| Some(piece.split_once('>')?.1.trim()));
    let text = pieces.filter(|piece| !piece.is_empty()).collect::<Vec<_>>().join("\n");
    (html, text)
}

#[test]
fn pictures_are_those_of_the_combination_that_ran_last() {
    let lab = Lab::new(&format!("{LIGHT}sweep: {{ size: [16, 32] }}\n"));
    let shown = |size: u32| {
        let (html, text) = page(&lab);
        assert!(text.contains(&format!("\nsize={size}\n, of 2 combinations the one that ran last")), "{text}");
        assert_eq!(html.matches("aria-label=\"input\"><image id=").count(), 6);
        assert!(html.contains(&format!("viewBox=\"0 0 {size} {size}\"")));
    };
    lab.run(&[]);
    shown(32);
    // Nothing was left to compute.
    lab.run(&["--only", "size=16"]);
    shown(16);
}

#[test]
fn numbers_say_by_which_values_and_protocol() {
    let by_sweep = "sweep: { aupro_limit: [0.3, 0.05], run: [python3 -B maps.py, python3 maps.py] }";
    let (_, text) = page(&metrics::lab(&format!("{}{by_sweep}\n", metrics::PIPELINE)));
    let count = |piece: &str| text.matches(piece).count();
    // Each combination has its tiles, and of each protocol a row for each class and one for the mean.
    assert_eq!(count("aupro_limit=0.05, run=python3 -B maps.py\n"), 1, "{text}");
    assert_eq!(count("image AUROC by\nexact\n, mean over classes"), 4, "{text}");
    assert_eq!(count("\ntile\n0.05\npython3 maps.py\n"), 3, "{text}");
    assert_eq!(count("\nmean over classes\n0.3\npython3 -B maps.py\n"), 3, "{text}");
    for said in [
        "\nexact\nFrom the definitions:",
        "\nreference\nAs the code of the paper",
        "\nader\nAs ADer",
        "are not to be compared with each other",
        "at most 5 or 30 % of the normal pixels",
    ] {
        assert_eq!(count(said), 1, "{said}\n{text}");
    }
}
