"""Whether a character stays itself between a story's frames: films of the Story World, read by the probe.

    .host/venv/bin/python bench/film.py [--stories N] [--size N] [--steps N] [--count N]

Each story is drawn by the workflow "Story to Film": with its frames, the pictures between them, and once more without
their look at both frames. What fades from frame to frame is measured beside them.
"""

import argparse
import io
import json
import sys
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.functional import to_tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))

from onestory.bench.quality.world_measures import interval  # noqa: E402
from onestory.bench.quality.world_probe import Probe, ProbeStage, held_out, read  # noqa: E402
from onestory.bench.quality.world_stories import WorldStory, world_stories  # noqa: E402
from onestory.tools import demo, host  # noqa: E402
from onestory.tools.client import Client, Workflow, images  # noqa: E402
from onestory.world.drawing.attributes import IDENTITY  # noqa: E402
from onestory.world.drawing.render import SIDE  # noqa: E402

WORKFLOW = ROOT / "workflows" / "api" / "Story to Film.json"
FRAMES = 3
WAYS = ("look at both", "text and noise alone", "cross-fade")


def graph_of(story: WorldStory, checkpoint: str, looks: bool, args: argparse.Namespace) -> Workflow:
    """The workflow for a story's first frames; `looks`: the pictures between look at both of theirs."""
    text = story.text._replace(frames="\n".join(story.text.frames.splitlines()[:FRAMES]))
    settings = {**demo.WORLD, "checkpoint": checkpoint, "size": (args.size, args.size), "steps": args.steps}
    graph = demo.fill_in(json.loads(WORKFLOW.read_text(encoding="utf-8")), text, settings)
    demo.set_inputs(graph, "OneStoryInBetweens", {"count": args.count})
    if not looks:
        (between,) = (node["inputs"] for node in graph.values() if node["class_type"] == "OneStoryInBetweens")
        demo.set_inputs(graph, "OneStoryRuns", {"model": between["model"]})
    return {key: node for key, node in graph.items() if node["class_type"] not in ("CreateVideo", "SaveVideo")}


def drawn(client: Client, graph: Workflow) -> Tensor:
    """The film [pictures, 3, height, width]."""
    outputs = client.run(graph)
    files = [client.download(each) for each in images(outputs, list(outputs))]
    return torch.stack([to_tensor(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])


def faded(film: Tensor, count: int) -> Tensor:
    """A film's frames with so many pictures between each two that fade from one to the next."""
    frames = film[:: count + 1]
    share = torch.arange(count + 1).view(-1, 1, 1, 1) / (count + 1)
    parts = [torch.lerp(start, end, share) for start, end in pairwise(frames)]
    return torch.cat([*parts, frames[-1:]])


def kept(net: Probe, film: Tensor, count: int) -> tuple[float, float]:
    """Of what of the character is read alike in two neighbouring frames, the share that is read in the pictures between
    them; and of all that is read there, the share that one of the two frames has."""
    _, found = read(net, F.interpolate(film, size=(SIDE, SIDE), mode="bilinear", antialias=True))
    values = {name: found[name].argmax(-1).tolist() for name in IDENTITY}
    same, either = [], []
    for start in range(0, len(film) - 1, count + 1):
        for name in IDENTITY:
            ends = {values[name][start], values[name][start + count + 1]}
            seen = [value in ends for value in values[name][start + 1 : start + count + 1]]
            either += seen
            same += seen if len(ends) == 1 else []
    return fmean(same), fmean(either)


def probe(folder: Path, steps: int) -> Probe:
    """The probe after so many steps, trained first if need be."""
    stage = ProbeStage(folder, steps=steps)
    stage.train()
    net = Probe()
    net.load_state_dict(stage.trained())
    return net.eval()


def main(args: argparse.Namespace) -> None:
    this = host.set_up()
    checkpoint = host.world_checkpoint(this)
    net = probe(args.probe, args.probe_steps)
    accuracy, _ = held_out(net, 100)
    print(f"the probe reads {fmean(accuracy[name] for name in IDENTITY):.2f} of a character off pictures it never saw")
    by_way: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    with (
        host.run_folder() as folder,
        host.running(this, folder, checkpoint.parent, log=host.HOST / "comfyui.log") as url,
    ):
        client = Client(url)
        for story in world_stories(args.stories):
            films = [drawn(client, graph_of(story, checkpoint.name, looks, args)) for looks in (True, False)]
            for way, film in zip(WAYS, (*films, faded(films[0], args.count)), strict=True):
                by_way[way].append(kept(net, film, args.count))
            print(story.text.title, *(f"{way} {found[-1][0]:.2f}" for way, found in by_way.items()), sep=", ")
    for way, found in by_way.items():
        same, either = ("{:.2f} ({:.2f} to {:.2f})".format(*interval(values)) for values in zip(*found, strict=True))
        print(f"{way}: what both frames show {same}, what either shows {either}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stories", type=int, default=8)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--count", type=int, default=3)
    parser.add_argument("--probe", type=Path, default=host.HOST / "film-probe", help="the folder where it is trained")
    parser.add_argument("--probe-steps", type=int, default=2500)
    main(parser.parse_args())
