"""Stage 3: base, routed model and controls in lm-eval, with routing that sees prompts alone."""
