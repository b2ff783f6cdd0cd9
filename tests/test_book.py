"""Save Book: a PDF and a CBZ with every page, under names that every system takes, over no file that is there."""

import io
import re
import zipfile
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from onestory.nodes.book import OneStoryBook, safe_prefix
from onestory.pages.book import as_cbz, as_pdf
from PIL import Image

TITLE = "小狐狸 & <Fox> “Mia”\x00"


def pages(count: int = 3) -> list[np.ndarray]:
    """Pages of different heights, each with a slope of its own colours."""
    slope = np.linspace(0, 1, 64, dtype=np.float32)[None, :, None]
    return [np.broadcast_to(slope * (1, 0.5, n / 3), (40 + 8 * n, 64, 3)).astype(np.float32) for n in range(count)]


def pixels(page: np.ndarray) -> np.ndarray:
    return (page * 255).round().astype(np.uint8)


@pytest.fixture
def output(tmp_path, monkeypatch):
    monkeypatch.setattr("folder_paths.get_output_directory", lambda: str(tmp_path))
    return tmp_path


def save(prefix="OneStory/book", format="PDF and CBZ", title=TITLE):
    images = [torch.from_numpy(page)[None] for page in pages()]
    return OneStoryBook.execute(images, [title], [prefix], [format], [150]).ui


@pytest.mark.parametrize("count", [1, 3, 1001])
def test_a_cbz_holds_the_pages_without_loss_in_reading_order_and_its_title(count):
    shown = pages(min(count, 3)) * (1 if count < 4 else 334)
    with zipfile.ZipFile(io.BytesIO(as_cbz(shown[:count], TITLE))) as archive:
        assert archive.testzip() is None
        *names, info = archive.namelist()
        assert len(names) == count and names == sorted(names)
        for name, page in list(zip(names, shown))[:3]:
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(archive.read(name)))), pixels(page))
        book = ElementTree.fromstring(archive.read(info))
    assert info == "ComicInfo.xml" and book.tag == "ComicInfo"
    assert book.findtext("Title") == "小狐狸 & <Fox> “Mia”" and book.findtext("PageCount") == str(count)


@pytest.mark.parametrize("resolution", [72, 150])
def test_a_pdf_has_a_page_of_the_right_size_for_each_picture_and_the_pictures_themselves(resolution):
    shown = pages()
    data = as_pdf(shown, TITLE, resolution)
    assert data.startswith(b"%PDF-") and data.rstrip().endswith(b"%%EOF")
    boxes = [[float(n) for n in box.split()] for box in re.findall(rb"/MediaBox \[([^\]]+)\]", data)]
    assert boxes == [
        pytest.approx([0, 0, page.shape[1] * 72 / resolution, page.shape[0] * 72 / resolution]) for page in shown
    ]
    pictures = [
        Image.open(io.BytesIO(part))
        for part in re.findall(rb"stream\r?\n(\xff\xd8\xff.*?\xff\xd9)\s*endstream", data, re.S)
    ]
    assert len(pictures) == len(shown)
    for picture, page in zip(pictures, shown):
        assert np.abs(np.asarray(picture, int) - pixels(page)).max() <= 6
    assert "小狐狸".encode("utf-16-be") in data.replace(b"\\\\", b"\\")


def test_files_go_into_the_output_folder_and_never_over_another(output):
    first, second = save(), save()
    assert [file["filename"] for file in first["files"]] == ["book_00001_.pdf", "book_00001_.cbz"]
    assert first["text"] == ("OneStory/book_00001_.pdf\nOneStory/book_00001_.cbz",)
    assert [file["filename"] for file in second["files"]] == ["book_00002_.pdf", "book_00002_.cbz"]
    assert {file["subfolder"] for file in first["files"]} == {"OneStory"}
    taken = output / "OneStory" / "book_00003_.cbz"
    taken.write_bytes(b"mine")
    assert [file["filename"] for file in save()["files"]] == ["book_00004_.pdf", "book_00004_.cbz"]
    assert taken.read_bytes() == b"mine"
    (only,) = save(format="PDF")["files"]
    assert only["filename"].endswith(".pdf")
    assert len(list((output / "OneStory").iterdir())) == 8


@pytest.mark.parametrize(
    "text, expected",
    [
        ("OneStory/book", "OneStory/book"),
        ("My story: part 1?", "My story_ part 1_"),
        (r"stories\Mia", "stories/Mia"),
        ("/etc/passwd", "etc/passwd"),
        ("C:/x", "C_/x"),
        ("con/NUL.pdf", "_con/_NUL.pdf"),
        ("com1 /lpt².x/console", "_com1/_lpt².x/console"),
        ("name. . /./end...", "name/end"),
        ("小狐狸 的 故事", "小狐狸 的 故事"),
        ("", "book"),
        ("folder/", "folder/book"),
        ("...", "_"),
        ("a\x00b\n|c", "a_b__c"),
        ("x" * 300, "x" * 100),
    ],
)
def test_names_are_those_that_every_system_takes(text, expected):
    assert safe_prefix(text) == expected


def test_a_folder_outside_the_output_folder_is_an_error(output):
    for text in ("../x", r"a\..\..\x", "a/ .. /x"):
        with pytest.raises(ValueError, match="name a folder inside ComfyUI's output folder, without “..”"):
            save(text)
    assert not any(output.parent.glob("x*"))


def test_a_page_with_transparency_lies_on_paper():
    clear = np.zeros((8, 8, 4), np.float32)
    with zipfile.ZipFile(io.BytesIO(as_cbz([clear], ""))) as archive:
        assert np.asarray(Image.open(io.BytesIO(archive.read("page_001.png")))).min() > 240
