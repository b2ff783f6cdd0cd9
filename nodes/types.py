"""What the pack's nodes share: the STORY type and the category."""

from comfy_api.latest import io

STORY = io.Custom("STORY")
CATEGORY = "OneStory"
