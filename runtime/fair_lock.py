"""A lock that no thread can keep for itself by asking for it again and again."""

import threading


class FairLock:
    """A reentrant lock: whoever waits gets it before the thread that just gave it back.

    With a plain lock, a thread that runs one step after the other would let nobody else in: it
    takes the lock again before the operating system has woken up another thread.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._next = threading.Lock()  # held by the thread that waits for `_lock`
        self._owner: int | None = None
        self._depth = 0

    def __enter__(self) -> None:
        """Waits for the lock, unless this thread has it."""
        me = threading.get_ident()
        if self._owner != me:
            with self._next:
                self._lock.acquire()
            self._owner = me
        self._depth += 1

    def __exit__(self, *error: object) -> None:
        """Gives it back."""
        self._depth -= 1
        if not self._depth:
            self._owner = None
            self._lock.release()
