"""A bundle as a model of Triton Inference Server, run by Triton's Python backend.

`plc export --triton` writes a copy of this file to `1/model.py`, beside the bundle (`1/bundle`) and
below `config.pbtxt`, which names the inputs and outputs. The copy may be edited. Triton imports it,
and gives it `triton_python_backend_utils`, which exists nowhere else.

All requests go to one session and step together. So one instance of the model is enough: another
one would be a process with caches of its own.
"""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from threading import Semaphore
from typing import Any

import numpy as np
import triton_python_backend_utils as triton

from pl_compile.config.strict_json import with_null
from pl_compile.errors import PlcError, RequestError
from pl_compile.runtime import Result, Session
from pl_compile.runtime.plain_requests import request_from_texts


class TritonPythonModel:
    """What Triton calls. Its model is decoupled: a request may get several responses."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Opens the bundle; every file of it is checked.

        Args:
            args: `model_config` is `config.pbtxt` as JSON. Its parameters `max_batch` and `threads`
                are those of `Session.open`.
        """
        parameters = json.loads(args["model_config"]).get("parameters", {})
        options = {
            name: _number(parameters[name]["string_value"])
            for name in ("max_batch", "threads")
            if name in parameters
        }
        self._session = Session.open(Path(__file__).with_name("bundle"), **options)
        slots = self._session.engine.max_batch
        self._threads = ThreadPoolExecutor(slots, thread_name_prefix="answer")
        self._free = Semaphore(slots)

    def execute(self, requests: Sequence[Any]) -> None:
        """Begins answers; each is sent from a thread of its own.

        It waits while all slots of the session are taken. So requests wait in Triton's queue, where
        its limits and time-outs hold.
        """
        for request in requests:
            self._free.acquire()
            try:  # Triton frees the tensors of a request when this method returns
                given = {name: _value(request, name) for name in ("task", "fields", "options")}
                stream = _value(request, "stream")
                sender = request.get_response_sender()
                self._threads.submit(self._answer, sender, given, bool(stream))
            except BaseException:
                self._free.release()
                raise

    def finalize(self) -> None:
        """Waits for the answers under way, and closes the session."""
        self._threads.shutdown()
        self._session.close()

    def _answer(self, sender: Any, given: Mapping[str, Any], stream: bool) -> None:
        """Answers a request. Whatever goes wrong is told to the one who asked."""
        try:
            try:
                last = self._write(sender, given, stream)
            except RequestError as error:
                last = _failed(str(error), triton.TritonError.INVALID_ARG)
            except PlcError as error:
                last = _failed(str(error), triton.TritonError.INTERNAL)
            except Exception as error:
                triton.Logger.log_error(f"a request failed: {error!r}")
                last = _failed("an error of the server; its log says more", None)
            sender.send(last, flags=triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        finally:
            self._free.release()

    def _write(self, sender: Any, given: Mapping[str, Any], stream: bool) -> Any:
        """Sends pieces of the answer if asked to; gives the last response."""
        texts = {name: _text(name, data) for name, data in given.items() if data is not None}
        request = request_from_texts(**texts)
        with closing(self._session.stream([request])) as events:
            for event in events:
                if sender.is_cancelled():
                    return _failed("the request was cancelled", triton.TritonError.CANCELLED)
                if event.result is not None:
                    return _response(event.text if stream else event.result.text, event.result)
                if stream and event.text:
                    sender.send(_response(event.text, None))
        raise AssertionError("a stream that ended without a result or an error")


def _value(request: Any, name: str) -> Any:
    """The one element of an input; None where it was not given."""
    tensor = triton.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy().reshape(-1)[0]


def _text(name: str, data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(f"reading the input '{name}'", found=str(error)) from error


def _response(text: str, result: Result | None) -> Any:
    """A piece of an answer; with its end also the whole result, as JSON."""
    whole = "" if result is None else json.dumps(with_null(asdict(result)), ensure_ascii=False)
    tensors = [
        triton.Tensor(name, np.array([value.encode("utf-8")], dtype=np.object_))
        for name, value in (("text", text), ("result", whole))
    ]
    return triton.InferenceResponse(output_tensors=tensors)


def _failed(message: str, code: Any) -> Any:
    error = triton.TritonError(message) if code is None else triton.TritonError(message, code)
    return triton.InferenceResponse(error=error)


def _number(text: str) -> Any:
    """A parameter as a number; what is none stays a text, which the session refuses by name."""
    return int(text) if text.isdecimal() else text
