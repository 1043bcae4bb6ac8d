import os
import re
import time

import pytest

from guardrails import BlockAgents, ConfigurationError, testing
from support import lines


@pytest.fixture
def wall(monkeypatch):
    """The clock that says when a file may be looked at again, by hand."""
    now = [1_000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def agents_file(tmp_path):
    """A file of patterns, and how it is written."""

    class File:
        path = tmp_path / "badagents.txt"
        written = 0

        def write(self, text):
            self.path.write_text(text)
            # File systems may keep times too coarsely to tell two quick writes apart.
            self.written += 1
            os.utime(self.path, (self.written, self.written))

    return File()


def test_an_agent_on_the_list_is_refused_with_403(serve):
    site = serve(BlockAgents("EvilBot"), agent="EvilBot/1.0")

    testing.assert_refused(site.get("/"), 403, guard="block-agents")


def test_an_agent_that_is_not_on_the_list_passes(serve):
    assert serve(BlockAgents("EvilBot"), agent="Mozilla/5.0").get("/").status_code == 200


def test_a_blocked_agent_is_not_told_to_come_back(serve):
    assert "Retry-After" not in serve(BlockAgents("curl"), agent="curl/8").get("/").headers


@pytest.mark.parametrize("agent", ["evilbot", "EVILBOT/2", "Mozilla/5.0 (compatible; EvilBot/1.0)"])
def test_case_and_position_do_not_count(serve, agent):
    assert serve(BlockAgents("EvilBot"), agent=agent).get("/").status_code == 403


def test_a_pattern_may_be_anchored(serve):
    site = serve(BlockAgents("^curl"), agent="libcurl")

    assert site.get("/").status_code == 200
    assert site.at(agent="curl/8").get("/").status_code == 403


def test_any_of_several_patterns_is_enough(serve):
    site = serve(BlockAgents("wget", r"python-requests/\d"))

    assert site.at(agent="Wget/1").get("/").status_code == 403
    assert site.at(agent="python-requests/2").get("/").status_code == 403
    assert site.at(agent="python-requests").get("/").status_code == 200


def test_patterns_with_groups_and_flags_of_their_own_work_together(serve):
    site = serve(BlockAgents(r"(?P<name>a)x(?P=name)", r"(?P<name>b)y(?P=name)", r"(c)z\1"))

    for agent in ["axa", "byb", "czc"]:
        assert site.at(agent=agent).get("/").status_code == 403
    for agent in ["axb", "bya", "cza"]:
        assert site.at(agent=agent).get("/").status_code == 200


def test_an_agent_is_cut_at_512_characters_before_it_is_matched(serve):
    """Nobody can make the search long with a long header."""
    site = serve(BlockAgents("evil"))

    assert site.at(agent="x" * 508 + "evil").get("/").status_code == 403
    assert site.at(agent="x" * 509 + "evil").get("/").status_code == 200


def test_who_names_no_agent_passes(serve):
    assert serve(BlockAgents("evil"), agent=None).get("/").status_code == 200


def test_who_names_no_agent_may_be_refused(serve):
    site = serve(BlockAgents("evil", missing="refuse"), agent=None)

    assert site.get("/").status_code == 403
    assert site.at(agent="Mozilla/5.0").get("/").status_code == 200


def test_a_file_has_one_pattern_a_line_with_comments_and_blank_lines(serve, agents_file):
    agents_file.write("# fetchers\n\n  EmailSiphon  \n\t# indented\nCherry.*Picker\n")
    site = serve(BlockAgents.from_file(agents_file.path))

    assert site.at(agent="emailsiphon").get("/").status_code == 403
    assert site.at(agent="CherryRedPicker").get("/").status_code == 403
    assert site.at(agent="# fetchers indented").get("/").status_code == 200


def test_a_file_is_read_again_when_it_changes(serve, agents_file, wall):
    agents_file.write("curl\n")
    site = serve(BlockAgents.from_file(agents_file.path))
    assert site.at(agent="curl").get("/").status_code == 403

    agents_file.write("wget\n")
    wall[0] += 1

    assert site.at(agent="wget").get("/").status_code == 403
    assert site.at(agent="curl").get("/").status_code == 200


def test_a_pipe_is_no_list_since_a_request_would_wait_for_it(tmp_path):
    os.mkfifo(tmp_path / "agents")

    with pytest.raises(ConfigurationError, match="it is not a regular file"):
        BlockAgents.from_file(tmp_path / "agents")


@pytest.mark.parametrize("damage", ["does not parse", "is gone", "is no UTF-8", "is a pipe"])
def test_the_last_good_list_is_kept_when_the_file_is_damaged(serve, agents_file, wall, caplog, damage):
    agents_file.write("curl\n")
    site = serve(BlockAgents.from_file(agents_file.path), agent="curl")
    site.get("/")

    if damage == "does not parse":
        agents_file.write("(wget\n")
    elif damage == "is gone":
        agents_file.path.unlink()
    elif damage == "is a pipe":
        agents_file.path.unlink()
        os.mkfifo(agents_file.path)
    else:
        agents_file.path.write_bytes(b"\xff\xfe\n")
    wall[0] += 1

    assert site.get("/").status_code == 403
    (line,) = lines(caplog, level="ERROR")
    assert line.startswith("block-agents: the last good list is kept: ")


def test_a_file_that_was_damaged_is_taken_again_when_it_is_mended(serve, agents_file, wall):
    agents_file.write("curl\n")
    site = serve(BlockAgents.from_file(agents_file.path))
    agents_file.write("(wget\n")
    wall[0] += 1
    site.get("/")
    agents_file.write("wget\n")
    wall[0] += 1

    assert site.at(agent="wget").get("/").status_code == 403


def test_a_file_that_stays_damaged_is_complained_of_once(serve, agents_file, wall, caplog):
    agents_file.write("curl\n")
    site = serve(BlockAgents.from_file(agents_file.path))
    agents_file.path.unlink()
    for _ in range(5):
        wall[0] += 1
        site.get("/")

    assert len(lines(caplog, level="ERROR")) == 1


def test_an_emptied_file_refuses_nobody(serve, agents_file, wall):
    agents_file.write("curl\n")
    site = serve(BlockAgents.from_file(agents_file.path), agent="curl")
    agents_file.write("# nobody any more\n")
    wall[0] += 1

    assert site.get("/").status_code == 200


def test_the_agents_of_a_file_may_be_refused_on_some_paths_only(serve, agents_file):
    agents_file.write("curl\n")
    site = serve(BlockAgents.from_file(agents_file.path, path="/api"), agent="curl")

    assert site.get("/api/x").status_code == 403
    assert site.get("/").status_code == 200


def test_a_blocked_agent_is_refused_also_while_its_list_is_read_again(
    serve, agents_file, wall, monkeypatch
):
    """One thread compiles the new list, and others serve meanwhile."""
    agents_file.write("curl\n")
    site = serve(BlockAgents.from_file(agents_file.path), agent="curl")
    assert site.get("/").status_code == 403
    agents_file.write("curl\nwget\n")
    wall[0] += 1
    compiled, meanwhile = re.compile, []

    def compile_while_others_ask(pattern, flags=0):
        meanwhile.append(site.at("192.0.2.9", agent=f"curl/{len(meanwhile)}").get("/").status_code)
        return compiled(pattern, flags)

    monkeypatch.setattr(re, "compile", compile_while_others_ask)
    site.get("/")

    assert meanwhile
    assert set(meanwhile) == {403}
