"""From a name to files: a built-in name, a folder, or a repository on the Hugging Face Hub.

A repository is looked for in the hub's local cache first; if all its files are there, the network is not used.
`huggingface_hub` then provides the client, and honours HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE and tokens. It would report
an unreachable hub only after five retries for each file, so we ask about each file once and download it ourselves
(download.py).
"""

import os
import re
import warnings
from contextlib import closing, suppress
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, Sequence

from ..errors import CheckpointError, CheckpointWarning, HubError, one_line, shown
from .download import cache_folder, download_file
from .json_file import LARGEST_TEXT
from .saving import interrupted_save
from .tensors import StoredTensor, header_length, tensors_in_header
from .transfer import ANSWER_S, SILENCE_S, http_get, within
from .wanted import SAVE_AGAIN, WEIGHTS, IncompleteCheckpoint, Wanted, choose_files, files_in_folder

BUNDLED = {"fairytale": Path(__file__).parents[1] / "fairytale"}

RELEASED = {
    "small": "openai-community/gpt2",
    "medium": "openai-community/gpt2-medium",
    "large": "openai-community/gpt2-large",
    "xl": "openai-community/gpt2-xl",
    "gpt2": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    "gpt2-xl": "openai-community/gpt2-xl",
    "distilgpt2": "distilbert/distilgpt2",
}

# Other GPT-2s that people call by name without the owner. The error names the owner; it is not filled in silently.
WELL_KNOWN = (
    "microsoft/DialoGPT-small", "microsoft/DialoGPT-medium", "microsoft/DialoGPT-large", "sshleifer/tiny-gpt2",
    "stanford-crfm/BioMedLM", "stanford-crfm/alias-gpt2-small-x21", "stanford-crfm/battlestar-gpt2-small-x49",
    "codeparrot/codeparrot", "codeparrot/codeparrot-small", "dbmdz/german-gpt2", "NlpHUST/gpt2-vietnamese",
    "aubmindlab/aragpt2-base", "aubmindlab/aragpt2-medium", "uer/gpt2-chinese-cluecorpussmall",
    "cerebras/Cerebras-GPT-111M", "cerebras/Cerebras-GPT-256M", "cerebras/Cerebras-GPT-590M",
    "cerebras/Cerebras-GPT-1.3B")

WAYS_OUT = ("Ways out: try again later, use a cache that has the files (HF_HOME), a folder that has them, "
            'a mirror (HF_ENDPOINT), or the bundled checkpoint "fairytale".')

REFUSALS = {
    401: "it does not exist, or it is private: check the name, or log in (hf auth login, or HF_TOKEN)",
    403: "you may not read it: ask for access on its page on the hub, or log in (hf auth login, or HF_TOKEN)",
    429: "too many requests from here: wait a few minutes, or log in (hf auth login, or HF_TOKEN)",
}


# From a name to files -------------------------------------------------------------------------------------------------


def checkpoint_files(name: str | Path, revision: str | None, wanted: Sequence[Wanted]) -> dict[str, Path]:
    """The files of a checkpoint: name in the checkpoint -> path. Those on the hub are downloaded if necessary.

    name: a built-in name, a folder, or owner/repo. revision: of a repository, a branch, a tag or a commit. wanted: of
    CONFIG, GENERATION, WEIGHTS, TOKENIZER; shards come with their index.
    Raises CheckpointError (a file), HubError (the network) or ValueError (an argument).
    """
    name = str(name)
    place = look_up(name)
    if isinstance(place, str):
        return hub_files(place, checked_revision(revision), wanted)
    if revision is not None:
        raise ValueError(f"revision is for repositories on the hub; {name!r} is a folder. Got revision {revision!r}.")
    interrupted = interrupted_save(place)
    if interrupted is not None:
        raise CheckpointError(f"{place}: a save was interrupted, or is still running: save again, or finish it: move "
                              f"the files in {interrupted.name} here, config.json last.")
    return files_in_folder(place, wanted)


