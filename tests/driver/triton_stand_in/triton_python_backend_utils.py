"""Stands in for what Triton's Python backend gives to a model, as its README documents it.

https://github.com/triton-inference-server/python_backend. Stricter where that finds mistakes: a
sender that was closed refuses responses, and a tensor must have elements of bytes or truth values.
"""

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1


class TritonError:
    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS = range(7)
    CANCELLED = 7

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> int:
        return self._code


class TritonModelException(Exception):  # noqa: N818 - Triton's name
    pass


class Logger:
    errors: list[str] = []  # noqa: RUF012

    @staticmethod
    def log_error(message: str) -> None:
        Logger.errors.append(message)


class Tensor:
    def __init__(self, name: str, array: Any) -> None:
        assert array.dtype in (np.dtype(np.object_), np.dtype(np.bool_)), array.dtype
        assert array.dtype != np.object_ or all(isinstance(each, bytes) for each in array.flat)
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> Any:
        return self._array


class InferenceResponse:
    def __init__(
        self, output_tensors: Sequence[Tensor] = (), error: TritonError | None = None
    ) -> None:
        self._tensors, self._error = list(output_tensors), error

    def output_tensors(self) -> list[Tensor]:
        return self._tensors

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error


class InferenceResponseSender:
    def __init__(self) -> None:
        self.responses: list[InferenceResponse] = []
        self.ended = threading.Event()
        self.cancelled = False
        self.has_first = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        if self.ended.is_set():
            raise TritonModelException("Response sender has been closed.")
        if flags not in (0, TRITONSERVER_RESPONSE_COMPLETE_FINAL):
            raise TritonModelException("Unsupported flag provided.")
        if response is None and flags == 0:
            raise TritonModelException("Inference Response object must be provided.")
        if response is not None:
            self.responses.append(response)
            self.has_first.set()
        if flags:
            self.ended.set()
        assert self.go_on.wait(60)

    def is_cancelled(self) -> bool:
        return self.cancelled


class InferenceRequest:
    def __init__(self, inputs: Sequence[Tensor]) -> None:
        self._inputs = list(inputs)
        self.sender = InferenceResponseSender()

    def inputs(self) -> list[Tensor]:
        return self._inputs

    def get_response_sender(self) -> InferenceResponseSender:
        return self.sender


def get_input_tensor_by_name(request: InferenceRequest, name: str) -> Tensor | None:
    return next((tensor for tensor in request.inputs() if tensor.name() == name), None)
