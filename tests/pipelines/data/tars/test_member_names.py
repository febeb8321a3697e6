from __future__ import annotations

from pipelines.data.tars.member_names import is_hidden, is_hidden_path, path_leaves_folder, split_name


def test_split_name():
    assert split_name("a/b.c/0001.seg.PNG") == ("a/b.c/0001", "seg.png")
    assert split_name("./0001.jpg") == ("0001", "jpg")
    assert split_name("README") is None
    assert split_name("a/.hidden.jpg") is None
    assert split_name("__meta.json__") is None


def test_leaves_folder():
    assert all(map(path_leaves_folder, ["/a.jpg", "../a.jpg", "a/../../b.jpg", "a\\..\\b.jpg", "C:\\a.jpg"]))
    assert not any(map(path_leaves_folder, ["a..b.jpg", "a/b.jpg", "./a.jpg", "..a/b.jpg"]))


def test_hidden_names_and_paths():
    assert all(map(is_hidden, [".a.jpg", "._a.jpg", "Thumbs.db", "desktop.ini", "@eaDir", "__MACOSX"]))
    assert not any(map(is_hidden, ["a.jpg", ".", ".."]))
    assert all(map(is_hidden_path, ["a/.b.jpg", "__MACOSX/a.jpg", "a/__MACOSX/b.jpg", "a/Thumbs.db"]))
    assert not any(map(is_hidden_path, ["a/b.jpg", ".a/b.jpg", "./a.jpg"]))
