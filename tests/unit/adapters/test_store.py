import itertools
import json
import os
import shutil
import signal
import time

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from penchant.adapters.bases import base_fingerprint
from penchant.adapters.cards import Card
from penchant.adapters.config import AdapterSettings
from penchant.adapters.filling import fill, survey
from penchant.adapters.store import AdapterStore
from penchant.errors import ArtifactError, ConfigError, DataError

KEY = bytes(range(32))


def make_store(folder, base, model):
    return AdapterStore.create(folder, fingerprint=base_fingerprint(base), config=model.config, shapes=model.shapes)


def drawn(shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}


def edit_card(folder, **values):
    card = folder / "card.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | values))


def lacking(store, fitter, users, **settings):
    return survey(store, fitter.settings.model_copy(update=settings), fitter.reader, users).lacking


@pytest.fixture
def filled(tiny, label_base, tmp_path):
    """A store with two users, and the model that its adapters fit."""
    base, tokenizer = label_base
    model = tiny.make_fitter(base, tokenizer).model
    store = make_store(tmp_path / "store", base, model)
    for number, user in enumerate(("ann", "bob")):
        store.put(Card(user=user, base=store.fingerprint), drawn(store.shapes, number))
    return store, model


@pytest.mark.parametrize("kind", ["lora", "ia3", "prompt_tuning"])
def test_stock_peft_loads_an_exported_adapter_with_the_same_outputs(tiny, tmp_path, kind):
    for answers in ("label", "text"):
        base, tokenizer = tiny.make_base(answers, torch.float32)
        base.save_pretrained(tmp_path / answers)
        layers = None if kind == "prompt_tuning" else 2
        fitter = tiny.make_fitter(base, tokenizer, AdapterSettings(kind=kind, layers=layers, virtual_tokens=2), epochs=2)
        store = make_store(tmp_path / f"{answers}-store", base, fitter.model)
        users = {"ann": tiny.make_examples(answers, 5)}
        list(fill(store, fitter, users))
        exported = store.export("ann", tmp_path / f"{answers}-ann")
        assert {path.name for path in exported.iterdir()} == {"adapter_config.json", "adapter_model.safetensors", "card.json"}
        stock = PeftModel.from_pretrained(type(base).from_pretrained(tmp_path / answers), exported).eval()
        whole = tiny.make_fitter(base, tokenizer, AdapterSettings(kind=kind, layers=layers, virtual_tokens=2), cut=False)
        whole.model.put(1, store.get("ann"))
        inputs = whole.reader.inputs(whole.reader.items(users["ann"]))
        with torch.no_grad():
            mine, theirs = whole.model(torch.ones(5, dtype=torch.long), **inputs).logits, stock(**inputs).logits
            plain = base(**inputs).logits
        theirs = theirs[:, -mine.shape[1] :]
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)
        assert (mine[..., -plain.shape[1] :, :] if answers == "text" else mine).sub(plain).abs().max() > 1e-3


def test_any_text_is_a_user_id(filled):
    store, _ = filled
    names = ["", "../../etc/passwd", "ann\n", "Ann", "\u00fcn\u00efc\u00f6de \u732b", "x" * 5000, "a/b"]
    for number, name in enumerate(names):
        store.put(Card(user=name, base=store.fingerprint), drawn(store.shapes, 10 + number))
    assert sorted(store.users()) == sorted([*names, "ann", "bob"])
    for number, name in enumerate(names):
        torch.testing.assert_close(store.get(name), drawn(store.shapes, 10 + number))
    assert {path.name for path in store.folder.parent.iterdir()} == {"store"}
    with pytest.raises(DataError, match="no user id"):
        store.place("\ud800")


