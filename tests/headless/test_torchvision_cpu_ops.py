"""A torchvision whose C++ part is missing, built here as far as the fault goes."""

import subprocess
import sys

from weft.tests.conftest import ROOT

FAULTY = """
import torch

@torch.library.register_fake("torchvision::nms")
def nms(dets, scores, iou_threshold):
    return dets.new_empty(0, dtype=torch.long)
"""


def imports(folder, *before):
    """Whether `import torchvision` works in a fresh Python that finds the faulty one first."""
    code = "\n".join([f"import sys; sys.path.insert(0, {str(folder)!r})", *before, "import torchvision"])
    done = subprocess.run([sys.executable, "-S", "-c", f"import sys; sys.path += {sys.path!r}\n{code}"], cwd=folder)
    return done.returncode == 0


def test_it_mends_the_import(tmp_path):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(FAULTY)
    shim = (ROOT / "headless" / "torchvision_cpu_ops.py").read_text()
    (tmp_path / "torchvision_cpu_ops.py").write_text(shim)
    assert not imports(tmp_path)
    assert imports(tmp_path, "import torchvision_cpu_ops")
