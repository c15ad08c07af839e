"""Takes seen users out of a bundle: nothing stays in its files that stands for them alone.

- `graph/users`: their ids and embeddings.
- `graph/choosers`: what they chose. So nobody is onboarded by them as a neighbour.
- `graph/responses`: of the degrees, their edges to each response that they chose; else these degrees would still tell their
  choices, as those that no chooser accounts for.
- `reward/prototypes`: a prototype is a mean of users, and a mean of one is that user. Those that they were nearest to are taken
  again without them, and those that stood for them alone are left out.

What was learnt from them together with others stays until the next fit without them: the weights of the models, and the
embeddings of responses. So do counts that name nobody: the degrees of rejected responses (a bundle does not know who rejected
what).

The bundle gets a new name. A name is a fingerprint of the content, answers quote it, and the same user cannot be `seen` and
`unknown` under one name. And embeddings of onboarded users are kept by it, which were mixed from those of their neighbours:
under the new name they are made again, from the users' own choices, the first time that they are asked for.

Shapes: U users, R responses, E chooser entries, K prototypes, D user embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from penchant.artifacts import MANIFEST, Manifest
from penchant.data.dropping import refuse_unknown
from penchant.errors import ArtifactError, DataError, OutputError
from penchant.graph.neighbours import NeighbourIndex
from penchant.scoring.bundle import BundleParts, read_bundle, write_bundle

FORGOTTEN = "forgotten"
"""Among the manifest's counts: how many users were taken out since training."""
_FEWEST_USERS = 2


@dataclass(frozen=True)
class Forgotten:
    """What became of a bundle."""

    manifest: Manifest
    """Of the bundle without the users; of the one that was read, if it held none of them."""
    folder: Path
    """Where it stands."""
    users: list[str]
    """Who was taken out."""


def forget_users(
    folder: Path,
    users: Sequence[str],
    *,
    out: Path | None = None,
    known_elsewhere: Collection[str] = (),
    before: Callable[[], None] = lambda: None,
) -> Forgotten:
    """Takes users out of a bundle. It is written beside the old one, whole, and then takes its place.

    Copies that stand elsewhere, the folder of the run that made the bundle and a service that has it loaded are not reached.

    Args:
        folder: The bundle's.
        users: Ids of its seen users.
        out: Where to write the bundle without them; the old one then stays as it is. By default it replaces the old one.
        known_elsewhere: Those among `users` whom the bundle need not know.
        before: Called when nothing can be refused any more, and before anything is written.

    Raises:
        DataError: Somebody whom the bundle does not know, or hardly anybody would be left. Nothing is written then.
        ArtifactError: Not a bundle, a damaged one, or (without `out`) a folder with other files in it.
        OutputError: `out` is there already, an interrupted write left a copy of the bundle, or the folder cannot be written.
    """
    target = folder.resolve()  # of a link, what it leads to is replaced
    if out is None:
        _refuse_leftovers(target)
    else:
        _refuse_occupied(out, target)
    manifest = Manifest.read(target, verify=True)
    _, parts = read_bundle(target)
    known = set(parts.user_ids)
    refuse_unknown(users, known.union(known_elsewhere), where=f"bundle {folder}")
    leaving = [user for user in dict.fromkeys(users) if user in known]
    if leaving and len(known) - len(leaving) < _FEWEST_USERS:
        raise DataError(
            f"Of its {len(known)} users {len(known) - len(leaving)} would be left.",
            where=f"bundle {folder}",
            fix="Delete the bundle, or fit one on other users.",
        )
    if leaving and out is None:
        _refuse_strangers(target, manifest)
    before()
    if not leaving:
        return Forgotten(manifest, folder, [])
    counts = manifest.counts | {FORGOTTEN: manifest.counts.get(FORGOTTEN, 0) + len(leaving)}
    written = write_bundle(out or target, without_users(parts, leaving), dataset=manifest.dataset, counts=counts)
    return Forgotten(written, out or folder, leaving)


def without_users(parts: BundleParts, users: Collection[str]) -> BundleParts:
    """A bundle's parts without some of its users. All other users keep their embeddings."""
    leaving = set(users)
    kept_U = np.array([user not in leaving for user in parts.user_ids], dtype=bool)
    user_UD = parts.user_UD[torch.from_numpy(kept_U)]
    index, degree = _without_choosers(parts.neighbours, parts.response_degree, kept_U, user_UD)
    return replace(
        parts,
        user_ids=parts.user_ids[kept_U],
        user_UD=user_UD,
        neighbours=index,
        response_degree=degree,
        prototype_KD=_prototypes_without(parts.prototype_KD, parts.user_UD, torch.from_numpy(kept_U)),
    )


def _without_choosers(
    index: NeighbourIndex, degree_2R: Tensor, kept_U: np.ndarray, user_UD: Tensor
) -> tuple[NeighbourIndex, Tensor]:
    """Who chose what without the users who go, the others by their new rows; and the degrees (2, R) of responses."""
    responses = len(index.offset) - 1
    response_E = np.repeat(np.arange(responses), np.diff(index.offset))
    kept_E = kept_U[index.chooser]
    offset = np.zeros_like(index.offset)
    np.cumsum(np.bincount(response_E[kept_E], minlength=responses), out=offset[1:])
    row_U = np.cumsum(kept_U) - 1
    chooser = row_U[index.chooser[kept_E]].astype(index.chooser.dtype)
    degree_2R = degree_2R.clone()
    gone = np.bincount(response_E[~kept_E], weights=index.times[~kept_E], minlength=responses)
    degree_2R[0] -= torch.from_numpy(gone).to(degree_2R.dtype)
    return replace(index, user_UD=user_UD.numpy(), offset=offset, chooser=chooser, times=index.times[kept_E]), degree_2R


def _prototypes_without(prototype_KD: Tensor, user_UD: Tensor, kept_U: Tensor) -> Tensor:
    """The prototypes; those that a user who goes is nearest to become the mean of who is left there, if anybody is."""
    nearest_U = (user_UD @ prototype_KD.T).argmax(dim=1)
    prototype_KD = prototype_KD.clone()
    empty = []
    for prototype in nearest_U[~kept_U].unique().tolist():
        members = user_UD[kept_U & (nearest_U == prototype)]
        if len(members):
            prototype_KD[prototype] = functional.normalize(members.mean(0), dim=0)
        else:
            empty.append(prototype)
    return prototype_KD[[row for row in range(len(prototype_KD)) if row not in empty]]


def _refuse_leftovers(folder: Path) -> None:
    left = sorted(folder.parent.glob(f".{folder.name}.*"))
    if left:
        raise OutputError(
            "A copy of the bundle stands there: its writing was interrupted, or goes on.",
            where=str(left[0]),
            fix=f"If there is no bundle at {folder}, move it there; else delete it: it may hold users who were forgotten.",
        )


def _refuse_occupied(out: Path, folder: Path) -> None:
    if out.resolve().is_relative_to(folder):
        raise OutputError("It lies in the bundle itself.", where=str(out), fix="Leave out --out to replace the bundle.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError("It is there already, and not empty.", where=str(out), fix="Choose another folder.")


def _refuse_strangers(folder: Path, manifest: Manifest) -> None:
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    strangers = sorted(found - set(manifest.files) - {MANIFEST})
    if strangers:
        raise ArtifactError(
            "It does not belong to the bundle, which is replaced whole.",
            where=str(folder / strangers[0]),
            fix="Move it away, or write the new bundle elsewhere with --out.",
        )
