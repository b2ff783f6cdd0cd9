"""Fixtures on a real ComfyUI, on the CPU; models and server start on first use.

Tests import the pack as `onestory`, without running its door, and ComfyUI's modules (`comfy`, `nodes`) by their names.
"""

import gc
import json
import os
import signal
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests share the cores with servers, browsers and each other
COMFYUI = Path(os.environ.get("COMFYUI_PATH", ROOT / ".host" / "ComfyUI")).resolve()

LONGEST = (
    "test_browser",
    "test_quality_servers",
    "test_demo",
    "test_demo_world",
    "test_changes",
    "test_runs",
    "test_composition",
    "test_takes",
    "test_attention_view",
    "test_manager",
)
"""Begun first, so that no worker is alone with one of them at the end."""

pytest_plugins = ["studio"]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in the background; what tests interrupt would be deaf too
    signal.signal(signal.SIGINT, signal.default_int_handler)

sys.path[:0] = str(COMFYUI), str(ROOT)

from comfy.cli_args import args  # noqa: E402  ComfyUI reads these when its other modules are imported

args.cpu = True
args.use_pytorch_cross_attention = True

from onestory.tools import client, host  # noqa: E402


class StableDiffusion(NamedTuple):
    """What CheckpointLoaderSimple gives."""

    model: object
    clip: object
    vae: object


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    """The random SD1.5-layout checkpoint's file."""
    return host.random_checkpoint(host.Host(COMFYUI, Path(sys.executable)))


@pytest.fixture(scope="session")
def sd(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> StableDiffusion:
    """The random checkpoint, loaded in this process. Its embeddings folder is empty: `sd.clip.tokenizer` names it."""
    import comfy.sd

    embeddings = str(tmp_path_factory.mktemp("embeddings"))
    return StableDiffusion(*comfy.sd.load_checkpoint_guess_config(str(checkpoint), embedding_directory=embeddings)[:3])


@pytest.fixture(scope="module")
def frames(sd: StableDiffusion, tale) -> list:
    """The conditioning of the test module's `tale` behind SVR, a row for each frame."""
    from graphs import positive

    return positive(sd.clip, tale)


@pytest.fixture(scope="session")
def negative(sd: StableDiffusion) -> list:
    from graphs import encode

    return encode(sd.clip, "blurry, low quality")


@pytest.fixture(scope="module", autouse=True)
def forget_models():
    """Let go of the models that a file's tests made: the text encoders of all families take gigabytes."""
    yield
    modules = [sys.modules[name] for name in ("families", "tiny") if name in sys.modules]
    values = [value for module in modules for value in vars(module).values()]
    caches = [value for value in values if hasattr(value, "cache_clear") and value.cache_info().currsize]
    for cache in caches:
        cache.cache_clear()
    if caches:
        gc.collect()


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ComfyUI's folder of previews, for this test alone."""
    monkeypatch.setattr("folder_paths.get_temp_directory", lambda: str(tmp_path))
    return tmp_path


@pytest.fixture(scope="session")
def server(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory):
    """A client of a real ComfyUI server with the pack in it; the server runs for the rest of the session.

    It has the random checkpoint, the random vision model “clip.pt”, random files of adapters and PhotoMakers, and a
    small vision model and a face analyser for them.
    """
    import adapters
    import photomakers
    import vision
    from studio import CUSTOM_NODES, KEEPS

    this = host.Host(COMFYUI, Path(sys.executable))
    packs = host.link_pack(this), "eyes.py"
    folder = tmp_path_factory.mktemp("server")
    vision.write_clip(folder / "clip.pt")
    adapters.write_adapters(folder / "ipadapter")
    photomakers.write_photomakers(folder / "photomaker")
    paths = folder / "vision.yaml"
    folders = {"clip_vision": folder, "custom_nodes": CUSTOM_NODES}
    folders |= {name: folder / name for name in ("ipadapter", "photomaker")}
    paths.write_text(json.dumps({"vision": {name: str(path) for name, path in folders.items()}}))
    more = ("--extra-model-paths-config", str(paths), *KEEPS, "--whitelist-custom-nodes", *packs)
    with host.running(this, folder, models=checkpoint.parent, cpu=True, more=more) as url:
        yield client.Client(url)
