"""Flux.2 dev and Klein: Flux.1's blocks, behind a text that ComfyUI fills up to 512 tokens with zeros before it."""

from typing import Any

from comfy.model_base import Flux2

from ..blocks import Block, thirds
from .flux import install, layer_size
from .numbered import double_and_single

__all__ = ["blocks", "copies", "install", "layer_size", "name", "parts"]

name = "Flux.2"
parts = thirds


def blocks(model: Any) -> list[Block]:
    return double_and_single(model.diffusion_model) if isinstance(model, Flux2) else []


def copies(own: int, tokens: int) -> tuple[int, ...]:
    return (tokens - own,) if own <= tokens else ()
