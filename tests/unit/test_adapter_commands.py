"""`penchant adapters list|export|import|delete`."""

import pytest
import torch
from peft import LoraConfig
from typer.testing import CliRunner

from penchant.adapters.cards import Card
from penchant.adapters.store import AdapterStore
from penchant.cli import app
from penchant.errors import ArtifactError, ConfigError, OutputError


def run(*arguments):
    result = CliRunner().invoke(app, ["adapters", *map(str, arguments)], env={"COLUMNS": "200"}, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def store(tmp_path):
    shapes = {
        "base_model.model.layer.lora_A.weight": torch.Size([2, 3]),
        "base_model.model.layer.lora_B.weight": torch.Size([3, 2]),
    }
    config = LoraConfig(r=2, target_modules=["layer"], base_model_name_or_path="base")
    made = AdapterStore.create(tmp_path / "store", fingerprint="f" * 64, config=config, shapes=shapes)
    made.put(
        Card(user="ann", base="", examples=20, steps=9, loss=0.5), {name: torch.ones(shape) for name, shape in shapes.items()}
    )
    return made


def test_a_user_takes_their_adapter_along_and_comes_back(store, tmp_path):
    assert "ann" in run("list", "--store", store.folder)
    run("export", "ann", "--store", store.folder, "--out", tmp_path / "mine")
    assert (tmp_path / "mine" / "adapter_model.safetensors").is_file()
    run("delete", "ann", "--store", store.folder)
    assert "0 users" in run("list", "--store", store.folder)
    key = tmp_path / "key"
    key.write_text("ab" * 32 + "\n")
    run("import", "ann", tmp_path / "mine", "--store", store.folder, "--key", key)
    assert "yes" in run("list", "--store", store.folder)
    assert all(bool((value == 1).all()) for value in store.get("ann", key=bytes.fromhex("ab" * 32)).values())


def test_a_damaged_card_is_listed_and_the_others_too(store):
    store.put(Card(user="bob", base=""), store.get("ann"))
    (store.place("bob") / "card.json").write_text('{"user": "bob"')
    listed = run("list", "--store", store.folder)
    assert "ann" in listed
    assert "1 users." in listed
    assert f"Damaged: {store.place('bob')}" in listed.replace("\n", "")


def test_mistakes_are_said(store, tmp_path):
    with pytest.raises(ArtifactError, match="'bob' has no adapter"):
        run("delete", "bob", "--store", store.folder)
    with pytest.raises(ArtifactError, match="no store of adapters"):
        run("list", "--store", tmp_path)
    with pytest.raises(OutputError, match="there already"):
        run("export", "ann", "--store", store.folder, "--out", tmp_path)
    (tmp_path / "adapter_model.safetensors").touch()
    with pytest.raises(ArtifactError, match=r"no such folder.*adapter_config\.json and"):
        run("import", "ann", tmp_path / "adapter_model.safetensors", "--store", store.folder)
    (tmp_path / "key").write_text("not a key")
    with pytest.raises(ConfigError, match="no key in this file"):
        run("export", "ann", "--store", store.folder, "--out", tmp_path / "new", "--key", tmp_path / "key")
