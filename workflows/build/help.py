"""The help pages by language, in the places where ComfyUI's page looks first.

    python -m weft.workflows.build.help

It asks for `docs/<Node>/<language>.md`, and for `docs/<Node>.md` where there is none. The latter are written by hand,
in English, and copied to where English is asked for. In other languages they are made of the names and tooltips in
`locales/`, under the same picture, and end with what is told in English alone.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "web" / "docs"
WORDS = {"zh": {"inputs": "输入", "outputs": "输出", "more": "更多（英文）"}}
PICTURE, SLOT = re.compile(r"^!\[.*$", re.MULTILINE), re.compile(r"^- `(\w+)` ", re.MULTILINE)


def pages() -> dict[Path, str]:
    """{file: what it holds} of all pages that are not written by hand."""
    made = {}
    for page in sorted(PAGES.glob("*.md")):
        english = page.read_text(encoding="utf-8")
        made[PAGES / page.stem / "en.md"] = english
        for language, words in WORDS.items():
            told = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
            made[PAGES / page.stem / f"{language}.md"] = translated(english, told[page.stem], words)
    return made


def translated(english: str, told: dict, words: dict[str, str]) -> str:
    """A page of what a locale tells of a node, and of the English page what that has no words for."""
    inputs, outputs, rest = _parts(english)
    blocks = [f"# {told['display_name'].removesuffix(' (Weft)')}", told["description"], *PICTURE.findall(english)]
    for heading, slots in (("inputs", {name: told["inputs"][name] for name in inputs}), ("outputs", told["outputs"])):
        names = inputs if heading == "inputs" else outputs
        lines = [f"- `{name}` **{slot['name']}**：{slot['tooltip']}" for name, slot in zip(names, slots.values())]
        blocks += [f"## {words[heading]}", "\n".join(lines)]
    if rest:
        blocks += [f"## {words['more']}", re.sub("^##", "###", rest, flags=re.MULTILINE)]
    return "\n\n".join(blocks) + "\n"


def _parts(english: str) -> tuple[list[str], list[str], str]:
    """Names of the inputs, names of the outputs, and all that comes after them."""
    _, _, after = english.partition("\n## Inputs\n")
    inputs, _, after = after.partition("\n## Outputs\n")
    outputs, heading, after = after.partition("\n## ")
    told = [slot.end() for slot in SLOT.finditer(outputs)]
    if not told or not inputs:
        raise ValueError(
            f"want lists, '- `name` ...', under '## Inputs' and '## Outputs': see {PAGES.parent / 'README.md'}"
        )
    end = outputs.find("\n", told[-1])
    return SLOT.findall(inputs), SLOT.findall(outputs), (outputs[end:] + heading + after).strip()


def main() -> None:
    made = pages()
    for page, text in made.items():
        page.parent.mkdir(exist_ok=True)
        page.write_text(text, encoding="utf-8")
    for stale in set(PAGES.glob("*/*.md")) - set(made):
        stale.unlink()
    print(f"{len(made)} pages in {PAGES}")


if __name__ == "__main__":
    main()
