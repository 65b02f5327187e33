"""Runs one network of a Python library, for `cargo bench --bench networks`.

    networks.py NAME FOLDER THREADS

writes the network's weights, inputs and outputs into FOLDER and prints "ready". It then runs the network once for each line that it
reads, and answers with the wall-clock and the processor seconds of that run. At the end of its input it prints its peak memory in
MiB. A new network is a function here, and one in networks.rs.
"""

import json
import pathlib
import resource
import sys
import time

import peers

try:
    import torch
    from safetensors.torch import save_file
except ModuleNotFoundError as error:
    sys.exit(f"networks.py: {error.name} is not installed. To install: {peers.how('networks')}")

CASES = {}


def case(name):
    def add(build):
        CASES[name] = build
        return build

    return add


class Work:
    """A network to time, with its inputs, weights and outputs in a folder."""

    def __init__(self, folder, inputs):
        self.folder, self.inputs = folder, inputs
        save_file({name: tensor.contiguous() for name, tensor in inputs.items()}, folder / "inputs.safetensors")

    def weights(self, module, config):
        """Writes the weights and the configuration that the other side loads."""
        state = {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
        save_file(state, self.folder / "weights.safetensors")
        (self.folder / "config.json").write_text(json.dumps(config))

    def expect(self, outputs):
        save_file({name: tensor.detach().contiguous() for name, tensor in outputs.items()}, self.folder / "expected.safetensors")


def random(*shape):
    return torch.randn(*shape)


def inference(work, forward):
    """Times `forward`, which returns a tensor, without gradients."""

    @torch.no_grad()
    def run():
        return forward()

    work.expect({"output": run()})
    return run


def unet(folder, batch):
    from diffusers import UNet2DConditionModel

    # Stable Diffusion 1.5
    model = UNet2DConditionModel(
        sample_size=64,
        cross_attention_dim=768,
        attention_head_dim=8,
        block_out_channels=(320, 640, 1280, 1280),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    ).eval()
    inputs = {"x": random(batch, 4, 32, 32), "t": torch.full((batch,), 501), "context": random(batch, 77, 768)}
    work = Work(folder, inputs)
    work.weights(model, dict(model.config))
    x, t, context = inputs.values()
    return inference(work, lambda: model(x, t, context).sample)


case("unet")(lambda folder: unet(folder, 1))
case("unet-batch4")(lambda folder: unet(folder, 4))


def autoencoder(folder):
    from diffusers import AutoencoderKL

    # Stable Diffusion 1.5
    model = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
        sample_size=512,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    ).eval()
    inputs = {"image": random(1, 3, 256, 256), "z": random(1, 4, 32, 32)}
    work = Work(folder, inputs)
    work.weights(model, dict(model.config))
    return work, model


@case("vae-encode")
def vae_encode(folder):
    work, model = autoencoder(folder)
    return inference(work, lambda: model.encode(work.inputs["image"]).latent_dist.mean)


@case("vae-decode")
def vae_decode(folder):
    work, model = autoencoder(folder)
    return inference(work, lambda: model.decode(work.inputs["z"]).sample)


@case("clip-text")
def clip_text(folder):
    from transformers import CLIPTextConfig, CLIPTextModel

    # the text half of CLIP ViT-L/14
    config = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12, num_hidden_layers=12)
    model = CLIPTextModel(config).eval()
    inputs = {"input_ids": torch.randint(0, config.vocab_size - 2, (16, 77))}
    inputs["input_ids"][:, -1] = config.vocab_size - 1
    work = Work(folder, inputs)
    work.weights(model, config.to_dict())
    return inference(work, lambda: model(inputs["input_ids"]).last_hidden_state)


def denoiser(widths, heads, context_width):
    """Makes a U-Net and a control branch whose last layers are not zero; returns them and their config."""
    from diffusers import ControlNetModel, UNet2DConditionModel

    hint = (16, 32, 96, 256)
    shape = dict(
        block_out_channels=widths,
        layers_per_block=2,
        cross_attention_dim=context_width,
        attention_head_dim=heads,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    )
    unet = UNet2DConditionModel(up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3, **shape)
    control = ControlNetModel(conditioning_embedding_out_channels=hint, **shape)
    for name, parameter in control.named_parameters():
        if name.startswith(("controlnet_down", "controlnet_mid", "controlnet_cond_embedding.conv_out")):
            torch.nn.init.normal_(parameter, std=0.02)
    networks = torch.nn.ModuleDict({"unet": unet, "control": control})
    return networks, {"unet": dict(unet.config), "conditioning_embedding_out_channels": hint}


# Stable Diffusion's
BETAS = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)


