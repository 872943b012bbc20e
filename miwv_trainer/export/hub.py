"""Uploads a selection as a dataset to the Hugging Face hub."""

from pathlib import Path

import huggingface_hub
from huggingface_hub.utils import validate_repo_id

from miwv_trainer.foreign_errors import describe_error


def check_hub_name(name: str) -> None:
    """
    Refuses a dataset name before a long job, as far as that is possible without asking the hub.

    Raises:
        ValueError: the hub does not allow the name, or there is no token.
    """
    validate_repo_id(name)
    if huggingface_hub.get_token() is None:
        raise ValueError(
            f"{name} cannot be written to the hub without a token: run `hf auth login`, or set HF_TOKEN to one that "
            "may write."
        )


def push_folder(folder: Path, name: str, private: bool) -> str:
    """
    Uploads a folder of `write_folder` as the dataset `name`, which is created if it does not exist.

    Args:
        folder: The folder, which stays.
        name: `user/name`.
        private: Whether a dataset that is created is private.

    Returns:
        The address of the dataset.

    Raises:
        OSError: the hub could not be reached or refused the upload.
    """
    try:
        return _upload(folder, name, private)
    except Exception as error:  # huggingface_hub raises its own errors, httpx's and ValueError alike
        raise OSError(
            f"{name} could not be written to the hub ({describe_error(error)}). {folder} is whole: try again, "
            f"or run `hf upload {name} {folder} --repo-type dataset`."
        ) from error


def _upload(folder: Path, name: str, private: bool) -> str:
    api = huggingface_hub.HfApi()
    api.create_repo(name, repo_type="dataset", private=private, exist_ok=True)
    commit = api.upload_folder(
        repo_id=name,
        repo_type="dataset",
        folder_path=folder,
        # An earlier selection may have had more shards, which `load_dataset` would read as part of this one.
        delete_patterns="data/train-*.parquet",
        commit_message="A selection by miwv_trainer",
    )
    return str(commit.repo_url)
