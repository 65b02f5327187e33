//! The stages of the pipeline, one file or folder each, in the order of data flow. Only this module uses both the
//! engine and the networks.

pub mod anomaly_maps;
pub mod calibrate;
pub mod caption;
pub mod command;
pub mod decide;
pub mod detect;
pub mod encode_latents;
pub mod encode_text;
pub mod evaluate;
pub mod extract;
mod finish;
pub mod fit;
mod guided;
pub mod ingest;
mod journal;
mod likeness;
mod network_files;
pub mod pretrained;
pub mod read;
pub mod reconstruct;
pub mod regions;
pub mod score_latents;
mod side_by_side;
pub mod sql;
pub mod stitch;
mod tensors;
pub mod train_autoencoder;
pub mod train_denoiser;
pub mod train_text_encoder;
mod types;
pub mod yes_no;

crate::stages! {
    "ingest" => ingest::Ingest, driver;
    "read" => read::Read, driver;
    "caption" => caption::Caption, either;
    "pretrained" => pretrained::Pretrained, worker;
    "train_text_encoder" => train_text_encoder::TrainTextEncoder, worker;
    "encode_text" => encode_text::EncodeText, worker;
    "train_autoencoder" => train_autoencoder::TrainAutoencoder, worker;
    "encode_latents" => encode_latents::EncodeLatents, worker;
    "train_denoiser" => train_denoiser::TrainDenoiser, worker;
    "reconstruct" => reconstruct::Reconstruct, worker;
    "score_latents" => score_latents::ScoreLatents, worker;
    "anomaly_maps" => anomaly_maps::AnomalyMaps, worker;
    "extract" => extract::Extract, worker;
    "fit" => fit::Fit, worker;
    "detect" => detect::Detect, worker;
    "stitch" => stitch::Stitch, driver;
    "yes_no" => yes_no::YesNo, driver;
    "evaluate" => evaluate::Evaluate, driver;
    "calibrate" => calibrate::Calibrate, driver;
    "decide" => decide::Decide, driver;
    "regions" => regions::Regions, driver;
    "sql" => sql::Sql, driver;
    "command" => command::Command, driver;
}
