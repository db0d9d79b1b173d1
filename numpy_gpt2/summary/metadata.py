"""The metadata of a checkpoint: its config, verified against the header of the weights file.

The header, the file's first few kilobytes, has the name, dtype and shape of every tensor. No weights are downloaded.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Mapping, Sequence

from ..checkpoint.hub import (RELEASED, ask, cached_file, checkpoint_files, explained, fetch_file, fetch_header,
                              look_up)
from ..checkpoint.json_file import config_from, read_config, read_json_object
from ..checkpoint.loading import check_tensors, checked_config, query_scale
from ..checkpoint.tensors import StoredTensor, stored_tensors
from ..checkpoint.transfer import within
from ..checkpoint.wanted import CONFIG, WEIGHTS, IncompleteCheckpoint, choose_files
from ..config import SIZES, GPT2Config
from ..errors import HubError
from ..weights import parameter_shapes

HEADER_S = 20  # timeout for all headers of a checkpoint from the hub, in seconds


@dataclass(frozen=True)
class Metadata:
    """What is known about a checkpoint without its weights."""

    name: str
    config: GPT2Config
    source: str  # where this comes from, as printed
    types: Mapping[str, str] = field(default_factory=dict)  # each parameter's dtype in the file; empty if unread
    extras: Sequence[str] = ()  # names of other tensors in the file
    has_scaled_queries: bool = False  # whether loading rescales the weights of q

    @property
    def is_verified(self) -> bool:
        """Whether a header was read and has every parameter of the config, with its shape."""
        return bool(self.types)


def read_metadata(name: str | Path) -> Metadata:
    """The metadata of a checkpoint: a built-in name, a folder, or owner/repo, as for `load`.

    The header is read from a local file if there is one, else from the hub. If the hub cannot be reached, the four
    released sizes are still known, unverified. Raises CheckpointError, HubError or ValueError.
    """
    name = str(name)
    place = look_up(name)
    try:
        if isinstance(place, Path):
            files = checkpoint_files(name, None, (CONFIG, WEIGHTS))
        else:
            files = choose_files((CONFIG, WEIGHTS), partial(cached_file, place, "main", []), place)
    except IncompleteCheckpoint as error:
        if isinstance(place, str):
            return metadata_from_hub(name, place)
        if error.wanted != WEIGHTS:
            raise
        config_path = checkpoint_files(name, None, (CONFIG,))["config.json"]
        return Metadata(name, read_config(config_path), "config.json alone, not verified: "
                        "there are no weights to read")
    settings = read_json_object(files["config.json"])
    config = config_from(settings, files["config.json"])
    tensors = stored_tensors(files)
    weights = next(path for file_name, path in files.items() if file_name != "config.json")
    config = checked_config(config, tensors, weights)
    return metadata_of_tensors(name, config, settings, tensors, f"config.json and the header of {weights.name}")


def metadata_of_size(size: str, source: str = "the released settings (numpy_gpt2.SIZES)") -> Metadata:
    """One of the four released sizes, from its config alone."""
    return Metadata(size, SIZES[size], source)


def metadata_from_hub(name: str, repo: str) -> Metadata:
    """The metadata of a repository that is not in the cache: see `read_metadata`."""
    try:
        config_path = checkpoint_files(name, None, (CONFIG,))["config.json"]
        commit = config_path.parent.name  # the cache's layout: snapshots/<commit>/config.json
        tensors = headers_on_hub(repo, commit)
    except HubError as error:
        size = next((size for size in SIZES if RELEASED[size] == repo), None)
        if size is None:
            raise
        source = f"the released settings (numpy_gpt2.SIZES), not verified: {str(error).partition(' Ways out:')[0]}"
        return replace(metadata_of_size(size, source), name=name)
    settings = read_json_object(config_path)
    config = config_from(settings, config_path)
    check_tensors(config, tensors, Path(repo))
    return metadata_of_tensors(name, config, settings, tensors, f"config.json and the header on the hub: {repo} at "
                               f"commit {commit[:8]}")


def headers_on_hub(repo: str, commit: str) -> dict[str, StoredTensor]:
    """The tensors listed in the headers of a repository's weights files. Always uses the network."""
    def read() -> dict[str, StoredTensor]:
        files = choose_files((WEIGHTS,), partial(index_or_name, repo, commit), repo)
        return stored_tensors(files, lambda path: fetch_header(repo, commit, path.name))

    try:
        return within(HEADER_S, read)
    except TimeoutError as error:
        raise explained(error, repo, commit) from error


def index_or_name(repo: str, commit: str, file_name: str) -> Path | None:
    """A FileGetter: downloads the shard index; for a weights file returns only its path. None: no such file."""
    if not file_name.endswith(".safetensors"):
        return fetch_file(repo, commit, file_name)
    return None if ask(repo, commit, file_name) is None else Path(repo, file_name)


def metadata_of_tensors(name: str, config: GPT2Config, settings: Mapping[str, Any],
                        tensors: Mapping[str, StoredTensor], source: str) -> Metadata:
    """The metadata of a checkpoint whose headers match its config."""
    names = parameter_shapes(config)
    types = {name: tensors[name].dtype for name in names}
    extras = [name for name in tensors if name not in names]
    has_scaled_queries = any(query_scale(config, settings, layer) != 1.0 for layer in range(config.n_layer))
    return Metadata(name, config, source, types, extras, has_scaled_queries)
