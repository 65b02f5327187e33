use super::*;
use tch::{Device, nn::Init};

fn named(tensors: &[(&str, Tensor)]) -> Vec<(String, Tensor)> {
    tensors.iter().map(|(name, tensor)| ((*name).to_owned(), tensor.shallow_clone())).collect()
}

fn file(tensors: &[(&str, Tensor)]) -> Checkpoint {
    Checkpoint::from_safetensors(to_safetensors(named(tensors), HashMap::new()).unwrap()).unwrap()
}

fn ramp(shape: &[i64]) -> Tensor {
    Tensor::arange(shape.iter().product::<i64>(), tch::kind::FLOAT_CPU).reshape(shape)
}

#[test]
fn equal_tensors_give_equal_bytes_in_any_order() {
    let (a, b) = (("a", ramp(&[2, 3])), ("b", ramp(&[5]).to_kind(Kind::Half)));
    let metadata: HashMap<_, _> = ["step", "seed", "model", "note"].map(|key| (key.to_owned(), key.repeat(2))).into();
    let write = |tensors: &[(&str, Tensor)]| {
        // Each new map has an order of its own.
        to_safetensors(named(tensors), metadata.iter().map(|(k, v)| (k.clone(), v.clone())).collect()).unwrap()
    };
    let (a2, b2) = (("a", a.1.shallow_clone()), ("b", b.1.shallow_clone()));
    let bytes = write(&[a, b]);
    assert_eq!(bytes, write(&[b2, a2]));
    let read = Checkpoint::from_safetensors(bytes).unwrap();
    assert_eq!(read.metadata(), &metadata);
    assert_eq!(read.kind("b"), Some(Kind::Half));
    assert_eq!(read.tensor("a").unwrap(), ramp(&[2, 3]));
}

#[test]
fn every_element_type_survives_a_round_trip() {
    let kinds = [Kind::Uint8, Kind::Int8, Kind::Int16, Kind::Int, Kind::Int64, Kind::Half, Kind::BFloat16, Kind::Float];
    for kind in kinds.into_iter().chain([Kind::Double, Kind::Bool]) {
        let transposed = ramp(&[2, 3]).to_kind(kind).tr();
        let read = file(&[("t", transposed.shallow_clone()), ("empty", ramp(&[0, 3])), ("scalar", ramp(&[]))]);
        assert_eq!(read.tensor("t").unwrap(), transposed, "{kind:?}");
        assert_eq!(read.shape("empty"), Some([0, 3].as_slice()));
        assert_eq!(read.tensor("scalar").unwrap().size(), [0i64; 0]);
    }
}

#[test]
fn loading_is_strict_and_names_everything_that_differs() {
    let vs = nn::VarStore::new(Device::Cpu);
    let weight = (vs.root() / "layer" / 0).var("weight", &[2, 3], Init::Const(7.));
    let _bias = (vs.root() / "layer" / 0).var("bias", &[2], Init::Const(7.));
    let wrong = file(&[("layer.0.weight", ramp(&[3, 2])), ("layer.1.weight", ramp(&[1]))]);
    let message = wrong.load_into(&vs).unwrap_err().to_string();
    assert_eq!(
        message,
        "the weights (in memory) do not fit the model: 1 missing: layer.0.bias; 1 unexpected: layer.1.weight; \
         1 wrong shape: layer.0.weight [3, 2] instead of [2, 3]"
    );
    assert_eq!(weight.double_value(&[0, 0]), 7., "a failed load changes nothing");

    let right = file(&[("layer.0.weight", ramp(&[2, 3]).to_kind(Kind::Half)), ("layer.0.bias", ramp(&[2]))]);
    right.load_into(&vs).unwrap();
    assert_eq!(weight.detach(), ramp(&[2, 3]), "converted to the type of the variable");
    assert!(weight.requires_grad(), "and still trainable");
}

#[test]
fn a_long_list_of_names_is_cut() {
    let mismatch = Mismatch { missing: (0..25).map(|i| format!("w{i}")).collect(), ..Default::default() };
    let text = mismatch.to_string();
    assert!(text.starts_with("25 missing: w0, ") && text.ends_with("w19 and 5 more"), "{text}");
}

