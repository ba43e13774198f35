"""Tables and descriptions as people's programs write them: read, or refused in one line with the cure."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from datamodules.splits import Fold, read_splits
from mois.cli.commands import with_options
from mois.errors import DataError
from mois.files.text import as_yaml, read_json, read_table, read_text
from mois.scans.dataset_description import DatasetDescription, read_description
from mois.scans.datasets import read_dataset
from mois.session.prompts.prompt_file import read_prompts

TABLE = "subject,patient\np0,Jürgen\np1,Ann\n"
DESCRIPTION = {"labels": {"background": 0, "lésion": 1}, "file_ending": ".nii.gz"}


def written(path: Path, text: str, encoding: str = "utf-8", mark: bytes = b"") -> Path:
    path.write_bytes(mark + text.encode(encoding))
    return path


ENCODINGS = [
    pytest.param("utf-8", b"", id="UTF-8"),
    pytest.param("utf-8", codecs.BOM_UTF8, id="UTF-8 with a mark"),
    pytest.param("utf-16-le", codecs.BOM_UTF16_LE, id="UTF-16 LE"),
    pytest.param("utf-16-be", codecs.BOM_UTF16_BE, id="UTF-16 BE"),
    pytest.param("utf-32-le", codecs.BOM_UTF32_LE, id="UTF-32 LE"),
]


@pytest.mark.parametrize(("encoding", "mark"), ENCODINGS)
def test_every_text_is_read_in_the_encodings_that_say_which_they_are(
    tmp_path: Path, encoding: str, mark: bytes
) -> None:
    table = read_table(written(tmp_path / "t.csv", TABLE, encoding, mark))
    assert table.rows == [{"subject": "p0", "patient": "Jürgen"}, {"subject": "p1", "patient": "Ann"}]
    assert table.lines == [2, 3]
    description = written(tmp_path / "dataset.json", json.dumps(DESCRIPTION, ensure_ascii=False), encoding, mark)
    assert read_description(description) == DatasetDescription({1: "lésion"}, ".nii.gz", {})
    splits = written(tmp_path / "splits.json", '[{"train": ["é"], "val": []}]', encoding, mark)
    assert read_splits(splits) == [Fold(["é"], [])]
    prompts = written(tmp_path / "prompts.json", '{"prompts": [{"click": [1, 2, 3], "lesion": "ü"}]}', encoding, mark)
    assert read_prompts(prompts)[0].lesion == "ü"


@pytest.mark.parametrize("sign", [",", ";", "\t", "|", " | "])
def test_cells_are_parted_by_the_sign_that_the_header_has(tmp_path: Path, sign: str) -> None:
    table = read_table(written(tmp_path / "t.csv", TABLE.replace(",", sign)))
    assert table.rows == [{"subject": "p0", "patient": "Jürgen"}, {"subject": "p1", "patient": "Ann"}]


READERS = [read_text, read_json, read_table, read_splits, read_prompts, read_description]


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("subject\nJürgen".encode("latin-1"), "FILE: byte 9 (0xfc) is no UTF-8; save it as UTF-8 (Excel: CSV UTF-8)."),
        ("ab".encode("utf-16-le"), "FILE: byte 1 is 0, so it is no text, or UTF-16 without its mark; save it as UTF-8"),
        (b"\x1f\x8b\x08\0\0", "FILE: is a gzip file (an image?), no text; give a text file"),
        (b"PK\x03\x04\x14\0", "FILE: is a zip archive (an Excel workbook?), no text; give a text file"),
        (codecs.BOM_UTF16_LE + b"a\0b", "FILE: byte 4 (0x62) is no UTF-16-LE; save it as UTF-8"),
    ],
)  # fmt: skip
def test_another_encoding_is_named_with_its_place(
    tmp_path: Path, read: Callable[[Path], object], content: bytes, said: str
) -> None:
    file = tmp_path / "t.txt"
    file.write_bytes(content)
    with pytest.raises(DataError) as error:
        read(file)
    assert str(error.value).startswith(said.replace("FILE", str(file)))


@pytest.mark.parametrize("text", ["", " \n", "\ufeff"])
@pytest.mark.parametrize("read", [read_json, read_table, read_splits, read_prompts, read_description])
def test_an_empty_file_is_called_empty(tmp_path: Path, read: Callable[[Path], object], text: str) -> None:
    with pytest.raises(DataError, match=r"t\.txt: is empty; "):
        read(written(tmp_path / "t.txt", text))


@pytest.mark.parametrize(
    "text",
    [
        "subject;patient\np0;a,b\n",
        "subject\tpatient\np0\ta,b\n",
        'subject,patient\np0,"a,b"\n',
        "sep=;\nsubject;patient\np0;a,b\n",
        '\n subject , patient \n\n  p0 , "a,b "\n',
        "subject,patient\rp0,\"a,b\"\r",
        "subject;patient;;\r\np0;a,b;;\r\n;;;\r\n",
    ],
)  # fmt: skip
def test_tables_of_spreadsheets_are_read(tmp_path: Path, text: str) -> None:
    assert read_table(written(tmp_path / "t.csv", text)).rows == [{"subject": "p0", "patient": "a,b"}]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("subject,patient\np0,a,b\n", "line 2 has 3 cells, its header 2; correct that line"),
        ("sep=;\nsubject;patient\np0;a;b\n", "line 3 has 3 cells, its header 2; correct that line"),
        ("subject,subject\np0,a\n", "column 'subject' stands twice in its header; rename one."),
        ('subject,patient\np0,"a\n', "line 2: unexpected end of data; correct that line."),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path: Path, text: str, said: str) -> None:
    file = written(tmp_path / "t.csv", text)
    with pytest.raises(DataError, match=re.escape(f"{file}: {said}")):
        read_table(file)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"labels": {}', " is cut short or no JSON (Expecting ',' delimiter: line 1 column 14"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', " is cut short or no JSON (the key 'c' stands there twice)"),
        ("[" * 100_000, " is no JSON that can be read (too many objects inside each other)"),
    ],
)
def test_what_is_no_json_is_named_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    file = written(tmp_path / "t.json", text)
    with pytest.raises(DataError, match=re.escape(f"{file}{said}")):
        read_json(file)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"labels": {"0": "background", "1": "lesion"}}, 'first version; swap name and number: {"backg'),
        ({"labels": ["background", "lesion"]}, "labels is a list; write an object of names and numbers: "),
        ({"labels": None}, "labels is null; write an object"),
        ({"labels": {"lesion": "1"}}, "label 'lesion' is \"1\"; write 1."),
        ({"labels": {"lesion": 1.0}}, "label 'lesion' is 1.0; write 1."),
        ({"labels": {"lesion": 1.5}}, "label 'lesion' is 1.5; write a whole number, 0 to 2147483647."),
        ({"labels": {"lesion": True}}, "label 'lesion' is true; write a whole number"),
        ({"labels": {"lesion": None}}, "label 'lesion' is null; write a whole number"),
        ({"labels": {"lesion": -1}}, "label 'lesion' is -1; write a whole number"),
        ({"labels": {"lesion": 2**31}}, "label 'lesion' is 2147483648; write a whole number"),
        ({"labels": {"whole": [1, 2]}}, "label 'whole' must be one whole number; regions and ignored voxels are not"),
        ({"labels": {"ignore": 3}}, "label 'ignore' must be one whole number; regions"),
        ({"labels": {"a": 1, "b": 1}}, "labels 'a' and 'b' are both 1; give each class its own number."),
        ({"channel_names": {"T1": 0}}, "channel_names says 'T1': 0; swap number and name: {\"0\": \"T1\"}."),
        ({"channel_names": {"T1": "0"}}, "channel_names says 'T1': 0; swap number and name: {\"0\": \"T1\"}."),
        ({"channel_names": {"²": "T1"}}, "channel_names says '²': \"T1\"; write numbers and names: {\"0\": \"T2\"}."),
        ({"channel_names": ["T1"]}, 'channel_names is a list; write numbers and names: {"0": "T2"}.'),
        ({"channel_names": {"0": None}}, "channel_names says '0': null; write numbers and names"),
        ({"file_ending": "nii.gz"}, "file_ending 'nii.gz' cannot be read; write '.nii.gz'."),
        ({"file_ending": ".NII"}, "file_ending '.NII' cannot be read; write '.nii'."),
        ({"file_ending": ".dcm"}, "file_ending '.dcm' cannot be read; use one of .nii.gz, .nii, .nrrd, .mha, .mhd."),
        ({"file_ending": None}, "file_ending None cannot be read; use one of"),
    ],
)  # fmt: skip
def test_a_description_is_refused_by_key(tmp_path: Path, changed: dict[str, object], said: str) -> None:
    file = written(tmp_path / "dataset.json", json.dumps({**DESCRIPTION, **changed}))
    with pytest.raises(DataError) as error:
        read_description(file)
    assert said in str(error.value)
    assert str(error.value).startswith(f"{file}: ")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "holds a list; it needs an object with labels and file_ending."),
        ('"labels"', "holds a text; it needs"),
        ("{}", "lacks labels and file_ending; it needs"),
        ('{"labels": {}}', "lacks file_ending; it needs"),
    ],
)
def test_a_description_of_another_shape_is_refused(tmp_path: Path, text: str, said: str) -> None:
    file = written(tmp_path / "dataset.json", text)
    with pytest.raises(DataError, match=re.escape(f"{file}: {said}")):
        read_description(file)


def test_the_names_of_channels_are_read_in_both_spellings_of_their_key(tmp_path: Path) -> None:
    for key in ("channel_names", "modality"):
        file = written(tmp_path / "dataset.json", json.dumps({**DESCRIPTION, key: {"0": "CT", "1": "T2"}}))
        assert read_description(file).channels == {0: "CT", 1: "T2"}


@pytest.mark.parametrize(
    "text", ["{}", "[[]]", '[{"train": ["a"]}]', '[{"train": "a", "val": []}]', '[{"train": [1], "val": []}]']
)
def test_splits_of_another_shape_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match=r'splits\.json: .*\[{"train": \["p1"\], "val": \["p2"\]}\], as nnU-Net writes'):
        read_splits(written(tmp_path / "splits.json", text))


def test_a_name_whose_zeros_a_spreadsheet_dropped_is_recognised(make_dataset: Callable[..., Path]) -> None:
    root = make_dataset(subjects=1)
    for file in (root / "imagesTr" / "p0_0000.nii.gz", root / "labelsTr" / "p0.nii.gz"):
        file.rename(file.with_name(file.name.replace("p0", "001")))
    written(root / "subjects.csv", "subject,patient\n1,Ann\n")
    with pytest.raises(DataError, match=r"subject 001 is missing; it has 1 instead; write 001 there \(as text"):
        read_dataset(root)


@pytest.mark.parametrize(
    "name", ["Müller", "𠮷野", "brain🧠", "a\x85b", "a\x7fb", "a\u2028b", "no\udcffutf8", 'a"b\\c', "tab\t"]
)
def test_yaml_reads_any_name_as_it_was(name: str) -> None:
    assert yaml.safe_load(as_yaml({name: [name]})) == {name: [name]}
    assert json.loads(as_yaml({name: [name]})) == {name: [name]}
    words = with_options(["bank", "ls", f"/data/{name}", "b"])
    assert yaml.safe_load(words[-1].partition("=")[2]) == [f"/data/{name}", "b"]
