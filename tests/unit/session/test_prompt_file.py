"""A file of prompts is read strictly: what is not understood is refused, never guessed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mois.session.points import VoxelPoint
from mois.session.prompts.prompt_file import PromptEntry, read_prompts


def read(tmp_path: Path, text: str | bytes) -> list[PromptEntry]:
    path = tmp_path / "prompts.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_prompts(path)


def test_what_each_kind_of_entry_gives(tmp_path: Path) -> None:
    entries = [
        {"click": [1, 2.5, -3], "lesion": "a", "positive": False},
        {"box": [[1, 2, 3], [4, 5, 3]]},
        {"mask": "m.nii.gz", "lesion": None},
        {"propagate": True},
        {"click": [0, 0, 0]},
        {"scribble": [[1, 2, 3], {"ras": [1, 2, 3]}], "positive": False},
        {"lasso": [[1, 2, 3], [4, 2, 3], {"voxel": [1, 2, 3]}], "lesion": "a"},
    ]
    expected = [
        PromptEntry("click", [1.0, 2.5, -3.0], "a", False, 1),
        PromptEntry("box", [[1.0, 2.0, 3.0], [4.0, 5.0, 3.0]], None, True, 2),
        PromptEntry("mask", tmp_path / "m.nii.gz", None, True, 3),
        PromptEntry("propagate", True, None, True, 4),
        PromptEntry("click", [0.0, 0.0, 0.0], None, True, 5),
        PromptEntry("scribble", [[1.0, 2.0, 3.0], [-1.0, -2.0, 3.0]], None, False, 6),
        PromptEntry("lasso", [[1.0, 2.0, 3.0], [4.0, 2.0, 3.0], VoxelPoint(1.0, 2.0, 3.0)], "a", True, 7),
    ]
    assert read(tmp_path, json.dumps({"prompts": entries})) == expected
    assert read(tmp_path, json.dumps(entries)) == expected  # the list alone
    assert read(tmp_path, b"\xef\xbb\xbf" + json.dumps(entries).encode()) == expected  # as some editors save it


def test_a_file_without_a_propagation_ends_with_one(tmp_path: Path) -> None:
    assert [step.kind for step in read(tmp_path, '[{"click": [1, 2, 3]}]')] == ["click", "propagate"]
    assert read(tmp_path, '{"prompts": []}') == [PromptEntry("propagate", True, number=0)]


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ('{"click": [1, 2, 3], "positive": "no"}', "positive must be true or false, without quotes"),
        ('{"click": [1, 2, 3], "positive": 0}', "positive must be true or false"),
        ('{"click": [1, 2, 3], "positive": null}', "positive must be true or false"),
        ('{"click": [1, 2, 3], "negative": true}', "'negative' does not belong to a click, which may have lesion and"),
        ('{"click": [1, 2, 3], "Lesion": "a"}', "'Lesion' does not belong to a click"),
        ('{"box": [[1, 2, 3], [4, 5, 3]], "positive": 0}', "positive must be true or false"),
        ('{"propagate": true, "positive": false}', "'positive' does not belong to a propagate"),
        ('{"scribble": [[1, 2, 3]]}', "a scribble has 2 to 10000 points"),
        ('{"scribble": [1, 2, 3]}', "a point must be three numbers"),
        ('{"lasso": [[1, 2, 3], [1, 2, 3]]}', "a lasso has 3 to 10000 points"),
        ('{"lasso": {"voxel": [1, 2, 3]}}', "a lasso has 3 to 10000 points"),
        ('{"mask": "m.nii.gz", "affine": true}', "'affine' does not belong to a mask, which may have lesion and"),
        ('{"propagate": true, "lesion": "a"}', "'lesion' does not belong to a propagate, which may have type besides"),
        ('{"propagate": false}', "propagate must be true; leave the entry out"),
        ('{"propagate": 1}', "propagate must be true"),
        ('{"propagate": "true"}', "propagate must be true"),
        ('{"click": [1, 2, 3], "lesion": 1}', "lesion must be a name in quotes"),
        ('{"click": [1, 2, 3], "lesion": true}', "lesion must be a name in quotes"),
        ('{"click": [1, 2, 3], "lesion": ["a"]}', "lesion must be a name in quotes"),
        ('{"click": [1, 2, 3], "lesion": ""}', "lesion must be a name in quotes"),
        ('{"click": [1, 2, 3], "lesion": "a "}', "lesion must be a name in quotes, without blanks around it"),
        ('{"click": [1, 2]}', "a point must be three numbers, LPS mm"),
        ('{"click": [1, 2, 3, 4]}', "a point must be three numbers"),
        ('{"click": [[1, 2, 3]]}', "a point must be three numbers"),
        ('{"click": "1,2,3"}', "a point must be three numbers"),
        ('{"click": [1, 2, true]}', "a point must be three numbers"),
        ('{"click": [1, 2, "3"]}', "a point must be three numbers"),
        ('{"click": [1, 2, 1e300]}', "a point must be three numbers of at most 1000000, LPS mm"),
        ('{"click": [1, 2, 1' + 400 * "0" + "]}", "a point must be three numbers of at most 1000000"),
        ('{"box": [[1, 2, 3]]}', "a box has two opposite corners"),
        ('{"box": {"a": [1, 2, 3], "b": [1, 2, 3]}}', "a box has two opposite corners"),
        ('{"box": [[1, 2, 3], [1, 2]]}', "a point must be three numbers"),
        ('{"mask": 7}', "mask is the name of a file"),
        ('{"mask": ""}', "mask is the name of a file"),
        ('{"tap": [1, 2, 3]}', "it needs exactly one of click, box, mask, scribble, lasso, propagate"),
        ('{"click": [1, 2, 3], "propagate": true}', "it needs exactly one of"),
        ("{}", "it needs exactly one of"),
        ("[1, 2, 3]", "write an object"),
        ("null", "write an object"),
    ],
)
def test_an_entry_of_a_wrong_type_is_refused_by_its_number(tmp_path: Path, entry: str, reason: str) -> None:
    with pytest.raises(ValueError, match=r"entry 2 is ") as refused:
        read(tmp_path, f'{{"prompts": [{{"click": [1, 2, 3]}}, {entry}]}}')
    assert reason in str(refused.value)
    assert str(tmp_path / "prompts.json") in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty"),
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[1" + 5000 * "0" + "]", "no JSON"),
        ('{"prompts": [{"click": [NaN, 2, 3]}]}', "NaN"),
        ('{"prompts": [{"click": [1, -Infinity, 3]}]}', "-Infinity"),
        ('{"prompts": [{"click": [1, 2, 1e999]}]}', "1e999 is too large"),
        ('{"prompts": [{"click": [1, 2, 3], "click": [4, 5, 6]}]}', "'click'"),
        ('{"prompts": [], "prompts": []}', "'prompts'"),
        ('{"prompts": {}}', "prompts is {}; write a list"),
        ('{"prompts": null}', "prompts is null; write a list"),
        ('{"clicks": []}', "'clicks' is unknown"),
        ('{"prompts": [], "scan": "a"}', "'scan' is unknown beside prompts"),
        ("{}", "is no JSON of the form"),
        ("7", "prompts is 7; write a list"),
    ],
)
def test_a_file_that_is_no_list_of_prompts_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=r"prompts\.json") as refused:
        read(tmp_path, text)
    assert reason in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no such file"):
        read_prompts(tmp_path / "none.json")