def test_deletion_leaves_nothing(filled):
    store, _ = filled
    rest = store.place("ann").with_name(f".{store.place('ann').name}.killed")
    shutil.copytree(store.place("ann"), rest)  # what a writer that was killed leaves
    assert sorted(store.users()) == ["ann", "bob"]
    assert store.delete("ann")
    assert not store.delete("ann")
    assert "ann" not in store
    assert store.version("ann") is None
    assert not any("ann" in path.read_text(errors="replace") for path in store.folder.rglob("*") if path.is_file())
    with pytest.raises(ArtifactError, match="'ann' has no adapter"):
        store.get("ann")
    assert list(store.users()) == ["bob"]


def test_an_adapter_is_replaced_whole(filled):
    store, _ = filled
    before = store.version("ann")
    store.put(Card(user="ann", base=store.fingerprint), drawn(store.shapes, 7))
    assert store.version("ann") != before
    torch.testing.assert_close(store.get("ann"), drawn(store.shapes, 7))


def test_export_and_import(filled, tmp_path):
    store, _ = filled
    exported = store.export("ann", tmp_path / "mine")
    store.delete("ann")
    store.import_folder("ann again", exported)
    torch.testing.assert_close(store.get("ann again"), drawn(store.shapes, 0))


def test_an_adapter_of_stock_peft_is_taken_in(filled, label_base, tmp_path):
    store, _ = filled
    config = LoraConfig(r=2, lora_alpha=6, task_type="SEQ_CLS", target_modules=["query", "value"])
    stock = get_peft_model(type(label_base[0])(label_base[0].config), config)
    stock.peft_config["default"].base_model_name_or_path = "tiny"
    stock.save_pretrained(tmp_path / "stock")
    store.import_folder("carl", tmp_path / "stock")
    assert "carl" in store
    stock.peft_config["default"].base_model_name_or_path = "another"
    stock.save_pretrained(tmp_path / "other")
    with pytest.raises(ArtifactError, match=r"adapter of another base.*'tiny'"):
        store.import_folder("dora", tmp_path / "other")
    assert "dora" not in store


def spoil(folder, how):
    config, tensors = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    if how == "rank":
        config.write_text(json.dumps(json.loads(config.read_text()) | {"r": 3}))
    elif how == "cut short":
        tensors.write_bytes(tensors.read_bytes()[:-20])
    elif how == "no tensors":
        tensors.unlink()
    elif how == "pickle":
        tensors.rename(folder / "adapter_model.bin")
    elif how == "no config":
        config.unlink()
    elif how == "other base":
        card = folder / "card.json"
        card.write_text(json.dumps(json.loads(card.read_text()) | {"base": "0" * 64}))
    elif how == "other layers":
        from safetensors.torch import load_file, save_file

        (folder / "card.json").unlink()
        save_file({name.replace("layer.0", "layer.9"): value for name, value in load_file(tensors).items()}, tensors)
    elif how == "not finite":
        from safetensors.torch import load_file, save_file

        (folder / "card.json").unlink()
        save_file({name: value * torch.inf for name, value in load_file(tensors).items()}, tensors)


REFUSALS = {
    "rank": "r is 3, and here it is 2",
    "cut short": "not the file that was exported",
    "no tensors": "no adapter_model.safetensors",
    "pickle": "no adapter_model.safetensors",
    "no config": "adapter_config.json: There is no such file",
    "other base": "adapter of another base",
    "other layers": r"layer\.0.* is missing",
    "not finite": "no numbers",
}


@pytest.mark.parametrize("how", REFUSALS)
def test_a_foreign_or_damaged_adapter_is_refused(filled, tmp_path, how):
    store, _ = filled
    folder = store.export("ann", tmp_path / "mine")
    spoil(folder, how)
    with pytest.raises(ArtifactError, match=REFUSALS[how]) as refused:
        store.import_folder("carl", folder)
    assert str(folder) in refused.value.where
    assert refused.value.fix
    assert "carl" not in store


def test_a_damaged_adapter_is_found_when_it_is_read(filled):
    store, _ = filled
    path = store.place("ann") / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="'ann' is damaged") as damaged:
        store.get("ann")
    assert str(path) in str(damaged.value)
    assert store.get("bob")


