"""Sizes and times, against values that Docker's own client prints."""

import pytest

from utsuwa.cli import units
from utsuwa.errors import UsageError

HOUR = 3600


@pytest.mark.parametrize(("size", "text"), [(0, "0B"), (999, "999B"), (1000, "1kB"), (4260000, "4.26MB"), (123456, "123.5kB"), (1234567890, "1.235GB"), (999999, "1000kB")])
def test_human_size(size, text):
    assert units.human_size(size) == text


@pytest.mark.parametrize(("size", "text"), [(0, "0B"), (1023, "1023B"), (1024, "1KiB"), (512 << 20, "512MiB"), (25 << 30, "25GiB")])
def test_bytes_size(size, text):
    assert units.bytes_size(size) == text


@pytest.mark.parametrize(("seconds", "text"), [
    (0.5, "Less than a second"), (1, "1 second"), (59, "59 seconds"), (60, "About a minute"), (120, "2 minutes"), (HOUR, "About an hour"), (1.5 * HOUR, "2 hours"),
    (47 * HOUR, "47 hours"), (48 * HOUR, "2 days"), (14 * 24 * HOUR, "2 weeks"), (60 * 24 * HOUR, "2 months"), (730 * 24 * HOUR, "2 years"),
])
def test_duration(seconds, text):
    assert units.duration(seconds) == text


@pytest.mark.parametrize(("text", "size"), [("512m", 512 << 20), ("1.5g", 3 << 29), ("10MiB", 10 << 20), ("10 m", 10 << 20), ("7000000b", 7000000), ("8388608", 8388608), ("0", 0)])
def test_memory(text, size):
    assert units.parse_memory(text) == size


@pytest.mark.parametrize(("text", "why"), [
    ("x", "invalid size: 'x'"), ("5x", "invalid suffix: 'x'"), ("1mibx", "invalid suffix: 'mibx'"), ("-5", "invalid size: '-5'"), ("5bb", "invalid suffix: 'bb'"), ("", "invalid size: ''"),
])
def test_memory_in_docker_s_words(text, why):
    with pytest.raises(UsageError) as caught:
        units.parse_memory(text)
    assert str(caught.value) == f'invalid argument "{text}" for "-m, --memory" flag: {why}'


@pytest.mark.parametrize("text", ["1.2.3m", "nan", "inf1", "1_0m", "1e999", "9" * 30 + "p"])
def test_memory_that_is_no_size(text):
    with pytest.raises(UsageError, match="invalid argument"):
        units.parse_memory(text)


@pytest.mark.parametrize(("text", "processors"), [("1", 1), ("1.5", 1.5), (".5", 0.5), ("0", 0), ("0.000000001", 1e-9)])
def test_cpus(text, processors):
    assert units.parse_cpus(text) == processors


@pytest.mark.parametrize(("text", "why"), [("x", "failed to parse x as a rational number"), ("1.1234567891", "value is too precise"), ("", "failed to parse"), ("-1", "failed to parse"), ("٣", "failed")])
def test_bad_cpus(text, why):
    with pytest.raises(UsageError, match=why):
        units.parse_cpus(text)


@pytest.mark.parametrize(("text", "ns"), [("10s", 10**10), ("1h30m", 5400 * 10**9), ("1.5s", 15 * 10**8), ("-2ms", -2 * 10**6), ("0", 0)])
def test_durations(text, ns):
    assert units.parse_duration(text) == ns


@pytest.mark.parametrize(("text", "ns"), [
    ("10s", 90 * 10**9), ("50", 50 * 10**9), ("50.25", 50250 * 10**6), ("1970-01-01T00:00:01Z", 10**9), ("1970-01-01T00:00:01.000000002Z", 10**9 + 2), ("1970-01-01T01:00:00+01:00", 0),
])
def test_times(text, ns):
    assert units.parse_time(text, 100 * 10**9) == ns


@pytest.mark.parametrize("text", ["", "x", "1970-13-01", "10x", "٣"])
def test_bad_times(text):
    with pytest.raises(UsageError, match="cannot read the time"):
        units.parse_time(text, 0)
