//! Behaviour of the built programs: one test binary, since linking libtorch is slow.

mod cli;
mod command;
mod incremental;
mod lab;
mod laws;
mod layering;
mod read;
mod resume;
mod sql;
