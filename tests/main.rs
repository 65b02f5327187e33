//! Behaviour of the built programs: one test binary, since linking libtorch is slow.

mod cli;
mod command;
mod concurrent;
mod damage;
mod fits;
mod golden;
mod history;
mod identity;
mod incremental;
mod lab;
mod laws;
mod layering;
mod loading;
mod metrics;
mod models;
mod properties;
mod proxy;
mod python;
mod read;
mod remote;
mod report;
mod resume;
mod secrets;
mod sql;
mod sweep;
mod training;
