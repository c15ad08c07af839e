import json

import pytest

from penchant.data.lamp import TASKS, find_task
from penchant.data.lamp.reading import examine_lamp, read_lamp
from penchant.errors import DataError

USERS = "user_top_100_history.json"
RATING = find_task("LaMP_3")


def item(identity, text="Fine lamp.", score="4", **more):
    return {"id": identity, "text": text, "score": score} | more


def query(identity, text="Dim lamp.", gold="2", **more):
    return {"id": identity, "input": f"How many stars? review: {text}", "gold": gold} | more


def user(identity, items=None, queries=None):
    profile = [item(f"{identity}-0")] if items is None else items
    return {"user_id": identity, "profile": profile, "query": [query(f"{identity}-q")] if queries is None else queries}


def write_users(folder, targets, others=None):
    (folder / USERS).write_text(json.dumps(targets))
    (folder / "user_others.json").write_text(json.dumps([user("other")] if others is None else others))
    return folder


def write_questions(folder, questions, golds=None, task="LaMP_3"):
    golds = [{"id": question["id"], "output": "3"} for question in questions] if golds is None else golds
    (folder / "dev_questions.json").write_text(json.dumps(questions))
    (folder / "dev_outputs.json").write_text(json.dumps({"task": task, "golds": golds}))
    train = [{"id": "t", "input": "How many? review: Old.", "profile": [item("t-0")]}]
    (folder / "train_questions.json").write_text(json.dumps(train))
    (folder / "train_outputs.json").write_text(json.dumps({"task": "LaMP_3", "golds": [{"id": "t", "output": 5}]}))
    return folder


def question(identity, items, **more):
    return {"id": identity, "input": "How many stars? review: Dim lamp.", "profile": items} | more


@pytest.mark.parametrize("task", TASKS)
def test_both_layouts_say_the_same(task, planted_folder):
    read = [read_lamp(planted_folder(task=task, layout=layout)[0], TASKS[task]) for layout in ("lamp", "oppu")]
    assert read[0].targets == read[1].targets
    assert read[0].others == read[1].others
    assert len(read[0].targets) == 3
    assert len(read[0].others) == 4
    first = read[0].targets["user-00000"]
    assert [item.id for item in first.items] == [f"user-00000-{number}" for number in range(6)]
    assert [query.seen for query in first.queries] == [6, 6]


