"""Live previews: what a sampler sends while it draws several frames, and that it draws what it drew before."""

from types import SimpleNamespace

import comfy.latent_formats
import comfy.utils
import latent_preview
import numpy as np
import pytest
import torch
from comfy.cli_args import LatentPreviewMethod, args
from duplicates import FOX, FRAMES, latent_rows, rows, run
from graphs import empty, ipca, sample_advanced, self_attention, story
from onestory.nodes import previews
from onestory.nodes.previews import Preview, outer_sample, with_previews
from onestory.pages.preview import draw_preview
from PIL import Image


@pytest.fixture(scope="module")
def tale():
    return story(FOX, *FRAMES)


@pytest.fixture(scope="module")
def latent(tale):
    return empty(tale, 64, 32)


@pytest.fixture
def sent(monkeypatch):
    """The progress messages that reach the server: (step, steps, picture or None)."""
    messages = []

    def hook(value, total, preview, node_id=None):
        messages.append((value, total, preview and preview[1]))

    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.Latent2RGB)
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)
    return messages


def without(model):
    clone = model.clone()
    clone.remove_wrappers_with_key(previews.WrappersMP.OUTER_SAMPLE, previews.KEY)
    return clone


@pytest.mark.parametrize("sampler", [run, sample_advanced], ids=["KSampler", "SamplerCustomAdvanced"])
def test_a_grid_follows_each_step_of_the_host_and_changes_no_latent(sd, frames, negative, latent, sent, sampler):
    model = self_attention(ipca(sd.model), sampling_rate=0.0)
    got = sampler(model, frames, negative, latent, steps=2)
    steps = [(value, total) for value, total, picture in sent if picture]
    assert steps == [(1, 2), (1, 2), (2, 2), (2, 2)], "ours once, however many nodes"
    assert all(picture.size == (8, 4) for _, _, picture in sent[::2]), "the host's first frame"
    assert all(picture.width > 256 for _, _, picture in sent[1::2])
    assert torch.equal(got, sampler(without(model), frames, negative, latent, steps=2))


@pytest.mark.parametrize("method", [LatentPreviewMethod.NoPreviews, LatentPreviewMethod.Auto])
def test_the_hosts_preview_method_counts(sd, frames, negative, latent, sent, monkeypatch, method):
    monkeypatch.setattr(args, "preview_method", method)
    run(ipca(sd.model), frames, negative, latent)
    pictures = [picture for _, _, picture in sent if picture]
    assert len(pictures) == (2 if method == LatentPreviewMethod.Auto else 0)


def test_one_frame_is_left_to_the_host(sd, frames, negative, latent, sent):
    run(ipca(sd.model), rows(frames, [1]), negative, latent_rows(latent, [1]))
    assert [picture.size for _, _, picture in sent if picture] == [(8, 4)]


def test_each_frame_of_the_grid_is_the_hosts_preview_of_it(sent):
    x0 = torch.linspace(-3, 3, 3 * 4 * 8 * 8).reshape(3, 4, 8, 8)
    format = comfy.latent_formats.SD15()
    previewer = latent_preview.get_previewer("cpu", format)
    kept = {}
    host = latent_preview.prepare_callback(
        SimpleNamespace(load_device="cpu", model=SimpleNamespace(latent_format=format)), 1, kept
    )
    Preview(previewer, host)(0, x0, x0, 1)
    assert kept["x0"] is x0, "SamplerCustom's denoised output is the whole batch"
    tiles = [previewer.decode_latent_to_preview(row[None]) for row in x0]
    want = draw_preview(tiles, latent_preview.MAX_PREVIEW_RESOLUTION)
    assert np.array_equal(np.asarray(sent[-1][2]), np.asarray(want))


def test_video_latents_show_the_first_picture_of_each(sent):
    format = comfy.latent_formats.Wan21()
    x0 = torch.randn(2, 16, 3, 8, 8)
    preview = Preview(latent_preview.get_previewer("cpu", format), lambda *args: None)
    first = Preview(preview.previewer, preview.callback)
    assert np.array_equal(np.asarray(preview.draw(x0)), np.asarray(first.draw(x0[:, :, :1])))


class Slow:
    """A previewer that counts the rows that it decodes."""

    def __init__(self, picture):
        self.picture, self.rows = picture, 0

    def decode_latent_to_preview(self, x0):
        assert x0.shape[0] == 1
        self.rows += 1
        return self.picture


def test_decoding_takes_a_twentieth_of_the_time_at_most_and_the_last_grid_is_sent_again(sent, monkeypatch):
    clock = iter([0.0, 1.0, 20.9, 21.1, 22.1])
    monkeypatch.setattr(previews, "perf_counter", lambda: next(clock))
    preview = Preview(Slow(Image.new("RGB", (8, 8))), lambda *args: None)
    seen = []
    for step in range(3):
        preview(step, torch.zeros(50, 4, 8, 8), None, 3)
        seen.append(preview.previewer.rows)
    assert seen == [previews.MOST, previews.MOST, 2 * previews.MOST]
    assert len(sent) == 3 and sent[0][2] is sent[1][2] is not sent[2][2]


def test_a_previewer_that_makes_no_pictures_and_packed_latents_are_left_to_the_host(sent):
    Preview(Slow(torch.zeros(8, 8, 3)), lambda *args: None)(0, torch.zeros(2, 4, 8, 8), None, 1)
    assert sent == []
    callback = object()
    handed = outer_sample(lambda *args: args[5], torch.zeros(2, 1, 99), None, None, None, None, callback)
    assert handed is callback


def test_a_model_that_nothing_of_ours_is_on_stays_as_it_is(sd):
    model = with_previews(ipca(sd.model, strength=0.0))
    assert not model.wrappers.get(previews.WrappersMP.OUTER_SAMPLE)


@pytest.mark.parametrize(
    ("count", "size", "columns"), [(2, (64, 64), 2), (4, (64, 64), 2), (9, (64, 64), 3), (3, (96, 32), 1)]
)
def test_the_grid_is_near_square_in_reading_order(count, size, columns):
    frames = [Image.new("RGB", size, (20 * n, 0, 0)) for n in range(count)]
    grid = draw_preview(frames, 240)
    assert max(grid.size) <= 240
    across, down = grid.width / columns, grid.height / -(-count // columns)
    for n in range(count):
        at = (int((n % columns + 0.8) * across), int((n // columns + 0.8) * down))
        assert grid.getpixel(at) == (20 * n, 0, 0)
