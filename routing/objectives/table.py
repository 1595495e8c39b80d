"""Objectives by name, those that train end to end and those on preferences; a new one is one file and one row."""

from __future__ import annotations

from routing.objectives.dense import DENSE
from routing.objectives.end_to_end import Objective
from routing.objectives.gumbel import GUMBEL
from routing.objectives.preference import DPO, FBC, ORPO, Preference
from routing.objectives.random_gates import RANDOM
from routing.objectives.reinforce import REINFORCE
from routing.objectives.static import STATIC
from routing.objectives.stochastic_depth import STOCHASTIC_DEPTH

END_TO_END: dict[str, Objective] = {
    "dense": DENSE,
    "static": STATIC,
    "stochastic_depth": STOCHASTIC_DEPTH,
    "random": RANDOM,
    "reinforce": REINFORCE,
    "gumbel": GUMBEL,
}

PREFERENCE: dict[str, Preference] = {"fbc": FBC, "dpo": DPO, "orpo": ORPO}
