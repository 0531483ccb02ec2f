"""How several processes that trained together end.

A gloo worker thread may still hold the tensors of the last collective when the collective is done, and needs Python's
GIL to release them. If the interpreter is already exiting, CPython before 3.14 ends such a thread by `pthread_exit`
inside a destructor, and C++ aborts the process: "terminate called without an active exception" (seen with torch 2.14.1:
`ProcessGroupGloo::runLoop`, `TensorImpl::decref_pyobject`, `PyEval_AcquireThread`). The destructor of the process group
joins these threads, so the group has to be destroyed before the interpreter exits.
"""

from __future__ import annotations

import torch
from accelerate import PartialState

# Functions of this module have the current default group as a default argument. Imported after the group is created
# (by DistributedDataParallel, through torch._dynamo), they keep the group alive past `destroy_process_group`.
if torch.distributed.is_available():
    import torch.distributed.nn.functional


def leave_together() -> None:
    """Wait for the other processes, then destroy the process group and end its threads. In one process, do nothing.

    It must be the last call of a script for `accelerate launch`: a process that exits earlier aborts the others.
    """
    state = PartialState()
    if state.num_processes > 1:
        state.wait_for_everyone()
        state.destroy_process_group()
