"""The stories that the project's pictures tell, in the Story World's words, with what suits its checkpoint."""

from typing import NamedTuple

from ..world.drawing.captions import ANYBODY

Look = dict[str, str]
"""How a character of the Story World looks, by attribute; what is not said is plain."""


class Picture(NamedTuple):
    """A picture: the story, its seed, what differs from the workflow's settings, by node kind, and its cast's looks."""

    identity: str
    frames: str
    seed: int = 1
    board: dict = {}
    others: dict[str, dict] = {}
    cast: dict[str, Look] = {}


FOX_AND_OWL = {
    "Pip": {"species": "fox", "colour": "red", "headwear": "beanie", "neckwear": "scarf", "accent": "green"},
    "Odile": {"species": "owl", "colour": "purple", "headwear": "crown", "neckwear": "bow tie", "accent": "yellow"},
}
FOX_AND_OWL_SAID = (
    "[Pip] a red fox with a green beanie and a green scarf\n[Odile] a purple owl with a yellow bow tie and a crown"
)
FOX_AND_OWL_FRAMES = (
    "[Pip] and [Odile] standing in the forest by day # “Ready?”\n"
    "[Pip] holding a balloon in the snow by day # Pip plays,\n"
    "[Odile] reading a book in the library at night # Odile reads,\n"
    "[Pip] and [Odile] carrying a lantern in the city at night # and both come home."
)

