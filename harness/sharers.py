"""Several containers of one pod, started and released at the same time.

What they wait for (the guest's kernel, crun, the compute service) overlaps, and the counts of the
disks that they share decide who attaches and who detaches, in whatever order they come.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Final, TypeVar

from harness.containers import Container, ContainerConfig
from harness.uvm import UtilityVm
from snapshotter import Mount

_AT_ONCE: Final = 8

T = TypeVar("T")


def start_sharers(
    vm: UtilityVm,
    mounts: Mapping[str, Sequence[Mount]],
    *,
    config: ContainerConfig,
    pod_id: str,
    timeout_s: float = 60.0,
) -> dict[str, Container]:
    """Return the containers, by id, that run on the mounts of that name.

    If one does not start, none is left, save what `UtilityVm.reclaim` finishes: raises the error of
    the first that did not, with notes of what else failed.
    """
    outcomes = _at_once(
        {
            container_id: partial(
                Container.start,
                vm,
                container_id,
                mounts=each,
                config=config,
                pod_id=pod_id,
                timeout_s=timeout_s,
            )
            for container_id, each in mounts.items()
        }
    )
    errors = _errors(outcomes)
    started = {name: done.result() for name, done in outcomes.items() if not done.exception()}
    if errors:
        undone = _errors(_at_once({name: held.release for name, held in started.items()}))
        for name, _ in undone:
            vm.unfinished.keep(started[name].release)
        _raise(errors + undone)
    return started


def release_sharers(containers: Sequence[Container]) -> None:
    """Release containers; every one is attempted, and a failed one may be released again.

    Raises the first error, with notes of the others.
    """
    _raise(_errors(_at_once({each.id: each.release for each in containers})))


def _at_once(work: Mapping[str, Callable[[], T]]) -> dict[str, Future[T]]:
    """Return how each piece of work ended."""
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="sharers") as pool:
        return {name: pool.submit(each) for name, each in work.items()}


def _errors(outcomes: Mapping[str, Future[T]]) -> list[tuple[str, BaseException]]:
    found = [(name, done.exception()) for name, done in outcomes.items()]
    return [(name, error) for name, error in found if error is not None]


def _raise(errors: Sequence[tuple[str, BaseException]]) -> None:
    if errors:
        _, first = errors[0]
        for name, error in errors[1:]:
            first.add_note(f"and container {name}: {error}")
        raise first
