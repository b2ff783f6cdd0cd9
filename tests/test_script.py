"""Story Script: what a text means, and the sentence for what it can't mean."""

import pytest
from onestory.story.script import Character, Frame, parse_script

FOX = "a red fox"
CAST = "[Mia] a girl in a red coat\n[Tom] a boy with a kite"
MIA, TOM = "a girl in a red coat", "a boy with a kite"


@pytest.mark.parametrize(
    ("line", "prompt", "caption"),
    [
        ("running through snow", "running through snow", "running through snow"),
        ("running # Off we go!", "running", "Off we go!"),
        ("  running   #   Off we go!  ", "running", "Off we go!"),
        ("running # one # two", "running", "one # two"),
        ("running #", "running", ""),
        ("running # ", "running", ""),
        ("running\t#\tOff", "running", "Off"),
        ("route#66", "route#66", "route#66"),
        ("#1 in the race", "#1 in the race", "#1 in the race"),
        ("at C# and D#", "at C# and D#", "at C# and D#"),
        (r"number \# one", "number # one", "number # one"),
        (r"number \# one # We're \# 1", "number # one", "We're # 1"),
        (r"a \[sign] here", "a [sign] here", "a [sign] here"),
        ("a [sign] here", "a [sign] here", "a [sign] here"),
        ("[close-up] a face", "[close-up] a face", "[close-up] a face"),
        (r"a cat \(sitting:1.2\)", r"a cat \(sitting:1.2\)", r"a cat \(sitting:1.2\)"),
        ("(running:1.2), embedding:foo", "(running:1.2), embedding:foo", "(running:1.2), embedding:foo"),
        ("🦊 在雪中奔跑 # 冬天", "🦊 在雪中奔跑", "冬天"),
    ],
)
def test_a_frame_of_a_story_about_one(line, prompt, caption):
    assert parse_script(FOX, line).frames == (Frame(FOX, prompt, caption, ("",)),)


@pytest.mark.parametrize(
    ("line", "identity", "prompt", "caption", "characters"),
    [
        ("[Mia] reading", MIA, "reading", "Mia reading", ("Mia",)),
        ("[Mia] and [Tom] reading", f"{MIA} and {TOM}", "reading", "Mia and Tom reading", ("Mia", "Tom")),
        ("[Tom] and [Mia] reading", f"{MIA} and {TOM}", "reading", "Tom and Mia reading", ("Mia", "Tom")),
        ("[Mia], [Tom] reading", f"{MIA} and {TOM}", "reading", "Mia, Tom reading", ("Mia", "Tom")),
        ("[Mia] & [Tom] reading", f"{MIA} and {TOM}", "reading", "Mia & Tom reading", ("Mia", "Tom")),
        ("reading with [Mia]", MIA, f"reading with {MIA}", "reading with Mia", ("Mia",)),
        ("[Mia] waves at [Tom]", f"{MIA} and {TOM}", f"waves at {TOM}", "Mia waves at Tom", ("Mia", "Tom")),
        ("[ Mia ] reading", MIA, "reading", "Mia reading", ("Mia",)),
        ("[Mia] reading # Story time", MIA, "reading", "Story time", ("Mia",)),
        ("[NC] a quiet forest", "", "a quiet forest", "a quiet forest", ()),
        ("[NC] a statue of [Mia]", "", f"a statue of {MIA}", "a statue of Mia", ()),
        ("a quiet forest", "", "a quiet forest", "a quiet forest", ()),
        (r"[Mia] at a sign \[Tom]", MIA, "at a sign [Tom]", "Mia at a sign [Tom]", ("Mia",)),
        (r"[Mia] at a sign # says [Tom]", MIA, "at a sign", "says [Tom]", ("Mia",)),
    ],
)
def test_a_frame_of_a_story_about_several(line, identity, prompt, caption, characters):
    assert parse_script(CAST, line).frames == (Frame(identity, prompt, caption, characters),)


