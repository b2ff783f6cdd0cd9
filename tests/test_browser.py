"""The pack in the real editor, in headless Chromium. Screenshots go to out/browser."""

import base64
import copy
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
from conftest import COMFYUI, ROOT
from onestory.story.script import parse_script
from onestory.tools import canvas, client, host
from PIL import Image
from studio import (
    CHROMIUM,
    CLIP,
    NAMES,
    SIDE,
    WORKFLOWS,
    check_pictures,
    count,
    draft,
    film_of,
    read,
    saved,
    twin,
)

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed: on Debian, `apt install chromium`")

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
    fonts = tmp_path_factory.mktemp("share") / "fonts"
    fonts.symlink_to(ROOT / "pages" / "fonts")  # a machine without a Chinese font shows Chinese as well
    with playwright.sync_playwright() as api:
        context = api.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"),
            executable_path=CHROMIUM,
            args=[*canvas.FLAGS],
            env={**os.environ, "XDG_DATA_HOME": str(fonts.parent)},
            viewport=SMALL,
        )
        page = context.pages[0]
        page.set_default_timeout(PATIENCE)
        visit(page, studio.url)
        page.errors = []
        page.on("console", lambda m: m.type == "error" and page.errors.append(f"{m.text} ({m.location['url']})"))
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        yield page
        context.close()


def visit(page: "playwright.Page", url: str) -> None:
    """Open the editor for the first time, whoever else has used this server: the template browser opens by itself."""
    requests.post(f"{url}/settings/Comfy.TutorialCompleted", json=False).raise_for_status()
    page.goto(url)
    wait_for_editor(page)
    page.get_by_test_id("template-workflows-content").wait_for()
    page.keyboard.press("Escape")


def wait_for_editor(page: "playwright.Page") -> None:
    page.wait_for_function(canvas.READY)


def command(page: "playwright.Page", id_: str) -> None:
    """Start one of the editor's commands, which may go on to ask something."""
    page.evaluate("id => { app.extensionManager.command.execute(id) }", id_)


def new_workflow(page: "playwright.Page") -> None:
    command(page, "Comfy.NewBlankWorkflow")
    page.wait_for_function("app.graph.nodes.length === 0")


def open_template(page: "playwright.Page", name: str) -> None:
    """Open a workflow as an artist does."""
    page.errors.clear()
    command(page, "Comfy.BrowseTemplates")
    page.get_by_role("button", name="onestory").click()
    card = page.get_by_test_id(f"template-workflow-{name}")
    card.scroll_into_view_if_needed()
    page.wait_for_timeout(500)  # pictures that are still loading move the cards from under a click
    card.click()
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
def test_workflow_opens_runs_and_shows_its_pictures(page, studio, name):
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
    check_pictures(studio, drafted, studio.wait(detail["prompt_id"], None, lambda kind, data: None)["outputs"])
    show_all(page)  # the editor loads a picture when it draws the node
    (script,) = (node["inputs"] for node in drafted.values() if node["class_type"] == "OneStoryScript")
    frames = len(script["frames"].splitlines())
    for id_, node in drafted.items():
        if node["class_type"] == "SaveImage":
            page.wait_for_function(f"app.graph.getNodeById({id_}).imgs?.length === {count(drafted, id_, frames)}")
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


def place(page: "playwright.Page", blueprint: str) -> None:
    """Find a blueprint as an artist does, and put it on the canvas; it becomes `app.graph.nodes`' last."""
    placed = page.evaluate("app.graph.nodes.length")
    command(page, "Workspace.SearchBox.Toggle")
    page.get_by_placeholder("Add a node...").fill(blueprint)
    found = page.get_by_role("option").filter(has_text="Subgraph Blueprints / OneStory")
    found.filter(has=page.get_by_text(blueprint, exact=True)).first.click()
    page.wait_for_function(f"app.graph.nodes[{placed}]?.flags.ghost")  # it follows the mouse until a click
    while page.evaluate(f"app.graph.nodes[{placed}].flags.ghost"):
        page.mouse.click(SMALL["width"] / 2, SMALL["height"] / 2)
        page.wait_for_timeout(500)
    name, types, quarantined = page.evaluate(
        f"""() => {{
            const {{ subgraph, properties }} = app.graph.nodes[{placed}]
            return [subgraph.name, subgraph.nodes.map(n => n.type), properties.proxyWidgetErrorQuarantine ?? []]
        }}"""
    )
    assert name == blueprint
    assert page.evaluate("types => types.filter(type => !(type in LiteGraph.registered_node_types))", types) == []
    assert quarantined == [], "the editor understands every widget that the node shows"


