"""The pack as a library: with this folder on `sys.path`, `import weft.engine` works whatever the folder is called.

ComfyUI does not read this file. Scripts use it as `python -m weft.toyworld.train`, from this folder.
"""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parent)]