def test_a_store_is_of_one_base_and_one_kind(filled, tiny, label_base):
    store, model = filled
    assert make_store(store.folder, label_base[0], model).fingerprint == store.fingerprint
    other = tiny.make_base("label")[0]
    other.bert.encoder.layer[0].output.dense.weight.data += 0.01
    assert base_fingerprint(other) != store.fingerprint
    with pytest.raises(ArtifactError, match="another base"):
        make_store(store.folder, other, model)
    with pytest.raises(ArtifactError, match=r"another base.*Use tiny"):
        store.check_base(base_fingerprint(other))
    with pytest.raises(ArtifactError, match="another PEFT config"):
        make_store(store.folder, label_base[0], tiny.make_fitter(*label_base, AdapterSettings(r=4)).model)
    with pytest.raises(ArtifactError, match="no store of adapters"):
        AdapterStore.open(store.folder.parent)


def test_encryption_at_rest(filled, tmp_path):
    store, _ = filled
    values = drawn(store.shapes, 5)
    store.put(Card(user="ann", base=store.fingerprint), values, key=KEY)
    torch.testing.assert_close(store.get("ann", key=KEY), values)
    files = [path.read_bytes() for path in store.place("ann").iterdir()]
    some = next(iter(values.values())).numpy().tobytes()[:16]
    assert not any(some in content for content in files)
    with pytest.raises(ArtifactError, match=r"'ann' is encrypted.*Give the user's key"):
        store.get("ann")
    with pytest.raises(ArtifactError, match="does not open"):
        store.get("ann", key=bytes(32))
    with pytest.raises(ConfigError, match="3 bytes"):
        store.get("ann", key=b"key")
    shutil.rmtree(store.place("bob"))
    shutil.copytree(store.place("ann"), store.place("bob"))  # somebody else's ciphertext does not open as one's own
    edit_card(store.place("bob"), user="bob")
    with pytest.raises(ArtifactError, match="does not open"):
        store.get("bob", key=KEY)
    exported = store.export("ann", tmp_path / "mine", key=KEY)
    store.import_folder("carl", exported, key=KEY)
    torch.testing.assert_close(store.get("carl", key=KEY), values)


def test_a_run_that_was_stopped_goes_on_with_the_others(tiny, label_base, tmp_path):
    users = {f"user {number}": tiny.make_examples("label", 4, seed=number) for number in range(5)}
    whole = tiny.fit(tiny.make_fitter(*label_base, slots=2, epochs=2), users)
    fitter = tiny.make_fitter(*label_base, slots=2, epochs=2)
    store = make_store(tmp_path, label_base[0], fitter.model)
    first = {fitted.user for _, fitted in zip(range(2), fill(store, fitter, users), strict=False)}
    assert set(store.users()) == first
    again = tiny.make_fitter(*label_base, slots=3, epochs=2)
    assert {fitted.user for fitted in fill(store, again, users)} == set(users) - first
    for user in users:
        tiny.assert_same(store.get(user), whole[user].tensors, rtol=0, atol=1e-9)
    assert lacking(store, fitter, users) == []
    # The published code names adapters by their place in the loop: with somebody gone, all later ones would be another's.
    assert lacking(store, fitter, {user: users[user] for user in reversed(users) if user != "user 1"}) == []
    users["user 3"] = [*users["user 3"], users["user 0"][0]]
    assert lacking(store, fitter, users) == ["user 3"]
    assert lacking(store, fitter, users, epochs=3) == list(users)


def test_another_window_or_other_labels_are_another_adapter(tiny, label_base, tmp_path):
    users = {"ann": tiny.make_examples("label", 3)}
    fitter = tiny.make_fitter(*label_base, epochs=1)
    store = make_store(tmp_path, label_base[0], fitter.model)
    list(fill(store, fitter, users))
    assert lacking(store, fitter, users) == []
    fitter.reader.max_tokens = 8
    assert lacking(store, fitter, users) == ["ann"]
    fitter.reader.max_tokens, fitter.reader.labels = 32, {"low": 1, "middle": 0, "high": 2}
    assert lacking(store, fitter, users) == ["ann"]


