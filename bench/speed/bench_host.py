"""What the pack costs a host beside sampling: its start, checking a workflow, prompts and boards of 40 frames."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest
import stories
import torch
from conftest import COMFYUI, ROOT

IMPORT = """
import asyncio, importlib.util, json, sys, time
sys.path.insert(0, sys.argv[1])
from comfy.cli_args import args
args.cpu = True
import comfy.sample, comfy.sd, comfy_api.latest, nodes
before, start = set(sys.modules), time.perf_counter()
folder = sys.argv[2]
spec = importlib.util.spec_from_file_location("pack", folder + "/__init__.py", submodule_search_locations=[folder])
sys.modules["pack"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
async def schemas():
    return [node.GET_SCHEMA() for node in await (await module.comfy_entrypoint()).get_node_list()]
asyncio.run(schemas())
seconds = time.perf_counter() - start
new = {name.partition(".")[0] for name in set(sys.modules) - before}
site = [n for n in new if "site-packages" in (getattr(sys.modules.get(n), "__file__", None) or "")]
print(json.dumps([seconds, sorted(site)]))
"""


def bench_import(benchmark, pytestconfig):
    """What a starting host does with the pack, in a process that has its own modules already."""
    from measure import row

    def once():
        done = subprocess.run([sys.executable, "-c", IMPORT, COMFYUI, ROOT], capture_output=True, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])

    times, packages = zip(*(once() for _ in range(2 if pytestconfig.getoption("quick") else 3)))
    benchmark.pedantic(lambda: None)
    added = [[float(len(p))] for p in packages]
    benchmark.extra_info["rows"] = [
        row("pack import and schemas", "", "s", list(times), [], 0.2),
        row("packages that it imports and the host has not", "", "", added[0], [], 0.0),
    ]


def bench_start(compare, pytestconfig, tmp_path):
    """From the command to the end of a start, without serving."""
    from onestory.tools import host

    if pytestconfig.getoption("quick"):
        pytest.skip("starts the host eight times")
    this = host.Host(COMFYUI, Path(sys.executable))
    pack = host.link_pack(this)

    def start(allowed):
        arguments = host.server_arguments(this, tmp_path, allowed, None, True)
        command = [this.python, COMFYUI / "main.py", "--quick-test-for-ci", *arguments]
        subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)

    compare("host start", lambda: start(pack), "without the pack", lambda: start("none"), most_rounds=3)


@pytest.mark.parametrize("name", ["One Prompt One Story", "Long Story in Runs", "Two Characters"])
def bench_validation(compare, checkpoint, name):
    import execution
    import folder_paths
    from onestory.tools import host

    import nodes

    if "OneStoryScript" not in nodes.NODE_CLASS_MAPPINGS:
        asyncio.run(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
        asyncio.run(nodes.load_custom_node(str(ROOT)))
        folder_paths.add_model_folder_path("checkpoints", str(host.HOST / "models" / "checkpoints"))
    workflow = json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))
    for node in workflow.values():
        if "ckpt_name" in node["inputs"]:
            node["inputs"]["ckpt_name"] = "onestory_random.safetensors"
    valid = asyncio.run(execution.validate_prompt("bench", workflow, None))
    assert valid[0], valid
    compare(f"checking the workflow “{name}”", lambda: asyncio.run(execution.validate_prompt("bench", workflow, None)))


@pytest.mark.parametrize("mode", ["one prompt", "separate prompts"])
def bench_prompt(compare, checkpoint, pytestconfig, mode):
    from onestory.nodes.prompt import OneStoryPrompt

    from nodes import CLIPTextEncode

    frames = 8 if pytestconfig.getoption("quick") else 40
    clip, story = checkpoint[1], stories.story(frames)
    compare(
        f"Story Prompt, {frames} frames, {mode}",
        lambda: OneStoryPrompt.execute(clip, story, mode, 0, "story"),
        f"{frames} CLIPTextEncode",
        lambda: [CLIPTextEncode().encode(clip, f"{f.identity} {f.prompt}") for f in story.frames],
        most_rounds=7,
    )


def bench_board(compare, pytestconfig):
    """Against saving the same frames as ComfyUI saves them."""
    import io

    from onestory.nodes.board import OneStoryBoard
    from PIL import Image

    side = 256 if pytestconfig.getoption("quick") else 512
    ramp = torch.linspace(0, 1, side)
    images = (ramp[:, None, None] * ramp[None, :, None]).expand(40, side, side, 3).contiguous()
    story = stories.story(40)

    def save():
        for image in images:
            picture = Image.fromarray((255 * image).clamp(0, 255).byte().numpy())
            picture.save(io.BytesIO(), "PNG", compress_level=4)

    piece = f"Story Board, 40 frames of {side}"
    compare(piece, lambda: OneStoryBoard.execute(images, story, 0, True), "saving them as PNG", save, most_rounds=7)
