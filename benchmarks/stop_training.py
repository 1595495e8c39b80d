"""Ends training after some epochs of a longer schedule."""

from __future__ import annotations

from transformers import TrainerCallback


class Stop(TrainerCallback):
    def __init__(self, epochs: int):
        self.epochs = epochs

    def on_epoch_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.epoch >= self.epochs