def test_imported_and_encrypted_adapters_are_left_and_damaged_ones_are_fitted_again(tiny, label_base, tmp_path):
    names = ("fitted", "imported", "encrypted", "both", "damaged", "damaged and encrypted", "new")
    users = {name: tiny.make_examples("label", 3, seed=number) for number, name in enumerate(names)}
    fitter = tiny.make_fitter(*label_base, epochs=1)
    store = make_store(tmp_path / "store", label_base[0], fitter.model)
    list(fill(store, fitter, {"fitted": users["fitted"]}))
    mine = store.export("fitted", tmp_path / "mine")
    for name in names[1:-1]:
        store.import_folder(name, mine, key=KEY if name in ("encrypted", "both", "damaged and encrypted") else None)
    edit_card(store.place("encrypted"), recipe="another")
    for name in ("damaged", "damaged and encrypted"):
        (store.place(name) / "card.json").write_text("{")
    before = {name: store.version(name) for name in names}

    def found(**asked):
        found = survey(store, fitter.settings, fitter.reader, users, **asked)
        return found.lacking, found.imported, found.encrypted, found.damaged

    assert found() == (["damaged", "new"], 2, 2, 1)
    assert found(replace_imported=True) == (["imported", "damaged", "new"], 0, 3, 1)
    assert found(key_of=lambda user: KEY) == (["encrypted", "damaged", "damaged and encrypted", "new"], 2, 0, 2)
    told = survey(store, fitter.settings, fitter.reader, users).warnings()
    assert [words.split(", ")[1].split(" are ")[0] for words in told] == ["2 imported", "2 encrypted", "1 with damaged cards"]
    assert {fitted.user for fitted in fill(store, fitter, users)} == {"damaged", "new"}
    assert {name for name in names if store.version(name) != before[name]} == {"damaged", "new"}
    assert {fitted.user for fitted in fill(store, fitter, users, replace_imported=True)} == {"imported"}
    assert not survey(store, fitter.settings, fitter.reader, {"new": users["new"]}).warnings()


def test_a_folder_that_was_restored_to_the_wrong_place_is_nobodys(filled):
    store, _ = filled
    shutil.rmtree(store.place("bob"))
    shutil.copytree(store.place("ann"), store.place("bob"))
    for read in (store.get, store.card, lambda user: store.export(user, store.folder.parent / "out")):
        with pytest.raises(ArtifactError, match="another user's adapter") as refused:
            read("bob")
        assert "ann" not in str(refused.value)
    assert list(store.users()) == ["ann"]
    assert store.damaged() == [store.place("bob")]


def test_a_writer_that_is_killed_leaves_the_old_adapter_or_the_new(filled):
    store, _ = filled
    read, write = os.pipe()
    writer = os.fork()
    if writer == 0:
        for number in itertools.count():
            values = {name: torch.full(shape, float(number)) for name, shape in store.shapes.items()}
            store.put(Card(user="ann", base=store.fingerprint), values)
            os.write(write, b".")
    assert os.read(read, 1) == b"."
    time.sleep(0.05)
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)
    values = {float(value) for tensor in store.get("ann").values() for value in tensor.flatten()}
    assert len(values) == 1
    assert "ann" in store
    assert store.delete("ann")
    assert list(store.users()) == ["bob"]


def test_a_replacement_that_was_cut_off_between_two_renames(filled):
    store, _ = filled
    place, version = store.place("ann"), store.version("ann")
    place.rename(place.with_name(f".{place.name}.killed.old"))
    assert store.version("ann") == version
    torch.testing.assert_close(store.get("ann"), drawn(store.shapes, 0))
    store.put(Card(user="ann", base=store.fingerprint), drawn(store.shapes, 3))
    torch.testing.assert_close(store.get("ann"), drawn(store.shapes, 3))
    assert store.delete("ann")
    assert "ann" not in store
