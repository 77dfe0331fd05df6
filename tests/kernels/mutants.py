"""Is a kernel test able to fail? Break the kernel's source on purpose and see.

`mutant(module, old, new, folder)` imports a copy of a module with one change in its text. A change that changes nothing
is the control: if that fails too, the harness is what is broken, and the dead mutants prove nothing.
"""

import importlib.util
import itertools
import sys
from pathlib import Path

_serial = itertools.count()


def mutant(module, old: str, new: str, folder: Path):
    name, source = module.__name__, Path(module.__file__).read_text()
    assert source.count(old) == 1, f"want one place to change in {name}, found {source.count(old)} of {old!r}"
    number = next(_serial)
    path = folder / f"mutant_{number}.py"  # a file: Triton reads its kernels' source
    path.write_text(source.replace(old, new))
    spec = importlib.util.spec_from_file_location(f"{name}_mutant_{number}", path)
    changed = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = changed
    spec.loader.exec_module(changed)
    return changed


def fails(check, module) -> bool:
    try:
        check(module)
    except AssertionError:
        return True
    return False
