"""Story Script: what a text means, and the sentence for what it can't mean."""

import pytest
from onestory.story.script import Character, Frame, cast_list, parse_script

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
        ("running #Off we go!", "running", "Off we go!"),
        ("running ＃Off we go!", "running", "Off we go!"),
        ("在雪中奔跑　＃冬天", "在雪中奔跑", "冬天"),
        ("ranked #1 in the race #Well", "ranked #1 in the race", "Well"),
        ("room # 7", "room", "7"),
        ("running \\#off", "running #off", "running #off"),
        ("running \\＃off", "running ＃off", "running ＃off"),
        ("route#66", "route#66", "route#66"),
        ("#1 in the race", "#1 in the race", "#1 in the race"),
        ("at C# and D#", "at C# and D#", "at C# and D#"),
        (r"number \# one", "number # one", "number # one"),
        (r"number \# one # We're \# 1", "number # one", "We're # 1"),
        (r"a \[sign] here", "a [sign] here", "a [sign] here"),
        ("a [sign] here", "a [sign] here", "a [sign] here"),
        ("[close-up] a face", "[close-up] a face", "[close-up] a face"),
        (r"a \[sign\] here", "a [sign] here", "a [sign] here"),
        (r"a cat \(sitting:1.2\)", r"a cat \(sitting:1.2\)", "a cat (sitting:1.2)"),
        ("(running:1.2), embedding:foo", "(running:1.2), embedding:foo", "running"),
        ("(running:1.2) # (running:1.2) \\(fast\\)", "(running:1.2)", "(running:1.2) \\(fast\\)"),
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
        ("[nc] a quiet forest", "", "a quiet forest", "a quiet forest", ()),
        ("[ NC ], a quiet forest", "", "a quiet forest", "a quiet forest", ()),
        ("a quiet forest [NC]", "", "a quiet forest", "a quiet forest", ()),
        ("A quiet forest, [Nc].", "", "A quiet forest.", "A quiet forest.", ()),
        ("a quiet forest, [NC], rain", "", "a quiet forest, rain", "a quiet forest, rain", ()),
        ("［ＮＣ］a quiet forest", "", "a quiet forest", "a quiet forest", ()),
        ("寂静的森林【nc】", "", "寂静的森林", "寂静的森林", ()),
        ("a quiet forest", "", "a quiet forest", "a quiet forest", ()),
        (r"[Mia] at a sign \[Tom]", MIA, "at a sign [Tom]", "Mia at a sign [Tom]", ("Mia",)),
        (r"[Mia] at a sign # says [Tom]", MIA, "at a sign", "says [Tom]", ("Mia",)),
        ("[Mia] at home #She reads a letter", MIA, "at home", "She reads a letter", ("Mia",)),
        ("[mia] reading", MIA, "reading", "Mia reading", ("Mia",)),
        ("［ＭＩＡ］ reading", MIA, "reading", "Mia reading", ("Mia",)),
        ("【Mia】〔Tom〕reading", f"{MIA} and {TOM}", "reading", "Mia Tom reading", ("Mia", "Tom")),
        (r"[Mia] at a sign \【Tom】", MIA, "at a sign 【Tom】", "Mia at a sign 【Tom】", ("Mia",)),
        ("[Mia]reading with[Tom]outside", f"{MIA} and {TOM}", f"reading with {TOM} outside",
         "Mia reading with Tom outside", ("Mia", "Tom")),
        ("[Mia] hands [Tom] a letter", f"{MIA} and {TOM}", f"hands {TOM} a letter", "Mia hands Tom a letter",
         ("Mia", "Tom")),
        ("[Mia] in a [red:blue:0.5] [hat|cap]", MIA, "in a [red:blue:0.5] [hat|cap]", "Mia in a blue cap", ("Mia",)),
    ],
)  # fmt: skip
def test_a_frame_of_a_story_about_several(line, identity, prompt, caption, characters):
    (frame,) = parse_script(CAST, line).frames
    assert frame._replace(parts=()) == Frame(identity, prompt, caption, characters)
    assert "".join(text for text, _ in frame.parts) in ("", prompt)
    assert [(text, name) for text, name in frame.parts if name] == [
        (text, name) for text, name in sorted(((MIA, "Mia"), (TOM, "Tom")), key=lambda c: prompt.find(c[0]))
        if text in prompt
    ]  # fmt: skip


