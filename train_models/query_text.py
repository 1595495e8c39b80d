"""The text by which a query router decides: what a prompt's tokens say, for training and inference alike.

Training and inference both start from the token ids of the whole prompt (functions that may be called, solved examples
and question), so a router can never be trained on one text and asked with another.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def query_text(tokenizer, prompt_ids: Sequence[int]) -> str:
    """The text of prompt tokens, without special ones.

    Args:
        tokenizer: of the language model.
        prompt_ids: all tokens of the prompt, padding left out.
    """
    return tokenizer.decode(prompt_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()


def encoder_inputs(tokenizer, texts: Sequence[str], max_tokens: int) -> tuple[torch.LongTensor, torch.LongTensor]:
    """Ids and mask [B, S] of texts for the sentence encoder.

    Of a long text the end is read: questions stand behind functions and examples.

    Args:
        tokenizer: of the sentence encoder.
        max_tokens: S is at most this.
    """
    tokenizer.truncation_side = tokenizer.padding_side = "left"
    inputs = tokenizer(list(texts), padding=True, truncation=True, max_length=max_tokens, return_tensors="pt")
    return inputs["input_ids"], inputs["attention_mask"]
