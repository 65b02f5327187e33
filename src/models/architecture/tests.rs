use super::*;

/// Returns the shapes of a DINO ViT: two blocks, 3x3 patches of side 8, width 12.
fn dino() -> BTreeMap<String, Vec<i64>> {
    let mut shapes = BTreeMap::new();
    let mut add = |name: &str, shape: &[i64]| {
        shapes.insert(name.to_owned(), shape.to_vec());
    };
    add("cls_token", &[1, 1, 12]);
    add("pos_embed", &[1, 10, 12]);
    let layers = [("patch_embed.proj", vec![12, 3, 8, 8]), ("norm", vec![12])];
    let block = |i: i64| {
        [("attn.qkv", vec![36, 12]), ("attn.proj", vec![12, 12]), ("mlp.fc1", vec![48, 12]), ("mlp.fc2", vec![12, 48])]
            .into_iter()
            .chain([("norm1", vec![12]), ("norm2", vec![12])])
            .map(move |(name, shape)| (format!("blocks.{i}.{name}"), shape))
    };
    let layers = layers.map(|(name, shape)| (name.to_owned(), shape)).into_iter().chain((0..2).flat_map(block));
    for (name, shape) in layers {
        add(&format!("{name}.weight"), &shape);
        add(&format!("{name}.bias"), &shape[..1]);
    }
    shapes
}

fn of(shapes: &BTreeMap<String, Vec<i64>>) -> Recognised {
    recognise(shapes.iter().map(|(name, shape)| (name.as_str(), shape.as_slice())))
}

fn below(prefix: &str, shapes: &BTreeMap<String, Vec<i64>>) -> BTreeMap<String, Vec<i64>> {
    shapes.iter().map(|(name, shape)| (format!("{prefix}.{name}"), shape.clone())).collect()
}

#[test]
fn a_layout_that_fits_has_its_sizes() {
    let found = of(&dino());
    assert_eq!(found.layout(), Some("dino"));
    let text = "DINO ViT (original names): patch 8, width 12, blocks 2, positions 3x3";
    assert_eq!(found.parts[0].to_string(), text);
    assert_eq!(found.looks_like().unwrap(), text);
}

#[test]
fn parts_are_found_below_prefixes() {
    let mut shapes = below("model.encoder", &dino());
    shapes.insert("model.head.weight".to_owned(), vec![5, 12]);
    let found = of(&shapes);
    assert_eq!((found.layout(), found.parts[0].prefix.as_str()), (Some("dino"), "model.encoder"));
    assert_eq!(found.rest, ["model.head.weight"]);
    let twins: BTreeMap<_, _> = below("student", &dino()).into_iter().chain(below("teacher", &dino())).collect();
    let found = of(&twins);
    assert_eq!(found.parts.iter().map(|part| part.prefix.as_str()).collect::<Vec<_>>(), ["student", "teacher"]);
    assert_eq!(found.layout(), None);
}

#[test]
fn a_file_that_does_not_fit_has_the_differences_from_the_nearest_layout() {
    let mut shapes = dino();
    shapes.remove("blocks.1.norm2.bias");
    shapes.insert("blocks.0.mlp.fc1.weight".to_owned(), vec![48, 13]);
    shapes.insert("extra".to_owned(), vec![1]);
    let found = of(&shapes);
    assert!(found.parts.is_empty() && found.layout().is_none());
    let Nearest { layout, mismatch, .. } = found.nearest.clone().unwrap();
    assert_eq!(layout, "dino");
    let wrong = "1 missing: blocks.1.norm2.bias; 1 unexpected: extra; \
                 1 wrong shape: blocks.0.mlp.fc1.weight [48, 13] instead of [48, 12]";
    assert_eq!(mismatch.to_string(), wrong);
    assert_eq!(found.looks_like().unwrap(), "a damaged DINO ViT (original names)");
    let mut gap = dino();
    gap.retain(|name, _| !name.starts_with("blocks.0."));
    assert_eq!(of(&gap).nearest.unwrap().mismatch.missing.len(), 12, "blocks count from 0");
}

#[test]
fn a_number_far_beyond_the_others_is_unexpected() {
    let mut shapes = dino();
    shapes.insert("blocks.4000000000.norm1.weight".to_owned(), vec![12]);
    let Nearest { layout, mismatch, .. } = of(&shapes).nearest.unwrap();
    assert_eq!((layout.as_str(), mismatch.len()), ("dino", 1));
    assert_eq!(mismatch.unexpected, ["blocks.4000000000.norm1.weight"]);
}

#[test]
fn a_name_may_have_any_number_of_dots() {
    let name = format!("a{}", ".".repeat(1 << 20));
    let shapes = dino().into_iter().chain([(name.clone(), vec![1])]).collect();
    assert!(of(&shapes).nearest.unwrap().mismatch.unexpected == [name]);
}

#[test]
fn a_file_like_no_layout_is_not_recognised() {
    let toy = BTreeMap::from([("w".to_owned(), vec![2, 3]), ("b".to_owned(), vec![3])]);
    assert_eq!(of(&toy), Recognised::default());
    assert_eq!(of(&toy).looks_like(), None);
    assert_eq!(of(&BTreeMap::new()), Recognised::default());
}

#[test]
fn a_matrix_may_be_stored_as_a_1x1_convolution() {
    let mut shapes = dino();
    shapes.insert("blocks.0.attn.proj.weight".to_owned(), vec![12, 12, 1, 1]);
    assert_eq!(of(&shapes).layout(), Some("dino"));
}
