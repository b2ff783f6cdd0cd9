"""ComfyUI-Manager's command line installs the pack from a git URL into a fresh ComfyUI."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from conftest import COMFYUI
from onestory.tools import client, host
from onestory.tools.environment import uv_settings

MANAGER = "manager_requirements.txt"

# Manager asks no list of packs in the network then; packages still come from the user's index.
OFFLINE = "[default]\nnetwork_mode = offline\nuse_uv = True\n"


@pytest.fixture
def environment() -> dict[str, str]:
    """This process's, with the user's package index for uv."""
    return {**uv_settings(Path(sys.executable)), **os.environ}


@pytest.fixture
def fresh(tmp_path: Path, environment) -> host.Host:
    """A copy of ComfyUI without packs, and a Python that has this one's packages and ComfyUI-Manager."""
    if not (host.ROOT / ".git").exists():
        pytest.skip("the pack is installed from its git repository, and this is no git checkout")
    own = {"custom_nodes", "models", "output", "user"}
    shutil.copytree(COMFYUI, tmp_path / "ComfyUI", ignore=lambda path, names: own if path == str(COMFYUI) else ())
    (tmp_path / "ComfyUI" / "custom_nodes").mkdir()
    venv.create(tmp_path / "venv", symlinks=sys.platform != "win32")
    python = host.venv_python(tmp_path / "venv")
    folder = Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path / "venv")}))
    (folder / "host.pth").write_text(sysconfig.get_path("purelib"))
    uv = [sys.executable, "-m", "uv"] if importlib.util.find_spec("uv") else ["uv"]
    if not shutil.which(uv[0]):
        pytest.skip("ComfyUI-Manager is installed with uv, and there is none")
    command = [*uv, "pip", "install", "--python", python, "-r", COMFYUI / MANAGER]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        pytest.skip(f"ComfyUI-Manager could not be installed: {host.tail(done.stderr, 2)}")
    return host.Host(tmp_path / "ComfyUI", python)


@pytest.mark.network
def test_manager_installs_the_pack_from_git_and_all_nodes_are_there(fresh, environment, tmp_path, monkeypatch):
    subprocess.run(["git", "clone", "--quiet", "--bare", host.ROOT, tmp_path / "onestory.git"], check=True)
    for user in (fresh.comfyui / "user", tmp_path / "run" / "user"):  # of the command line, and of the server below
        config = user / "__manager" / "config.ini"
        config.parent.mkdir(parents=True)
        config.write_text(OFFLINE)
    url = (tmp_path / "onestory.git").as_uri().replace("file://", "file://localhost")
    command = [fresh.python, "-m", "cm_cli", "install", "--mode", "local", "--exit-on-fail", url]
    paths = {"COMFYUI_PATH": str(fresh.comfyui)}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={**environment, **paths})
    assert done.returncode == 0, host.tail(done.stdout + done.stderr)
    pack = fresh.comfyui / "custom_nodes" / "onestory"
    names = re.findall(r'node_id="(OneStory\w+)"', "".join(path.read_text() for path in (pack / "nodes").glob("*.py")))
    monkeypatch.setattr(host, "link_pack", lambda this: pack.name)
    with host.running(fresh, tmp_path / "run", cpu=True, more=["--enable-manager"]) as address:
        found = client.Client(address).get("/object_info")
    assert names and set(names) <= set(found)
