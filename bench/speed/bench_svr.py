"""SVR against one full SVD for every frame, encoder and call."""

import pytest
import released
import stories
from onestory.svr.reweight import singular_value_reweight


@pytest.mark.parametrize("family", ["SD1.5", "SDXL"])
@pytest.mark.parametrize("frames", [2, 5, 10, 20])
def bench_svr(compare, pytestconfig, frames, family):
    if pytestconfig.getoption("quick") and frames > 5:
        pytest.skip("the papers' formulation takes a minute")
    record = stories.record(frames, family)
    embeds = stories.embeddings(record)
    if frames == 2:
        off = (singular_value_reweight(embeds, record) - released.singular_value_reweight(embeds, record)).norm()
        assert off < 1e-5 * embeds.norm(), "not the same thing is compared"
    compare(
        f"SVR, {frames} frames, {family}",
        lambda: singular_value_reweight(embeds, record),
        "papers' formulation",
        lambda: released.singular_value_reweight(embeds, record),
        goal=1 / 30 if (frames, family) == (10, "SDXL") else None,
        most_rounds=7,
    )
