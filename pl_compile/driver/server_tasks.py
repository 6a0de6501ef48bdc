"""The tasks of a running `plc serve`: list, add, remove, by its routes.

A task is added from the bundles that the server was started with. Nothing is sent but its name.
"""

from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote

from pl_compile.driver.bench.client import Address
from pl_compile.errors import RequestError


def list_served(address: Address) -> list[dict[str, Any]]:
    """What a server says of each task that it serves.

    Args:
        address: with the key for `/v1`, where the server has one.

    Raises:
        RequestError: it does not answer, or is not `plc serve`.
    """
    listed = address.call("GET", "/v1/models")
    models = listed.get("data") if isinstance(listed, dict) else None
    if not isinstance(models, list) or not all(
        isinstance(model, dict) and isinstance(model.get("fields"), list) for model in models
    ):
        raise RequestError(
            f"listing the tasks of {address.url}",
            found="models without fields",
            expected="plc serve",
        )
    return models


def add_served(address: Address, tasks: Sequence[str]) -> None:
    """Has a server serve more tasks, one after the other, each with its files as they are now.

    Args:
        address: with the key for `/admin`.
        tasks: names of tasks in the server's bundles.

    Raises:
        RequestError: the server does not answer, or refuses a task. Those before it were added.
    """
    _each("added", tasks, lambda task: address.text("POST", "/admin/tasks", {"task": task}))


def remove_served(address: Address, tasks: Sequence[str]) -> None:
    """Has a server serve tasks no more; their requests under way are answered.

    Args:
        address: with the key for `/admin`.
        tasks: their names.

    Raises:
        RequestError: the server does not answer, or has no such task. Those before it were removed.
    """
    _each(
        "removed",
        tasks,
        lambda task: address.text("DELETE", f"/admin/tasks/{quote(task, safe='')}"),
    )


def _each(done: str, tasks: Sequence[str], ask: Callable[[str], object]) -> None:
    """Asks for each task; an error says what was done before, and what may be the reason."""
    for number, task in enumerate(tasks):
        try:
            ask(task)
        except RequestError as error:
            fix = error.fix
            if "There is no such route" in error.found:
                fix = "Start plc serve with --admin-key-file or PLC_ADMIN_KEY: without, it is off."
            before = f" ({done} before: {', '.join(tasks[:number])})" if number else ""
            raise RequestError(error.doing, found=f"{error.found}{before}", fix=fix) from error
