"""Publish an erasure on a Hub, and read one from there. The token is huggingface_hub's: ``HF_TOKEN`` or ``hf auth login``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import BadFile, BadOption
from ..io.hub import told
from ..patches import Patch
from ..patches.verify import verify
from ..reporting.model_card import HUB_ID, PATCH


def push(folder: str | Path, repo: str, *, private: bool = False, message: str = "") -> dict[str, Any]:
    """Upload a folder of :func:`efface.card` to ``OWNER/NAME``, which is made where it is not there. Returns the address.

    Every file of efface in it is verified first. Raises BadOption for a name that is none, BadFile for a folder without a patch
    or with a file that fails, and where the Hub does not take it; what the Hub said is in the message, the token never is.
    """
    from huggingface_hub import HfApi

    folder = Path(folder)
    if not HUB_ID.fullmatch(repo):
        raise BadOption(f"{repo!r} is no repository of the form OWNER/NAME.")
    for name in (PATCH, "README.md"):
        if not (folder / name).is_file():
            raise BadFile(f"{folder} has no {name}; make the folder with efface card --out {folder}.")
    ours = [*sorted(folder.glob("*.safetensors")), *(p.parent for p in sorted(folder.glob("*/efface_card.json")))]
    for path in ours:
        wrong = [c for c in verify(path).checks if c.status == "failed"]
        if wrong:
            raise BadFile(f"{path} was not uploaded, because its {wrong[0].name} is wrong: {wrong[0].text}")
    api = HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            commit_message=message or f"An erasure, by efface: {Patch.load(folder / PATCH).card.request.asked[0]} erased",
        )
    except Exception as error:  # huggingface_hub and its HTTP client raise many kinds
        raise BadFile(f"{repo} was not uploaded: {told(error)}") from error
    return {"repo": repo, "url": str(done), "files": sum(p.is_file() for p in folder.rglob("*"))}


def load_patch(source: str | Path, *, revision: str | None = None) -> Patch:
    """A patch from a file, or from a Hub repository ``OWNER/NAME`` that :func:`push` filled: from the cache where it was read
    before, without a network too (``HF_HUB_OFFLINE=1``).

    revision: a branch, a tag or a commit. Raises BadFile where there is no such file or repository, and for a file that is not
    as it was written.

    >>> import efface
    >>> efface.erase("tiny", "uce", targets="cat").save("no-cat.safetensors")
    >>> efface.load_patch("no-cat.safetensors")
    <Patch: uce of 'cat' from 'tiny', ... tensors, norm ...>

    """
    path = Path(source)
    if path.is_dir() and (path / PATCH).is_file():
        path = path / PATCH
    if path.exists() or not HUB_ID.fullmatch(str(source)) or path.suffix == ".safetensors":
        if revision is not None:
            raise BadOption(f"{source} is a file, which has no revision; leave revision out.")
        return Patch.load(path)
    from huggingface_hub import hf_hub_download

    try:
        file = hf_hub_download(str(source), PATCH, revision=revision)
    except Exception as error:  # huggingface_hub and its HTTP client raise many kinds
        raise BadFile(f"there is no file {str(source)!r}, and as a repository it was not read: {told(error)}") from error
    return Patch.load(file)