def look_up(name: str) -> Path | str:
    """A folder, or a repository's name on the hub: built-in names first, then existing folders, then the hub."""
    if name in BUNDLED:
        return BUNDLED[name]
    if name in RELEASED:
        return RELEASED[name]
    if os.path.isdir(name):
        return Path(name)
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name, re.ASCII):
        return name
    for repo in WELL_KNOWN:
        if repo.lower().endswith(f"/{name.lower()}"):
            raise ValueError(f"no checkpoint {name!r}: on the hub it is {repo}.")
    if os.path.isfile(name):
        raise ValueError(f"{name}: a file: expected the folder that it is in, with config.json and model.safetensors.")
    known = [*BUNDLED, *RELEASED]
    near = get_close_matches(name.lower(), known, n=1, cutoff=0.8)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise ValueError(f"no checkpoint {name!r}: expected one of {', '.join(known)}, a folder that exists, or "
                     f"owner/repo on the hub.{hint}")


def checked_revision(revision: str | None) -> str:
    """The revision, "main" for None. Raises ValueError for what git would refuse: it becomes a path in the cache."""
    if revision is None:
        return "main"
    is_name = isinstance(revision, str) and re.fullmatch(r"[^\s/.\\:~^?*\[-][^\s\\:~^?*\[]{0,199}", revision)
    if not is_name or not revision.isprintable() or re.search(r"\.\.|//|/\.|/$", revision):
        raise ValueError(f"revision must be a branch, a tag or a commit. Got {shown(revision)}.")
    return revision


# The hub --------------------------------------------------------------------------------------------------------------


def hub_files(repo: str, revision: str, wanted: Sequence[Wanted]) -> dict[str, Path]:
    """The files from the hub's cache or, unless it knows of each, from the network, all from one commit.

    transformers caches what it downloads as "gpt2" under that name; the files are the same.
    """
    usable = None  # files that would do, and the names of others that the repository may also have
    for name in [repo, repo.partition("/")[2]] if repo in RELEASED.values() else [repo]:
        unknown: list[str] = []
        with suppress(IncompleteCheckpoint):
            files = choose_files(wanted, partial(cached_file, name, revision, unknown), name)
            if not unknown:
                return files
            usable = usable or (files, unknown)
    try:
        commit = current_commit(repo, revision)  # a branch may move between two files; a commit does not
        files = choose_files(wanted, partial(fetch_file, repo, commit), repo)
    except HubError as error:
        if usable is None:
            raise
        files, unknown = usable
        warnings.warn(f"{repo}: loaded from the cache, without checking whether the hub also has {', '.join(unknown)}: "
                      f"{error}", CheckpointWarning, stacklevel=4)
        return files
    except IncompleteCheckpoint as error:
        if error.wanted == WEIGHTS:
            raise IncompleteCheckpoint(f"{error} Where a repository has other formats only, {SAVE_AGAIN}; or it has a "
                                       "revision with model.safetensors (see its pull requests).", WEIGHTS) from None
        raise
    if revision != commit:
        remember(repo, f"refs/{revision}", commit)  # only now that all its files are there, for use offline
    return files


def cached_file(repo: str, revision: str, unknown: list[str], file_name: str) -> Path | None:
    """The file's path in the cache, or None. The network is not used. A FileGetter.

    unknown: gets the name, unless the cache has the file or knows that the repository does not.
    """
    from huggingface_hub import try_to_load_from_cache
    found = try_to_load_from_cache(repo, file_name, revision=revision)
    if found is None:
        unknown.append(file_name)
    return Path(found) if isinstance(found, str) else None  # a marker object: known not to exist


def current_commit(repo: str, revision: str) -> str:
    """The commit that a branch or tag points to. Raises ValueError if the hub has no such revision."""
    metadata = ask(repo, revision, "config.json")
    if metadata is None:
        raise ValueError(f"{repo}, revision {revision!r}, has no config.json: expected a checkpoint of GPT-2.")
    return metadata.commit_hash


def fetch_file(repo: str, commit: str, file_name: str) -> Path | None:
    """Download a file into the cache and verify it, unless it is cached. None: this commit has no such file."""
    from huggingface_hub import hf_hub_url
    unknown: list[str] = []
    path = cached_file(repo, commit, unknown, file_name)
    if not unknown:
        return path
    metadata = ask(repo, commit, file_name)
    if metadata is None:
        remember(repo, f".no_exist/{commit}/{file_name}")
        return None
    url = hf_hub_url(repo, file_name, revision=commit)
    try:
        return download_file(url, repo, commit, file_name, metadata.etag, metadata.size)
    except Exception as error:
        raise explained(error, repo, commit) from error


