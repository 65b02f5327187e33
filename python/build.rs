//! Keeps libtorch out of the extension, and tells it where the worker is built.

use std::path::Path;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // The linker drops every network, because the extension calls none, but would keep the static initialisers of libtorch's
    // wrapper, so that wrapper is kept out, as in the build of the driver. Should the extension ever call a network, it can no
    // longer be loaded.
    println!("cargo::rustc-link-arg-cdylib=-Wl,--remap-inputs=*libtorch_sys-*.rlib=/dev/null");
    // The wrapper's callbacks are among the symbols that Rust lists for export, and lld refuses a list with symbols that are left out.
    println!("cargo::rustc-link-arg-cdylib=-Wl,--undefined-version");
    // The folder of a build script's output is TARGET/PROFILE/build/NAME/out, and programs are built in TARGET/PROFILE.
    let out = std::env::var_os("OUT_DIR").unwrap_or_default();
    if let Some(programs) = Path::new(&out).ancestors().nth(3) {
        println!("cargo::rustc-env=VLMDIFF_PROGRAMS={}", programs.display());
    }
}
