//! Removal of the parts of names that come from the wrappers of a training program and not from the network.

use super::{Checkpoint, architecture};

/// The parts that wrappers put anywhere into a name: torch.compile, and those that shard or recompute a module. No
/// network has a module with such a name.
const ANYWHERE: [&str; 3] = ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];
/// The part that DataParallel, DistributedDataParallel and AveragedModel put before every name.
const MODULE: &str = "module";
/// The counter that AveragedModel keeps beside the weights.
const COUNT: &str = "n_averaged";
/// The prefixes of the parts of a denoising model. They are not removed: in a file with one part alone, the prefix says
/// which part it is, and the reader of a part selects it.
const PARTS: [&str; 6] =
    ["model.diffusion_model", "control_model", "first_stage_model", "cond_stage_model", "unet", "control"];

impl Checkpoint {
    /// Removes the parts of names that wrappers add, and a prefix that all names share if a published architecture
    /// stands below it and the whole is none.
    pub(super) fn unwrapped(self) -> Self {
        let mut unwrapped = self.without_parts();
        while unwrapped.all_below(MODULE) {
            unwrapped = unwrapped.select(MODULE);
        }
        match unwrapped.prefix_of_architecture() {
            Some(prefix) => unwrapped.select(&prefix),
            None => unwrapped,
        }
    }

    /// Removes the parts of [`ANYWHERE`]; changes nothing if two tensors would then have one name.
    fn without_parts(self) -> Self {
        let wraps = |part: &str| ANYWHERE.contains(&part);
        if !self.names().any(|name| name.split('.').any(wraps)) {
            return self;
        }
        let inner = |name: &str| Some(name.split('.').filter(|part| !wraps(part)).collect::<Vec<_>>().join("."));
        self.clone().rename(inner).unwrap_or(self)
    }

    /// Returns true if every tensor but the counter lies below `prefix`.
    fn all_below(&self, prefix: &str) -> bool {
        let below = |name: &str| name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('.'));
        self.names().any(below) && self.names().all(|name| name == COUNT || below(name))
    }

    /// Returns the shortest prefix that all names share and below which a published architecture stands; None if the
    /// whole is one.
    fn prefix_of_architecture(&self) -> Option<String> {
        let shared = self.shared_parts();
        if shared.is_empty() || self.architecture().is_some() {
            return None;
        }
        let prefixes = (1..=shared.len()).map(|parts| shared[..parts].join("."));
        prefixes.take_while(|prefix| !PARTS.contains(&prefix.as_str())).find(|prefix| {
            let below = self.shapes().filter_map(|(name, shape)| Some((name.get(prefix.len() + 1..)?, shape)));
            architecture::whole(below).is_some()
        })
    }

    /// Returns the parts that all names begin with; the last part of a name does not count.
    fn shared_parts(&self) -> Vec<String> {
        let modules = |name: &str| name.rsplit_once('.').map_or("", |(modules, _)| modules).to_owned();
        let mut names = self.names().map(modules);
        let first = names.next().unwrap_or_default();
        let mut shared: Vec<String> = first.split('.').filter(|part| !part.is_empty()).map(str::to_owned).collect();
        for name in names {
            let same = name.split('.').zip(&shared).take_while(|(a, b)| a == b).count();
            shared.truncate(same);
        }
        shared
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::{
        checkpoint::to_safetensors,
        patchgan::{PatchGan, PatchGanConfig},
    };
    use std::collections::HashMap;
    use tch::{Device, Tensor, nn::VarStore};

    fn file(names: &[&str]) -> Checkpoint {
        let tensors = names.iter().map(|name| ((*name).to_owned(), Tensor::from(1_f32)));
        Checkpoint::from_safetensors(to_safetensors(tensors, HashMap::new()).unwrap()).unwrap()
    }

    fn names(names: &[&str]) -> Vec<String> {
        file(names).state_dict().names().map(str::to_owned).collect()
    }

    #[test]
    fn parts_that_wrappers_add_to_names_are_removed() {
        assert_eq!(names(&["module.a.bias", "module.b"]), ["a.bias", "b"]);
        assert_eq!(names(&["_orig_mod.a", "_orig_mod.b"]), ["a", "b"]);
        assert_eq!(names(&["module._orig_mod.a", "module._orig_mod.b"]), ["a", "b"]);
        assert_eq!(names(&["_orig_mod.module.module.a"]), ["a"]);
        assert_eq!(names(&["unet._orig_mod.a", "vae.b._fsdp_wrapped_module.c"]), ["unet.a", "vae.b.c"]);
        assert_eq!(names(&["module.a", "n_averaged"]), ["a"]);
    }

    #[test]
    fn parts_that_only_some_names_have_are_kept() {
        assert_eq!(names(&["module.a", "b"]), ["b", "module.a"]);
        assert_eq!(names(&["a._orig_mod.b", "a.b"]), ["a._orig_mod.b", "a.b"], "two would have one name");
        assert_eq!(names(&["modules.a"]), ["modules.a"]);
        assert_eq!(names(&["net.a", "net.b"]), ["net.a", "net.b"], "nothing says that `net` is no part of the network");
        assert_eq!(names(&["n_averaged"]), ["n_averaged"]);
    }

    #[test]
    fn a_prefix_above_a_published_architecture_is_removed() {
        let vs = VarStore::new(Device::Cpu);
        let _network = PatchGan::new(vs.root(), &PatchGanConfig { ndf: 4, ..Default::default() }).unwrap();
        let below = |prefix: &str| {
            let tensors = vs.variables().into_iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor));
            Checkpoint::from_safetensors(to_safetensors(tensors, HashMap::new()).unwrap()).unwrap().state_dict()
        };
        for prefix in ["", "module.", "net.", "trainer.discriminator.", "module.net."] {
            assert!(below(prefix).names().eq(below("").names()), "{prefix}");
            below(prefix).load_into(&vs).unwrap();
        }
        assert!(below("control_model.").has_part("control_model"), "which part of a model it is is not forgotten");
    }
}
