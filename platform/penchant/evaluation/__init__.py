"""How good a model is, with intervals, against the plain one, the oracle and the wrong user; and the report."""
