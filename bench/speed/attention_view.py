"""What Attention Recorder costs: sampling with it against sampling without it, in turn, on a random U-Net.

    .host/venv/bin/python bench/speed/attention_view.py --frames 2 --side 256 --rounds 5

Prints the median and the quartiles of the rounds' ratios, for the recorder's own blocks and for all of them. On the
CPU it counts one thread's processor time, so that other work on the machine doesn't.
"""

import argparse
import os
import statistics
import sys
import time
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COMFYUI = Path(os.environ.get("COMFYUI_PATH", ROOT / ".host" / "ComfyUI")).resolve()
sys.path[:0] = str(COMFYUI), str(ROOT)

from comfy.cli_args import args as comfy_args  # noqa: E402  ComfyUI reads these when its other modules are imported

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
parser.add_argument("--frames", type=int, default=2)
parser.add_argument("--side", type=int, default=256)
parser.add_argument("--steps", type=int, default=2)
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--blocks", nargs="+", default=["output.3-5", "all"])
given = parser.parse_args()
comfy_args.cpu = given.device == "cpu"
comfy_args.use_pytorch_cross_attention = True

import comfy.ops  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.sd  # noqa: E402
import torch  # noqa: E402
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel  # noqa: E402
from comfy.sd1_clip import SD1Tokenizer  # noqa: E402
from onestory.nodes.attention_view import OneStoryAttentionRecorder  # noqa: E402
from onestory.story.script import parse_script  # noqa: E402
from onestory.svr.consolidate import consolidate  # noqa: E402
from onestory.svr.encoders import side_by_side  # noqa: E402
from onestory.svr.record import KEY, Attached  # noqa: E402
from onestory.tools.random_checkpoint import UNET, random_weights  # noqa: E402

SD15 = {
    **UNET,
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1] * 9 + [0] * 3,
}


def main() -> None:
    if comfy_args.cpu:
        torch.set_num_threads(1)
    unet = UNetModel(**SD15, device="meta", operations=comfy.ops.disable_weight_init)
    model = comfy.sd.load_diffusion_model_state_dict(random_weights(unet))
    tokenize = partial(SD1Tokenizer().tokenize_with_weights, return_word_ids=True)
    story = parse_script("a young red fox with a blue scarf", "\n".join(["reading a book"] * given.frames))
    _, _, record = consolidate(story, tokenize, side_by_side("l"))
    embeds = torch.randn(given.frames, 77, 768)
    conditioning, negative = [[embeds, {KEY: Attached.to(embeds, record)}]], [[torch.randn(1, 77, 768), {}]]
    latent = torch.zeros(given.frames, 4, given.side // 8, given.side // 8)
    noise = torch.randn(latent.shape)

    def seconds(model) -> float:
        clock = time.process_time if comfy_args.cpu else time.perf_counter
        start = clock()
        comfy.sample.sample(
            model, noise, given.steps, 5.0, "euler", "normal", conditioning, negative, latent, disable_pbar=True, seed=0
        )
        if not comfy_args.cpu:
            torch.cuda.synchronize()
        return clock() - start

    recorded = {b: OneStoryAttentionRecorder.execute(model, b, 0.0, 1.0).result[0] for b in given.blocks}
    with torch.inference_mode():
        seconds(model)
        ratios: dict[str, list[float]] = {blocks: [] for blocks in recorded}
        for _ in range(given.rounds):
            # Each between two plain runs, so that a drift of the machine's speed cancels.
            before = seconds(model)
            for blocks, patched in recorded.items():
                between = seconds(patched)
                after = seconds(model)
                ratios[blocks].append(2 * between / (before + after))
                print(f"blocks {blocks}: {between:.3f} s, without {before:.3f} s and {after:.3f} s", flush=True)
                before = after
    print(f"SD1.5's U-Net, {given.frames} frames of {given.side} x {given.side}, {given.steps} steps, {given.device}")
    for blocks, values in ratios.items():
        low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
        print(f"blocks {blocks}: {middle:.4f} of the time without ({low:.4f} to {high:.4f}, {len(values)} rounds)")


if __name__ == "__main__":
    main()
