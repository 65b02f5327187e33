//! Behaviour of the built programs: one test binary, since linking libtorch is slow.

mod cli;
mod concurrent;
mod history;
mod incremental;
mod lab;
mod laws;
mod layering;
mod properties;
mod proxy;
mod python;
mod remote;
mod resume;
mod sweep;
