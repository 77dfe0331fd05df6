from __future__ import annotations

from pathlib import Path

import folder_paths
from comfy_api.v0_0_2 import io, ui

from ..backbones.files import found
from ..engine.tensor_file import in_units
from ..engine.trajectory_file import load_trajectory, save_trajectory
from . import sockets
from .menus import chosen, file_for, roots, stamp_of

NONE = "(none found: save one with Save Trajectory)"
FOLDER = "weft"  # of ComfyUI's output
MODELS = "weft_trajectories"  # of its models
INVERSIONS = "weft_inversions"  # of its output: what inversions that may be resumed have so far


def trajectory_files() -> dict[str, Path]:
    """Names as the menu shows them -> files."""
    folders = [Path(folder_paths.get_output_directory(), FOLDER), *roots(MODELS)]
    return found(folders, lambda file: file if file.suffix == ".safetensors" else None)


def resume_input() -> io.Input:
    return io.Boolean.Input(
        "resume",
        default=False,
        optional=True,
        tooltip="Keep every step on disk, in output/weft_inversions, and go on there after a cancel or a crash, with "
        "the same bits. The log says how much that takes; delete the folder when you like.",
    )


def resume_folder(resume: bool) -> Path | None:
    return Path(folder_paths.get_output_directory(), INVERSIONS) if resume else None


class WeftSaveTrajectory(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WeftSaveTrajectory",
            display_name="Save Trajectory (Weft)",
            category="Weft/invert",
            description="Keeps an inversion on disk, to edit from it another day.",
            **sockets.found_by("save inversion", "save latents"),
            inputs=[
                sockets.Trajectory.Input("trajectory", lazy=True, tooltip="From an inversion, or from Add Noise."),
                io.String.Input(
                    "name",
                    default="trajectory",
                    tooltip="Of the file in output/weft. What is there is kept: the new one gets a number.",
                ),
            ],
            outputs=[
                sockets.Trajectory.Output(display_name="trajectory", tooltip="The same, to go on with."),
                io.String.Output(display_name="file", tooltip="Its name and size."),
            ],
            is_output_node=True,
        )

    @classmethod
    def check_lazy_status(cls, name, trajectory=None):
        """Asks for the trajectory once there is a file that it can go to."""
        file_for(name, folder=FOLDER)
        return [] if trajectory is not None else ["trajectory"]

    @classmethod
    def execute(cls, trajectory, name):
        file, size = save_trajectory(trajectory, file_for(name, folder=FOLDER))
        told = f"{file.name}, {in_units(size)}"
        return io.NodeOutput(trajectory, told, ui=ui.PreviewText(told))


class WeftLoadTrajectory(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WeftLoadTrajectory",
            display_name="Load Trajectory (Weft)",
            category="Weft/invert",
            description="An inversion from disk, for the model and the prompt it was made with.",
            **sockets.found_by("load inversion", "load latents"),
            inputs=[
                sockets.Model.Input("model", tooltip="The model it was made with: another one is refused."),
                io.Conditioning.Input("source_prompt", tooltip="The prompt it was made with: another one is refused."),
                io.Combo.Input(
                    "trajectory",
                    options=list(trajectory_files()) or [NONE],
                    tooltip="A file in output/weft or models/weft_trajectories. Press R to look again.",
                ),
            ],
            outputs=[sockets.Trajectory.Output(display_name="trajectory", tooltip="For Edit Sampler.")],
        )

    @classmethod
    def fingerprint_inputs(cls, trajectory, **_):
        return stamp_of(trajectory_files(), trajectory)

    @classmethod
    def execute(cls, model, source_prompt, trajectory):
        file = chosen(trajectory_files(), trajectory, "trajectory")
        return io.NodeOutput(load_trajectory(file, model, sockets.from_conditioning(source_prompt)))
