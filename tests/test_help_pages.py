"""Every node explains itself: in the palette, at each input, and on a page of its own."""

import ast
import re
from functools import cache

import pytest

from weft.tests.conftest import ROOT
from weft.tests.schemas import schemas
from weft.tests.test_pairs import REFUSED
from weft.workflows.build import help as pages_by_language

PAGES = ROOT / "web" / "docs"
METHODS = {  # as tests/test_pairs.py calls them, without their settings -> node, as a user calls it
    "cove": ("WeftCorrespondenceAttention", "Correspondence Attention"),
    "spatio-temporal": ("WeftSpatioTemporalAttention", "Spatio-Temporal Attention"),
    "neighbours": ("WeftSpatioTemporalAttention", "Spatio-Temporal Attention"),
    "injection": ("WeftFeatureInjection", "Feature Injection"),
    "token flow": ("WeftTokenFlow", "TokenFlow"),
    "fate zero": ("WeftFateZero", "FateZero"),
    "gather-swap": ("WeftGatherSwapAttention", "Gather-Swap Attention"),
    "stem": ("WeftSTEMAttention", "STEM Attention"),
    "stem, grouped": ("WeftSTEMAttention", "STEM Attention"),
    "str": ("WeftSTRLatentOptimizer", "STR Latent Optimizer"),
    "blend": ("WeftLatentBlend", "Latent Blend"),
}


@pytest.fixture(params=schemas())
def schema(request):
    return schemas()[request.param]


def test_description_and_tooltips(schema):
    assert schema.description.endswith(".")
    slots = (*schema.inputs, *schema.outputs)
    untold = [slot.name for slot in slots if not slot.details.get("tooltip", "").endswith(".")]
    assert not untold, f"no tooltip, or no whole sentence, at {untold}"


def test_it_is_found_by_other_words_than_its_name(schema):
    assert schema.search_aliases
    assert all(word == word.lower() and word != schema.display_name.lower() for word in schema.search_aliases)


def test_page_names_every_input_and_output(schema):
    text = (PAGES / f"{schema.node_id}.md").read_text()
    assert text.startswith(f"# {schema.display_name.removesuffix(' (Weft)')}\n")
    told = re.findall(r"^- `(\w+)` ", text, re.MULTILINE)
    assert sorted(told) == sorted(s.name for s in (*schema.inputs, *schema.outputs))


def test_page_gives_every_choice_and_default(schema):
    text, _, _ = (PAGES / f"{schema.node_id}.md").read_text().partition("\n## Outputs\n")  # an output may share a name
    for slot in (s for s in schema.inputs if s.is_widget and s.name != "model"):
        (row,) = re.findall(rf"^- `{slot.name}` .*$", text, re.MULTILINE)
        absent = [choice for choice in slot.details.get("options", ()) if f"`{choice}`" not in row]
        assert not absent, f"{slot.name}: the page does not mention {absent}"
        if slot.type in ("INT", "FLOAT"):
            numbers = [float(n) for n in re.findall(r"-?\d+(?:\.\d+)?", row)]
            assert slot.details["default"] in numbers, f"{slot.name}: the page does not give the default"


def test_no_page_without_a_node():
    assert sorted(p.stem for p in PAGES.glob("*.md")) == sorted(schemas())


def test_pages_by_language_are_those_of_the_english_ones_and_the_locales():
    made = pages_by_language.pages()
    assert set(made) == set(PAGES.glob("*/*.md"))
    stale = [str(page.relative_to(PAGES)) for page, text in made.items() if page.read_text(encoding="utf-8") != text]
    assert not stale, "run `python -m weft.workflows.build.help`"


@pytest.mark.parametrize("page", sorted(PAGES.rglob("*.md")), ids=lambda page: str(page.relative_to(PAGES)))
def test_a_page_fits_a_sidebar(page):
    """About 250 pixels: a table does not; and links of pages to each other lead nowhere there."""
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"^\|", text, re.MULTILINE)
    assert not re.search(r"\]\((?!https?://|pictures/)", text)


@pytest.mark.parametrize("node_id", schemas())
def test_a_page_has_one_picture(node_id):
    (picture,) = re.findall(r"^!\[[^\]]+\]\((.*)\)$", (PAGES / f"{node_id}.md").read_text(), re.MULTILINE)
    assert picture == f"pictures/{node_id}.webp"
    assert (PAGES / picture).is_file()


def test_pictures_are_small_and_none_is_left_over():
    pictures = sorted((PAGES / "pictures").iterdir())
    assert [p.stem for p in pictures] == sorted(schemas())
    assert sum(p.stat().st_size for p in pictures) < 1_200_000


def with_others(node_id):
    """What a page says of its method and other methods."""
    _, _, after = (PAGES / f"{node_id}.md").read_text().partition("\n## With other methods\n")
    return after.partition("\n## ")[0]


@pytest.mark.parametrize("node_id", sorted({node_id for node_id, _ in METHODS.values()}))
def test_a_method_says_what_it_gives_with_every_other(node_id):
    said = with_others(node_id)
    others = {title for other, title in METHODS.values() if other != node_id and title not in said}
    assert not others or "goes with every method" in said


@pytest.mark.parametrize("pair", REFUSED, ids=lambda pair: " + ".join(sorted(pair)))
def test_what_is_refused_is_said_to_be_on_both_pages(pair):
    one, other = (METHODS[name] for name in pair)
    for (node_id, _), (_, title) in ((one, other), (other, one)):
        lines = [line for line in with_others(node_id).splitlines() if title in line and "efused" in line]
        assert lines, f"{node_id} does not say that it is refused with {title}"


@cache
def told():
    """Every text in the code; what is filled in is a gap."""
    rooms = ("engine", "methods", "nodes", "backbones", "vision", "measure")
    texts = set()
    for path in (path for room in rooms for path in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                texts.add("".join(v.value if isinstance(v, ast.Constant) else "\0" for v in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.add(node.value)
    return texts


@pytest.mark.parametrize("page", sorted(PAGES.glob("*.md")), ids=lambda page: page.stem)
def test_the_messages_a_page_explains_are_those_the_code_says(page):
    for line in re.findall(r"^- \*\*(.*?)\*\*", page.read_text(), re.MULTILINE):
        for quote in re.findall(r'"([^"]+)"', line):
            parts = [part.strip().rstrip(".,") for part in quote.split("...")]
            wanted = re.compile(".*".join(map(re.escape, filter(None, parts))), re.DOTALL)
            assert any(wanted.search(text) for text in told()), f"nothing says: {quote}"
