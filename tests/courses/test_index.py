"""The index of the courses, in both languages: every link leads somewhere, every row is there, and the two agree."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dlops import courses
from dlops.courses.recipe import CHAPTERS, SYLLABI

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "dlops" / "courses"
PAGES = {"en": "README.md", "es": "README.es.md"}
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")
ROW = re.compile(rf"\b[{''.join(CHAPTERS)}]\d{{1,2}}\b")


def text(language: str) -> str:
    return (FOLDER / PAGES[language]).read_text(encoding="utf-8")


def sections(language: str) -> list[str]:
    """The page, cut at its headings."""
    return re.split(r"(?m)^(?=##+ )", text(language))


def lines_of_table(section: str) -> list[list[str]]:
    """Cells of every line of the tables in a section, without the two lines of a head."""
    lines = [line for line in section.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    rules = [k for k, line in enumerate(cells) if all(set(cell) <= {"-", ":"} and cell for cell in line)]
    return [line for k, line in enumerate(cells) if k not in rules and k + 1 not in rules]


def syllabi(language: str) -> dict[str, list[list[str]]]:
    """Lines of the table of every syllabus: topic, row, modules, kernel, recipe, picture."""
    found = {}
    for section in sections(language):
        head = re.match(r"### (S\d)\. ", section)
        if head:
            found[head[1]] = lines_of_table(section)
    return found


def built(language: str) -> list[str]:
    """Rows of the table that has a threshold and a value reached, in its order."""
    chapters = [section for section in sections(language) if section.startswith("## ")]
    return list(dict.fromkeys(line[0] for section in chapters for line in lines_of_table(section) if len(line) == 6))


def anchor(heading: str) -> str:
    """Of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("language", PAGES)
def test_every_link_leads_somewhere(language):
    figures = ROOT / "benchmarks" / "figures" / "courses"
    anchors = {anchor(line.lstrip("# ")) for line in text(language).splitlines() if line.startswith("#")}
    broken = []
    for name, target in LINK.findall(text(language)):
        if target.startswith("#"):
            if target[1:] not in anchors:
                broken.append(target)
            continue
        assert not re.match(r"\w+:", target), f"{name} leaves the repository: {target}"
        path = (FOLDER / target).resolve()
        if path.parent == figures.resolve() and not figures.exists():
            continue  # the pictures are made by `make courses`
        if not path.exists():
            broken.append(target)
    assert not broken, f"{PAGES[language]}: no such file: {', '.join(sorted(set(broken)))}"


@pytest.mark.parametrize("language", PAGES)
def test_every_row_with_a_recipe_is_listed_with_its_own_files(language):
    listed = built(language)
    assert set(courses.rows()) <= set(listed), f"{PAGES[language]}: not listed: {set(courses.rows()) - set(listed)}"
    for row in courses.rows():
        recipe = courses.find(row)
        recipe_file = Path(*type(recipe).__module__.split(".")[2:]).with_suffix(".py").as_posix()
        assert f"]({recipe_file})" in text(language), f"{PAGES[language]}: {row} without {recipe_file}"
        for goal in recipe.goals:
            limit = f"{goal.threshold:g}".replace(".", "," if language == "es" else ".")
            assert f"{ {'<=': '≤', '>=': '≥'}[goal.relation] } {limit} |" in text(language), f"{row}: {goal.name} {limit}"


@pytest.mark.parametrize("language", PAGES)
def test_lines_of_the_syllabi_name_the_modules_kernels_and_picture_of_their_row(language):
    for lines in syllabi(language).values():
        for _, row, modules, kernels, recipe_file, picture in lines:
            if row not in courses.rows():
                continue
            recipe = courses.find(row)
            assert [name for name, _ in LINK.findall(modules)] == [name.removeprefix("dlops.") for name in recipe.models], row
            assert [name for name, _ in LINK.findall(kernels)] == list(recipe.kernels), row
            assert type(recipe).__module__.rpartition(".")[2] in recipe_file, row
            assert picture.endswith(f"/{row}.png)"), row


@pytest.mark.parametrize("language", PAGES)
def test_every_row_is_found_under_the_syllabi_that_it_names(language):
    pages = syllabi(language)
    for row in courses.rows():
        for syllabus in courses.find(row).syllabi:
            assert row in [line[1] for line in pages[syllabus]], f"{PAGES[language]}: {row} says {syllabus}"


@pytest.mark.parametrize("language", PAGES)
def test_all_five_syllabi_and_no_line_without_topic_or_answer(language):
    pages = syllabi(language)
    assert list(pages) == list(SYLLABI)
    for syllabus, lines in pages.items():
        assert lines[0][0], f"{syllabus}: the first line has no topic"
        for topic, row, *rest in lines:
            # a row, or a word on why there is none
            assert ROW.fullmatch(row) or (topic and row == "–" and rest[0]), f"{syllabus}: {topic}"


@pytest.mark.parametrize("language", PAGES)
def test_rows_that_are_not_built_say_so(language):
    said = {"en": "not built yet", "es": "aún no"}[language]
    for lines in syllabi(language).values():
        for topic, row, _, _, recipe_file, _ in lines:
            if row != "–":
                assert (recipe_file == said) == (row not in courses.rows()), f"{topic}: {row}"
    later = [line[0] for section in sections(language) for line in lines_of_table(section) if len(line) == 4]
    assert later and not set(later) & set(courses.rows())


def test_both_pages_say_the_same():
    assert built("en") == built("es")
    english, spanish = syllabi("en"), syllabi("es")
    for syllabus in SYLLABI:
        assert [line[1:4] for line in english[syllabus]] == [
            [line[1], line[2] if line[1] != "–" else other[2], line[3]]
            for line, other in zip(spanish[syllabus], english[syllabus])
        ]
    links = [[target for _, target in LINK.findall(text(language))] for language in PAGES]
    english, spanish = ([target for target in targets if not target.startswith(("#", "README"))] for targets in links)
    assert english == spanish
