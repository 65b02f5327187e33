//! Measures memory while weights are loaded, in a separate process.

use std::{fs, io::Write, path::Path, process::Command};

use tch::{Device, Kind, nn::VarStore};
use vlmdiff::models::checkpoint::Checkpoint;

const WEIGHTS: &str = "VLMDIFF_TEST_WEIGHTS";
const TENSORS: i64 = 16;
const ELEMENTS: i64 = 4 << 20;

/// Writes 256 MB of weights that begin at offset `alignment` of the file.
fn write(path: &Path, alignment: usize) {
    let size = ELEMENTS as usize * 4;
    let entry = |i: i64| {
        let at = i as usize * size;
        format!("\"w{i}\":{{\"dtype\":\"F32\",\"shape\":[{ELEMENTS}],\"data_offsets\":[{at},{}]}}", at + size)
    };
    let mut header = format!("{{{}}}", (0..TENSORS).map(entry).collect::<Vec<_>>().join(","));
    header += &" ".repeat((header.len() + 8).next_multiple_of(64) - header.len() - 8 + alignment);
    let mut file = std::io::BufWriter::new(fs::File::create(path).unwrap());
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    let block: Vec<u8> = (0..ELEMENTS).flat_map(|i| (i as f32).to_le_bytes()).collect();
    (0..TENSORS).for_each(|_| file.write_all(&block).unwrap());
    file.flush().unwrap();
}

/// Returns a memory figure of this process in bytes.
fn status(name: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_matches([':', ' ', '\t']).trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// Loads weights in the process that the other test starts.
#[test]
fn load_in_a_process_of_its_own() {
    let Some(path) = std::env::var_os(WEIGHTS) else { return };
    let file = fs::metadata(&path).unwrap().len() as f64;
    for kind in [Kind::Float, Kind::Half] {
        let mut vs = VarStore::new(Device::Cpu);
        let variables: Vec<_> = (0..TENSORS).map(|i| vs.root().ones(&format!("w{i}"), &[ELEMENTS])).collect();
        vs.set_kind(kind);
        // Only memory that is allocated from here on counts.
        let before = status("VmRSS");
        fs::write("/proc/self/clear_refs", "5").unwrap();
        Checkpoint::open(&path).unwrap().load_into(&vs).unwrap();
        let taken = (status("VmHWM") - before) as f64 / file;
        println!("{kind:?}: {taken:.2} of the file beside the variables");
        assert!(taken < 0.2, "{kind:?}: {taken:.2} of the file");
        assert_eq!((variables[0].kind(), variables[1].double_value(&[1234])), (kind, 1234.));
    }
}

#[test]
fn loading_takes_little_more_memory_than_the_weights() {
    let folder = tempfile::tempdir().unwrap();
    for alignment in [0, 1] {
        let path = folder.path().join("model.safetensors");
        write(&path, alignment);
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "loading::load_in_a_process_of_its_own", "--nocapture"]).env(WEIGHTS, &path);
        let output = child.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains("of the file"), "{said}");
    }
}
