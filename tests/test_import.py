"""What the pack's import brings into the host."""

import json
import subprocess
import sys

import pytest
from conftest import COMFYUI
from onestory.tools import host

# The host's start up to its custom nodes, then ours by the host's own loader.
START = """
import asyncio, json, sys
sys.path.insert(0, sys.argv[1])
from comfy.cli_args import args
args.cpu = True
import nodes
asyncio.run(nodes.init_builtin_extra_nodes())
modules, mappings = set(sys.modules), set(nodes.NODE_CLASS_MAPPINGS)
loaded = asyncio.run(nodes.load_custom_node(sys.argv[2]))
files = {name: getattr(sys.modules[name], "__file__", None) for name in set(sys.modules) - modules}
added = set(nodes.NODE_CLASS_MAPPINGS) - mappings
print(json.dumps({"loaded": loaded, "nodes": sorted(added), "files": files}))
"""


@pytest.fixture(scope="module")
def start():
    command = [sys.executable, "-c", START, COMFYUI, host.ROOT]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_the_hosts_loader_takes_the_pack(start):
    assert start["loaded"] and all(name.startswith("OneStory") for name in start["nodes"])
    assert {"OneStoryScript", "OneStoryPrompt", "OneStoryNaiveReweight", "OneStorySVR"} <= set(start["nodes"])
    assert {"OneStoryIPCA", "OneStoryLatent", "OneStoryBoard"} <= set(start["nodes"])


def test_it_brings_no_package_that_the_host_lacks(start):
    """Every module that is new is the pack's own or Python's."""
    pack = str(host.ROOT)
    foreign = {
        name
        for name, file in start["files"].items()
        if name.partition(".")[0] not in sys.stdlib_module_names and not (file or pack).startswith(f"{pack}/")
    }
    foreign = {name for name in foreign if not name.startswith(pack)}
    assert foreign == set()
    assert (host.ROOT / "requirements.txt").read_text().strip() == ""
