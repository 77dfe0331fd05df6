"""A custom node that the tests give to ComfyUI: its plan tells of every evaluation of the network, as it begins.

ComfyUI's own progress events will not do: once a cancel has arrived, it sends none. Where the input folder has a file
`kill_at`, the server kills itself at the step whose number is in it, once.
"""

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import folder_paths
from server import PromptServer

EVENT = "weft_test_evaluation"


class CountEvaluations:
    CATEGORY, FUNCTION, RETURN_TYPES = "tests", "count", ("WEFT_PLAN",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"optional": {"plan": ("WEFT_PLAN",)}}

    def count(self, plan=None):
        plans = next(module for name, module in sys.modules.items() if name.endswith("weft.engine.plan"))

        @dataclass(frozen=True)
        class Count(plans.Control):
            def evaluate(self, evaluation, evaluate):
                server = PromptServer.instance
                server.send_sync(EVENT, {"prompt_id": server.last_prompt_id}, server.client_id)
                kill_at = Path(folder_paths.get_input_directory(), "kill_at")
                if kill_at.exists() and int(kill_at.read_text()) == evaluation.run.step:
                    kill_at.unlink()
                    os.kill(os.getpid(), signal.SIGKILL)
                return evaluate(evaluation)

        return ((plan or plans.PLAIN).then(Count()),)


NODE_CLASS_MAPPINGS = {"CountEvaluations": CountEvaluations}
