import dataclasses

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import penchant.artifacts as artifacts
from penchant.artifacts import Manifest, list_files
from penchant.data.choices import TextComparison
from penchant.errors import ArtifactError, DataError, OutputError
from penchant.graph.neighbours import NeighbourIndex
from penchant.scoring.bundle import read_bundle, write_bundle
from penchant.scoring.forgetting import forget_users
from penchant.scoring.model import PersonalisedRewardModel


@pytest.fixture
def folder(bundle, tmp_path):
    """A copy of the bundle, with a prototype that is one user's embedding: k-means leaves such where somebody is like nobody."""
    _, parts, _ = bundle
    prototypes = torch.cat([parts.prototype_KD, parts.user_UD[5:6]])
    write_bundle(tmp_path / "bundle", dataclasses.replace(parts, prototype_KD=prototypes), dataset="d", counts={"users": 60})
    return tmp_path / "bundle"


def traces(folder, user, embedding):
    """Files that hold the user's id, or their embedding's bytes, whatever the encoding of the file."""
    found = set()
    for path in folder.rglob("*"):
        if path.is_dir():
            continue
        content = path.read_bytes()
        if path.suffix == ".parquet":
            content += repr(pq.read_table(path).to_pydict()).encode()
        if user.encode() in content or embedding.numpy().tobytes() in content:
            found.add(path.relative_to(folder).as_posix())
    return found


def of_ids(parts, response):
    """Ids of those who chose a response, as the bundle knows them."""
    return set(parts.user_ids[parts.neighbours.neighbours(np.array([response]))])


def test_nothing_of_them_stays(folder, bundle):
    _, parts, _ = bundle
    user, embedding = parts.user_ids[5], parts.user_UD[5]
    assert traces(folder, user, embedding) == {"graph/users.parquet", "graph/users.safetensors", "reward/prototypes.safetensors"}
    before = Manifest.read(folder)
    forgotten = forget_users(folder, [user])
    assert traces(folder, user, embedding) == set()
    assert forgotten.users == [user]
    after = Manifest.read(folder, verify=True)
    assert after == forgotten.manifest
    assert after.name != before.name
    assert after.counts == {"users": 60, "forgotten": 1}
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"], "no copy is left"
    assert len(read_bundle(folder)[1].prototype_KD) == len(parts.prototype_KD), "the prototype that was this user alone is gone"


def test_all_others_keep_their_scores(folder, bundle):
    _, parts, _ = bundle
    leaving = [parts.user_ids[row] for row in (0, 17, 59)]
    responses = ["The moon pulls on the sea.", "Ha!"]
    before = {user: PersonalisedRewardModel.load(folder).score(user, "Explain tides.", responses) for user in parts.user_ids[:20]}
    files = Manifest.read(folder).files
    assert forget_users(folder, leaving).users == leaving
    model = PersonalisedRewardModel.load(folder)
    assert model.parts.user_ids.tolist() == [user for user in parts.user_ids if user not in leaving]
    for user, known in before.items():
        answer = model.score(user, "Explain tides.", responses)
        if user in leaving:
            assert answer.personalisation == "unknown"
            assert answer.score == answer.uniform == known.uniform != known.score
        else:
            assert answer == dataclasses.replace(known, bundle=model.manifest.name)
    changed = {name for name, digest in list_files(folder).items() if files[name] != digest}
    assert changed == {
        "graph/users.parquet",
        "graph/users.safetensors",
        "graph/choosers.safetensors",
        "graph/responses.safetensors",
        "reward/prototypes.safetensors",
    }


def test_nobody_is_onboarded_by_them(folder, bundle, planted):
    dataset, _ = planted
    _, parts, _ = bundle
    train = dataset.select(split="train", cohort="seen")
    leaving = {parts.user_ids[row] for row in (0, 17, 59)}
    mine = next(row for row in range(len(train)) if dataset.user_ids[train.user[row]] in leaving)
    chosen, rejected = train.chosen[mine], train.rejected[mine]
    prompt = dataset.prompts[dataset.prompt_of_response[chosen]]
    choice = TextComparison(prompt, dataset.responses[chosen], dataset.responses[rejected])
    assert of_ids(parts, chosen) & leaving
    before = PersonalisedRewardModel.load(folder).embed_choices({"new": [choice]})["new"]
    forget_users(folder, sorted(leaving))
    model = PersonalisedRewardModel.load(folder)
    assert of_ids(model.parts, chosen) == of_ids(parts, chosen) - leaving
    assert not torch.equal(model.embed_choices({"new": [choice]})["new"], before)
    # The index is the one that would have been built without them.
    others = train.take(np.array([dataset.user_ids[user] not in leaving for user in train.user]))
    row = {user: number for number, user in enumerate(model.parts.user_ids)}
    rows = np.array([row[dataset.user_ids[user]] for user in others.user])
    user_UD, response_RD = model.parts.user_UD.numpy(), model.parts.response_layers[-1].numpy()
    expected = NeighbourIndex.build(rows, others.chosen, user_UD, response_RD)
    assert np.array_equal(model.parts.neighbours.offset, expected.offset)
    assert np.array_equal(model.parts.neighbours.chooser, expected.chooser)
    assert np.array_equal(model.parts.neighbours.times, expected.times)


