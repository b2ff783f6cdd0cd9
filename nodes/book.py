import os
import re
from collections.abc import Mapping

import folder_paths
import torch
from comfy_api.latest import io, ui

from ..pages.book import as_cbz, as_pdf
from .types import CATEGORY

FORMATS = ("PDF and CBZ", "PDF", "CBZ")
FORBIDDEN = re.compile(r'[<>:"|?*\x00-\x1f]')
RESERVED = re.compile(r"(?:con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(?:\.|$)", re.IGNORECASE)
"""Names of devices, which Windows gives no file, with any extension (learn.microsoft.com, "Naming Files")."""
LONGEST_NAME = 100


class OneStoryBook(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OneStoryBook",
            display_name="Save Book",
            category=CATEGORY,
            description="Saves pages as a book in ComfyUI's output folder: a PDF, and a CBZ for comic readers. A file "
            "that is there already is never written over.",
            search_aliases=["story", "pdf", "cbz", "save", "export", "print"],
            is_input_list=True,
            is_output_node=True,
            inputs=[
                io.Image.Input("images", tooltip="The pages in order, from Story Board."),
                io.String.Input("title", default="", tooltip="The book's title, which readers show."),
                io.String.Input(
                    "filename_prefix",
                    default="OneStory/book",
                    tooltip="The files' name, with folders inside the output folder; a number follows it. What file "
                    "names can't have becomes _.",
                ),
                io.Combo.Input("format", options=list(FORMATS), default=FORMATS[0], tooltip="Which files to save."),
                io.Int.Input(
                    "resolution",
                    default=150,
                    min=36,
                    max=1200,
                    advanced=True,
                    tooltip="The PDF's pixels per inch: with 150, a page 1200 pixels wide is 8 inches wide in print.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls, images: list[torch.Tensor], title: list[str], filename_prefix: list[str], format: list[str],
        resolution: list[int],
    ) -> io.NodeOutput:  # fmt: skip
        pages = [page.to("cpu", torch.float32).numpy() for batch in images for page in batch]
        files = {}
        if "PDF" in format[0]:
            files[".pdf"] = as_pdf(pages, title[0], resolution[0])
        if "CBZ" in format[0]:
            files[".cbz"] = as_cbz(pages, title[0])
        saved = save(safe_prefix(filename_prefix[0]), files)
        shown = "\n".join(f"{file['subfolder']}/{file['filename']}".lstrip("/") for file in saved)
        return io.NodeOutput(ui=ui.PreviewText(shown).as_dict() | {"files": saved})


def safe_prefix(text: str) -> str:
    """A file's path inside the output folder that every system accepts. Raises `ValueError` for one outside of it."""
    parts = [part.strip() for part in text.replace("\\", "/").split("/")]
    if ".." in parts:
        raise ValueError(f"filename_prefix is “{text}”: name a folder inside ComfyUI's output folder, without “..”.")
    safe = [safe_name(part) for part in parts if part not in ("", ".")]
    if not safe or not text.replace("\\", "/").rpartition("/")[2].strip():
        safe.append("book")
    return "/".join(safe)


def safe_name(name: str) -> str:
    """One part of a path without what Windows refuses: characters, a dot or space at its end, names of devices."""
    name = FORBIDDEN.sub("_", name)[:LONGEST_NAME].rstrip(". ") or "_"
    return f"_{name}" if RESERVED.match(name) else name


def save(prefix: str, files: Mapping[str, bytes]) -> list[dict[str, str]]:
    """Write new files of one name into the output folder, by suffix; returns them as ComfyUI names an output."""
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, folder_paths.get_output_directory())
    while any(os.path.lexists(os.path.join(folder, f"{name}_{counter:05}_{suffix}")) for suffix in files):
        counter += 1
    saved = []
    for suffix, data in files.items():
        filename = f"{name}_{counter:05}_{suffix}"
        with open(os.path.join(folder, filename), "xb") as file:
            file.write(data)
        saved.append({"filename": filename, "subfolder": subfolder, "type": "output"})
    return saved
