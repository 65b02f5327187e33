//! The golden comparisons as on other machines: with the kernels that ATen, oneDNN and MKL choose on lesser processors,
//! on processors of another maker, and with other numbers of threads.
//!
//! The libraries read these variables when they are loaded, so each setting is a process of its own.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

/// A kind of machine that this one can imitate.
struct Machine {
    name: &'static str,
    /// True if this processor has the instructions.
    possible: bool,
    /// True if MKL has to take this processor for one of Intel's, for which it has kernels of its own: their `exp`
    /// rounds otherwise.
    intel: bool,
    environment: &'static [(&'static str, &'static str)],
}

/// Returns the machines: each library at its least, as on Intel's processors with AVX2 and with AVX-512, and a mixture
/// in which MKL alone does without the vectors that others use. Sums are split by threads, so some settings have two.
fn machines() -> [Machine; 4] {
    let (avx2, avx512) = (is_x86_feature_detected!("avx2"), is_x86_feature_detected!("avx512f"));
    [
        Machine {
            name: "SSE4.2",
            possible: true,
            intel: false,
            environment: &[
                ("ATEN_CPU_CAPABILITY", "default"),
                ("ONEDNN_MAX_CPU_ISA", "SSE41"),
                ("MKL_ENABLE_INSTRUCTIONS", "SSE4_2"),
                ("OMP_NUM_THREADS", "1"),
            ],
        },
        Machine {
            name: "Intel with AVX2, two threads",
            possible: avx2,
            intel: true,
            environment: &[
                ("ATEN_CPU_CAPABILITY", "avx2"),
                ("ONEDNN_MAX_CPU_ISA", "AVX2"),
                ("MKL_ENABLE_INSTRUCTIONS", "AVX2"),
                ("OMP_NUM_THREADS", "2"),
            ],
        },
        Machine {
            name: "Intel with AVX-512",
            possible: avx512,
            intel: true,
            environment: &[
                ("ATEN_CPU_CAPABILITY", "avx512"),
                ("ONEDNN_MAX_CPU_ISA", "AVX512_CORE"),
                ("MKL_ENABLE_INSTRUCTIONS", "AVX512"),
                ("OMP_NUM_THREADS", "1"),
            ],
        },
        Machine {
            name: "MKL in its reproducible mode, two threads",
            possible: true,
            intel: false,
            environment: &[("MKL_CBWR", "COMPATIBLE"), ("OMP_NUM_THREADS", "2")],
        },
    ]
}

/// Builds a library that answers in MKL's place that the processor is Intel's; the dynamic linker loads it before MKL.
/// None without a C compiler, or if the linker cannot preload libraries.
fn intel(folder: &Path) -> Option<PathBuf> {
    let (source, library) = (folder.join("intel.c"), folder.join("libintel.so"));
    let functions = ["mkl_serv_intel_cpu", "mkl_serv_intel_cpu_true"];
    let lines: String = functions.iter().map(|name| format!("int {name}(void) {{ return 1; }}\n")).collect();
    std::fs::write(&source, lines).ok()?;
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).output().ok()?;
    built.status.success().then_some(library)
}

#[test]
fn networks_equal_their_reference_implementations_on_other_machines() {
    let folder = tempfile::tempdir().unwrap();
    let library = intel(folder.path());
    let mut said = String::from("\n");
    let mut failed = Vec::new();
    for Machine { name, possible, intel, environment } in machines() {
        if !possible {
            said += &format!("golden set, {name}: this processor lacks the instructions\n");
            continue;
        }
        let mut child = super::child("");
        // With this policy, waiting threads do not keep a core busy that another test needs.
        child.env("OMP_WAIT_POLICY", "passive").envs(environment.iter().copied());
        match &library {
            Some(library) if intel => _ = child.env("LD_PRELOAD", library),
            None if intel => said += "without a C compiler MKL takes this processor for what it is:\n",
            _ => {}
        }
        let started = Instant::now();
        let (passes, [cases, numbers], text) = super::compared(&mut child);
        let seconds = started.elapsed().as_secs_f64();
        said += &format!("golden set, {name}: {cases} cases and {numbers} numbers compared, {seconds:.0} s\n");
        if !passes || cases == 0 {
            failed.push(format!("{name}\n{text}"));
        }
    }
    super::say(&said);
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
