from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from penchant.artifacts import write_json
from penchant.cli.study import _folder
from penchant.cli.study import study as command
from penchant.config import load_settings, validate_settings
from penchant.errors import ArtifactError, ConfigError
from penchant.evaluation.judgements import Judgements, write_judgements
from penchant.runtime.study.page import write_plots, write_tables
from penchant.runtime.study.results import gather, read_results, write_results
from penchant.runtime.study.running import StudyRun
from penchant.runtime.study.settings import StudySettings, SweepSettings, cells
from penchant.runtime.study.tables import part_lines

STUDIES = sorted((Path(__file__).parents[4] / "study").glob("*.yaml"))
VALUES = {
    "title": "T",
    "data": ["one", "two"],
    "settings": {"reward": {"steps": 50}, "experts": {"num_experts": 0}},
    "seeds": [0, 1],
    "resamples": 50,
    "parts": {
        "methods": {"title": "Methods", "rows": {"penchant": {}, "lore": {"settings": {"method": "lore"}}}},
        "flips": {
            "title": "Flips",
            "data": ["one"],
            "seeds": [0],
            "rows": {"penchant": {}, "wide": {"settings": {"reward": {"head": {"hidden": 8}}}}},
            "sweep": {"key": "change.flip", "values": [0.0, 0.2], "title": "share"},
        },
    },
}


def study(**over):
    return validate_settings(StudySettings, VALUES | over)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_row_of_the_studies_is_a_fits_settings(path):
    found = list(cells(load_settings(StudySettings, path)))
    assert len(found) > 10


def test_there_are_studies():
    assert len(STUDIES) == 2


def test_rows_seeds_and_sweeps_are_laid_over_the_common_settings():
    found = list(cells(study()))
    assert len(found) == 2 * 2 * 2 + 2 * 2
    lore = next(cell for cell in found if cell.row == "lore" and cell.seed == 1)
    assert lore.settings.method.name == "lore"
    assert (lore.settings.reward.steps, lore.settings.reward.seed, lore.settings.graph.seed) == (50, 1, 1)
    wide = [cell for cell in found if cell.row == "wide"]
    assert [cell.change.flip for cell in wide] == [0.0, 0.2]
    assert {(cell.settings.reward.head.hidden, cell.settings.reward.steps) for cell in wide} == {(8, 50)}
    swept = {"key": "reward.head.kind", "values": ["two_term", "linear"], "title": "head"}
    heads = study(parts={"heads": {"title": "H", "rows": {"penchant": {}}, "sweep": swept}})
    assert {cell.settings.reward.head.kind for cell in cells(heads)} == {"two_term", "linear"}


def test_a_swept_value_stays_in_its_part_and_in_its_row():
    width = {"key": "graph.candidates.one.encoder.dim", "values": [8, 128], "title": "dim"}
    own = {"settings": {"graph": {"candidates": {"one": {"encoder": {"num_layers": 2}}}}}}
    swept = study(
        settings={"graph": {"candidates": {"one": {"encoder": {"response_init": "text"}}}}},
        parts={
            "width": {"title": "W", "rows": {"penchant": {}, "own": own}, "sweep": width},
            "last": {"title": "L", "rows": {"penchant": {}, "own": own}},
        },
    )
    given = swept.model_dump()
    for _ in range(2):
        widths = {(cell.part, cell.row, cell.value): cell.settings.graph.candidates["one"].encoder.dim for cell in cells(swept)}
        assert widths == {(part, row, value): value or 64 for part, row, value in widths}
    assert len(widths) == 6
    assert swept.model_dump() == given
    assert all(list(cell.settings.graph.candidates) == ["one"] for cell in cells(swept)), "none of the default ones beside it"


def test_uniform_stands_once_beside_a_sweep_that_does_not_move_it():
    def swept(key):
        return SweepSettings(key=key, values=(1, 2), title="t").moves_uniform

    assert swept("change.keep")
    assert swept("reward.head.kind")
    assert swept("experts.num_experts")
    assert swept("backbone.max_tokens")
    assert not swept("graph.candidates.one.encoder.dim")
    assert not swept("method.kinds")


