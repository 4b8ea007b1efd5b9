"""A folder as a private dataset of the hub."""

import re
from pathlib import Path

from datablame.errors import DatablameError, PhaseError, RequestError, problem
from datablame.models.source import hub_problem

_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_BY_THE_HUB = ".gitattributes"
"""In every repository from its beginning."""
_REFUSALS = (401, 403, 404, 409)


def check_repository(repo: str) -> None:
    """Refuse, before anything is read or sent, a name that cannot be one, and to go on without a token or a network."""
    import huggingface_hub

    if _NAME.fullmatch(repo) is None:
        raise RequestError(problem("export", "no name", repo=repo))
    if huggingface_hub.get_token() is None:
        raise RequestError(problem("export", "no token"))
    if huggingface_hub.is_offline_mode():
        raise RequestError(problem("export", "offline"))


def upload(folder: Path, repo: str) -> str:
    """Make the private dataset, or take one that is empty, and commit the folder at once; its address.

    Raises:
        RequestError: the repository is public or holds files, or the hub refuses the token or the name.
        PhaseError: the hub fails or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    api = HfApi(library_name="datablame")
    try:
        address = str(api.create_repo(repo, repo_type="dataset", private=True, exist_ok=True))
        there = api.dataset_info(repo)
        if not there.private:
            raise RequestError(problem("export", "public", repo=repo))
        names = [each.rfilename for each in there.siblings or () if each.rfilename != _BY_THE_HUB]
        if names:
            raise RequestError(problem("export", "holds files", repo=repo, first=names[0]))
        api.upload_folder(repo_id=repo, repo_type="dataset", folder_path=folder, commit_message="datablame export")
    except HFValidationError:
        raise RequestError(problem("export", "no name", repo=repo)) from None
    except Exception as error:  # Of the SDK's HTTP clients no base is public.
        if hub_problem(error) is None:
            raise
        raise _failure(repo, error) from error
    return address


def _failure(repo: str, error: Exception) -> DatablameError:
    response = getattr(error, "response", None)
    if response is not None and response.status_code in _REFUSALS:
        return RequestError(problem("export", "refused", repo=repo, status=response.status_code))
    reason = response.status_code if response is not None else type(error).__name__
    return PhaseError(problem("export", "fails", repo=repo, reason=reason))