JUMPING = ("[Mia], jumping", "[Mia]: jumping", "[Mia] - jumping", "[Mia] — jumping", "[Mia]，jumping", "[Mia]! jumping")
TOGETHER = (
    "[Mia]和[Tom]跑步", "[Mia]、[Tom]跑步", "[Mia]と[Tom]が跑步", "[Mia]와 [Tom]가 跑步", "[Mia] y [Tom] 跑步",
    "[Mia], and [Tom]: 跑步", "[Mia] AND [Tom] 跑步", "[Mia] et [Tom] 跑步", "[Mia] und [Tom] 跑步",
    "[Mia] & [Tom] 跑步",
    "[Mia] и [Tom] 跑步", "[Mia] و[Tom] 跑步", "[Mia]/[Tom] 跑步", "[Mia][Tom]跑步", "[Tom] ve [Mia], 跑步",
)  # fmt: skip


@pytest.mark.parametrize("line", JUMPING)
def test_a_name_at_the_front_leaves_no_punctuation(line):
    assert parse_script(CAST, line).frames[0][:2] == (MIA, "jumping")


@pytest.mark.parametrize("line", TOGETHER)
def test_names_at_the_front_leave_no_conjunction_in_any_language(line):
    assert parse_script(CAST, line).frames[0][:2] == (f"{MIA} and {TOM}", "跑步")


@pytest.mark.parametrize(
    ("line", "prompt"),
    [
        ("[Mia]'s umbrella", f"{MIA}'s umbrella"),
        ("[Mia]’s umbrella", f"{MIA}’s umbrella"),
        ("[Mia] and [Tom]'s house", f"{MIA} and {TOM}'s house"),
        ("[Mia]s Schirm", f"{MIA}s Schirm"),
        ("[Mia]-shaped balloon", f"{MIA}-shaped balloon"),
        ("[Mia]的雨伞", f"{MIA}的雨伞"),
        ("[Mia]の傘", f"{MIA}の傘"),
        ("[Mia] and her dog", "and her dog"),
        ("[Mia] eats [Tom]'s cake", f"eats {TOM}'s cake"),
        ("[Mia] hugs [Tom]", f"hugs {TOM}"),
        ("[Mia]打[Tom]", f"打{TOM}"),
    ],
)
def test_what_belongs_to_a_name_keeps_its_description(line, prompt):
    assert parse_script(CAST, line).frames[0].prompt == prompt


@pytest.mark.parametrize("line", ["she runs home", "home, [Mia]", "[mia] home"])
def test_the_only_named_character_is_in_every_frame_that_does_not_say_nobody(line):
    story = parse_script(f"[Mia] {MIA}", f"{line}\n[Mia] sits\n[NC] a street")
    assert [f.characters for f in story.frames] == [("Mia",), ("Mia",), ()]
    assert [f.identity for f in story.frames] == [MIA, MIA, ""]
    assert story.warnings == ()


def test_names_that_differ_in_case_only_are_two_characters():
    cast = "[Mia] a girl\n[mia] a cat"
    frames = parse_script(cast, "[Mia] runs\n[mia] runs\n[Mia] and [mia] run").frames
    assert [f.characters for f in frames] == [("Mia",), ("mia",), ("Mia", "mia")]
    with pytest.raises(ValueError, match=r"^Frame 1 mentions \[MIA\], which may be \[Mia\] or \[mia\]: "):
        parse_script(cast, "[MIA] runs")


@pytest.mark.parametrize(
    ("line", "caption"),
    [
        ("(deep (white:1.5) snow:1.1), ((masterpiece))", "deep white snow, masterpiece"),
        (r"a fox \(cartoon\) (quietly) reading", "a fox (cartoon) (quietly) reading"),
        ("<lora:foxes:0.8>, sailing <lyco:sea:1>, fast", "sailing, fast"),
        ("sailing embedding:sea.safetensors, (embedding:boat:1.2) fast", "sailing, fast"),
        ("sailing BREAK fast", "sailing fast"),
        ("SUMMER BREAK AT SEA", "SUMMER BREAK AT SEA"),
        ("a __colour__ boat", "a boat"),
        ("<3 a_b 100% | fox", "<3 a_b 100% | fox"),
        ("at 10:30 (noon)", "at 10:30 (noon)"),
        ("embedding:fox", ""),
        ("(" * 1000 + "a" + ":1.1)" * 1000, None),
    ],
)
def test_a_caption_made_from_a_prompt_is_readable(line, caption):
    frame = parse_script(FOX, line).frames[0]
    assert frame.prompt == line
    assert caption is None or frame.caption == caption


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
        ("【米娅】一个女孩\n［小明］：一个男孩", [("米娅", "一个女孩"), ("小明", "一个男孩")]),
        ("[Mia]: a girl\n[Tom] - a boy", [("Mia", "a girl"), ("Tom", "a boy")]),
        ("[day:night:0.5] a fox", [("", "[day:night:0.5] a fox")]),
        ("\ufeff[Mia] a girl\u200b\u2028\u200e[\u200bTom] a boy", [("Mia", "a girl"), ("Tom", "a boy")]),
    ],
)
def test_the_identity_names_the_characters(identity, characters):
    frames = "\n".join(f"[{name}] x" for name, _ in characters)
    assert parse_script(identity, frames).characters == tuple(Character(*c) for c in characters)


