"""What is refused before anything starts, and a service without a bundle."""

import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

from penchant.cli import app
from penchant.errors import ArtifactError, ConfigError
from penchant.runtime.serving.api import make_app
from penchant.runtime.serving.application import build
from penchant.runtime.serving.config import CanarySettings, GeneratorSettings, ServiceSettings
from penchant.runtime.serving.measures import Measures
from penchant.runtime.serving.service import NoScorer, Service
from penchant.store import UserStore


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "nothing to serve"),
        (["--base", "BASE"], "'generator.adapters' is missing"),
        (["--base", "BASE", "--adapters", "STORE", "generator.rows=300"], "at least rows, 300"),
        (["--base", "BASE", "--adapters", "STORE", "generator.backend=vllm"], "go together"),
    ],
)
def test_serve_says_what_is_missing(personal_writer, arguments, words):
    places = {"BASE": str(personal_writer / "base"), "STORE": str(personal_writer / "store")}
    ended = CliRunner().invoke(app, ["serve", *(places.get(argument, argument) for argument in arguments)])
    assert isinstance(ended.exception, ConfigError)
    assert words in str(ended.exception)


def test_a_service_needs_a_store_and_a_canary_needs_a_bundle(tmp_path):
    generator = GeneratorSettings(base="base", adapters=str(tmp_path))
    with pytest.raises(ArtifactError, match="no store of adapters"):
        build(ServiceSettings(generator=generator))
    with pytest.raises(ValueError, match="a canary needs a bundle"):
        ServiceSettings(generator=generator, canary=CanarySettings(bundle="other"))


def test_a_store_of_another_base_is_refused(make_writer, tmp_path):
    make_writer(tmp_path)
    store = tmp_path / "store" / "store.json"
    store.write_text(store.read_text().replace('"fingerprint": "', '"fingerprint": "0'))
    with pytest.raises(ArtifactError, match="fitted over another base"):
        make_writer(tmp_path.parent / "again", base=str(tmp_path / "base"), adapters=str(tmp_path / "store"))


def test_without_a_bundle_choices_are_stored_and_nothing_is_scored(tmp_path):
    settings = ServiceSettings(store=f"sqlite:///{tmp_path}/users.db", generator=GeneratorSettings(base="b", adapters="a"))
    store = UserStore.open(settings.store)
    http = TestClient(make_app(Service(settings, store, NoScorer(), Measures())))
    http.headers["Authorization"] = f"Bearer {store.create_key('default', ['score', 'onboard'], name='', expires=None)[1]}"
    refused = http.post("/v1/score", json={"user": "ann", "prompt": "p", "responses": ["r"]})
    assert (refused.status_code, refused.json()["error"]["message"]) == (404, "This service has no bundle.")
    choice = {"prompt": "p", "chosen": "a", "rejected": "b"}
    stored = http.post("/v1/users/ann/comparisons", json={"comparisons": [choice]}).json()
    assert (stored["comparisons"], stored["personalisation"], stored["bundle"]) == (1, "unknown", None)
    assert http.get("/readyz").status_code == 200
    assert http.get("/").status_code == 404
    store.close()
