"""The watch over ComfyUI's names: every one that the pack uses is there, and takes our calls."""

import comfy.samplers
import comfy.utils
import folder_paths
import pytest
from onestory.tools import symbols


def test_this_comfyui_has_every_name_and_takes_every_call():
    assert symbols.faults() == {}


def test_names_are_found_under_any_import_and_calls_by_their_arguments(tmp_path):
    (tmp_path / "nodes").mkdir()
    (tmp_path / "__init__.py").write_text("")
    text = (
        "import comfy.utils\nimport comfy.sd as loaders\nfrom comfy_api.latest import io as api\n"
        "from .own import nodes\ncomfy.utils.f(1, *more, a=2)\napi.Int.Input('x')\nloaders.load\n"
    )
    (tmp_path / "nodes" / "one.py").write_text(text)
    found = symbols.used(tmp_path)
    assert found["comfy.utils.f"] == [symbols.Use("nodes/one.py:5", 1, ("a",), True)]
    assert found["comfy_api.latest.io.Int.Input"] == [symbols.Use("nodes/one.py:6", 1, (), False)]
    assert {"comfy.sd", "comfy.sd.load"} <= set(found) and not any("own" in name for name in found)


def lacks_a_name(monkeypatch):
    monkeypatch.delattr(folder_paths, "get_save_image_path")


def takes_other_arguments(monkeypatch):
    monkeypatch.setattr(comfy.utils, "common_upscale", lambda samples, size, *, method: samples)


def calls_with_other_arguments(monkeypatch):
    def predict_noise(self, x, sigma, model_options=None, seed=None):
        pass

    monkeypatch.setattr(comfy.samplers.CFGGuider, "predict_noise", predict_noise)


@pytest.mark.parametrize(
    ("change", "name", "fault"),
    [
        (lacks_a_name, "folder_paths.get_save_image_path", "is not there"),
        (takes_other_arguments, "comfy.utils.common_upscale", "does not take the call in nodes/"),
        (calls_with_other_arguments, "comfy.samplers.CFGGuider.predict_noise", "begins with self, x, sigma"),
    ],
)
def test_a_name_that_went_and_a_signature_that_changed_are_faults(monkeypatch, change, name, fault):
    change(monkeypatch)
    found = symbols.faults()
    assert list(found) == [name] and fault in found[name]