def test_the_blueprint_is_one_ready_node(page):
    page.errors.clear()
    new_workflow(page)
    place(page, "Story from one prompt")
    inside = page.evaluate("app.graph.nodes[0].subgraph.nodes.map(n => n.type)")
    ours = ["OneStoryBoard", "OneStoryIPCA", "OneStoryLatent", "OneStoryPrompt", "OneStorySVR", "OneStoryScript"]
    assert sorted(type_ for type_ in inside if type_.startswith("OneStory")) == ours

    values = {
        "identity": "a red fox",
        "frames": "reading\nrunning",
        "text": "blurry",
        "width": 64,
        "height": 64,
        "strength": 2,
        "seed": 7,
        "steps": 1,
        "cfg": 2,
    }
    page.evaluate(
        """values => {
            const [story] = app.graph.nodes
            story.pos = [0, 0]
            for (const [i, output] of story.outputs.entries()) {
                const preview = LiteGraph.createNode("PreviewImage")
                preview.pos = [550, 400 * i]
                app.graph.add(preview)
                story.connect(i, preview, 0)
            }
            for (const widget of story.widgets) if (widget.name in values) widget.value = values[widget.name]
        }""",
        values,
    )
    reached = {}
    for node in api_of(page).values():
        if node["class_type"] != "OneStoryPrompt":  # its `identity` is another
            reached.update(node["inputs"])
    assert {name: reached[name] for name in values} == values
    kind, detail = press_run(page)
    assert kind == "execution_success", detail
    show_all(page)
    page.wait_for_function("app.graph.nodes.slice(1).map(n => n.imgs?.length).join() === '1,2'")
    page.wait_for_timeout(500)
    page.screenshot(path=SCREENSHOTS / "blueprint.png")
    page.set_viewport_size(SMALL)
    assert page.errors == []


FILM_BLUEPRINTS = ("Story with an Edit Model", "Story to Film with Wan", "Story to Film")


def test_blueprints_make_a_story_and_films_of_it(page, studio):
    """The first one's frames go on into the second; the third is alone."""
    page.errors.clear()
    new_workflow(page)
    for n, name in enumerate(FILM_BLUEPRINTS):
        place(page, name)
        page.evaluate(f"app.graph.nodes[{n}].pos = [{520 * n}, 4000]")  # out of the way of the next one
    page.evaluate(
        """([side, clip]) => {
            const add = (type, x, y, widgets = {}) => {
                const node = LiteGraph.createNode(type)
                node.pos = [x, y]
                app.graph.add(node)
                for (const widget of node.widgets ?? []) if (widget.name in widgets) widget.value = widgets[widget.name]
                return node
            }
            const wire = (from, output, to, input) => from.connect(output, to, to.findInputSlot(input))
            const [edit, wan, film] = app.graph.nodes
            for (const node of app.graph.nodes) node.pos[1] = 400
            const size = { width: side, height: side, megapixels: 0.01, length: clip }
            const small = { ...size, steps: 1, count: 1, end_at_step: 1 }
            for (const node of [edit, wan, film])
                for (const widget of node.widgets) if (widget.name in small) widget.value = small[widget.name]
            const script = add("OneStoryScript", 0, 0, { identity: "[Mia] a girl", frames: "[Mia] runs\\n[NC] rain" })
            const picture = add("EmptyImage", 0, -250, { width: side, height: side })
            const cast = add("OneStoryCast", 520, 0)
            wire(script, 0, cast, "story"), wire(picture, 0, cast, "images")
            wire(script, 0, edit, "story"), wire(cast, 0, edit, "cast")
            wire(script, 0, wan, "story"), wire(edit, 0, wan, "images")
            for (const [n, node] of [wan, film].entries())
                wire(node, 0, add("SaveVideo", 1040 + 320 * n, -250, { filename_prefix: `blueprint ${n}` }), "video")
        }""",
        [SIDE, CLIP],
    )
    kind, detail = press_run(page)
    assert kind == "execution_success", detail
    outputs = studio.wait(detail["prompt_id"], None, lambda kind, data: None)["outputs"]
    films = {}
    for id_, output in outputs.items():
        for video in output.get("images", ()) if output.get("animated") else ():
            with film_of(studio, outputs, id_) as file:
                films[video["filename"][:11]] = [(p.width, p.height) for p in file.decode(video=0)]
    assert films == {"blueprint 0": [(SIDE, SIDE)] * CLIP, "blueprint 1": [(SIDE, SIDE)] * 7}
    show_all(page)
    page.screenshot(path=SCREENSHOTS / "film blueprints.png")
    page.set_viewport_size(SMALL)
    assert page.errors == []


