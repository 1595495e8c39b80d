"""Results as evaluation.py writes them, small enough to check by hand."""

from __future__ import annotations


def summary(accuracy: float, ci95: list[float], layers: float, gflops: float, seconds: float, inputs: int = 8) -> dict:
    fields = {"accuracy": accuracy, "ci95": ci95, "layers": layers, "gflops": gflops}
    return fields | {"seconds": seconds, "inputs": inputs}


def paired(gained: int, lost: int, p: float, n: int = 8) -> dict:
    return {"difference": (gained - lost) / n, "gained": gained, "lost": lost, "p": p}


def settings() -> dict:
    return {
        "model": "tiny-model",
        "checkpoint": "checkpoints/run",
        "checkpoint_sha256": "0" * 64,
        "dtype": "float32",
        "limit": None,
        "num_fewshot": None,
        "apply_chat_template": False,
        "seeds": 1,
        "hardware": "a machine, 2 cores",
        "date": "2026-11-25",
        "versions": {"torch": "2.13.0", "lm_eval": "0.4.13"},
        "git_commit": "0123abc",
    }


def evaluation_result(task: str) -> dict:
    """Eight questions on four layers: base 5 right, routed 3, static 2, random 1."""
    routes = [[1, 1, 1, 1]] * 5 + [[1, 1, 0, 0]] + [[2, 1, 0, 0]] * 2
    return {
        "task": task,
        "n": 8,
        "base": summary(0.625, [0.306, 0.863], 4.0, 1.234, 11.2),
        "routed": summary(0.375, [0.137, 0.694], 3.5, 1.111, 12.7),
        "paired": paired(1, 3, 0.625),
        "controls": [
            {
                "name": "static, 1 skipped",
                "method": "static",
                "seed": None,
                **summary(0.25, [0.071, 0.591], 3.0, 0.987, 10.5),
                "paired_with_base": paired(1, 4, 0.453),
                "paired_with_routed": paired(1, 2, 1.0),
            },
            {
                "name": "random, seed 0",
                "method": "random",
                "seed": 0,
                **summary(0.125, [0.022, 0.471], 3.5, 1.009, 10.9),
                "paired_with_base": paired(0, 4, 0.0002),
                "paired_with_routed": paired(0, 2, 0.0301),
            },
        ],
        "route_share": {"skip": 0.1875, "run": 0.75, "repeat": 0.0625},
        "rerouted": 0.375,
        "layers_histogram": {"2": 1, "3": 2, "4": 5},
        "routes": routes,
        **settings(),
    }


def bare_result(task: str) -> dict:
    """One question, no base, no controls, and a route that changes nothing."""
    return {
        "task": task,
        "n": 1,
        "base": None,
        "routed": summary(1.0, [0.207, 1.0], 4.0, 1.234, 0.7, inputs=1),
        "paired": None,
        "controls": [],
        "route_share": {"skip": 0.0, "run": 1.0, "repeat": 0.0},
        "rerouted": 0.0,
        "layers_histogram": {"4": 1},
        "routes": [[1, 1, 1, 1]],
        **settings(),
        "git_commit": None,
    }
