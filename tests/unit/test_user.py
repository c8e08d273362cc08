"""Who a container's process is, by text of passwd and group alone: Docker's answers (moby/sys/user, GetExecUser), and files that lie."""

import pytest

from utsuwa.container.user import MAX_ID, resolve
from utsuwa.errors import UsageError

PASSWD = b"""root:x:0:0:root:/root:/bin/sh
# commented:x:7:7::/:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
user:x:1000:1001:A User,,,:/home/user:/bin/sh
again:x:1000:1005::/home/again:/bin/sh
homeless:x:1002:1002:::/bin/sh
short:x:1003:1003
42:x:1004:1004::/home/42:/bin/sh
nobody:x:65534:65534::/:/bin/false
"""
GROUP = b"""root:x:0:
daemon:x:1:user
user:x:1001:
staff:x:50:root,user
wheel:x:10:root
list:x:38:daemon,user
broken:x:many:user
large:x:4294967296:user
7:x:70:
primary:x:1001:user
"""


def told(text, passwd=PASSWD, group=GROUP):
    user = resolve(text, passwd, group)
    return user.uid, user.gid, user.groups, user.home


@pytest.mark.parametrize(("text", "wanted"), [
    ("", (0, 0, [0, 50, 10], "/root")), ("root", (0, 0, [0, 50, 10], "/root")), ("0", (0, 0, [0, 50, 10], "/root")),
    ("user", (1000, 1001, [1001, 1, 50, 38], "/home/user")), ("1000", (1000, 1001, [1001, 1, 50, 38], "/home/user")),
    ("again", (1000, 1005, [1005], "/home/again")), ("homeless", (1002, 1002, [1002], "/")),
    ("4242", (4242, 0, [0], "/")), (str(MAX_ID), (MAX_ID, 0, [0], "/")), ("007", (7, 0, [0], "/")), ("00000000000000001000", (1000, 1001, [1001, 1, 50, 38], "/home/user")),
])
def test_a_user_has_the_files_groups_and_home(text, wanted):
    assert told(text) == wanted


@pytest.mark.parametrize(("text", "wanted"), [
    ("user:staff", (1000, 50, [50], "/home/user")), ("user:50", (1000, 50, [50], "/home/user")), ("1000:4242", (1000, 4242, [4242], "/home/user")), (":wheel", (0, 10, [10], "/root")),
    ("4242:4243", (4242, 4243, [4243], "/")), ("0:0", (0, 0, [0], "/root")), (f"0:{MAX_ID}", (0, MAX_ID, [MAX_ID], "/root")), ("user:", (1000, 1001, [1001, 1, 50, 38], "/home/user")),
])
def test_a_group_that_is_given_is_the_only_one(text, wanted):
    assert told(text) == wanted


def test_digits_are_an_id_even_where_a_name_looks_the_same():
    assert told("42") == (42, 0, [0], "/")
    assert told("0:7") == (0, 7, [7], "/root")


@pytest.mark.parametrize(("passwd", "group"), [(None, None), (b"", b""), (b"\n\n:::\n", b":\n"), (b"\xff\xfe\0\n" * 3, b"\0")])
def test_without_files_numbers_are_enough(passwd, group):
    assert told("", passwd, group) == (0, 0, [0], "/")
    assert told("1000:50", passwd, group) == (1000, 50, [50], "/")
    with pytest.raises(UsageError, match="unable to find user user: no matching entries in passwd file"):
        told("user", passwd, group)
    with pytest.raises(UsageError, match="unable to find group staff: no matching entries in group file"):
        told("0:staff", passwd, group)


@pytest.mark.parametrize("number", ["-1", "-0", str(MAX_ID + 1), "4294967295", "4294967296", "18446744073709551616", "9" * 5000])
def test_cve_2024_40635_numbers_out_of_range(number):
    """Never wrapped, never cut: 4294967296 is not 0, and 4294967295 not "leave it as it is" of setresuid(2)."""
    for text, kind in ((number, "uid"), (f"0:{number}", "gid"), (f"{number}:0", "uid")):
        with pytest.raises(UsageError, match=rf"invalid user .*: {kind} must be 0 to 2147483647") as caught:
            told(text)
        assert len(str(caught.value)) < 200


@pytest.mark.parametrize("name", ["nowhere", "--1", "+1", "1.0", "1e3", " 1", "1 ", "0x0", "٣", "²", "commented", "# commented", "short", "us er", "user\n", "a" * 300])
def test_a_name_that_is_not_there(name):
    with pytest.raises(UsageError, match="unable to find user"):
        told(name)
    with pytest.raises(UsageError, match="unable to find group"):
        told(f"root:{name}")


@pytest.mark.parametrize("line", [b"evil:x:-1:0::/:", b"evil:x:4294967296:0::/:", b"evil:x:0:4294967296::/:", b"evil:x::0::/:", b"evil:x:0x0:0::/:", b"evil:x:" + b"9" * 5000 + b":0::/:", b"evil:x:\xd9\xa3:0::/:"])
def test_a_line_that_lies_about_its_ids_is_no_line(line):
    """An image's own files cannot make a number that no id has."""
    with pytest.raises(UsageError, match="unable to find user evil"):
        told("evil", line + b"\n" + PASSWD)
    assert told("user", line + b"\n" + PASSWD)[0] == 1000


def test_the_first_line_of_a_name_counts():
    assert told("user", b"user:x:5:5::/five:\n" + PASSWD)[0] == 5
    assert told("0:staff", PASSWD, b"staff:x:6:\n" + GROUP)[1] == 6


def test_only_a_newline_ends_a_line():
    """What str.splitlines takes for an end besides could hide a line in another's comment field."""
    inside = "user:x:1000:1000:\u2028root2:x:0:0::/:/home/user:/bin/sh\x0bother:x:0:0::/:\n".encode()
    with pytest.raises(UsageError, match="unable to find user root2"):
        told("root2", inside)
    with pytest.raises(UsageError, match="unable to find user other"):
        told("other", inside)


def test_names_that_are_no_utf_8():
    assert told("ren\udce9", b"ren\xe9:x:8:8::/home/ren\xe9:\n")[::3] == (8, "/home/ren\udce9")


def test_a_group_is_listed_once():
    """`user` belongs to `primary`, which is its own primary group under another name."""
    assert told("user")[2].count(1001) == 1
