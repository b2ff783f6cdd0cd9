"""The pack on the editor's second renderer, “Nodes 2.0”, which makes every node of HTML. Screenshots go to out/browser.

`test_browser.py` has the first renderer, and what does not depend on one.
"""

import copy
from collections.abc import Iterator

import pytest
from studio import NAMES, WORKFLOWS, draft, read, twin
from test_browser import (  # noqa: F401  `page` is a fixture
    CHROMIUM,
    LARGE,
    SCREENSHOTS,
    SMALL,
    api_of,
    page,
    press_run,
    show_all,
)
from test_changes import fill

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed: on Debian, `apt install chromium`")

# The open graph's nodes by id: type, title, and the texts that stand in their HTML.
SHOWN = """() => Object.fromEntries(app.graph.nodes.map(node => {
    const html = document.querySelector(`[data-node-id="${node.id}"]`)
    const texts = [...html?.querySelectorAll("*") ?? []].filter(e => !e.children.length).map(e => e.textContent.trim())
    return [node.id, { type: node.type, title: node.title, texts: texts.filter(text => text) }]
}))"""


@pytest.fixture(scope="module")
def vue(page) -> Iterator["playwright.Page"]:  # noqa: F811, F821
    """The editor with the second renderer."""
    page.evaluate("app.extensionManager.setting.set('Comfy.VueNodes.Enabled', true)")
    page.set_viewport_size(LARGE)
    yield page
    page.set_viewport_size(SMALL)
    page.evaluate("app.extensionManager.setting.set('Comfy.VueNodes.Enabled', false)")


def load(vue, name: str) -> dict[str, dict]:
    """Open a template as the template browser does, once every node is there; what they show."""
    vue.evaluate("workflow => app.loadGraphData(workflow)", read(WORKFLOWS / f"{name}.json"))
    vue.wait_for_function(
        'ids => ids.every(id => document.querySelector(`[data-node-id="${id}"] [data-testid=node-title]`))',
        arg=[node["id"] for node in read(WORKFLOWS / f"{name}.json")["nodes"]],
    )
    return vue.evaluate(SHOWN)


def test_every_template_opens_with_its_nodes_titles_and_widgets(vue, studio):
    info = studio.get("/object_info")
    for name in NAMES:
        vue.errors.clear()
        shown = load(vue, name)
        for id_, node in shown.items():
            assert node["title"] in node["texts"], (name, id_)
            if node["type"].startswith("OneStory"):
                inputs = info[node["type"]]["input"]
                specs = {**inputs.get("required", {}), **inputs.get("optional", {})}
                names = {each for each, spec in specs.items() if not (len(spec) > 1 and spec[1].get("advanced"))}
                assert names <= set(node["texts"]), (name, node["type"])
        assert api_of(vue) == twin(name)
        assert vue.errors == [], name


def test_values_are_written_in_the_nodes_and_results_and_help_are_shown(vue):
    vue.errors.clear()
    shown = load(vue, "One Prompt One Story")
    api = draft(copy.deepcopy(twin("One Prompt One Story")), steps=1)
    fill(vue, api)
    show_all(vue)
    ids = {node["type"]: id_ for id_, node in shown.items()}
    script, ipca = (vue.locator(f'[data-node-id="{ids[type_]}"]') for type_ in ("OneStoryScript", "OneStoryIPCA"))
    script.locator("textarea").nth(1).fill("reading\nrunning")
    ipca.get_by_role("button", name="Show advanced inputs").click()
    ipca.get_by_text("dropout").wait_for()
    api[ids["OneStoryScript"]]["inputs"]["frames"] = "reading\nrunning"
    assert api_of(vue) == api

    kind, detail = press_run(vue)
    assert kind == "execution_success", detail
    for id_, node in api.items():
        if node["class_type"] == "SaveImage":
            file = node["inputs"]["filename_prefix"].rpartition("/")[2]
            vue.wait_for_function(
                '([id, file]) => [...document.querySelectorAll(`[data-node-id="${id}"] img`)]'
                ".some(img => img.naturalWidth && img.src.includes(file))",
                arg=[id_, file],
            )
    vue.screenshot(path=SCREENSHOTS / "Nodes 2.0.png")
    assert vue.errors == []

    vue.get_by_test_id(f"node-header-{ids['OneStoryIPCA']}").click()
    vue.get_by_test_id("info-button").click()
    vue.get_by_role("heading", name="What to try").wait_for()
    vue.screenshot(path=SCREENSHOTS / "Nodes 2.0 help.png")