@case("reconstruction")
def reconstruction(folder):
    """Reconstructs as the authors do: one image at a time, with guidance by two equal captions, and with the image as the autoencoder
    alone decodes it."""
    from diffusers import AutoencoderKL, DDIMScheduler

    count, side, context_width = 32, 128, 32
    networks, config = denoiser((32, 64, 128, 128), 4, context_width)
    unet, control = networks.values()
    vae = AutoencoderKL(
        block_out_channels=(32, 64, 128, 128),
        layers_per_block=2,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    networks["vae"] = vae
    work = Work(folder, {
        "images": random(count, 3, side, side),
        "posterior": random(count, 4, side // 8, side // 8),
        "noise": random(count, 4, side // 8, side // 8),
        "context": random(1, 77, context_width),
    })
    work.weights(networks.eval(), config | {"vae": dict(vae.config)})
    schedule = DDIMScheduler(**BETAS, steps_offset=1, set_alpha_to_one=False, clip_sample=False)
    schedule.set_timesteps(10)
    scale, context = vae.config.scaling_factor, work.inputs["context"]

    def reconstructed(image, posterior, noise):
        moments = vae.encode(image).latent_dist
        z = moments.mean + moments.std * posterior
        vae.decode(z)
        x = schedule.add_noise(z * scale, noise, torch.tensor([999]))
        both, image = torch.cat([context, context]), torch.cat([image, image])
        for t in schedule.timesteps:
            x_both = torch.cat([x, x])
            down, mid = control(x_both, t, both, image, return_dict=False)
            output = unet(x_both, t, both, down_block_additional_residuals=down, mid_block_additional_residual=mid).sample
            unconditional, conditional = output.chunk(2)
            x = schedule.step(unconditional + 9 * (conditional - unconditional), t, x).prev_sample
        return vae.decode(x / scale).sample

    columns = [work.inputs[name].split(1) for name in ("images", "posterior", "noise")]
    return inference(work, lambda: torch.cat([reconstructed(*row) for row in zip(*columns)]))


def training_step(folder, *, widths, heads, context_width, batch, side):
    from diffusers import DDPMScheduler

    # the authors' training: AdamW on the control branch and on the U-Net's way up
    networks, config = denoiser(widths, heads, context_width)
    unet, control = networks.values()
    unet.requires_grad_(False)
    decoder = [unet.up_blocks, unet.conv_norm_out, unet.conv_out]
    trained = [parameter for part in decoder for parameter in part.requires_grad_(True).parameters()]
    lr = 1e-5
    optimizer = torch.optim.AdamW([*control.parameters(), *trained], lr=lr)
    schedule = DDPMScheduler(**BETAS)
    inputs = {
        "z": random(batch, 4, side // 8, side // 8),
        "noise": random(batch, 4, side // 8, side // 8),
        "t": torch.randint(0, 1000, (batch,)),
        "context": random(batch, 77, context_width),
        "images": random(batch, 3, side, side),
    }
    work = Work(folder, inputs)
    work.weights(networks, config | {"lr": lr})
    z, noise, t, context, images = inputs.values()

    def run():
        optimizer.zero_grad()
        x = schedule.add_noise(z, noise, t)
        down, mid = control(x, t, context, images, return_dict=False)
        output = unet(x, t, context, down_block_additional_residuals=down, mid_block_additional_residual=mid).sample
        loss = torch.nn.functional.mse_loss(output, noise)
        loss.backward()
        optimizer.step()
        return loss.detach()

    work.expect({"output": run()})
    return run


@case("training-step")
def training_step_small(folder):
    return training_step(folder, widths=(32, 64, 128, 128), heads=4, context_width=32, batch=2, side=128)


@case("training-step-mid")
def training_step_mid(folder):
    return training_step(folder, widths=(128, 256, 512, 512), heads=8, context_width=768, batch=2, side=256)


def dino(folder, batch):
    from timm import create_model

    # with the position table of an image of 256x256, so that neither side resizes it
    model = create_model("vit_small_patch8_224.dino", num_classes=0, img_size=256).eval()
    work = Work(folder, {"x": random(batch, 3, 256, 256)})
    work.weights(model, {})
    return inference(work, lambda: model.forward_features(work.inputs["x"]))


case("dino-vits8")(lambda folder: dino(folder, 1))
case("dino-vits8-batch4")(lambda folder: dino(folder, 4))


@case("resnet50")
def resnet50(folder):
    from torchvision.models import resnet50

    model = resnet50(weights=None).eval()
    work = Work(folder, {"x": random(4, 3, 256, 256)})
    work.weights(model, {})

    def forward():
        x = model.maxpool(model.relu(model.bn1(model.conv1(work.inputs["x"]))))
        return model.layer3(model.layer2(model.layer1(x)))

    return inference(work, forward)


def main():
    if len(sys.argv) != 4 or sys.argv[1] not in CASES:
        sys.exit(f"{__doc__}There are {', '.join(CASES)}.")
    name, folder, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    run = CASES[name](pathlib.Path(folder))
    print("ready", flush=True)
    for _ in sys.stdin:
        started, cpu = time.perf_counter(), time.process_time()
        run()
        print(time.perf_counter() - started, time.process_time() - cpu, flush=True)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, flush=True)


if __name__ == "__main__":
    main()
