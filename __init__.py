"""OneStory: consistent characters over the frames of a story, on any Stable Diffusion checkpoint."""

from .nodes import comfy_entrypoint

WEB_DIRECTORY = "./web"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
