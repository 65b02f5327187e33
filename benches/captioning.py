#!/usr/bin/env python3
"""Measures captions by a network of InternVL2-1B's size with random weights, by vlmdiff and by transformers on the same file.

    python3 benches/captioning.py [--tokens 48] [--threads 2] [--small]

One picture of 448x448 and a question: the time to the first token, and the tokens per second after it, for one text and for eight
at once, in bf16 and f32, and by vlmdiff in int8. Each measurement is a process of its own. The share of the memory's bandwidth is that
of the weights that each token reads, beside a sum over 1 GiB by as many threads. If transformers is not installed, nothing is measured,
because it writes the weights.
"""

import argparse
import json
import pathlib
import tempfile
import time

import peers
from measure import built, call

QUESTION = 60
ROUNDS = 3


def config(small):
    from transformers import InternVLConfig

    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    text = {"model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
            "num_key_value_heads": 2, "vocab_size": 151655, "rope_theta": 1e6, "tie_word_embeddings": False}
    if small:
        vision |= {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
        text |= {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 2000}
    vision |= {"image_size": [448, 448], "patch_size": [14, 14], "attention_bias": True, "use_qk_norm": False, "norm_type": "layer_norm"}
    return InternVLConfig(vision_config=vision, text_config=text, image_token_id=text["vocab_size"] - 1)


def write(folder, small):
    """Writes a folder of random weights in bf16, and the ids of a question about a picture of 256 visual tokens."""
    import torch
    from transformers import InternVLForConditionalGeneration

    torch.manual_seed(0)
    made = config(small)
    InternVLForConditionalGeneration(made).to(torch.bfloat16).save_pretrained(folder, max_shard_size="50GB")
    ids = [7 + i for i in range(QUESTION // 2)] + [made.image_token_id] * 256 + [90 + i for i in range(QUESTION // 2)]
    (folder / "ids.json").write_text(json.dumps(ids))


def child(folder, precision, rows, tokens, threads):
    import torch
    from transformers import InternVLForConditionalGeneration

    torch.set_num_threads(threads)
    start = time.perf_counter()
    dtype = torch.float32 if precision == "f32" else torch.bfloat16
    model = InternVLForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval()
    ids = torch.tensor([json.loads((folder / "ids.json").read_text())] * rows)
    pictures = torch.randn(1, 3, 448, 448, dtype=dtype).repeat(rows, 1, 1, 1)

    @torch.inference_mode()
    def seconds(rows, count):
        before = time.perf_counter()
        model.generate(input_ids=ids[:rows], attention_mask=torch.ones_like(ids[:rows]), pixel_values=pictures[:rows],
                       min_new_tokens=count, max_new_tokens=count, do_sample=False, pad_token_id=0)
        return time.perf_counter() - before

    def median(values):
        return sorted(values)[len(values) // 2]

    seconds(1, 1)
    cold = time.perf_counter() - start
    first = median([seconds(1, 1) for _ in range(ROUNDS)])
    seconds(rows, 4)
    written = median([rows * tokens / (seconds(rows, 1 + tokens) - seconds(rows, 1)) for _ in range(ROUNDS)])
    status = pathlib.Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    print(json.dumps({"cold": cold, "first": first, "per_second": written, "peak": peak}))


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    arguments.add_argument("--write", type=pathlib.Path, help=argparse.SUPPRESS)
    arguments.add_argument("--tokens", type=int, default=48, help="the tokens that are written after the first")
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--small", action="store_true", help="a small network, which shows that everything works")
    given = arguments.parse_args()
    if given.child:
        folder, precision, *numbers = given.child
        return child(pathlib.Path(folder), precision, *map(int, numbers))
    if given.write:
        return write(given.write, given.small)
    if peers.say_missing("networks"):
        return print("not measured: transformers writes the weights.")
    python = [peers.program("networks"), __file__]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        call([*python, "--write", folder, *(["--small"] if given.small else [])])
        size = (folder / "model.safetensors").stat().st_size
        engines = {"vlmdiff": [built("captioning")], "transformers": [*python, "--child"]}
        print(f"weights of {size / 1e9:.2f} GB in bf16, {given.threads} threads\n")
        print("| numbers | texts at once | first token | ratio | tokens/s | ratio | of the bandwidth | peak memory / file |")
        print("|---|---|---|---|---|---|---|---|")
        for precision in ("bf16", "f32", "int8"):
            for rows in (1, 8):
                line(engines, folder, precision, rows, given, size)


def line(engines, folder, precision, rows, given, size):
    found = {}
    for name, command in engines.items():
        if name == "vlmdiff" or precision != "int8":
            found[name] = json.loads(call([*command, folder, precision, rows, given.tokens, given.threads]).splitlines()[-1])
    ours, theirs = found["vlmdiff"], found.get("transformers")
    text = language_bytes(folder) * {"bf16": 1, "f32": 2, "int8": 0.5}[precision]
    share = ours["per_second"] / rows * text / ours["stream"]

    def beside(name, digits):
        return f"{ours[name]:.{digits}f}" + (f" / {theirs[name]:.{digits}f}" if theirs else "")

    def ratio(name):
        return f"{ours[name] / theirs[name]:.2f} x" if theirs else ""

    print(f"| {precision} | {rows} | {beside('first', 2)} s | {ratio('first')} | {beside('per_second', 1)} | {ratio('per_second')} | "
          f"{share:.0%} of {ours['stream'] / 1e9:.1f} GB/s | {ours['peak'] / size:.2f}"
          + (f" / {theirs['peak'] / size:.2f}" if theirs else "") + " |", flush=True)


def language_bytes(folder):
    """Returns the bytes of the language model's matrices in bf16: all that a token reads but one row of the table of tokens."""
    with (folder / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    names = [name for name in header if "language_model" in name and "embed_tokens" not in name]
    return sum(header[name]["data_offsets"][1] - header[name]["data_offsets"][0] for name in names)


if __name__ == "__main__":
    main()
