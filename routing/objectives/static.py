"""static: the adapters at a fixed smaller depth, the same layers skipped for all inputs.

The control that tells what a router must beat. Which layers are skipped is decided before training, see
`routing.training.end_to_end.static`. Not in the published system.
"""

from __future__ import annotations

from routing.objectives.dense import loss
from routing.objectives.end_to_end import Objective

STATIC = Objective(loss, routers=("none",), trains_base=True)