@pytest.mark.parametrize(
    ("identity", "characters"),
    [
        ("a red fox", [("", "a red fox")]),
        ("\n  a red fox  \n\n in the style of Beatrix Potter\n", [("", "a red fox in the style of Beatrix Potter")]),
        (r"a fox in a \[box], no. \# 1", [("", "a fox in a [box], no. # 1")]),
        ("[Mia] a girl", [("Mia", "a girl")]),
        ("\n[Mia]a girl\n\n  [Tom]  a boy \n", [("Mia", "a girl"), ("Tom", "a boy")]),
        ("[Mia] a girl with [glasses]", [("Mia", "a girl with [glasses]")]),
        ("[小明] 一个男孩", [("小明", "一个男孩")]),
    ],
)
def test_the_identity_names_the_characters(identity, characters):
    frames = "\n".join(f"[{name}] x" for name, _ in characters)
    assert parse_script(identity, frames).characters == tuple(Character(*c) for c in characters)


@pytest.mark.parametrize("break_", ["\n", "\r\n", "\n\n \n\t\n"])
def test_every_line_that_is_not_blank_is_a_frame(break_):
    story = parse_script(FOX, break_ + break_.join(["one", "two # 2", "three"]) + break_)
    assert [(f.prompt, f.caption) for f in story.frames] == [("one", "one"), ("two", "2"), ("three", "three")]
    assert story.warnings == ()


@pytest.mark.parametrize(
    ("identity", "frames", "warnings"),
    [
        (FOX, "running", []),
        (FOX, "[close-up] running with [Mia] and [Mia]", ["Frame 1 mentions [close-up]", "Frame 1 mentions [Mia]"]),
        (FOX, "[NC] a forest", []),
        (CAST, "[Mia] runs\n[Mia] sits\n[Tom] runs", ["[Tom] appears in only one frame"]),
        (CAST, "[Mia] runs\n[Mia] sits", ["[Tom] appears in no frame"]),
        (CAST, "[Mia] and [Tom] run\n[Mia] hugs [Tom]", []),
    ],
)
def test_what_is_likely_a_mistake_gives_a_warning(identity, frames, warnings):
    found = parse_script(identity, frames).warnings
    assert len(found) == len(warnings)
    assert all(text.startswith(start) for text, start in zip(found, warnings))


@pytest.mark.parametrize(
    ("identity", "frames", "says"),
    [
        ("", "running", "identity is empty"),
        (" \n\t\n", "running", "identity is empty"),
        (FOX, "", "no frames"),
        (FOX, " \n\n\t", "no frames"),
        (FOX, "running\n# only a caption", "Frame 2 (“only a caption”) has no prompt"),
        (FOX, "#", "Frame 1 (“”) has no prompt"),
        (FOX, "[NC]", "Frame 1 (“”) has no prompt"),
        (CAST, "[Mia]", "Frame 1 (“[Mia]”) has no prompt"),
        (CAST, "[Mia] and [Tom] # Friends", "Frame 1 (“[Mia] and [Tom]”) has no prompt"),
        (CAST, "[Mia] runs\n[Max] runs", "Frame 2 mentions [Max], but the identity describes only [Mia], [Tom]"),
        (CAST, "[NC] a statue of [Max]", "Frame 1 mentions [Max]"),
        (CAST, "[mia] runs", "Frame 1 mentions [mia]"),
        ("[Mia] a girl\na boy", "[Mia] runs", "The identity line “a boy” names no character"),
        ("[Mia] a girl\n[Mia] a boy", "[Mia] runs", "[Mia] is described twice"),
        ("[Mia] a girl\n[Tom]", "[Mia] runs", "[Tom] has no description"),
        ("[NC] nobody", "runs", "can't be named [NC]"),
    ],
)
def test_what_can_not_be_understood_gives_one_sentence(identity, frames, says):
    with pytest.raises(ValueError) as error:
        parse_script(identity, frames)
    assert says in str(error.value)
    assert str(error.value).endswith((".", "”."))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("frames", [1, 2, 100])
def test_a_story_has_as_many_frames_as_lines(frames):
    story = parse_script(FOX, "\n".join(f"doing thing {j}" for j in range(frames)))
    assert [f.prompt for f in story.frames] == [f"doing thing {j}" for j in range(frames)]
