//! COCO's text form of run lengths.

/// Returns the run lengths that a text stands for.
///
/// A number is written in groups of five bits, the lowest first, each as the character of code 48 + group, + 32 if another
/// follows; the highest bit of the last group is the sign. From the fourth number on, each is the difference to the number
/// two before it.
pub(super) fn decode(text: &str) -> Result<Vec<u32>, String> {
    let mut runs: Vec<u32> = Vec::new();
    let (mut number, mut bits) = (0_i64, 0);
    for character in text.bytes() {
        let group = match character.checked_sub(48) {
            Some(group @ ..64) if bits < 60 => group,
            _ => return Err(format!("`{}` at run {} is none of COCO's run lengths", character as char, runs.len())),
        };
        number |= i64::from(group & 31) << bits;
        bits += 5;
        if group & 32 != 0 {
            continue;
        }
        if group & 16 != 0 {
            number |= -1 << bits;
        }
        let before = if runs.len() > 2 { runs[runs.len() - 2].into() } else { 0 };
        let run = u32::try_from(number + before);
        runs.push(run.map_err(|_| format!("run {} has the length {}", runs.len(), number + before))?);
        (number, bits) = (0, 0);
    }
    match bits {
        0 => Ok(runs),
        _ => Err("the run lengths end within a number".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_decoded_as_pycocotools_decodes_it() {
        // pycocotools 2.0.11, `frPyObjects` of uncompressed run lengths.
        for (runs, text) in GOLDEN {
            assert_eq!(decode(text).unwrap(), *runs, "{text}");
        }
        assert_eq!(decode("").unwrap(), [0; 0]);
    }

    const GOLDEN: &[(&[u32], &str)] = &[
        (&[2, 3, 1, 2], "231O"),
        (&[0, 5, 70, 33, 1000, 7, 3, 2], "05V2l0Rm0VOkPOK"),
        (&[272, 2, 4, 4, 4, 4, 2, 9, 1, 2, 16, 43, 100000, 5], "`824200N5OI?Y1`dQ3jN"),
    ];

    #[test]
    fn wrong_text_is_refused() {
        assert!(decode("1 2").unwrap_err().starts_with("` ` at run 1 is none"));
        assert_eq!(decode("1o").unwrap_err(), "the run lengths end within a number");
        assert_eq!(decode("O").unwrap_err(), "run 0 has the length -1");
        assert!(decode(&"o".repeat(20)).unwrap_err().starts_with("`o` at run 0"));
    }
}
