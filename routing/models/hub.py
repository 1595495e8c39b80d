"""Uploading a folder to the HuggingFace hub: private unless the user says otherwise, with errors to act on."""

from __future__ import annotations

from pathlib import Path

from routing.common.errors import UserError


def is_repo_id(name: str) -> bool:
    """Whether a name has the form OWNER/NAME or, for old models, NAME."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def upload(folder: Path, files: list[str], repo_id: str, repo_type: str, public: bool, message: str) -> str:
    """Upload some files of a folder in one commit; returns the address.

    Args:
        files: names in the folder.
        repo_id: OWNER/NAME, made if it is not there.
        repo_type: model or dataset.
        public: whether everybody may read it.
        message: of the commit.

    Raises:
        UserError: if the hub cannot be reached or refuses, or the repository is public and `public` is false.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    api = HfApi()
    try:
        url = api.create_repo(repo_id, repo_type=repo_type, private=not public, exist_ok=True)
        if not public and not api.repo_info(repo_id, repo_type=repo_type).private:
            raise UserError(
                f"{repo_id} is public already, so everybody could read what is uploaded. Give --public if that is what "
                "you want, or another --repo_id."
            )
        api.upload_folder(
            repo_id=repo_id, repo_type=repo_type, folder_path=folder, allow_patterns=files, commit_message=message
        )
    except HfHubHTTPError as error:
        raise UserError(
            f"the hub refuses --repo_id {repo_id!r}: {_first_line(error)}. Log in with `hf auth login`, using a token "
            "that may write there."
        ) from error
    except (HTTPError, OSError) as error:
        raise UserError(
            f"the hub cannot be reached to upload {repo_id!r}: {_first_line(error)}. The card is written; run the same "
            "command again where there is a connection, or leave --push out."
        ) from error
    return str(url)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
