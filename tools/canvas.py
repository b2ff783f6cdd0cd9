"""A workflow on ComfyUI's canvas, run in headless Chromium: the picture that shows what one works with."""

import io
import json
import shutil
from pathlib import Path

import requests
from PIL import Image

from .failure import Failure

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
"""The browser's file, if there is one."""
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WIDTH, HEIGHT = 2000, 1080
MARGINS = {"left": 70, "top": 105, "right": 30, "bottom": 30}
"""What the editor's bars cover, in pixels."""
MINUTES = 5
READY = "window.app?.extensionManager && app.graph && 'OneStoryScript' in LiteGraph.registered_node_types"
OPEN = """async ({ workflow, margins }) => {
    await app.loadGraphData(workflow)
    const items = [...app.graph.nodes, ...app.graph.groups].map(item => item.boundingRect)
    const left = Math.min(...items.map(r => r[0])), top = Math.min(...items.map(r => r[1]))
    const width = Math.max(...items.map(r => r[0] + r[2])) - left
    const height = Math.max(...items.map(r => r[1] + r[3])) - top
    const { ds } = app.canvas
    ds.scale = Math.min(
        (innerWidth - margins.left - margins.right) / width, (innerHeight - margins.top - margins.bottom) / height
    )
    ds.offset = [margins.left / ds.scale - left, margins.top / ds.scale - top]
    app.canvas.setDirty(true, true)
    for (const kind of ["execution_success", "execution_error"])
        app.api.addEventListener(kind, () => (window.ended = kind), { once: true })
    await app.queuePrompt(0)
}"""
SHOWN = "app.graph.nodes.filter(node => node.type === 'SaveImage').every(node => node.imgs?.length)"


def canvas(url: str, workflow: Path) -> Image.Image:
    """The editor at `url` with a workflow that has run. Raises `Failure` without Playwright or a browser."""
    missing = "The canvas is drawn in a browser: install Chromium, and Playwright in this Python."
    if BROWSER is None:
        raise Failure(missing)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise Failure(missing) from None
    requests.post(f"{url}/settings/Comfy.TutorialCompleted", json=True).raise_for_status()
    opened = {"workflow": json.loads(workflow.read_text(encoding="utf-8")), "margins": MARGINS}
    with sync_playwright() as api:
        window = api.chromium.launch(executable_path=BROWSER, args=[*FLAGS])
        page = window.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.set_default_timeout(MINUTES * 60_000)
        page.goto(url)
        page.wait_for_function(READY)
        page.evaluate(OPEN, opened)
        page.wait_for_function("window.ended")
        page.wait_for_function(SHOWN)
        page.wait_for_timeout(6000)  # until the note that the job is done has gone
        taken = page.screenshot()
        window.close()
    return Image.open(io.BytesIO(taken)).convert("RGB")
