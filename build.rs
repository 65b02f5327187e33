//! Lets the built binaries find libtorch from any directory, without LD_LIBRARY_PATH.

fn main() {
    println!("cargo::rerun-if-env-changed=LIBTORCH");
    println!("cargo::rerun-if-changed=build.rs");
    let Some(libtorch) = std::env::var_os("LIBTORCH") else { return };
    let lib = std::path::Path::new(&libtorch).join("lib");
    let lib = lib.canonicalize().unwrap_or(lib);
    println!("cargo::rustc-link-arg=-Wl,-rpath,{}", lib.display());
    // The driver shares a crate with the networks and calls none of them. Its linker (lld, Rust's own on this platform) drops
    // what is not called, but for the static initialisers of libtorch's wrapper, so that wrapper is kept out. Should the
    // driver ever call a network, it no longer links.
    println!("cargo::rustc-link-arg-bin=vlmdiff=-Wl,--remap-inputs=*libtorch_sys-*.rlib=/dev/null");
}
