"""What the nodes say of themselves, without ComfyUI: their modules, imported with a stand-in for `comfy_api`.

The stand-in records; whether the real `comfy_api` takes these schemas is for the tests in `comfy/` to say.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
from dataclasses import dataclass, field
from functools import cache
from types import ModuleType, SimpleNamespace
from typing import Any

STAND_INS = (
    "comfy_api",
    "comfy_api.v0_0_2",
    "comfy",
    "comfy.model_management",
    "comfy.utils",
    "folder_paths",
    "server",
)
WIDGETS = {"INT", "FLOAT", "STRING", "COMBO", "BOOLEAN"}  # drawn in the node; the others are sockets only


@dataclass(frozen=True)
class Slot:
    name: str
    type: str
    optional: bool = False
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def is_widget(self) -> bool:
        return self.type in WIDGETS

    def takes(self, value: Any) -> bool:
        """Whether a widget may hold this value. The list of models depends on the machine: any name will do."""
        if self.type == "COMBO" and self.name not in ("model", "motion_module"):
            return value in self.details["options"]
        if self.type in ("INT", "FLOAT"):
            return self.details["min"] <= value <= self.details["max"]
        return isinstance(value, bool if self.type == "BOOLEAN" else str)


@dataclass(frozen=True)
class Kind:
    """`io.Int`, `io.Custom("...")` and the like."""

    type: str

    def Input(self, name: str, optional: bool = False, **details) -> Slot:
        return Slot(name, self.type, optional, details)

    def Output(self, display_name: str, **details) -> Slot:
        return Slot(display_name, self.type, details=details)


class Schema(SimpleNamespace):
    """With all that a new ComfyUI's schemas have."""

    __dataclass_fields__ = ("search_aliases",)


class _IO:
    ComfyNode, Schema, Custom = object, Schema, Kind

    def __getattr__(self, name: str) -> Kind:
        return Kind(name.upper())


@cache
def schemas() -> dict[str, SimpleNamespace]:
    """{node id: its schema}, in the palette's order."""
    before = {name: sys.modules.get(name) for name in STAND_INS}
    sys.modules.update({name: ModuleType(name) for name in STAND_INS})
    fake = SimpleNamespace(**{name.replace(".", "_"): sys.modules[name] for name in STAND_INS})
    fake.comfy_api_v0_0_2.io, fake.comfy_api_v0_0_2.ui = _IO(), None
    fake.comfy_api_v0_0_2.ComfyExtension = object
    fake.comfy.model_management, fake.comfy.utils = fake.comfy_model_management, fake.comfy_utils
    fake.comfy_model_management.throw_exception_if_processing_interrupted = None
    fake.server.PromptServer = None
    fake.folder_paths.get_folder_paths = lambda _: []
    fake.folder_paths.get_output_directory = lambda: "no output"
    fake.folder_paths.get_input_directory = lambda: "no input"
    fake.folder_paths.folder_names_and_paths, fake.folder_paths.models_dir = {}, "models"
    try:
        package = importlib.import_module("weft.nodes")
        classes = asyncio.run(package.WeftExtension().get_node_list())
        listed = [name for names in package.NODES.values() for name in names]
        assert [c.__name__ for c in classes] == listed, "a node module could not be imported: see the log"
        return {schema.node_id: schema for schema in (c.define_schema() for c in classes)}
    finally:
        for name in [n for n in sys.modules if n.startswith("weft.nodes")]:
            del sys.modules[name]  # a test inside ComfyUI must get the real ones
        for name, module in before.items():
            sys.modules.pop(name)
            if module is not None:
                sys.modules[name] = module
