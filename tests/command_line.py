"""The command line as tests call it: small and fast options, and the one line that tells of a mistake."""

from xrvlm.cli.main import main

FAST = ("backbone=tiny", "device=cpu", "workers=0", "shots=2", "recipe.epochs=1", "method.image_parts=2",
        "method.text_parts=2", "method.context_length=2", "method.hidden=8", "features.views=1")
TINY = ("backbone=tiny", "device=cpu", "workers=0")


def told(capsys, *arguments) -> str:
    """The one line that a user is told of a mistake; nothing else, no traceback, exit code 2."""
    assert main(list(arguments)) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, captured.err
    assert "Traceback" not in captured.err
    return lines[0]
