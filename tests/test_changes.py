"""In the real editor: a change runs what it changes, and ComfyUI keeps all else, by the server's own record.

Screenshots go to out/browser.
"""

import copy

import pytest
from studio import draft, twin
from test_browser import (  # noqa: F401  `page` is a fixture
    CHROMIUM,
    SCREENSHOTS,
    SMALL,
    open_template,
    page,
    press_run,
    show_all,
)

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed: on Debian, `apt install chromium`")


def fill(page, api) -> None:  # noqa: F811
    """Write an API workflow's values into the editor's widgets."""
    page.evaluate(
        """api => {
            for (const [id, { inputs }] of Object.entries(api))
                for (const widget of app.graph.getNodeById(Number(id)).widgets ?? [])
                    if (widget.name in inputs && !Array.isArray(inputs[widget.name])) widget.value = inputs[widget.name]
        }""",
        api,
    )


def executed(page, studio, changes: dict[str, dict]) -> set[str]:  # noqa: F811
    """Press Run after these changes, by node id and widget; the kinds of the nodes that the server ran."""
    fill(page, {id_: {"inputs": inputs} for id_, inputs in changes.items()})
    kind, detail = press_run(page)
    assert kind == "execution_success", detail
    entry = studio.wait(detail["prompt_id"], None, lambda kind, data: None)  # the editor hears of the end first
    messages = dict(entry["status"]["messages"])
    graph = entry["prompt"][2]
    ran = set(graph) - set(messages["execution_cached"]["nodes"])
    return {f"{graph[id_]['class_type']} {id_}" for id_ in ran}


def open_draft(page, studio, name: str) -> None:  # noqa: F811
    """Open a template, make it small, and run it with a seed that nothing has run with: all its samplers run."""
    open_template(page, name)
    api = draft(copy.deepcopy(twin(name)), steps=1)
    fill(page, api)
    samplers = {f"KSampler {id_}" for id_, node in api.items() if node["class_type"] == "KSampler"}
    assert executed(page, studio, fresh_seed(api)) >= samplers


def fresh_seed(api: dict[str, dict]) -> dict[str, dict]:
    primitive = [id_ for id_, node in api.items() if node["class_type"] == "PrimitiveInt"]
    samplers = [id_ for id_, node in api.items() if node["class_type"] == "KSampler"]
    return {primitive[0]: {"value": 4711}} if primitive else {samplers[0]: {"seed": 4711}}


def shot(page, name: str) -> None:  # noqa: F811
    show_all(page)
    page.wait_for_timeout(500)
    page.screenshot(path=SCREENSHOTS / f"{name}.png")
    page.set_viewport_size(SMALL)


def test_a_caption_runs_the_board_alone(page, studio):  # noqa: F811
    open_draft(page, studio, "Comic Book")
    ran = executed(page, studio, {"11": {"own_captions": "Lea: “Wake up!”"}})
    assert ran == {"OneStoryBoard 11", "SaveImage 12", "OneStoryBook 13"}
    assert executed(page, studio, {"11": {"title": "Other leaves"}}) == ran
    assert executed(page, studio, {}) <= {"SaveImage 12", "SaveImage 10", "OneStoryBook 13"}
    shot(page, "change a caption")


@pytest.mark.parametrize("name", ["Redraw a Frame", "Inpaint a Frame"])
def test_another_noise_of_one_frame_runs_its_sampler_alone(page, studio, name):  # noqa: F811
    open_draft(page, studio, name)
    ran = executed(page, studio, {"16": {"frames": "3", "noise_ids": "7"}})
    after = {"OneStorySplit 16", "KSampler 22", "OneStoryJoin 17", "VAEDecode 9", "OneStoryBoard 11"}
    assert ran == after | {"SaveImage 10", "SaveImage 12"}
    assert executed(page, studio, {"16": {"frames": "2, 4", "noise_ids": ""}}) == ran
    shot(page, f"change a noise id {name}")


def test_another_pick_runs_the_choice_and_the_board_alone(page, studio):  # noqa: F811
    open_draft(page, studio, "Takes")
    ran = executed(page, studio, {"16": {"picks": "1,3,2,2"}})
    assert ran == {"OneStoryPickTakes 16", "OneStoryBoard 11", "SaveImage 10", "SaveImage 12"}
    page.wait_for_function("app.graph.getNodeById(16).imgs?.length === 1")
    shot(page, "change a pick")


def test_the_finish_pass_runs_alone_when_its_denoise_changes(page, studio):  # noqa: F811
    open_draft(page, studio, "Finish at Twice the Size")
    ran = executed(page, studio, {"22": {"denoise": 0.5}})
    assert ran == {"KSampler 22", "VAEDecode 9", "OneStoryBoard 11", "SaveImage 10", "SaveImage 12"}