def test_search_finds_where_a_story_begins(page):
    new_workflow(page)
    for words, first in (
        ("consistent character", "Story Script"),
        ("same character", "Story Script"),
        ("same face", "Story Script"),
        ("comic", "Story Board"),
        ("caption", "Story Board"),
    ):
        command(page, "Workspace.SearchBox.Toggle")
        page.get_by_placeholder("Add a node...").fill(words)
        page.wait_for_function(
            "first => [...document.querySelectorAll('[role=option]')].find(e => /onestory/i.test(e.innerText))"
            "?.innerText.startsWith(first)",
            arg=first,
        )
        page.screenshot(path=SCREENSHOTS / f"search {words}.png")
        page.keyboard.press("Escape")


def switch_language(page: "playwright.Page", language: str) -> dict:
    """As in the settings; returns our texts in that language."""
    texts = read(ROOT / "locales" / language / "nodeDefs.json")
    page.evaluate("language => app.extensionManager.setting.set('Comfy.Locale', language)", language)
    # A language that is new to the editor can come after it has named the nodes; R names them again.
    page.wait_for_function(
        """async title => {
            await app.refreshComboInNodes()
            return LiteGraph.registered_node_types.OneStoryScript.title === title
        }""",
        arg=texts["OneStoryScript"]["display_name"],
        polling=1000,
    )
    return texts


@pytest.fixture
def chinese(page) -> Iterator[dict]:
    yield switch_language(page, "zh")
    switch_language(page, "en")


def test_in_chinese_nodes_tooltips_and_help_are_chinese(page, chinese):
    shown = page.evaluate(
        """types => Object.fromEntries(types.map(type => {
            const node = LiteGraph.createNode(type)
            return [type, {
                title: node.title,
                inputs: Object.fromEntries(node.inputs.map(i => [i.name, i.localized_name])),
                widgets: Object.fromEntries(
                    (node.widgets ?? []).filter(w => w.type !== "customtext").map(w => [w.name, w.label])
                ),
                outputs: node.outputs.map(o => o.localized_name),
            }]
        }))""",
        list(chinese),
    )
    for type_, texts in chinese.items():
        names = {id_: input_["name"] for id_, input_ in texts["inputs"].items()}
        assert shown[type_]["title"] == texts["display_name"]
        assert shown[type_]["inputs"] == names
        assert {id_: label for id_, label in shown[type_]["widgets"].items() if id_ in names}.items() <= names.items()
        assert shown[type_]["outputs"] == [output["name"] for output in texts["outputs"].values()]

    open_template(page, "One Prompt One Story")
    strength = page.evaluate(
        """() => {
            const node = app.graph.nodes.find(n => n.type === "OneStoryIPCA")
            const widget = node.widgets.find(w => w.name === "strength")
            const [x, y] = app.canvas.ds.convertOffsetToCanvas([node.pos[0] + 100, node.pos[1] + widget.y + 10])
            const { left, top } = app.canvas.canvas.getBoundingClientRect()
            return [left + x, top + y]
        }"""
    )
    page.mouse.move(*strength)
    page.get_by_text(chinese["OneStoryIPCA"]["inputs"]["strength"]["tooltip"]).wait_for()
    page.screenshot(path=SCREENSHOTS / "Chinese tooltip.png")
    page.evaluate("app.canvas.selectNode(app.graph.nodes.find(n => n.type === 'OneStoryIPCA'))")
    page.get_by_test_id("info-button").click()
    page.get_by_role("heading", name="可以试试").wait_for()
    show_all(page)
    page.screenshot(path=SCREENSHOTS / "Chinese.png")
    page.set_viewport_size(SMALL)


