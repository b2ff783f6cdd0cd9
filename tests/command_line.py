"""`run.py` in the tests' own process, which has imported what it needs: a Python of its own takes seconds each time."""

import io
import os
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from unittest.mock import patch

from onestory import run
from onestory.tools import environment


def run_here(*words: object, **variables: str) -> subprocess.CompletedProcess:
    """What a command of these words prints, without what its child processes print, and its exit code.

    `variables` are set in its environment besides.
    """
    words = tuple(map(str, words))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        with (
            patch.dict(os.environ, variables),
            patch.object(sys, "argv", ["run.py", *words]),
            patch.object(environment, "enter", lambda script: None),
            redirect_stdout(io.StringIO()) as out,
            redirect_stderr(io.StringIO()) as errors,
        ):
            try:
                code = run.main()
            except SystemExit as end:
                code = end.code
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return subprocess.CompletedProcess(words, code, out.getvalue(), errors.getvalue())
