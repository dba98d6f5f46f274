"""A driver that compiles for an H100 and launches nothing, to see what the host does where there is
no GPU.

Run as a process of its own, without the interpreter. Kernels go through all of Triton's path from a
call to a launch, compiled for sm_90 with the very arguments a layer gives them; the launch itself
is written down. Tensors are the CPU's.
"""

import sys
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import moesim_kernels.ops.prepared  # noqa: F401
import torch
import triton
from moesim_kernels.ops import runtime


@dataclass
class Asked:
    """What was launched; how often the driver was asked for a device's properties or its name."""

    launches: list[tuple[str, tuple[int, ...], tuple[Any, ...]]] = field(default_factory=list)
    questions: int = 0
    keep: bool = True


def install(asked: Asked) -> None:
    """Make this the active driver."""

    class Launcher:
        def __init__(self, source: Any, metadata: Any) -> None:
            self.name, self.names = metadata.name, source.fn.arg_names

        def __call__(
            self,
            x: int,
            y: int,
            z: int,
            stream: int,
            function: Any,
            packed: Any,
            metadata: Any,
            enter: Any,
            leave: Any,
            *args: Any,
        ) -> None:
            if len(args) != len(self.names):
                raise AssertionError(
                    f"{self.name}: {len(args)} arguments for {len(self.names)} parameters"
                )
            if asked.keep:
                asked.launches.append((self.name, (x, y, z), args))

    def properties(index: int) -> dict[str, int]:
        asked.questions += 1
        return {"max_shared_mem": 227 * 1024, "multiprocessor_count": 132}

    def name(index: int | None = None) -> str:
        asked.questions += 1
        return "NVIDIA H100 80GB HBM3"

    class Driver:
        launcher_cls = Launcher
        utils = SimpleNamespace(
            get_device_properties=properties,
            load_binary=lambda *_: (object(), object(), 64, 0, 1024),
        )

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return 0

        def get_current_target(self) -> Any:
            return triton.backends.compiler.GPUTarget("cuda", 90, 32)

        def get_device_interface(self) -> Any:
            return SimpleNamespace(get_device_name=name)

        def get_active_torch_device(self) -> torch.device:
            return torch.device("cpu")

    triton.runtime.driver.set_active(Driver())
    runtime.active_backends = lambda: ("nvidia",)
    torch.cuda.is_current_stream_capturing = lambda: False
    torch.cuda.current_stream = lambda device=None: SimpleNamespace(cuda_stream=0)

    # The one check that would see tensors of a CPU where kernels want a GPU's, and the one that a
    # CPU alone waits for.
    def nothing(*_: Any) -> None:
        pass

    for module in [
        module for key, module in sys.modules.items() if key.startswith("moesim_kernels.")
    ]:
        for check in ("require_triton", "check_ids"):
            if hasattr(module, check):
                setattr(module, check, nothing)
