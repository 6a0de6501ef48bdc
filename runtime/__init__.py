"""Serve any mix of tasks from compiled artifacts. Needs no torch, no transformers, no onnx.

from pl_compile.runtime import Request, Session

session = Session.open("bundle")
result, = session.generate([Request("sentiment", {"sentence": "Profit rose ."})])
print(result.text)
"""

from pl_compile.config.sampling import Sampling
from pl_compile.runtime.async_session import AsyncSession
from pl_compile.runtime.engines.onnxruntime.providers import Provider
from pl_compile.runtime.requests import BestLabel, Event, LabelScore, Request, Result, TokenLogProbs
from pl_compile.runtime.session import Session

__all__ = [
    "AsyncSession",
    "BestLabel",
    "Event",
    "LabelScore",
    "Provider",
    "Request",
    "Result",
    "Sampling",
    "Session",
    "TokenLogProbs",
]
