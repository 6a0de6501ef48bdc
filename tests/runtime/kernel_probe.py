"""Runs a model with the kernels of one instruction set, in a process of its own.

    PLC_KERNELS=avx2 python kernel_probe.py MODEL INPUTS OUTPUTS

The kernels choose once a process. INPUTS and OUTPUTS are .npz files. Inputs are named `RUN/NAME`,
with runs numbered from 0; outputs `RUN/NUMBER`.
Prints the instruction set that was chosen.
"""

import sys

import numpy as np
import onnxruntime

from pl_compile.runtime.kernels import instruction_set, library_path

model, inputs, outputs = sys.argv[1:]
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 2
options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # see conftest.py
options.register_custom_ops_library(str(library_path()))
session = onnxruntime.InferenceSession(model, options)
runs: dict[str, dict[str, np.ndarray]] = {}
for key, array in np.load(inputs).items():
    run, name = key.split("/")
    runs.setdefault(run, {})[name] = array
found = {
    f"{run}/{number}": output
    for run, given in runs.items()
    for number, output in enumerate(session.run(None, given))
}
np.savez(outputs, **found)
print(instruction_set())
