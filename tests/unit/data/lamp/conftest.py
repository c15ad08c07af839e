import pytest

from penchant.data.lamp.planted import LampWorld, save_planted_lamp


@pytest.fixture(scope="module")
def planted_folder(tmp_path_factory):
    """Makes small planted folders: `planted_folder(task=..., layout=...)`; the same arguments give the same folder."""
    made = {}

    def make(**values):
        key = tuple(sorted(values.items()))
        if key not in made:
            folder = tmp_path_factory.mktemp("lamp") / "data"
            world = LampWorld(**({"users": 3, "other_users": 4, "items": 6, "queries": 2} | values))
            made[key] = folder, save_planted_lamp(world, folder)
        return made[key]

    return make
