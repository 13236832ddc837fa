"""Makes the table of `security.md` that says what each role may do, from the server's role table.

python docs/make_roles.py
"""

import re
from pathlib import Path

from thalweg.server.access.principal import Role, Scope
from thalweg.server.access.table import TABLE

PAGE = Path(__file__).with_name("security.md")
_BETWEEN = re.compile(r"(<!-- roles -->\n).*(<!-- /roles -->)", re.DOTALL)
_WORDS = {Scope.NONE: "", Scope.OWN: "own", Scope.SHARED: "own, shared", Scope.ALL: "all"}


def page(text: str) -> str:
    """The page with the table as it is now."""
    return _BETWEEN.sub(lambda found: found[1] + table() + found[2], text)


def table() -> str:
    """A row for each method, a column for each role."""
    lines = ["| call | " + " | ".join(role.value for role in Role) + " |", "|---|" + "---|" * len(Role)]
    for method, row in TABLE.items():
        service, name = method.strip("/").rsplit(".", 1)[-1].split("/")
        # Those of TrainingService are most of them.
        shown = name if service == "TrainingService" else f"{service.removesuffix('Service')}.{name}"
        cells = ["all, and strangers"] * len(Role) if row.stranger else [_WORDS[row.scope(role)] for role in Role]
        lines.append(f"| `{shown}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
