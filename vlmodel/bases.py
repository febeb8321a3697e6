"""Base weights: the frozen weights of a model's parts, stored once for all models that share them.

    _bases/SHA256.safetensors   all weights and statistics of one part that training never changes; written once
    model/model.safetensors     what was trained, and buffers
    model/bases.json            the bases of the model's parts, by their hash

A base is searched for in the folder that is given, in that which the environment variable ``VLMODEL_BASES`` names, and
in the folder ``_bases`` within the model's folder or beside any folder above it: so a model finds its bases in the
storage where it was trained, and a copy of it that has ``_bases`` within is complete. A file counts by its hash alone.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open

from vlmodel.weights import WeightsError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


FOLDER, FILE, ENVIRONMENT = "_bases", "bases.json", "VLMODEL_BASES"
WEIGHTS = "model.safetensors"


class BaseWeightsError(WeightsError):
    """The frozen weights on which a model was trained are missing, or the files found hold different weights. The
    message names the files and the remedy.
    """


class BaseWeights(BaseModel):
    """Describes the file with the frozen weights of one part of a model.

    Attributes:
        sha256: of the file.
        bytes: its size.
        tensors: how many it holds.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    bytes: int
    tensors: int

    @property
    def name(self) -> str:
        """The name of the file with the base weights."""
        return f"{self.sha256}.safetensors"


Bases = Mapping[str, BaseWeights]
"""The bases of a model by the path of their part within it."""

_BASES = TypeAdapter(dict[str, BaseWeights])
# The files of which this process knows that they are what their name says, as they were then.
_verified: dict[tuple[int, ...], str] = {}


