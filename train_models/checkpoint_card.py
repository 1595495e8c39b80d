"""The model card of a checkpoint goes along when the model that was loaded from it is pushed to the hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import ModelCard
from transformers.utils import cached_file

CARD = "README.md"


class CardOfCheckpoint:
    """Mixin of a model with save_pretrained and push_to_hub, which alone would upload a card of transformers' own."""

    # Folder, or name on the hub, of the loaded checkpoint, with its HUB_ARGUMENTS; None for a base.
    _card_place: tuple[Path | str, dict] | None = None
    _card: bytes | None = None  # What is uploaded as README.md.

    def push_to_hub(self, *args, **kwargs):
        """As in transformers, with the README.md of the checkpoint that the model was loaded from."""
        self._card = self._read_card(kwargs.get("token"))
        return super().push_to_hub(*args, **kwargs)

    def save_pretrained(self, save_directory, is_main_process=True, state_dict=None, push_to_hub=False, **kwargs):
        """As in transformers; with push_to_hub, the README.md of the loaded checkpoint goes along."""
        if push_to_hub:  # Read now: transformers writes a card of its own, maybe over this one, before it uploads.
            self._card = self._read_card(kwargs.get("token"))
        super().save_pretrained(save_directory, is_main_process, state_dict, push_to_hub, **kwargs)

    def _read_card(self, token) -> bytes | None:
        if self._card_place is None:
            return None
        place, where = self._card_place
        if isinstance(place, Path):
            path = place / where.get("subfolder", "") / CARD
            return path.read_bytes() if path.is_file() else None
        found = cached_file(place, CARD, token=token, _raise_exceptions_for_missing_entries=False, **where)
        return None if found is None else Path(found).read_bytes()

    def _upload_modified_files(self, working_dir, *args, **kwargs):
        """Puts the card in the place of the one from transformers, of which only the tags that were asked for stay."""
        if self._card is not None:
            path = Path(working_dir, CARD)
            asked = ModelCard.load(path).data.tags or []
            path.write_bytes(self._card)
            if asked:
                card = ModelCard.load(path)
                tags = card.data.tags or []
                if not set(asked) <= set(tags):
                    card.data.tags = list(dict.fromkeys(tags + asked))
                    card.save(path)
        return super()._upload_modified_files(working_dir, *args, **kwargs)
