"""The user as which a watchdog runs."""

from __future__ import annotations

import os
import pwd
from contextlib import suppress

from guardrails.errors import ConfigurationError

_NO_CHANGE = 2**32 - 1
"""The number that means "as it is" to the system: a process that "becomes" it stays root."""


def become(user: str) -> None:
    """Give up root's rights for those of another user, for good.

    A number needs no entry in the list of users: such a user has the group of the same number, and
    no other group.

    Args:
        user: the user of the workers, by name or number.

    Raises:
        ConfigurationError: there is no such user, or this process is not root.
    """
    entry = None
    with suppress(KeyError, OverflowError, ValueError):
        entry = pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
    if entry is None and not (user.isdecimal() and int(user) < _NO_CHANGE):
        raise ConfigurationError(
            f"user: there is no {user!r}: write the name or the number of the workers' user"
        )
    uid, gid = (entry.pw_uid, entry.pw_gid) if entry else (int(user), int(user))
    if uid == os.geteuid() == os.getuid():
        return
    try:
        os.initgroups(entry.pw_name, gid) if entry else os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    except PermissionError:
        raise ConfigurationError(
            f"user: only root can become {user!r}: run the command as that user, or as root"
        ) from None
