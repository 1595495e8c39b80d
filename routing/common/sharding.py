"""What accelerate's configuration asks for beside processes (FSDP, DeepSpeed, Megatron), refused where a stage cannot.

Read off the environment that its launcher makes.
"""

from __future__ import annotations

import os

OTHERS = {"ACCELERATE_USE_DEEPSPEED": "DeepSpeed", "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM"}
FSDP = "ACCELERATE_USE_FSDP"
PLAIN = "launch with a configuration without it, such as accelerate launch --multi_gpu"


def is_on(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true", "yes", "y", "t", "on")


def sharding_problems(takes_fsdp: bool = False) -> list[str]:
    """What of the configuration cannot be.

    Args:
        takes_fsdp: whether the stage shares the weights of its base out over processes.
    """
    found = [f"accelerate's configuration asks for {name}, which no stage takes; {PLAIN}" for variable, name in
             OTHERS.items() if is_on(variable)]  # fmt: skip
    if not is_on(FSDP):
        return found
    if not takes_fsdp:
        return found + [
            "accelerate's configuration asks for FSDP, which trainings of LoRA and routers on text take alone "
            f"(--objective gumbel, dense, static); {PLAIN}, or give --device_map for a base larger than a device"
        ]
    if os.environ.get("FSDP_VERSION", "1") != "2":
        found.append("accelerate's configuration asks for FSDP version 1; set fsdp_version: 2")
    if is_on("FSDP_ACTIVATION_CHECKPOINTING"):
        found.append(
            "accelerate's configuration asks for activation checkpointing, which would run layers twice along other "
            "gates; set fsdp_activation_checkpointing: false"
        )
    if os.environ.get("FSDP_AUTO_WRAP_POLICY", "TRANSFORMER_BASED_WRAP") != "TRANSFORMER_BASED_WRAP":
        found.append(
            f"accelerate's configuration asks for {os.environ['FSDP_AUTO_WRAP_POLICY']}, and the base is shared out "
            "layer by layer; set fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP"
        )
    return found
