"""Folders of exercises for the tests: stubs, right solutions, and files with something else in them."""

from numpy_gpt2.exercises.course import CHAPTERS, chapter_source, exercises_by_name
from numpy_gpt2.exercises.folders import new_folder

NAMES = list(exercises_by_name())


def solved_folder(folder):
    """A folder in which a student has written everything right."""
    new_folder(folder)
    for chapter in CHAPTERS:
        (folder / f"{chapter}.py").write_text(chapter_source(chapter), encoding="utf-8")
    return folder


def with_change(folder, name, old, new):
    """The same folder with a text of one exercise's file changed."""
    path = folder / exercises_by_name()[name].file
    source = path.read_text(encoding="utf-8")
    assert source.count(old) == 1
    path.write_text(source.replace(old, new), encoding="utf-8")
    return folder
