"""Where the character is in every frame: masks of a folder, or made by a background-removal model of the servers."""

import queue
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from ...tools import host
from ...tools.client import Client, Workflow, images
from ...tools.demo import slug
from ...tools.failure import Failure
from .jobs import Job
from .pair_graphs import node

LOADER, REMOVER = "LoadBackgroundRemovalModel", "RemoveBackground"
"""ComfyUI's own nodes."""


class Masks(NamedTuple):
    """`source` is what results remember; `folder` says where a job's masks are, named as its frames."""

    source: str
    folder: Callable[[Job], Path]

    def of(self, job: Job) -> list[str]:
        """The masks' paths, a frame's each. Raises `Failure` for one that is not there."""
        found = [self.folder(job) / frame.name for frame in frames_of(job)]
        for path in found:
            if not path.is_file():
                raise Failure(
                    f"There is no mask {path}: --masks needs one for each frame, in folders and files of its names."
                )
        return [*map(str, found)]


def frames_of(job: Job) -> list[Path]:
    return sorted(job.folder.glob("frame_*.png"))


def from_folder(folder: Path, out: Path) -> Masks:
    return Masks(str(folder.resolve()), lambda job: folder / job.folder.relative_to(out))


def check_remover(server: Client, name: str) -> None:
    """Raise `Failure` unless a server has this background-removal model."""
    known = server.choices(LOADER, "bg_removal_name")
    if known is None:
        raise Failure(f"The ComfyUI at {server.url} has no {LOADER}: update it, or name masks of your own by --masks.")
    if name not in known:
        raise Failure(
            f"{server.url} has no background-removal model {name}: name one with --remover. It has "
            f"{', '.join(known[:8]) or 'none'}. ComfyUI's own is birefnet.safetensors of "
            "https://huggingface.co/Comfy-Org/BiRefNet, for models/background_removal."
        )


def by_servers(servers: Sequence[Client], name: str, jobs: Sequence[Job]) -> Masks:
    """Have the servers make the masks that are missing. Raises the first `Failure`; what is made is kept."""
    masks = Masks(f"remover {name}", lambda job: job.folder / f"masks_{slug(Path(name).stem)}")
    todo: queue.SimpleQueue[Job] = queue.SimpleQueue()
    missing = [job for job in jobs if not all((masks.folder(job) / path.name).is_file() for path in frames_of(job))]
    for job in missing:
        todo.put(job)
    failures: list[Failure] = []

    def serve(server: Client) -> None:
        while not failures:
            try:
                job = todo.get_nowait()
            except queue.Empty:
                return
            try:
                make(server, name, job, masks.folder(job))
            except Failure as failure:
                failures.append(failure)
            host.show(f"Removing backgrounds: {len(missing) - todo.qsize()}/{len(missing)}")

    workers = [threading.Thread(target=serve, args=[server], daemon=True) for server in servers]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    host.show("")
    if failures:
        raise Failure(f"The backgrounds could not be removed: {failures[0]}")
    return masks


def make(server: Client, name: str, job: Job, folder: Path) -> None:
    """Make one board's masks on a server, of frames that it keeps until it restarts."""
    frames = frames_of(job)
    names = [upload(server, job, frame) for frame in frames]
    outputs = server.run(removal_graph(name, names))
    folder.mkdir(exist_ok=True)
    for frame, mask in zip(frames, images(outputs, map(str, range(len(frames)))), strict=True):
        (folder / frame.name).write_bytes(server.download(mask))


def upload(server: Client, job: Job, frame: Path) -> str:
    """Put a frame into the server's temporary folder; returns the name that Load Image takes."""
    name = f"onestory_{job.folder.parent.name}_{job.folder.name}_{frame.name}"
    path = "/upload/image"
    content = {"files": {"image": (name, frame.read_bytes())}, "data": {"type": "temp", "overwrite": "true"}}
    answer = server.parse(path, server.request(path, **content))
    return f"{answer['name']} [temp]"


def removal_graph(name: str, frames: Sequence[str]) -> Workflow:
    """A workflow that shows the mask of every frame; its output nodes are "0", "1" and so on."""
    graph = {"model": node(LOADER, bg_removal_name=name)}
    for number, frame in enumerate(frames):
        graph[f"frame {number}"] = node("LoadImage", image=frame)
        graph[f"mask {number}"] = node(REMOVER, bg_removal_model=["model", 0], image=[f"frame {number}", 0])
        graph[f"picture {number}"] = node("MaskToImage", mask=[f"mask {number}", 0])
        graph[str(number)] = node("PreviewImage", images=[f"picture {number}", 0])
    return graph
