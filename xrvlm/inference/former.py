"""Models of format 1, from before methods and towers were saved by registry name."""

from pathlib import Path
from typing import Any

from xrvlm.files import file_text


def of_format_1(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """The values of a header of format 1, as a header of today has them."""
    from xrvlm.methods.registry import FORMER

    method = values["method"]
    named = {"name": FORMER.get(method["target"], method["target"]), "options": method["arguments"]}
    return values | {"method": named, "precision": _precision(path.parent / "config.yaml")}


def _precision(config: Path) -> str | None:
    """The precision that the run was given, where its folder has a config.yaml."""
    import yaml

    try:
        found = yaml.safe_load(file_text(config))["precision"]
    except (OSError, ValueError, TypeError, LookupError, yaml.YAMLError):
        return None
    return None if found == "auto" else found