#[test]
fn tensors_are_renamed_selected_and_split() {
    let whole = file(&[("a.qkv", ramp(&[6, 2])), ("a.b", ramp(&[1])), ("ab.c", ramp(&[1]))]);
    assert_eq!(whole.clone().select("a").names().collect::<Vec<_>>(), ["b", "qkv"]);
    let thirds = |name: &str| name.ends_with("qkv").then(|| ["q", "k", "v"].map(str::to_owned).to_vec());
    let split = whole.clone().split(thirds).unwrap();
    assert_eq!(split.tensor("k").unwrap(), ramp(&[6, 2]).narrow(0, 2, 2));
    assert!(split.split(|name| (name == "q").then(|| thirds("qkv").unwrap())).is_err(), "2 rows, 3 parts");
    let renamed = whole.clone().rename(|name| name.strip_prefix("a.").map(str::to_owned)).unwrap();
    assert_eq!(renamed.names().collect::<Vec<_>>(), ["b", "qkv"]);
    assert!(whole.clone().rename(|_| Some("same".to_owned())).is_err());
    assert_eq!(whole.clone().retain(|name| name.starts_with('a')).len(), 3);
    assert_eq!(whole.clone().retain(|name| name == "ab.c").names().collect::<Vec<_>>(), ["ab.c"]);
    assert_eq!(whole.clone().part("a").names().collect::<Vec<_>>(), ["b", "qkv"]);
    assert_eq!(whole.clone().part("b").len(), 3, "nothing lies below it");
    assert_eq!(whole.clone().state_dict().len(), 3);
}

#[test]
fn shards_are_one_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
    let shard = |name: &str| to_safetensors(named(&[(name, ramp(&[2]))]), HashMap::new()).unwrap();
    write("model-1.safetensors", &shard("a"));
    write("model-2.safetensors", &shard("b"));
    let index = |map: &str| write("model.safetensors.index.json", map.as_bytes());
    index(r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#);
    assert_eq!(Checkpoint::open(folder.path()).unwrap().names().collect::<Vec<_>>(), ["a", "b"]);
    let files = ["model.safetensors.index.json", "model-1.safetensors", "model-2.safetensors"];
    assert_eq!(Checkpoint::files(folder.path()), files.map(|file| folder.path().join(file)));
    index(r#"{"weight_map": {"a": "model-1.safetensors", "c": "model-2.safetensors"}}"#);
    assert!(Checkpoint::open(folder.path()).unwrap_err().to_string().contains("model-2.safetensors has no tensor c"));
    index(r#"{"weight_map": {"a": "../model-1.safetensors"}}"#);
    assert!(Checkpoint::open(folder.path()).unwrap_err().to_string().contains("does not lie beside it"));
    index(r#"{"weight_map": {"a": "model.safetensors.index.json"}}"#);
    let itself = "its shard model.safetensors.index.json is itself an index";
    assert!(Checkpoint::open(folder.path()).unwrap_err().to_string().ends_with(itself));
}

#[test]
fn the_error_for_a_file_that_is_no_checkpoint_says_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights");
    let message = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let text = Checkpoint::open(&path).unwrap_err().to_string();
        text.strip_prefix(&format!("cannot use {} as weights: ", path.display())).unwrap().to_owned()
    };
    assert_eq!(message(b""), "it is empty; download it again");
    let page = "it is a web page; a download was answered with it in place of the file, so download it again";
    assert_eq!(message(b"\n<!DOCTYPE html><html>Not found</html>"), page);
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n";
    assert_eq!(message(pointer), "it is a Git LFS pointer; fetch the file itself with `git lfs pull`");
    assert_eq!(message(b"\x1f\x8b\x08\x00"), "it is compressed with gzip; `gunzip` it");
    assert_eq!(message(b"no weights at all"), "it is neither safetensors nor a file of torch.save");
    assert!(message(b"{\"hidden_size\": 768}").starts_with("it is JSON and no index of a sharded file: missing field"));
    assert_eq!(message(b"\x80\x02}q\x00."), "it is a pickle, but not one that torch.save wrote");

    let whole = to_safetensors(named(&[("w", ramp(&[4]))]), HashMap::new()).unwrap();
    let (bytes, half) = (whole.len() - 1, whole.len() / 2);
    let cut = |bytes: usize| format!("it is cut off: {bytes} bytes are less than its header says; download it again");
    assert_eq!(message(&whole[..bytes]), cut(bytes));
    assert_eq!(message(&whole[..half]), cut(half));
}

#[test]
fn the_error_for_a_zip_archive_that_is_no_checkpoint_says_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.pt");
    let message = |members: &[&str], cut: usize| {
        let mut zip = zip::ZipWriter::new(std::io::Cursor::new(vec![]));
        for member in members {
            zip.start_file(*member, zip::write::SimpleFileOptions::default()).unwrap();
            std::io::Write::write_all(&mut zip, b"\x80\x02}.").unwrap();
        }
        let bytes = zip.finish().unwrap().into_inner();
        std::fs::write(&path, &bytes[..bytes.len() - cut]).unwrap();
        let text = Checkpoint::open(&path).unwrap_err().to_string();
        text.strip_prefix(&format!("cannot use {} as weights: ", path.display())).unwrap().to_owned()
    };
    assert_eq!(
        message(&["readme.txt"], 0),
        "it is a zip archive without a data.pkl, so torch.save did not write it; unpack it if weights are in it"
    );
    assert_eq!(
        message(&["model/data.pkl", "model/constants.pkl", "model/code/__torch__.py"], 0),
        "it is TorchScript; in Python, torch.save(torch.jit.load(FILE).state_dict(), NEW) makes weights of it"
    );
    assert_eq!(
        message(&["model/data.pkl"], 0),
        "it holds no named tensors; a state_dict would work, a pickled module does not"
    );
    let cut = message(&["model/data.pkl"], 30);
    assert!(cut.starts_with("it begins like a zip archive and is cut off or damaged"), "{cut}");
    assert!(cut.ends_with("download it again"), "{cut}");
}

