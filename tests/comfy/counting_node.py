"""A custom node that the tests give to ComfyUI: its plan tells of every evaluation of the network, as it begins.

ComfyUI's own progress events will not do: once a cancel has arrived, it sends none.
"""

import sys
from dataclasses import dataclass

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
                return evaluate(evaluation)

        return ((plan or plans.PLAIN).then(Count()),)


NODE_CLASS_MAPPINGS = {"CountEvaluations": CountEvaluations}
