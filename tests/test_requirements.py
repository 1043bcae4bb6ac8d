"""What the tests, the demo and the benchmarks install is pinned, with hashes, in requirements/."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
GROUPS = PROJECT["dependency-groups"]

pytestmark = pytest.mark.one_python


def wanted(group):
    """What a group names, with the groups that it includes."""
    for entry in GROUPS[group]:
        if isinstance(entry, dict):
            yield from wanted(entry["include-group"])
        else:
            yield Requirement(entry)


def locked(group):
    """The versions of each package; several where they depend on the Python."""
    text = (ROOT / "requirements" / f"{group}.txt").read_text()
    versions = {}
    for entry in text.replace("\\\n", " ").splitlines():
        pinned = re.fullmatch(r"(\S+)==(\S+)( ; .*?)?(?:\s+--hash=sha256:[0-9a-f]{64})+\s*", entry)
        assert pinned, f"requirements/{group}.txt: not a version with hashes: {entry!r}"
        versions.setdefault(pinned[1], set()).add(pinned[2])
    return versions


def assert_locked(requirements, group):
    versions = locked(group)
    for requirement in requirements:
        found = versions.get(canonicalize_name(requirement.name), set())
        assert found, f"requirements/{group}.txt lacks {requirement}: run make update"
        assert all(map(requirement.specifier.contains, found)), (
            f"requirements/{group}.txt has another version than {requirement}: run make update"
        )


@pytest.mark.parametrize("group", GROUPS)
def test_all_that_a_group_names_is_pinned(group):
    assert_locked(wanted(group), group)


def test_what_the_project_needs_and_what_builds_it_are_pinned():
    named = [*PROJECT["project"]["dependencies"], *PROJECT["build-system"]["requires"]]

    assert_locked(map(Requirement, named), "build")


def test_all_groups_agree_since_they_share_an_environment():
    versions = {}
    for group in GROUPS:
        for name, found in locked(group).items():
            assert versions.setdefault(name, found) == found, f"{name}: run make update"
