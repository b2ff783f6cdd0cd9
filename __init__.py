"""OneStory: consistent characters over the frames of a story, on any Stable Diffusion checkpoint."""

from comfyui_version import __version__ as comfyui

if [int(part) for part in comfyui.split(".")[:2]] < [0, 18]:
    raise ImportError(f"OneStory needs ComfyUI 0.18.0 or newer, and this is {comfyui}: update ComfyUI and restart it.")

from .nodes import comfy_entrypoint  # noqa: E402

WEB_DIRECTORY = "./web"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
