//! Behaviour of the built programs: one test binary, since linking libtorch is slow.

mod cli;
mod incremental;
mod lab;
mod laws;
mod layering;
mod proxy;
mod python;
mod remote;
mod resume;
