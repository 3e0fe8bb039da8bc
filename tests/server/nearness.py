"""What questions of nearness share: cosines by brute force, requests, the statuses they get."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from grpc import StatusCode
from hypothesis import strategies as st
from server.questions import CHANNELS, DENSE, ROWS, SPARSE
from server.refusals import INVALID, MISSING, refusal

from vitscope.v1.service_pb2_grpc import ActivationServiceStub

CELLS, WIDTH = 4, 2
VALID = [row for row in range(ROWS) if row not in (0, 17, 31, 32, 69)]

Doubles = npt.NDArray[np.float64]

INT32 = st.integers(-2, 9) | st.integers(-(2**31), 2**31 - 1)
COUNTS = st.none() | st.integers(-1, 70) | INT32
INDEXES = st.sampled_from(["zoo"] * 6 + ["", "x"])
LAYERS = st.sampled_from([DENSE, SPARSE] * 4 + ["", "x"])


def rounded_cosine(left: Doubles, right: Doubles) -> float:
    scale = math.sqrt(float(left @ left)) * math.sqrt(float(right @ right))
    cosine = float(left @ right) / scale if scale else 0.0
    return float(np.float32(min(1.0, max(-1.0, cosine))))


def common_faults(request: Any) -> set[StatusCode]:
    found = set()
    if request.index != "zoo":
        found.add(MISSING if request.index else INVALID)
    if request.layer not in CHANNELS:
        found.add(MISSING if request.layer else INVALID)
    return found


def check(
    stub: ActivationServiceStub,
    request: Any,
    expected: set[StatusCode],
    possible: set[StatusCode] | None = None,
) -> str:
    """One of the expected statuses, whose sentence is given; an answer where there is none."""
    if expected:
        code, details = refusal(stub, request)
    else:
        method = type(request).__name__.removesuffix("Request")
        answer = getattr(stub, method).future(request, timeout=60)
        code, details = answer.code(), answer.details() or "."
        possible = {*(possible or ()), StatusCode.OK}
    assert code in (expected if possible is None else possible), details
    # A hint may be a question.
    assert details.endswith((".", "?"))
    assert "\n" not in details
    assert len(details) < 400
    return details