def values(page: "playwright.Page") -> list:
    return page.evaluate("app.graph.nodes.map(n => [n.type, (n.widgets ?? []).map(w => [w.name, w.value])])")


def test_a_saved_workflow_comes_back_with_every_value(page, studio):
    for name in ("first story.txt", "second story.txt"):
        studio.upload(name, b"a red fox\n\nreading\nrunning")
    page.evaluate("app.refreshComboInNodes()")
    new_workflow(page)
    page.evaluate(
        """types => types.forEach((type, i) => {
            const node = LiteGraph.createNode(type)
            node.pos = [450 * (i % 5), 420 * Math.floor(i / 5)]
            app.graph.add(node)
        })""",
        sorted(type_ for type_ in studio.get("/object_info") if type_.startswith("OneStory")),
    )
    defaults = values(page)
    page.evaluate(
        """() => {
            for (const widget of app.graph.nodes.flatMap(n => n.widgets ?? [])) {
                const { value, options } = widget
                if (options?.values) widget.value = options.values.find(other => other !== value)
                else if (typeof value === "boolean") widget.value = !value
                else if (typeof value === "number")
                    widget.value = value < options.max ? value + options.step2 : value - options.step2
                else widget.value = `${value} # 又一个, “other” [text]\\n`
            }
        }"""
    )
    changed = values(page)
    for (type_, before), (_, after) in zip(defaults, changed, strict=True):
        for (name, default), (_, value) in zip(before, after, strict=True):
            assert value != default, (type_, name)

    command(page, "Comfy.SaveWorkflow")
    page.get_by_role("dialog").get_by_role("textbox").fill("every node")
    page.get_by_role("button", name="Confirm").click()
    page.wait_for_function(
        "(({ filename, isModified }) => filename === 'every node' && !isModified)"
        "(app.extensionManager.workflow.activeWorkflow)"
    )
    command(page, "Workspace.CloseWorkflow")
    page.wait_for_function("app.extensionManager.workflow.activeWorkflow.filename !== 'every node'")
    page.reload()
    wait_for_editor(page)
    command(page, "Workspace.ToggleSidebarTab.workflows")
    page.get_by_text("every node").click()
    page.wait_for_function("n => app.graph.nodes.length === n", arg=len(changed))
    command(page, "Workspace.ToggleSidebarTab.workflows")
    assert values(page) == changed
    show_all(page)
    page.screenshot(path=SCREENSHOTS / "every node.png")
    page.set_viewport_size(SMALL)


def test_story_script_takes_dynamic_prompts_and_shows_its_warnings(page):
    open_template(page, "Two Characters")
    page.evaluate(
        """texts => {
            const node = app.graph.nodes.find(n => n.type === "OneStoryScript")
            node.widgets.forEach((widget, i) => (widget.value = texts[i]))
            app.graph.nodes.filter(n => n !== node).forEach(n => app.graph.remove(n))
            const latent = LiteGraph.createNode("OneStoryLatent")
            const save = LiteGraph.createNode("SaveLatent")
            for (const added of [latent, save]) app.graph.add(added)
            node.connect(0, latent, 0)
            latent.connect(0, save, 0)
        }""",
        [
            "[Mia] a girl // the heroine\n[Rex] a dog",
            "[Mia] and [Rex] under the {sun|sun}\n// a note\n/* another\none */\nhome",
        ],
    )
    (script,) = (node["inputs"] for node in api_of(page).values() if node["class_type"] == "OneStoryScript")
    assert parse_script(script["identity"], script["frames"]).characters == (("Mia", "a girl"), ("Rex", "a dog"))
    frames = parse_script(script["identity"], script["frames"]).frames
    assert [frame.prompt for frame in frames] == ["under the sun", "home"]
    for text, shown in (("home", "mentions no character"), ("[rex]、[mia]: home", "Frames 1–2: Mia, Rex")):
        page.evaluate(
            """text => {
                const [, frames] = app.graph.nodes.find(n => n.type === "OneStoryScript").widgets
                frames.value = frames.value.replace(/home$/, text)
            }""",
            text,
        )
        kind, detail = press_run(page)
        assert kind == "execution_success", detail
        page.get_by_text(shown).wait_for()
        page.wait_for_timeout(500)
        page.screenshot(path=SCREENSHOTS / f"script {shown}.png")
    assert page.errors == []


