"""The shipped workflows in the real editor, in headless Chromium. Screenshots go to out/browser."""

import copy
import shutil
from collections.abc import Iterator

import pytest
from conftest import ROOT
from studio import NAMES, WORKFLOWS, draft, read, twin

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed: on Debian, `apt install chromium`")

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
SCREENSHOTS = ROOT / "out" / "browser"
PATIENCE = 120_000
SLOW = 240_000
SMALL = {"width": 1280, "height": 800}
LARGE = {"width": 2400, "height": 1350}  # the editor draws no text at less than 0.57 of its size

every_workflow = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def page(studio, tmp_path_factory) -> Iterator["playwright.Page"]:
    """The editor, opened by someone who has never used it; `page.errors` collects what its console complains about."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    with playwright.sync_playwright() as api:
        context = api.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"),
            executable_path=CHROMIUM,
            args=FLAGS.split(),
            viewport=SMALL,
        )
        page = context.pages[0]
        page.set_default_timeout(PATIENCE)
        page.goto(studio.url)
        page.wait_for_function(
            "window.app?.extensionManager && app.graph && 'OneStoryScript' in LiteGraph.registered_node_types"
        )
        # The template browser opens by itself on the first visit.
        page.get_by_test_id("template-workflows-content").wait_for()
        page.keyboard.press("Escape")
        page.errors = []
        page.on("console", lambda m: m.type == "error" and page.errors.append(f"{m.text} ({m.location['url']})"))
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        yield page
        context.close()


def open_template(page: "playwright.Page", name: str) -> None:
    """Open a workflow as an artist does."""
    page.errors.clear()
    page.evaluate("app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    page.get_by_role("button", name="onestory").click()
    page.get_by_test_id(f"template-workflow-{name}").click()
    page.wait_for_function("id => app.graph.id === id", arg=read(WORKFLOWS / f"{name}.json")["id"])
    page.get_by_test_id("template-workflows-content").wait_for(state="hidden")


def api_of(page: "playwright.Page") -> dict:
    return page.evaluate("async () => (await app.graphToPrompt()).output")


def show_all(page: "playwright.Page") -> None:
    """The whole graph, as large as it fits."""
    page.set_viewport_size(LARGE)
    page.wait_for_timeout(200)
    page.evaluate(
        """() => {
            const items = [...app.graph.nodes, ...app.graph.groups].map(item => item.boundingRect)
            const left = Math.min(...items.map(r => r[0])), top = Math.min(...items.map(r => r[1]))
            const width = Math.max(...items.map(r => r[0] + r[2])) - left
            const height = Math.max(...items.map(r => r[1] + r[3])) - top
            const scale = Math.min((innerWidth - 100) / width, (innerHeight - 180) / height, 1)
            app.canvas.ds.scale = scale
            app.canvas.ds.offset = [80 / scale - left, 140 / scale - top]
            app.canvas.setDirty(true, true)
        }"""
    )
    page.wait_for_timeout(500)


def press_run(page: "playwright.Page") -> tuple[str, dict]:
    """Press Run and wait for the end of the job: the server's last message about it."""
    page.evaluate(
        """() => {
            window.jobEnded = undefined
            for (const kind of ["execution_success", "execution_error", "execution_interrupted"])
                app.api.addEventListener(kind, ({ detail }) => (window.jobEnded = [kind, detail]), { once: true })
        }"""
    )
    page.get_by_test_id("queue-button").click()
    page.wait_for_function("window.jobEnded", timeout=SLOW)
    return page.evaluate("window.jobEnded")


@every_workflow
def test_workflow_opens_runs_and_shows_its_pictures(page, name):
    open_template(page, name)
    unknown = page.evaluate(
        "app.graph.nodes.filter(n => !(n.type in LiteGraph.registered_node_types)).map(n => n.type)"
    )
    assert unknown == []
    assert api_of(page) == twin(name)
    saved_again = page.evaluate("() => app.graph.serialize()")
    original = read(WORKFLOWS / f"{name}.json")
    for node, before in zip(saved_again["nodes"], original["nodes"], strict=True):
        assert (node.get("widgets_values") or []) == (before.get("widgets_values") or [])

    drafted = draft(copy.deepcopy(twin(name)), steps=1)
    page.evaluate(
        """api => {
            for (const [id, { inputs }] of Object.entries(api))
                for (const widget of app.graph.getNodeById(Number(id)).widgets ?? [])
                    if (widget.name in inputs && !Array.isArray(inputs[widget.name])) widget.value = inputs[widget.name]
        }""",
        drafted,
    )
    assert api_of(page) == drafted
    kind, detail = press_run(page)
    assert kind == "execution_success", detail
    show_all(page)  # the editor loads a picture when it draws the node
    (script,) = (node["inputs"] for node in drafted.values() if node["class_type"] == "OneStoryScript")
    frames = len(script["frames"].splitlines())
    for id_, node in drafted.items():
        if node["class_type"] == "SaveImage":
            shown = frames if node["inputs"]["filename_prefix"].startswith("OneStory/frame") else 1
            page.wait_for_function(f"app.graph.getNodeById({id_}).imgs?.length === {shown}")
    page.wait_for_timeout(500)
    page.screenshot(path=SCREENSHOTS / f"{name}.png")
    page.set_viewport_size(SMALL)
    assert page.errors == []


def test_invalid_input_shows_our_sentence(page):
    open_template(page, "One Prompt One Story")
    page.evaluate("app.graph.nodes.find(n => n.type === 'OneStoryScript').widgets[0].value = ''")
    kind, detail = press_run(page)
    assert kind == "execution_error"
    assert detail["exception_message"].startswith("The story's identity is empty")
    page.get_by_role("button", name="View details").click()
    page.get_by_text("The story's identity is empty").first.wait_for()
    page.wait_for_timeout(500)
    page.screenshot(path=SCREENSHOTS / "invalid input.png")


def test_help_page_opens(page):
    open_template(page, "One Prompt One Story")
    page.evaluate("app.canvas.selectNode(app.graph.nodes.find(n => n.type === 'OneStoryIPCA'))")
    page.get_by_test_id("info-button").click()
    page.get_by_role("heading", name="What to try").wait_for()
    page.wait_for_timeout(500)
    page.screenshot(path=SCREENSHOTS / "help.png")