INVISIBLE = ("\ufeff", "\u200b", "\u200d", "\u200e", "\u2060", "\u00a0", "\u3000", "\u2800", "\u00ad")


@pytest.mark.parametrize(
    "break_", ["\n", "\r\n", "\r", "\n\n \n\t\n", "\u2028", "\u2029", "\x85", *(f"{c}\n{c}\n{c}" for c in INVISIBLE)]
)
def test_every_line_that_is_not_blank_is_a_frame(break_):
    story = parse_script(FOX, break_ + break_.join(["one", "two # 2", "three"]) + break_)
    assert [(f.prompt, f.caption) for f in story.frames] == [("one", "one"), ("two", "2"), ("three", "three")]
    assert story.warnings == ()


def test_joiners_inside_a_line_stay():
    """They join Persian letters and make one picture of several emoji."""
    line = "می‌خواند 👩\u200d👩\u200d👧"
    assert parse_script(FOX, f"\u200b{line}\u200c").frames[0].prompt == line


@pytest.mark.parametrize(
    ("identity", "frames", "warnings"),
    [
        (FOX, "running", []),
        (FOX, "[close-up] running with [Mia] and [Mia]", ["Frame 1 mentions [close-up]", "Frame 1 mentions [Mia]"]),
        (FOX, "[NC] a forest", []),
        (CAST, "[Mia] runs\n[Mia] sits\n[Tom] runs", ["[Tom] appears in only one frame"]),
        (CAST, "[Mia] runs\n[Mia] sits", ["[Tom] appears in no frame"]),
        (CAST, "[Mia] and [Tom] run\n[Mia] hugs [Tom]", []),
        (CAST, "[Mia] and [Tom] run\nshe runs home through the rain\n[NC] a street\n[Mia] hugs [Tom]",
         ["Frame 2 (“she runs home through the rain”) mentions no character, so it shows nobody: write [Mia] or [Tom] "
          "where they belong, or [NC] if nobody is meant."]),
        (CAST, "she runs\n[Mia] and [Tom] run\nhe runs\n[Mia] hugs [Tom]\nhome",
         ["Frames 1, 3 and 5 mention no character, so they show nobody: write [Mia] or [Tom] where"]),
        ("a fox, <lora:fox:0.8>", "runs <lora:fox:0.8> BREAK a __colour__ sky\n[a:b:0.5] AND [a|b], SIT AND WAIT",
         ["ComfyUI reads <lora:fox:0.8>, BREAK, __colour__, [a:b:0.5], AND and [a|b] as plain words, since"]),
        (FOX, "(runs:1.3) embedding:fox {a|b} <3 [close up:up]", ["Frame 1 mentions [close up:up]"]),
    ],
)  # fmt: skip
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
        (CAST, "[Miya] runs", "[Mia], [Tom]: did you mean [Mia]? If not, add a line “[Miya] …” to the identity"),
        (CAST, "[NC] a statue of [Mia]", "Frame 1 has [NC], which shows nobody, and mentions [Mia]: delete one"),
        ("[nc] nobody", "runs", "can't be named [nc]"),
        (CAST, "[Mia] # " + "x " * 350, "Frame 1 (“[Mia]”) has no prompt"),
        ("[Mia] a girl\n" + "x " * 350, "[Mia] runs", "x x…” names no character"),
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
    assert "\n" not in str(error.value) and len(str(error.value)) < 250


@pytest.mark.parametrize("frames", [1, 2, 100])
def test_a_story_has_as_many_frames_as_lines(frames):
    story = parse_script(FOX, "\n".join(f"doing thing {j}" for j in range(frames)))
    assert [f.prompt for f in story.frames] == [f"doing thing {j}" for j in range(frames)]


@pytest.mark.parametrize(
    ("identity", "frames", "shown"),
    [
        (FOX, "runs", "1 frame"),
        (FOX, "runs\nsleeps", "2 frames"),
        (FOX, "runs\n[NC] snow\nsleeps", "Frames 1, 3: the character\nFrame 2: nobody"),
        (
            CAST,
            "[Mia] a\n[Mia] b\n[NC] c\n[Tom] and [Mia] d\n[Mia] e\n[Mia] f\n[Mia] g\n[Tom] h",
            "Frames 1–2, 5–7: Mia\nFrame 3: nobody\nFrame 4: Mia, Tom\nFrame 8: Tom",
        ),
    ],
)
def test_cast_list_tells_who_is_in_which_frame(identity, frames, shown):
    assert cast_list(parse_script(identity, frames)) == shown
