//! The discriminator of the autoencoder.

use super::{
    Case,
    networks::{compare_shapes, manifest},
};
use tch::{Device, nn::VarStore, no_grad};
use vlmdiff::{
    diffusion::vae_gan::{AdversarialLoss, discriminator_loss},
    models::patchgan::{PatchGan, PatchGanConfig},
};

pub(super) fn compare(case: &Case) {
    let vs = VarStore::new(Device::Cpu);
    let network = PatchGan::new(vs.root(), &case.config()).unwrap();
    PatchGan::canonical(case.checkpoint("model.safetensors")).unwrap().load_into(&vs).unwrap();
    let (real, fake) = (case.input("real"), case.input("fake"));
    case.close("eval_logits_real", &no_grad(|| network.forward(&real, false)), 1.);
    let (real, fake) = (network.forward(&real, true), network.forward(&fake, true));
    case.close("train_logits_real", &real, 1.);
    case.close("train_logits_fake", &fake, 1.);
    case.close("g_loss", &-fake.mean(tch::Kind::Float), 1.);
    case.close("d_vanilla", &discriminator_loss(&real, &fake, AdversarialLoss::Vanilla), 1.);
    let hinge = discriminator_loss(&real, &fake, AdversarialLoss::Hinge);
    case.close("d_hinge", &hinge, 1.);
    hinge.backward();
    let variables = vs.variables();
    case.close("grad.main.0.weight", &variables["main.0.weight"].grad(), 1.);
    case.close("running_mean_after", &variables["main.3.running_mean"], 1.);
    case.close("running_var_after", &variables["main.3.running_var"], 1.);
}

pub(super) fn real(case: &Case) {
    let theirs = manifest(case, "patchgan_ndf64_l3.json.gz").retain(|name| !name.ends_with(".num_batches_tracked"));
    compare_shapes(case, "patchgan", &theirs, |vs| PatchGan::new(vs, &PatchGanConfig::default()));
}
