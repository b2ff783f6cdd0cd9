"""The line at the bottom of the terminal that says what is going on."""

import atexit
import sys
import threading

from rich.console import Console, RenderableType
from rich.progress_bar import ProgressBar
from rich.status import Status
from rich.table import Table
from rich.text import Text

BAR_WIDTH = 30

console = Console(stderr=True)
changing = threading.Lock()
shown: Status | None = None


def show(line: str, done: int = 0, total: int = 0, more: str = "") -> None:
    """Show a line that the next one replaces, where someone is looking; "" takes it away.

    With a `total` a bar follows, the count, and what there is `more` to say.
    """
    global shown
    if not sys.stderr.isatty():
        return
    with changing:
        if not line:
            if shown:
                shown.stop()
            shown = None
            return
        grid = Table.grid(padding=(0, 1))
        cells: list[RenderableType] = [Text(line, no_wrap=True, overflow="ellipsis")]
        if total:
            cells += [ProgressBar(total, done, BAR_WIDTH), Text(f"{done}/{total}{more}", no_wrap=True)]
        grid.add_row(*cells)
        if not shown:
            shown = console.status("")
            shown.start()
        shown.update(grid)


atexit.register(show, "")
