"""What stories of two characters have in their graphs: sides in words, regions from text, masks and attention."""

from typing import Any

LEFT, RIGHT = "Left", "Right"
"""What the characters are called, after their sides: names never reach the model."""
LAYOUT = f"{LEFT}: left half\n{RIGHT}: right half"
STANDS = {LEFT: (0.04, 0.3, 0.48, 1.0), RIGHT: (0.52, 0.3, 0.96, 1.0)}
"""Masks: left, top, right and bottom of where the world draws two characters, as shares."""
RECORDED = 0.25
"""The share of the steps after which regions are made of what was drawn."""
REGIONS = {
    "layout": "",
    "strength": 1.0,
    "end_of_text": 1.0,
    "blocks": "all",
    "start_percent": 0.0,
    "end_percent": 1.0,
    "character": "",
}
RECORDER = {"blocks": "output.3-5", "start_percent": 0.0, "end_percent": 1.0}
GROW = 1


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def with_sides(identity: str) -> str:
    """The identity's lines with each character's side in words, as the world's captions have it."""
    ends = {f"[{name}]": f" on the {name.lower()}" for name in (LEFT, RIGHT)}
    return "\n".join(line + ends.get(line.split()[0], "") for line in identity.splitlines())


def add_regions(
    graph: dict[str, dict], row: Any, model: str, ids: dict[str, str], size: tuple[int, int], steps: int
) -> str:
    """Add Story Regions after the node `model`, with what they are made of; returns the node that the sampler gets."""
    story = [ids["OneStoryScript"], 0]
    strength: dict[str, Any] = {**REGIONS, "strength": row.strength, "story": story}
    if row.regions == "text":
        graph["regions"] = node("OneStoryRegions", **{**strength, "layout": LAYOUT}, model=[model, 0])
        return "regions"
    if row.regions == "attention":
        graph["recorder"] = node("OneStoryAttentionRecorder", model=[model, 0], **RECORDER)
    for name in (LEFT, RIGHT):
        mask = f"mask {name}"
        if row.regions == "masks":
            add_mask(graph, mask, STANDS[name], size)
        else:
            graph[mask] = node(
                "OneStoryRegionMasks",
                attention=["recorder", 1],
                story=story,
                latent=["first sampler", 0],
                character=name,
                grow=GROW,
            )
        graph[f"regions {name}"] = node(
            "OneStoryRegions", **{**strength, "character": name}, mask=[mask, 0], model=[model, 0]
        )
        model = f"regions {name}"
    return model


def add_mask(graph: dict[str, dict], key: str, stands: tuple[float, ...], size: tuple[int, int]) -> None:
    """A mask of 1 in a box of shares, of core nodes."""
    width, height = size
    left, top, right, bottom = (round(share * side) for share, side in zip(stands, (width, height) * 2, strict=True))
    graph[f"{key} blank"] = node("SolidMask", value=0.0, width=width, height=height)
    graph[f"{key} box"] = node("SolidMask", value=1.0, width=right - left, height=bottom - top)
    graph[key] = node(
        "MaskComposite", destination=[f"{key} blank", 0], source=[f"{key} box", 0], x=left, y=top, operation="add"
    )


def draw_in_two(graph: dict[str, dict], key: str, steps: int) -> None:
    """Put two samplers in the place of one: the first is recorded, the second goes on from its latent with regions."""
    given = dict(graph[key]["inputs"])
    seed = given.pop("seed")
    del given["denoise"]
    turn = max(1, round(RECORDED * steps))
    graph["first sampler"] = node(
        "KSamplerAdvanced",
        **{**given, "model": ["recorder", 0]},
        add_noise="enable",
        noise_seed=seed,
        start_at_step=0,
        end_at_step=turn,
        return_with_leftover_noise="enable",
    )
    graph[key] = node(
        "KSamplerAdvanced",
        **{**given, "latent_image": [f"mask {RIGHT}", 1]},
        add_noise="disable",
        noise_seed=seed,
        start_at_step=turn,
        end_at_step=10000,
        return_with_leftover_noise="disable",
    )
