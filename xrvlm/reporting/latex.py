"""Tables in LaTeX, for \\usepackage{booktabs}."""

import re
from collections.abc import Sequence

from xrvlm.tables import Table

SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$",
           "†": r"$\dagger$", "·": r"$\cdot$", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
           **{mark: f"\\{mark}" for mark in "&%$#_{}"}}
HEADER = "% Needs \\usepackage{booktabs}; a wide table also \\usepackage{graphicx} and \\resizebox{\\textwidth}{!}{...}"


def latex_tables(tables: Sequence[Table]) -> str:
    """A floating table each, labelled tab:results-1 and so on."""
    return "\n\n".join([HEADER, *(_table(table, number) for number, table in enumerate(tables, start=1))]) + "\n"


def latex_text(text: str) -> str:
    """Text that LaTeX shows as it is; a minus before a number becomes a minus sign."""
    escaped = "".join(SPECIAL.get(character, character) for character in " ".join(text.split()))
    return re.sub(r"(?<![\w-])-(?=\d)", r"$-$", escaped)


def _table(table: Table, number: int) -> str:
    words = len(table.header) - table.numbers
    rows = [" & ".join(map(latex_text, line)) + r" \\" for line in (table.header, *table.cells)]
    # what starts with a bracket or a star behind \\ would be read as its option
    rows = [f"{{}}{row}" if row.startswith(("[", "*")) else row for row in rows]
    return "\n".join([
        r"\begin{table}", r"\centering", rf"\caption{{{latex_text(table.caption)}}}",
        rf"\label{{tab:results-{number}}}",
        rf"\begin{{tabular}}{{{'l' * words}{'r' * table.numbers}}}", r"\toprule", rows[0], r"\midrule", *rows[1:],
        r"\bottomrule", r"\end{tabular}", r"\end{table}"])
