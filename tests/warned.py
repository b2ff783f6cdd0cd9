"""What the pack said in the log."""

import logging


def warnings_of(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING and "OneStory" in r.getMessage()]
