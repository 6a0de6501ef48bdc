"""Runs a model with the kernels of one instruction set, in a process of its own.

    PLC_KERNELS=avx512 python kernel_probe.py MODEL INPUTS OUTPUTS

The kernels choose once a process. INPUTS and OUTPUTS are .npz files; outputs are named `out0` on.
Prints the instruction set that was chosen.
"""

import sys

import numpy as np
import onnxruntime

from pl_compile.runtime.kernels import instruction_set, library_path

model, inputs, outputs = sys.argv[1:]
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 2
options.register_custom_ops_library(str(library_path()))
session = onnxruntime.InferenceSession(model, options)
found = session.run(None, dict(np.load(inputs)))
np.savez(outputs, **{f"out{index}": array for index, array in enumerate(found)})
print(instruction_set())
