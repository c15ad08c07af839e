import inspect
import pickle

import pytest

from penchant import errors

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.PenchantError)]


@pytest.mark.parametrize("kind", KINDS)
def test_error_says_what_where_and_what_to_do_and_survives_a_process(kind):
    error = kind("It is broken.", where="here", fix="Mend it.")
    assert str(error) == "here: It is broken. Mend it."
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == str(error)


def test_every_error_is_also_a_builtin():
    for kind in KINDS:
        if kind is not errors.PenchantError:
            assert any(base.__module__ == "builtins" and base is not Exception for base in kind.__mro__[2:-3])
