"""kernel/tree.py: removing what a container left, however deep, closed, or fought over."""

import os
import threading

import pytest

from utsuwa.kernel.tree import remove_tree


@pytest.fixture
def place(tmp_path):
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield tmp_path, fd
    os.close(fd)


def deep(fd, levels):
    """A chain of `levels` directories called d, made by descriptors: no path is that long."""
    current = os.dup(fd)
    for _ in range(levels):
        os.mkdir("d", dir_fd=current)
        below = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=current)
        os.close(current)
        current = below
    os.close(current)


def test_a_tree_deeper_than_the_stack_goes(place):
    path, fd = place
    deep(fd, 5000)
    remove_tree(fd, "d")
    assert os.listdir(path) == []


def test_a_link_is_removed_not_followed(place):
    path, fd = place
    (path / "keep").mkdir()
    (path / "keep" / "file").write_text("x")
    (path / "t").mkdir()
    (path / "t" / "link").symlink_to(path / "keep")
    remove_tree(fd, "t")
    assert sorted(os.listdir(path)) == ["keep"]
    assert os.listdir(path / "keep") == ["file"]


def test_a_closed_directory_is_opened(place):
    path, fd = place
    (path / "t" / "work").mkdir(parents=True)
    (path / "t" / "work" / "f").write_text("")
    (path / "t" / "work").chmod(0)
    remove_tree(fd, "t")
    assert os.listdir(path) == []


def test_what_is_not_there_is_fine(place):
    path, fd = place
    remove_tree(fd, "nothing")
    assert os.listdir(path) == []


def test_many_removers_at_once_all_succeed(place):
    path, fd = place
    for a in range(20):
        for b in range(20):
            (path / "t" / str(a) / str(b) / "x").mkdir(parents=True)
    failures = []

    def remove():
        try:
            remove_tree(fd, "t")
        except OSError as error:
            failures.append(error)

    threads = [threading.Thread(target=remove) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert os.listdir(path) == []