def fetch_header(repo: str, commit: str, file_name: str) -> list[StoredTensor]:
    """The tensors listed in the header of a weights file. The weights are not downloaded, and nothing is cached."""
    from huggingface_hub import hf_hub_url
    url, start = hf_hub_url(repo, file_name, revision=commit), b""
    try:
        with closing(http_get(url, file_name, {"Range": f"bytes=0-{LARGEST_TEXT + 8}"})) as response:
            for piece in response.iter_bytes():
                start += piece
                if len(start) >= 8 + header_length(start):
                    break
    except Exception as error:
        raise explained(error, repo, commit) from error
    return tensors_in_header(start, Path(repo, file_name))  # the path is what errors call it


def remember(repo: str, note: str, text: str = "") -> None:
    """Record in the cache, in a file as huggingface_hub writes it, what the next load then need not ask.

    The layout is documented: refs/<revision> holds a commit's name; an empty .no_exist/<commit>/<file>: no such file.
    """
    path = cache_folder(repo) / note
    with suppress(OSError):  # the cache is read-only: the next load asks again
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def ask(repo: str, revision: str, file_name: str) -> Any:
    """What the hub says about a file: its commit, etag and size. None: no such file. No retries; ANSWER_S at most."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
    url = hf_hub_url(repo, file_name, revision=revision)
    try:
        metadata = within(ANSWER_S, lambda: get_hf_file_metadata(url, timeout=SILENCE_S))
    except Exception as error:
        if status_of(error) == 404 and not isinstance(error, (RepositoryNotFoundError, RevisionNotFoundError)):
            return None  # a mirror may say no more than 404
        raise explained(error, repo, revision) from error
    for name in (metadata.commit_hash, metadata.etag):  # both become names in the cache
        if not re.fullmatch(r"[\w-]{1,200}", name or "", re.ASCII):
            raise HubError(f"{without_password(url)}: the server does not answer as a hub does (no commit, or no "
                           "etag): check HF_ENDPOINT and proxies.")
    return metadata


# Errors ---------------------------------------------------------------------------------------------------------------


def status_of(error: BaseException) -> int | None:
    """The HTTP status of an error, if the server responded at all."""
    return getattr(getattr(error, "response", None), "status_code", None)


def explained(error: Exception, repo: str, revision: str) -> Exception:
    """The exception to raise for an error of huggingface_hub or its transport, whose classes vary between versions."""
    from huggingface_hub import constants
    from huggingface_hub.errors import OfflineModeIsEnabled, RevisionNotFoundError
    status, endpoint = status_of(error), without_password(constants.ENDPOINT)
    if isinstance(error, (HubError, CheckpointError)):
        return error
    if isinstance(error, RevisionNotFoundError):
        return ValueError(f"{repo} has no revision {revision!r} on the hub: expected a branch, a tag or a commit.")
    if status == 404:
        return ValueError(f"there is no repository {repo} on the hub ({endpoint}): check the name.")
    if isinstance(error, OfflineModeIsEnabled):
        return HubError(f"{repo} is not fully cached, and HF_HUB_OFFLINE forbids asking the hub. {WAYS_OUT}")
    if status is not None:
        reason = REFUSALS.get(status, "see its status page, or try again later")
        wait = error.response.headers.get("Retry-After", "")  # type: ignore[attr-defined]  # there is a status
        asked = f" (it asks you to wait {int(wait)} s)" if re.fullmatch("[0-9]{1,9}", wait) else ""  # else a date
        return HubError(f"the hub answered {status} for {repo}: {reason}{asked}. {WAYS_OUT}")
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return HubError(f"{error.filename}: cannot be written: {error.strerror}. Free some space, or set HF_HOME to "
                        "another folder.")
    reason = (one_line(error) or type(error).__name__).rstrip(".") + "."
    if endpoint != constants.ENDPOINT:
        reason = f"{type(error).__name__}."  # its message may contain parts of the password
    if not re.match("https?://[^/]", constants.ENDPOINT):
        return HubError(f"HF_ENDPOINT must be a URL, such as https://huggingface.co. Got {shown(endpoint)}: {reason}")
    return HubError(f"the hub ({endpoint}) cannot be reached, or the connection broke: {reason} {WAYS_OUT}")


def without_password(text: str) -> str:
    """The text without the user names and passwords of the URLs in it."""
    return re.sub(r"(?<=//)\S*@|[^\s/]+:(?!//)\S*@", "", text)
