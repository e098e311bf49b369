"""Renders `docs/optimizer.py`, a script of cells, as `docs/optimizer.md`."""

from pathlib import Path

SOURCE = Path(__file__).parent / "optimizer.py"
MARK = "# %%"


def render(source: str) -> str:
    """Turns cells of comments into text and cells of code into code blocks."""
    parts = []
    for cell in source.split(f"{MARK}")[1:]:
        head, _, body = cell.partition("\n")
        if head.strip() == "[markdown]":
            lines = body.strip().splitlines()
            text = (line.removeprefix("#").removeprefix(" ") for line in lines)
            parts.append("\n".join(text))
        else:
            parts.append(f"```python\n{body.strip()}\n```")
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    page = render(SOURCE.read_text(encoding="utf-8"))
    SOURCE.with_suffix(".md").write_text(page, encoding="utf-8")