def frozen_tensors_by_part(model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Collect the tensors of a model that training never changes, by the path of their part and their name within the
    part.
    """
    from vlmodel.parts import Pretrainable

    found = {}
    for path, module in model.named_modules():
        if isinstance(module, Pretrainable) and (names := list(module.frozen_tensor_names())):
            state = module.state_dict()
            found[path] = _drop_other_names_of_tied_tensors({name: state[name] for name in names})
    return found


def frozen_tensor_names(model: nn.Module) -> frozenset[str]:
    """List the full names of the tensors of a model that training never changes."""
    from vlmodel.parts import Pretrainable

    return frozenset(
        f"{path}.{name}"
        for path, module in model.named_modules()
        if isinstance(module, Pretrainable)
        for name in module.frozen_tensor_names()
    )


def store_base_weights(model: nn.Module, folder: Path) -> dict[str, BaseWeights]:
    """Write the frozen weights of each part of a model into a folder, unless their files exist. Several processes may
    do so at once, as each file is written whole.
    """
    return {part: _write_tensors_by_hash(tensors, folder) for part, tensors in frozen_tensors_by_part(model).items()}


def write_base_weights_list(bases: Bases, model: Path) -> None:
    """Write into a model's folder the list of the base weights that it needs (``bases.json``)."""
    if bases:
        (model / FILE).write_bytes(_BASES.dump_json(dict(bases), indent=1))
    else:
        (model / FILE).unlink(missing_ok=True)


def read_base_weights_list(model: Path) -> dict[str, BaseWeights]:
    """Read the list of the base weights that the model in a folder needs; {} if its folder holds all weights.

    Raises:
        BaseWeightsError: the record is damaged.
    """
    try:
        return _BASES.validate_json((model / FILE).read_bytes())
    except FileNotFoundError:
        return {}
    except ValidationError as error:
        reason = str(error).replace("\n", " ")
        raise BaseWeightsError(f"{str(model / FILE)!r} is damaged ({reason}); restore the file from a backup") from None


def find_base_weights_files(model: Path, given: Path | None = None) -> dict[str, Path]:
    """Find the files of the base weights of the model in a folder, by part, and verify their hashes.

    Args:
        given: a folder that is searched first.

    Raises:
        BaseWeightsError: one is nowhere, or its contents are not what its name says.
    """
    files = {}
    for part, base in read_base_weights_list(model).items():
        places = _folders_with_base_weights(model, given)
        candidates = [place / base.name for place in places]
        file = next((candidate for candidate in candidates if candidate.is_file()), None)
        if file is None:
            searched = ", ".join(str(place) for place in places if place.is_dir()) or "no folder of bases"
            raise BaseWeightsError(
                f"the model in {str(model)!r} is built on frozen weights of its part {part!r}, the base {base.name} "
                f"of {base.bytes / 1e6:.1f} MB, which was not found (searched: {searched}); copy that file from the "
                f"folder {FOLDER} of the storage where the model was trained into {str(model / FOLDER)!r}, or name a "
                f"folder that has it in the environment variable {ENVIRONMENT}"
            )
        verify_base_weights_file(file, base)
        files[part] = file
    return files


def verify_base_weights_file(file: Path, base: BaseWeights) -> None:
    """Verify the hash of a file of base weights. A file is hashed once in a process, until it changes.

    Raises:
        BaseWeightsError: it is another, damaged or cut off.
    """
    stamp = _file_fingerprint(file)
    if _verified.get(stamp) == base.sha256:
        return
    with file.open("rb") as opened:
        actual = hashlib.file_digest(opened, "sha256").hexdigest()
    if actual != base.sha256:
        raise BaseWeightsError(
            f"{str(file)!r} ({file.stat().st_size} bytes, sha256 {actual}) is not the base of {base.bytes} bytes that "
            "its name says: it was altered or cut off; delete it, and copy it again from a backup, or from another "
            "storage where it was used"
        )
    _verified[stamp] = base.sha256


@contextmanager
def open_model_weights(model: Path, given: Path | None = None) -> Iterator[dict[str, Any]]:
    """Open the model in a folder as a mapping from names to tensors: its own weights and its base weights. A tensor is
    read when it is used, within the block.

    Args:
        given: a folder of bases, searched first.

    Raises:
        WeightsError: there are none, or they cannot be read.
        BaseWeightsError: a base is missing or another.
    """
    own = model / WEIGHTS
    if not own.is_file():
        raise WeightsError(f"{str(model)!r} holds no weights (no {WEIGHTS}); name the `model` folder of a checkpoint")
    files = {"": own, **{f"{part}.": file for part, file in find_base_weights_files(model, given).items()}}
    weights: dict[str, Any] = {}
    with ExitStack() as stack:
        for prefix, file in files.items():
            try:
                tensors = stack.enter_context(safe_open(file, framework="pt", device="cpu"))
            except SafetensorError as error:  # neither a ValueError nor an OSError
                raise WeightsError(
                    f"the weights in {str(file.parent)!r} are damaged: {error}; restore the file"
                ) from error
            named = {f"{prefix}{name}": tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118 - no mapping
            if twice := sorted(weights.keys() & named.keys()):
                raise WeightsError(f"{str(own)!r} and {str(file)!r} both hold {twice[0]!r}; restore the model's folder")
            weights |= named
        yield weights


def _drop_other_names_of_tied_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keep each tensor once, under the first of its names: an output layer may share its tensor with the word
    embeddings.
    """
    seen: dict[tuple[int, torch.Size], str] = {}
    for name, tensor in tensors.items():
        seen.setdefault((tensor.data_ptr(), tensor.shape) if tensor.numel() else (id(tensor), tensor.shape), name)
    return {name: tensors[name] for name in seen.values()}


def _write_tensors_by_hash(tensors: Mapping[str, Tensor], folder: Path) -> BaseWeights:
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{secrets.token_hex(8)}.partial"
    try:
        # The same weights make the same file, whatever their device and memory layout.
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary)
        with temporary.open("rb") as opened:
            os.fsync(opened.fileno())
            sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
        base = BaseWeights(sha256=sha256, bytes=temporary.stat().st_size, tensors=len(tensors))
        target = folder / base.name
        if not target.is_file() or target.stat().st_size != base.bytes:
            temporary.replace(target)
            _verified[_file_fingerprint(target)] = sha256
    finally:
        temporary.unlink(missing_ok=True)
    return base


def _folders_with_base_weights(model: Path, given: Path | None) -> list[Path]:
    folder = model.resolve()
    named = [given] if given is not None else []
    if variable := os.environ.get(ENVIRONMENT):
        named.append(Path(variable))
    return [*named, *(above / FOLDER for above in (folder, *folder.parents))]


def _file_fingerprint(file: Path) -> tuple[int, ...]:
    """Return a fingerprint that changes whenever the file changes; it includes the change time of the inode."""
    facts = file.stat()
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns
