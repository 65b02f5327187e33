//! Reads the golden tensors that tests compare with.

use image::{GrayImage, RgbImage};
use safetensors::{SafeTensors, tensor::TensorView};
use std::path::{Path, PathBuf};

/// One opened safetensors file of fixtures.
pub(crate) struct Golden(Vec<u8>);

impl Golden {
    /// The folder named by `VLMDIFF_GOLDEN`, else `shared/golden` beside the checkout.
    fn folder() -> PathBuf {
        let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/golden");
        std::env::var_os("VLMDIFF_GOLDEN").map_or_else(beside, PathBuf::from)
    }

    /// `name` is a path without `.safetensors`; None, and a line on stderr, where this machine has no fixtures.
    pub(crate) fn open(name: &str) -> Option<Self> {
        let path = Self::folder().join(name).with_extension("safetensors");
        if !path.exists() && std::env::var_os("VLMDIFF_GOLDEN").is_none() {
            eprintln!("not compared: no {}", path.display());
            return None;
        }
        Some(Self(std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))))
    }

    fn with<T>(&self, name: &str, f: impl Fn(TensorView) -> T) -> T {
        f(SafeTensors::deserialize(&self.0).unwrap().tensor(name).unwrap())
    }

    pub(crate) fn rgb(&self, name: &str) -> RgbImage {
        self.with(name, |t| RgbImage::from_raw(t.shape()[1] as u32, t.shape()[0] as u32, t.data().to_vec()).unwrap())
    }

    pub(crate) fn gray(&self, name: &str) -> GrayImage {
        self.with(name, |t| GrayImage::from_raw(t.shape()[1] as u32, t.shape()[0] as u32, t.data().to_vec()).unwrap())
    }

    pub(crate) fn shape(&self, name: &str) -> Vec<usize> {
        self.with(name, |t| t.shape().to_vec())
    }

    pub(crate) fn f32(&self, name: &str) -> Vec<f32> {
        self.with(name, |t| t.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }

    pub(crate) fn f64(&self, name: &str) -> Vec<f64> {
        self.with(name, |t| t.data().as_chunks::<8>().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect())
    }
}