#[test]
fn the_error_for_a_folder_without_weights_names_folders_that_have_some() {
    let folder = tempfile::tempdir().unwrap();
    let message = || Checkpoint::open(folder.path()).unwrap_err().to_string();
    assert!(message().ends_with("the folder has no model.safetensors, diffusion_pytorch_model.safetensors or .bin, pytorch_model.bin, nor the index of one in shards"), "{}", message());
    for part in ["unet", "vae", "tokenizer"] {
        std::fs::create_dir(folder.path().join(part)).unwrap();
    }
    for part in ["unet", "vae"] {
        let bytes = to_safetensors(named(&[("w", ramp(&[4]))]), HashMap::new()).unwrap();
        std::fs::write(folder.path().join(part).join("diffusion_pytorch_model.safetensors"), bytes).unwrap();
    }
    assert!(message().ends_with(", but these folders in it have: unet, vae"), "{}", message());
    assert!(Checkpoint::open(folder.path().join("none")).unwrap_err().to_string().starts_with("cannot read"));
}

#[test]
fn dimensions_of_one_at_the_end_do_not_count() {
    let vs = nn::VarStore::new(Device::Cpu);
    let matrix = vs.root().zeros("matrix", &[2, 3]);
    let convolution = vs.root().zeros("convolution", &[2, 3, 1, 1]);
    let turned = vs.root().zeros("turned", &[3, 2]);
    let file = file(&[("matrix", ramp(&[2, 3, 1, 1])), ("convolution", ramp(&[2, 3])), ("turned", ramp(&[3, 2, 1]))]);
    file.load_into(&vs).unwrap();
    assert_eq!(matrix, ramp(&[2, 3]));
    assert_eq!(convolution, ramp(&[2, 3, 1, 1]));
    assert_eq!(turned, ramp(&[3, 2]));
    for (model, stored) in [(vec![2, 3], vec![3, 2]), (vec![1, 2], vec![2]), (vec![2, 1, 3], vec![2, 3])] {
        let vs = nn::VarStore::new(Device::Cpu);
        let _ = vs.root().zeros("w", &model);
        let error = self::file(&[("w", ramp(&stored))]).load_into(&vs).unwrap_err();
        assert!(matches!(error, CheckpointError::Mismatch { mismatch, .. } if mismatch.shapes.len() == 1), "{model:?}");
    }
}

#[test]
fn the_error_for_weights_of_another_network_names_that_network() {
    let names = (0..5).map(|i| format!("lin{i}.model.1.weight")).collect::<Vec<_>>();
    let lins: Vec<_> = names.iter().map(|name| (name.as_str(), ramp(&[1, 4, 1, 1]))).collect();
    let vs = nn::VarStore::new(Device::Cpu);
    let _ = vs.root().zeros("w", &[1]);
    // The description is that of the names before they were changed.
    let renamed = file(&lins).rename(|name| Some(name.replace("model", "layer"))).unwrap();
    let text = renamed.load_into(&vs).unwrap_err().to_string();
    assert!(text.ends_with("; the file looks like linear layers of LPIPS: widths [4, 4, 4, 4, 4]"), "{text}");
}

#[test]
fn weights_are_converted_to_the_type_of_the_model() {
    for (stored, variable) in [(Kind::Half, Kind::Float), (Kind::Float, Kind::BFloat16), (Kind::Bool, Kind::Float)] {
        let vs = nn::VarStore::new(Device::Cpu);
        let mut w = vs.root().zeros("w", &[2, 3]);
        w.set_data(&w.to_kind(variable));
        let values = ramp(&[2, 3]).to_kind(stored);
        file(&[("w", values.shallow_clone())]).load_into(&vs).unwrap();
        assert_eq!(w, values.to_kind(variable), "{stored:?}");
    }
}
