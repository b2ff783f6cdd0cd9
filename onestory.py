"""The pack as the package that it is in ComfyUI, for what runs outside of it: `import onestory.story.script`.

A module with a `__path__` is a package. The folder's own __init__.py needs ComfyUI, and the folder may have any name.
"""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parent)]
