"""The parts of `gpu_check.py`: a module each, run by `python -m gpu_parts NAME OPTIONS`."""
