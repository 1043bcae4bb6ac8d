"""The clients: some send requests at set times, others send the next one after each answer.

Every request is a connection of its own to 127.0.0.1, and every answer is kept.
"""

import http.client
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Self

from replay import Order

PATIENCE_SECONDS = 15
MOST_OPEN = 24


class Answer(NamedTuple):
    """The answer to a request. `status` is None when the connection broke, `worker` when the server
    answered without calling the app.
    """

    order: Order
    sent: float
    seconds: float
    late: float = 0.0
    status: int | None = None
    worker: str | None = None
    refused_by: str | None = None
    retry_after: int | None = None

    @property
    def done(self) -> float:
        return self.sent + self.seconds

    @property
    def lost(self) -> bool:
        return self.status is None

    @property
    def admitted(self) -> bool:
        return self.worker is not None and self.refused_by is None


def ask(port: int, order: Order, begin: float | None = None) -> Answer:
    """Send a request and wait for its answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)
    sent = time.monotonic()
    late = 0.0 if begin is None else sent - begin - order.due
    try:
        connection.putrequest(order.method, order.target, skip_accept_encoding=True)
        connection.putheader("X-Forwarded-For", order.address)
        connection.putheader("Connection", "close")
        if order.agent:
            connection.putheader("User-Agent", order.agent)
        if order.method == "POST":
            connection.putheader("Content-Length", "0")
        connection.endheaders()
        response = connection.getresponse()
        response.read()
    except (OSError, http.client.HTTPException):
        return Answer(order, sent, time.monotonic() - sent, late)
    finally:
        connection.close()
    retry_after = response.headers["Retry-After"]
    return Answer(
        order,
        sent,
        time.monotonic() - sent,
        late,
        response.status,
        response.headers["X-Worker"],
        response.headers["X-Refused-By"],
        None if retry_after is None else int(retry_after),
    )


class Activity:
    """Something that clients do in threads of their own until it is over or finished."""

    def __init__(self, work: Callable[["Activity"], None], threads: int, finished: threading.Event):
        self.finished = finished
        self.began = time.monotonic()
        self.ended = 0.0
        self._threads = [threading.Thread(target=work, args=[self]) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def running(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)

    def finish(self) -> None:
        """Send no more requests, and wait for the answers that are still to come."""
        self.finished.set()
        for thread in self._threads:
            thread.join()
        self.ended = self.ended or time.monotonic()


class Crowd:
    """All clients of one server, and all answers they got."""

    def __init__(self) -> None:
        self.port = 0
        self.answers: list[Answer] = []
        self._activities: list[Activity] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        for activity in self._activities:
            activity.finished.set()
        for activity in self._activities:
            activity.finish()

    def ask(self, order: Order, begin: float | None = None) -> Answer:
        answer = ask(self.port, order, begin)
        self.answers.append(answer)
        return answer

    def keep_to(self, orders: Iterable[Order]) -> Activity:
        """Send each request when it is due."""

        def work(activity: Activity) -> None:
            with ThreadPoolExecutor(MOST_OPEN) as pool:
                for order in orders:
                    if activity.finished.wait(activity.began + order.due - time.monotonic()):
                        pool.shutdown(wait=False, cancel_futures=True)
                        break
                    pool.submit(self.ask, order, activity.began)

        return self._start(work, 1)

    def insist(self, order: Order, *, every: float, connections: int) -> Activity:
        """Send requests on several connections, each after the answer to the one before."""

        def work(activity: Activity) -> None:
            while not activity.finished.is_set():
                self.ask(order)
                activity.finished.wait(every)

        return self._start(work, connections)

    def of(self, *sources: str) -> Sequence[Answer]:
        """The answers to requests from these sources, in the order sent."""
        found = [answer for answer in self.answers if answer.order.source in sources]
        return sorted(found, key=lambda answer: answer.sent)

    def _start(self, work: Callable[[Activity], None], threads: int) -> Activity:
        activity = Activity(work, threads, threading.Event())
        self._activities.append(activity)
        return activity