STORIES = {
    "Try It - Story World": Picture(
        "an orange fox with a top hat and a scarf",
        "in the forest # Once upon a time …\nin the city # … in the big city …\non the beach # … it came to the sea …\n"
        "in the library # … read all about it …\non the moon # The end.",
        seed=5,
    ),
    "One Prompt One Story": Picture(
        "an orange fox with a blue scarf",
        "standing in the forest by day # Once upon a time\nholding a balloon in the city at sunset # in the city,\n"
        "eating an ice cream on the beach by day # then by the sea,\nreading a book in the library at night # a fox …",
        seed=4,
    ),
    "Story vs Separate Prompts": Picture(
        "a fox with a scarf",
        "in the forest\nin the city\non the moon",
        seed=5,
        board={"columns": 1, "captions": False},
    ),
    "Comic Page": Picture(
        "a blue cat with a red scarf and a crown",
        "standing in a meadow by day # “Out!”\nholding a balloon in the mountains by day # Up…\n"
        "under an umbrella in the desert by day # …and on.\neating an ice cream on the beach at sunset # “At last.”\n"
        "standing in the city at night # So big.\nreading a book in a bedroom at night # Home.",
        seed=8,
    ),
    "Two Characters": Picture(
        "[Ruby] a red fox with a green scarf\n[Olga] a purple owl with a crown",
        "[Ruby] holding a balloon in the forest by day # Ruby plays by day,\n"
        "[Olga] standing in the forest at night # Olga is up at night.\n"
        "[Ruby] reading a book in the library by day # Ruby reads of owls,\n"
        "[Olga] carrying a lantern in the snow at night # Olga looks for foxes.",
        seed=2,
    ),
    "Two Characters, Each in Place": Picture(FOX_AND_OWL_SAID, FOX_AND_OWL_FRAMES, seed=1),
    "Two Characters, Found and Kept": Picture(
        "[Pip] a gray mouse with a red top hat and a red bow tie\n[Odile] a purple owl with a yellow scarf and a crown",
        "[Pip] and [Odile] standing in a meadow by day # “Shall we?”\n"
        "[Pip] holding a balloon in the snow by day # Up,\n"
        "[Pip] and [Odile] eating an ice cream on the beach at sunset # down,\n"
        "[Pip] and [Odile] carrying a lantern in the city at night # and home.",
        seed=1,
        others={"OneStoryPrompt": {"identity": "together", "window": 1}},
    ),
    "A Character from a Picture": Picture(
        f"[Pip] {ANYBODY}",
        "[Pip] standing in a meadow by day # Good morning.\n[Pip] under an umbrella in the desert by day # Hot.\n"
        "[Pip] holding a balloon in the city by day # So many people.\n"
        "[Pip] reading a book in the mountains at night # Better.",
        seed=3,
        cast={
            "Pip": {
                "species": "bear",
                "colour": "yellow",
                "headwear": "party hat",
                "neckwear": "bow tie",
                "accent": "blue",
            }
        },
    ),
    "Two Characters from Two Pictures, Each in Place": Picture(
        f"[Pip] {ANYBODY} on the left\n[Odile] {ANYBODY} on the right", FOX_AND_OWL_FRAMES, seed=1, cast=FOX_AND_OWL
    ),
    "Long Story in Runs": Picture(
        "a striped purple cat with a yellow bow tie and a crown",
        "standing in a meadow by day # A walk\nstanding in the forest by day # through the woods\n"
        "standing in the city at sunset # and the town\nstanding on the beach by day # to the sea.\n"
        "standing under the sea by day # Further down,\nstanding in the desert by day # dry again,\n"
        "standing in the mountains at sunset # up again,\nstanding in the snow by day # cold again.\n"
        "standing on a farm at night # “Hello, cow.”",
    ),
    "Long Story in One Sampler": Picture(
        "a red robot with a yellow scarf and a crown",
        "standing in a meadow by day # Out…\nstanding in the city by day # …and on.\n"
        "standing in the forest at sunset # Deep.\nstanding in the mountains by day # High.\n"
        "standing in the snow at night # Cold.\nstanding in the desert by day # Hot.\n"
        "standing on the beach at sunset # Oh!\nstanding on a farm by day # Mooh.\n"
        "standing on the moon at night # “Hello?”",
        seed=3,
    ),
    "Self-Attention with LoRA and ControlNet": Picture(
        "a pink rabbit with a green scarf",
        "standing in a meadow by day # Out\nreading a book in the library at night # and in,\n"
        "eating an ice cream on the beach at sunset # down\ncarrying a lantern on the moon at night # and up.",
        seed=3,
    ),
    "Redraw a Frame": Picture(
        "a yellow bear with a red bow tie and a crown",
        "standing in a meadow by day # Morning\neating an ice cream on the beach by day # by the sea,\n"
        "holding a balloon in the snow at sunset # “Brr!”\nreading a book in a bedroom at night # Home.",
        seed=2,
    ),
    "Inpaint a Frame": Picture(
        "an orange cat with a black top hat and a black bow tie",
        "standing in the city by day # Well dressed\nreading a book in the library at night # and well read,\n"
        "under an umbrella in the desert by day # too hot\n"
        "eating an ice cream on a farm at sunset # and then just right.",
        seed=6,
    ),
    "Takes": Picture(
        "a blue bear with a yellow scarf",
        "standing in the forest by day # Out\nholding a balloon in the mountains by day # and up…\n"
        "standing on the moon at night # …and up.\nreading a book in a bedroom at night # Good night.",
        seed=7,
    ),
    "Finish at Twice the Size": Picture(
        "a purple rabbit with a yellow bow tie and a crown",
        "standing in a meadow by day\nholding a balloon in the snow by day\nreading a book on the beach at sunset\n"
        "carrying a lantern in the city at night",
        seed=9,
        others={"OneStoryLatent": {"width": 96, "height": 96}},
    ),
    "Comic Book": Picture(
        "[Ruby] a red fox with a green scarf\n[Olga] a purple owl with a yellow bow tie and a crown",
        "[Ruby] standing in the forest by day # Ruby: “Hello? Anyone here?”\n"
        "[Olga] standing in the forest at night # Olga: “Hoo.”\n"
        "[Ruby] reading a book in the library by day # Ruby: “Owls say hoo.” Page one.\n"
        "[Olga] carrying a lantern in the snow at night # Olga: “Hoo knows?”",
        seed=1,
        board={"title": "The Fox and the Owl"},
    ),
    "Flux": Picture(
        "a red fox with a blue scarf",
        "standing in the forest by day # Good morning.\nholding a balloon in the city by day # Hello?\n"
        "reading a book in the library at night # Hm.\neating an ice cream on the beach at sunset # Ah.\n"
        "under an umbrella in the snow by day # Brr!",
        seed=4,
    ),
    "Stable Diffusion 3.5": Picture(
        "a blue owl with a red top hat and a red bow tie and glasses",
        "standing in the snow by day # Brr.\nreading a book in the library at night # Aha!\n"
        "holding a balloon in the mountains by day # Up…\neating an ice cream on the beach at sunset # …and down.\n"
        "carrying a lantern in a bedroom at night # Home.",
        seed=2,
    ),
}


