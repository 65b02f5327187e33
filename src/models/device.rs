//! Devices for tensors, by name.

use tch::{Cuda, Device};

/// A device that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// The name is not that of a device.
    #[error("`{0}` is no device; use auto, cpu, cuda or cuda:N")]
    Unknown(String),
    /// There is no driver of GPUs.
    #[error(
        "device `{0}`: this machine has no NVIDIA driver; use --device cpu, or --device auto, which takes what there is"
    )]
    NoDriver(String),
    /// The GPU does not exist or cannot be used.
    #[error(
        "device `{name}`: {why}; use --device cpu, or make the CUDA build of the same libtorch findable (LD_LIBRARY_PATH)"
    )]
    NoGpu {
        /// The device asked for.
        name: String,
        /// The reason, such as a library that is not found.
        why: String,
    },
}

/// Returns the number of the GPU that a name asks for; None for the CPU. Does not check that the GPU exists.
pub fn parse(name: &str) -> Result<Option<usize>, DeviceError> {
    match name {
        "cpu" => Ok(None),
        "auto" | "cuda" => Ok(Some(0)),
        _ => {
            let index = name.strip_prefix("cuda:").and_then(|n| n.parse().ok());
            index.map(Some).ok_or_else(|| DeviceError::Unknown(name.into()))
        }
    }
}

/// Checks the name of a device, and that there is a driver if it is that of a GPU. Whether libtorch can use the GPU is known
/// when the device is opened.
pub fn check(name: &str) -> Result<(), DeviceError> {
    let is_gpu = parse(name)?.is_some() && name != "auto";
    if is_gpu && !has_driver() { Err(DeviceError::NoDriver(name.into())) } else { Ok(()) }
}

/// Returns the name of the device that a name stands for, as far as it is known before libtorch looks for a GPU: `auto` is
/// the CPU where there is no driver.
pub fn on_this_machine(name: &str) -> &str {
    if name == "auto" && !has_driver() { "cpu" } else { name }
}

fn has_driver() -> bool {
    std::path::Path::new("/dev/nvidiactl").exists()
}

/// Opens a device by name: `cpu`, `cuda`, `cuda:N`, or `auto`, which is the first GPU if there is one, else the CPU.
///
/// The program links the CPU half of libtorch; its CUDA half is loaded here, before the first call to CUDA.
pub fn open(name: &str) -> Result<Device, DeviceError> {
    check(name)?;
    let Some(index) = parse(name)?.filter(|_| has_driver()) else { return Ok(Device::Cpu) };
    let no_gpu = |why: &str| {
        if name == "auto" { Ok(Device::Cpu) } else { Err(DeviceError::NoGpu { name: name.into(), why: why.into() }) }
    };
    if let Err(why) = load_cuda() {
        return no_gpu(&why);
    }
    if Cuda::device_count() <= index as i64 {
        return no_gpu(&format!("libtorch sees {} GPUs", Cuda::device_count()));
    }
    Ok(Device::Cuda(index))
}

/// Loads libtorch_cuda.so from the folder of the libtorch_cpu.so in use, or from the search path of the loader.
fn load_cuda() -> Result<(), String> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let beside = maps
        .lines()
        .filter_map(|line| line.split_whitespace().last())
        .find_map(|path| path.strip_suffix("libtorch_cpu.so"));
    let mut last = String::new();
    for folder in beside.into_iter().chain([""]) {
        let libraries = ["libc10_cuda.so", "libtorch_cuda.so"].map(|library| format!("{folder}{library}"));
        match libraries.iter().try_for_each(|library| load(library)) {
            Ok(()) => return Ok(()),
            Err(why) => last = why,
        }
    }
    Err(last)
}

fn load(library: &str) -> Result<(), String> {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    // SAFETY: loading a library runs its initialisers; libtorch's are safe to run, as they do in every program linked
    // to it.
    let loaded = unsafe { Library::open(Some(library), RTLD_NOW | RTLD_GLOBAL) };
    // The library stays loaded for the life of the process.
    loaded.map(std::mem::forget).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_names_are_refused() {
        assert_eq!(open("cpu"), Ok(Device::Cpu));
        assert_eq!(parse("cuda:1"), Ok(Some(1)));
        for wrong in ["gpu", "cuda:x", "cuda:"] {
            assert_eq!(open(wrong), Err(DeviceError::Unknown(wrong.into())));
        }
        assert!(open("cuda:99").is_err());
    }
}