BROKEN = {
    "score": (user("ann", [item("ann-0", score="6")]), "user 'ann': item 0 ('ann-0'): field 'score'"),
    "no text": (user("ann", [{"id": "ann-0", "score": "5"}]), "user 'ann': item 0 ('ann-0'): there is no field 'text'"),
    "blank text": (user("ann", [item("ann-0", text=" ")]), "item 0 ('ann-0'): field 'text': is blank"),
    "text is a number": (user("ann", [item("ann-0", text=3)]), "field 'text': Input should be a valid string"),
    "date": (user("ann", [item("ann-0", date="soon")]), "field 'date': is no date"),
    "some dates": (user("ann", [item("a", date="2020"), item("b")]), "field 'date': some items have one"),
    "profile": ({"user_id": "ann", "query": []}, "user 'ann': there is no field 'profile'"),
    "item": (user("ann", ["text"]), "user 'ann': item 0: field 'profile'"),
    "no user": ({"profile": [], "query": []}, "there is no field 'user_id'"),
    "gold": (user("ann", queries=[query("q", gold="9")]), "user 'ann': query 'q', field 'gold' is none of the task's labels"),
    "no gold": (user("ann", queries=[{"id": "q", "input": "review: x"}]), "query 0 ('q'): there is no field 'gold'"),
    "wording": (user("ann", queries=[{"id": "q", "input": "Stars?", "gold": "1"}]), "query 'q', field 'input' is not worded"),
    "item twice": (user("ann", [item("a"), item("a")]), "two items of the profile have the same id"),
    "query twice": (user("ann", queries=[query("q"), query("q")]), "query 'q': another query has this id"),
    "not a user": ("ann", "field 'record'"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_bad_record_is_told_with_file_task_user_and_field(name, tmp_path):
    record, words = BROKEN[name]
    write_users(tmp_path, [user("good"), record])
    with pytest.raises(DataError) as raised:
        read_lamp(tmp_path, RATING)
    message = str(raised.value)
    assert words in message
    assert f"{USERS}, row 1: LaMP_3" in message
    assert message.count("\n") == 1, "nothing else is wrong with these files"


def test_the_same_user_twice_is_refused(tmp_path):
    write_users(tmp_path, [user("ann"), user("ann", queries=[])])
    with pytest.raises(DataError, match="row 1: LaMP_3: field 'user_id': record 0 has it as well"):
        read_lamp(tmp_path, RATING)


def test_many_problems_are_listed_and_counted(tmp_path):
    write_users(tmp_path, [user("ann", [item(str(number), score="6") for number in range(50)])])
    data, problems = examine_lamp(tmp_path, RATING)
    assert data is None
    assert len(problems) == 20
    assert sum(problem.count for problem in problems) == 50


def test_what_can_be_used_all_the_same_is_a_warning(tmp_path):
    targets = [user("ann", []), user("ben", queries=[]), user("cem", [item("c", text="Dim lamp.")]), user("other")]
    data, problems = examine_lamp(write_users(tmp_path, targets, [user("other"), user("another")]), RATING)
    assert {problem.kind for problem in problems} == {"no_item", "no_query", "leak", "both"}
    assert all(problem.severity == "warning" for problem in problems)
    assert "other" in data.targets
    assert list(data.others) == ["another"]
    assert list(data.warnings) == problems


def test_somebody_has_to_be_left_for_the_task_adapter(tmp_path):
    with pytest.raises(DataError, match="every one of the others is a target, too"):
        read_lamp(write_users(tmp_path, [user("ann")], [user("ann")]), RATING)


def test_a_label_outside_the_tasks_is_a_warning_in_the_past_and_an_error_in_a_question(tmp_path):
    film = {"id": "f", "description": "A film.", "tag": "western"}
    asked = {"id": "q", "input": "tags: [a] description: Another.", "gold": "comedy"}
    other = {"user_id": "b", "profile": [film], "query": []}
    write_users(tmp_path, [{"user_id": "a", "profile": [film], "query": [asked]}], [other])
    assert {problem.kind for problem in read_lamp(tmp_path, TASKS["LaMP_2M"]).warnings} == {"odd_label"}
    write_users(tmp_path, [{"user_id": "a", "profile": [film], "query": [asked | {"gold": "western"}]}], [other])
    with pytest.raises(DataError, match="'gold' is none of the task's labels"):
        read_lamp(tmp_path, TASKS["LaMP_2M"])


def test_files_of_another_task_are_refused(planted_folder, tmp_path):
    with pytest.raises(DataError, match="there is no field 'description'"):
        read_lamp(planted_folder(task="LaMP_3")[0], TASKS["LaMP_2M"])
    write_questions(tmp_path, [question("q", [item("a")])], task="LaMP_4")
    with pytest.raises(DataError, match="field 'task' says 'LaMP_4'"):
        read_lamp(tmp_path, RATING)


@pytest.mark.parametrize("file", [USERS, "user_others.json"])
def test_a_file_that_is_cut_or_missing_is_told(file, planted_folder, tmp_path):
    folder = planted_folder(layout="oppu")[0]
    for name in (USERS, "user_others.json"):
        text = (folder / name).read_text()
        (tmp_path / name).write_text(text[: len(text) // 2] if name == file else text)
    with pytest.raises(DataError, match=f"{file}: It cannot be read as JSON"):
        read_lamp(tmp_path, RATING)
    (tmp_path / file).unlink()
    with pytest.raises(DataError, match=f"There is no {file}"):
        read_lamp(tmp_path, RATING)


@pytest.mark.parametrize("content", ["[]", "{}"])
def test_a_file_without_records_is_told(content, tmp_path):
    write_users(tmp_path, [user("ann")])
    (tmp_path / USERS).write_text(content)
    with pytest.raises(DataError, match=f"{USERS}: LaMP_3: the file holds"):
        read_lamp(tmp_path, RATING)


def test_a_folder_without_lamp_files_says_what_is_wanted(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(DataError, match=r"user_others.json .*dev_questions.json.* It holds: notes.txt"):
        read_lamp(tmp_path, RATING)
    with pytest.raises(DataError, match="no such folder"):
        read_lamp(tmp_path / "nowhere", RATING)


def test_a_question_without_a_user_stands_for_one(tmp_path):
    data = read_lamp(write_questions(tmp_path, [question("5", [item("a")]), question("7", [item("a")])]), RATING)
    assert list(data.targets) == ["5", "7"]
    assert data.targets["5"].queries[0].gold == "3"


def test_questions_of_one_user_each_see_their_own_part_of_the_history(tmp_path):
    past = [item(str(number), text=f"Lamp {number}.", date=f"2020-01-{number + 1:02d}") for number in range(4)]
    questions = [
        question("late", past, user_id="ann"),
        question("early", [past[1], past[0]], user_id="ann"),
        question("dated", past, user_id="ann", date="2020-01-03"),
    ]
    ann = read_lamp(write_questions(tmp_path, questions), RATING).targets["ann"]
    assert [item.id for item in ann.items] == ["0", "1", "2", "3"]
    assert {query.id: query.seen for query in ann.queries} == {"early": 2, "late": 4, "dated": 2}


def test_a_question_that_leaves_out_older_items_is_refused(tmp_path):
    past = [item(str(number), date=f"2020-01-{number + 1:02d}") for number in range(3)]
    questions = [question("all", past, user_id="ann"), question("holes", past[1:], user_id="ann")]
    with pytest.raises(DataError, match="question 'holes': its profile is not the beginning of the user's history"):
        read_lamp(write_questions(tmp_path, questions), RATING)


def test_answers_are_found_by_id_wherever_they_stand(tmp_path):
    questions = [question("a", [item("1")]), question("b", [item("2")])]
    golds = [{"id": "b", "output": "2"}, {"id": "a", "output": 1}]
    data = read_lamp(write_questions(tmp_path, questions, golds), RATING)
    assert {user: held.queries[0].gold for user, held in data.targets.items()} == {"a": "1", "b": "2"}
    with pytest.raises(DataError, match="question 'b' has no answer"):
        read_lamp(write_questions(tmp_path, questions, golds[1:]), RATING)


def test_fields_that_no_task_reads_are_left_aside(tmp_path):
    extra = user("ann", [item("a", shop="north")]) | {"country": "NO"}
    data = read_lamp(write_users(tmp_path, [extra]), RATING)
    assert data.targets["ann"].items[0].fields == {"text": "Fine lamp.", "score": "4"}
