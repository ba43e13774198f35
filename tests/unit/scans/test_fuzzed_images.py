"""Image files with changed bytes, words and lengths: one line, or a scan; never a traceback, never a wait."""

from __future__ import annotations

import os
import random
import re
import signal
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from mois.errors import DataError
from mois.scans.image_files import read_image
from tests.support.scan_files import affine, as_itk, dicom_slice, scan, write_frames, write_mha, write_nrrd

MUTATIONS = int(os.environ.get("MOIS_MUTATIONS", "200"))
WORDS = [
    b"0",
    b"-1",
    b"1e999",
    b"nan",
    b"99999999999999999999",
    b"",
    b"none",
    b"True",
    b"\xff\xfe",
    b"(1,2,3)",
    b"a b c",
]


def make(folder: Path, form: str) -> Path:
    path = folder / form
    if form.endswith((".nii", ".nii.gz")):
        nib.save(nib.Nifti1Image(scan(), affine()), path)
    elif form == "hand.nrrd":
        write_nrrd(path, scan(), affine(), space_units='"mm" "mm" "mm"', kinds="domain domain domain")
    elif form == "hand.mha":
        write_mha(path, scan(), affine(), DistanceUnits="mm")
    elif form.endswith((".nrrd", ".mha")):
        sitk.WriteImage(as_itk(scan(), affine(turn=25)), str(path), True)
    elif form == "frames.dcm":
        write_frames(path, scan(), affine())
    else:
        dicom_slice(scan(), affine(), 3).save_as(path, enforce_file_format=True)
    return path


def mutated(data: bytes, draw: random.Random) -> bytes:
    """Flip, overwrite, insert, cut or double bytes, or swap a word of a text header for another."""
    out = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 5))):
        at = draw.randrange(min(len(out), draw.choice((64, 400, len(out)))) or 1)
        kind = draw.randrange(6)
        if kind == 0 and out:
            out[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            out[at : at + 4] = draw.choice((b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", draw.randbytes(4)))
        elif kind == 2:
            out[at:at] = draw.randbytes(draw.randrange(1, 9))
        elif kind == 3:
            del out[at : at + draw.randrange(1, 40)]
        elif kind == 4:
            out[at:at] = out[at : at + 60]
        else:
            words = list(re.finditer(rb"[\w.,()-]+", bytes(out[:1500])))
            if words:
                word = draw.choice(words)
                out[word.start() : word.end()] = draw.choice(WORDS)
    return bytes(out)


@pytest.mark.ci
@pytest.mark.parametrize(
    "form", ["a.nii", "a.nii.gz", "a.nrrd", "hand.nrrd", "a.mha", "hand.mha", "a.dcm", "frames.dcm"]
)
def test_a_mutated_image_is_read_or_named(tmp_path, form):
    whole = make(tmp_path, form)
    data, draw = whole.read_bytes(), random.Random(form)
    path = tmp_path / f"b{form}"
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    refused = 0
    for number in range(MUTATIONS):
        path.write_bytes(mutated(data, draw))
        signal.alarm(30)  # ends the process where something waits
        try:
            voxels, place = read_image(path)
        except DataError as error:
            refused += 1
            lines = str(error).splitlines()
        else:
            lines = [""]
            assert voxels.ndim == 3
            assert np.isfinite(place).all()
        finally:
            signal.alarm(0)
        assert len(lines) == 1, (number, lines)
    assert refused > MUTATIONS // 4
