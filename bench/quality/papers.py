"""What One-Prompt-One-Story's authors print of the same measures (arXiv 2501.13554, table 1), beside what was found."""

from typing import Any, NamedTuple

COLUMNS = ("clip_t", "clip_i", "dreamsim")


class Printed(NamedTuple):
    """A line of the table: the method, the name of our row of the same method or "", and its three measures.

    None is a figure that could not be read in print.
    """

    method: str
    row: str
    values: tuple[float | None, float, float]


TABLE = (
    Printed("Vanilla SD 1.5", "", (0.8353, 0.7474, 0.5873)),
    Printed("Vanilla SDXL", "separate", (0.9074, 0.8165, 0.5292)),
    Printed("BLIP-Diffusion", "", (0.7607, 0.8863, 0.2830)),
    Printed("Textual Inversion", "", (0.8378, 0.8229, 0.4268)),
    Printed("The Chosen One", "", (0.7614, 0.7831, 0.4929)),
    Printed("PhotoMaker", "", (0.8651, 0.8465, 0.3996)),
    Printed("IP-Adapter", "", (None, 0.9429, 0.1462)),
    Printed("ConsiStory", "", (0.8769, 0.8737, 0.3188)),
    Printed("StoryDiffusion", "anchors", (0.8877, 0.8755, 0.3212)),
    Printed("Naive Prompt Reweighting", "naive", (0.8411, 0.8916, 0.2548)),
    Printed("1Prompt1Story", "ipca", (0.8942, 0.9117, 0.1993)),
)
STORIES, FRAMES, STEPS, SIZE = 192, 1100, 50, "1024x1024"
CLIP_T, CLIP_I = "ViT-B/32", "ViT-B/16"


def lines(found: dict[str, Any]) -> list[list[str]]:
    """The table's lines, the head first: each printed figure with ours beside it; none where we measured nothing."""
    titles = {"clip_t": "CLIP-T ↑", "clip_i": "CLIP-I ↑", "dreamsim": "DreamSim ↓"}
    shown = [key for key in COLUMNS if key in found["measures"]]
    if not shown:
        return []
    rows = {row["row"]: row for row in found["table"] if row["boards"]}
    head = ["", "here"]
    for key in shown:
        head += [f"{titles[key]} printed", "here"]
    table = [head]
    for printed in TABLE:
        ours = rows.get(printed.row)
        line = [printed.method, ours["title"] if ours else "–"]
        for key in shown:
            value = ours["values"].get(key) if ours else None
            line += [figure(printed.values[COLUMNS.index(key)]), figure(value and value["mean"])]
        table.append(line)
    return table


def figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def differences(found: dict[str, Any]) -> list[str]:
    """What was done otherwise than the authors did, a sentence each."""
    settings, facts = found["settings"], found["measured"]
    stories, frames = len(found["stories"]), sum(len(story["frames"].splitlines()) for story in found["stories"])
    size, steps, masks = settings["size"], settings["steps"], facts.get("masks")
    said = []
    if "xl" not in settings["checkpoint"].lower() or "base" not in settings["checkpoint"].lower():
        said.append(f"Their model is SDXL base 1.0; here it is {settings['checkpoint']}.")
    if (stories, frames) != (STORIES, FRAMES):
        said.append(
            f"Theirs are the {STORIES} stories of ConsiStory+ with {FRAMES} frames; here {stories} of "
            f"{settings['stories']} with {frames}."
        )
    if (size, steps) != (SIZE, STEPS):
        said.append(f"They draw {SIZE} in {STEPS} steps; here {size} in {steps}.")
    if settings["eot"] != "scale":
        said.append("Their benchmark scales the end-of-text tokens, --eot scale; here SVR reweights them.")
    if settings["set"]:
        said.append("Some values are not the defaults: see --set above.")
    for key, theirs, measure in (("clip", CLIP_T, "CLIP-T"), ("clip_image", CLIP_I, "CLIP-I")):
        if facts.get(key) not in (None, theirs):
            said.append(f"Their {measure} is by CLIP {theirs}; here by {facts[key]}.")
    if "clip_i" in found["measures"] or "dreamsim" in found["measures"]:
        said.append(
            f"They removed backgrounds with CarveKit for CLIP-I and DreamSim; here it was done by {masks}."
            if masks
            else "They removed the backgrounds for CLIP-I and DreamSim; here whole pictures count: compare rows of one "
            "column, not the two columns."
        )
    return said