def test_a_row_that_no_fit_takes_is_refused():
    with pytest.raises(ConfigError, match="a row 'uniform'"):
        study(parts={"p": {"title": "P", "rows": {"penchant": {}, "uniform": {"settings": {"method": "uniform"}}}}})
    with pytest.raises(ConfigError, match="stepz"):
        list(cells(study(settings={"reward": {"stepz": 3}})))
    with pytest.raises(ConfigError, match=r"flips\.sweep\.values"):
        flips = VALUES["parts"]["flips"]
        study(parts={"flips": flips | {"sweep": flips["sweep"] | {"values": [0.1, None]}}})
    with pytest.raises(ConfigError, match="planted world 'three' is not among"):
        study(planted={"three": {}})
    with pytest.raises(ConfigError, match="names data that the study has not"):
        study(parts={"p": {"title": "P", "data": ["three"], "rows": {"penchant": {}}}})


@pytest.fixture
def run(tmp_path):
    """A study whose fits were judged on 4,000 choices: `lore` is right more often than `penchant`, seed 1 than seed 0."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    made = StudyRun.open(study(), tmp_path / "out", {name: tmp_path / name for name in ("one", "two")})
    for cell in made.cells(["methods"]):
        if cell.data == "one":
            leave(made, cell, {"penchant": 0.6, "lore": 0.7}[cell.row] + 0.02 * cell.seed)
    return made


def leave(run, cell, share, *, choices=4000):
    random = np.random.default_rng(cell.seed)
    margins = {"personalised": share, "uniform": 0.5, "wrong_user": 0.45, "oracle": 0.8}
    judged = Judgements(
        user=np.arange(choices) % 200,
        prompt=np.arange(choices) // 200,
        seen=np.arange(choices) % 200 < 150,
        controversial=np.arange(choices) % 3 > 0,
        margins={name: np.where(random.random(choices) < right, 1.0, -1.0) for name, right in margins.items()},
    )
    folder = run.folder(cell)
    write_judgements(folder / "judgements.parquet", judged)
    write_json(folder / "metrics.json", {"run": {"seconds": 10.0 * (cell.seed + 1)}})
    write_json(folder / "row.json", {})


def test_a_table_averages_seeds_and_pairs_the_rows(run):
    lines = {line.row: line for line in part_lines(run, "methods", "one")}
    assert list(lines) == ["penchant", "lore", "uniform", "oracle"]
    assert lines["penchant"].accuracy["seen", "all"].value == pytest.approx(0.61, abs=0.02)
    gain = lines["lore"].gain["seen", "all"]
    assert gain.value == pytest.approx(0.1, abs=0.03)
    assert 0 < gain.low < gain.value < gain.high
    assert gain.value == pytest.approx(
        lines["lore"].accuracy["seen", "all"].value - lines["penchant"].accuracy["seen", "all"].value
    )
    assert not lines["penchant"].gain
    assert lines["penchant"].wrong["unseen", "all"].value == pytest.approx(0.45, abs=0.04)
    uniform = lines["uniform"].gain["seen", "all"]
    assert uniform.value == pytest.approx(-0.11, abs=0.03)
    assert uniform.high < 0
    assert (lines["penchant"].seconds, lines["oracle"].seconds, lines["lore"].seeds) == (15.0, None, 2)


def test_rows_are_paired_over_the_seeds_that_both_have(run):
    penchant = [cell for cell in run.cells(["methods"]) if cell.data == "one" and cell.row == "penchant"]
    for cell in penchant:
        leave(run, cell, (0.4, 0.8)[cell.seed])
    (first,) = [cell for cell in run.cells(["methods"], [0]) if cell.data == "one" and cell.row == "lore"]
    (run.folder(first) / "row.json").unlink()
    lines = {line.row: line for line in part_lines(run, "methods", "one")}
    assert (lines["penchant"].seeds, lines["lore"].seeds) == (2, 1)
    assert lines["penchant"].accuracy["seen", "all"].value == pytest.approx(0.6, abs=0.02)
    assert lines["lore"].gain["seen", "all"].value == pytest.approx(0.72 - 0.8, abs=0.03), "not 0.72 - 0.6"


def test_fits_that_were_judged_on_other_choices_are_refused(run):
    (cell, *_) = [cell for cell in run.cells(["methods"]) if cell.data == "one" and cell.row == "lore"]
    leave(run, cell, 0.7, choices=3000)
    with pytest.raises(ArtifactError, match="other test choices"):
        part_lines(run, "methods", "one")


def pages(run, folder):
    """The page with the tables, and the one with the plots."""
    results = gather(run, "penchant study s.yaml")
    write_tables(results, folder / "results.md")
    write_plots(results, folder / "results.html")
    return (folder / "results.md").read_text(), (folder / "results.html").read_text()


def test_the_page_says_what_was_run_and_what_was_not(run, tmp_path):
    page, html = pages(replace(run, study=study(about="No GPU.")), tmp_path)
    assert page.index("No GPU.") < page.index("## Methods")
    assert "**two**: not run." in page
    assert "| lore | 2 | " in page
    assert 'id="figure-methods-one"' in html
    assert 'id="figure-flips-one"' not in html


def test_a_sweep_is_shown_from_its_second_value_on(run, tmp_path):
    def page():
        return pages(run, tmp_path)[0].split("## ")[-1]

    # The same fit without a change stands for `penchant` at 0, which alone says nothing of flips.
    assert "**one**: run at one value alone. 3 of 4 fits are missing." in page()
    lines = [(line.row, line.value) for line in part_lines(run, "flips", "one")]
    assert lines == [("penchant", 0.0), ("uniform", 0.0), ("oracle", 0.0)]
    changed = next(cell for cell in run.cells(["flips"]) if cell.data == "one" and cell.value and not run.is_done(cell))
    leave(run, changed, 0.55)
    assert "**one**. 2 of 4 fits are missing." in page()
    # What is trained on everybody's choices is trained on the changed ones, too.
    lines = [(line.row, line.value) for line in part_lines(run, "flips", "one")]
    assert lines == [
        ("penchant", 0.0),
        ("penchant", 0.2),
        *((end, value) for end in ("uniform", "oracle") for value in (0.0, 0.2)),
    ]
    assert 'id="figure-flips-one"' in pages(run, tmp_path)[1]


def test_pages_are_drawn_from_the_numbers_alone(run, tmp_path):
    (changed, *_) = [cell for cell in run.cells(["flips"]) if cell.data == "one" and cell.value and not run.is_done(cell)]
    leave(run, changed, 0.55)
    results = gather(run, "penchant study s.yaml")
    write_results(results, tmp_path / "results.json")
    again = read_results(tmp_path / "results.json")
    for number, made in enumerate((results, again)):
        write_tables(made, tmp_path / f"{number}.md")
    assert (tmp_path / "0.md").read_text() == (tmp_path / "1.md").read_text()
    assert again.tables[0].lines[0].accuracy["seen", "all"].value == pytest.approx(
        results.tables[0].lines[0].accuracy["seen", "all"].value, abs=1e-6
    )
    write_results(again, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == (tmp_path / "results.json").read_text()


@pytest.mark.parametrize("text", ["[]", "{}", '{"study": {"parts": {}}, "lines": []}', '{"study": {"parts": []}, "lines": []}'])
def test_what_is_not_a_studys_results_is_refused(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(ArtifactError, match="not a study's results"):
        read_results(tmp_path / "results.json")


def test_a_row_without_its_peer_at_that_value_is_compared_with_nothing(run):
    for cell in run.cells(["flips"]):
        if cell.row == "wide" and cell.value == 0.2:
            leave(run, cell, 0.8)
    gains = {(line.row, line.value): line.gain for line in part_lines(run, "flips", "one")}
    assert gains["wide", 0.2] == {}


def test_a_fit_is_known_by_what_it_was_made_from(run, tmp_path):
    by_row = {(cell.part, cell.row, cell.value, cell.seed): run.folder(cell) for cell in run.cells() if cell.data == "one"}
    assert by_row["methods", "penchant", None, 0] == by_row["flips", "penchant", 0.0, 0]
    assert len(set(by_row.values())) == len(by_row) - 1
    with pytest.raises(ConfigError, match="no part flops"):
        run.cells(["flops"])
    with pytest.raises(ConfigError, match="No fit has the seed 7"):
        run.cells(["methods"], [7])
    assert {cell.seed for cell in run.cells(seeds=[1])} == {1}
    with pytest.raises(ConfigError, match="no folder for three"):
        StudyRun.open(study(), tmp_path, {"three": tmp_path})
    with pytest.raises(ConfigError, match="There is no folder"):
        StudyRun.open(study(), tmp_path, {"one": tmp_path / "nowhere"})


def test_data_is_given_by_name():
    assert _folder("one=/a=b") == ("one", Path("/a=b"))
    with pytest.raises(ConfigError, match="names no folder"):
        _folder("one")


def test_the_page_does_not_go_where_its_numbers_go(tmp_path):
    with pytest.raises(ConfigError, match=r"results\.md"):
        command(STUDIES[0], out=tmp_path, page=tmp_path / "results.json")
