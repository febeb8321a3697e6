"""Media are found by their files; what they say of themselves is what an index can store."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pyarrow as pa
import pytest
from PIL import Image

from tests.vlmodel.image_files import HEIGHT, WIDTH, exif, saved
from vlmodel.media.base import CheckLimits, MediumError
from vlmodel.media.registry import all_media, medium_of_extension


@pytest.mark.parametrize("name", all_media())
def test_a_medium_describes_itself(name: str) -> None:
    medium = all_media()[name]
    assert medium.name == name
    assert medium.extensions
    for extension in medium.extensions:
        assert extension == extension.lower().lstrip(".")
        assert medium_of_extension(extension) is medium
        assert medium_of_extension(extension.upper()) is medium
    for arrow_type in medium.columns.values():
        assert pa.type_for_alias(arrow_type)
    with pytest.raises(MediumError) as caught:
        medium.check_file(b"", CheckLimits())
    assert caught.value.reason == "empty"


def test_no_two_media_share_an_extension() -> None:
    extensions = [extension for medium in all_media().values() for extension in medium.extensions]
    assert len(extensions) == len(set(extensions))
    assert medium_of_extension("exe") is None
    assert {"image", "series"} <= set(all_media())


def test_an_image() -> None:
    turned = saved(exif=b"Exif\0\0" + exif(6))
    assert all_media()["image"].check_file(turned, CheckLimits()) == {
        "format": "jpeg",
        "width": HEIGHT,
        "height": WIDTH,
    }
    png = saved("PNG", Image.new("RGB", (20, 10)))
    with pytest.raises(MediumError, match="max_pixels allows 199") as caught:
        all_media()["image"].check_file(png, CheckLimits(max_pixels=199))
    assert caught.value.reason == "too_large"
    for verify in ("header", "decode"):
        with pytest.raises(MediumError) as caught:
            all_media()["image"].check_file(turned[:-200], CheckLimits(verify=verify))
        assert caught.value.reason == "truncated"


def test_errors_can_be_pickled() -> None:
    error = pickle.loads(pickle.dumps(MediumError("not_finite", "a NaN")))  # noqa: S301 - made here
    assert (error.reason, error.detail, str(error)) == ("not_finite", "a NaN", "a NaN")


def test_media_do_not_import_torch() -> None:
    program = "import sys; from vlmodel.media.registry import all_media; all_media(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
