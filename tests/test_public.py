import ast
from pathlib import Path

import xrvlm


def test_every_public_name_is_there_and_known_to_type_checkers():
    tree = ast.parse(Path(xrvlm.__file__).read_text())
    checked = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert set(xrvlm.__all__) <= checked
    assert set(xrvlm.__all__) == set(xrvlm._MODULE_OF)
    assert set(xrvlm.__all__) <= set(dir(xrvlm))
    for name in xrvlm.__all__:
        assert getattr(xrvlm, name) is not None
