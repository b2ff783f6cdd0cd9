"""Options and fixtures of the speed benchmark: a real ComfyUI in this process, on the CPU or on CUDA."""

import os
import platform
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMFYUI = Path(os.environ.get("COMFYUI_PATH", ROOT / ".host" / "ComfyUI")).resolve()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("onestory")
    group.addoption("--device", default="cpu", choices=("cpu", "cuda"))
    group.addoption("--sizes", help="FRAMESxSIDE of the attention calls, separated by commas")
    group.addoption("--quick", action="store_true", help="few rounds and small shapes")
    group.addoption("--full", action="store_true", help="the longest calls, and the whole SD1.5 and SDXL U-Nets")
    group.addoption("--clock", default="wall", choices=("wall", "cpu"), help="cpu: this process's, for a busy machine")
    group.addoption("--threads", type=int, help="torch's threads (default: its own choice)")
    group.addoption("--seconds", type=float, help="how long one comparison repeats")
    group.addoption("--attention", default="pytorch", choices=("pytorch", "split", "quad"))


def pytest_configure(config: pytest.Config) -> None:
    """Import the pack as `onestory`, without its door, and set ComfyUI's options before its modules read them."""
    sys.path[:0] = str(COMFYUI), str(ROOT)
    from comfy.cli_args import args

    args.cpu = config.getoption("device") == "cpu"
    chosen = {"pytorch": "use_pytorch_cross_attention", "split": "use_split_cross_attention"}
    if config.getoption("threads"):
        import torch

        torch.set_num_threads(config.getoption("threads"))
    setattr(args, chosen.get(config.getoption("attention"), "use_quad_cross_attention"), True)


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    """What the numbers depend on, and nothing that names this machine."""
    import comfyui_version
    import torch
    from comfy.ldm.modules.attention import optimized_attention

    cuda = config.getoption("device") == "cuda"
    machine_info.clear()
    machine_info |= {
        "device": torch.cuda.get_device_name() if cuda else f"{os.cpu_count()} CPU cores",
        "processor": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "clock": config.getoption("clock"),
        "comfyui": comfyui_version.__version__,
        "attention": optimized_attention.__name__,
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


@pytest.fixture(scope="session")
def device():
    """ComfyUI's own, which on CUDA has an index."""
    import comfy.model_management

    return comfy.model_management.get_torch_device()


@pytest.fixture(scope="session")
def dtype(device):
    """What ComfyUI would run a Stable Diffusion U-Net in."""
    import torch

    return torch.float16 if device.type == "cuda" else torch.float32


@pytest.fixture(scope="module")
def text_encoders():
    """SDXL's text encoders, as ComfyUI's CLIP."""
    import full_size

    return full_size.text_encoders()


@pytest.fixture(scope="session")
def checkpoint():
    """The random SD1.5-layout checkpoint, loaded: (model, clip, vae)."""
    import comfy.sd
    from onestory.tools import host

    file = host.random_checkpoint(host.Host(COMFYUI, Path(sys.executable)))
    return comfy.sd.load_checkpoint_guess_config(str(file))[:3]


def cpu_seconds() -> float:
    """CPU time of this process and of those that it waited for."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


@pytest.fixture
def compare(benchmark, pytestconfig: pytest.Config, device):
    """`measure.compare` for this run's device and patience."""
    from functools import partial

    import measure

    option = pytestconfig.getoption
    measure.clock = {"wall": time.perf_counter, "cpu": cpu_seconds}[option("clock")]
    patience = {"seconds": 1.0, "fewest_rounds": 1} if option("quick") else {}
    if option("seconds"):
        patience["seconds"] = option("seconds")
    return partial(measure.compare, benchmark, device, **patience)


@pytest.fixture
def compare_memory(benchmark, device):
    """`measure.compare_memory` for this run's device, behind `compare`."""
    from functools import partial

    import measure

    return partial(measure.compare_memory, benchmark, device)


@pytest.fixture(scope="session", autouse=True)
def inference():
    """As ComfyUI runs every node."""
    import torch

    with torch.inference_mode():
        yield


@pytest.fixture
def fits(device):
    """Leave a size out, with a line that says so, if it takes more bytes than are free."""

    def check(size: float, what: str) -> None:
        import psutil
        import torch

        if device.type == "cuda":
            torch.cuda.empty_cache()
            free = torch.cuda.mem_get_info()[0]
        else:
            free = psutil.virtual_memory().available
        if size > free:
            pytest.skip(f"{what} needs {size / 2**30:.0f} GiB of memory, and {free / 2**30:.0f} are free")

    return check


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`frames` and `side` of the attention calls."""
    option = metafunc.config.getoption
    sizes = "2x512,4x512,10x512,4x1024,20x1024"
    if option("quick"):
        sizes = "2x256,4x256"
    if "side" in metafunc.fixturenames:
        pairs = [tuple(map(int, size.split("x"))) for size in (option("sizes") or sizes).split(",")]
        metafunc.parametrize("frames, side", pairs, ids=[f"{frames}x{side}" for frames, side in pairs])
