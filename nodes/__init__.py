"""The nodes: schema, tooltips and validation. The computation lives in `story`, `svr` and `attention`."""

from comfy_api.latest import ComfyExtension, io

from .attention_view import OneStoryAttentionRecorder, OneStoryAttentionView
from .between import OneStoryInBetweens
from .board import OneStoryBoard
from .book import OneStoryBook
from .cast import OneStoryCast
from .delay import OneStoryDelay
from .face import OneStoryFace
from .film import OneStoryJoinClips, OneStoryTransitions
from .frames import OneStoryCollectFrames, OneStoryFrames
from .image_adapter import OneStoryImageAdapter
from .inspect import OneStoryInspect
from .ipca import OneStoryIPCA
from .latent import OneStoryLatent
from .load import OneStoryLoad
from .metrics import OneStoryMetrics
from .passes import OneStoryRuns
from .photomaker import OneStoryLoadFastComposer, OneStoryPhotoMaker
from .prompt import OneStoryPrompt
from .region_masks import OneStoryRegionMasks
from .regions import OneStoryRegions
from .reweight import OneStoryNaiveReweight, OneStorySVR
from .runs import OneStoryJoin, OneStorySplit
from .script import OneStoryScript
from .self_attention import OneStorySelfAttention
from .takes import OneStoryPickTakes


class OneStoryExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            OneStoryScript,
            OneStoryLoad,
            OneStoryPrompt,
            OneStoryNaiveReweight,
            OneStorySVR,
            OneStoryDelay,
            OneStoryIPCA,
            OneStorySelfAttention,
            OneStoryRegions,
            OneStoryImageAdapter,
            OneStoryPhotoMaker,
            OneStoryLoadFastComposer,
            OneStoryRuns,
            OneStoryLatent,
            OneStorySplit,
            OneStoryJoin,
            OneStoryPickTakes,
            OneStoryBoard,
            OneStoryBook,
            OneStoryCast,
            OneStoryFace,
            OneStoryFrames,
            OneStoryCollectFrames,
            OneStoryInBetweens,
            OneStoryTransitions,
            OneStoryJoinClips,
            OneStoryInspect,
            OneStoryAttentionRecorder,
            OneStoryAttentionView,
            OneStoryRegionMasks,
            OneStoryMetrics,
        ]


async def comfy_entrypoint() -> OneStoryExtension:
    return OneStoryExtension()
