"""Adapters for skipped layers: states of right answers, distillation, what each adapter is worth."""