@contextmanager
def started_as_the_readme_says(folder: Path) -> Iterator[str]:
    """The editor of the ComfyUI in `.host`, by README's command line; gives its URL. It writes into `folder`."""
    (words,) = re.findall(r"`(\.host/venv/bin/python [^`]+)`", (ROOT / "README.md").read_text(encoding="utf-8"))
    port = host.free_port()
    command = [*words.split(), "--cpu", "--use-pytorch-cross-attention", "--port", str(port)]
    for kind in ("output", "temp", "user"):
        (folder / kind).mkdir()
        command += [f"--{kind}-directory", str(folder / kind)]
    command += ["--database-url", f"sqlite:///{folder / 'comfyui.db'}"]
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
    try:
        url = f"http://127.0.0.1:{port}"
        host.wait_until_up(process, url, folder / "log")
        yield url
    finally:
        host.stop(process)


def drop(page: "playwright.Page", file: Path) -> None:
    """Drop a picture on the canvas."""
    transfer = page.evaluate_handle(
        """([name, data]) => {
            const transfer = new DataTransfer()
            const bytes = Uint8Array.from(atob(data), character => character.charCodeAt(0))
            transfer.items.add(new File([bytes], name, { type: "image/png" }))
            return transfer
        }""",
        [file.name, base64.b64encode(file.read_bytes()).decode()],
    )
    page.dispatch_event("#graph-canvas", "drop", {"dataTransfer": transfer})


@pytest.mark.skipif((host.HOST / "ComfyUI").resolve() != COMFYUI, reason="this is not the ComfyUI that the demo set up")
@pytest.mark.timeout(600)
def test_a_picture_of_the_demo_dropped_on_the_canvas_is_drawn_again(page, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "COMFYUI_PATH"}
    command = [sys.executable, ROOT / "run.py", "demo", "--steps", "1", "--out", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    picture = tmp_path / "out" / "frame_one_prompt_02.png"
    with started_as_the_readme_says(tmp_path) as url:
        editor = page.context.new_page()
        editor.set_default_timeout(PATIENCE)
        visit(editor, url)
        drop(editor, picture)
        original = read(WORKFLOWS / "Story vs Separate Prompts.json")
        editor.wait_for_function("id => app.graph.id === id", arg=original["id"])
        # The editor is masked while it reads a file, and a mask that leaves too soon misses the end of its own fading.
        editor.wait_for_function(
            """() => {
                document.querySelectorAll(".p-overlay-mask-leave").forEach(mask => mask.remove())
                return !document.querySelector(".p-blockui-mask")
            }"""
        )
        assert editor.evaluate("app.graph.groups.map(group => group.title)") == [g["title"] for g in original["groups"]]
        loader = "app.graph.nodes.find(n => n.type === 'CheckpointLoaderSimple').widgets[0]"
        assert host.WORLD_CHECKPOINT in editor.evaluate(f"{loader}.options.values")
        assert api_of(editor) == json.loads(Image.open(picture).text["prompt"])
        kind, detail = press_run(editor)
        assert kind == "execution_success", detail
        server = client.Client(url)
        entry = server.wait(detail["prompt_id"], None, lambda kind, data: None)  # the editor hears of the end first
        again = saved(server, entry["outputs"], "10")
        assert [image.tobytes() for image in again] == [
            Image.open(path).tobytes() for path in sorted(picture.parent.glob("frame_one_prompt_*.png"))
        ]
        show_all(editor)
        editor.wait_for_timeout(500)
        editor.screenshot(path=SCREENSHOTS / "dropped picture.png")
        editor.close()
