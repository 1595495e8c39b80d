"""Imported before flash-linear-attention: its kernels then take the first of their configurations, untried.

Trying all of them takes minutes for each shape.
"""

from __future__ import annotations

import inspect
from importlib.util import find_spec

FUSED = find_spec("fla") is not None

if FUSED:
    from triton.runtime.autotuner import Autotuner

    _make, _signature = Autotuner.__init__, inspect.signature(Autotuner.__init__)

    def make(*args, **given):
        bound = _signature.bind(*args, **given)
        bound.arguments["configs"] = (bound.arguments["configs"] or [])[:1]
        _make(*bound.args, **bound.kwargs)

    Autotuner.__init__ = make
