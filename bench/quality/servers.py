"""The stories of a file on running ComfyUI servers: made in every way, measured, and reported on one page."""

from argparse import Namespace
from pathlib import Path

from ...tools import host
from ...tools.client import clients_of
from ...tools.demo import read_all_stories, slug
from ...tools.failure import Failure
from ...tools.results import keep_settings
from . import report
from .boards import checker, make
from .figures import figures
from .graphs import ROWS, USUAL
from .jobs import DIGESTS, jobs_of, settings_of, without_digests
from .masks import by_servers, check_remover, from_folder
from .measures import has_model, measure

DOWNLOADS = {
    "--clip": "openai/clip-vit-base-patch32",
    "--clip-image": "openai/clip-vit-base-patch16",
    "--dinov2": "facebook/dinov2-base",
}


def run(args: Namespace) -> int:
    """Make what is missing, measure it, and write the report. Returns 1 when a story could not be made."""
    for name in ("server", "checkpoint", "stories"):
        if not vars(args)[name]:
            raise Failure(f"--{name} is missing: bench quality --help says what it needs.")
    for name, model in (("--clip", args.clip), ("--clip-image", args.clip_image), ("--dinov2", args.dinov2)):
        if model and not has_model(model):
            kind = "DINOv2" if name == "--dinov2" else "CLIP"
            raise Failure(
                f"There is no {kind} model in {model}: name a folder with its config.json and weights by {name}, such "
                f"as a download of https://huggingface.co/{DOWNLOADS[name]}."
            )
    if args.masks and args.remover:
        raise Failure("--masks and --remover exclude each other: name the folder of the masks, or what makes them.")
    if args.masks and not args.masks.is_dir():
        raise Failure(f"There is no folder of masks {args.masks}: name one with --masks.")
    stories = read_all_stories(args.stories)
    rows, seeds = args.rows or USUAL, args.seeds or [42]
    settings = settings_of(
        args, args.checkpoint, args.stories.name, args.size, args.steps or 30, args.clip_vision, stories
    )
    servers = clients_of(args.server)
    check = checker(settings)
    for server in servers:
        check(server)
        if args.remover:
            check_remover(server, args.remover)
    out = args.out or host.ROOT / "out" / f"quality_{args.stories.stem}_{slug(Path(args.checkpoint).stem)}"
    keep_settings(out, settings, DIGESTS)
    jobs = jobs_of(out, stories[: args.limit], rows, seeds)
    errors = make(servers, stories, jobs, settings)
    done = [job for job in jobs if job.made]
    if not done:
        raise Failure(next(iter(errors.values())))
    masks = None
    if args.masks:
        masks = from_folder(args.masks, out)
    elif args.remover:
        masks = by_servers(servers, args.remover, done)
    measure(args, stories, done, masks)
    found = report.collect(
        without_digests(settings),
        [story._asdict() for story in stories[: args.limit]],
        {name: row.title for name, row in ROWS.items() if name in rows},
        [(job.story, job.row, job.seed, job.folder) for job in done],
        [(job.story, job.row, job.seed, error) for job, error in errors.items()],
    )
    found["figures"] = figures(out, found, done)
    paths = report.write(out, found)
    print(report.table(found), *paths, sep="\n")
    if errors:
        one = next(iter(errors.values()))
        host.say(f"{len(errors)} of {len(jobs)} boards could not be made, and are tried again in the next run: {one}")
    return 1 if errors else 0
