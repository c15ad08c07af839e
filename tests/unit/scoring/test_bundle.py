import dataclasses
import shutil

import pytest
import torch

from penchant.artifacts import Manifest, read_json, write_json
from penchant.errors import ArtifactError
from penchant.scoring.bundle import read_bundle, write_bundle
from penchant.scoring.model import PersonalisedRewardModel


def test_saved_and_loaded_gives_the_same_scores(bundle, planted):
    folder, parts, features = bundle
    _, loaded = read_bundle(folder)
    user = parts.user_UD[torch.arange(len(features)) % len(parts.user_UD)]
    assert torch.equal(loaded.personalised(features, user), parts.personalised(features, user))
    assert torch.equal(loaded.uniform(features), parts.uniform(features))
    assert loaded.user_ids.tolist() == parts.user_ids.tolist()
    assert loaded.onboarding == parts.onboarding


def test_bundle_holds_no_pickle_and_says_what_it_is(bundle):
    folder, parts, _ = bundle
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} == {".json", ".safetensors", ".parquet"}
    manifest = Manifest.read(folder, verify=True)
    assert manifest.backbone == parts.backbone.model_dump(mode="json")
    assert manifest.counts == {"users": 60}


def test_same_parts_same_name(bundle, tmp_path):
    folder, parts, _ = bundle
    again = write_bundle(tmp_path / "again", parts, dataset="another", counts={})
    assert again.name == Manifest.read(folder).name


def test_the_same_weights_under_other_settings_are_another_bundle(bundle, tmp_path):
    """An embedding is kept under the bundle's name, and means nothing under another kind of onboarding."""
    folder, parts, _ = bundle
    kind = "prototypes" if parts.onboarding.kind != "prototypes" else "forward"
    other = dataclasses.replace(parts, onboarding=parts.onboarding.model_copy(update={"kind": kind}))
    changed = write_bundle(tmp_path / "other", other, dataset="another", counts={})
    assert changed.files == Manifest.read(folder).files
    assert changed.name != Manifest.read(folder).name


def test_embeddings_are_keyed_by_id_not_by_row(bundle, planted):
    """The published code saves a subset of users and indexes it by raw id: here a user's embedding follows their id."""
    folder, parts, _ = bundle
    model = PersonalisedRewardModel.load(folder)
    for row in (0, 7, 59):
        assert torch.equal(model.resolve(parts.user_ids[row]).embedding, parts.user_UD[row])
    assert model.resolve("59").personalisation == "unknown", "a number is no id"


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "reward" / "uniform.safetensors").write_bytes(b"cut"), "uniform.safetensors: It is damaged"),
        (lambda folder: (folder / "graph" / "users.parquet").write_bytes(b"cut"), "users.parquet: It is damaged"),
        (lambda folder: (folder / "graph" / "users.safetensors").unlink(), "missing"),
        (lambda folder: _change(folder, reward={"kind": "cubic"}), "settings are not valid"),
        (lambda folder: _change(folder, reward={"kind": "linear"}), "does not fit its settings"),
        (lambda folder: _change(folder, format=2), "format 2"),
    ],
)
def test_damaged_bundle_is_refused(bundle, tmp_path, spoil, said):
    copy = tmp_path / "bundle"
    shutil.copytree(bundle[0], copy)
    spoil(copy)
    with pytest.raises(ArtifactError) as raised:
        read_bundle(copy)
    assert said in str(raised.value)


def _change(folder, **values):
    write_json(folder / "manifest.json", read_json(folder / "manifest.json") | values)
