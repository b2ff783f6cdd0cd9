"""The shipped workflows: each is an editor file, its API twin, and a thumbnail for ComfyUI's template browser."""

import math
from itertools import combinations

import pytest
from onestory.story.script import parse_script
from PIL import Image
from studio import CHROMIUM, NAMES, WORKFLOWS, check_pictures, draft, read, twin

NOTES = ("MarkdownNote", "Note")
NUMBERS = {"INT": int, "FLOAT": (int, float), "BOOLEAN": bool, "STRING": str}

every_workflow = pytest.mark.parametrize("name", NAMES)


def editor(name: str) -> dict:
    return read(WORKFLOWS / f"{name}.json")


@pytest.fixture(scope="module")
def info(studio) -> dict[str, dict]:
    return studio.get("/object_info")


def inputs_of(info: dict, type_: str) -> dict[str, list]:
    return {
        name: spec for group in ("required", "optional") for name, spec in info[type_]["input"].get(group, {}).items()
    }


def choices(spec: list) -> list | None:
    if isinstance(spec[0], list):
        return spec[0]
    if spec[0] == "COMFY_DYNAMICCOMBO_V3":
        return [option["key"] for option in spec[1]["options"]]
    return spec[1]["options"] if spec[0] == "COMBO" else None


def to_api(workflow: dict, info: dict) -> dict[str, dict]:
    """What the editor's “Export (API)” writes for a workflow without subgraphs, reroute nodes or muted nodes."""
    sources = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    api = {}
    for node in workflow["nodes"]:
        if node["type"] in NOTES:
            continue
        values = iter(node.get("widgets_values", []))
        inputs = {}
        for name, spec in inputs_of(info, node["type"]).items():
            options = spec[1] if len(spec) > 1 else {}
            if (choices(spec) is None and spec[0] not in NUMBERS) or options.get("forceInput"):
                continue
            inputs[name] = next(values)
            if options.get("control_after_generate") or (spec[0] == "INT" and name in ("seed", "noise_seed")):
                assert next(values) in ("fixed", "increment", "decrement", "randomize")
            if options.get("image_upload"):
                assert next(values) == "image"
        assert list(values) == [], f"{node['type']} has more values than widgets"
        inputs |= {slot["name"]: sources[slot["link"]] for slot in node["inputs"] if slot["link"] is not None}
        title = node.get("title") or info[node["type"]]["display_name"]
        api[str(node["id"])] = {"inputs": inputs, "class_type": node["type"], "_meta": {"title": title}}
    return api


def box(item: dict) -> tuple[float, float, float, float]:
    """Left, top, right, bottom on the canvas; a node's title stands above its position."""
    if "bounding" in item:
        x, y, w, h = item["bounding"]
        return x, y, x + w, y + h
    (x, y), (w, h) = item["pos"], item["size"]
    return x, y - 30, x + w, y + h


def overlap(a: dict, b: dict) -> bool:
    (a0, a1, a2, a3), (b0, b1, b2, b3) = box(a), box(b)
    return a0 < b2 and b0 < a2 and a1 < b3 and b1 < a3


def contains(outer: dict, inner: dict) -> bool:
    (a0, a1, a2, a3), (b0, b1, b2, b3) = box(outer), box(inner)
    return a0 <= b0 and a1 <= b1 and b2 <= a2 and b3 <= a3


def test_every_workflow_has_a_twin_and_a_thumbnail():
    assert NAMES
    assert sorted(path.stem for path in (WORKFLOWS / "api").glob("*.json")) == NAMES
    assert sorted(path.stem for path in WORKFLOWS.glob("*.jpg")) == NAMES


@every_workflow
def test_thumbnail_is_a_small_square_picture(name):
    path = WORKFLOWS / f"{name}.jpg"
    with Image.open(path) as picture:
        assert picture.format == "JPEG"
        assert picture.width == picture.height >= 384
    assert path.stat().st_size < 200_000


@every_workflow
def test_twin_is_what_the_editor_file_says(info, name):
    assert {node["type"] for node in editor(name)["nodes"]} <= {*info, *NOTES}
    assert to_api(editor(name), info) == twin(name)


@every_workflow
def test_twin_fits_the_nodes(info, name):
    api = twin(name)
    for node in api.values():
        specs = inputs_of(info, node["class_type"])
        assert set(node["inputs"]) <= set(specs)
        assert set(info[node["class_type"]]["input"].get("required", {})) <= set(node["inputs"])
        for key, value in node["inputs"].items():
            kind, *options = specs[key]
            if isinstance(value, list):
                source = info[api[value[0]]["class_type"]]
                assert source["output"][value[1]] == kind, (node, key)
            elif choices(specs[key]) is not None:
                assert value in choices(specs[key]), (node, key)
            else:
                assert isinstance(value, NUMBERS[kind]), (node, key)
                if kind in ("INT", "FLOAT"):
                    assert options[0].get("min", -math.inf) <= value <= options[0].get("max", math.inf), (node, key)


@every_workflow
def test_seeds_stay_until_someone_changes_them(name):
    """Same graph, same pictures: pressing Run twice must not draw two stories."""
    for node in editor(name)["nodes"]:
        assert not {"randomize", "increment", "decrement"} & {
            v for v in node.get("widgets_values", []) if isinstance(v, str)
        }


@every_workflow
def test_nothing_lies_on_something_else(name):
    workflow = editor(name)
    for a, b in combinations(workflow["nodes"], 2):
        assert not overlap(a, b), (a["type"], b["type"])
    for a, b in combinations(workflow["groups"], 2):
        assert not overlap(a, b), (a["title"], b["title"])
    for node in workflow["nodes"]:
        touched = [group for group in workflow["groups"] if overlap(group, node)]
        assert all(contains(group, node) for group in touched), (node["type"], touched)
        assert touched or node["type"] in NOTES, node["type"]


@every_workflow
def test_ids_and_links_agree(name):
    workflow = editor(name)
    nodes = {node["id"]: node for node in workflow["nodes"]}
    assert len(nodes) == len(workflow["nodes"]) and max(nodes) <= workflow["last_node_id"]
    assert workflow["version"] == 0.4
    for id_, source, out, target, into, kind in workflow["links"]:
        assert id_ in nodes[source]["outputs"][out]["links"]
        assert nodes[target]["inputs"][into]["link"] == id_
        assert kind in (nodes[source]["outputs"][out]["type"], "*")


@every_workflow
def test_story_makes_sense(name):
    for node in twin(name).values():
        if node["class_type"] == "OneStoryScript":
            story = parse_script(node["inputs"]["identity"], node["inputs"]["frames"])
            assert story.warnings == ()
            assert all(frame.caption for frame in story.frames)


@pytest.mark.parametrize("name", () if CHROMIUM else NAMES)  # where there is one, test_browser.py runs them all in it
def test_api_workflow_runs_to_the_end(studio, name):
    api = draft(twin(name))
    check_pictures(studio, api, studio.run(api))
