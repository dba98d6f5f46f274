"""Check that the kernels compute the right numbers: a candidate's layer, scaled down, through
Triton's interpreter.

The check is never about time: the time of an interpreted kernel is the interpreter's.
"""

import json
import os
import subprocess
import sys

from moesim_kernels.sources.scaling import scaled_down

from moesim.design.candidate import Candidate, Workload
from moesim.errors import MeasurementError
from moesim.hardware import Cluster
from moesim.measured.environment import lacking
from moesim.measured.sources import CheckRow

# Sizes that the interpreter finishes in seconds, and the longest it may take.
_SMALL = {"hidden_size": 64, "expert_intermediate_size": 64, "num_experts": 32, "num_tokens": 40}
_TIMEOUT_S = 240


class Interpret:
    """Compare the winner's gate and experts, scaled down, through Triton's interpreter with torch.

    This runs in a separate process, since triton must be imported under ``TRITON_INTERPRET=1``.
    """

    name = "interpret"

    def unavailable_because(self) -> str | None:
        """Return why it cannot run: the interpreter is part of Triton."""
        missing = lacking("torch", "triton")
        return f"{missing} (Triton exists for Linux only)" if missing else None

    def check(self, candidate: Candidate, cluster: Cluster, workload: Workload) -> list[CheckRow]:
        """Compare gate choices exactly and outputs within bf16 rounding.

        Raises:
            MeasurementError: The kernels do not compute this gate, or the interpreting process
                failed (the message is its last line).
        """
        small = scaled_down(
            candidate.layer,
            num_experts=_SMALL["num_experts"],
            hidden_size=_SMALL["hidden_size"],
            width=_SMALL["expert_intermediate_size"],
        )
        # Scaling down may have changed top-k, so the heads are checked on the small layer.
        if small.gate.kind == "product_key" and small.top_k % small.gate.query_heads:
            raise MeasurementError(
                f"the kernels' heads find equal shares: not {small.top_k} with "
                f"{small.gate.query_heads} heads"
            )
        request = {
            "num_experts": small.num_experts,
            "top_k": small.top_k,
            "gate": str(small.gate),
            "hidden_size": small.hidden_size,
            "expert_intermediate_size": small.expert_intermediate_size,
            "num_tokens": _SMALL["num_tokens"],
            "seed": workload.seed,
        }
        try:
            done = subprocess.run(
                [sys.executable, "-m", "moesim_kernels.sources.interpreted"],
                input=json.dumps(request),
                text=True,
                capture_output=True,
                timeout=_TIMEOUT_S,
                check=False,
                start_new_session=True,  # Ctrl-C is for this process
                # Triton decides when it is imported, so the variable must be set before the process
                # starts.
                env=os.environ | {"TRITON_INTERPRET": "1"},
            )
        except subprocess.TimeoutExpired:
            raise MeasurementError(f"interpret: not done after {_TIMEOUT_S} s") from None
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no output"])[-1]
            raise MeasurementError(f"interpret: {last}")
        found = json.loads(done.stdout)
        # The result names everything in which the small layer differs from the candidate's.
        note = (
            ""
            if candidate.layer.precision.name == "bf16"
            else f"; in bf16, the candidate's {candidate.layer.precision.name} is not computed"
        )
        note += "; experts of equal width" if candidate.layer.uneven else ""
        note += "" if candidate.layer.gated else "; with SwiGLU"
        return [
            CheckRow(
                candidate=candidate.label,
                source=self.name,
                quantity="max_abs_error",
                status="checked",
                measured=found["max_abs_error"],
                limit=found["limit"],
                seed=workload.seed,
                engine="triton_interpreter",
                detail=f"scaled down to E{small.num_experts} k{small.top_k} H{small.hidden_size} "
                f"I{small.expert_intermediate_size} {small.gate}, {request['num_tokens']} "
                f"tokens: gate choices {'equal' if found['choices_equal'] else 'DIFFER'}, "
                f"layer output against torch{note}",
            )
        ]