def test_degrees_do_not_tell_what_they_chose(folder, bundle):
    """An edge that no chooser accounts for would be one of theirs."""

    def unaccounted(parts):
        index = parts.neighbours
        response = np.repeat(np.arange(len(index.offset) - 1), np.diff(index.offset))
        return parts.response_degree[0].numpy() - np.bincount(response, index.times, minlength=len(index.offset) - 1)

    before = read_bundle(folder)[1]
    forget_users(folder, [before.user_ids[3]])
    after = read_bundle(folder)[1]
    assert before.neighbours.times.max() > 1, "somebody chose a response twice"
    assert not unaccounted(before).any()
    assert not unaccounted(after).any()
    assert after.response_degree[0].sum() < before.response_degree[0].sum()
    assert torch.equal(after.response_degree[1], before.response_degree[1])


def test_prototypes_are_means_of_those_who_stay(folder, bundle):
    """Of a mean and all but one of its members the last can be told."""
    before = read_bundle(folder)[1]
    nearest_U = (before.user_UD @ before.prototype_KD.T).argmax(1)
    prototype = int(nearest_U[8])
    members = torch.nonzero(nearest_U == prototype).flatten().tolist()
    assert len(members) > 2
    forget_users(folder, [before.user_ids[8]])
    after = read_bundle(folder)[1].prototype_KD
    mean = before.user_UD[[row for row in members if row != 8]].mean(0)
    assert torch.allclose(after[prototype], mean / mean.norm(), atol=1e-6)
    untouched = [row for row in range(len(after)) if row != prototype]
    assert torch.equal(after[untouched], before.prototype_KD[untouched])


def test_written_elsewhere_it_leaves_the_old_one(folder, tmp_path):
    files, user = list_files(folder), read_bundle(folder)[1].user_ids[0]
    (folder / "notes.txt").write_text(f"about {user}")
    forgotten = forget_users(folder, [user], out=tmp_path / "deep" / "new")
    (folder / "notes.txt").unlink()
    assert list_files(folder) == files
    assert Manifest.read(tmp_path / "deep" / "new", verify=True) == forgotten.manifest
    assert not (tmp_path / "deep" / "new" / "notes.txt").exists()


def test_twice_counts_twice_and_a_link_stays_a_link(folder, tmp_path):
    (tmp_path / "current").symlink_to("bundle")
    ids = read_bundle(folder)[1].user_ids
    forget_users(tmp_path / "current", [ids[0], ids[1]])
    assert forget_users(tmp_path / "current", [ids[2], ids[2]]).manifest.counts["forgotten"] == 3
    assert (tmp_path / "current").is_symlink()
    assert len(read_bundle(folder)[1].user_ids) == len(ids) - 3


def test_who_is_known_elsewhere_need_not_be_in_the_bundle(folder):
    files = list_files(folder)
    forgotten = forget_users(folder, ["online"], known_elsewhere={"online"})
    assert forgotten.users == []
    assert forgotten.manifest == Manifest.read(folder)
    assert list_files(folder) == files


@pytest.mark.parametrize(
    ("spoil", "users", "out", "error", "said"),
    [
        (None, ["nobody", "user-0001"], None, DataError, "'nobody'"),
        (None, [f"no-{number}" for number in range(8)], None, DataError, "and 3 more"),
        (None, "all but one", None, DataError, "1 would be left"),
        (None, ["user-0001"], "", OutputError, "in the bundle itself"),
        (None, ["user-0001"], "new", OutputError, "in the bundle itself"),
        (None, ["user-0001"], "..", OutputError, "not empty"),
        (lambda folder: (folder / "notes.txt").write_text("mine"), ["user-0001"], None, ArtifactError, "does not belong"),
        (lambda folder: (folder / "manifest.json").unlink(), ["user-0001"], None, ArtifactError, "not a bundle"),
        (lambda folder: _lengthen(folder / "graph" / "users.parquet"), ["user-0001"], None, ArtifactError, "not the file"),
        (lambda folder: (folder.parent / ".bundle.x.old").mkdir(), ["user-0001"], None, OutputError, "interrupted"),
    ],
)
def test_refused_before_anything_is_written(folder, spoil, users, out, error, said):
    if users == "all but one":
        users = read_bundle(folder)[1].user_ids[1:].tolist()
    if spoil is not None:
        spoil(folder)
    before, names = list_files(folder), sorted(path.name for path in folder.parent.iterdir())
    with pytest.raises(error) as raised:
        forget_users(folder, users, out=None if out is None else folder / out)
    assert said in str(raised.value)
    assert list_files(folder) == before
    assert sorted(path.name for path in folder.parent.iterdir()) == names


@pytest.mark.parametrize("at", [1, 9, -1])
def test_what_fails_half_way_leaves_the_old_bundle_whole(folder, monkeypatch, at):
    """At the first file, in the middle, and when the new folder should take the old one's place."""
    before, replace, calls = Manifest.read(folder), artifacts.os.replace, []

    def failing(source, target):
        calls.append(target)
        if len(calls) == at or (at == -1 and target == folder and not str(source).endswith(".old")):
            raise OSError("pulled out")
        replace(source, target)

    monkeypatch.setattr(artifacts.os, "replace", failing)
    with pytest.raises(OSError, match="pulled out"):
        forget_users(folder, ["user-0001"])
    assert Manifest.read(folder, verify=True) == before
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]


def _lengthen(path):
    path.write_bytes(path.read_bytes() + b"x")