PLACES = (
    "an orange fox with a blue scarf",
    "holding a balloon in the forest by day # In the forest,\nholding a balloon in the city by day # in the city,\n"
    "holding a balloon on the beach at sunset # by the sea,\nholding a balloon in the snow at night # and home.",
)
STORIES["Story to Film"] = Picture(*PLACES, seed=4, others={"OneStoryInBetweens": {"count": 4}})
STORIES["Story to Film with Wan"] = Picture(*PLACES, seed=4, board={"columns": 2})
STORIES["Story with an Edit Model"] = Picture(
    "[Nell] a blue cat with a red top hat and a red bow tie\n[Bruno] a red fox with a green scarf",
    "[Nell] under an umbrella in the city by day # Nell: “Rain again.”\n"
    "[Bruno] standing in the forest by day # Bruno has a view on weather.\n"
    "[Nell] eating an ice cream on the beach at sunset # Nell: “At last.”\n"
    "[Bruno] holding a balloon in the snow by day # Bruno: “Better.”",
    seed=2,
    board={"columns": 2},
    others={
        "OneStoryFrames": {"template": "{identity} {frame}", "same_seed": True},
        "EmptySD3LatentImage": {"width": 128, "height": 128},
        "ImageScaleToTotalPixels": {"megapixels": 0.02},
    },
)


FILM = Picture(
    "an orange fox with a blue scarf",
    "holding a balloon in the forest by day\nholding a balloon in the city at night\n"
    "holding a balloon on the beach by day",
    seed=4,
    others={"OneStoryInBetweens": {"count": 4}, "KSampler": {"steps": 12}},
)

SHEET = 1000
"""How wide the pages of pictures in docs/ are."""
COMIC = Picture(
    "[Mimi] a pink mouse with a blue bow tie and a crown\n[Fritz] a green frog with a red scarf",
    "[Mimi] holding a balloon in a meadow by day # Mimi: “Up we go!”\n"
    "[Fritz] standing in the forest by day # Fritz: “Wait for me!”\n"
    "[Mimi] under an umbrella in the mountains by day # Mimi: “What a view.”\n"
    "[Fritz] holding a balloon on the beach at sunset # Fritz: “Found something.”\n"
    "[Mimi] carrying a lantern in the city at night # Mimi: “Fritz?”\n"
    "[Mimi] and [Fritz] reading a book in a bedroom at night # Fritz: “I came by bus.”",
    seed=1,
    board={"title": "The Balloon", "frames_per_page": 6, "page_width": SHEET},
)
BY_PICTURE = (
    Picture(
        f"[Pip] {ANYBODY}",
        "[Pip] standing in the forest by day\n[Pip] eating an ice cream on the beach at sunset\n"
        "[Pip] reading a book in the library by day\n[Pip] carrying a lantern in the snow at night",
        seed=3,
        cast={
            "Pip": {
                "species": "rabbit",
                "colour": "purple",
                "headwear": "party hat",
                "neckwear": "scarf",
                "accent": "yellow",
            }
        },
    ),
    Picture(
        f"[Pip] {ANYBODY}",
        "[Pip] holding a balloon in the city by day\n[Pip] under an umbrella in the desert by day\n"
        "[Pip] standing on a farm at sunset\n[Pip] standing on the moon at night",
        seed=3,
        cast={
            "Pip": {
                "species": "frog",
                "colour": "green",
                "pattern": "spotted",
                "headwear": "top hat",
                "neckwear": "bow tie",
                "eyes": "glasses",
                "accent": "red",
            }
        },
    ),
)
TWO = Picture(
    FOX_AND_OWL_SAID,
    "[Pip] and [Odile] standing in the forest by day\n[Pip] and [Odile] holding a balloon in the city by day\n"
    "[Pip] and [Odile] eating an ice cream on the beach at sunset\n"
    "[Pip] and [Odile] carrying a lantern in the snow at night",
    seed=2,
    others={"OneStoryPrompt": {"window": 1}, "OneStoryRegions": {"layout": "Pip: left half\nOdile: right half"}},
)
OPEN = Picture(
    "an orange fox with a blue scarf",
    "standing in the forest by day\nholding a balloon in the city by day\neating an ice cream on the beach at sunset\n"
    "reading a book in the library at night",
    seed=4,
)
IPCA = Picture("a fox with a scarf", "in the forest\nin the city\non the beach\nin the library", seed=7)
SPREAD = Picture(
    "a fox with a scarf",
    "in the forest by day\nin the city by day\non the beach at sunset\nin the snow at night",
    seed=7,
    others={
        "OneStoryPrompt": {"mode": "separate prompts"},
        "OneStoryLatent": {"noise": "different"},
        "OneStorySelfAttention": {"sampling_rate": 1.0, "share": "the character"},
    },
)
STEP = Picture(
    "an orange fox with a blue scarf",
    "standing in a meadow by day\nstanding in a meadow at sunset",
    seed=4,
    others={"OneStoryInBetweens": {"count": 3}},
)
BOOK = Picture(*COMIC[:2], seed=COMIC.seed, board={"title": "The Balloon", "frames_per_page": 3, "page_width": 640})
